//! SYNs that are retransmitted after the fate of their attempt was reported.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use serde_json::json;

use super::{NOBODY, Trace, assert_fate, begin, late_ack, listener, segment, send, with_neighbour};
use crate::common::net::{Growth, nft};
use crate::common::raw::RawSocket;
use crate::common::{Namespace, Pair, SERVER4, Tool, need, since};

const PORT: u16 = 8601;

fn addr() -> SocketAddr {
    (Ipv4Addr::LOCALHOST, PORT).into()
}

fn drops(namespace: &Namespace) -> Result<(), String> {
    let rule = format!("tcp dport {PORT} drop");
    nft(namespace, "type filter hook input priority 0", &rule)
}

/// A client that gets through with its second SYN, because the first was dropped.
fn gets_through(namespace: &Namespace) -> (OwnedFd, TcpListener) {
    let client = namespace.enter(|| begin(addr()));
    let repeated = Growth::of(namespace, "TcpRetransSegs");
    repeated.reaches(1);
    namespace.run("nft flush ruleset");
    let listener = namespace.enter(|| TcpListener::from(listener(addr(), 16)));
    listener.accept().unwrap();
    (client, listener)
}

#[test]
fn counts_by_key_keep_the_first_fate_of_an_attempt() {
    let namespace = need!(Namespace::new());
    need!(drops(&namespace));
    let args = ["accept-trace", "--json", "--by", "dport", "-I", "1h", "lo"];
    let tool = Tool::start_in(&namespace, &args);
    let _sockets = gets_through(&namespace);
    let output = tool.stop();
    let summary = output.summary();
    assert_eq!(summary["attempts"], 1, "{summary}");
    assert_eq!(summary["fates"]["dropped"], 1, "{summary}");
    assert_eq!(summary["matched"], 1, "{summary}");
    let counts = &output.events("accept_count")[0];
    assert_eq!(counts["total"], 1, "{counts}");
    assert_eq!(counts["top"].as_array().unwrap().len(), 1, "{counts}");
    assert_eq!(counts["top"][0]["of"], "dropped", "{counts}");
}

#[test]
fn a_valid_syn_cookie_that_finds_no_room_is_not_reported_as_no_listener() {
    need!(since((6, 18), "this drop has no reason"));
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_syncookies", "2");
    let hook = "type filter hook input priority 0";
    need!(nft(&pair.server, hook, "tcp dport 8602 drop"));
    let _listener = pair.server.enter(|| listener((SERVER4, 8602).into(), 0));
    let overflows = Growth::of(&pair.server, "TcpExtListenOverflows");
    let trace = Trace::start(&pair.server, &["--src", &NOBODY.to_string(), "vs"]);
    send(&pair, &segment(&pair, NOBODY, 2, (4000, 8602), 77, 0));
    trace.fate(8602);
    pair.server.run("nft flush ruleset");
    // At this SYN the listener is not looked up, because the fate of the attempt was reported before.
    late_ack(&pair, 8602);
    overflows.reaches(1);
    let fates = trace.stop();
    let line = fates.at(8602)[1];
    assert_eq!(
        (&line["continued"], &line["cookie"]),
        (&true.into(), &true.into()),
        "{line}"
    );
    assert_fate(line, "pending", Some("accept_queue_full"), Some("inferred"));
}

#[test]
fn a_dropped_attempt_that_gets_through_later_has_an_accept_wait_and_no_handshake_time() {
    for (of, matched) in [("handshake", 0), ("accept-wait", 1)] {
        // A new namespace for each, so that the port is free.
        let namespace = need!(Namespace::new());
        need!(drops(&namespace));
        let args = ["accept-trace", "--json", "--histogram", of, "lo"];
        let tool = Tool::start_in(&namespace, &args);
        drop(gets_through(&namespace));
        let summary = tool.stop().summary();
        assert_eq!(summary["fates"]["accepted"], 1, "{summary}");
        assert_eq!(summary["matched"], matched, "{of}: {summary}");
        assert_eq!(summary["emitted"], matched, "{of}: {summary}");
    }
}

#[test]
fn a_flood_does_not_make_a_repeated_syn_another_attempt() {
    let pair = need!(Pair::new());
    let rule = "tcp dport 8602-8603 drop";
    need!(nft(&pair.server, "type filter hook input priority 0", rule));
    let trace = Trace::start(&pair.server, &["vs", "--max-rate", "100"]);
    let repeated = Growth::of(&pair.client, "TcpRetransSegs");
    let _client = pair.client.enter(|| begin((SERVER4, 8602).into()));
    trace.fate(8602);
    // More than 65,536. The sum of sequence and acknowledgement number stays the same, so that the
    // checksum stays right.
    const FLOOD: u32 = 66_000;
    let mut frame = segment(&pair, NOBODY, 2, (4000, 8603), 0, u32::MAX);
    pair.client.enter(|| {
        let socket = RawSocket::open("vc");
        for at in 0..FLOOD {
            frame[38..42].copy_from_slice(&at.to_be_bytes());
            frame[42..46].copy_from_slice(&(!at).to_be_bytes());
            socket.send(&frame);
        }
    });
    let before = repeated.now();
    repeated.reaches(before + 1);
    let summary = trace.tool.stop().summary();
    let (attempts, forgotten) = (
        summary["attempts"].as_u64().unwrap(),
        summary["forgotten"].as_u64().unwrap(),
    );
    assert!(attempts <= u64::from(FLOOD) + 1, "{summary}");
    assert!(forgotten < 1000, "{summary}");
    assert_eq!(summary["fates"]["dropped"], json!(attempts), "{summary}");
}

#[test]
fn one_source_port_and_sequence_number_for_many_ports_are_many_attempts() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let listen = |port| listener((SERVER4, port).into(), 16);
    let _listeners = pair.server.enter(|| [8611, 8612, 8613].map(listen));
    let trace = Trace::start(&pair.server, &["vs"]);
    // nmap scans like this. The ports where nobody listens are reported at once, the others are half-open
    // at the same time.
    for port in 8609..8617 {
        send(&pair, &segment(&pair, NOBODY, 2, (4000, port), 77, 0));
        trace.arrived(port, 1);
    }
    send(&pair, &segment(&pair, NOBODY, 4, (4000, 8612), 78, 0));
    trace.fate(8612);
    let fates = trace.stop();
    for port in 8609..8617 {
        let fate = match port {
            8612 => "reset",
            8611 | 8613 => "pending",
            _ => "refused",
        };
        assert_eq!(fates.only(port)["fate"], fate, "{:#?}", fates.all);
    }
    assert_eq!(fates.count("refused"), 5, "{}", fates.summary);
}

#[test]
fn a_repeated_syn_to_a_closed_port_refuses_no_other_attempt_with_its_numbers() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let _listener = pair.server.enter(|| listener((SERVER4, 8621).into(), 16));
    let trace = Trace::start(&pair.server, &["vs"]);
    let syn = |port| segment(&pair, NOBODY, 2, (4000, port), 77, 0);
    send(&pair, &syn(8621));
    trace.arrived(8621, 1);
    send(&pair, &syn(8622));
    trace.fate(8622);
    send(&pair, &syn(8622));
    send(&pair, &segment(&pair, NOBODY, 2, (4001, 8622), 78, 0));
    trace.wait_for_fates(2);
    let fates = trace.stop();
    assert_fate(fates.only(8621), "pending", None, None);
    assert_eq!(fates.count("refused"), 2);
}
