//! Link types, and how their frames become Ethernet frames.
//!
//! Numbers, names and header layouts are those of the registry at
//! <https://www.tcpdump.org/linktypes.html>.

use std::ops::Range;

use super::numbers::{
    LINKTYPE_ETHERNET, LINKTYPE_IPV4, LINKTYPE_IPV6, LINKTYPE_LINUX_SLL, LINKTYPE_LINUX_SLL2,
    LINKTYPE_LOOP, LINKTYPE_NULL, LINKTYPE_RAW,
};
use crate::domain::packet::{ETHERTYPE_IPV4, ETHERTYPE_IPV6};

pub(super) const ETHERNET_HEADER: usize = 14;
/// The longest header of a link layer that is read, in bytes.
pub(super) const LONGEST_HEADER: usize = 20;
/// Reserved by RFC 1701: never the EtherType of a real frame.
const ETHERTYPE_NONE: u16 = 0xffff;

/// The kind of link a frame was captured on. Each variant says which fields of the
/// frame's Ethernet header are real and not made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkKind {
    /// Ethernet: all of them.
    Ethernet,
    /// Nothing but an IP packet: none of them.
    Raw,
    /// Linux cooked capture, as from the `any` device: the EtherType.
    Cooked,
    /// BSD loopback, whose header has only an address family: none of them.
    Loopback,
}

/// How the frames of one link type are framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Ethernet,
    /// An IP packet of either version.
    RawIp,
    /// An IP packet of the version that this EtherType stands for.
    RawAs(u16),
    /// `LINKTYPE_LINUX_SLL`.
    CookedV1,
    /// `LINKTYPE_LINUX_SLL2`.
    CookedV2,
    /// `LINKTYPE_NULL`: the address family is in the byte order of the machine
    /// that captured, which need not be that of the file.
    Null,
    /// `LINKTYPE_LOOP`: the address family is in network byte order.
    Loop,
}

impl Framing {
    /// The framing of the link type with this number, `None` if it is not
    /// supported.
    pub(super) fn of(link_type: u32) -> Option<Self> {
        Some(match u16::try_from(link_type).ok()? {
            LINKTYPE_NULL => Self::Null,
            LINKTYPE_ETHERNET => Self::Ethernet,
            // Files should have LINKTYPE_RAW. Some have the value of DLT_RAW instead,
            // which is 12 on most systems and 14 on OpenBSD.
            12 | 14 | LINKTYPE_RAW => Self::RawIp,
            LINKTYPE_LOOP => Self::Loop,
            LINKTYPE_LINUX_SLL => Self::CookedV1,
            LINKTYPE_IPV4 => Self::RawAs(ETHERTYPE_IPV4),
            LINKTYPE_IPV6 => Self::RawAs(ETHERTYPE_IPV6),
            LINKTYPE_LINUX_SLL2 => Self::CookedV2,
            _ => return None,
        })
    }

    /// The number of its link type; if there are several, the one that files should use.
    pub(super) fn link_type(self) -> u16 {
        match self {
            Self::Null => LINKTYPE_NULL,
            Self::Ethernet => LINKTYPE_ETHERNET,
            Self::RawIp => LINKTYPE_RAW,
            Self::Loop => LINKTYPE_LOOP,
            Self::CookedV1 => LINKTYPE_LINUX_SLL,
            Self::RawAs(ETHERTYPE_IPV6) => LINKTYPE_IPV6,
            Self::RawAs(_) => LINKTYPE_IPV4,
            Self::CookedV2 => LINKTYPE_LINUX_SLL2,
        }
    }

    pub(super) fn kind(self) -> LinkKind {
        match self {
            Self::Ethernet => LinkKind::Ethernet,
            Self::RawIp | Self::RawAs(_) => LinkKind::Raw,
            Self::CookedV1 | Self::CookedV2 => LinkKind::Cooked,
            Self::Null | Self::Loop => LinkKind::Loopback,
        }
    }

    /// See [`super::Frame::offset_shift`].
    pub(super) fn offset_shift(self) -> i32 {
        self.header_len() as i32 - ETHERNET_HEADER as i32
    }

    /// How many bytes of the captured frame the Ethernet header replaces.
    pub(super) fn header_len(self) -> usize {
        match self {
            Self::Ethernet => ETHERNET_HEADER,
            Self::RawIp | Self::RawAs(_) => 0,
            Self::CookedV1 => 16,
            Self::CookedV2 => 20,
            Self::Null | Self::Loop => 4,
        }
    }

    /// The EtherType of a captured frame, if the frame reaches that far.
    fn ether_type(self, frame: &[u8]) -> Option<u16> {
        match self {
            Self::Ethernet => be16(frame, 12),
            Self::RawIp => Some(match frame.first()? >> 4 {
                4 => ETHERTYPE_IPV4,
                6 => ETHERTYPE_IPV6,
                _ => ETHERTYPE_NONE,
            }),
            Self::RawAs(ether_type) => frame.first().map(|_| ether_type),
            Self::CookedV1 => be16(frame, 14),
            Self::CookedV2 => be16(frame, 0),
            Self::Null => {
                let family = *frame.first_chunk()?;
                Some(
                    ether_type_of_family(u32::from_le_bytes(family))
                        .or_else(|| ether_type_of_family(u32::from_be_bytes(family)))
                        .unwrap_or(ETHERTYPE_NONE),
                )
            }
            Self::Loop => {
                let family = u32::from_be_bytes(*frame.first_chunk()?);
                Some(ether_type_of_family(family).unwrap_or(ETHERTYPE_NONE))
            }
        }
    }

    /// Turns the captured frame at `data` into an Ethernet frame, in place: a
    /// header of another length is written so that it ends where the old one
    /// ended, and `buffer` has room in front of `data` for a longer one. A
    /// frame that is cut within its own header becomes an empty one, because
    /// its EtherType is not known.
    pub(super) fn reframe(self, buffer: &mut [u8], data: Range<usize>) -> &[u8] {
        if self == Self::Ethernet {
            return buffer.get(data).unwrap_or_default();
        }
        let payload = data.start + self.header_len();
        let ether_type = match buffer.get(data.clone()) {
            Some(frame) if payload <= data.end => self.ether_type(frame),
            _ => None,
        };
        let begin = payload.checked_sub(ETHERNET_HEADER);
        let (Some(ether_type), Some(begin)) = (ether_type, begin) else {
            return &[];
        };
        let Some(frame) = buffer.get_mut(begin..data.end) else {
            return &[];
        };
        if let Some((header, _)) = frame.split_first_chunk_mut::<ETHERNET_HEADER>() {
            let (macs, tail) = header.split_at_mut(ETHERNET_HEADER - 2);
            macs.fill(0);
            tail.copy_from_slice(&ether_type.to_be_bytes());
        }
        frame
    }
}

/// The EtherType for an address family: `AF_INET` is 2 everywhere, `AF_INET6`
/// is 10 on Linux, 24 on NetBSD and OpenBSD, 28 on FreeBSD, 30 on macOS.
fn ether_type_of_family(family: u32) -> Option<u16> {
    match family {
        2 => Some(ETHERTYPE_IPV4),
        10 | 24 | 28 | 30 => Some(ETHERTYPE_IPV6),
        _ => None,
    }
}

fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..)?
        .first_chunk()
        .map(|field| u16::from_be_bytes(*field))
}

/// The names of link types that are not supported, but are likely to occur.
pub(super) fn name(link_type: u32) -> Option<&'static str> {
    Some(match link_type {
        3 => "AX.25",
        6 => "IEEE 802.5 Token Ring",
        7 => "ARCNET",
        8 => "SLIP",
        9 => "PPP",
        10 => "FDDI",
        50 => "PPP over HDLC",
        51 => "PPPoE",
        100 => "ATM RFC 1483",
        104 => "Cisco HDLC",
        105 => "IEEE 802.11",
        107 => "Frame Relay",
        109 => "OpenBSD encapsulated IP",
        117 => "OpenBSD pflog",
        119 => "IEEE 802.11 with Prism header",
        122 => "IP over Fibre Channel",
        123 => "SunATM",
        127 => "IEEE 802.11 with radiotap header",
        138 => "Apple IP over IEEE 1394",
        143 => "DOCSIS",
        147..=162 => "private use",
        163 => "IEEE 802.11 with AVS header",
        165 => "BACnet MS/TP",
        166 => "PPP with direction",
        178 => "Juniper Ethernet",
        182 => "multilink Frame Relay",
        187 => "Bluetooth HCI UART",
        189 => "Linux USB",
        192 => "PPI",
        195 => "IEEE 802.15.4 with FCS",
        197 => "ERF",
        201 => "Bluetooth HCI UART with direction",
        202 => "AX.25 with KISS header",
        220 => "Linux USB with padded header",
        226 => "Solaris ipnet",
        227 => "CAN",
        230 => "IEEE 802.15.4",
        231 => "D-Bus",
        239 => "Linux netfilter log",
        240 | 241 => "netANALYZER",
        242 => "IP over InfiniBand",
        247 => "InfiniBand",
        248 => "SCTP",
        249 => "USBPcap",
        251 => "Bluetooth LE",
        252 => "Wireshark upper PDU",
        253 => "Linux netlink",
        254 => "Bluetooth Linux monitor",
        256 => "Bluetooth LE with header",
        258 => "Apple pktap",
        271 => "Linux vsock",
        274 => "IEEE 802.3br mPackets",
        281 | 282 => "Broadcom switch tag",
        284 | 285 => "Marvell switch tag",
        _ => return None,
    })
}
