//! Finds out from its cgroup which container a process is in.
//!
//! The kernel identifies a cgroup by a number, the inode number of its directory. Container runtimes
//! put the id of the container into the name of that directory. Nothing here
//! needs a privilege: `/proc/PID/cgroup` and the directories can be read by anyone.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How many cgroups are remembered.
const REMEMBERED: usize = 16_384;

/// A cgroup whose process is gone is searched for in the whole tree. Searches begin at least this far
/// apart.
const WALK_PAUSE: Duration = Duration::from_secs(1);

/// A search reads this many directories, which takes a few milliseconds, and then pauses for at least
/// [`WALK_REST`], in which events are read. It goes on with the next unknown cgroup.
const WALK_STEP: usize = 256;
const WALK_REST: Duration = Duration::from_millis(20);

/// Finds containers by cgroup, and remembers them.
#[derive(Debug)]
pub struct Containers {
    /// Where the unified hierarchy is mounted, if it can be seen.
    root: Option<PathBuf>,
    known: HashMap<u64, Workload>,
    /// Names of pods by their ids; `None` if there is none.
    pods: HashMap<String, Option<String>>,
    search: Search,
}

/// A search through the tree of cgroups.
#[derive(Debug, Default)]
struct Search {
    /// The cgroup that it was begun for.
    wanted: u64,
    began: Option<Instant>,
    paused: Option<Instant>,
    /// Directories that are still to be read.
    unread: Vec<PathBuf>,
}

/// The container and the pod that a cgroup belongs to.
#[derive(Clone, Debug, Default)]
struct Workload {
    container: Option<String>,
    /// The UID of the Kubernetes pod.
    pod: Option<String>,
}

impl Workload {
    fn of(path: &str) -> Self {
        Self {
            container: container_of(path),
            pod: pod_of(path),
        }
    }
}

/// A Kubernetes pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pod<'a> {
    /// Its UID.
    pub uid: &'a str,
    /// Its name, if this machine has logs of it.
    pub name: Option<&'a str>,
}

/// Where the kubelet keeps the logs of pods, in directories `NAMESPACE_NAME_UID`.
pub(super) const POD_LOGS: &str = "/var/log/pods";

/// Where the tree of cgroups is mounted.
pub(super) fn cgroup_root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    unified_root(&mounts).map(PathBuf::from)
}

/// Whether the tree of cgroups can be seen. Without it, a container is found only for a process
/// that still runs.
pub fn sees_cgroups() -> bool {
    cgroup_root().is_some()
}

impl Containers {
    /// No container is known yet.
    pub fn new() -> Self {
        Self {
            root: cgroup_root(),
            known: HashMap::new(),
            pods: HashMap::new(),
            search: Search::default(),
        }
    }

    /// The container that a cgroup belongs to, if any. `pid` was in it a moment ago.
    pub fn find(&mut self, cgroup_id: u64, pid: u32) -> Option<&str> {
        self.workload(cgroup_id, pid)?.container.as_deref()
    }

    /// The pod that a cgroup belongs to, if any. `pid` was in it a moment ago.
    pub fn find_pod(&mut self, cgroup_id: u64, pid: u32) -> Option<Pod<'_>> {
        let uid = self.workload(cgroup_id, pid)?.pod.clone()?;
        if self.pods.len() >= REMEMBERED {
            self.pods.clear();
        }
        self.pods
            .entry(uid.clone())
            .or_insert_with(|| pod_name(&uid, Path::new(POD_LOGS)));
        let (uid, name) = self.pods.get_key_value(&uid)?;
        Some(Pod {
            uid,
            name: name.as_deref(),
        })
    }

    fn workload(&mut self, cgroup_id: u64, pid: u32) -> Option<&Workload> {
        if !self.known.contains_key(&cgroup_id) {
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
            match self.path(cgroup_id, pid) {
                Some(path) => {
                    self.known.insert(cgroup_id, Workload::of(&path));
                }
                None => self.walk(cgroup_id),
            }
        }
        self.known.get(&cgroup_id)
    }

    /// The cgroup's path, from a process that is still in it.
    fn path(&self, cgroup_id: u64, pid: u32) -> Option<String> {
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = membership
            .lines()
            .find_map(|line| line.strip_prefix("0::"))?;
        // The process may have moved, or its id may belong to another process by now.
        if let Some(root) = &self.root {
            let directory = root.join(path.trim_start_matches('/'));
            if fs::metadata(directory).ok()?.ino() != cgroup_id {
                return None;
            }
        }
        Some(path.to_owned())
    }

    /// Reads the tree of cgroups until this one is found. One that is not in the whole tree is gone,
    /// and will not come back.
    fn walk(&mut self, cgroup_id: u64) {
        let is_recent = |at: Option<Instant>, pause| at.is_some_and(|at| at.elapsed() < pause);
        let search = &mut self.search;
        if search.unread.is_empty() {
            let Some(root) = &self.root else {
                return;
            };
            if is_recent(search.began, WALK_PAUSE) {
                return;
            }
            search.wanted = cgroup_id;
            search.began = Some(Instant::now());
            search.unread.push(root.clone());
        } else if is_recent(search.paused, WALK_REST) {
            return;
        }
        let mut read = 0;
        while let Some(directory) = self.search.unread.pop() {
            read += 1;
            if self.visit(&directory, cgroup_id) || read == WALK_STEP {
                self.search.paused = Some(Instant::now());
                return;
            }
        }
        // Any other cgroup may be newer than what was read first.
        self.known.entry(self.search.wanted).or_default();
    }

    /// Reads a directory, remembers the containers in it, and returns whether this cgroup is there.
    fn visit(&mut self, directory: &Path, cgroup_id: u64) -> bool {
        // A cgroup may be removed while it is read.
        let Ok(entries) = fs::read_dir(directory) else {
            return false;
        };
        let mut is_found = false;
        for entry in entries.flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let path = entry.path();
            let workload = Workload::of(&path.to_string_lossy());
            let is_wanted = entry.ino() == cgroup_id;
            is_found |= is_wanted;
            if is_wanted || workload.container.is_some() && self.known.len() < REMEMBERED {
                self.known.insert(entry.ino(), workload);
            }
            self.search.unread.push(path);
        }
        is_found
    }
}

impl Default for Containers {
    fn default() -> Self {
        Self::new()
    }
}

/// The mount point of the unified hierarchy, from the contents of a mountinfo file (proc(5)).
fn unified_root(mounts: &str) -> Option<&str> {
    mounts.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ")
            .then(|| mount.split(' ').nth(4))?
    })
}

/// The container whose cgroup has this path: an id of 64 hexadecimal digits as Docker,
/// containerd, CRI-O and Podman write it, or the name of a systemd machine (systemd-nspawn). The
/// innermost counts: if containers are nested, the one that the process is in.
fn container_of(path: &str) -> Option<String> {
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
        // The monitor of a container runs outside of it.
        (is_id && !runtime.ends_with("conmon")).then(|| id.to_owned())
    })
}

/// The UID of the pod whose cgroup has this path, as the kubelet writes it with either driver.
fn pod_of(path: &str) -> Option<String> {
    let in_pods = path
        .split('/')
        .skip_while(|name| !name.contains("kubepods"));
    let mut ids = in_pods.filter_map(|name| {
        let name = name.strip_suffix(".slice").unwrap_or(name);
        let by_systemd = || name.rsplit_once("-pod").map(|(_, id)| id);
        // systemd takes a - in the name of a slice for a level of its tree.
        let id = name.strip_prefix("pod").or_else(by_systemd)?;
        (!id.is_empty()).then(|| id.replace('_', "-"))
    });
    ids.next()
}

/// The name of a pod, from the directory of its logs.
fn pod_name(uid: &str, logs: &Path) -> Option<String> {
    fs::read_dir(logs).ok()?.flatten().find_map(|entry| {
        let directory = entry.file_name().into_string().ok()?;
        let (name, id) = directory.rsplit_once('_')?;
        let (_, name) = name.rsplit_once('_')?;
        (id == uid).then(|| name.to_owned())
    })
}

/// Decodes a name as systemd escapes it in the name of a unit: `-` for `/`, `\x2d` for `-`. The crates
/// systemd 0.10 and libsystemd only escape names.
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
    fn pods_are_found_in_the_paths_of_both_drivers() {
        for path in [
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f5a_1.slice/cri-containerd-ID.scope",
            "/kubepods/besteffort/pod0f5a-1/ID",
            "/kubepods.slice/kubepods-pod0f5a_1.slice/crio-ID.scope",
            "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod0f5a_1.slice/cri-containerd-ID.scope",
        ] {
            assert_eq!(pod_of(path).as_deref(), Some("0f5a-1"), "{path}");
        }
        for path in [
            "/",
            "/docker/ID",
            "/kubepods.slice",
            "/user/pod1/x",
            "/kubepods/pod/x",
        ] {
            assert_eq!(pod_of(path), None, "{path}");
        }
    }

    #[test]
    fn the_name_of_a_pod_is_in_the_directory_of_its_logs() {
        let logs = tempfile::tempdir().unwrap();
        for name in ["shop_web-7d4f_0f5a-1", "shop_db-0_0f5a-2", "stray"] {
            fs::create_dir(logs.path().join(name)).unwrap();
        }
        let name = |uid| pod_name(uid, logs.path());
        assert_eq!(name("0f5a-1").as_deref(), Some("web-7d4f"));
        assert_eq!(name("0f5a-2").as_deref(), Some("db-0"));
        assert_eq!(name("0f5a-3"), None);
        assert_eq!(pod_name("0f5a-1", Path::new("/nonexistent")), None);
    }

    #[test]
    fn systemd_machines_are_known_by_name() {
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
    fn a_large_tree_is_searched_a_little_at_a_time_and_to_its_end() {
        let root = tempfile::tempdir().unwrap();
        for parent in 0..20 {
            for child in 0..50 {
                let path = root.path().join(format!("p{parent}/c{child}"));
                fs::create_dir_all(path).unwrap();
            }
        }
        let last = root.path().join(format!("p10/docker-{ID}.scope"));
        fs::create_dir_all(&last).unwrap();
        let id = fs::metadata(&last).unwrap().ino();

        // No process has this id, so each lookup searches the tree.
        let look_up = |containers: &mut Containers, id| {
            containers.search.paused = None;
            containers.find(id, u32::MAX).map(str::to_owned)
        };
        let new = || Containers {
            root: Some(root.path().to_owned()),
            known: HashMap::new(),
            pods: HashMap::new(),
            search: Search::default(),
        };
        let mut containers = new();
        let found = (0..10_000).find_map(|_| look_up(&mut containers, id));
        assert_eq!(found.as_deref(), Some(ID));

        let mut containers = new();
        let gone = id ^ 1 << 40;
        let mut lookups = 0;
        while !containers.known.contains_key(&gone) {
            look_up(&mut containers, gone);
            lookups += 1;
        }
        // The root, 20 directories, and 1,001 in these.
        assert_eq!(lookups, 1022_usize.div_ceil(WALK_STEP));
        // What was found on the way is remembered.
        assert!(containers.known[&id].container.is_some());
        assert!(containers.known[&gone].container.is_none());
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
