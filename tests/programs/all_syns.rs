//! The programs that count all SYNs ignore the settings, among them the one for frames of a file.
//! So they are run on frames directly, as if these had been received.

use std::mem::MaybeUninit;

use libbpf_rs::ProgramInput;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use tcpinspect::skel::PacketSkel;
use tcpinspect::skel::syn_count::SynCountSkelBuilder;

use crate::common::bpf::leave_out;
use crate::oracle::frames::frame_for;
use crate::oracle::parity::{seed, times};
use crate::oracle::{Link, Verdict, judge};

/// Lengths of frames that a test run takes on all kernels without padding: see src/run/replay.rs.
const LENGTHS: std::ops::Range<usize> = 64..2049;

#[test]
fn the_programs_that_count_all_syns_judge_as_the_oracle_does() {
    let mut storage = MaybeUninit::uninit();
    let mut open = SynCountSkelBuilder::default().open(&mut storage).unwrap();
    leave_out(open.open_object_mut(), &["count_sets", "source_sketches"]);
    let progs = &mut open.progs;
    // Not every kernel has multi-buffer XDP; here each frame fits into one buffer.
    for program in [
        &mut progs.syn_count_all_xdp_frags,
        &mut progs.syn_count_xdp_frags,
        &mut progs.syn_count_xdp,
        &mut progs.syn_count_tc,
    ] {
        program.set_autoload(false);
    }
    let skel = open.load().unwrap();
    let cpus = libbpf_rs::num_possible_cpus().unwrap();
    let counters = || skel.counters(cpus);

    let first = seed("the_programs_that_count_all_syns_judge_as_the_oracle_does");
    let mut seen = [0; Verdict::ALL.len()];
    for seed in (0..times(30_000, 1_000)).map(|step| first.wrapping_add(step as u64)) {
        let frame = frame_for(seed);
        if !LENGTHS.contains(&frame.len()) {
            continue;
        }
        let judgement = judge(&frame, Link::Ethernet);
        seen[judgement.verdict as usize] += 1;
        for (name, program) in [
            ("xdp", &skel.progs.syn_count_all_xdp),
            ("tc", &skel.progs.syn_count_all_tc),
        ] {
            let before = counters();
            let input = ProgramInput {
                data_in: Some(&frame),
                ..ProgramInput::default()
            };
            if let Err(error) = program.test_run(input) {
                // Newer kernels refuse a TC frame whose EtherType is that of IP if its IP header is cut.
                assert_eq!(judgement.verdict, Verdict::Truncated, "{name}: {error}");
                continue;
            }
            let after = counters();
            let mut expected = before;
            expected.verdicts[judgement.verdict as usize] += 1;
            expected.matched += u64::from(judgement.is_syn());
            assert_eq!(
                (after.verdicts, after.matched),
                (expected.verdicts, expected.matched),
                "{name}, seed {seed}: {frame:02x?} is {judgement:?}"
            );
        }
    }
    // A frame of 64 bytes is seldom cut within its headers.
    for verdict in Verdict::ALL {
        let enough = seen[verdict as usize] > 0;
        assert!(enough, "no frame was {}: {seen:?}", verdict.name());
    }
}
