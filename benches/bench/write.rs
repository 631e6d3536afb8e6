//! Capture files: how much of a flood and of a bulk stream is written to them, compared with tcpdump and
//! dumpcap.

use std::fs::File;
use std::process::Stdio;

use anyhow::{Context, Result};
use tcpinspect::capture::Capture;

use crate::Effort;
use crate::iperf::{Client, serve};
use crate::plain;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Ready, Tool, World, absence};

/// The name of the capture file, which is in a temporary directory.
const FILE: &str = "capture";

const CONTENDERS: [Contender; 3] = [
    Contender::ours(
        "port-monitor -w",
        "tcpinspect port-monitor -i r0 --direction both -w capture tcp",
    ),
    Contender::peer(
        "tcpdump -w",
        "tcpdump -i r0 -w capture tcp",
        Ready::Stderr("listening on"),
    ),
    Contender::peer(
        "dumpcap -w",
        "dumpcap -q -i r0 -w capture -f tcp",
        Ready::Stderr("File:"),
    ),
];

/// What the rounds of a contender have shown.
#[derive(Default)]
struct Outcome {
    /// How fast the traffic was.
    rate: Vec<f64>,
    /// How much of it was written to the file, in the same unit.
    kept: Vec<f64>,
    /// The part that was not, in percent.
    lost: Vec<f64>,
    /// CPUs that the tool used.
    cpu: Vec<f64>,
}

impl Outcome {
    fn row(&self, name: &str) -> Vec<String> {
        let stat = |values: &[f64]| Stat::of(values.to_vec()).to_string();
        vec![
            name.to_owned(),
            stat(&self.rate),
            stat(&self.kept),
            format!("{:.1}", Stat::of(self.lost.clone()).median),
            stat(&self.cpu),
        ]
    }
}

/// What a run has put into its file.
struct Recorded {
    frames: f64,
    bytes: f64,
    cpu: f64,
}

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    world.enter();
    let plain = plain::load()?;
    let sender = plain::sender(&plain)?;
    let count = if effort.short { 300_000 } else { 2_000_000 };
    world.flood(sender, count, None)?;
    let mut within = rounds(
        effort,
        [
            "flood",
            "A flood of SYNs over veth, into a file",
            "M packets/s",
        ],
        1.15,
        |contender| {
            let mut took = 0.0;
            let recorded = record(contender, || {
                took = world.flood(sender, count, None)?.as_secs_f64();
                Ok(())
            })?;
            let sent = count as f64;
            Ok([
                sent / took / 1e6,
                recorded.frames / took / 1e6,
                1.0 - recorded.frames / sent,
                recorded.cpu / took,
            ])
        },
    )?;
    if let Some(may_pass) = absence("iperf3") {
        return Ok(within && may_pass);
    }
    let _server = serve()?;
    let client = Client { world: &world };
    client.measure()?;
    within &= rounds(
        effort,
        ["bulk", "One TCP stream over veth, into a file", "Gbit/s"],
        1.0,
        |contender| {
            let mut stream = None;
            let recorded = record(contender, || {
                stream = Some(client.stream()?);
                Ok(())
            })?;
            let stream = stream.context("there was no stream")?;
            // The headers and acknowledgements in the file are next to nothing.
            let part = recorded.bytes / stream.bytes;
            Ok([
                stream.rate,
                stream.rate * part.min(1.0),
                1.0 - part.min(1.0),
                recorded.cpu / (stream.bytes * 8.0 / 1e9 / stream.rate),
            ])
        },
    )?;
    Ok(within)
}

/// Measures each contender in turn; `measure` returns what the traffic was, what was kept and lost
/// of it, and the CPUs used.
fn rounds(
    effort: Effort,
    [file, title, unit]: [&str; 3],
    wanted: f64,
    mut measure: impl FnMut(&Contender) -> Result<[f64; 4]>,
) -> Result<bool> {
    let chosen = CONTENDERS.iter().filter(|contender| {
        contender.absent().is_none() && (!effort.short || contender.name != "dumpcap -w")
    });
    let mut all: Vec<_> = chosen
        .map(|contender| (contender, Outcome::default()))
        .collect();
    for _ in 0..effort.rounds {
        for (contender, outcome) in &mut all {
            let [rate, kept, lost, cpu] = measure(contender)?;
            outcome.rate.push(rate);
            outcome.kept.push(kept);
            outcome.lost.push(lost * 100.0);
            outcome.cpu.push(cpu);
        }
    }
    let rows: Vec<_> = all.iter().map(|(one, all)| all.row(one.name)).collect();
    table(
        title,
        &[
            "tool",
            unit,
            &format!("{unit} in the file"),
            "lost, %",
            "its CPU, cores",
        ],
        &rows,
    );
    let chart = all
        .iter()
        .map(|(one, all)| one.bar(Stat::of(all.kept.clone())));
    bars(
        &format!("write-{file}"),
        &format!("{title}: {unit}"),
        &chart.collect::<Vec<_>>(),
    );
    let [(_, ours), peers @ ..] = &all[..] else {
        return Ok(true);
    };
    let lost = Stat::of(ours.lost.clone()).median;
    if file == "flood" {
        target("packets of the flood that were lost, %", lost, 0.0, true);
    }
    let mut within = true;
    for (peer, theirs) in peers {
        let ratios = ours
            .kept
            .iter()
            .zip(&theirs.kept)
            .map(|(ours, theirs)| ours / theirs);
        let ratio = Stat::of(ratios.collect()).median;
        let what = format!("{file}: kept, over {}", peer.name);
        target(&what, ratio, wanted, false);
        within &= bound(&what, ratio, 0.3, false);
        if file == "bulk" {
            let more = lost - Stat::of(theirs.lost.clone()).median;
            target(
                &format!("{file}: lost, % more than {}", peer.name),
                more,
                0.0,
                true,
            );
        }
    }
    Ok(within)
}

/// Runs a contender while there is `traffic`, and reads its file.
fn record(contender: &Contender, traffic: impl FnOnce() -> Result<()>) -> Result<Recorded> {
    let directory = tempfile::tempdir()?;
    let mut command = contender.command()?;
    command.current_dir(directory.path());
    let tool = Tool::start(command, Stdio::null(), contender.ready)?;
    // tcpdump and dumpcap begin to read after they have said so.
    tool.settle()?;
    let before = tool.cpu()?;
    traffic()?;
    tool.settle()?;
    let cpu = tool.cpu()? - before;
    tool.stop()?;
    let mut recorded = Recorded {
        frames: 0.0,
        bytes: 0.0,
        cpu,
    };
    let path = directory.path().join(FILE);
    let mut capture = Capture::from_reader(&path, Box::new(File::open(&path)?))?;
    while let Some(frame) = capture.next_frame()? {
        recorded.frames += 1.0;
        recorded.bytes += f64::from(frame.wire_len);
    }
    Ok(recorded)
}
