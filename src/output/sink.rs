//! Writes to stdout: whole lines, without delay, and never blocking once the run has to end.

use std::env;
use std::ffi::OsString;
use std::fs::{File, FileType, OpenOptions};
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{pipe2, write};

use super::line::{Line, Room};
use crate::run::stop::{ExitReason, Stop, poll_timeout};

/// How many bytes are gathered before they are written, if no flush comes earlier. As whole lines,
/// which leave the end of each page empty, they fill the 16 pages of a pipe.
const BUFFER: usize = 56 * 1024;

/// How many bytes the kernel writes to a pipe atomically (PIPE_BUF).
const PIPE_PIECE: usize = 4096;

/// How many bytes a terminal takes without blocking if it takes anything.
const SMALL_PIECE: usize = 256;

/// How long the end of a run waits for a reader that has stopped.
const GRACE: Duration = Duration::from_millis(500);

/// Gathers data lines and writes them to stdout.
pub struct Sink {
    file: File,
    is_pipe: bool,
    /// If stdout is a pipe: writes more than one piece at once.
    stage: Option<Stage>,
    /// Determined at the start: after a hang-up, a terminal no longer reports that it is one.
    is_terminal: bool,
    /// A write may wait for the reader, because `file` is the shell's description of stdout.
    may_block: bool,
    room: Room,
    buffer: Vec<u8>,
    written: u64,
    limit: Option<u64>,
    accepted: u64,
    ended: Option<ExitReason>,
    error: Option<anyhow::Error>,
    patience: Patience,
}

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
    /// A description that does not block, where there can be one.
    pub file: File,
    /// A write may wait for the reader.
    pub may_block: bool,
    kind: FileType,
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
        // A description of our own can be made non-blocking without doing so to the shell's. What
        // can't be opened again (a socket, a pipe or terminal of another user) stays as it is.
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

impl Sink {
    /// The sink for this process's stdout, which takes at most `limit` data lines.
    ///
    /// # Errors
    /// stdout is closed.
    pub fn stdout(limit: Option<u64>) -> Result<Self> {
        let Stdout {
            file,
            may_block,
            kind,
        } = Stdout::open()?;
        let is_terminal = std::io::stdout().is_terminal();
        Ok(Self {
            may_block,
            file,
            is_pipe: kind.is_fifo(),
            // Without one, a piece at a time is written.
            stage: kind.is_fifo().then(|| Stage::new().ok()).flatten(),
            is_terminal,
            room: Room::new(is_terminal && wants_colors(|name| env::var_os(name))),
            buffer: Vec::with_capacity(2 * BUFFER),
            written: 0,
            limit,
            accepted: 0,
            ended: None,
            error: None,
            patience: Patience::default(),
        })
    }

    /// Renders one data line. False if it was not taken, because the run has ended.
    pub fn line(&mut self, stop: &Stop, render: impl FnOnce(&mut Line<'_>)) -> bool {
        if self.ended.is_some() {
            return false;
        }
        Line::render(&mut self.room, &mut self.buffer, render);
        self.accepted += 1;
        if self.limit == Some(self.accepted) {
            self.flush(stop);
            self.ended.get_or_insert(ExitReason::Count);
        } else if self.buffer.len() >= BUFFER {
            self.flush(stop);
        }
        true
    }

    /// How many data lines may still come.
    pub fn remaining(&self) -> u64 {
        self.limit.map_or(u64::MAX, |limit| limit - self.accepted)
    }

    /// Writes a line that is not data: the header, or the summary in JSON. False if it could not
    /// be written.
    pub fn extra(&mut self, stop: &Stop, render: impl FnOnce(&mut Line<'_>)) -> bool {
        self.flush(stop);
        let before = self.written;
        if self.can_write() {
            Line::render(&mut self.room, &mut self.buffer, render);
            self.flush(stop);
        }
        std::mem::replace(&mut self.written, before) > before
    }

    /// Whether stdout is a terminal that may be sent colors.
    pub fn has_colors(&self) -> bool {
        self.room.has_colors()
    }

    /// Data lines that reached stdout.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Data lines that were taken, but could not be written any more. Where one call writes several
    /// (`--by` in text), intervals are counted, not lines.
    pub fn stranded(&self) -> u64 {
        self.accepted.saturating_sub(self.written)
    }

    /// Why no more lines are taken.
    pub fn ended(&self) -> Option<ExitReason> {
        self.ended
    }

    /// Notes that the reader has gone, which poll(2) reported before a write could.
    pub fn close(&mut self) {
        self.ended.get_or_insert(ExitReason::ClosedPipe);
        self.buffer.clear();
    }

    /// The error that ended the output.
    pub fn take_error(&mut self) -> Option<anyhow::Error> {
        self.error.take()
    }

    fn can_write(&self) -> bool {
        !matches!(self.ended, Some(ExitReason::ClosedPipe | ExitReason::Error))
    }

    /// Writes what was gathered, as far as the reader takes it until the run must stop.
    pub fn flush(&mut self, stop: &Stop) {
        let mut done = 0;
        while done < self.buffer.len() && self.can_write() {
            match self.pass_on(done) {
                Ok(0) => self.fail(anyhow!("stdout takes no more data")),
                Ok(n) => {
                    self.written += newlines(&self.buffer[done..done + n]);
                    done += n;
                    self.patience.renew();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if !self.patience.wait(self.file.as_fd(), stop) {
                        break;
                    }
                }
                Err(error) => self.refused(error),
            }
        }
        // Whatever is left can't be written any more: it counts as stranded.
        if self.stage.as_ref().is_some_and(|stage| stage.held > 0) {
            self.stage = None;
        }
        self.buffer.clear();
    }

    /// Writes as much of the gathered lines as stdout takes now. Returns how much that was.
    fn pass_on(&mut self, done: usize) -> std::io::Result<usize> {
        let rest = &self.buffer[done..];
        if let Some(stage) = &mut self.stage
            && (stage.held > 0 || rest.len() > PIPE_PIECE || self.may_block)
        {
            match stage.pass_on(rest, self.file.as_fd()) {
                // stdout is not an ordinary pipe, or the kernel has no splice(2).
                Err(Errno::EINVAL | Errno::ENOSYS | Errno::EPERM) => self.stage = None,
                passed => return passed.map_err(Into::into),
            }
        }
        let piece = if self.is_pipe || self.may_block {
            whole_lines(rest)
        } else {
            rest.len()
        };
        self.write(done, piece)
    }

    /// Writes bytes that are not lines, as many as stdout takes without blocking. Returns how many.
    pub fn write_now(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() && self.can_write() {
            let rest = &bytes[done..];
            let piece = if self.may_block {
                &rest[..rest.len().min(SMALL_PIECE)]
            } else {
                rest
            };
            if self.may_block && !has_room(self.file.as_fd()) {
                break;
            }
            match self.file.write(piece) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => self.refused(error),
            }
        }
        done
    }

    /// Another descriptor of the same description.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    fn write(&mut self, from: usize, len: usize) -> std::io::Result<usize> {
        if self.may_block && !has_room(self.file.as_fd()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        self.file.write(&self.buffer[from..from + len])
    }

    fn refused(&mut self, error: std::io::Error) {
        // A terminal that was hung up answers EIO.
        let is_hung_up = self.is_terminal && error.raw_os_error() == Some(Errno::EIO as i32);
        if is_hung_up || error.kind() == ErrorKind::BrokenPipe {
            self.close();
        } else {
            self.fail(anyhow::Error::new(error).context("failed to write to stdout"));
        }
    }

    fn fail(&mut self, error: anyhow::Error) {
        self.ended = Some(ExitReason::Error);
        self.error.get_or_insert(error);
    }
}

/// How many bytes to write at once: whole lines that the kernel takes in one piece, so that a line
/// is never cut, even if others write too or the reader stops. A file that has room has room for
/// that much.
fn whole_lines(bytes: &[u8]) -> usize {
    if bytes.len() <= PIPE_PIECE {
        return bytes.len();
    }
    let last_end = bytes[..PIPE_PIECE].iter().rposition(|byte| *byte == b'\n');
    match last_end.or_else(|| bytes.iter().position(|byte| *byte == b'\n')) {
        Some(end) => end + 1,
        None => bytes.len(),
    }
}

/// A pipe of our own on the way to the pipe at stdout.
///
/// The kernel writes no more than [`PIPE_PIECE`] to a pipe in one piece, and each write wakes the
/// reader. But splice(2) moves whole buffers from one pipe to another, as many as there is room
/// for. So lines are written here, where no reader waits, in pieces that each are in one buffer,
/// and then moved on all at once: no line is cut, the reader wakes once, and nothing blocks.
struct Stage {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes that are in it.
    held: usize,
}

impl Stage {
    fn new() -> nix::Result<Self> {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
        let held = 0;
        Ok(Self {
            reader,
            writer,
            held,
        })
    }

    /// Fills this pipe with `lines`, whose first `held` bytes it holds already, and moves as much to
    /// `to` as has room there. Returns how many bytes that was.
    fn pass_on(&mut self, lines: &[u8], to: BorrowedFd<'_>) -> nix::Result<usize> {
        while self.held < lines.len() {
            let rest = &lines[self.held..];
            match write(&self.writer, &rest[..whole_lines(rest)]) {
                Ok(len) => self.held += len,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error),
            }
        }
        let now = SpliceFFlags::SPLICE_F_NONBLOCK;
        let passed = splice(&self.reader, None, to, None, self.held, now)?;
        self.held -= passed;
        Ok(passed)
    }
}

/// How many lines end in these bytes.
fn newlines(bytes: &[u8]) -> u64 {
    // The compiler vectorizes a sum of bytes. In chunks of this size the sum fits a byte, and each
    // chunk is a whole number of vectors.
    let count = |chunk: &[u8]| {
        chunk
            .iter()
            .map(|byte| u8::from(*byte == b'\n'))
            .sum::<u8>()
    };
    bytes.chunks(224).map(|chunk| u64::from(count(chunk))).sum()
}

/// Whether a terminal may be sent colors: not with NO_COLOR (<https://no-color.org>), and only if
/// TERM says that it has some.
fn wants_colors(env: impl Fn(&str) -> Option<OsString>) -> bool {
    let refuses = env("NO_COLOR").is_some_and(|value| !value.is_empty());
    let term = env("TERM").unwrap_or_default();
    !refuses && !term.is_empty() && term != "dumb"
}

impl AsFd for Sink {
    /// To learn by poll that the reader has gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_gets_colors_unless_it_has_none_or_nobody_wants_them() {
        let wanted = |variables: &[(&str, &str)]| {
            wants_colors(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| OsString::from(value))
            })
        };
        assert!(wanted(&[("TERM", "xterm")]));
        assert!(wanted(&[("TERM", "linux"), ("NO_COLOR", "")]));
        assert!(!wanted(&[("TERM", "xterm"), ("NO_COLOR", "1")]));
        assert!(!wanted(&[("TERM", "dumb")]));
        assert!(!wanted(&[]));
    }

    #[test]
    fn a_piece_is_whole_lines_and_fits_a_pipe_unless_a_line_does_not() {
        for len in [1, 2, 63, 64, 65, 170, 4095, 4096] {
            let lines = format!("{}\n", "x".repeat(len - 1)).repeat(20_000 / len);
            let piece = whole_lines(lines.as_bytes());
            let expected = lines.len().min(PIPE_PIECE / len * len);
            assert_eq!(piece, expected, "{len}");
        }
        let long = format!("{}\nshort\n", "x".repeat(5000));
        assert_eq!(whole_lines(long.as_bytes()), 5001);
        assert_eq!(whole_lines(&long.as_bytes()[..5000]), 5000);
        assert_eq!(whole_lines(b"the end of a line\nand more"), 26);
    }

    #[test]
    fn all_ends_of_lines_are_counted() {
        for len in [0, 1, 223, 224, 225, 1000, 10_000] {
            assert_eq!(newlines(&vec![b'\n'; len]), len as u64);
            assert_eq!(newlines(&vec![b'x'; len]), 0);
        }
    }
}
