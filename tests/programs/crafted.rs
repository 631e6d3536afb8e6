//! Frames made for single rules of the parser: at least one for each of its branches.

use crate::oracle::frames::{
    ACK, Extension, Ipv4, Ipv6, SYN, Segment, Tag, ethernet, linux_options, mss, on_link,
    sack_permitted, service_vlan, timestamps, vlan, wscale,
};
use crate::oracle::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Link};

/// Packets of both versions, of every kind that the rules distinguish. All are short.
pub fn packets() -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    for segment in segments() {
        packets.push(Ipv4::default().tcp(&segment));
        packets.push(Ipv6::default().tcp(&segment));
    }
    let syn = Segment {
        options: linux_options(),
        payload: b"GET / HTTP/1.1\r\n".to_vec(),
        ..Segment::default()
    };
    packets.extend(ipv4_headers().iter().map(|ip| ip.tcp(&syn)));
    packets.extend(ipv6_headers().iter().map(|ip| ip.tcp(&syn)));
    packets
}

/// Frames of a link type: every packet without tags, and some with VLAN tags.
pub fn frames(link: Link) -> Vec<Vec<u8>> {
    let packets = packets();
    let mut frames: Vec<_> = packets.iter().map(|it| on_link(link, &[], it)).collect();
    if !matches!(link, Link::Ethernet | Link::CookedV1 | Link::CookedV2) {
        return frames;
    }
    let old = Tag {
        ethertype: 0x9100,
        tci: 0xf00f,
    };
    for tags in [
        vec![vlan(1)],
        vec![old],
        vec![service_vlan(0xfff), vlan(0xe001)],
        vec![vlan(1), vlan(2), vlan(3)],
        vec![service_vlan(1), old, vlan(3), vlan(4)],
    ] {
        for packet in [
            Ipv4::default().tcp(&Segment::default()),
            Ipv6::default().tcp(&Segment::default()),
            Ipv4 {
                protocol: 17,
                ..Ipv4::default()
            }
            .around(&[0; 30]),
        ] {
            frames.push(on_link(link, &tags, &packet));
        }
    }
    if link == Link::Ethernet {
        let (ipv4, ipv6) = (&packets[0], &packets[1]);
        for tags in [vec![], vec![vlan(7)], vec![vlan(7), vlan(8)]] {
            for ethertype in [0x0806, 0x0026, 0, 0xffff, 0x8847, 0x8864] {
                frames.push(ethernet(&tags, ethertype, ipv4));
            }
            frames.push(ethernet(&tags, ETHERTYPE_IPV4, ipv6));
            frames.push(ethernet(&tags, ETHERTYPE_IPV6, ipv4));
        }
    }
    frames
}

fn segments() -> Vec<Segment> {
    let with_options = |options: Vec<u8>| Segment {
        options,
        ..Segment::default()
    };
    let mut segments = vec![
        Segment::default(),
        with_options(linux_options()),
        with_options([mss(1), mss(2), wscale(15), sack_permitted()].concat()),
        with_options([vec![1; 8], timestamps(1, 0xffff_ffff)].concat()),
        with_options([mss(9000), vec![0], wscale(3)].concat()),
        with_options(vec![2, 0, 0, 0]),
        with_options(vec![2, 1, 0, 0]),
        with_options(vec![3, 4, 9, 9, 4, 2, 8, 40]),
        with_options([vec![253; 1], vec![38; 37], sack_permitted()].concat()),
        Segment {
            flags: SYN | ACK,
            sport: 0,
            dport: 0xffff,
            seq: u32::MAX,
            ack: 0x8000_0000,
            window: 0,
            urgent: 0xffff,
            payload: vec![0x55; 3],
            ..Segment::default()
        },
    ];
    for words in [0, 4, 5, 6, 15] {
        segments.push(Segment {
            data_offset: Some(words),
            payload: vec![1, 3, 3, 7, 2, 4, 5, 6, 0, 0],
            ..Segment::default()
        });
    }
    segments
}

fn ipv4_headers() -> Vec<Ipv4> {
    let ip = Ipv4::default;
    let mut headers = vec![
        ip(),
        Ipv4 {
            tos: 0xff,
            id: 0xffff,
            ttl: 0,
            source: [255; 4],
            destination: [0; 4],
            ..ip()
        },
    ];
    for protocol in [0, 1, 4, 17, 41, 43, 44, 47, 50, 51, 59, 60, 255] {
        headers.push(Ipv4 { protocol, ..ip() });
    }
    for version in [0, 5, 6, 15] {
        headers.push(Ipv4 { version, ..ip() });
    }
    for words in [0, 4, 5, 6, 15] {
        headers.push(Ipv4 {
            ihl: Some(words),
            ..ip()
        });
    }
    for words in 1..=10 {
        headers.push(Ipv4 {
            options: vec![1; words * 4],
            ..ip()
        });
    }
    for length in [0, 1, 19, 20, 39, 40, 41, 59, 60, 61, 75, 76, 77, 0xffff] {
        headers.push(Ipv4 {
            total_length: Some(length),
            ..ip()
        });
    }
    for fragment in [0, 0x2000, 0x8000, 0xe000, 1, 0x1fff, 0x2001, 0x3fff] {
        headers.push(Ipv4 { fragment, ..ip() });
    }
    headers.push(Ipv4 {
        fragment: 1,
        protocol: 17,
        ..ip()
    });
    headers
}

fn ipv6_headers() -> Vec<Ipv6> {
    let ip = Ipv6::default;
    let mut headers = vec![Ipv6 {
        traffic_class: 0xa5,
        flow_label: 0,
        hop_limit: 255,
        source: [0xff; 16],
        destination: [0; 16],
        ..ip()
    }];
    for version in [0, 4, 5, 7, 15] {
        headers.push(Ipv6 { version, ..ip() });
    }
    for protocol in [1, 4, 17, 41, 47, 50, 58, 59, 135, 139, 140, 253, 255] {
        headers.push(Ipv6 { protocol, ..ip() });
    }
    for length in [0, 1, 7, 8, 19, 20, 21, 39, 40, 41, 55, 56, 57, 0xffff] {
        headers.push(Ipv6 {
            payload_length: Some(length),
            ..ip()
        });
    }
    for extensions in chains() {
        for protocol in [6, 17] {
            headers.push(Ipv6 {
                extensions: extensions.clone(),
                protocol,
                ..ip()
            });
        }
        headers.push(Ipv6 {
            extensions,
            payload_length: Some(17),
            ..ip()
        });
    }
    headers
}

fn chains() -> Vec<Vec<Extension>> {
    use Extension::{Authentication, DestinationOptions, Fragment, HopByHop, Routing};
    let mut chains = vec![
        vec![HopByHop(0)],
        vec![Routing(2)],
        vec![DestinationOptions(1)],
        vec![Authentication(0)],
        vec![Authentication(1)],
        vec![Authentication(4)],
        vec![Fragment(0, false)],
        vec![Fragment(0, true)],
        vec![Fragment(1, false)],
        vec![Fragment(0x1fff, true)],
        vec![Fragment(0, true), Fragment(2, true)],
        vec![HopByHop(0), Fragment(1, true)],
        vec![Fragment(1, true), DestinationOptions(0)],
        vec![
            HopByHop(1),
            DestinationOptions(0),
            Routing(0),
            Fragment(0, true),
            Authentication(5),
            DestinationOptions(2),
        ],
        // Hop-by-hop options have their place, but the rules don't insist on it.
        vec![DestinationOptions(0), HopByHop(0), HopByHop(0)],
    ];
    for count in [7, 8, 9, 10] {
        chains.push(vec![DestinationOptions(0); count]);
        chains.push(vec![Authentication(0); count]);
    }
    chains
}

/// Frames whose headers reach beyond what a test run takes (a page less headroom), or whose
/// payload does. The last number is the offset of the TCP header.
pub fn long_frames() -> Vec<(Vec<u8>, usize)> {
    use Extension::{Authentication, DestinationOptions, Fragment, HopByHop, Routing};
    let mut frames = Vec::new();
    let segment = Segment {
        options: linux_options(),
        payload: b"at the end".to_vec(),
        ..Segment::default()
    };
    let mut chains = vec![
        vec![DestinationOptions(255); 8],
        vec![DestinationOptions(255); 9],
        vec![Authentication(255); 8],
        vec![
            HopByHop(255),
            Authentication(200),
            Routing(255),
            Fragment(0, true),
            DestinationOptions(3),
        ],
        vec![DestinationOptions(255), Fragment(1, false)],
        vec![DestinationOptions(255), Fragment(0, false)],
    ];
    // One header of every length around the end of what a test run takes (2,048 bytes, and a page
    // less what the kernel keeps for itself).
    for units in 238..=255_u8 {
        chains.push(vec![DestinationOptions(units)]);
        chains.push(vec![DestinationOptions(units), Routing(170)]);
    }
    for extensions in chains {
        let headers: usize = extensions.iter().map(|it| length(*it)).sum();
        let ip = Ipv6 {
            extensions,
            ..Ipv6::default()
        };
        for tags in [vec![], vec![service_vlan(4), vlan(2)]] {
            let at = 14 + tags.len() * 4 + 40 + headers;
            frames.push((on_link(Link::Ethernet, &tags, &ip.tcp(&segment)), at));
        }
    }
    // Long because of their payload alone, up to what an IP packet can hold, and beyond (BIG TCP).
    for (payload, total_length) in [
        (1994, None),
        (1995, None),
        (3466, None),
        (4000, None),
        (9000, None),
        (65_495, None),
        (65_495, Some(100)),
        (200_000, Some(0)),
        (262_144 - 54, Some(0)),
    ] {
        let segment = Segment {
            payload: (0..payload).map(|at: u32| (at % 251) as u8).collect(),
            ..Segment::default()
        };
        let ip = Ipv4 {
            total_length,
            ..Ipv4::default()
        };
        frames.push((on_link(Link::Ethernet, &[], &ip.tcp(&segment)), 34));
    }
    frames
}

fn length(extension: Extension) -> usize {
    match extension {
        Extension::HopByHop(units)
        | Extension::Routing(units)
        | Extension::DestinationOptions(units) => (usize::from(units) + 1) * 8,
        Extension::Authentication(words) => (usize::from(words) + 2) * 4,
        Extension::Fragment(..) => 8,
    }
}
