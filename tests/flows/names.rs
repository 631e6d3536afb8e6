//! flows: the names that clients ask for.

use super::*;

/// The ClientHello of `openssl s_client -servername www.example.org -alpn h2,http/1.1`.
const CLIENT_HELLO: &[u8] = include_bytes!("client_hello.bin");

/// File, client's port, host and method of the first request of each connection in the captures of
/// tcpdump and tcpflow, as tshark 4.0 shows them (`-Y http.request`). There is no TLS in them.
const REQUESTS: [(&str, u64, &str, &str); 40] = [
    ("bug6.pcap", 36322, "abclinuxu.cz", "GET"),
    ("bug6.pcap", 36324, "www.abclinuxu.cz", "GET"),
    ("bug8.pcap", 35995, "www.uk6x.com", "GET"),
    ("bug8.pcap", 35997, "www.uk6x.com", "GET"),
    ("bug8.pcap", 35999, "www.uk6x.com", "GET"),
    ("bug8.pcap", 40426, "6bone.informatik.uni-leipzig.de", "GET"),
    ("jpegs.cap", 3177, "10.1.1.1", "GET"),
    ("jpegs.cap", 3179, "ins1.opera.com", "POST"),
    ("jpegs.cap", 3183, "opera1-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3184, "opera2-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3185, "opera3-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3187, "opera4-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3188, "10.1.1.1", "GET"),
    ("jpegs.cap", 3189, "10.1.1.1", "GET"),
    ("jpegs.cap", 3190, "10.1.1.1", "GET"),
    ("jpegs.cap", 3191, "opera1-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3192, "opera2-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3193, "opera4-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3194, "opera3-servedby.advertising.com", "GET"),
    ("jpegs.cap", 3195, "10.1.1.1", "GET"),
    ("jpegs.cap", 3196, "10.1.1.1", "GET"),
    ("jpegs.cap", 3197, "10.1.1.1", "GET"),
    ("jpegs.cap", 3198, "10.1.1.1", "GET"),
    ("jpegs.cap", 3199, "10.1.1.1", "GET"),
    ("jpegs.cap", 3200, "10.1.1.1", "GET"),
    ("print-flags.pcap", 55920, "localhost", "GET"),
    (
        "test-gzip.pcap",
        55634,
        "prototypeapp.jme5spybzc.us-west-2.elasticbeanstalk.com",
        "POST",
    ),
    ("test1-part1.pcap", 50955, "www.google.com", "GET"),
    ("test1-part2.pcap", 50956, "clients1.google.com", "GET"),
    ("test1.pcap", 50955, "www.google.com", "GET"),
    ("test1.pcap", 50956, "clients1.google.com", "GET"),
    ("test2.pcap", 36559, "10.0.0.1:9999", "HEAD"),
    ("test3.pcap", 59201, "cl-1985.ham-01.de.sixxs.net", "GET"),
    ("test4.pcap", 51391, "www6.fit.vutbr.cz", "GET"),
    ("test4.pcap", 51392, "www6.fit.vutbr.cz", "GET"),
    ("test4.pcap", 51393, "www6.fit.vutbr.cz", "GET"),
    ("test4.pcap", 51394, "www6.fit.vutbr.cz", "GET"),
    ("test4.pcap", 51395, "www6.fit.vutbr.cz", "GET"),
    ("test4.pcap", 51396, "www6.fit.vutbr.cz", "GET"),
    ("test5-lines.pcap", 49392, "simson.net", "GET"),
];

/// tshark shows no request of this file, because its packets are not in order.
const SHUFFLED: (&str, u64, &str, &str) =
    ("test5-lines-randomized2.pcap", 49392, "simson.net", "GET");

#[test]
fn the_requests_in_the_captures_of_tcpdump_and_tcpflow_have_the_names_that_tshark_shows() {
    let files = need!(crate::oracle::corpus::captures());
    let mut found = Vec::new();
    for path in &files {
        let bytes = fs::read(path).unwrap();
        let may_have = [&b"HTTP/1"[..], b"\x16\x03"];
        if !may_have
            .iter()
            .any(|it| bytes.windows(it.len()).any(|at| at == *it))
            || crate::flow_model::records(&bytes).is_none_or(|flows| flows.is_empty())
        {
            continue;
        }
        let output = replay(path, &["--names"]).unwrap();
        assert_eq!(check_packets(&output)["names_lost"], 0);
        let name = path.file_name().unwrap().to_str().unwrap();
        for line in output.events("flow") {
            assert!(line["alpn"].is_null(), "{line}");
            if let Some(method) = line["http_method"].as_str() {
                let (host, port) = (&line["server_name"], &line["sport"]);
                let host = host.as_str().unwrap().to_owned();
                let port = port.as_u64().unwrap();
                found.push((name.to_owned(), port, host, method.to_owned()));
            } else {
                assert!(line["server_name"].is_null(), "{line}");
            }
        }
    }
    let mut expected = REQUESTS.to_vec();
    expected.push(SHUFFLED);
    expected.sort_unstable();
    found.sort_unstable();
    let found = found
        .iter()
        .map(|(file, port, host, method)| (file.as_str(), *port, host.as_str(), method.as_str()));
    assert_eq!(found.collect::<Vec<_>>(), expected);
}

/// The frames of a connection from port 5000 whose client sends these payloads, each at its offset in
/// the stream.
fn frames_of(payloads: &[(usize, &[u8])]) -> Vec<(u64, Vec<u8>)> {
    use crate::oracle::frames::{Ipv4, Segment, ethernet_ip};
    let frame = |from_client: bool, flags: u8, at: u32, payload: &[u8]| {
        let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let (source, destination) = if from_client {
            (client, server)
        } else {
            (server, client)
        };
        let segment = Segment {
            sport: if from_client { 5000 } else { 443 },
            dport: if from_client { 443 } else { 5000 },
            seq: if from_client { 1000 + at } else { 9000 + at },
            ack: if flags & ACK == 0 {
                0
            } else if from_client {
                9001
            } else {
                1001
            },
            flags,
            payload: payload.to_vec(),
            ..Segment::default()
        };
        let packet = Ipv4 {
            source,
            destination,
            ..Ipv4::default()
        };
        (10, ethernet_ip(&packet.tcp(&segment)))
    };
    let mut frames = vec![
        frame(true, SYN, 0, b""),
        frame(false, SYN | ACK, 0, b""),
        frame(true, ACK, 1, b""),
    ];
    for (at, payload) in payloads {
        frames.push(frame(true, PSH | ACK, 1 + *at as u32, payload));
    }
    frames
}

fn names_of(payloads: &[(usize, &[u8])]) -> [Value; 3] {
    let file = write_frames(frames_of(payloads));
    let line = replay_bytes(&file, &["--names"]).events("flow").remove(0);
    ["server_name", "alpn", "http_method"].map(|key| line[key].clone())
}

fn hello_names() -> [Value; 3] {
    [
        json!("www.example.org"),
        json!(["h2", "http/1.1"]),
        Value::Null,
    ]
}

#[test]
fn a_client_hello_in_several_segments_is_read_in_any_order_and_what_is_cut_is_null() {
    let hello = CLIENT_HELLO;
    let (first, second, third) = (&hello[..100], &hello[100..200], &hello[200..]);
    let lie = vec![b'x'; 100];
    for payloads in [
        vec![(0, hello)],
        vec![(0, first), (100, second), (200, third)],
        vec![(200, third), (0, first), (0, first), (100, second)],
        vec![(100, second), (200, third), (0, first)],
        vec![(0, first), (0, &lie), (100, second), (200, third)],
        // Outside of the window: the peer would ignore it.
        vec![(200_000, &lie), (0, hello)],
    ] {
        assert_eq!(
            names_of(&payloads),
            hello_names(),
            "{} segments",
            payloads.len()
        );
    }
    let none = [Value::Null, Value::Null, Value::Null];
    assert_eq!(names_of(&[(0, first), (100, second)]), none);
    assert_eq!(names_of(&[(0, first), (200, third)]), none);
    assert_eq!(names_of(&[]), none);
    // One byte a segment: there are more of them than are looked at.
    let bytes = hello.chunks(1).enumerate().collect::<Vec<_>>();
    assert_eq!(names_of(&bytes), none);
    let request = [&b"GET / HTTP/1.1\r\nHost: a\r\nX: "[..], &[b'x'; 60_000]].concat();
    let expected = [json!("a"), Value::Null, json!("GET")];
    assert_eq!(
        names_of(&[(0, &request[..30_000]), (30_000, &request[30_000..])]),
        expected
    );
}

#[test]
fn names_are_shown_of_live_connections_escaped_and_only_if_asked_for() {
    let namespace = need!(Namespace::new());
    let listener = namespace.enter(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let send = |payloads: &[&[u8]]| {
        let mut stream = namespace.enter(|| TcpStream::connect(addr).unwrap());
        stream.set_nodelay(true).unwrap();
        for payload in payloads {
            stream.write_all(payload).unwrap();
            std::thread::sleep(Duration::from_millis(2));
        }
        stream.shutdown(Shutdown::Write).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.read_to_end(&mut Vec::new()).unwrap();
        stream.local_addr().unwrap().port()
    };
    let request = b"GET / HTTP/1.1\r\nHost: a\"b\xff\r\n\r\n";
    for options in [&["--names"][..], &["--names", "--buffer", "perf"], &[]] {
        let args = [&["flows", "lo", "--json"][..], options].concat();
        let tool = Tool::start_in(&namespace, &args);
        let hello = flow_of(&tool, send(&[&CLIENT_HELLO[..50], &CLIENT_HELLO[50..]]));
        let http = flow_of(&tool, send(&[request]));
        if options.is_empty() {
            assert_fields(
                &hello,
                &[("server_name", Value::Null), ("alpn", Value::Null)],
            );
            assert_fields(
                &http,
                &[("server_name", Value::Null), ("http_method", Value::Null)],
            );
        } else {
            let [name, alpn, method] = hello_names();
            let expected = [
                ("server_name", name),
                ("alpn", alpn),
                ("http_method", method),
            ];
            assert_fields(&hello, &expected);
            let host = json!("a\"b\\xff");
            assert_fields(
                &http,
                &[("server_name", host), ("http_method", json!("GET"))],
            );
        }
        let output = tool.stop();
        let lost = if options.is_empty() {
            Value::Null
        } else {
            json!(0)
        };
        assert_eq!(output.summary()["names_lost"], lost);
    }
    let tool = Tool::start_in(&namespace, &["flows", "lo", "--names"]);
    let port = send(&[request]);
    let (_, line) = tool.line("of the request", |line| line.contains(&port.to_string()));
    assert!(line.ends_with(r#" a"b\xff"#), "{line}");
}
