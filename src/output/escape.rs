//! Escaping of what other programs chose: no control byte reaches a terminal, no line is forged.

/// Appends `bytes` for a text column: printable ASCII and valid UTF-8 as they are, anything else
/// as `\xNN`, so that a value is one word on one line.
pub fn push_text(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' {
                out.extend_from_slice(b"\\\\");
            } else if c.is_control() || c.is_whitespace() || is_invisible(c) {
                let mut utf8 = [0; 4];
                push_hex_escapes(out, c.encode_utf8(&mut utf8).as_bytes());
            } else {
                let mut utf8 = [0; 4];
                out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
            }
        }
        push_hex_escapes(out, chunk.invalid());
    }
}

/// Appends a message, which may contain text that others chose: spaces stay as they are, but
/// nothing in it ends the line or controls the terminal.
pub fn push_line(out: &mut Vec<u8>, line: &str) {
    for c in line.chars() {
        let mut utf8 = [0; 4];
        let bytes = c.encode_utf8(&mut utf8).as_bytes();
        if c.is_control() || is_invisible(c) {
            push_hex_escapes(out, bytes);
        } else {
            out.extend_from_slice(bytes);
        }
    }
    out.push(b'\n');
}

/// Appends `bytes` as a JSON string with its quotes. Bytes that aren't UTF-8 become `\xNN` in the
/// string's value, as in text, because JSON can't express them.
pub fn push_json(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.extend_from_slice(b"\\\""),
                '\\' => out.extend_from_slice(b"\\\\"),
                c if c.is_control() || is_invisible(c) => {
                    let mut units = [0; 2];
                    for unit in c.encode_utf16(&mut units) {
                        out.extend_from_slice(b"\\u");
                        push_hex(out, &unit.to_be_bytes());
                    }
                }
                c => {
                    let mut utf8 = [0; 4];
                    out.extend_from_slice(c.encode_utf8(&mut utf8).as_bytes());
                }
            }
        }
        for byte in chunk.invalid() {
            out.extend_from_slice(b"\\\\x");
            push_hex(out, &[*byte]);
        }
    }
    out.push(b'"');
}

/// Whether no byte needs an escape in text.
pub(crate) fn is_plain_text(bytes: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && *byte != b'\\';
    bytes.iter().all(is_plain)
}

/// Whether no byte needs an escape in JSON.
pub(crate) fn is_plain_json(bytes: &[u8]) -> bool {
    let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"\"\\".contains(byte);
    bytes.iter().all(is_plain)
}

/// Appends lower-case hex digits.
fn push_hex(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend_from_slice(&hex_digits(*byte));
    }
}

/// The two lower-case hex digits of a byte.
#[inline]
pub fn hex_digits(byte: u8) -> [u8; 2] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [byte >> 4, byte & 15].map(|digit| DIGITS[usize::from(digit)])
}

fn push_hex_escapes(out: &mut Vec<u8>, bytes: &[u8]) {
    for byte in bytes {
        out.extend_from_slice(b"\\x");
        push_hex(out, &[*byte]);
    }
}

/// Line separators, and characters that reorder text on a terminal or that it does not show.
///
/// First come the ranges of Default_Ignorable_Code_Point (DerivedCoreProperties.txt of Unicode 17),
/// which include those of Bidi_Control, then the two separators and the three characters of
/// interlinear annotations. unicode-width, which is among the dependencies, does not distinguish
/// them from combining marks.
fn is_invisible(c: char) -> bool {
    matches!(
        c,
        '\u{ad}' | '\u{34f}' | '\u{61c}'
            | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}'
            | '\u{2028}' | '\u{2029}' | '\u{fff9}'..='\u{fffb}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push_text(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    fn json(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push_json(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_stays_one_word_whatever_the_bytes() {
        assert_eq!(text(b"nginx"), "nginx");
        assert_eq!(text("größe".as_bytes()), "größe");
        assert_eq!(text(b"a b\tc"), "a\\x20b\\x09c");
        assert_eq!(text(b"\x1b[31m\n\r\x7f"), "\\x1b[31m\\x0a\\x0d\\x7f");
        assert_eq!(text(b"\xff\xfe\\"), "\\xff\\xfe\\\\");
        assert_eq!(text("\u{202e}x".as_bytes()), "\\xe2\\x80\\xaex");
        assert_eq!(text("\u{9b}31m".as_bytes()), "\\xc2\\x9b31m");
    }

    #[test]
    fn what_a_terminal_does_not_show_or_reorders_is_escaped_everywhere() {
        for c in [
            '\u{ad}',
            '\u{34f}',
            '\u{61c}',
            '\u{1160}',
            '\u{17b4}',
            '\u{180e}',
            '\u{200b}',
            '\u{202e}',
            '\u{2028}',
            '\u{2066}',
            '\u{3164}',
            '\u{fe0f}',
            '\u{feff}',
            '\u{ffa0}',
            '\u{fff9}',
            '\u{1d173}',
            '\u{e0000}',
            '\u{e0041}',
            '\u{e01ef}',
        ] {
            let name = format!("a{c}b");
            let mut line = Vec::new();
            push_line(&mut line, &name);
            for out in [
                text(name.as_bytes()),
                json(name.as_bytes()),
                String::from_utf8(line).unwrap(),
            ] {
                assert!(
                    out.trim_end().chars().all(|c| c.is_ascii_graphic()),
                    "{c:?}: {out}"
                );
            }
            let read: String = serde_json::from_str(&json(name.as_bytes())).unwrap();
            assert_eq!(read, name);
        }
        // Other letters and combining marks are shown.
        for name in ["größe", "e\u{301}", "日本", "한글", "\u{1f980}"] {
            assert_eq!(text(name.as_bytes()), name);
        }
    }

    #[test]
    fn a_line_keeps_its_words_and_is_one_line() {
        let mut out = Vec::new();
        push_line(&mut out, "interface \x1b[31m\n\u{202e}é is gone\\");
        let expected = "interface \\x1b[31m\\x0a\\xe2\\x80\\xaeé is gone\\\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn every_byte_value_gives_valid_json_without_control_bytes() {
        for first in 0..=255u8 {
            for second in [0u8, b'"', b'\\', 0x80, 0xc3, 0xff] {
                let out = json(&[first, second]);
                assert!(out.bytes().all(|b| b >= 0x20 && b != 0x7f), "{out:?}");
                serde_json::from_str::<String>(&out).unwrap();
            }
        }
        assert_eq!(json(b"a\"b\\\n\x1b\xff"), r#""a\"b\\\u000a\u001b\\xff""#);
    }
}
