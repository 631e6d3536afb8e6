//! The verdict on each frame, and every field of each event.

use std::collections::BTreeSet;

use super::crafted;
use crate::oracle::capture;
use crate::oracle::frames::{Ipv4, Ipv6, Random, Segment, frame_for_link, on_link};
use crate::oracle::parity::{
    self, COUNT_XDP, CaptureFile, Ending, MONITOR, PROGRAMS, check_frames, check_records, event,
    hex, payload, seed, times,
};
use crate::oracle::pcap_write::{Order, PcapNg};
use crate::oracle::{Link, judge};

/// Frames of every link type.
fn on_all_links<I: IntoIterator<Item = Vec<u8>>>(
    frames: impl Fn(Link) -> I,
) -> Vec<(Link, Vec<u8>)> {
    let of_link = |link| frames(link).into_iter().map(move |frame| (link, frame));
    Link::ALL.into_iter().flat_map(of_link).collect()
}

#[test]
fn every_crafted_frame_is_judged_as_by_the_oracle_on_every_link_type() {
    check_frames("crafted", &on_all_links(crafted::frames));
}

#[test]
fn every_cut_of_every_crafted_frame_is_judged_as_by_the_oracle() {
    let cuts = on_all_links(|link| {
        let frames = crafted::frames(link).into_iter();
        let cut = |frame: Vec<u8>| (0..frame.len()).map(move |length| frame[..length].to_vec());
        // Most cuts of two frames are equal, because the frames differ only after them.
        frames.flat_map(cut).collect::<BTreeSet<_>>()
    });
    check_frames("cut", &cuts);
}

#[test]
fn all_256_flag_bytes_are_distinguished_and_64_of_them_are_syns() {
    let segments = (0..=255).map(|flags| Segment {
        flags,
        ..Segment::default()
    });
    let frames: Vec<_> = segments
        .flat_map(|segment| [Ipv4::default().tcp(&segment), Ipv6::default().tcp(&segment)])
        .map(|packet| (Link::Ethernet, on_link(Link::Ethernet, &[], &packet)))
        .collect();
    check_frames("flags", &frames);
    let output = CaptureFile::of_links(&frames).replay(COUNT_XDP, &[]);
    assert_eq!(output.summary()["syn_total"], 128);
}

#[test]
fn random_frames_are_judged_as_by_the_oracle() {
    let seed = seed("random_frames_are_judged_as_by_the_oracle");
    let frames = on_all_links(|link| {
        let count = if link == Link::Ethernet { 8000 } else { 1500 };
        let seeds = (0..times(count, 1000) as u64).map(|number| seed.wrapping_add(number));
        seeds.map(move |seed| frame_for_link(link, seed))
    });
    check_frames(&format!("seed {seed}"), &frames);
}

#[test]
fn mutated_frames_are_judged_as_by_the_oracle() {
    let seed = seed("mutated_frames_are_judged_as_by_the_oracle");
    let frames = on_all_links(|link| {
        let mut random = Random::new(seed);
        let originals = crafted::frames(link);
        let count = if link == Link::Ethernet { 8000 } else { 1500 };
        let frames = (0..times(count, 1000)).map(move |_| mutate(&mut random, &originals));
        frames.collect::<Vec<_>>()
    });
    check_frames(&format!("seed {seed}"), &frames);
}

/// Takes one of the frames and spoils some bytes, its length, or its end.
fn mutate(random: &mut Random, originals: &[Vec<u8>]) -> Vec<u8> {
    let mut frame = originals[random.below(originals.len())].clone();
    for _ in 0..=random.below(3) {
        let at = random.below(frame.len().max(1));
        match random.below(8) {
            0..3 => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
            3 | 4 => {
                if let Some(byte) = frame.get_mut(at) {
                    *byte = random.pick(&[0, 1, 4, 5, 6, 43, 44, 51, 60, 0x60, 0x45, 0x81, 0xff]);
                }
            }
            5 => frame.truncate(at),
            6 => {
                let count = random.below(40);
                frame.extend(random.bytes(count));
            }
            _ => {
                // The beginning of one and the rest of another.
                let other = &originals[random.below(originals.len())];
                frame.truncate(at);
                frame.extend(other.get(at..).unwrap_or_default());
            }
        }
    }
    frame
}

#[test]
fn frames_longer_than_a_test_run_takes_are_judged_to_their_end() {
    let mut frames = Vec::new();
    for (frame, tcp_at) in crafted::long_frames() {
        // Cuts around everything that may end there, and around what a test run takes.
        for at in [14, 54, 2048, 3520, 4096, tcp_at, frame.len()] {
            for length in (at.saturating_sub(9)..=at + 1).chain([at + 20, at + 40]) {
                frames.push(frame[..length.min(frame.len())].to_vec());
            }
        }
    }
    let frames: BTreeSet<_> = frames.into_iter().collect();
    let long: Vec<_> = frames
        .into_iter()
        .map(|frame| (Link::Ethernet, frame))
        .collect();
    check_frames("long", &long);
    // What a long frame leaves behind must not be taken for the end of a short one.
    let short = on_all_links(crafted::frames);
    let mixed: Vec<_> = long.into_iter().zip(short).map(|(a, b)| [a, b]).collect();
    check_frames("mixed", &mixed.concat());
}

#[test]
fn interfaces_of_one_file_differ_in_link_type_and_clock() {
    let seed = seed("interfaces_of_one_file_differ_in_link_type_and_clock");
    let mut random = Random::new(seed);
    for order in [Order::Little, Order::Big] {
        let mut file = PcapNg::new(Vec::new(), order).unwrap();
        let mut second = 0;
        for section in 0..3 {
            file.section(order).unwrap();
            let resolutions = [None, Some(3), Some(9), Some(0x80 | 20)];
            let ticks = [1_000_000, 1000, 1_000_000_000, 1 << 20];
            for number in 0..8 {
                let link = Link::ALL[(number + section) % 8];
                let resolution = resolutions[number % 4];
                file.interface(link.to_type(), 0, resolution).unwrap();
            }
            for _ in 0..600 {
                let number = random.below(8);
                let frame = frame_for_link(Link::ALL[(number + section) % 8], random.next());
                let length = u32::try_from(frame.len()).unwrap();
                second += 1;
                let at = second * ticks[number % 4];
                if random.percent(70) {
                    let number = u32::try_from(number).unwrap();
                    file.enhanced(number, at, &frame, length).unwrap();
                } else {
                    let number = u16::try_from(number).unwrap();
                    file.old(number, at, &frame, length + 7).unwrap();
                }
            }
        }
        let bytes = file.finish();
        let capture = capture::read(&bytes);
        assert_eq!(capture.end, Ok(()));
        let file = CaptureFile::new(&bytes);
        let records = &capture.records;
        check_records(
            &format!("seed {seed}"),
            &file.path,
            records,
            records.len(),
            Ending::EndOfFile,
        );
    }
}

#[test]
fn a_frame_without_a_time_has_the_time_of_the_previous_frame() {
    let frame = on_link(
        Link::Ethernet,
        &[],
        &Ipv4::default().tcp(&Segment::default()),
    );
    let length = u32::try_from(frame.len()).unwrap();
    let mut file = PcapNg::new(Vec::new(), Order::Little).unwrap();
    file.interface(1, 0, None).unwrap();
    file.simple(&frame, length).unwrap();
    file.enhanced(0, 7_000_000, &frame, length).unwrap();
    file.simple(&frame, length).unwrap();
    let output = CaptureFile::new(&file.finish()).replay(MONITOR, &[]);
    let times: Vec<_> = output.events("packet");
    let times: Vec<_> = times.iter().map(|event| event["ts"].clone()).collect();
    assert_eq!(
        times,
        [0, 7_000_000_000, 7_000_000_000].map(parity::rfc3339)
    );
}

#[test]
fn the_payload_is_shown_up_to_the_requested_length() {
    let lengths = [0, 1, 15, 16, 17, 255, 256, 257, 1990, 2000, 5000, 60_000];
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for length in lengths {
        let segment = Segment {
            payload: (0..length).map(|at: u32| (at % 253) as u8).collect(),
            ..Segment::default()
        };
        let ip = Ipv4 {
            // Padding after the packet is not payload.
            total_length: (length == 17).then_some(40 + 9),
            ..Ipv4::default()
        };
        frames.push(on_link(Link::Ethernet, &[], &ip.tcp(&segment)));
        frames.push(on_link(Link::Ethernet, &[], &Ipv6::default().tcp(&segment)));
    }
    frames.extend(crafted::long_frames().into_iter().map(|(frame, _)| frame));
    frames.extend(crafted::frames(Link::Ethernet));
    let file = CaptureFile::of(Link::Ethernet, &frames);
    for (options, count) in [
        (&["-x"][..], 16),
        (&["--payload-bytes", "1"], 1),
        (&["-x", "--payload-bytes", "255"], 255),
        (&["--payload-bytes", "256"], 256),
        (&["--payload-bytes", "256", "--buffer", "perf"], 256),
    ] {
        let output = file.replay(MONITOR, &[options, &["--flags", "any"]].concat());
        let found = output.events("packet");
        let judgements = frames.iter().map(|frame| judge(frame, Link::Ethernet));
        let packets = frames.iter().zip(judgements).zip(1..);
        let wanted = packets.filter_map(|((frame, judgement), second)| {
            let tcp = judgement.packet?;
            let payload = payload(frame, &tcp);
            let mut event = event(&tcp, second * 1_000_000_000);
            event["payload"] = hex(&payload[..payload.len().min(count)]).into();
            Some(event)
        });
        let wanted: Vec<_> = wanted.collect();
        assert_eq!(found.len(), wanted.len());
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(found, wanted, "{options:?}");
        }
    }
    // None at all is asked for: then there is nothing to show.
    let output = file.replay(MONITOR, &["--payload-bytes", "0"]);
    assert!(
        output
            .events("packet")
            .iter()
            .all(|it| it["payload"].is_null())
    );
}

#[test]
fn a_replay_ends_after_count_lines() {
    let frame = on_link(
        Link::Ethernet,
        &[],
        &Ipv4::default().tcp(&Segment::default()),
    );
    let file = CaptureFile::of(Link::Ethernet, &vec![frame; 5000]);
    for count in [1, 7, 4999, 5001] {
        let lines = usize::min(count, 5000);
        let reason = if count > 5000 { "end_of_file" } else { "count" };
        for (program, event) in
            PROGRAMS
                .into_iter()
                .zip(["syn_count", "syn_count", "syn_count", "packet"])
        {
            // Each frame has an interval of its own.
            let interval: &[&str] = if program == MONITOR {
                &[]
            } else {
                &["-I", "1"]
            };
            let count = count.to_string();
            let output = file.replay(program, &[interval, &["-c", &count]].concat());
            assert_eq!(output.code(), 0);
            assert_eq!(output.events(event).len(), lines, "{program:?} {count}");
            let summary = output.summary();
            assert_eq!(summary["exit_reason"], reason, "{program:?} {count}");
            assert_eq!(summary["lost"], 0, "{summary}");
            assert_eq!(summary["emitted"], lines, "{program:?}: {summary}");
        }
    }
}

#[test]
fn tc_and_xdp_print_the_same_text() {
    let frames = crafted::frames(Link::Ethernet);
    let file = CaptureFile::of(Link::Ethernet, &frames);
    let xdp = file.replay(&["syn-count"], &["--mode", "generic"]);
    let tc = file.replay(&["syn-count"], &["--mode", "tc"]);
    assert_eq!(xdp.stdout, tc.stdout);
    assert!(xdp.stdout.len() > 10);
}
