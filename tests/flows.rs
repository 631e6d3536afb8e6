//! flows: against a model over captures and made-up conversations, and on real connections.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod flow_model;
mod oracle;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use common::{Tool, command, need};
use flow_model::Record;
use serde_json::Value;

/// Runs a file through flows; `None` if the tool says that it can't read all of it.
fn replay(path: &Path, args: &[&str]) -> Option<common::Output> {
    let file = path.to_str().unwrap();
    let mut words = vec!["flows", "--json", "-r", file];
    words.extend(args);
    let output = Tool::spawn(&mut command(words)).finish();
    (output.code() == 0).then_some(output)
}

fn end(line: &Value, addr: &str, port: &str) -> (std::net::IpAddr, u16) {
    let addr = line[addr].as_str().unwrap().parse().unwrap();
    (addr, line[port].as_u64().unwrap().try_into().unwrap())
}

fn nanos(text: &str) -> i64 {
    let at: jiff::Timestamp = text.parse().unwrap();
    at.as_nanosecond().try_into().unwrap()
}

/// A line as the model has it.
fn record(line: &Value) -> Record {
    let number = |name: &str| line[name].as_u64().unwrap();
    let conn_states = [
        "S0", "S1", "SF", "REJ", "S2", "S3", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH", "SHR", "OTH",
    ];
    let conn_state = line["conn_state"].as_str().unwrap();
    Record {
        orig: end(line, "saddr", "sport"),
        resp: end(line, "daddr", "dport"),
        start: nanos(line["start"].as_str().unwrap()),
        last: nanos(line["ts"].as_str().unwrap()),
        conn_state: conn_states
            .into_iter()
            .find(|it| *it == conn_state)
            .unwrap(),
        history: line["history"].as_str().unwrap().to_owned(),
        orig_pkts: number("orig_pkts"),
        orig_bytes: number("orig_bytes"),
        resp_pkts: number("resp_pkts"),
        resp_bytes: number("resp_bytes"),
        syn_retransmits: number("syn_retransmits"),
        partial: line["partial"].as_bool().unwrap(),
    }
}

/// Checks the sums that flows promises: no packet is counted twice or forgotten.
fn check_packets(output: &common::Output) {
    let summary = output.summary();
    let number = |name: &str| summary[name].as_u64().unwrap();
    let in_lines: u64 = output
        .events("flow")
        .iter()
        .map(|line| line["orig_pkts"].as_u64().unwrap() + line["resp_pkts"].as_u64().unwrap())
        .sum();
    assert_eq!(
        number("segments"),
        in_lines + number("untracked") + number("unreported"),
        "{summary}"
    );
    assert_eq!(number("lost"), 0, "{summary}");
}

#[test]
fn the_captures_of_tcpdump_and_tcpflow_have_the_flows_of_the_model() {
    let files = need!(oracle::corpus::captures());
    let mut flows = 0;
    let mut states = BTreeMap::<&str, u64>::new();
    let mut differences = Vec::new();
    for path in &files {
        let bytes = fs::read(path).unwrap();
        let Some(mut expected) = flow_model::records(&bytes) else {
            continue;
        };
        if expected.is_empty() {
            continue;
        }
        let output = replay(path, &[]).unwrap_or_else(|| panic!("{}", path.display()));
        check_packets(&output);
        let lines = output.events("flow");
        let mut found = lines.iter().map(record).collect::<Vec<_>>();
        flow_model::sort(&mut expected);
        flow_model::sort(&mut found);
        flows += found.len();
        for one in &found {
            *states.entry(one.conn_state).or_default() += 1;
        }
        if found != expected {
            let name = path.file_name().unwrap().to_string_lossy();
            for one in found.iter().filter(|one| !expected.contains(one)) {
                differences.push(format!("{name}: found    {one:?}"));
            }
            for one in expected.iter().filter(|one| !found.contains(one)) {
                differences.push(format!("{name}: expected {one:?}"));
            }
        }
    }
    println!("{flows} flows, {states:?}");
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A packet of a conversation that a test makes up.
struct Said {
    /// Microseconds since the one before.
    wait: u64,
    from_client: bool,
    flags: u8,
    seq: u32,
    ack: u32,
    len: usize,
}

/// Writes conversations, each with a client port, one after another.
fn write_capture(conversations: &[(u16, Vec<Said>)]) -> Vec<u8> {
    use oracle::frames::{Ipv4, Segment, ethernet_ip};
    use oracle::pcap_write::{Frame, Order, Pcap, Unit};
    let (order, unit) = (Order::Little, Unit::Nanoseconds);
    let mut file = Pcap::new(Vec::new(), order, unit, 1).unwrap();
    let mut at = 1_700_000_000_000_000_000;
    for (port, packets) in conversations {
        for said in packets {
            at += said.wait * 1000;
            let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let (source, destination) = if said.from_client {
                (client, server)
            } else {
                (server, client)
            };
            let segment = Segment {
                sport: if said.from_client { *port } else { 80 },
                dport: if said.from_client { 80 } else { *port },
                seq: said.seq,
                ack: said.ack,
                flags: said.flags,
                payload: vec![b'x'; said.len],
                ..Segment::default()
            };
            let packet = Ipv4 {
                source,
                destination,
                ..Ipv4::default()
            };
            let frame = ethernet_ip(&packet.tcp(&segment));
            file.frame(Frame::whole(at, &frame)).unwrap();
        }
    }
    file.finish()
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A conversation that goes well, badly or nowhere, as the random numbers have it.
fn conversation(random: &mut oracle::frames::Random) -> Vec<Said> {
    let mut said = Vec::new();
    // Near the end of the sequence space too.
    let mut next = [0, 1].map(|_| {
        let near = random.pick(&[0, 0x7fff_ffff, u32::MAX]);
        near.wrapping_sub(random.u32() % 2000)
    });
    let mut say = |from: usize, flags: u8, len: usize, next: &mut [u32; 2], wait: u64| {
        let ack = if flags & ACK != 0 { next[1 - from] } else { 0 };
        let seq = next[from];
        said.push(Said {
            wait,
            from_client: from == 0,
            flags,
            seq,
            ack,
            len,
        });
        let taken = len + usize::from(flags & (SYN | FIN) != 0);
        next[from] = seq.wrapping_add(taken as u32);
    };
    let whole = random.below(4) != 0;
    if whole && random.below(5) == 0 {
        // The SYN was missed.
        say(1, SYN | ACK, 0, &mut next, 400_000_000);
        let end = random.pick(&[RST, FIN | ACK]);
        say(1, end, 0, &mut next, 10);
        return said;
    }
    if whole {
        for _ in 0..1 + random.below(3) {
            let isn = next[0];
            say(0, SYN, 0, &mut next, 1_000_000);
            next[0] = isn;
        }
        next[0] = next[0].wrapping_add(1);
        match random.below(8) {
            0 => return said,
            1 => {
                say(1, RST | ACK, 0, &mut next, 10);
                return said;
            }
            2 => {
                say(0, RST, 0, &mut next, 10);
                return said;
            }
            3 => {
                say(0, FIN | ACK, 0, &mut next, 10);
                return said;
            }
            _ => {}
        }
    }
    if !whole {
        // What went before on these ports must be over, or this would contradict it.
        say(random.below(2), ACK, 0, &mut next, 400_000_000);
    } else {
        say(1, SYN | ACK, 0, &mut next, 20);
        say(0, ACK, 0, &mut next, 30);
    }
    for _ in 0..random.below(6) {
        let from = random.below(2);
        say(from, PSH | ACK, 1 + random.below(1400), &mut next, 50);
        say(1 - from, ACK, 0, &mut next, 40);
    }
    let first = random.below(2);
    match random.below(6) {
        0 => {}
        1 => say(first, RST | ACK, 0, &mut next, 60),
        2 => say(first, FIN | ACK, 0, &mut next, 60),
        3 => {
            say(first, FIN | ACK, 0, &mut next, 60);
            say(1 - first, RST, 0, &mut next, 60);
        }
        _ => {
            say(first, FIN | ACK, 0, &mut next, 60);
            say(1 - first, FIN | ACK, 0, &mut next, 70);
            say(first, ACK, 0, &mut next, 80);
        }
    }
    said
}

/// Replays a made-up file.
fn replay_bytes(bytes: &[u8], args: &[&str]) -> common::Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    replay(file.path(), args).unwrap()
}

#[test]
fn made_up_conversations_that_reuse_ports_have_the_flows_of_the_model() {
    let mut random = oracle::frames::Random::new(5);
    let conversations = (0..3000)
        .map(|_| {
            let port = 40000 + random.below(50) as u16;
            (port, conversation(&mut random))
        })
        .collect::<Vec<_>>();
    let file = write_capture(&conversations);
    let output = replay_bytes(&file, &[]);
    check_packets(&output);
    let mut found = output.events("flow").iter().map(record).collect::<Vec<_>>();
    let mut expected = flow_model::records(&file).unwrap();
    flow_model::sort(&mut found);
    flow_model::sort(&mut expected);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
    for state in [
        "S0", "S1", "SF", "REJ", "S2", "S3", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH", "SHR", "OTH",
    ] {
        let count = found.iter().filter(|one| one.conn_state == state).count();
        assert!(count > 0, "no {state} among {}", found.len());
    }
    // The same file gives the same bytes, whatever the buffer.
    let again = replay_bytes(&file, &["--buffer", "perf"]);
    assert_eq!(output.events("flow"), again.events("flow"));
}
