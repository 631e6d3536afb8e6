//! Attempts that fail, each for its reason.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::sockopt::SocketError;
use nix::sys::socket::{Shutdown, SockFlag, getsockopt, shutdown};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use serde_json::Value;

use super::sockets::{Blackhole, connect_to, connecting, disconnect, listen, set_int, states, tcp};
use super::{Events, Trace, assert_one_process, backends};
use crate::common::{Namespace, Tool, need, wait_for};

fn assert_given_up(failed: &Value) {
    assert!(failed["error"].is_null(), "{failed}");
    assert_eq!(failed["given_up"], true, "{failed}");
}

/// Checks an attempt that failed inside of the kernel's connect function, before it was sent.
fn assert_early_failure(events: &Events, port: u16, daddr: &str, errno: Errno) {
    let (attempt, failed) = events.pair_at(port, "failed");
    assert_one_process(attempt, failed);
    assert_eq!(failed["daddr"], daddr, "{failed}");
    assert_eq!(failed["error"], format!("{errno:?}"), "{failed}");
    assert_eq!(failed["ret"], -(errno as i32), "{failed}");
    assert_eq!(attempt["ret"], failed["ret"]);
}

#[test]
fn failures_before_a_packet_is_sent_keep_the_destination() {
    let namespace = need!(Namespace::new());
    for words in [
        "ip route add unreachable 192.0.2.1",
        "ip route add prohibit 192.0.2.2",
        "ip route add blackhole 192.0.2.3",
    ] {
        namespace.run(words);
    }
    let cases = [
        (4101, "198.51.100.1", Errno::ENETUNREACH),
        (4102, "192.0.2.1", Errno::EHOSTUNREACH),
        (4103, "192.0.2.2", Errno::EACCES),
        (4104, "192.0.2.3", Errno::EINVAL),
        (4105, "2001:db8::1", Errno::ENETUNREACH),
        (4106, "ff02::1", Errno::ENETUNREACH),
        (4107, "::ffff:198.51.100.2", Errno::ENETUNREACH),
    ];
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            for (port, ip, errno) in cases {
                let addr = SocketAddr::new(ip.parse().unwrap(), port);
                let socket = tcp(addr, SockFlag::empty());
                assert_eq!(connect_to(&socket, addr), Err(errno), "{ip}");
            }
        });
        let sees_calls = trace.sees_calls();
        let events = trace.stop();
        for (port, ip, errno) in cases {
            if sees_calls {
                assert_early_failure(&events, port, ip.trim_start_matches("::ffff:"), errno);
            } else {
                assert!(events.at(port).is_empty(), "{:#?}", events.at(port));
            }
        }
        events.assert_whole();
    }
}

#[test]
fn running_out_of_source_ports_is_a_failure_with_its_destination() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/ip_local_port_range", "45101 45101");
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            let listener = listen("127.0.0.1", 4111);
            let addr = listener.local_addr().unwrap();
            let holder = tcp(addr, SockFlag::empty());
            connect_to(&holder, addr).unwrap();
            let socket = tcp(addr, SockFlag::empty());
            assert_eq!(connect_to(&socket, addr), Err(Errno::EADDRNOTAVAIL));
            // The ports are free again for the next backend.
            super::sockets::reset_on_close(&holder);
        });
        let sees_calls = trace.sees_calls();
        let events = trace.stop();
        let all = events.at(4111);
        assert_eq!(
            events.names_at(4111),
            ["attempt", "established", "attempt", "failed"],
            "{all:#?}"
        );
        let (attempt, failed) = (all[2], all[3]);
        assert_one_process(attempt, failed);
        assert_eq!(failed["error"], "EADDRNOTAVAIL");
        assert!(failed["sport"].is_null(), "{failed}");
        assert_eq!(failed["daddr"], "127.0.0.1");
        if sees_calls {
            assert_eq!(failed["ret"], -libc::EADDRNOTAVAIL);
        }
        events.assert_whole();
    }
}

#[test]
fn a_connect_that_nobody_answers_times_out() {
    let blackhole = need!(Blackhole::new());
    blackhole.namespace.sysctl("ipv4/tcp_syn_retries", "1");
    for backend in backends!() {
        let trace = Trace::start(&blackhole.namespace, backend, &[]);
        blackhole.namespace.enter(|| {
            let addr = Blackhole::at(4121);
            let socket = tcp(addr, SockFlag::empty());
            set_int(&socket, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 100).unwrap();
            assert_eq!(connect_to(&socket, addr), Err(Errno::ETIMEDOUT));
        });
        let events = trace.stop();
        let (attempt, failed) = events.pair_at(4121, "failed");
        assert_one_process(attempt, failed);
        assert_eq!(failed["error"], "ETIMEDOUT");
        assert!(failed["latency_us"].as_u64() > Some(100_000), "{failed}");
        assert!(failed["sport"].is_u64(), "{failed}");
        events.assert_whole();
    }
}

#[test]
fn giving_up_while_connecting_is_a_failure_however_it_is_done() {
    let blackhole = need!(Blackhole::new());
    for backend in backends!() {
        let trace = Trace::start(&blackhole.namespace, backend, &[]);
        blackhole.namespace.enter(|| {
            drop(connecting(Blackhole::at(4131)));
            let socket = connecting(Blackhole::at(4132));
            shutdown(socket.as_raw_fd(), Shutdown::Both).unwrap();
            drop(socket);
            let socket = connecting(Blackhole::at(4133));
            disconnect(&socket);
            drop(socket);
            let socket = connecting(Blackhole::at(4134));
            super::sockets::reset_on_close(&socket);
            drop(socket);
            // A second call on a connecting socket is not a second attempt.
            let socket = connecting(Blackhole::at(4135));
            assert_eq!(
                connect_to(&socket, Blackhole::at(4135)),
                Err(Errno::EALREADY)
            );
            drop(socket);
        });
        let events = trace.stop();
        for port in 4131..=4135 {
            let (attempt, failed) = events.pair_at(port, "failed");
            assert_one_process(attempt, failed);
            assert_given_up(failed);
            assert!(failed["sport"].is_u64(), "{failed}");
        }
        events.assert_whole();
    }
}

#[test]
fn a_process_that_is_killed_while_connecting_leaves_one_failure() {
    let blackhole = need!(Blackhole::new());
    for backend in backends!() {
        let trace = Trace::start(&blackhole.namespace, backend, &[]);
        let child = blackhole.namespace.enter(|| {
            let addr = Blackhole::at(4141);
            let socket = tcp(addr, SockFlag::empty());
            // SAFETY: the child makes system calls and nothing else.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => {
                    let _ = connect_to(&socket, addr);
                    // SAFETY: ends the child without touching what it shares with its parent.
                    unsafe { libc::_exit(0) }
                }
                ForkResult::Parent { child } => child,
            }
        });
        blackhole.namespace.enter(|| {
            wait_for("the child connects", || {
                states(4141).contains(&"02".to_owned()).then_some(())
            });
        });
        kill(child, Signal::SIGKILL).unwrap();
        waitpid(child, None).unwrap();
        let failed = trace.wait_for("failed", 4141);
        assert_given_up(&failed);
        assert_eq!(failed["pid"], child.as_raw());
        let events = trace.stop();
        let (attempt, _) = events.pair_at(4141, "failed");
        assert_eq!(attempt["pid"], child.as_raw());
        events.assert_whole();
    }
}

#[test]
fn an_interrupted_connect_goes_on_and_has_one_fate() {
    let blackhole = need!(Blackhole::new());
    for backend in backends!() {
        let trace = Trace::start(&blackhole.namespace, backend, &[]);
        blackhole.namespace.enter(|| {
            let addr = Blackhole::at(4151);
            let error = TcpStream::connect_timeout(&addr, Duration::from_millis(50));
            assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        });
        let events = trace.stop();
        let (_, failed) = events.pair_at(4151, "failed");
        assert_given_up(failed);
        events.assert_whole();
    }
}

/// Connects without waiting, fetches the error of the socket as soon as there is one, and closes
/// it. Returns the error, and its name.
fn error_of_connect(addr: &str) -> (Errno, String) {
    let addr = addr.parse().unwrap();
    let socket = connecting(addr);
    let errno = wait_for("an error of the socket", || {
        let errno = getsockopt(&socket, SocketError).unwrap();
        (errno != 0).then(|| Errno::from_raw(errno))
    });
    (errno, format!("{errno:?}"))
}

#[test]
fn a_connect_that_the_local_firewall_rejects_has_the_error_that_the_process_gets() {
    let namespace = need!(Namespace::new());
    need!(namespace.try_run("nft add table inet t"));
    namespace.run("nft add chain inet t out { type filter hook output priority 0 ; }");
    let cases = [
        (4501, "tcp reset", Errno::ECONNREFUSED),
        (4502, "icmpx port-unreachable", Errno::ECONNREFUSED),
        (4503, "icmpx admin-prohibited", Errno::EHOSTUNREACH),
        (4504, "icmpx host-unreachable", Errno::EHOSTUNREACH),
        (4505, "icmpx no-route", Errno::ENETUNREACH),
        (4506, "icmp net-prohibited", Errno::ENETUNREACH),
        (4507, "icmp prot-unreachable", Errno::ENOPROTOOPT),
    ];
    for (port, with, _) in cases {
        need!(namespace.try_run(&format!(
            "nft add rule inet t out tcp dport {port} reject with {with}"
        )));
    }
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        for (port, with, errno) in cases {
            let fetched = namespace.enter(|| error_of_connect(&format!("127.0.0.1:{port}")));
            assert_eq!(fetched.0, errno, "{with}");
            let failed = trace.wait_for("failed", port);
            assert_eq!(failed["error"], fetched.1, "{with}: {failed}");
            assert_eq!(failed["given_up"], false, "{failed}");
        }
        let v6 = namespace.enter(|| error_of_connect("[::1]:4504"));
        let failed = trace.wait("failed by IPv6", |event| {
            event["event"] == "failed" && event["daddr"] == "::1"
        });
        // Without a hook on the connect function, ICMPv6 errors are not seen.
        if trace.sees_calls() {
            assert_eq!(failed["error"], v6.1, "{failed}");
        }
        // They are seen if the process has asked for the socket's error queue.
        namespace.enter(|| {
            let rejected = "[::1]:4505".parse().unwrap();
            let socket = tcp(rejected, SockFlag::SOCK_NONBLOCK);
            set_int(&socket, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1).unwrap();
            assert_eq!(connect_to(&socket, rejected), Err(Errno::EINPROGRESS));
            let error = getsockopt(&socket, SocketError).unwrap();
            assert_eq!(error, Errno::ENETUNREACH as i32);
        });
        let failed = trace.wait("a queued failure by IPv6", |event| {
            event["event"] == "failed" && event["daddr"] == "::1" && event["dport"] == 4505
        });
        assert_eq!(failed["error"], "ENETUNREACH", "{failed}");
        let events = trace.stop();
        events.pair_at(4507, "failed");
        events.assert_whole();
    }
}

#[test]
fn the_error_of_an_earlier_attempt_is_not_reported_for_the_next() {
    let blackhole = need!(Blackhole::new());
    let namespace = &blackhole.namespace;
    need!(namespace.try_run("nft add table inet t"));
    namespace.run("nft add chain inet t out { type filter hook output priority 0 ; }");
    need!(
        namespace
            .try_run("nft add rule inet t out tcp dport 4511 reject with icmp host-unreachable")
    );
    for backend in backends!() {
        let trace = Trace::start(namespace, backend, &[]);
        namespace.enter(|| {
            let rejected = Blackhole::at(4511);
            let socket = tcp(rejected, SockFlag::empty());
            assert_eq!(connect_to(&socket, rejected), Err(Errno::EHOSTUNREACH));
            // SO_ERROR removes it from the socket, but not from the socket's error queue.
            getsockopt(&socket, SocketError).unwrap();
            fcntl(&socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            assert_eq!(
                connect_to(&socket, Blackhole::at(4512)),
                Err(Errno::EINPROGRESS)
            );
        });
        assert_eq!(trace.wait_for("failed", 4511)["error"], "EHOSTUNREACH");
        assert_given_up(&trace.wait_for("failed", 4512));
        trace.stop().assert_whole();
    }
}

#[test]
fn an_attempt_that_was_given_up_is_marked_in_text() {
    let blackhole = need!(Blackhole::new());
    let tool = Tool::start(&["connect-trace", "--dst", "10.99.0.2", "-p", "4191"]);
    blackhole
        .namespace
        .enter(|| drop(connecting(Blackhole::at(4191))));
    wait_for("a line that says it", || {
        let lines = tool.lines();
        let mut lines = lines.iter().filter(|line| line.contains(" failed "));
        lines.any(|line| line.ends_with(" gave-up")).then_some(())
    });
    tool.stop();
}

#[test]
fn an_icmp_error_is_the_reason_of_the_failure() {
    let blackhole = need!(Blackhole::new());
    // Beyond this host there is no route to the destination, so it answers with an ICMP error.
    blackhole.namespace.sysctl("ipv4/ip_forward", "1");
    let far = need!(Namespace::new());
    blackhole.namespace.run(&format!(
        "ip link add near type veth peer name other netns {}",
        far.path()
    ));
    for words in ["ip addr add 10.98.0.1/24 dev near", "ip link set near up"] {
        blackhole.namespace.run(words);
    }
    for words in [
        "ip addr add 10.98.0.2/24 dev other",
        "ip link set other up",
        "ip route add default via 10.98.0.1",
    ] {
        far.run(words);
    }
    blackhole
        .namespace
        .run("ip route add unreachable 203.0.113.1");
    for backend in backends!() {
        let trace = Trace::start(&far, backend, &[]);
        let socket = far.enter(|| {
            let addr: SocketAddr = "203.0.113.1:4171".parse().unwrap();
            let socket = tcp(addr, SockFlag::SOCK_NONBLOCK);
            assert_eq!(connect_to(&socket, addr), Err(Errno::EINPROGRESS));
            socket
        });
        // An ICMP error that comes while connect(2) still holds the socket is only stored (sk_err_soft).
        // The next one, which answers the retransmitted SYN, ends the attempt.
        let failed = trace.wait_for("failed", 4171);
        drop(socket);
        assert_eq!(failed["error"], "EHOSTUNREACH", "{failed}");
        // A process can fetch a stored error at once.
        let (errno, name) = far.enter(|| error_of_connect("203.0.113.1:4172"));
        assert_eq!(errno, Errno::EHOSTUNREACH);
        assert_eq!(trace.wait_for("failed", 4172)["error"], name);
        let events = trace.stop();
        events.pair_at(4171, "failed");
        events.assert_whole();
    }
}

#[test]
fn no_process_name_can_forge_a_line_of_json() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        let name = c"\x1b[2J\n\"}\xff\\x";
        namespace.enter(|| {
            thread::scope(|scope| {
                scope.spawn(|| {
                    nix::sys::prctl::set_name(name).unwrap();
                    TcpStream::connect("127.0.0.1:4181").expect_err("nobody listens");
                });
            });
        });
        let events = trace.stop();
        let (attempt, _) = events.pair_at(4181, "failed");
        let comm = attempt["comm"].as_str().unwrap();
        assert!(comm.starts_with("\u{1b}[2J\n\"}"), "{attempt}");
        assert!(comm.ends_with("\\x"), "{attempt}");
    }
}
