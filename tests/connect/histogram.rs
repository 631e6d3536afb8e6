//! --histogram: how long it took to connect, counted by the programs.

use std::net::TcpStream;

use serde_json::{Value, json};

use super::sockets::listen;
use super::{Trace, backends};
use crate::common::{Namespace, need};

/// Connects five times to the first port, twice to the next, and to one that refuses. No other test uses
/// these ports, because the tool sees the connections of all tests.
fn connect(namespace: &Namespace, [open, next, closed]: [u16; 3]) {
    namespace.enter(|| {
        let listeners = [open, next].map(|port| listen("127.0.0.1", port));
        for (port, times) in [(open, 5), (next, 2)] {
            for _ in 0..times {
                TcpStream::connect(("127.0.0.1", port)).unwrap();
            }
        }
        TcpStream::connect(("127.0.0.1", closed)).expect_err("nobody listens");
        drop(listeners);
    });
}

#[test]
fn times_to_connect_are_counted_by_process_destination_and_port() {
    let namespace = need!(Namespace::new());
    let process = std::fs::read_to_string("/proc/self/comm").unwrap();
    let cases = [
        (None, vec![(Value::Null, 7)]),
        (Some("dport"), vec![(json!(4641), 5), (json!(4642), 2)]),
        (Some("daddr"), vec![(json!("127.0.0.1"), 7)]),
        (Some("process"), vec![(json!(process.trim_end()), 7)]),
    ];
    let all = backends!();
    // Each backend counts in the same place: they take turns.
    for (turn, (by, expected)) in cases.iter().enumerate() {
        let mut options = vec!["--histogram", "connect", "-p", "4641-4643"];
        options.extend(by.iter().flat_map(|by| ["--by", *by]));
        let trace = Trace::start(&namespace, all[turn % all.len()], &options);
        connect(&namespace, [4641, 4642, 4643]);
        let output = trace.tool.stop();
        let lines = output.events("histogram");
        let found = lines.iter().map(|line| {
            let buckets = line["buckets"].as_array().unwrap().iter();
            let sum = buckets.map(|bucket| bucket["count"].as_u64().unwrap());
            assert_eq!(line["count"], sum.sum::<u64>(), "{line}");
            assert_eq!((&line["of"], &line["by"]), (&json!("connect"), &json!(by)));
            (line["key"].clone(), line["count"].as_u64().unwrap())
        });
        assert_eq!(found.collect::<Vec<_>>(), *expected, "{by:?}");
        let summary = output.summary();
        let counts = ["matched", "emitted", "lost", "suppressed"].map(|key| &summary[key]);
        assert_eq!(counts, [7, 7, 0, 0], "{summary}");
    }
}

#[test]
fn a_report_of_an_interval_has_what_was_connected_in_it() {
    let namespace = need!(Namespace::new());
    let options = ["--histogram", "connect", "-p", "4646-4648", "-I", "0.1"];
    let trace = Trace::start(&namespace, backends!()[0], &options);
    for expected in [7, 14] {
        connect(&namespace, [4646, 4647, 4648]);
        let mut seen = 0;
        trace.tool.json("with all times", |line| {
            seen += line["count"].as_u64().unwrap_or(0);
            seen == expected
        });
    }
    let output = trace.tool.stop();
    assert!(output.events("histogram").len() >= 2);
    assert_eq!(output.summary()["matched"], 14);
}
