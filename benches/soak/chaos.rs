//! Everything goes wrong that can, again and again, while four commands run all the time: floods
//! from spoofed sources, links detached from outside, interfaces deleted, readers that stop, full
//! disks, kills. Each command that ends must account for all that it has seen, and leave nothing.
//! The clock of this machine is left alone: `lifecycle::machine` sets it, in guests.

use std::collections::BTreeSet;
use std::io::{Read, Seek};
use std::net::Ipv4Addr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::bpf::{Object, detach_link, has_tcx, links_of, objects_of};
use crate::common::frames::syn_frame;
use crate::common::raw::RawSocket;
use crate::common::tool::{account, into_small_pipe, json_account, small_disk, take_account};
use crate::common::{CLIENT4, Output, Pair, SERVER4, Tool, command, wait_within};
use crate::{Ended, Run};

/// The commands that run all the time. None uses XDP, because an interface takes one XDP program. True
/// if the command has an event for each SYN to port 80; false if it has two for each connection to
/// port 81, the attempt and its fate.
const WATCHED: [(&[&str], bool); 4] = [
    (
        &[
            "syn-count",
            "vs",
            "--mode",
            "tc",
            "-p",
            "80",
            "-I",
            "0.5",
            "--by",
            "saddr",
        ],
        true,
    ),
    (&["port-monitor", "vs", "-p", "80"], true),
    (&["flows", "vs", "-p", "80"], true),
    (&["connect-trace", "-p", "81", "--dst", "10.77.0.2"], false),
];

/// The commands to which faults happen, one after the other.
const VICTIMS: [&[&str]; 5] = [
    &["syn-count", "--mode", "generic"],
    &["syn-count", "--mode", "tc"],
    &["port-monitor"],
    &["flows"],
    &["accept-trace"],
];

/// SYNs of each flood, each from another source.
const FLOOD: u64 = 20_000;
/// SYNs that a victim sees.
const FEW: u64 = 500;
/// Lines for a reader that stops or a disk that is full: most of them find no room.
const MANY: u64 = 2000;
/// Connections that are refused in each round.
const CONNECTIONS: u64 = 100;

/// How long the kernel may take to free what a process has left.
const SOON: Duration = Duration::from_secs(5);

/// How much the resident memory may grow after a third of the time, in KiB: by the event buffer of
/// 4 MiB, whose pages become resident when they are first used, and by little else.
const MAY_GROW: u64 = 5 * 1024;

/// matched, emitted, lost and suppressed.
type Account = [u64; 4];

/// A fault. Returns the counts that the victim reports, unless it was killed.
type Incident = fn(&mut World) -> Result<Option<Account>>;

const INCIDENTS: [(&str, Incident); 7] = [
    ("a flood from spoofed sources", World::flood),
    ("its links are detached", World::detach),
    ("its interface is deleted", World::delete),
    ("its reader stops", World::stop_reader),
    ("its disk is full", World::fill_disk),
    ("it is killed", World::kill),
    ("it is killed at once", World::kill_early),
];

pub fn run(length: Duration) -> Result<()> {
    let mut world = World::new()?;
    let before = world.pair.state();
    let start = |(args, _): &(&[&'static str], bool)| Run::start(&world.pair.server, args);
    let mut runs: Vec<_> = WATCHED.iter().map(start).collect();

    let mut tallies = INCIDENTS.map(|_| (0_u64, [0; 4]));
    let mut connections = 0;
    let started = Instant::now();
    while started.elapsed() < length {
        for ((what, incident), (times, sums)) in INCIDENTS.iter().zip(&mut tallies) {
            let account = incident(&mut world).with_context(|| {
                format!("{what}, {} s after the start", started.elapsed().as_secs())
            })?;
            *times += 1;
            for (sum, number) in sums.iter_mut().zip(account.unwrap_or_default()) {
                *sum += number;
            }
        }
        let closed = (SERVER4, 81).into();
        world.pair.refused_connects(closed, CONNECTIONS as usize);
        connections += CONNECTIONS;
        for run in &mut runs {
            run.sample()?;
        }
    }

    println!(
        "For {} s, beside four commands:\n",
        started.elapsed().as_secs()
    );
    println!("| what goes wrong | times | matched | emitted | lost | suppressed |");
    println!("|---|---|---|---|---|---|");
    for ((what, _), (times, sums)) in INCIDENTS.iter().zip(tallies) {
        let sums = match sums {
            // The command was killed, or its counts are in the table of the four commands below.
            [0, ..] => ["-"; 4].join(" | "),
            _ => sums.map(|sum| sum.to_string()).join(" | "),
        };
        println!("| {what} | {times} | {sums} |");
    }
    println!("\nThe four commands:\n");
    println!(
        "| command | events made | events seen | KiB resident after a third | at the end | at most | descriptors after a third | at the end |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for (run, (_, of_syns)) in runs.into_iter().zip(WATCHED) {
        let made = if of_syns { world.sent } else { 2 * connections };
        let ended = run.stop()?;
        if !judge(&ended, made)? {
            wrong.push(ended.output);
        }
    }
    ensure!(
        wrong.is_empty(),
        "memory or descriptors grew, or counts are wrong: {wrong:#?}"
    );
    ensure!(world.pair.state() == before, "something is left");
    Ok(())
}

/// Prints a row, and says whether all is as it must be.
fn judge(ended: &Ended, made: u64) -> Result<bool> {
    let (early, last) = ended.between(3);
    let mut seen = ended.count()?;
    // Packets whose flow found no room; here each is a flow of its own.
    if ended.name == "flows" {
        seen += ended.number("untracked", 1).unwrap_or(0);
    }
    println!(
        "| {} | {made} | {seen} | {} | {} | {} | {} | {} |",
        ended.name,
        early.0,
        last.0,
        ended.most_memory(),
        early.1,
        last.1,
    );
    if ended.name != "syn-count" {
        // It checks the sum.
        account(&ended.output);
    }
    gone(&ended.objects);
    Ok(seen == made
        && last.0 <= early.0 + MAY_GROW
        && last.1 <= early.1
        && ended.output.code() == 0)
}

/// Waits until the kernel has freed all BPF objects of a process.
fn gone(objects: &BTreeSet<Object>) {
    wait_within("nothing is left", SOON, || {
        (!objects.iter().any(|object| object.exists())).then_some(())
    });
}

struct World {
    pair: Pair,
    client: RawSocket,
    frame: Vec<u8>,
    /// SYNs to the server so far, each from another source.
    sent: u64,
    /// Victims so far.
    victims: usize,
}

impl World {
    fn new() -> Result<Self> {
        let pair = Pair::new().map_err(anyhow::Error::msg)?;
        let client = pair.client.enter(|| RawSocket::open("vc"));
        Ok(Self {
            pair,
            client,
            frame: syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80),
            sent: 0,
            victims: 0,
        })
    }

    /// The next frame to send, from a source that has sent none.
    fn next_frame(&mut self) -> &[u8] {
        // Where the source address is.
        const SOURCE: std::ops::Range<usize> = 26..30;
        // Multiplying by an odd number maps different numbers to different addresses.
        let source = (self.sent as u32).wrapping_mul(0x9e37_79b1);
        self.frame[SOURCE].copy_from_slice(&Ipv4Addr::from(source).octets());
        self.sent += 1;
        &self.frame
    }

    /// Sends SYNs to the server.
    fn send(&mut self, count: u64) {
        for n in 0..count {
            self.next_frame();
            self.client.send(&self.frame);
            // Pauses, so that packets that are not processed yet fit into the kernel's backlog.
            if n % FEW == FEW - 1 {
                thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// The next victim on an interface.
    fn victim(&mut self, interface: &'static str) -> Vec<&'static str> {
        let tcx = has_tcx().is_ok();
        loop {
            let args = VICTIMS[self.victims % VICTIMS.len()];
            self.victims += 1;
            // A clsact filter outlives its process.
            if tcx || args.contains(&"generic") {
                return [&[args[0], interface, "--json"], &args[1..]].concat();
            }
        }
    }

    fn flood(&mut self) -> Result<Option<Account>> {
        self.send(FLOOD);
        Ok(None)
    }

    fn detach(&mut self) -> Result<Option<Account>> {
        let args = self.victim("vs");
        let tool = Tool::start_in(&self.pair.server, &args);
        let objects = objects_of(tool.pid());
        self.send(FEW);
        let links = links_of(tool.pid());
        let detached = links.iter().filter(|link| detach_link(**link).is_ok());
        ensure!(detached.count() > 0, "{args:?} has no links");
        self.send(FEW);
        let output = tool.finish();
        ensure!(output.code() == 1, "{args:?}: {output:#?}");
        let reason = &output.summary()["exit_reason"];
        ensure!(reason == "detached", "{args:?} ended as {reason}");
        gone(&objects);
        let account = summary(&output);
        ensure!(account[0] <= FEW, "{args:?} saw {account:?} of {FEW}");
        Ok(Some(account))
    }

    fn delete(&mut self) -> Result<Option<Account>> {
        let server = &self.pair.server;
        server.run("ip link add cx type veth peer name cy");
        server.run("ip link set cx up");
        server.run("ip link set cy up");
        let other_end = server.enter(|| RawSocket::open("cy"));
        let args = self.victim("cx");
        let server = &self.pair.server;
        let tool = Tool::start_in(server, &args);
        let objects = objects_of(tool.pid());
        let frame = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
        for _ in 0..FEW {
            other_end.send(&frame);
        }
        server.run("ip link delete cx");
        let output = tool.finish();
        ensure!(output.code() == 1, "{args:?}: {output:#?}");
        gone(&objects);
        let account = summary(&output);
        ensure!(account[0] <= FEW, "{args:?} saw {account:?} of {FEW}");
        Ok(Some(account))
    }

    fn stop_reader(&mut self) -> Result<Option<Account>> {
        let args = ["port-monitor", "vs", "--json"];
        let (tool, mut reader) = into_small_pipe(&self.pair.server, command(args));
        let objects = objects_of(tool.pid());
        self.send(MANY);
        tool.signal(Signal::SIGTERM);
        let output = tool.finish();
        gone(&objects);
        let mut text = String::new();
        reader.read_to_string(&mut text)?;
        let mut lines: Vec<_> = text.lines().collect();
        let account = take_account(&mut lines, &output);
        ensure!(account[1] == lines.len() as u64, "{account:?}: {output:#?}");
        ensure!(account[0] == MANY, "{account:?}: {output:#?}");
        Ok(Some(account))
    }

    fn fill_disk(&mut self) -> Result<Option<Account>> {
        let mut file = small_disk().map_err(anyhow::Error::msg)?;
        let mut command = command(["port-monitor", "vs"]);
        command.stdout(file.try_clone()?);
        let tool = Tool::spawn_in(&self.pair.server, &mut command).attached();
        let objects = objects_of(tool.pid());
        self.send(MANY);
        let output = tool.finish();
        ensure!(output.code() == 1, "{output:#?}");
        gone(&objects);
        let account = account(&output);
        let mut text = String::new();
        file.rewind()?;
        file.read_to_string(&mut text)?;
        // All lines but the header; the last may have been cut.
        let whole = text.matches('\n').count() as u64 - 1;
        ensure!(account[1] == whole, "{account:?}: {output:#?}");
        Ok(Some(account))
    }

    fn kill(&mut self) -> Result<Option<Account>> {
        let args = self.victim("vs");
        let tool = Tool::start_in(&self.pair.server, &args);
        self.send(FEW);
        kill(tool)
    }

    /// Kills it at any moment of its start.
    fn kill_early(&mut self) -> Result<Option<Account>> {
        let args = self.victim("vs");
        let tool = Tool::spawn_in(&self.pair.server, &mut command(args));
        thread::sleep(Duration::from_millis(self.sent % 89));
        kill(tool)
    }
}

fn kill(tool: Tool) -> Result<Option<Account>> {
    // Stopped, so that nothing can be added to what is listed.
    tool.signal(Signal::SIGSTOP);
    let objects = objects_of(tool.pid());
    tool.signal(Signal::SIGKILL);
    let output = tool.finish();
    if output.status.success() {
        bail!("it was not killed: {output:#?}");
    }
    gone(&objects);
    Ok(None)
}

/// The counts in the JSON summary, after a check of their sums.
fn summary(output: &Output) -> Account {
    let summary: Value = output.summary();
    json_account(&summary.to_string())
}
