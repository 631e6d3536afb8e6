//! Scenarios in which segments are dropped: each drop is reported once, with the right reason.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::SockFlag;
use serde_json::{Value, json};

use super::start;
use crate::accept::{
    NOBODY, acknowledge, begin, frame, half_open, late_ack, segment, send, with_neighbour,
};
use crate::common::bpf::{instruction, load};
use crate::common::frames::{ACK, SYN, Segment};
use crate::common::net::{CLIENT4, Growth, SERVER4, listener, nft};
use crate::common::{Namespace, Pair, Tool, command, has_drop_reason, need, release, since};
use crate::connect::sockets::{fast_open, set_int, tcp};

fn server(port: u16) -> SocketAddr {
    (SERVER4, port).into()
}

/// A run that shows the drops of segments to a port of the server.
struct Drops {
    tool: Tool,
    port: u16,
}

impl Drops {
    fn start(pair: &Pair, port: u16) -> Self {
        let args = ["--only", "drop", "--any-port", &port.to_string()];
        Self {
            tool: start(&pair.server, &args),
            port,
        }
    }

    /// Waits for one, and checks that there is no other when it ends.
    fn only(self) -> Value {
        let port = self.port;
        self.tool.json("of a drop", |line| line["event"] == "drop");
        let output = self.tool.stop();
        let mut drops = output.events("drop");
        assert_eq!(drops.len(), 1, "{port}: {drops:#?}");
        drops.remove(0)
    }
}

/// Asserts that the reason is one of these; which one depends on the kernel. If the kernel has none of
/// them, it may also be unknown.
fn assert_reason(drop: &Value, reasons: &[&str]) {
    match drop["reason"].as_str() {
        Some(reason) => assert!(reasons.contains(&reason), "{reasons:?}: {drop}"),
        None => {
            assert_eq!(drop["reason_from"], "unknown", "{drop}");
            let mut reasons = reasons.iter();
            assert!(!reasons.any(|reason| has_drop_reason(reason)), "{drop}");
        }
    }
}

/// Older kernels do not report most of the segments that TCP drops.
fn are_all_drops_reported() -> Result<(), String> {
    since((5, 18), "TCP does not report each drop")
}

fn syn(pair: &Pair, from: Ipv4Addr, port: u16) -> Vec<u8> {
    segment(pair, from, SYN, (4000, port), 77, 0)
}

#[test]
fn what_a_firewall_drops_in_any_hook_is_reported_once() {
    for (hook, device, rule) in [
        ("ingress", "device vs ", "tcp dport 91 drop"),
        ("prerouting", "", "tcp dport 91 drop"),
        ("input", "", "tcp dport 91 drop"),
        ("output", "", "tcp sport 91 drop"),
        ("postrouting", "", "tcp sport 91 drop"),
    ] {
        let pair = need!(Pair::new());
        with_neighbour(&pair);
        let chain = format!("type filter hook {hook} {device}priority 0");
        need!(nft(&pair.server, &chain, rule));
        let _listener = pair.server.enter(|| listener(server(91), 16));
        pair.server.sysctl("ipv4/tcp_synack_retries", "0");
        let drops = Drops::start(&pair, 91);
        send(&pair, &syn(&pair, NOBODY, 91));
        let drop = drops.only();
        assert_eq!(drop["reason"], "netfilter_drop", "{hook}: {drop}");
        assert_eq!(drop["hook"], hook, "{drop}");
        let way = match rule.contains("sport") {
            true => "egress",
            false => "ingress",
        };
        assert_eq!(drop["direction"], way, "{drop}");
    }
}

/// A network behind the server, to which it forwards what the client sends.
fn with_network_behind(pair: &Pair) -> SocketAddr {
    pair.server
        .run("ip link add behind type veth peer name beyond");
    pair.server.run("ip addr add 10.78.0.1/24 dev behind");
    pair.server.run("ip link set behind up");
    pair.server.run("ip link set beyond up");
    pair.server
        .run("ip neigh add 10.78.0.2 lladdr 02:00:00:00:00:98 dev behind");
    pair.server.sysctl("ipv4/ip_forward", "1");
    pair.client
        .run(&format!("ip route add 10.78.0.0/24 via {SERVER4}"));
    (Ipv4Addr::new(10, 78, 0, 2), 91).into()
}

#[test]
fn what_a_router_drops_is_reported_once() {
    let pair = need!(Pair::new());
    let behind = with_network_behind(&pair);
    // It would be retransmitted after a second.
    let limit = Duration::from_millis(300);
    let connect = |ttl: &str| {
        pair.client.sysctl("ipv4/ip_default_ttl", ttl);
        pair.client
            .enter(|| TcpStream::connect_timeout(&behind, limit).unwrap_err());
    };
    let drops = Drops::start(&pair, 91);
    connect("1");
    let drop = drops.only();
    assert_reason(&drop, &["ip_inhdr"]);
    assert_eq!(drop["iface"], "vs", "{drop}");
    need!(nft(
        &pair.server,
        "type filter hook forward priority 0",
        "tcp dport 91 drop"
    ));
    let drops = Drops::start(&pair, 91);
    connect("64");
    let drop = drops.only();
    let reported = (&drop["reason"], &drop["hook"], &drop["direction"]);
    let expected = ("netfilter_drop".into(), "forward".into(), "ingress".into());
    assert_eq!(reported, (&expected.0, &expected.1, &expected.2), "{drop}");
}

#[test]
fn what_a_qdisc_drops_is_reported_with_its_device() {
    let pair = need!(Pair::new());
    need!(
        pair.client
            .try_run("tc qdisc add dev vc root netem loss 100%")
    );
    let tool = start(&pair.client, &["--only", "drop", "-p", "91"]);
    let limit = Duration::from_millis(300);
    pair.client
        .enter(|| TcpStream::connect_timeout(&server(91), limit).unwrap_err());
    tool.json("of a drop", |line| line["event"] == "drop");
    let drops = tool.stop().events("drop");
    assert_eq!(drops.len(), 1, "{drops:#?}");
    assert_reason(&drops[0], &["qdisc_drop"]);
    assert_eq!(drops[0]["iface"], "vc", "{}", drops[0]);
}

/// Runs an empty program on a frame, which is freed after that.
fn run_program_on(frame: &[u8]) {
    const MOV_IMMEDIATE: u8 = 0xb7;
    const EXIT: u8 = 0x95;
    let code = [
        instruction(MOV_IMMEDIATE, 0, 0, 0),
        instruction(EXIT, 0, 0, 0),
    ];
    let opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let program = load(libbpf_sys::BPF_PROG_TYPE_SCHED_CLS, c"empty", &code, &opts).unwrap();
    let mut run = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        repeat: 1,
        ..Default::default()
    };
    // SAFETY: program and frame are valid for the call.
    let ret = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut run) };
    assert_eq!(ret, 0);
}

/// Makes an interface receive a TCP frame from `count` random ports, eight at a time, as with GRO. The
/// checksum stays right if `frame` has port 65535 and urgent pointer 0.
fn receive_in_bursts(interface: &str, frame: &[u8], count: i32) {
    const LIVE_FRAMES: u32 = 1 << 1;
    let mut code = [
        instruction(0xbf, 6, 1, 0),      // r6 = r1
        instruction(0x85, 0, 0, 7),      // r0 = bpf_get_prandom_u32()
        instruction(0x61, 2, 6, 0),      // r2 = r6->data
        instruction(0x61, 3, 6, 0),      // r3 = r6->data_end
        instruction(0xbf, 4, 2, 0),      // r4 = r2 + 54
        instruction(0x07, 4, 0, 54),     //
        instruction(0x2d, 4, 3, 0),      // if r4 > r3, pass
        instruction(0x6b, 2, 0, 0),      // the source port = r0
        instruction(0xa7, 0, 0, 0xffff), //
        instruction(0x6b, 2, 0, 0),      // the urgent pointer = ~r0
        instruction(0xb7, 0, 0, 2),      // pass
        instruction(0x95, 0, 0, 0),
    ];
    for (at, off) in [(3, 4), (6, 3), (7, 34), (9, 52)] {
        code[at].off = off;
    }
    let opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let program = load(libbpf_sys::BPF_PROG_TYPE_XDP, c"ports", &code, &opts).unwrap();
    let context = libbpf_sys::xdp_md {
        data_end: frame.len() as u32,
        ingress_ifindex: nix::net::if_::if_nametoindex(interface).unwrap(),
        ..Default::default()
    };
    let mut run = libbpf_sys::bpf_test_run_opts {
        sz: size_of::<libbpf_sys::bpf_test_run_opts>() as libbpf_sys::size_t,
        data_in: frame.as_ptr().cast(),
        data_size_in: frame.len() as u32,
        ctx_in: std::ptr::from_ref(&context).cast(),
        ctx_size_in: size_of_val(&context) as u32,
        repeat: count,
        flags: LIVE_FRAMES,
        batch_size: 8,
        ..Default::default()
    };
    // SAFETY: program, frame and context are valid for the call.
    let ret = unsafe { libbpf_sys::bpf_prog_test_run_opts(program.as_raw_fd(), &raw mut run) };
    assert_eq!(ret, 0);
}

#[test]
fn the_frame_of_a_test_run_is_not_a_drop_unless_all_are_asked_for() {
    let pair = need!(Pair::new());
    let args = ["--only", "drop", "-p", "91"];
    let drops = start(&pair.server, &args);
    let all = start(&pair.server, &[&args[..], &["--all"]].concat());
    let frame = syn(&pair, CLIENT4, 91);
    pair.server.enter(|| run_program_on(&frame));
    all.json("of a drop", |line| line["event"] == "drop");
    assert_eq!(all.stop().events("drop").len(), 1);
    let drops = drops.stop().events("drop");
    assert!(drops.is_empty(), "{drops:#?}");
}

#[test]
fn a_capture_file_has_each_dropped_segment_with_its_reason() {
    let pair = need!(Pair::new());
    need!(nft(
        &pair.server,
        "type filter hook input priority 0",
        "tcp dport 90 drop"
    ));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("drops.pcapng");
    let path = file.to_str().unwrap();
    let tool = start(&pair.server, &["-w", path, "--any-port", "90", "-c", "3"]);
    for isn in [1, 2, 3] {
        send(&pair, &segment(&pair, CLIENT4, SYN, (4000, 90), isn, 0));
    }
    let output = tool.finish();
    assert_eq!(output.summary()["emitted"], 3, "{output:#?}");
    let bytes = std::fs::read(&file).unwrap();
    let comment = b"reason=netfilter_drop reason_from=";
    let found = bytes.windows(comment.len());
    assert_eq!(found.filter(|it| it == comment).count(), 3);
    let read = ["port-monitor", "--json", "-r", path];
    let read = Tool::spawn(&mut command(read)).finish();
    let packets = read.events("packet");
    let isns = packets.iter().map(|packet| packet["seq"].as_u64().unwrap());
    assert_eq!(isns.collect::<Vec<_>>(), [1, 2, 3], "{read:#?}");
    assert!(packets.iter().all(|packet| packet["dport"] == 90));
}

#[test]
fn what_iptables_drops_is_reported_once() {
    let pair = need!(Pair::new());
    need!(
        pair.server
            .try_run("iptables -A INPUT -p tcp --dport 92 -j DROP")
    );
    let drops = Drops::start(&pair, 92);
    send(&pair, &syn(&pair, CLIENT4, 92));
    assert_eq!(drops.only()["reason"], "netfilter_drop");
}

#[test]
fn a_syn_without_a_route_back_is_reported_with_or_without_a_reverse_path_filter() {
    let stranger = Ipv4Addr::new(198, 51, 100, 7);
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(93), 16));
    // The listener drops it, if no reverse path filter has done so before.
    let drops = Drops::start(&pair, 93);
    let counted = Growth::of(&pair.server, "TcpExtListenDrops");
    send(&pair, &syn(&pair, stranger, 93));
    let drop = drops.only();
    assert_eq!(
        (&drop["reason"], &drop["reason_from"]),
        (&"no_route_back".into(), &"inferred".into())
    );
    assert_eq!(
        (&drop["iface"], &drop["state"]),
        (&"vs".into(), &"listen".into())
    );
    assert_eq!(drop["pid"], std::process::id(), "{drop}");
    assert_eq!(counted.now(), 1);
    // The reverse path filter.
    pair.server.sysctl("ipv4/conf/all/rp_filter", "1");
    let drops = Drops::start(&pair, 93);
    send(&pair, &syn(&pair, stranger, 93));
    assert_reason(&drops.only(), &["ip_rpfilter"]);
    assert_eq!(counted.now(), 1);
}

#[test]
fn each_syn_dropped_at_a_full_accept_queue_is_reported_once() {
    let namespace = need!(Namespace::new());
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 94));
    let _listener = namespace.enter(|| listener(addr, 1));
    let overflows = Growth::of(&namespace, "TcpExtListenOverflows");
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let tool = start(&namespace, &["--reason", "accept_queue_full", "lo"]);
    let begin_some = |count| {
        let clients = || (0..count).map(|_| begin(addr)).collect::<Vec<_>>();
        namespace.enter(clients)
    };
    let waiting = begin_some(2);
    established.reaches(2);
    let clients = begin_some(5);
    overflows.reaches(5);
    tool.events(5);
    // No SYN may be retransmitted between the count and the end.
    drop((waiting, clients));
    let output = tool.stop();
    let drops = output.events("drop");
    assert_eq!(drops.len() as u64, overflows.now(), "{drops:#?}");
    for drop in &drops {
        let inferred = ("accept_queue_full".into(), "inferred".into(), "lo".into());
        let reported = (&drop["reason"], &drop["reason_from"], &drop["iface"]);
        assert_eq!(reported, (&inferred.0, &inferred.1, &inferred.2), "{drop}");
        assert_eq!(drop["pid"], std::process::id(), "{drop}");
    }
}

#[test]
fn syns_of_a_burst_are_reported_like_single_ones() {
    need!(since((5, 18), "frames can't be received in bursts"));
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(99), 0));
    let established = Growth::of(&pair.server, "TcpPassiveOpens");
    let waiting = pair.client.enter(|| TcpStream::connect(server(99)));
    established.reaches(1);
    let tool = start(&pair.server, &["--only", "drop", "-p", "99"]);
    let overflows = Growth::of(&pair.server, "TcpExtListenOverflows");
    let frame = segment(&pair, CLIENT4, SYN, (0xffff, 99), 77, 0);
    pair.server.enter(|| receive_in_bursts("vs", &frame, 512));
    overflows.reaches(512);
    let output = tool.stop();
    drop(waiting);
    let drops = output.events("drop");
    assert!(
        drops
            .iter()
            .all(|drop| drop["reason"] == "accept_queue_full")
    );
    // A SYN whose port has the same low byte can take the place of an earlier one: one in seventy.
    assert!(drops.len() > 480, "{} of 512", drops.len());
}

#[test]
fn a_syn_with_the_data_of_fast_open_is_not_a_drop() {
    let pair = need!(Pair::new());
    // In both directions, and without a cookie.
    for end in [&pair.server, &pair.client] {
        end.sysctl("ipv4/tcp_fastopen", "519");
    }
    let taken = Growth::of(&pair.server, "TcpExtTCPFastOpenPassive");
    let tool = start(&pair.server, &["--only", "drop", "-p", "9,98"]);
    let listener = pair.server.enter(|| TcpListener::bind(server(98)).unwrap());
    set_int(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
    let client = pair.client.enter(|| tcp(server(98), SockFlag::empty()));
    let addr = SocketAddrV4::new(SERVER4, 98);
    assert_eq!(fast_open(&client, addr, b"hello"), Ok(5));
    drop(listener.accept().unwrap());
    assert_eq!(taken.now(), 1);
    pair.refused_connects(server(9), 1);
    tool.json("of the refused one", |line| line["dport"] == 9);
    let drops = tool.stop().events("drop");
    assert_eq!(drops.len(), 1, "{drops:#?}");
}

#[test]
fn a_syn_dropped_at_a_full_syn_queue_is_reported_once() {
    let pair = need!(Pair::new());
    // An answer that can't leave ends a half-open connection, which also counts as a drop.
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_syncookies", "0");
    pair.server.sysctl("ipv4/tcp_max_syn_backlog", "4");
    let _listener = pair.server.enter(|| listener(server(95), 4));
    let dropped = Growth::of(&pair.server, "TcpExtListenDrops");
    let tool = start(&pair.server, &["--only", "drop", "-p", "95"]);
    for port in 4000..4012 {
        send(&pair, &segment(&pair, NOBODY, SYN, (port, 95), 77, 0));
    }
    dropped.reaches(1);
    let output = tool.stop();
    let drops = output.events("drop");
    assert_eq!(drops.len() as u64, dropped.now(), "{drops:#?}");
    let is_full = |drop: &Value| drop["reason"] == "syn_queue_full";
    assert!(drops.iter().all(is_full), "{drops:#?}");
}

#[test]
fn a_final_ack_that_finds_the_queue_full_is_reported_where_it_came_in() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_abort_on_overflow", "1");
    let _listener = pair.server.enter(|| listener(server(96), 0));
    let resets = Growth::of(&pair.server, "TcpOutRsts");
    let tool = start(
        &pair.server,
        &["--any-port", "96", "--host", &NOBODY.to_string()],
    );
    late_ack(&pair, 96);
    tool.json("of a drop", |line| line["event"] == "drop");
    resets.reaches(1);
    let output = tool.stop();
    let drops = output.events("drop");
    assert_eq!(drops.len(), 1, "{output:#?}");
    assert_reason(&drops[0], &["tcp_listen_overflow"]);
    assert_eq!(drops[0]["iface"], "vs", "{}", drops[0]);
    assert_eq!(
        output.events("reset").len() as u64,
        resets.now(),
        "{output:#?}"
    );
}

#[test]
fn a_valid_syn_cookie_that_finds_the_queue_full_is_not_reported_as_no_socket() {
    need!(since((6, 18), "this drop has no reason"));
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_syncookies", "2");
    let _listener = pair.server.enter(|| listener(server(97), 0));
    let drops = Growth::of(&pair.server, "TcpExtListenDrops");
    let args = ["-p", "97", "--reason", "accept_queue_full"];
    let tool = start(&pair.server, &args);
    late_ack(&pair, 97);
    drops.reaches(1);
    tool.json("of a drop", |line| line["event"] == "drop");
    let output = tool.stop();
    let lines = output.events("drop");
    assert_eq!(lines.len(), 1, "{output:#?}");
    assert_eq!(lines[0]["reason"], "accept_queue_full", "{}", lines[0]);
    assert_eq!(lines[0]["reason_from"], "inferred", "{}", lines[0]);
}

#[test]
fn a_reset_of_a_half_open_connection_is_a_reset_and_not_a_drop() {
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(97), 16));
    let resets = Growth::of(&pair.server, "TcpExtEmbryonicRsts");
    let tool = start(&pair.server, &["--any-port", "97"]);
    // The client knows nothing of this, and resets what it is sent.
    send(&pair, &segment(&pair, CLIENT4, 2, (4000, 97), 77, 0));
    resets.reaches(1);
    let is_it = |line: &Value| line["sport"] == 4000 && line["tcp_flags"] == json!(["rst"]);
    let line = tool.json("of the reset", is_it);
    let output = tool.stop();
    let [resets, drops] = ["reset", "drop"].map(|event| output.events(event).len());
    // Older kernels do not show the socket of a segment that is dropped.
    if release() < (6, 11) {
        assert_eq!((resets, drops), (0, 1), "{output:#?}");
        return;
    }
    assert_eq!((resets, drops), (1, 0), "{output:#?}");
    assert_eq!(line["way"], "received", "{line}");
    assert_eq!(line["state"], "syn_recv", "{line}");
    assert_eq!(line["direction"], "ingress", "{line}");
}

#[test]
fn invalid_segments_are_reported_with_their_reason() {
    need!(are_all_drops_reported());
    let pair = need!(Pair::new());
    let _listener = pair.server.enter(|| listener(server(97), 16));
    let mut damaged = syn(&pair, CLIENT4, 97);
    damaged[14 + 20 + 16] ^= 0xff;
    let drops = Drops::start(&pair, 97);
    send(&pair, &damaged);
    assert_reason(&drops.only(), &["tcp_csum"]);
    // A combination of flags that no segment may have.
    let drops = Drops::start(&pair, 97);
    send(&pair, &segment(&pair, CLIENT4, SYN | 1, (4001, 97), 77, 0));
    assert_reason(&drops.only(), &["tcp_flags"]);
}

#[test]
fn a_ttl_below_the_minimum_is_reported() {
    let pair = need!(Pair::new());
    let socket = pair.server.enter(|| listener(server(98), 16));
    set_int(&socket, libc::IPPROTO_IP, libc::IP_MINTTL, 255).unwrap();
    let drops = Drops::start(&pair, 98);
    send(&pair, &syn(&pair, CLIENT4, 98));
    assert_reason(&drops.only(), &["tcp_minttl"]);
}

#[test]
fn a_segment_outside_of_the_window_is_reported() {
    need!(are_all_drops_reported());
    let pair = need!(Pair::new());
    let listener = pair.server.enter(|| TcpListener::bind(server(99)).unwrap());
    let client = pair
        .client
        .enter(|| TcpStream::connect(server(99)).unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let port = client.local_addr().unwrap().port();
    let drops = Drops::start(&pair, 99);
    // It is very unlikely that this sequence number is within the window.
    send(&pair, &segment(&pair, CLIENT4, ACK, (port, 99), 1, 1));
    let drop = drops.only();
    let reasons = [
        "tcp_overwindow",
        "tcp_invalid_sequence",
        "tcp_invalid_end_sequence",
        "tcp_invalid_ack_sequence",
        "tcp_old_sequence",
        "tcp_old_ack",
        "tcp_too_old_ack",
        "tcp_rfc7323_paws",
        "tcp_ack_unsent_data",
    ];
    assert_reason(&drop, &reasons);
    // Since Linux 6.11 the kernel shows the socket.
    let has_socket = release() >= (6, 11);
    let state = has_socket.then_some("established");
    assert_eq!(drop["state"].as_str(), state, "{drop}");
    if has_socket {
        assert_eq!(drop["pid"], std::process::id(), "{drop}");
    }
    std::mem::drop((client, accepted));
}

/// A connection from port 4000 of [`NOBODY`], which has sent nothing yet: its next sequence number is 78.
/// Returns the number that it acknowledges, and its end at the server.
fn connected(pair: &Pair, port: u16) -> (u32, TcpListener, TcpStream) {
    with_neighbour(pair);
    let listener = pair
        .server
        .enter(|| TcpListener::bind(server(port)).unwrap());
    let ack = half_open(pair, port).wrapping_add(1);
    acknowledge(pair, port, ack);
    let (accepted, _) = listener.accept().unwrap();
    (ack, listener, accepted)
}

#[test]
fn a_keepalive_probe_that_is_answered_is_no_drop() {
    need!(since((6, 11), "the receiving socket is not shown"));
    let pair = need!(Pair::new());
    let (ack, _listener, accepted) = connected(&pair, 100);
    let send_ack = |seq| send(&pair, &segment(&pair, NOBODY, ACK, (4000, 100), seq, ack));
    let drops = Drops::start(&pair, 100);
    send_ack(77);
    send_ack(70);
    assert_eq!(drops.only()["seq"], 70);
    let drops = Drops::start(&pair, 100);
    set_int(&accepted, libc::IPPROTO_IP, libc::IP_MINTTL, 255).unwrap();
    send_ack(77);
    assert_reason(&drops.only(), &["tcp_minttl"]);
}

#[test]
fn drops_from_the_out_of_order_queue_are_those_that_nstat_counts() {
    need!(are_all_drops_reported());
    let pair = need!(Pair::new());
    let (ack, _listener, _accepted) = connected(&pair, 101);
    let merged = Growth::of(&pair.server, "TcpExtTCPOFOMerge");
    let tool = start(&pair.server, &["--only", "drop", "-p", "101", "vs"]);
    let send_data = |seq, len| {
        let data = Segment {
            seq,
            ack,
            ..Segment::new(4000, 101, ACK, &vec![7; len])
        };
        send(&pair, &frame(&pair, NOBODY, &data));
    };
    // Segments with gaps between them, and one that covers them all.
    for number in 1..=20 {
        send_data(78 + number * 20, 10);
    }
    send_data(93, 600);
    merged.reaches(20);
    tool.events(20);
    let drops = tool.stop().events("drop");
    assert_eq!(drops.len() as u64, merged.now(), "{drops:#?}");
    for drop in &drops {
        assert_eq!(drop["iface"], "vs", "{drop}");
        assert_reason(drop, &["tcp_ofomerge"]);
    }
}

#[test]
fn a_syn_whose_answer_waits_for_the_neighbour_is_no_drop() {
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind(server(102)).unwrap());
    let dropped = Growth::of(&pair.server, "TcpExtListenDrops");
    let tool = start(&pair.server, &["--only", "drop", "-p", "102"]);
    for _ in 0..5 {
        pair.server.run("ip neigh flush dev vs");
        // The connection is over before anybody can look for it.
        let client = pair.client.enter(|| TcpStream::connect(server(102)));
        drop((client.unwrap(), listener.accept().unwrap()));
    }
    let output = tool.stop();
    assert_eq!(dropped.now(), 0);
    assert_eq!(output.events("drop"), [] as [Value; 0], "{output:#?}");
}

#[test]
fn another_protocol_after_an_extension_header_is_not_a_segment() {
    let pair = need!(Pair::new());
    let tool = start(&pair.server, &["-6"]);
    // A multicast listener report (MLDv2): ICMPv6 after hop-by-hop options.
    let mut frame = vec![0x33, 0x33, 0, 0, 0, 0x16, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
    frame.extend([0x60, 0, 0, 0, 0, 36, 0, 1]);
    let from: IpAddr = "fe80::1".parse().unwrap();
    let to: IpAddr = "ff02::16".parse().unwrap();
    for addr in [from, to] {
        let IpAddr::V6(addr) = addr else { continue };
        frame.extend(addr.octets());
    }
    frame.extend([58, 0, 5, 2, 0, 0, 1, 0]);
    frame.extend([143, 0, 0, 0, 0, 0, 0, 1, 4, 0, 0, 0]);
    frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 1]);
    send(&pair, &frame);
    pair.refused_connects((crate::common::net::SERVER6, 9).into(), 1);
    tool.json("of the drop after it", |line| line["dport"] == 9);
    let drops = tool.stop().events("drop");
    assert!(
        drops.iter().all(|drop| drop["daddr"] != "ff02::16"),
        "{drops:#?}"
    );
}
