//! How much of the rate of a SYN flood over veth remains with each tool attached, and how much of the
//! flood the tool sees.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Effort;
use crate::chart::Bar;
use crate::plain;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Ready, Tool, World};

/// The tools, and how each of them shows that it is ready. Those that use libpcap say so after they have
/// attached.
const CONTENDERS: [Contender; 14] = [
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
    Contender::ours("port-monitor, every SYN", "tcpinspect port-monitor r0"),
    Contender::ours("flows", "tcpinspect flows r0"),
    Contender::peer(PLAIN, "attach events", Ready::Stderr("attached:")),
    Contender::peer(
        "tcpdump -w",
        "tcpdump -i r0 -w /dev/null tcp",
        Ready::Stderr("listening on"),
    ),
    Contender::peer(
        "tcpdump, text",
        "tcpdump -l -nn -tt -i r0 tcp",
        Ready::Stderr("listening on"),
    ),
    Contender::peer(
        "xdpdump -w",
        "xdpdump -i r0 -w /dev/null",
        Ready::Stderr("listening on"),
    ),
    Contender::peer(
        "dumpcap -w",
        "dumpcap -q -i r0 -w /dev/null",
        Ready::Stderr("File:"),
    ),
];

/// The simplest program that does port-monitor's work, with a reader that only counts.
const PLAIN: &str = "plain TC program, event for each SYN";

/// What became of a flood.
pub struct Outcome {
    /// One of our commands was attached.
    is_ours: bool,
    /// The rate, where nothing attached is 1.
    pub kept: Vec<f64>,
    /// The share of the sent packets that the tool has seen.
    pub seen: Vec<f64>,
    /// CPUs that the tool used meanwhile.
    pub cpu: Vec<f64>,
}

impl Outcome {
    /// Nothing is measured yet.
    pub fn of(contender: &Contender) -> Self {
        Self {
            is_ours: contender.is_ours(),
            kept: Vec::new(),
            seen: Vec::new(),
            cpu: Vec::new(),
        }
    }

    /// Its bar in a chart of the rates.
    pub fn bar(&self, name: &str) -> Bar {
        Bar {
            label: name.to_owned(),
            stat: Stat::of(self.kept.clone()),
            is_ours: self.is_ours,
        }
    }

    /// Its row in a table with [`HEAD`].
    pub fn row(&self, name: &str) -> Vec<String> {
        let seen = self.seen.clone();
        vec![
            name.to_owned(),
            Stat::of(self.kept.clone()).to_string(),
            if seen.is_empty() {
                "-".to_owned()
            } else {
                let lost = seen.iter().map(|seen| (1.0 - seen) * 100.0);
                format!("{:.1} %", Stat::of(lost.collect()).median.abs())
            },
            format!("{:.2}", Stat::of(self.cpu.clone()).median),
        ]
    }

    /// The rate of packets that were seen, where the rate of the flood with nothing attached is 1.
    fn score(&self) -> f64 {
        let products = self
            .kept
            .iter()
            .zip(&self.seen)
            .map(|(kept, seen)| kept * seen);
        Stat::of(products.collect()).median
    }
}

/// The head of a table of outcomes.
pub const HEAD: [&str; 4] = ["attached", "rate kept", "its own loss", "its CPU, cores"];

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    world.enter();
    let plain = plain::load()?;
    let sender = plain::sender(&plain)?;
    let count = if effort.short { 300_000 } else { 1_000_000 };
    // The first flood warms the caches and allocates the memory for frames.
    world.flood(sender, count, None)?;

    let full = measure(effort, &world, sender, count, None, &CONTENDERS)?;
    let rows: Vec<_> = full.iter().map(|(name, all)| all.row(name)).collect();
    table(
        "SYN flood over veth, as fast as one core sends and receives: rate kept (nothing attached = 1)",
        &HEAD,
        &rows,
    );
    let shown = full.iter().map(|(name, all)| all.bar(name));
    bars(
        "rate",
        "SYN flood over veth: rate kept (nothing attached = 1)",
        &shown.collect::<Vec<_>>(),
    );
    let of = |wanted: &str| {
        let mut found = full.iter().filter(|(name, _)| *name == wanted);
        found.next().map(|(_, all)| all)
    };
    let kept = |name: &str| of(name).map_or(0.0, |all| Stat::of(all.kept.clone()).median);
    let over = |name: &str, other: &str| -> f64 {
        let (Some(one), Some(two)) = (of(name), of(other)) else {
            return 0.0;
        };
        let pairs = one.kept.iter().zip(&two.kept).map(|(one, two)| one / two);
        Stat::of(pairs.collect()).median
    };
    let mut within = true;
    for (ours, empty, gross) in [
        ("syn-count, native XDP", "empty program, native XDP", 0.5),
        ("syn-count, generic XDP", "empty program, generic XDP", 0.5),
        ("syn-count, TC", "empty program, TC", 0.5),
        ("port-monitor, no match", "empty program, TC", 0.5),
        ("port-monitor, every SYN", "empty program, TC", 0.2),
    ] {
        let ratio = over(ours, empty);
        if ours.starts_with("syn-count") {
            target(
                &format!("rate kept, {ours} over {empty}"),
                ratio,
                0.95,
                false,
            );
        }
        within &= bound(
            &format!("rate kept, {ours} over {empty}"),
            ratio,
            gross,
            false,
        );
    }
    if effort.short {
        return Ok(within);
    }
    let tcpdump = kept("tcpdump -w");
    if tcpdump > 0.0 {
        target(
            "rate kept, syn-count in native XDP over tcpdump -w",
            kept("syn-count, native XDP") / tcpdump,
            1.5,
            false,
        );
    }
    if let (Some(ours), Some(plain)) = (of("port-monitor, every SYN"), of(PLAIN)) {
        target(
            "SYNs kept and seen, port-monitor of every SYN over the plain TC program",
            ours.score() / plain.score(),
            6.0,
            false,
        );
    }
    paced(effort, &world, sender)?;
    Ok(within)
}

/// A flood at a rate that the machine can sustain.
fn paced(effort: Effort, world: &World, sender: i32) -> Result<()> {
    const RATE: u64 = 300_000;
    let chosen = CONTENDERS
        .into_iter()
        .filter(|contender| {
            ["port-monitor, every SYN", PLAIN, "tcpdump, text"].contains(&contender.name)
        })
        .collect::<Vec<_>>();
    let results = measure(effort, world, sender, RATE, Some(RATE), &chosen)?;
    let rows: Vec<_> = results.iter().map(|(name, all)| all.row(name)).collect();
    table("The same at 300,000 SYN/s", &HEAD, &rows);
    if let Some((_, ours)) = results
        .iter()
        .find(|(name, _)| *name == "port-monitor, every SYN")
    {
        target(
            "SYNs kept and seen, port-monitor at 300,000 SYN/s",
            ours.score(),
            0.97,
            false,
        );
    }
    Ok(())
}

/// Floods without and with each contender in turn.
fn measure(
    effort: Effort,
    world: &World,
    sender: i32,
    count: u64,
    rate: Option<u64>,
    contenders: &[Contender],
) -> Result<Vec<(&'static str, Outcome)>> {
    let mut results = Vec::new();
    for contender in contenders {
        let is_own = contender.is_ours() || contender.line.starts_with("attach");
        if contender.absent().is_some() || effort.short && !is_own {
            continue;
        }
        results.push((contender, Outcome::of(contender)));
    }
    for _ in 0..effort.rounds {
        let mut alone = world.flood(sender, count, rate)?;
        for (at, (contender, outcome)) in results.iter_mut().enumerate() {
            // Measured again now and then, because the speed of the machine drifts.
            if at % 4 == 3 {
                alone = world.flood(sender, count, rate)?;
            }
            let tool = Tool::start(contender.command()?, Stdio::null(), contender.ready)
                .with_context(|| format!("failed to start {}", contender.name))?;
            let before = tool.cpu()?;
            let with = world.flood(sender, count, rate)?;
            outcome.kept.push(alone.as_secs_f64() / with.as_secs_f64());
            outcome
                .cpu
                .push((tool.cpu()? - before) / with.as_secs_f64());
            // Leaves it time to read what is still in its buffer.
            std::thread::sleep(Duration::from_millis(20));
            tool.settle()?;
            let said = tool.stop()?;
            if !contender.name.starts_with("empty") && !contender.name.contains("no match") {
                outcome
                    .seen
                    .extend(seen(&said).map(|seen| seen / count as f64));
            }
        }
    }
    Ok(results
        .into_iter()
        .map(|(contender, outcome)| (contender.name, outcome))
        .collect())
}

/// The number of packets that a tool reports, parsed from its output.
pub fn seen(said: &str) -> Option<f64> {
    let number_before = |words: &str| {
        let before = said.split(words).next().filter(|_| said.contains(words))?;
        before.split_whitespace().last()?.parse().ok()
    };
    let number_after = |words: &str| {
        let after = said.split(words).nth(1)?;
        let digits = after.trim_start();
        let end = digits
            .find(|digit: char| !digit.is_ascii_digit())
            .unwrap_or(digits.len());
        digits[..end].parse().ok()
    };
    if !said.contains("summary:") {
        return number_before(" packets captured").or_else(|| number_after("Packets captured:"));
    }
    number_before(" SYNs")
        .or_else(|| {
            let is_events = ["port-monitor", "loss-trace"].map(|name| said.contains(name));
            is_events
                .contains(&true)
                .then(|| number_after("emitted "))?
        })
        .or_else(|| number_before(" packets"))
}
