//! Attempts that are accepted, or can still be accepted at the end of the run.

use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::sys::socket::{MsgFlags, SockFlag, SockaddrStorage, bind, send as send_data};

use super::{
    NOBODY, Trace, acknowledge, assert_fate, half_open, listener, local, segment, send, server,
    with_neighbour,
};
use crate::common::net::Growth;
use crate::common::raw::RawSocket;
use crate::common::{CLIENT4, Namespace, Pair, need};
use crate::connect::sockets::{connect_to, reset_on_close, tcp};

#[test]
fn the_process_that_accepts_is_named_with_the_times_of_handshake_and_wait() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    let (wait, uid) = (Duration::from_millis(30), nix::unistd::getuid());
    let tid = namespace.enter(|| {
        let listener = TcpListener::bind(local(8001)).unwrap();
        let client = TcpStream::connect(local(8001)).unwrap();
        std::thread::sleep(wait);
        let (_server, peer) = listener.accept().unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        nix::unistd::gettid()
    });
    trace.fate(8001);
    let fates = trace.stop();
    let line = fates.only(8001);
    assert_fate(line, "accepted", None, None);
    assert_eq!(line["pid"], std::process::id(), "{line}");
    assert_eq!(line["tid"], tid.as_raw(), "{line}");
    assert_eq!(line["uid"], uid.as_raw(), "{line}");
    assert_eq!(line["netns"], namespace.inode(), "{line}");
    assert_eq!(line["iface"], "lo", "{line}");
    let micros = |key: &str| u128::from(line[key].as_u64().unwrap());
    // The wait begins when the server gets the final ACK, which may be after connect(2) has returned
    // to the client.
    assert!(micros("accept_wait_us") >= wait.as_micros() / 2, "{line}");
    assert!(micros("syn_ack_us") <= micros("handshake_us"), "{line}");
    assert!(micros("handshake_us") < 1_000_000, "{line}");
    assert_eq!(line["queue_len"], 0, "{line}");
    assert!(line["queue_max"].as_u64() > Some(0), "{line}");
    for key in ["cookie", "fast_open"] {
        assert_eq!(line[key], false, "{line}");
    }
    assert_eq!(fates.count("accepted"), 1);
}

#[test]
fn a_connection_that_its_initiator_closes_before_the_accept_is_still_accepted() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind(local(8012)).unwrap();
        drop(TcpStream::connect(local(8012)).unwrap());
        std::thread::sleep(Duration::from_millis(20));
        listener.accept().unwrap();
    });
    assert_fate(&trace.fate(8012), "accepted", None, None);
    trace.stop();
}

#[test]
fn urgent_data_before_the_accept_hides_neither_the_process_nor_a_reset() {
    let namespace = need!(Namespace::new());
    let resets = Growth::of(&namespace, "TcpEstabResets");
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind(local(8019)).unwrap();
        let connect = || {
            let client = TcpStream::connect(local(8019)).unwrap();
            // The second byte makes TCP skip the first one.
            for _ in 0..2 {
                send_data(client.as_raw_fd(), b"x", MsgFlags::MSG_OOB).unwrap();
                thread::sleep(Duration::from_millis(20));
            }
            client
        };
        let first = connect();
        listener.accept().unwrap();
        drop(first);
        let second = connect();
        let before = resets.now();
        reset_on_close(&second);
        drop(second);
        // Both ends count it.
        resets.reaches(before + 2);
    });
    trace.wait_for_fates(2);
    let fates = trace.stop();
    let [first, second] = fates.at(8019)[..] else {
        panic!("{:#?}", fates.all);
    };
    assert_fate(first, "accepted", None, None);
    assert_eq!(first["pid"], std::process::id(), "{first}");
    assert!(first["accept_wait_us"].is_u64(), "{first}");
    assert_fate(second, "reset", Some("peer_reset"), None);
}

#[test]
fn a_socket_that_connects_to_itself_is_accepted_at_once() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let socket = tcp(local(8009), SockFlag::empty());
        bind(socket.as_raw_fd(), &SockaddrStorage::from(local(8009))).unwrap();
        connect_to(&socket, local(8009)).unwrap();
    });
    let line = trace.fate(8009);
    assert_fate(&line, "accepted", None, None);
    assert_eq!(line["sport"], 8009, "{line}");
    assert_eq!(line["fast_open"], false, "{line}");
    assert!(line["pid"].is_null(), "nobody has called accept: {line}");
    trace.stop();
}

#[test]
fn an_old_duplicate_of_a_syn_begins_no_attempt() {
    let pair = need!(Pair::new());
    let seen = pair.client.enter(|| RawSocket::open_to_receive("vc"));
    let challenged = Growth::of(&pair.server, "TcpExtTCPSYNChallenge");
    let trace = Trace::start(&pair.server, &["vs"]);
    let listener = pair
        .server
        .enter(|| TcpListener::bind(server(8042)).unwrap());
    let client = pair
        .client
        .enter(|| TcpStream::connect(server(8042)).unwrap());
    let _accepted = listener.accept().unwrap();
    assert_fate(&trace.fate(8042), "accepted", None, None);
    let isn = loop {
        let frame = seen.receive();
        if frame.len() >= 54 && frame[36..38] == 8042_u16.to_be_bytes() && frame[47] == 2 {
            break u32::from_be_bytes(frame[38..42].try_into().unwrap());
        }
    };
    // What is known of the listener is looked up again after a jiffy.
    std::thread::sleep(Duration::from_millis(20));
    let ports = (client.local_addr().unwrap().port(), 8042);
    send(&pair, &segment(&pair, CLIENT4, 2, ports, isn, 0));
    challenged.reaches(1);
    trace.stop().only(8042);
}

#[test]
fn an_old_duplicate_of_a_syn_does_not_disturb_another_attempt_with_its_numbers() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let trace = Trace::start(&pair.server, &["vs"]);
    let listeners = [8045, 8046].map(|port| {
        pair.server
            .enter(|| TcpListener::bind(server(port)).unwrap())
    });
    let seq = half_open(&pair, 8045);
    acknowledge(&pair, 8045, seq.wrapping_add(1));
    let _accepted = listeners[0].accept().unwrap();
    half_open(&pair, 8046);
    let challenged = Growth::of(&pair.server, "TcpExtTCPSYNChallenge");
    std::thread::sleep(Duration::from_millis(20));
    send(&pair, &segment(&pair, NOBODY, 2, (4000, 8045), 77, 0));
    challenged.reaches(1);
    let fates = trace.stop();
    assert_fate(fates.only(8045), "accepted", None, None);
    assert_fate(fates.only(8046), "pending", None, None);
}

#[test]
fn attempts_without_an_outcome_at_the_end_are_pending() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let listener = namespace.enter(|| listener(local(8013), 16));
    let _client = namespace.enter(|| TcpStream::connect(local(8013)).unwrap());
    trace.arrived(8013, 1);
    established.reaches(1);
    let fates = trace.stop();
    drop(listener);
    assert_fate(fates.only(8013), "pending", None, None);
    assert!(fates.only(8013)["handshake_us"].is_u64());
}

#[test]
fn syn_cookies_are_reported_and_accepted() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_syncookies", "2");
    let sent = Growth::of(&namespace, "TcpExtSyncookiesSent");
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind(local(8014)).unwrap();
        let _client = TcpStream::connect(local(8014)).unwrap();
        listener.accept().unwrap();
    });
    let line = trace.fate(8014);
    assert_fate(&line, "accepted", None, None);
    assert_eq!(line["cookie"], true, "{line}");
    assert_eq!(sent.now(), 1);
    trace.stop();
}

#[test]
fn a_socket_of_both_families_accepts_either() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind("[::]:8017").unwrap();
        for addr in ["127.0.0.1:8017", "[::1]:8017"] {
            let _client = TcpStream::connect(addr).unwrap();
            listener.accept().unwrap();
        }
    });
    trace.wait_for_fates(2);
    let fates = trace.stop();
    let sources: Vec<_> = fates
        .at(8017)
        .into_iter()
        .map(|line| &line["saddr"])
        .collect();
    assert_eq!(sources, ["127.0.0.1", "::1"]);
    assert_eq!(fates.count("accepted"), 2);
}

#[test]
fn another_namespace_with_the_same_addresses_does_not_interfere() {
    let (seen, other) = (need!(Namespace::new()), need!(Namespace::new()));
    let trace = Trace::start(&seen, &["lo"]);
    for namespace in [&other, &seen] {
        namespace.enter(|| {
            let listener = TcpListener::bind(local(8018)).unwrap();
            let _client = TcpStream::connect(local(8018)).unwrap();
            listener.accept().unwrap();
        });
    }
    trace.fate(8018);
    assert_eq!(trace.stop().summary["attempts"], 1);
}
