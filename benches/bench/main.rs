//! Measures tcpinspect and its peers side by side, in one run: see docs/performance.md.
//!
//! `cargo bench --bench bench` runs all parts, `-- program start` two of them; `--short` takes few repetitions
//! and no peers, and fails on gross regressions; `--rounds N` sets the number of repetitions;
//! `--update docs/performance.md` puts what was measured into that document; `--history
//! benches/history.jsonl` appends the ratios to those of earlier runs, and says which have become
//! worse. It needs root, and works in network namespaces of its own.

#![allow(clippy::print_stdout, reason = "a bench prints its results")]
#![allow(clippy::print_stderr, reason = "as above")]

mod accept;
mod capture_file;
mod chart;
#[path = "../../tests/common/mod.rs"]
mod common;
mod connect;
mod events;
mod history;
mod iperf;
mod loss;
#[allow(
    dead_code,
    clippy::expect_used,
    reason = "the tests use more of it, and what it writes is right or stops the bench"
)]
#[path = "../../tests/oracle/pcap_write.rs"]
mod pcap_write;
mod plain;
mod program;
mod rate;
mod replay;
mod report;
mod scale;
mod start;
mod stat;
mod world;
mod write;

use std::num::NonZero;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
const PARTS: [(&str, Part); 11] = [
    ("program", program::run),
    ("rate", rate::run),
    ("loss", loss::run),
    ("events", events::run),
    ("connect", connect::run),
    ("accept", accept::run),
    ("iperf", iperf::run),
    ("write", write::run),
    ("replay", replay::run),
    ("scale", scale::run),
    ("start", start::run),
];

fn main() -> Result<()> {
    if let Some(what) = std::env::var_os(plain::ATTACHED) {
        return plain::attach(&what.to_string_lossy());
    }
    let mut short = false;
    let mut rounds = None;
    let mut document = None;
    let mut history = None;
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
            "--history" => {
                let path = args.next().context("--history takes a file")?;
                history = Some(PathBuf::from(path));
            }
            name if PARTS.iter().any(|(part, _)| *part == name) => wanted.push(arg),
            "all" => wanted.extend(PARTS.map(|(part, _)| part.to_owned())),
            _ => bail!(
                "there is no part {arg:?}; parts are all, {}",
                PARTS.map(|(part, _)| part).join(", ")
            ),
        }
    }
    provide_for_peers()?;
    let effort = Effort {
        rounds: rounds.unwrap_or(if short { 3 } else { 9 }),
        short,
    };
    let mut within = true;
    for (name, part) in PARTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            let measure = || {
                report::begin(name, effort.rounds);
                part(effort).with_context(|| format!("failed to measure {name}"))
            };
            let mut kept = measure()?;
            for _ in 0..2 {
                if kept || !short {
                    break;
                }
                // Other load on this machine may have been the cause. A real regression shows again.
                println!("\nOnce more, because a bound was broken:");
                std::thread::sleep(Duration::from_secs(20));
                kept = measure()?;
            }
            within &= kept;
        }
    }
    if let Some(document) = document {
        report::update(&document)?;
    }
    if let Some(history) = history {
        history::append(&history, &report::Machine::this(), &report::figures())?;
        within &= history::show(&history)?;
    }
    if short && !within {
        bail!(
            "bounds on gross regressions were broken: {}",
            report::broken().join("; ")
        );
    }
    Ok(())
}

const TRACEFS: &str = "/sys/kernel/tracing";
const MODULES: &str = "/lib/modules";

/// Some peers look for tracepoints in tracefs, and bcc compiles against the headers of the running
/// kernel. If these are missing, they are mounted in a mount namespace of this process. Headers of
/// another kernel serve as well: they take as long to compile.
fn provide_for_peers() -> Result<()> {
    let release = nix::sys::utsname::uname()?.release().to_owned();
    let tracefs = !Path::new(TRACEFS).join("events").exists();
    let headers = if Path::new(MODULES).join(&release).join("build").exists() {
        None
    } else {
        other_headers()
    };
    if !tracefs && headers.is_none() {
        return Ok(());
    }
    unshare(CloneFlags::CLONE_NEWNS).context("failed to make a mount namespace")?;
    let nothing = None::<&str>;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(nothing, "/", nothing, private, nothing)?;
    // If this fails, peers that need it are reported as not running.
    if tracefs {
        let _ = mount(nothing, TRACEFS, Some("tracefs"), MsFlags::empty(), nothing);
    }
    if let Some((build, source)) = headers
        && mount(nothing, MODULES, Some("tmpfs"), MsFlags::empty(), nothing).is_ok()
    {
        let ours = Path::new(MODULES).join(&release);
        std::fs::create_dir(&ours)?;
        symlink(build, ours.join("build"))?;
        symlink(source, ours.join("source"))?;
    }
    Ok(())
}

/// The headers of any kernel that has some installed: what was built, and the source.
fn other_headers() -> Option<(PathBuf, PathBuf)> {
    let kernels = std::fs::read_dir(MODULES).ok()?;
    kernels.flatten().find_map(|kernel| {
        let build = kernel.path().join("build").canonicalize().ok()?;
        let source = kernel.path().join("source").canonicalize();
        // A tmpfs is mounted over /lib/modules and hides what is there.
        (!build.starts_with(MODULES)).then(|| (build.clone(), source.unwrap_or(build)))
    })
}
