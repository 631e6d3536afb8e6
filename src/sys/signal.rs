//! How this process handles signals.

use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::Signal;

/// Whether a signal was ignored when the process started: by nohup(1), by `trap ''` in a shell, or
/// by a shell that starts a command in the background. Then it has to stay ignored.
///
/// # Errors
/// sigaction(2) fails.
pub fn is_ignored(signal: Signal) -> Result<bool, Errno> {
    // SAFETY: all zeros is a value of this struct of integers and pointers.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is changed, and `action` is valid for the answer.
    let ret = unsafe { libc::sigaction(signal as i32, ptr::null(), &raw mut action) };
    Errno::result(ret)?;
    Ok(action.sa_sigaction == libc::SIG_IGN)
}
