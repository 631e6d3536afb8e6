//! Writes single values: as both formats have them, or as columns of text do, with `-` for none.

use std::net::{IpAddr, Ipv6Addr};

use super::line::Line;
use super::number::{self, Integer};
use crate::domain::packet::FLAG_LETTERS;
use crate::domain::tally::TallyKey;

/// Appends an integer in decimal.
#[inline(always)]
pub fn push_int(out: &mut Line<'_>, value: impl Integer) {
    value.push(out);
}

/// Appends an integer in decimal, or `-` where there is none.
#[inline(always)]
pub fn push_opt_int(out: &mut Line<'_>, value: Option<impl Integer>) {
    match value {
        Some(value) => push_int(out, value),
        None => out.push(b'-'),
    }
}

/// Appends a key of counts, or `-` if there is none.
pub fn push_opt_key(out: &mut Line<'_>, key: Option<TallyKey>) {
    match key {
        Some(TallyKey::Address(addr)) => push_addr(out, addr),
        Some(TallyKey::Port(port)) => push_int(out, port),
        None => out.push(b'-'),
    }
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

/// Appends an address, or `-` if it is unknown.
pub fn push_opt_addr(out: &mut Line<'_>, addr: Option<IpAddr>) {
    match addr {
        Some(addr) => push_addr(out, addr),
        None => out.push(b'-'),
    }
}

/// The numbers of the bits that are set in TCP flags.
pub fn flag_bits(flags: u8) -> impl Iterator<Item = usize> {
    let lowest = |flags: u8| (flags != 0).then_some(flags);
    std::iter::successors(lowest(flags), move |flags| lowest(flags & (flags - 1)))
        .map(|flags| flags.trailing_zeros() as usize)
}

/// Appends the letters of TCP flags in brackets.
#[inline(always)]
pub fn push_flag_letters(out: &mut Line<'_>, flags: u8) {
    out.push(b'[');
    if flags == 0 {
        out.extend_from_slice(b"none");
    }
    for bit in flag_bits(flags) {
        let (letter, _) = FLAG_LETTERS[bit];
        letter.bytes().for_each(|byte| out.push(byte));
    }
    out.push(b']');
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
    fn every_octet_is_written_as_by_the_standard_library() {
        for octet in 0..=255 {
            let addr = IpAddr::from([octet, 0, 255 - octet, octet]);
            assert_eq!(rendered(|out| push_addr(out, addr)), addr.to_string());
        }
    }

    #[test]
    fn addresses_are_written_as_by_the_standard_library() {
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
