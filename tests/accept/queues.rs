//! Attempts that meet full queues, of the listener or of the tool.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    Backlog, SockFlag, SockaddrStorage, bind, listen, setsockopt, sockopt::BindToDevice,
};

use super::{
    NOBODY, Trace, acknowledge, assert_fate, begin, half_open, late_ack, listener, local, segment,
    send, server, with_neighbour,
};
use crate::common::net::{Growth, nft, shared_listener};
use crate::common::raw::RawSocket;
use crate::common::{Namespace, Pair, Tool, holder, need};
use crate::connect::sockets::tcp;

#[test]
fn a_flood_of_half_open_attempts_makes_room_for_real_ones() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_syncookies", "2");
    let listener = pair
        .server
        .enter(|| TcpListener::from(listener(server(8024), 64)));
    let args = [
        "accept-trace",
        "--json",
        "-i",
        "vs",
        "--by",
        "reason",
        "-I",
        "1h",
    ];
    let tool = Tool::start_in(&pair.server, &args);
    // The sum of sequence and acknowledgement number stays the same, so that the checksum stays right.
    const FLOOD: u32 = 70_000;
    let mut frame = segment(&pair, NOBODY, 2, (4000, 8024), 0, u32::MAX);
    pair.client.enter(|| {
        let socket = RawSocket::open("vc");
        for at in 0..FLOOD {
            let low = at as u16;
            let high = (at >> 16) as u16;
            frame[38..40].copy_from_slice(&high.to_be_bytes());
            frame[40..42].copy_from_slice(&low.to_be_bytes());
            frame[42..44].copy_from_slice(&(!high).to_be_bytes());
            frame[44..46].copy_from_slice(&(!low).to_be_bytes());
            socket.send(&frame);
        }
    });
    let _client = pair
        .client
        .enter(|| TcpStream::connect(server(8024)).unwrap());
    listener.accept().unwrap();
    let summary = tool.stop().summary();
    assert_eq!(summary["untracked"], 0, "{summary}");
    assert_eq!(summary["fates"]["accepted"], 1, "{summary}");
    let seen = summary["attempts"].as_u64().unwrap();
    // The kernel drops some of a flood before the interface sees them.
    assert!(seen > 65_600, "{summary}");
    assert_eq!(summary["fates"]["pending"], seen - 1, "{summary}");
}

#[test]
fn a_full_accept_queue_is_named_with_its_figures() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_syn_retries", "1");
    let _listener = namespace.enter(|| listener(local(8005), 1));
    let overflows = Growth::of(&namespace, "TcpExtListenOverflows");
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let trace = Trace::start(&namespace, &["lo"]);
    let begin_some = |count| {
        let clients = || (0..count).map(|_| begin(local(8005))).collect::<Vec<_>>();
        namespace.enter(clients)
    };
    // There is room for two: backlog + 1.
    let waiting = begin_some(2);
    established.reaches(2);
    let clients = begin_some(4);
    trace.wait_for_fates(4);
    overflows.reaches(4);
    let fates = trace.stop();
    drop((waiting, clients));
    assert_eq!(fates.count("dropped"), 4);
    assert_eq!(fates.count("pending"), 2);
    for line in fates.at(8005) {
        if line["fate"] == "dropped" {
            assert_fate(line, "dropped", Some("accept_queue_full"), Some("inferred"));
            assert_eq!(line["queue_len"], 2, "{line}");
            assert_eq!(line["queue_max"], 1, "{line}");
            // The process that does not accept, and for how long.
            assert_eq!(line["pid"], std::process::id(), "{line}");
            // Timers count jiffies, so a SYN can be retransmitted up to a jiffy before the second is over.
            assert!(line["queue_full_ms"].as_u64() >= Some(990), "{line}");
        }
    }
}

#[test]
fn a_queue_counts_as_full_until_the_last_syn_and_not_until_the_fate_is_known() {
    let namespace = need!(Namespace::new());
    let listener = namespace.enter(|| TcpListener::from(listener(local(8080), 0)));
    let trace = Trace::start(&namespace, &["lo"]);
    let overflows = Growth::of(&namespace, "TcpExtListenOverflows");
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let _first = namespace.enter(|| TcpStream::connect(local(8080)).unwrap());
    established.reaches(1);
    let second = namespace.enter(|| begin(local(8080)));
    overflows.reaches(1);
    // The client gives up before it retransmits its SYN.
    drop(second);
    listener.accept().unwrap();
    trace.wait_for_fates(2);
    let fates = trace.stop();
    let dropped: Vec<_> = fates
        .at(8080)
        .into_iter()
        .filter(|it| it["fate"] == "dropped")
        .collect();
    let [line] = dropped[..] else {
        panic!("{dropped:?}")
    };
    assert_fate(line, "dropped", Some("accept_queue_full"), Some("inferred"));
    // Its only SYN found the queue full. That its fate was known a second or more later does not count.
    if line["syn_retransmits"] == 0 {
        assert_eq!(line["queue_full_ms"], 0, "{line}");
    }
}

#[test]
fn an_attempt_that_gets_through_by_a_repeated_syn_is_one_attempt() {
    let namespace = need!(Namespace::new());
    let listener = namespace.enter(|| TcpListener::from(listener(local(8006), 0)));
    let trace = Trace::start(&namespace, &["lo"]);
    let overflows = Growth::of(&namespace, "TcpExtListenOverflows");
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let _first = namespace.enter(|| TcpStream::connect(local(8006)).unwrap());
    established.reaches(1);
    let _second = namespace.enter(|| begin(local(8006)));
    overflows.reaches(1);
    listener.accept().unwrap();
    listener.accept().unwrap();
    trace.wait_for_fates(2);
    let fates = trace.stop();
    assert_eq!(fates.count("accepted"), 2);
    let repeated: Vec<_> = fates
        .at(8006)
        .into_iter()
        .map(|it| &it["syn_retransmits"])
        .collect();
    assert_eq!(repeated, [0, 1]);
}

#[test]
fn an_attempt_redirected_to_a_full_queue_is_dropped() {
    let pair = need!(Pair::new());
    need!(nft(
        &pair.server,
        "type nat hook prerouting priority -100",
        "tcp dport 8041 redirect to :9041"
    ));
    pair.client.sysctl("ipv4/tcp_syn_retries", "1");
    let _listener = pair.server.enter(|| listener(server(9041), 0));
    let established = Growth::of(&pair.server, "TcpPassiveOpens");
    let overflows = Growth::of(&pair.server, "TcpExtListenOverflows");
    let _first = pair.client.enter(|| begin(server(8041)));
    established.reaches(1);
    let trace = Trace::start(&pair.server, &["vs"]);
    let _client = pair.client.enter(|| begin(server(8041)));
    assert_fate(&trace.fate(8041), "dropped", None, Some("unknown"));
    overflows.reaches(1);
    trace.stop();
}

#[test]
fn a_full_queue_at_the_final_ack_is_named() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_synack_retries", "1");
    let overflows = Growth::of(&pair.server, "TcpExtListenOverflows");
    let _listener = pair.server.enter(|| listener(server(8020), 0));
    let trace = Trace::start(&pair.server, &["vs"]);
    late_ack(&pair, 8020);
    let line = trace.fate(8020);
    assert_fate(&line, "dropped", Some("accept_queue_full"), None);
    assert_eq!(line["sport"], 4000, "{line}");
    overflows.reaches(1);
    trace.stop();
}

#[test]
fn a_reset_for_another_segment_does_not_refuse_an_attempt_at_a_full_queue() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let _listener = pair.server.enter(|| listener(server(8047), 0));
    let resets = Growth::of(&pair.server, "TcpOutRsts");
    let overflows = Growth::of(&pair.server, "TcpExtListenOverflows");
    let trace = Trace::start(&pair.server, &["--src", &NOBODY.to_string(), "vs"]);
    let seq = half_open(&pair, 8047);
    let established = Growth::of(&pair.server, "TcpPassiveOpens");
    pair.client
        .enter(|| TcpStream::connect(server(8047)).unwrap());
    established.reaches(1);
    // No attempt has this sequence number.
    let stray = segment(&pair, NOBODY, 0x10, (4000, 8047), 79, seq.wrapping_add(2));
    send(&pair, &stray);
    resets.reaches(1);
    acknowledge(&pair, 8047, seq.wrapping_add(1));
    overflows.reaches(1);
    let fates = trace.stop();
    assert_fate(fates.only(8047), "pending", Some("accept_queue_full"), None);
}

#[test]
fn a_full_queue_that_answers_the_final_ack_with_a_reset_refuses() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_abort_on_overflow", "1");
    let _listener = pair.server.enter(|| listener(server(8021), 0));
    let trace = Trace::start(&pair.server, &["vs"]);
    late_ack(&pair, 8021);
    let line = trace.fate(8021);
    assert_fate(&line, "refused", Some("accept_queue_full"), None);
    assert_eq!(line["sport"], 4000, "{line}");
    trace.stop();
}

#[test]
fn of_two_listeners_on_a_port_the_one_bound_to_the_interface_is_named() {
    let pair = need!(Pair::new());
    for namespace in [&pair.server, &pair.client] {
        namespace.sysctl("ipv4/tcp_syn_retries", "1");
    }
    let [of_lo, of_vs] = ["lo", "vs"].map(|interface| {
        holder(pair.server.enter(|| {
            let addr = (Ipv4Addr::UNSPECIFIED, 8048).into();
            let socket = tcp(addr, SockFlag::empty());
            setsockopt(&socket, BindToDevice, &interface.into()).unwrap();
            bind(socket.as_raw_fd(), &SockaddrStorage::from(addr)).unwrap();
            listen(&socket, Backlog::new(0).unwrap()).unwrap();
            socket
        }))
    });
    let established = Growth::of(&pair.server, "TcpPassiveOpens");
    let trace = Trace::start(&pair.server, &["lo", "vs"]);
    let knock = || {
        let to_lo = pair.server.enter(|| begin(local(8048)));
        [to_lo, pair.client.enter(|| begin(server(8048)))]
    };
    let first = knock();
    established.reaches(2);
    let second = knock();
    trace.wait_for_fates(2);
    let fates = trace.stop();
    drop((first, second));
    assert_eq!((fates.count("dropped"), fates.count("pending")), (2, 2));
    for line in fates.at(8048) {
        let process = match line["iface"] == "lo" {
            true => &of_lo,
            false => &of_vs,
        };
        assert_eq!(line["pid"], process.0.id(), "{line}");
    }
}

#[test]
fn of_a_group_of_listeners_the_one_with_the_full_queue_is_named() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_syn_retries", "1");
    let [with_room, full] =
        [64, 0].map(|backlog| holder(namespace.enter(|| shared_listener(local(8049), backlog))));
    let trace = Trace::start(&namespace, &["lo"]);
    // The kernel chooses by a hash of the ports.
    let clients = namespace.enter(|| [(); 32].map(|()| begin(local(8049))));
    assert_fate(
        &trace.fate(8049),
        "dropped",
        Some("accept_queue_full"),
        None,
    );
    let fates = trace.stop();
    drop(clients);
    let lines = fates.at(8049);
    assert!(lines.iter().any(|line| line["queue_max"] == 64));
    for line in lines {
        let process = match line["queue_max"] == 64 {
            true => &with_room,
            false => &full,
        };
        assert_eq!(line["pid"], process.0.id(), "{line}");
    }
}
