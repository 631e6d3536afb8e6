//! Writes a guest's initramfs: a cpio archive in the "newc" format.
//!
//! The archive is written here rather than by cpio(1) so that every file
//! belongs to root, even if the harness is run by another user. The format is described in the
//! kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::files::Files;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;

/// The programs in /bin. The shell is Debian's, because busybox's shell prefers
/// its built-in `ip` and other applets to the programs on PATH.
const SYSTEM: &[&str] = &["busybox", "sh"];

/// Programs of the machine that tests use in a guest where they are installed.
const TOOLS: &[&str] = &[
    "ip",
    "tc",
    "ss",
    "ethtool",
    "bpftool",
    "nft",
    "nstat",
    "setpriv",
    "unshare",
    "capsh",
    "tcpdump",
    "tcpconnect",
    "tcpconnlat",
    "tcplife",
    "tcptracer",
    "xdp-filter",
    "xdp-loader",
];

/// Files that these programs need: the BPF objects that libxdp loads.
const DATA: &[&str] = &[
    "usr/lib/x86_64-linux-gnu/bpf/xdp-dispatcher.o",
    "usr/lib/x86_64-linux-gnu/bpf/xdpfilt_alw_tcp.o",
];

/// Directories that the guest's first program expects.
const DIRECTORIES: &[&str] = &[
    "bin", "dev", "etc", "modules", "proc", "programs", "root", "run", "sys", "tmp", "var/tmp",
];

/// An archive under construction.
pub struct Image {
    bytes: Vec<u8>,
    entries: u32,
    directories: HashSet<String>,
}

impl Image {
    /// An image with busybox and the tools, to which the rest is added.
    ///
    /// # Errors
    /// When a file of the machine cannot be read.
    pub fn new(files: &Files) -> Result<Self> {
        let mut image = Self {
            bytes: Vec::new(),
            entries: 0,
            directories: HashSet::new(),
        };
        for directory in DIRECTORIES {
            image.directory(directory)?;
        }
        image.file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
        )?;
        image.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
        image.file(
            "etc/services",
            0o644,
            b"ssh 22/tcp\nhttp 80/tcp\nhttps 443/tcp\n",
        )?;
        image.file("etc/hosts", 0o644, b"127.0.0.1 localhost\n::1 localhost\n")?;

        let mut libraries = HashSet::new();
        for name in SYSTEM.iter().chain(TOOLS) {
            let Some(path) = files.program(name) else {
                continue;
            };
            let directory = if SYSTEM.contains(name) {
                "bin"
            } else {
                "usr/bin"
            };
            image.copy(&format!("{directory}/{name}"), &path)?;
            for (library, path) in files.libraries(&path)? {
                if libraries.insert(library.clone()) {
                    image.copy(&library, &path)?;
                }
            }
        }
        for name in DATA {
            if !matches!(files, Files::Machine) {
                break;
            }
            let path = Path::new("/").join(name);
            if path.is_file() {
                image.copy(name, &path)?;
            }
        }
        Ok(image)
    }

    /// Adds a file of the machine, executable.
    ///
    /// # Errors
    /// When it cannot be read, or added.
    pub fn copy(&mut self, name: &str, from: &Path) -> Result<()> {
        let content =
            fs::read(from).with_context(|| format!("failed to read {}", from.display()))?;
        self.file(name, 0o755, &content)
    }

    /// Adds a file, and the directories that lead to it.
    ///
    /// # Errors
    /// When it is longer than the format allows, which is 4 GiB.
    pub fn file(&mut self, name: &str, permissions: u32, content: &[u8]) -> Result<()> {
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(name, REGULAR | permissions, content)
    }

    /// Ends the archive and returns its bytes.
    ///
    /// # Errors
    /// None in practice: the last entry is an empty one.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, &[])?;
        Ok(self.bytes)
    }

    /// Adds a directory and those above it, once.
    fn directory(&mut self, name: &str) -> Result<()> {
        if !self.directories.insert(name.to_owned()) {
            return Ok(());
        }
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent)?;
        }
        self.entry(name, DIRECTORY | 0o755, &[])
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        // In order: inode, mode, owner, group, links, time, size, the device
        // it is on, the device it is, length of the name, checksum (unused).
        let size = u32::try_from(content.len()).with_context(|| format!("{name} is too long"))?;
        let name_size = u32::try_from(name.len() + 1)?;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            0,
            0,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08X}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Headers and contents begin at multiples of four bytes.
    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(4);
        self.bytes.resize(length, 0);
    }
}
