//! Reads the package index of one suite of an archive, through apt.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::arch::Arch;
use super::archives::Archives;
use super::series::Flavour;
use super::tools;

/// The fields of a package that the choice depends on.
#[derive(Clone, Debug)]
pub struct Stanza {
    pub name: String,
    pub version: String,
    depends: String,
}

/// The package index of one suite, in directories of its own.
pub struct Index {
    configuration: PathBuf,
}

impl Index {
    /// The index of a suite, downloaded again if it is older than `lifetime`.
    ///
    /// # Errors
    /// When it can't be downloaded, and never has been.
    pub fn open(archives: &Archives, suite: &str, lifetime: Duration) -> Result<Self> {
        let home = archives.cache.join("apt").join(suite);
        fs::create_dir_all(home.join("lists/partial"))?;
        fs::create_dir_all(home.join("cache/archives/partial"))?;
        fs::write(home.join("status"), "")?;
        let index = Self {
            configuration: home.join("apt.conf"),
        };
        fs::write(&index.configuration, configuration(&home, archives.arch)?)?;

        let stamp = home.join("fetched");
        let fresh = fs::metadata(&stamp)
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|at| at.elapsed().is_ok_and(|age| age < lifetime));
        if fresh {
            return Ok(index);
        }
        let list = home.join("sources.list");
        let old = fs::read(&list);
        let mut reasons = Vec::new();
        for sources in archives.sources(suite) {
            fs::write(&list, sources)?;
            match crate::output(index.apt("apt-get").args(["update", "-qq"])) {
                Ok(_) => {
                    fs::write(&stamp, "")?;
                    return Ok(index);
                }
                Err(error) => reasons.push(error.to_string()),
            }
        }
        // Without a network yesterday's index is better than none.
        match old {
            Ok(old) if stamp.exists() => fs::write(&list, old)?,
            _ => bail!("{}", reasons.join("; ")),
        }
        Ok(index)
    }

    /// One of apt's programs, set up to use this index and no other.
    pub fn apt(&self, program: &str) -> Command {
        let mut command = tools::command(program);
        command
            .env("APT_CONFIG", &self.configuration)
            .env("LC_ALL", "C");
        command
    }

    fn show(&self, names: &[String]) -> Result<Vec<Stanza>> {
        let text = crate::text(
            self.apt("apt-cache")
                .args(["show", "--no-all-versions"])
                .args(names),
        )?;
        let stanzas = text.split("\n\n").filter_map(|stanza| {
            let field = |key: &str| {
                stanza
                    .lines()
                    .find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
            };
            Some(Stanza {
                name: field("Package")?.to_owned(),
                version: field("Version")?.to_owned(),
                depends: field("Depends").unwrap_or_default().to_owned(),
            })
        });
        Ok(stanzas.collect())
    }

    /// The images of a kernel series, the newest first.
    ///
    /// # Errors
    /// When the suite has none.
    pub fn images(&self, series: &str, flavour: Flavour, arch: Arch) -> Result<Vec<Stanza>> {
        let names = crate::text(self.apt("apt-cache").args(["pkgnames", "linux-image-"]))?;
        let names: Vec<String> = names
            .lines()
            .filter(|name| is_image(name, series, flavour, arch))
            .map(str::to_owned)
            .collect();
        if names.is_empty() {
            bail!("the index has no such package");
        }
        let mut images = self.show(&names)?;
        images.sort_by(|one, other| compare_versions(&other.version, &one.version));
        Ok(images)
    }

    /// The image itself and the packages that its files are split into.
    ///
    /// # Errors
    /// When the index lacks one of them.
    pub fn with_parts(&self, image: &Stanza) -> Result<Vec<String>> {
        let mut names = vec![image.name.clone()];
        let mut pending = vec![image.clone()];
        while let Some(stanza) = pending.pop() {
            let parts: Vec<String> = stanza
                .depends
                .split([',', '|'])
                .filter_map(|dependency| dependency.split_whitespace().next())
                .filter(|name| {
                    name.starts_with("linux-binary-") || name.starts_with("linux-modules-")
                })
                .filter(|name| !names.iter().any(|have| have == name))
                .map(str::to_owned)
                .collect();
            if !parts.is_empty() {
                pending.extend(self.show(&parts)?);
                names.extend(parts);
            }
        }
        Ok(names)
    }
}

/// Whether a package is a signed image of the series, such as
/// `linux-image-6.1.0-40-cloud-amd64`.
fn is_image(name: &str, series: &str, flavour: Flavour, arch: Arch) -> bool {
    let release = name
        .strip_prefix("linux-image-")
        .and_then(|rest| rest.strip_prefix(series)?.strip_prefix('.'))
        .and_then(|rest| rest.strip_suffix(arch.debian())?.strip_suffix('-'));
    let Some(release) = release else { return false };
    let bare = match flavour {
        Flavour::Cloud => release.strip_suffix("-cloud"),
        Flavour::Generic => Some(release),
        Flavour::Rt => release.strip_suffix("-rt"),
    };
    // What is left is a release and nothing else: other builds have one more word.
    bare.is_some_and(|bare| !["-cloud", "-rt"].iter().any(|word| bare.ends_with(word)))
}

fn compare_versions(one: &str, other: &str) -> Ordering {
    let holds = |relation: &str| {
        tools::command("dpkg")
            .args(["--compare-versions", one, relation, other])
            .status()
            .is_ok_and(|status| status.success())
    };
    if holds("lt") {
        Ordering::Less
    } else if holds("gt") {
        Ordering::Greater
    } else {
        Ordering::Equal
    }
}

/// An apt configuration with the proxies and clock checks of this machine's
/// own configuration, and nothing else of it.
fn configuration(home: &Path, arch: Arch) -> Result<String> {
    let own = crate::text(tools::command("apt-config").arg("dump"))?;
    let network = own
        .lines()
        .filter(|line| line.starts_with("Acquire::") && !line.starts_with("Acquire::IndexTargets"));
    let mut text: String = network.flat_map(|line| [line, "\n"]).collect();
    let home = home.display();
    let arch = arch.debian();
    text.push_str(&format!(
        "APT::Architecture \"{arch}\";\n\
         APT::Architectures {{ \"{arch}\"; }};\n\
         APT::Sandbox::User \"root\";\n\
         APT::Update::Error-Mode \"any\";\n\
         Dir::Etc::Main \"/dev/null\";\n\
         Dir::Etc::Parts \"/dev/null\";\n\
         Dir::Etc::Preferences \"/dev/null\";\n\
         Dir::Etc::PreferencesParts \"/dev/null\";\n\
         Dir::Etc::SourceList \"{home}/sources.list\";\n\
         Dir::Etc::SourceParts \"/dev/null\";\n\
         Dir::State \"{home}\";\n\
         Dir::State::Lists \"{home}/lists\";\n\
         Dir::State::Status \"{home}/status\";\n\
         Dir::Cache \"{home}/cache\";\n"
    ));
    Ok(text)
}
