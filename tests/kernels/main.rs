//! Runs the privileged tests in QEMU guests, one for each kernel and mode.
//!
//! `cargo test --test kernels` is all there is to it; words after `--` choose
//! tests by name, as for any test program. `TCPINSPECT_KERNELS` is a list of
//! kernel series (`5.10,6.1`), `all`, or `none`. Kernels, images and logs are kept under
//! `target/kernels`. After `-- --bench` the words are the bench's, which then
//! runs instead.

#![allow(clippy::print_stderr, reason = "there is no libtest to do it")]

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

use guest::{Job, Mode};
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

/// The test targets that run in guests, in parts that take about as long as each other: a kernel
/// that runs all tests does so in a guest for each part, so that no processor is idle in the end.
const PARTS: &[&[&str]] = &[
    &[BACKENDS_TARGET],
    &["programs", "network", "flows", "schema"],
    &[
        "lifecycle",
        "clsact",
        "output",
        "accounting",
        "privileges",
        "host",
        "check",
    ],
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
    let outcome = match tools::missing() {
        Some(why) => Ok(skip(&why)),
        None => match arguments.iter().position(|argument| argument == "--bench") {
            Some(at) => bench(&arguments[at + 1..]),
            None => {
                let mut filters = arguments;
                filters.retain(|argument| !argument.starts_with('-'));
                run(&filters)
            }
        },
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

/// Where programs are built, and kernels, images and logs are kept.
fn directory(name: &str) -> Result<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent();
    Ok(target.context("no target directory")?.join(name))
}

const NO_ARCHIVE: &str = "apt's sources name no Debian archive; TCPINSPECT_DEBIAN_MIRROR can";

/// Runs the bench with these arguments on one kernel after the other, and prints what it says.
fn bench(arguments: &[String]) -> Result<bool> {
    const NAME: &str = "bench";
    let kernels = chosen_kernels()?;
    let cache = directory("kernels")?;
    let Some(archives) = Archives::find(&cache)? else {
        return Ok(skip(NO_ARCHIVE));
    };
    let programs = Programs::build_bench(NAME, &directory("guest")?)?;
    let job = Job {
        binary: &programs.binary,
        programs: programs.of(&[NAME]),
        arguments: arguments.join(" "),
    };
    let mut all_well = true;
    for series in kernels {
        let (kernel, name) = kernel(&archives, series)?;
        eprintln!("{name}: running");
        let logs = cache.join(series.name).join(NAME);
        let finished = guest::run(&kernel, Mode::Default, &job, &logs)?;
        writeln!(io::stdout(), "\n{name}:\n{}", finished.results)?;
        if !finished.results.contains(&format!("@@ exit {NAME} 0")) {
            all_well = false;
            tell_messages(&finished.console);
        }
    }
    Ok(all_well)
}

/// Shows the end of what a guest's kernel said.
fn tell_messages(console: &Path) {
    eprintln!("last messages of the kernel ({}):", console.display());
    eprintln!("{}", last_lines(console, 20));
}

/// Runs all guests and says whether all went well.
fn run(filters: &[String]) -> Result<bool> {
    let kernels = chosen_kernels()?;
    if kernels.is_empty() {
        return Ok(skip("TCPINSPECT_KERNELS is none"));
    }
    let cache = directory("kernels")?;
    let Some(archives) = Archives::find(&cache)? else {
        return Ok(skip(NO_ARCHIVE));
    };
    let programs = Programs::build(&PARTS.concat(), &directory("guest")?)?;

    let mut runs = Vec::new();
    let mut guests = Vec::new();
    for series in kernels {
        match kernel(&archives, series) {
            Ok((kernel, name)) => {
                let kernel = Arc::new(kernel);
                for mode in modes(series, filters) {
                    guests.extend(parts(mode, filters).into_iter().map(|targets| Guest {
                        series,
                        kernel: Arc::clone(&kernel),
                        name: name.clone(),
                        mode,
                        targets,
                    }));
                }
            }
            // The other kernels are still worth running.
            Err(error) => runs.push(failed_run(series, series.name, "-", &error)),
        }
    }
    // Those with few tests come last, to fill what time is left.
    guests.sort_by_key(|guest| guest.mode != Mode::Default);
    runs.extend(report::merge(run_guests(
        &guests, &programs, filters, &cache,
    )));

    writeln!(io::stdout(), "\n{}", report::render(&runs, ALLOWED_SKIPS))?;
    Ok(!runs.is_empty() && runs.iter().all(|run| run.faults(ALLOWED_SKIPS).is_empty()))
}

fn chosen_kernels() -> Result<Vec<&'static Series>> {
    let wanted = env::var("TCPINSPECT_KERNELS").unwrap_or_else(|_| DEFAULT_KERNELS.to_owned());
    match wanted.as_str() {
        "all" => return Ok(KERNELS.iter().collect()),
        "none" => return Ok(Vec::new()),
        _ => {}
    }
    let known = |name: &str| {
        let found = KERNELS.iter().find(|series| series.name == name);
        found.with_context(|| {
            let names: Vec<&str> = KERNELS.iter().map(|series| series.name).collect();
            let names = names.join(", ");
            format!("TCPINSPECT_KERNELS: {name:?} is none of {names}, and not all or none alone")
        })
    };
    wanted.split(',').map(str::trim).map(known).collect()
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

/// The targets of each guest that a kernel gets in a mode. Few tests are worth one guest only.
fn parts(mode: Mode, filters: &[String]) -> Vec<Vec<&'static str>> {
    if mode == Mode::Default && filters.is_empty() {
        PARTS.iter().map(|part| part.to_vec()).collect()
    } else {
        vec![PARTS.concat()]
    }
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

/// A kernel in a mode, and what it runs.
struct Guest {
    series: &'static Series,
    kernel: Arc<Kernel>,
    name: String,
    mode: Mode,
    targets: Vec<&'static str>,
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
        targets,
    } = guest;
    let mode = *mode;
    let what = format!("{name}, {}: {}", mode.name(), targets.join(", "));
    eprintln!("{what}: running");
    let directory: PathBuf = cache
        .join(series.name)
        .join(mode.name())
        .join(targets.first().copied().unwrap_or_default());
    let job = Job {
        binary: &programs.binary,
        programs: programs.of(targets),
        arguments: mode.test_arguments(filters),
    };
    let finished = match guest::run(kernel, mode, &job, &directory) {
        Ok(finished) => finished,
        Err(error) => return failed_run(series, name, mode.name(), &error),
    };
    eprintln!("{what}: took {} s", finished.took.as_secs());
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
    let has_backends = targets.contains(&BACKENDS_TARGET);
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
        tell_messages(&finished.console);
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
