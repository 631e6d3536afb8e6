//! Splits an expression into tokens as libpcap's scanner does: the longest match wins.

use std::net::Ipv6Addr;
use std::ops::Range;

use super::Wrong;

/// A token, without its position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A decimal, hexadecimal or octal number, or a named constant such as `tcp-syn`.
    Number(u32),
    /// Two to four numbers with dots. `bits` says how many bits of the address they give, and
    /// `address` has these bits at its low end.
    Dotted {
        address: u32,
        bits: u32,
    },
    V6(Ipv6Addr),
    Mac([u8; 6]),
    /// A keyword or a name.
    Word(String),
    /// A name after a backslash, which may be spelled like a keyword.
    Escaped(String),
    /// An operator or bracket. `!` stands for `not` too.
    Symbol(&'static str),
}

/// A token and its bytes in the text.
#[derive(Clone, Debug)]
pub(super) struct Lexeme {
    pub(super) token: Token,
    pub(super) at: Range<usize>,
}

/// Operators and brackets, the longest first.
const SYMBOLS: [&str; 25] = [
    "&&", "||", "<<", ">>", "<=", ">=", "!=", "==", "(", ")", "[", "]", ":", "/", "!", "=", "<",
    ">", "&", "|", "^", "+", "-", "*", "%",
];

/// The named constants of pcap-filter(7) for TCP.
const CONSTANTS: [(&str, u32); 9] = [
    ("tcpflags", 13),
    ("tcp-fin", 0x01),
    ("tcp-syn", 0x02),
    ("tcp-rst", 0x04),
    ("tcp-push", 0x08),
    ("tcp-ack", 0x10),
    ("tcp-urg", 0x20),
    ("tcp-ece", 0x40),
    ("tcp-cwr", 0x80),
];

/// Splits an expression into tokens.
pub(super) fn lex(text: &str) -> Result<Vec<Lexeme>, Wrong> {
    let mut lexemes = Vec::new();
    let mut at = 0;
    while let Some(c) = text.get(at..).and_then(|rest| rest.chars().next()) {
        if c.is_ascii_whitespace() {
            at += 1;
            continue;
        }
        let rest = text.get(at..).unwrap_or_default();
        let (token, len) = next(rest).map_err(|why| {
            let len = run(rest, is_word).max(c.len_utf8());
            Wrong::new(at..at + len, why)
        })?;
        lexemes.push(Lexeme {
            token,
            at: at..at + len,
        });
        at += len;
    }
    Ok(lexemes)
}

/// The length in bytes of the characters of this kind that the text begins with.
fn run(text: &str, wanted: impl Fn(char) -> bool) -> usize {
    text.find(|c| !wanted(c)).unwrap_or(text.len())
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-_.".contains(c)
}

/// The token that the text begins with, and its length.
fn next(text: &str) -> Result<(Token, usize), String> {
    if let Some(found) = address(text) {
        return Ok(found);
    }
    if let Some(name) = text.strip_prefix('\\') {
        let len = run(name, |c| !c.is_whitespace() && !"!()".contains(c));
        if len == 0 {
            return Err("a name is missing after the backslash".into());
        }
        return Ok((Token::Escaped(name[..len].to_owned()), len + 1));
    }
    let is_name = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    // A word ends with a letter, a digit or a dot.
    let word = text[..run(text, is_word)].trim_end_matches(['-', '_']);
    if is_name && !word.is_empty() {
        return Ok((classify(word)?, word.len()));
    }
    let Some(symbol) = SYMBOLS.into_iter().find(|symbol| text.starts_with(symbol)) else {
        return Err(match text.starts_with(',') {
            true => "several values are joined by 'or', as in port 80 or 443".into(),
            false => "this character has no meaning in a filter".into(),
        });
    };
    let token = match symbol {
        "&&" => Token::Word("and".to_owned()),
        "||" => Token::Word("or".to_owned()),
        "==" => Token::Symbol("="),
        symbol => Token::Symbol(symbol),
    };
    Ok((token, symbol.len()))
}

/// An Ethernet or IPv6 address. It can contain `:` and `-`, which separate other tokens.
fn address(text: &str) -> Option<(Token, usize)> {
    let len = run(text, |c| is_word(c) || c == ':');
    let word = &text[..len];
    if let Some(mac) = mac(word) {
        return Some((Token::Mac(mac), len));
    }
    if !word.contains(':') {
        return None;
    }
    let address = word.parse().ok()?;
    Some((Token::V6(address), len))
}

/// `aa:bb:cc:dd:ee:ff`, also with `-` or `.`, and with one digit in a group, `aabb.ccdd.eeff`, or
/// `aabbccddeeff`.
fn mac(word: &str) -> Option<[u8; 6]> {
    let separator = word.chars().find(|c| ":-.".contains(*c));
    let parts = match separator {
        Some(separator) => word.split(separator).collect::<Vec<_>>(),
        None => vec![word],
    };
    let digits = match parts.len() {
        6 => 2,
        3 if separator == Some('.') && parts.iter().all(|part| part.len() == 4) => 4,
        1 if word.len() == 12 => 12,
        _ => return None,
    };
    let mut joined = String::new();
    for part in parts {
        if part.is_empty() || part.len() > digits {
            return None;
        }
        joined += &format!("{part:0>digits$}");
    }
    let number = u64::from_str_radix(&joined, 16).ok()?;
    let [_, _, mac @ ..] = number.to_be_bytes();
    joined
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit())
        .then_some(mac)
}

/// The token for a word without colons.
fn classify(word: &str) -> Result<Token, String> {
    if let Some((_, value)) = CONSTANTS.iter().find(|(name, _)| *name == word) {
        return Ok(Token::Number(*value));
    }
    if let Some(number) = number(word)? {
        return Ok(Token::Number(number));
    }
    let parts = word.split('.').collect::<Vec<_>>();
    let is_dotted = (2..=4).contains(&parts.len())
        && parts
            .iter()
            .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if is_dotted {
        let mut address = 0;
        for part in &parts {
            let part = part
                .parse::<u8>()
                .map_err(|_| format!("'{word}' is not an IPv4 address"))?;
            address = address << 8 | u32::from(part);
        }
        let bits = 8 * u32::try_from(parts.len()).unwrap_or(4);
        return Ok(Token::Dotted { address, bits });
    }
    Ok(match word {
        "not" => Token::Symbol("!"),
        word => Token::Word(word.to_owned()),
    })
}

/// A number as in C: hexadecimal after `0x`, octal after another leading zero.
fn number(word: &str) -> Result<Option<u32>, String> {
    let (digits, base) = match word.strip_prefix("0x").or_else(|| word.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None if word.len() > 1 && word.starts_with('0') => (&word[1..], 8),
        None => (word, 10),
    };
    let is_number = !digits.is_empty()
        && digits.bytes().all(|byte| {
            if base == 16 {
                byte.is_ascii_hexdigit()
            } else {
                byte.is_ascii_digit()
            }
        });
    if !is_number {
        return Ok(None);
    }
    if base == 8 && digits.bytes().any(|byte| byte > b'7') {
        return Err(format!("'{word}' begins with 0 but is not octal"));
    }
    match u32::from_str_radix(digits, base) {
        Ok(number) => Ok(Some(number)),
        Err(_) => Err(format!("{word} has more than 32 bits")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<Token> {
        let lexemes = lex(text).unwrap();
        lexemes.into_iter().map(|lexeme| lexeme.token).collect()
    }

    fn word(word: &str) -> Token {
        Token::Word(word.to_owned())
    }

    #[test]
    fn the_longest_match_is_the_token() {
        assert_eq!(
            tokens("tcp[12:1]&&port http-alt"),
            [
                word("tcp"),
                Token::Symbol("["),
                Token::Number(12),
                Token::Symbol(":"),
                Token::Number(1),
                Token::Symbol("]"),
                word("and"),
                word("port"),
                word("http-alt"),
            ]
        );
        assert_eq!(tokens("80-90"), [word("80-90")]);
        assert_eq!(
            tokens("2001:db8::/32"),
            [
                Token::V6("2001:db8::".parse().unwrap()),
                Token::Symbol("/"),
                Token::Number(32)
            ]
        );
        assert_eq!(tokens("a>=b"), [word("a"), Token::Symbol(">="), word("b")]);
    }

    #[test]
    fn numbers_are_written_as_in_c_and_flags_have_names() {
        assert_eq!(
            tokens("0x1F 010 0 tcp-syn"),
            [31, 8, 0, 2].map(Token::Number)
        );
        for bad in ["080", "4294967296", "300.1.1.1", "#", "\\"] {
            assert!(lex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ethernet_addresses_have_several_spellings() {
        let mac = [Token::Mac([0, 0x1b, 0x21, 0xa, 0xb, 0xc])];
        for text in [
            "00:1b:21:0a:0b:0c",
            "0:1b:21:a:b:c",
            "00-1b-21-0a-0b-0c",
            "001b.210a.0b0c",
            "001b210a0b0c",
        ] {
            assert_eq!(tokens(text), mac, "{text}");
        }
        assert_eq!(
            tokens("10.1 10.1.2.3"),
            [
                Token::Dotted {
                    address: 0x0a01,
                    bits: 16
                },
                Token::Dotted {
                    address: 0x0a01_0203,
                    bits: 32
                }
            ]
        );
    }
}
