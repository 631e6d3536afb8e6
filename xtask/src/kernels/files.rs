//! Programs and libraries for guests, and what programs for guests are built with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use super::archives::{Archives, INDEX_LIFETIME};
use super::index::Index;
use super::tools;

/// Debian's release of the libraries and tools for [`Arch::Arm64`]; they run on any kernel.
const SUITE: &str = "bookworm";

/// Packages that programs are linked with, or that tests in a guest use.
const PACKAGES: &[&str] = &[
    "bpftool",
    "busybox-static",
    "dash",
    "ethtool",
    "iproute2",
    "libcap2-bin",
    "libelf-dev",
    "nftables",
    "util-linux",
    "zlib1g-dev",
];

/// Where programs and libraries for guests come from.
pub enum Files {
    /// The machine itself.
    Machine,
    /// Debian's packages, unpacked below this directory.
    Unpacked(PathBuf),
}

impl Files {
    /// The files of guests with this processor.
    ///
    /// # Errors
    /// When Debian's packages can't be downloaded.
    pub fn of(arch: Arch, archives: &Archives) -> Result<Self> {
        match arch {
            Arch::Amd64 => Ok(Self::Machine),
            Arch::Arm64 => Ok(Self::Unpacked(sysroot(archives)?)),
        }
    }

    /// The path of a program, if there is one of that name.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        match self {
            Self::Machine => tools::find(name),
            Self::Unpacked(root) => ["usr/bin", "usr/sbin", "bin", "sbin"]
                .map(|directory| root.join(directory).join(name))
                .into_iter()
                .find(|path| path.is_file()),
        }
    }

    /// The shared libraries that a program needs, each with its path in the guest.
    ///
    /// # Errors
    /// When the program can't be read, or a library is missing.
    pub fn libraries(&self, program: &Path) -> Result<Vec<(String, PathBuf)>> {
        match self {
            Self::Machine => {
                // A static program makes ldd fail: it needs nothing.
                let linked = crate::text(tools::command("ldd").arg(program)).unwrap_or_default();
                let paths = linked.split_whitespace();
                Ok(paths
                    .filter_map(|word| Some((word.strip_prefix('/')?.to_owned(), word.into())))
                    .collect())
            }
            Self::Unpacked(root) => unpacked_libraries(root, program),
        }
    }
}

fn unpacked_libraries(root: &Path, program: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found: Vec<(String, PathBuf)> = Vec::new();
    let mut pending = vec![program.to_owned()];
    while let Some(file) = pending.pop() {
        let dynamic = crate::text(tools::command("readelf").arg("-dl").arg(&file))?;
        for line in dynamic.lines() {
            let named = |mark: &str| Some(line.split_once(mark)?.1.trim_end_matches(']'));
            let name = if let Some(name) = named("Shared library: [") {
                format!("lib/aarch64-linux-gnu/{name}")
            } else if let Some(path) = named("program interpreter: /") {
                path.to_owned()
            } else {
                continue;
            };
            if found.iter().any(|(have, _)| *have == name) {
                continue;
            }
            let path = [root.join(&name), root.join("usr").join(&name)]
                .into_iter()
                .find(|path| path.is_file())
                .with_context(|| format!("{} needs {name}: not unpacked", program.display()))?;
            pending.push(path.clone());
            found.push((name, path));
        }
    }
    Ok(found)
}

/// Debian's packages for arm64, unpacked.
fn sysroot(archives: &Archives) -> Result<PathBuf> {
    let index = Index::open(archives, SUITE, INDEX_LIFETIME)?;
    let home = archives.cache.join("sysroot");
    let root = home.join("root");
    let stamp = home.join("unpacked");
    let mut install = index.apt("apt-get");
    install
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(PACKAGES);
    // Lines of address, file, size and hash.
    let wanted = crate::text(
        Command::new(install.get_program())
            .args(install.get_args())
            .envs(
                install
                    .get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .arg("--print-uris"),
    )?;
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(root);
    }
    if home.exists() {
        fs::remove_dir_all(&home)?;
    }
    let downloads = home.join("downloads");
    fs::create_dir_all(downloads.join("partial"))?;
    fs::create_dir_all(&root)?;
    // Nothing is installed: apt only finds out what is needed, and fetches it.
    crate::output(
        install
            .arg("--download-only")
            .arg("-o")
            .arg(format!("Dir::Cache::Archives={}", downloads.display())),
    )?;
    for file in fs::read_dir(&downloads)? {
        let file = file?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            crate::output(tools::command("dpkg-deb").arg("-x").arg(file).arg(&root))?;
        }
    }
    fs::remove_dir_all(&downloads)?;
    fs::write(stamp, wanted)?;
    Ok(root)
}

/// The environment in which cargo builds static programs for a processor.
///
/// # Errors
/// When the libraries, or Rust's standard library for that processor, can't be downloaded.
pub fn build_environment(arch: Arch, archives: &Archives) -> Result<Vec<(String, String)>> {
    let own = machine_libraries()?.display().to_string();
    let Files::Unpacked(root) = Files::of(arch, archives)? else {
        return Ok(vec![("LIBBPF_SYS_LIBRARY_PATH".to_owned(), own)]);
    };
    let target = arch.target();
    install_rust(target)?;
    let name = target.replace('-', "_");
    let libraries = root.join("usr/lib/aarch64-linux-gnu");
    let compiler = "aarch64-linux-gnu-gcc".to_owned();
    Ok(vec![
        // Build scripts link libbpf too, for the machine itself.
        (
            "LIBBPF_SYS_LIBRARY_PATH_x86_64_unknown_linux_gnu".to_owned(),
            own,
        ),
        (
            format!("LIBBPF_SYS_LIBRARY_PATH_{name}"),
            libraries.display().to_string(),
        ),
        (
            format!("CARGO_TARGET_{}_LINKER", name.to_uppercase()),
            compiler.clone(),
        ),
        (format!("CC_{name}"), compiler),
        (format!("AR_{name}"), "aarch64-linux-gnu-ar".to_owned()),
        (
            format!("CFLAGS_{name}"),
            format!("-isystem {}", root.join("usr/include").display()),
        ),
    ])
}

/// Makes sure that Rust's standard library for a target is there.
fn install_rust(target: &str) -> Result<()> {
    let directory =
        crate::text(Command::new("rustc").args(["--print", "target-libdir", "--target", target]))?;
    if Path::new(directory.trim()).is_dir() {
        return Ok(());
    }
    crate::output(Command::new("rustup").args(["target", "add", target]))
        .with_context(|| format!("Rust's standard library for {target} is not installed"))?;
    Ok(())
}

/// The directory in which the linker finds the machine's own static libelf.
fn machine_libraries() -> Result<PathBuf> {
    let path = crate::text(tools::command("gcc").arg("-print-file-name=libelf.a"))?;
    // Without such a file gcc answers with the bare name.
    let path = Path::new(path.trim())
        .canonicalize()
        .context("gcc finds no libelf.a (package libelf-dev)")?;
    Ok(path
        .parent()
        .context("libelf.a has no directory")?
        .to_owned())
}

/// Prints the environment of [`build_environment`] for a shell.
///
/// # Errors
/// As there, or when apt's sources name no archive.
pub fn print_environment(arch: Arch, cache: &Path) -> Result<()> {
    let Some(archives) = Archives::find(cache, arch)? else {
        bail!("{}", super::NO_ARCHIVE);
    };
    for (name, value) in build_environment(arch, &archives)? {
        println!("export {name}='{value}'");
    }
    Ok(())
}
