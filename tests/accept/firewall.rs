//! Attempts that a firewall drops, rejects, or lets through later.

use std::net::{TcpListener, TcpStream};

use super::{Trace, assert_fate, begin, listener, local, segment, send, server};
use crate::common::net::{Growth, nft};
use crate::common::{CLIENT4, Namespace, Pair, SERVER6, need};

#[test]
fn a_syn_that_a_firewall_drops_is_reported_at_once_and_its_retransmission_is_not_another_attempt() {
    let namespace = need!(Namespace::new());
    need!(nft(
        &namespace,
        "type filter hook input priority 0",
        "tcp dport 8002 drop"
    ));
    namespace.sysctl("ipv4/tcp_syn_retries", "1");
    let trace = Trace::start(&namespace, &["lo"]);
    let repeated = Growth::of(&namespace, "TcpRetransSegs");
    let client = namespace.enter(|| begin(local(8002)));
    let line = trace.fate(8002);
    assert_fate(&line, "dropped", Some("netfilter_drop"), None);
    assert!(line["place"].as_str().unwrap().starts_with("nf"), "{line}");
    repeated.reaches(1);
    drop(client);
    assert_eq!(trace.stop().count("dropped"), 1);
}

#[test]
fn an_attempt_that_gets_through_after_the_firewall_was_opened_is_one_attempt() {
    let namespace = need!(Namespace::new());
    need!(nft(
        &namespace,
        "type filter hook input priority 0",
        "tcp dport 8023 drop"
    ));
    let listener = namespace.enter(|| TcpListener::from(listener(local(8023), 16)));
    let trace = Trace::start(&namespace, &["--failed", "lo"]);
    let _client = namespace.enter(|| begin(local(8023)));
    let line = trace.fate(8023);
    assert_fate(&line, "dropped", Some("netfilter_drop"), None);
    assert_eq!(line["continued"], false, "{line}");
    namespace.run("nft flush ruleset");
    listener.accept().unwrap();
    trace.wait_for_fates(2);
    let fates = trace.stop();
    let line = fates.at(8023)[1];
    assert_fate(line, "accepted", None, None);
    assert_eq!(line["continued"], true, "{line}");
    assert_eq!((fates.count("accepted"), fates.count("dropped")), (1, 0));
    assert_eq!(fates.summary["attempts"], 1);
}

#[test]
fn an_attempt_that_is_refused_after_the_firewall_was_opened_is_one_attempt() {
    let pair = need!(Pair::new());
    let drop = "tcp dport { 8025, 8026 } drop";
    need!(nft(&pair.server, "type filter hook input priority 0", drop));
    let trace = Trace::start(&pair.server, &["vs"]);
    let addrs = [server(8025), (SERVER6, 8026).into()];
    let _clients = addrs.map(|addr| pair.client.enter(|| begin(addr)));
    trace.wait_for_fates(2);
    pair.server.run("nft flush ruleset");
    trace.wait_for_fates(4);
    let fates = trace.stop();
    for port in [8025, 8026] {
        let lines = fates.at(port);
        assert_fate(lines[0], "dropped", Some("netfilter_drop"), None);
        assert_fate(lines[1], "refused", Some("no_listener"), None);
        assert_eq!(lines[1]["continued"], true, "{lines:?}");
    }
    assert_eq!((fates.count("refused"), fates.count("dropped")), (2, 0));
    assert_eq!(fates.summary["attempts"], 2);
}

#[test]
fn an_attempt_that_a_firewall_rejects_is_refused_with_that_reason() {
    let namespace = need!(Namespace::new());
    need!(nft(
        &namespace,
        "type filter hook input priority 0",
        "tcp dport 8003 reject with tcp reset"
    ));
    let _listener = namespace.enter(|| listener(local(8003), 16));
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| TcpStream::connect(local(8003)).unwrap_err());
    assert_fate(&trace.fate(8003), "refused", Some("netfilter_drop"), None);
    trace.stop();
}

#[test]
fn an_answer_that_a_firewall_drops_is_a_drop() {
    let namespace = need!(Namespace::new());
    need!(nft(
        &namespace,
        "type filter hook output priority 0",
        "tcp sport 8004 drop"
    ));
    namespace.sysctl("ipv4/tcp_syn_retries", "1");
    let _listener = namespace.enter(|| listener(local(8004), 16));
    let trace = Trace::start(&namespace, &["lo"]);
    let _client = namespace.enter(|| begin(local(8004)));
    assert_fate(&trace.fate(8004), "dropped", Some("netfilter_drop"), None);
    trace.stop();
}

#[test]
fn a_refusal_that_a_firewall_drops_is_a_drop() {
    let pair = need!(Pair::new());
    need!(nft(
        &pair.server,
        "type filter hook output priority 0",
        "tcp flags & rst == rst drop"
    ));
    let trace = Trace::start(&pair.server, &["vs"]);
    send(&pair, &segment(&pair, CLIENT4, 2, (4000, 8031), 77, 0));
    let line = trace.fate(8031);
    assert_eq!(line["fate"], "dropped", "{line}");
    if line["reason_from"] == "kernel" {
        assert_eq!(line["reason"], "netfilter_drop", "{line}");
    }
    trace.stop();
}
