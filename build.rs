//! Compiles each `src/bpf/*.bpf.c` and generates its skeleton into `OUT_DIR`.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use libbpf_cargo::SkeletonBuilder;

const CLANG_ARGS: [&str; 6] = [
    // The verifier's log names lines; columns as well would make the binary 40 KB larger.
    "-gno-column-info",
    // ALU32 and bounded jumps, known to every kernel from 5.1 on.
    "-mcpu=v3",
    "-Wall",
    "-Wextra",
    "-Werror",
    // BPF_PROG() declares the context and all arguments, used or not.
    "-Wno-unused-parameter",
];

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let sources = PathBuf::from("src/bpf");
    // The whole folder: every program includes headers from it.
    println!("cargo:rerun-if-changed={}", sources.display());

    let here = env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?;
    // Line information does not say where this was built, so that it can be reproduced.
    let prefix_map = format!("-ffile-prefix-map={here}=.");

    let mut modules = String::new();
    for program in programs(&sources)? {
        let source = sources.join(format!("{program}.bpf.c"));
        let skeleton = out.join(format!("{program}.skel.rs"));
        SkeletonBuilder::new()
            .source(&source)
            .clang_args(CLANG_ARGS.into_iter().chain([prefix_map.as_str()]))
            .reference_obj(true)
            .build_and_generate(&skeleton)
            .with_context(|| {
                format!(
                    "failed to compile {} (are clang and libelf-dev installed?)",
                    source.display()
                )
            })?;
        writeln!(
            modules,
            "pub mod {program} {{ include!({:?}); }}",
            skeleton.display().to_string()
        )?;
    }
    fs::write(out.join("skeletons.rs"), modules).context("failed to write skeletons.rs")
}

/// The stems of the programs: one per command, and one more for flows and for listeners.
fn programs(sources: &Path) -> Result<BTreeSet<String>> {
    let mut programs = BTreeSet::new();
    for entry in fs::read_dir(sources).context("failed to read src/bpf")? {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".bpf.c"));
        programs.extend(stem.map(str::to_owned));
    }
    Ok(programs)
}
