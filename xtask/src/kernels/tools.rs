//! Finds and runs the programs of the machine that the harness depends on.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use super::arch::Arch;

/// Programs the harness cannot do without, and the Debian package of each.
const REQUIRED: &[(&str, &str)] = &[
    ("apt-cache", "apt"),
    ("apt-config", "apt"),
    ("apt-get", "apt"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("dpkg", "dpkg"),
    ("dpkg-deb", "dpkg"),
    ("gcc", "gcc"),
    ("ip", "iproute2"),
    ("ldd", "libc-bin"),
    ("tc", "iproute2"),
    ("xz", "xz-utils"),
];

/// The path of a program, or `None` where the machine has no such program.
///
/// The administrator's directories are searched too: an ordinary user's PATH
/// leaves them out, although the programs there run without privileges.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A command that runs a program found by [`find`].
pub fn command(name: &str) -> Command {
    Command::new(find(name).unwrap_or_else(|| PathBuf::from(name)))
}

/// Says what is missing on this machine, or `None` where guests can be run.
pub fn missing(arch: Arch) -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some("guests are built for x86_64 Linux only".to_owned());
    }
    let for_arch = match arch {
        Arch::Amd64 => &[("qemu-system-x86_64", "qemu-system-x86")][..],
        Arch::Arm64 => &[
            ("qemu-system-aarch64", "qemu-system-arm"),
            ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
            ("readelf", "binutils"),
        ],
    };
    let absent: Vec<String> = REQUIRED
        .iter()
        .chain(for_arch)
        .filter(|(program, _)| find(program).is_none())
        .map(|(program, package)| format!("{program} (package {package})"))
        .collect();
    if !absent.is_empty() {
        return Some(format!("not installed: {}", absent.join(", ")));
    }
    // A shared busybox could not run as the guest's first program.
    let linked = command("ldd").arg(find("busybox")?).output();
    if linked.is_ok_and(|output| output.status.success()) {
        return Some("busybox is not a static one (package busybox-static)".to_owned());
    }
    None
}
