//! The rules themselves, header by header, outermost first; the first that applies decides.
//!
//! Positions are counted from the start of the frame throughout.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{
    AUTHENTICATION, DESTINATION_OPTIONS, ETHERTYPE_IPV4, ETHERTYPE_IPV6, FRAGMENT, HOP_BY_HOP,
    Judgement, Link, Options, ROUTING, TAGS, TCP, Tcp, Verdict,
};

const MOST_TAGS: usize = 2;
const MOST_EXTENSION_HEADERS: usize = 8;

/// Judges one captured frame.
pub fn judge(frame: &[u8], link: Link) -> Judgement {
    match parse(frame, link) {
        Ok(packet) => Judgement {
            verdict: Verdict::Tcp,
            packet: Some(packet),
        },
        Err(verdict) => Judgement {
            verdict,
            packet: None,
        },
    }
}

fn parse(frame: &[u8], link: Link) -> Result<Tcp, Verdict> {
    let below = link_layer(frame, link)?;
    let ip = match below.version {
        4 => ipv4(frame, below.ip_at)?,
        _ => ipv6(frame, below.ip_at)?,
    };
    tcp(frame, below, ip)
}

/// The headers below IP.
#[derive(Default)]
struct Below {
    ip_at: usize,
    version: u8,
    src_mac: Option<[u8; 6]>,
    dst_mac: Option<[u8; 6]>,
    ethertype: Option<u16>,
    vlan: Vec<u16>,
}

fn link_layer(frame: &[u8], link: Link) -> Result<Below, Verdict> {
    match link {
        Link::Ethernet => {
            need(frame.len(), 0, 14)?;
            let mut below = tags(frame, be16(frame, 12), 14)?;
            below.dst_mac = Some(array(frame, 0));
            below.src_mac = Some(array(frame, 6));
            Ok(below)
        }
        Link::CookedV1 => {
            need(frame.len(), 0, 16)?;
            tags(frame, be16(frame, 14), 16)
        }
        Link::CookedV2 => {
            need(frame.len(), 0, 20)?;
            tags(frame, be16(frame, 0), 20)
        }
        Link::Raw => {
            need(frame.len(), 0, 1)?;
            match frame[0] >> 4 {
                version @ (4 | 6) => Ok(without_ethertype(0, version)),
                _ => Err(Verdict::NotIp),
            }
        }
        // The link type has already said which IP it is: another version is a malformed header.
        Link::Ipv4Only => Ok(without_ethertype(0, 4)),
        Link::Ipv6Only => Ok(without_ethertype(0, 6)),
        Link::Null | Link::Loop => {
            need(frame.len(), 0, 4)?;
            let mut version = family_version(be32(frame, 0));
            if link == Link::Null && version.is_none() {
                version = family_version(be32(frame, 0).swap_bytes());
            }
            let version = version.ok_or(Verdict::NotIp)?;
            Ok(without_ethertype(4, version))
        }
    }
}

fn without_ethertype(ip_at: usize, version: u8) -> Below {
    Below {
        ip_at,
        version,
        ..Below::default()
    }
}

/// The IP version of an address family. AF_INET is 2 everywhere; AF_INET6 is 10 on Linux, 24 on
/// NetBSD and OpenBSD, 28 on FreeBSD and 30 on macOS.
fn family_version(family: u32) -> Option<u8> {
    match family {
        2 => Some(4),
        10 | 24 | 28 | 30 => Some(6),
        _ => None,
    }
}

/// Reads VLAN tags from `at`. The header before `at` has the EtherType `ethertype`.
fn tags(frame: &[u8], mut ethertype: u16, mut at: usize) -> Result<Below, Verdict> {
    let mut vlan = Vec::new();
    while TAGS.contains(&ethertype) {
        need(frame.len(), at, 4)?;
        if vlan.len() == MOST_TAGS {
            return Err(Verdict::TooDeep);
        }
        vlan.push(be16(frame, at) & 0x0fff);
        ethertype = be16(frame, at + 2);
        at += 4;
    }
    let version = match ethertype {
        ETHERTYPE_IPV4 => 4,
        ETHERTYPE_IPV6 => 6,
        _ => return Err(Verdict::NotIp),
    };
    Ok(Below {
        ethertype: Some(ethertype),
        vlan,
        ..without_ethertype(at, version)
    })
}

/// The IP header with its extension headers.
struct Ip {
    version: u8,
    saddr: IpAddr,
    daddr: IpAddr,
    ttl: u8,
    tos: u8,
    id: Option<u16>,
    len: Option<u32>,
    header_len: usize,
    /// The end of the bytes that may be read: that of the frame or of the IP packet.
    end: usize,
}

fn ipv4(frame: &[u8], at: usize) -> Result<Ip, Verdict> {
    need(frame.len(), at, 20)?;
    let header_len = usize::from(frame[at] & 0x0f) * 4;
    let total_length = be16(frame, at + 2);
    if frame[at] >> 4 != 4 {
        return Err(Verdict::Malformed);
    }
    if header_len < 20 {
        return Err(Verdict::Malformed);
    }
    if total_length != 0 && usize::from(total_length) < header_len {
        return Err(Verdict::Malformed);
    }
    if frame[at + 9] != TCP {
        return Err(Verdict::NotTcp);
    }
    if be16(frame, at + 6) & 0x1fff != 0 {
        return Err(Verdict::Fragment);
    }
    let len = (total_length != 0).then_some(u32::from(total_length));
    Ok(Ip {
        version: 4,
        saddr: Ipv4Addr::from(array::<4>(frame, at + 12)).into(),
        daddr: Ipv4Addr::from(array::<4>(frame, at + 16)).into(),
        ttl: frame[at + 8],
        tos: frame[at + 1],
        id: Some(be16(frame, at + 4)),
        len,
        header_len,
        end: end(frame, at, len),
    })
}

fn ipv6(frame: &[u8], at: usize) -> Result<Ip, Verdict> {
    need(frame.len(), at, 40)?;
    if frame[at] >> 4 != 6 {
        return Err(Verdict::Malformed);
    }
    let payload_length = be16(frame, at + 4);
    let len = (payload_length != 0).then_some(40 + u32::from(payload_length));
    let end = end(frame, at, len);
    let tcp_at = extension_headers(frame, frame[at + 6], at + 40, end)?;
    Ok(Ip {
        version: 6,
        saddr: Ipv6Addr::from(array::<16>(frame, at + 8)).into(),
        daddr: Ipv6Addr::from(array::<16>(frame, at + 24)).into(),
        ttl: frame[at + 7],
        // The traffic class lies across the first two bytes, between version and flow label.
        tos: (be16(frame, at) >> 4) as u8,
        id: None,
        len,
        header_len: tcp_at - at,
        end,
    })
}

/// Walks the extension headers from `at` and returns where the TCP header begins.
fn extension_headers(
    frame: &[u8],
    mut next: u8,
    mut at: usize,
    end: usize,
) -> Result<usize, Verdict> {
    let mut seen = 0;
    loop {
        match next {
            TCP => return Ok(at),
            HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | AUTHENTICATION | FRAGMENT => {}
            _ => return Err(Verdict::NotTcp),
        }
        need(end, at, 8)?;
        if seen == MOST_EXTENSION_HEADERS {
            return Err(Verdict::TooDeep);
        }
        seen += 1;
        let behind = frame[at];
        if next == FRAGMENT && be16(frame, at + 2) & 0xfff8 != 0 {
            return match behind {
                TCP => Err(Verdict::Fragment),
                _ => Err(Verdict::NotTcp),
            };
        }
        let length = usize::from(frame[at + 1]);
        at += match next {
            FRAGMENT => 8,
            // RFC 4302, 2.2: in 32-bit words, minus 2.
            AUTHENTICATION => (length + 2) * 4,
            // RFC 8200, 4.3: in units of 8 bytes, not counting the first 8.
            _ => (length + 1) * 8,
        };
        next = behind;
    }
}

fn tcp(frame: &[u8], below: Below, ip: Ip) -> Result<Tcp, Verdict> {
    let at = below.ip_at + ip.header_len;
    need(ip.end, at, 20)?;
    let data_offset = frame[at + 12] >> 4;
    if data_offset < 5 {
        return Err(Verdict::Malformed);
    }
    let payload_offset = at + usize::from(data_offset) * 4;
    Ok(Tcp {
        src_mac: below.src_mac,
        dst_mac: below.dst_mac,
        ethertype: below.ethertype,
        vlan: below.vlan,
        ip_version: ip.version,
        saddr: ip.saddr,
        daddr: ip.daddr,
        ttl: ip.ttl,
        tos: ip.tos,
        ip_id: ip.id,
        ip_len: ip.len,
        ip_header_len: ip.header_len,
        sport: be16(frame, at),
        dport: be16(frame, at + 2),
        seq: be32(frame, at + 4),
        ack: be32(frame, at + 8),
        data_offset,
        flags: frame[at + 13],
        window: be16(frame, at + 14),
        checksum: be16(frame, at + 16),
        urgent: be16(frame, at + 18),
        options: options(&frame[at + 20..payload_offset.min(ip.end)]),
        payload_offset,
        payload_len: ip.end.saturating_sub(payload_offset),
    })
}

/// Reads the options in `rest`, which ends with the TCP header or where its bytes are cut.
///
/// As in the kernel's `tcp_parse_options`, a length that can't be right ends the walk, and an
/// option of a known kind with another kind's length is skipped. Unlike there, the first of two
/// options of the same kind is shown.
fn options(mut rest: &[u8]) -> Options {
    let mut found = Options::default();
    while let [kind, after @ ..] = rest {
        match kind {
            0 => break,
            1 => {
                rest = after;
                continue;
            }
            _ => {}
        }
        let Some(&length) = after.first() else { break };
        let length = usize::from(length);
        if length < 2 || length > rest.len() {
            break;
        }
        match (kind, length) {
            (2, 4) if found.mss.is_none() => found.mss = Some(be16(rest, 2)),
            (3, 3) if found.wscale.is_none() => found.wscale = Some(rest[2]),
            (4, 2) => found.sack_permitted = true,
            (8, 10) if found.ts_val.is_none() => {
                found.ts_val = Some(be32(rest, 2));
                found.ts_ecr = Some(be32(rest, 6));
            }
            _ => {}
        }
        rest = &rest[length..];
    }
    found
}

/// The end of the bytes of the IP packet that starts at `at`. Its header gives the length as `len`.
fn end(frame: &[u8], at: usize, len: Option<u32>) -> usize {
    match len {
        Some(len) => frame.len().min(at + len as usize),
        None => frame.len(),
    }
}

/// Requires that `count` bytes from `at` lie before `end`.
fn need(end: usize, at: usize, count: usize) -> Result<(), Verdict> {
    if at + count > end {
        return Err(Verdict::Truncated);
    }
    Ok(())
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("the slice has N bytes")
}

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes(array(bytes, at))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(array(bytes, at))
}
