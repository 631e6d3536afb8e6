//! The captures that the tests replay: those in Debian's source packages of tcpdump and tcpflow.
//!
//! They are fetched through the apt sources that the machine already has, with a private
//! configuration, so that nothing outside the target directory changes and no mirror is named
//! here. Only the upstream (`.orig`) archives are taken; the captures are all in there.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The source packages whose captures make the corpus.
pub const PACKAGES: [&str; 2] = ["tcpdump", "tcpflow"];

/// The first four bytes of the files that are taken for captures: pcap with microseconds and with
/// nanoseconds in both byte orders, and pcapng.
const MAGICS: [[u8; 4]; 5] = [
    [0xa1, 0xb2, 0xc3, 0xd4],
    [0xd4, 0xc3, 0xb2, 0xa1],
    [0xa1, 0xb2, 0x3c, 0x4d],
    [0x4d, 0x3c, 0xb2, 0xa1],
    [0x0a, 0x0d, 0x0d, 0x0a],
];

/// All capture files of all packages, sorted by path.
///
/// The first call fetches and unpacks them, which takes the network and about a minute; later
/// calls find them under the target directory.
///
/// # Errors
/// The captures can't be fetched; the text says why: no apt, no network, no such package.
pub fn captures() -> Result<Vec<PathBuf>, String> {
    let mut all = Vec::new();
    for package in PACKAGES {
        all.extend(captures_of(package)?);
    }
    all.sort();
    Ok(all)
}

/// The capture files of one package, sorted by path.
///
/// # Errors
/// As [`captures`].
pub fn captures_of(package: &str) -> Result<Vec<PathBuf>, String> {
    if crate::common::is_guest() {
        return Err("a guest has no network to fetch the captures from".to_owned());
    }
    let cache = cache()?;
    fs::create_dir_all(&cache).map_err(|err| format!("failed to make {cache:?}: {err}"))?;
    // Tests run side by side, in threads and in processes: one of them fetches, the others wait.
    // The lock ends with the file handle, even if the holder is killed.
    let lock = File::create(cache.join("lock")).map_err(|err| format!("no lock file: {err}"))?;
    lock.lock().map_err(|err| format!("no lock: {err}"))?;

    let unpacked = cache.join(package);
    if !unpacked.is_dir() {
        fetch(package, &cache)?;
    }
    let mut found = Vec::new();
    collect(&unpacked, &mut found).map_err(|err| format!("failed to list {unpacked:?}: {err}"))?;
    found.sort();
    Ok(found)
}

/// `captures` in the target directory of the crate under test.
fn cache() -> Result<PathBuf, String> {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
        .parent()
        .map(|target| target.join("captures"))
        .ok_or_else(|| "cargo's temporary directory has no parent".to_owned())
}

/// Adds the captures below `directory` to `found`. Symbolic links are not followed.
fn collect(directory: &Path, found: &mut Vec<PathBuf>) -> std::io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            collect(&entry.path(), found)?;
        } else if kind.is_file() {
            let mut start = Vec::new();
            File::open(entry.path())?.take(4).read_to_end(&mut start)?;
            if MAGICS.iter().any(|magic| start == magic) {
                found.push(entry.path());
            }
        }
    }
    Ok(())
}

/// Downloads and unpacks the upstream archive of `package` to `cache/package`.
fn fetch(package: &str, cache: &Path) -> Result<(), String> {
    let private = cache.join("apt");
    let parts = private.join("sources.list.d");
    let lists = private.join("lists");
    let archives = private.join(package);
    // An archive of another version, left by a run that was interrupted, would be unpacked too.
    remove(&archives)?;
    for directory in [&parts, &lists, &archives] {
        fs::create_dir_all(directory)
            .map_err(|err| format!("failed to make {directory:?}: {err}"))?;
    }
    let list = private.join("sources.list");
    copy_sources(&list, &parts)?;

    let apt = |words: &[&str]| {
        let mut command = Command::new("apt-get");
        command.current_dir(&archives);
        for (name, value) in [
            ("Dir::Etc::sourcelist", list.as_path()),
            ("Dir::Etc::sourceparts", parts.as_path()),
            ("Dir::State::lists", lists.as_path()),
            ("Dir::Cache", private.as_path()),
        ] {
            command.arg("-o").arg(format!("{name}={}", value.display()));
        }
        // Without this, an update that reached no mirror at all is a success with warnings.
        command.args(["-o", "APT::Update::Error-Mode=any"]);
        command.arg("-q").args(words);
        run(command)
    };
    // If one repository has no source packages, the update fails as a whole, although the indexes of
    // the others were fetched. So the failure matters only if the package can't be fetched either.
    let update = apt(&["update"]);
    apt(&["source", "--download-only", "--tar-only", package]).map_err(|err| match update {
        Ok(()) => err,
        Err(earlier) => format!("{err} (before that: {earlier})"),
    })?;

    // Unpacked under another name first: a directory with the package's name is a whole one.
    let half = cache.join(format!("{package}.part"));
    remove(&half)?;
    fs::create_dir(&half).map_err(|err| format!("failed to make {half:?}: {err}"))?;
    for archive in upstream_archives(&archives)? {
        let mut tar = Command::new("tar");
        tar.arg("--no-same-owner").arg("-C").arg(&half);
        tar.arg("-xf").arg(archive);
        run(tar)?;
    }
    fs::rename(&half, cache.join(package)).map_err(|err| format!("failed to rename: {err}"))
}

fn remove(directory: &Path) -> Result<(), String> {
    match fs::remove_dir_all(directory) {
        Err(err) if err.kind() != ErrorKind::NotFound => {
            Err(format!("failed to remove {directory:?}: {err}"))
        }
        _ => Ok(()),
    }
}

fn upstream_archives(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let found: Vec<PathBuf> = fs::read_dir(directory)
        .map_err(|err| format!("failed to list {directory:?}: {err}"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.contains(".orig") && name.contains(".tar.") && !name.ends_with(".asc")
        })
        .collect();
    if found.is_empty() {
        return Err(format!("apt-get left no upstream archive in {directory:?}"));
    }
    Ok(found)
}

/// Writes the machine's apt sources, as sources of source packages, to `list` and `parts`.
fn copy_sources(list: &Path, parts: &Path) -> Result<(), String> {
    let main = apt_path("Dir::Etc::sourcelist/f")?;
    // A machine may have no sources.list at all; apt is content with an empty one.
    let text = fs::read_to_string(main).unwrap_or_default();
    write(list, &source_lines(&text))?;

    let Ok(entries) = fs::read_dir(apt_path("Dir::Etc::sourceparts/d")?) else {
        return Ok(());
    };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let (Some(name), Ok(text)) = (path.file_name(), fs::read_to_string(&path)) else {
            continue;
        };
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("list") => write(&parts.join(name), &source_lines(&text))?,
            Some("sources") => write(&parts.join(name), &source_stanzas(&text))?,
            // apt ignores every other name as well.
            _ => {}
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<(), String> {
    fs::write(path, text).map_err(|err| format!("failed to write {path:?}: {err}"))
}

/// Where this machine's apt keeps the named thing.
fn apt_path(name: &str) -> Result<PathBuf, String> {
    let output = Command::new("apt-config")
        .args(["shell", "FOUND", name])
        .output()
        .map_err(|err| format!("failed to run apt-config: {err}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    // The answer is a line for a shell: FOUND='/the/path'
    let value = text.trim().strip_prefix("FOUND=").unwrap_or_default();
    Ok(PathBuf::from(value.trim_matches('\'')))
}

/// Turns each `deb` line of a sources.list(5) file into a `deb-src` line, without duplicates.
pub fn source_lines(text: &str) -> String {
    let mut lines: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if !matches!(words.next(), Some("deb" | "deb-src")) {
            continue;
        }
        let line = format!("deb-src {}\n", words.collect::<Vec<_>>().join(" "));
        if !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.concat()
}

/// Turns each stanza of a deb822 sources file into one for source packages, without duplicates. All
/// fields but the type stay, so that keys, options and `Enabled: no` hold as they do for the machine.
pub fn source_stanzas(text: &str) -> String {
    let mut stanzas: Vec<String> = Vec::new();
    let mut stanza = String::new();
    let mut in_types = false;
    for line in text.lines().chain([""]) {
        if line.starts_with('#') {
            continue;
        }
        if line.trim().is_empty() {
            if !stanza.is_empty() && !stanzas.contains(&stanza) {
                stanzas.push(stanza.clone());
            }
            stanza.clear();
            in_types = false;
            continue;
        }
        let continues = line.starts_with([' ', '\t']);
        if !continues {
            let field = line.split(':').next().unwrap_or_default();
            in_types = field.trim().eq_ignore_ascii_case("types");
        }
        match (in_types, continues) {
            (true, false) => stanza.push_str("Types: deb-src\n"),
            (true, true) => {}
            (false, _) => {
                stanza.push_str(line);
                stanza.push('\n');
            }
        }
    }
    stanzas.join("\n")
}

/// Runs a command to its end, quietly unless it fails.
fn run(mut command: Command) -> Result<(), String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .env("LC_ALL", "C")
        .output()
        .map_err(|err| format!("failed to run {name}: {err}"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let reason = stderr.trim().replace('\n', "; ");
    Err(format!("{name} failed ({}): {reason}", output.status))
}
