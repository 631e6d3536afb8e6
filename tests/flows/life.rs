//! flows: the life of a flow, with attempts, ends and idle flows.

use super::*;

#[test]
fn flows_that_go_on_are_reported_at_the_end_and_those_seen_from_midstream_are_partial() {
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let mut before = pair.client.enter(|| TcpStream::connect(addr).unwrap());
    let tool = Tool::start_in(&pair.server, &["flows", "vs", "--json"]);
    let during = pair.client.enter(|| TcpStream::connect(addr).unwrap());
    before.write_all(b"hello").unwrap();
    let mut accepted = listener.accept().unwrap().0;
    accepted.read_exact(&mut [0; 5]).unwrap();
    let output = tool.stop();
    check_packets(&output);
    let flows = output.events("flow");
    // On older kernels, programs can't read sockets.
    let older = if has_socket_programs().is_ok() {
        "S1"
    } else {
        "OTH"
    };
    for (stream, conn_state, partial) in [(&before, older, true), (&during, "S1", false)] {
        let port = stream.local_addr().unwrap().port();
        let line = flows.iter().find(|line| line["sport"] == port).unwrap();
        assert_fields(
            line,
            &[
                ("conn_state", json!(conn_state)),
                ("state", json!("ESTABLISHED")),
                ("partial", json!(partial)),
                ("end", json!("open")),
            ],
        );
    }
}

#[test]
fn refused_and_unanswered_attempts_and_idle_flows_have_their_states() {
    let pair = need!(Pair::new());
    let args = ["flows", "vs", "--json", "--idle-timeout", "0.5"];
    let tool = Tool::start_in(&pair.server, &args);
    pair.refused_connects((SERVER4, 81).into(), 1);
    let line = tool.json("refused", |line| line["dport"] == 81);
    let refused = [
        ("conn_state", json!("REJ")),
        ("history", json!("Sr")),
        ("state", json!("CLOSED")),
    ];
    assert_fields(&line, &refused);
    // Nobody has this address: its SYN is seen leaving, and no answer comes.
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    socket.send(&syn_frame(&[], CLIENT4.into(), SERVER4.into(), 82));
    let line = tool.json("unanswered", |line| line["dport"] == 82);
    assert_fields(
        &line,
        &[
            ("conn_state", json!("S0")),
            ("state", json!("SYN-SENT")),
            ("end", json!("idle")),
            ("handshake_us", Value::Null),
        ],
    );
    check_packets(&tool.stop());
}

#[test]
fn an_attempt_without_an_answer_is_reported_at_once_and_its_connection_when_it_ends() {
    let pair = need!(Pair::new());
    let args = ["flows", "vc", "--json", "--attempt-timeout", "300ms"];
    let tool = Tool::start_in(&pair.client, &args);
    let text = ["flows", "vc", "--attempt-timeout", "300ms"];
    let text = Tool::start_in(&pair.client, &text);
    let listener = pair
        .server
        .enter(|| TcpListener::bind(("0.0.0.0", 8080)).unwrap());
    // The server does not answer, because it has no address for a while.
    pair.server.run(&format!("ip addr del {SERVER4}/24 dev vs"));
    let lost = pair
        .client
        .enter(|| std::thread::spawn(|| TcpStream::connect((SERVER4, 7)).map(|_| ())));
    let heard = pair
        .client
        .enter(|| std::thread::spawn(|| TcpStream::connect((SERVER4, 8080)).unwrap()));
    let unanswered = [
        ("conn_state", json!("S0")),
        ("state", json!("SYN-SENT")),
        ("end", json!("unanswered")),
        ("continued", json!(false)),
    ];
    for port in [7, 8080] {
        let line = tool.json("unanswered", |line| line["dport"] == port);
        assert_fields(&line, &unanswered);
    }
    pair.server.run(&format!("ip addr add {SERVER4}/24 dev vs"));
    drop((heard.join().unwrap(), listener.accept().unwrap()));
    assert!(lost.join().unwrap().is_err());
    let line = tool.json("in the end", |line| {
        line["dport"] == 8080 && line["end"] != "unanswered"
    });
    assert_fields(
        &line,
        &[
            ("conn_state", json!("SF")),
            ("continued", json!(true)),
            ("partial", json!(false)),
        ],
    );
    assert!(line["syn_retransmits"].as_u64().unwrap() > 0, "{line}");
    assert!(line["handshake_us"].as_u64().unwrap() > 300_000, "{line}");
    check_packets(&tool.stop());
    // In text a mark says which line is the second one.
    let lines = text.stop().stdout;
    let of = |port: &str| {
        let words = lines.iter().map(|line| line.split_whitespace());
        let words = words.filter(|words| words.clone().nth(5) == Some(port));
        let conn = words.filter_map(|mut words| words.nth(6));
        conn.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(of("8080"), ["S0", "SF+"], "{lines:#?}");
    assert_eq!(
        of("7").first().map(String::as_str),
        Some("S0"),
        "{lines:#?}"
    );
}
