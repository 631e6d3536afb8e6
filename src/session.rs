//! What every command does around its own work: waiting, output, interfaces, and the end.

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll, ppoll};
use nix::sys::time::TimeSpec;

use crate::attach::ring::Bell;
use crate::attach::{LinkState, load};
use crate::cli::{OutputArgs, OutputFormat, SandboxArgs, StopArgs};
use crate::events::{BATCH, EventSource};
use crate::failure::{Exit, Failure};
use crate::host::interfaces::{Interface, LinkLayer, ResolveError, resolve};
use crate::host::link_watch::{LinkChange, LinkEvent, LinkWatch};
use crate::host::privileges;
use crate::host::sandbox::{self, Files};
use crate::notice::Notices;
use crate::output::clock::{Clock, UnixNanos};
use crate::output::line::Line;
use crate::output::sink::Sink;
use crate::output::summary::Summary;
use crate::stop::{ExitReason, Stop, poll_timeout};

/// Where data goes, and the clock that stamps it.
pub struct Output {
    /// Writes to stdout.
    pub sink: Sink,
    /// Makes times into text.
    pub clock: Clock,
}

/// What a run shares with the callback that receives its events.
pub struct Io {
    /// Knows when to stop.
    pub stop: Stop,
    /// Where data goes.
    pub output: RefCell<Output>,
    /// What is said on stderr.
    pub notices: Notices,
    /// Text or JSON.
    pub format: OutputFormat,
}

/// A run of a command.
pub struct Session {
    io: Rc<Io>,
    strict: bool,
    confined: bool,
    watch: Option<LinkWatch>,
    present: Vec<Interface>,
    /// By index of the interface where it was attached.
    links: Vec<(u32, LinkState)>,
    /// Those that are in another network namespace now.
    moved: Vec<LinkEvent>,
    ended: Option<ExitReason>,
}

/// Events after a nap that promise as many after the next one.
const BUSY_EVENTS: usize = 4;

/// How often it is asked whether interfaces in other network namespaces are still there: nobody
/// tells.
const MOVED_INTERVAL: Duration = Duration::from_millis(500);

impl Io {
    /// Writes the header line of the text format.
    pub fn text_header(&self, render: impl FnOnce(&mut Line<'_>)) {
        if self.format == OutputFormat::Text {
            self.output.borrow_mut().sink.extra(&self.stop, render);
        }
    }

    /// Takes the events that are there and writes them out. Returns how many came through the
    /// ring buffer.
    ///
    /// # Errors
    /// A clock can't be read.
    pub fn drain(&self, source: &EventSource<'_>, bell: Bell) -> Result<usize> {
        self.output.borrow_mut().clock.sync()?;
        let mut taken = 0;
        loop {
            let batch = source.consume(bell);
            taken += batch;
            if batch < BATCH {
                break;
            }
            let output_ended = self.output.borrow().sink.ended().is_some();
            if output_ended || self.stop.reason().is_some() {
                break;
            }
        }
        self.output.borrow_mut().sink.flush(&self.stop);
        Ok(taken)
    }

    /// Writes out what there is and waits until `input` can be read.
    ///
    /// # Errors
    /// The run ended before that, or poll fails.
    pub fn wait_for_input(&self, input: BorrowedFd<'_>) -> std::io::Result<()> {
        let mut output = self.output.borrow_mut();
        output.sink.flush(&self.stop);
        loop {
            if output.sink.ended().is_some() || self.stop.reason().is_some() {
                return Err(std::io::Error::other("the run is over"));
            }
            let mut fds = [
                PollFd::new(input, PollFlags::POLLIN),
                PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
                PollFd::new(output.sink.as_fd(), PollFlags::empty()),
            ];
            match poll(&mut fds, poll_timeout([self.stop.remaining()])) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [readable, _, closed] = fds.map(|fd| fd.any().unwrap_or(true));
            if closed {
                output.sink.close();
            } else if readable {
                return Ok(());
            }
        }
    }

    /// Takes what is left after everything is detached: no event can follow.
    pub fn drain_rest(&self, source: &EventSource<'_>) -> Result<()> {
        self.output.borrow_mut().clock.sync()?;
        while source.consume(Bell::Wanted) == BATCH {}
        self.output.borrow_mut().sink.flush(&self.stop);
        Ok(())
    }
}

/// What [`Session::wait`] woke for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Events may be there.
    Events,
    /// The time asked for has come.
    Timer,
    /// The run is over.
    Stop,
}

impl Deref for Session {
    type Target = Io;

    fn deref(&self) -> &Io {
        &self.io
    }
}

impl Session {
    /// What the callback that receives events needs.
    pub fn io(&self) -> Rc<Io> {
        Rc::clone(&self.io)
    }

    /// Begins a run: nothing is attached yet, and signals wait.
    ///
    /// # Errors
    /// stdout is closed, or the process is set-user-ID.
    pub fn new(output: &OutputArgs, stop: &StopArgs, sandbox: SandboxArgs) -> Result<Self> {
        let notices = Notices::new(output);
        privileges::refuse_setuid()?;
        load::set_log(notices.wants_logs());
        Ok(Self {
            io: Rc::new(Io {
                stop: Stop::new(stop.duration)?,
                output: RefCell::new(Output {
                    sink: Sink::stdout(stop.count)?,
                    clock: Clock::new()?,
                }),
                notices,
                format: output.format(),
            }),
            strict: stop.strict,
            confined: !sandbox.no_sandbox,
            watch: None,
            present: Vec::new(),
            links: Vec::new(),
            moved: Vec::new(),
            ended: None,
        })
    }

    /// Finds the interfaces of the command line and follows their fate from now on.
    ///
    /// # Errors
    /// One is unknown, or of a kind whose frames can't be read.
    pub fn interfaces(&mut self, names: &[String]) -> Result<Vec<Interface>, Failure> {
        let mut watch = LinkWatch::new()?;
        let interfaces = resolve(names).map_err(|error| match error {
            ResolveError::Usage { message, hint } => {
                let mut failure = Failure::usage(message);
                failure.hint = hint;
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

    /// Notes what was attached to an interface, to know whether that goes with it when it moves;
    /// `None` for what does not.
    pub fn follow(&mut self, interface: &Interface, link: Option<LinkState>) {
        self.links.extend(link.map(|link| (interface.index, link)));
    }

    /// Listens to signals, and takes from this process what it does not need any more. Privileges
    /// are given up before.
    ///
    /// # Errors
    /// Signals can't be handled.
    pub fn ready(&self, files: Files) -> Result<()> {
        self.stop.listen()?;
        self.confine(files);
        Ok(())
    }

    /// Sets the seccomp filter, unless `--no-sandbox`. A kernel without such filters is said so:
    /// it is no reason to show nothing.
    pub fn confine(&self, files: Files) {
        if self.confined
            && let Err(error) = sandbox::confine(files)
        {
            self.notices
                .notice(&format!("running without a sandbox: {error:#}"));
        }
    }

    /// Says that all is attached; from here on nothing may be missed.
    pub fn attached(&self, what: &str) {
        self.notices.say(&format!("attached: {what}"));
    }

    /// Waits for events, a time, or the end, whichever is first.
    ///
    /// # Errors
    /// poll fails.
    pub fn wait(&mut self, events: Option<BorrowedFd<'_>>, until: Option<Instant>) -> Result<Wake> {
        loop {
            if self.is_over() {
                return Ok(Wake::Stop);
            }
            let timer = until.map(|at| at.saturating_duration_since(Instant::now()));
            if timer == Some(Duration::ZERO) {
                return Ok(Wake::Timer);
            }
            let (readable, closed, link_news) = self.poll(events, timer)?;
            if closed {
                self.output.borrow_mut().sink.close();
            }
            if link_news {
                self.read_link_news()?;
            }
            self.look_after_moved();
            if readable {
                return Ok(Wake::Events);
            }
        }
    }

    fn poll(
        &self,
        events: Option<BorrowedFd<'_>>,
        timer: Option<Duration>,
    ) -> Result<(bool, bool, bool)> {
        let output = self.output.borrow();
        // No event is asked of stdout: an error is reported all the same when its reader goes.
        let mut fds = vec![
            PollFd::new(self.stop.as_fd(), PollFlags::POLLIN),
            PollFd::new(output.sink.as_fd(), PollFlags::empty()),
        ];
        let watch_at = self.watch.as_ref().map(|watch| {
            fds.push(PollFd::new(watch.as_fd(), PollFlags::POLLIN));
            fds.len() - 1
        });
        let events_at = events.map(|events| {
            fds.push(PollFd::new(events, PollFlags::POLLIN));
            fds.len() - 1
        });
        let moved = (!self.moved.is_empty()).then_some(MOVED_INTERVAL);
        // A nap may be shorter than a millisecond.
        let times = [timer, self.stop.remaining(), moved];
        let timeout = times.into_iter().flatten().min().map(TimeSpec::from);
        match ppoll(&mut fds, timeout, None) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok((false, false, false)),
            Err(error) => return Err(error).context("failed to wait for events"),
        }
        let fired = |at: usize| fds[at].any().unwrap_or(true);
        Ok((
            events_at.is_some_and(fired),
            fired(1),
            watch_at.is_some_and(fired),
        ))
    }

    /// Whether the run has ended, for whatever reason.
    pub fn is_over(&mut self) -> bool {
        if self.ended.is_none() {
            let by_output = self.io.output.borrow().sink.ended();
            self.ended = by_output.or_else(|| self.io.stop.reason());
        }
        self.ended.is_some()
    }

    /// Ends the run for a reason of the command's own.
    pub fn end(&mut self, reason: ExitReason) {
        self.ended.get_or_insert(reason);
    }

    fn read_link_news(&mut self) -> Result<()> {
        let notices = self.notices;
        let Some(watch) = &mut self.watch else {
            return Ok(());
        };
        for event in watch.events()? {
            let name = &event.name;
            match &event.change {
                LinkChange::Gone => self.lose(&event),
                LinkChange::MovedAway if self.is_attached(event.index) => {
                    notices.notice(&format!(
                        "interface {name} was moved to another network namespace and is followed there"
                    ));
                    self.moved.push(event);
                }
                LinkChange::MovedAway => {
                    notices.notice(&format!(
                        "interface {name} was moved to another network namespace, and the filter was lost"
                    ));
                    self.lose(&event);
                }
                LinkChange::Renamed { to } => {
                    notices.notice(&format!("interface {name} was renamed to {to}"))
                }
                LinkChange::Up => notices.notice(&format!("interface {name} is up")),
                LinkChange::Down => notices.notice(&format!("interface {name} is down")),
            }
        }
        Ok(())
    }

    fn is_attached(&self, index: u32) -> bool {
        let mut links = self.links.iter();
        links.any(|(at, link)| *at == index && link.is_attached())
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
        self.notices
            .notice(&format!("interface {} is gone", event.name));
        self.present.retain(|present| present.index != event.index);
        if self.present.is_empty() {
            self.ended.get_or_insert(ExitReason::InterfaceGone);
        }
    }

    /// Takes events until the run is over.
    ///
    /// After a wake-up it naps, so that a busy producer need not ring for each event: as long as
    /// events are pending, the ring buffer rings no bell. While there are many, it does not go back
    /// to wait for the bell between naps either, and has it silent.
    ///
    /// # Errors
    /// Waiting fails, or a clock can't be read.
    pub fn run_events(&mut self, source: &EventSource<'_>) -> Result<()> {
        loop {
            self.drain(source, Bell::Wanted)?;
            if self.wait(Some(source.as_fd()), None)? == Wake::Stop {
                return Ok(());
            }
            let mut nap = source.nap();
            let mut taken = if nap.is_zero() { 0 } else { BUSY_EVENTS };
            while taken >= BUSY_EVENTS {
                let rested = Instant::now() + nap;
                if self.wait(None, Some(rested))? == Wake::Stop {
                    return Ok(());
                }
                taken = self.drain(source, Bell::Unwanted)?;
                // Whoever sends many waits for none of them.
                nap = 2 * source.nap();
            }
        }
    }

    /// Why the run ended.
    pub fn exit_reason(&self) -> ExitReason {
        self.ended.unwrap_or(ExitReason::EndOfFile)
    }

    /// Writes the summary and says how the process ends.
    ///
    /// # Errors
    /// What ended the run was an error.
    pub fn finish(&mut self, summary: &Summary) -> Result<Exit, Failure> {
        self.finish_saying(summary, &summary.text())
    }

    /// The same, with a text of the command's own instead of the summary for people.
    ///
    /// # Errors
    /// As [`Session::finish`].
    pub fn finish_saying(&mut self, summary: &Summary, text: &str) -> Result<Exit, Failure> {
        let io = Rc::clone(&self.io);
        let mut output = io.output.borrow_mut();
        let Output { sink, clock } = &mut *output;
        match self.format {
            OutputFormat::Json => {
                let now = clock.now();
                let written = sink.extra(&self.stop, |out| summary.json(out, clock, now));
                if !written && sink.ended() != Some(ExitReason::ClosedPipe) {
                    self.notices.say(&summary.text());
                }
            }
            OutputFormat::Text => self.notices.say(text),
        }
        if let Some(error) = sink.take_error() {
            return Err(error.into());
        }
        if self.ended == Some(ExitReason::InterfaceGone) {
            return Err(anyhow!("the interface went away").into());
        }
        if summary.lost > 0 {
            let hint = "a larger --buffer-size, a narrower filter or a faster reader loses less";
            self.notices
                .notice(&format!("{} events were lost; {hint}", summary.lost));
            if self.strict {
                return Ok(Exit::Lost);
            }
        }
        Ok(Exit::Success)
    }
}

/// Takes events to the output, and accounts for each.
pub struct Delivery {
    io: Rc<Io>,
    /// Came after the run had ended.
    late: Cell<u64>,
    /// Could not be decoded.
    broken: Cell<u64>,
}

impl Delivery {
    /// Nothing is delivered yet.
    pub fn new(io: Rc<Io>) -> Self {
        Self {
            io,
            late: Cell::new(0),
            broken: Cell::new(0),
        }
    }

    /// Text or JSON.
    pub fn format(&self) -> OutputFormat {
        self.io.format
    }

    /// Notes a record that could not be decoded.
    pub fn broken(&self) {
        self.broken.set(self.broken.get() + 1);
    }

    /// Renders a record at its time, unless it could not be decoded or comes too late. Whether it
    /// was taken.
    pub fn deliver<T>(
        &self,
        record: Option<T>,
        time: impl FnOnce(&Clock, &T) -> UnixNanos,
        render: impl FnOnce(&mut Line<'_>, &mut Clock, UnixNanos, &T),
    ) -> bool {
        let Some(record) = record else {
            self.broken();
            return false;
        };
        let mut output = self.io.output.borrow_mut();
        let Output { sink, clock } = &mut *output;
        let at = time(clock, &record);
        let taken = sink.line(&self.io.stop, |out| render(out, clock, at, &record));
        if !taken {
            self.late.set(self.late.get() + 1);
        }
        taken
    }

    /// The account of a run, from what the kernel counted and what became of it here. The reason
    /// of the exit and the packets are the caller's to fill in.
    pub fn summary(
        &self,
        command: &'static str,
        duration: Duration,
        matched: u64,
        mut lost: u64,
        mut suppressed: u64,
    ) -> Summary {
        let output = self.io.output.borrow();
        lost += self.broken.get() + output.sink.stranded();
        // What came after the last line that was asked for is held back, not lost.
        if output.sink.ended() == Some(ExitReason::Count) {
            suppressed += self.late.get();
        } else {
            lost += self.late.get();
        }
        Summary {
            command,
            duration_s: duration.as_secs_f64(),
            matched,
            emitted: output.sink.written(),
            lost,
            suppressed,
            exit_reason: "",
            packets: None,
            syn_total: None,
            flows: None,
        }
    }
}
