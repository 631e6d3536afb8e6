//! When a run stops, and why: a signal, a duration, a number of lines, or the end of the output.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys::signal::is_ignored;

/// Why a run ended: `exit_reason` of the summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitReason {
    /// SIGINT, SIGTERM or SIGHUP.
    Signal,
    /// The user has quit the view.
    Quit,
    /// The time of `--duration` is over.
    Duration,
    /// As many lines as `--count` says were written.
    Count,
    /// The end of a capture file.
    EndOfFile,
    /// The command had nothing left to do.
    Done,
    /// The reader of the output has closed it.
    ClosedPipe,
    /// The last interface is gone.
    InterfaceGone,
    /// Another process has detached or replaced a program.
    Detached,
    /// The output can't be written, or something else failed.
    Error,
}

impl ExitReason {
    /// The name in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Quit => "quit",
            Self::Duration => "duration",
            Self::Count => "count",
            Self::EndOfFile => "end_of_file",
            Self::Done => "done",
            Self::ClosedPipe => "closed_pipe",
            Self::InterfaceGone => "interface_gone",
            Self::Detached => "detached",
            Self::Error => "error",
        }
    }
}

/// Signals that end a run in an orderly way, unless they were ignored when it was started.
const SIGNALS: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

/// Finds out whether the run has to stop.
#[derive(Clone, Debug)]
pub struct Stop {
    /// Readable once a signal is pending. It is never read, so it stays readable.
    signalled: Arc<SignalFd>,
    started: Instant,
    duration: Option<Duration>,
}

impl Stop {
    /// Blocks the signals from now on, so that none can end the process halfway through attaching.
    /// A signalfd shows them instead.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn new(duration: Option<Duration>) -> Result<Self> {
        const FAILED: &str = "failed to block signals";
        let mut signals = SigSet::empty();
        for signal in SIGNALS {
            if !is_ignored(signal).context(FAILED)? {
                signals.add(signal);
            }
        }
        signals.thread_block().context(FAILED)?;
        // A write beyond `ulimit -f` fails with EFBIG then, instead of ending the process.
        SigSet::from(Signal::SIGXFSZ)
            .thread_block()
            .context(FAILED)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signalled = SignalFd::with_flags(&signals, flags).context(FAILED)?;
        Ok(Self {
            signalled: Arc::new(signalled),
            started: Instant::now(),
            duration,
        })
    }

    /// Starts the clock of `--duration`.
    pub fn start(&mut self) {
        self.started = Instant::now();
    }

    /// Time since [`Stop::start`].
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Time until `--duration` is over.
    pub fn remaining(&self) -> Option<Duration> {
        self.duration
            .map(|duration| duration.saturating_sub(self.started.elapsed()))
    }

    /// Why the run has to stop now; `None` if it may go on.
    pub fn reason(&self) -> Option<ExitReason> {
        let mut fds = [PollFd::new(self.signalled.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            return Some(ExitReason::Signal);
        }
        (self.remaining() == Some(Duration::ZERO)).then_some(ExitReason::Duration)
    }
}

impl AsFd for Stop {
    /// Readable once a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signalled.as_fd()
    }
}

/// The shortest of these times as a timeout of poll(2), rounded up: never too early.
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
