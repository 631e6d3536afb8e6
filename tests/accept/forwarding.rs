//! Attempts that are not for this host, or that NAT sends to another address or port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use super::{Trace, assert_fate, begin, listener, server};
use crate::common::bpf::has_tcx;
use crate::common::frames::{SYN, Segment, tcp_between};
use crate::common::net::{Growth, nft};
use crate::common::raw::Tun;
use crate::common::{Namespace, Pair, SERVER4, need, since};

/// A pair whose server is the router between the client and a third namespace.
fn router() -> Result<(Pair, Namespace), String> {
    let pair = Pair::new()?;
    let inner = Namespace::new()?;
    pair.server.run(&format!(
        "ip link add ri type veth peer name ii netns {}",
        inner.path()
    ));
    pair.server.run("ip addr add 10.88.0.1/24 dev ri");
    pair.server.run("ip link set ri up");
    inner.run("ip addr add 10.88.0.2/24 dev ii");
    inner.run("ip link set ii up");
    inner.run("ip route add default via 10.88.0.1");
    pair.server.sysctl("ipv4/ip_forward", "1");
    pair.client
        .run(&format!("ip route add 10.88.0.0/24 via {SERVER4}"));
    Ok((pair, inner))
}

/// A port of the namespace behind the router.
fn inside(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 88, 0, 2], port))
}

#[test]
fn attempts_that_a_router_forwards_are_forwarded_whatever_their_outcome() {
    let (pair, inner) = need!(router());
    let _listener = inner.enter(|| listener(inside(8015), 16));
    // Watch both interfaces of the router, and then only the client's.
    for interfaces in [&["vs", "ri"][..], &["vs"]] {
        let trace = Trace::start(&pair.server, interfaces);
        pair.client.enter(|| {
            TcpStream::connect(inside(8015)).unwrap();
            TcpStream::connect(inside(9)).unwrap_err();
        });
        assert_fate(&trace.fate(8015), "forwarded", None, None);
        assert_fate(&trace.fate(9), "forwarded", None, None);
        assert_eq!(trace.stop().count("forwarded"), 2);
    }
}

#[test]
fn an_attempt_redirected_to_another_port_is_accepted_under_its_original_port() {
    let pair = need!(Pair::new());
    need!(nft(
        &pair.server,
        "type nat hook prerouting priority -100",
        "tcp dport 8016 redirect to :9016"
    ));
    let trace = Trace::start(&pair.server, &["vs"]);
    let listener = pair
        .server
        .enter(|| TcpListener::bind(server(9016)).unwrap());
    let _client = pair
        .client
        .enter(|| TcpStream::connect(server(8016)).unwrap());
    listener.accept().unwrap();
    let line = trace.fate(8016);
    assert_fate(&line, "accepted", None, None);
    assert!(line["handshake_us"].is_u64(), "{line}");
    trace.stop();
}

#[test]
fn an_unanswered_attempt_is_forwarded_even_if_only_the_client_side_is_watched() {
    let (pair, inner) = need!(router());
    // As Docker publishes a port of a container.
    need!(nft(
        &pair.server,
        "type nat hook prerouting priority -100",
        "ip daddr 10.77.0.2 tcp dport 8025 dnat ip to 10.88.0.2:80"
    ));
    need!(nft(
        &inner,
        "type filter hook input priority 0",
        "tcp dport 80 drop"
    ));
    // The router listens on port 80 too. An attempt that it forwards to `inside(80)` must not be taken for
    // one at its own listener.
    let _listener = pair
        .server
        .enter(|| listener(SocketAddr::from(([0, 0, 0, 0], 80)), 16));
    pair.client.sysctl("ipv4/tcp_syn_retries", "1");
    let trace = Trace::start(&pair.server, &["vs"]);
    let _clients = pair.client.enter(|| [server(8025), inside(80)].map(begin));
    assert_fate(&trace.fate(8025), "forwarded", None, None);
    assert_fate(&trace.fate(80), "forwarded", None, None);
    assert_eq!(trace.stop().count("forwarded"), 2);
}

#[test]
fn a_copy_of_the_syn_that_leaves_does_not_make_an_attempt_forwarded() {
    let (pair, _inner) = need!(router());
    // As a port of a switch is mirrored to an intrusion detection system.
    need!(pair.server.try_run("tc qdisc add dev vs clsact"));
    let mirror = "u32 match u32 0 0 action mirred egress mirror dev ri";
    need!(pair.server.try_run(&format!(
        "tc filter add dev vs ingress protocol all {mirror}"
    )));
    let open = pair.server.enter(|| listener(server(8028), 16));
    let _full = pair.server.enter(|| listener(server(8029), 0));
    let options = ["vs", "ri", "--attempt-timeout", "300ms"];
    let trace = Trace::start(&pair.server, &options);
    let _clients = pair.client.enter(|| {
        TcpStream::connect(server(9)).unwrap_err();
        let accepted = TcpStream::connect(server(8028)).unwrap();
        let queued = TcpStream::connect(server(8029)).unwrap();
        (accepted, queued, begin(server(8029)))
    });
    TcpListener::from(open).accept().unwrap();
    assert_fate(&trace.fate(9), "refused", Some("no_listener"), None);
    assert_fate(&trace.fate(8028), "accepted", None, None);
    let full = Some("accept_queue_full");
    assert_fate(&trace.fate(8029), "dropped", full, Some("inferred"));
    let fates = trace.stop();
    assert_eq!(fates.count("forwarded"), 0);
    assert_eq!(fates.count("pending"), 1);
}

#[test]
fn interfaces_with_and_without_ethernet_header_are_watched_together() {
    let pair = need!(Pair::new());
    let mut tun = need!(pair.server.enter(|| Tun::new("tun0")));
    pair.server.run("ip addr add 10.88.1.1/24 dev tun0");
    pair.server.run("ip link set tun0 up");
    let segment = Segment {
        seq: 1000,
        ..Segment::new(4000, 9, SYN, &[])
    };
    let ends = [[10, 88, 1, 2], [10, 88, 1, 1]].map(IpAddr::from);
    let syn = tcp_between(ends[0], ends[1], &segment);
    let trace = Trace::start(&pair.server, &["vs", "tun0"]);
    tun.receive(&syn);
    assert_fate(&trace.fate(9), "refused", Some("no_listener"), None);
    // Late enough not to be taken for the same packet. It belongs to the same attempt.
    std::thread::sleep(Duration::from_millis(50));
    tun.receive(&syn);
    pair.client
        .enter(|| TcpStream::connect(server(9)).unwrap_err());
    assert_fate(&trace.fate(9), "refused", Some("no_listener"), None);
    let fates = trace.stop();
    assert_eq!(fates.count("refused"), 2);
    assert_eq!(fates.at(9).len(), 2);
}

#[test]
fn an_unanswered_attempt_is_forwarded_even_if_its_source_is_translated() {
    let (pair, inner) = need!(router());
    // As Kubernetes reaches a pod by a port of the node.
    need!(nft(
        &pair.server,
        "type nat hook prerouting priority -100",
        "tcp dport 8030 dnat ip to 10.88.0.2:80"
    ));
    let translated = "{ type nat hook postrouting priority 100 ; }";
    pair.server
        .run(&format!("nft add chain inet t out {translated}"));
    pair.server
        .run("nft add rule inet t out oifname ri masquerade");
    need!(nft(
        &inner,
        "type filter hook input priority 0",
        "tcp dport 80 drop"
    ));
    pair.client.sysctl("ipv4/tcp_syn_retries", "1");
    let trace = Trace::start(&pair.server, &["any"]);
    let _client = pair.client.enter(|| begin(server(8030)));
    assert_fate(&trace.fate(8030), "forwarded", None, None);
    assert_eq!(trace.stop().count("forwarded"), 1);
}

const SHARED4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
const SHARED6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x50);

/// Gives an interface of a namespace the addresses [`SHARED4`] and [`SHARED6`], and connects to them: with
/// each, one attempt is accepted and one is refused.
fn connect_to_shared(pair: &Pair, inner: &Namespace, interface: &str) {
    inner.run(&format!("ip addr add {SHARED4}/24 dev {interface}"));
    inner.run(&format!("ip addr add {SHARED6}/64 dev {interface} nodad"));
    inner.run(&format!("ip link set {interface} up"));
    let listener = inner.enter(|| TcpListener::bind("[::]:8026").unwrap());
    for addr in [SHARED4.into(), SHARED6.into()] {
        pair.client.enter(|| {
            TcpStream::connect(SocketAddr::new(addr, 8026)).unwrap();
            TcpStream::connect(SocketAddr::new(addr, 9)).unwrap_err();
        });
        listener.accept().unwrap();
    }
}

#[test]
fn attempts_for_a_namespace_behind_a_macvlan_interface_are_forwarded() {
    let (pair, inner) = (need!(Pair::new()), need!(Namespace::new()));
    need!(pair.server.try_run(&format!(
        "ip link add link vs name vm netns {} type macvlan mode bridge",
        inner.path()
    )));
    let trace = Trace::start(&pair.server, &["vs"]);
    connect_to_shared(&pair, &inner, "vm");
    trace.wait_for_fates(4);
    let fates = trace.stop();
    assert_eq!(fates.count("forwarded"), 4, "{:#?}", fates.all);
    for port in [8026, 9] {
        for line in fates.at(port) {
            assert_fate(line, "forwarded", None, None);
        }
    }
}

#[test]
fn an_attempt_that_another_namespace_answers_with_a_syn_cookie_is_forwarded() {
    need!(since((6, 2), "the namespace of a SYN cookie is not shown"));
    let (pair, inner) = (need!(Pair::new()), need!(Namespace::new()));
    need!(pair.server.try_run(&format!(
        "ip link add link vs name vm netns {} type macvlan mode bridge",
        inner.path()
    )));
    inner.sysctl("ipv4/tcp_syncookies", "2");
    let sent = Growth::of(&inner, "TcpExtSyncookiesSent");
    let trace = Trace::start(&pair.server, &["vs"]);
    connect_to_shared(&pair, &inner, "vm");
    trace.wait_for_fates(4);
    assert_eq!(sent.now(), 2);
    assert_eq!(trace.stop().count("forwarded"), 4);
}

#[test]
fn attempts_at_an_interface_that_has_moved_to_another_namespace_are_forwarded() {
    // A filter of clsact is lost when the interface moves.
    need!(has_tcx());
    let (pair, inner) = (need!(Pair::new()), need!(Namespace::new()));
    let trace = Trace::start(&pair.server, &["vs"]);
    pair.server
        .run(&format!("ip link set vs netns {}", inner.path()));
    connect_to_shared(&pair, &inner, "vs");
    trace.wait_for_fates(4);
    assert_eq!(trace.stop().count("forwarded"), 4);
}

#[test]
fn a_promiscuous_bridge_drops_no_attempt_that_it_forwards() {
    let (pair, inner) = need!(router());
    need!(pair.server.try_run("ip link add br0 type bridge"));
    for port in ["vs", "ri"] {
        pair.server
            .run(&format!("ip link set {port} master br0 up"));
    }
    pair.server.run("ip link set br0 up promisc on");
    inner.run(&format!("ip addr add {SHARED4}/24 dev ii"));
    let _listener = inner.enter(|| listener((SHARED4, 8032).into(), 16));
    let trace = Trace::start(&pair.server, &["any"]);
    pair.client.enter(|| {
        TcpStream::connect((SHARED4, 8032)).unwrap();
        TcpStream::connect((SHARED4, 9)).unwrap_err();
    });
    assert_fate(&trace.fate(8032), "forwarded", None, None);
    assert_fate(&trace.fate(9), "forwarded", None, None);
    assert_eq!(trace.stop().count("forwarded"), 2);
}
