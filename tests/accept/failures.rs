//! Attempts that are refused, reset, aborted, unanswered, or dropped by the stack itself.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockaddrStorage, bind};
use serde_json::Value;

use super::{
    NOBODY, Trace, acknowledge, assert_fate, half_open, listener, local, segment, send, server,
    with_neighbour,
};
use crate::common::net::Growth;
use crate::common::{
    CLIENT4, Namespace, Pair, SERVER6, has_drop_reason, has_enumerator, need, release, wait_for,
};
use crate::connect::sockets::{connect_to, reset_on_close, tcp};

#[test]
fn a_port_without_a_listener_refuses_in_both_families() {
    let pair = need!(Pair::new());
    let trace = Trace::start(&pair.server, &["vs"]);
    for addr in [server(9), (SERVER6, 9).into()] {
        pair.refused_connects(addr, 1);
    }
    trace.wait_for_fates(2);
    let fates = trace.stop();
    assert_eq!(fates.count("refused"), 2);
    for line in fates.at(9) {
        assert_fate(line, "refused", Some("no_listener"), None);
    }
}

#[test]
fn an_answer_that_nobody_acknowledges_is_unanswered() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_synack_retries", "1");
    let _listener = pair.server.enter(|| listener(server(8007), 16));
    let trace = Trace::start(&pair.server, &["vs"]);
    send(&pair, &segment(&pair, NOBODY, 2, (4000, 8007), 77, 0));
    let line = trace.fate(8007);
    assert_fate(&line, "unanswered", Some("no_final_ack"), Some("inferred"));
    assert_eq!(line["syn_ack_retransmits"], 1, "{line}");
    trace.stop();
}

#[test]
fn a_wrong_acknowledgement_does_not_end_a_half_open_attempt() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let listener = pair
        .server
        .enter(|| TcpListener::bind(server(8041)).unwrap());
    let resets = Growth::of(&pair.server, "TcpOutRsts");
    let trace = Trace::start(&pair.server, &["vs"]);
    let seq = half_open(&pair, 8041);
    acknowledge(&pair, 8041, seq.wrapping_add(2));
    resets.reaches(1);
    acknowledge(&pair, 8041, seq.wrapping_add(1));
    listener.accept().unwrap();
    assert_fate(&trace.fate(8041), "accepted", None, None);
    let fates = trace.stop();
    assert_eq!(fates.only(8041)["continued"], false);
}

#[test]
fn the_last_syn_ack_decides_which_acknowledgement_is_wrong() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let listen = || {
        pair.server
            .enter(|| TcpListener::bind(server(8043)).unwrap())
    };
    let first = listen();
    let resets = Growth::of(&pair.server, "TcpOutRsts");
    let trace = Trace::start(&pair.server, &["vs"]);
    let old = half_open(&pair, 8043);
    drop(first);
    let second = listen();
    let new = half_open(&pair, 8043);
    acknowledge(&pair, 8043, old.wrapping_add(1));
    resets.reaches(1);
    acknowledge(&pair, 8043, new.wrapping_add(1));
    second.accept().unwrap();
    assert_fate(&trace.fate(8043), "accepted", None, None);
    trace.stop().only(8043);
}

#[test]
fn a_half_open_attempt_ends_when_its_listener_is_closed() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let trace = Trace::start(&pair.server, &["vs"]);
    let listeners = [8038, 8039].map(|port| pair.server.enter(|| listener(server(port), 16)));
    let syn = |port| send(&pair, &segment(&pair, NOBODY, 2, (4000, port), 77, 0));
    for port in [8038, 8039] {
        syn(port);
        trace.arrived(port, 1);
    }
    drop(listeners);
    // A program that another test is starting may still have them open.
    wait_for("the end of the listeners", || {
        let left = pair.server.run("ss -Hltn");
        left.trim().is_empty().then_some(())
    });
    // A repeated SYN is answered by a RST.
    std::thread::sleep(Duration::from_millis(50));
    syn(8038);
    assert_fate(&trace.fate(8038), "refused", Some("no_listener"), None);
    let line = trace.fate(8039);
    assert_fate(&line, "aborted", Some("listener_closed"), Some("inferred"));
    trace.stop();
}

#[test]
fn a_syn_ack_to_a_neighbour_that_does_not_answer_is_a_drop() {
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(8008), 16));
    let trace = Trace::start(&pair.server, &["vs"]);
    send(&pair, &segment(&pair, NOBODY, 2, (4000, 8008), 77, 0));
    let line = trace.fate(8008);
    // Without a reason of the kernel, it may be inferred from the place.
    if has_drop_reason("neigh_failed") || !line["reason"].is_null() {
        assert_fate(&line, "dropped", Some("neigh_failed"), None);
    } else {
        assert_fate(&line, "dropped", None, Some("unknown"));
    }
    trace.stop();
}

/// Asserts that an attempt whose RST does not leave by a watched interface is refused. Before Linux 5.17
/// nothing shows that nobody listens.
fn assert_refusal_without_rst(line: &Value) {
    if has_drop_reason("no_socket") {
        assert_fate(line, "refused", Some("no_listener"), Some("kernel"));
    } else {
        assert_fate(line, "dropped", None, Some("unknown"));
    }
}

#[test]
fn a_refusal_that_waits_for_neighbour_resolution_is_a_refusal() {
    let pair = need!(Pair::new());
    let trace = Trace::start(&pair.server, &["vs"]);
    // The server does not know the client's link-layer address yet.
    send(&pair, &segment(&pair, CLIENT4, 2, (4000, 8030), 77, 0));
    let line = trace.fate(8030);
    assert_refusal_without_rst(&line);
    trace.stop();
}

#[test]
fn a_refusal_sent_through_an_interface_that_is_not_watched_is_a_refusal() {
    let pair = need!(Pair::new());
    pair.server.run(&format!(
        "ip link add vt type veth peer name vd netns {}",
        pair.client.path()
    ));
    let source = SocketAddr::from(([10, 79, 0, 1], 4000));
    pair.client
        .run(&format!("ip addr add {}/32 dev lo", source.ip()));
    for (namespace, interface, address) in [
        (&pair.client, "vd", "10.78.0.1"),
        (&pair.server, "vt", "10.78.0.2"),
    ] {
        namespace.run(&format!("ip addr add {address}/24 dev {interface}"));
        namespace.run(&format!("ip link set {interface} up"));
        for name in ["all", interface] {
            namespace.sysctl(&format!("ipv4/conf/{name}/rp_filter"), "0");
        }
    }
    pair.server.sysctl("ipv4/conf/vs/rp_filter", "0");
    pair.server
        .run(&format!("ip route add {}/32 via 10.78.0.1", source.ip()));
    let trace = Trace::start(&pair.server, &["vs"]);
    pair.client.enter(|| {
        let socket = tcp(source, SockFlag::empty());
        bind(socket.as_raw_fd(), &SockaddrStorage::from(source)).unwrap();
        assert_eq!(connect_to(&socket, server(8031)), Err(Errno::ECONNREFUSED));
    });
    let line = trace.fate(8031);
    assert_refusal_without_rst(&line);
    trace.stop();
}

#[test]
fn a_syn_without_a_route_back_is_reported() {
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(8022), 16));
    let drops = Growth::of(&pair.server, "TcpExtListenDrops");
    let trace = Trace::start(&pair.server, &["vs"]);
    let stranger = Ipv4Addr::new(198, 51, 100, 7);
    send(&pair, &segment(&pair, stranger, 2, (4000, 8022), 77, 0));
    let line = trace.fate(8022);
    assert_fate(&line, "dropped", Some("no_route_back"), Some("inferred"));
    assert_eq!(drops.now(), 1);
    trace.stop();
}

#[test]
fn a_reset_during_the_handshake_is_reported_as_reset() {
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(8009), 16));
    let embryonic = Growth::of(&pair.server, "TcpExtEmbryonicRsts");
    let trace = Trace::start(&pair.server, &["vs"]);
    // The client knows nothing of this, and resets what it is sent.
    send(&pair, &segment(&pair, CLIENT4, 2, (4000, 8009), 77, 0));
    let line = trace.fate(8009);
    assert_fate(&line, "reset", Some("peer_reset"), Some("inferred"));
    assert_eq!(embryonic.now(), 1);
    trace.stop();
}

#[test]
fn a_connection_reset_before_its_accept_is_reset_though_it_is_accepted_later() {
    let namespace = need!(Namespace::new());
    let resets = Growth::of(&namespace, "TcpEstabResets");
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind(local(8010)).unwrap();
        let client = TcpStream::connect(local(8010)).unwrap();
        reset_on_close(&client);
        drop(client);
        // Both ends count it. A busy CPU leaves the RST to ksoftirqd, and accept() can be first.
        resets.reaches(2);
        listener.accept().unwrap();
    });
    assert_fate(&trace.fate(8010), "reset", Some("peer_reset"), None);
    assert_eq!(trace.stop().count("reset"), 1);
}

#[test]
fn connections_in_the_queue_of_a_closed_listener_are_aborted() {
    let namespace = need!(Namespace::new());
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind(local(8011)).unwrap();
        let _client = TcpStream::connect(local(8011)).unwrap();
        established.reaches(1);
        drop(listener);
    });
    assert_fate(&trace.fate(8011), "aborted", Some("listener_closed"), None);
    trace.stop();
}

#[test]
fn a_syn_that_meets_an_earlier_connection_in_time_wait_is_a_drop() {
    let pair = need!(Pair::new());
    let trace = Trace::start(&pair.server, &["vs"]);
    let listener = pair
        .server
        .enter(|| TcpListener::bind(server(8027)).unwrap());
    let mut client = pair
        .client
        .enter(|| TcpStream::connect(server(8027)).unwrap());
    let ends = client.local_addr().unwrap();
    drop(listener.accept().unwrap());
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop((client, listener));
    wait_for("TIME_WAIT", || {
        let sockets = pair.server.run("ss -Htan state time-wait sport 8027");
        (!sockets.is_empty()).then_some(())
    });
    let _again = pair.client.enter(|| {
        let socket = tcp(ends, SockFlag::SOCK_NONBLOCK);
        bind(socket.as_raw_fd(), &SockaddrStorage::from(ends)).unwrap();
        let _ = connect_to(&socket, server(8027));
        socket
    });
    trace.wait_for_fates(2);
    let fates = trace.stop();
    let line = fates.at(8027)[1];
    assert_eq!(
        (&line["fate"], &line["sport"]),
        (&"dropped".into(), &ends.port().into()),
        "{line}"
    );
    // Older kernels do not show which socket refuses a segment.
    if release() >= (6, 11) {
        assert_fate(line, "dropped", Some("time_wait"), Some("inferred"));
    }
}

#[test]
fn a_syn_by_broadcast_or_multicast_is_a_drop() {
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(8028), 16));
    let trace = Trace::start(&pair.server, &["vs"]);
    let mut frame = segment(&pair, CLIENT4, 2, (4000, 8028), 77, 0);
    for (isn, station) in [(1, [0xff; 6]), (2, [1, 0, 0x5e, 0, 0, 1])] {
        frame[..6].copy_from_slice(&station);
        // The acknowledgement number keeps the checksum right.
        frame[38..46].copy_from_slice(&[0, 0, 0, 77 + isn, 0xff, 0xff, 0xff, 0xff - isn]);
        send(&pair, &frame);
    }
    trace.wait_for_fates(2);
    let fates = trace.stop();
    for line in fates.at(8028) {
        // It is inferred where the kernel says that it does not specify a reason, by a number that is
        // not 0.
        if has_enumerator("SKB_NOT_DROPPED_YET") {
            assert_fate(line, "dropped", Some("not_unicast"), Some("inferred"));
        } else {
            assert_fate(line, "dropped", None, Some("unknown"));
        }
    }
}

#[test]
fn a_wrong_checksum_is_a_drop() {
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(8019), 16));
    let wrong = Growth::of(&pair.server, "TcpInCsumErrors");
    let trace = Trace::start(&pair.server, &["vs"]);
    let mut frame = segment(&pair, CLIENT4, 2, (4000, 8019), 77, 0);
    frame[14 + 20 + 16] ^= 0xff;
    send(&pair, &frame);
    let line = trace.fate(8019);
    if has_drop_reason("tcp_csum") {
        assert_fate(&line, "dropped", Some("tcp_csum"), Some("kernel"));
    } else {
        assert_fate(&line, "dropped", None, Some("unknown"));
    }
    assert_eq!(wrong.now(), 1);
    trace.stop();
}
