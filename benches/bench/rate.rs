//! How much of a SYN flood over veth is kept with each tool attached. One core does all: it sends,
//! and receives in the same softirq, so what a tool costs is missing from the rate.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;

use crate::Effort;
use crate::report::{Stat, bound, table};
use crate::world::{TCPINSPECT, Tool, World, installed};

struct Contender {
    name: &'static str,
    program: &'static str,
    arguments: &'static [&'static str],
    ready: &'static str,
}

const CONTENDERS: [Contender; 8] = [
    Contender {
        name: "syn-count, native XDP",
        program: TCPINSPECT,
        arguments: &["syn-count", "r0", "--mode", "native"],
        ready: "attached:",
    },
    Contender {
        name: "syn-count, generic XDP",
        program: TCPINSPECT,
        arguments: &["syn-count", "r0", "--mode", "generic"],
        ready: "attached:",
    },
    Contender {
        name: "syn-count, TC",
        program: TCPINSPECT,
        arguments: &["syn-count", "r0", "--mode", "tc"],
        ready: "attached:",
    },
    Contender {
        name: "port-monitor, no match",
        program: TCPINSPECT,
        arguments: &["port-monitor", "r0", "-p", "1"],
        ready: "attached:",
    },
    Contender {
        name: "port-monitor, every SYN",
        program: TCPINSPECT,
        arguments: &["port-monitor", "r0"],
        ready: "attached:",
    },
    Contender {
        name: "tcpdump -w",
        program: "tcpdump",
        arguments: &["-i", "r0", "-w", "/dev/null", "tcp"],
        ready: "listening on",
    },
    Contender {
        name: "tcpdump, text",
        program: "tcpdump",
        arguments: &["-l", "-nn", "-tt", "-i", "r0", "tcp"],
        ready: "listening on",
    },
    Contender {
        name: "dumpcap -w",
        program: "dumpcap",
        arguments: &["-q", "-i", "r0", "-w", "/dev/null"],
        ready: "File:",
    },
];

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    let count = if effort.short { 200_000 } else { 1_000_000 };
    let mut kept_by = Vec::new();
    let mut rows = Vec::new();
    // Warms caches and the route of the frames.
    world.flood(count / 4)?;
    for contender in CONTENDERS {
        if contender.program != TCPINSPECT && !installed(contender.program) {
            rows.push(vec![
                contender.name.into(),
                "not installed".into(),
                String::new(),
            ]);
            continue;
        }
        let mut kept = Vec::new();
        let mut cpu = Vec::new();
        for _ in 0..effort.rounds {
            let alone = world.flood(count)?;
            let mut command: Command = world.command(contender.program);
            command.args(contender.arguments);
            let (tool, _) = Tool::start(command, Stdio::null(), contender.ready)?;
            std::thread::sleep(Duration::from_millis(50));
            let before = tool.usage()?.0;
            let with = world.flood(count)?;
            kept.push(alone.as_secs_f64() / with.as_secs_f64());
            cpu.push((tool.usage()?.0 - before) / with.as_secs_f64());
            tool.stop()?;
        }
        let stat = Stat::of(kept);
        kept_by.push((contender.name, stat.median));
        rows.push(vec![
            contender.name.into(),
            stat.to_string(),
            format!("{:.2}", Stat::of(cpu).median),
        ]);
    }
    table(
        "SYN flood over veth: rate kept (nothing attached = 1)",
        &["attached", "rate kept", "tool's CPU, cores"],
        &rows,
    );
    let of = |name: &str| {
        kept_by
            .iter()
            .find(|(known, _)| *known == name)
            .map_or(0.0, |(_, kept)| *kept)
    };
    let mut within = bound(
        "syn-count, native XDP, rate kept",
        of("syn-count, native XDP"),
        0.7,
        false,
    );
    within &= bound(
        "port-monitor with no match, rate kept",
        of("port-monitor, no match"),
        0.6,
        false,
    );
    Ok(within)
}
