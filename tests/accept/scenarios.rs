//! Each way that an attempt can end, one by one, beside the kernel's own counters.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::sys::socket::{SockFlag, SockaddrStorage, bind};

use super::{Growth, Trace, assert_fate, listener};
use crate::common::frames::{RawSocket, ethernet, ip};
use crate::common::{CLIENT4, Namespace, Pair, SERVER4, SERVER6, Tool, need, release, wait_for};
use crate::connect::sockets::{connect_to, reset_on_close, tcp};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn local(port: u16) -> SocketAddr {
    (LOOPBACK, port).into()
}

fn server(port: u16) -> SocketAddr {
    (SERVER4, port).into()
}

/// A socket that begins to connect.
pub fn begin(addr: SocketAddr) -> OwnedFd {
    let socket = tcp(addr, SockFlag::SOCK_NONBLOCK);
    let _ = connect_to(&socket, addr);
    socket
}

/// A whole segment with a right checksum, from the client's station to the server's.
pub fn segment(
    pair: &Pair,
    from: Ipv4Addr,
    flags: u8,
    ports: (u16, u16),
    seq: u32,
    ack: u32,
) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(ports.0.to_be_bytes());
    tcp.extend(ports.1.to_be_bytes());
    tcp.extend(seq.to_be_bytes());
    tcp.extend(ack.to_be_bytes());
    tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let mut pseudo = [from.octets(), SERVER4.octets()].concat();
    pseudo.extend([0, 6, 0, 20]);
    pseudo.extend(&tcp);
    let words = pseudo.chunks(2);
    let mut sum: u32 = words
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    let (ethertype, packet) = ip(from.into(), SERVER4.into(), 6, &tcp);
    let mut frame = ethernet(&[], ethertype, &packet);
    frame[..6].copy_from_slice(&mac(&pair.server, "vs"));
    frame[6..12].copy_from_slice(&mac(&pair.client, "vc"));
    frame
}

fn mac(namespace: &Namespace, interface: &str) -> Vec<u8> {
    let text = namespace.run(&format!("ip -o link show {interface}"));
    let mut words = text.split_whitespace();
    words.find(|word| *word == "link/ether").unwrap();
    let octets = words.next().unwrap().split(':');
    octets
        .map(|octet| u8::from_str_radix(octet, 16).unwrap())
        .collect()
}

pub fn send(pair: &Pair, frame: &[u8]) {
    pair.client.enter(|| RawSocket::open("vc").send(frame));
}

/// An address of the client's network that nobody answers for.
pub const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

/// Lets packets to [`NOBODY`] leave.
pub fn with_neighbour(pair: &Pair) {
    pair.server.run(&format!(
        "ip neigh add {NOBODY} lladdr 02:00:00:00:00:99 dev vs"
    ));
}

pub fn nft(namespace: &Namespace, hook: &str, rule: &str) -> Result<(), String> {
    namespace.try_run("nft add table inet t")?;
    namespace.enter(|| {
        let chain = format!("add chain inet t c {{ {hook} ; }}");
        for command in [chain, format!("add rule inet t c {rule}")] {
            let status = std::process::Command::new("nft").arg(&command).status();
            let status = status.map_err(|error| error.to_string())?;
            if !status.success() {
                return Err(format!("nft {command}: {status}"));
            }
        }
        Ok(())
    })
}

#[test]
fn who_accepts_is_named_with_the_times_of_handshake_and_wait() {
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
    // It begins when the server gets the final ACK, which may be after the client has connected.
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
fn a_port_without_a_listener_refuses_in_both_families() {
    let pair = need!(Pair::new());
    let trace = Trace::start(&pair.server, &["vs"]);
    for addr in [server(9), (SERVER6, 9).into()] {
        pair.refused_connects(addr, 1);
    }
    trace.told(2);
    let fates = trace.stop();
    assert_eq!(fates.count("refused"), 2);
    for line in fates.at(9) {
        assert_fate(line, "refused", Some("no_listener"), None);
    }
}

#[test]
fn what_a_firewall_drops_is_told_at_once_and_its_repetition_is_no_other_attempt() {
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
fn who_gets_through_after_the_firewall_was_opened_is_one_attempt() {
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
    trace.told(2);
    let fates = trace.stop();
    let line = fates.at(8023)[1];
    assert_fate(line, "accepted", None, None);
    assert_eq!(line["continued"], true, "{line}");
    assert_eq!((fates.count("accepted"), fates.count("dropped")), (1, 0));
    assert_eq!(fates.summary["attempts"], 1);
}

#[test]
fn who_is_refused_after_the_firewall_was_opened_is_one_attempt() {
    let pair = need!(Pair::new());
    let drop = "tcp dport { 8025, 8026 } drop";
    need!(nft(&pair.server, "type filter hook input priority 0", drop));
    let trace = Trace::start(&pair.server, &["vs"]);
    let addrs = [server(8025), (SERVER6, 8026).into()];
    let _clients = addrs.map(|addr| pair.client.enter(|| begin(addr)));
    trace.told(2);
    pair.server.run("nft flush ruleset");
    trace.told(4);
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
    // Sequence and acknowledgement number change together: the checksum stays right.
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
fn what_a_firewall_rejects_is_refused_for_its_reason() {
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
    // Two have room: backlog + 1.
    let waiting = begin_some(2);
    established.reaches(2);
    let clients = begin_some(4);
    trace.told(4);
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
            // Who does not accept, and for how long.
            assert_eq!(line["pid"], std::process::id(), "{line}");
            assert!(line["queue_full_ms"].as_u64() >= Some(1000), "{line}");
        }
    }
}

#[test]
fn who_gets_through_by_a_repeated_syn_is_one_attempt() {
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
    trace.told(2);
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
fn a_half_open_attempt_is_lost_with_its_listener() {
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
    // A repeated SYN is answered by a RST.
    std::thread::sleep(Duration::from_millis(50));
    syn(8038);
    assert_fate(&trace.fate(8038), "refused", Some("no_listener"), None);
    let line = trace.fate(8039);
    assert_fate(&line, "aborted", Some("listener_closed"), Some("inferred"));
    trace.stop();
}

#[test]
fn an_answer_without_a_neighbour_is_a_drop() {
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(8008), 16));
    let trace = Trace::start(&pair.server, &["vs"]);
    send(&pair, &segment(&pair, NOBODY, 2, (4000, 8008), 77, 0));
    let line = trace.fate(8008);
    assert_eq!(line["fate"], "dropped", "{line}");
    if !line["reason"].is_null() {
        assert_eq!(line["reason"], "neigh_failed", "{line}");
    }
    trace.stop();
}

#[test]
fn a_refusal_that_waits_for_the_next_hop_is_one() {
    let pair = need!(Pair::new());
    let trace = Trace::start(&pair.server, &["vs"]);
    // The server does not know the client's link-layer address yet.
    send(&pair, &segment(&pair, CLIENT4, 2, (4000, 8030), 77, 0));
    let line = trace.fate(8030);
    // Before Linux 5.17 nothing says that nobody listens.
    if line["reason_from"] == "kernel" {
        assert_fate(&line, "refused", Some("no_listener"), Some("kernel"));
    }
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

#[test]
fn where_no_route_leads_back_is_told() {
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
fn a_reset_during_the_handshake_is_one() {
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
fn a_reset_before_it_is_accepted_is_one_though_it_is_accepted_later() {
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
fn what_its_listener_leaves_behind_is_aborted() {
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
fn what_is_closed_by_its_initiator_first_is_accepted_all_the_same() {
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
fn what_waits_at_the_end_is_pending() {
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
fn syn_cookies_are_told_and_accepted() {
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
fn what_the_router_passes_on_is_forwarded_whatever_comes_of_it() {
    let pair = need!(Pair::new());
    let inner = need!(Namespace::new());
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
    let inside = |port| SocketAddr::from(([10, 88, 0, 2], port));
    let _listener = inner.enter(|| listener(inside(8015), 16));
    // With both sides in view, and with the client's alone.
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
fn what_is_translated_to_another_port_is_accepted_under_the_one_it_asked_for() {
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
    trace.told(2);
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
fn another_namespace_with_the_same_addresses_is_no_matter() {
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
    trace.told(2);
    let fates = trace.stop();
    let line = fates.at(8027)[1];
    assert_eq!(
        (&line["fate"], &line["sport"]),
        (&"dropped".into(), &ends.port().into()),
        "{line}"
    );
    // Before, the kernel does not tell which socket refuses a segment.
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
    trace.told(2);
    let fates = trace.stop();
    for line in fates.at(8028) {
        assert_eq!(line["fate"], "dropped", "{line}");
        // Before, there are no reasons, and so none that is not specified.
        if line["reason_from"] != "unknown" || release() >= (6, 1) {
            assert_fate(line, "dropped", Some("not_unicast"), Some("inferred"));
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
    assert_eq!(line["fate"], "dropped", "{line}");
    if line["reason_from"] == "kernel" {
        assert_eq!(line["reason"], "tcp_csum", "{line}");
    }
    assert_eq!(wrong.now(), 1);
    trace.stop();
}

#[test]
fn what_another_namespace_does_not_answer_is_forwarded_though_only_the_client_s_side_is_watched() {
    let pair = need!(Pair::new());
    let inner = need!(Namespace::new());
    pair.server.run(&format!(
        "ip link add ri type veth peer name ii netns {}",
        inner.path()
    ));
    pair.server.run("ip addr add 10.88.0.1/24 dev ri");
    pair.server.run("ip link set ri up");
    inner.run("ip addr add 10.88.0.2/24 dev ii");
    inner.run("ip link set ii up");
    pair.server.sysctl("ipv4/ip_forward", "1");
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
    // One that the router forwards without translation, and could take for its own.
    pair.client
        .run(&format!("ip route add 10.88.0.0/24 via {SERVER4}"));
    let _listener = pair
        .server
        .enter(|| listener(SocketAddr::from(([0, 0, 0, 0], 80)), 16));
    pair.client.sysctl("ipv4/tcp_syn_retries", "1");
    let trace = Trace::start(&pair.server, &["vs"]);
    let _clients = pair
        .client
        .enter(|| [server(8025), SocketAddr::from(([10, 88, 0, 2], 80))].map(begin));
    assert_fate(&trace.fate(8025), "forwarded", None, None);
    assert_fate(&trace.fate(80), "forwarded", None, None);
    assert_eq!(trace.stop().count("forwarded"), 2);
}

#[test]
fn what_is_redirected_to_a_full_queue_is_dropped() {
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

/// Sends the SYN of nobody, and the final ACK once somebody else has taken the last place in the
/// accept queue.
pub fn late_ack(pair: &Pair, port: u16) {
    let seen = pair.client.enter(|| RawSocket::open_to_receive("vc"));
    send(pair, &segment(pair, NOBODY, 2, (4000, port), 77, 0));
    let seq = loop {
        let frame = seen.receive();
        let from_port = |frame: &[u8]| frame.len() >= 54 && frame[34..36] == port.to_be_bytes();
        if from_port(&frame) && frame[47] == 0x12 {
            break u32::from_be_bytes(frame[38..42].try_into().unwrap());
        }
    };
    let established = Growth::of(&pair.server, "TcpPassiveOpens");
    pair.client
        .enter(|| TcpStream::connect(server(port)).unwrap());
    established.reaches(1);
    send(
        pair,
        &segment(pair, NOBODY, 0x10, (4000, port), 78, seq.wrapping_add(1)),
    );
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
