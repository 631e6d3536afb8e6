//! Runs the privileged tests in QEMU guests, one for each kernel and mode.
//!
//! `cargo xtask kernels` does all of it; arguments choose tests by name, as for any test program.
//! `TCPINSPECT_KERNELS` is a list of kernel series (`5.10,6.1`), or `all`. Kernels, images and logs
//! are kept under `target/kernels`.

mod arch;
mod archives;
mod files;
mod guest;
mod image;
mod index;
mod modules;
mod output;
mod packages;
mod programs;
mod report;
mod series;
#[cfg(test)]
mod tests;
mod tools;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail};

pub use arch::Arch;
use archives::Archives;
use files::Files;
use guest::{Job, Machine, Mode};
use modules::Kernel;
use programs::Programs;
use report::{AllowedSkip, Run};
use series::{Flavour, Series};

/// Debian's small build, or the complete one if the small one lacks a module.
const VIRTUAL: &[Flavour] = &[Flavour::Cloud, Flavour::Generic];

/// The kernels that are known, the oldest first.
const KERNELS: &[Series] = &[
    Series {
        name: "5.10",
        version: "5.10",
        flavours: VIRTUAL,
        suites: &["bullseye"],
    },
    Series {
        name: "6.1",
        version: "6.1",
        flavours: VIRTUAL,
        suites: &["bookworm"],
    },
    Series {
        name: "6.12",
        version: "6.12",
        flavours: VIRTUAL,
        suites: &["trixie", "bookworm-backports", "bookworm"],
    },
    // On PREEMPT_RT, programs can be preempted, also those at TC.
    Series {
        name: "6.12-rt",
        version: "6.12",
        flavours: &[Flavour::Rt],
        suites: &["trixie"],
    },
    // The newest one that the development suite has.
    Series {
        name: "7",
        version: "7",
        flavours: VIRTUAL,
        suites: &["sid"],
    },
];

/// Guests besides the one in default mode that each kernel gets.
const EXTRA_RUNS: &[(&str, Mode)] = &[
    ("6.1", Mode::LockdownIntegrity),
    ("6.1", Mode::LockdownConfidentiality),
    ("6.1", Mode::Paranoid),
];

/// The test target that runs in guests.
const TARGET: &str = "privileged";

/// Its modules, in parts that take about the same time. A kernel that runs all tests has a guest for
/// each part, so that the last guests to end leave no processor idle for long. One more guest runs
/// the modules that are not named here.
const PARTS: &[&[&str]] = &[
    &[BACKENDS_MODULE],
    &["accept::", "loss::", "check::"],
    &["programs::"],
    &["network::", "flows::", "schema::"],
];

/// How many of these parts every kernel runs, because they depend on the kernel most. With `--turns`
/// each other part, and the modules that are not named, run on one kernel only.
const CORE_PARTS: usize = 1;

/// If at most this many tests of a guest fail, they get a second attempt, which the report mentions.
/// Guests share processors, and may pause for tenths of a second.
const SECOND_ATTEMPTS: usize = 3;

/// The tests that a real-time kernel runs: that counts are exact, and that each run of a program
/// has its own scratch space.
const REAL_TIME_PART: &[&str] = &[
    "accounting::",
    "flows::counts::",
    "flows::life::",
    "flows::table::",
    "programs::counts::",
    "programs::expressions::",
];

/// The module with the tests of connect-trace, which has several backends.
const BACKENDS_MODULE: &str = "connect::";

/// Skips that are allowed: features that a kernel may lack. Any other skip is a failure.
const ALLOWED_SKIPS: &[AllowedSkip] = &[
    // Nothing in Prometheus depends on the kernel.
    AllowedSkip {
        series: "",
        reason: "promtool: ",
    },
    AllowedSkip {
        series: "",
        reason: "prometheus: ",
    },
    AllowedSkip {
        series: "",
        reason: "rsyslogd: ",
    },
    AllowedSkip {
        series: "",
        reason: "a guest has no Wireshark",
    },
    // The captures are replayed outside of guests. Other kernels run the same instructions.
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
    // Debian built this kernel without MPTCP.
    AllowedSkip {
        series: "5.10",
        reason: "the kernel has no MPTCP",
    },
    // A guest has little memory.
    AllowedSkip {
        series: "5.10",
        reason: "not all connects could be made",
    },
    AllowedSkip {
        series: "",
        reason: "iptables -A INPUT",
    },
    // Guests do not have all modules of nftables.
    AllowedSkip {
        series: "",
        reason: "{ type nat",
    },
    AllowedSkip {
        series: "",
        reason: "netdev loss",
    },
    AllowedSkip {
        series: "5.10",
        reason: "before Linux 5.11",
    },
    AllowedSkip {
        series: "5.10",
        reason: "before Linux 5.18",
    },
    AllowedSkip {
        series: "5.10",
        reason: "before Linux 6.2",
    },
    AllowedSkip {
        series: "6.1",
        reason: "before Linux 6.2",
    },
    AllowedSkip {
        series: "5.10",
        reason: "before Linux 6.11",
    },
    AllowedSkip {
        series: "6.1",
        reason: "before Linux 6.11",
    },
    AllowedSkip {
        series: "5.10",
        reason: "before Linux 6.18",
    },
    AllowedSkip {
        series: "6.1",
        reason: "before Linux 6.18",
    },
    AllowedSkip {
        series: "6.12",
        reason: "before Linux 6.18",
    },
    // bcc's tools are compared on the kernel of the Debian release that they come with.
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

/// The options of `kernels`.
#[derive(clap::Args)]
pub struct Options {
    /// The processor of the guests
    #[arg(long, value_enum, default_value = "amd64")]
    arch: Arch,
    /// Run on each kernel the tests that depend on it most, and a share of the others; the commit
    /// decides which
    #[arg(long)]
    turns: bool,
    /// Run the bench instead, and take the words as its arguments
    #[arg(long)]
    bench: bool,
    /// Choose tests whose names contain one of these
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    words: Vec<String>,
}

/// Runs the guests and says whether all went well.
///
/// # Errors
/// When an environment variable is wrong, or the programs for the guests do not build.
pub fn run(options: &Options) -> Result<bool> {
    match tools::missing(options.arch) {
        Some(why) => Ok(skip(&why)),
        None if options.bench => bench(options.arch, &options.words),
        None => run_tests(options),
    }
}

/// Says why nothing is run, and whether that is acceptable.
fn skip(why: &str) -> bool {
    eprintln!("SKIP kernels: {why}");
    // A continuous integration service must not pass by doing nothing.
    !env::var("CI").is_ok_and(|ci| ci == "true")
}

/// Prints the environment that programs for arm64 are built in.
///
/// # Errors
/// When something that the build needs can't be had.
pub fn print_cross_environment() -> Result<()> {
    files::print_environment(Arch::Arm64, &cache(Arch::Arm64)?)
}

/// A directory for built programs, kernels, images or logs.
fn directory(name: &str) -> Result<PathBuf> {
    Ok(crate::target_directory()?.join(name))
}

/// The directory of the downloads for a processor, and of the logs.
pub fn cache(arch: Arch) -> Result<PathBuf> {
    directory(match arch {
        Arch::Amd64 => "kernels",
        Arch::Arm64 => "kernels-arm64",
    })
}

const NO_ARCHIVE: &str = "apt's sources name no Debian archive; TCPINSPECT_DEBIAN_MIRROR can";

/// Runs the bench with these arguments on one kernel after the other, and prints its output.
fn bench(arch: Arch, arguments: &[String]) -> Result<bool> {
    const NAME: &str = "bench";
    let kernels = chosen_kernels(arch)?;
    let cache = cache(arch)?;
    let Some(archives) = Archives::find(&cache, arch)? else {
        return Ok(skip(NO_ARCHIVE));
    };
    let programs = Programs::build_bench(NAME, &archives, &directory("guest")?)?;
    let machine = Machine {
        arch,
        files: Files::of(arch, &archives)?,
    };
    let job = Job {
        binary: &programs.binary,
        program: &programs.program,
        arguments: arguments.join(" "),
    };
    let mut all_well = true;
    for series in kernels {
        let (kernel, name) = kernel(&archives, series)?;
        eprintln!("{name}: running");
        let logs = cache.join(series.name).join(NAME);
        let finished = guest::run(&machine, &kernel, Mode::Default, &job, &logs)?;
        writeln!(io::stdout(), "\n{name}:\n{}", finished.results)?;
        if !finished.results.contains(&format!("@@ exit {NAME} 0")) {
            all_well = false;
            print_messages(&finished.console);
        }
    }
    Ok(all_well)
}

/// Prints the last messages of a guest's kernel.
fn print_messages(console: &Path) {
    eprintln!("last messages of the kernel ({}):", console.display());
    eprintln!("{}", last_lines(console, 20));
}

/// Runs the tests that the words choose.
fn run_tests(options: &Options) -> Result<bool> {
    let arch = options.arch;
    let filters = &filters(options)?;
    let kernels = chosen_kernels(arch)?;
    let cache = cache(arch)?;
    let Some(archives) = Archives::find(&cache, arch)? else {
        return Ok(skip(NO_ARCHIVE));
    };
    // At the same time: fetching kernels waits for the network, building for processors.
    let (programs, opened) = thread::scope(|scope| {
        let open = || kernels.iter().map(|series| kernel(&archives, series));
        let opened = scope.spawn(move || open().collect::<Vec<_>>());
        let programs =
            directory("guest").and_then(|built| Programs::build(TARGET, &archives, &built));
        (programs, opened.join())
    });
    let programs = programs?;
    let Ok(opened) = opened else {
        bail!("the thread that fetches kernels panicked");
    };

    let machine = Machine {
        arch,
        files: Files::of(arch, &archives)?,
    };
    let turns = if options.turns {
        shares(&kernels, filters)?
    } else {
        vec![Turn::Everything; kernels.len()]
    };
    let mut runs = Vec::new();
    let mut guests = Vec::new();
    for ((series, opened), turn) in kernels.into_iter().zip(opened).zip(turns) {
        match opened {
            Ok(kernel) => guests.extend(guests_of(series, kernel, filters, turn)),
            // The other kernels are still worth running.
            Err(error) => runs.push(failed_run(series, series.name, None, &error)),
        }
    }
    // Guests with few tests come last, so that all processors stay busy until the end.
    guests.sort_by_key(|guest| guest.mode != Mode::Default);
    runs.extend(report::merge(run_guests(
        &guests, &machine, &programs, filters, &cache,
    )));

    writeln!(io::stdout(), "\n{}", report::render(&runs, ALLOWED_SKIPS))?;
    Ok(!runs.is_empty() && runs.iter().all(|run| run.faults(ALLOWED_SKIPS).is_empty()))
}

/// The words that choose tests; empty for all.
fn filters(options: &Options) -> Result<Vec<String>> {
    if let Some(option) = options.words.iter().find(|word| word.starts_with('-')) {
        bail!("{option}: only words that choose tests can be given");
    }
    if !options.words.is_empty() {
        return Ok(options.words.clone());
    }
    let defaults = options.arch.default_tests().iter();
    Ok(defaults.map(|&word| word.into()).collect())
}

/// What each kernel runs of the tests if they take turns: real-time kernels, which are last, all of
/// theirs.
fn shares(kernels: &[&Series], filters: &[String]) -> Result<Vec<Turn>> {
    let real_time = kernels
        .iter()
        .filter(|series| series.is_real_time())
        .count();
    let mut turns = turns((kernels.len() - real_time).max(1), number_of_commit()?);
    turns.resize(kernels.len(), Turn::Everything);
    for (series, turn) in kernels.iter().zip(&turns) {
        let parts = parts(series, Mode::Default, filters, *turn);
        let names: Vec<String> = parts.into_iter().map(Part::name).collect();
        eprintln!("kernel {}: {}", series.name, names.join(", "));
    }
    Ok(turns)
}

/// The guests of a kernel, which has this full version: one for each mode and part.
fn guests_of(
    series: &'static Series,
    (kernel, name): (Kernel, String),
    filters: &[String],
    turn: Turn,
) -> Vec<Guest> {
    let kernel = Arc::new(kernel);
    let mut guests = Vec::new();
    for mode in modes(series, filters) {
        for part in parts(series, mode, filters, turn) {
            guests.push(Guest {
                series,
                kernel: Arc::clone(&kernel),
                name: name.clone(),
                mode,
                part,
            });
        }
    }
    guests
}

fn chosen_kernels(arch: Arch) -> Result<Vec<&'static Series>> {
    let wanted =
        env::var("TCPINSPECT_KERNELS").unwrap_or_else(|_| arch.default_kernels().to_owned());
    if wanted == "all" {
        return Ok(KERNELS.iter().collect());
    }
    let known = |name: &str| {
        let found = KERNELS.iter().find(|series| series.name == name);
        found.with_context(|| {
            let names: Vec<&str> = KERNELS.iter().map(|series| series.name).collect();
            let names = names.join(", ");
            format!("TCPINSPECT_KERNELS: {name:?} is not one of {names}; \"all\" can't be combined with other names")
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

/// The tests that one guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    All,
    Only(&'static [&'static str]),
    /// Those that are in no other part.
    Rest,
}

impl Part {
    fn name(self) -> String {
        match self {
            Self::All => "all".to_owned(),
            Self::Only(modules) => modules.concat().trim_end_matches("::").replace("::", "+"),
            Self::Rest => "rest".to_owned(),
        }
    }

    /// The arguments that choose them, for libtest.
    fn arguments(self) -> String {
        match self {
            Self::All => String::new(),
            Self::Only(modules) => modules.join(" "),
            Self::Rest => {
                let skips = PARTS.concat().into_iter();
                skips.map(|module| format!("--skip {module} ")).collect()
            }
        }
    }

    fn has_backends(self) -> bool {
        match self {
            Self::All => true,
            Self::Only(modules) => modules.contains(&BACKENDS_MODULE),
            Self::Rest => false,
        }
    }
}

/// The parts that a kernel runs in a mode, each in a guest of its own. If only a few tests run, one guest is
/// enough.
fn parts(series: &Series, mode: Mode, filters: &[String], turn: Turn) -> Vec<Part> {
    if mode != Mode::Default || !filters.is_empty() {
        return vec![Part::All];
    }
    if series.is_real_time() {
        return vec![Part::Only(REAL_TIME_PART)];
    }
    let named = PARTS.iter().map(|modules| Part::Only(modules));
    let mut parts: Vec<Part> = named.chain([Part::Rest]).collect();
    if let Turn::Share { first, step } = turn {
        let others = parts.split_off(CORE_PARTS);
        parts.extend(others.into_iter().skip(first).step_by(step));
    }
    parts
}

/// The tests that a kernel runs in addition to the parts that every kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Everything,
    /// Of the other parts every `step`-th, from `first` on.
    Share {
        first: usize,
        step: usize,
    },
}

/// The shares of the kernels, which together run everything once. `number` rotates the shares among
/// the kernels.
fn turns(kernels: usize, number: usize) -> Vec<Turn> {
    let turn = |kernel| Turn::Share {
        first: (kernel + number) % kernels,
        step: kernels,
    };
    (0..kernels).map(turn).collect()
}

/// A number that depends on the commit alone, so that the shares change from commit to commit.
fn number_of_commit() -> Result<usize> {
    let hash = crate::text(Command::new("git").arg("-C").arg(crate::root()).args([
        "rev-parse",
        "--short=7",
        "HEAD",
    ]))?;
    let digits = hash.trim().get(..7).context("git names no commit")?;
    usize::from_str_radix(digits, 16).context("git names no commit")
}

/// The kernel of a series and its full version, of the first build that has all modules.
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
    let (last, others) = series
        .flavours
        .split_last()
        .context("the series has no builds")?;
    for flavour in others {
        match open(*flavour) {
            Ok(kernel) => return Ok(kernel),
            Err(error) => eprintln!("kernel {}: {error:#}; trying another build", series.name),
        }
    }
    open(*last)
}

/// A kernel in a mode, and what it runs.
struct Guest {
    series: &'static Series,
    kernel: Arc<Kernel>,
    name: String,
    mode: Mode,
    part: Part,
}

/// Runs as many guests at once as there are processors: a test waits more than it works, and QEMU uses
/// one processor for a guest most of the time.
fn run_guests(
    guests: &[Guest],
    machine: &Machine,
    programs: &Programs,
    filters: &[String],
    cache: &Path,
) -> Vec<Run> {
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
                    let run = run_guest(guest, machine, programs, filters, cache);
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

fn run_guest(
    guest: &Guest,
    machine: &Machine,
    programs: &Programs,
    filters: &[String],
    cache: &Path,
) -> Run {
    let Guest {
        series,
        kernel,
        name,
        mode,
        part,
    } = guest;
    let mode = *mode;
    let what = format!("{name}, {}: {}", mode.name(), part.name());
    let directory: PathBuf = cache.join(series.name).join(mode.name()).join(part.name());
    let attempt = |what: &str, arguments: String| -> Result<(guest::Finished, output::Results)> {
        eprintln!("{what}: running");
        let job = Job {
            binary: &programs.binary,
            program: &programs.program,
            arguments,
        };
        let finished = guest::run(machine, kernel, mode, &job, &directory)?;
        eprintln!("{what}: took {} s", finished.took.as_secs());
        let mut results = output::parse(&finished.results);
        if finished.timed_out {
            let problem = "the guest took too long and was killed".to_owned();
            results.problems.push(problem);
        }
        if let Some(release) = &results.release
            && *release != kernel.release
        {
            let problem = format!("another kernel was booted: {release:?}");
            results.problems.push(problem);
        }
        Ok((finished, results))
    };
    let arguments = format!("{} {}", mode.test_arguments(filters), part.arguments());
    let (mut finished, mut results) = match attempt(&what, arguments) {
        Ok(both) => both,
        Err(error) => return failed_run(series, name, Some(mode), &error),
    };
    let failed = results.failed();
    if results.problems.is_empty() && (1..=SECOND_ATTEMPTS).contains(&failed.len()) {
        eprintln!("{}", output::excerpt(&finished.results));
        let arguments = guest::named_tests(&failed);
        match attempt(&format!("{what}, failed tests again"), arguments) {
            Ok((again, second)) => {
                results.take_second_attempt(second);
                finished = again;
            }
            Err(error) => results.problems.push(format!("{error:#}")),
        }
    }
    let run = Run {
        series: series.name.to_owned(),
        kernel: name.clone(),
        mode: Some(mode),
        // Tests that are chosen by name may run in one guest only.
        needs_backends: mode == Mode::Default && part.has_backends() && filters.is_empty(),
        needs_tests: filters.is_empty(),
        seconds: finished.took.as_secs(),
        results,
    };
    if !run.faults(ALLOWED_SKIPS).is_empty() {
        eprintln!("{}", output::excerpt(&finished.results));
        print_messages(&finished.console);
        eprintln!("all results: {}", directory.join("results.log").display());
    }
    run
}

/// A guest that could not even be started.
fn failed_run(series: &Series, name: &str, mode: Option<Mode>, error: &anyhow::Error) -> Run {
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
