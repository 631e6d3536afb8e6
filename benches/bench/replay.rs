//! How many frames of a capture file are read per second, compared with tcpdump and an equivalent filter.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::Effort;
use crate::capture_file::{self, FLAGS, SPORT};
use crate::chart::Bar;
use crate::common::frames::{ACK, SYN};
use crate::common::tool::binary;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::installed;

/// Connections of the file. One in [`SYN_EVERY`] of its frames is a SYN.
const CONNECTIONS: u32 = 1000;
const SYN_EVERY: u32 = 16;

const OURS: [(&str, &[&str]); 4] = [
    ("syn-count", &["syn-count"]),
    (
        "syn-count --mode tc, a call for each frame",
        &["syn-count", "--mode", "tc"],
    ),
    ("port-monitor", &["port-monitor"]),
    ("flows", &["flows"]),
];

const TCPDUMP: &str = "tcpdump -w /dev/null, SYNs only";

pub fn run(effort: Effort) -> Result<bool> {
    let frames = if effort.short { 300_000 } else { 3_000_000 };
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("frames.pcap");
    write(&file, frames).context("failed to write the capture file")?;

    let mut commands: Vec<(&str, Command)> = OURS
        .iter()
        .map(|(name, words)| {
            let mut command = Command::new(binary());
            command.args(*words).arg("-q").arg("-r").arg(&file);
            (*name, command)
        })
        .collect();
    if installed("tcpdump") {
        let mut command = Command::new("tcpdump");
        command.arg("-r").arg(&file);
        command.args(["-w", "/dev/null", "tcp[13] & 18 = 2"]);
        commands.push((TCPDUMP, command));
    }
    let mut results: Vec<_> = commands.iter().map(|_| Vec::new()).collect();
    for _ in 0..effort.rounds {
        for ((name, command), rates) in commands.iter_mut().zip(&mut results) {
            let began = Instant::now();
            let ended = command
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .with_context(|| format!("failed to start {name}"))?;
            if !ended.success() {
                bail!("{name}: {ended}");
            }
            rates.push(f64::from(frames) / began.elapsed().as_secs_f64() / 1e6);
        }
    }
    let results: Vec<_> = commands
        .iter()
        .zip(results)
        .map(|((name, _), rates)| ((*name).to_owned(), Stat::of(rates)))
        .collect();
    let rows = results
        .iter()
        .map(|(name, rate)| vec![name.clone(), rate.to_string()]);
    table(
        "Frames of a capture file, millions a second, the start included",
        &["command", "M frames/s"],
        &rows.collect::<Vec<_>>(),
    );
    let shown = results.iter().map(|(name, rate)| Bar {
        label: name.clone(),
        stat: *rate,
        is_ours: name != TCPDUMP,
    });
    bars(
        "replay",
        "Frames of a capture file, millions a second",
        &shown.collect::<Vec<_>>(),
    );
    let of = |wanted: &str| {
        let found = results.iter().find(|(name, _)| name == wanted);
        found.map(|(_, rate)| rate.median)
    };
    let [count, single, _, flows] = OURS.map(|(name, _)| of(name).unwrap_or_default());
    target("M frames/s, syn-count", count, 3.0, false);
    target("M frames/s, flows", flows, 1.5, false);
    if let Some(peer) = of(TCPDUMP) {
        target("syn-count over tcpdump", count / peer, 0.5, false);
    }
    Ok(bound(
        "syn-count over a call for each frame",
        count / single,
        1.5,
        false,
    ))
}

/// Writes a file of connections with a SYN now and then.
fn write(path: &Path, frames: u32) -> Result<()> {
    capture_file::write(path, 0..frames, |frame, number| {
        let [.., high, low] = (number / SYN_EVERY % CONNECTIONS + 1024).to_be_bytes();
        frame[SPORT..SPORT + 2].copy_from_slice(&[high, low]);
        frame[FLAGS] = if number % SYN_EVERY == 0 { SYN } else { ACK };
    })
}
