//! Builds the static programs that run in a guest: the product and its tests.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::tools;

/// Guests share no libraries with the machine, so all is linked statically.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The executables for guests.
pub struct Programs {
    pub binary: PathBuf,
    programs: Vec<Program>,
}

/// A test target, or the bench.
pub struct Program {
    pub name: String,
    pub executable: PathBuf,
}

impl Programs {
    /// Builds the product and these test targets.
    ///
    /// # Errors
    /// When the build fails.
    pub fn build(targets: &[&str], target_dir: &Path) -> Result<Self> {
        let mut command = cargo("test");
        command
            .args(targets.iter().flat_map(|name| ["--test", name]))
            // The image is held in the guest's memory twice while it boots,
            // and emulated code is slow: small and quick matter here.
            .env("CARGO_PROFILE_DEV_DEBUG", "false")
            .env("CARGO_PROFILE_DEV_STRIP", "debuginfo")
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_TEST_DEBUG", "false")
            .env("CARGO_PROFILE_TEST_STRIP", "debuginfo")
            .env("CARGO_PROFILE_TEST_OPT_LEVEL", "1");
        Self::build_with(command, "test", targets, target_dir)
    }

    /// Builds the product as it is shipped, and the bench.
    ///
    /// # Errors
    /// When the build fails.
    pub fn build_bench(name: &str, target_dir: &Path) -> Result<Self> {
        let mut command = cargo("bench");
        command.args(["--bench", name]);
        Self::build_with(command, "bench", &[name], target_dir)
    }

    fn build_with(
        mut command: Command,
        kind: &str,
        targets: &[&str],
        target_dir: &Path,
    ) -> Result<Self> {
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
            // Flags meant for the machine's own build would replace the next.
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .env("LIBBPF_SYS_LIBRARY_PATH", static_libraries()?);
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
        let programs = targets.iter().map(|name| {
            Ok(Program {
                name: (*name).to_owned(),
                executable: find(kind, name)?,
            })
        });
        Ok(Self {
            binary: find("bin", env!("CARGO_PKG_NAME"))?,
            programs: programs.collect::<Result<_>>()?,
        })
    }

    /// The programs of these names, in their order.
    pub fn of(&self, names: &[&str]) -> Vec<&Program> {
        let find = |name: &&str| self.programs.iter().find(|program| program.name == **name);
        names.iter().filter_map(find).collect()
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
