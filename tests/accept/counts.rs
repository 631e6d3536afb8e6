//! `--by` and `--histogram`: counts in the kernel instead of events.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use serde_json::{Value, json};

use crate::common::{Namespace, Tool, need};

/// Three that are accepted, two that are refused.
fn traffic(namespace: &Namespace) {
    namespace.enter(|| {
        let addr = (Ipv4Addr::LOCALHOST, 8301);
        let listener = TcpListener::bind(addr).unwrap();
        for _ in 0..3 {
            let _client = TcpStream::connect(addr).unwrap();
            listener.accept().unwrap();
        }
        for _ in 0..2 {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 8302)).unwrap_err();
        }
    });
}

/// The name of this thread.
fn own_name() -> String {
    let name = std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    name.trim_end().to_owned()
}

#[test]
fn fates_are_counted_by_what_is_asked_for() {
    let namespace = need!(Namespace::new());
    let name = own_name();
    for (args, expected) in [
        (
            &["--by", "reason"][..],
            vec![
                (Value::Null, "accepted", 3),
                (json!("no_listener"), "refused", 2),
            ],
        ),
        (
            &["--by", "saddr", "--failed"],
            vec![(json!("127.0.0.1"), "refused", 2)],
        ),
        (
            &["--by", "dport"],
            vec![(json!(8301), "accepted", 3), (json!(8302), "refused", 2)],
        ),
        (
            &["--by", "comm"],
            vec![(json!(name), "accepted", 3), (Value::Null, "refused", 2)],
        ),
        (
            &["--by", "dport", "--top", "1"],
            vec![(json!(8301), "accepted", 3)],
        ),
        (
            &["--by", "dport", "--reason", "no_listener"],
            vec![(json!(8302), "refused", 2)],
        ),
        (
            &["--by", "dport", "--buffer", "perf", "-p", "8302"],
            vec![(json!(8302), "refused", 2)],
        ),
    ] {
        let mut all = vec!["accept-trace", "--json", "-I", "1h", "lo"];
        all.extend(args);
        let tool = Tool::start_in(&namespace, &all);
        traffic(&namespace);
        let output = tool.stop();
        let counts = output.events("accept_count");
        assert_eq!(counts.len(), 1, "{args:?}: {output:#?}");
        let top = counts[0]["top"].as_array().unwrap().iter();
        let top: Vec<_> = top
            .map(|it| (it["key"].clone(), it["of"].as_str().unwrap(), &it["total"]))
            .collect();
        let all: Vec<_> = expected.iter().map(|(_, _, count)| json!(count)).collect();
        let expected: Vec<_> = expected
            .iter()
            .zip(&all)
            .map(|((key, fate, _), count)| (key.clone(), *fate, count))
            .collect();
        assert_eq!(top, expected, "{args:?}");
        let summary = output.summary();
        assert_eq!(summary["matched"], counts[0]["total"], "{args:?}");
        assert_eq!(summary["emitted"], summary["matched"], "{args:?}");
        assert_eq!(counts[0]["untracked"], 0, "{args:?}");
    }
}

#[test]
fn intervals_add_up_to_the_totals() {
    let namespace = need!(Namespace::new());
    let args = ["accept-trace", "--json", "--by", "dport", "-I", "0.1", "lo"];
    let tool = Tool::start_in(&namespace, &args);
    for _ in 0..5 {
        traffic(&namespace);
        tool.json("of an interval", |line| line["event"] == "accept_count");
    }
    let output = tool.stop();
    let counts = output.events("accept_count");
    let deltas = |counts: &[Value]| -> u64 {
        let deltas = counts.iter().map(|it| it["delta"].as_u64().unwrap());
        deltas.sum()
    };
    assert_eq!(deltas(&counts), 25, "{output:#?}");
    let ports: u64 = counts
        .iter()
        .map(|it| deltas(it["top"].as_array().unwrap()))
        .sum();
    assert_eq!(ports, 25, "{output:#?}");
    assert_eq!(counts.last().unwrap()["total"], 25, "{output:#?}");
}

#[test]
fn keys_that_find_no_room_are_in_the_total() {
    let namespace = need!(Namespace::new());
    let args = ["accept-trace", "--json", "--by", "dport", "-I", "1h", "lo"];
    let tool = Tool::start_in(&namespace, &args);
    // More ports than there is room for keys.
    const PORTS: u16 = 17_000;
    namespace.enter(|| {
        for port in 10_000..10_000 + PORTS {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap_err();
        }
    });
    let output = tool.stop();
    let counts = &output.events("accept_count")[0];
    assert_eq!(counts["total"], PORTS, "{output:#?}");
    let untracked = counts["untracked"].as_u64().unwrap();
    assert!(untracked > 0 && untracked < 2_000, "{output:#?}");
    assert_eq!(output.summary()["lost"], 0, "{output:#?}");
}

#[test]
fn times_of_accepted_attempts_are_counted_in_buckets() {
    let namespace = need!(Namespace::new());
    let name = own_name();
    for (of, by, key) in [
        ("handshake", &[][..], Value::Null),
        ("handshake", &["--by", "dport"], json!(8301)),
        ("accept-wait", &["--by", "comm"], json!(name)),
    ] {
        let mut all = vec!["accept-trace", "--json", "--histogram", of, "lo"];
        all.extend(by);
        let tool = Tool::start_in(&namespace, &all);
        traffic(&namespace);
        let output = tool.stop();
        let histograms = output.events("histogram");
        assert_eq!(histograms.len(), 1, "{output:#?}");
        let histogram = &histograms[0];
        assert_eq!(histogram["of"], of, "{output:#?}");
        assert_eq!(histogram["key"], key, "{output:#?}");
        assert_eq!(histogram["count"], 3, "{output:#?}");
        let sum = histogram["sum"].as_u64().unwrap();
        let limits = |scale: fn(u64) -> u64| -> u64 {
            let buckets = histogram["buckets"].as_array().unwrap().iter();
            let products =
                buckets.map(|it| scale(it["le"].as_u64().unwrap()) * it["count"].as_u64().unwrap());
            products.sum()
        };
        assert!(sum <= limits(|le| le), "{output:#?}");
        assert!(
            sum >= limits(|le| if le == 1 { 0 } else { le / 2 }),
            "{output:#?}"
        );
        assert_eq!(output.summary()["matched"], 3, "{output:#?}");
    }
}

#[test]
fn a_run_whose_reports_take_longer_than_their_interval_still_ends() {
    let namespace = need!(Namespace::new());
    let args = "accept-trace --json --by dport -I 1ms lo -d 500ms";
    let args = args.split(' ').collect::<Vec<_>>();
    let output = Tool::start_in(&namespace, &args).finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    assert_eq!(output.summary()["exit_reason"], "duration");
}
