//! Loads programs on two threads: the kernel verifies each on the CPU of the thread that loads it.

use std::panic::resume_unwind;
use std::thread::{self, Builder};

use anyhow::{Context, Result};

/// Runs `there` on another thread, which has the privileges and the network namespace of this one,
/// and meanwhile `here`. When this returns, the thread has ended.
///
/// The first result is an error also if the thread can't be started.
pub fn beside<A: Send, B>(
    there: impl FnOnce() -> Result<A> + Send,
    here: impl FnOnce() -> B,
) -> (Result<A>, B) {
    thread::scope(|scope| {
        let thread = Builder::new().spawn_scoped(scope, there);
        let here = here();
        let there = thread
            .context("failed to start a thread")
            .and_then(|thread| thread.join().unwrap_or_else(|cause| resume_unwind(cause)));
        (there, here)
    })
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
