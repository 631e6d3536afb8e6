//! Events on their way to stdout: how many arrive at saturation and what each costs, by buffer,
//! format and target; what they cost at a steady rate; and how long one takes.
//!
//! port-monitor runs as it is, on an interface without traffic. Its events come from
//! BPF_PROG_TEST_RUN of the very program that it has loaded: faster than any interface.

use std::io::{BufRead, BufReader, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::Program;
use serde_json::Value;

use crate::Effort;
use crate::chart::Bar;
use crate::plain::test_run;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Tool, World, pin, syn};

pub fn run(effort: Effort) -> Result<bool> {
    let world = World::new()?;
    world.enter();
    let within = saturation(effort)?;
    if !effort.short {
        throttled(effort)?;
        steady(effort)?;
        latency(effort)?;
    }
    Ok(within)
}

fn saturation(effort: Effort) -> Result<bool> {
    let mut rows = Vec::new();
    let mut chart = Vec::new();
    let mut lines_of_ring = Vec::new();
    let mut within = true;
    for buffer in ["ring", "perf"] {
        for format in ["text", "json"] {
            for to_pipe in [false, true] {
                if effort.short && buffer == "perf" && (to_pipe || format == "json") {
                    continue;
                }
                let mut all = Vec::new();
                for _ in 0..effort.rounds {
                    // Several times what the buffer holds.
                    let count = match (effort.short, buffer) {
                        (false, "ring") => 8_000_000,
                        (true, "ring") => 1_000_000,
                        (true, _) => 100_000,
                        _ => 500_000,
                    };
                    all.push(saturate(buffer, format, to_pipe, count)?);
                }
                let stat = |value: fn(&Outcome) -> f64| Stat::of(all.iter().map(value).collect());
                let delivered = stat(|outcome| outcome.delivered / 1e6);
                let to = if to_pipe { "pipe" } else { "/dev/null" };
                rows.push(vec![
                    format!("{buffer}, {format}, {to}"),
                    stat(|outcome| outcome.produced / 1e6).to_string(),
                    delivered.to_string(),
                    format!("{:.1} %", stat(|outcome| outcome.lost * 100.0).median),
                    stat(Outcome::line_ns).to_string(),
                    stat(|outcome| outcome.producer_ns).to_string(),
                ]);
                chart.push(Bar {
                    label: format!("{buffer}, {format}, {to}"),
                    stat: delivered,
                    is_ours: true,
                });
                if buffer == "ring" {
                    lines_of_ring.push(delivered.median);
                    within &= bound(
                        &format!(
                            "ring, {format}, {to}: CPU of a line over that of its event, ns / ns"
                        ),
                        stat(|outcome| outcome.line_ns() / outcome.producer_ns).median,
                        30.0,
                        true,
                    );
                }
            }
        }
    }
    table(
        "port-monitor at saturation: one core makes events, the other prints them",
        &[
            "buffer, format, to",
            "M events/s made",
            "M lines/s delivered",
            "lost",
            "tool's CPU, ns for each line",
            "producer's CPU, ns for each event",
        ],
        &rows,
    );
    bars(
        "events",
        "port-monitor at saturation: M lines/s delivered",
        &chart,
    );
    if let [text, _, json, _] = lines_of_ring[..] {
        target("M lines/s, text to /dev/null", text, 8.0, false);
        target("M lines/s, JSON to /dev/null", json, 4.0, false);
    }
    Ok(within)
}

struct Outcome {
    /// Events a second that the producer made.
    produced: f64,
    /// Lines a second until the last one was written.
    delivered: f64,
    /// The share of the events that was lost.
    lost: f64,
    /// CPU time of the tool for each event that was made.
    cpu_ns: f64,
    /// CPU time of the producer for each event.
    producer_ns: f64,
}

impl Outcome {
    /// CPU time of the tool for each line that was written.
    fn line_ns(&self) -> f64 {
        self.cpu_ns / (1.0 - self.lost).max(1e-6)
    }
}

/// A run of port-monitor, and a descriptor of its program.
struct Monitor {
    tool: Tool,
    program: OwnedFd,
}

impl Monitor {
    fn start(buffer: &str, format: &str, stdout: Stdio) -> Result<Self> {
        let line = format!("tcpinspect port-monitor r0 --buffer {buffer} --output {format}");
        let contender = Contender::ours("port-monitor", line.leak());
        let tool = Tool::start(contender.command()?, stdout, contender.ready)?;
        let program = program_of(tool.pid())?;
        Ok(Self { tool, program })
    }
}

/// The program that a process has loaded.
fn program_of(pid: u32) -> Result<OwnedFd> {
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let info = std::fs::read_to_string(entry?.path())?;
        // Links have a prog_id as well, and it is the same.
        let id = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
        if let Some(id) = id {
            return Ok(Program::fd_from_id(id.trim().parse()?)?);
        }
    }
    anyhow::bail!("the tool has no program");
}

fn saturate(buffer: &str, format: &str, to_pipe: bool, count: u32) -> Result<Outcome> {
    let target = if to_pipe {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut monitor = Monitor::start(buffer, format, target)?;
    let tail = monitor.tool.stdout().map(|mut stdout| {
        std::thread::spawn(move || {
            // A reader that does next to nothing: it keeps the end, where the summary is.
            let mut bytes = vec![0; 1 << 16];
            let mut tail = Vec::new();
            while let Ok(len) = stdout.read(&mut bytes)
                && len > 0
            {
                if len < bytes.len() / 2 {
                    tail.extend_from_slice(&bytes[..len]);
                } else {
                    tail.clear();
                    tail.extend_from_slice(&bytes[len - 4096..len]);
                }
                let surplus = tail.len().saturating_sub(4096);
                tail.drain(..surplus);
            }
            let tail = String::from_utf8_lossy(&tail);
            tail.lines().last().unwrap_or_default().to_owned()
        })
    });
    let before = monitor.tool.cpu()?;
    let program = monitor.program.as_raw_fd();
    let started = Instant::now();
    let producer = std::thread::spawn(move || -> Result<(Duration, f64)> {
        pin(0)?;
        let used = own_cpu()?;
        test_run(program, &syn(), count, 0)?;
        Ok((started.elapsed(), own_cpu()? - used))
    });
    let (took, used) = producer
        .join()
        .map_err(|_| anyhow::anyhow!("the producer panicked"))??;
    // The rest of the buffer takes a fraction of that time.
    monitor.tool.settle()?;
    let cpu = monitor.tool.cpu()? - before;
    let said = monitor.tool.stop()?;
    let lost = match tail {
        Some(tail) if format == "json" => {
            let line = tail.join().map_err(|_| anyhow::anyhow!("no reader"))?;
            let summary: Value = serde_json::from_str(&line).context("there is no summary")?;
            summary["lost"].as_f64().context("no number of losses")?
        }
        _ => lost(&said),
    };
    let count = f64::from(count);
    Ok(Outcome {
        produced: count / took.as_secs_f64(),
        delivered: (count - lost) / took.as_secs_f64(),
        lost: lost / count,
        cpu_ns: cpu * 1e9 / count,
        producer_ns: used * 1e9 / count,
    })
}

/// CPU time of this thread in seconds.
fn own_cpu() -> Result<f64> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(time).as_secs_f64())
}

/// The losses that the tool reports on stderr; 0 if there is no report.
fn lost(said: &str) -> f64 {
    let line = said.lines().find(|line| line.contains("events were lost"));
    let number = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    number.unwrap_or(0.0)
}

/// What a line costs if the producer pauses, so that there is a core for the reader.
fn throttled(effort: Effort) -> Result<()> {
    const BATCH: u32 = 2000;
    const BATCHES: u32 = 500;
    let mut rows = Vec::new();
    for (format, limit) in [("text", 0.8), ("json", 0.7)] {
        let mut costs = [const { Vec::new() }; 2];
        for _ in 0..effort.rounds {
            for (to_pipe, costs) in [false, true].into_iter().zip(&mut costs) {
                let stdout = match to_pipe {
                    true => Stdio::piped(),
                    false => Stdio::null(),
                };
                let mut monitor = Monitor::start("ring", format, stdout)?;
                if let Some(mut stdout) = monitor.tool.stdout() {
                    std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
                }
                let program = monitor.program.as_raw_fd();
                let before = monitor.tool.cpu()?;
                let producer = std::thread::spawn(move || -> Result<()> {
                    pin(0)?;
                    for _ in 0..BATCHES {
                        test_run(program, &syn(), BATCH, 0)?;
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    Ok(())
                });
                producer
                    .join()
                    .map_err(|_| anyhow::anyhow!("the producer panicked"))??;
                monitor.tool.settle()?;
                let used = monitor.tool.cpu()? - before;
                let lines = f64::from(BATCH * BATCHES) - lost(&monitor.tool.stop()?);
                costs.push(used * 1e9 / lines.max(1.0));
            }
        }
        let ratios = costs[0]
            .iter()
            .zip(&costs[1])
            .map(|(null, pipe)| null / pipe);
        let ratio = Stat::of(ratios.collect());
        target(
            &format!("{format}: lines that a core can write to a pipe, over /dev/null"),
            ratio.median,
            limit,
            false,
        );
        let [null, pipe] = costs.map(Stat::of);
        rows.push(vec![
            format.to_owned(),
            null.to_string(),
            pipe.to_string(),
            ratio.to_string(),
        ]);
    }
    table(
        "port-monitor, bursts of 2000 events with pauses between: the tool's CPU, ns for each line",
        &[
            "format",
            "/dev/null",
            "pipe",
            "lines to the pipe over /dev/null",
        ],
        &rows,
    );
    Ok(())
}

/// What the tool uses at a rate that a busy server may have.
fn steady(effort: Effort) -> Result<()> {
    const RATE: u32 = 100_000;
    let mut rows = Vec::new();
    for buffer in ["ring", "perf"] {
        let mut used = Vec::new();
        let mut lost_parts = Vec::new();
        for _ in 0..effort.rounds {
            let mut monitor = Monitor::start(buffer, "text", Stdio::piped())?;
            let mut stdout = monitor.tool.stdout().context("no stdout")?;
            std::thread::spawn(move || std::io::copy(&mut stdout, &mut std::io::sink()));
            let program = monitor.program.as_raw_fd();
            let before = monitor.tool.cpu()?;
            let producer = std::thread::spawn(move || -> Result<(u32, Duration)> {
                pin(0)?;
                let frame = syn();
                let started = Instant::now();
                let mut made = 0;
                // One at a time, like packets: each is due 10 µs after the previous one.
                while made < RATE {
                    let due = started.elapsed().as_micros() / 10;
                    if u128::from(made) < due {
                        test_run(program, &frame, 1, 0)?;
                        made += 1;
                    } else {
                        std::hint::spin_loop();
                    }
                }
                Ok((made, started.elapsed()))
            });
            let (made, took) = producer
                .join()
                .map_err(|_| anyhow::anyhow!("the producer panicked"))??;
            monitor.tool.settle()?;
            used.push((monitor.tool.cpu()? - before) / took.as_secs_f64());
            lost_parts.push(lost(&monitor.tool.stop()?) / f64::from(made) * 100.0);
        }
        let used = Stat::of(used);
        rows.push(vec![
            buffer.to_owned(),
            used.to_string(),
            format!("{:.1} %", Stat::of(lost_parts).median),
        ]);
        if buffer == "ring" {
            target("cores used at 100,000 events/s", used.median, 0.05, true);
        }
    }
    table(
        "port-monitor, text to a pipe, events spaced evenly at 100,000 a second",
        &["buffer", "tool's CPU, cores", "lost"],
        &rows,
    );
    Ok(())
}

/// How long one event takes from the kernel to the reader of a pipe, when nothing else happens.
fn latency(effort: Effort) -> Result<()> {
    let mut monitor = Monitor::start("ring", "text", Stdio::piped())?;
    let mut lines = BufReader::new(monitor.tool.stdout().context("no stdout")?).lines();
    lines.next().context("there is no header")??;
    let mut times = Vec::new();
    for _ in 0..effort.rounds * 50 {
        std::thread::sleep(Duration::from_millis(5));
        let started = Instant::now();
        test_run(monitor.program.as_raw_fd(), &syn(), 1, 0)?;
        lines.next().context("the event did not come")??;
        times.push(started.elapsed().as_secs_f64() * 1e3);
    }
    monitor.tool.stop()?;
    times.sort_unstable_by(f64::total_cmp);
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    table(
        "One event on a quiet system, from the kernel to the reader of a pipe",
        &["p50, ms", "p90, ms", "p99, ms", "max, ms"],
        &[[50, 90, 99, 100]
            .map(|part| format!("{:.2}", at(part)))
            .to_vec()],
    );
    target("ms at p99", at(99), 2.0, true);
    Ok(())
}
