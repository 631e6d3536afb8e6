//! Random frames, the same for the same seed on every machine.
//!
//! Random bytes are almost never TCP. So most frames begin as valid ones with random fields and are then
//! damaged: in a field that some rule depends on, in any byte, or by cutting their end.

use super::super::{Link, TCP};
use super::{Extension, Ipv4, Ipv6, Segment, Tag, ethernet, on_link};
use super::{mss, sack_permitted, timestamps, wscale};

/// SplitMix64 (Steele, Lea and Flood, 2014): short, and good enough for any seed, 0 included.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.u8()).collect()
    }

    pub fn u8(&mut self) -> u8 {
        self.next() as u8
    }

    pub fn u16(&mut self) -> u16 {
        self.next() as u16
    }

    pub fn u32(&mut self) -> u32 {
        self.next() as u32
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.u8())
    }
}

/// The Ethernet frame of a seed.
pub fn frame_for(seed: u64) -> Vec<u8> {
    frame_for_link(Link::Ethernet, seed)
}

/// The frame of a seed, of any link type.
pub fn frame_for_link(link: Link, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut frame = match random.below(100) {
        0..5 => {
            let count = random.below(200);
            random.bytes(count)
        }
        5..10 => {
            let count = random.below(120);
            let noise = random.bytes(count);
            on_link(link, &[], &noise)
        }
        10..15 if link == Link::Ethernet => {
            let ethertype = random.pick(&[0x0806, 0x88cc, 0x8847, 0x8864, 0x0026]);
            let tags = tags(&mut random);
            let packet = packet(&mut random, link);
            ethernet(&tags, ethertype, &packet)
        }
        _ => {
            let tags = tags(&mut random);
            let packet = packet(&mut random, link);
            on_link(link, &tags, &packet)
        }
    };
    if matches!(link, Link::Null | Link::Loop) && frame.len() > 4 && random.percent(20) {
        address_family(&mut random, link, &mut frame);
    }
    if random.percent(20) {
        for _ in 0..=random.below(3) {
            // Most headers lie within the first 100 bytes.
            let limit = frame.len().clamp(1, 100);
            if let Some(byte) = frame.get_mut(random.below(limit)) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
    if random.percent(20) {
        frame.truncate(random.below(frame.len() + 1));
    }
    if random.percent(10) {
        // Padding by a driver, or a frame check sequence: no part of the IP packet.
        let count = random.below(20);
        frame.extend(random.bytes(count));
    }
    frame
}

/// Sets another address family, or changes the byte order of the family.
fn address_family(random: &mut Random, link: Link, frame: &mut [u8]) {
    if random.percent(30) {
        frame[..4].reverse();
        return;
    }
    let family = random.pick(&[2_u32, 10, 24, 28, 30, 7, 23, 0x1c00]);
    frame[..4].copy_from_slice(&match link {
        Link::Loop => family.to_be_bytes(),
        _ => family.to_le_bytes(),
    });
}

/// VLAN tags: none in half of the frames, sometimes more than a parser accepts.
fn tags(random: &mut Random) -> Vec<Tag> {
    let count = random.pick(&[0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 3, 4]);
    (0..count)
        .map(|_| Tag {
            ethertype: random.pick(&[0x8100, 0x8100, 0x88a8, 0x9100]),
            tci: random.u16(),
        })
        .collect()
}

/// An IP packet of a version that the link type can carry.
fn packet(random: &mut Random, link: Link) -> Vec<u8> {
    let is_ipv4 = match link {
        Link::Ipv4Only => true,
        Link::Ipv6Only => false,
        _ => random.percent(50),
    };
    let segment = segment(random);
    if is_ipv4 {
        ipv4(random, &segment)
    } else {
        ipv6(random, &segment)
    }
}

fn segment(random: &mut Random) -> Segment {
    let payload = random.pick(&[0, 0, 1, 20, 100]);
    let mut segment = Segment {
        sport: random.u16(),
        dport: random.pick(&[22, 80, 443, 8080, 0x1234]),
        seq: random.u32(),
        ack: random.u32(),
        // Half of them SYNs, the rest with any flags.
        flags: match random.percent(50) {
            true => 0x02 | random.pick(&[0, 0, 0, 0xc0, 0x01, 0x08, 0x20]),
            false => random.u8(),
        },
        window: random.u16(),
        urgent: random.u16(),
        options: options(random),
        payload: random.bytes(payload),
        ..Segment::default()
    };
    if random.percent(10) {
        segment.data_offset = Some(random.below(16) as u8);
    }
    segment
}

/// Options in any order, repeated, with wrong lengths, or noise; never more than 40 bytes.
fn options(random: &mut Random) -> Vec<u8> {
    let mut options = Vec::new();
    for _ in 0..random.below(7) {
        let mut option = match random.below(8) {
            0 => vec![1],
            1 => vec![0],
            2 => mss(random.u16()),
            3 => wscale(random.u8()),
            4 => sack_permitted(),
            5 => timestamps(random.u32(), random.u32()),
            6 => vec![5, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            _ => {
                let count = random.below(8);
                random.bytes(count)
            }
        };
        if option.len() > 1 && random.percent(8) {
            option[1] = random.below(12) as u8;
        }
        if options.len() + option.len() <= 40 {
            options.extend(option);
        }
    }
    options
}

fn ipv4(random: &mut Random, segment: &Segment) -> Vec<u8> {
    let option_words = random.pick(&[0, 0, 0, 1, 2, 10]);
    let mut ip = Ipv4 {
        tos: random.u8(),
        id: random.u16(),
        ttl: random.u8(),
        source: random.array(),
        destination: random.array(),
        options: vec![1; option_words * 4],
        ..Ipv4::default()
    };
    match random.below(20) {
        0 => ip.version = random.below(16) as u8,
        1 => ip.ihl = Some(random.below(16) as u8),
        2 => ip.total_length = Some(random.below(120) as u16),
        3 => ip.total_length = Some(0),
        4 => ip.total_length = Some(random.u16()),
        5 => ip.protocol = random.pick(&[1, 4, 17, 41, 47, 50]),
        6 => ip.fragment = random.u16(),
        7 => ip.fragment = 1 + random.u16() % 0x1fff,
        // A first fragment: TCP like any other.
        8 => ip.fragment = 0x2000,
        _ => {}
    }
    ip.tcp(segment)
}

fn ipv6(random: &mut Random, segment: &Segment) -> Vec<u8> {
    let mut ip = Ipv6 {
        traffic_class: random.u8(),
        flow_label: random.u32(),
        hop_limit: random.u8(),
        source: random.array(),
        destination: random.array(),
        extensions: extensions(random),
        ..Ipv6::default()
    };
    match random.below(20) {
        0 => ip.version = random.below(16) as u8,
        1 => ip.payload_length = Some(random.below(200) as u16),
        2 => ip.payload_length = Some(0),
        3 => ip.payload_length = Some(random.u16()),
        // UDP, tunnels, ESP, ICMPv6, nothing, mobility, HIP.
        4 => ip.protocol = random.pick(&[17, 4, 41, 50, 58, 59, 135, 139]),
        _ => {}
    }
    if ip.protocol != TCP {
        return ip.around(&segment.payload);
    }
    ip.tcp(segment)
}

/// A chain of up to ten headers. Half of the chains are empty; many of the others have eight or nine
/// headers, just within and just over the limit.
fn extensions(random: &mut Random) -> Vec<Extension> {
    let count = match random.below(10) {
        0..5 => 0,
        5..8 => random.below(11),
        _ => random.pick(&[8, 9]),
    };
    (0..count)
        .map(|_| match random.below(10) {
            0..2 => Extension::HopByHop(length(random)),
            2..4 => Extension::Routing(length(random)),
            4..6 => Extension::DestinationOptions(length(random)),
            6..8 => Extension::Authentication(random.pick(&[0, 1, 2, 4])),
            8 => Extension::Fragment(0, random.percent(50)),
            _ => Extension::Fragment(random.pick(&[0, 0, 0, 1, 185]), random.percent(50)),
        })
        .collect()
}

/// The length field of an options or routing header: short, seldom long.
fn length(random: &mut Random) -> u8 {
    random.pick(&[0, 0, 0, 0, 0, 1, 2, 31])
}
