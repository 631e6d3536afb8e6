//! A flat JSON object, written straight into its line: no allocation.

use std::net::{IpAddr, Ipv6Addr};

use super::line::Line;
use super::number::{self, Integer};

/// The bytes of a member's key with the comma before it, made at compile time.
#[macro_export]
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":")
    };
}

/// One line of JSON. Keys come from [`key!`](crate::key).
pub struct Object<'a, 'l> {
    out: &'a mut Line<'l>,
}

impl<'a, 'l> Object<'a, 'l> {
    /// Begins the line with `ts` and `event`, which every line has.
    #[inline(always)]
    pub fn new(out: &'a mut Line<'l>, push_ts: impl FnOnce(&mut Line<'l>), event: &str) -> Self {
        out.extend_from_slice(b"{\"ts\":\"");
        push_ts(out);
        out.extend_from_slice(b"\",\"event\":\"");
        out.extend_from_slice(event.as_bytes());
        out.push(b'"');
        Self { out }
    }

    /// Ends the line.
    #[inline(always)]
    pub fn end(self) {
        self.out.extend_from_slice(b"}\n");
    }

    #[inline(always)]
    fn key(&mut self, key: &str) -> &mut Line<'l> {
        self.out.extend_from_slice(key.as_bytes());
        self.out
    }

    /// An integer.
    #[inline(always)]
    pub fn int(&mut self, key: &str, value: impl Integer) -> &mut Self {
        push_int(self.key(key), value);
        self
    }

    /// An integer, or `null` if it is unknown.
    #[inline(always)]
    pub fn opt_int(&mut self, key: &str, value: Option<impl Integer>) -> &mut Self {
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
    #[inline(always)]
    pub fn string(&mut self, key: &str, value: &[u8]) -> &mut Self {
        self.key(key).push_json(value);
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
    pub fn with(&mut self, key: &str, push: impl FnOnce(&mut Line<'l>)) -> &mut Self {
        let out = self.key(key);
        out.push(b'"');
        push(out);
        out.push(b'"');
        self
    }

    /// A member of which `push` writes the whole value, brackets and quotes included.
    #[inline(always)]
    pub fn raw(&mut self, key: &str, push: impl FnOnce(&mut Line<'l>)) -> &mut Self {
        push(self.key(key));
        self
    }
}

/// Appends an integer in decimal.
#[inline(always)]
pub fn push_int(out: &mut Line<'_>, value: impl Integer) {
    value.push(out);
}

/// Appends a port in a column of 5, on its right, or `-` where there is none.
#[inline(always)]
pub fn push_port(out: &mut Line<'_>, port: Option<u16>) {
    out.put(port.map_or(*b"    -   ", number::port), 5);
}

/// Appends a number with three decimals at most.
pub fn push_float(out: &mut Line<'_>, value: f64) {
    if !value.is_finite() {
        out.extend_from_slice(b"null");
        return;
    }
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    out.extend_from_slice(text.as_bytes());
}

#[inline(never)]
fn v6_text(addr: Ipv6Addr) -> String {
    addr.to_string()
}

/// Appends an address as text (RFC 5952 for IPv6).
#[inline(always)]
pub fn push_addr(out: &mut Line<'_>, addr: IpAddr) {
    match addr {
        IpAddr::V4(v4) => {
            for (i, octet) in v4.octets().into_iter().enumerate() {
                let (text, len) = number::OCTETS[usize::from(octet)];
                // The last one goes without its dot.
                out.put(text, usize::from(len) - usize::from(i == 3));
            }
        }
        IpAddr::V6(v6) => out.extend_from_slice(v6_text(v6).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    #[test]
    fn a_port_is_on_the_right_of_its_column() {
        for port in 0..=u16::MAX {
            assert_eq!(
                rendered(|out| push_port(out, Some(port))),
                format!("{port:>5}")
            );
        }
        assert_eq!(rendered(|out| push_port(out, None)), "    -");
    }

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
            assert_eq!(rendered(|out| push_float(out, value)), text);
        }
    }

    #[test]
    fn every_octet_is_as_the_standard_library_writes_it() {
        for octet in 0..=255 {
            let addr = IpAddr::from([octet, 0, 255 - octet, octet]);
            assert_eq!(rendered(|out| push_addr(out, addr)), addr.to_string());
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
            let addr = text.parse().unwrap();
            assert_eq!(rendered(|out| push_addr(out, addr)), text);
        }
    }
}
