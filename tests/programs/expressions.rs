//! Filter expressions, compared with the same conditions written in Rust.

use std::net::IpAddr;

use super::filters::{PORTS, some_frames};
use crate::oracle::frames::{Ipv4, Random, Segment, on_link, service_vlan, vlan};
use crate::oracle::parity::{COUNT_TC, COUNT_XDP, CaptureFile, MONITOR, event, for_each, times};
use crate::oracle::{Link, Tcp, is_syn, judge};

/// An expression, and a function that says whether a packet, in this frame, matches it.
type Meaning = (&'static str, fn(&Tcp, &[u8]) -> bool);

fn v4(tcp: &Tcp) -> bool {
    tcp.ip_version == 4
}

fn either(tcp: &Tcp, wanted: impl Fn(IpAddr) -> bool) -> bool {
    wanted(tcp.saddr) || wanted(tcp.daddr)
}

fn is(text: &str) -> impl Fn(IpAddr) -> bool {
    let wanted = text.parse::<IpAddr>().unwrap();
    move |address| address == wanted
}

fn begins(text: &'static str) -> impl Fn(IpAddr) -> bool {
    move |address| address.to_string().starts_with(text)
}

fn any_port(tcp: &Tcp, ports: &[u16]) -> bool {
    ports.contains(&tcp.sport) || ports.contains(&tcp.dport)
}

/// The TCP header, and what follows it.
fn header<'f>(tcp: &Tcp, frame: &'f [u8]) -> &'f [u8] {
    &frame[tcp.payload_offset - 4 * usize::from(tcp.data_offset)..]
}

const MEANINGS: [Meaning; 49] = [
    ("tcp", |_, _| true),
    ("", |tcp, _| is_syn(tcp.flags)),
    ("ip", |tcp, _| v4(tcp)),
    ("not ip", |tcp, _| !v4(tcp)),
    ("ip proto 6 or ip6 proto 6", |_, _| true),
    ("ether proto \\ip6", |tcp, _| !v4(tcp)),
    ("port 80", |tcp, _| any_port(tcp, &[80])),
    ("src port 80", |tcp, _| tcp.sport == 80),
    ("dst port http", |tcp, _| tcp.dport == 80),
    ("src and dst port 80", |tcp, _| {
        tcp.sport == 80 && tcp.dport == 80
    }),
    ("port 80 or 443 or 64", |tcp, _| {
        any_port(tcp, &[80, 443, 64])
    }),
    (
        "port (80 or 443) and not port 64 and not 63 and not 1",
        |tcp, _| any_port(tcp, &[80, 443]) && !any_port(tcp, &[64, 63, 1]),
    ),
    ("tcp dst portrange 63-80", |tcp, _| {
        (63..=80).contains(&tcp.dport)
    }),
    ("src port 0 or 1 or 80 or not 443", |tcp, _| {
        tcp.sport != 443
    }),
    ("host 10.0.0.1", |tcp, _| either(tcp, is("10.0.0.1"))),
    ("src host 10.0.0.1 or dst host ::1", |tcp, _| {
        is("10.0.0.1")(tcp.saddr) || is("::1")(tcp.daddr)
    }),
    ("ip6 host 2001:db8::1", |tcp, _| {
        either(tcp, is("2001:db8::1"))
    }),
    ("src and dst net 10.0.0.0/8", |tcp, _| {
        begins("10.")(tcp.saddr) && begins("10.")(tcp.daddr)
    }),
    ("net 192.0.2.128/25", |tcp, _| {
        either(tcp, is("192.0.2.129"))
    }),
    ("net 10", |tcp, _| either(tcp, begins("10."))),
    ("dst net 10.0 mask 255.255.0.0", |tcp, _| {
        begins("10.0.")(tcp.daddr)
    }),
    ("net 2001:db8::/33", |tcp, _| {
        either(tcp, |address| begins("2001:db8::")(address))
    }),
    ("not net 2001:db8::/32 and ip6", |tcp, _| {
        !either(tcp, begins("2001:db8:")) && !v4(tcp)
    }),
    ("src net ::/0", |tcp, _| !v4(tcp)),
    ("port 80 or ip and not port 443", |tcp, _| {
        (any_port(tcp, &[80]) || v4(tcp)) && !any_port(tcp, &[443])
    }),
    ("port 80 || (ip && ! port 443)", |tcp, _| {
        any_port(tcp, &[80]) || (v4(tcp) && !any_port(tcp, &[443]))
    }),
    ("tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn", |tcp, _| {
        is_syn(tcp.flags)
    }),
    ("tcp[13] & 2 != 0", |tcp, _| tcp.flags & 2 != 0),
    ("tcp[0:2] < tcp[2:2]", |tcp, _| tcp.sport < tcp.dport),
    ("tcp[0:2] >= tcp[2:2]", |tcp, _| tcp.sport >= tcp.dport),
    ("tcp[tcp[12] >> 2:4] = 0x00010203", |tcp, frame| {
        frame.get(tcp.payload_offset..tcp.payload_offset + 4) == Some(&[0, 1, 2, 3])
    }),
    ("tcp[4:4] % 7 + 1 = 4", |tcp, _| {
        // As in libpcap, % applies to the whole sum on its right.
        tcp.seq % 8 == 4
    }),
    ("tcp[14:2] / tcp[13] > 4000", |tcp, _| {
        tcp.flags != 0 && tcp.window / u16::from(tcp.flags) > 4000
    }),
    ("ip[8] = 64", |tcp, _| v4(tcp) && tcp.ttl == 64),
    ("not ip[8] = 64", |tcp, _| !(v4(tcp) && tcp.ttl == 64)),
    ("ip6[7] = 64 or ip[9] = 6", |tcp, _| {
        v4(tcp) || tcp.ttl == 64
    }),
    ("ip[2:2] - ((ip[0] & 0xf) << 2) > 60", |tcp, _| {
        v4(tcp) && tcp.ip_len.unwrap() as usize - tcp.ip_header_len > 60
    }),
    ("less 80", |_, frame| frame.len() <= 80),
    ("greater 80 and len != 90", |_, frame| {
        frame.len() >= 80 && frame.len() != 90
    }),
    ("ether[12:2] = 0x8100", |tcp, _| tcp.vlan.len() == 1),
    ("vlan", |tcp, _| !tcp.vlan.is_empty()),
    ("vlan 5 and port 80", |tcp, _| {
        tcp.vlan.first() == Some(&5) && any_port(tcp, &[80])
    }),
    ("vlan 7 or vlan 5", |tcp, _| {
        tcp.vlan.first() == Some(&7) || tcp.vlan.get(1) == Some(&5)
    }),
    // If a byte does not exist, the whole expression does not match, as in libpcap.
    ("not tcp[40] = 0", |tcp, frame| {
        header(tcp, frame).get(40).is_some_and(|byte| *byte != 0)
    }),
    (
        "not (tcp[40] = 0 or tcp[40] = 1 or tcp[40] & 2 = 2)",
        |tcp, frame| {
            let byte = header(tcp, frame).get(40);
            byte.is_some_and(|byte| *byte > 1 && byte & 2 == 0)
        },
    ),
    (
        "tcp[2:2] = 80 or tcp[2:2] = 443 or tcp[2:2] >= 60000",
        |tcp, _| matches!(tcp.dport, 80 | 443 | 60000..),
    ),
    ("tcp[2:2] != 80 and not tcp[2:2] = 443", |tcp, _| {
        !matches!(tcp.dport, 80 | 443)
    }),
    (
        "tcp[4:4] = 0x01020304 or tcp[4:4] = 0 or tcp[4:4] = 7",
        |tcp, _| matches!(tcp.seq, 0 | 7 | 0x0102_0304),
    ),
    (
        "tcp[0:4] != 0x500050 and not (tcp[0:4] = 0x1bb01bb or tcp[0:4] = 0x5001bb)",
        |tcp, _| !matches!((tcp.sport, tcp.dport), (80, 80 | 443) | (443, 443)),
    ),
];

/// Frames of both families, some with tags.
fn frames(random: &mut Random) -> Vec<Vec<u8>> {
    let mut frames = some_frames(random, times(1500, 400));
    for _ in 0..times(300, 100) {
        let packet = Ipv4::default().tcp(&Segment {
            sport: random.pick(&PORTS),
            dport: random.pick(&PORTS),
            ..Segment::default()
        });
        let outer = random.pick(&[5, 7]);
        let tags = [service_vlan(outer), vlan(random.pick(&[5, 7]))];
        frames.push(on_link(Link::Ethernet, &tags, &packet));
    }
    frames
}

#[test]
fn expressions_match_what_they_say_at_every_hook() {
    let frames = frames(&mut Random::new(7));
    let file = CaptureFile::of(Link::Ethernet, &frames);
    for_each(&MEANINGS, |(text, takes)| {
        let mut events = Vec::new();
        let mut syns = 0;
        for (frame, second) in frames.iter().zip(1..) {
            let Some(tcp) = judge(frame, Link::Ethernet).packet else {
                continue;
            };
            if takes(&tcp, frame) {
                syns += u64::from(is_syn(tcp.flags));
                events.push(event(&tcp, second * 1_000_000_000));
            }
        }
        assert!(!events.is_empty(), "{text}: nothing is tested by it");
        let output = file.replay(MONITOR, &["--filter", text]);
        assert_eq!(output.code(), 0, "{text}: {:?}", output.stderr);
        assert_eq!(output.events("packet"), events, "{text}");
        for program in [COUNT_XDP, COUNT_TC] {
            let output = file.replay(program, &["--filter", text]);
            assert_eq!(output.code(), 0, "{text}: {:?}", output.stderr);
            assert_eq!(output.summary()["syn_total"], syns, "{program:?} {text}");
        }
    });
}

/// A kernel refuses a program that takes too long to verify: what the verifier knows from one test must not
/// multiply with what it knows from the next.
#[test]
fn the_longest_expressions_are_accepted_by_the_kernel() {
    let list = |words: &[String], joint: &str| format!("({})", words.join(joint));
    let ports = |from: u16, count: u16, kind: &str| {
        let of = |port| format!("{kind} port {port}");
        list(&(from..from + count).map(of).collect::<Vec<_>>(), " or ")
    };
    let hosts = (1..38)
        .map(|n| format!("host 10.0.0.{n} or host 2001:db8::{n}"))
        .collect::<Vec<_>>();
    let bytes = (0..60)
        .map(|n| format!("tcp[{n}] & {} = {}", 255 - n, n % 3))
        .collect::<Vec<_>>();
    let sums = (0..18)
        .map(|n| format!("tcp[{n}:2] * ip[{n}] + len / tcp[{n}] > ip[tcp[12] >> 2:2]"))
        .collect::<Vec<_>>();
    let groups = (0..6)
        .map(|n| {
            // Alternately of one side and of the other, or they would become a set.
            let of = |m| {
                let side = if m % 2 == 0 { "src" } else { "dst" };
                format!("{side} port {}", 100 * n + m)
            };
            list(&(0..25).map(of).collect::<Vec<_>>(), " or ")
        })
        .collect::<Vec<_>>();
    let expressions = [
        list(&groups, " and "),
        list(&hosts, " or "),
        list(&bytes, " or "),
        list(&bytes, " and not "),
        list(&sums, " or "),
        format!(
            "{} and not {} and {}",
            ports(1, 500, ""),
            ports(1000, 400, "src"),
            list(&bytes, " or ")
        ),
    ];
    let mut random = Random::new(8);
    let frames = some_frames(&mut random, 50);
    let file = CaptureFile::of(Link::Ethernet, &frames);
    for_each(&expressions, |text| {
        for program in [COUNT_XDP, COUNT_TC, MONITOR, &["flows", "--json"]] {
            let output = file.replay(program, &["--filter", text]);
            assert_eq!(output.code(), 0, "{program:?} {text}: {:?}", output.stderr);
        }
    });
}

#[test]
fn an_expression_is_about_the_initiator_of_a_flow() {
    let answer = |flags, sport, dport, source, destination| {
        let segment = Segment {
            flags,
            sport,
            dport,
            ..Segment::default()
        };
        let packet = Ipv4 {
            source,
            destination,
            ..Ipv4::default()
        };
        on_link(Link::Ethernet, &[], &packet.tcp(&segment))
    };
    // The capture begins with the answer of the server.
    let frames = [
        answer(0x12, 80, 5000, [10, 0, 0, 2], [10, 0, 0, 1]),
        answer(0x10, 5000, 80, [10, 0, 0, 1], [10, 0, 0, 2]),
        answer(0x02, 5000, 22, [10, 0, 0, 1], [10, 0, 0, 2]),
    ];
    let file = CaptureFile::of(Link::Ethernet, &frames);
    for (text, expected) in [
        ("dst port 80", vec![80]),
        ("src host 10.0.0.1", vec![22, 80]),
        ("src port 80", vec![]),
        ("port 22", vec![22]),
    ] {
        let output = file.replay(&["flows", "--json"], &["-f", text]);
        let mut ports = output
            .events("flow")
            .iter()
            .map(|flow| flow["dport"].as_u64().unwrap())
            .collect::<Vec<_>>();
        ports.sort_unstable();
        assert_eq!(ports, expected, "{text}");
    }
}
