//! Finds Debian kernel packages through the package index and unpacks them.
//!
//! Nothing is pinned: the archive comes from the machine's own apt sources,
//! the version from the index. All of apt's state is private to the cache
//! directory, so no privileges are needed and the machine is left as it was.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::archives::{Archives, INDEX_LIFETIME};
use super::index::{Index, Stanza};
use super::series::{Flavour, Series};
use super::tools;

/// A kernel package that has been unpacked.
pub struct Package {
    /// The Debian version.
    pub version: String,
    /// The root of the unpacked files.
    pub root: PathBuf,
}

impl Archives {
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
                        // An index may list packages that the archive does not have for every processor.
                        Err(error) if format!("{error:#}").contains("404") => missing = Some(error),
                        unpacked => return unpacked,
                    }
                }
                Err(missing.context("the index has no such package")?)
            };
            // The archive may have removed a package that an index from this morning lists.
            match newest(INDEX_LIFETIME).or_else(|_| newest(Duration::ZERO)) {
                Ok(package) => return Ok(package),
                Err(error) => reasons.push(format!("{suite}: {error:#}")),
            }
        }
        bail!(
            "no {} kernel {} is available: {}",
            flavour.name(),
            series.name,
            reasons.join("; ")
        )
    }

    fn unpack(
        &self,
        index: &Index,
        series: &str,
        flavour: Flavour,
        newest: &Stanza,
    ) -> Result<Package> {
        let home = self.cache.join(series).join(flavour.name());
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
        // Replaces an older kernel, or one that was unpacked only in part.
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
