//! What every command needs for a run: waiting, output, watching interfaces and hooks, and the
//! summary.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use caps::Capability;
use jiff::tz::TimeZone;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, faccessat};

use crate::attach::{Hook, HookState, load};
use crate::capture::recorder::Recorder;
use crate::capture::write::{Statistics, Written};
use crate::cli::{OutputFormat, RunArgs};
use crate::failure::{Exit, Failure};
use crate::host::interfaces::{Interface, LinkLayer, ResolveError, resolve};
use crate::host::link_watch::{LinkChange, LinkEvent, LinkWatch};
use crate::host::privileges;
use crate::host::sandbox::{self, Files, Recording};
use crate::host::time_zone::{self, UnknownZone};
use crate::notice::Notices;
use crate::output::Render;
use crate::output::clock::{Clock, UnixNanos};
use crate::output::line::Line;
use crate::output::sink::Sink;
use crate::output::summary::Summary;
use crate::run::events::{BATCH, EventSource};
use crate::run::stop::{ExitReason, Stop, poll_timeout};
use crate::sys::ring::Wakeup;

/// The state of a run of a command.
pub struct Session {
    /// Signals and `--duration`.
    pub stop: Stop,
    /// Writes messages to stderr, as verbose as asked for.
    pub notices: Notices,
    /// Writes to stdout.
    pub sink: Sink,
    /// Converts and formats times.
    pub clock: Clock,
    /// Writes frames, in place of lines to stdout.
    recorder: Option<Recorder>,
    format: OutputFormat,
    strict: bool,
    confined: bool,
    watch: Option<LinkWatch>,
    present: Vec<Interface>,
    hooks: Vec<FollowedHook>,
    /// Interfaces that have moved to another network namespace.
    moved: Vec<LinkEvent>,
    /// When to check next whether the hooks are still attached.
    look_due: Instant,
    /// The hook that another process has detached.
    detached: Option<String>,
    ended: Option<ExitReason>,
    /// How long the run took; `None` until it has ended.
    lasted: Option<Duration>,
    /// Records that came after the run had ended.
    late: u64,
    /// Records that could not be decoded.
    broken: u64,
}

/// After a nap with at least this many events, the reader naps again and waits for no wakeup.
const BUSY_EVENTS: usize = 4;

/// How often to check whether hooks are still attached: the kernel sends no event for that.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A hook that another process may detach.
struct FollowedHook {
    /// The index of its interface.
    ifindex: u32,
    /// Hook and interface, for messages.
    name: String,
    state: HookState,
}

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
                return Err(is_over());
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
    pub fn go_on(&self) -> std::io::Result<()> {
        let mut output = [PollFd::new(self.output.as_fd(), PollFlags::empty())];
        let is_closed = poll(&mut output, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        if is_closed || self.stop.reason().is_some() {
            return Err(is_over());
        }
        Ok(())
    }
}

fn is_over() -> std::io::Error {
    std::io::Error::other("the run is over")
}

/// Why [`Session::wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// The event buffer is readable.
    Events,
    /// The time has come.
    Timer,
    /// The run is over.
    Stop,
}

/// What poll(2) has found.
#[derive(Default)]
struct Ready {
    events: bool,
    output_closed: bool,
    link_news: bool,
}

impl Session {
    /// Begins a run, before anything is attached. Signals are blocked from here on.
    ///
    /// # Errors
    /// stdout is closed, or the process is set-user-ID.
    pub fn new(args: &RunArgs) -> Result<Self> {
        let RunArgs {
            output,
            stop,
            sandbox,
        } = args;
        let notices = Notices::new(output);
        privileges::refuse_setuid()?;
        load::set_log(notices.wants_logs());
        let format = output.format();
        let zone = time_zone::system().unwrap_or_else(|UnknownZone(why)| {
            // Times in JSON are in UTC anyway.
            if format == OutputFormat::Text {
                notices.notice(&why);
            }
            TimeZone::UTC
        });
        Ok(Self {
            stop: Stop::new(stop.duration)?,
            notices,
            sink: Sink::stdout(stop.count)?,
            clock: Clock::new(zone, output.time)?,
            recorder: None,
            format,
            strict: stop.strict,
            confined: !sandbox.no_sandbox,
            watch: None,
            present: Vec::new(),
            hooks: Vec::new(),
            moved: Vec::new(),
            look_due: Instant::now(),
            detached: None,
            ended: None,
            lasted: None,
            late: 0,
            broken: 0,
        })
    }

    /// Writes the header line of the text format.
    pub fn text_header(&mut self, render: impl FnOnce(&mut Line<'_>, &Clock)) {
        if self.format == OutputFormat::Text && self.recorder.is_none() {
            let clock = &self.clock;
            self.sink.extra(&self.stop, |out| render(out, clock));
        }
    }

    /// Writes a record with this time. False: it was not written, because the run has ended.
    #[inline]
    pub fn write(&mut self, at: UnixNanos, record: &impl Render) -> bool {
        let Self {
            stop, sink, clock, ..
        } = self;
        match self.format {
            OutputFormat::Text => sink.line(stop, |out| record.text(out, clock, at)),
            OutputFormat::Json => sink.line(stop, |out| record.json(out, clock, at)),
        }
    }

    /// Writes a record that the BPF program has counted as matched. If the run has ended, the
    /// record is counted as late, so that the summary adds up.
    #[inline]
    pub fn write_event(&mut self, at: UnixNanos, record: &impl Render) -> bool {
        let taken = self.write(at, record);
        if !taken {
            self.late += 1;
        }
        taken
    }

    /// From now on frames are written to this file instead of lines to stdout.
    pub fn record_to(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Whether frames are written to a file that has a place for their processes.
    pub fn names_processes(&self) -> bool {
        let recorder = self.recorder.as_ref();
        recorder.is_some_and(Recorder::names_processes)
    }

    /// Opens the file that frames are written to, if there is one.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open_recording(&mut self) -> Result<()> {
        match &mut self.recorder {
            Some(recorder) => recorder.open(&self.stop, self.clock.now()),
            None => Ok(()),
        }
    }

    /// Writes a frame that the BPF program has counted as matched. If the run has ended, it is
    /// counted as late, so that the summary adds up. `statistics` are written if its file ends here.
    #[inline]
    pub fn write_frame(
        &mut self,
        frame: &Written<'_>,
        statistics: impl FnOnce() -> Vec<Statistics>,
    ) {
        let taken = self.recorder.as_mut().is_some_and(|recorder| {
            if recorder.must_turn(frame.at) {
                recorder.turn(&self.stop, frame.at, &statistics());
            }
            recorder.packet(&self.stop, frame)
        });
        if !taken {
            self.late += 1;
        }
    }

    /// Handles events as [`Session::run_events`] does, and begins a new file whenever the time of one
    /// is over.
    ///
    /// # Errors
    /// As [`Session::run_events`].
    pub fn record_events(
        &mut self,
        source: &mut EventSource,
        statistics: impl Fn() -> Vec<Statistics>,
        mut on_event: impl FnMut(&mut Self, &[u8]),
    ) -> Result<()> {
        loop {
            let due = self.recorder.as_ref().and_then(Recorder::due);
            if self.take_events(source, due, &mut on_event)? != Wake::Timer {
                return Ok(());
            }
            if self.recorder.as_ref().and_then(Recorder::due) != due {
                // A packet has ended the period already.
                continue;
            }
            let now = self.clock.now();
            if let Some(recorder) = &mut self.recorder
                && recorder.end_period(now)
            {
                recorder.turn(&self.stop, now, &statistics());
            }
        }
    }

    /// The capabilities that the recording needs until its end.
    ///
    /// # Errors
    /// Capabilities can't be set.
    pub fn recording_needs(&self) -> Result<&'static [Capability]> {
        let directory = self.recorder.as_ref().and_then(Recorder::directory);
        let Some(directory) = directory else {
            return Ok(&[]);
        };
        let may = AccessFlags::W_OK | AccessFlags::X_OK;
        let can_create = || faccessat(AT_FDCWD, directory, may, AtFlags::AT_EACCESS).is_ok();
        Ok(match privileges::without_capabilities(can_create)? {
            true => &[],
            false => &[Capability::CAP_DAC_OVERRIDE],
        })
    }

    /// The number of the interface in the capture file that has this link type; `None` if there can
    /// be none, which ends the run with an error.
    pub fn recorded_interface(&mut self, link_type: u16) -> Option<u32> {
        let recorder = self.recorder.as_mut()?;
        recorder.interface_of(&self.stop, link_type)
    }

    /// Writes the end of the capture file.
    pub fn end_recording(&mut self, statistics: &[Statistics]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.finish(&self.stop, self.clock.now(), statistics);
        }
    }

    /// Why the output accepts nothing more.
    pub fn output_ended(&self) -> Option<ExitReason> {
        match &self.recorder {
            Some(recorder) => recorder.ended(),
            None => self.sink.ended(),
        }
    }

    /// How many more lines or frames are accepted.
    pub fn output_room(&self) -> u64 {
        match &self.recorder {
            Some(recorder) => recorder.remaining(),
            None => self.sink.remaining(),
        }
    }

    /// The output, whose reader may close it.
    fn output(&self) -> BorrowedFd<'_> {
        let recording = self.recorder.as_ref().and_then(Recorder::file);
        recording.unwrap_or_else(|| self.sink.as_fd())
    }

    /// Notes that the reader of the output has gone.
    fn close_output(&mut self) {
        match &mut self.recorder {
            Some(recorder) => recorder.close(),
            None => self.sink.close(),
        }
    }

    /// Counts a record that could not be decoded.
    pub fn broken(&mut self) {
        self.broken += 1;
    }

    /// Writes out buffered lines or frames.
    pub fn flush(&mut self) {
        match &mut self.recorder {
            Some(recorder) => recorder.flush(&self.stop),
            None => self.sink.flush(&self.stop),
        }
    }

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

    /// Checks whether the reader of the output has closed it.
    pub fn look_at_output(&mut self) {
        let mut fds = [PollFd::new(self.output(), PollFlags::empty())];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            self.close_output();
        }
    }

    /// Handles the pending events and writes out their lines. Returns how many came from a ring
    /// buffer.
    fn drain(
        &mut self,
        source: &mut EventSource,
        wakeup: Wakeup,
        on_event: &mut impl FnMut(&mut Self, &[u8]),
    ) -> Result<usize> {
        self.clock.sync()?;
        let mut taken = 0;
        loop {
            let batch = source.drain(wakeup, |bytes| on_event(self, bytes));
            taken += batch;
            if batch < BATCH || self.output_ended().is_some() || self.stop.reason().is_some() {
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

    /// Resolves the interfaces of the command line, and watches from now on whether they go away.
    ///
    /// # Errors
    /// An interface is unknown, or its frames are neither Ethernet nor plain IP. `hint` tells what
    /// was probably meant by names that are not interfaces.
    pub fn interfaces(
        &mut self,
        names: &[String],
        hint: fn(&[String]) -> Option<String>,
    ) -> Result<Vec<Interface>, Failure> {
        let mut watch = LinkWatch::new()?;
        let interfaces = resolve(names).map_err(|error| match error {
            ResolveError::Usage {
                message,
                hint: other,
            } => {
                let mut failure = Failure::usage(message);
                failure.hint = hint(names).or(other);
                failure
            }
            ResolveError::Failed(error) => error.into(),
        })?;
        for interface in &interfaces {
            if let LinkLayer::Unsupported(kind) = interface.link_layer {
                return Err(anyhow!(
                    "failed to use {}: its frames are of hardware type {kind}, neither Ethernet nor plain IP",
                    interface.name
                )
                .into());
            }
        }
        watch.follow(&interfaces);
        self.watch = Some(watch);
        self.present.clone_from(&interfaces);
        Ok(interfaces)
    }

    /// Watches these interfaces too, without which the run goes on.
    ///
    /// # Errors
    /// Netlink can't be used.
    pub fn watch_also(&mut self, interfaces: &[Interface]) -> Result<()> {
        let mut watch = LinkWatch::new()?;
        watch.follow(interfaces);
        self.watch = Some(watch);
        Ok(())
    }

    /// Checks from now on whether this hook is still attached.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn follow(&mut self, hook: &Hook) -> Result<()> {
        self.hooks.push(FollowedHook {
            ifindex: hook.ifindex,
            name: format!("{} on {}", hook.name, hook.iface),
            state: hook.state()?,
        });
        Ok(())
    }

    /// Starts the time of `--duration`, and enters the sandbox. Capabilities have to be given up
    /// before.
    pub fn start(&self, files: Files) {
        self.stop.start();
        self.confine(files);
    }

    /// Enters the sandbox, unless `--no-sandbox` is given. If the kernel has none, the run goes on
    /// with a notice.
    pub fn confine(&self, files: Files) {
        if self.confined
            && let Err(error) = sandbox::confine(files, self.recording())
        {
            self.notices
                .notice(&format!("running without a sandbox: {error:#}"));
        }
    }

    fn recording(&self) -> Recording<'_> {
        match &self.recorder {
            Some(recorder) => match recorder.directory() {
                Some(directory) => Recording::Rotated(directory),
                None => Recording::Opened,
            },
            None => Recording::No,
        }
    }

    /// Reports that all is attached: from here on no event is missed.
    pub fn attached(&self, what: &str) {
        self.notices.status(&format!("attached: {what}"));
    }

    /// Waits for events, a time, or the end of the run, whichever is first.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait(&mut self, events: Option<BorrowedFd<'_>>, until: Option<Instant>) -> Result<Wake> {
        let events = events.map(|events| PollFd::new(events, PollFlags::POLLIN));
        self.wait_for(events.as_slice(), until)
    }

    /// The same as [`Session::wait`], but for any of several descriptors.
    ///
    /// # Errors
    /// poll(2) fails.
    pub fn wait_for(&mut self, events: &[PollFd<'_>], until: Option<Instant>) -> Result<Wake> {
        loop {
            if Instant::now() >= self.look_due {
                self.look_at_hooks()?;
            }
            if self.is_over() {
                return Ok(Wake::Stop);
            }
            let timer = until.map(|at| at.saturating_duration_since(Instant::now()));
            if timer == Some(Duration::ZERO) {
                return Ok(Wake::Timer);
            }
            let ready = self.poll(events, timer)?;
            if ready.output_closed {
                self.close_output();
            }
            if ready.link_news {
                self.read_link_news()?;
            }
            if ready.events {
                return Ok(Wake::Events);
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
            link_news: watch_at.is_some_and(fired),
        })
    }

    /// Whether the run has ended for any reason.
    pub fn is_over(&mut self) -> bool {
        if self.ended.is_none() {
            let reason = self.output_ended().or_else(|| self.stop.reason());
            if let Some(reason) = reason {
                self.end(reason);
            }
        }
        self.ended.is_some()
    }

    /// Ends the run for this reason, unless it has ended already.
    pub fn end(&mut self, reason: ExitReason) {
        if self.ended.is_none() {
            self.ended = Some(reason);
            self.lasted = Some(self.stop.elapsed());
        }
    }

    fn read_link_news(&mut self) -> Result<()> {
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        for event in watch.events()? {
            let name = &event.name;
            match &event.change {
                LinkChange::Gone => self.lose(&event),
                LinkChange::MovedAway if self.is_attached(event.index) => {
                    self.say_of_link(&format!(
                        "interface {name} was moved to another network namespace and is followed there"
                    ));
                    self.moved.push(event);
                }
                LinkChange::MovedAway => {
                    self.say_of_link(&format!(
                        "interface {name} was moved to another network namespace, and the filter was lost"
                    ));
                    self.lose(&event);
                }
                LinkChange::Renamed { to } => {
                    self.say_of_link(&format!("interface {name} was renamed to {to}"))
                }
                LinkChange::Up => self.say_of_link(&format!("interface {name} is up")),
                LinkChange::Down => self.say_of_link(&format!("interface {name} is down")),
            }
        }
        Ok(())
    }

    /// Reports a change of an interface: as a notice if the run needs interfaces, else as a detail.
    fn say_of_link(&self, text: &str) {
        match self.present.is_empty() {
            true => self.notices.detail(text),
            false => self.notices.notice(text),
        }
    }

    fn is_attached(&mut self, index: u32) -> bool {
        let mut hooks = self.hooks.iter_mut();
        hooks.any(|hook| hook.ifindex == index && hook.state.is_attached())
    }

    /// Ends the run if another process has detached a program, because later packets are missed.
    /// This reason replaces an earlier one.
    ///
    /// # Errors
    /// The kernel can't be asked about interfaces.
    pub fn look_at_hooks(&mut self) -> Result<()> {
        self.look_due = Instant::now() + LOOK_INTERVAL;
        self.look_after_moved();
        if self.find_detached().is_none() {
            return Ok(());
        }
        // A hook is also detached when its interface is deleted. Netlink reports that, maybe later.
        self.read_link_news()?;
        let Some(at) = self.find_detached() else {
            return Ok(());
        };
        let hook = &self.hooks[at];
        let watch = self.watch.as_mut();
        if watch.is_none_or(|watch| watch.exists(hook.ifindex).unwrap_or(true)) {
            self.detached = Some(hook.name.clone());
            self.end(ExitReason::Detached);
            self.ended = Some(ExitReason::Detached);
        }
        Ok(())
    }

    /// The first hook that is not attached any more, on an interface that has not moved away.
    fn find_detached(&mut self) -> Option<usize> {
        let moved = &self.moved;
        self.hooks.iter_mut().position(|hook| {
            let has_moved = moved.iter().any(|event| event.index == hook.ifindex);
            !has_moved && !hook.state.is_attached()
        })
    }

    fn look_after_moved(&mut self) {
        for event in std::mem::take(&mut self.moved) {
            if self.is_attached(event.index) {
                self.moved.push(event);
            } else {
                self.lose(&event);
            }
        }
    }

    fn lose(&mut self, event: &LinkEvent) {
        self.say_of_link(&format!("interface {} is gone", event.name));
        self.hooks.retain(|hook| hook.ifindex != event.index);
        let were = self.present.len();
        self.present.retain(|present| present.index != event.index);
        if self.present.is_empty() && were > 0 {
            self.end(ExitReason::InterfaceGone);
        }
    }

    /// Handles events until the run is over.
    ///
    /// After a wakeup it naps, so that frequent events do not each cause a wakeup: while events are
    /// pending, the ring buffer causes none. As long as there are many, the reader reads again
    /// after each nap without waiting for a wakeup.
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
        loop {
            self.drain(source, Wakeup::Wanted, &mut on_event)?;
            let wake = self.wait(Some(source.as_fd()), until)?;
            if wake != Wake::Events {
                return Ok(wake);
            }
            let mut nap = source.nap();
            let mut taken = if nap.is_zero() { 0 } else { BUSY_EVENTS };
            while taken >= BUSY_EVENTS {
                let rested = Instant::now() + nap;
                if self.wait(None, Some(rested))? == Wake::Stop {
                    return Ok(Wake::Stop);
                }
                taken = self.drain(source, Wakeup::Unwanted, &mut on_event)?;
                // While there are many events, each can wait a little longer.
                nap = 2 * source.nap();
            }
        }
    }

    /// Why the run ended.
    pub fn exit_reason(&self) -> ExitReason {
        self.ended.unwrap_or(ExitReason::EndOfFile)
    }

    /// Writes the summary, and returns the exit status.
    ///
    /// # Errors
    /// The run was ended by an error.
    pub fn finish(&mut self, summary: &Summary) -> Result<Exit, Failure> {
        self.finish_saying(summary, &summary.text())
    }

    /// The same as [`Session::finish`], but with another text for people in the text format.
    ///
    /// # Errors
    /// As [`Session::finish`].
    pub fn finish_saying(&mut self, summary: &Summary, text: &str) -> Result<Exit, Failure> {
        let error = self.recorder.as_mut().and_then(Recorder::take_error);
        let Self {
            stop, sink, clock, ..
        } = self;
        match self.format {
            OutputFormat::Json => {
                let now = clock.now();
                let written = sink.extra(stop, |out| summary.json(out, clock, now));
                if !written && sink.ended() != Some(ExitReason::ClosedPipe) {
                    self.notices.status(&summary.text());
                    self.notices.result(&summary.report_text());
                }
            }
            OutputFormat::Text => {
                text.lines().for_each(|line| self.notices.status(line));
                self.notices.result(&summary.report_text());
            }
        }
        if let Some(error) = error.or_else(|| sink.take_error()) {
            return Err(error.into());
        }
        if self.ended == Some(ExitReason::InterfaceGone) {
            return Err(anyhow!("the interface went away").into());
        }
        if let Some(hook) = self.detached.take() {
            return Err(Failure::from(anyhow!(
                "{hook} was detached: another process has removed the program or put its own in the place"
            ))
            .hint("what came since is not in the counts; start again"));
        }
        if summary.lost > 0 {
            let hint = "a larger --buffer-size, a narrower filter or a faster reader loses less";
            self.notices
                .warning(&format!("{} events were lost; {hint}", summary.lost));
            if self.strict {
                return Ok(Exit::Lost);
            }
        }
        Ok(Exit::Success)
    }

    /// The summary of a run, from the counters of the BPF programs and of this process.
    pub fn summary(
        &self,
        command: &'static str,
        matched: u64,
        mut lost: u64,
        mut suppressed: u64,
    ) -> Summary {
        let (written, stranded) = match &self.recorder {
            Some(recorder) => (recorder.written(), recorder.stranded()),
            None => (self.sink.written(), self.sink.stranded()),
        };
        lost += self.broken + stranded;
        // Records after the last line of `--count`, or the last file of -W, are suppressed, not lost.
        if matches!(
            self.output_ended(),
            Some(ExitReason::Count | ExitReason::Done)
        ) {
            suppressed += self.late;
        } else {
            lost += self.late;
        }
        Summary {
            command,
            duration_s: self
                .lasted
                .unwrap_or_else(|| self.stop.elapsed())
                .as_secs_f64(),
            matched,
            emitted: written,
            lost,
            suppressed,
            exit_reason: self.exit_reason(),
            packets: None,
            syn_total: None,
            untracked: None,
            pending: None,
            flows: None,
            attempts: None,
            report: None,
        }
    }
}
