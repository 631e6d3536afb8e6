//! Reads from BPF iterators.

use std::io::{self, ErrorKind, Read};

use libbpf_rs::Iter;

/// After a scan of all open files, wait this many times as long as it took: a host may have very
/// many of them.
pub const REST: u32 = 50;

/// Reads until the iterator's program has written something. 0: it has visited everything.
///
/// # Errors
/// The kernel refuses it.
pub fn read(iterator: &mut Iter, bytes: &mut [u8]) -> io::Result<usize> {
    loop {
        match iterator.read(bytes) {
            // The kernel ends a read(2) with EAGAIN after a million visits without output.
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            ended => return ended,
        }
    }
}
