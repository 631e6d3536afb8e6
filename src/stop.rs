//! When to stop, and why: a signal, a time, a number of lines, or what happens to the output.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};

/// Why a run ended, as the summary names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    /// `--duration`.
    Duration,
    /// `--count`.
    Count,
    /// The end of a capture file.
    EndOfFile,
    /// All that was to be told is told.
    Done,
    /// Nobody reads the output any more.
    ClosedPipe,
    /// The last interface is gone.
    InterfaceGone,
    /// The output can't be written, or another error.
    Error,
}

impl ExitReason {
    /// As it stands in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Duration => "duration",
            Self::Count => "count",
            Self::EndOfFile => "end_of_file",
            Self::Done => "done",
            Self::ClosedPipe => "closed_pipe",
            Self::InterfaceGone => "interface_gone",
            Self::Error => "error",
        }
    }
}

/// Signals that end a run in good order.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Knows whether it is time to stop.
#[derive(Debug)]
pub struct Stop {
    signalled: Arc<EventFd>,
    started: Cell<Instant>,
    duration: Option<Duration>,
}

impl Stop {
    /// Holds signals back until [`Stop::listen`], so that none can end the process halfway
    /// through attaching.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(duration: Option<Duration>) -> Result<Self> {
        SIGNALS
            .into_iter()
            .collect::<SigSet>()
            .thread_block()
            .context("failed to hold back signals")?;
        let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        Ok(Self {
            signalled: Arc::new(
                EventFd::from_value_and_flags(0, flags).context("failed to create an eventfd")?,
            ),
            started: Cell::new(Instant::now()),
            duration,
        })
    }

    /// Listens to signals from now on, and starts the clock of `--duration`. It makes a thread:
    /// to be called when privileges are given up, which a thread does for itself alone.
    ///
    /// # Errors
    /// The handler can't be installed.
    pub fn listen(&self) -> Result<()> {
        let signalled = Arc::clone(&self.signalled);
        ctrlc::set_handler(move || {
            // It can only fail when the counter is full, and then the signal is known already.
            let _ = signalled.write(1);
        })
        .context("failed to handle signals")?;
        SIGNALS
            .into_iter()
            .collect::<SigSet>()
            .thread_unblock()
            .context("failed to let signals through")?;
        self.started.set(Instant::now());
        Ok(())
    }

    /// Time since [`Stop::listen`].
    pub fn elapsed(&self) -> Duration {
        self.started.get().elapsed()
    }

    /// Time until `--duration` is over.
    pub fn remaining(&self) -> Option<Duration> {
        self.duration
            .map(|duration| duration.saturating_sub(self.started.get().elapsed()))
    }

    /// Whether it is time, and why.
    pub fn reason(&self) -> Option<ExitReason> {
        let mut fds = [PollFd::new(self.signalled.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            return Some(ExitReason::Signal);
        }
        (self.remaining() == Some(Duration::ZERO)).then_some(ExitReason::Duration)
    }
}

impl AsFd for Stop {
    /// Readable once a signal came.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signalled.as_fd()
    }
}

/// The shortest of some times, as poll takes it: rounded up, so that it doesn't wake too early.
pub fn poll_timeout(times: impl IntoIterator<Item = Option<Duration>>) -> PollTimeout {
    match times.into_iter().flatten().min() {
        Some(time) => {
            let millis = time.as_micros().div_ceil(1000);
            PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX))
                .unwrap_or(PollTimeout::MAX)
        }
        None => PollTimeout::NONE,
    }
}
