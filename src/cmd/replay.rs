//! `-r`: each frame of a capture file through the very program that is attached live.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::ProgramInput;

use crate::capture::{Capture, CaptureError, Frame};
use crate::failure::{Exit, Failure};
use crate::notice::Notices;
use crate::output::clock::UnixNanos;
use crate::session::Session;
use crate::skel::REPLAY_BYTES;
use crate::stop::ExitReason;

/// Shorter frames are given to the kernel with zeros behind them; the program is told the true
/// length. A test run asks for an Ethernet header, at TC some kernels ask for something behind it,
/// and newer ones (bpf_prog_test_run_skb in 6.18) for a whole IPv4 or IPv6 header if that is what
/// the EtherType says.
const SHORTEST: usize = 64;

/// What of a frame is given to BPF_PROG_TEST_RUN, which takes about a page less headroom. The
/// program finds the rest in a buffer beside it.
pub const LINEAR: usize = 2048;

/// How often the end of the run and the progress are looked at, in frames.
const CHECK_EVERY: u64 = 1024;

/// Opens the file: an error that is the command line's is told as such.
///
/// # Errors
/// The file can't be opened or is no capture.
pub fn open(path: &Path) -> Result<Capture, Failure> {
    Capture::open(path).map_err(failure)
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

/// What the program is told of a frame, besides its first bytes.
pub struct Prepared<'a> {
    /// Its length.
    pub len: u32,
    /// Its bytes, if they are more than a test run takes.
    pub beyond: Option<&'a [u8]>,
    /// Its time, in ns.
    pub at: UnixNanos,
}

/// A command whose program frames are run through.
pub trait Replayed {
    /// Runs one frame: sets what the program is told, runs it, and takes what it says.
    ///
    /// # Errors
    /// The kernel refuses the run, or the output can't be written.
    fn run(
        &mut self,
        session: &Session,
        frame: &Frame<'_>,
        prepared: &Prepared<'_>,
        input: ProgramInput<'_>,
    ) -> Result<()>;
}

/// Runs all frames of a file.
///
/// # Errors
/// A frame's length has no room in 32 bits. An error in the file is returned in the `Ok`, as is
/// one of the kernel, for all frames before it were handled and are still to be reported.
pub fn run(
    session: &mut Session,
    capture: &mut Capture,
    replayed: &mut impl Replayed,
) -> Result<Option<Failure>, Failure> {
    if capture.may_wait() {
        // What was printed must not wait for what comes next, and neither must the end of the run.
        let io = session.io();
        capture.before_reading(move |file| io.wait_for_input(file));
    }
    let mut progress = Progress::new(session.notices);
    let mut padded = [0; SHORTEST];
    let mut last_at = 0;
    let mut frames = 0u64;
    loop {
        if frames.is_multiple_of(CHECK_EVERY) {
            session.output.borrow_mut().sink.flush(&session.stop);
            progress.show(capture, frames);
        }
        let output_ended = session.output.borrow().sink.ended().is_some();
        if (frames.is_multiple_of(CHECK_EVERY) || output_ended) && session.is_over() {
            progress.clear();
            return Ok(None);
        }
        let frame = match capture.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => {
                progress.clear();
                session.end(ExitReason::EndOfFile);
                return Ok(None);
            }
            // Waiting for more was given up because the run is over.
            Err(_) if session.is_over() => {
                progress.clear();
                return Ok(None);
            }
            Err(error) => {
                progress.clear();
                session.end(ExitReason::Error);
                return Ok(Some(failure(error)));
            }
        };
        frames += 1;
        // A frame without a time is as late as the one before it.
        last_at = frame.ts_ns.unwrap_or(last_at);
        let bytes = frame.bytes;
        let prepared = Prepared {
            len: u32::try_from(bytes.len()).context("the frame is too long")?,
            beyond: (bytes.len() > LINEAR).then(|| &bytes[..bytes.len().min(REPLAY_BYTES)]),
            at: last_at,
        };
        let data = if bytes.len() < SHORTEST {
            padded.fill(0);
            padded[..bytes.len()].copy_from_slice(bytes);
            &padded[..]
        } else {
            &bytes[..bytes.len().min(LINEAR)]
        };
        let input = ProgramInput {
            data_in: Some(data),
            ..ProgramInput::default()
        };
        if let Err(error) = replayed.run(session, &frame, &prepared, input) {
            progress.clear();
            session.end(ExitReason::Error);
            let error = error.context(format!("failed to run frame {frames}"));
            return Ok(Some(error.into()));
        }
    }
}

/// A line on the terminal that tells how far a long replay is.
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
        // The cursor goes back to the beginning, so that a data line on the same terminal, which
        // is always longer, takes the place of this one. A terminal that is gone needs none.
        let _ = write!(std::io::stderr(), "\r\x1b[K{frames} frames{part}\r");
    }

    fn clear(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
