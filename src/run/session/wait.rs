//! Waits for events and other input, and handles events, until the run is over.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::time::TimeSpec;

use super::Session;
use crate::run::events::{BATCH, EventSource};
use crate::stop::{Stop, poll_timeout};
use crate::sys::ring::Wakeup;

/// If at least this many events came during a nap, the reader naps again instead of waiting for a
/// wakeup.
const BUSY_EVENTS: usize = 4;

/// Waits for input, such as a pipe, until the run is over.
pub struct InputWait {
    stop: Stop,
    output: OwnedFd,
}

impl InputWait {
    /// Waits until `input` is readable.
    ///
    /// # Errors
    /// The run ended before that, the reader of the output has closed it, or poll(2) fails.
    pub fn until_readable(&self, input: BorrowedFd<'_>) -> std::io::Result<()> {
        loop {
            let mut fds = [
                PollFd::new(input, PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.output.as_fd(), PollFlags::empty()),
            ];
            match poll(&mut fds, poll_timeout([self.stop.remaining()])) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [readable, _, closed] = fds.map(|fd| fd.any().unwrap_or(true));
            if closed || self.stop.reason().is_some() {
                return Err(run_is_over());
            }
            if readable {
                return Ok(());
            }
        }
    }

    /// Checks that the run is not over, without waiting.
    ///
    /// # Errors
    /// The run ended, or the reader of the output has closed it.
    pub fn check(&self) -> std::io::Result<()> {
        let mut output = [PollFd::new(self.output.as_fd(), PollFlags::empty())];
        let is_closed = poll(&mut output, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if is_closed || self.stop.reason().is_some() {
            return Err(run_is_over());
        }
        Ok(())
    }
}

fn has_come(at: Option<Instant>) -> bool {
    at.is_some_and(|at| Instant::now() >= at)
}

/// The end of the interval after the one whose end was due at this time.
///
/// After a pause, such as that of a machine that was suspended, or a wait for the reader of the
/// output, the missed intervals become one long interval. The next one has at least half the length:
/// in a shorter one, two events would look like many a second.
pub fn next_due(due: Instant, length: Duration) -> Instant {
    (due + length).max(Instant::now() + length / 2)
}

fn run_is_over() -> std::io::Error {
    std::io::Error::other("the run is over")
}

/// Why [`Session::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The event buffer is readable.
    Events,
    /// The time was reached.
    Timer,
    /// The run is over.
    Stop,
}

/// The result of poll(2).
#[derive(Default)]
struct Ready {
    events: bool,
    output_closed: bool,
    link_events: bool,
}

impl Session {
    /// Creates a waiter for input that also ends when the run does.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn input_wait(&self) -> Result<InputWait> {
        Ok(InputWait {
            stop: self.stop.clone(),
            output: self.output().try_clone_to_owned()?,
        })
    }

    /// Waits for events, a time, or the end of the run, whichever is first. If there are events and
    /// the time was reached, the result is [`Wake::Events`].
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait(&mut self, events: Option<BorrowedFd<'_>>, until: Option<Instant>) -> Result<Wake> {
        let events = events.map(|events| PollFd::new(events, PollFlags::POLLIN));
        self.wait_for(events.as_slice(), until)
    }

    /// Does what [`Session::wait`] does, for events from any of several descriptors.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait_for(&mut self, events: &[PollFd<'_>], until: Option<Instant>) -> Result<Wake> {
        loop {
            if Instant::now() >= self.look_due {
                self.check_hooks()?;
            }
            if self.is_over() {
                return Ok(Wake::Stop);
            }
            let timer = until.map(|at| at.saturating_duration_since(Instant::now()));
            // Even if the time was reached: a caller whose work takes longer than its pauses must
            // still see keys and requests.
            let ready = self.poll(events, timer)?;
            if ready.output_closed {
                self.close_output();
            }
            if ready.link_events {
                self.read_link_events()?;
            }
            if ready.events {
                return Ok(Wake::Events);
            }
            if timer == Some(Duration::ZERO) {
                return Ok(Wake::Timer);
            }
        }
    }

    fn poll(&self, events: &[PollFd<'_>], timer: Option<Duration>) -> Result<Ready> {
        // No events are requested for the output: poll(2) reports POLLERR anyway if its reader is
        // gone.
        let mut fds = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.output(), PollFlags::empty()),
        ];
        let watch_at = self.watch.as_ref().map(|watch| {
            fds.push(PollFd::new(watch.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let events_at = fds.len();
        fds.extend_from_slice(events);
        let look = self.look_due.saturating_duration_since(Instant::now());
        let look = (!self.hooks.is_empty()).then_some(look);
        // ppoll(2), because a nap can be shorter than a millisecond.
        let times = [timer, self.stop.remaining(), look];
        let timeout = times.into_iter().flatten().min().map(TimeSpec::from);
        match ppoll(&mut fds, timeout, None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(Ready::default()),
            Err(error) => return Err(error).context("failed to wait for events"),
        }
        let fired = |at: usize| fds[at].any().unwrap_or(true);
        Ok(Ready {
            events: (events_at..fds.len()).any(fired),
            output_closed: fired(1),
            link_events: watch_at.is_some_and(fired),
        })
    }

    /// Handles the pending events by calls of `some`, each of which takes at most [`BATCH`], and
    /// writes out their lines. Ends early at the time `until`, or when the run is over. Returns how
    /// many events came from a ring buffer.
    fn drain(
        &mut self,
        source: &mut EventSource,
        until: Option<Instant>,
        wakeup: Wakeup,
        mut some: impl FnMut(&mut Self, &mut EventSource, Wakeup) -> usize,
    ) -> Result<usize> {
        self.clock.sync()?;
        let mut taken = 0;
        loop {
            let batch = some(self, source, wakeup);
            taken += batch;
            let is_over = self.output_ended().is_some() || self.stop.reason().is_some();
            if batch < BATCH || is_over || has_come(until) {
                break;
            }
        }
        self.flush();
        Ok(taken)
    }

    /// Handles the events that are left after all programs are detached.
    ///
    /// # Errors
    /// A clock can't be read.
    pub fn drain_rest(
        &mut self,
        source: &mut EventSource,
        mut on_event: impl FnMut(&mut Self, &[u8]),
    ) -> Result<()> {
        self.clock.sync()?;
        source.drain_all(|bytes| on_event(self, bytes));
        self.flush();
        Ok(())
    }

    /// Handles events until the run is over.
    ///
    /// After a wakeup it sleeps for a moment (a nap) before it reads, so that frequent events do not
    /// each cause a wakeup: while events are pending, the ring buffer causes none. As long as many
    /// events come, it naps again after each read, and waits for no wakeup.
    ///
    /// # Errors
    /// Waiting fails, or a clock can't be read.
    pub fn run_events(
        &mut self,
        source: &mut EventSource,
        on_event: impl FnMut(&mut Self, &[u8]),
    ) -> Result<()> {
        self.take_events(source, None, on_event)?;
        Ok(())
    }

    /// Handles events as [`Session::run_events`] does, until a time or the end of the run. Returns
    /// which of the two came first.
    ///
    /// # Errors
    /// Waiting fails, or a clock can't be read.
    pub fn take_events(
        &mut self,
        source: &mut EventSource,
        until: Option<Instant>,
        mut on_event: impl FnMut(&mut Self, &[u8]),
    ) -> Result<Wake> {
        self.take(source, until, |session, source, wakeup| {
            source.drain(wakeup, |bytes| on_event(session, bytes))
        })
    }

    /// Does what [`Session::take_events`] does, with a function that takes events from the source,
    /// at most [`BATCH`] of them.
    pub(super) fn take(
        &mut self,
        source: &mut EventSource,
        until: Option<Instant>,
        mut some: impl FnMut(&mut Self, &mut EventSource, Wakeup) -> usize,
    ) -> Result<Wake> {
        loop {
            self.drain(source, until, Wakeup::Wanted, &mut some)?;
            // Even if the time was reached: else a caller that is always late would never stop.
            let wake = self.wait(Some(source.as_fd()), until)?;
            if wake != Wake::Events {
                return Ok(wake);
            }
            if has_come(until) {
                return Ok(Wake::Timer);
            }
            let mut nap = source.nap();
            let mut taken = if nap.is_zero() { 0 } else { BUSY_EVENTS };
            while taken >= BUSY_EVENTS && !has_come(until) {
                let rested = Instant::now() + nap;
                if self.wait(None, Some(rested))? == Wake::Stop {
                    return Ok(Wake::Stop);
                }
                taken = self.drain(source, until, Wakeup::Unwanted, &mut some)?;
                // While there are many events, each can wait a little longer.
                nap = 2 * source.nap();
            }
        }
    }
}
