//! Two network namespaces with a veth pair between them, a sender of SYNs, and processes.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::chart::Bar;
use crate::common::tool::binary;
use crate::common::{Namespace, status_kib};
use crate::plain::{ATTACHED, LIVE_FRAMES, test_run};
use crate::stat::Stat;

/// The namespaces, gone when this is dropped.
pub struct World {
    /// Where SYNs are sent from.
    pub sender: Namespace,
    /// Where the tools run.
    receiver: Namespace,
}

impl World {
    /// Makes them: `s0` in the sender is connected to `r0` in the receiver.
    pub fn new() -> Result<Self> {
        let make = || Namespace::new().map_err(anyhow::Error::msg);
        let (sender, receiver) = (make()?, make()?);
        let to = receiver.path();
        for (namespace, command) in [
            (
                &sender,
                &*format!("ip link add s0 type veth peer name r0 netns {to}"),
            ),
            (&sender, "ip link set s0 address 02:00:00:00:00:01 up"),
            (&receiver, "ip link set r0 address 02:00:00:00:00:02 up"),
            (&sender, "ip addr add 198.18.0.1/24 dev s0"),
            (&receiver, "ip addr add 198.18.0.2/24 dev r0"),
            // Redirected frames are received only by an end that has NAPI.
            (&receiver, "ethtool -K r0 gro on"),
        ] {
            namespace.try_run(command).map_err(anyhow::Error::msg)?;
        }
        Ok(Self { sender, receiver })
    }

    /// Sends `count` SYNs of 60 bytes as fast as one core can, or at `rate` a second, with the
    /// program `sender`. They are received on the same core, so the time that a tool spends there
    /// lowers the rate. Returns how long it took.
    pub fn flood(&self, sender: i32, count: u64, rate: Option<u64>) -> Result<Duration> {
        self.flood_of(syn(), sender, count, rate)
    }

    /// The same with another frame of 60 bytes.
    pub fn flood_of(
        &self,
        mut frame: Vec<u8>,
        sender: i32,
        count: u64,
        rate: Option<u64>,
    ) -> Result<Duration> {
        self.sender.enter(|| {
            pin(0)?;
            let index = nix::net::if_::if_nametoindex("s0")?;
            frame[56..60].copy_from_slice(&index.to_ne_bytes());
            let started = Instant::now();
            let Some(rate) = rate else {
                test_run(sender, &frame, u32::try_from(count)?, LIVE_FRAMES)?;
                return Ok(started.elapsed());
            };
            // Each millisecond, as many as are due.
            let mut sent = 0;
            while sent < count {
                let due = started.elapsed().as_micros() * u128::from(rate) / 1_000_000;
                let batch = u64::try_from(due)?.min(count).saturating_sub(sent);
                if batch > 0 {
                    test_run(sender, &frame, u32::try_from(batch)?, LIVE_FRAMES)?;
                    sent += batch;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(started.elapsed())
        })
    }

    /// Moves this thread to the receiver's namespace.
    pub fn enter(&self) {
        self.receiver.join();
    }
}

/// Keeps this thread on a CPU.
pub fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// A SYN to port 80. The checksum of its IP header is wrong, so that the IP layer drops it.
pub fn syn() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([
        0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2,
    ]);
    frame.extend([
        0x12, 0x34, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x04, 0, 0, 0, 0, 0,
    ]);
    frame.resize(60, 0);
    frame
}

/// The system call numbers of epoll_wait, epoll_pwait, and poll, which bcc uses.
#[cfg(target_arch = "x86_64")]
const WAITING: [&str; 3] = ["232 ", "281 ", "7 "];

/// The system call numbers of epoll_pwait and ppoll.
#[cfg(not(target_arch = "x86_64"))]
const WAITING: [&str; 2] = ["22 ", "73 "];

/// How a tool shows that it is ready: where, and in which words.
#[derive(Clone, Copy, Debug)]
pub enum Ready {
    /// On stderr. Its data may go anywhere.
    Stderr(&'static str),
    /// On stdout. Its data goes to a pipe, whose reader looks for the words and discards the rest.
    Stdout(&'static str),
    /// It says nothing, but waits in epoll or poll, as libbpf's and bcc's readers do.
    Waiting,
}

/// A running tool, killed when this is dropped.
pub struct Tool {
    child: Child,
    /// What it writes to stderr once it is ready.
    rest: Option<JoinHandle<String>>,
    /// From exec until it was ready.
    pub took: Duration,
}

impl Tool {
    /// Starts it and waits until it is ready. Its data goes to `stdout`.
    pub fn start(mut command: Command, stdout: Stdio, ready: Ready) -> Result<Self> {
        let (words, stdout) = match ready {
            Ready::Stderr(words) => (words, stdout),
            Ready::Stdout(words) => (words, Stdio::piped()),
            Ready::Waiting => ("", stdout),
        };
        let started = Instant::now();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {command:?}"))?;
        let mut stderr: Box<dyn BufRead + Send> = Box::new(BufReader::new(
            child.stderr.take().context("there is no stderr")?,
        ));
        let mut data: Box<dyn BufRead + Send> = Box::new(std::io::empty());
        if let Ready::Stdout(_) = ready {
            data = Box::new(BufReader::new(
                child.stdout.take().context("there is no stdout")?,
            ));
        }
        let mut tool = Self {
            child,
            rest: None,
            took: Duration::ZERO,
        };
        let is_ready = match ready {
            Ready::Stderr(_) => find_words(&mut stderr, words)?,
            Ready::Stdout(_) => find_words(&mut data, words)?,
            Ready::Waiting => tool.waits()?,
        };
        if !is_ready {
            // Otherwise it might keep running and never close its stderr.
            let _ = tool.child.kill();
            let mut why = String::new();
            stderr.read_to_string(&mut why)?;
            bail!("{command:?} was not ready: {}", why.trim());
        }
        tool.took = started.elapsed();
        // Read on, so that the tool never blocks on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut data, &mut std::io::sink()));
        tool.rest = Some(std::thread::spawn(move || {
            let mut rest = Vec::new();
            // After an error there is no more to read, as at the end.
            let _ = stderr.read_to_end(&mut rest);
            String::from_utf8_lossy(&rest).into_owned()
        }));
        Ok(tool)
    }

    /// Returns when the tool is blocked in a call that waits for events. False if it ends instead, or
    /// is not blocked within a minute.
    fn waits(&mut self) -> Result<bool> {
        let path = format!("/proc/{}/syscall", self.pid());
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline && self.child.try_wait()?.is_none() {
            let call = std::fs::read_to_string(&path).unwrap_or_default();
            if WAITING.iter().any(|nr| call.starts_with(nr)) {
                return Ok(true);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(false)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its data, if that goes to a pipe which nobody reads yet.
    pub fn stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Seconds of CPU that all its threads have used.
    pub fn cpu(&self) -> Result<f64> {
        let mut sum = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.pid()))? {
            // The first number is the time on a CPU in ns; what stat has is in ticks.
            let times = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let first = times.split(' ').next().unwrap_or_default();
            sum += first.parse::<f64>().unwrap_or(0.0);
        }
        Ok(sum / 1e9)
    }

    /// Waits until it is idle.
    pub fn settle(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut used = self.cpu()?;
        while Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(50));
            let now = self.cpu()?;
            if now - used < 0.001 {
                break;
            }
            used = now;
        }
        Ok(())
    }

    /// Its resident memory in MiB.
    pub fn resident(&self) -> Result<f64> {
        let kib = status_kib(self.pid(), "VmRSS").context("there is no VmRSS")?;
        Ok(kib as f64 / 1024.0)
    }

    /// Ends it with SIGINT and waits. Returns what it has written to stderr since it was ready.
    pub fn stop(mut self) -> Result<String> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?);
        // bpftrace forgets a signal that comes while it attaches.
        for attempt in 0.. {
            if attempt % 100 == 0 {
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
            }
            if self.child.try_wait()?.is_some() {
                break;
            }
            ensure!(attempt < 1000, "a tool did not end after SIGINT");
            std::thread::sleep(Duration::from_millis(10));
        }
        let rest = self.rest.take().context("no thread reads its stderr")?;
        rest.join()
            .map_err(|_| anyhow::anyhow!("the thread that reads stderr panicked"))
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until a line has these words; false if none has.
fn find_words(said: &mut impl BufRead, words: &str) -> Result<bool> {
    loop {
        let mut line = Vec::new();
        if said.read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if String::from_utf8_lossy(&line).contains(words) {
            return Ok(true);
        }
    }
}

/// A tool that is measured.
pub struct Contender {
    /// The name in tables.
    pub name: &'static str,
    /// The program and its arguments, separated by single spaces. `tcpinspect` is the binary under test,
    /// and `attach` a child of the bench.
    pub line: &'static str,
    /// How it reports that it is ready.
    pub ready: Ready,
}

impl Contender {
    /// One of our commands.
    pub const fn ours(name: &'static str, line: &'static str) -> Self {
        Self {
            name,
            line,
            ready: Ready::Stderr("attached:"),
        }
    }

    /// Another tool.
    pub const fn peer(name: &'static str, line: &'static str, ready: Ready) -> Self {
        Self { name, line, ready }
    }

    /// Its bar in a chart.
    pub fn bar(&self, stat: Stat) -> Bar {
        Bar {
            label: self.name.to_owned(),
            stat,
            is_ours: self.is_ours(),
        }
    }

    /// Whether it is one of our commands.
    pub fn is_ours(&self) -> bool {
        self.line.starts_with("tcpinspect ")
    }

    /// The command, in the current network namespace.
    pub fn command(&self) -> Result<Command> {
        let mut words = self.line.split(' ');
        let program = words.next().unwrap_or_default();
        Ok(match program {
            "tcpinspect" => {
                let mut command = Command::new(binary());
                command.args(words);
                command
            }
            "attach" => {
                let mut command = Command::new(std::env::current_exe()?);
                command.env(ATTACHED, words.next().unwrap_or_default());
                command
            }
            _ => {
                let mut command = Command::new(program);
                command.args(words).env("PYTHONUNBUFFERED", "1");
                command
            }
        })
    }

    /// Why it can't be measured here, if it can't.
    pub fn absent(&self) -> Option<&'static str> {
        let program = self.line.split(' ').next().unwrap_or_default();
        (!["tcpinspect", "attach"].contains(&program) && !installed(program))
            .then_some("not installed")
    }
}

/// `None` if a tool is installed. Else this says that it is not, and returns whether the bench may pass
/// without it: in CI, measuring nothing must not count as success.
pub fn absence(program: &str) -> Option<bool> {
    if installed(program) {
        return None;
    }
    println!("\n{program} is not installed.");
    Some(std::env::var_os("CI").is_none())
}

/// Whether a peer is installed.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .any(|dir| dir.join(program).is_file())
}
