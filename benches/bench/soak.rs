//! All commands at once, for ten minutes under load: memory and descriptors stay where they are,
//! and the counts are exact.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::TcpStream;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

use crate::Effort;
use crate::report::{bound, table};
use crate::world::{TCPINSPECT, World};

/// SYNs to port 80, and connections to port 81 that are refused, in each round.
const SYNS: u64 = 500;
const CONNECTIONS: u64 = 100;
const ROUND: Duration = Duration::from_millis(50);

/// A command, and how many events it must have seen for so many SYNs and connections.
type Watched = (&'static [&'static str], fn(u64, u64) -> u64);

const COMMANDS: [Watched; 4] = [
    (
        &["syn-count", "r0", "-p", "80", "-i", "0.5", "--by", "saddr"],
        |syns, _| syns,
    ),
    (&["port-monitor", "r0", "-p", "80"], |syns, _| syns),
    (&["flows", "r0", "-p", "81"], |_, connections| connections),
    (
        &["connect-trace", "-p", "81", "--dst", "198.18.0.2"],
        |_, connections| 2 * connections,
    ),
];

/// A command that runs, and what was seen of it.
struct Run {
    child: Child,
    summary: Receiver<String>,
    /// Resident memory in KiB, and open descriptors, at equal distances in time.
    samples: Vec<(u64, usize)>,
}

impl Run {
    fn start(world: &World, args: &[&str]) -> Result<Self> {
        let mut child = world
            .command(TCPINSPECT)
            .args(args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("failed to start tcpinspect")?;
        let stderr = child.stderr.take().context("there is no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        for line in lines.by_ref() {
            if line?.starts_with("attached:") {
                let (to, summary) = channel();
                std::thread::spawn(move || {
                    for line in lines.map_while(Result::ok) {
                        if line.starts_with("summary:") {
                            let _ = to.send(line);
                        }
                    }
                });
                return Ok(Self {
                    child,
                    summary,
                    samples: Vec::new(),
                });
            }
        }
        bail!("{args:?} ended before it was attached");
    }

    fn sample(&mut self) -> Result<()> {
        let pid = self.child.id();
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .context("the process has no memory")?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        self.samples.push((memory, descriptors));
        Ok(())
    }

    fn stop(&mut self) -> Result<String> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.child.wait()?;
        let patience = Duration::from_secs(5);
        self.summary
            .recv_timeout(patience)
            .context("there is no summary")
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn run(effort: Effort) -> Result<bool> {
    let length = Duration::from_secs(if effort.short { 10 } else { 600 });
    let world = World::new()?;
    let mut runs = COMMANDS
        .iter()
        .map(|(args, _)| Run::start(&world, args))
        .collect::<Result<Vec<_>>>()?;

    let started = Instant::now();
    let (mut syns, mut connections) = (0, 0);
    let mut samples_due = started;
    while started.elapsed() < length {
        let round = Instant::now();
        world.flood(SYNS)?;
        syns += SYNS;
        connect(&world)?;
        connections += CONNECTIONS;
        if Instant::now() >= samples_due {
            for run in &mut runs {
                run.sample()?;
            }
            samples_due += length / 100;
        }
        std::thread::sleep(ROUND.saturating_sub(round.elapsed()));
    }

    let mut rows = Vec::new();
    let (mut growth, mut more, mut wrong) = (0, 0, 0);
    for (run, (args, expected)) in runs.iter_mut().zip(COMMANDS) {
        run.sample()?;
        let summary = run.stop()?;
        // Buffers have their size by then.
        let early = run.samples[run.samples.len() / 10];
        let last = run.samples[run.samples.len() - 1];
        let most = run.samples.iter().map(|(memory, _)| *memory).max();
        let expected = expected(syns, connections);
        let seen = count(&summary).with_context(|| format!("no count in {summary}"))?;
        growth = growth.max(last.0.saturating_sub(early.0));
        more = more.max(last.1.saturating_sub(early.1));
        wrong += seen.abs_diff(expected);
        rows.push(vec![
            args[0].into(),
            expected.to_string(),
            seen.to_string(),
            early.0.to_string(),
            last.0.to_string(),
            most.unwrap_or(0).to_string(),
            format!("{} / {}", early.1, last.1),
        ]);
    }
    table(
        &format!("All commands at once for {} s", started.elapsed().as_secs()),
        &[
            "command",
            "events made",
            "events seen",
            "KiB resident after a tenth",
            "at the end",
            "at most",
            "descriptors then and at the end",
        ],
        &rows,
    );
    let memory = bound("growth of memory, KiB", growth as f64, 256.0, true);
    let descriptors = bound("growth of descriptors", more as f64, 0.0, true);
    let counts = bound("events that are not accounted for", wrong as f64, 0.0, true);
    Ok(memory && descriptors && counts)
}

/// Connects to where nobody listens.
fn connect(world: &World) -> Result<()> {
    let netns = std::fs::File::open(format!("/var/run/netns/{}", world.sender))?;
    std::thread::spawn(move || {
        setns(&netns, CloneFlags::CLONE_NEWNET)?;
        for _ in 0..CONNECTIONS {
            match TcpStream::connect("198.18.0.2:81") {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
                other => bail!("a connection was not refused: {other:?}"),
            }
        }
        Ok(())
    })
    .join()
    .map_err(|_| anyhow::anyhow!("the sender panicked"))?
}

/// The SYNs or matches that a summary tells.
fn count(summary: &str) -> Option<u64> {
    let words = summary.split([' ', ';', ':']).collect::<Vec<_>>();
    let at = |name| words.iter().position(|word| *word == name);
    let number = match (at("matched"), at("SYNs")) {
        (Some(at), _) => words.get(at + 1)?,
        (None, Some(at)) => words.get(at.checked_sub(1)?)?,
        _ => return None,
    };
    number.parse().ok()
}
