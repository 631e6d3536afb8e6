//! All commands at once, for ten minutes under load: memory and descriptors stay where they are,
//! and the counts are exact.
//!
//! `cargo bench --bench soak` runs it, as root, in network namespaces of its own; `-- --short` takes
//! ten seconds. Its figures are in docs/trust.md.

#![allow(clippy::print_stdout, reason = "a bench is for who runs it")]

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, sendto, socket};

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
        &["connect-trace", "-p", "81", "--dst", "198.19.0.2"],
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
        let mut child = Command::new("ip")
            .args(["netns", "exec", &world.receiver])
            .arg(env!("CARGO_BIN_EXE_tcpinspect"))
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

/// How much may still be allocated after a tenth of the time, in KiB.
const MAY_GROW: u64 = 256;

fn main() -> Result<()> {
    let is_short = std::env::args().any(|arg| arg == "--short");
    let length = Duration::from_secs(if is_short { 10 } else { 600 });
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
        world.send(flood)?;
        syns += SYNS;
        world.send(connect)?;
        connections += CONNECTIONS;
        if Instant::now() >= samples_due {
            for run in &mut runs {
                run.sample()?;
            }
            samples_due += length / 100;
        }
        std::thread::sleep(ROUND.saturating_sub(round.elapsed()));
    }

    println!("All commands at once for {} s:\n", length.as_secs());
    println!(
        "| command | events made | events seen | KiB resident after a tenth | at the end | at most | descriptors after a tenth | at the end |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for (run, (args, expected)) in runs.iter_mut().zip(COMMANDS) {
        run.sample()?;
        let summary = run.stop()?;
        // Buffers have their size by then.
        let early = run.samples[run.samples.len() / 10];
        let last = run.samples[run.samples.len() - 1];
        let most = run.samples.iter().map(|(memory, _)| *memory).max();
        let expected = expected(syns, connections);
        let seen = count(&summary).with_context(|| format!("no count in {summary}"))?;
        println!(
            "| {} | {expected} | {seen} | {} | {} | {} | {} | {} |",
            args[0],
            early.0,
            last.0,
            most.unwrap_or(0),
            early.1,
            last.1,
        );
        if last.0 > early.0 + MAY_GROW || last.1 > early.1 || seen != expected {
            wrong.push(summary);
        }
    }
    if !wrong.is_empty() {
        bail!("memory or descriptors grew, or counts are wrong: {wrong:#?}");
    }
    Ok(())
}

/// Two namespaces with a pair of interfaces between them, deleted when this is dropped.
struct World {
    sender: String,
    /// Where the commands run.
    receiver: String,
}

impl World {
    /// Makes them: `s0` in the sender is connected to `r0` in the receiver.
    fn new() -> Result<Self> {
        let id = std::process::id();
        let world = Self {
            sender: format!("soak-tx-{id}"),
            receiver: format!("soak-rx-{id}"),
        };
        let (tx, rx) = (&world.sender, &world.receiver);
        for command in [
            format!("netns add {tx}"),
            format!("netns add {rx}"),
            format!("link add s0 netns {tx} type veth peer name r0 netns {rx}"),
            format!("-n {tx} link set s0 up"),
            format!("-n {rx} link set r0 address 02:00:00:00:00:02 up"),
            format!("-n {tx} addr add 198.19.0.1/24 dev s0"),
            format!("-n {rx} addr add 198.19.0.2/24 dev r0"),
        ] {
            ip(&command)?;
        }
        Ok(world)
    }

    /// Does something in the namespace of the sender.
    fn send(&self, work: fn() -> Result<()>) -> Result<()> {
        let netns = File::open(format!("/var/run/netns/{}", self.sender))?;
        let thread = std::thread::spawn(move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        thread
            .join()
            .map_err(|_| anyhow::anyhow!("the sender panicked"))?
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for name in [&self.sender, &self.receiver] {
            // What was not made can't be deleted.
            let _ = ip(&format!("netns del {name}"));
        }
    }
}

fn ip(arguments: &str) -> Result<()> {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    if !status.context("failed to run ip")?.success() {
        bail!("failed: ip {arguments}");
    }
    Ok(())
}

/// Sends SYNs as they are.
fn flood() -> Result<()> {
    let (kind, flags) = (SockType::Raw, SockFlag::empty());
    let socket: OwnedFd = socket(AddressFamily::Packet, kind, flags, None)?;
    let address: LinkAddr = nix::ifaddrs::getifaddrs()?
        .filter(|address| address.interface_name == "s0")
        .find_map(|address| address.address?.as_link_addr().copied())
        .context("the device has no address")?;
    let frame = syn();
    for _ in 0..SYNS {
        sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty())?;
    }
    Ok(())
}

/// A SYN to port 80.
fn syn() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([
        0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 198, 19, 0, 1, 198, 19, 0, 2,
    ]);
    frame.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x04, 0, 0, 0, 0, 0,
    ]);
    frame.resize(60, 0);
    frame
}

/// Connects to where nobody listens.
fn connect() -> Result<()> {
    for _ in 0..CONNECTIONS {
        match TcpStream::connect("198.19.0.2:81") {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {}
            other => bail!("a connection was not refused: {other:?}"),
        }
    }
    Ok(())
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
