//! The running kernel: its version, and what it has.

use std::path::Path;

use nix::sys::utsname::uname;

/// Major and minor version of the running kernel.
pub fn version() -> Option<(u32, u32)> {
    uname()
        .ok()
        .and_then(|name| parse_version(name.release().to_str()?))
}

fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Whether the kernel supports multi-buffer XDP (xdp.frags). It finds out by trying:
/// before 5.18 the kernel refuses the flag, and does not have this helper.
pub fn knows_xdp_frags() -> bool {
    !matches!(
        libbpf_rs::ProgramType::Xdp.is_helper_supported(libbpf_sys::BPF_FUNC_xdp_load_bytes),
        Ok(false)
    )
}

/// Whether the kernel has kprobes; also true if sysfs does not show it.
pub fn has_kprobes() -> bool {
    let devices = Path::new("/sys/bus/event_source/devices");
    !devices.exists() || devices.join("kprobe").exists()
}

/// How many NUMA nodes there are; `None` if the kernel does not say.
pub fn numa_nodes() -> Option<usize> {
    let nodes = std::fs::read_dir("/sys/devices/system/node").ok()?;
    let is_node = |name: &str| {
        let number = name.strip_prefix("node");
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let names = nodes.flatten().map(|entry| entry.file_name());
    Some(
        names
            .filter(|name| name.to_str().is_some_and(is_node))
            .count(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_of_distributions_are_understood() {
        assert_eq!(parse_version("6.1.0-13-cloud-amd64"), Some((6, 1)));
        assert_eq!(parse_version("5.10"), Some((5, 10)));
        assert_eq!(parse_version("7.0-rc1"), Some((7, 0)));
        assert_eq!(parse_version("strange"), None);
    }
}
