//! flows: against a model, over captures and made-up conversations.

use super::*;

fn end(line: &Value, addr: &str, port: &str) -> (std::net::IpAddr, u16) {
    let addr = line[addr].as_str().unwrap().parse().unwrap();
    (addr, line[port].as_u64().unwrap().try_into().unwrap())
}

fn nanos(text: &str) -> i64 {
    let at: jiff::Timestamp = text.parse().unwrap();
    at.as_nanosecond().try_into().unwrap()
}

/// A line in the form of the model.
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

#[test]
fn the_captures_of_tcpdump_and_tcpflow_have_the_flows_of_the_model() {
    let files = need!(crate::oracle::corpus::captures());
    let mut flows = 0;
    let mut states = BTreeMap::<&str, u64>::new();
    let mut differences = Vec::new();
    for path in &files {
        let bytes = fs::read(path).unwrap();
        let Some(mut expected) = crate::flow_model::records(&bytes) else {
            continue;
        };
        if expected.is_empty() {
            continue;
        }
        let output = replay(path, &[]).unwrap_or_else(|| panic!("{}", path.display()));
        check_packets(&output);
        let lines = output.events("flow");
        let mut found = lines.iter().map(record).collect::<Vec<_>>();
        crate::flow_model::sort(&mut expected);
        crate::flow_model::sort(&mut found);
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
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // The captures hold flows of most kinds, so an empty run proves nothing.
    assert!(flows > 200 && states.len() > 5, "{flows} flows, {states:?}");
}

/// A random conversation that succeeds, fails or gets no answer.
fn conversation(random: &mut crate::oracle::frames::Random) -> Vec<Said> {
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
        // The previous connection on these ports must be over, or this packet would contradict it.
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

#[test]
fn made_up_conversations_that_reuse_ports_have_the_flows_of_the_model() {
    let mut random = crate::oracle::frames::Random::new(5);
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
    let mut expected = crate::flow_model::records(&file).unwrap();
    crate::flow_model::sort(&mut found);
    crate::flow_model::sort(&mut expected);
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
