//! One line while it is rendered.
//!
//! It is built in an array by copies of constant size: bytes beyond the end of a field are
//! overwritten by the next one. So most fields cost a few instructions, and no call.

use super::escape;

/// Most lines are shorter; a longer one grows in steps of this.
const ROOM: usize = 1024;

/// Memory for a line, kept from one to the next.
pub struct Room {
    bytes: [u8; ROOM],
    has_colors: bool,
}

impl Room {
    /// Room for lines that may have colors, or not.
    pub fn new(has_colors: bool) -> Self {
        Self {
            bytes: [0; ROOM],
            has_colors,
        }
    }

    /// Whether lines may have colors.
    pub fn has_colors(&self) -> bool {
        self.has_colors
    }
}

/// A line that is appended to a buffer. Code that renders it is inlined; code that is not inlined
/// does not get the line, so that `len` stays in a register.
pub struct Line<'a> {
    room: &'a mut [u8; ROOM],
    len: usize,
    out: &'a mut Vec<u8>,
    has_colors: bool,
}

impl Line<'_> {
    /// Appends to `out` what `render` writes.
    #[inline]
    pub fn render(room: &mut Room, out: &mut Vec<u8>, render: impl FnOnce(&mut Line<'_>)) {
        if room.has_colors {
            return Self::render_colored(room, out, render);
        }
        Self::render_with(false, &mut room.bytes, out, render);
    }

    /// A function of its own, so that lines without colors pay nothing for them.
    #[cold]
    #[inline(never)]
    fn render_colored(room: &mut Room, out: &mut Vec<u8>, render: impl FnOnce(&mut Line<'_>)) {
        Self::render_with(true, &mut room.bytes, out, render);
    }

    #[inline(always)]
    fn render_with(
        has_colors: bool,
        room: &mut [u8; ROOM],
        out: &mut Vec<u8>,
        render: impl FnOnce(&mut Line<'_>),
    ) {
        let mut line = Line {
            room,
            len: 0,
            out,
            has_colors,
        };
        render(&mut line);
        line.out.extend_from_slice(&line.room[..line.len]);
    }

    /// Appends the first `len` of some bytes.
    #[inline(always)]
    pub fn put<const N: usize>(&mut self, bytes: [u8; N], len: usize) {
        const { assert!(N <= ROOM) };
        if self.len > ROOM - N {
            spill(self.out, &self.room[..self.len]);
            self.len = 0;
        }
        self.room[self.len..self.len + N].copy_from_slice(&bytes);
        self.len += len.min(N);
    }

    /// Appends a byte.
    #[inline(always)]
    pub fn push(&mut self, byte: u8) {
        self.put([byte], 1);
    }

    /// Appends bytes. It is fastest if the compiler knows how many.
    #[inline(always)]
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        if bytes.len() > ROOM - self.len {
            spill(self.out, &self.room[..self.len]);
            self.len = 0;
            if bytes.len() > ROOM {
                spill(self.out, bytes);
                return;
            }
        }
        self.room[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// Whether the line goes to a terminal that shows colors.
    #[inline(always)]
    pub(super) fn has_colors(&self) -> bool {
        self.has_colors
    }

    /// How many bytes there are so far: those of this line and those that the buffer held before.
    #[inline(always)]
    pub(super) fn position(&self) -> usize {
        self.out.len() + self.len
    }

    /// Appends spaces up to a position, or one if it is passed already.
    #[inline(always)]
    pub(super) fn pad_to(&mut self, position: usize) {
        let mut missing = position.saturating_sub(self.position()).max(1);
        while missing > 40 {
            self.put([b' '; 40], 40);
            missing -= 40;
        }
        self.put([b' '; 40], missing);
    }

    /// Puts spaces before what was written since a position, to make it this wide.
    #[inline(always)]
    pub(super) fn align_right(&mut self, position: usize, width: usize) {
        const WORD: usize = size_of::<u64>();
        let written = self.position() - position;
        // Earlier lines stay in the buffer.
        let Some(start) = position.checked_sub(self.out.len()) else {
            return;
        };
        if written >= width || start + width.max(WORD) > ROOM {
            return;
        }
        let missing = width - written;
        if width <= WORD
            && missing < WORD
            && let Some(word) = self.room[start..].first_chunk_mut::<WORD>()
        {
            // Nearly all values are this short: they move within a register.
            let shift = 8 * missing;
            let spaces = u64::from_le_bytes([b' '; WORD]) >> (64 - shift);
            *word = (u64::from_le_bytes(*word) << shift | spaces).to_le_bytes();
        } else {
            self.room.copy_within(start..self.len, start + missing);
            self.room[start..start + missing].fill(b' ');
        }
        self.len += missing;
    }

    /// Appends bytes as [`escape::push_text`] does.
    #[inline(always)]
    pub fn push_text(&mut self, bytes: &[u8]) {
        if escape::is_plain_text(bytes) {
            // Names are short: a call of memcpy would cost more.
            bytes.iter().for_each(|byte| self.push(*byte));
        } else {
            self.extend_from_slice(&escaped(escape::push_text, bytes));
        }
    }

    /// Appends a JSON string as [`escape::push_json`] does.
    #[inline(always)]
    pub fn push_json(&mut self, bytes: &[u8]) {
        if escape::is_plain_json(bytes) {
            self.push(b'"');
            bytes.iter().for_each(|byte| self.push(*byte));
            self.push(b'"');
        } else {
            self.extend_from_slice(&escaped(escape::push_json, bytes));
        }
    }

    /// Appends lower-case hex digits.
    #[inline(always)]
    pub fn push_hex(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.put(escape::hex_digits(*byte), 2);
        }
    }
}

/// Moves what does not fit the array into the buffer. Rare, so it is not inlined.
#[cold]
#[inline(never)]
fn spill(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
}

/// For text that needs escaping, which is rare.
#[cold]
#[inline(never)]
fn escaped(push: fn(&mut Vec<u8>, &[u8]), bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    push(&mut text, bytes);
    text
}

/// The bytes that `render` writes.
#[cfg(test)]
pub fn rendered(render: impl FnOnce(&mut Line<'_>)) -> String {
    rendered_with(false, render)
}

/// The bytes that `render` writes with or without colors.
#[cfg(test)]
pub fn rendered_with(has_colors: bool, render: impl FnOnce(&mut Line<'_>)) -> String {
    let mut out = Vec::new();
    Line::render(&mut Room::new(has_colors), &mut out, render);
    String::from_utf8(out).unwrap()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_go_up_to_a_position_and_there_is_always_one() {
        for width in [1, 5, 39, 40, 41, 42, 100] {
            for len in [0, 1, 4, 5, 6, 39, 40, 41, 100, 200] {
                let value = "x".repeat(len);
                let out = rendered(|out| {
                    let end = out.position() + width;
                    out.extend_from_slice(value.as_bytes());
                    out.pad_to(end);
                });
                let spaces = " ".repeat(width.saturating_sub(len).max(1));
                assert_eq!(out, format!("{value}{spaces}"));
            }
        }
    }

    #[test]
    fn a_value_is_aligned_right_however_short_or_wide_it_is() {
        for before in [0, 1, ROOM - 10, ROOM - 8, ROOM - 4, ROOM - 1, ROOM] {
            for width in [1, 2, 5, 7, 8, 9, 12, 40] {
                for len in 0..=width + 1 {
                    let (first, value) = ("a".repeat(before), "x".repeat(len));
                    let out = rendered(|out| {
                        out.extend_from_slice(first.as_bytes());
                        let start = out.position();
                        out.extend_from_slice(value.as_bytes());
                        out.align_right(start, width);
                        out.push(b'|');
                    });
                    // Without room for it in the array, the value stays where it is.
                    let aligned = format!("{first}{value:>width$}|");
                    let left = format!("{first}{value}|");
                    let fits = before + width.max(8) <= ROOM;
                    assert!(
                        out == aligned || (!fits && out == left),
                        "{before} {width} {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_line_may_be_longer_than_its_room() {
        for before in [
            0,
            1,
            ROOM - 41,
            ROOM - 40,
            ROOM - 1,
            ROOM,
            ROOM + 1,
            3 * ROOM,
        ] {
            for len in [0, 1, ROOM - 1, ROOM, ROOM + 1, 3 * ROOM] {
                let (first, second) = ("a".repeat(before), "b".repeat(len));
                let out = rendered(|out| {
                    out.extend_from_slice(first.as_bytes());
                    let end = out.position() + 20;
                    out.put(*b"12345", 3);
                    out.pad_to(end);
                    out.extend_from_slice(second.as_bytes());
                    out.push(b'\n');
                });
                assert_eq!(out, format!("{first}{:<20}{second}\n", 123));
            }
        }
    }
}
