//! Measures tcpinspect and its peers side by side, in one run: see docs/performance.md.
//!
//! `cargo bench --bench bench` runs all, `-- program start` some; `--short` takes few repetitions
//! and no peers, and fails on gross regressions; `--rounds N` chooses the repetitions; `--update
//! docs/performance.md` puts what was measured into that document. It needs root, and works in
//! network namespaces of its own.

#![allow(clippy::print_stdout, reason = "a bench is for who runs it")]
#![allow(clippy::print_stderr, reason = "as above")]

mod chart;
mod connect;
mod events;
mod iperf;
mod plain;
mod program;
mod rate;
mod report;
mod start;
mod world;

use std::num::NonZero;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Repetitions of each measurement; medians are reported.
    pub rounds: usize,
    /// For CI: short, and failing on gross regressions.
    pub short: bool,
}

/// A measurement; false if it found a gross regression.
type Part = fn(Effort) -> Result<bool>;

/// The measurements by name.
const PARTS: [(&str, Part); 6] = [
    ("program", program::run),
    ("rate", rate::run),
    ("events", events::run),
    ("connect", connect::run),
    ("iperf", iperf::run),
    ("start", start::run),
];

fn main() -> Result<()> {
    if let Some(what) = std::env::var_os(plain::ATTACHED) {
        return plain::attach(&what.to_string_lossy());
    }
    let mut short = false;
    let mut rounds = None;
    let mut document = None;
    let mut wanted = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // From cargo.
            "--bench" => {}
            "--short" => short = true,
            "--rounds" => {
                let number = args.next().context("--rounds takes a number")?;
                let number: NonZero<usize> = number.parse().context("--rounds")?;
                rounds = Some(number.get());
            }
            "--update" => {
                let path = args.next().context("--update takes a document")?;
                document = Some(PathBuf::from(path));
            }
            name if PARTS.iter().any(|(part, _)| *part == name) => wanted.push(arg),
            "all" => wanted.extend(PARTS.map(|(part, _)| part.to_owned())),
            _ => bail!(
                "there is no part {arg:?}; parts are all, {}",
                PARTS.map(|(part, _)| part).join(", ")
            ),
        }
    }
    mount_tracefs()?;
    let effort = Effort {
        rounds: rounds.unwrap_or(if short { 3 } else { 9 }),
        short,
    };
    let mut within = true;
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            report::begin(name, effort.rounds);
            within &= part(effort).with_context(|| format!("failed to measure {name}"))?;
        }
    }
    if let Some(document) = document {
        report::update(&document)?;
    }
    if short && !within {
        bail!("a bound on gross regressions was broken: see above");
    }
    Ok(())
}

/// Some peers look for tracepoints there. It is mounted for this process and its children only.
fn mount_tracefs() -> Result<()> {
    const TRACEFS: &str = "/sys/kernel/tracing";
    let nothing = None::<&str>;
    if std::path::Path::new(TRACEFS).join("events").exists() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("failed to make a mount namespace")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
    // Without it these peers don't run, which is told.
    let _ = mount(nothing, TRACEFS, Some("tracefs"), MsFlags::empty(), nothing);
    Ok(())
}
