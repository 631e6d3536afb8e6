//! Real packets between network namespaces: what each hook sees, and that all of them agree.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::common::bpf::{Foreign, Hook, XDP_PASS, has_xdp_frags};
use crate::common::frames::{
    IPV4, IPV6, Ipv4, SYN, Segment, Tag, ethernet_ip, service_vlan, syn_frame, tagged_ip,
    tcp_between, vlan,
};
use crate::common::raw::{RawSocket, Tun};
use crate::common::tool::parse;
use crate::common::{
    CLIENT4, CLIENT6, Namespace, Output, Pair, SERVER4, SERVER6, Tool, command, is_guest, need,
    quick,
};
use serde_json::{Value, json};

/// All modes of syn-count on an Ethernet interface.
const MODES: [&str; 3] = ["native", "generic", "tc"];

/// The modes of a device whose driver has no XDP.
const STACK_MODES: [&str; 2] = ["generic", "tc"];

/// Runs `send` under syn-count in each mode, then under port-monitor. All must count the same
/// number of SYNs, give the same verdicts, and end well. Returns what port-monitor showed.
fn agree(
    namespace: &Namespace,
    interface: &str,
    modes: &[&str],
    expected: u64,
    mut send: impl FnMut(),
) -> Vec<Value> {
    let mut verdicts = Vec::new();
    for mode in modes {
        let args = [
            "syn-count",
            interface,
            "--json",
            "-I",
            "0.05",
            "--mode",
            mode,
        ];
        let tool = Tool::start_in(namespace, &args);
        let (_, attached) = tool.attached_line();
        assert!(attached.contains(mode) && attached.contains(interface));
        send();
        tool.syn_total(expected);
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        let summary = output.summary();
        assert_eq!(summary["syn_total"], expected, "{mode}: {summary}");
        for line in output.events("syn_count") {
            assert_eq!(line["mode"], *mode, "{line}");
            assert_eq!(line["iface"], interface, "{line}");
        }
        verdicts.push((*mode, judged(&summary)));
    }

    let tool = Tool::start_in(namespace, &["port-monitor", interface, "--json"]);
    send();
    if expected > 0 {
        tool.events(expected.try_into().unwrap());
    }
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    let packets = output.events("packet");
    assert_eq!(packets.len() as u64, expected, "{output:#?}");
    verdicts.push(("port-monitor", judged(&output.summary())));
    for (hook, verdict) in &verdicts {
        assert_eq!(verdict, &verdicts[0].1, "{hook}, and {}", verdicts[0].0);
    }
    packets
}

/// The counts of the verdicts that only TCP can cause, because hosts may send other packets at any time.
fn judged(summary: &Value) -> [u64; 5] {
    ["tcp", "fragment", "truncated", "malformed", "too_deep"]
        .map(|name| summary["verdicts"][name].as_u64().unwrap())
}

/// [`agree`] on raw frames that come in from the other end of a pair.
fn agree_on_frames(pair: &Pair, modes: &[&str], expected: u64, frames: &[Vec<u8>]) -> Vec<Value> {
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    agree(&pair.server, "vs", modes, expected, || {
        frames.iter().for_each(|frame| socket.send(frame));
    })
}

/// A SYN of either family.
fn syns(tags: &[Tag]) -> [Vec<u8>; 2] {
    [
        syn_frame(tags, CLIENT4.into(), SERVER4.into(), 80),
        syn_frame(tags, CLIENT6.into(), SERVER6.into(), 80),
    ]
}

#[test]
fn a_thousand_syns_are_a_thousand_in_every_mode_and_seen_live_in_a_pipe() {
    let pair = need!(Pair::new());
    agree(&pair.server, "vs", &MODES, 1000, || {
        pair.refused_connects((SERVER4, 80).into(), 500);
        pair.refused_connects((SERVER6, 80).into(), 500);
    });
}

#[test]
fn port_monitor_shows_exactly_the_attempts_at_its_ports_tagged_or_not() {
    let pair = need!(Pair::new());
    let _listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 8010)).unwrap());
    let args = ["port-monitor", "vs", "--json", "-p", "80,8000-8010"];
    let tool = Tool::start_in(&pair.server, &args);
    let raw = pair.client.enter(|| RawSocket::open("vc"));
    let mut expected = BTreeSet::new();
    for (client, server) in [
        (IpAddr::from(CLIENT4), IpAddr::from(SERVER4)),
        (IpAddr::from(CLIENT6), IpAddr::from(SERVER6)),
    ] {
        for port in [79, 80, 81, 7999, 8000, 8005, 8010, 8011] {
            let result = pair
                .client
                .enter(|| TcpStream::connect(SocketAddr::from((server, port))));
            let open = port == 8010 && server == SERVER4;
            assert_eq!(result.is_ok(), open, "{server} {port}: {result:?}");
            raw.send(&syn_frame(&[vlan(5)], client, server, port));
            if port == 80 || (8000..=8010).contains(&port) {
                for vlan in ["[]", "[5]"] {
                    expected.insert(attempt(server, port, vlan));
                }
            }
        }
    }
    tool.events(expected.len());
    let output = tool.stop();
    assert_eq!(attempts(&output), expected);
    assert_eq!(output.summary()["matched"], expected.len());
}

/// An attempt as [`attempts`] returns it.
fn attempt(server: IpAddr, port: u16, vlan: &str) -> String {
    format!("{server} {port} {vlan}")
}

/// The attempts at the server that port-monitor saw, each of which must be there once.
fn attempts(output: &Output) -> BTreeSet<String> {
    let mut attempts = BTreeSet::new();
    for line in output.events("packet") {
        assert_eq!(line["tcp_flags"], json!(["syn"]), "{line}");
        assert_eq!(line["direction"], "ingress", "{line}");
        let server = line["daddr"].as_str().unwrap().parse().unwrap();
        let port = line["dport"].as_u64().unwrap().try_into().unwrap();
        let new = attempts.insert(attempt(server, port, &line["vlan"].to_string()));
        assert!(new, "twice: {line}");
    }
    attempts
}

#[test]
fn a_tag_is_seen_below_a_vlan_device_but_not_on_it() {
    let pair = need!(Pair::new());
    for (namespace, device, host) in [(&pair.client, "vc", 1), (&pair.server, "vs", 2)] {
        let link = format!("ip link add link {device} name v5 type vlan id 5");
        need!(namespace.try_run(&link));
        namespace.run(&format!("ip addr add 10.78.0.{host}/24 dev v5"));
        namespace.run(&format!("ip addr add fd78::{host}/64 dev v5 nodad"));
        namespace.run("ip link set v5 up");
    }
    let servers: [IpAddr; 2] = ["10.78.0.2".parse().unwrap(), "fd78::2".parse().unwrap()];
    for (device, vlan) in [("vs", json!([5])), ("v5", json!([]))] {
        let modes = if device == "vs" {
            &MODES[..]
        } else {
            &STACK_MODES
        };
        let lines = agree(&pair.server, device, modes, 20, || {
            for server in servers {
                pair.refused_connects((server, 80).into(), 10);
            }
        });
        assert!(lines.iter().all(|line| line["vlan"] == vlan), "{lines:#?}");
    }
}

#[test]
fn every_field_of_a_real_syn_is_right() {
    let pair = need!(Pair::new());
    let tool = Tool::start_in(&pair.server, &["port-monitor", "vs", "--json"]);
    let source = pair.client.enter(|| {
        let listener = pair
            .server
            .enter(|| TcpListener::bind((SERVER4, 0x1234)).unwrap());
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.local_addr().unwrap()
    });
    tool.events(1);
    let line = tool.stop().events("packet").remove(0);
    let mac = |namespace: &Namespace, device: &str| {
        let link = namespace.run(&format!("ip -j link show {device}"));
        let link: Value = serde_json::from_str(&link).unwrap();
        link[0]["address"].clone()
    };
    for (key, value) in [
        ("src_mac", mac(&pair.client, "vc")),
        ("dst_mac", mac(&pair.server, "vs")),
        ("ethertype", IPV4.into()),
        ("vlan", json!([])),
        ("ip_version", 4.into()),
        ("saddr", CLIENT4.to_string().into()),
        ("daddr", SERVER4.to_string().into()),
        ("sport", source.port().into()),
        ("dport", 4660.into()),
        ("ttl", 64.into()),
        ("ip_header_len", 20.into()),
        ("ip_len", 60.into()),
        ("ack", 0.into()),
        ("data_offset", 10.into()),
        ("tcp_flags", json!(["syn"])),
        ("tcp_flags_raw", 2.into()),
        ("urgent", 0.into()),
        ("mss", 1460.into()),
        ("sack_permitted", true.into()),
        ("ts_ecr", 0.into()),
        ("payload_offset", 74.into()),
        ("payload_len", 0.into()),
        ("payload", Value::Null),
    ] {
        assert_eq!(line[key], value, "{key}: {line}");
    }
    for key in ["seq", "window", "checksum", "wscale", "ts_val", "ip_id"] {
        assert!(line[key].is_u64(), "{key}: {line}");
    }
}

#[test]
fn addresses_and_ports_have_the_right_byte_order() {
    let pair = need!(Pair::new());
    let from: IpAddr = Ipv4Addr::new(1, 2, 3, 4).into();
    let frame = syn_frame(&[], from, Ipv4Addr::new(5, 6, 7, 8).into(), 0x1234);
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    for (by, key) in [
        ("saddr", "1.2.3.4"),
        ("daddr", "5.6.7.8"),
        ("dport", "4660"),
    ] {
        for mode in MODES {
            let args = [
                "syn-count",
                "vs",
                "--json",
                "-I",
                "0.05",
                "--by",
                by,
                "--mode",
                mode,
            ];
            let tool = Tool::start_in(&pair.server, &args);
            socket.send(&frame);
            let line = tool.json("with a key", |line| line["top"] != json!([]));
            let text = line["top"][0]["key"].to_string();
            assert_eq!(text.trim_matches('"'), key, "{mode}: {line}");
            assert_eq!(line["top"][0]["syn_total"], 1, "{mode}: {line}");
            assert_eq!(tool.stop().code(), 0);
        }
    }
    let tool = Tool::start_in(&pair.server, &["port-monitor", "vs"]);
    socket.send(&frame);
    let (_, line) = tool.line("of text", |line| line.contains("ingress"));
    let words: Vec<_> = line.split_whitespace().collect();
    assert_eq!(words[3..7], ["1.2.3.4", "40000", "5.6.7.8", "4660"]);
    assert!(tool.lines()[0].starts_with("TIME "), "{:?}", tool.lines());
}

#[test]
fn a_flood_from_spoofed_sources_hides_no_source_that_sends_many() {
    // A test must be over soon even where a frame takes long; the benches send a million.
    let spoofed = if is_guest() { 20_000 } else { 150_000 };
    let pair = need!(Pair::new());
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    let to: IpAddr = Ipv4Addr::new(192, 0, 2, 1).into();
    let busy = Ipv4Addr::new(198, 51, 100, 7);
    let frame = syn_frame(&[], busy.into(), to, 80);
    for mode in MODES {
        let args = [
            "syn-count",
            "vs",
            "--json",
            "-I",
            "1",
            "--alert",
            "500",
            "--mode",
            mode,
        ];
        let tool = Tool::start_in(&pair.server, &args);
        let mut sources = (0x0b00_0000_u32..).map(|bits| Ipv4Addr::from_bits(bits).into());
        let mut flood = |count| {
            for source in sources.by_ref().take(count) {
                socket.send(&syn_frame(&[], source, to, 80));
            }
        };
        flood(spoofed);
        let of_key = |line: &&String| line.contains("\"key\":\"198.51.100.7\"");
        let before = tool.lines().len();
        let started = Instant::now();
        let seen = loop {
            for _ in 0..20 {
                flood(99);
                for _ in 0..10 {
                    socket.send(&frame);
                }
            }
            let lines = tool.lines();
            if let Some(at) = lines.iter().position(|line| of_key(&line)) {
                break at;
            }
            let limit = quick(Duration::from_secs(10));
            assert!(started.elapsed() < limit, "{mode}: {lines:#?}");
        };
        // Only intervals that began after the flood, with more than 6,000 SYNs a second, about a tenth of
        // them from the busy source: a machine with much else to do may send fewer at first.
        let intervals = tool.lines()[before..seen]
            .iter()
            .filter(|line| line.contains("syn_count"))
            .map(|line| parse(line))
            .filter(|line| {
                let number = |name: &str| line[name].as_f64().unwrap();
                let began_at = number("syn_total") - number("syn_delta");
                began_at >= spoofed as f64 && number("syn_rate") > 6000.0
            })
            .count();
        assert!(intervals <= 2, "{mode}: raised after {intervals} intervals");
        let total = tool.json("for the total", |line| line["state"] == "raised");
        assert!(total["key"].is_null(), "{total}");
        assert!(total["sources"].as_u64() > Some(500), "{total}");
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        let untracked = output.summary()["untracked"].as_u64();
        assert!(is_guest() || untracked > Some(0), "{untracked:?}");
    }
}

#[test]
fn hooks_agree_on_vlan_tags() {
    let pair = need!(Pair::new());
    let older_qinq = Tag {
        ethertype: 0x9100,
        tci: 7,
    };
    for (tags, ids) in [
        (&[vlan(5)][..], json!([5])),
        (&[vlan(0xf005)], json!([5])),
        (&[service_vlan(100), vlan(4094)], json!([100, 4094])),
        (&[vlan(7), vlan(8)], json!([7, 8])),
        (&[older_qinq, vlan(8)], json!([7, 8])),
    ] {
        for line in agree_on_frames(&pair, &MODES, 2, &syns(tags)) {
            assert_eq!(line["vlan"], ids, "{tags:?}: {line}");
            let expected = if line["ip_version"] == 4 { IPV4 } else { IPV6 };
            assert_eq!(line["ethertype"], expected, "{tags:?}: {line}");
        }
    }
    let mut frames = syns(&[service_vlan(1), vlan(2), vlan(3)]).to_vec();
    frames.extend(syns(&[]));
    agree_on_frames(&pair, &MODES, 2, &frames);
}

#[test]
fn hooks_agree_on_jumbo_frames_that_lie_in_several_pieces() {
    let pair = need!(Pair::with_mtu(9000));
    let payload = [0x55; 8000];
    let jumbo = |from: IpAddr, to: IpAddr| {
        ethernet_ip(&tcp_between(
            from,
            to,
            &Segment::new(40000, 80, SYN, &payload),
        ))
    };
    let frames = [
        jumbo(CLIENT4.into(), SERVER4.into()),
        jumbo(CLIENT6.into(), SERVER6.into()),
    ];
    let modes = match has_xdp_frags() {
        Ok(()) => &MODES[..],
        Err(_) => &STACK_MODES,
    };
    for line in agree_on_frames(&pair, modes, 2, &frames) {
        assert_eq!(line["payload_len"], 8000, "{line}");
    }
}

#[test]
fn hooks_agree_on_frames_of_which_only_the_first_14_bytes_are_linear() {
    let pair = need!(Pair::new());
    for tags in [&[][..], &[vlan(5)], &[service_vlan(6), vlan(5)]] {
        let frames: Vec<_> = (0..10).flat_map(|_| syns(tags)).collect();
        let packets = agree(&pair.server, "vs", &MODES, 20, || {
            let socket = pair.client.enter(|| RawSocket::open("vc"));
            socket.send_by_ring(&frames);
        });
        for line in packets {
            let vlan: Vec<_> = tags.iter().map(|tag| tag.tci).collect();
            assert_eq!(line["vlan"], json!(vlan), "{line}");
            assert_eq!(line["dport"], 80, "{line}");
        }
    }
}

#[test]
fn hooks_agree_on_fragments_and_options() {
    const MORE_FRAGMENTS: u16 = 0x2000;
    let pair = need!(Pair::new());
    let ip = Ipv4 {
        source: CLIENT4.octets(),
        destination: SERVER4.octets(),
        ..Ipv4::default()
    };
    let segment = Segment::new(40000, 80, SYN, &[0; 12]).bytes(&ip.source, &ip.destination);
    let packet = |options: &[u8], fragment, payload: &[u8]| {
        let ip = Ipv4 {
            options: options.to_vec(),
            fragment,
            ..ip.clone()
        };
        ethernet_ip(&ip.around(payload))
    };
    let counted = [
        packet(&[], MORE_FRAGMENTS, &segment),
        packet(&[1; 40], 0, &segment),
    ];
    let not_counted = [
        // Its bytes look like a SYN, but are from the middle of a segment.
        packet(&[], 2, &segment),
        packet(&[], MORE_FRAGMENTS | 2, &segment),
        // A first fragment that is too short to have the ports and flags.
        packet(&[], MORE_FRAGMENTS, &segment[..8]),
    ];
    let frames = [&counted[..], &not_counted].concat();
    for line in agree_on_frames(&pair, &MODES, 2, &frames) {
        assert_eq!(line["dport"], 80, "{line}");
    }
}

#[test]
fn a_device_without_ethernet_header_is_like_any_other() {
    let namespace = need!(Namespace::new());
    let mut tun = need!(namespace.enter(|| Tun::new("tun0")));
    namespace.run("ip link set tun0 up");
    let segment = Segment::new(40000, 80, SYN, &[]);
    let packets = [
        tcp_between(CLIENT4.into(), SERVER4.into(), &segment),
        tcp_between(CLIENT6.into(), SERVER6.into(), &segment),
    ];
    let lines = agree(&namespace, "tun0", &STACK_MODES, 2, || {
        packets.iter().for_each(|packet| tun.receive(packet));
    });
    for line in lines {
        for key in ["src_mac", "dst_mac", "ethertype"] {
            assert!(line[key].is_null(), "{line}");
        }
        assert_eq!(line["vlan"], json!([]), "{line}");
        assert_eq!(line["dport"], 80, "{line}");
    }
}

#[test]
fn a_syn_in_a_tunnel_belongs_to_the_tunnels_device() {
    let pair = need!(Pair::new());
    for (namespace, device, here, there, host) in [
        (&pair.client, "vc", CLIENT4, SERVER4, 1),
        (&pair.server, "vs", SERVER4, CLIENT4, 2),
    ] {
        need!(namespace.try_run(&format!(
            "ip link add x0 type vxlan id 7 dev {device} local {here} remote {there} dstport 4789"
        )));
        namespace.run(&format!("ip addr add 10.79.0.{host}/24 dev x0"));
        namespace.run("ip link set x0 up");
    }
    let inside = SocketAddr::from(([10, 79, 0, 2], 80));
    agree(&pair.server, "x0", &STACK_MODES, 20, || {
        pair.refused_connects(inside, 20);
    });
    // The tunnel carries SYNs in UDP. Only the 3 SYNs outside of it count on the outer interface.
    let packets = agree(&pair.server, "vs", &MODES, 3, || {
        pair.refused_connects(inside, 20);
        pair.refused_connects((SERVER4, 81).into(), 3);
    });
    assert!(packets.iter().all(|line| line["dport"] == 81));
}

#[test]
fn another_generic_xdp_program_hides_nothing_from_tc() {
    let pair = need!(Pair::new());
    let foreign = pair
        .server
        .enter(|| Foreign::attach(Hook::XdpGeneric, "vs", XDP_PASS));
    let _foreign = need!(foreign);
    for (tags, ids) in [
        (&[][..], json!([])),
        (&[vlan(5)], json!([5])),
        (&[service_vlan(6), vlan(5)], json!([6, 5])),
    ] {
        let frames = syns(tags);
        for line in agree_on_frames(&pair, &["tc"], 2, &frames) {
            assert_eq!(line["vlan"], ids, "{line}");
            assert_eq!(line["src_mac"], "02:00:00:00:00:01", "{line}");
            assert_eq!(line["dst_mac"], "02:00:00:00:00:02", "{line}");
            // The kernel has removed the outermost tag from the frame.
            let inside = 4 * tags.len().saturating_sub(1);
            let ip = if line["ip_version"] == 4 { 20 } else { 40 };
            assert_eq!(line["payload_offset"], 14 + inside + ip + 20, "{line}");
        }
    }
    agree(&pair.server, "vs", &["tc"], 20, || {
        pair.refused_connects((SERVER4, 80).into(), 10);
        pair.refused_connects((SERVER6, 80).into(), 10);
    });
}

#[test]
fn tc_finds_the_packet_after_the_headers_that_some_tunnels_leave_in_front_of_it() {
    let pair = need!(Pair::new());
    for (name, near, far) in [
        (
            "t0",
            "ipip local LOCAL remote REMOTE",
            "ipip local LOCAL remote REMOTE",
        ),
        (
            "t1",
            "gre local LOCAL remote REMOTE",
            "gre local LOCAL remote REMOTE",
        ),
        // Without a fixed remote end: the neighbour table decides where a packet goes.
        (
            "t2",
            "gre local LOCAL key 7",
            "gre local LOCAL remote REMOTE key 7",
        ),
    ] {
        let ends = [
            (&pair.server, near, SERVER4, CLIENT4, 2),
            (&pair.client, far, CLIENT4, SERVER4, 1),
        ];
        for (namespace, kind, local, remote, host) in ends {
            let kind = kind
                .replace("LOCAL", &local.to_string())
                .replace("REMOTE", &remote.to_string());
            need!(namespace.try_run(&format!("ip link add {name} type {kind}")));
            namespace.run(&format!("ip addr add 10.81.0.{host}/24 dev {name}"));
            namespace.run(&format!("ip link set {name} up"));
        }
        if name == "t2" {
            pair.server
                .run("ip neigh add 10.81.0.1 lladdr 10.77.0.1 dev t2 nud permanent");
        }
        let lines = agree(&pair.server, name, &["tc"], 20, || {
            pair.refused_connects(SocketAddr::from(([10, 81, 0, 2], 80)), 20);
        });
        assert!(lines.iter().all(|line| line["saddr"] == "10.81.0.1"));
        let tool = Tool::start_in(&pair.server, &["flows", name, "--json"]);
        pair.refused_connects(SocketAddr::from(([10, 81, 0, 2], 80)), 1);
        let flows = tool.stop().events("flow");
        assert_eq!(flows.len(), 1, "{flows:#?}");
        assert_eq!(flows[0]["daddr"], "10.81.0.2", "{flows:#?}");
        for namespace in [&pair.server, &pair.client] {
            namespace.run(&format!("ip link del {name}"));
        }
    }
}

#[test]
fn packets_pass_unchanged_and_in_order() {
    let pair = need!(Pair::new());
    let sender = pair.client.enter(|| RawSocket::open("vc"));
    let frames: Vec<_> = (0..100_u8)
        .map(|number| {
            let payload = vec![number; usize::from(number) * 14];
            let segment = Segment::new(number.into(), 80, SYN, &payload);
            let packet = tcp_between(CLIENT4.into(), SERVER4.into(), &segment);
            // Tags that stay in the frame; the outermost one is in the metadata instead.
            let tags = [service_vlan(1), vlan(2)];
            tagged_ip(&tags[..usize::from(number % 2) * 2], &packet)
        })
        .collect();
    let arrived = || -> Vec<_> {
        let receiver = pair.server.enter(|| RawSocket::open_to_receive("vs"));
        let mut arrived = Vec::new();
        // As many at once as fit into the receiver's buffer.
        for batch in frames.chunks(20) {
            batch.iter().for_each(|frame| sender.send(frame));
            for _ in batch {
                arrived.push(loop {
                    let frame = receiver.receive();
                    // Hosts may send other packets at any time.
                    if frame[..12] == frames[0][..12] {
                        break frame;
                    }
                });
            }
        }
        arrived
    };
    let without = arrived();
    for args in [
        &["syn-count", "vs", "--mode", "native"][..],
        &["syn-count", "vs", "--mode", "generic"],
        &["syn-count", "vs", "--mode", "tc"],
        &["port-monitor", "vs", "--direction", "both"],
        &["flows", "vs"],
    ] {
        let tool = Tool::start_in(&pair.server, &[args, &["--json"]].concat());
        assert!(arrived() == without, "{args:?}");
        let packets = tool.stop().summary()["packets"].as_u64();
        assert!(packets >= Some(100), "{args:?}: {packets:?}");
    }
}

#[test]
fn directions_are_distinguished() {
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 80)).unwrap());
    let connect = || {
        pair.client
            .enter(|| TcpStream::connect((SERVER4, 80)).unwrap());
        listener.accept().unwrap();
    };
    for (direction, expected) in [
        ("ingress", &["syn+ack ingress"][..]),
        ("egress", &["syn egress"]),
        ("both", &["syn egress", "syn+ack ingress"]),
    ] {
        let args = [
            "port-monitor",
            "vc",
            "--json",
            "--flags",
            "syn",
            "--direction",
            direction,
        ];
        let tool = Tool::start_in(&pair.client, &args);
        connect();
        tool.events(expected.len());
        let output = tool.stop();
        let seen = output.events("packet").into_iter().map(|line| {
            let flags = line["tcp_flags"].as_array().unwrap();
            let flags: Vec<_> = flags.iter().map(|flag| flag.as_str().unwrap()).collect();
            format!(
                "{} {}",
                flags.join("+"),
                line["direction"].as_str().unwrap()
            )
        });
        assert_eq!(seen.collect::<Vec<_>>(), expected, "{direction}");
    }
}

#[test]
fn several_interfaces_are_watched_at_once_and_each_line_names_its_own() {
    let pair = need!(Pair::new());
    let tools = [
        Tool::start_in(&pair.server, &["port-monitor", "vs", "lo", "--json"]),
        Tool::start_in(
            &pair.server,
            &["syn-count", "vs", "lo", "--json", "-I", "0.05"],
        ),
    ];
    pair.refused_connects((SERVER4, 80).into(), 3);
    pair.server.enter(|| {
        for _ in 0..2 {
            let error = TcpStream::connect((Ipv4Addr::LOCALHOST, 80)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    });
    let [monitor, count] = tools;
    monitor.events(5);
    for (iface, expected) in [("vs", 3), ("lo", 2)] {
        count.json(iface, |line| {
            line["iface"] == iface && line["mode"] == "generic" && line["syn_total"] == expected
        });
    }
    let ifaces = |output: &Output, name: &str| {
        let lines = output.events("packet").into_iter();
        lines.filter(|line| line["iface"] == name).count()
    };
    let output = monitor.stop();
    assert_eq!((ifaces(&output, "vs"), ifaces(&output, "lo")), (3, 2));
    assert_eq!(output.summary()["matched"], 5);
    assert_eq!(count.stop().summary()["syn_total"], 5);
}

#[test]
fn without_an_interface_the_one_of_the_default_route_is_watched_or_else_all_that_are_up() {
    let pair = need!(Pair::new());
    let attached = |command: &str| {
        let tool = Tool::start_in(&pair.server, &[command]);
        tool.attached_line().1
    };
    let all = attached("port-monitor");
    assert!(all.contains(" on lo") && all.contains(" on vs"), "{all}");
    pair.server.run("ip route add default via 10.77.0.1");
    assert!(attached("port-monitor").contains(" on vs "));
    assert!(attached("syn-count").contains("xdp generic on vs "));
}

#[test]
fn another_namespace_is_watched_with_netns() {
    let pair = need!(Pair::new());
    let path = pair.server.path();
    for command in ["syn-count", "port-monitor", "flows"] {
        // `vs` is in the server's namespace only, in which the tool is not started.
        let args = [command, "--json", "-I", "0.05", "--netns", &path, "vs"];
        let args: Vec<&str> = match command {
            "port-monitor" => [&args[..2], &args[4..]].concat(),
            _ => args.to_vec(),
        };
        let tool = Tool::start(&args);
        let refused = pair
            .client
            .enter(|| TcpStream::connect((SERVER4, 8191)).unwrap_err());
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        tool.json("of the attempt", |line| {
            line["iface"] == "vs" && (line["dport"] == 8191 || line["syn_total"] == 1)
        });
        assert_eq!(tool.stop().code(), 0);
    }
}

#[test]
fn a_capture_file_cannot_be_combined_with_netns() {
    let args = ["syn-count", "-r", "-", "--netns", "1"];
    let output = Tool::spawn(&mut command(args)).finish();
    assert_eq!(output.code(), 2, "{output:#?}");
    assert!(output.stderr[0].contains("--netns"), "{output:#?}");
}
