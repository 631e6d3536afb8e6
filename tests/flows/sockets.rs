//! flows: what the sockets of this machine add: older connections, the kernel's numbers, processes.

use super::*;

/// The line of a client's port after the run, which ends here.
fn line_at_end(tool: Tool, port: u16) -> Value {
    let output = tool.stop();
    check_packets(&output);
    let flows = output.events("flow");
    let line = flows.into_iter().find(|line| line["sport"] == port);
    line.unwrap_or_else(|| panic!("no line of {port}"))
}

fn port_of(stream: &TcpStream) -> u16 {
    stream.local_addr().unwrap().port()
}

/// Sends bytes through a connection.
fn pass(from: &mut TcpStream, to: &mut TcpStream, len: usize) {
    // The buffers of both sockets need not have room for all of them.
    std::thread::scope(|scope| {
        scope.spawn(|| from.write_all(&vec![b'x'; len]).unwrap());
        to.read_exact(&mut vec![0; len]).unwrap();
    });
}

#[test]
fn a_connection_older_than_the_tool_is_there_without_a_packet_seen_from_either_end() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    for (namespace, device) in [(&pair.client, "vc"), (&pair.server, "vs")] {
        let listener = pair
            .server
            .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
        let addr = listener.local_addr().unwrap();
        let mut client = pair.client.enter(|| TcpStream::connect(addr).unwrap());
        let mut server = listener.accept().unwrap().0;
        pass(&mut client, &mut server, 1234);
        pass(&mut server, &mut client, 567);
        // The responder stays known after the listener is closed.
        drop(listener);
        for more in [0, 100] {
            let tool = Tool::start_in(namespace, &["flows", device, "--json"]);
            if more > 0 {
                pass(&mut client, &mut server, more);
            }
            let line = line_at_end(tool, port_of(&client));
            assert_fields(
                &line,
                &[
                    ("saddr", json!(CLIENT4.to_string())),
                    ("dport", json!(addr.port())),
                    ("conn_state", json!("S1")),
                    ("seeded", json!(true)),
                    ("partial", json!(true)),
                    ("orig_bytes_before", json!(1234)),
                    ("orig_bytes", json!(more)),
                    ("resp_bytes_before", json!(567)),
                    ("resp_bytes", json!(0)),
                    ("unexpected", json!(0)),
                    ("end", json!("open")),
                    ("rtt_from", json!("kernel")),
                ],
            );
        }
    }
}

#[test]
fn the_filter_chooses_among_older_connections_too() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let _client = pair.client.enter(|| TcpStream::connect(addr).unwrap());
    let _server = listener.accept().unwrap().0;
    let (port, client) = (addr.port().to_string(), CLIENT4.to_string());
    for (options, is_shown) in [
        (["-p", &port], true),
        (["--src", &client], true),
        (["--host", &client], true),
        (["--sport", &port], false),
        (["--dst", &client], false),
        (["--flags", "rst"], false),
        (["--filter", "port 9"], false),
    ] {
        let args = ["flows", "vs", "--json", options[0], options[1]];
        let output = Tool::start_in(&pair.server, &args).stop();
        check_packets(&output);
        let count = output.events("flow").len();
        assert_eq!(count, usize::from(is_shown), "{options:?}");
    }
}

#[test]
fn an_attempt_that_began_before_the_run_gets_its_fate() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind(("0.0.0.0", 8080)).unwrap());
    // The server does not answer, because it has no address for a while.
    pair.server.run(&format!("ip addr del {SERVER4}/24 dev vs"));
    let attempts = [7, 8080].map(|port| {
        pair.client
            .enter(|| std::thread::spawn(move || TcpStream::connect((SERVER4, port)).map(|_| ())))
    });
    std::thread::sleep(Duration::from_millis(500));
    let args = ["flows", "vc", "--json", "--attempt-timeout", "100ms"];
    let tool = Tool::start_in(&pair.client, &args);
    let text = Tool::start_in(&pair.client, &["flows", "vc", "--attempt-timeout", "100ms"]);
    text.line("unanswered", |line| line.contains(" S0 "));
    // Flows that are reported at once still come after the header.
    let lines = text.stop().stdout;
    assert!(lines[0].starts_with("TIME "), "{lines:#?}");
    for port in [7, 8080] {
        let line = tool.json("unanswered", |line| line["dport"] == port);
        assert_fields(
            &line,
            &[
                ("conn_state", json!("S0")),
                ("state", json!("SYN-SENT")),
                ("seeded", json!(true)),
                ("end", json!("unanswered")),
                ("pid", json!(std::process::id())),
            ],
        );
    }
    pair.server.run(&format!("ip addr add {SERVER4}/24 dev vs"));
    for (port, conn_state) in [(7, "REJ"), (8080, "SF")] {
        if port == 8080 {
            drop(listener.accept().unwrap());
        }
        let line = tool.json("its fate", |line| {
            line["dport"] == port && line["end"] == "closed"
        });
        assert_fields(&line, &[("conn_state", json!(conn_state))]);
        assert!(line["syn_retransmits"].as_u64().unwrap() > 0, "{line}");
    }
    let [refused, accepted] = attempts.map(|attempt| attempt.join().unwrap());
    assert!(refused.is_err() && accepted.is_ok());
    check_packets(&tool.stop());
}

#[test]
fn the_kernels_figures_are_those_of_the_socket() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let tool = Tool::start_in(&pair.client, &["flows", "vc", "--json"]);
    let mut client = pair.client.enter(|| TcpStream::connect(addr).unwrap());
    let mut server = listener.accept().unwrap().0;
    pass(&mut client, &mut server, 300_000);
    server.write_all(b"unread").unwrap();
    client.peek(&mut [0; 6]).unwrap();
    let info = tcp_info(&client);
    let line = line_at_end(tool, port_of(&client));
    // Offsets in struct tcp_info of linux/tcp.h.
    for (key, at) in [
        ("mss", 16),
        ("lost", 32),
        ("pmtu", 60),
        ("rtt_us", 68),
        ("rttvar_us", 72),
        ("cwnd", 80),
        ("reordering", 88),
        ("retransmits", 100),
        ("unsent", 144),
        ("min_rtt_us", 148),
    ] {
        assert_eq!(line[key], four(&info, at), "{key} of {line}");
    }
    assert_fields(
        &line,
        &[("unread", json!(6)), ("rtt_from", json!("kernel"))],
    );
}

#[test]
fn a_connection_that_was_closed_at_once_has_the_kernels_figures_and_both_processes() {
    need!(has_socket_programs());
    let pair = need!(Pair::new());
    let tools = [(&pair.client, "vc"), (&pair.server, "vs")]
        .map(|(namespace, device)| Tool::start_in(namespace, &["flows", device, "--json"]));
    let port = transfer(&pair.client, &pair.server, (SERVER4, 0).into(), [100, 200]);
    for tool in tools {
        let line = flow_of(&tool, port);
        assert_fields(
            &line,
            &[
                ("conn_state", json!("SF")),
                ("pid", json!(std::process::id())),
                ("seeded", json!(false)),
                ("orig_bytes_before", Value::Null),
                ("rtt_from", json!("kernel")),
                // The FIN that closes the other direction does not count as a byte.
                ("unread", json!(0)),
            ],
        );
        assert!(
            line["rtt_us"].as_u64() >= line["min_rtt_us"].as_u64(),
            "{line}"
        );
        check_packets(&tool.stop());
    }
}

#[test]
fn the_process_that_connected_is_named_even_if_others_hold_its_socket() {
    need!(has_socket_programs());
    let namespace = need!(Namespace::new());
    let binary = PublicBinary::new();
    let mut command = command_of(&binary.path(), ["flows", "lo", "--json", "-v"]);
    as_nobody(&mut command, &ENOUGH);
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    let listener = namespace.enter(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    for is_shared in [false, true] {
        let flags = SockFlag::SOCK_CLOEXEC;
        let socket =
            namespace.enter(|| socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap());
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
        let port = port_of(&stream);
        let accepted = listener.accept().unwrap();
        drop((heir, stream, accepted));
        let line = flow_of(&tool, port);
        let (pid, comm) = (json!(std::process::id()), json!(own_name()));
        assert_fields(&line, &[("pid", pid), ("comm", comm), ("uid", json!(0))]);
    }
    assert_eq!(tool.stop().code(), 0);
}

#[test]
fn the_round_trip_of_a_connection_that_passes_through_is_that_of_its_handshake() {
    let line = flow_of_packets(handshake());
    assert_fields(
        &line,
        &[
            ("rtt_us", json!(2000)),
            ("min_rtt_us", json!(2000)),
            ("rtt_from", json!("passive")),
            ("mss", Value::Null),
        ],
    );
    // Which of two SYNs was answered is not known.
    let mut said = handshake();
    said.insert(1, say(true, SYN, 100, 0, 0));
    let line = flow_of_packets(said);
    assert_fields(&line, &[("rtt_us", Value::Null), ("rtt_from", Value::Null)]);
}

#[test]
fn of_several_holders_of_an_older_connection_the_first_is_named() {
    need!(has_socket_programs());
    let namespace = need!(Namespace::new());
    let listener = namespace.enter(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let stream = namespace.enter(|| TcpStream::connect(addr).unwrap());
    let mut heir = std::process::Command::new("sleep");
    heir.arg("60")
        .stdin(Stdio::from(OwnedFd::from(stream.try_clone().unwrap())));
    let heir = Reaped(heir.spawn().unwrap());
    // Process ids wrap around.
    let (own, other) = (std::process::id(), heir.0.id());
    let (pid, comm) = if own < other {
        (own, own_name())
    } else {
        (other, "sleep".to_owned())
    };
    let tool = Tool::start_in(&namespace, &["flows", "lo", "--json", "--comm", &comm]);
    let line = line_at_end(tool, port_of(&stream));
    assert_fields(&line, &[("pid", json!(pid)), ("seeded", json!(true))]);
}
