//! Output: the sink that writes to stdout, and the pure functions that render into it.

pub mod check;
pub mod clock;
pub mod connect;
pub mod count;
pub mod escape;
pub mod flow;
pub mod json;
pub mod packet;
pub mod sink;
pub mod summary;

/// Appends what `push` writes, padded on the right to `width` bytes. A value that is wider moves
/// the rest of its line, but a space always follows it.
pub(crate) fn pad_right(out: &mut Vec<u8>, width: usize, push: impl FnOnce(&mut Vec<u8>)) {
    let end = out.len() + width;
    push(out);
    if out.len() >= end {
        out.push(b' ');
    } else {
        out.resize(end, b' ');
    }
}

/// Appends what `push` writes, padded on the left to `width` bytes.
pub(crate) fn pad_left(out: &mut Vec<u8>, width: usize, push: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    push(out);
    let len = out.len() - start;
    if len < width {
        out.resize(start + width, b' ');
        out.copy_within(start..start + len, start + width - len);
        out[start..start + width - len].fill(b' ');
    }
}
