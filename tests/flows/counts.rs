//! flows: packets, bytes and retransmissions are those that the kernel has counted.

use super::*;
use crate::common::net::counter;

/// Turns the offloads of both ends on or off.
fn set_offloads(pair: &Pair, to: &str) -> Result<(), String> {
    for (namespace, device) in [(&pair.client, "vc"), (&pair.server, "vs")] {
        namespace.try_run(&format!("ethtool -K {device} gro {to} gso {to} tso {to}"))?;
    }
    Ok(())
}

#[test]
fn bytes_are_exact_and_packets_are_segments_with_offloads_and_without() {
    let pair = need!(Pair::new());
    for offloads in ["on", "off"] {
        need!(set_offloads(&pair, offloads));
        let sizes = [3_000_000, 1_000_003];
        let sides = [(&pair.client, "vc"), (&pair.server, "vs")]
            .map(|(namespace, device)| Tool::start_in(namespace, &["flows", device, "--json"]));
        for addr in [
            SocketAddr::from((SERVER4, 0)),
            SocketAddr::from((SERVER6, 0)),
        ] {
            let flows = crate::common::wait_for("a transfer without retransmissions", || {
                let port = transfer(&pair.client, &pair.server, addr, sizes);
                let flows = sides.each_ref().map(|tool| flow_of(tool, port));
                let again = ["orig_retransmits", "resp_retransmits"];
                let is_clean = |line: &Value| again.iter().all(|key| line[*key] == 0);
                flows.iter().all(is_clean).then_some(flows)
            });
            for line in &flows {
                assert_fields(
                    line,
                    &[
                        ("daddr", json!(addr.ip().to_string())),
                        ("state", json!("TIME-WAIT")),
                        ("conn_state", json!("SF")),
                        ("syn_retransmits", json!(0)),
                        ("partial", json!(false)),
                        ("end", json!("closed")),
                    ],
                );
                // On a busy machine TCP retransmits segments that were not lost. These count as well.
                for (way, size) in ["orig", "resp"].into_iter().zip(sizes) {
                    let bytes = line[format!("{way}_bytes")].as_u64().unwrap();
                    if line[format!("{way}_retransmits")] == 0 {
                        assert_eq!(bytes, size as u64, "{way} of {line}");
                    } else {
                        assert!(bytes >= size as u64, "{way} of {line}");
                    }
                }
                assert!(
                    line["history"].as_str().unwrap().starts_with("ShA"),
                    "{line}"
                );
                assert!(line["handshake_us"].as_u64() >= line["syn_ack_us"].as_u64());
                // At least as many segments as the bytes take: the MSS is 1500, the MTU, less the
                // headers.
                let mss = if addr.is_ipv4() { 1448 } else { 1428 };
                assert!(
                    line["orig_pkts"].as_u64().unwrap() >= (sizes[0] / mss) as u64,
                    "{line}"
                );
            }
            // Both ends of the wire have seen the same.
            for key in ["orig_pkts", "resp_pkts", "history"] {
                assert_eq!(flows[0][key], flows[1][key], "{key}, offloads {offloads}");
            }
        }
        for tool in sides {
            let output = tool.stop();
            assert_eq!(output.code(), 0, "{output:#?}");
            check_packets(&output);
        }
    }
}

/// The resets that a namespace has sent.
fn resets_sent(namespace: &Namespace) -> u64 {
    counter(namespace, "TcpOutRsts")
}

#[test]
fn packets_and_bytes_are_those_that_the_kernel_has_counted_for_the_socket() {
    let pair = need!(Pair::new());
    for offloads in ["on", "off"] {
        need!(set_offloads(&pair, offloads));
        let tool = Tool::start_in(&pair.client, &["flows", "vc", "--json"]);
        for addr in [
            SocketAddr::from((SERVER4, 0)),
            SocketAddr::from((SERVER6, 0)),
        ] {
            let sizes = [5_000_003, 2_000_001];
            let resets_before = resets_sent(&pair.server);
            let [stream, _] = transferred(&pair.client, &pair.server, addr, sizes);
            let [segments_out, segments_in, sent, received] = socket_counts(&stream);
            let line = flow_of(&tool, stream.local_addr().unwrap().port());
            // If another processor delivers ACKs after the last one, the server's socket is gone, and the
            // server answers them with RSTs. These find the client's socket in TIME-WAIT, where nothing is
            // counted any more.
            let late = resets_sent(&pair.server) - resets_before;
            // The socket has also counted the segments that it retransmitted. Segments that were
            // retransmitted to it are counted once by the socket, and twice by the flow.
            assert_fields(
                &line,
                &[
                    ("orig_pkts", json!(segments_out)),
                    ("orig_bytes", json!(sent)),
                    ("resp_pkts", json!(segments_in + late)),
                ],
            );
            assert!(sent >= sizes[0] as u64, "{line}");
            // The kernel counts the FIN as a byte.
            assert_eq!(received, sizes[1] as u64 + 1, "{line}");
            if line["resp_retransmits"] == 0 {
                assert_eq!(line["resp_bytes"], sizes[1], "{line}");
            }
        }
        check_packets(&tool.stop());
    }
}

#[test]
fn retransmitted_segments_are_those_that_the_kernel_has_counted() {
    let pair = need!(Pair::new());
    // Every twentieth packet that comes to the server is lost; a GSO packet with all its segments.
    for words in [
        "nft add table netdev loss",
        "nft add chain netdev loss in { type filter hook ingress device vs priority 0; }",
        "nft add rule netdev loss in meta l4proto tcp numgen inc mod 20 == 7 drop",
    ] {
        need!(pair.server.try_run(words));
    }
    for offloads in ["on", "off"] {
        need!(set_offloads(&pair, offloads));
        let tool = Tool::start_in(&pair.client, &["flows", "vc", "--json"]);
        let before = counter(&pair.client, "TcpRetransSegs");
        let [stream, _] = transferred(
            &pair.client,
            &pair.server,
            (SERVER4, 0).into(),
            [3_000_000, 100],
        );
        // tcpi_total_retrans, which `ss -ti` shows as the second number of `retrans`.
        let of_socket = four(&tcp_info(&stream), 100);
        let line = flow_of(&tool, stream.local_addr().unwrap().port());
        let of_namespace = counter(&pair.client, "TcpRetransSegs") - before;
        assert_eq!(of_socket, of_namespace);
        // The SYN and the FIN carry no data, and may have been lost too.
        let sent = line["orig_retransmits"].as_u64().unwrap();
        let syns = line["syn_retransmits"].as_u64().unwrap();
        let without_data = of_namespace - sent - syns;
        assert!(sent > 20, "{sent} of {of_namespace}, {line}");
        assert!(without_data <= 2, "{sent} of {of_namespace}, {line}");
        check_packets(&tool.stop());
    }
}

/// Packets that a device has received and sent, according to `ip -s link`.
fn device_packets(namespace: &Namespace, device: &str) -> u64 {
    let text = namespace.run(&format!("ip -s -j link show dev {device}"));
    let stats = &crate::common::tool::parse(text.trim())[0]["stats64"];
    let way = |name: &str| stats[name]["packets"].as_u64().unwrap();
    way("rx") + way("tx")
}

#[test]
fn segments_are_the_packets_of_the_device_without_offloads() {
    let pair = need!(Pair::new());
    need!(set_offloads(&pair, "off"));
    let tool = Tool::start_in(&pair.server, &["flows", "vs", "--json"]);
    let before = device_packets(&pair.server, "vs");
    let port = transfer(
        &pair.client,
        &pair.server,
        (SERVER4, 0).into(),
        [500_000, 100_000],
    );
    flow_of(&tool, port);
    let passed = device_packets(&pair.server, "vs") - before;
    let output = tool.stop();
    let summary = output.summary();
    let number = |value: &Value| value.as_u64().unwrap();
    // Packets that are not TCP are neighbour discovery, which can happen at any time.
    let others = number(&summary["packets"]) - number(&summary["verdicts"]["tcp"]);
    let segments = number(&summary["segments"]);
    assert!(
        (segments..=segments + others).contains(&passed),
        "{passed} {summary}"
    );
    check_packets(&output);
}

#[test]
fn loopback_counts_each_packet_once() {
    let namespace = need!(Namespace::new());
    // No tail loss probes, which TCP sends on a busy machine although nothing was lost.
    namespace.sysctl("ipv4/tcp_early_retrans", "0");
    let tool = Tool::start_in(&namespace, &["flows", "lo", "--json"]);
    let port = transfer(
        &namespace,
        &namespace,
        ([127, 0, 0, 1], 0).into(),
        [70_000, 11],
    );
    let line = flow_of(&tool, port);
    assert_fields(
        &line,
        &[
            ("orig_bytes", json!(70_000)),
            ("resp_bytes", json!(11)),
            ("conn_state", json!("SF")),
            ("unexpected", json!(0)),
        ],
    );
    check_packets(&tool.stop());
}

#[test]
fn loads_by_key_add_up_to_what_was_sent() {
    let pair = need!(Pair::new());
    let args = ["flows", "vs", "--json", "--by", "dport", "-I", "0.1"];
    let tool = Tool::start_in(&pair.server, &args);
    let transfers = [
        (SocketAddr::from((SERVER4, 0)), [400_000, 100_000]),
        (SocketAddr::from((SERVER6, 0)), [30_000, 10_000]),
    ];
    let ends = transfers.map(|(addr, sizes)| transferred(&pair.client, &pair.server, addr, sizes));
    let output = tool.stop();
    let summary = output.summary();
    let lines = output.events("flow_count");
    let sum = |key: &str| {
        lines
            .iter()
            .map(|line| line[key].as_u64().unwrap())
            .sum::<u64>()
    };
    // On a busy machine TCP retransmits segments that were not lost.
    let sent: u64 = ends
        .iter()
        .flatten()
        .map(|stream| socket_counts(stream)[2])
        .sum();
    assert!(sent >= 540_000);
    assert_eq!(sum("bytes"), sent);
    assert_eq!(sum("packets"), summary["segments"].as_u64().unwrap());
    for line in &lines {
        let top = line["top"].as_array().unwrap();
        let bytes: u64 = top.iter().map(|key| key["bytes"].as_u64().unwrap()).sum();
        assert_eq!(line["bytes"], bytes, "{line}");
        assert_eq!(line["iface"], "vs");
    }
}

#[test]
fn a_scanner_of_ports_or_addresses_is_seen_by_its_distinct_ports_and_peers() {
    use crate::oracle::frames::{Ipv4, Segment, ethernet_ip};
    let syn = |source: u8, destination: u8, dport: u16, len: usize| {
        let segment = Segment {
            sport: 40_000,
            dport,
            flags: SYN,
            payload: vec![b'x'; len],
            ..Segment::default()
        };
        let packet = Ipv4 {
            source: [10, 0, 0, source],
            destination: [10, 0, 1, destination],
            ..Ipv4::default()
        };
        (1, ethernet_ip(&packet.tcp(&segment)))
    };
    let mut frames = (1..=30).map(|port| syn(1, 1, port, 0)).collect::<Vec<_>>();
    frames.extend((1..=20).map(|host| syn(2, host, 22, 0)));
    frames.push(syn(3, 1, 80, 1000));
    let bytes = write_frames(frames);
    for (by, sort, key, [flows, peers, ports]) in [
        ("saddr", "bytes", "10.0.0.3", [1, 1, 1]),
        ("saddr", "ports", "10.0.0.1", [30, 1, 30]),
        ("saddr", "peers", "10.0.0.2", [20, 20, 1]),
        ("daddr", "peers", "10.0.1.1", [32, 3, 31]),
        ("net", "flows", "10.0.0.0/24", [51, 20, 31]),
    ] {
        let output = replay_bytes(&bytes, &["--by", by, "--sort", sort, "--top", "1"]);
        let line = &output.events("flow_count")[0];
        let expected = [
            ("key", json!(key)),
            ("flows", json!(flows)),
            ("peers", json!(peers)),
            ("ports", json!(ports)),
        ];
        assert_fields(&line["top"][0], &expected);
        assert_fields(
            line,
            &[
                ("flows", json!(51)),
                ("peers", json!(if by == "daddr" { 3 } else { 20 })),
                ("ports", json!(31)),
            ],
        );
    }
}
