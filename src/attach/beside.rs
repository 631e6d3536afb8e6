//! Work on a second thread, so that two programs are loaded at the same time: the kernel verifies each
//! on the CPU of the thread that loads it.

use std::thread::{self, Builder, ScopedJoinHandle};

use anyhow::{Context, Result};

/// Runs `there` on another thread, which has the privileges and the network namespace of this one,
/// and meanwhile `here`. If no thread can be started, `there` comes after `here`. When this returns,
/// the thread has ended.
pub fn beside<A: Send, B>(
    there: impl FnOnce() -> Result<A> + Send,
    here: impl FnOnce() -> B,
) -> (Result<A>, B) {
    let mut there = Some(there);
    let mut result = None;
    let here = thread::scope(|scope| {
        let run = || result = there.take().map(|there| there());
        let thread = Builder::new().spawn_scoped(scope, run);
        let here = here();
        // The scope waits only until the closure has returned, and join() until the thread has ended.
        let _ = thread.map(ScopedJoinHandle::join);
        here
    });
    let result = result.or_else(|| there.map(|there| there()));
    let result = result.context("the other thread has panicked");
    (result.and_then(|result| result), here)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn both_run_at_the_same_time_and_both_results_come_back() {
        let ((to_here, from_there), (to_there, from_here)) = (channel(), channel());
        let (there, here) = beside(
            move || {
                to_here.send(1)?;
                Ok(from_here.recv()?)
            },
            move || {
                let got = from_there.recv();
                to_there.send(2).is_ok() && got == Ok(1)
            },
        );
        assert_eq!(there.unwrap(), 2);
        assert!(here);
    }

    #[test]
    fn a_failure_of_the_other_thread_is_passed_on() {
        let (there, here) = beside(|| anyhow::bail!("refused"), || 1);
        let there: Result<()> = there;
        assert_eq!(there.unwrap_err().to_string(), "refused");
        assert_eq!(here, 1);
    }
}
