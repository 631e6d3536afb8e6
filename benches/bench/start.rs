//! From exec to attached, resident memory and size of the binary, against peers.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::Effort;
use crate::common::tool::binary;
use crate::plain;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Ready, Tool, World};

/// The size of the event buffer in MiB. Its pages count as resident memory once they have been used.
const EVENT_BUFFER_MIB: f64 = 4.0;

const CONTENDERS: [Contender; 13] = [
    Contender::ours("syn-count", "tcpinspect syn-count r0"),
    Contender::ours("syn-count --mode tc", "tcpinspect syn-count r0 --mode tc"),
    Contender::ours("port-monitor", "tcpinspect port-monitor r0"),
    Contender::ours("connect-trace", "tcpinspect connect-trace"),
    Contender::ours("accept-trace", "tcpinspect accept-trace r0"),
    Contender::ours("flows", "tcpinspect flows r0"),
    Contender::peer(
        "empty XDP program by libbpf-rs",
        "attach native",
        Ready::Stderr("attached:"),
    ),
    Contender::peer(BARE, "attach bare", Ready::Stderr("attached:")),
    Contender::peer(
        "xdpdump (C)",
        "xdpdump -i r0",
        Ready::Stderr("listening on"),
    ),
    Contender::peer(C_PEER, "tcpstates", Ready::Waiting),
    Contender::peer(
        "tcpdump",
        "tcpdump -i r0 -w /dev/null tcp",
        Ready::Stderr("listening on"),
    ),
    Contender::peer(BPFTRACE, "bpftrace scripts", Ready::Stdout("ready")),
    Contender::peer(BCC, "tcpstates-bpfcc", Ready::Waiting),
];

/// connect-trace's programs of the tracepoint backend, loaded and attached by the library alone.
const BARE: &str = "connect-trace's programs, by libbpf-rs alone";

/// Other tools that use the tracepoint of connect-trace.
const C_PEER: &str = "tcpstates of libbpf-tools (C)";
const BPFTRACE: &str = "bpftrace, a line for each state";
const BCC: &str = "tcpstates of bcc (Python)";

/// Prints a line for each state, as connect-trace does.
const SCRIPT: &str = "BEGIN { printf(\"ready\\n\"); } \
    tracepoint:sock:inet_sock_set_state { printf(\"%d %s %d\\n\", pid, comm, args->newstate); }";

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    world.enter();
    // Compiles the object now. Otherwise the first start of a child would include that.
    plain::load()?;
    let (started, absent): (Vec<_>, Vec<_>) = measure(effort)?
        .into_iter()
        .partition(|it| !it.times.is_empty());
    let results = started.into_iter().map(Started::of).collect::<Vec<_>>();
    show(&results, &absent);
    let size = std::fs::metadata(binary())?.len() as f64 / 1e6;
    table("The binary", &["MB"], &[vec![format!("{size:.2}")]]);
    judge(&results, size)
}

/// What was measured of one contender, which may have failed to start each time.
struct Measured {
    contender: &'static Contender,
    /// From exec to attached, in milliseconds.
    times: Vec<f64>,
    /// Resident then, in MiB.
    memory: Vec<f64>,
}

/// The results of a contender that starts here.
struct Started {
    contender: &'static Contender,
    times: Stat,
    memory: Stat,
}

impl Started {
    fn of(measured: Measured) -> Self {
        Self {
            contender: measured.contender,
            times: Stat::of(measured.times),
            memory: Stat::of(measured.memory),
        }
    }
}

/// Starts the contenders in turn. One of ours must start.
fn measure(effort: Effort) -> Result<Vec<Measured>> {
    let mut results = CONTENDERS
        .iter()
        .filter(|contender| contender.absent().is_none())
        .filter(|contender| {
            !effort.short || contender.is_ours() || contender.line.starts_with("attach")
        })
        .map(|contender| Measured {
            contender,
            times: Vec::new(),
            memory: Vec::new(),
        })
        .collect::<Vec<_>>();
    for _ in 0..effort.rounds {
        for it in &mut results {
            let mut command = it.contender.command()?;
            if it.contender.name == BPFTRACE {
                command = std::process::Command::new("bpftrace");
                command.args(["-e", SCRIPT]);
            }
            match Tool::start(command, Stdio::null(), it.contender.ready) {
                Ok(tool) => {
                    it.times.push(tool.took.as_secs_f64() * 1e3);
                    it.memory.push(tool.resident()?);
                    tool.stop()?;
                }
                Err(_) if !it.contender.is_ours() => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(results)
}

/// Shows the results as a table and as a chart.
fn show(results: &[Started], absent: &[Measured]) {
    let rows = results.iter().map(|it| {
        vec![
            it.contender.name.to_owned(),
            it.times.to_string(),
            format!("{:.1}", it.memory.median),
        ]
    });
    let none = absent.iter().map(|it| {
        vec![
            it.contender.name.to_owned(),
            "does not run here".to_owned(),
            "-".to_owned(),
        ]
    });
    table(
        "From exec to attached, and memory then",
        &["command", "ms", "resident, MiB"],
        &rows.chain(none).collect::<Vec<_>>(),
    );
    let chart = results.iter().map(|it| it.contender.bar(it.times));
    bars(
        "start",
        "From exec to attached, ms",
        &chart.collect::<Vec<_>>(),
    );
}

/// Compares ours with the peers and with the bounds; the size of the binary is in MB.
fn judge(results: &[Started], size: f64) -> Result<bool> {
    let ours = results.iter().filter(|it| it.contender.is_ours());
    let slowest = ours.clone().map(|it| it.times.median).fold(0.0, f64::max);
    let largest = ours.map(|it| it.memory.median).fold(0.0, f64::max);
    let of = |name: &str| {
        let mut found = results.iter().filter(|it| it.contender.name == name);
        found.next().map(|it| it.times.median)
    };
    let trace = of("connect-trace").context("connect-trace did not start")?;
    target("ms, the slowest command", slowest, 60.0, true);
    for (name, limit) in [(BARE, 1.2), (C_PEER, 1.2), (BPFTRACE, 0.2), (BCC, 0.0667)] {
        if let Some(peer) = of(name) {
            target(
                &format!("connect-trace over {name}"),
                trace / peer,
                limit,
                true,
            );
        }
    }
    target(
        "MiB resident, the largest command",
        largest,
        6.0 + EVENT_BUFFER_MIB,
        true,
    );
    // The start of an empty program measures the speed of this machine.
    let empty = of("empty XDP program by libbpf-rs").context("the reference did not start")?;
    let mut within = bound(
        "slowest command over the start of an empty program, ms / ms",
        slowest / empty,
        25.0,
        true,
    );
    within &= bound("MiB resident, the largest command", largest, 20.0, true);
    within &= bound("size of the binary, MB", size, 8.0, true);
    Ok(within)
}
