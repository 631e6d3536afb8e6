//! One attempt and one outcome, with the right addresses and ports, however a connection is made.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, SockaddrStorage, bind, getsockname, getsockopt,
    socket, sockopt,
};

use super::sockets::{
    accept, connect_to, connected, fast_open, listen, mapped, multipath, multipath_connected,
    multipath_listener, set_int, tcp,
};
use super::{Trace, assert_one_process, backends};
use crate::common::{Namespace, Pair, SERVER4, need};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn a_refused_connect_fails_with_its_error_and_latency_and_source_port() {
    let namespace = need!(Namespace::new());
    // With only one port to choose, it is known which one the kernel chooses.
    namespace.sysctl("ipv4/ip_local_port_range", "45001 45001");
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            for ip in ["127.0.0.1", "::1"] {
                let addr = SocketAddr::new(ip.parse().unwrap(), 4001);
                TcpStream::connect(addr).expect_err("nobody listens");
            }
        });
        let sees_calls = trace.sees_calls();
        let events = trace.stop();
        let all = events.at(4001);
        assert_eq!(
            events.names_at(4001),
            ["attempt", "failed", "attempt", "failed"],
            "{all:#?}"
        );
        for (pair, ip) in all.chunks(2).zip(["127.0.0.1", "::1"]) {
            let [attempt, failed] = pair else { panic!() };
            assert_one_process(attempt, failed);
            assert_eq!(failed["error"], "ECONNREFUSED");
            assert_eq!(failed["sport"], 45001, "{failed}");
            assert_eq!(
                (&failed["saddr"], &failed["daddr"]),
                (&ip.into(), &ip.into())
            );
            if sees_calls {
                assert_eq!(attempt["sport"], 45001, "{attempt}");
                assert_eq!(attempt["ret"], 0, "{attempt}");
            } else {
                assert!(attempt["sport"].is_null() && attempt["ret"].is_null());
            }
        }
        events.assert_whole();
    }
}

#[test]
fn an_established_connection_has_both_ends_whatever_the_family() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        let ports = namespace.enter(|| {
            [("127.0.0.1", 4002), ("::1", 4003)].map(|(ip, port)| {
                let listener = listen(ip, port);
                connected(&listener).0.local_addr().unwrap().port()
            })
        });
        let sees_calls = trace.sees_calls();
        let events = trace.stop();
        for ((ip, version, port), sport) in [("127.0.0.1", 4, 4002), ("::1", 6, 4003)]
            .into_iter()
            .zip(ports)
        {
            let (attempt, established) = events.pair_at(port, "established");
            assert_one_process(attempt, established);
            assert_eq!(established["ip_version"], version);
            assert_eq!(
                (&established["saddr"], &established["daddr"]),
                (&ip.into(), &ip.into())
            );
            assert_eq!(established["sport"], sport);
            assert!(established["error"].is_null(), "{established}");
            if sees_calls {
                assert_eq!(attempt["sport"], sport);
            }
        }
        events.assert_whole();
    }
}

#[test]
fn the_wildcard_address_is_shown_as_the_address_that_the_kernel_puts_in_its_place() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            let _listeners = (listen("127.0.0.1", 4004), listen("::1", 4005));
            TcpStream::connect(("0.0.0.0", 4004)).unwrap();
            TcpStream::connect(("::", 4005)).unwrap();
        });
        let events = trace.stop();
        assert_eq!(events.pair_at(4004, "established").0["daddr"], "127.0.0.1");
        assert_eq!(events.pair_at(4005, "established").0["daddr"], "::1");
    }
}

#[test]
fn an_ipv4_mapped_destination_is_one_attempt_shown_as_ipv4() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            let _listener = listen("127.0.0.1", 4006);
            for port in [4006, 4007] {
                let addr = mapped(SocketAddrV4::new(LOCALHOST, port));
                let socket = tcp(addr, SockFlag::empty());
                assert_eq!(connect_to(&socket, addr).is_ok(), port == 4006);
            }
        });
        let events = trace.stop();
        for (port, fate) in [(4006, "established"), (4007, "failed")] {
            let (attempt, end) = events.pair_at(port, fate);
            assert_one_process(attempt, end);
            assert_eq!(end["ip_version"], 4, "{end}");
            assert_eq!(
                (&end["saddr"], &end["daddr"]),
                (&"127.0.0.1".into(), &"127.0.0.1".into())
            );
            assert!(end["sport"].as_u64().is_some_and(|port| port != 0), "{end}");
        }
        events.assert_whole();
    }
}

#[test]
fn a_bound_socket_shows_its_port_at_the_attempt_on_every_backend() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            let addr = SocketAddr::from((LOCALHOST, 4008));
            let socket = tcp(addr, SockFlag::empty());
            bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0x1234)).unwrap();
            assert_eq!(connect_to(&socket, addr), Err(Errno::ECONNREFUSED));
        });
        let events = trace.stop();
        let (attempt, failed) = events.pair_at(4008, "failed");
        assert_eq!(
            (&attempt["sport"], &failed["sport"]),
            (&0x1234.into(), &0x1234.into())
        );
    }
}

#[test]
fn a_nonblocking_connect_is_one_attempt_and_one_fate() {
    let pair = need!(Pair::new());
    for backend in backends!() {
        let trace = Trace::start(&pair.client, backend, &[]);
        let listener = pair
            .server
            .enter(|| TcpListener::bind((SERVER4, 4009)).unwrap());
        pair.client.enter(|| {
            for (port, error) in [(4009, 0), (4010, libc::ECONNREFUSED)] {
                let addr = SocketAddr::from((SERVER4, port));
                let socket = tcp(addr, SockFlag::SOCK_NONBLOCK);
                assert_eq!(connect_to(&socket, addr), Err(Errno::EINPROGRESS));
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                poll(&mut fds, PollTimeout::from(30_000_u16)).unwrap();
                assert_eq!(getsockopt(&socket, sockopt::SocketError), Ok(error));
                // A second call returns the result, and is not a second attempt.
                let _ = connect_to(&socket, addr);
            }
        });
        drop(listener);
        let events = trace.stop();
        events.pair_at(4009, "established");
        assert_eq!(events.names_at(4010)[..2], ["attempt", "failed"]);
        events.assert_whole();
    }
}

#[test]
fn a_socket_that_failed_and_tries_again_is_a_new_attempt() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            let addr = SocketAddr::from((LOCALHOST, 4011));
            let socket = tcp(addr, SockFlag::empty());
            for _ in 0..3 {
                assert_eq!(connect_to(&socket, addr), Err(Errno::ECONNREFUSED));
            }
        });
        let events = trace.stop();
        assert_eq!(
            events.names_at(4011),
            ["attempt", "failed"].repeat(3),
            "{:#?}",
            events.at(4011)
        );
        for failed in events.named("failed") {
            assert_eq!(failed["error"], "ECONNREFUSED", "{failed}");
            assert!(failed["sport"].is_u64(), "{failed}");
        }
    }
}

#[test]
fn a_socket_that_connects_to_itself_is_one_attempt_and_established() {
    for backend in backends!() {
        // A new namespace for each backend, because the ports of the previous one may not be free yet.
        let namespace = need!(Namespace::new());
        let trace = Trace::start(&namespace, backend, &["--accept"]);
        namespace.enter(|| {
            let addr = SocketAddr::from((LOCALHOST, 4012));
            let socket = tcp(addr, SockFlag::empty());
            bind(socket.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 4012)).unwrap();
            connect_to(&socket, addr).unwrap();
        });
        let events = trace.stop();
        let (attempt, established) = events.pair_at(4012, "established");
        assert_one_process(attempt, established);
        assert_eq!(established["sport"], 4012);
        events.assert_whole();
    }
}

#[test]
fn fast_open_is_one_attempt_each_with_and_without_a_cookie() {
    let namespace = need!(Namespace::new());
    namespace.sysctl("ipv4/tcp_fastopen", "3");
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            let listener = listen("127.0.0.1", 4013);
            set_int(&listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, 16).unwrap();
            let addr = SocketAddrV4::new(LOCALHOST, 4013);
            // The first one fetches the cookie that the others use.
            for _ in 0..2 {
                let socket = tcp(addr.into(), SockFlag::empty());
                assert_eq!(fast_open(&socket, addr, b"hello"), Ok(5));
                receive(&listener);
            }
            let socket = tcp(addr.into(), SockFlag::empty());
            set_int(&socket, libc::IPPROTO_TCP, libc::TCP_FASTOPEN_CONNECT, 1).unwrap();
            // With a cookie this sends nothing yet.
            connect_to(&socket, addr.into()).unwrap();
            let mut stream = TcpStream::from(socket);
            stream.write_all(b"hello").unwrap();
            receive(&listener);
        });
        let events = trace.stop();
        assert_eq!(
            events.names_at(4013),
            ["attempt", "established"].repeat(3),
            "{:#?}",
            events.at(4013)
        );
        events.assert_whole();
    }
}

fn receive(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
}

#[test]
fn a_multipath_connection_is_one_attempt() {
    need!(multipath().map_err(|errno| format!("the kernel has no MPTCP ({errno})")));
    for backend in backends!() {
        // A new namespace for each backend, because the ports of the previous one may not be free yet.
        let namespace = need!(Namespace::new());
        let trace = Trace::start(&namespace, backend, &["--accept"]);
        let sport = namespace.enter(|| {
            let listener = multipath_listener(4014);
            let addr = SocketAddr::from((LOCALHOST, 4014));
            let socket = multipath().unwrap();
            connect_to(&socket, addr).unwrap();
            drop(accept(&listener).unwrap());
            let name: SockaddrStorage = getsockname(socket.as_raw_fd()).unwrap();
            name.as_sockaddr_in().unwrap().port()
        });
        let events = trace.stop();
        let mut names = events.names_at(4014);
        names.sort_unstable();
        assert_eq!(
            names,
            ["accepted", "attempt", "established"],
            "{:#?}",
            events.at(4014)
        );
        let established = events.named("established")[0];
        assert_eq!(established["pid"], std::process::id());
        assert_eq!(established["sport"], sport, "{established}");
        events.assert_whole();
    }
}

#[test]
fn a_subflow_that_the_kernel_adds_names_no_kernel_thread() {
    need!(multipath().map_err(|errno| format!("the kernel has no MPTCP ({errno})")));
    for backend in backends!() {
        let namespace = need!(Namespace::new());
        need!(namespace.try_run("ip mptcp limits set subflow 2 add_addr_accepted 2"));
        need!(namespace.try_run("ip mptcp endpoint add 127.0.0.2 dev lo subflow"));
        let trace = Trace::start(&namespace, backend, &["-p", "4017"]);
        let sockets = namespace.enter(|| multipath_connected(4017));
        let subflow = trace.wait("an attempt of the second address", |event| {
            event["event"] == "attempt" && event["saddr"] == "127.0.0.2"
        });
        for key in ["pid", "tid", "uid", "comm", "process", "cgroup_id"] {
            assert!(subflow[key].is_null(), "{subflow}");
        }
        drop(sockets);
        trace.stop().assert_whole();
    }
}

#[test]
fn a_connection_made_by_io_uring_is_one_attempt_of_its_process() {
    let namespace = need!(Namespace::new());
    need!(
        super::uring::Ring::new().map_err(|error| format!("the kernel has no io_uring ({error})"))
    );
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        namespace.enter(|| {
            let mut ring = super::uring::Ring::new().unwrap();
            let _listener = listen("127.0.0.1", 4015);
            for (port, result) in [(4015, 0), (4016, -libc::ECONNREFUSED)] {
                let addr = SocketAddrV4::new(LOCALHOST, port);
                let socket = tcp(addr.into(), SockFlag::empty());
                assert_eq!(ring.connect(&socket, addr), result);
            }
        });
        let events = trace.stop();
        for (port, fate) in [(4015, "established"), (4016, "failed")] {
            let (attempt, _) = events.pair_at(port, fate);
            assert_eq!(attempt["dport"], port);
        }
        events.assert_whole();
    }
}

#[test]
fn a_socket_of_another_protocol_causes_no_event() {
    let namespace = need!(Namespace::new());
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["--accept", "--close"]);
        namespace.enter(|| {
            let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
            udp.connect("127.0.0.1:4017").unwrap();
            let unix = socket(
                AddressFamily::Unix,
                SockType::Stream,
                SockFlag::empty(),
                None,
            );
            drop(unix.unwrap());
        });
        let events = trace.stop();
        assert!(events.all.is_empty(), "{:#?}", events.all);
    }
}
