//! Finds the Debian archives from which packages are downloaded.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use super::arch::Arch;
use super::tools;

/// A package index younger than this is not fetched again.
pub const INDEX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// Where Debian's keys are, if the machine keeps them apart from apt's own.
const KEYRINGS: &[&str] = &[
    "/usr/share/keyrings/debian-archive-keyring.pgp",
    "/usr/share/keyrings/debian-archive-keyring.gpg",
];

/// The archives that the machine's apt sources lead to.
pub struct Archives {
    main: String,
    security: Option<String>,
    /// The architecture of the packages.
    pub arch: Arch,
    /// The directory that everything is kept in.
    pub cache: PathBuf,
}

impl Archives {
    /// Asks apt which Debian archive the machine uses.
    ///
    /// `TCPINSPECT_DEBIAN_MIRROR` names one for machines that run another
    /// distribution. Returns `None` if the machine's sources name no Debian archive.
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
            // The machine's index may have been removed to save space. Then it
            // is fetched again, into a directory of its own.
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

    /// Possible lists of sources for the suite, the best first.
    pub fn sources(&self, suite: &str) -> Vec<String> {
        let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
        let signed = keyring
            .map(|path| format!("signed-by={path} "))
            .unwrap_or_default();
        // The signature of a suite that gets no more updates has expired.
        let main = |uri: &str| format!("deb [{signed}check-valid-until=no] {uri} {suite} main\n");
        let mut sources = Vec::new();
        // Stable suites get their newest kernels through the security archive;
        // backports and sid have no security archive.
        if let Some(uri) = &self.security {
            let security =
                format!("deb [{signed}check-valid-until=no] {uri} {suite}-security main\n");
            sources.push(main(&self.main) + &security);
        }
        sources.push(main(&self.main));
        // Mirrors keep suites that are no longer supported here, if at all.
        if let Some(parent) = self.main.trim_end_matches('/').strip_suffix("/debian") {
            sources.push(main(&format!("{parent}/debian-archive/debian")));
        }
        sources
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
