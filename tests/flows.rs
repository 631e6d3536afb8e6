//! flows: against a model over captures and made-up conversations, and on real connections.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;
mod flow_model;
mod oracle;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use common::frames::{RawSocket, syn_frame};
use common::net::Reaped;
use common::tool::{ENOUGH, PublicBinary, as_nobody, check_account, command_of, parse};
use common::{CLIENT4, Namespace, Pair, SERVER4, SERVER6, Tool, command, is_guest, need};
use flow_model::Record;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::pty::{Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::sys::utsname::uname;
use serde_json::{Value, json};

/// Runs a file through flows; `None` if the tool says that it can't read all of it.
fn replay(path: &Path, args: &[&str]) -> Option<common::Output> {
    let file = path.to_str().unwrap();
    let mut words = vec!["flows", "--json", "-r", file];
    words.extend(args);
    let output = Tool::spawn(&mut command(words)).finish();
    (output.code() == 0).then_some(output)
}

fn end(line: &Value, addr: &str, port: &str) -> (std::net::IpAddr, u16) {
    let addr = line[addr].as_str().unwrap().parse().unwrap();
    (addr, line[port].as_u64().unwrap().try_into().unwrap())
}

fn nanos(text: &str) -> i64 {
    let at: jiff::Timestamp = text.parse().unwrap();
    at.as_nanosecond().try_into().unwrap()
}

/// A line as the model has it.
fn record(line: &Value) -> Record {
    let number = |name: &str| line[name].as_u64().unwrap();
    let conn_states = [
        "S0", "S1", "SF", "REJ", "S2", "S3", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH", "SHR", "OTH",
    ];
    let conn_state = line["conn_state"].as_str().unwrap();
    Record {
        orig: end(line, "saddr", "sport"),
        resp: end(line, "daddr", "dport"),
        start: nanos(line["start"].as_str().unwrap()),
        last: nanos(line["ts"].as_str().unwrap()),
        conn_state: conn_states
            .into_iter()
            .find(|it| *it == conn_state)
            .unwrap(),
        history: line["history"].as_str().unwrap().to_owned(),
        orig_pkts: number("orig_pkts"),
        orig_bytes: number("orig_bytes"),
        resp_pkts: number("resp_pkts"),
        resp_bytes: number("resp_bytes"),
        syn_retransmits: number("syn_retransmits"),
        partial: line["partial"].as_bool().unwrap(),
    }
}

/// Checks the sums that flows promises: no packet is counted twice or forgotten. Returns the
/// summary. Lines are looked at one by one: there may be very many.
fn check_packets(output: &common::Output) -> Value {
    let mut in_lines = 0;
    let mut summary = Value::Null;
    for line in output.stdout.iter().map(|line| parse(line)) {
        if line["event"] == "summary" {
            summary = line;
        } else {
            in_lines += line["orig_pkts"].as_u64().unwrap() + line["resp_pkts"].as_u64().unwrap();
        }
    }
    check_account(&summary);
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!(
        number("segments"),
        in_lines + number("untracked") + number("unreported"),
        "{summary}"
    );
    assert_eq!(number("lost"), 0, "{summary}");
    summary
}

#[test]
fn the_captures_of_tcpdump_and_tcpflow_have_the_flows_of_the_model() {
    let files = need!(oracle::corpus::captures());
    let mut flows = 0;
    let mut states = BTreeMap::<&str, u64>::new();
    let mut differences = Vec::new();
    for path in &files {
        let bytes = fs::read(path).unwrap();
        let Some(mut expected) = flow_model::records(&bytes) else {
            continue;
        };
        if expected.is_empty() {
            continue;
        }
        let output = replay(path, &[]).unwrap_or_else(|| panic!("{}", path.display()));
        check_packets(&output);
        let lines = output.events("flow");
        let mut found = lines.iter().map(record).collect::<Vec<_>>();
        flow_model::sort(&mut expected);
        flow_model::sort(&mut found);
        flows += found.len();
        for one in &found {
            *states.entry(one.conn_state).or_default() += 1;
        }
        if found != expected {
            let name = path.file_name().unwrap().to_string_lossy();
            for one in found.iter().filter(|one| !expected.contains(one)) {
                differences.push(format!("{name}: found    {one:?}"));
            }
            for one in expected.iter().filter(|one| !found.contains(one)) {
                differences.push(format!("{name}: expected {one:?}"));
            }
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    // The captures hold flows of most kinds, so an empty run proves nothing.
    assert!(flows > 200 && states.len() > 5, "{flows} flows, {states:?}");
}

/// A packet of a conversation that a test makes up.
struct Said {
    /// Microseconds since the one before.
    wait: u64,
    from_client: bool,
    flags: u8,
    seq: u32,
    ack: u32,
    len: usize,
}

/// Writes conversations, each with a client port, one after another.
fn write_capture(conversations: &[(u16, Vec<Said>)]) -> Vec<u8> {
    use oracle::frames::{Ipv4, Segment, ethernet_ip};
    use oracle::pcap_write::{Frame, Order, Pcap, Unit};
    let (order, unit) = (Order::Little, Unit::Nanoseconds);
    let mut file = Pcap::new(Vec::new(), order, unit, 1).unwrap();
    let mut at = 1_700_000_000_000_000_000;
    for (port, packets) in conversations {
        for said in packets {
            at += said.wait * 1000;
            let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
            let (source, destination) = if said.from_client {
                (client, server)
            } else {
                (server, client)
            };
            let segment = Segment {
                sport: if said.from_client { *port } else { 80 },
                dport: if said.from_client { 80 } else { *port },
                seq: said.seq,
                ack: said.ack,
                flags: said.flags,
                payload: vec![b'x'; said.len],
                ..Segment::default()
            };
            let packet = Ipv4 {
                source,
                destination,
                ..Ipv4::default()
            };
            let frame = ethernet_ip(&packet.tcp(&segment));
            file.frame(Frame::whole(at, &frame)).unwrap();
        }
    }
    file.finish()
}

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// A conversation that goes well, badly or nowhere, as the random numbers have it.
fn conversation(random: &mut oracle::frames::Random) -> Vec<Said> {
    let mut said = Vec::new();
    // Near the end of the sequence space too.
    let mut next = [0, 1].map(|_| {
        let near = random.pick(&[0, 0x7fff_ffff, u32::MAX]);
        near.wrapping_sub(random.u32() % 2000)
    });
    let mut say = |from: usize, flags: u8, len: usize, next: &mut [u32; 2], wait: u64| {
        let ack = if flags & ACK != 0 { next[1 - from] } else { 0 };
        let seq = next[from];
        said.push(Said {
            wait,
            from_client: from == 0,
            flags,
            seq,
            ack,
            len,
        });
        let taken = len + usize::from(flags & (SYN | FIN) != 0);
        next[from] = seq.wrapping_add(taken as u32);
    };
    let whole = random.below(4) != 0;
    if whole && random.below(5) == 0 {
        // The SYN was missed.
        say(1, SYN | ACK, 0, &mut next, 400_000_000);
        let end = random.pick(&[RST, FIN | ACK]);
        say(1, end, 0, &mut next, 10);
        return said;
    }
    if whole {
        for _ in 0..1 + random.below(3) {
            let isn = next[0];
            say(0, SYN, 0, &mut next, 1_000_000);
            next[0] = isn;
        }
        next[0] = next[0].wrapping_add(1);
        match random.below(8) {
            0 => return said,
            1 => {
                say(1, RST | ACK, 0, &mut next, 10);
                return said;
            }
            2 => {
                say(0, RST, 0, &mut next, 10);
                return said;
            }
            3 => {
                say(0, FIN | ACK, 0, &mut next, 10);
                return said;
            }
            _ => {}
        }
    }
    if !whole {
        // What went before on these ports must be over, or this would contradict it.
        say(random.below(2), ACK, 0, &mut next, 400_000_000);
    } else {
        say(1, SYN | ACK, 0, &mut next, 20);
        say(0, ACK, 0, &mut next, 30);
    }
    for _ in 0..random.below(6) {
        let from = random.below(2);
        say(from, PSH | ACK, 1 + random.below(1400), &mut next, 50);
        say(1 - from, ACK, 0, &mut next, 40);
    }
    let first = random.below(2);
    match random.below(6) {
        0 => {}
        1 => say(first, RST | ACK, 0, &mut next, 60),
        2 => say(first, FIN | ACK, 0, &mut next, 60),
        3 => {
            say(first, FIN | ACK, 0, &mut next, 60);
            say(1 - first, RST, 0, &mut next, 60);
        }
        _ => {
            say(first, FIN | ACK, 0, &mut next, 60);
            say(1 - first, FIN | ACK, 0, &mut next, 70);
            say(first, ACK, 0, &mut next, 80);
        }
    }
    said
}

/// Replays a made-up file.
fn replay_bytes(bytes: &[u8], args: &[&str]) -> common::Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    replay(file.path(), args).unwrap()
}

#[test]
fn made_up_conversations_that_reuse_ports_have_the_flows_of_the_model() {
    let mut random = oracle::frames::Random::new(5);
    let conversations = (0..3000)
        .map(|_| {
            let port = 40000 + random.below(50) as u16;
            (port, conversation(&mut random))
        })
        .collect::<Vec<_>>();
    let file = write_capture(&conversations);
    let output = replay_bytes(&file, &[]);
    check_packets(&output);
    let mut found = output.events("flow").iter().map(record).collect::<Vec<_>>();
    let mut expected = flow_model::records(&file).unwrap();
    flow_model::sort(&mut found);
    flow_model::sort(&mut expected);
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(found.len(), expected.len());
    for state in [
        "S0", "S1", "SF", "REJ", "S2", "S3", "RSTO", "RSTR", "RSTOS0", "RSTRH", "SH", "SHR", "OTH",
    ] {
        let count = found.iter().filter(|one| one.conn_state == state).count();
        assert!(count > 0, "no {state} among {}", found.len());
    }
    // The same file gives the same bytes, whatever the buffer.
    let again = replay_bytes(&file, &["--buffer", "perf"]);
    assert_eq!(output.events("flow"), again.events("flow"));
}

/// Checks some fields of a line.
fn assert_fields(line: &Value, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        assert_eq!(&line[*key], value, "{key} of {line}");
    }
}

/// Sends this many bytes to a server that sends others back, and closes; returns the client's
/// port.
fn transfer(client: &Namespace, server: &Namespace, addr: SocketAddr, sizes: [usize; 2]) -> u16 {
    let [stream, _] = transferred(client, server, addr, sizes);
    stream.local_addr().unwrap().port()
}

/// The same; returns the client's and the server's end, closed both ways.
fn transferred(
    client: &Namespace,
    server: &Namespace,
    addr: SocketAddr,
    sizes: [usize; 2],
) -> [TcpStream; 2] {
    let listener = server.enter(|| TcpListener::bind(addr).unwrap());
    let addr = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; sizes[0]];
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&vec![b'r'; sizes[1]]).unwrap();
        // The client closes first.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    });
    let mut stream = client.enter(|| TcpStream::connect(addr).unwrap());
    stream.write_all(&vec![b'o'; sizes[0]]).unwrap();
    let mut got = vec![0; sizes[1]];
    stream.read_exact(&mut got).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    [stream, serving.join().unwrap()]
}

/// What the kernel has counted for a socket, as `ss -ti` shows it: segments out and in, payload
/// bytes sent, retransmissions included, and received.
fn socket_counts(stream: &TcpStream) -> [u64; 4] {
    let mut info = [0u8; 256];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the buffer and its length are valid for the call.
    let ret = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert!(ret == 0 && len >= 208, "TCP_INFO: {ret}, {len} bytes");
    // struct tcp_info (linux/tcp.h).
    let four = |at: usize| u32::from_ne_bytes(info[at..at + 4].try_into().unwrap()).into();
    let eight = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().unwrap());
    [four(136), four(140), eight(200), eight(128)]
}

/// The flow of a client's port, once it has ended.
fn flow_of(tool: &Tool, port: u16) -> Value {
    tool.json(&format!("of port {port}"), |line| line["sport"] == port)
}

#[test]
fn bytes_are_exact_and_packets_are_segments_with_offloads_and_without() {
    let pair = need!(Pair::new());
    for offloads in ["on", "off"] {
        for (namespace, device) in [(&pair.client, "vc"), (&pair.server, "vs")] {
            let words = format!("ethtool -K {device} gro {offloads} gso {offloads} tso {offloads}");
            need!(namespace.try_run(&words));
        }
        let sizes = [3_000_000, 1_000_003];
        let sides = [(&pair.client, "vc"), (&pair.server, "vs")]
            .map(|(namespace, device)| Tool::start_in(namespace, &["flows", device, "--json"]));
        for addr in [
            SocketAddr::from((SERVER4, 0)),
            SocketAddr::from((SERVER6, 0)),
        ] {
            let flows = common::wait_for("a transfer without retransmissions", || {
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
                // A busy machine makes TCP send again what was not lost, which counts as well.
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
                // As many segments as the bytes take with an MSS of 1500 less the headers.
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

/// The resets that a namespace has sent, as `nstat` shows them.
fn resets_sent(namespace: &Namespace) -> u64 {
    let text = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/snmp").unwrap());
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let names = lines.next().unwrap().split_whitespace();
    let mut values = names.zip(lines.next().unwrap().split_whitespace());
    let (_, value) = values.find(|(name, _)| *name == "OutRsts").unwrap();
    value.parse().unwrap()
}

#[test]
fn packets_and_bytes_are_those_that_the_kernel_has_counted_for_the_socket() {
    let pair = need!(Pair::new());
    for offloads in ["on", "off"] {
        for (namespace, device) in [(&pair.client, "vc"), (&pair.server, "vs")] {
            let words = format!("ethtool -K {device} gro {offloads} gso {offloads} tso {offloads}");
            need!(namespace.try_run(&words));
        }
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
            // Acknowledgements that another processor delivers after the last one find the
            // server's socket gone, and their answers the client's in TIME-WAIT, where nothing is
            // counted any more.
            let late = resets_sent(&pair.server) - resets_before;
            // The socket has counted what it sent again as well. What was sent to it again it
            // counts once, and the flow twice.
            assert_fields(
                &line,
                &[
                    ("orig_pkts", json!(segments_out)),
                    ("orig_bytes", json!(sent)),
                    ("resp_pkts", json!(segments_in + late)),
                ],
            );
            assert!(sent >= sizes[0] as u64, "{line}");
            // It takes the FIN for a byte.
            assert_eq!(received, sizes[1] as u64 + 1, "{line}");
            if line["resp_retransmits"] == 0 {
                assert_eq!(line["resp_bytes"], sizes[1], "{line}");
            }
        }
        check_packets(&tool.stop());
    }
}

/// Packets that a device has received and sent, by `ip -s link`.
fn device_packets(namespace: &Namespace, device: &str) -> u64 {
    let text = namespace.run(&format!("ip -s -j link show dev {device}"));
    let stats = &common::tool::parse(text.trim())[0]["stats64"];
    let way = |name: &str| stats[name]["packets"].as_u64().unwrap();
    way("rx") + way("tx")
}

#[test]
fn segments_are_the_packets_of_the_device_without_offloads() {
    let pair = need!(Pair::new());
    for (namespace, device) in [(&pair.client, "vc"), (&pair.server, "vs")] {
        need!(namespace.try_run(&format!("ethtool -K {device} gro off gso off tso off")));
    }
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
    // What is not TCP are the neighbours' words to each other, at any time.
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
fn flows_that_go_on_are_reported_at_the_end_and_those_seen_midway_are_partial() {
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let mut before = pair.client.enter(|| TcpStream::connect(addr).unwrap());
    let tool = Tool::start_in(&pair.server, &["flows", "vs", "--json"]);
    let during = pair.client.enter(|| TcpStream::connect(addr).unwrap());
    before.write_all(b"hello").unwrap();
    let mut accepted = listener.accept().unwrap().0;
    accepted.read_exact(&mut [0; 5]).unwrap();
    let output = tool.stop();
    check_packets(&output);
    let flows = output.events("flow");
    for (stream, conn_state, partial) in [(&before, "OTH", true), (&during, "S1", false)] {
        let port = stream.local_addr().unwrap().port();
        let line = flows.iter().find(|line| line["sport"] == port).unwrap();
        assert_fields(
            line,
            &[
                ("conn_state", json!(conn_state)),
                ("state", json!("ESTABLISHED")),
                ("partial", json!(partial)),
                ("end", json!("open")),
            ],
        );
    }
}

#[test]
fn refused_and_unanswered_attempts_and_idle_flows_have_their_states() {
    let pair = need!(Pair::new());
    let args = ["flows", "vs", "--json", "--idle-timeout", "0.5"];
    let tool = Tool::start_in(&pair.server, &args);
    pair.refused_connects((SERVER4, 81).into(), 1);
    let line = tool.json("refused", |line| line["dport"] == 81);
    let refused = [
        ("conn_state", json!("REJ")),
        ("history", json!("Sr")),
        ("state", json!("CLOSED")),
    ];
    assert_fields(&line, &refused);
    // Nobody has this address: its SYN is seen leaving, and no answer comes.
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    socket.send(&syn_frame(&[], CLIENT4.into(), SERVER4.into(), 82));
    let line = tool.json("unanswered", |line| line["dport"] == 82);
    assert_fields(
        &line,
        &[
            ("conn_state", json!("S0")),
            ("state", json!("SYN-SENT")),
            ("end", json!("idle")),
            ("handshake_us", Value::Null),
        ],
    );
    check_packets(&tool.stop());
}

/// SYNs of that many connections, 64,000 to a client.
fn syn_flood(socket: &RawSocket, range: std::ops::Range<u32>) {
    let mut frame = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 9);
    for i in range {
        // Source address and port, as they lie in an Ethernet frame with IPv4.
        frame[26..30].copy_from_slice(&(0x0a4e_0000 + i / 64_000).to_be_bytes());
        frame[34..36].copy_from_slice(&(1024 + (i % 64_000) as u16).to_be_bytes());
        socket.send(&frame);
    }
}

/// Bytes of kernel memory that the maps of a process take, as the kernel tells.
fn map_bytes(tool: &Tool) -> u64 {
    let mut maps = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{}/fdinfo", tool.pid())).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let number = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse().ok()
        };
        if let (Some(id), Some(bytes)) = (number("map_id:"), number("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum()
}

#[test]
fn two_hundred_thousand_flows_at_once_are_all_there_in_the_end() {
    let pair = need!(Pair::new());
    // To a file, which is never too slow for the end of the run.
    let file = tempfile::NamedTempFile::new().unwrap();
    let mut command = command(["flows", "vs", "--json", "--max-flows", "262144"]);
    command.stdout(file.reopen().unwrap());
    let tool = Tool::spawn_in(&pair.server, &mut command).attached();
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    let bytes = map_bytes(&tool);
    let count = if is_guest() { 20_000 } else { 200_000 };
    syn_flood(&socket, 0..count);
    // What there is room for is taken at the start, and no more than the help says: 430 bytes a
    // flow, beside the event buffer and some maps that have a fixed size.
    assert_eq!(map_bytes(&tool), bytes);
    assert!(bytes < 262_144 * 430 + (16 << 20), "{bytes}");
    tool.signal(Signal::SIGINT);
    // An emulated machine takes its time to write 100 MB.
    let mut reader = file.reopen().unwrap();
    common::wait_within("all flows", Duration::from_secs(180), || {
        reader.seek(SeekFrom::End(-1000)).ok()?;
        let mut end = String::new();
        reader.read_to_string(&mut end).unwrap();
        end.contains(r#""event":"summary""#).then_some(())
    });
    let mut output = tool.finish();
    let text = fs::read_to_string(file.path()).unwrap();
    output.stdout = text.lines().map(str::to_owned).collect();
    let summary = check_packets(&output);
    let lines = output.stdout.iter().map(|line| parse(line));
    let flood = lines
        .filter(|line| line["dport"] == 9 && line["conn_state"] == "S0" && line["orig_pkts"] == 1);
    assert_eq!(flood.count(), count as usize, "{summary}");
    assert_eq!(summary["untracked"], 0, "{summary}");
    assert_eq!(summary["evicted"], 0, "{summary}");
}

#[test]
fn a_full_table_makes_room_and_no_packet_is_forgotten() {
    let pair = need!(Pair::new());
    let args = ["flows", "vs", "--json", "--max-flows", "1000"];
    let tool = Tool::start_in(&pair.server, &args);
    let socket = pair.client.enter(|| RawSocket::open("vc"));
    syn_flood(&socket, 0..20_000);
    // Once there is room again, a new flow is seen.
    common::wait_for("room in the table", || {
        pair.refused_connects((SERVER4, 81).into(), 1);
        tool.lines()
            .iter()
            .any(|line| line.contains(r#""dport":81"#))
            .then_some(())
    });
    let output = tool.stop();
    check_packets(&output);
    let summary = output.summary();
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert!(
        number("evicted") > 0 && number("untracked") > 0 && number("segments") > 20_000,
        "{summary}"
    );
    let evicted = output
        .events("flow")
        .iter()
        .filter(|line| line["end"] == "evicted")
        .count();
    assert_eq!(number("evicted"), evicted as u64);
}

#[test]
fn filters_are_about_the_initiator_and_choose_whole_connections() {
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let wanted = listener.local_addr().unwrap().port().to_string();
    drop(listener);
    let args = [
        "flows",
        "vs",
        "--json",
        "-p",
        &wanted,
        "--src",
        &CLIENT4.to_string(),
    ];
    let tool = Tool::start_in(&pair.server, &args);
    let addr = SocketAddr::from((SERVER4, wanted.parse().unwrap()));
    pair.refused_connects((SERVER4, 81).into(), 3);
    let port = transfer(&pair.client, &pair.server, addr, [1000, 2000]);
    let line = flow_of(&tool, port);
    assert_fields(
        &line,
        &[("orig_bytes", json!(1000)), ("resp_bytes", json!(2000))],
    );
    let output = tool.stop();
    check_packets(&output);
    assert_eq!(output.events("flow").len(), 1, "{output:#?}");
}

#[test]
fn loads_by_key_add_up_to_what_was_sent() {
    let pair = need!(Pair::new());
    let args = ["flows", "vs", "--json", "--by", "dport", "-i", "0.1"];
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
    // A busy machine makes TCP send again what was not lost.
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

/// Since Linux 5.11 a program can tell which socket a file is (bpf_sock_from_file).
fn has_socket_files() -> Result<(), String> {
    let name = uname().unwrap();
    let release = name.release().to_str().unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
    let version = (number(), number());
    (version >= (5, 11))
        .then_some(())
        .ok_or(format!("Linux {release} can't tell the sockets of files"))
}

#[test]
fn the_process_that_holds_a_socket_is_named_if_it_is_only_one() {
    need!(has_socket_files());
    let namespace = need!(Namespace::new());
    let binary = PublicBinary::new();
    let mut command = command_of(&binary.path(), ["flows", "lo", "--json", "-v"]);
    as_nobody(&mut command, &ENOUGH);
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    let listener = namespace.enter(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    for is_shared in [false, true] {
        // The tool looks within a time that depends on how long that takes.
        let line = common::wait_for("a process", || {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = namespace
                .enter(|| socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap());
            let heir = is_shared.then(|| {
                let mut heir = std::process::Command::new("sleep");
                heir.arg("60")
                    .stdin(Stdio::from(socket.try_clone().unwrap()));
                Reaped(heir.spawn().unwrap())
            });
            let to = SockaddrIn::from(match addr {
                SocketAddr::V4(addr) => addr,
                SocketAddr::V6(_) => unreachable!(),
            });
            connect(socket.as_raw_fd(), &to).unwrap();
            let stream = TcpStream::from(socket);
            let port = stream.local_addr().unwrap().port();
            let accepted = listener.accept().unwrap();
            std::thread::sleep(Duration::from_millis(300));
            drop((heir, stream, accepted));
            let line = flow_of(&tool, port);
            (!line["uid"].is_null()).then_some(line)
        });
        let own = fs::read_to_string("/proc/self/comm").unwrap();
        let (pid, comm) = if is_shared {
            (Value::Null, Value::Null)
        } else {
            (json!(std::process::id()), json!(own.trim_end()))
        };
        assert_fields(&line, &[("pid", pid), ("comm", comm), ("uid", json!(0))]);
    }
    assert_eq!(tool.stop().code(), 0);
}

#[test]
fn packets_that_contradict_what_was_seen_are_counted_and_change_nothing() {
    let say = |from_client, flags, seq, ack, len| Said {
        wait: 1000,
        from_client,
        flags,
        seq,
        ack,
        len,
    };
    let said = vec![
        say(true, SYN, 100, 0, 0),
        say(false, SYN | ACK, 500, 101, 0),
        say(true, ACK, 101, 501, 0),
        // Far beyond the window: the RST and the FIN of somebody else.
        say(true, RST, 101 + 10_000_000, 0, 0),
        say(false, FIN | ACK, 501 + 10_000_000, 101, 0),
        // Acknowledges what was never sent.
        say(false, ACK, 501, 9000, 0),
        // Before the first byte.
        say(true, ACK, 50, 501, 1),
        // Flags that nobody sends.
        say(true, SYN | FIN | RST, 101, 501, 0),
        say(true, 0, 101, 501, 0),
        say(true, PSH | ACK, 101, 501, 10),
        say(true, FIN | ACK, 111, 501, 0),
        say(false, FIN | ACK, 501, 112, 0),
        say(true, ACK, 112, 502, 0),
    ];
    let output = replay_bytes(&write_capture(&[(4000, said)]), &[]);
    check_packets(&output);
    let flows = output.events("flow");
    assert_eq!(flows.len(), 1);
    assert_fields(
        &flows[0],
        &[
            ("conn_state", json!("SF")),
            ("state", json!("TIME-WAIT")),
            ("unexpected", json!(6)),
            ("orig_pkts", json!(9)),
            ("orig_bytes", json!(11)),
            ("resp_pkts", json!(4)),
        ],
    );
}

/// A terminal of 100 columns and 20 lines: the end that its user has, and that of a program.
fn terminal() -> (fs::File, fs::File) {
    // Not openpty(), whose descriptors a process of another test would inherit.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let user = posix_openpt(flags).unwrap();
    grantpt(&user).unwrap();
    unlockpt(&user).unwrap();
    let mut open = fs::OpenOptions::new();
    open.read(true).write(true);
    open.custom_flags(OFlag::O_NOCTTY.bits());
    let program = open.open(ptsname_r(&user).unwrap()).unwrap();
    resize(&program, 100, 20);
    (OwnedFd::from(user).into(), program)
}

/// Gives a terminal another size.
fn resize(terminal: &fs::File, columns: u16, lines: u16) {
    let size = Winsize {
        ws_row: lines,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the size is valid for the call.
    let ret = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(ret, 0, "TIOCSWINSZ");
}

/// What the program has written so far, read on a thread of its own.
fn screen_of(user: &fs::File) -> std::sync::Arc<std::sync::Mutex<String>> {
    let screen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let (to, mut user) = (screen.clone(), user.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = user.read(&mut bytes) {
            to.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
    });
    screen
}

/// What was written, without the terminal's control sequences. Blanks that are there already are
/// stepped over, not written: each such step is one blank here.
fn plain(written: &str) -> String {
    let mut text = String::new();
    let mut rest = written.chars();
    while let Some(letter) = rest.next() {
        if letter != '\x1b' {
            text.push(letter);
        } else if rest.by_ref().skip(1).find(char::is_ascii_alphabetic) == Some('H') {
            text.push(' ');
        }
    }
    text
}

/// flows with a view on this terminal.
fn view_command(program: &fs::File) -> std::process::Command {
    let mut command = command(["flows", "lo", "-i", "0.1"]);
    command
        .stdin(Stdio::from(program.try_clone().unwrap()))
        .stdout(Stdio::from(program.try_clone().unwrap()));
    command
}

const OTHER_SCREEN: &str = "\x1b[?1049h";
const BACK: &str = "\x1b[?1049l";

/// Longer than the view takes to end, and much shorter than somebody waits who has sent a signal.
const SOON: Duration = Duration::from_secs(2);

fn ends_soon(tool: Tool) -> common::Output {
    let asked = std::time::Instant::now();
    let output = tool.finish();
    assert!(asked.elapsed() < SOON, "{:?} {output:#?}", asked.elapsed());
    assert_eq!(output.code(), 0, "{output:#?}");
    output
}

#[test]
fn the_view_shows_flows_and_gives_the_terminal_back_however_it_ends() {
    let namespace = need!(Namespace::new());
    for end in ["q", "\x03", "SIGTERM", "SIGINT"] {
        let (mut user, program) = terminal();
        let before = tcgetattr(&program).unwrap();
        let tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
        let screen = screen_of(&user);
        let wait = |text: &str| {
            common::wait_for(text, || screen.lock().unwrap().contains(text).then_some(()));
        };
        wait(OTHER_SCREEN);
        wait("q quit");
        transfer(&namespace, &namespace, ([127, 0, 0, 1], 0).into(), [10, 10]);
        wait("127.0.0.1:");
        let taken = tcgetattr(&program).unwrap().local_flags;
        assert!(!taken.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        // All of it again, as a smaller screen: the line of keys is cut. Nobody tells it.
        screen.lock().unwrap().clear();
        resize(&program, 30, 8);
        wait("q quit  / filter");
        match end {
            "SIGTERM" => tool.signal(Signal::SIGTERM),
            "SIGINT" => tool.signal(Signal::SIGINT),
            keys => user.write_all(keys.as_bytes()).unwrap(),
        }
        let output = ends_soon(tool);
        wait(BACK);
        assert_eq!(tcgetattr(&program).unwrap(), before, "{end:?}");
        assert!(
            output
                .stderr
                .last()
                .unwrap()
                .contains("matched 1 = emitted 1")
        );
    }
}

#[test]
fn the_keys_of_the_view_do_what_it_says() {
    let namespace = need!(Namespace::new());
    let (mut user, program) = terminal();
    resize(&program, 160, 20);
    let _tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
    let screen = screen_of(&user);
    let listener = namespace.enter(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let stream = namespace.enter(|| TcpStream::connect(addr).unwrap());
    let own = stream.local_addr().unwrap();
    // Each is followed by Ctrl-L, after which all is drawn again.
    for (keys, shows) in [
        ("", own.to_string().as_str()),
        ("\x1b[C", "HISTORY▼"),
        ("\x1b[D\x1b[D", "PKT/s▼"),
        ("r", "PKT/s▲"),
        (" ", "PAUSED"),
        (" \r", &format!("{own} → {addr} on lo")),
        ("\x1b", "q quit"),
        ("/syn-sent", "filter: syn-sent_"),
        ("\r", "0 shown"),
        ("\x1b", "1 open, 0 ended"),
    ] {
        screen.lock().unwrap().clear();
        user.write_all(keys.as_bytes()).unwrap();
        common::wait_for(&format!("{shows:?} after {keys:?}"), || {
            user.write_all(b"\x0c").unwrap();
            let text = plain(&screen.lock().unwrap());
            text.contains(shows).then_some(())
        });
    }
}

#[test]
fn ctrl_z_stops_the_view_which_gives_the_terminal_back_and_takes_it_again() {
    let namespace = need!(Namespace::new());
    let (mut user, program) = terminal();
    let before = tcgetattr(&program).unwrap();
    // In a process group that a shell, here this process, could continue: others aren't stopped.
    let mut command = view_command(&program);
    command.process_group(0);
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    let screen = screen_of(&user);
    let wait = |text: &str| {
        common::wait_for(text, || screen.lock().unwrap().contains(text).then_some(()));
    };
    wait("q quit");
    user.write_all(b"\x1a").unwrap();
    common::wait_for("stopped", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", tool.pid())).unwrap();
        stat.contains(") T ").then_some(())
    });
    wait(BACK);
    assert_eq!(tcgetattr(&program).unwrap(), before);
    screen.lock().unwrap().clear();
    tool.signal(Signal::SIGCONT);
    wait(OTHER_SCREEN);
    wait("q quit");
    assert!(tcgetattr(&program).unwrap() != before);
    user.write_all(b"q").unwrap();
    ends_soon(tool);
    assert_eq!(tcgetattr(&program).unwrap(), before);
}

#[test]
fn a_terminal_that_is_hung_up_ends_the_view() {
    let namespace = need!(Namespace::new());
    let (user, program) = terminal();
    let tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
    // Whether the view is there already, or about to be.
    drop(program);
    drop(user);
    let output = ends_soon(tool);
    assert!(
        output.stderr.last().unwrap().contains("(closed_pipe)"),
        "{output:#?}"
    );
}

#[test]
fn a_signal_ends_the_view_when_nobody_reads_the_terminal_and_half_a_key_was_pressed() {
    let namespace = need!(Namespace::new());
    let (mut user, program) = terminal();
    let before = tcgetattr(&program).unwrap();
    // No room is left for the view.
    let nonblocking = |on: bool| {
        let flags = if on {
            OFlag::O_NONBLOCK
        } else {
            OFlag::empty()
        };
        fcntl(&program, FcntlArg::F_SETFL(OFlag::O_RDWR | flags)).unwrap();
    };
    nonblocking(true);
    while (&program).write(&[b'x'; 512]).is_ok() {}
    nonblocking(false);
    let tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
    user.write_all(b"\x1b[").unwrap();
    common::wait_for("raw mode", || {
        (tcgetattr(&program).unwrap() != before).then_some(())
    });
    tool.signal(Signal::SIGTERM);
    ends_soon(tool);
    assert_eq!(tcgetattr(&program).unwrap(), before);
}

#[test]
fn a_terminal_gets_lines_if_they_are_asked_for() {
    let namespace = need!(Namespace::new());
    let (user, program) = terminal();
    let mut command = command(["flows", "lo", "--no-tui"]);
    command
        .stdin(Stdio::from(program.try_clone().unwrap()))
        .stdout(Stdio::from(program.try_clone().unwrap()));
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    drop(command);
    let screen = screen_of(&user);
    transfer(&namespace, &namespace, ([127, 0, 0, 1], 0).into(), [10, 10]);
    common::wait_for("a line", || {
        screen.lock().unwrap().contains(" SF ").then_some(())
    });
    assert!(!screen.lock().unwrap().contains(OTHER_SCREEN));
    assert_eq!(tool.stop().code(), 0);
}
