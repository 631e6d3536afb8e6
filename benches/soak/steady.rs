//! Steady load: memory and descriptors do not grow, and the counts are exact.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::Run;
use crate::common::frames::syn_frame;
use crate::common::raw::RawSocket;
use crate::common::{CLIENT4, Pair, SERVER4};

/// SYNs to port 80, and connections to port 81 that are refused, in each round.
const SYNS: u64 = 500;
const CONNECTIONS: u64 = 100;
const ROUND: Duration = Duration::from_millis(50);

/// How much may still be allocated after a tenth of the time, in KiB.
const MAY_GROW: u64 = 256;

/// A command, and how many events it must have seen for so many SYNs and connections.
type Watched = (&'static [&'static str], fn(u64, u64) -> u64);

const COMMANDS: [Watched; 4] = [
    (
        &["syn-count", "vs", "-p", "80", "-I", "0.5", "--by", "saddr"],
        |syns, _| syns,
    ),
    (&["port-monitor", "vs", "-p", "80"], |syns, _| syns),
    (&["flows", "vs", "-p", "81"], |_, connections| connections),
    (
        &["connect-trace", "-p", "81", "--dst", "10.77.0.2"],
        |_, connections| 2 * connections,
    ),
];

pub fn run(length: Duration) -> Result<()> {
    let pair = Pair::new().map_err(anyhow::Error::msg)?;
    let start = |(args, _): &Watched| Run::start(&pair.server, args);
    let mut runs: Vec<_> = COMMANDS.iter().map(start).collect();
    let frame = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    let socket = pair.client.enter(|| RawSocket::open("vc"));

    let started = Instant::now();
    let (mut syns, mut connections) = (0, 0);
    let mut samples_due = started;
    while started.elapsed() < length {
        let round = Instant::now();
        for _ in 0..SYNS {
            socket.send(&frame);
        }
        syns += SYNS;
        pair.refused_connects((SERVER4, 81).into(), CONNECTIONS as usize);
        connections += CONNECTIONS;
        if Instant::now() >= samples_due {
            for run in &mut runs {
                run.sample()?;
            }
            samples_due += length / 100;
        }
        std::thread::sleep(ROUND.saturating_sub(round.elapsed()));
    }

    println!("Four commands at once for {} s:\n", length.as_secs());
    println!(
        "| command | events made | events seen | KiB resident after a tenth | at the end | at most | descriptors after a tenth | at the end |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    let mut wrong = Vec::new();
    for (run, (_, expected)) in runs.into_iter().zip(COMMANDS) {
        let ended = run.stop()?;
        // After a tenth of the time buffers no longer grow.
        let (early, last) = ended.between(10);
        let expected = expected(syns, connections);
        let seen = ended.count()?;
        println!(
            "| {} | {expected} | {seen} | {} | {} | {} | {} | {} |",
            ended.name,
            early.0,
            last.0,
            ended.most_memory(),
            early.1,
            last.1,
        );
        if last.0 > early.0 + MAY_GROW || last.1 > early.1 || seen != expected {
            wrong.push(ended.output);
        }
    }
    if !wrong.is_empty() {
        bail!("memory or descriptors grew, or counts are wrong: {wrong:#?}");
    }
    Ok(())
}
