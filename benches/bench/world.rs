//! Two network namespaces with a veth pair between them, a sender of SYNs, and processes.

use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// Two namespaces, deleted when this is dropped.
pub struct World {
    /// Where SYNs are sent from.
    pub sender: String,
    /// Where the tools run.
    pub receiver: String,
}

impl World {
    /// Makes them: `s0` in the sender is connected to `r0` in the receiver.
    pub fn new() -> Result<Self> {
        let id = std::process::id();
        let world = Self {
            sender: format!("bench-tx-{id}"),
            receiver: format!("bench-rx-{id}"),
        };
        let (tx, rx) = (&world.sender, &world.receiver);
        for command in [
            format!("netns add {tx}"),
            format!("netns add {rx}"),
            format!("link add s0 netns {tx} type veth peer name r0 netns {rx}"),
            format!("-n {tx} link set s0 address 02:00:00:00:00:01 up"),
            format!("-n {rx} link set r0 address 02:00:00:00:00:02 up"),
            format!("-n {tx} addr add 198.18.0.1/24 dev s0"),
            format!("-n {rx} addr add 198.18.0.2/24 dev r0"),
            format!("-n {rx} link set lo up"),
        ] {
            ip(&command)?;
        }
        Ok(world)
    }

    /// A command that runs in the receiver.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/var/run/netns/{}", self.receiver));
        command.arg(program);
        command
    }

    /// Sends `count` SYNs of 60 bytes as fast as one core can; returns how long it took.
    pub fn flood(&self, count: u64) -> Result<Duration> {
        let path = format!("/var/run/netns/{}", self.sender);
        let netns = std::fs::File::open(path)?;
        std::thread::spawn(move || {
            setns(&netns, CloneFlags::CLONE_NEWNET)?;
            let (socket, address) = packet_socket("s0")?;
            let frame = syn();
            let started = Instant::now();
            for _ in 0..count {
                nix::sys::socket::sendto(
                    socket.as_raw_fd(),
                    &frame,
                    &address,
                    nix::sys::socket::MsgFlags::empty(),
                )?;
            }
            Ok(started.elapsed())
        })
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
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .context("failed to run ip")?;
    if !status.success() {
        bail!("failed: ip {arguments}");
    }
    Ok(())
}

fn packet_socket(device: &str) -> Result<(OwnedFd, nix::sys::socket::LinkAddr)> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::empty(),
        None,
    )?;
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|address| address.interface_name == device)
        .find_map(|address| address.address?.as_link_addr().copied())
        .context("the device has no address")?;
    Ok((socket, address))
}

/// A SYN to port 80.
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

/// A running tool, killed when this is dropped.
pub struct Tool {
    child: Child,
}

impl Tool {
    /// Starts it and waits until `ready` stands in a line of its stderr; returns how long it took.
    pub fn start(mut command: Command, stdout: Stdio, ready: &str) -> Result<(Self, Duration)> {
        let started = Instant::now();
        let child = command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {command:?}"))?;
        let mut tool = Self { child };
        let stderr = tool.child.stderr.take().context("there is no stderr")?;
        let mut lines = BufReader::new(stderr).lines();
        for line in lines.by_ref() {
            if line?.contains(ready) {
                let took = started.elapsed();
                // Nobody may block on a full pipe.
                std::thread::spawn(move || lines.for_each(drop));
                return Ok((tool, took));
            }
        }
        bail!("{command:?} ended before it was ready");
    }

    /// Seconds of CPU that it has used, and its resident memory in KiB.
    pub fn usage(&self) -> Result<(f64, u64)> {
        let pid = self.child.id();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat
            .rsplit(')')
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        let cpu = (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) / 100.0;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok())
            .unwrap_or(0);
        Ok((cpu, rss))
    }

    /// Ends it by SIGINT and waits.
    pub fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary that is measured.
pub const TCPINSPECT: &str = env!("CARGO_BIN_EXE_tcpinspect");

/// Whether a peer is installed.
pub fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
