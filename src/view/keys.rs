//! Decodes the bytes that a terminal sends for keys.
//!
//! termion's decoder (4.0, `parse_event`) panics on a sequence that is incomplete or has a number
//! out of range, and sequences do arrive in pieces. That of crossterm is private to its reader,
//! which waits for input by itself.

/// A key that was pressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A printable character.
    Char(char),
    /// A letter with the control key.
    Ctrl(char),
    Enter,
    Esc,
    Backspace,
    Up,
    Down,
    Left,
    Right,
    Home,
    End,
    PageUp,
    PageDown,
}

const ESC: u8 = 0x1b;

/// The longest sequence that the decoder waits for.
const LONGEST: usize = 32;

/// Decodes keys from bytes as they arrive.
#[derive(Debug, Default)]
pub struct Keys {
    /// An incomplete sequence.
    begun: Vec<u8>,
}

/// The result of parsing the first bytes.
enum Parsed {
    /// A key and its length in bytes; `None`: the key has no meaning here.
    Key(Option<Key>, usize),
    /// An incomplete sequence.
    Begun,
}

impl Keys {
    /// Decodes new bytes. A single ESC at their end is the Escape key: the decoder does not wait to
    /// see whether more follows.
    pub fn take(&mut self, bytes: &[u8]) -> Vec<Key> {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let mut keys = Vec::new();
        let mut rest = all.as_slice();
        while !rest.is_empty() {
            match parse(rest) {
                Parsed::Key(key, len) => {
                    keys.extend(key);
                    rest = &rest[len..];
                }
                Parsed::Begun if rest.len() < LONGEST => {
                    self.begun = rest.to_vec();
                    break;
                }
                Parsed::Begun => break,
            }
        }
        keys
    }
}

fn parse(bytes: &[u8]) -> Parsed {
    let one = |key| Parsed::Key(Some(key), 1);
    match bytes[0] {
        ESC => parse_escape(bytes),
        b'\r' | b'\n' => one(Key::Enter),
        0x08 | 0x7f => one(Key::Backspace),
        byte @ 1..=26 => one(Key::Ctrl(char::from(byte - 1 + b'a'))),
        0..0x20 => Parsed::Key(None, 1),
        _ => parse_char(bytes),
    }
}

/// A character in UTF-8.
fn parse_char(bytes: &[u8]) -> Parsed {
    let start = &bytes[..bytes.len().min(4)];
    let (valid, is_cut) = match std::str::from_utf8(start) {
        Ok(text) => (text, false),
        Err(error) => {
            let valid = &start[..error.valid_up_to()];
            let is_cut = error.error_len().is_none() && start.len() == bytes.len();
            (std::str::from_utf8(valid).unwrap_or_default(), is_cut)
        }
    };
    match valid.chars().next() {
        Some(letter) => Parsed::Key(Some(Key::Char(letter)), letter.len_utf8()),
        None if is_cut => Parsed::Begun,
        None => Parsed::Key(None, 1),
    }
}

/// A sequence that begins with ESC: a control sequence (ECMA-48, 5.4), or a key with Alt, which has
/// no meaning here.
fn parse_escape(bytes: &[u8]) -> Parsed {
    match bytes.get(1) {
        None | Some(0..0x20) => Parsed::Key(Some(Key::Esc), 1),
        Some(b'O') => match bytes.get(2) {
            Some(last) => Parsed::Key(key_of(b"", *last), 3),
            None => Parsed::Begun,
        },
        // Function keys of the Linux console.
        Some(b'[') if bytes.get(2) == Some(&b'[') => match bytes.get(3) {
            Some(_) => Parsed::Key(None, 4),
            None => Parsed::Begun,
        },
        Some(b'[') => {
            let parameters = &bytes[2..];
            let len = parameters.iter().take_while(|byte| is_parameter(**byte));
            let len = len.count();
            match parameters.get(len) {
                Some(last) => Parsed::Key(key_of(&parameters[..len], *last), len + 3),
                None => Parsed::Begun,
            }
        }
        Some(_) => Parsed::Key(None, 2),
    }
}

fn is_parameter(byte: u8) -> bool {
    (0x20..0x40).contains(&byte)
}

/// The key of a control sequence with these parameters and this final byte.
fn key_of(parameters: &[u8], last: u8) -> Option<Key> {
    Some(match (last, parameters) {
        (b'A', _) => Key::Up,
        (b'B', _) => Key::Down,
        (b'C', _) => Key::Right,
        (b'D', _) => Key::Left,
        (b'H', _) | (b'~', b"1" | b"7") => Key::Home,
        (b'F', _) | (b'~', b"4" | b"8") => Key::End,
        (b'~', b"5") => Key::PageUp,
        (b'~', b"6") => Key::PageDown,
        _ => return None,
    })
}

/// Applies a key to a line of text that is typed. Returns whether typing goes on.
pub fn edit(text: &mut String, key: Key) -> bool {
    match key {
        Key::Enter => return false,
        Key::Esc => {
            text.clear();
            return false;
        }
        Key::Backspace => {
            text.pop();
        }
        Key::Char(letter) => text.push(letter),
        _ => {}
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_what_terminals_send() {
        let all = [
            ("q", vec![Key::Char('q')]),
            ("\r", vec![Key::Enter]),
            ("\x1b", vec![Key::Esc]),
            ("\x1b\x1b\r", vec![Key::Esc, Key::Esc, Key::Enter]),
            ("\x03\x1a", vec![Key::Ctrl('c'), Key::Ctrl('z')]),
            ("\x7f\x08", vec![Key::Backspace, Key::Backspace]),
            ("\x1b[A\x1bOB", vec![Key::Up, Key::Down]),
            ("\x1b[1;5C\x1b[D", vec![Key::Right, Key::Left]),
            ("\x1b[5~\x1b[6~", vec![Key::PageUp, Key::PageDown]),
            ("\x1b[H\x1b[1~\x1b[7~", vec![Key::Home; 3]),
            ("\x1b[F\x1b[4~\x1bOF", vec![Key::End; 3]),
            ("aé漢😀", "aé漢😀".chars().map(Key::Char).collect()),
            // Function keys, keys with Alt and the mouse have no meaning here.
            (
                "\x1bx\x1bOP\x1b[15~\x1b[[A\x1b[<0;5;5My",
                vec![Key::Char('y')],
            ),
        ];
        for (bytes, keys) in all {
            assert_eq!(Keys::default().take(bytes.as_bytes()), keys, "{bytes:?}");
        }
    }

    #[test]
    fn a_sequence_may_come_in_pieces() {
        let mut keys = Keys::default();
        assert_eq!(keys.take(b"\x1b["), []);
        assert_eq!(keys.take(b"5"), []);
        assert_eq!(keys.take(b"~\xe6\xbc"), [Key::PageUp]);
        assert_eq!(keys.take(b"\xa2"), [Key::Char('漢')]);
        assert_eq!(keys.take(b"\x1b["), []);
        assert_eq!(keys.take(b"B"), [Key::Down]);
    }

    #[test]
    fn any_bytes_are_accepted_and_no_sequence_is_waited_for_too_long() {
        for first in 0..=255 {
            for second in 0..=255 {
                let mut keys = Keys::default();
                keys.take(b"\x1b[");
                keys.take(&[first, second]);
                let mut keys = Keys::default();
                keys.take(&[first, second]);
                keys.take(&[0x1b, first, second]);
            }
        }
        let mut keys = Keys::default();
        keys.take(b"\x1b[");
        for _ in 0..100 {
            keys.take(b"0");
        }
        assert!(keys.take(b"q").ends_with(&[Key::Char('q')]));
    }
}
