//! Four commands at once, for ten minutes: under steady load, or while faults are caused again and
//! again.
//!
//! `cargo bench --bench soak` runs the first, as root and in network namespaces of its own, and
//! `-- --chaos` the second. `--seconds N` sets another duration. The results are in docs/trust.md.

#![allow(clippy::print_stdout, reason = "a bench prints its results")]
#![allow(clippy::unwrap_used, reason = "a broken assumption has to stop it")]

mod chaos;
#[path = "../../tests/common/mod.rs"]
mod common;
mod steady;

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use common::bpf::{Object, objects_of};
use common::{Namespace, Output, Tool, command, status_kib};

fn main() -> Result<()> {
    let mut seconds = 600;
    let mut part: fn(Duration) -> Result<()> = steady::run;
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // From cargo.
            "--bench" => {}
            "--chaos" => part = chaos::run,
            "--seconds" => {
                let number = args.next().context("--seconds takes a number")?;
                seconds = number.parse().context("--seconds")?;
            }
            _ => bail!("{arg:?} is neither --chaos nor --seconds N"),
        }
    }
    part(Duration::from_secs(seconds))
}

/// A command that runs to the end, and what was seen of it.
struct Run {
    name: &'static str,
    tool: Tool,
    /// Resident memory in KiB, and open descriptors, at regular intervals.
    samples: Vec<(u64, usize)>,
}

/// What is left of a run.
struct Ended {
    name: &'static str,
    output: Output,
    samples: Vec<(u64, usize)>,
    /// What it had in the kernel.
    objects: BTreeSet<Object>,
}

impl Run {
    /// Starts it in a namespace; its output is discarded.
    fn start(namespace: &Namespace, args: &[&'static str]) -> Self {
        let mut command = command(args);
        command.stdout(Stdio::null());
        if args[0] == "connect-trace" {
            // It sees all namespaces, and others may connect to the same addresses.
            command.args(["--pid", &std::process::id().to_string()]);
        }
        Self {
            name: args[0],
            tool: Tool::spawn_in(namespace, &mut command).attached(),
            samples: Vec::new(),
        }
    }

    fn sample(&mut self) -> Result<()> {
        let pid = self.tool.pid();
        let memory = status_kib(pid, "VmRSS");
        let memory = memory.with_context(|| format!("{} has ended", self.name))?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        self.samples.push((memory, descriptors));
        Ok(())
    }

    fn stop(mut self) -> Result<Ended> {
        self.sample()?;
        let objects = objects_of(self.tool.pid());
        Ok(Ended {
            name: self.name,
            output: self.tool.stop(),
            samples: self.samples,
            objects,
        })
    }
}

impl Ended {
    /// The sample after 1/`part` of the time, and the last one.
    fn between(&self, part: usize) -> ((u64, usize), (u64, usize)) {
        let last = self.samples.len() - 1;
        (self.samples[last / part], self.samples[last])
    }

    fn most_memory(&self) -> u64 {
        let memory = self.samples.iter().map(|(memory, _)| *memory);
        memory.max().unwrap_or(0)
    }

    /// The number of SYNs or matches in the summary.
    fn count(&self) -> Result<u64> {
        let matched = self.number("matched", 1);
        matched.or_else(|_| self.number("SYNs", -1))
    }

    /// The number that stands `away` words from a word of the summary.
    fn number(&self, name: &str, away: isize) -> Result<u64> {
        let lines = &self.output.stderr;
        let summary = lines.iter().find(|line| line.starts_with("summary:"));
        let summary = summary.with_context(|| format!("{} has no summary", self.name))?;
        let mut words = summary.split([' ', ',', ';', ':']).collect::<Vec<_>>();
        words.retain(|word| !word.is_empty());
        let at = words.iter().position(|word| *word == name);
        let number = at.and_then(|at| words.get(at.checked_add_signed(away)?)?.parse().ok());
        number.with_context(|| format!("no number at {name} in {summary:?}"))
    }
}
