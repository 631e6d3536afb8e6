//! Builders for frames with right lengths and checksums, in which single fields can be set wrong.

use std::net::IpAddr;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an 802.1Q tag.
const VLAN: u16 = 0x8100;
/// EtherType of an 802.1ad tag.
const QINQ: u16 = 0x88a8;

/// IP protocol numbers: TCP, and five IPv6 extension headers.
pub const TCP: u8 = 6;
pub const HOP_BY_HOP: u8 = 0;
pub const ROUTING: u8 = 43;
pub const FRAGMENT: u8 = 44;
pub const AUTHENTICATION: u8 = 51;
pub const DESTINATION_OPTIONS: u8 = 60;

/// TCP flags.
pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// Locally administered addresses of the two ends. No station has them, so the stack that receives a
/// frame ignores it.
pub const SRC_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x01];
pub const DST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x02];

/// A VLAN tag: the EtherType that announces it, and its priority and id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    pub ethertype: u16,
    pub tci: u16,
}

/// An 802.1Q tag.
pub fn vlan(id: u16) -> Tag {
    Tag {
        ethertype: VLAN,
        tci: id,
    }
}

/// An 802.1ad (service) tag.
pub fn service_vlan(id: u16) -> Tag {
    Tag {
        ethertype: QINQ,
        tci: id,
    }
}

/// An Ethernet frame; `tags` are outermost first, `ethertype` is the innermost one.
pub fn ethernet(tags: &[Tag], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [DST_MAC, SRC_MAC].concat();
    frame.extend(tagged(tags, ethertype));
    frame.extend(payload);
    frame
}

/// An untagged Ethernet frame around an IP packet of either version.
pub fn ethernet_ip(packet: &[u8]) -> Vec<u8> {
    tagged_ip(&[], packet)
}

/// An Ethernet frame with tags around an IP packet, whose first byte has the version.
pub fn tagged_ip(tags: &[Tag], packet: &[u8]) -> Vec<u8> {
    ethernet(tags, ethertype_of(packet), packet)
}

/// The EtherType of an IP packet.
pub fn ethertype_of(packet: &[u8]) -> u16 {
    match packet.first().is_some_and(|byte| byte >> 4 == 6) {
        true => IPV6,
        false => IPV4,
    }
}

/// A frame with a SYN.
pub fn syn_frame(tags: &[Tag], from: IpAddr, to: IpAddr, dport: u16) -> Vec<u8> {
    tagged_ip(
        tags,
        &tcp_between(from, to, &Segment::new(40000, dport, SYN, &[])),
    )
}

/// The EtherType field and all tags up to the innermost EtherType.
pub fn tagged(tags: &[Tag], ethertype: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    for tag in tags {
        bytes.extend(tag.ethertype.to_be_bytes());
        bytes.extend(tag.tci.to_be_bytes());
    }
    bytes.extend(ethertype.to_be_bytes());
    bytes
}

/// A TCP segment.
#[derive(Clone, Debug)]
pub struct Segment {
    pub sport: u16,
    pub dport: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    /// Padded with zeros (end of options) to whole words.
    pub options: Vec<u8>,
    /// Words of header to claim instead of the true number.
    pub data_offset: Option<u8>,
    pub payload: Vec<u8>,
}

impl Default for Segment {
    /// A SYN without options from port 0x1234 to port 80.
    fn default() -> Self {
        Self {
            sport: 0x1234,
            dport: 80,
            seq: 0x0102_0304,
            ack: 0,
            flags: SYN,
            window: 64_240,
            urgent: 0,
            options: Vec::new(),
            data_offset: None,
            payload: Vec::new(),
        }
    }
}

impl Segment {
    /// A segment without options. Its sequence number is 1, and it acknowledges nothing.
    pub fn new(sport: u16, dport: u16, flags: u8, payload: &[u8]) -> Self {
        Self {
            sport,
            dport,
            seq: 1,
            flags,
            payload: payload.to_vec(),
            ..Self::default()
        }
    }

    /// The segment's bytes, with the checksum for these addresses.
    pub fn bytes(&self, source: &[u8], destination: &[u8]) -> Vec<u8> {
        let options = padded(&self.options);
        let words = self.data_offset.unwrap_or(5 + (options.len() / 4) as u8);
        let mut bytes = Vec::new();
        bytes.extend(self.sport.to_be_bytes());
        bytes.extend(self.dport.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        bytes.extend([words << 4, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(self.urgent.to_be_bytes());
        bytes.extend(options);
        bytes.extend(&self.payload);

        // The pseudo headers of RFC 9293 and RFC 8200 differ in the width of length and protocol,
        // but the sum over them is the same.
        let length = bytes.len() as u32;
        let pseudo = [
            source,
            destination,
            &length.to_be_bytes(),
            &[0, 0, 0, TCP],
            &bytes,
        ]
        .concat();
        bytes[16..18].copy_from_slice(&checksum(&pseudo).to_be_bytes());
        bytes
    }
}

/// TCP options, to be concatenated.
pub fn mss(value: u16) -> Vec<u8> {
    [&[2, 4][..], &value.to_be_bytes()].concat()
}

pub fn wscale(shift: u8) -> Vec<u8> {
    vec![3, 3, shift]
}

pub fn sack_permitted() -> Vec<u8> {
    vec![4, 2]
}

pub fn timestamps(value: u32, echo: u32) -> Vec<u8> {
    [&[8, 10][..], &value.to_be_bytes(), &echo.to_be_bytes()].concat()
}

/// The options of a Linux SYN, in its order.
pub fn linux_options() -> Vec<u8> {
    let nop = vec![1];
    [
        mss(1460),
        sack_permitted(),
        timestamps(0x0a0b_0c0d, 0),
        nop,
        wscale(7),
    ]
    .concat()
}

/// An IPv4 header.
#[derive(Clone, Debug)]
pub struct Ipv4 {
    pub version: u8,
    pub tos: u8,
    pub id: u16,
    /// The three flags and the fragment offset, as one field.
    pub fragment: u16,
    pub ttl: u8,
    pub protocol: u8,
    pub source: [u8; 4],
    pub destination: [u8; 4],
    /// Padded with zeros (end of options) to whole words.
    pub options: Vec<u8>,
    /// Words of header to claim instead of the true number.
    pub ihl: Option<u8>,
    /// The total length to claim instead of the true one.
    pub total_length: Option<u16>,
}

impl Default for Ipv4 {
    fn default() -> Self {
        Self {
            version: 4,
            tos: 0,
            id: 0x4321,
            fragment: 0x4000,
            ttl: 64,
            protocol: TCP,
            source: [1, 2, 3, 4],
            destination: [192, 0, 2, 1],
            options: Vec::new(),
            ihl: None,
            total_length: None,
        }
    }
}

/// A TCP segment in a packet between two addresses, which are of the same version.
pub fn tcp_between(source: IpAddr, destination: IpAddr, segment: &Segment) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Ipv4 {
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv4::default()
        }
        .tcp(segment),
        (IpAddr::V6(source), IpAddr::V6(destination)) => Ipv6 {
            source: source.octets(),
            destination: destination.octets(),
            ..Ipv6::default()
        }
        .tcp(segment),
        _ => panic!("{source} and {destination} are of different versions"),
    }
}

impl Ipv4 {
    /// The packet with a TCP segment in it.
    pub fn tcp(&self, segment: &Segment) -> Vec<u8> {
        self.around(&segment.bytes(&self.source, &self.destination))
    }

    /// The packet with any payload.
    pub fn around(&self, payload: &[u8]) -> Vec<u8> {
        let options = padded(&self.options);
        let header_len = 20 + options.len();
        let ihl = self.ihl.unwrap_or((header_len / 4) as u8);
        let true_length = (header_len + payload.len()) as u16;
        let mut bytes = vec![self.version << 4 | ihl, self.tos];
        bytes.extend(self.total_length.unwrap_or(true_length).to_be_bytes());
        bytes.extend(self.id.to_be_bytes());
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.protocol, 0, 0]);
        bytes.extend(self.source);
        bytes.extend(self.destination);
        bytes.extend(options);
        let sum = checksum(&bytes);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(payload);
        bytes
    }
}

/// An IPv6 extension header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// Each with its length field: units of 8 bytes, not counting the first.
    HopByHop(u8),
    Routing(u8),
    DestinationOptions(u8),
    /// With its length field: words, minus 2.
    Authentication(u8),
    /// With the offset in units of 8 bytes, and whether more fragments follow.
    Fragment(u16, bool),
}

impl Extension {
    /// The number of this header in the next header field of the header before it.
    pub fn number(self) -> u8 {
        match self {
            Self::HopByHop(_) => HOP_BY_HOP,
            Self::Routing(_) => ROUTING,
            Self::DestinationOptions(_) => DESTINATION_OPTIONS,
            Self::Authentication(_) => AUTHENTICATION,
            Self::Fragment(..) => FRAGMENT,
        }
    }

    fn bytes(self, next: u8) -> Vec<u8> {
        let mut bytes = vec![next];
        match self {
            // Zeros are options of one byte of padding, or a routing header of type 0 that has
            // no segments left.
            Self::HopByHop(length) | Self::Routing(length) | Self::DestinationOptions(length) => {
                bytes.push(length);
                bytes.resize((usize::from(length) + 1) * 8, 0);
            }
            Self::Authentication(length) => {
                bytes.push(length);
                bytes.resize((usize::from(length) + 2) * 4, 0);
            }
            Self::Fragment(offset, more) => {
                bytes.push(0);
                bytes.extend((offset << 3 | u16::from(more)).to_be_bytes());
                bytes.extend([0xca, 0xfe, 0xf0, 0x0d]);
            }
        }
        bytes
    }
}

/// An IPv6 header with its extension headers.
#[derive(Clone, Debug)]
pub struct Ipv6 {
    pub version: u8,
    pub traffic_class: u8,
    /// 20 bits.
    pub flow_label: u32,
    pub hop_limit: u8,
    pub source: [u8; 16],
    pub destination: [u8; 16],
    pub extensions: Vec<Extension>,
    /// The protocol that the last header announces.
    pub protocol: u8,
    /// The payload length to claim instead of the true one.
    pub payload_length: Option<u16>,
}

impl Default for Ipv6 {
    fn default() -> Self {
        let mut address = [0; 16];
        address[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        let (mut source, mut destination) = (address, address);
        source[15] = 1;
        destination[15] = 2;
        Self {
            version: 6,
            traffic_class: 0,
            flow_label: 0xf_1001,
            hop_limit: 64,
            source,
            destination,
            extensions: Vec::new(),
            protocol: TCP,
            payload_length: None,
        }
    }
}

impl Ipv6 {
    /// The packet with a TCP segment in it.
    pub fn tcp(&self, segment: &Segment) -> Vec<u8> {
        self.around(&segment.bytes(&self.source, &self.destination))
    }

    /// The packet with any payload.
    pub fn around(&self, payload: &[u8]) -> Vec<u8> {
        let mut behind = Vec::new();
        for (index, extension) in self.extensions.iter().enumerate() {
            let next = self.extensions.get(index + 1);
            behind.extend(extension.bytes(next.map_or(self.protocol, |next| next.number())));
        }
        behind.extend(payload);
        let first_word = u32::from(self.version) << 28
            | u32::from(self.traffic_class) << 20
            | self.flow_label & 0xf_ffff;
        let length = self.payload_length.unwrap_or(behind.len() as u16);
        let first = self.extensions.first();
        let mut bytes = first_word.to_be_bytes().to_vec();
        bytes.extend(length.to_be_bytes());
        bytes.extend([
            first.map_or(self.protocol, |first| first.number()),
            self.hop_limit,
        ]);
        bytes.extend(self.source);
        bytes.extend(self.destination);
        bytes.extend(behind);
        bytes
    }
}

fn padded(options: &[u8]) -> Vec<u8> {
    let mut options = options.to_vec();
    options.resize(options.len().next_multiple_of(4), 0);
    assert!(
        options.len() <= 40,
        "a header has room for 40 bytes of options"
    );
    options
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        let low = pair.get(1).copied().unwrap_or(0);
        sum += u32::from(u16::from_be_bytes([pair[0], low]));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
