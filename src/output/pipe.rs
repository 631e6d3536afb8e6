//! Writes whole lines to a pipe.
//!
//! POSIX promises that up to [`PIPE_BUF`] bytes are written in one piece. Linux holds the pipe's lock
//! while it writes, so it also writes more in one piece if there is room for all of it. A byte then costs
//! half as much. So large pieces are written while the pipe is nearly empty, and small ones when
//! the reader is slow.

use std::os::fd::BorrowedFd;
use std::thread;
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc::PIPE_BUF;

use crate::sys::pipe::unread;

/// The size of a pipe that nobody has changed, on a machine with pages of 4 KiB.
const DEFAULT: i32 = 1 << 16;

/// The size that such a pipe gets: the most that a process without privileges may ask for (pipe-max-size in
/// proc(5)).
const ENLARGED: i32 = 1 << 20;

/// The pipe at stdout.
pub(super) struct Pipe {
    /// How much to write at once, and how much may be unread then: a quarter of the size. A pipe has
    /// room for a number of pages, and the kernel begins a new page only if the data does not fit the
    /// last one. So two neighbouring pages together hold more than one page of data, what is unread
    /// takes at most half of the pages, and a quarter is left for what others write meanwhile. Only of
    /// writers that move short pieces by splice(2) is this not true: then a line can be cut.
    most: usize,
}

impl Pipe {
    /// Makes the pipe larger if it has the default size and the kernel allows that.
    pub(super) fn new(pipe: BorrowedFd<'_>) -> Self {
        let size = fcntl(pipe, FcntlArg::F_GETPIPE_SZ).unwrap_or(0);
        let size = if size == DEFAULT {
            fcntl(pipe, FcntlArg::F_SETPIPE_SZ(ENLARGED)).unwrap_or(size)
        } else {
            size
        };
        let most = usize::try_from(size / 4).unwrap_or(0);
        Self { most }
    }

    /// How many bytes of `lines` to write at once: whole lines that the kernel takes in one piece, so
    /// that a line is never cut, even if others write too or the reader stops.
    pub(super) fn piece(&self, pipe: BorrowedFd<'_>, lines: &[u8]) -> usize {
        let has_room = || unread(pipe).is_ok_and(|bytes| bytes <= self.most);
        let is_small = lines.len().min(self.most) <= PIPE_BUF;
        if is_small || !(has_room() || has_room_after_pause(has_room)) {
            whole_lines(lines, PIPE_BUF)
        } else {
            whole_lines(lines, self.most)
        }
    }
}

/// Lets a slow reader read for a moment. Returns whether there is room then.
fn has_room_after_pause(has_room: impl Fn() -> bool) -> bool {
    thread::sleep(Duration::from_micros(200));
    has_room()
}

/// The length of the whole lines in the first `most` bytes, or of the first line, if it is longer.
pub(super) fn whole_lines(bytes: &[u8], most: usize) -> usize {
    if bytes.len() <= most {
        return bytes.len();
    }
    let last_end = bytes[..most].iter().rposition(|byte| *byte == b'\n');
    match last_end.or_else(|| bytes.iter().position(|byte| *byte == b'\n')) {
        Some(end) => end + 1,
        None => bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_is_whole_lines_and_fits_a_pipe_unless_a_line_does_not() {
        for len in [1, 2, 63, 64, 65, 170, 4095, 4096] {
            let lines = format!("{}\n", "x".repeat(len - 1)).repeat(20_000 / len);
            let piece = whole_lines(lines.as_bytes(), PIPE_BUF);
            let expected = lines.len().min(PIPE_BUF / len * len);
            assert_eq!(piece, expected, "{len}");
        }
        let long = format!("{}\nshort\n", "x".repeat(5000));
        assert_eq!(whole_lines(long.as_bytes(), PIPE_BUF), 5001);
        assert_eq!(whole_lines(&long.as_bytes()[..5000], PIPE_BUF), 5000);
        assert_eq!(whole_lines(b"the end of a line\nand more", PIPE_BUF), 26);
    }
}
