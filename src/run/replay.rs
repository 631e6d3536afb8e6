//! `-r`: runs the frames of a capture file through the same program that is attached live.
//!
//! A test run takes many frames from a map: a system call for each frame would take most of the
//! time. If the program is to look at the packet that the kernel builds, a test run takes one
//! frame.

use std::io::{IsTerminal, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::{ErrorKind, ProgramInput, ProgramMut};

use crate::capture::{Capture, CaptureError, CaptureFile, Frame, LinkKind};
use crate::domain::UnixNanos;
use crate::failure::{Exit, Failure};
use crate::notice::Notices;
use crate::run::session::Session;
use crate::skel::{self, PacketSkel, REPLAY_BYTES, REPLAY_FRAMES};
use crate::stop::ExitReason;

/// Shorter frames are padded with zeros for the kernel, and the program gets the true length. A
/// test run needs an Ethernet header. For TC programs some kernels need more than that, and newer
/// ones (bpf_prog_test_run_skb() in 6.18) a whole IPv4 or IPv6 header if the EtherType says so.
const SHORTEST: usize = 64;

/// The first bytes of a frame, which go to BPF_PROG_TEST_RUN: that takes about a page minus
/// headroom. The program reads the rest from a map.
const LINEAR: usize = 2048;

/// How often to check whether the run is over, and to show the progress.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// Opens the file without reading from it.
///
/// # Errors
/// The file can't be opened.
pub fn open(path: &Path) -> Result<CaptureFile, Failure> {
    CaptureFile::open(path).map_err(failure)
}

/// Reads the header of the file; `None` if the run ended before that.
///
/// # Errors
/// The file can't be read, or is not a capture file, which is a usage error.
pub fn begin(session: &mut Session, file: CaptureFile) -> Result<Option<Capture>, Failure> {
    let wait = session.input_wait()?;
    let interrupt = move |file: Option<BorrowedFd<'_>>| match file {
        Some(file) => wait.until_readable(file),
        None => wait.check(),
    };
    match file.read(Rc::new(interrupt)) {
        Ok(capture) => Ok(Some(capture)),
        Err(error) => {
            session.look_at_output();
            // Reading stops with an error too when the run is over.
            if session.is_over() {
                Ok(None)
            } else {
                Err(failure(error))
            }
        }
    }
}

fn failure(error: CaptureError) -> Failure {
    if error.is_usage() {
        Failure {
            exit: Exit::Usage,
            ..error.into()
        }
        .hint("-r takes a pcap or pcapng file, compressed by gzip or not, or - for stdin")
    } else {
        error.into()
    }
}

/// The steps of a command before and after the frames of a file.
pub trait AroundFrames<S> {
    /// Takes note of a frame that will be run.
    fn take(&mut self, _frame: &Frame<'_>) {}

    /// Takes note of a frame of this time. Returns whether [`AroundFrames::before`] has something to
    /// do before it.
    fn is_due(&mut self, _at: UnixNanos) -> bool {
        false
    }

    /// Does what is due before a frame of this time.
    ///
    /// # Errors
    /// The kernel refuses something.
    fn before(&mut self, _session: &mut Session, _skel: &mut S, _at: UnixNanos) -> Result<()> {
        Ok(())
    }

    /// How many frames a test run may take, so that all their events find room and no line is
    /// written beyond the last one.
    fn room(&self, _session: &Session) -> usize {
        usize::MAX
    }

    /// Takes the events that the program has sent for the frames of a test run.
    fn after(&mut self, _session: &mut Session, _frames: &[Origin]) {}
}

/// The intervals of a capture file, which follow the times in it.
pub struct Intervals {
    /// In ns.
    length: i64,
    /// When the current interval began; `None` before the first frame.
    started: Option<UnixNanos>,
}

impl Intervals {
    /// The first one begins with the first frame.
    pub fn new(length: Duration) -> Self {
        Self {
            length: i64::try_from(length.as_nanos()).unwrap_or(i64::MAX),
            started: None,
        }
    }

    /// Whether a frame of this time comes after the current interval.
    pub fn is_over(&mut self, at: UnixNanos) -> bool {
        let started = *self.started.get_or_insert(at);
        at.saturating_sub(started) >= self.length
    }

    /// The length of an interval.
    pub fn length(&self) -> Duration {
        Duration::from_nanos(self.length.unsigned_abs())
    }

    /// When the current interval ends, and its length. `at` is the time of the next frame.
    pub fn current(&self, at: UnixNanos) -> (UnixNanos, Duration) {
        let started = self.started.unwrap_or(at);
        (started.saturating_add(self.length), self.length())
    }

    /// Begins the interval of a frame of this time, and returns how many have no frame before it: a
    /// file can jump by years.
    pub fn skip_to(&mut self, at: UnixNanos) -> i64 {
        let started = self.started.unwrap_or(at);
        let passed = at.saturating_sub(started) / self.length;
        self.started = Some(started.saturating_add(passed * self.length));
        passed - 1
    }

    /// When the last interval ends, and its length, if there is one. `latest` is the time of the last
    /// frame. If all frames have the same time, the interval is a whole one.
    pub fn last(&self, latest: UnixNanos) -> Option<(UnixNanos, Duration)> {
        let started = self.started?;
        let length = match latest.saturating_sub(started) {
            length @ 1.. => length,
            _ => self.length,
        };
        let end = started.saturating_add(length);
        Some((end, Duration::from_nanos(length.unsigned_abs())))
    }
}

/// For programs that only count.
impl<S> AroundFrames<S> for () {}

/// Where a frame of a test run is from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The kind of link that it was captured on.
    pub link: LinkKind,
    /// See [`Frame::offset_shift`].
    pub offset_shift: i32,
}

/// Runs all frames of a file through a program, each alone or many at once.
/// Returns the failure in the file or from the kernel, if there is one: all frames before it were
/// handled, and are still to be reported.
pub fn run<'obj, S: PacketSkel<'obj>>(
    session: &mut Session,
    capture: &mut Capture,
    runner: &mut Runner<'_, S, impl Fn(&S) -> &ProgramMut<'_>, impl AroundFrames<S>>,
) -> Option<Failure> {
    let mut progress = Progress::new(session.notices);
    let ended = run_frames(session, capture, runner, &mut progress);
    progress.clear();
    match ended {
        Ok(Ended::OfFile) => {
            session.end(ExitReason::EndOfFile);
            None
        }
        Ok(Ended::OfRun) => None,
        Err(failure) => {
            session.end(ExitReason::Error);
            Some(failure)
        }
    }
}

/// Whether the file or the run has ended.
enum Ended {
    OfFile,
    OfRun,
}

fn run_frames<'obj, S: PacketSkel<'obj>>(
    session: &mut Session,
    capture: &mut Capture,
    runner: &mut Runner<'_, S, impl Fn(&S) -> &ProgramMut<'_>, impl AroundFrames<S>>,
    progress: &mut Progress,
) -> Result<Ended, Failure> {
    let mut last_at = 0;
    let mut check_due = Instant::now();
    loop {
        // The clock is read only when no frames are buffered.
        let is_due = runner.is_empty() && Instant::now() >= check_due;
        // Write out lines before waiting for input, which can take long.
        if is_due || capture.may_wait() {
            runner.run(session)?;
            session.flush();
        }
        if is_due {
            progress.show(capture, runner.frames);
            check_due = Instant::now() + CHECK_EVERY;
        }
        let output_ended = session.output_ended().is_some();
        if (is_due || output_ended) && session.is_over() {
            return Ok(Ended::OfRun);
        }
        let frame = match capture.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                runner.run(session)?;
                return Ok(Ended::OfFile);
            }
            Err(error) => {
                runner.run(session)?;
                session.look_at_output();
                // Waiting for input stops with an error too when the run is over.
                if session.is_over() {
                    return Ok(Ended::OfRun);
                }
                return Err(failure(error));
            }
        };
        // A frame without a timestamp gets that of the frame before it.
        last_at = frame.ts_ns.unwrap_or(last_at);
        runner.take(session, &frame, last_at)?;
    }
}

/// Gathers frames, and runs a program on them.
pub struct Runner<'a, S, P, A> {
    skel: &'a mut S,
    program: P,
    around: &'a mut A,
    /// Each frame alone is the packet that the program gets from the kernel.
    one_at_a_time: bool,
    /// The frames that are in the map.
    origins: Vec<Origin>,
    /// The bytes of these frames.
    bytes: usize,
    /// Frames that were run.
    frames: u64,
    /// The packet of the test run.
    packet: Vec<u8>,
}

impl<'a, 'obj, S, P, A> Runner<'a, S, P, A>
where
    S: PacketSkel<'obj>,
    P: Fn(&S) -> &ProgramMut<'_>,
    A: AroundFrames<S>,
{
    /// Runs frames through this program.
    pub fn new(skel: &'a mut S, program: P, around: &'a mut A, one_at_a_time: bool) -> Self {
        Self {
            skel,
            program,
            around,
            one_at_a_time,
            origins: Vec::new(),
            bytes: 0,
            frames: 0,
            packet: vec![0; SHORTEST],
        }
    }

    fn is_empty(&self) -> bool {
        self.origins.is_empty()
    }

    /// Takes a frame, and runs those that were taken if no other has room.
    fn take(&mut self, session: &mut Session, frame: &Frame<'_>, at: UnixNanos) -> Result<()> {
        if self.around.is_due(at) {
            self.run(session)?;
            self.around.before(session, self.skel, at)?;
            // If the last line that --count allows is written, this frame comes after it.
            if session.output_ended().is_some() {
                return Ok(());
            }
        }
        if self.bytes + frame.bytes.len() > REPLAY_BYTES {
            self.run(session)?;
        }
        self.around.take(frame);
        let place = (self.origins.len(), self.bytes);
        let frames = self.skel.replayed_frames().context(NO_FRAMES)?;
        skel::put_frame(
            frames,
            place,
            frame.bytes,
            frame.wire_len,
            at.cast_unsigned(),
        )?;
        self.bytes += frame.bytes.len();
        self.origins.push(Origin {
            link: frame.link,
            offset_shift: frame.offset_shift,
        });
        let room = match self.one_at_a_time {
            true => {
                self.packet.clear();
                let linear = frame.bytes.len().min(LINEAR);
                self.packet.extend_from_slice(&frame.bytes[..linear]);
                self.packet.resize(linear.max(SHORTEST), 0);
                1
            }
            false => REPLAY_FRAMES.min(self.around.room(session)),
        };
        if self.origins.len() >= room {
            self.run(session)?;
        }
        Ok(())
    }

    /// Runs the program on the frames that were taken.
    fn run(&mut self, session: &mut Session) -> Result<()> {
        let count = self.origins.len();
        if count == 0 {
            return Ok(());
        }
        skel::rewind(self.skel.replayed_frames().context(NO_FRAMES)?);
        let mut done = 0;
        while done < count {
            let input = ProgramInput {
                data_in: Some(&self.packet),
                repeat: u32::try_from(count - done)?,
                ..ProgramInput::default()
            };
            let ran = (self.program)(self.skel).test_run(input);
            let taken = skel::frames_taken(self.skel.replayed_frames().context(NO_FRAMES)?);
            match ran {
                Ok(_) => {}
                // By a signal: go on after the last frame.
                Err(error) if error.kind() == ErrorKind::Interrupted && taken > done => {}
                Err(error) => {
                    let number = self.frames + taken as u64 + 1;
                    return Err(error).with_context(|| format!("failed to run frame {number}"));
                }
            }
            done = taken;
        }
        self.frames += count as u64;
        self.around.after(session, &self.origins);
        self.origins.clear();
        self.bytes = 0;
        Ok(())
    }
}

const NO_FRAMES: &str = "the program has no buffer for frames";

/// A line on the terminal that shows the progress of a long replay.
struct Progress {
    enabled: bool,
    shown: bool,
    next: Instant,
}

impl Progress {
    const EVERY: Duration = Duration::from_millis(500);

    fn new(notices: Notices) -> Self {
        Self {
            enabled: notices.wants_progress() && std::io::stderr().is_terminal(),
            shown: false,
            next: Instant::now() + Self::EVERY,
        }
    }

    fn show(&mut self, capture: &Capture, frames: u64) {
        if !self.enabled || Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + Self::EVERY;
        self.shown = true;
        let part = match capture.file_len() {
            Some(len) if len > 0 => format!(", {} %", capture.bytes_read() * 100 / len),
            _ => String::new(),
        };
        // The cursor goes back to the start of the line, so that the next line of output, which is
        // always longer, overwrites this one. Errors don't matter: then the terminal is gone.
        let _ = write!(std::io::stderr(), "\r\x1b[K{frames} frames{part}\r");
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
