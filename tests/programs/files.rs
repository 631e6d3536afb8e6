//! Files that are broken, odd, or no captures at all.

use std::io::Write as _;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;

use super::crafted;
use crate::common::Output;
use crate::oracle::Link;
use crate::oracle::frames::{Ipv4, Segment, on_link};
use crate::oracle::parity::{
    CaptureFile, LONGEST_FRAME, MONITOR, PROGRAMS, check_complaint, check_refused, for_each, replay,
};
use crate::oracle::pcap_write::{Frame, Order, Pcap, PcapNg, Unit, pcap};

fn syn() -> Vec<u8> {
    on_link(
        Link::Ethernet,
        &[],
        &Ipv4::default().tcp(&Segment::default()),
    )
}

/// A pcap file of three SYNs, and where its records begin.
fn three_syns() -> (Vec<u8>, [usize; 3]) {
    let frame = syn();
    let record = 16 + frame.len();
    let file = pcap(1, &vec![frame; 3]);
    (file, [24, 24 + record, 24 + 2 * record])
}

fn with_u32(mut file: Vec<u8>, at: usize, value: u32) -> Vec<u8> {
    file[at..at + 4].copy_from_slice(&value.to_le_bytes());
    file
}

/// A pcapng file that begins with a SYN.
fn pcapng(fill: impl FnOnce(&mut PcapNg<Vec<u8>>)) -> Vec<u8> {
    let mut file = PcapNg::new(Vec::new(), Order::Little).unwrap();
    file.interface(1, 0, None).unwrap();
    file.enhanced(0, 1, &syn(), 54).unwrap();
    fill(&mut file);
    file.finish()
}

/// A pcapng file that begins with a SYN and ends with a block of 20 bytes that claims `length`.
fn pcapng_with_block(kind: u32, length: u32) -> Vec<u8> {
    let mut file = pcapng(|_| {});
    for value in [kind, length, 0, 0, length] {
        file.extend(value.to_le_bytes());
    }
    file
}

/// A pcapng file that begins with a SYN and ends with an empty packet that claims a length.
fn pcapng_with_captured(length: u32) -> Vec<u8> {
    let mut body = Vec::new();
    for value in [0, 0, 0, length, length] {
        body.extend(u32::to_le_bytes(value));
    }
    pcapng(|file| file.block(6, &body).unwrap())
}

/// A broken file: a description, its bytes, the SYNs before the broken place, and the expected
/// error.
type Broken = (&'static str, Vec<u8>, u64, &'static str);

fn broken_pcap() -> Vec<Broken> {
    let (good, at) = three_syns();
    let length = |value| with_u32(good.clone(), at[2] + 8, value);
    let cut = |length: usize| good[..length].to_vec();
    vec![
        ("file header", cut(10), 0, "header at byte 0: cut short"),
        (
            "version",
            with_u32(good.clone(), 4, 9),
            0,
            "header at byte 0: pcap version 9.0",
        ),
        (
            "first record",
            cut(at[0] + 9),
            0,
            "record at byte 24: cut short",
        ),
        (
            "record header",
            cut(at[1] + 15),
            1,
            "record at byte 94: cut short",
        ),
        ("frame", cut(at[2] + 40), 2, "record at byte 164: cut short"),
        ("length", length(u32::MAX), 2, "over the limit of 262144"),
        (
            "negative length",
            length(1 << 31),
            2,
            "over the limit of 262144",
        ),
        (
            "length over the limit",
            length(262_145),
            2,
            "over the limit of 262144",
        ),
    ]
}

fn broken_pcapng() -> Vec<Broken> {
    let whole = pcapng_with_block(77, 20);
    let last = whole.len() - 4;
    vec![
        (
            "block header",
            whole[..whole.len() - 13].to_vec(),
            1,
            "cut short",
        ),
        ("block", whole[..last].to_vec(), 1, "cut short"),
        (
            "two lengths",
            with_u32(whole, last, 24),
            1,
            "block length is 20 at its start",
        ),
        ("short block", pcapng_with_block(6, 4), 1, "block length 4"),
        ("odd block", pcapng_with_block(6, 33), 1, "block length 33"),
        (
            "endless packet",
            pcapng_with_block(6, 0xffff_fffc),
            1,
            "over the limit",
        ),
        (
            "endless block",
            pcapng_with_block(77, 0xffff_fffc),
            1,
            "cut short",
        ),
        (
            "captured length",
            pcapng_with_captured(1),
            1,
            "captured length 1",
        ),
        (
            "absurd length",
            pcapng_with_captured(u32::MAX),
            1,
            "over the limit of 262144",
        ),
        (
            "interface",
            pcapng(|file| file.enhanced(1, 0, &syn(), 54).unwrap()),
            1,
            "interface 1 is not described",
        ),
        (
            "link type",
            pcapng(|file| {
                file.interface(105, 0, None).unwrap();
                file.enhanced(1, 0, &syn(), 54).unwrap();
            }),
            1,
            "link type 105 (IEEE 802.11) is not supported",
        ),
    ]
}

#[test]
fn a_broken_file_is_reported_with_its_place_after_what_was_read_before() {
    let cases = [broken_pcap(), broken_pcapng()].concat();
    for_each(&cases, |(what, bytes, syns, why)| {
        let file = CaptureFile::new(bytes);
        let nothing_read = why.contains("header at byte 0");
        for program in PROGRAMS {
            let output = file.replay(program, &[]);
            assert_eq!(output.code(), 1, "{what}: {output:?}");
            check_complaint(&output, &file.path, why);
            check_complaint(&output, &file.path, " at byte ");
            if nothing_read {
                assert!(output.stdout.is_empty(), "{what}: {output:?}");
                continue;
            }
            let summary = output.summary();
            for key in ["matched", "emitted", "packets"] {
                assert_eq!(summary[key], *syns, "{what}: {summary}");
            }
            assert_eq!(summary["exit_reason"], "error", "{what}: {summary}");
            let (event, lines) = match program == MONITOR {
                true => ("packet", *syns),
                false => ("syn_count", u64::from(*syns > 0)),
            };
            assert_eq!(output.events(event).len() as u64, lines, "{what}");
        }
        // In text the summary comes before the error.
        let output = file.replay(&["syn-count"], &[]);
        let said: Vec<&str> = output.stderr.iter().map(String::as_str).collect();
        match said.as_slice() {
            [summary, error] => {
                assert!(
                    summary.starts_with("summary: syn-count"),
                    "{what}: {summary}"
                );
                assert!(
                    summary.contains(&format!(": {syns} SYNs")),
                    "{what}: {summary}"
                );
                assert!(error.starts_with("tcpinspect: "), "{what}: {error}");
            }
            _ => assert!(nothing_read && said.len() == 1, "{what}: {said:?}"),
        }
    });
}

#[test]
fn a_file_that_is_not_a_capture_is_a_usage_error() {
    let directory = tempfile::tempdir().unwrap();
    check_refused(directory.path(), "is a directory");
    check_refused(&directory.path().join("none"), "No such file");
    check_refused(Path::new("/dev/null"), "the file is empty");
    let (good, _) = three_syns();
    let radiotap = "link type 127 (IEEE 802.11 with radiotap header) is not supported";
    for (bytes, why) in [
        (Vec::new(), "the file is empty"),
        (b"\xd4\xc3".to_vec(), "not a pcap or pcapng file"),
        (b"#!/bin/sh\n".to_vec(), "not a pcap or pcapng file"),
        (vec![0; 4096], "not a pcap or pcapng file"),
        (with_u32(good.clone(), 20, 127), radiotap),
        (
            with_u32(good, 20, 0xffff),
            "link type 65535 is not supported",
        ),
    ] {
        check_refused(&CaptureFile::new(&bytes).path, why);
    }
    // A name can't write to the terminal.
    let path = directory.path().join("x\u{1b}[31m\ny");
    let (error, _) = replay(&path, MONITOR, &[]).complaint();
    assert!(error.contains(r"x\u{1b}[31m\ny"), "{error}");
}

#[test]
fn a_file_compressed_with_gzip_is_read_like_any_other() {
    let frames = crafted::frames(Link::Ethernet);
    let plain = pcap(1, &frames);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&plain).unwrap();
    let compressed = gzip.finish().unwrap();
    let plain = CaptureFile::new(&plain);
    for program in PROGRAMS {
        let wanted = plain.replay(program, &[]);
        let found = CaptureFile::new(&compressed).replay(program, &[]);
        let without_summary = |output: &Output| output.stdout[..output.stdout.len() - 1].to_vec();
        assert_eq!(without_summary(&found), without_summary(&wanted));
        assert_eq!(found.summary()["verdicts"], wanted.summary()["verdicts"]);
    }
    let cut = CaptureFile::new(&compressed[..compressed.len() / 2]);
    let output = cut.replay(MONITOR, &[]);
    assert_eq!(output.code(), 1);
    check_complaint(&output, &cut.path, "the gzip data ends early");
    assert!(output.summary()["packets"].as_u64() > Some(0));
}

#[test]
fn a_frame_of_the_greatest_length_is_read_and_a_longer_one_refused() {
    let mut frame = syn();
    frame.resize(LONGEST_FRAME + 1, 0);
    let mut file = Pcap::new(Vec::new(), Order::Big, Unit::Microseconds, 1).unwrap();
    file.frame(Frame::whole(0, &frame[..LONGEST_FRAME]))
        .unwrap();
    file.frame(Frame::whole(0, &frame)).unwrap();
    let file = CaptureFile::new(&file.finish());
    for program in PROGRAMS {
        let output = file.replay(program, &[]);
        assert_eq!(output.code(), 1);
        let why = "captured length 262145 is over the limit of 262144";
        check_complaint(&output, &file.path, why);
        assert_eq!(output.summary()["matched"], 1);
    }
}

#[test]
fn invalid_filters_are_refused_before_anything_is_read() {
    for options in [
        &["--payload", "0:000102030405060708090a0b0c0d0e0f10"][..],
        &["--payload", "0:\"seventeen letters\""],
        &["--payload", "0"],
        &["--flags", "syn,!syn"],
        &["--flags", "!ack,ack"],
        &["--src", "10.0.0.0/33"],
        &["-p", "70000"],
        &["-4", "-6"],
    ] {
        for program in PROGRAMS {
            let output = replay(Path::new("/nonexistent"), program, options);
            assert_eq!(output.code(), 2, "{options:?}: {output:?}");
            let (error, _) = output.complaint();
            assert!(!error.contains("nonexistent"), "{options:?}: {error}");
            assert!(output.stdout.is_empty(), "{options:?}");
        }
    }
}
