//! A cgroup for a test.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A cgroup of the unified hierarchy, in one for this process. It is removed when this is dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes one.
    ///
    /// # Errors
    /// There is no unified hierarchy, or the kernel refuses it.
    pub fn new(name: &str) -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let root = mounts
            .lines()
            .map(|line| line.split(' ').collect::<Vec<_>>())
            .find(|fields| fields[2] == "cgroup2")
            .ok_or("the unified cgroup hierarchy is not mounted")?[1];
        let outer = PathBuf::from(root).join(format!("tcpinspect-test-{}", std::process::id()));
        let path = outer.join(name);
        fs::create_dir_all(&path).map_err(|error| format!("can't make a cgroup: {error}"))?;
        Ok(Self(path))
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Its id in the kernel.
    pub fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The outer one is shared with other tests of this process.
        let _ = fs::remove_dir(&self.0);
        let _ = self.0.parent().map(fs::remove_dir);
    }
}
