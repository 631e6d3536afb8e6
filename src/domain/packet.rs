//! Packets, as port-monitor's programs send them.

use std::net::IpAddr;

use super::{Direction, address};
use crate::skel::{FrameEvent, PacketEvent};

/// The EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// The EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;

/// TCP flags by which packets are told apart.
pub(crate) const FIN: u8 = 1 << 0;
pub(crate) const SYN: u8 = 1 << 1;
pub(crate) const RST: u8 = 1 << 2;
pub(crate) const ACK: u8 = 1 << 4;

/// Names of the TCP flags by bit, lowest first (RFC 9293, RFC 3168).
pub const FLAG_NAMES: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

/// tcpdump's letters for them, in tcpdump's order (`[S.]`, `[P.]`, `[SEW]`), and what they mean.
pub const FLAG_LETTERS: [(&str, &str); FLAG_NAMES.len()] = [
    ("F", "FIN"),
    ("S", "SYN"),
    ("R", "RST"),
    ("P", "PSH"),
    (".", "ACK"),
    ("U", "URG"),
    ("E", "ECE: ECN echo, or ECN requested in a SYN"),
    ("W", "CWR: congestion window reduced"),
];

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

    /// Which way it went.
    pub fn direction(&self) -> Direction {
        direction(self.raw.egress)
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

fn direction(egress: u8) -> Direction {
    match egress {
        0 => Direction::Ingress,
        _ => Direction::Egress,
    }
}

/// The frame of a packet that matched, for a capture file.
#[derive(Clone, Copy)]
pub struct CapturedFrame<'a> {
    /// The event as the program filled it.
    pub raw: &'a FrameEvent,
    /// The outermost VLAN tag, if the kernel holds it outside of the packet.
    tag: &'a [u8],
    /// The captured bytes of the packet.
    packet: &'a [u8],
    /// The captured bytes without the first `skip`, which are not part of the frame.
    bytes: &'a [u8],
}

impl<'a> CapturedFrame<'a> {
    /// Bytes of the two addresses that an Ethernet frame begins with.
    const ADDRESSES: usize = 12;

    /// Decodes an event as [`Packet::decode`] does.
    #[inline]
    pub fn decode(bytes: &'a [u8]) -> Option<Self> {
        let raw: &FrameEvent = plain::from_bytes(bytes).ok()?;
        let bytes = bytes.get(size_of::<FrameEvent>()..)?;
        let packet = bytes.get(..raw.captured as usize)?;
        Some(Self {
            raw,
            tag: match raw.vlan_tag {
                [0, 0, _, _] => &[],
                _ => &raw.vlan_tag,
            },
            packet,
            bytes: packet.get(usize::from(raw.skip)..).unwrap_or_default(),
        })
    }

    /// Which way it went.
    pub fn direction(&self) -> Direction {
        direction(self.raw.egress)
    }

    /// The frame as it is on the wire, in pieces.
    #[inline]
    pub fn parts(&self) -> [&'a [u8]; 4] {
        let [before, after] = match self.raw.headless {
            0 => [self.bytes, &[]],
            _ => [&self.raw.ethernet[..], self.bytes],
        };
        match before.split_at_checked(Self::ADDRESSES) {
            Some((addresses, rest)) if !self.tag.is_empty() => [addresses, self.tag, rest, after],
            _ => [before, after, &[], &[]],
        }
    }

    /// Addresses and ports of source and destination, if they were captured.
    pub fn ends(&self) -> Option<[(IpAddr, u16); 2]> {
        let ip = self.packet.get(usize::from(self.raw.l3)..)?;
        let tcp = self.packet.get(usize::from(self.raw.l4)..)?;
        let address = |at: usize| {
            let bytes = ip.get(at..)?;
            Some(match self.raw.ip_version {
                4 => IpAddr::from(*bytes.first_chunk::<4>()?),
                _ => IpAddr::from(*bytes.first_chunk::<16>()?),
            })
        };
        let port = |at: usize| Some(u16::from_be_bytes(*tcp.get(at..)?.first_chunk()?));
        let [source, destination] = match self.raw.ip_version {
            4 => [12, 16],
            _ => [8, 24],
        };
        Some([
            (address(source)?, port(0)?),
            (address(destination)?, port(2)?),
        ])
    }

    /// How long the frame is on the wire.
    #[inline]
    pub fn wire_len(&self) -> u32 {
        let header = match self.raw.headless {
            0 => 0,
            _ => self.raw.ethernet.len(),
        };
        let added = (header + self.tag.len()) as u32;
        self.raw.len.saturating_sub(self.raw.skip.into()) + added
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
    /// Decodes the options. As the kernel does, it skips an option whose length is wrong for its kind,
    /// and stops at one whose length is below 2 or exceeds what is left.
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

/// The length of an IP packet according to its header. If the header does not say, that of `bytes`,
/// the part of the packet that is there.
pub fn ip_len(bytes: &[u8]) -> usize {
    let field = |at: usize| {
        let field = bytes.get(at..)?.first_chunk()?;
        Some(usize::from(u16::from_be_bytes(*field)))
    };
    let (len, header) = match bytes.first().map(|first| first >> 4) {
        Some(4) => (field(2), 0),
        Some(6) => (field(4), 40),
        _ => (None, 0),
    };
    len.filter(|len| *len > 0)
        .map_or(bytes.len(), |len| len + header)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skel;

    #[test]
    fn a_packet_is_as_long_as_its_header_says() {
        let v4 = [0x45, 0, 0, 44, 0];
        let v6 = [0x60, 0, 0, 0, 0, 20];
        let huge = [0x60, 0, 0, 0, 0, 0];
        let lengths = [&v4[..], &v6, &huge, &v4[..3], &[]].map(ip_len);
        assert_eq!(lengths, [44, 60, 6, 3, 0]);
    }

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
        // Options after END are ignored. A length of 1 or beyond the end stops the decoder. An option whose
        // length is wrong for its kind is skipped.
        assert_eq!(TcpOptions::decode(&[0, 2, 4, 1, 2]), TcpOptions::default());
        assert_eq!(TcpOptions::decode(&[9, 1, 4, 2]), TcpOptions::default());
        assert_eq!(TcpOptions::decode(&[9, 40, 4, 2]), TcpOptions::default());
        assert_eq!(TcpOptions::decode(&[2, 3, 9, 3, 3, 5]).wscale, Some(5));
        assert_eq!(TcpOptions::decode(&[2, 4, 0, 1, 2, 4, 0, 2]).mss, Some(1));
        assert_eq!(TcpOptions::decode(&[4]), TcpOptions::default());
    }

    #[test]
    fn no_bytes_make_the_decoder_of_packets_panic() {
        for len in 0..500 {
            for fill in [0, 1, 4, 6, 41, 0x7f, 0xff] {
                let bytes = vec![fill; len];
                if let Some(packet) = Packet::decode(&bytes) {
                    packet.vlans();
                }
            }
        }
    }

    #[test]
    fn the_payload_is_what_was_captured_without_the_padding_after_it() {
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
    }
}
