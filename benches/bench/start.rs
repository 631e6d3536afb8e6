//! From exec to attached, resident memory and size of the binary, against peers.

use std::process::Stdio;

use anyhow::Result;

use crate::Effort;
use crate::report::{Stat, bound, table};
use crate::world::{TCPINSPECT, Tool, World, installed};

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    let commands: [(&str, &str, &[&str], &str); 5] = [
        ("syn-count", TCPINSPECT, &["syn-count", "r0"], "attached:"),
        (
            "syn-count --mode tc",
            TCPINSPECT,
            &["syn-count", "r0", "--mode", "tc"],
            "attached:",
        ),
        (
            "port-monitor",
            TCPINSPECT,
            &["port-monitor", "r0"],
            "attached:",
        ),
        ("connect-trace", TCPINSPECT, &["connect-trace"], "attached:"),
        (
            "bpftrace, the same tracepoint",
            "bpftrace",
            &[
                "-v",
                "-e",
                "BEGIN { printf(\"\") } tracepoint:sock:inet_sock_set_state { @[comm] = count(); }",
            ],
            "Attaching",
        ),
    ];
    let mut rows = Vec::new();
    let mut slowest: f64 = 0.0;
    for (name, program, arguments, ready) in commands {
        if program != TCPINSPECT && !installed(program) {
            rows.push(vec![name.into(), "not installed".into(), "-".into()]);
            continue;
        }
        let mut times = Vec::new();
        let mut memory = 0;
        for _ in 0..effort.rounds {
            let mut command = world.command(program);
            command.args(arguments);
            match Tool::start(command, Stdio::null(), ready) {
                Ok((tool, took)) => {
                    times.push(took.as_secs_f64() * 1e3);
                    memory = tool.usage()?.1;
                    tool.stop()?;
                }
                Err(_) if program != TCPINSPECT => break,
                Err(error) => return Err(error),
            }
        }
        if times.is_empty() {
            rows.push(vec![name.into(), "does not run here".into(), "-".into()]);
            continue;
        }
        let stat = Stat::of(times);
        if program == TCPINSPECT {
            slowest = slowest.max(stat.median);
        }
        rows.push(vec![
            name.into(),
            stat.to_string(),
            format!("{:.1}", memory as f64 / 1024.0),
        ]);
    }
    table(
        "From exec to attached",
        &["command", "ms", "resident, MiB"],
        &rows,
    );
    let size = std::fs::metadata(TCPINSPECT)?.len();
    println!("\nThe binary has {:.2} MB.", size as f64 / 1e6);
    Ok(bound(
        "slowest command, exec to attached, ms",
        slowest,
        300.0,
        true,
    ))
}
