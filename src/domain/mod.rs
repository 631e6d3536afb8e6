//! The events and records of the BPF programs, decoded. Nothing here reads maps, files or clocks.

pub(crate) mod connect_totals;
pub mod connection;
pub mod counters;
pub(crate) mod distinct;
pub(crate) mod export;
pub(crate) mod finding;
pub mod flow;
pub(crate) mod flow_report;
pub(crate) mod histogram;
pub(crate) mod incoming;
pub(crate) mod listener;
pub(crate) mod loss;
pub mod names;
pub mod packet;
pub(crate) mod reasons;
pub(crate) mod tally;
pub(crate) mod traffic;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Nanoseconds since the UNIX epoch.
pub type UnixNanos = i64;

/// Which way packets go through an interface, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that come in.
    Ingress,
    /// Packets that go out.
    Egress,
}

impl Direction {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Decodes an address of 16 bytes, with IPv4 as v4-mapped.
fn address(bytes: [u8; 16], is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]).into()
    } else {
        Ipv6Addr::from(bytes).into()
    }
}

/// The inverse of [`address`].
pub fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A rate. An interval without length counts as a nanosecond.
pub fn per_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}

/// The name in a fixed array of C: the bytes before the NUL.
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or(&[])
}
