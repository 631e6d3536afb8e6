//! A lock between instances: adding a qdisc and adding the filter that records it are
//! two steps, and so are seeing that a qdisc is empty and removing it.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// The longest wait. Any process that can open the file can hold the lock for ever,
/// and that must not keep this program from working.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// A lock on the file of the network namespace: all instances that can reach the same
/// interfaces open the same file, and nothing is written to a disk. The kernel releases
/// the lock when its process ends.
pub(super) struct NamespaceLock(Option<File>);

impl NamespaceLock {
    /// Opens the network namespace of this thread. Without `/proc` there is
    /// nothing to lock, and instances can race.
    pub(super) fn open() -> Self {
        Self(File::open("/proc/thread-self/ns/net").ok())
    }

    /// Waits for the lock, which is held until the returned value is dropped.
    /// `None`: another instance has held it for too long, so it is ignored.
    pub(super) fn lock(&self) -> Option<Flock<File>> {
        let mut file = self.0.as_ref()?.try_clone().ok()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(locked) => return Some(locked),
                Err(_) if Instant::now() >= deadline => return None,
                Err((refused, _)) => file = refused,
            }
            thread::sleep(PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_the_lock() {
        let (first, second) = (NamespaceLock::open(), NamespaceLock::open());
        let locked = first.lock();
        assert!(locked.is_some());
        let waiting = thread::spawn(move || second.lock().map(|_| Instant::now()));
        thread::sleep(20 * PAUSE);
        let ended = Instant::now();
        drop(locked);
        assert!(waiting.join().unwrap().unwrap() >= ended);
    }
}
