//! Tests each rule of the oracle at least once, on frames made for it. If the oracle were wrong,
//! the tests of the product would be worthless, or make the product wrong.

use crate::oracle::frames::{
    ACK, Extension, Ipv4, Ipv6, SYN, Segment, Tag, checksum, ethernet, ethernet_ip, linux_options,
    mss, on_link, sack_permitted, service_vlan, timestamps, vlan, wscale,
};
use crate::oracle::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, Link, Options, Tcp, Verdict, is_syn, judge};

fn verdict(frame: &[u8]) -> Verdict {
    judge(frame, Link::Ethernet).verdict
}

fn tcp(frame: &[u8]) -> Tcp {
    judge(frame, Link::Ethernet).packet.unwrap()
}

fn ipv4_syn() -> Vec<u8> {
    Ipv4::default().tcp(&Segment::default())
}

fn ipv6_syn(extensions: &[Extension]) -> Vec<u8> {
    let ip = Ipv6 {
        extensions: extensions.to_vec(),
        ..Ipv6::default()
    };
    ip.tcp(&Segment::default())
}

fn with_options(options: Vec<u8>) -> Options {
    let segment = Segment {
        options,
        ..Segment::default()
    };
    tcp(&ethernet_ip(&Ipv4::default().tcp(&segment))).options
}

/// A frame written byte by byte, so that an error in the builder can't hide the same error in the parser.
#[test]
fn a_frame_written_by_hand_has_every_field() {
    #[rustfmt::skip]
    let frame = [
        // Ethernet with an 802.1ad and an 802.1Q tag.
        0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0x02, 0x11, 0x22, 0x33, 0x44, 0x55,
        0x88, 0xa8, 0x60, 0x64, 0x81, 0x00, 0x10, 0xc8, 0x08, 0x00,
        // IPv4: 24 bytes of header with a router alert, 53 in all, TOS 0xb8, TTL 61.
        0x46, 0xb8, 0x00, 0x35, 0xbe, 0xef, 0x40, 0x00, 0x3d, 0x06, 0x00, 0x00,
        0x01, 0x02, 0x03, 0x04, 0xc0, 0x00, 0x02, 0xfe, 0x94, 0x04, 0x00, 0x00,
        // TCP: 28 bytes of header, SYN with ECE and CWR, MSS 1460, window scale 7.
        0x12, 0x34, 0x01, 0xbb, 0xde, 0xad, 0xbe, 0xef, 0x00, 0x00, 0x00, 0x01,
        0x70, 0xc2, 0xfa, 0xf0, 0xab, 0xcd, 0x00, 0x09,
        0x02, 0x04, 0x05, 0xb4, 0x03, 0x03, 0x07, 0x00,
        // One byte of payload, and padding that is none.
        0x21, 0x00, 0x00, 0x00,
    ];
    let expected = Tcp {
        src_mac: Some([0x02, 0x11, 0x22, 0x33, 0x44, 0x55]),
        dst_mac: Some([0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee]),
        ethertype: Some(0x0800),
        vlan: vec![100, 200],
        ip_version: 4,
        saddr: "1.2.3.4".parse().unwrap(),
        daddr: "192.0.2.254".parse().unwrap(),
        ttl: 61,
        tos: 0xb8,
        ip_id: Some(0xbeef),
        ip_len: Some(53),
        ip_header_len: 24,
        sport: 0x1234,
        dport: 443,
        seq: 0xdead_beef,
        ack: 1,
        data_offset: 7,
        flags: 0xc2,
        window: 64_240,
        checksum: 0xabcd,
        urgent: 9,
        options: Options {
            mss: Some(1460),
            wscale: Some(7),
            ..Options::default()
        },
        payload_offset: 74,
        payload_len: 1,
    };
    assert_eq!(tcp(&frame), expected);
    assert!(judge(&frame, Link::Ethernet).is_syn());
}

#[test]
fn a_syn_is_syn_without_ack_in_exactly_64_of_256_flag_bytes() {
    assert_eq!((0..=255).filter(|flags| is_syn(*flags)).count(), 64);
    assert!(is_syn(SYN) && is_syn(0xef) && !is_syn(SYN | ACK) && !is_syn(0));
}

#[test]
fn every_cut_of_a_frame_is_truncated_until_the_tcp_header_is_whole() {
    for packet in [ipv4_syn(), ipv6_syn(&[Extension::HopByHop(1)])] {
        for tags in [vec![], vec![vlan(1)], vec![service_vlan(1), vlan(2)]] {
            let frame = on_link(Link::Ethernet, &tags, &packet);
            for length in 0..frame.len() {
                assert_eq!(verdict(&frame[..length]), Verdict::Truncated, "{length}");
            }
            assert_eq!(verdict(&frame), Verdict::Tcp);
        }
    }
}

#[test]
fn a_third_tag_is_too_deep_if_whole_and_truncated_if_cut() {
    let tags = [0x9100, 0x88a8, 0x8100].map(|ethertype| Tag { ethertype, tci: 5 });
    let frame = on_link(Link::Ethernet, &tags, &ipv4_syn());
    assert_eq!(verdict(&frame), Verdict::TooDeep);
    assert_eq!(verdict(&frame[..26]), Verdict::TooDeep);
    assert_eq!(verdict(&frame[..25]), Verdict::Truncated);
}

#[test]
fn another_ethertype_is_not_ip_however_little_follows() {
    for ethertype in [0x0806, 0x8847, 0x002e, 0] {
        assert_eq!(verdict(&ethernet(&[], ethertype, &[])), Verdict::NotIp);
        let tagged = ethernet(&[vlan(1)], ethertype, &[]);
        assert_eq!(verdict(&tagged), Verdict::NotIp);
    }
}

#[test]
fn ipv4_rules_apply_in_their_order() {
    let judged = |ip: Ipv4| verdict(&ethernet(&[], ETHERTYPE_IPV4, &ip.tcp(&Segment::default())));
    let ip = Ipv4::default;
    #[rustfmt::skip]
    let cases = [
        (Ipv4 { version: 5, protocol: 17, ..ip() }, Verdict::Malformed),
        (Ipv4 { ihl: Some(4), fragment: 9, ..ip() }, Verdict::Malformed),
        (Ipv4 { total_length: Some(19), protocol: 17, ..ip() }, Verdict::Malformed),
        (Ipv4 { ihl: Some(6), total_length: Some(23), ..ip() }, Verdict::Malformed),
        (Ipv4 { protocol: 17, fragment: 1, ..ip() }, Verdict::NotTcp),
        // Tunnel packets are not decapsulated.
        (Ipv4 { protocol: 4, ..ip() }, Verdict::NotTcp),
        (Ipv4 { fragment: 0x3fff, total_length: Some(20), ..ip() }, Verdict::Fragment),
        (Ipv4 { fragment: 0x2000, ..ip() }, Verdict::Tcp),
        (Ipv4 { total_length: Some(20), ..ip() }, Verdict::Truncated),
        (Ipv4 { total_length: Some(39), ..ip() }, Verdict::Truncated),
        (Ipv4 { total_length: Some(0), ..ip() }, Verdict::Tcp),
        (Ipv4 { total_length: Some(65535), ..ip() }, Verdict::Tcp),
        (Ipv4 { options: vec![1; 40], ..ip() }, Verdict::Tcp),
    ];
    for (ip, expected) in cases {
        assert_eq!(judged(ip.clone()), expected, "{ip:?}");
    }
    // The fixed header is whole and the options are cut: the later rules still apply in order.
    let udp = Ipv4 {
        options: vec![1; 40],
        protocol: 17,
        ..ip()
    };
    let frame = ethernet_ip(&udp.around(&[]));
    assert_eq!(verdict(&frame[..34]), Verdict::NotTcp);
    assert_eq!(verdict(&frame[..33]), Verdict::Truncated);
}

#[test]
fn ipv6_rules_apply_in_their_order() {
    let judged = |ip: Ipv6| verdict(&ethernet(&[], ETHERTYPE_IPV6, &ip.tcp(&Segment::default())));
    let ip = Ipv6::default;
    let fragment = |offset, more| vec![Extension::Fragment(offset, more)];
    #[rustfmt::skip]
    let cases = [
        (Ipv6 { version: 4, protocol: 17, ..ip() }, Verdict::Malformed),
        (Ipv6 { protocol: 17, payload_length: Some(1), ..ip() }, Verdict::NotTcp),
        (Ipv6 { protocol: 59, ..ip() }, Verdict::NotTcp),
        (Ipv6 { protocol: 50, ..ip() }, Verdict::NotTcp),
        (Ipv6 { protocol: 135, ..ip() }, Verdict::NotTcp),
        (Ipv6 { payload_length: Some(19), ..ip() }, Verdict::Truncated),
        (Ipv6 { payload_length: Some(0), ..ip() }, Verdict::Tcp),
        (Ipv6 { extensions: fragment(0, false), ..ip() }, Verdict::Tcp),
        (Ipv6 { extensions: fragment(0, true), ..ip() }, Verdict::Tcp),
        (Ipv6 { extensions: fragment(1, false), ..ip() }, Verdict::Fragment),
        (Ipv6 { extensions: fragment(1, false), protocol: 17, ..ip() }, Verdict::NotTcp),
        // A later fragment of something that only might lead to TCP.
        (Ipv6 { extensions: fragment(1, false), protocol: 60, ..ip() }, Verdict::NotTcp),
        (Ipv6 { extensions: fragment(1, true), payload_length: Some(7), ..ip() }, Verdict::Truncated),
    ];
    for (ip, expected) in cases {
        assert_eq!(judged(ip.clone()), expected, "{ip:?}");
    }
}

#[test]
fn every_kind_of_extension_header_is_walked_with_its_own_length() {
    for (extension, length) in [
        (Extension::HopByHop(0), 8),
        (Extension::Routing(2), 24),
        (Extension::DestinationOptions(255), 2048),
        (Extension::Authentication(4), 24),
        (Extension::Authentication(1), 12),
        (Extension::Fragment(0, false), 8),
    ] {
        let packet = tcp(&ethernet_ip(&ipv6_syn(&[extension])));
        assert_eq!(packet.ip_header_len, 40 + length, "{extension:?}");
        assert_eq!(packet.sport, 0x1234);
        assert_eq!(packet.ip_len, Some(60 + length as u32));
    }
}

#[test]
fn a_ninth_extension_header_is_too_deep_if_whole_and_truncated_if_cut() {
    let eight = [Extension::DestinationOptions(0); 8];
    assert_eq!(verdict(&ethernet_ip(&ipv6_syn(&eight))), Verdict::Tcp);
    let nine = [Extension::DestinationOptions(0); 9];
    let frame = ethernet_ip(&ipv6_syn(&nine));
    assert_eq!(verdict(&frame), Verdict::TooDeep);
    // 14 of Ethernet, 40 of IPv6, 9 times 8.
    assert_eq!(verdict(&frame[..126]), Verdict::TooDeep);
    assert_eq!(verdict(&frame[..125]), Verdict::Truncated);
}

#[test]
fn an_extension_header_that_extends_beyond_the_end_leaves_what_follows_cut() {
    let cut = |protocol| {
        let ip = Ipv6 {
            extensions: vec![Extension::HopByHop(3)],
            protocol,
            ..Ipv6::default()
        };
        verdict(&ethernet_ip(&ip.around(&[]))[..62])
    };
    assert_eq!(cut(6), Verdict::Truncated);
    assert_eq!(cut(43), Verdict::Truncated);
    assert_eq!(cut(17), Verdict::NotTcp);
}

#[test]
fn a_data_offset_below_5_is_malformed_only_in_a_whole_header() {
    let segment = Segment {
        data_offset: Some(4),
        ..Segment::default()
    };
    let frame = ethernet_ip(&Ipv4::default().tcp(&segment));
    assert_eq!(verdict(&frame), Verdict::Malformed);
    assert_eq!(verdict(&frame[..53]), Verdict::Truncated);
}

#[test]
fn options_are_read_as_far_as_they_are_sound() {
    let all = Options {
        mss: Some(1460),
        wscale: Some(7),
        sack_permitted: true,
        ts_val: Some(0x0a0b_0c0d),
        ts_ecr: Some(0),
    };
    assert_eq!(with_options(linux_options()), all);
    let only = |mss| Options {
        mss: Some(mss),
        ..Options::default()
    };
    // The first of two, the end of the list, and lengths of 0, 1 and too much.
    assert_eq!(with_options([mss(1), mss(2)].concat()), only(1));
    assert_eq!(with_options([mss(1), vec![0], wscale(1)].concat()), only(1));
    for length in [0, 1, 8] {
        let bad = vec![254, length];
        let options = [mss(1), bad, sack_permitted(), vec![1, 1, 1]].concat();
        let found = with_options(options);
        assert!(!found.sack_permitted, "{length}");
        assert_eq!(found.mss, Some(1));
    }
    // Another kind's length: that option is skipped, and those after it count.
    let odd = [vec![3, 4, 9, 9], vec![2, 3, 9], mss(2)].concat();
    assert_eq!(with_options(odd), only(2));
    // A kind in the last byte, without a length.
    assert_eq!(with_options([mss(1), vec![1, 1, 1, 8]].concat()), only(1));
}

#[test]
fn options_and_payload_end_where_frame_or_packet_end() {
    let segment = Segment {
        options: [mss(1400), timestamps(1, 2), vec![1, 1]].concat(),
        payload: vec![0x55; 10],
        ..Segment::default()
    };
    let frame = ethernet_ip(&Ipv4::default().tcp(&segment));
    let whole = tcp(&frame);
    assert_eq!((whole.payload_offset, whole.payload_len), (70, 10));
    assert_eq!(whole.options.ts_ecr, Some(2));

    // Cut within the payload, and within the timestamps by one byte.
    assert_eq!(tcp(&frame[..75]).payload_len, 5);
    let cut = tcp(&frame[..67]);
    assert_eq!((cut.payload_offset, cut.payload_len), (70, 0));
    assert_eq!((cut.options.mss, cut.options.ts_val), (Some(1400), None));

    // The same by the packet's own length, in a frame that is long enough.
    let ip = Ipv4 {
        total_length: Some(67 - 14),
        ..Ipv4::default()
    };
    let short = tcp(&ethernet_ip(&ip.tcp(&segment)));
    assert_eq!(short.payload_len, 0);
    assert_eq!(short.options, cut.options);
    assert_eq!(short.ip_len, Some(53));
}

#[test]
fn an_ip_length_of_0_is_unknown_and_not_shown() {
    let payload = Segment {
        payload: vec![0; 70_000],
        ..Segment::default()
    };
    let ipv4 = Ipv4 {
        total_length: Some(0),
        ..Ipv4::default()
    };
    let ipv6 = Ipv6 {
        payload_length: Some(0),
        ..Ipv6::default()
    };
    for packet in [ipv4.tcp(&payload), ipv6.tcp(&payload)] {
        let packet = tcp(&ethernet_ip(&packet));
        assert_eq!((packet.ip_len, packet.payload_len), (None, 70_000));
    }
}

#[test]
fn ipv6_fields_come_from_their_places() {
    let ip = Ipv6 {
        traffic_class: 0xb9,
        flow_label: 0xf_ffff,
        hop_limit: 7,
        ..Ipv6::default()
    };
    let packet = tcp(&ethernet_ip(&ip.tcp(&Segment::default())));
    assert_eq!((packet.tos, packet.ttl, packet.ip_id), (0xb9, 7, None));
    assert_eq!(packet.saddr.to_string(), "2001:db8::1");
    assert_eq!(packet.daddr.to_string(), "2001:db8::2");
    assert_eq!(packet.ethertype, Some(ETHERTYPE_IPV6));
}

#[test]
fn every_link_type_carries_both_versions_if_it_can() {
    for link in Link::ALL {
        for (packet, other) in [
            (ipv4_syn(), Link::Ipv6Only),
            (ipv6_syn(&[]), Link::Ipv4Only),
        ] {
            let frame = on_link(link, &[], &packet);
            let judgement = judge(&frame, link);
            if link == other {
                assert_ne!(judgement.verdict, Verdict::Tcp);
                continue;
            }
            let found = judgement.packet.unwrap();
            assert_eq!(found.sport, 0x1234, "{link:?}");
            assert_eq!(found.src_mac.is_some(), link == Link::Ethernet);
            assert_eq!(Link::from_type(link.to_type().into()), Some(link));
        }
    }
    assert_eq!(Link::from_type(12), Some(Link::Raw));
    assert_eq!(Link::from_type(127), None);
}

#[test]
fn frames_without_ethernet_have_their_own_first_rule() {
    let of = |bytes: &[u8], link| judge(bytes, link).verdict;
    assert_eq!(of(&[], Link::Raw), Verdict::Truncated);
    assert_eq!(of(&[0x45], Link::Raw), Verdict::Truncated);
    assert_eq!(of(&[0x55], Link::Raw), Verdict::NotIp);
    assert_eq!(of(&[], Link::Ipv4Only), Verdict::Truncated);
    assert_eq!(of(&ipv6_syn(&[]), Link::Ipv4Only), Verdict::Malformed);
    assert_eq!(of(&[], Link::Ipv6Only), Verdict::Truncated);
    let long_ipv4 = Ipv4::default().around(&[0; 40]);
    assert_eq!(of(&long_ipv4, Link::Ipv6Only), Verdict::Malformed);

    for link in [Link::Null, Link::Loop] {
        assert_eq!(of(&[0, 0, 0], link), Verdict::Truncated);
        assert_eq!(of(&[0, 0, 0, 2], link), Verdict::Truncated);
        assert_eq!(of(&[0, 0, 0, 7], link), Verdict::NotIp);
        for family in [10, 24, 28, 30] {
            let frame = [&[0, 0, 0, family][..], &ipv6_syn(&[])].concat();
            assert_eq!(of(&frame, link), Verdict::Tcp);
        }
        let crossed = [&[0, 0, 0, 30][..], &ipv4_syn()].concat();
        assert_eq!(of(&crossed, link), Verdict::Malformed);
    }
    let swapped = [&[2, 0, 0, 0][..], &ipv4_syn()].concat();
    assert_eq!(of(&swapped, Link::Null), Verdict::Tcp);
    assert_eq!(of(&swapped, Link::Loop), Verdict::NotIp);

    for (link, length) in [(Link::CookedV1, 16), (Link::CookedV2, 20)] {
        let frame = on_link(link, &[vlan(9)], &ipv4_syn());
        assert_eq!(of(&frame[..length - 1], link), Verdict::Truncated);
        assert_eq!(of(&frame[..length + 3], link), Verdict::Truncated);
        let packet = judge(&frame, link).packet.unwrap();
        assert_eq!(packet.vlan, [9]);
        assert_eq!(packet.ethertype, Some(ETHERTYPE_IPV4));
        assert_eq!(of(&vec![0; length], link), Verdict::NotIp);
    }
}

#[test]
fn built_packets_have_right_checksums() {
    let segment = Segment {
        payload: b"odd".to_vec(),
        options: linux_options(),
        ..Segment::default()
    };
    let packet = Ipv4::default().tcp(&segment);
    assert_eq!(checksum(&packet[..20]), 0);
    let length = (packet.len() - 20) as u16;
    let pseudo = [&packet[12..20], &[0, 6], &length.to_be_bytes()].concat();
    assert_eq!(checksum(&[&pseudo, &packet[20..]].concat()), 0);
    // RFC 1071's own example.
    let example = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(checksum(&example), !0xddf2);
}
