//! flows: what --summary says of a run.

use super::*;

#[test]
fn the_summary_adds_up_what_the_lines_say() {
    need!(Namespace::new());
    let mut conversations = Vec::new();
    for port in 4000..4010 {
        let mut said = handshake();
        said.push(say(true, PSH | ACK, 101, 501, usize::from(port - 3999)));
        // Its second half is retransmitted.
        said.push(say(true, PSH | ACK, 101, 501, usize::from(port - 3999)));
        if port % 2 == 0 {
            said.push(say(false, RST | ACK, 501, 101, 0));
        }
        conversations.push((port, said));
    }
    let refused = vec![say(true, SYN, 7, 0, 0), say(false, RST | ACK, 0, 8, 0)];
    conversations.push((5000, refused));
    conversations.push((6000, vec![say(true, SYN, 7, 0, 0), say(true, SYN, 7, 0, 0)]));
    let file = write_capture(&conversations);
    let output = replay_bytes(&file, &["--summary"]);
    let summary = check_packets(&output);
    let lines = output.events("flow");
    let sum = |key: &str| -> u64 {
        let values = lines.iter().map(|line| line[key].as_u64().unwrap());
        values.sum()
    };
    for key in [
        "orig_bytes",
        "resp_bytes",
        "syn_retransmits",
        "orig_retransmits",
        "resp_retransmits",
    ] {
        assert_eq!(summary[key], sum(key), "{key}");
    }
    assert_eq!(summary["connections"], 12);
    for (state, count) in summary["conn_states"].as_object().unwrap() {
        let lines = lines
            .iter()
            .filter(|line| line["conn_state"] == state.as_str());
        assert_eq!(count.as_u64().unwrap(), lines.count() as u64, "{state}");
    }
    assert_eq!(summary["conn_states"]["REJ"], 1);
    assert_eq!(summary["conn_states"]["S0"], 1);
    assert_eq!(summary["conn_states"]["RSTR"], 5);
    let talker = json!({
        "saddr": "10.0.0.1", "daddr": "10.0.0.2", "dport": 80,
        "connections": 12, "failed": 2, "bytes": sum("orig_bytes"),
        "retransmits": sum("orig_retransmits") + sum("syn_retransmits"),
    });
    for key in ["talkers", "most_failures", "most_retransmits"] {
        assert_eq!(summary[key], json!([talker]), "{key}");
    }
    assert_eq!(
        (&summary["failed"], &summary["reset"]),
        (&json!(2), &json!(5))
    );
    let longest = summary["longest_handshakes"].as_array().unwrap();
    assert_eq!(longest.len(), 5);
    assert_eq!(longest[0]["handshake_us"], 2000);
    let plain = replay_bytes(&file, &[]);
    assert!(plain.summary()["connections"].is_null());
}

#[test]
fn histograms_have_the_handshakes_of_the_lines_by_key() {
    need!(Namespace::new());
    let conversations = (4000..4010).map(|port| (port, handshake()));
    let file = write_capture(&conversations.collect::<Vec<_>>());
    for (by, key) in [
        (None, Value::Null),
        (Some("dport"), json!(80)),
        (Some("saddr"), json!("10.0.0.1")),
        (Some("daddr"), json!("10.0.0.2")),
    ] {
        for (of, sum, le) in [("handshake", 20_000, 2048), ("rtt", 20_000, 2048)] {
            let mut options = vec!["--histogram", of];
            options.extend(by.iter().flat_map(|by| ["--by", by]));
            let output = replay_bytes(&file, &options);
            check_account(&output.summary());
            let lines = output.events("histogram");
            assert_eq!(lines.len(), 1, "{output:#?}");
            let expected = [
                ("of", json!(of)),
                ("by", json!(by)),
                ("key", key.clone()),
                ("count", json!(10)),
                ("sum", json!(sum)),
                ("buckets", json!([{"le": le, "count": 10}])),
            ];
            assert_fields(&lines[0], &expected);
        }
    }
}

#[test]
fn in_text_the_summary_has_lines_of_its_own() {
    let namespace = need!(Namespace::new());
    let tool = Tool::start_in(&namespace, &["flows", "lo", "--summary"]);
    transfer(&namespace, &namespace, ([127, 0, 0, 1], 0).into(), [10, 20]);
    tool.line("of the connection", |line| line.contains(" SF "));
    let output = tool.stop();
    let at = |start: &str| {
        let mut lines = output.stderr.iter();
        lines
            .position(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start}: {output:#?}"))
    };
    let places = [
        "summary: flows",
        "connections: 1",
        "          1  SF     established and closed normally",
        "bytes: 10 by initiators, 20 by responders",
        "retransmitted: 0 SYNs, ",
        "top talkers, by bytes:",
        "longest handshakes:",
    ]
    .map(at);
    assert!(places.is_sorted(), "{output:#?}");

    // The summary was asked for, so -q does not suppress it.
    let mut command = command(["flows", "lo", "--summary", "-q", "--duration", "100ms"]);
    let stderr = Tool::spawn_in(&namespace, &mut command).finish().stderr;
    assert_eq!(
        stderr[0], "connections: 0 (0 failed, 0 reset)",
        "{stderr:?}"
    );
}
