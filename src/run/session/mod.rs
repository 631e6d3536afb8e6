//! The session of a run, which every command has: state, output and messages are here; waiting,
//! capture files, the watch over interfaces and hooks, and the end of the run are in the submodules.

mod end;
mod hooks;
mod recording;
mod wait;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::Result;
use jiff::tz::TimeZone;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use self::hooks::FollowedHook;
pub use self::wait::{Wake, next_due};
use crate::attach::load;
use crate::capture::recorder::Recorder;
use crate::cli::{OutputFormat, RunArgs};
use crate::domain::UnixNanos;
use crate::host::interfaces::Interface;
use crate::host::link_watch::{LinkEvent, LinkWatch};
use crate::host::privileges;
use crate::host::sandbox::{self, Files};
use crate::host::time_zone::{self, UnknownZone};
use crate::notice::Notices;
use crate::output::Render;
use crate::output::clock::Clock;
use crate::output::line::Line;
use crate::output::sink::Sink;
use crate::stop::{ExitReason, Stop};

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
        let notices = Notices::new(output.verbosity.level());
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

    /// Why the output accepts nothing more; `None` if it still does.
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

    /// Checks whether the reader of the output has closed it.
    pub fn look_at_output(&mut self) {
        let mut fds = [PollFd::new(self.output(), PollFlags::empty())];
        if poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            self.close_output();
        }
    }

    /// Starts the time of `--duration`, and enters the sandbox. Capabilities have to be dropped
    /// before.
    pub fn start(&mut self, files: Files) {
        // Loading programs takes more memory than running them.
        crate::sys::give_back_memory();
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

    /// Reports that all is attached: from here on no event is missed.
    pub fn attached(&self, what: &str) {
        self.notices.status(&format!("attached: {what}"));
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
}
