//! Writes whole lines to a pipe, several pages at once.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::libc::PIPE_BUF;
use nix::unistd::{pipe2, write};

/// How many bytes to write at once: whole lines that the kernel takes in one piece, so that a line
/// is never cut, even if others write too or the reader stops. A pipe that poll(2) reports as
/// writable has room for that much.
pub(super) fn whole_lines(bytes: &[u8]) -> usize {
    if bytes.len() <= PIPE_BUF {
        return bytes.len();
    }
    let last_end = bytes[..PIPE_BUF].iter().rposition(|byte| *byte == b'\n');
    match last_end.or_else(|| bytes.iter().position(|byte| *byte == b'\n')) {
        Some(end) => end + 1,
        None => bytes.len(),
    }
}

/// A pipe of our own on the way to the pipe at stdout.
///
/// The kernel writes no more than [`PIPE_BUF`] to a pipe in one piece, and each write wakes the
/// reader. But splice(2) moves whole buffers from one pipe to another, as many as there is room
/// for. So lines are written here, where no reader waits, in pieces that each are in one buffer,
/// and then moved on all at once: no line is cut, the reader wakes once, and nothing blocks.
pub(super) struct Stage {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes that are in it.
    pub(super) held: usize,
}

impl Stage {
    pub(super) fn new() -> nix::Result<Self> {
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
    pub(super) fn pass_on(&mut self, lines: &[u8], to: BorrowedFd<'_>) -> nix::Result<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_whole_lines_and_fits_a_pipe_unless_a_line_does_not() {
        for len in [1, 2, 63, 64, 65, 170, 4095, 4096] {
            let lines = format!("{}\n", "x".repeat(len - 1)).repeat(20_000 / len);
            let piece = whole_lines(lines.as_bytes());
            let expected = lines.len().min(PIPE_BUF / len * len);
            assert_eq!(piece, expected, "{len}");
        }
        let long = format!("{}\nshort\n", "x".repeat(5000));
        assert_eq!(whole_lines(long.as_bytes()), 5001);
        assert_eq!(whole_lines(&long.as_bytes()[..5000]), 5000);
        assert_eq!(whole_lines(b"the end of a line\nand more"), 26);
    }
}
