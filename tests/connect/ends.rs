//! --accept and --close: who accepted, how long it lasted, how much went each way, who ended it.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

use nix::libc;
use nix::sys::socket::SockFlag;
use serde_json::Value;

use super::sockets::{connected, fast_open, listen, reset_on_close, set_int, tcp};
use super::{Events, SOON, Trace, backends};
use crate::common::{Namespace, need, wait_for};

/// The end of a connection as each side saw it: the initiator's first.
fn ends(events: &Events, port: u16) -> (&Value, &Value) {
    let mut closed = events.at(port);
    closed.retain(|event| event["event"] == "closed");
    assert_eq!(closed.len(), 2, "{closed:#?}");
    let side = |direction: &str| {
        *closed
            .iter()
            .find(|event| event["direction"] == direction)
            .unwrap_or_else(|| panic!("no {direction}: {closed:#?}"))
    };
    (side("out"), side("in"))
}

fn assert_bytes(event: &Value, tx: usize, rx: usize, closed_by: &str) {
    let expected = (tx.into(), rx.into(), closed_by.into());
    let found = (&event["tx_bytes"], &event["rx_bytes"], &event["closed_by"]);
    assert_eq!(found, (&expected.0, &expected.1, &expected.2), "{event}");
}

/// Waits until both sockets of a connection are closed for the kernel, not only for a process.
fn wait_closed(trace: &Trace, port: u16) {
    let mut seen = 0;
    trace.wait("two ends", |event| {
        seen += usize::from(event["event"] == "closed" && event["dport"] == port);
        seen == 2
    });
}

fn send(mut from: &TcpStream, mut to: &TcpStream, count: usize) {
    thread::scope(|scope| {
        scope.spawn(move || from.write_all(&vec![7; count]).unwrap());
        to.read_exact(&mut vec![0; count]).unwrap();
    });
}

#[test]
fn bytes_are_the_payload_and_the_one_who_closes_first_is_named() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--close"]);
        // Each amount both ways, each side closing first; nothing, little, and many segments.
        let mut port = 4200;
        for (up, down) in [(0, 0), (1, 0), (0, 1), (1000, 300_000), (300_000, 77)] {
            for client_first in [true, false] {
                port += 1;
                namespace.enter(|| {
                    let listener = listen("127.0.0.1", port);
                    let (client, server) = connected(&listener);
                    send(&client, &server, up);
                    send(&server, &client, down);
                    let (first, mut second) = if client_first {
                        (client, server)
                    } else {
                        (server, client)
                    };
                    drop(first);
                    assert_eq!(second.read(&mut [0]).unwrap(), 0);
                    drop(second);
                });
                wait_closed(&trace, port);
            }
        }
        let events = trace.stop();
        let mut port = 4200;
        for (up, down) in [(0, 0), (1, 0), (0, 1), (1000, 300_000), (300_000, 77)] {
            for client_first in [true, false] {
                port += 1;
                let (out, into) = ends(&events, port);
                let by = |is_first: bool| if is_first { "local" } else { "remote" };
                assert_bytes(out, up, down, by(client_first));
                assert_bytes(into, down, up, by(!client_first));
                assert!(out["duration_us"].is_u64() && into["duration_us"].is_u64());
                // The client has measured the round trip of its SYN, which is short on loopback.
                let trip = ["min_rtt_us", "rtt_us"].map(|key| out[key].as_u64().unwrap());
                assert!(trip[0] <= trip[1] && trip[1] < 1_000_000, "{out}");
                assert!(out["retransmits"].is_u64(), "{out}");
                // In the lines of both ends, the initiator is the source.
                for key in ["saddr", "sport", "daddr", "dport"] {
                    assert_eq!(out[key], into[key], "{out} {into}");
                }
            }
        }
        events.assert_whole();
    }
}

#[test]
fn half_closed_connections_count_what_comes_later() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--close"]);
        namespace.enter(|| {
            let listener = listen("127.0.0.1", 4220);
            let (mut client, server) = connected(&listener);
            send(&client, &server, 10);
            client.shutdown(Shutdown::Write).unwrap();
            send(&server, &client, 5000);
            drop(server);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
        });
        wait_closed(&trace, 4220);
        let events = trace.stop();
        let (out, into) = ends(&events, 4220);
        assert_bytes(out, 10, 5000, "local");
        assert_bytes(into, 5000, 10, "remote");
    }
}

#[test]
fn a_reset_is_distinguished_from_a_close_by_both_sides() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--close"]);
        for (port, client_resets) in [(4221, true), (4222, false)] {
            namespace.enter(|| {
                let listener = listen("127.0.0.1", port);
                let (client, server) = connected(&listener);
                send(&client, &server, 10);
                send(&server, &client, 20);
                // A delayed acknowledgement is sent only with the next segment.
                send(&client, &server, 1);
                reset_on_close(if client_resets { &client } else { &server });
                let (first, second) = if client_resets {
                    (client, server)
                } else {
                    (server, client)
                };
                drop(first);
                drop(second);
            });
            wait_closed(&trace, port);
        }
        let events = trace.stop();
        for port in [4221, 4222] {
            let (out, into) = ends(&events, port);
            assert_eq!(out["closed_by"], "reset", "{out}");
            assert_eq!(into["closed_by"], "reset", "{into}");
            assert_eq!(
                (&out["rx_bytes"], &into["rx_bytes"]),
                (&20.into(), &11.into())
            );
        }
    }
}

#[test]
fn unread_data_makes_a_close_a_reset() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--close"]);
        namespace.enter(|| {
            let listener = listen("127.0.0.1", 4223);
            let (mut client, server) = connected(&listener);
            client.write_all(b"never read").unwrap();
            wait_for("the data is there", || {
                (server.peek(&mut [0; 16]).unwrap() == 10).then_some(())
            });
            drop(server);
            wait_for("the reset is there", || {
                client.read(&mut [0]).is_err().then_some(())
            });
        });
        wait_closed(&trace, 4223);
        let events = trace.stop();
        let (out, into) = ends(&events, 4223);
        assert_bytes(into, 0, 10, "reset");
        assert_eq!(
            (&out["closed_by"], &out["rx_bytes"]),
            (&"reset".into(), &0.into())
        );
    }
}

#[test]
fn fast_open_data_is_counted_on_both_sides() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_fastopen", "3");
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--accept", "--close"]);
        for port in [4224, 4225] {
            namespace.enter(|| {
                let listener = listen("127.0.0.1", port);
                set_int(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
                let addr = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
                let socket = tcp(addr.into(), SockFlag::empty());
                assert_eq!(fast_open(&socket, addr, b"hello"), Ok(5));
                let (mut server, _) = listener.accept().unwrap();
                server.read_exact(&mut [0; 5]).unwrap();
                server.write_all(b"world!").unwrap();
                let mut client = TcpStream::from(socket);
                client.read_exact(&mut [0; 6]).unwrap();
                drop(client);
                assert_eq!(server.read(&mut [0]).unwrap(), 0);
            });
            wait_closed(&trace, port);
        }
        let has_accept = trace.sees_calls();
        let events = trace.stop();
        for port in [4224, 4225] {
            let (out, into) = ends(&events, port);
            assert_bytes(out, 5, 6, "local");
            assert_bytes(into, 6, 5, "remote");
            let accepted = events.at(port);
            let accepted: Vec<_> = accepted
                .iter()
                .filter(|event| event["event"] == "accepted")
                .collect();
            assert_eq!(accepted.len(), 1, "{accepted:#?}");
            if has_accept {
                assert_eq!(into["pid"], std::process::id(), "{into}");
            }
        }
        events.assert_whole();
    }
}

#[test]
fn an_accepted_connection_has_the_process_that_accepted_it() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--accept", "--close"]);
        let mut sports = Vec::new();
        namespace.enter(|| {
            for ip in ["127.0.0.1", "::1"] {
                let listener = listen(ip, 4226);
                let (client, server) = connected(&listener);
                sports.push(client.local_addr().unwrap().port());
                drop((client, server));
            }
        });
        wait_closed(&trace, 4226);
        let has_accept = trace.sees_calls();
        let events = trace.stop();
        let accepted = events.named("accepted");
        assert_eq!(accepted.len(), 2, "{accepted:#?}");
        for ((event, ip), sport) in accepted.into_iter().zip(["127.0.0.1", "::1"]).zip(sports) {
            assert_eq!((&event["saddr"], &event["daddr"]), (&ip.into(), &ip.into()));
            assert_eq!(
                (&event["sport"], &event["dport"]),
                (&sport.into(), &4226.into())
            );
            assert_eq!(event["direction"], "in");
            if has_accept {
                assert_eq!(event["pid"], std::process::id(), "{event}");
                assert_eq!(event["uid"], 0);
            } else {
                assert!(event["pid"].is_null() && event["comm"].is_null(), "{event}");
            }
        }
        events.assert_whole();
    }
}

#[test]
fn a_connection_that_was_reset_before_it_is_accepted_still_has_its_port() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--accept", "--close"]);
        namespace.enter(|| {
            let listener = listen("127.0.0.1", 4229);
            let client = TcpStream::connect("127.0.0.1:4229").unwrap();
            reset_on_close(&client);
            drop(client);
            wait_closed(&trace, 4229);
            listener.accept().unwrap();
        });
        let accepted = trace.wait_for("accepted", 4229);
        assert!(accepted["sport"].is_u64(), "{accepted}");
        trace.stop().assert_whole();
    }
}

#[test]
fn a_connection_that_waits_is_accepted_once_its_process_takes_it() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--accept"]);
        if !trace.sees_calls() {
            continue;
        }
        let (listener, client) = namespace.enter(|| {
            let listener = listen("127.0.0.1", 4227);
            let client = TcpStream::connect("127.0.0.1:4227").unwrap();
            (listener, client)
        });
        trace.wait_for("established", 4227);
        thread::sleep(SOON);
        let has_accepted = |trace: &Trace| {
            trace
                .tool
                .lines()
                .iter()
                .any(|line| line.contains("\"accepted\"") && line.contains(":4227,"))
        };
        assert!(!has_accepted(&trace));
        listener.accept().unwrap();
        trace.wait_for("accepted", 4227);
        trace.stop().assert_whole();
        drop(client);
    }
}

#[test]
fn connections_older_than_the_tool_have_no_duration_but_all_their_bytes() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let (client, server) = namespace.enter(|| {
            let listener: TcpListener = listen("127.0.0.1", 4228);
            connected(&listener)
        });
        send(&client, &server, 1234);
        send(&server, &client, 77);
        let sport = client.local_addr().unwrap().port();
        let trace = Trace::start(&namespace, backend, &["--close"]);
        send(&client, &server, 1);
        drop(client);
        drop(server);
        let is_end = |event: &Value, port| event["event"] == "closed" && event["sport"] == port;
        let near = trace.wait("end of the client", |event| is_end(event, sport));
        let far = trace.wait("end of the server", |event| is_end(event, 4228));
        for event in [&near, &far] {
            assert!(event["duration_us"].is_null(), "{event}");
            assert!(event["direction"].is_null(), "{event}");
            assert!(event["pid"].is_null(), "{event}");
        }
        // Each end is shown as the source of its own line, because the initiator is not known.
        assert_bytes(&near, 1235, 77, "local");
        assert_bytes(&far, 77, 1235, "remote");
        trace.stop().assert_whole();
    }
}
