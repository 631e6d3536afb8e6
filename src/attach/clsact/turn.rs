//! Instances take turns: making a qdisc and adding the filter that says so are
//! two steps, and so are seeing that a qdisc is empty and removing it.

use std::fs::File;
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};

/// The longest wait. Anybody who can open the file can lock it, or be stopped
/// while doing so, and that must not keep this program from working.
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// The file whose lock says whose turn it is: the network namespace itself,
/// which every instance finds that can reach the same interfaces, and which
/// needs no file on a disk. The kernel ends the lock with its process.
pub(super) struct Turns(Option<File>);

impl Turns {
    /// Opens the network namespace of this thread. Without `/proc` there is
    /// nothing to lock, and instances are not kept apart.
    pub(super) fn open() -> Self {
        Self(File::open("/proc/thread-self/ns/net").ok())
    }

    /// Waits for this instance's turn, which lasts until the returned value is
    /// dropped. `None` if it had to be taken unasked.
    pub(super) fn take(&self) -> Option<Flock<File>> {
        let mut file = self.0.as_ref()?.try_clone().ok()?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(turn) => return Some(turn),
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
    fn only_one_has_its_turn() {
        let (first, second) = (Turns::open(), Turns::open());
        let turn = first.take();
        assert!(turn.is_some());
        let waiting = thread::spawn(move || second.take().map(|_| Instant::now()));
        thread::sleep(20 * PAUSE);
        let ended = Instant::now();
        drop(turn);
        assert!(waiting.join().unwrap().unwrap() >= ended);
    }
}
