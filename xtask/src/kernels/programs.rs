//! Builds the static programs that run in a guest: the tool and its tests.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::archives::Archives;
use super::files::build_environment;
use crate::cargo;

/// The executables for guests.
pub struct Programs {
    pub binary: PathBuf,
    pub program: Program,
}

/// A test target, or the bench.
pub struct Program {
    pub name: String,
    pub executable: PathBuf,
}

impl Programs {
    /// Builds the tool and a test target.
    ///
    /// # Errors
    /// When the build fails.
    pub fn build(target: &str, archives: &Archives, target_dir: &Path) -> Result<Self> {
        let mut command = cargo("test");
        command
            .args(["--test", target])
            // While a guest boots, its memory holds the image twice, and emulated code is slow. So the
            // programs should be small and fast.
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_TEST_DEBUG", "false")
            .env("CARGO_PROFILE_TEST_STRIP", "debuginfo")
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "1");
        Self::build_with(command, "test", target, archives, target_dir)
    }

    /// Builds the tool as it is shipped, and the bench.
    ///
    /// # Errors
    /// When the build fails.
    pub fn build_bench(name: &str, archives: &Archives, target_dir: &Path) -> Result<Self> {
        let mut command = cargo("bench");
        command.args(["--bench", name]);
        Self::build_with(command, "bench", name, archives, target_dir)
    }

    fn build_with(
        mut command: Command,
        kind: &str,
        name: &str,
        archives: &Archives,
        target_dir: &Path,
    ) -> Result<Self> {
        let arch = archives.arch;
        command
            .args([
                "--no-run",
                "--message-format=json",
                "--features=static",
                "--target",
                arch.target(),
            ])
            .arg("--target-dir")
            .arg(target_dir)
            // Guests share no libraries with the machine, so all is linked statically. This variable
            // would override RUSTFLAGS.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .envs(build_environment(arch, archives)?);
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
        Ok(Self {
            binary: find("bin", "tcpinspect")?,
            program: Program {
                name: name.to_owned(),
                executable: find(kind, name)?,
            },
        })
    }
}
