//! Which container a process is in, as its cgroup tells.
//!
//! The kernel names a cgroup by a number, which is the inode number of its directory. Programs
//! that run containers write the container's id into the name of that directory. Nothing here
//! needs a privilege: `/proc/PID/cgroup` and the directories can be read by anyone.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Cgroups that are remembered at once.
const REMEMBERED: usize = 4096;

/// A cgroup whose process is gone is looked for in the whole tree, at most this often.
const WALK_PAUSE: Duration = Duration::from_secs(1);

/// Finds containers by cgroup, and remembers them.
#[derive(Debug)]
pub struct Containers {
    /// Where the unified hierarchy is mounted, if it can be seen.
    root: Option<PathBuf>,
    known: HashMap<u64, Option<String>>,
    walked: Option<Instant>,
}

impl Containers {
    /// Nothing is known yet.
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        Self {
            root: unified_root(&mounts).map(PathBuf::from),
            known: HashMap::new(),
            walked: None,
        }
    }

    /// The container that a cgroup belongs to, if any. `pid` was in it a moment ago.
    pub fn find(&mut self, cgroup_id: u64, pid: u32) -> Option<&str> {
        if !self.known.contains_key(&cgroup_id) {
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
            match self.path(cgroup_id, pid) {
                Some(path) => {
                    self.known.insert(cgroup_id, container_of(&path));
                }
                None => self.walk(cgroup_id),
            }
        }
        self.known.get(&cgroup_id)?.as_deref()
    }

    /// The cgroup's path, from a process that is still in it.
    fn path(&self, cgroup_id: u64, pid: u32) -> Option<String> {
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = membership
            .lines()
            .find_map(|line| line.strip_prefix("0::"))?;
        // The process may have moved, or its number may be another's by now.
        if let Some(root) = &self.root {
            let directory = root.join(path.trim_start_matches('/'));
            if fs::metadata(directory).ok()?.ino() != cgroup_id {
                return None;
            }
        }
        Some(path.to_owned())
    }

    /// Looks at all cgroups. One that isn't among them is gone, and will not come back.
    fn walk(&mut self, cgroup_id: u64) {
        let recently = self.walked.is_some_and(|at| at.elapsed() < WALK_PAUSE);
        let Some(root) = self.root.clone().filter(|_| !recently) else {
            return;
        };
        self.walked = Some(Instant::now());
        self.visit(&root);
        self.known.entry(cgroup_id).or_insert(None);
    }

    fn visit(&mut self, directory: &Path) {
        // A cgroup may go while it is looked at.
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || self.known.len() >= REMEMBERED
            {
                continue;
            }
            let path = entry.path();
            let container = container_of(&path.to_string_lossy());
            self.known.insert(entry.ino(), container);
            self.visit(&path);
        }
    }
}

impl Default for Containers {
    fn default() -> Self {
        Self::new()
    }
}

/// The mount point of the unified hierarchy, from the text of a mountinfo file (proc(5)).
fn unified_root(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    })
}

/// The container whose cgroup has this path: an id of 64 hexadecimal digits as Docker,
/// containerd, CRI-O and Podman write it, or the name of a machine of systemd. The innermost
/// counts, which is the container's own if containers are in one another.
pub fn container_of(path: &str) -> Option<String> {
    path.rsplit('/').find_map(|name| {
        let scope = name.strip_suffix(".scope");
        if let Some(machine) = scope.and_then(|scope| scope.strip_prefix("machine-")) {
            return Some(unescape(machine));
        }
        if let Some(machine) = name
            .strip_prefix("systemd-nspawn@")
            .and_then(|rest| rest.strip_suffix(".service"))
        {
            return Some(unescape(machine));
        }
        let (runtime, id) = match scope.unwrap_or(name).rsplit_once('-') {
            Some((runtime, id)) => (runtime, id),
            None => ("", scope.unwrap_or(name)),
        };
        let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        // The monitor of a container is outside of it.
        (is_id && !runtime.ends_with("conmon")).then(|| id.to_owned())
    })
}

/// Undoes how systemd writes a name into that of a unit: `-` for `/`, `\x2d` for `-`.
fn unescape(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(1..3).and_then(|hex| str::from_utf8(hex).ok());
        match (first, hex.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'\\', Some(byte)) if tail[0] == b'x' => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "3f1dcdb5b3ef0c2b9f4bd0d5a3c4e6f7a8b9c0d1e2f3a4b5c6d7e8f90a1b2c3d";

    fn container(path: &str) -> Option<String> {
        container_of(&path.replace("ID", ID))
    }

    #[test]
    fn ids_are_found_in_the_paths_of_each_runtime() {
        for path in [
            // Docker, by systemd and by itself.
            "/system.slice/docker-ID.scope",
            "/docker/ID",
            // containerd, for Kubernetes and for nerdctl.
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f5a_1.slice/cri-containerd-ID.scope",
            "/kubepods/besteffort/pod0f5a-1/ID",
            "/system.slice/nerdctl-ID.scope",
            "/default/ID",
            // CRI-O.
            "/kubepods.slice/kubepods-pod0f5a_1.slice/crio-ID.scope",
            "/kubepods/burstable/pod0f5a-1/crio-ID",
            // Podman, of root and of a user, with the cgroup it makes below.
            "/machine.slice/libpod-ID.scope",
            "/machine.slice/libpod-ID.scope/container",
            "/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-ID.scope/container",
            "/libpod_parent/libpod-ID",
            // What a container's own init makes.
            "/system.slice/docker-ID.scope/init.scope",
        ] {
            assert_eq!(container(path).as_deref(), Some(ID), "{path}");
        }
    }

    #[test]
    fn machines_of_systemd_are_known_by_name() {
        for (path, name) in [
            ("/machine.slice/machine-web.scope", "web"),
            ("/machine.slice/machine-web\\x2d1.scope/payload", "web-1"),
            (
                "/machine.slice/systemd-nspawn@build\\x2dbox.service/payload",
                "build-box",
            ),
            (
                "/machine.slice/systemd-nspawn@db.service/payload/system.slice/cron.service",
                "db",
            ),
        ] {
            assert_eq!(container(path).as_deref(), Some(name), "{path}");
        }
    }

    #[test]
    fn other_paths_have_no_container() {
        for path in [
            "/",
            "",
            "/user.slice/user-1000.slice/session-2.scope",
            "/system.slice/ssh.service",
            "/system.slice/docker.service",
            "/system.slice/crio-conmon-ID.scope",
            "/machine.slice/libpod-conmon-ID.scope",
            "/kubepods.slice/kubepods-pod0f5a_1.slice",
            "/docker/IDff",
            "/docker/not-hex-but-of-sixty-four-characters-000000000000000000000000000",
        ] {
            assert_eq!(container(path), None, "{path}");
        }
    }

    #[test]
    fn the_innermost_container_counts() {
        let inner = ID.replace('3', "4");
        let path = format!("/docker/{ID}/docker/{inner}");
        assert_eq!(container_of(&path), Some(inner));
    }

    #[test]
    fn names_are_unescaped_as_far_as_they_are_escaped() {
        assert_eq!(unescape("a\\x2db"), "a-b");
        assert_eq!(unescape("a\\x2"), "a\\x2");
        assert_eq!(unescape("a\\xzz\\"), "a\\xzz\\");
    }

    #[test]
    fn the_unified_hierarchy_is_found_among_the_mounts() {
        let mounts = "\
            25 30 0:23 / /sys/fs/cgroup/cpu rw,relatime shared:9 - cgroup cgroup rw,cpu\n\
            26 30 0:24 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw\n";
        assert_eq!(unified_root(mounts), Some("/sys/fs/cgroup/unified"));
        assert_eq!(unified_root("1 2 0:3 / / rw - ext4 /dev/sda rw\n"), None);
    }
}
