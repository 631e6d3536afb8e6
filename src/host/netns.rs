//! Network namespaces: entering one, and facts about that of this thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

use crate::failure::Failure;

/// The directory of the namespaces that `ip netns` knows by name.
const NAMED: &str = "/run/netns";

/// Moves this thread, and those that it starts later, into a network namespace. It is given by a
/// name that `ip netns` knows, a path, or the id of a process in it.
///
/// # Errors
/// There is no such namespace, or this process may not enter it.
pub fn enter(namespace: &str) -> Result<(), Failure> {
    let path = path(namespace);
    let file = File::open(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Failure::usage(format!(
            "unknown network namespace '{namespace}': there is no {}",
            path.display()
        ))
        .hint("`ip netns list` lists the names; a path or a process id works too"),
        _ => Failure::from(
            anyhow::Error::from(error).context(format!("failed to open {}", path.display())),
        ),
    })?;
    setns(file, CloneFlags::CLONE_NEWNET).map_err(|errno| match errno {
        Errno::EINVAL => Failure::usage(format!("{} is not a network namespace", path.display())),
        Errno::EPERM => Failure::from(
            anyhow::Error::from(errno).context(format!("failed to enter {}", path.display())),
        )
        .hint("--netns needs CAP_SYS_ADMIN"),
        _ => Failure::from(
            anyhow::Error::from(errno).context(format!("failed to enter {}", path.display())),
        ),
    })
}

fn path(namespace: &str) -> PathBuf {
    if namespace.bytes().all(|byte| byte.is_ascii_digit()) {
        return format!("/proc/{namespace}/ns/net").into();
    }
    if namespace.contains('/') {
        return namespace.into();
    }
    Path::new(NAMED).join(namespace)
}

/// The inode number of the namespace that this thread is in.
///
/// # Errors
/// /proc is not mounted.
pub fn own() -> Result<u64> {
    let namespace = std::fs::metadata("/proc/thread-self/ns/net")
        .context("failed to look at the network namespace")?;
    Ok(namespace.ino())
}

/// The ephemeral ports of that namespace, from the first to the last.
pub fn ephemeral_ports() -> Option<(u16, u16)> {
    let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
    let mut ports = text.split_whitespace().map(str::parse);
    Some((ports.next()?.ok()?, ports.next()?.ok()?))
}
