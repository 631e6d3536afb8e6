//! From the bytes that a program sends to what they say. Pure: no map, no file, no clock.

pub mod flow;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::skel::{
    ConnectClosedBy, ConnectDirection, ConnectEvent, ConnectKind, ConnectKnown, PacketEvent,
};

/// One packet that matched.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    /// The event as the program filled it.
    pub raw: &'a PacketEvent,
    /// Its TCP options.
    pub options: TcpOptions,
    /// The first bytes of the payload, as many as were asked for and are there.
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Decodes an event, which begins at a multiple of 8 in memory; `None` if it is too short or
    /// contradicts itself.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let raw: &PacketEvent = plain::from_bytes(bytes).ok()?;
        // The kernel rounds sizes up to 8 bytes, so there may be more than was sent.
        let payload = bytes.get(size_of::<PacketEvent>()..)?;
        let payload = payload.get(..usize::from(raw.payload_captured))?;
        let options = raw.options.get(..usize::from(raw.options_len))?;
        if !matches!(raw.ip_version, 4 | 6) {
            return None;
        }
        let options = TcpOptions::decode(options);
        Some(Self {
            raw,
            options,
            payload,
        })
    }

    /// Source address.
    pub fn saddr(&self) -> IpAddr {
        address(self.raw.saddr, self.raw.ip_version == 4)
    }

    /// Destination address.
    pub fn daddr(&self) -> IpAddr {
        address(self.raw.daddr, self.raw.ip_version == 4)
    }

    /// VLAN ids, outermost first.
    pub fn vlans(&self) -> &[u16] {
        &self.raw.vlan[..usize::from(self.raw.vlan_count).min(2)]
    }
}

/// An address of 16 bytes, IPv4 as v4-mapped.
fn address(bytes: [u8; 16], is_ipv4: bool) -> IpAddr {
    if is_ipv4 {
        Ipv4Addr::new(bytes[12], bytes[13], bytes[14], bytes[15]).into()
    } else {
        Ipv6Addr::from(bytes).into()
    }
}

/// The TCP options that a SYN negotiates with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpOptions {
    /// Maximum segment size (RFC 9293).
    pub mss: Option<u16>,
    /// Window scale, a shift count (RFC 7323).
    pub wscale: Option<u8>,
    /// Selective acknowledgements are permitted (RFC 2018).
    pub sack_permitted: bool,
    /// Timestamp value and echo reply (RFC 7323).
    pub timestamps: Option<(u32, u32)>,
}

impl TcpOptions {
    /// Decodes the options that are there. As the kernel does, it passes over an option of the
    /// wrong length, and ends at one that can't be: of a length below 2, or beyond the end.
    pub fn decode(mut bytes: &[u8]) -> Self {
        const END: u8 = 0;
        const NOP: u8 = 1;
        let mut options = Self::default();
        while let [kind, rest @ ..] = bytes {
            match *kind {
                END => break,
                NOP => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let Some(len) = rest.first().map(|len| usize::from(*len)) else {
                break;
            };
            let Some(body) = bytes.get(2..len) else {
                break;
            };
            options.take(*kind, body);
            bytes = &bytes[len..];
        }
        options
    }

    /// Takes an option, unless there was one of its kind before.
    fn take(&mut self, kind: u8, body: &[u8]) {
        match (kind, body) {
            (2, [a, b]) => {
                self.mss.get_or_insert(u16::from_be_bytes([*a, *b]));
            }
            (3, [shift]) => {
                self.wscale.get_or_insert(*shift);
            }
            (4, []) => self.sack_permitted = true,
            (8, [a, b, c, d, e, f, g, h]) => {
                self.timestamps.get_or_insert((
                    u32::from_be_bytes([*a, *b, *c, *d]),
                    u32::from_be_bytes([*e, *f, *g, *h]),
                ));
            }
            _ => {}
        }
    }
}

/// A step in the life of a connection.
#[derive(Clone, Copy)]
pub struct Connection {
    /// The event as the program filled it.
    pub raw: ConnectEvent,
}

impl Connection {
    /// Decodes an event; `None` if it is too short or of an unknown kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut raw = ConnectEvent::default();
        plain::copy_from_bytes(&mut raw, bytes).ok()?;
        (raw.kind.0 <= ConnectKind::CONNECT_CLOSED.0).then_some(Self { raw })
    }

    /// The event's name in JSON.
    pub fn name(&self) -> &'static str {
        match self.raw.kind {
            ConnectKind::CONNECT_ATTEMPT => "attempt",
            ConnectKind::CONNECT_ESTABLISHED => "established",
            ConnectKind::CONNECT_FAILED => "failed",
            ConnectKind::CONNECT_ACCEPTED => "accepted",
            _ => "closed",
        }
    }

    fn known(&self, part: ConnectKnown) -> bool {
        self.raw.known.0 & part.0 != 0
    }

    /// Whether the process is known, and with it `pid`, `tid`, `uid`, `comm` and `cgroup_id`.
    pub fn has_process(&self) -> bool {
        self.known(ConnectKnown::KNOWN_PROCESS)
    }

    /// The process's name without the NUL that ends it.
    pub fn comm(&self) -> &[u8] {
        self.raw.comm.split(|byte| *byte == 0).next().unwrap_or(&[])
    }

    /// What the connect function returned.
    pub fn ret(&self) -> Option<i32> {
        self.known(ConnectKnown::KNOWN_RET).then_some(self.raw.ret)
    }

    /// Why it failed, as a positive errno.
    pub fn error(&self) -> Option<i32> {
        (self.raw.kind == ConnectKind::CONNECT_FAILED && self.known(ConnectKnown::KNOWN_ERROR))
            .then_some(self.raw.error)
    }

    /// Nanoseconds from the attempt to its fate.
    pub fn latency_ns(&self) -> Option<u64> {
        let has_fate = matches!(
            self.raw.kind,
            ConnectKind::CONNECT_ESTABLISHED | ConnectKind::CONNECT_FAILED
        );
        (has_fate && self.known(ConnectKnown::KNOWN_START)).then_some(self.raw.elapsed_ns)
    }

    /// Nanoseconds from establishment to end.
    pub fn duration_ns(&self) -> Option<u64> {
        (self.is_closed() && self.known(ConnectKnown::KNOWN_START)).then_some(self.raw.elapsed_ns)
    }

    /// Whether this is the end of a connection.
    pub fn is_closed(&self) -> bool {
        self.raw.kind == ConnectKind::CONNECT_CLOSED
    }

    /// Source address; `None` if it is not chosen yet.
    pub fn saddr(&self) -> Option<IpAddr> {
        Some(self.address(self.raw.saddr)).filter(|addr| !addr.is_unspecified())
    }

    /// Destination address; `None` if it could not be read. (`0.0.0.0` can be asked for; the
    /// kernel puts `::1` in the place of `::`.)
    pub fn daddr(&self) -> Option<IpAddr> {
        Some(self.address(self.raw.daddr)).filter(|addr| addr.is_ipv4() || !addr.is_unspecified())
    }

    fn address(&self, bytes: [u8; 16]) -> IpAddr {
        address(bytes, self.raw.ip_version == 4)
    }

    /// Source port; `None` if it is not chosen yet.
    pub fn sport(&self) -> Option<u16> {
        Some(self.raw.sport).filter(|port| *port != 0)
    }

    /// Which way the connection was opened.
    pub fn direction(&self) -> Option<&'static str> {
        match self.raw.direction {
            ConnectDirection::DIRECTION_OUT => Some("out"),
            ConnectDirection::DIRECTION_IN => Some("in"),
            _ => None,
        }
    }

    /// Who ended it.
    pub fn closed_by(&self) -> Option<&'static str> {
        match self.raw.closed_by {
            ConnectClosedBy::CLOSED_BY_LOCAL => Some("local"),
            ConnectClosedBy::CLOSED_BY_REMOTE => Some("remote"),
            ConnectClosedBy::CLOSED_BY_RESET => Some("reset"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skel;

    #[test]
    fn options_are_decoded_until_one_cannot_be() {
        let linux = [
            2, 4, 0x05, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 3, 3, 7,
        ];
        assert_eq!(
            TcpOptions::decode(&linux),
            TcpOptions {
                mss: Some(1460),
                wscale: Some(7),
                sack_permitted: true,
                timestamps: Some((1, 2))
            }
        );
        // END hides what follows, a length of 1 or beyond the end stops, a wrong one is passed over.
        assert_eq!(TcpOptions::decode(&[0, 2, 4, 1, 2]), TcpOptions::default());
        assert_eq!(TcpOptions::decode(&[9, 1, 4, 2]), TcpOptions::default());
        assert_eq!(TcpOptions::decode(&[9, 40, 4, 2]), TcpOptions::default());
        assert_eq!(TcpOptions::decode(&[2, 3, 9, 3, 3, 5]).wscale, Some(5));
        assert_eq!(TcpOptions::decode(&[2, 4, 0, 1, 2, 4, 0, 2]).mss, Some(1));
        assert_eq!(TcpOptions::decode(&[4]), TcpOptions::default());
    }

    #[test]
    fn no_bytes_make_the_decoders_panic() {
        for len in 0..500 {
            for fill in [0, 1, 4, 6, 41, 0x7f, 0xff] {
                let bytes = vec![fill; len];
                if let Some(packet) = Packet::decode(&bytes) {
                    packet.vlans();
                }
                if let Some(connection) = Connection::decode(&bytes) {
                    connection.comm();
                }
            }
        }
    }

    #[test]
    fn the_payload_is_what_was_captured_and_not_what_is_put_behind_it() {
        let mut event = PacketEvent {
            ip_version: 4,
            vlan_count: 3,
            ..PacketEvent::default()
        };
        for (captured, follow, expected) in [
            (0, 0, Some(0)),
            (3, 3, Some(3)),
            (3, 8, Some(3)),
            (4, 3, None),
            (1, 0, None),
        ] {
            event.payload_captured = captured;
            let mut bytes = skel::key_bytes(&event).to_vec();
            bytes.extend(1..=follow);
            let packet = Packet::decode(&bytes);
            let payload = packet.map(|packet| (packet.payload.len(), packet.vlans().len()));
            assert_eq!(
                payload,
                expected.map(|len| (len, 2)),
                "{captured} of {follow}"
            );
            let starts = packet.is_none_or(|packet| [1, 2, 3].starts_with(packet.payload));
            assert!(starts);
        }
    }

    #[test]
    fn an_event_cut_short_is_refused() {
        assert!(Packet::decode(&[4; size_of::<PacketEvent>() - 1]).is_none());
        assert!(Connection::decode(&[0; size_of::<ConnectEvent>() - 1]).is_none());
    }
}
