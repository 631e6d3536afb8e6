//! Compiles each `src/bpf/*.bpf.c` and generates its skeleton into `OUT_DIR`.

use std::env;
use std::path::PathBuf;

use anyhow::{Context, Result};
use libbpf_cargo::SkeletonBuilder;

/// The programs, one per command, and one more for flows; each has a `.bpf.c` of the same stem.
const PROGRAMS: [&str; 5] = [
    "syn_count",
    "port_monitor",
    "connect_trace",
    "flows",
    "flow_owner",
];

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

    for program in PROGRAMS {
        let source = sources.join(format!("{program}.bpf.c"));
        SkeletonBuilder::new()
            .source(&source)
            .clang_args(CLANG_ARGS)
            .reference_obj(true)
            .build_and_generate(out.join(format!("{program}.skel.rs")))
            .with_context(|| {
                format!(
                    "failed to compile {} (are clang and libelf-dev installed?)",
                    source.display()
                )
            })?;
    }
    Ok(())
}
