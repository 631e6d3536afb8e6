//! flows: packets that do not fit their connection.

use super::*;

#[test]
fn packets_that_contradict_what_was_seen_are_counted_and_change_nothing() {
    let mut said = handshake();
    said.extend([
        // Far beyond the window: the RST and the FIN of somebody else.
        say(true, RST, 101 + 10_000_000, 0, 0),
        say(false, FIN | ACK, 501 + 10_000_000, 101, 0),
        // Acknowledges what was never sent.
        say(false, ACK, 501, 9000, 0),
        // Before the first byte.
        say(true, ACK, 50, 501, 1),
        // Flags that no TCP sends.
        say(true, SYN | FIN | RST, 101, 501, 0),
        say(true, 0, 101, 501, 0),
        say(true, PSH | ACK, 101, 501, 10),
        say(true, FIN | ACK, 111, 501, 0),
        say(false, FIN | ACK, 501, 112, 0),
        say(true, ACK, 112, 502, 0),
    ]);
    assert_fields(
        &flow_of_packets(said),
        &[
            ("conn_state", json!("SF")),
            ("state", json!("TIME-WAIT")),
            ("unexpected", json!(6)),
            ("orig_pkts", json!(9)),
            ("orig_bytes", json!(11)),
            ("resp_pkts", json!(4)),
        ],
    );
}

/// A connection that has carried 30,000 bytes from the client, then forged segments, and then its
/// regular end.
fn interrupted_by(lies: Vec<Said>) -> Value {
    let mut said = handshake();
    for i in 0..30 {
        said.push(say(true, PSH | ACK, 101 + i * 1000, 501, 1000));
        said.push(say(false, ACK, 501, 1101 + i * 1000, 0));
    }
    said.extend(lies);
    said.extend([
        say(true, PSH | ACK, 30_101, 501, 10),
        say(false, ACK, 501, 30_111, 0),
        say(true, FIN | ACK, 30_111, 501, 0),
        say(false, FIN | ACK, 501, 30_112, 0),
        say(true, ACK, 30_112, 502, 0),
    ]);
    flow_of_packets(said)
}

#[test]
fn resets_syns_and_fins_out_of_the_window_change_nothing() {
    let lies = [
        ("an old RST", say(true, RST, 10_101, 0, 0)),
        ("a RST within the window", say(true, RST, 30_102, 0, 0)),
        (
            "a RST of the other end",
            say(false, RST | ACK, 502, 30_101, 0),
        ),
        ("an old FIN", say(true, FIN | ACK, 102, 501, 0)),
        (
            "a FIN before what was sent",
            say(true, FIN | ACK, 29_000, 501, 0),
        ),
        (
            "a FIN beyond the window",
            say(true, FIN | ACK, 200_000, 501, 0),
        ),
        (
            "data beyond the window",
            say(true, PSH | ACK, 200_000, 501, 5),
        ),
        (
            "an old acknowledgement",
            say(false, FIN | ACK, 501, 4_000_000_000, 0),
        ),
        ("a SYN", say(true, SYN, 7_000_000, 0, 0)),
        ("a SYN-ACK", say(false, SYN | ACK, 7_000_000, 30_101, 0)),
        (
            "an answer to no SYN",
            say(false, RST | ACK, 0, 7_000_001, 0),
        ),
    ];
    for (name, lie) in lies {
        let line = interrupted_by(vec![lie]);
        let fields = [
            ("conn_state", json!("SF")),
            ("state", json!("TIME-WAIT")),
            ("history", json!("ShADaFf")),
            ("unexpected", json!(1)),
            ("orig_retransmits", json!(0)),
        ];
        eprintln!("{name}");
        assert_fields(&line, &fields);
    }
}

#[test]
fn a_reset_that_has_the_next_number_ends_the_connection() {
    for (from_client, seq) in [(true, 30_101), (false, 501)] {
        let mut said = handshake();
        for i in 0..30 {
            said.push(say(true, PSH | ACK, 101 + i * 1000, 501, 1000));
            said.push(say(false, ACK, 501, 1101 + i * 1000, 0));
        }
        said.push(say(from_client, RST, seq, 0, 0));
        let conn_state = if from_client { "RSTO" } else { "RSTR" };
        assert_fields(
            &flow_of_packets(said),
            &[("conn_state", json!(conn_state)), ("unexpected", json!(0))],
        );
    }
}

#[test]
fn a_host_that_restarts_has_a_new_connection_from_its_syn_on() {
    let mut said = handshake();
    said.extend([
        // The old connection is known to neither end any more.
        say(true, SYN, 7_000_000, 0, 0),
        say(true, SYN, 7_000_000, 0, 0),
        say(false, SYN | ACK, 9_000_000, 7_000_001, 0),
        say(true, ACK, 7_000_001, 9_000_001, 0),
        say(true, RST, 7_000_001, 0, 0),
    ]);
    let output = replay_bytes(&write_capture(&[(4000, said)]), &[]);
    check_packets(&output);
    let flows = output.events("flow");
    assert_eq!(flows.len(), 2, "{flows:#?}");
    assert_fields(
        &flows[0],
        &[
            ("conn_state", json!("S1")),
            ("end", json!("replaced")),
            ("orig_pkts", json!(2)),
            ("unexpected", json!(0)),
        ],
    );
    assert_fields(
        &flows[1],
        &[
            ("conn_state", json!("RSTO")),
            ("history", json!("ShAR")),
            ("orig_pkts", json!(4)),
            ("syn_retransmits", json!(1)),
            ("syn_ack_us", json!(2000)),
            ("partial", json!(false)),
            ("unexpected", json!(0)),
        ],
    );
}

#[test]
fn the_same_ends_in_two_vlans_are_two_flows() {
    let tagged = |tags: &[u8], said: &Said| {
        let mut frame = frame_of(4000, said);
        frame.splice(12..12, tags.iter().copied());
        (said.wait, frame)
    };
    let tags: [&[u8]; 4] = [
        &[0x81, 0, 0, 10],
        &[0x81, 0, 0xe0, 20],
        &[0x88, 0xa8, 0, 10, 0x81, 0, 0, 20],
        // A tag with id 0, which has only a priority.
        &[0x81, 0, 0xe0, 0],
    ];
    let said = handshake();
    let frames = said
        .iter()
        .flat_map(|said| tags.map(|tags| tagged(tags, said)));
    let output = replay_bytes(&write_frames(frames), &[]);
    check_packets(&output);
    let flows = output.events("flow");
    assert_eq!(flows.len(), 4, "{flows:#?}");
    for line in &flows {
        assert_fields(
            line,
            &[("unexpected", json!(0)), ("conn_state", json!("S1"))],
        );
    }
    for vlans in [json!([10]), json!([20]), json!([10, 20]), json!([])] {
        assert!(flows.iter().any(|line| line["vlan"] == vlans), "{vlans}");
    }
}

#[test]
fn a_connection_is_followed_over_a_gap_in_the_file_of_any_size() {
    for gap in [1_000_000_u32, 0x7000_0000, 0x9000_0000, 0xf000_0000] {
        let mut said = handshake();
        let end = 101_u32.wrapping_add(gap);
        let after = |n| end.wrapping_add(n);
        said.extend([
            say(true, PSH | ACK, 101, 501, 1000),
            say(false, ACK, 501, 1101, 0),
            say(true, PSH | ACK, end, 501, 1000),
            say(false, ACK, 501, after(1000), 0),
            say(true, PSH | ACK, after(1000), 501, 1000),
            say(false, ACK, 501, after(2000), 0),
            say(true, FIN | ACK, after(2000), 501, 0),
            say(false, FIN | ACK, 501, after(2001), 0),
            say(true, ACK, after(2001), 502, 0),
        ]);
        assert_fields(
            &flow_of_packets(said),
            &[
                ("conn_state", json!("SF")),
                ("orig_retransmits", json!(0)),
                ("unexpected", json!(2)),
            ],
        );
    }
}
