//! How much of the rate of a SYN flood, which nftables drops, remains with loss-trace and its peers attached.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Effort;
use crate::common::frames::checksum;
use crate::plain;
use crate::rate::{HEAD, Outcome, seen};
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Ready, Tool, World, absence, syn};

const LINES: &str = "loss-trace, a line for each drop";
const COUNTS: &str = "loss-trace --by reason";
/// Without programs at the interfaces.
const REPORTED_COUNTS: &str = "loss-trace --by reason, without silent drops";

const CONTENDERS: [Contender; 11] = [
    Contender::peer(
        "empty programs at the same hooks",
        "attach loss-r0",
        Ready::Stderr("attached:"),
    ),
    Contender::ours(LINES, "tcpinspect loss-trace --only drop"),
    Contender::ours(COUNTS, "tcpinspect loss-trace --only drop --by reason"),
    Contender::ours(
        REPORTED_COUNTS,
        "tcpinspect loss-trace --only drop --by reason --reason netfilter_drop",
    ),
    Contender::ours(
        "loss-trace --by saddr",
        "tcpinspect loss-trace --only drop --by saddr",
    ),
    Contender::ours(
        "loss-trace -w",
        "tcpinspect loss-trace --only drop -w /dev/null",
    ),
    Contender::ours(
        "loss-trace, no match",
        "tcpinspect loss-trace --only drop -p 1",
    ),
    Contender::peer("tcpdrop of bcc", "tcpdrop-bpfcc", Ready::Waiting),
    Contender::peer(
        "tcpdrop.bt of bpftrace",
        "tcpdrop.bt",
        Ready::Stdout("Tracing tcp drops"),
    ),
    Contender::peer("bpftrace", "bpftrace", Ready::Stdout("ready")),
    Contender::peer(
        "perf trace",
        "perf trace -o /dev/null -e skb:kfree_skb",
        Ready::Waiting,
    ),
];

/// The shortest bpftrace script that shows where and why packets are dropped.
const SCRIPT: &str = "BEGIN { printf(\"ready\\n\"); } \
    tracepoint:skb:kfree_skb { printf(\"%d %s\\n\", args->reason, ksym(args->location)); }";

/// The nftables rules that drop the flood.
const RULES: &str = "table ip bench { chain input { type filter hook input priority 0; \
    tcp dport 80 drop; }; }";

pub fn run(effort: Effort) -> Result<bool> {
    if let Some(may_pass) = absence("nft") {
        return Ok(may_pass);
    }
    let world = World::new()?;
    world.enter();
    let status = Command::new("nft").arg(RULES).status();
    ensure!(status?.success(), "nft refused the rules");
    let plain = plain::load()?;
    let sender = plain::sender(&plain)?;
    let count = if effort.short { 200_000 } else { 1_000_000 };
    let flood = || world.flood_of(whole_syn(), sender, count, None);
    // The first flood warms the caches and allocates the memory for frames.
    flood()?;
    let results = measure(effort, count, flood)?;
    let rows: Vec<_> = results.iter().map(|(name, all)| all.row(name)).collect();
    table(
        "SYN flood over veth that nftables drops: rate kept (nothing attached = 1)",
        &HEAD,
        &rows,
    );
    let shown = results.iter().map(|(name, all)| all.bar(name));
    bars(
        "loss",
        "SYN flood that nftables drops: rate kept (nothing attached = 1)",
        &shown.collect::<Vec<_>>(),
    );
    let mut within = true;
    for (name, least, gross) in [
        (LINES, 0.75, 0.3),
        (COUNTS, 0.9, 0.4),
        (REPORTED_COUNTS, 0.9, 0.4),
    ] {
        let found = results.iter().find(|(known, _)| *known == name);
        let (_, outcome) = found.context("one of ours was not measured")?;
        let kept = Stat::of(outcome.kept.clone()).median;
        target(&format!("rate kept, {name}"), kept, least, false);
        within &= bound(&format!("rate kept, {name}"), kept, gross, false);
    }
    Ok(within)
}

/// A SYN with a valid IP header, so that it reaches the firewall.
fn whole_syn() -> Vec<u8> {
    let mut frame = syn();
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Floods without and with each contender in turn.
fn measure(
    effort: Effort,
    count: u64,
    flood: impl Fn() -> Result<Duration>,
) -> Result<Vec<(&'static str, Outcome)>> {
    let wanted = CONTENDERS.iter().filter(|contender| {
        contender.line.starts_with("attach") || contender.is_ours() || !effort.short
    });
    for (contender, why) in wanted.clone().filter_map(|it| Some((it, it.absent()?))) {
        println!("\n{}: {why}", contender.name);
    }
    let mut results: Vec<_> = wanted
        .filter(|contender| contender.absent().is_none())
        .map(|contender| (contender, Outcome::of(contender)))
        .collect();
    for round in 0..effort.rounds {
        let mut before = flood()?;
        let mut missing = Vec::new();
        for (contender, outcome) in &mut results {
            let mut command = contender.command()?;
            if contender.line == "bpftrace" {
                command.args(["-e", SCRIPT]);
            }
            let tool = match Tool::start(command, Stdio::null(), contender.ready) {
                Ok(tool) => tool,
                // It needs more than this kernel has.
                Err(error) if round == 0 && !contender.is_ours() => {
                    println!("\n{}: {error:#}", contender.name);
                    missing.push(contender.name);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let used = tool.cpu()?;
            let with = flood()?;
            outcome.cpu.push((tool.cpu()? - used) / with.as_secs_f64());
            tool.settle()?;
            let said = tool.stop()?;
            if !contender.name.contains("no match") && !contender.name.starts_with("empty") {
                let seen = seen(&said).map(|seen| seen / count as f64);
                outcome.seen.extend(seen);
            }
            // The mean of before and after evens out a machine whose speed drifts.
            let after = flood()?;
            let alone = (before + after).as_secs_f64() / 2.0;
            outcome.kept.push(alone / with.as_secs_f64());
            before = after;
        }
        results.retain(|(contender, _)| !missing.contains(&contender.name));
    }
    let named = results.into_iter();
    Ok(named
        .map(|(contender, outcome)| (contender.name, outcome))
        .collect())
}
