//! Runs the privileged tests in QEMU guests, one for each kernel and mode.
//!
//! `cargo test --test kernels` is all there is to it; words after `--` choose
//! tests by name, as for any test program. `TCPINSPECT_KERNELS` is a list of
//! kernel series (`5.10,6.1`) or `all`. Kernels, images and logs are kept under
//! `target/kernels`.

mod guest;
mod image;
mod index;
mod modules;
mod output;
mod packages;
mod programs;
mod report;
mod tools;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

use guest::Mode;
use modules::Kernel;
use packages::{Archives, Flavour, Series};
use programs::Programs;
use report::{AllowedSkip, Run};

/// The kernels that are known, the oldest first.
const KERNELS: &[Series] = &[
    Series {
        name: "5.10",
        suites: &["bullseye"],
    },
    Series {
        name: "6.1",
        suites: &["bookworm"],
    },
    Series {
        name: "6.12",
        suites: &["trixie", "bookworm-backports", "bookworm"],
    },
    // The newest one, which is whatever the development suite has of it.
    Series {
        name: "7",
        suites: &["sid"],
    },
];

/// The kernels that are used where none are asked for.
const DEFAULT_KERNELS: &str = "5.10,6.1,6.12";

/// Guests besides the one in default mode that each kernel gets.
const EXTRA_RUNS: &[(&str, Mode)] = &[
    ("6.1", Mode::LockdownIntegrity),
    ("6.1", Mode::LockdownConfidentiality),
    ("6.1", Mode::Paranoid),
];

/// The test targets that run in guests.
const TARGETS: &[&str] = &[
    "programs",
    "network",
    "lifecycle",
    "clsact",
    "output",
    "accounting",
    "privileges",
    "host",
    "check",
    "flows",
    "schema",
    "connect",
];

/// The target with the tests of connect-trace, which has several backends.
const BACKENDS_TARGET: &str = "connect";

/// What a kernel may lack. Any other skip is a failure.
const ALLOWED_SKIPS: &[AllowedSkip] = &[
    // Other kernels run the same instructions on them.
    AllowedSkip {
        series: "",
        reason: "a guest has no network to fetch the captures from",
    },
    AllowedSkip {
        series: "5.10",
        reason: "tcx",
    },
    AllowedSkip {
        series: "6.1",
        reason: "tcx",
    },
    AllowedSkip {
        series: "5.10",
        reason: "accounts BPF to locked memory",
    },
    // Built without it.
    AllowedSkip {
        series: "5.10",
        reason: "the kernel has no MPTCP",
    },
    // bpf_sock_from_file came with 5.11.
    AllowedSkip {
        series: "5.10",
        reason: "can't tell the sockets of files",
    },
    // What bcc's tools see is compared on the kernel of the Debian that they come with.
    AllowedSkip {
        series: "5.10",
        reason: "of libbpf-tools",
    },
    AllowedSkip {
        series: "6.12",
        reason: "of libbpf-tools",
    },
    AllowedSkip {
        series: "7",
        reason: "of libbpf-tools",
    },
];

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    // Tools that collect tests ask for a list; there is nothing to choose from.
    if arguments.iter().any(|argument| argument == "--list") {
        return ExitCode::SUCCESS;
    }
    let filters: Vec<String> = arguments
        .into_iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();

    let outcome = match tools::missing() {
        Some(why) => Ok(skip(&why)),
        None => run(&filters),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("kernels: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says why nothing is run, and whether that is acceptable.
fn skip(why: &str) -> bool {
    eprintln!("SKIP kernels: {why}");
    // A continuous integration service must not pass by doing nothing.
    !env::var("CI").is_ok_and(|ci| ci == "true")
}

/// Runs all guests and says whether all went well.
fn run(filters: &[String]) -> Result<bool> {
    let kernels = chosen_kernels()?;
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .context("no target directory")?;
    let cache = target.join("kernels");
    let Some(archives) = Archives::find(&cache)? else {
        return Ok(skip(
            "apt's sources name no Debian archive; TCPINSPECT_DEBIAN_MIRROR can",
        ));
    };
    let programs = Programs::build(TARGETS, &target.join("guest"))?;

    let mut runs = Vec::new();
    let mut guests = Vec::new();
    for series in kernels {
        match kernel(&archives, series) {
            Ok((kernel, name)) => {
                let kernel = Arc::new(kernel);
                guests.extend(modes(series, filters).into_iter().map(|mode| Guest {
                    series,
                    kernel: Arc::clone(&kernel),
                    name: name.clone(),
                    mode,
                }));
            }
            // The other kernels are still worth running.
            Err(error) => runs.push(failed_run(series, series.name, "-", &error)),
        }
    }
    runs.extend(run_guests(&guests, &programs, filters, &cache));

    writeln!(io::stdout(), "\n{}", report::render(&runs, ALLOWED_SKIPS))?;
    Ok(!runs.is_empty() && runs.iter().all(|run| run.faults(ALLOWED_SKIPS).is_empty()))
}

fn chosen_kernels() -> Result<Vec<&'static Series>> {
    let wanted = env::var("TCPINSPECT_KERNELS").unwrap_or_else(|_| DEFAULT_KERNELS.to_owned());
    let wanted: Vec<&str> = wanted
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
        .collect();
    let known = |name: &str| name == "all" || KERNELS.iter().any(|series| series.name == name);
    if let Some(unknown) = wanted.iter().find(|name| !known(name)) {
        let names: Vec<&str> = KERNELS.iter().map(|series| series.name).collect();
        bail!(
            "TCPINSPECT_KERNELS: {unknown} is not one of {}, all",
            names.join(", ")
        );
    }
    let chosen = KERNELS.iter().filter(|series| {
        wanted
            .iter()
            .any(|name| *name == "all" || *name == series.name)
    });
    Ok(chosen.collect())
}

/// The modes a kernel is run in. Where tests are chosen by name, the modes whose
/// tests are not among them are left out.
fn modes(series: &Series, filters: &[String]) -> Vec<Mode> {
    let asked = |mode: &Mode| {
        let word = mode.word().unwrap_or_default();
        filters.is_empty() || filters.iter().any(|filter| filter.contains(word))
    };
    let extra = EXTRA_RUNS
        .iter()
        .filter(|(name, _)| *name == series.name)
        .map(|(_, mode)| *mode);
    std::iter::once(Mode::Default)
        .chain(extra)
        .filter(asked)
        .collect()
}

/// The kernel of a series and its full version: the small build, or the
/// complete one where a module is missing from that.
fn kernel(archives: &Archives, series: &Series) -> Result<(Kernel, String)> {
    let open = |flavour| -> Result<(Kernel, String)> {
        let package = archives.kernel(series, flavour)?;
        let kernel = Kernel::open(&package.root)?;
        let name = format!("{} ({})", kernel.release, package.version);
        let lacks = kernel.lacks(guest::OPTIONAL_MODULES);
        if !lacks.is_empty() {
            eprintln!("{name}: has no {}", lacks.join(", "));
        }
        let lacks = kernel.lacks(guest::REQUIRED_MODULES);
        if !lacks.is_empty() {
            bail!("{name} has no {}", lacks.join(", "));
        }
        Ok((kernel, name))
    };
    match open(Flavour::Cloud) {
        Ok(kernel) => Ok(kernel),
        Err(error) => {
            eprintln!(
                "kernel {}: {error:#}; trying the generic build",
                series.name
            );
            open(Flavour::Generic)
        }
    }
}

/// A kernel in a mode.
struct Guest {
    series: &'static Series,
    kernel: Arc<Kernel>,
    name: String,
    mode: Mode,
}

/// Runs as many guests at once as there are processors: a test waits more than it works, and what
/// is emulated does so on one processor most of the time.
fn run_guests(guests: &[Guest], programs: &Programs, filters: &[String], cache: &Path) -> Vec<Run> {
    let at_once = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicUsize::new(0);
    let finished = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..at_once.min(guests.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(guest) = guests.get(at) else {
                        return;
                    };
                    let run = run_guest(guest, programs, filters, cache);
                    let mut finished = finished.lock().unwrap_or_else(PoisonError::into_inner);
                    finished.insert(at, run);
                }
            });
        }
    });
    let finished = finished.into_inner();
    finished
        .unwrap_or_else(PoisonError::into_inner)
        .into_values()
        .collect()
}

fn run_guest(guest: &Guest, programs: &Programs, filters: &[String], cache: &Path) -> Run {
    let Guest {
        series,
        kernel,
        name,
        mode,
    } = guest;
    let mode = *mode;
    eprintln!("{name}, {}: running", mode.name());
    let directory: PathBuf = cache.join(series.name).join(mode.name());
    let finished = match guest::run(kernel, mode, programs, filters, &directory) {
        Ok(finished) => finished,
        Err(error) => return failed_run(series, name, mode.name(), &error),
    };
    eprintln!(
        "{name}, {}: took {} s",
        mode.name(),
        finished.took.as_secs()
    );
    let mut results = output::parse(&finished.results);
    if finished.timed_out {
        results
            .problems
            .push("the guest took too long and was killed".to_owned());
    }
    if results
        .release
        .as_ref()
        .is_some_and(|release| *release != kernel.release)
    {
        results
            .problems
            .push(format!("another kernel was booted: {:?}", results.release));
    }
    let has_backends = programs
        .tests
        .iter()
        .any(|(target, _)| target == BACKENDS_TARGET);
    let run = Run {
        series: series.name.to_owned(),
        kernel: name.clone(),
        mode: mode.name(),
        // Tests chosen by name prove what they prove, and may be in one guest
        // only.
        needs_backends: mode == Mode::Default && has_backends && filters.is_empty(),
        needs_tests: filters.is_empty(),
        seconds: finished.took.as_secs(),
        results,
    };
    if !run.faults(ALLOWED_SKIPS).is_empty() {
        eprintln!("{}", output::excerpt(&finished.results));
        eprintln!(
            "last messages of the kernel ({}):",
            finished.console.display()
        );
        eprintln!("{}", last_lines(&finished.console, 20));
        eprintln!("all results: {}", directory.join("results.log").display());
    }
    run
}

/// A guest that could not even be started.
fn failed_run(series: &Series, name: &str, mode: &'static str, error: &anyhow::Error) -> Run {
    let problems = vec![format!("{error:#}")];
    Run {
        series: series.name.to_owned(),
        kernel: name.to_owned(),
        mode,
        needs_backends: false,
        needs_tests: false,
        seconds: 0,
        results: output::Results {
            problems,
            ..output::Results::default()
        },
    }
}

fn last_lines(path: &Path, count: usize) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
