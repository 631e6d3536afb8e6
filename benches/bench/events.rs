//! Events that reach stdout of those that matched, at saturation, by buffer, format and target.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::Effort;
use crate::report::{Stat, bound, table};
use crate::world::{TCPINSPECT, World};

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    let count = if effort.short { 200_000 } else { 1_000_000 };
    let mut rows = Vec::new();
    let mut worst: f64 = 1.0;
    for buffer in ["ring", "perf"] {
        for json in [false, true] {
            for to_pipe in [false, true] {
                let mut delivered = Vec::new();
                let mut rates = Vec::new();
                let mut cpu = Vec::new();
                for _ in 0..effort.rounds {
                    let result = measure(&world, buffer, json, to_pipe, count)?;
                    delivered.push(result.delivered);
                    rates.push(result.rate / 1e6);
                    cpu.push(result.cpu_ns);
                }
                let delivered = Stat::of(delivered);
                if buffer == "ring" {
                    worst = worst.min(delivered.median);
                }
                rows.push(vec![
                    buffer.into(),
                    if json { "JSON" } else { "text" }.into(),
                    if to_pipe { "pipe" } else { "/dev/null" }.into(),
                    Stat::of(rates).to_string(),
                    delivered.to_string(),
                    format!("{:.0}", Stat::of(cpu).median),
                ]);
            }
        }
    }
    table(
        "port-monitor, every SYN of a flood",
        &[
            "buffer",
            "format",
            "to",
            "M events/s produced",
            "part delivered",
            "tool's CPU, ns per event",
        ],
        &rows,
    );
    Ok(bound("ring buffer, part delivered", worst, 0.5, false))
}

struct Outcome {
    /// Lines that were written of the events that matched.
    delivered: f64,
    /// Events a second while the flood lasted.
    rate: f64,
    /// User and system time of the tool per event.
    cpu_ns: f64,
}

fn measure(world: &World, buffer: &str, json: bool, to_pipe: bool, count: u64) -> Result<Outcome> {
    let mut command: Command = world.command(TCPINSPECT);
    command.args(["port-monitor", "r0", "--buffer", buffer]);
    if json {
        command.arg("--json");
    }
    command.stdout(if to_pipe {
        Stdio::piped()
    } else {
        Stdio::null()
    });
    command.stderr(Stdio::piped());
    let mut child = command.spawn().context("failed to start tcpinspect")?;
    let mut stderr = std::io::BufReader::new(child.stderr.take().context("no stderr")?);
    let mut line = String::new();
    while !line.starts_with("attached:") {
        line.clear();
        std::io::BufRead::read_line(&mut stderr, &mut line)?;
    }
    let last_line = child.stdout.take().map(|mut stdout| {
        std::thread::spawn(move || {
            // A reader that does next to nothing: it keeps the end, where the summary is.
            let mut buffer = vec![0; 1 << 16];
            let mut tail = Vec::new();
            while let Ok(len) = stdout.read(&mut buffer) {
                if len == 0 {
                    break;
                }
                tail.extend_from_slice(&buffer[..len]);
                let cut = tail.len().saturating_sub(4096);
                tail.drain(..cut);
            }
            String::from_utf8_lossy(&tail)
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned()
        })
    });
    let took = world.flood(count)?;
    let started = Instant::now();
    let pid = child.id();
    // It is done when it uses no more CPU.
    let mut used = cpu(pid)?;
    while started.elapsed() < Duration::from_secs(5) {
        std::thread::sleep(Duration::from_millis(50));
        let now = cpu(pid)?;
        if now == used {
            break;
        }
        used = now;
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(pid)?),
        nix::sys::signal::Signal::SIGINT,
    )?;
    child.wait()?;
    let mut rest = String::new();
    stderr.read_to_string(&mut rest)?;
    let written = match last_line {
        Some(reader) => {
            let line = reader
                .join()
                .map_err(|_| anyhow::anyhow!("the reader panicked"))?;
            if json {
                json_count(&line, "emitted")
            } else {
                text_count(&rest, "emitted")
            }
        }
        None => text_count(&rest, "emitted"),
    };
    let lost = text_count(&rest, "lost").unwrap_or(0.0);
    // JSON to /dev/null has no summary to read; what was lost is told in a notice.
    let written = written.unwrap_or(count as f64 - notice_lost(&rest).unwrap_or(lost));
    Ok(Outcome {
        delivered: written / count as f64,
        rate: count as f64 / took.as_secs_f64(),
        cpu_ns: used * 1e9 / count as f64,
    })
}

fn json_count(line: &str, key: &str) -> Option<f64> {
    serde_json::from_str::<Value>(line).ok()?.get(key)?.as_f64()
}

/// A number of the text summary: `emitted 12`.
fn text_count(text: &str, key: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.starts_with("summary:"))?;
    let rest = line.split(&format!("{key} ")).nth(1)?;
    rest.split_whitespace()
        .next()?
        .trim_end_matches(';')
        .parse()
        .ok()
}

fn notice_lost(text: &str) -> Option<f64> {
    let line = text
        .lines()
        .find(|line| line.contains("events were lost"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Seconds of CPU that a process has used.
fn cpu(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>();
    let ticks = |at: usize| {
        fields
            .get(at)
            .and_then(|text| text.parse::<f64>().ok())
            .unwrap_or(0.0)
    };
    Ok((ticks(11) + ticks(12)) / 100.0)
}
