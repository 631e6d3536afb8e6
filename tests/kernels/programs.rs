//! Builds the static programs that run in a guest: the product and its tests.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tools;

/// Guests share no libraries with the machine, so all is linked statically.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The executables for a guest.
pub struct Programs {
    pub binary: PathBuf,
    /// Test target and its executable, in the order in which they run.
    pub tests: Vec<(String, PathBuf)>,
}

impl Programs {
    /// Builds the product and those of the named test targets that exist.
    ///
    /// # Errors
    /// When none exists, or when the build fails.
    pub fn build(wanted: &[&str], target_dir: &Path) -> Result<Self> {
        let existing = test_targets()?;
        let targets: Vec<&str> = wanted
            .iter()
            .copied()
            .filter(|name| existing.iter().any(|have| have == name))
            .collect();
        if targets.is_empty() {
            bail!(
                "the package has none of the test targets {}",
                wanted.join(", ")
            );
        }

        let mut command = cargo("test");
        command
            .args([
                "--no-run",
                "--message-format=json",
                "--features=static",
                "--target",
                TARGET,
            ])
            .arg("--target-dir")
            .arg(target_dir)
            .args(targets.iter().flat_map(|name| ["--test", name]))
            // Flags meant for the machine's own build would replace the next.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("LIBBPF_SYS_LIBRARY_PATH", static_libraries()?)
            // The image is held in the guest's memory twice while it boots,
            // and emulated code is slow: small and quick matter here.
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_TEST_DEBUG", "false")
            .env("CARGO_PROFILE_TEST_STRIP", "debuginfo")
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "1");
        let built = command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .context("failed to start cargo")?;
        if !built.status.success() {
            bail!("the programs for the guests do not build");
        }

        let artifacts: Vec<Value> = built
            .stdout
            .split(|byte| *byte == b'\n')
            .filter_map(|line| serde_json::from_slice(line).ok())
            .collect();
        let find = |kind: &str, name: &str| {
            artifacts
                .iter()
                .filter(|artifact| {
                    artifact["target"]["kind"][0] == kind && artifact["target"]["name"] == name
                })
                .find_map(|artifact| artifact["executable"].as_str())
                .map(PathBuf::from)
                .with_context(|| format!("cargo built no {kind} {name}"))
        };
        let tests = targets
            .iter()
            .map(|name| Ok(((*name).to_owned(), find("test", name)?)));
        Ok(Self {
            binary: find("bin", env!("CARGO_PKG_NAME"))?,
            tests: tests.collect::<Result<_>>()?,
        })
    }
}

fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).args([
        "--manifest-path",
        concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"),
    ]);
    command
}

fn test_targets() -> Result<Vec<String>> {
    let mut command = cargo("metadata");
    let output = tools::output(command.args(["--no-deps", "--format-version=1"]))?;
    let metadata: Value = serde_json::from_slice(&output)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let targets = packages
        .filter(|package| package["name"] == env!("CARGO_PKG_NAME"))
        .flat_map(|package| package["targets"].as_array().into_iter().flatten())
        .filter(|target| target["kind"][0] == "test")
        .filter_map(|target| target["name"].as_str());
    Ok(targets.map(str::to_owned).collect())
}

/// The directory in which the linker finds the static libelf.
fn static_libraries() -> Result<PathBuf> {
    let path = tools::text(tools::command("gcc").arg("-print-file-name=libelf.a"))?;
    // Without such a file gcc answers with the bare name.
    let path = Path::new(path.trim())
        .canonicalize()
        .context("gcc finds no libelf.a (package libelf-dev)")?;
    Ok(path
        .parent()
        .context("libelf.a has no directory")?
        .to_owned())
}
