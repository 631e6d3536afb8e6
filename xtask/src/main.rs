//! Tasks for the tests beyond `cargo test`: `cargo xtask --help` lists them.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a tool for developers prints its progress"
)]

mod fuzz;
mod kernels;

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use clap::Parser;

#[derive(Parser)]
#[command(name = "cargo xtask")]
enum Task {
    /// Run the privileged tests in QEMU guests, one for each kernel and mode
    Kernels(kernels::Options),
    /// Download what a build of static programs for arm64 needs, and print the environment for cargo
    CrossEnv,
    /// Run the fuzz targets for a while, each from the inputs in fuzz/seeds
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    let outcome = match Task::parse() {
        Task::Kernels(options) => kernels::run(&options),
        Task::CrossEnv => kernels::print_cross_environment().map(|()| true),
        Task::Fuzz(options) => fuzz::run(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The package under test, which is also the root of the workspace.
fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The build directory, in which this program itself is.
fn target_directory() -> Result<PathBuf> {
    let program = env::current_exe()?;
    let target = program.ancestors().nth(2);
    Ok(target.context("there is no target directory")?.to_owned())
}

/// Cargo, for the package under test.
fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .arg(subcommand)
        .args(["--locked", "--manifest-path"])
        .arg(root().join("Cargo.toml"));
    command
}

/// Runs a command to its end and returns its standard output.
///
/// # Errors
/// When it cannot be started or fails; the message has what it wrote to stderr.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("failed to start {command:?}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{command:?} failed ({}): {}", output.status, stderr.trim());
    }
    Ok(output.stdout)
}

/// The same as [`output`], for a command that writes text.
pub fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?).into_owned())
}
