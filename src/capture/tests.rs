#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what it did on stderr"
)]

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, Cursor, Read, Write};
use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::stat::Mode;

use super::{Capture, CaptureError, CaptureFile, LinkKind, MAX_FRAME, Order};

fn open_file(path: &Path) -> Result<Capture, CaptureError> {
    CaptureFile::open(path)?.read(Rc::new(|_| Ok(())))
}

const BOTH_ORDERS: [Order; 2] = [Order::Little, Order::Big];

/// A file that a test builds, in one byte order.
struct File {
    order: Order,
    bytes: Vec<u8>,
}

impl File {
    fn new(order: Order) -> Self {
        let bytes = Vec::new();
        Self { order, bytes }
    }

    fn u16(mut self, n: u16) -> Self {
        self.bytes.extend(match self.order {
            Order::Little => n.to_le_bytes(),
            Order::Big => n.to_be_bytes(),
        });
        self
    }

    fn u32(mut self, n: u32) -> Self {
        self.bytes.extend(match self.order {
            Order::Little => n.to_le_bytes(),
            Order::Big => n.to_be_bytes(),
        });
        self
    }

    fn u64(mut self, n: u64) -> Self {
        self.bytes.extend(match self.order {
            Order::Little => n.to_le_bytes(),
            Order::Big => n.to_be_bytes(),
        });
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn pcap(order: Order, magic: u32, link_type: u32) -> Self {
        let header = Self::new(order).u32(magic).u16(2).u16(4);
        header.u32(0).u32(0).u32(0).u32(link_type)
    }

    fn record(self, seconds: u32, fraction: u32, frame: &[u8]) -> Self {
        let len = frame.len() as u32;
        self.u32(seconds).u32(fraction).u32(len).u32(len).raw(frame)
    }

    fn pcapng(order: Order) -> Self {
        Self::new(order).section()
    }

    fn section(self) -> Self {
        let body = Self::new(self.order).u32(0x1a2b_3c4d).u16(1).u16(0);
        let body = body.u64(u64::MAX).bytes;
        self.block(0x0a0d_0d0a, &body)
    }

    fn block(self, block_type: u32, body: &[u8]) -> Self {
        let padding = vec![0; body.len().next_multiple_of(4) - body.len()];
        let len = (12 + body.len() + padding.len()) as u32;
        self.u32(block_type)
            .u32(len)
            .raw(body)
            .raw(&padding)
            .u32(len)
    }

    fn interface(self, link_type: u16, snap_len: u32, options: &[(u16, Vec<u8>)]) -> Self {
        let mut body = Self::new(self.order).u16(link_type).u16(0).u32(snap_len);
        for (code, value) in options {
            let padding = vec![0; value.len().next_multiple_of(4) - value.len()];
            body = body.u16(*code).u16(value.len() as u16);
            body = body.raw(value).raw(&padding);
        }
        self.block(1, &body.bytes)
    }

    fn packet(self, interface: u32, ts: u64, frame: &[u8]) -> Self {
        let len = frame.len() as u32;
        let body = Self::new(self.order).u32(interface);
        let body = body.u32((ts >> 32) as u32).u32(ts as u32).u32(len).u32(len);
        let body = body.raw(frame).bytes;
        self.block(6, &body)
    }

    fn simple_packet(self, original: u32, frame: &[u8]) -> Self {
        let body = Self::new(self.order).u32(original).raw(frame).bytes;
        self.block(3, &body)
    }
}

/// A frame that owns its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Owned {
    number: u64,
    ts_ns: Option<i64>,
    link: LinkKind,
    bytes: Vec<u8>,
    offset_shift: i32,
}

/// All frames, and the error that ended them. Checks what must be true of any file.
fn drain(capture: Result<Capture, CaptureError>) -> (Vec<Owned>, Option<CaptureError>) {
    let mut capture = match capture {
        Ok(capture) => capture,
        Err(err) => return (Vec::new(), Some(err)),
    };
    let mut frames = Vec::new();
    let error = loop {
        match capture.next_frame() {
            Ok(None) => break None,
            Err(err) => break Some(err),
            Ok(Some(frame)) => {
                assert_eq!(frame.number, frames.len() as u64 + 1);
                assert!(frame.bytes.len() <= MAX_FRAME as usize + 14);
                frames.push(Owned {
                    number: frame.number,
                    ts_ns: frame.ts_ns,
                    link: frame.link,
                    bytes: frame.bytes.to_vec(),
                    offset_shift: frame.offset_shift,
                });
            }
        }
    };
    assert_eq!(capture.next_frame().unwrap(), None, "nothing can follow");
    assert!(
        capture.input.buffer().len() <= 1024 * 1024 + 14,
        "the buffer is bounded"
    );
    (frames, error)
}

fn open(bytes: &[u8]) -> Result<Capture, CaptureError> {
    Capture::from_reader(Path::new("x"), Box::new(Cursor::new(bytes.to_vec())))
}

fn read(bytes: &[u8]) -> (Vec<Owned>, Option<CaptureError>) {
    drain(open(bytes))
}

/// The frames of a file that must be valid.
fn frames(file: &File) -> Vec<Owned> {
    let (frames, error) = read(&file.bytes);
    assert!(error.is_none(), "{}", error.unwrap());
    frames
}

/// The message about a file that must be broken, with the number of frames
/// before it.
fn failure(bytes: &[u8]) -> (usize, String) {
    let (frames, error) = read(bytes);
    (frames.len(), error.unwrap().to_string())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An Ethernet frame of `len` bytes that differ.
fn ethernet(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + len) as u8).collect()
}

fn small_pcap(order: Order) -> File {
    File::pcap(order, 0xa1b2_c3d4, 1)
        .record(1, 2, &ethernet(60))
        .record(3, 4, &[])
        .record(5, 6, &ethernet(15))
}

fn small_pcapng(order: Order) -> File {
    let comment = (1, b"hello".to_vec());
    File::pcapng(order)
        .interface(1, 0, &[comment, (9, vec![9]), (0, vec![])])
        .packet(0, 1_000_000_002, &ethernet(61))
        .block(5, &[0; 20])
        .interface(113, 96, &[])
        .packet(1, 7, &ethernet(33))
        .simple_packet(17, &ethernet(17))
        .block(0x8000_0bad, &ethernet(9))
}

#[test]
fn every_pcap_magic_is_read_in_both_byte_orders() {
    for order in BOTH_ORDERS {
        for (magic, ns_per_fraction) in [(0xa1b2_c3d4, 1000), (0xa1b2_3c4d, 1)] {
            let frame = ethernet(60);
            let file = File::pcap(order, magic, 1)
                .record(1_700_000_000, 999_999, &frame)
                .record(u32::MAX, u32::MAX, &frame);
            let got = frames(&file);
            assert_eq!(got.len(), 2);
            assert_eq!(got[0].bytes, frame);
            assert_eq!(got[0].link, LinkKind::Ethernet);
            assert_eq!(got[0].offset_shift, 0);
            assert_eq!(
                got[0].ts_ns,
                Some(1_700_000_000_000_000_000 + 999_999 * ns_per_fraction)
            );
            let max = i64::from(u32::MAX);
            assert_eq!(
                got[1].ts_ns,
                Some(max * 1_000_000_000 + max * ns_per_fraction)
            );
        }
    }
}

#[test]
fn the_modified_pcap_format_has_longer_record_headers() {
    for order in BOTH_ORDERS {
        let file = File::pcap(order, 0xa1b2_cd34, 1);
        let file = file.u32(1).u32(2).u32(60).u32(60).u64(0).raw(&ethernet(60));
        let got = frames(&file.u32(1).u32(3).u32(0).u32(0).u64(0));
        assert_eq!(got.len(), 2);
        assert_eq!(got[0].bytes, ethernet(60));
        assert_eq!(got[1].ts_ns, Some(1_000_003_000));
    }
}

#[test]
fn old_pcap_versions_have_their_lengths_in_the_other_order() {
    for (minor, first, second) in [(2, 99, 14), (3, 99, 14), (3, 14, 99), (4, 14, 99)] {
        let mut file = File::pcap(Order::Big, 0xa1b2_c3d4, 1);
        file.bytes[7] = minor;
        let file = file.u32(1).u32(2).u32(first).u32(second).raw(&ethernet(14));
        assert_eq!(frames(&file)[0].bytes, ethernet(14));
    }
}

#[test]
fn other_versions_are_refused() {
    for (major, minor) in [(1, 4), (3, 0), (2, 5)] {
        let mut file = small_pcap(Order::Big);
        file.bytes[5] = major;
        file.bytes[7] = minor;
        let want = format!(
            "failed to read x: header at byte 0: pcap version {major}.{minor} is not supported"
        );
        assert_eq!(failure(&file.bytes), (0, want));
    }
    let mut file = small_pcapng(Order::Big);
    file.bytes[13] = 2;
    let want = "failed to read x: header at byte 0: pcapng version 2.0 is not supported";
    assert_eq!(failure(&file.bytes), (0, want.to_owned()));
}

#[test]
fn other_bits_in_the_field_of_the_link_type_are_ignored() {
    let file = File::pcap(Order::Little, 0xa1b2_c3d4, 0x2400_0001);
    assert_eq!(frames(&file.record(0, 0, &ethernet(64))).len(), 1);
}

#[test]
fn every_link_type_becomes_ethernet_and_offsets_can_be_converted_back() {
    let packet = |version: u8| [&[version << 4 | 5][..], &ethernet(40)].concat();
    let v1 = |proto: u16| [&[9; 14][..], &proto.to_be_bytes(), &packet(4)].concat();
    let v2 = |proto: u16| [&proto.to_be_bytes(), &[9; 18][..], &packet(4)].concat();
    let null = |family: [u8; 4]| [&family[..], &packet(4)].concat();

    let mut cases = vec![
        (228, packet(4), 0x0800, LinkKind::Raw, -14),
        (228, packet(6), 0x0800, LinkKind::Raw, -14),
        (229, packet(6), 0x86dd, LinkKind::Raw, -14),
        (229, packet(4), 0x86dd, LinkKind::Raw, -14),
        (113, v1(0x0800), 0x0800, LinkKind::Cooked, 2),
        (113, v1(0x88a8), 0x88a8, LinkKind::Cooked, 2),
        (276, v2(0x86dd), 0x86dd, LinkKind::Cooked, 6),
        (276, v2(0x0001), 0x0001, LinkKind::Cooked, 6),
        (0, null([2, 0, 0, 0]), 0x0800, LinkKind::Loopback, -10),
        (0, null([0, 0, 0, 2]), 0x0800, LinkKind::Loopback, -10),
        (0, null([0, 30, 0, 0]), 0xffff, LinkKind::Loopback, -10),
        (0, null([7, 0, 0, 0]), 0xffff, LinkKind::Loopback, -10),
        (108, null([0, 0, 0, 2]), 0x0800, LinkKind::Loopback, -10),
        (108, null([2, 0, 0, 0]), 0xffff, LinkKind::Loopback, -10),
    ];
    for link_type in [12, 14, 101] {
        cases.push((link_type, packet(4), 0x0800, LinkKind::Raw, -14));
        cases.push((link_type, packet(6), 0x86dd, LinkKind::Raw, -14));
        cases.push((link_type, packet(5), 0xffff, LinkKind::Raw, -14));
    }
    for family in [10, 24, 28, 30] {
        let little = null([family, 0, 0, 0]);
        let big = null([0, 0, 0, family]);
        cases.push((0, little, 0x86dd, LinkKind::Loopback, -10));
        cases.push((0, big.clone(), 0x86dd, LinkKind::Loopback, -10));
        cases.push((108, big, 0x86dd, LinkKind::Loopback, -10));
    }

    for (link_type, captured, ether_type, link, offset_shift) in cases {
        let simple = captured.len() as u32;
        let files = [
            File::pcap(Order::Little, 0xa1b2_c3d4, link_type).record(0, 0, &captured),
            File::pcapng(Order::Little)
                .interface(link_type as u16, 0, &[])
                .packet(0, 0, &captured),
            // The header of this block is shorter than one of Ethernet.
            File::pcapng(Order::Big)
                .interface(link_type as u16, 0, &[])
                .simple_packet(simple, &captured),
        ];
        for file in files {
            let got = &frames(&file)[0];
            assert_eq!(
                (got.link, got.offset_shift),
                (link, offset_shift),
                "link type {link_type}"
            );
            let ether_type: u16 = ether_type;
            assert_eq!(got.bytes[..12], [0; 12]);
            assert_eq!(got.bytes[12..14], ether_type.to_be_bytes());
            let payload_at = (14 + offset_shift) as usize;
            assert_eq!(got.bytes[14..], captured[payload_at..]);
        }
    }
}

#[test]
fn a_frame_cut_in_its_own_header_is_empty() {
    for (link_type, header) in [(101, 1), (228, 1), (113, 16), (276, 20), (0, 4), (108, 4)] {
        for len in 0..header + 2 {
            let file =
                File::pcap(Order::Little, 0xa1b2_c3d4, link_type).record(0, 0, &vec![0; len]);
            let got = frames(&file);
            let payload_at = (14 + got[0].offset_shift) as usize;
            let want = if len < header {
                0
            } else {
                14 + len - payload_at
            };
            assert_eq!(got[0].bytes.len(), want, "link type {link_type}, {len}");
        }
    }
    for len in 0..14 {
        let file = File::pcap(Order::Little, 0xa1b2_c3d4, 1).record(0, 0, &ethernet(len));
        assert_eq!(frames(&file)[0].bytes, ethernet(len));
    }
}

#[test]
fn pcapng_timestamps_have_the_resolution_and_offset_of_their_interface() {
    const SECOND: i64 = 1_000_000_000;
    let cases: [(Option<u8>, i64, u64, i64); 18] = [
        (None, 0, 1_500_000, SECOND * 3 / 2),
        (Some(6), 0, 1_500_000, SECOND * 3 / 2),
        (Some(0), 0, 7, 7 * SECOND),
        (Some(3), 0, 1_500, SECOND * 3 / 2),
        (Some(9), 0, 1_500_000_001, SECOND * 3 / 2 + 1),
        (Some(12), 0, 1_500_000_000_999, SECOND * 3 / 2),
        (Some(19), 0, u64::MAX, 1_844_674_407),
        (Some(127), 0, u64::MAX, 0),
        (Some(0x80), 0, 7, 7 * SECOND),
        (Some(0x80 + 10), 0, 1_536, SECOND * 3 / 2),
        (Some(0x80 + 32), 0, 3 << 31, SECOND * 3 / 2),
        (Some(0x80 + 127), 0, u64::MAX, 0),
        (Some(6), 100, 1, 100 * SECOND + 1_000),
        (Some(6), -1, 250_000, -SECOND * 3 / 4),
        (Some(0), 0, u64::MAX, i64::MAX),
        (Some(0x80), i64::MAX, u64::MAX, i64::MAX),
        (Some(6), i64::MAX, 0, i64::MAX),
        (Some(6), i64::MIN, u64::MAX, i64::MIN),
    ];
    for order in BOTH_ORDERS {
        for (resolution, offset, ts, want) in cases {
            let mut options = Vec::new();
            if let Some(resolution) = resolution {
                options.push((9, vec![resolution]));
            }
            if offset != 0 {
                options.push((14, File::new(order).u64(offset as u64).bytes));
            }
            options.push((0, vec![]));
            let file = File::pcapng(order).interface(1, 0, &options);
            let got = frames(&file.packet(0, ts, &ethernet(20)));
            assert_eq!(got[0].ts_ns, Some(want), "{resolution:?} {offset} {ts}");
        }
    }
}

#[test]
fn simple_packets_take_their_length_from_the_interface_and_have_no_time() {
    for order in BOTH_ORDERS {
        let file = File::pcapng(order)
            .interface(1, 18, &[])
            .simple_packet(1500, &ethernet(18))
            .simple_packet(15, &ethernet(15));
        let got = frames(&file);
        assert_eq!(got[0].bytes, ethernet(18));
        assert_eq!(got[1].bytes, ethernet(15));
        assert_eq!(got[0].ts_ns, None);
    }
    let file = File::pcapng(Order::Little).interface(1, 0, &[]);
    let got = failure(&file.simple_packet(17, &ethernet(14)).bytes);
    assert!(
        got.1
            .ends_with("captured length 17 is over the 16 bytes that the block has for it"),
        "{got:?}"
    );
}

#[test]
fn the_old_packet_block_is_read() {
    for order in BOTH_ORDERS {
        let body = File::new(order).u16(0).u16(3).u32(0).u32(5).u32(15).u32(20);
        let file = File::pcapng(order).interface(1, 0, &[]);
        let got = frames(&file.block(2, &body.raw(&ethernet(15)).bytes));
        assert_eq!(got[0].bytes, ethernet(15));
        assert_eq!(got[0].ts_ns, Some(5_000));
    }
}

#[test]
fn each_section_has_its_own_byte_order_and_interfaces() {
    let mut file = small_pcapng(Order::Little);
    file.bytes.extend(small_pcapng(Order::Big).bytes);
    let got = frames(&file);
    assert_eq!(got.len(), 6);
    for (i, (a, b)) in got[..3].iter().zip(&got[3..]).enumerate() {
        let b = Owned {
            number: i as u64 + 1,
            ..b.clone()
        };
        assert_eq!(*a, b);
    }
    let links = [LinkKind::Ethernet, LinkKind::Cooked, LinkKind::Ethernet];
    assert!(
        got.iter()
            .zip(links)
            .all(|(frame, link)| frame.link == link)
    );

    let at = file.bytes.len();
    let file = file.section().packet(0, 0, &ethernet(20));
    let want = format!(
        "failed to read x: block at byte {}: interface 0 is not described: the section has 0",
        at + 28
    );
    assert_eq!(failure(&file.bytes), (6, want));
}

#[test]
fn an_unsupported_link_type_is_named() {
    let file = File::pcap(Order::Little, 0xa1b2_c3d4, 105).record(0, 0, &ethernet(20));
    let error = open(&file.bytes).err().unwrap();
    assert!(error.is_usage());
    assert_eq!(
        error.to_string(),
        "failed to read x: link type 105 (IEEE 802.11) is not supported"
    );

    let file = File::pcapng(Order::Little)
        .interface(65_000, 0, &[])
        .interface(1, 0, &[])
        .packet(1, 0, &ethernet(20));
    let at = file.bytes.len();
    assert_eq!(frames(&file).len(), 1);
    let (frames, error) = read(&file.packet(0, 0, &ethernet(20)).bytes);
    let error = error.unwrap();
    assert_eq!(frames.len(), 1);
    assert!(!error.is_usage());
    assert_eq!(
        error.to_string(),
        format!("failed to read x: block at byte {at}: link type 65000 is not supported")
    );
}

#[test]
fn impossible_lengths_are_refused_with_their_position() {
    for order in BOTH_ORDERS {
        let file = small_pcap(order);
        let at = file.bytes.len();
        let place = format!("failed to read x: record at byte {at}: ");
        let file = file.u32(0).u32(0).u32(u32::MAX).u32(60).raw(&[0; 99]);
        let want = format!("{place}captured length 4294967295 is over the limit of 262144");
        assert_eq!(failure(&file.bytes), (3, want));

        let file = small_pcapng(order);
        let at = file.bytes.len();
        let place = format!("failed to read x: block at byte {at}: ");
        let text = |file: File| {
            let (frames, text) = failure(&file.bytes);
            assert_eq!(frames, 3);
            text.strip_prefix(&place).unwrap_or(&text).to_owned()
        };
        let start = || small_pcapng(order).u32(6);
        assert_eq!(
            text(start().u32(u32::MAX - 3).raw(&[0; 99])),
            "block length 4294967292 is over the limit of 1048576"
        );
        for length in [0, 11, 33] {
            assert_eq!(
                text(start().u32(length).raw(&[0; 99])),
                format!("block length {length} is under 12 or not a multiple of 4")
            );
        }
        assert_eq!(
            text(start().u32(16).u32(0).u32(20)),
            "block length is 16 at its start and 20 at its end"
        );
        assert_eq!(
            text(start().u32(16).u32(0).u32(16)),
            "packet block is too short"
        );
        assert_eq!(
            text(
                small_pcapng(order)
                    .u32(0xbad)
                    .u32(u32::MAX - 3)
                    .raw(&[0; 99])
            ),
            "cut short: 107 of its 4294967292 bytes are there"
        );
        for (captured, want) in [
            (
                262_145,
                "captured length 262145 is over the limit of 262144",
            ),
            (
                41,
                "captured length 41 is over the 40 bytes that the block has for it",
            ),
        ] {
            let body = File::new(order).u32(0).u64(0).u32(captured).u32(captured);
            let body = body.raw(&ethernet(40)).bytes;
            assert_eq!(text(small_pcapng(order).block(6, &body)), want);
        }
        assert_eq!(
            text(small_pcapng(order).raw(&[0; 64])),
            "block length 0 is under 12 or not a multiple of 4"
        );
    }
}

#[test]
fn frames_up_to_the_maximum_length_are_read_and_longer_ones_refused() {
    let frame = ethernet(MAX_FRAME as usize);
    let file = File::pcap(Order::Little, 0xa1b2_c3d4, 101).record(0, 0, &frame);
    let file = file.record(0, 0, &frame);
    let got = frames(&file);
    assert_eq!(got.len(), 2);
    assert_eq!(got[1].bytes[14..], frame);
    let file = file.record(0, 0, &ethernet(MAX_FRAME as usize + 1));
    assert_eq!(read(&file.bytes).0.len(), 2);

    let file = File::pcapng(Order::Big).interface(1, 0, &[]);
    assert_eq!(frames(&file.packet(0, 0, &frame))[0].bytes, frame);
}

#[test]
fn long_blocks_of_other_types_are_skipped_in_bounded_memory() {
    let file = File::pcapng(Order::Little)
        .block(4, &vec![1; 5_000_000])
        .interface(1, 0, &[])
        .packet(0, 0, &ethernet(20));
    let mut capture = open(&file.bytes).unwrap();
    assert!(capture.next_frame().unwrap().is_some());
    assert!(capture.input.buffer().len() < 100_000);

    let mut lying = File::pcapng(Order::Little).block(4, &vec![1; 5_000_000]);
    let last = lying.bytes.len() - 1;
    lying.bytes[last] = 9;
    assert!(
        failure(&lying.bytes)
            .1
            .contains("length is 5000012 at its start and 15")
    );
}

#[test]
fn options_of_an_interface_must_be_valid() {
    let text = |options: &[u8]| {
        let body = File::new(Order::Big).u16(1).u16(0).u32(0).raw(options);
        let file = File::pcapng(Order::Big).block(1, &body.bytes);
        match read(&file.bytes).1 {
            Some(error) => error.to_string(),
            None => String::new(),
        }
    };
    assert_eq!(text(&[]), "");
    assert_eq!(text(&[0, 0, 0, 0, 1, 2, 3, 4]), "");
    assert_eq!(text(&[0, 2, 0, 0, 0, 9, 0, 1, 3, 0, 0, 0]), "");
    let bad: [&[u8]; 4] = [
        &[0, 2, 0, 5, 1, 2, 3, 4],
        &[0, 9, 0, 2, 6, 6, 0, 0],
        &[0, 14, 0, 4, 0, 0, 0, 0],
        &[0, 2, 0xff, 0xff],
    ];
    for options in bad {
        assert!(text(options).contains("interface option"), "{options:?}");
    }
}

#[test]
fn the_number_of_interfaces_in_a_section_is_limited() {
    let one = File::new(Order::Little).interface(1, 0, &[]).bytes;
    let mut file = File::pcapng(Order::Little);
    file.bytes.extend(one.repeat(65_537));
    assert!(
        failure(&file.bytes)
            .1
            .ends_with("section describes more than 65536 interfaces")
    );
}

#[test]
fn a_truncated_file_gives_its_complete_frames_and_the_position_of_the_cut() {
    for order in BOTH_ORDERS {
        for file in [small_pcap(order), small_pcapng(order)] {
            let whole = frames(&file);
            let mut reached = 0;
            for len in 0..=file.bytes.len() {
                let (got, error) = read(&file.bytes[..len]);
                assert_eq!(got, whole[..got.len()], "cut at {len}");
                assert!(got.len() >= reached, "cut at {len}");
                reached = got.len();
                let Some(error) = error else { continue };
                let text = error.to_string();
                let Some(at) = text.split("at byte ").nth(1) else {
                    assert!(error.is_usage() && len < 4, "cut at {len}: {text}");
                    continue;
                };
                assert!(!error.is_usage());
                let (at, rest) = at.split_once(": cut short: ").unwrap();
                let at: usize = at.parse().unwrap();
                let have: usize = rest.split(' ').next().unwrap().parse().unwrap();
                assert_eq!(at + have, len, "{text}");
            }
            assert_eq!(reached, whole.len());
        }
    }
}

#[test]
fn a_gzip_file_may_have_several_members_and_be_cut_anywhere() {
    let file = small_pcapng(Order::Little);
    let whole = frames(&file);
    let (a, b) = file.bytes.split_at(100);
    let packed = [gzip(a), gzip(b)].concat();
    let (got, error) = read(&packed);
    assert_eq!((&got, error.is_none()), (&whole, true));

    for len in 2..packed.len() {
        let (got, error) = read(&packed[..len]);
        assert_eq!(got, whole[..got.len()]);
        // A cut between the members leaves valid gzip data, with a part of the capture.
        if len != gzip(a).len() {
            let text = error.unwrap().to_string();
            assert!(
                text.ends_with(" of the decompressed data: the gzip data ends early"),
                "cut at {len}: {text}"
            );
        }
    }

    let garbage = [&packed[..], b"garbage after it"].concat();
    let (got, error) = read(&garbage);
    assert_eq!(got, whole);
    assert!(
        error
            .unwrap()
            .to_string()
            .contains("the gzip data is broken: ")
    );
}

#[test]
fn bytes_read_are_those_of_the_compressed_file() {
    let file = small_pcap(Order::Little);
    for bytes in [file.bytes.clone(), gzip(&file.bytes)] {
        let mut capture = open(&bytes).unwrap();
        while capture.next_frame().unwrap().is_some() {}
        assert_eq!(capture.bytes_read(), bytes.len() as u64);
        assert_eq!(capture.file_len(), None);
    }
}

/// Delivers a few bytes at a time, and an interruption before each.
struct Trickle {
    bytes: Cursor<Vec<u8>>,
    step: usize,
    interrupt: bool,
}

impl Read for Trickle {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let len = buf.len().min(self.step);
        self.bytes.read(&mut buf[..len])
    }
}

#[test]
fn frames_do_not_depend_on_how_reads_divide_the_data() {
    for order in BOTH_ORDERS {
        // With small pieces, this block is at the very start of the buffer. It has
        // fewer bytes before the frame than the Ethernet header needs.
        let raw = File::pcapng(order).interface(101, 0, &[]);
        for bytes in [
            small_pcap(order).bytes,
            small_pcapng(order).bytes,
            raw.simple_packet(20, &[0x45; 20]).bytes,
            gzip(&small_pcap(order).bytes),
        ] {
            for step in [1, 2, 3, 5, 16, 17, 64] {
                let trickle = Trickle {
                    bytes: Cursor::new(bytes.clone()),
                    step,
                    interrupt: false,
                };
                let (got, error) = drain(Capture::from_reader(Path::new("x"), Box::new(trickle)));
                assert!(error.is_none());
                assert_eq!(got, read(&bytes).0);
            }
        }
    }
}

#[test]
fn a_read_error_is_reported_after_the_frames_before_it() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::from_raw_os_error(5))
        }
    }
    let bytes = small_pcap(Order::Little).bytes;
    let place = format!("record at byte {}", bytes.len());
    let reader = Cursor::new(bytes).chain(Failing);
    let (got, error) = drain(Capture::from_reader(Path::new("x"), Box::new(reader)));
    let error = error.unwrap();
    assert_eq!(got.len(), 3);
    assert!(!error.is_usage());
    assert_eq!(
        error.to_string(),
        format!("failed to read x: {place}: Input/output error (os error 5)")
    );
}

#[test]
fn files_that_are_not_captures_are_usage_errors() {
    let dir = tempfile::tempdir().unwrap();
    let usage = |path: &Path| {
        let error = open_file(path).err().unwrap();
        assert!(error.is_usage());
        let text = error.to_string();
        let prefix = format!("failed to read {}: ", path.display());
        text.strip_prefix(&prefix).unwrap_or(&text).to_owned()
    };
    assert_eq!(usage(dir.path()), "is a directory");
    let path = dir.path().join("x.pcap");
    assert_eq!(usage(&path), "No such file or directory (os error 2)");
    fs::write(&path, "").unwrap();
    assert_eq!(usage(&path), "the file is empty");
    fs::write(&path, gzip(b"")).unwrap();
    assert_eq!(usage(&path), "the file is empty");
    fs::write(&path, "hello, world").unwrap();
    assert_eq!(usage(&path), "not a pcap or pcapng file");
    fs::write(&path, "a").unwrap();
    assert_eq!(usage(&path), "not a pcap or pcapng file");
    assert_eq!(usage(Path::new("/dev/null")), "the file is empty");
    assert_eq!(usage(Path::new("/dev/zero")), "not a pcap or pcapng file");
}

#[test]
fn control_characters_in_a_file_name_are_escaped() {
    let error = open_file(Path::new("a\x1b[2J\nb\u{9b}é")).err().unwrap();
    assert!(
        error
            .to_string()
            .starts_with("failed to read a\\u{1b}[2J\\nb\\u{9b}é: No such")
    );
}

#[test]
fn a_file_that_grows_is_read_as_far_as_it_goes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.pcap");
    let file = small_pcap(Order::Little);
    fs::write(&path, &file.bytes).unwrap();
    let mut capture = open_file(&path).unwrap();
    assert_eq!(capture.file_len(), Some(file.bytes.len() as u64));
    for _ in 0..3 {
        assert!(capture.next_frame().unwrap().is_some());
    }
    let more = File::new(Order::Little).record(9, 9, &ethernet(99));
    let mut append = fs::OpenOptions::new().append(true).open(&path).unwrap();
    append.write_all(&more.bytes).unwrap();
    assert_eq!(capture.next_frame().unwrap().unwrap().bytes, ethernet(99));
    assert!(capture.next_frame().unwrap().is_none());
}

#[test]
fn frames_come_out_of_a_fifo_while_its_writer_is_still_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
    let (seen, go_on) = mpsc::channel();
    let writer = thread::spawn({
        let path = path.clone();
        move || {
            let mut fifo = fs::OpenOptions::new().write(true).open(path).unwrap();
            let file = File::pcap(Order::Little, 0xa1b2_c3d4, 1);
            let file = file.record(1, 2, &ethernet(60));
            let (a, b) = file.bytes.split_at(10);
            fifo.write_all(a).unwrap();
            fifo.write_all(b).unwrap();
            go_on.recv().unwrap();
            let more = File::new(Order::Little).record(3, 4, &ethernet(61));
            fifo.write_all(&more.bytes).unwrap();
        }
    });
    let mut capture = open_file(&path).unwrap();
    assert_eq!(capture.file_len(), None);
    assert_eq!(capture.next_frame().unwrap().unwrap().bytes, ethernet(60));
    seen.send(()).unwrap();
    assert_eq!(capture.next_frame().unwrap().unwrap().bytes, ethernet(61));
    assert!(capture.next_frame().unwrap().is_none());
    writer.join().unwrap();
}

/// SplitMix64: enough for tests, and a seed repeats a run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}

/// `CAPTURE_SEED=N` repeats a run that failed.
#[test]
fn damaged_files_give_frames_and_at_most_one_error() {
    let seed = match std::env::var("CAPTURE_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => RandomState::new().hash_one(0),
    };
    eprintln!("CAPTURE_SEED={seed}");
    let mut random = Random(seed);
    let mut files = Vec::new();
    for order in BOTH_ORDERS {
        files.push(small_pcap(order).bytes);
        files.push(small_pcapng(order).bytes);
        files.push(gzip(&small_pcapng(order).bytes));
    }
    for case in 0..20_000 {
        let mut bytes = files[random.below(files.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, random.next() as u8),
                _ => bytes[at] ^= 1 << random.below(8),
            }
        }
        let (got, error) = read(&bytes);
        // A record takes at least 16 bytes, so the number of frames is limited.
        assert!(got.len() <= 64, "case {case}");
        if let Some(error) = error {
            let text = error.to_string();
            assert!(text.starts_with("failed to read x: "), "case {case}");
            assert!(!text.contains('\n'), "case {case}");
        }
    }
}
