//! Writes to stdout: whole lines, without delay, and never blocking once the run has to end.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{ErrorKind, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileTypeExt;

use anyhow::{Result, anyhow};
use nix::errno::Errno;
use nix::libc::PIPE_BUF;

use super::line::{Line, Room};
use super::pipe::{Pipe, whole_lines};
use super::stdout::{Patience, Stdout, has_room};
use crate::stop::{ExitReason, Stop};

/// How many bytes are buffered before they are written, if no flush comes earlier.
const BUFFER: usize = 224 * 1024;

/// How many bytes a terminal takes without blocking if it takes anything.
const TERMINAL_PIECE: usize = 256;

/// Buffers data lines and writes them to stdout.
pub struct Sink {
    file: File,
    /// If stdout is a pipe.
    pipe: Option<Pipe>,
    /// Determined at the start: after a hang-up, a terminal no longer reports that it is one.
    is_terminal: bool,
    /// A write may wait for the reader, because `file` is the open file description of the shell.
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

impl Sink {
    /// The sink for this process's stdout, which accepts at most `limit` data lines.
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
            pipe: kind.is_fifo().then(|| Pipe::new(file.as_fd())),
            file,
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

    /// Writes the buffered bytes. Gives up if the reader takes no more and the run has to stop.
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
        self.buffer.clear();
    }

    /// Writes as much of the buffered lines as stdout takes now. Returns how much that was.
    fn pass_on(&mut self, done: usize) -> std::io::Result<usize> {
        if self.may_block && !has_room(self.file.as_fd()) {
            return Err(ErrorKind::WouldBlock.into());
        }
        let rest = &self.buffer[done..];
        let piece = match &self.pipe {
            _ if self.may_block => whole_lines(rest, PIPE_BUF),
            Some(pipe) => pipe.piece(self.file.as_fd(), rest),
            None => rest.len(),
        };
        self.file.write(&rest[..piece])
    }

    /// Writes bytes that are not lines, as many as stdout takes without blocking. Returns how many.
    pub fn write_now(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() && self.can_write() {
            let rest = &bytes[done..];
            let piece = if self.may_block {
                &rest[..rest.len().min(TERMINAL_PIECE)]
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

    /// Another descriptor of the same open file description.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn try_clone(&self) -> std::io::Result<File> {
        self.file.try_clone()
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
    fn all_ends_of_lines_are_counted() {
        for len in [0, 1, 223, 224, 225, 1000, 10_000] {
            assert_eq!(newlines(&vec![b'\n'; len]), len as u64);
            assert_eq!(newlines(&vec![b'x'; len]), 0);
        }
    }
}
