//! Each filter alone, on every backend.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockaddrIn, bind};

use super::sockets::{connect_to, connected, listen, most_files, tcp};
use super::{Trace, backends};
use crate::common::{Namespace, is_guest, need};

/// Connects to three places: one listens, one refuses, one can't be reached.
fn connect_everywhere(namespace: &Namespace) {
    namespace.enter(|| {
        let _listener = listen("127.0.0.1", 4301);
        for addr in ["127.0.0.1:4301", "127.0.0.2:4302", "[::1]:4303"] {
            let addr: SocketAddr = addr.parse().unwrap();
            assert_eq!(TcpStream::connect(addr).is_ok(), addr.port() == 4301);
        }
    });
}

/// The cases that this backend tests. Backends share the cases, because the filter is the same for
/// all, and on an emulated machine the tool takes seconds to start.
fn shared<T>(
    cases: impl Iterator<Item = T>,
    backends: usize,
    turn: usize,
) -> impl Iterator<Item = T> {
    cases.skip(turn).step_by(backends)
}

#[test]
fn filters_select_what_they_name() {
    let namespace = need!(Namespace::new());
    let pid = std::process::id().to_string();
    let cases: &[(&[&str], &[u16])] = &[
        (&["--pid", &pid], &[4301, 4302, 4303]),
        (&["--pid", "1"], &[]),
        (&["--uid", "0"], &[4301, 4302, 4303]),
        (&["--uid", "12345,12346"], &[]),
        (&["--comm", "no-such-name"], &[]),
        (&["-p", "4301,4303"], &[4301, 4303]),
        (&["--dst", "127.0.0.0/8"], &[4301, 4302]),
        (&["--dst", "!127.0.0.2"], &[4301, 4303]),
        (&["--src", "127.0.0.1"], &[4301, 4302]),
        (&["--src", "!127.0.0.0/8"], &[4303]),
        (&["-6"], &[4303]),
        (&["-4"], &[4301, 4302]),
        (&["--sport", "1"], &[]),
        (&["--sport", "2-65535", "-p", "4302"], &[4302]),
        (&["--any-port", "4301"], &[4301]),
        (&["--any-port", "4300-4399,!4302"], &[4301, 4303]),
        (&["--any-port", "1"], &[]),
        (&["--host", "127.0.0.2,::1"], &[4302, 4303]),
        (&["--host", "!127.0.0.2"], &[4301, 4303]),
        (&["-p", "!4301,!4302"], &[4303]),
        (&["--failed"], &[4302, 4303]),
    ];
    let all = backends!();
    for (backend, turn) in all.iter().zip(0..) {
        for (options, ports) in shared(cases.iter(), all.len(), turn) {
            let trace = Trace::start(&namespace, backend, options);
            connect_everywhere(&namespace);
            let events = trace.stop();
            for port in [4301, 4302, 4303] {
                let fate = if port == 4301 {
                    "established"
                } else {
                    "failed"
                };
                let expected: &[&str] = match (ports.contains(&port), options[0]) {
                    (false, _) => &[],
                    (true, "--failed") => &[fate],
                    (true, _) => &["attempt", fate],
                };
                assert_eq!(
                    events.names_at(port),
                    expected,
                    "{options:?} {:#?}",
                    events.all
                );
            }
            events.assert_whole();
        }
    }
}

#[test]
fn the_filter_on_names_takes_whole_names() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--comm", "exactly-this,x"]);
        namespace.enter(|| {
            for (port, name) in [
                (4311, c"exactly-this"),
                (4312, c"exactly-thi"),
                (4313, c"exactly-this1"),
            ] {
                thread::scope(|scope| {
                    scope.spawn(|| {
                        nix::sys::prctl::set_name(name).unwrap();
                        TcpStream::connect(("127.0.0.1", port)).expect_err("nobody listens");
                    });
                });
            }
        });
        let events = trace.stop();
        let names: Vec<usize> = [4311, 4312, 4313]
            .map(|port| events.at(port).len())
            .to_vec();
        assert_eq!(names, [2, 0, 0], "{:#?}", events.all);
    }
}

#[test]
fn the_filter_on_names_takes_the_process_as_well_as_the_thread() {
    let namespace = need!(Namespace::new());
    let process = std::fs::read_to_string("/proc/self/comm").unwrap();
    let process = process.trim_end();
    for backend in backends!() {
        for name in [process, "a-thread"] {
            let trace = Trace::start(&namespace, backend, &["--comm", name]);
            namespace.enter(|| {
                nix::sys::prctl::set_name(c"a-thread").unwrap();
                TcpStream::connect("127.0.0.1:4316").expect_err("nobody listens");
            });
            let events = trace.stop();
            let (attempt, failed) = events.pair_at(4316, "failed");
            for event in [attempt, failed] {
                assert_eq!(event["comm"], "a-thread", "{event}");
                assert_eq!(event["process"], process, "{event}");
            }
        }
    }
}

#[test]
fn filters_apply_to_accepts_and_ends_too() {
    let namespace = need!(Namespace::new());
    let pid = std::process::id().to_string();
    let all = backends!();
    for (backend, turn) in all.iter().zip(0..) {
        let cases = [
            (["-p", "4321"], true, true),
            (["--pid", "1"], false, false),
            (["--pid", &pid], true, true),
            (["--dst", "!127.0.0.1"], false, false),
            (["--sport", "1"], false, false),
            // The port of the server, which is the destination, although it is the local port of the accepted
            // socket.
            (["--sport", "4321"], false, false),
        ];
        for (options, outgoing, incoming) in shared(cases.into_iter(), all.len(), turn) {
            let mut all = vec!["--accept", "--close"];
            all.extend(options);
            let trace = Trace::start(&namespace, backend, &all);
            namespace.enter(|| {
                let listener = listen("127.0.0.1", 4321);
                let (client, server) = super::sockets::connected(&listener);
                drop(client);
                drop(server);
            });
            let knows_acceptor = trace.sees_calls() || options[0] != "--pid";
            let events = trace.stop();
            let directions = |name: &str| {
                let mut found: Vec<&str> = events
                    .named(name)
                    .iter()
                    .map(|event| event["direction"].as_str().unwrap())
                    .collect();
                found.sort_unstable();
                found
            };
            let (mut closed, mut accepted) = (Vec::new(), Vec::new());
            if incoming && knows_acceptor {
                closed.push("in");
                accepted.push("in");
            }
            if outgoing {
                closed.push("out");
            }
            assert_eq!(
                directions("closed"),
                closed,
                "{options:?} {:#?}",
                events.all
            );
            assert_eq!(
                directions("accepted"),
                accepted,
                "{options:?} {:#?}",
                events.all
            );
        }
    }
}

#[test]
fn connections_that_the_filter_rejects_never_look_older_than_the_tool() {
    // 9,000 connections have 18,000 sockets, and an LRU table of 16,384 would forget some of them.
    let (count, backends) = match is_guest() {
        true => (500, &backends!()[..1]),
        false => (9000, backends!()),
    };
    let count = count.min((most_files() - 1000) / 2);
    for backend in backends {
        let namespace = need!(Namespace::new());
        // The port of the server, which would count as the source if the direction were not known.
        let trace = Trace::start(&namespace, backend, &["--close", "--sport", "4331,4332"]);
        namespace.enter(|| {
            let listener = listen("127.0.0.1", 4331);
            drop((0..count).map(|_| connected(&listener)).collect::<Vec<_>>());
            let last = tcp(([127, 0, 0, 1], 0).into(), SockFlag::empty());
            bind(last.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 4332)).unwrap();
            let refused = connect_to(&last, ([127, 0, 0, 1], 4333).into());
            assert_eq!(refused, Err(Errno::ECONNREFUSED));
        });
        trace.wait_for("failed", 4333);
        let events = trace.stop();
        assert_eq!(events.count("closed"), 0, "{}", events.summary);
        events.assert_whole();
    }
}

#[test]
fn the_filter_on_namespaces_leaves_out_all_other_namespaces() {
    let [wanted, other] = [need!(Namespace::new()), need!(Namespace::new())];
    let path = wanted.path();
    for backend in backends!() {
        let trace = Trace::everywhere(&other, backend, &["--netns", &path]);
        connect_everywhere(&other);
        connect_everywhere(&wanted);
        let events = trace.stop();
        // Those that are kept here are of the namespace in which the tool was started.
        assert!(events.all.is_empty(), "{backend}: {events:?}");
        assert_eq!(events.summary["matched"], 6, "{backend}: {events:?}");
    }
}
