//! Servers of each kind: their listeners, and how they accept.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{Backlog, SockFlag, SockaddrIn, bind, listen, setsockopt, sockopt};

use super::{
    Fates, NOBODY, Trace, assert_fate, begin, listener, segment, send, server, with_neighbour,
};
use crate::common::bpf::has_fentry;
use crate::common::net::{Growth, nft};
use crate::common::{Namespace, Pair, SERVER4, Tool, need};
use crate::connect::sockets::{
    accept, connect_to, fast_open, multipath, multipath_connected, multipath_listener, owned,
    set_int, tcp,
};
use crate::connect::uring::Ring;

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::LOCALHOST, port)
}

/// A listener of a SO_REUSEPORT group.
fn member(addr: SocketAddrV4, backlog: i32) -> TcpListener {
    let fd = tcp(addr.into(), SockFlag::empty());
    setsockopt(&fd, sockopt::ReusePort, &true).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::from(addr)).unwrap();
    listen(&fd, Backlog::new(backlog).unwrap()).unwrap();
    fd.into()
}

#[test]
fn each_connection_to_a_group_of_sockets_is_accepted_by_the_thread_that_gets_it() {
    let namespace = need!(Namespace::new());
    const SERVERS: usize = 3;
    const CLIENTS: usize = 4;
    const CONNECTS: usize = 100;
    let tool = Tool::start_in(&namespace, &["accept-trace", "--json", "--attempts", "lo"]);
    let sockets = namespace.enter(|| [(); SERVERS].map(|()| member(at(8501), 64)));
    let taken = thread::scope(|scope| {
        let servers = sockets.each_ref().map(|socket| {
            scope.spawn(move || {
                let (mut taken, tid) = (0, nix::unistd::gettid().as_raw());
                // shutdown() ends accept().
                while let Ok(connection) = accept(socket) {
                    drop(connection);
                    taken += 1;
                }
                (tid, taken)
            })
        });
        let clients = [(); CLIENTS].map(|()| {
            scope.spawn(|| {
                namespace.join();
                for _ in 0..CONNECTS {
                    TcpStream::connect(at(8501)).unwrap();
                }
            })
        });
        for client in clients {
            client.join().unwrap();
        }
        // Connections that wait in a queue are still accepted.
        thread::sleep(Duration::from_millis(300));
        for socket in &sockets {
            nix::sys::socket::shutdown(socket.as_raw_fd(), nix::sys::socket::Shutdown::Both)
                .unwrap();
        }
        servers.map(|server| server.join().unwrap())
    });
    let fates = Fates::of(&tool.stop());
    let total = (CLIENTS * CONNECTS) as u64;
    assert_eq!(taken.iter().map(|(_, taken)| taken).sum::<u64>(), total);
    assert_eq!(fates.count("accepted"), total, "{}", fates.summary);
    let mut seen = BTreeMap::<i64, u64>::new();
    // The kernel may skip the program that sees an accept.
    for tid in fates
        .at(8501)
        .iter()
        .filter_map(|line| line["tid"].as_i64())
    {
        *seen.entry(tid).or_default() += 1;
    }
    for (tid, taken) in taken {
        let seen = seen.remove(&i64::from(tid)).unwrap_or(0);
        assert!(seen <= taken && seen + 20 >= taken, "{tid}: {seen} {taken}");
    }
    assert_eq!(seen, BTreeMap::new());
}

#[test]
fn fast_open_is_reported_whether_or_not_the_syn_has_data() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_fastopen", "3");
    let passive = Growth::of(&namespace, "TcpExtTCPFastOpenPassive");
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind(at(8503)).unwrap();
        set_int(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
        // The first one fetches the cookie that the others use.
        for data in [&b"hello"[..], b"hello", b""] {
            let client = tcp(at(8503).into(), SockFlag::empty());
            assert_eq!(fast_open(&client, at(8503), data), Ok(data.len()));
            let (mut server, _) = listener.accept().unwrap();
            server.read_exact(&mut vec![0; data.len()]).unwrap();
        }
    });
    trace.wait_for_fates(3);
    assert_eq!(passive.now(), 2);
    let fates = trace.stop();
    assert_eq!(fates.count("accepted"), 3);
    let fast = fates.at(8503).into_iter().map(|line| &line["fast_open"]);
    assert_eq!(fast.collect::<Vec<_>>(), [false, true, true]);
    for line in fates.at(8503) {
        assert!(line["syn_ack_us"].is_u64(), "{line}");
    }
}

#[test]
fn fast_open_without_a_final_ack_is_unanswered_with_its_retransmitted_syn_acks() {
    let pair = need!(Pair::new());
    need!(nft(
        &pair.client,
        "type filter hook input priority 0",
        "tcp sport 8512 drop"
    ));
    // Without a Fast Open cookie.
    pair.server.sysctl("ipv4/tcp_fastopen", "515");
    pair.client.sysctl("ipv4/tcp_fastopen", "5");
    pair.client.sysctl("ipv4/tcp_syn_retries", "1");
    let trace = Trace::start(&pair.server, &["vs"]);
    let listener = pair
        .server
        .enter(|| TcpListener::bind(server(8512)).unwrap());
    set_int(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
    set_int(&listener, libc::IPPROTO_TCP, libc::TCP_SYNCNT, 1).unwrap();
    let client = pair.client.enter(|| {
        let client = tcp(server(8512), SockFlag::SOCK_NONBLOCK);
        let _ = fast_open(&client, SocketAddrV4::new(SERVER4, 8512), b"hello");
        client
    });
    let line = trace.fate(8512);
    drop((client, listener));
    assert_fate(&line, "unanswered", Some("no_final_ack"), Some("inferred"));
    assert_eq!(line["fast_open"], true, "{line}");
    assert!(line["syn_ack_retransmits"].as_u64() >= Some(1), "{line}");
    trace.stop();
}

#[test]
fn mptcp_is_reported_if_both_ends_have_it() {
    need!(multipath().map_err(|errno| format!("the kernel has no MPTCP ({errno})")));
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = multipath_listener(8504);
        let plain = TcpListener::bind(at(8505)).unwrap();
        for (port, listener, client) in [
            (8504, listener.as_fd(), multipath().unwrap()),
            (
                8504,
                listener.as_fd(),
                tcp(at(8504).into(), SockFlag::empty()),
            ),
            (8505, plain.as_fd(), multipath().unwrap()),
        ] {
            connect_to(&client, at(port).into()).unwrap();
            drop(accept(&listener).unwrap());
        }
    });
    trace.wait_for_fates(3);
    let fates = trace.stop();
    assert_eq!(fates.count("accepted"), 3);
    let reported = |port| {
        let lines = fates.at(port).into_iter();
        lines.map(|line| line["mptcp"] == true).collect::<Vec<_>>()
    };
    assert_eq!(
        (reported(8504), reported(8505)),
        (vec![true, false], vec![false])
    );
}

#[test]
fn the_process_of_a_multipath_listener_with_a_full_queue_is_named() {
    need!(multipath().map_err(|errno| format!("the kernel has no MPTCP ({errno})")));
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_syn_retries", "1");
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let trace = Trace::start(&namespace, &["lo"]);
    let server = namespace.enter(|| {
        let server = multipath().unwrap();
        bind(server.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 8512)).unwrap();
        listen(&server, Backlog::new(0).unwrap()).unwrap();
        server
    });
    let first = namespace.enter(|| begin(at(8512).into()));
    established.reaches(1);
    let second = namespace.enter(|| begin(at(8512).into()));
    let line = trace.fate(8512);
    trace.stop();
    drop((server, first, second));
    assert_fate(&line, "dropped", Some("accept_queue_full"), None);
    assert_eq!(line["pid"], std::process::id(), "{line}");
}

#[test]
fn an_additional_subflow_has_no_process_and_no_accept_wait() {
    need!(multipath().map_err(|errno| format!("the kernel has no MPTCP ({errno})")));
    let namespace = need!(Namespace::new());
    need!(namespace.try_run("ip mptcp limits set subflow 2 add_addr_accepted 2"));
    need!(namespace.try_run("ip mptcp endpoint add 127.0.0.2 dev lo subflow"));
    let trace = Trace::start(&namespace, &["lo", "-p", "8506"]);
    let sockets = namespace.enter(|| multipath_connected(8506));
    trace.wait_for_fates(2);
    let fates = trace.stop();
    drop(sockets);
    let lines = fates.at(8506);
    let subflow = lines
        .iter()
        .find(|line| line["saddr"] == "127.0.0.2")
        .unwrap();
    assert_fate(subflow, "accepted", None, None);
    assert_eq!(subflow["mptcp"], true, "{subflow}");
    for key in ["pid", "accept_wait_us"] {
        assert!(subflow[key].is_null(), "{subflow}");
    }
}

#[test]
fn connections_accepted_by_io_uring_are_accepted() {
    let namespace = need!(Namespace::new());
    need!(Ring::new().map_err(|error| format!("the kernel has no io_uring ({error})")));
    let trace = Trace::start(&namespace, &["lo"]);
    let sockets = namespace.enter(|| {
        let listener = TcpListener::bind(at(8507)).unwrap();
        let client = TcpStream::connect(at(8507)).unwrap();
        (owned(Ring::new().unwrap().accept(&listener)), client)
    });
    let line = trace.fate(8507);
    assert_fate(&line, "accepted", None, None);
    // Without a hook on the kernel's accept function, the process is not known.
    match has_fentry() {
        Ok(()) => assert_eq!(line["pid"], std::process::id(), "{line}"),
        Err(_) => assert!(line["pid"].is_null(), "{line}"),
    }
    drop(sockets);
    trace.stop();
}

#[test]
fn attempts_that_arrived_before_the_run_have_a_fate_too() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let server = |port| SocketAddr::from((SERVER4, port));
    let [first, second, third, fourth] = [8508, 8509, 8510, 8511].map(|port| {
        let fd = pair.server.enter(|| listener(server(port), 16));
        TcpListener::from(fd)
    });
    let established = Growth::of(&pair.server, "TcpPassiveOpens");
    let connect = |port| {
        pair.client
            .enter(|| TcpStream::connect(server(port)).unwrap())
    };
    let _clients = [8508, 8509].map(connect);
    let _other = pair
        .server
        .enter(|| TcpStream::connect(server(8511)).unwrap());
    established.reaches(3);
    // This one is half-open.
    send(&pair, &segment(&pair, NOBODY, 2, (4000, 8510), 77, 0));
    let trace = Trace::start(&pair.server, &["vs"]);
    first.accept().unwrap();
    drop(second);
    fourth.accept().unwrap();
    trace.fate(8508);
    trace.fate(8509);
    let fates = trace.stop();
    drop(third);
    assert_fate(fates.only(8508), "accepted", None, None);
    assert_eq!(fates.only(8508)["pid"], std::process::id());
    assert_fate(fates.only(8509), "aborted", Some("listener_closed"), None);
    assert_fate(fates.only(8510), "pending", None, None);
    for line in &fates.all {
        assert_eq!(
            (&line["seeded"], &line["iface"]),
            (&true.into(), &"vs".into()),
            "{line}"
        );
        assert!(
            line["handshake_us"].is_null() && line["queue_len"].is_null(),
            "{line}"
        );
    }
    assert_eq!(fates.at(8511).len(), 0, "it came by lo");
}

#[test]
fn a_connection_to_a_listener_bound_to_an_interface_waits_until_it_is_accepted() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = listener(at(8507).into(), 16);
        setsockopt(&listener, sockopt::BindToDevice, &"lo".into()).unwrap();
        let listener = TcpListener::from(listener);
        let _client = TcpStream::connect(at(8507)).unwrap();
        // Meanwhile user space goes through the table of attempts several times.
        thread::sleep(Duration::from_millis(2500));
        listener.accept().unwrap();
    });
    let line = trace.fate(8507);
    assert_fate(&line, "accepted", None, None);
    assert_eq!(line["pid"], std::process::id(), "{line}");
    trace.stop();
}

#[test]
fn a_deferred_accept_waits_for_data() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    namespace.enter(|| {
        let listener = TcpListener::bind(at(8508)).unwrap();
        set_int(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 10).unwrap();
        let mut client = TcpStream::connect(at(8508)).unwrap();
        thread::sleep(Duration::from_millis(50));
        client.write_all(b"x").unwrap();
        listener.accept().unwrap();
    });
    let line = trace.fate(8508);
    assert_fate(&line, "accepted", None, None);
    assert!(line["handshake_us"].as_u64() >= Some(40_000), "{line}");
    trace.stop();
}

#[test]
fn a_listener_closed_with_a_full_queue_leaves_aborted_and_dropped_attempts() {
    let namespace = need!(Namespace::new());
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let overflows = Growth::of(&namespace, "TcpExtListenOverflows");
    let trace = Trace::start(&namespace, &["lo"]);
    let server = namespace.enter(|| listener(at(8509).into(), 1));
    let first = namespace.enter(|| [(); 2].map(|()| begin(at(8509).into())));
    // A busy CPU leaves packets to ksoftirqd, which would answer all SYNs before the queue is full.
    established.reaches(2);
    let others = namespace.enter(|| [(); 4].map(|()| begin(at(8509).into())));
    overflows.reaches(4);
    drop(server);
    trace.wait_for_fates(6);
    let fates = trace.stop();
    drop((first, others));
    assert_eq!((fates.count("aborted"), fates.count("refused")), (2, 4));
    for line in fates.at(8509) {
        let reason = match line["fate"] == "aborted" {
            true => "listener_closed",
            false => "no_listener",
        };
        assert_eq!(line["reason"], reason, "{line}");
    }
}

#[test]
fn a_backlog_of_0_has_room_for_one() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_syn_retries", "1");
    let established = Growth::of(&namespace, "TcpPassiveOpens");
    let trace = Trace::start(&namespace, &["lo"]);
    let addr = SocketAddr::from(at(8510));
    let server = namespace.enter(|| listener(addr, 0));
    let first = namespace.enter(|| begin(addr));
    established.reaches(1);
    let others = namespace.enter(|| [(); 2].map(|()| begin(addr)));
    trace.wait_for_fates(2);
    let fates = trace.stop();
    drop((server, first, others));
    assert_eq!((fates.count("dropped"), fates.count("pending")), (2, 1));
    for line in fates.at(8510).iter().filter(|it| it["fate"] == "dropped") {
        assert_fate(line, "dropped", Some("accept_queue_full"), None);
        assert_eq!(
            (&line["queue_len"], &line["queue_max"]),
            (&1.into(), &0.into())
        );
    }
}
