//! The filters, compared with a simple filter that is written here.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicU32, Ordering};

use super::crafted;
use crate::oracle::frames::{Ipv4, Ipv6, Random, Segment, on_link, tcp_between, vlan};
use crate::oracle::parity::{
    COUNT_TC, COUNT_XDP, CaptureFile, FLAGS, MONITOR, event, for_each, hex, payload, seed, times,
};
use crate::oracle::{Link, Tcp, is_syn, judge};

/// Addresses that prefixes of every length distinguish.
const ADDRESSES: [&str; 16] = [
    "0.0.0.0",
    "10.0.0.1",
    "10.0.0.2",
    "10.128.0.1",
    "192.0.2.1",
    "192.0.2.129",
    "32.1.13.184",
    "255.255.255.255",
    "::",
    "::1",
    "a00:1::",
    "2001:db8::1",
    "2001:db8::8000:0:0:1",
    "2001:db8:8000::1",
    "::ffff:10.0.0.1",
    "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
];
pub(super) const PORTS: [u16; 9] = [0, 1, 63, 64, 80, 443, 0x1234, 0x3412, 65535];

/// The filter options of a command line. A packet has to pass all of them.
#[derive(Clone, Debug, Default)]
struct Filter {
    src: Vec<Prefix>,
    dst: Vec<Prefix>,
    host: Vec<Prefix>,
    sport: Vec<Ports>,
    port: Vec<Ports>,
    any_port: Vec<Ports>,
    flags: Option<Vec<(usize, bool)>>,
    payload: Option<(usize, Vec<u8>)>,
    version: Option<u8>,
}

/// A range of ports, with both ends in it.
#[derive(Clone, Copy, Debug)]
struct Ports {
    first: u16,
    last: u16,
    excluded: bool,
}

impl Ports {
    fn holds(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

#[derive(Clone, Copy, Debug)]
struct Prefix {
    address: IpAddr,
    length: u8,
    excluded: bool,
}

impl Prefix {
    fn holds(&self, address: IpAddr) -> bool {
        // The bits of a number, of which the first ones are compared.
        let (bits, width) = match (self.address, address) {
            (IpAddr::V4(prefix), IpAddr::V4(address)) => {
                (u128::from(prefix.to_bits() ^ address.to_bits()), 32)
            }
            (IpAddr::V6(prefix), IpAddr::V6(address)) => {
                (prefix.to_bits() ^ address.to_bits(), 128)
            }
            _ => return false,
        };
        bits.checked_shr(width - u32::from(self.length))
            .unwrap_or(0)
            == 0
    }
}

impl Filter {
    fn random(random: &mut Random) -> Self {
        let mut filter = Self::default();
        if random.percent(40) {
            filter.src = prefixes(random);
        }
        if random.percent(40) {
            filter.dst = prefixes(random);
        }
        if random.percent(30) {
            filter.host = prefixes(random);
        }
        if random.percent(30) {
            filter.sport = ports(random);
        }
        if random.percent(30) {
            filter.any_port = ports(random);
        }
        if random.percent(30) {
            filter.port = ports(random);
        }
        if random.percent(60) {
            let count = random.below(3);
            let first = random.below(8);
            let flags = (0..count).map(|at| ((first + at * 3) % 8, random.percent(50)));
            filter.flags = Some(flags.collect());
        }
        if random.percent(25) {
            let offset = random.pick(&[0, 0, 1, 2, 7, 15, 1000]);
            let length = random.pick(&[1, 2, 16]);
            filter.payload = Some((offset, pattern(offset, length)));
        }
        if random.percent(25) {
            filter.version = Some(random.pick(&[4, 6]));
        }
        if filter.has_nothing_of_its_family() {
            filter.version = None;
        }
        filter
    }

    /// Whether all wanted prefixes of an option are of the other family. The tool refuses that.
    fn has_nothing_of_its_family(&self) -> bool {
        let other_family = |it: &&Prefix| it.address.is_ipv4() != (self.version == Some(4));
        [&self.src, &self.dst, &self.host].iter().any(|prefixes| {
            let wanted = prefixes.iter().filter(|it| !it.excluded);
            wanted.clone().count() > 0 && wanted.clone().all(|it| other_family(&it))
        })
    }

    fn options(&self) -> Vec<String> {
        let mut options = Vec::new();
        for (name, prefixes) in [
            ("--src", &self.src),
            ("--dst", &self.dst),
            ("--host", &self.host),
        ] {
            for prefix in prefixes {
                let excluded = if prefix.excluded { "!" } else { "" };
                options.push(name.into());
                options.push(format!("{excluded}{}/{}", prefix.address, prefix.length));
            }
        }
        for (name, ranges) in [
            ("--sport", &self.sport),
            ("--port", &self.port),
            ("--any-port", &self.any_port),
        ] {
            let ranges = ranges.iter().map(|it| {
                let excluded = if it.excluded { "!" } else { "" };
                match it.first == it.last {
                    true => format!("{excluded}{}", it.first),
                    false => format!("{excluded}{}-{}", it.first, it.last),
                }
            });
            let list = ranges.collect::<Vec<_>>().join(",");
            if !list.is_empty() {
                options.extend([name.into(), list]);
            }
        }
        if let Some(flags) = &self.flags {
            let names = flags.iter().map(|(bit, set)| match set {
                true => FLAGS[*bit].to_owned(),
                false => format!("!{}", FLAGS[*bit]),
            });
            let spec = names.collect::<Vec<_>>().join(",");
            let spec = if spec.is_empty() { "any".into() } else { spec };
            options.extend(["--flags".into(), spec]);
        }
        if let Some((offset, bytes)) = &self.payload {
            options.extend(["--payload".into(), format!("{offset}:{}", hex(bytes))]);
        }
        if let Some(version) = self.version {
            options.push(format!("-{version}"));
        }
        options
    }

    /// Whether a packet passes. Without `--flags`, port-monitor shows SYNs only.
    fn takes(&self, tcp: &Tcp, payload: &[u8]) -> bool {
        // One of the addresses is wanted, and none is excluded.
        let address = |prefixes: &[Prefix], addresses: &[IpAddr]| {
            let holds = |it: &Prefix| addresses.iter().any(|address| it.holds(*address));
            let mut wanted = prefixes.iter().filter(|it| !it.excluded).peekable();
            let mut excluded = prefixes.iter().filter(|it| it.excluded);
            (wanted.peek().is_none() || wanted.any(holds)) && !excluded.any(holds)
        };
        let port = |ranges: &[Ports], ports: &[u16]| {
            let holds = |it: &Ports| ports.iter().any(|port| it.holds(*port));
            let mut wanted = ranges.iter().filter(|it| !it.excluded).peekable();
            let mut excluded = ranges.iter().filter(|it| it.excluded);
            (wanted.peek().is_none() || wanted.any(holds)) && !excluded.any(holds)
        };
        let flags = match &self.flags {
            Some(flags) => flags
                .iter()
                .all(|(bit, set)| (tcp.flags & 1 << bit != 0) == *set),
            None => is_syn(tcp.flags),
        };
        flags
            && address(&self.src, &[tcp.saddr])
            && address(&self.dst, &[tcp.daddr])
            && address(&self.host, &[tcp.saddr, tcp.daddr])
            && port(&self.sport, &[tcp.sport])
            && port(&self.port, &[tcp.dport])
            && port(&self.any_port, &[tcp.sport, tcp.dport])
            && self.version.is_none_or(|version| version == tcp.ip_version)
            && self.payload.as_ref().is_none_or(|(offset, bytes)| {
                payload.get(*offset..offset + bytes.len()) == Some(bytes)
            })
    }

    /// Whether the flags exclude all SYNs, which syn-count refuses.
    fn excludes_syns(&self) -> bool {
        let flags = self.flags.iter().flatten();
        flags
            .into_iter()
            .any(|it| *it == (1, false) || *it == (4, true))
    }
}

fn address(random: &mut Random) -> IpAddr {
    random.pick(&ADDRESSES).parse().unwrap()
}

fn prefixes(random: &mut Random) -> Vec<Prefix> {
    let count = 1 + random.below(4);
    (0..count)
        .map(|_| {
            let address = address(random);
            let width = if address.is_ipv4() { 32 } else { 128 };
            let length = match random.below(4) {
                0 => width,
                1 => random.pick(&[0, 1, 8, 31]),
                _ => u8::try_from(random.below(usize::from(width) + 1)).unwrap(),
            };
            Prefix {
                address,
                length,
                excluded: random.percent(35),
            }
        })
        .collect()
}

fn ports(random: &mut Random) -> Vec<Ports> {
    let count = 1 + random.below(3);
    (0..count)
        .map(|_| {
            let a = random.pick(&PORTS);
            let b = random.pick(&PORTS);
            let b = if random.percent(50) { a } else { b };
            Ports {
                first: a.min(b),
                last: a.max(b),
                excluded: random.percent(25),
            }
        })
        .collect()
}

/// The bytes of the payload of a frame below, from an offset on.
fn pattern(offset: usize, length: usize) -> Vec<u8> {
    (offset..offset + length)
        .map(|at| (at % 251) as u8)
        .collect()
}

/// Frames with addresses and ports of few values, so that filters distinguish them.
pub(super) fn some_frames(random: &mut Random, count: usize) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    while frames.len() < count {
        let length = random.pick(&[0, 0, 1, 3, 16, 20, 1015, 1016, 1100]);
        let mut payload = pattern(0, length);
        if random.percent(20) && length > 0 {
            payload[random.below(length.min(20))] ^= 0x40;
        }
        let segment = Segment {
            sport: random.pick(&PORTS),
            dport: random.pick(&PORTS),
            flags: random.pick(&[0x02, 0x02, 0x02, 0xc2, 0x12, 0x10, 0x18, 0x04, 0xff, 0]),
            payload,
            ..Segment::default()
        };
        let (source, destination) = (address(random), address(random));
        if source.is_ipv4() != destination.is_ipv4() {
            continue;
        }
        let packet = tcp_between(source, destination, &segment);
        let tags = if random.percent(20) {
            vec![vlan(5)]
        } else {
            vec![]
        };
        let mut frame = on_link(Link::Ethernet, &tags, &packet);
        if random.percent(5) {
            frame.truncate(random.below(frame.len()));
        }
        frames.push(frame);
    }
    frames
}

/// Runs a filter through all programs; true if some frames pass and others don't.
fn check(filter: &Filter, file: &CaptureFile, frames: &[Vec<u8>]) -> bool {
    let options = filter.options();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let mut events = Vec::new();
    let mut syns = 0;
    let mut packets = 0;
    for (frame, second) in frames.iter().zip(1..) {
        let Some(tcp) = judge(frame, Link::Ethernet).packet else {
            continue;
        };
        packets += 1;
        if filter.takes(&tcp, payload(frame, &tcp)) {
            syns += u64::from(is_syn(tcp.flags));
            events.push(event(&tcp, second * 1_000_000_000));
        }
    }

    for program in [COUNT_XDP, COUNT_TC] {
        let output = file.replay(program, &options);
        if filter.excludes_syns() {
            assert_eq!(output.code(), 2, "{options:?}: {:?}", output.stderr);
            continue;
        }
        assert_eq!(output.code(), 0, "{options:?}: {:?}", output.stderr);
        let summary = output.summary();
        assert_eq!(summary["syn_total"], syns, "{program:?} {options:?}");
        assert_eq!(summary["packets"], frames.len(), "{options:?}");
        assert_eq!(summary["verdicts"]["tcp"], packets, "{options:?}");
    }
    let output = file.replay(MONITOR, &options);
    assert_eq!(output.code(), 0, "{options:?}: {:?}", output.stderr);
    assert_eq!(output.summary()["matched"], events.len(), "{options:?}");
    for (found, wanted) in output.events("packet").iter().zip(&events) {
        assert_eq!(found, wanted, "{options:?}");
    }
    (1..packets).contains(&events.len())
}

#[test]
fn random_filters_select_what_a_plain_filter_selects() {
    let seed = seed("random_filters_select_what_a_plain_filter_selects");
    let mut random = Random::new(seed);
    let frames = some_frames(&mut random, 2000);
    let file = CaptureFile::of(Link::Ethernet, &frames);
    let filters: Vec<_> = (0..times(60, 8))
        .map(|_| Filter::random(&mut random))
        .collect();
    let selective = AtomicU32::new(0);
    for_each(&filters, |filter| {
        selective.fetch_add(check(filter, &file, &frames).into(), Ordering::Relaxed);
    });
    let selective = selective.into_inner();
    assert!(
        selective as usize >= times(15, 1),
        "only {selective} filters passed some and not others"
    );
}

#[test]
fn each_part_of_a_filter_works_alone() {
    let mut random = Random::new(1);
    let frames = some_frames(&mut random, 2000);
    let file = CaptureFile::of(Link::Ethernet, &frames);
    let prefix = |text: &str, length, excluded| Prefix {
        address: text.parse().unwrap(),
        length,
        excluded,
    };
    let any = || Filter {
        flags: Some(Vec::new()),
        ..Filter::default()
    };
    let mut filters = Vec::new();
    for prefixes in [
        vec![prefix("10.0.0.1", 32, false)],
        vec![prefix("10.0.0.1", 32, true)],
        vec![prefix("::", 0, false)],
        vec![prefix("0.0.0.0", 0, true)],
        vec![prefix("10.0.0.0", 8, false), prefix("10.128.0.0", 9, true)],
        vec![prefix("2001:db8::", 65, false)],
        vec![prefix("2001:db8::8000:0:0:1", 128, false)],
    ] {
        filters.push(Filter {
            src: prefixes.clone(),
            ..any()
        });
        filters.push(Filter {
            host: prefixes.clone(),
            ..any()
        });
        filters.push(Filter {
            dst: prefixes,
            ..any()
        });
    }
    let range = |first, last, excluded| Ports {
        first,
        last,
        excluded,
    };
    for ranges in [
        vec![range(0, 0, false)],
        vec![range(65535, 65535, false)],
        vec![range(0x1234, 0x1234, false)],
        vec![range(63, 64, false)],
        vec![range(80, 80, true)],
        vec![range(1, 443, false), range(63, 80, true)],
    ] {
        filters.push(Filter {
            sport: ranges.clone(),
            ..any()
        });
        filters.push(Filter {
            any_port: ranges.clone(),
            ..any()
        });
        filters.push(Filter {
            port: ranges,
            ..any()
        });
    }
    for bit in 0..8 {
        for set in [false, true] {
            filters.push(Filter {
                flags: Some(vec![(bit, set)]),
                ..Filter::default()
            });
        }
    }
    for version in [4, 6] {
        filters.push(Filter {
            version: Some(version),
            ..any()
        });
    }
    for (offset, length) in [(0, 1), (0, 16), (19, 1), (19, 2), (1000, 16)] {
        filters.push(Filter {
            payload: Some((offset, pattern(offset, length))),
            ..any()
        });
    }
    // In a guest only some of them.
    let filters: Vec<_> = filters.into_iter().step_by(times(1, 5)).collect();
    for_each(&filters, |filter| {
        assert!(check(filter, &file, &frames), "{filter:?}");
    });
}

#[test]
fn a_payload_pattern_is_found_wherever_it_is_and_nowhere_else() {
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for length in [0, 15, 16, 17, 2000, 2050, 32_700, 40_016, 65_490] {
        let segment = Segment {
            payload: pattern(0, length),
            ..Segment::default()
        };
        let ip = Ipv4::default();
        frames.push(on_link(Link::Ethernet, &[], &ip.tcp(&segment)));
    }
    // The IP packet ends within the pattern, and the frame goes on with the right bytes.
    let segment = Segment {
        payload: pattern(0, 3000),
        ..Segment::default()
    };
    for total_length in [40 + 16, 40 + 15, 40, 40 + 2015, 40 + 2016] {
        let ip = Ipv4 {
            total_length: Some(total_length),
            ..Ipv4::default()
        };
        frames.push(on_link(Link::Ethernet, &[], &ip.tcp(&segment)));
    }
    // A length of 0 stands for a packet larger than the length field can hold (BIG TCP).
    let segment = Segment {
        payload: pattern(0, 65_551),
        ..Segment::default()
    };
    for length in [0, 1] {
        let ip = Ipv4 {
            total_length: Some(0),
            ..Ipv4::default()
        };
        let mut frame = on_link(Link::Ethernet, &[], &ip.tcp(&segment));
        frame.truncate(frame.len() - length);
        frames.push(frame);
    }
    frames.extend(crafted::long_frames().into_iter().map(|(frame, _)| frame));
    let file = CaptureFile::of(Link::Ethernet, &frames);
    let offsets = [
        2034, 0, 1, 1984, 32_684, 65_535, 2000, 32_767, 40_000, 65_474,
    ];
    for offset in offsets.into_iter().step_by(times(1, 5)) {
        for length in [1, 16] {
            let filter = Filter {
                payload: Some((offset, pattern(offset, length))),
                ..Filter::default()
            };
            assert!(check(&filter, &file, &frames), "{filter:?}");
        }
    }
    // Text and hex are the same.
    let text = Segment {
        payload: b"GET / HTTP".to_vec(),
        ..Segment::default()
    };
    let frame = on_link(Link::Ethernet, &[], &Ipv4::default().tcp(&text));
    let file = CaptureFile::of(Link::Ethernet, &[frame]);
    for (pattern, matched) in [
        ("0:\"GET \"", 1),
        ("0:474554", 1),
        ("4:\"/ HTTP\"", 1),
        ("5:\"/ HTTP\"", 0),
        ("5:\" HTTP/\"", 0),
    ] {
        let output = file.replay(MONITOR, &["--payload", pattern]);
        assert_eq!(output.summary()["matched"], matched, "{pattern}");
    }
}

#[test]
fn lists_of_thousands_of_prefixes_are_accepted() {
    let seed = seed("lists_of_thousands_of_prefixes_are_accepted");
    let mut random = Random::new(seed);
    let mut wanted = Vec::new();
    for _ in 0..3000 {
        let v4 = random.percent(50);
        let bits = random.next();
        let (address, length) = match v4 {
            true => {
                // Within 10.0.0.0/12, so that addresses at random meet some of them.
                let host = 0x0a00_0000 | bits as u32 & 0x000f_ffff;
                (
                    IpAddr::from(Ipv4Addr::from_bits(host)),
                    random.pick(&[20, 24, 32]),
                )
            }
            false => {
                let host = 0x2001_0db8_u128 << 96 | u128::from(bits as u16) << 64;
                (
                    IpAddr::from(Ipv6Addr::from_bits(host)),
                    random.pick(&[60, 64]),
                )
            }
        };
        wanted.push(Prefix {
            address,
            length,
            excluded: random.percent(30),
        });
    }
    let frames: Vec<Vec<u8>> = (0..3000)
        .map(|number| {
            let bits = random.next();
            let packet = match number % 2 {
                0 => Ipv4 {
                    source: (0x0a00_0000 | bits as u32 & 0x000f_ffff).to_be_bytes(),
                    ..Ipv4::default()
                }
                .tcp(&Segment::default()),
                _ => Ipv6 {
                    source: (0x2001_0db8_u128 << 96 | u128::from(bits as u16) << 64).to_be_bytes(),
                    ..Ipv6::default()
                }
                .tcp(&Segment::default()),
            };
            on_link(Link::Ethernet, &[], &packet)
        })
        .collect();
    let mut list = String::new();
    for prefix in &wanted {
        let comma = if list.is_empty() { "" } else { "," };
        let excluded = if prefix.excluded { "!" } else { "" };
        write!(
            list,
            "{comma}{excluded}{}/{}",
            prefix.address, prefix.length
        )
        .unwrap();
    }
    let filter = Filter {
        src: wanted,
        ..Filter::default()
    };
    let expected = frames.iter().filter(|frame| {
        let tcp = judge(frame, Link::Ethernet).packet.unwrap();
        filter.takes(&tcp, &[])
    });
    let expected = expected.count();
    assert!((100..2900).contains(&expected), "{expected} pass");
    let file = CaptureFile::of(Link::Ethernet, &frames);
    for program in [COUNT_XDP, COUNT_TC, MONITOR] {
        let output = file.replay(program, &["--src", &list]);
        assert_eq!(output.summary()["matched"], expected, "{program:?}");
    }
}
