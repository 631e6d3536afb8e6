//! Compiles each `src/bpf/*.bpf.c` and generates its skeleton into `OUT_DIR`.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::Compression;
use flate2::write::DeflateEncoder;
use libbpf_cargo::SkeletonBuilder;
use libbpf_rs::btf::{Btf, BtfKind, BtfType};

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
    // Line information does not say where this was built, so that builds are reproducible.
    let prefix_map = format!("-ffile-prefix-map={here}=.");

    let mut modules = String::new();
    for program in programs(&sources)? {
        let source = sources.join(format!("{program}.bpf.c"));
        let skeleton = out.join(format!("{program}.skel.rs"));
        let object = out.join(format!("{program}.bpf.o"));
        SkeletonBuilder::new()
            .source(&source)
            .obj(&object)
            .clang_args(CLANG_ARGS.into_iter().chain([prefix_map.as_str()]))
            .reference_obj(true)
            .build_and_generate(&skeleton)
            .with_context(|| {
                format!(
                    "failed to compile {} (are clang and libelf-dev installed?)",
                    source.display()
                )
            })?;
        compress_object(&skeleton)
            .with_context(|| format!("failed to compress the object of {program}"))?;
        writeln!(
            modules,
            "pub mod {program} {{ include!({:?}); pub const TYPES: &[&str] = &{:?}; }}",
            skeleton.display().to_string(),
            types(&object).context("failed to read the types of an object")?,
        )?;
    }
    fs::write(out.join("skeletons.rs"), modules).context("failed to write skeletons.rs")
}

/// Compresses the object that a skeleton includes, and has the skeleton inflate it when it is first
/// opened: this takes about a millisecond, and the binary is 1.2 MB smaller.
fn compress_object(skeleton: &Path) -> Result<()> {
    let code = fs::read_to_string(skeleton)?;
    let (code, data) = code
        .split_once("#[unsafe(link_section")
        .context("the skeleton has no section for its object")?;
    let path = data
        .split_once("include_bytes!(")
        .and_then(|(_, path)| path.split('"').nth(1))
        .context("the skeleton does not include its object")?;
    let object = fs::read(path)?;
    let mut deflated = DeflateEncoder::new(Vec::new(), Compression::best());
    deflated.write_all(&object)?;
    let deflated_path = format!("{path}.deflate");
    fs::write(&deflated_path, deflated.finish()?)?;
    let size = object.len();
    let code = format!(
        "{code}static DATA: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| \
         crate::skel::inflate(include_bytes!({deflated_path:?}), {size}));}}"
    );
    fs::write(skeleton, code)?;
    Ok(())
}

/// The names of the structs, unions and enums of an object: those of the kernel are among them.
fn types(object: &Path) -> Result<Vec<String>> {
    let btf = Btf::from_path(object)?;
    let all = (1..btf.len()).filter_map(|id| {
        let id = u32::try_from(id).ok()?;
        btf.type_by_id::<BtfType<'_>>(id.into())
    });
    let composite = all.filter(|known| {
        matches!(
            known.kind(),
            BtfKind::Struct | BtfKind::Union | BtfKind::Enum | BtfKind::Enum64
        )
    });
    let names = composite.filter_map(|known| known.name()?.to_str().map(str::to_owned));
    // libbpf ignores what follows these (CO-RE flavors).
    let names = names.filter_map(|name| name.split("___").next().map(str::to_owned));
    let names = names.filter(|name| !name.is_empty());
    Ok(names.collect::<BTreeSet<_>>().into_iter().collect())
}

/// The stems of the files with programs. Most commands have one, and flows has a second one for sockets;
/// socket_owner is for all commands that look processes up.
fn programs(sources: &Path) -> Result<BTreeSet<String>> {
    let mut programs = BTreeSet::new();
    for entry in fs::read_dir(sources).context("failed to read src/bpf")? {
        let name = entry?.file_name();
        let stem = name.to_str().and_then(|name| name.strip_suffix(".bpf.c"));
        programs.extend(stem.map(str::to_owned));
    }
    Ok(programs)
}
