//! How many frames of a capture file are read per second, compared with tcpdump and an equivalent filter.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::Effort;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{installed, syn, tcpinspect};

/// Connections of the file. One in [`SYN_EVERY`] of its frames is a SYN.
const CONNECTIONS: u32 = 1000;
const SYN_EVERY: u32 = 16;

/// Where the flags are in a frame of [`syn`], and its source port.
const FLAGS: usize = 47;
const SPORT: usize = 34;

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
            let mut command = Command::new(tcpinspect());
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
    bars(
        "replay",
        "Frames of a capture file, millions a second",
        &results,
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

/// Writes a file of connections with a SYN now and then, a microsecond apart.
fn write(path: &Path, frames: u32) -> Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let header = [0xa1b2_3c4d_u32, 2 | 4 << 16, 0, 0, 262_144, 1];
    for word in header {
        file.write_all(&word.to_le_bytes())?;
    }
    let mut frame = syn();
    let length = u32::try_from(frame.len())?;
    for number in 0..frames {
        let [.., high, low] = (number / SYN_EVERY % CONNECTIONS + 1024).to_be_bytes();
        frame[SPORT] = high;
        frame[SPORT + 1] = low;
        frame[FLAGS] = if number % SYN_EVERY == 0 { 0x02 } else { 0x10 };
        let micros = number;
        let record = [
            micros / 1_000_000,
            micros % 1_000_000 * 1000,
            length,
            length,
        ];
        for word in record {
            file.write_all(&word.to_le_bytes())?;
        }
        file.write_all(&frame)?;
    }
    Ok(file.flush()?)
}
