//! How the cost of tables grows with their size, and what a second CPU costs.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Barrier};

use anyhow::{Context, Result, bail};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use tcpinspect::skel::flows::FlowsSkelBuilder;

use crate::Effort;
use crate::capture_file::{self, FLAGS, SADDR};
use crate::common::bpf::leave_out;
use crate::common::frames::{ACK, SYN};
use crate::common::tool::binary;
use crate::program::{REPEAT, run_for, set_flows};
use crate::report::table;
use crate::stat::Stat;
use crate::world::{pin, syn};

/// How many keys or flows there are.
const SIZES: [u32; 4] = [1000, 10_000, 100_000, 1_000_000];

/// How many frames the cost is measured with.
const FRAMES: u32 = 1_000_000;

pub fn run(effort: Effort) -> Result<bool> {
    if !effort.short {
        sizes(effort)?;
        cpus(effort)?;
    }
    Ok(true)
}

fn sizes(effort: Effort) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = |name: &str, parts: &[(u8, u32)], keys| -> Result<_> {
        let path = directory.path().join(name);
        write(&path, parts, keys).context("failed to write the capture file")?;
        Ok(path)
    };
    let nothing = file("nothing", &[], 1)?;
    let count = ["syn-count", "--by", "saddr"];
    let mut rows = Vec::new();
    for keys in SIZES {
        // The kernel clears the table at the start.
        let slots = (2 * keys).to_string();
        let flows = ["flows", "--max-flows", &slots];
        let syns = file("syns", &[(SYN, FRAMES)], keys)?;
        let new = file("new", &[(SYN, keys)], keys)?;
        let known = file("known", &[(SYN, keys), (ACK, FRAMES)], keys)?;
        let mut costs = [const { Vec::new() }; 3];
        for _ in 0..effort.rounds {
            let [counted, began, followed] = [
                cpu(&count, &syns)? - cpu(&count, &nothing)?,
                cpu(&flows, &new)? - cpu(&flows, &nothing)?,
                cpu(&flows, &known)? - cpu(&flows, &new)?,
            ];
            costs[0].push(counted / f64::from(FRAMES));
            costs[1].push(followed / f64::from(FRAMES));
            costs[2].push(began / f64::from(keys));
        }
        let [counted, followed, began] = costs.map(Stat::of);
        rows.push(vec![
            keys.to_string(),
            counted.to_string(),
            followed.to_string(),
            // The time for few flows is lost in the time that the start takes, which varies.
            match keys {
                ..100_000 => "-".to_owned(),
                _ => began.to_string(),
            },
        ]);
    }
    table(
        "Tables of different sizes, from a capture file: CPU time in ns, including the time to read the file",
        &[
            "sources or flows",
            "a SYN, syn-count --by saddr",
            "a packet of a known flow, flows",
            "a new flow, with its line at the end",
        ],
        &rows,
    );
    Ok(())
}

/// CPU time of a replay, in ns.
fn cpu(words: &[&str], file: &Path) -> Result<f64> {
    let used = || -> Result<i64> {
        let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
        Ok((usage.user_time() + usage.system_time()).num_nanoseconds())
    };
    let before = used()?;
    let mut command = Command::new(binary());
    command.args(words).arg("-q").arg("-r").arg(file);
    let ended = command
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !ended.success() {
        bail!("{command:?}: {ended}");
    }
    Ok((used()? - before) as f64)
}

/// Writes a capture file. Each part is a number of frames with the same TCP flags; the frames come
/// from each source in turn.
fn write(path: &Path, parts: &[(u8, u32)], sources: u32) -> Result<()> {
    let all = parts
        .iter()
        .flat_map(|(flags, count)| (0..*count).map(|number| (*flags, number % sources)));
    capture_file::write(path, all, |frame, (flags, source)| {
        let [_, address @ ..] = source.to_be_bytes();
        frame[SADDR..SADDR + 3].copy_from_slice(&address);
        frame[FLAGS] = flags;
    })
}

/// A packet of a known flow, on one CPU and on two at once.
fn cpus(effort: Effort) -> Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        return Ok(());
    }
    let mut storage = MaybeUninit::uninit();
    let mut open = FlowsSkelBuilder::default().open(&mut storage)?;
    leave_out(open.open_object_mut(), &[]);
    set_flows(&mut open)?;
    let flows = open.load()?;
    let program = flows.progs.flows_packet.as_fd().as_raw_fd();
    let frame = |source: u8| {
        let mut frame = syn();
        frame[SADDR] = source;
        frame[FLAGS] = ACK;
        frame
    };
    let cases = [
        ("one CPU", vec![frame(1)]),
        ("two CPUs, a flow for each", vec![frame(1), frame(2)]),
        ("two CPUs, one flow", vec![frame(1), frame(1)]),
    ];
    let mut costs = vec![Vec::new(); cases.len()];
    for _ in 0..effort.rounds {
        for ((_, frames), costs) in cases.iter().zip(&mut costs) {
            let start = Arc::new(Barrier::new(frames.len()));
            let threads = frames.iter().cloned().enumerate().map(|(cpu, frame)| {
                let start = Arc::clone(&start);
                std::thread::spawn(move || -> Result<f64> {
                    pin(cpu)?;
                    start.wait();
                    run_for(program, &frame, 4 * REPEAT)
                })
            });
            let threads: Vec<_> = threads.collect();
            for thread in threads {
                let cost = thread
                    .join()
                    .map_err(|_| anyhow::anyhow!("a core failed"))?;
                costs.push(cost?);
            }
        }
    }
    let rows = cases
        .iter()
        .zip(costs)
        .map(|((name, _), costs)| vec![(*name).to_owned(), Stat::of(costs).to_string()]);
    table(
        "flows, a packet of a known flow: ns, including about 30 ns of the harness",
        &["", "ns"],
        &rows.collect::<Vec<_>>(),
    );
    Ok(())
}
