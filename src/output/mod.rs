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
    let missing = end.saturating_sub(out.len()).max(1);
    if missing <= 40 {
        json::push_start(out, [b' '; 40], missing);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_have_their_width_and_a_space_after_what_is_wider() {
        for width in [1, 5, 39, 40, 41, 42, 100] {
            for len in [0, 1, 4, 5, 6, 39, 40, 41, 100, 200] {
                let value = "x".repeat(len);
                let mut out = b"before".to_vec();
                pad_right(&mut out, width, |out| {
                    out.extend_from_slice(value.as_bytes())
                });
                let expected = format!(
                    "before{value}{}",
                    " ".repeat(width.saturating_sub(len).max(1))
                );
                assert_eq!(String::from_utf8(out).unwrap(), expected);

                let mut out = b"before".to_vec();
                pad_left(&mut out, width, |out| {
                    out.extend_from_slice(value.as_bytes())
                });
                let expected = format!("before{value:>width$}");
                assert_eq!(String::from_utf8(out).unwrap(), expected);
            }
        }
    }
}
