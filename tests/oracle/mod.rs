//! The oracle: a plain, slow parser that says what tcpinspect must say about a frame.
//!
//! It is written from the rules ("What counts as what") and shares no code with the product, so
//! that an error has to be made twice, independently, before a test overlooks it. Every rule is a
//! line or two here, in the order in which the rules apply; nothing is clever.
#![allow(
    dead_code,
    unused_imports,
    reason = "several test targets include this module and none of them uses all of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a broken assumption has to stop the test"
)]

pub mod capture;
pub mod corpus;
pub mod frames;
pub mod parity;
mod parse;
pub mod pcap_write;

use std::net::IpAddr;

pub use parse::judge;

pub use crate::common::frames::{
    AUTHENTICATION, DESTINATION_OPTIONS, FRAGMENT, HOP_BY_HOP, IPV4 as ETHERTYPE_IPV4,
    IPV6 as ETHERTYPE_IPV6, ROUTING, TCP,
};

/// The EtherTypes that announce a VLAN tag: 802.1Q, 802.1ad and the older QinQ.
pub const TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

/// The link type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Link {
    Ethernet,
    /// An IP header at the start; its version field tells IPv4 from IPv6.
    Raw,
    Ipv4Only,
    Ipv6Only,
    CookedV1,
    CookedV2,
    /// An address family in the byte order of the machine that captured, which is not recorded.
    Null,
    /// The same, always in network byte order.
    Loop,
}

impl Link {
    pub const ALL: [Self; 8] = [
        Self::Ethernet,
        Self::Raw,
        Self::Ipv4Only,
        Self::Ipv6Only,
        Self::CookedV1,
        Self::CookedV2,
        Self::Null,
        Self::Loop,
    ];

    /// The link type with this number in a capture file, if it is supported.
    ///
    /// 101 is raw IP's number in files; 12 is DLT_RAW itself, which old programs wrote unmapped
    /// and which libpcap still takes for raw IP.
    pub fn from_type(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Null),
            1 => Some(Self::Ethernet),
            12 | 101 => Some(Self::Raw),
            108 => Some(Self::Loop),
            113 => Some(Self::CookedV1),
            228 => Some(Self::Ipv4Only),
            229 => Some(Self::Ipv6Only),
            276 => Some(Self::CookedV2),
            _ => None,
        }
    }

    /// The number that capture files carry for this kind of frame.
    pub fn to_type(self) -> u16 {
        match self {
            Self::Null => 0,
            Self::Ethernet => 1,
            Self::Raw => 101,
            Self::Loop => 108,
            Self::CookedV1 => 113,
            Self::Ipv4Only => 228,
            Self::Ipv6Only => 229,
            Self::CookedV2 => 276,
        }
    }
}

/// The verdict on a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    Tcp,
    NotIp,
    NotTcp,
    Fragment,
    Truncated,
    Malformed,
    TooDeep,
}

impl Verdict {
    pub const ALL: [Self; 7] = [
        Self::Tcp,
        Self::NotIp,
        Self::NotTcp,
        Self::Fragment,
        Self::Truncated,
        Self::Malformed,
        Self::TooDeep,
    ];

    /// The key under `verdicts` in the summary.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::NotIp => "not_ip",
            Self::NotTcp => "not_tcp",
            Self::Fragment => "fragment",
            Self::Truncated => "truncated",
            Self::Malformed => "malformed",
            Self::TooDeep => "too_deep",
        }
    }
}

/// A verdict, and the headers' contents if and only if the verdict is `Tcp`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    pub verdict: Verdict,
    pub packet: Option<Tcp>,
}

impl Judgement {
    /// Whether the frame counts as a SYN.
    pub fn is_syn(&self) -> bool {
        self.packet
            .as_ref()
            .is_some_and(|packet| is_syn(packet.flags))
    }
}

/// The headers as the `packet` event shows them. Fields are `None` where the event has `null`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Of an Ethernet header; no other link type has both addresses.
    pub src_mac: Option<[u8; 6]>,
    pub dst_mac: Option<[u8; 6]>,
    /// The innermost one, after all tags; `None` if the link type has no EtherType.
    pub ethertype: Option<u16>,
    /// 12-bit VLAN ids, outermost first.
    pub vlan: Vec<u16>,
    pub ip_version: u8,
    pub saddr: IpAddr,
    pub daddr: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// The whole TOS or traffic class byte.
    pub tos: u8,
    /// IPv4 only.
    pub ip_id: Option<u16>,
    /// Bytes of the IP packet by its own length field, header included; `None` if that is 0.
    pub ip_len: Option<u32>,
    /// Bytes from the start of the IP header to the TCP header, extension headers included.
    pub ip_header_len: usize,
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    /// In 32-bit words.
    pub data_offset: u8,
    /// The whole flags byte, CWR and ECE included.
    pub flags: u8,
    pub window: u16,
    pub checksum: u16,
    pub urgent: u16,
    pub options: Options,
    /// From the start of the captured frame to where the data offset says that payload begins,
    /// even if that is beyond the frame's end.
    pub payload_offset: usize,
    /// Bytes of payload that were captured and belong to the IP packet.
    pub payload_len: usize,
}

/// The TCP options that the `packet` event shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    pub mss: Option<u16>,
    /// The shift as sent, not limited to 14.
    pub wscale: Option<u8>,
    pub sack_permitted: bool,
    pub ts_val: Option<u32>,
    pub ts_ecr: Option<u32>,
}

/// SYN set and ACK clear, whatever the other bits.
pub fn is_syn(flags: u8) -> bool {
    flags & 0x02 != 0 && flags & 0x10 == 0
}
