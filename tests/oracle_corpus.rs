//! Runs the oracle alone over everything that it will judge the product by: it must not panic on
//! any capture or random frame, and give each verdict about as often as it always has.

use std::collections::BTreeMap;

use crate::common::skip;
use crate::oracle::{Link, Verdict, capture, corpus, frames, judge};

/// Frames by verdict.
type Totals = BTreeMap<Verdict, u64>;

fn line(totals: &Totals) -> String {
    let count = |verdict| totals.get(&verdict).copied().unwrap_or(0);
    Verdict::ALL
        .map(|verdict| format!("{}={}", verdict.name(), count(verdict)))
        .join(" ")
}

/// A package, and the least numbers of its SYNs and of its frames by verdict.
type Least = (&'static str, u64, &'static [(Verdict, u64)]);

/// Each version of a package has a few captures more or less.
const LEAST: [Least; 2] = [
    (
        "tcpdump",
        60,
        &[
            (Verdict::Tcp, 1300),
            (Verdict::NotIp, 3400),
            (Verdict::NotTcp, 2800),
            (Verdict::Truncated, 40),
            (Verdict::Malformed, 8),
        ],
    ),
    (
        "tcpflow",
        50,
        &[
            (Verdict::Tcp, 1200),
            (Verdict::NotTcp, 100),
            (Verdict::Fragment, 15),
            (Verdict::Truncated, 280),
        ],
    ),
];

#[test]
fn the_corpus_has_frames_of_most_verdicts() {
    assert_eq!(LEAST.map(|(package, ..)| package), corpus::PACKAGES);
    for (package, least_syns, least) in LEAST {
        let files = match corpus::captures_of(package) {
            Ok(files) => files,
            Err(err) => {
                let test = "the_corpus_has_frames_of_most_verdicts";
                skip(test, &format!("{package}: {err}"));
                continue;
            }
        };
        assert!(!files.is_empty(), "no capture in {package}");
        let mut by_link: BTreeMap<Link, Totals> = BTreeMap::new();
        let mut unsupported: BTreeMap<u32, u64> = BTreeMap::new();
        let mut broken = 0;
        let mut syns = 0;
        for path in &files {
            let bytes = std::fs::read(path).unwrap();
            let capture = capture::read(&bytes);
            if let Err(err) = &capture.end {
                broken += 1;
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                eprintln!("{name}: {} records, then {err}", capture.records.len());
            }
            let mut foreign = Vec::new();
            for record in &capture.records {
                let Some(link) = Link::from_type(record.link_type) else {
                    foreign.push(record.link_type);
                    continue;
                };
                let judgement = judge(record.bytes, link);
                let totals = by_link.entry(link).or_default();
                *totals.entry(judgement.verdict).or_default() += 1;
                syns += u64::from(judgement.is_syn());
            }
            foreign.sort_unstable();
            foreign.dedup();
            for link_type in foreign {
                *unsupported.entry(link_type).or_default() += 1;
            }
        }
        eprintln!(
            "{package}: {} files, {broken} broken, {syns} SYNs",
            files.len()
        );
        for (link, totals) in &by_link {
            eprintln!("{package}: {link:?}: {}", line(totals));
        }
        eprintln!("{package}: files by unsupported link type: {unsupported:?}");
        assert!(syns >= least_syns, "{package}: {syns} SYNs");
        for &(verdict, least) in least {
            let counts = by_link.values().filter_map(|totals| totals.get(&verdict));
            let count = counts.sum::<u64>();
            assert!(count >= least, "{package}: {} {count}", verdict.name());
        }
    }
}

#[test]
fn every_verdict_arises_often_among_random_frames() {
    let mut totals = Totals::new();
    for seed in 0..100_000 {
        let verdict = judge(&frames::frame_for(seed), Link::Ethernet).verdict;
        *totals.entry(verdict).or_default() += 1;
    }
    eprintln!("random: {}", line(&totals));
    for verdict in Verdict::ALL {
        let count = totals.get(&verdict).copied().unwrap_or(0);
        assert!(count >= 2000, "{} arose {count} times", verdict.name());
    }
}

#[test]
fn random_frames_of_the_other_link_types_get_every_verdict_that_applies() {
    for link in Link::ALL {
        let mut totals = Totals::new();
        for seed in 0..20_000 {
            let verdict = judge(&frames::frame_for_link(link, seed), link).verdict;
            *totals.entry(verdict).or_default() += 1;
        }
        eprintln!("random {link:?}: {}", line(&totals));
        for verdict in Verdict::ALL {
            // These two link types carry only IP. Frames of the IPv4 one have neither VLAN tags nor
            // extension headers, of which there could be too many.
            let impossible = match verdict {
                Verdict::NotIp => matches!(link, Link::Ipv4Only | Link::Ipv6Only),
                Verdict::TooDeep => link == Link::Ipv4Only,
                _ => false,
            };
            let count = totals.get(&verdict).copied().unwrap_or(0);
            assert_eq!(
                count == 0,
                impossible,
                "{link:?} {}: {count}",
                verdict.name()
            );
        }
    }
}
