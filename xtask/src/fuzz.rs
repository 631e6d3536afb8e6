//! Runs the fuzz targets for a while, on a stable toolchain.
//!
//! cargo-fuzz does the same and more, but has to be built first, and asks for a nightly toolchain
//! unless sanitizers are turned off. libFuzzer itself needs only counters, which LLVM adds
//! to the code with any toolchain.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::{cargo, root, target_directory};

/// The targets; each has a folder of its name in `fuzz/seeds`.
const TARGETS: &[&str] = &["capture", "events", "expressions", "names"];

/// The flags that cargo-fuzz passes without sanitizers.
const FLAGS: &str = "--cfg fuzzing -C passes=sancov-module \
    -C llvm-args=-sanitizer-coverage-level=4 \
    -C llvm-args=-sanitizer-coverage-inline-8bit-counters \
    -C llvm-args=-sanitizer-coverage-pc-table \
    -C llvm-args=-sanitizer-coverage-trace-compares \
    -C codegen-units=1";

/// The options of `fuzz`.
#[derive(clap::Args)]
pub struct Options {
    /// Run each target for this many seconds
    #[arg(long, default_value_t = 30)]
    seconds: u32,
    /// Run only these targets
    #[arg(value_parser = clap::builder::PossibleValuesParser::new(TARGETS))]
    targets: Vec<String>,
}

/// Runs the targets at the same time. Returns whether none found an error.
///
/// # Errors
/// When they do not build or can't be started.
pub fn run(options: &Options) -> Result<bool> {
    let mut targets: Vec<&str> = options.targets.iter().map(String::as_str).collect();
    if targets.is_empty() {
        targets.extend(TARGETS);
    }
    let programs = build()?;
    let mut running = Vec::new();
    for target in targets {
        running.push(Running::start(target, &programs, options.seconds)?);
    }
    let mut all_well = true;
    for target in running {
        all_well &= target.finish()?;
    }
    Ok(all_well)
}

/// Builds all targets and returns the folder that they are in.
fn build() -> Result<PathBuf> {
    let version = crate::text(Command::new("rustc").arg("-vV"))?;
    let host = version
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("rustc does not name its host")?;
    let directory = target_directory()?.join("fuzz");
    let status = cargo("build")
        .args(["--package", "tcpinspect-fuzz", "--bins"])
        // Naming the target keeps the flags away from build scripts, which have no libFuzzer.
        .args(["--target", host])
        .arg("--target-dir")
        .arg(&directory)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", FLAGS)
        // They run for so long that optimizing them saves time.
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
        .status()
        .context("failed to start cargo")?;
    if !status.success() {
        bail!("the fuzz targets do not build");
    }
    Ok(directory.join(host).join("debug"))
}

struct Running {
    target: String,
    log: PathBuf,
    child: Child,
}

impl Running {
    fn start(target: &str, programs: &Path, seconds: u32) -> Result<Self> {
        let fuzz = root().join("fuzz");
        let corpus = fuzz.join("corpus").join(target);
        let artifacts = fuzz.join("artifacts").join(target);
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(&artifacts)?;
        let log = artifacts.join("log");
        let to = File::create(&log)?;
        let child = Command::new(programs.join(target))
            // New inputs go to the first folder.
            .arg(&corpus)
            .arg(fuzz.join("seeds").join(target))
            .arg(format!("-artifact_prefix={}/", artifacts.display()))
            .arg(format!("-max_total_time={seconds}"))
            // Try long inputs from the start: an event that is too short is not decoded at all.
            .args(["-len_control=0", "-timeout=10", "-print_final_stats=1"])
            .stdin(Stdio::null())
            .stdout(to.try_clone()?)
            .stderr(to)
            .spawn()
            .with_context(|| format!("failed to start {target}"))?;
        eprintln!("{target}: running for {seconds} s");
        Ok(Self {
            target: target.to_owned(),
            log,
            child,
        })
    }

    fn finish(mut self) -> Result<bool> {
        let status = self.child.wait()?;
        let log = String::from_utf8_lossy(&fs::read(&self.log)?).into_owned();
        let target = &self.target;
        let statistic = |name: &str| {
            let line = log.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or("?").trim().to_owned()
        };
        let runs = statistic("stat::number_of_executed_units:");
        let new = statistic("stat::new_units_added:");
        if status.success() {
            println!("{target}: {runs} inputs, {new} of them new to it, and nothing found");
        } else {
            eprintln!("{log}");
            println!("{target}: failed ({status}); the input is named above");
        }
        Ok(status.success())
    }
}
