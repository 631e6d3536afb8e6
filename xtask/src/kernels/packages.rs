//! Finds Debian kernel packages through the package index and unpacks them.
//!
//! Nothing is pinned: the archive comes from the machine's own apt sources,
//! the version from the index. All of apt's state is private to the cache
//! directory, so no privileges are needed and the machine is left as it was.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::arch::Arch;
use super::index::{Index, Stanza};
use super::tools;

/// A package index younger than this is not fetched again.
pub const INDEX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Where Debian's keys are, if the machine keeps them apart from apt's own.
const KEYRINGS: &[&str] = &[
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// A kernel series.
pub struct Series {
    pub name: &'static str,
    /// What its versions begin with.
    pub version: &'static str,
    /// The builds that may be used, the preferred one first.
    pub flavours: &'static [Flavour],
    /// The suites that carry it, the preferred one first.
    pub suites: &'static [&'static str],
}

impl Series {
    /// Whether it is a kernel with PREEMPT_RT.
    pub fn is_real_time(&self) -> bool {
        self.flavours.contains(&Flavour::Rt)
    }
}

/// The builds of each kernel: small for virtual machines, complete, or real-time (PREEMPT_RT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Cloud,
    Generic,
    Rt,
}

/// A kernel package that has been unpacked.
pub struct Package {
    /// The Debian version.
    pub version: String,
    /// The root of the unpacked files.
    pub root: PathBuf,
}

/// The archives that the machine's apt sources lead to.
pub struct Archives {
    main: String,
    security: Option<String>,
    /// Whose packages are looked for.
    pub arch: Arch,
    /// The directory that everything is kept in.
    pub cache: PathBuf,
}

impl Archives {
    /// Asks apt which Debian archive the machine uses.
    ///
    /// `TCPINSPECT_DEBIAN_MIRROR` names one for machines that run another
    /// distribution. `None` stands for a machine whose sources name no Debian archive.
    ///
    /// # Errors
    /// When apt fails.
    pub fn find(cache: &Path, arch: Arch) -> Result<Option<Self>> {
        let cache = cache.to_owned();
        if let Ok(main) = env::var("TCPINSPECT_DEBIAN_MIRROR") {
            return Ok(Some(Self {
                main,
                security: None,
                arch,
                cache,
            }));
        }
        let mut targets = index_targets(None)?;
        if !targets.contains("Debian|") {
            // The machine's index may have been removed to save space. Its
            // sources can be asked about once they are fetched privately.
            let lists = cache.join("apt/own-lists");
            fs::create_dir_all(lists.join("partial"))?;
            let update = crate::output(
                tools::command("apt-get")
                    .args(["update", "-qq", "-o"])
                    .arg(format!("Dir::State::lists={}", lists.display())),
            );
            update.context("failed to fetch the index of the machine's own apt sources")?;
            targets = index_targets(Some(&lists))?;
        }
        let uri = |wanted: &str| {
            targets.lines().find_map(|line| {
                let fields: Vec<&str> = line.split('|').collect();
                match fields[..] {
                    ["Debian", label, "main", uri] if label == wanted => Some(uri.to_owned()),
                    _ => None,
                }
            })
        };
        let security = uri("Debian-Security");
        Ok(uri("Debian").map(|main| Self {
            main,
            security,
            arch,
            cache,
        }))
    }

    /// Downloads and unpacks the newest kernel of a series, if it has changed.
    ///
    /// # Errors
    /// When no suite of the archive offers one; the message says why for each.
    pub fn kernel(&self, series: &Series, flavour: Flavour) -> Result<Package> {
        let mut reasons = Vec::new();
        for suite in series.suites {
            let newest = |lifetime| {
                let index = Index::open(self, suite, lifetime)?;
                let mut missing = None;
                for image in index.images(series.version, flavour, self.arch)? {
                    match self.unpack(&index, series.name, flavour, &image) {
                        // An index may name what the archive does not have for every processor.
                        Err(error) if format!("{error:#}").contains("404") => missing = Some(error),
                        unpacked => return unpacked,
                    }
                }
                Err(missing.context("the index has no such package")?)
            };
            // The archive may have dropped what an index of this morning names.
            match newest(INDEX_LIFETIME).or_else(|_| newest(Duration::ZERO)) {
                Ok(package) => return Ok(package),
                Err(error) => reasons.push(format!("{suite}: {error:#}")),
            }
        }
        bail!(
            "no {flavour:?} kernel {} to be had: {}",
            series.name,
            reasons.join("; ")
        )
    }

    /// What a list of sources for the suite may be, the best first.
    pub fn sources(&self, suite: &str) -> Vec<String> {
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
        let signed = keyring
            .map(|path| format!("signed-by={path} "))
            .unwrap_or_default();
        // The signature of a suite that gets no more updates has run out.
        let main = |uri: &str| format!("deb [{signed}check-valid-until=no] {uri} {suite} main\n");
        let mut sources = Vec::new();
        // Stable suites get their newest kernels through the security archive;
        // backports and sid have no such thing.
        if let Some(uri) = &self.security {
            let security =
                format!("deb [{signed}check-valid-until=no] {uri} {suite}-security main\n");
            sources.push(main(&self.main) + &security);
        }
        sources.push(main(&self.main));
        // Mirrors that keep the suites no longer supported have them here.
        if let Some(parent) = self.main.trim_end_matches('/').strip_suffix("/debian") {
            sources.push(main(&format!("{parent}/debian-archive/debian")));
        }
        sources
    }

    fn unpack(
        &self,
        index: &Index,
        series: &str,
        flavour: Flavour,
        newest: &Stanza,
    ) -> Result<Package> {
        let flavour = format!("{flavour:?}").to_lowercase();
        let home = self.cache.join(series).join(flavour);
        let root = home.join("root");
        let package = Package {
            version: newest.version.clone(),
            root: root.clone(),
        };
        let stamp = home.join("unpacked");
        let wanted = format!("{} {}\n", newest.name, newest.version);
        if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
            return Ok(package);
        }
        // An older kernel, or one that was unpacked only in part, gives way.
        if home.exists() {
            fs::remove_dir_all(&home)?;
        }
        let downloads = home.join("downloads");
        fs::create_dir_all(&downloads)?;
        fs::create_dir_all(&root)?;
        let names = index.with_parts(newest)?;
        crate::output(
            index
                .apt("apt-get")
                .args(["-q", "download"])
                .args(names)
                .current_dir(&downloads),
        )?;
        for file in fs::read_dir(&downloads)? {
            crate::output(
                tools::command("dpkg-deb")
                    .arg("-x")
                    .arg(file?.path())
                    .arg(&root),
            )?;
        }
        fs::remove_dir_all(&downloads)?;
        fs::write(stamp, wanted)?;
        Ok(package)
    }
}

/// One line per index that apt would fetch: origin, label, component, address.
fn index_targets(lists: Option<&Path>) -> Result<String> {
    let mut command = tools::command("apt-get");
    if let Some(lists) = lists {
        command
            .arg("-o")
            .arg(format!("Dir::State::lists={}", lists.display()));
    }
    crate::text(command.args([
        "indextargets",
        "--format",
        "$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(REPO_URI)",
        "Created-By: Packages",
    ]))
}
