//! Counts per interval of a file's own time, per key, alerts, and how many events pass a second.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value;

use crate::common::Output;
use crate::oracle::frames::{Random, Segment, on_link, tcp_between};
use crate::oracle::parity::{COUNT, COUNT_XDP, CaptureFile, MONITOR, MONITOR_PERF, rfc3339, seed};
use crate::oracle::{Link, judge, pcap_write};

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

/// A SYN from an address to a port of another one, which is of the same version.
fn syn(source: IpAddr, destination: IpAddr, dport: u16) -> Vec<u8> {
    let segment = Segment {
        dport,
        ..Segment::default()
    };
    let packet = tcp_between(source, destination, &segment);
    on_link(Link::Ethernet, &[], &packet)
}

fn syn_from(source: &str) -> Vec<u8> {
    let source: IpAddr = source.parse().unwrap();
    let destination = if source.is_ipv4() {
        "10.9.9.9"
    } else {
        "fd00::9"
    };
    syn(source, destination.parse().unwrap(), 80)
}

/// A file of frames with times in ns.
fn timed(frames: &[(u64, Vec<u8>)]) -> CaptureFile {
    let frames = frames.iter().map(|(ts_ns, bytes)| (*ts_ns, bytes));
    CaptureFile::new(&pcap_write::timed(1, frames))
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

#[test]
fn intervals_are_those_of_the_files_own_time() {
    let from = 1_700_000_000 * SECOND + 123_456_789;
    let at = |ms: u64| (from + ms * MS, syn_from("10.0.0.1"));
    // Two intervals of a second, three empty ones, one with a frame at its start, and a last one
    // that the end of the file cuts short. A frame with an earlier time belongs to the current interval.
    let frames = [
        at(0),
        at(999),
        at(1000),
        at(1999),
        at(1500),
        at(5000),
        at(5001),
        at(4000),
        at(6250),
        at(6500),
    ];
    let file = timed(&frames);
    for program in [COUNT, COUNT_XDP] {
        let output = file.replay(program, &["-I", "1"]);
        let lines: Vec<_> = output
            .events("syn_count")
            .iter()
            .map(|line| {
                let ts = line["ts"].as_str().unwrap().to_owned();
                let numbers = ["syn_total", "syn_delta"].map(|key| number(&line[key]));
                (
                    ts,
                    numbers,
                    line["interval_s"].as_f64(),
                    line["syn_rate"].as_f64(),
                )
            })
            .collect();
        let end = |ms: u64| rfc3339(i128::from(from + ms * MS));
        let wanted = [
            (end(1000), [2, 2], Some(1.0), Some(2.0)),
            (end(2000), [5, 3], Some(1.0), Some(3.0)),
            (end(6000), [8, 3], Some(1.0), Some(3.0)),
            (end(6500), [10, 2], Some(0.5), Some(4.0)),
        ];
        assert_eq!(lines, wanted, "{program:?}");
    }
    // All of it is one interval, which the end of the file cuts short.
    let output = file.replay(COUNT, &["-I", "3600"]);
    let lines = output.events("syn_count");
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["interval_s"], 6.5);
    // A file in which no time passes has the rate of a whole interval.
    let output = timed(&[at(0), at(0)]).replay(COUNT, &["-I", "4"]);
    assert_eq!(output.events("syn_count")[0]["syn_rate"], 0.5);
    // One without frames has nothing to report.
    let output = timed(&[]).replay(COUNT, &[]);
    assert_eq!(output.code(), 0);
    assert_eq!(output.stdout.len(), 1, "{output:?}");
    assert_eq!(output.summary()["packets"], 0);
}

/// The counts that `--by` must print at the end of each interval of a second.
fn expected_counts(
    frames: &[(u64, Vec<u8>)],
    key: impl Fn(&[u8]) -> String,
) -> Vec<BTreeMap<String, (u64, u64)>> {
    let mut intervals = Vec::new();
    let mut totals: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut current = 0;
    for (ts_ns, frame) in frames {
        let interval = (ts_ns - frames[0].0) / SECOND;
        if interval != current {
            intervals.push(totals.clone());
            totals.values_mut().for_each(|count| count.1 = 0);
            current = interval;
        }
        let count = totals.entry(key(frame)).or_default();
        *count = (count.0 + 1, count.1 + 1);
    }
    intervals.push(totals);
    intervals
}

#[test]
fn counts_per_key_are_those_of_a_plain_table() {
    let seed = seed("counts_per_key_are_those_of_a_plain_table");
    let mut random = Random::new(seed);
    let addresses: Vec<IpAddr> = (1..=150_u16)
        .map(|host| match host % 3 {
            0 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, host]),
            _ => IpAddr::from([10, 0, 0, (host % 256) as u8]),
        })
        .collect();
    let mut frames: Vec<(u64, Vec<u8>)> = Vec::new();
    for number in 0..4000_u64 {
        // A few addresses send most SYNs, because the lowest of three random numbers is taken.
        let any = |random: &mut Random| addresses[(0..3).map(|_| random.below(150)).min().unwrap()];
        let source = any(&mut random);
        let destination = loop {
            let destination = any(&mut random);
            if destination.is_ipv4() == source.is_ipv4() {
                break destination;
            }
        };
        let dport = random.pick(&[22, 80, 443, 0, 65535, 0x1234]);
        frames.push((SECOND + number * MS, syn(source, destination, dport)));
    }
    let file = timed(&frames);
    type KeyOf = fn(&[u8]) -> String;
    let keys: [(&str, KeyOf); 3] = [
        ("saddr", |frame| tcp(frame).saddr.to_string()),
        ("daddr", |frame| tcp(frame).daddr.to_string()),
        ("dport", |frame| tcp(frame).dport.to_string()),
    ];
    for (by, key) in keys {
        let expected = expected_counts(&frames, key);
        for program in [COUNT, COUNT_XDP] {
            for top in [3, 1000] {
                let top_text = top.to_string();
                let output = file.replay(program, &["-I", "1", "--by", by, "--top", &top_text]);
                let lines = output.events("syn_count");
                assert_eq!(lines.len(), expected.len());
                for (line, expected) in lines.iter().zip(&expected) {
                    check_top(line, by, top, expected);
                }
            }
        }
    }
}

fn tcp(frame: &[u8]) -> crate::oracle::Tcp {
    judge(frame, Link::Ethernet).packet.unwrap()
}

fn check_top(line: &Value, by: &str, top: usize, expected: &BTreeMap<String, (u64, u64)>) {
    assert_eq!(line["by"], by);
    assert_eq!(line["untracked"], 0);
    let seconds = line["interval_s"].as_f64().unwrap();
    let found: Vec<_> = line["top"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            let key = match &entry["key"] {
                Value::String(address) if by != "dport" => address.clone(),
                Value::Number(port) if by == "dport" => port.to_string(),
                other => panic!("{by}: {other}"),
            };
            let (total, delta) = (number(&entry["syn_total"]), number(&entry["syn_delta"]));
            let rate = entry["syn_rate"].as_f64().unwrap();
            assert!((rate - delta as f64 / seconds).abs() < 0.001, "{entry}");
            (key, (total, delta))
        })
        .collect();
    // Keys without SYNs in the interval are not printed.
    let busy = expected.values().filter(|(_, delta)| *delta > 0).count();
    assert_eq!(found.len(), top.min(busy));
    for (key, counts) in &found {
        assert_eq!(expected.get(key), Some(counts), "{by} {key}");
    }
    // The busiest of this interval come first, and no key that is left out is busier than the last one.
    let rank = |(total, delta): (u64, u64)| (delta, total);
    assert!(found.windows(2).all(|it| rank(it[0].1) >= rank(it[1].1)));
    let last = found.last().map_or((0, 0), |it| rank(it.1));
    let busier = expected.values().filter(|counts| rank(**counts) > last);
    assert!(busier.count() <= found.len());
}

/// A SYN from one of very many sources.
fn spoofed(number: u32) -> Vec<u8> {
    let source = IpAddr::from(u32::to_be_bytes(0x0a00_0000 + number));
    syn(source, [192, 0, 2, 1].into(), 80)
}

#[test]
fn keys_that_are_not_in_the_tables_are_counted_as_untracked() {
    let mut frames = Vec::new();
    for number in 0..200_000 {
        frames.push((SECOND, spoofed(number)));
    }
    // The busiest is found however late it comes.
    for _ in 0..300 {
        frames.push((SECOND + 1, syn_from("198.51.100.7")));
    }
    let file = timed(&frames);
    for program in [COUNT, COUNT_XDP] {
        let output = file.replay(program, &["--by", "saddr", "--top", "1000000"]);
        let lines = output.events("syn_count");
        let line = lines.last().unwrap();
        assert_eq!(line["syn_total"], 200_300);
        let top = line["top"].as_array().unwrap();
        assert_eq!(top[0]["key"], "198.51.100.7", "{}", top[0]);
        assert_eq!(top[0]["syn_total"], 300, "{}", top[0]);
        let tracked: u64 = top.iter().map(|entry| number(&entry["syn_total"])).sum();
        let untracked = number(&line["untracked"]);
        assert_eq!(tracked + untracked, 200_300, "{program:?}");
        assert!(untracked > 50_000 && top.len() > 4_000, "{}", top.len());
        let sources = number(&line["sources"]) as f64;
        assert!((sources / 200_001.0 - 1.0).abs() < 0.065, "{sources}");
        let summary = output.summary();
        assert_eq!(summary["syn_total"], 200_300);
        assert_eq!(summary["untracked"], untracked);
        let said = output
            .stderr
            .iter()
            .any(|line| line.starts_with("notice: more keys"));
        assert!(said, "{:?}", output.stderr);
    }
}

#[test]
fn a_busy_source_among_any_number_of_others_raises_an_alert() {
    // More sources than fit, one SYN each; then as many others, and one that sends many.
    let mut frames = Vec::new();
    for number in 0..300_000_u32 {
        let at = 10 * SECOND + u64::from(number) * 10_000;
        frames.push((at, spoofed(number)));
        if number >= 150_000 && number % 10 == 0 {
            frames.push((at, syn_from("2001:db8::bad")));
        }
    }
    let file = timed(&frames);
    for program in [COUNT, COUNT_XDP] {
        let output = file.replay(program, &["-I", "1", "--alert", "5000"]);
        let raised = output.events("alert");
        // The total raises an alert in the first interval; the busy source sends from the second one on.
        let keys: Vec<_> = raised.iter().map(|alert| &alert["key"]).collect();
        assert_eq!(keys, [&Value::Null, &Value::from("2001:db8::bad")]);
        let sources = number(&raised[0]["sources"]) as f64;
        assert!((sources / 100_000.0 - 1.0).abs() < 0.065, "{sources}");
        let rate = raised[1]["syn_rate"].as_f64().unwrap();
        assert!((9_500.0..=10_000.0).contains(&rate), "{rate}");
        assert_eq!(output.events("syn_count").len(), 3);
    }
}

/// State, key and rate of the alerts, with the second of the file in which they are printed.
fn alerts(output: &Output) -> Vec<(String, String, String, f64)> {
    let mut alerts = output.events("alert");
    // The alerts of the total are printed too.
    alerts.retain(|alert| !alert["key"].is_null());
    // A port is a number, an address a string.
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    alerts
        .iter()
        .map(|alert| {
            assert_eq!(alert["threshold"], 100.0, "{alert}");
            assert!(alert["iface"].is_null());
            let rate = alert["syn_rate"].as_f64().unwrap();
            (
                text(&alert["ts"]),
                text(&alert["state"]),
                text(&alert["key"]),
                rate,
            )
        })
        .collect()
}

#[test]
fn alerts_are_raised_above_the_rate_and_cleared_well_below_it() {
    // SYNs of two sources in each interval of a second.
    let mut frames = Vec::new();
    let rates = [
        (100, 0),
        (101, 500),
        (300, 500),
        (99, 0),
        (80, 0),
        (79, 0),
        (101, 0),
        (1, 101),
    ];
    for (at, (first, second)) in rates.into_iter().enumerate() {
        let start = (10 + at as u64) * SECOND;
        for (source, count) in [("10.0.0.1", first), ("2001:db8::1", second)] {
            for number in 0..count {
                frames.push((start + number * MS, syn_from(source)));
            }
        }
    }
    frames.sort_by_key(|frame| frame.0);
    // Nothing for an hour, then a little more.
    for ms in 0..10 {
        frames.push((3600 * SECOND + ms * MS, syn_from("10.0.0.2")));
    }
    let file = timed(&frames);
    let wanted = [
        (12, "raised", "10.0.0.1", 101.0),
        (12, "raised", "2001:db8::1", 500.0),
        (14, "cleared", "2001:db8::1", 0.0),
        (16, "cleared", "10.0.0.1", 79.0),
        (17, "raised", "10.0.0.1", 101.0),
        (18, "cleared", "10.0.0.1", 1.0),
        (18, "raised", "2001:db8::1", 101.0),
        (19, "cleared", "2001:db8::1", 0.0),
    ];
    let wanted = wanted.map(|(second, state, key, rate): (i128, &str, &str, f64)| {
        (
            rfc3339(second * 1_000_000_000),
            state.into(),
            key.into(),
            rate,
        )
    });
    for program in [COUNT, COUNT_XDP] {
        for by in [&[][..], &["--by", "saddr"]] {
            let output = file.replay(program, &[&["-I", "1", "--alert", "100"], by].concat());
            assert_eq!(alerts(&output), wanted, "{program:?} {by:?}");
        }
    }
    // Of ports, if they are what is counted.
    let output = file.replay(COUNT, &["-I", "1", "--alert", "100", "--by", "dport"]);
    let ports: Vec<_> = alerts(&output).into_iter().map(|alert| alert.2).collect();
    assert!(
        !ports.is_empty() && ports.iter().all(|port| port == "80"),
        "{ports:?}"
    );
}

#[test]
fn an_interval_that_the_end_of_the_file_cuts_short_raises_no_false_alert() {
    let at = |us: u64| (SECOND + us * 1000, syn_from("10.0.0.1"));
    // Two SYNs within 10 us are not a flood of 200,000 a second.
    let output = timed(&[at(0), at(10)]).replay(COUNT, &["--alert", "100"]);
    assert!(alerts(&output).is_empty());
    // 300 SYNs within 300 ms are one, though not of 1,000 a second, but of 150 a second over 2 s.
    let burst: Vec<_> = (0..300).map(|ms| at(ms * 1000)).collect();
    let output = timed(&burst).replay(COUNT, &["--alert", "100"]);
    let rates: Vec<_> = alerts(&output).into_iter().map(|it| (it.1, it.3)).collect();
    assert_eq!(rates, [("raised".to_owned(), 150.0)]);
    // A flood that lasts until the end of the file has no line that clears its alert.
    let mut flood: Vec<_> = (0..2300).map(|ms| at(ms * 1000)).collect();
    let output = timed(&flood).replay(COUNT, &["--alert", "100"]);
    assert_eq!(alerts(&output).len(), 1);
    flood.push(at(2_300_001));
    let output = timed(&flood).replay(COUNT, &["--alert", "100"]);
    assert_eq!(alerts(&output).len(), 1);
}

/// The times that pass a limit of events per second. A window begins with the first event that is a
/// second or more away from the start of the previous window.
fn passing(times: &[u64], limit: usize) -> Vec<u64> {
    let mut window: Option<(u64, usize)> = None;
    let mut passed = Vec::new();
    for time in times {
        let used = match window {
            Some((start, used)) if time.abs_diff(start) < SECOND => used,
            _ => 0,
        };
        let start = if used == 0 { *time } else { window.unwrap().0 };
        if used < limit {
            passed.push(*time);
        }
        window = Some((start, (used + 1).min(limit)));
    }
    passed
}

#[test]
fn max_rate_limits_the_events_of_each_second() {
    let seed = seed("max_rate_limits_the_events_of_each_second");
    let mut random = Random::new(seed);
    let start = 1_700_000_000 * SECOND;
    let mut forwards = vec![start];
    for _ in 0..3000 {
        let step = random.pick(&[0, 1, 1, 1, 1, 5, 20, 400, 1500]) * MS;
        forwards.push(forwards.last().unwrap() + step);
    }
    // In the order in which several CPUs might report them.
    let unsorted: Vec<u64> = forwards
        .iter()
        .map(|time| time - random.below(3) as u64 * MS)
        .collect();
    // Frames of one second, last one first: a limit holds for them as well.
    let backwards: Vec<u64> = (0..900).map(|ms| start - ms * MS).collect();
    for times in [forwards, unsorted, backwards] {
        let frames: Vec<_> = times.iter().map(|it| (*it, syn_from("10.0.0.1"))).collect();
        let file = timed(&frames);
        for (program, limit) in [(MONITOR, 1), (MONITOR, 10), (MONITOR_PERF, 7)] {
            let output = file.replay(program, &["--max-rate", &limit.to_string()]);
            let found: Vec<_> = output.events("packet");
            let found: Vec<_> = found.iter().map(|it| it["ts"].as_str().unwrap()).collect();
            let wanted = passing(&times, limit);
            let wanted: Vec<_> = wanted.iter().map(|it| rfc3339(i128::from(*it))).collect();
            assert_eq!(found, wanted, "seed {seed}, {limit} a second");
            let summary = output.summary();
            assert_eq!(summary["matched"], times.len());
            assert_eq!(summary["emitted"], wanted.len());
            assert_eq!(summary["suppressed"], times.len() - wanted.len());
        }
    }
}
