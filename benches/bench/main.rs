//! Measures tcpinspect and its peers side by side, in one run: see docs/performance.md.
//!
//! `cargo bench` runs all, `cargo bench -- program start` some, `-- --short` few repetitions with
//! bounds on gross regressions only. It needs root, and works in network namespaces of its own.

#![allow(clippy::print_stdout, reason = "a bench is for who runs it")]

mod events;
mod program;
mod rate;
mod report;
mod start;
mod world;

use anyhow::{Result, bail};

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
const PARTS: [(&str, Part); 4] = [
    ("program", program::run),
    ("rate", rate::run),
    ("events", events::run),
    ("start", start::run),
];

fn main() -> Result<()> {
    // cargo passes --bench; the rest is ours.
    let args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let (options, wanted): (Vec<_>, Vec<_>) = args.partition(|arg| arg.starts_with("--"));
    let short = options.iter().any(|option| option == "--short");
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !PARTS.iter().any(|(part, _)| part == name))
    {
        bail!("there is no part {unknown:?}; parts are program, rate, events and start");
    }
    let effort = Effort {
        rounds: if short { 3 } else { 9 },
        short,
    };
    let mut within = true;
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            within &= part(effort)?;
        }
    }
    if short && !within {
        bail!("a bound on gross regressions was broken: see above");
    }
    Ok(())
}
