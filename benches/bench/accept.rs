//! The cost of accept-trace: the CPU time that it adds to an accepted connection, and how much it slows
//! a flood of refused SYNs.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Stdio;

use anyhow::Result;
use libbpf_rs::Object;

use crate::Effort;
use crate::connect::connect;
use crate::plain;
use crate::report::{bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Ready, Tool, World, syn};

/// Empty programs at the hooks of accept-trace.
const EMPTY: &str = "empty programs at the same hooks";

/// Our commands have two limits for the ratio of the cost with them to the cost with nothing attached: the
/// target, and one that only a gross regression exceeds.
const ACCEPTED: [(Contender, Option<(f64, f64)>); 3] = [
    (
        Contender::peer(EMPTY, "attach accept-lo", Ready::Stderr("attached:")),
        None,
    ),
    (
        Contender::ours("accept-trace", "tcpinspect accept-trace lo"),
        Some((1.12, 2.0)),
    ),
    (
        Contender::ours(
            "accept-trace --by reason",
            "tcpinspect accept-trace lo --by reason",
        ),
        Some((1.12, 2.0)),
    ),
];

/// Here the limits are for the part of the rate that remains.
const REFUSED: [(Contender, Option<(f64, f64)>); 5] = [
    (
        Contender::peer(EMPTY, "attach accept-r0", Ready::Stderr("attached:")),
        None,
    ),
    (
        Contender::peer(
            "the same, and a table of attempts",
            "attach table-r0",
            Ready::Stderr("attached:"),
        ),
        None,
    ),
    (
        Contender::ours("accept-trace", "tcpinspect accept-trace r0"),
        Some((0.75, 0.25)),
    ),
    (
        Contender::ours(
            "accept-trace --max-rate 1000",
            "tcpinspect accept-trace r0 --max-rate 1000",
        ),
        Some((0.75, 0.3)),
    ),
    (
        Contender::ours(
            "accept-trace --by reason",
            "tcpinspect accept-trace r0 --by reason",
        ),
        Some((0.85, 0.3)),
    ),
];

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    world.enter();
    let plain = plain::load()?;
    let accepted = accepted(effort)?;
    Ok(refused(effort, &world, &plain)? && accepted)
}

fn accepted(effort: Effort) -> Result<bool> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let addr = listener.local_addr()?;
    let once = || connect(effort, addr, Some(&listener));
    let (mut rows, mut within) = (Vec::new(), true);
    once()?;
    for (contender, limits) in &ACCEPTED {
        let (mut over, mut added) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let before = once()?;
            let tool = Tool::start(contender.command()?, Stdio::null(), contender.ready)?;
            let with = once()?;
            tool.stop()?;
            let base = before.midpoint(once()?);
            over.push(with / base);
            added.push(with - base);
        }
        let over = Stat::of(over);
        rows.push(vec![
            contender.name.to_owned(),
            Stat::of(added).to_string(),
            over.to_string(),
        ]);
        let what = format!("{}, connect, accept and close, over none", contender.name);
        if let Some((limit, gross)) = *limits {
            target(&what, over.median, limit, true);
            within &= bound(&what, over.median, gross, true);
        }
    }
    table(
        "CPU time of a connect, accept and close on loopback, µs",
        &["attached", "CPU time added", "ratio to nothing attached"],
        &rows,
    );
    Ok(within)
}

fn refused(effort: Effort, world: &World, plain: &Object) -> Result<bool> {
    let sender = plain::numbering_sender(plain)?;
    let count: u32 = if effort.short { 100_000 } else { 500_000 };
    let flood = || world.flood_of(refused_syn(), sender, count.into(), None);
    let (mut rows, mut within) = (Vec::new(), true);
    flood()?;
    for (contender, limits) in &REFUSED {
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        for _ in 0..effort.rounds {
            let before = flood()?;
            let tool = Tool::start(contender.command()?, Stdio::null(), contender.ready)?;
            let with = flood()?;
            tool.settle()?;
            lost.extend(lost_of(&tool.stop()?).map(|lost| lost / f64::from(count) * 100.0));
            let alone = (before + flood()?) / 2;
            kept.push(alone.as_secs_f64() / with.as_secs_f64());
        }
        let kept = Stat::of(kept);
        rows.push(vec![
            contender.name.to_owned(),
            kept.to_string(),
            match lost.is_empty() {
                true => "-".to_owned(),
                false => format!("{:.1} %", Stat::of(lost).median),
            },
        ]);
        let what = format!("rate kept of refused SYNs, {}", contender.name);
        if let Some((limit, gross)) = *limits {
            target(&what, kept.median, limit, false);
            within &= bound(&what, kept.median, gross, false);
        }
    }
    table(
        "SYN flood over veth to a closed port: rate kept (nothing attached = 1)",
        &["attached", "rate kept", "lines lost, and counted"],
        &rows,
    );
    Ok(within)
}

/// A SYN that is refused: both checksums are right.
fn refused_syn() -> Vec<u8> {
    let mut frame = syn();
    // The sender makes the acknowledgement number the complement of the sequence number, and so the
    // checksums are always these.
    frame[24..26].copy_from_slice(&0xeea7_u16.to_be_bytes());
    frame[50..52].copy_from_slice(&0x0d37_u16.to_be_bytes());
    frame
}

/// The lines that were lost, as the summary counts them.
fn lost_of(said: &str) -> Option<f64> {
    let after = said.split("+ lost ").nth(1)?;
    after.split_whitespace().next()?.parse().ok()
}
