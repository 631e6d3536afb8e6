//! Compares three things: the output of the tool with `--json`, `docs/output.schema.json`, and
//! the tables of `docs/output.md`.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};

use crate::common::frames::{
    SYN, Segment, ethernet, ethernet_ip, linux_options, service_vlan, syn_frame, tcp_between, vlan,
};
use crate::common::{Namespace, Tool, command, need};
use crate::connect::sockets::{Blackhole, connecting};
use crate::oracle::pcap_write;
use serde_json::Value;

const SCHEMA: &str = include_str!("../docs/output.schema.json");
const DOCS: &str = include_str!("../docs/output.md");
const TESTS: &str = include_str!("schema.rs");

/// Keywords of JSON Schema that the schema uses and that [`check`] knows.
const KEYWORDS: [&str; 11] = [
    "additionalProperties",
    "const",
    "enum",
    "items",
    "maxItems",
    "maximum",
    "minimum",
    "properties",
    "required",
    "title",
    "type",
];

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

fn events() -> Vec<(String, Value)> {
    let schema = schema();
    let events = schema["$defs"].as_object().unwrap();
    events
        .iter()
        .map(|(name, event)| (name.clone(), event.clone()))
        .collect()
}

/// Checks a value against the part of JSON Schema that is used here.
fn check(schema: &Value, value: &Value, place: &str) -> Result<(), String> {
    let wrong = |keyword: &str| Err(format!("{place}: {value} violates {keyword} of {schema}"));
    for (keyword, rule) in schema.as_object().unwrap() {
        let number = || (value.as_f64(), rule.as_f64().unwrap());
        match keyword.as_str() {
            "type" => {
                let types = match rule {
                    Value::Array(types) => types.iter().collect(),
                    one => vec![one],
                };
                if !types
                    .iter()
                    .any(|name| is_of_type(value, name.as_str().unwrap()))
                {
                    return wrong(keyword);
                }
            }
            "const" if value != rule => return wrong(keyword),
            "enum" if !rule.as_array().unwrap().contains(value) => return wrong(keyword),
            "minimum" if matches!(number(), (Some(value), limit) if value < limit) => {
                return wrong(keyword);
            }
            "maximum" if matches!(number(), (Some(value), limit) if value > limit) => {
                return wrong(keyword);
            }
            "maxItems" if value.as_array().unwrap().len() as u64 > rule.as_u64().unwrap() => {
                return wrong(keyword);
            }
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    check(rule, item, &format!("{place}[]"))?;
                }
            }
            "required" => {
                for key in rule.as_array().unwrap() {
                    if value.get(key.as_str().unwrap()).is_none() {
                        return Err(format!("{place}: {key} is missing in {value}"));
                    }
                }
            }
            "properties" => {
                for (key, value) in value.as_object().unwrap() {
                    match rule.get(key) {
                        Some(rule) => check(rule, value, &format!("{place}.{key}"))?,
                        None => return Err(format!("{place}: {key} is not in the schema")),
                    }
                }
            }
            known => assert!(
                KEYWORDS.contains(&known),
                "{place}: unknown keyword {known}"
            ),
        }
    }
    Ok(())
}

fn is_of_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_u64() || value.is_i64(),
        other => panic!("unknown type {other}"),
    }
}

/// Checks all lines against these parts of the schema, each of which must describe one of them.
fn check_lines(lines: &[Value], expected: &[&str]) {
    let mut events = events();
    events.retain(|(name, _)| expected.contains(&name.as_str()));
    let mut seen = BTreeSet::new();
    for line in lines {
        let is_it = |schema: &Value| schema["properties"]["event"]["const"] == line["event"];
        let described = events.iter().find(|(_, schema)| is_it(schema));
        let (name, schema) = described.unwrap_or_else(|| panic!("not expected: {line}"));
        assert_eq!(check(schema, line, name), Ok(()));
        seen.insert(name.as_str());
        let ts = line["ts"].as_str().unwrap();
        let form = "0000-00-00T00:00:00.000000000Z";
        let fits =
            |(is, wanted): (char, char)| is == wanted || wanted == '0' && is.is_ascii_digit();
        assert!(
            ts.len() == form.len() && ts.chars().zip(form.chars()).all(fits),
            "{ts}"
        );
    }
    assert_eq!(seen, expected.iter().copied().collect(), "{lines:#?}");
}

/// Frames of all kinds: both families, tagged, with and without payload, and not TCP at all.
fn capture() -> tempfile::NamedTempFile {
    let (v4, v6) = ("10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap());
    let with_options = Segment {
        options: linux_options(),
        ..Segment::new(1234, 80, SYN, &[])
    };
    let frames = [
        ethernet_ip(&tcp_between(v4, v4, &with_options)),
        syn_frame(&[service_vlan(7), vlan(9)], v6, v6, 443),
        ethernet_ip(&tcp_between(v4, v4, &Segment::new(1, 2, SYN, b"hello"))),
        ethernet(&[], 0x0806, &[0; 28]),
    ];
    let frames = frames.map(|frame| (1_700_000_000_000_000_000, frame));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), pcap_write::timed(1, frames)).unwrap();
    file
}

fn replay(args: &[&str], expected: &[&str]) -> Vec<Value> {
    let file = capture();
    let path = file.path().to_str().unwrap();
    let mut all = args.to_vec();
    all.extend(["--json", "-r", path]);
    let output = Tool::spawn(&mut command(all)).finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    check_lines(&output.json(), expected);
    output.json()
}

#[test]
fn counts_are_as_documented() {
    need!(Namespace::new());
    replay(&["syn-count"], &["syn_count", "summary"]);
    for by in ["saddr", "daddr", "dport"] {
        let args = ["syn-count", "--by", by, "--alert", "0.1"];
        let lines = replay(&args, &["syn_count", "alert", "summary"]);
        let is_number = by == "dport";
        let mut alerts = lines.iter().filter(|line| line["event"] == "alert");
        assert!(alerts.next().unwrap()["key"].is_null());
        let alert = alerts.next().unwrap();
        assert_eq!(alert["key"].is_number(), is_number, "{alert}");
        let top = lines[0]["top"].as_array().unwrap();
        assert_eq!(top[0]["key"].is_number(), is_number, "{}", lines[0]);
    }
}

#[test]
fn packets_are_as_documented() {
    need!(Namespace::new());
    let lines = replay(&["port-monitor", "-x"], &["packet", "summary"]);
    assert_eq!(lines[0]["mss"], 1460);
    assert_eq!(lines[1]["vlan"], serde_json::json!([7, 9]));
    assert_eq!(lines[2]["payload"], "68656c6c6f");
    let lines = replay(&["port-monitor"], &["packet", "summary"]);
    assert!(lines[0]["payload"].is_null());
}

#[test]
fn flows_are_as_documented() {
    need!(Namespace::new());
    let options = ["flows", "--names", "--summary"];
    let lines = replay(&options, &["flow", "summary"]);
    assert_eq!(lines[0]["orig_flags"], serde_json::json!(["syn"]));
    replay(&["flows", "--histogram", "handshake"], &["summary"]);
    for by in ["saddr", "daddr", "dport"] {
        let lines = replay(&["flows", "--by", by], &["flow_count", "summary"]);
        let top = lines[0]["top"].as_array().unwrap();
        assert_eq!(top[0]["key"].is_number(), by == "dport", "{}", lines[0]);
    }
}

#[test]
fn connections_are_as_documented() {
    let blackhole = need!(Blackhole::new());
    let namespace = &blackhole.namespace;
    let listener = namespace.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let open = listener.local_addr().unwrap();
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let ports = format!("{},9", open.port());
    let args = [
        "connect-trace",
        "--json",
        "--accept",
        "--close",
        "-p",
        &ports,
    ];
    let tool = Tool::start_in(namespace, &args);
    let _unanswered = namespace.enter(|| {
        let client = TcpStream::connect(open).unwrap();
        let (server, _) = listener.accept().unwrap();
        drop(client);
        drop(server);
        TcpStream::connect(closed).unwrap_err();
        connecting(Blackhole::at(9))
    });
    tool.json("of a failure", |line| line["event"] == "failed");
    tool.json("of an end", |line| line["event"] == "closed");
    let output = tool.stop();
    check_lines(
        &output.json(),
        &[
            "attempt",
            "established",
            "failed",
            "accepted",
            "closed",
            "pending",
            "summary",
        ],
    );
}

#[test]
fn losses_are_as_documented() {
    let namespace = need!(Namespace::new());
    let path = namespace.path();
    let tool = Tool::start(&["loss-trace", "--json", "--netns", &path]);
    namespace.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).unwrap_err());
    tool.json("of a drop", |line| line["event"] == "drop");
    tool.json("of a reset", |line| line["event"] == "reset");
    check_lines(&tool.stop().json(), &["drop", "reset", "summary"]);
    for by in ["reason", "place", "saddr", "dport", "comm"] {
        let args = ["loss-trace", "--json", "--netns", &path, "--by", by];
        let tool = Tool::start(&args);
        namespace.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).unwrap_err());
        let lines = tool.stop().json();
        check_lines(&lines, &["loss_count", "summary"]);
    }
}

#[test]
fn retransmissions_are_as_documented() {
    let blackhole = need!(Blackhole::new());
    let path = blackhole.namespace.path();
    let args = ["loss-trace", "--json", "--netns", &path];
    let tool = Tool::start(&[&args[..], &["--only", "retransmit"]].concat());
    let _unanswered = blackhole.namespace.enter(|| connecting(Blackhole::at(9)));
    tool.json("of a SYN", |line| line["event"] == "retransmit");
    check_lines(&tool.stop().json(), &["retransmit", "summary"]);
}

#[test]
fn listeners_are_as_documented() {
    let namespace = need!(Namespace::new());
    let listener = namespace.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let args = [
        "listeners",
        "--json",
        "--alert",
        "1",
        "-I",
        "0.1",
        "-c",
        "2",
    ];
    let clients = (0..3).map(|_| namespace.enter(|| TcpStream::connect(addr).unwrap()));
    let clients = clients.collect::<Vec<_>>();
    let output = Tool::spawn_in(&namespace, &mut command(args)).finish();
    check_lines(&output.json(), &["listener", "listener_alert", "summary"]);
    drop(clients);
}

#[test]
fn attempts_and_fates_are_as_documented() {
    let namespace = need!(Namespace::new());
    let listener = namespace.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
    let open = listener.local_addr().unwrap();
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    let tool = Tool::start_in(&namespace, &["accept-trace", "--json", "--attempts", "lo"]);
    namespace.enter(|| {
        let _client = TcpStream::connect(open).unwrap();
        listener.accept().unwrap();
        TcpStream::connect(closed).unwrap_err();
    });
    tool.json("of a refusal", |line| line["fate"] == "refused");
    check_lines(
        &tool.stop().json(),
        &["accept-trace attempt", "fate", "summary"],
    );
}

#[test]
fn counts_of_fates_and_histograms_are_as_documented() {
    let namespace = need!(Namespace::new());
    for (args, event) in [
        (&["--by", "reason"][..], "accept_count"),
        (&["--by", "saddr"], "accept_count"),
        (&["--by", "comm"], "accept_count"),
        (&["--histogram", "handshake", "--by", "dport"], "histogram"),
        (&["--histogram", "accept-wait", "--by", "comm"], "histogram"),
        (&["--histogram", "handshake"], "histogram"),
    ] {
        let mut all = vec!["accept-trace", "--json", "lo"];
        all.extend(args);
        let tool = Tool::start_in(&namespace, &all);
        namespace.enter(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            listener.accept().unwrap();
            TcpStream::connect((Ipv4Addr::LOCALHOST, 9)).unwrap_err();
        });
        check_lines(&tool.stop().json(), &[event, "summary"]);
    }
}

#[test]
fn totals_of_connections_are_as_documented() {
    let namespace = need!(Namespace::new());
    let tool = Tool::start_in(
        &namespace,
        &["connect-trace", "--summary", "--json", "-p", "9"],
    );
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
    namespace.enter(|| TcpStream::connect(closed).unwrap_err());
    let output = tool.stop();
    check_lines(&output.json(), &["connect_total", "summary"]);
    for by in ["process", "daddr", "dport"] {
        let args = [
            "connect-trace",
            "--histogram",
            "connect",
            "--by",
            by,
            "--json",
        ];
        let tool = Tool::start_in(&namespace, &args);
        namespace.enter(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        });
        check_lines(&tool.stop().json(), &["histogram", "summary"]);
    }
}

#[test]
fn findings_are_as_documented() {
    let output = Tool::spawn(&mut command(["check", "--json"])).finish();
    check_lines(&output.json(), &["check", "summary"]);
}

/// Keys as the documentation names them: nested ones with a dot.
fn keys(schema: &Value, prefix: &str, to: &mut BTreeSet<String>) {
    for (key, rule) in schema["properties"].as_object().unwrap() {
        let name = format!("{prefix}{key}");
        to.insert(name.clone());
        if rule.get("properties").is_some() {
            keys(rule, &format!("{name}."), to);
        }
        if rule["items"].get("properties").is_some() {
            keys(&rule["items"], &format!("{name}[]."), to);
        }
    }
}

/// The words in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_key_is_documented_and_no_other() {
    let mut documented_events = BTreeSet::new();
    for section in DOCS.split("\n## ").skip(1) {
        let (heading, body) = section.split_once('\n').unwrap();
        let names = quoted(heading).collect::<Vec<_>>();
        if names.is_empty() {
            continue;
        }
        let rows = body.lines().filter(|line| line.starts_with("| `"));
        let documented = rows
            .filter_map(|row| row.split('|').nth(1))
            .flat_map(quoted)
            .chain(["ts", "event"])
            .map(str::to_owned)
            .collect::<BTreeSet<_>>();
        let mut known = BTreeSet::new();
        for (name, event) in events() {
            if names.contains(&name.as_str()) {
                keys(&event, "", &mut known);
                documented_events.insert(name);
            }
        }
        assert_eq!(documented, known, "{heading}");
    }
    let all = events().into_iter().map(|(name, _)| name).collect();
    assert_eq!(documented_events, all);
    let one_of = schema()["oneOf"].clone();
    let one_of = one_of.as_array().unwrap().iter();
    let name = |one: &Value| {
        let path = one["$ref"].as_str().unwrap();
        // A reference is a URI.
        path.rsplit('/').next().unwrap().replace("%20", " ")
    };
    assert_eq!(one_of.map(name).collect::<BTreeSet<_>>(), all);
}

#[test]
fn every_event_is_expected_by_a_test() {
    for (name, _) in events() {
        let quoted = format!("\"{name}\"");
        let mut places = TESTS.match_indices(&quoted);
        // A test may also look for lines of this event.
        let is_expected = places.any(|(at, _)| !TESTS[..at].ends_with("== "));
        assert!(is_expected, "no test checks lines of {name}");
    }
}

#[test]
fn the_check_finds_what_is_wrong() {
    let (_, summary) = events()
        .into_iter()
        .find(|(name, _)| name == "summary")
        .unwrap();
    let good = serde_json::json!({
        "ts": "", "event": "summary", "command": "check", "duration_s": 0.5, "matched": 1,
        "emitted": 1, "lost": 0, "suppressed": 0, "exit_reason": "done",
    });
    assert_eq!(check(&summary, &good, ""), Ok(()));
    for (key, value) in [
        ("matched", Value::from("1")),
        ("lost", Value::from(-1)),
        ("exit_reason", Value::from("bored")),
        ("unheard_of", Value::Null),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        assert!(check(&summary, &bad, "").is_err(), "{bad}");
    }
    let mut bad = good;
    bad.as_object_mut().unwrap().remove("lost");
    assert!(check(&summary, &bad, "").is_err());
}
