//! A flat JSON object, written straight into a byte buffer: no allocation per line.

use std::net::IpAddr;

use super::escape;

/// The bytes of a member's key with the comma before it, made at compile time.
#[macro_export]
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// One line of JSON. Keys come from [`key!`](crate::key).
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
}

impl<'a> Object<'a> {
    /// Begins the line with `ts` and `event`, which every line has.
    pub fn new(out: &'a mut Vec<u8>, push_ts: impl FnOnce(&mut Vec<u8>), event: &str) -> Self {
        out.extend_from_slice(b"{\"ts\":\"");
        push_ts(out);
        out.extend_from_slice(b"\",\"event\":\"");
        out.extend_from_slice(event.as_bytes());
        out.push(b'"');
        Self { out }
    }

    /// Ends the line.
    pub fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }

    #[inline(always)]
    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        self.out.extend_from_slice(key.as_bytes());
        self.out
    }

    /// An integer.
    #[inline(always)]
    pub fn int(&mut self, key: &str, value: impl itoa::Integer) -> &mut Self {
        push_int(self.key(key), value);
        self
    }

    /// An integer, or `null` if it is unknown.
    #[inline(always)]
    pub fn opt_int(&mut self, key: &str, value: Option<impl itoa::Integer>) -> &mut Self {
        match value {
            Some(value) => self.int(key, value),
            None => self.null(key),
        }
    }

    /// A number with three decimals at most; JSON has no infinity, so that is `null`.
    pub fn float(&mut self, key: &str, value: f64) -> &mut Self {
        push_float(self.key(key), value);
        self
    }

    /// `true` or `false`.
    #[inline(always)]
    pub fn bool(&mut self, key: &str, value: bool) -> &mut Self {
        self.key(key)
            .extend_from_slice(if value { b"true" } else { b"false" });
        self
    }

    /// `null`: unknown.
    #[inline(always)]
    pub fn null(&mut self, key: &str) -> &mut Self {
        self.key(key).extend_from_slice(b"null");
        self
    }

    /// A string of any bytes.
    pub fn string(&mut self, key: &str, value: &[u8]) -> &mut Self {
        escape::push_json(self.key(key), value);
        self
    }

    /// A string that needs no escaping because this program chose it.
    #[inline(always)]
    pub fn name(&mut self, key: &str, value: &str) -> &mut Self {
        let out = self.key(key);
        out.push(b'"');
        out.extend_from_slice(value.as_bytes());
        out.push(b'"');
        self
    }

    /// Such a string, or `null`.
    pub fn opt_name(&mut self, key: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.name(key, value),
            None => self.null(key),
        }
    }

    /// A string that `push` writes, without characters that need escaping.
    #[inline(always)]
    pub fn with(&mut self, key: &str, push: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let out = self.key(key);
        out.push(b'"');
        push(out);
        out.push(b'"');
        self
    }

    /// A member of which `push` writes the whole value, brackets and quotes included.
    #[inline(always)]
    pub fn raw(&mut self, key: &str, push: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        push(self.key(key));
        self
    }
}

/// The text of an octet with a dot after it, and how long that is.
fn octet_and_dot(octet: u8) -> ([u8; 4], usize) {
    let [hundreds, tens, ones] = [octet / 100, octet / 10 % 10, octet % 10].map(|d| b'0' + d);
    match octet {
        0..=9 => ([ones, b'.', 0, 0], 2),
        10..=99 => ([tens, ones, b'.', 0], 3),
        _ => ([hundreds, tens, ones, b'.'], 4),
    }
}

/// Appends the first `len` bytes: a copy of constant size is no call.
pub(crate) fn push_start<const N: usize>(out: &mut Vec<u8>, bytes: [u8; N], len: usize) {
    let end = out.len() + len;
    out.extend_from_slice(&bytes);
    out.truncate(end);
}

/// Appends an integer in decimal.
pub fn push_int(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Appends a number with three decimals at most.
pub fn push_float(out: &mut Vec<u8>, value: f64) {
    if !value.is_finite() {
        out.extend_from_slice(b"null");
        return;
    }
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    out.extend_from_slice(text.as_bytes());
}

/// Appends an address as text (RFC 5952 for IPv6).
pub fn push_addr(out: &mut Vec<u8>, addr: IpAddr) {
    match addr {
        IpAddr::V4(v4) => {
            for octet in v4.octets() {
                let (text, len) = octet_and_dot(octet);
                push_start(out, text, len);
            }
            out.pop();
        }
        IpAddr::V6(v6) => {
            use std::io::Write;
            // A Vec takes every byte.
            let _ = write!(out, "{v6}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_short_and_never_infinite() {
        for (value, text) in [
            (0.0, "0"),
            (2.5, "2.5"),
            (1e9, "1000000000"),
            (0.12345, "0.123"),
            (f64::INFINITY, "null"),
            (f64::NAN, "null"),
        ] {
            let mut out = Vec::new();
            push_float(&mut out, value);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }

    #[test]
    fn every_octet_is_as_the_standard_library_writes_it() {
        for octet in 0..=255 {
            let addr = IpAddr::from([octet, 0, 255 - octet, octet]);
            let mut out = Vec::new();
            push_addr(&mut out, addr);
            assert_eq!(String::from_utf8(out).unwrap(), addr.to_string());
        }
    }

    #[test]
    fn addresses_are_as_the_standard_library_writes_them() {
        for text in [
            "1.2.3.4",
            "255.0.0.255",
            "::1",
            "2001:db8::1:0:0:1",
            "::ffff:1.2.3.4",
        ] {
            let mut out = Vec::new();
            push_addr(&mut out, text.parse().unwrap());
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
