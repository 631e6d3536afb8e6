//! Pseudo-terminals.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};

/// A pseudo-terminal of this many columns and lines: the user's end, and that of the program.
///
/// # Errors
/// This machine has none.
pub fn terminal(columns: u16, lines: u16) -> Result<(File, File), String> {
    // Not openpty(), whose descriptors a process of another test would inherit.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let user = posix_openpt(flags).map_err(|errno| format!("there are no terminals: {errno}"))?;
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let mut options = File::options();
    options.read(true).write(true);
    options.custom_flags(OFlag::O_NOCTTY.bits());
    let program = options.open(ptsname_r(&user).unwrap()).unwrap();
    resize(&program, columns, lines);
    Ok((OwnedFd::from(user).into(), program))
}

/// Gives a terminal another size.
pub fn resize(terminal: &File, columns: u16, lines: u16) {
    let size = Winsize {
        ws_row: lines,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the size is valid for the call.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(ret, 0, "TIOCSWINSZ");
}
