//! stdout: of a run, opened so that writing to it does not block; and of a command that only prints
//! something once, such as a manual page.

use std::fs::{File, FileType, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::failure::{Exit, Failure};
use crate::stop::{Stop, poll_timeout};

/// How long the end of a run waits for a reader that has stopped.
const GRACE: Duration = Duration::from_millis(500);

/// How long to wait for a reader that has stopped.
#[derive(Default)]
pub struct Patience {
    /// The end of the grace period. It begins when the run has to stop, and again when the reader
    /// reads. It is kept from one flush to the next, or each flush would begin a new one.
    give_up_at: Option<Instant>,
}

impl Patience {
    /// The reader has read something.
    pub fn renew(&mut self) {
        self.give_up_at = None;
    }

    /// Waits until a file takes more. False if the run has to stop and the reader has read nothing
    /// for too long.
    pub fn wait(&mut self, file: BorrowedFd<'_>, stop: &Stop) -> bool {
        let stopping = stop.reason().is_some();
        if stopping {
            self.give_up_at.get_or_insert(Instant::now() + GRACE);
        }
        let left = self
            .give_up_at
            .map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return false;
        }
        let mut fds = vec![PollFd::new(file, PollFlags::POLLOUT)];
        if !stopping {
            fds.push(PollFd::new(stop.as_fd(), PollFlags::POLLIN));
        }
        let timeout = poll_timeout([left, stop.remaining().filter(|_| !stopping)]);
        // An interrupted poll is one that woke early.
        let _ = poll(&mut fds, timeout);
        true
    }
}

/// stdout, and how it can be written.
pub struct Stdout {
    /// An open file description that does not block, where there can be one.
    pub file: File,
    /// A write may wait for the reader.
    pub may_block: bool,
    /// A file, pipe, terminal or socket.
    pub(super) kind: FileType,
}

impl Stdout {
    /// Opens this process's stdout.
    ///
    /// # Errors
    /// stdout is closed.
    pub fn open() -> Result<Self> {
        let inherited: File = std::io::stdout()
            .as_fd()
            .try_clone_to_owned()
            .context("failed to open stdout")?
            .into();
        let kind = inherited
            .metadata()
            .context("failed to look at stdout")?
            .file_type();
        // An open file description of our own can be made non-blocking without changing the shell's.
        // What can't be opened again (a socket, a pipe or terminal of another user) stays as it is.
        let own = (kind.is_fifo() || kind.is_char_device())
            .then(|| {
                OpenOptions::new()
                    .write(true)
                    .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
                    .open("/proc/self/fd/1")
                    .ok()
            })
            .flatten();
        Ok(Self {
            may_block: own.is_none() && !kind.is_file(),
            file: own.unwrap_or(inherited),
            kind,
        })
    }
}

/// Whether a file that may block takes more now.
pub fn has_room(file: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(file, PollFlags::POLLOUT)];
    // A file is always ready, and an error is reported by the write.
    poll(&mut fds, PollTimeout::ZERO) != Ok(0)
}

/// Prints a string to stdout.
///
/// # Errors
/// stdout can't be written.
pub fn print(text: &str) -> Result<Exit, Failure> {
    printed(std::io::stdout().write_all(text.as_bytes()))
}

/// The result of printing to stdout. It is not an error if the reader has closed the pipe.
///
/// # Errors
/// stdout can't be written.
pub fn printed(outcome: std::io::Result<()>) -> Result<Exit, Failure> {
    // Rust buffers the text after the last newline, and would not report that it could not be written.
    match outcome.and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(anyhow::Error::new(error))
            .context("failed to write to stdout")
            .map_err(Failure::from),
        _ => Ok(Exit::Success),
    }
}
