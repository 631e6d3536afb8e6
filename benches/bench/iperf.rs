//! Bulk traffic over veth, with each command attached and with none. Most of them have a filter that
//! matches nothing.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::Effort;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Ready, Tool, World, absence};

const CONTENDERS: [Contender; 12] = [
    Contender::peer(
        "empty program, native XDP",
        "attach native",
        Ready::Stderr("attached:"),
    ),
    Contender::ours(
        "syn-count, native XDP",
        "tcpinspect syn-count r0 --mode native",
    ),
    Contender::peer(
        "empty program, generic XDP",
        "attach generic",
        Ready::Stderr("attached:"),
    ),
    Contender::ours(
        "syn-count, generic XDP",
        "tcpinspect syn-count r0 --mode generic",
    ),
    Contender::peer("empty program, TC", "attach tc", Ready::Stderr("attached:")),
    Contender::ours("syn-count, TC", "tcpinspect syn-count r0 --mode tc"),
    Contender::ours("port-monitor, no match", "tcpinspect port-monitor r0 -p 1"),
    Contender::ours("flows, no match", "tcpinspect flows r0 -p 1"),
    Contender::ours("flows, all", "tcpinspect flows r0"),
    Contender::ours("connect-trace, no match", "tcpinspect connect-trace -p 1"),
    Contender::ours("accept-trace", "tcpinspect accept-trace r0"),
    Contender::ours("loss-trace, nothing dropped", "tcpinspect loss-trace r0"),
];

pub fn run(effort: Effort) -> Result<bool> {
    if let Some(may_pass) = absence("iperf3") {
        return Ok(may_pass);
    }
    let world = World::new()?;
    world.enter();
    let _server = serve()?;
    let client = Client { world: &world };
    let in_short = [
        "syn-count, native XDP",
        "syn-count, TC",
        "port-monitor, no match",
    ];
    let chosen = CONTENDERS
        .iter()
        .filter(|contender| !effort.short || in_short.contains(&contender.name));
    let mut results: Vec<_> = chosen
        .map(|contender| (contender, Vec::new(), Vec::new()))
        .collect();
    let mut none = Vec::new();
    client.measure()?;
    for _ in 0..effort.rounds {
        let mut before = client.measure()?;
        for (contender, rates, kept) in &mut results {
            let tool = Tool::start(contender.command()?, Stdio::null(), contender.ready)?;
            let with = client.measure()?;
            tool.stop()?;
            // The speed of the machine drifts, so this is compared with the mean of before and after.
            let after = client.measure()?;
            let alone = before.midpoint(after);
            none.push(alone);
            rates.push(with);
            kept.push(with / alone);
            before = after;
        }
    }
    let mut rows = vec![vec![
        "none".to_owned(),
        Stat::of(none).to_string(),
        "1".to_owned(),
    ]];
    let mut chart = Vec::new();
    let mut medians = Vec::new();
    for (contender, rates, kept) in results {
        let kept = Stat::of(kept);
        rows.push(vec![
            contender.name.to_owned(),
            Stat::of(rates).to_string(),
            kept.to_string(),
        ]);
        chart.push(contender.bar(kept));
        medians.push((contender.name, kept.median));
    }
    table(
        "One TCP stream over veth by iperf3, nothing that matches",
        &["attached", "Gbit/s", "kept"],
        &rows,
    );
    bars("iperf", "One TCP stream over veth: throughput kept", &chart);
    let mut within = true;
    for (name, kept) in medians {
        if name.starts_with("empty") {
            continue;
        }
        if !name.contains("XDP") {
            target(&format!("throughput kept, {name}"), kept, 0.98, false);
        }
        let gross = if name.contains("XDP") { 0.02 } else { 0.25 };
        within &= bound(&format!("throughput kept, {name}"), kept, gross, false);
    }
    Ok(within)
}

/// Starts the receiver of streams.
pub fn serve() -> Result<Tool> {
    let mut server = Command::new("iperf3");
    server.args(["--server", "--forceflush"]);
    Tool::start(server, Stdio::null(), Ready::Stdout("listening"))
}

/// The sender of streams.
pub struct Client<'a> {
    pub world: &'a World,
}

/// A stream, as its receiver saw it.
pub struct Stream {
    /// In Gbit/s.
    pub rate: f64,
    pub bytes: f64,
}

impl Client<'_> {
    /// The throughput of one stream in Gbit/s.
    pub fn measure(&self) -> Result<f64> {
        Ok(self.stream()?.rate)
    }

    /// One stream of a second.
    pub fn stream(&self) -> Result<Stream> {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut client = Command::new("iperf3");
            client.args(["--json", "--client", "198.18.0.2", "--time", "1"]);
            let output = self.world.sender.enter(|| client.output());
            let output = output.context("failed to run iperf3")?;
            let report: Value = serde_json::from_slice(&output.stdout)?;
            let received = &report["end"]["sum_received"];
            let numbers = ["bits_per_second", "bytes"].map(|key| received[key].as_f64());
            if let [Some(rate), Some(bytes)] = numbers {
                let rate = rate / 1e9;
                return Ok(Stream { rate, bytes });
            }
            // The server may still be busy with the previous stream.
            if Instant::now() > deadline {
                bail!("iperf3 failed: {}", report["error"]);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
