//! Reads the module tree of an unpacked kernel: what is there, and in which
//! order it loads.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::tools;

/// An unpacked kernel that can be booted.
pub struct Kernel {
    /// The release, as `uname -r` shows it.
    pub release: String,
    /// The bootable file.
    pub image: PathBuf,
    directory: PathBuf,
    /// Module name to its file and those it depends on, the nearest first.
    files: HashMap<String, Vec<PathBuf>>,
    builtin: HashSet<String>,
}

impl Kernel {
    /// Looks through the files of a kernel package, unpacked under `root`.
    ///
    /// # Errors
    /// When there is no kernel or no module tree, or when depmod fails.
    pub fn open(root: &Path) -> Result<Self> {
        // Packages of systems with merged directories have their modules
        // under /usr, where depmod would not look.
        if !root.join("lib").exists() {
            symlink("usr/lib", root.join("lib"))?;
        }
        let modules = root.join("lib/modules");
        let release = fs::read_dir(&modules)
            .with_context(|| format!("no modules in {}", root.display()))?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .next()
            .context("the module directory is empty")?;
        let directory = modules.join(&release);
        let image = [
            root.join(format!("boot/vmlinuz-{release}")),
            directory.join("vmlinuz"),
        ]
        .into_iter()
        .find(|path| path.is_file())
        .context("the package has no vmlinuz")?;

        // Debian's packages have no modules.dep: depmod makes it when they are installed.
        crate::output(tools::command("depmod").arg("-b").arg(root).arg(&release))?;
        let dependencies = fs::read_to_string(directory.join("modules.dep"))?;
        let files = dependencies.lines().filter_map(|line| {
            let (file, needed) = line.split_once(':')?;
            let paths = std::iter::once(file).chain(needed.split_whitespace());
            Some((module_name(file), paths.map(PathBuf::from).collect()))
        });
        let builtin = fs::read_to_string(directory.join("modules.builtin")).unwrap_or_default();
        Ok(Self {
            release,
            image,
            files: files.collect(),
            builtin: builtin.lines().map(module_name).collect(),
            directory,
        })
    }

    /// Those of the named modules that the kernel lacks.
    pub fn lacks<'a>(&self, names: &[&'a str]) -> Vec<&'a str> {
        let has = |name: &str| self.files.contains_key(name) || self.builtin.contains(name);
        names.iter().copied().filter(|name| !has(name)).collect()
    }

    /// The names and contents of the modules to load, each after those it needs.
    ///
    /// Modules that are built in, or missing, are skipped.
    ///
    /// # Errors
    /// When a file cannot be read or unpacked.
    pub fn load_order(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut seen = HashSet::new();
        let mut order = Vec::new();
        for files in names.iter().filter_map(|name| self.files.get(*name)) {
            for file in files.iter().rev() {
                if seen.insert(file) {
                    let name = module_name(&file.to_string_lossy());
                    order.push((name, read_module(&self.directory.join(file))?));
                }
            }
        }
        Ok(order)
    }
}

/// The kernel's name of a module: `kernel/net/tcp-x.ko.xz` is `tcp_x`.
fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    let stem = file.split_once(".ko").map_or(file, |(stem, _)| stem);
    stem.replace('-', "_")
}

fn read_module(path: &Path) -> Result<Vec<u8>> {
    let unpack = match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return Ok(fs::read(path)?),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", path.display()),
    };
    crate::output(tools::command(unpack).arg("-dc").arg(path))
}
