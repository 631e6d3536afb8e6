//! Attempts that are pending when the tool starts or ends, and very many of them.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sys::socket::SockFlag;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, Uid, fork, pipe2, read, setuid, write};

use super::sockets::{
    Blackhole, connect_to, connected, connecting, listen, most_files, set_int, tcp,
};
use super::{Trace, backends};
use crate::accept::{NOBODY, segment, send, with_neighbour};
use crate::common::frames::SYN;
use crate::common::{Pair, is_guest, need, release, wait_for};
use crate::flows::tcp_info;

/// The state of a socket that has sent a SYN and received one.
const TCP_SYN_RECV: u8 = 3;

#[test]
fn an_attempt_that_is_pending_at_the_start_is_reported_once_and_has_its_fate() {
    let blackhole = need!(Blackhole::new());
    for backend in backends!() {
        let (first, second, other) = blackhole.namespace.enter(|| {
            (
                connecting(Blackhole::at(4601)),
                connecting(Blackhole::at(4602)),
                connecting(Blackhole::at(4603)),
            )
        });
        let again = first.try_clone().unwrap();
        std::thread::sleep(Duration::from_millis(300));
        let trace = Trace::start(&blackhole.namespace, backend, &["-p", "4601,4602"]);
        drop((first, again));
        // It fails when the next SYN would be due.
        set_int(&second, libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 1).unwrap();
        trace.wait_for("failed", 4602);
        let events = trace.stop();
        let (attempt, failed) = events.pair_at(4601, "failed");
        for event in [attempt, failed] {
            assert_eq!(event["pid"], std::process::id(), "{event}");
            assert_eq!(event["uid"], 0, "{event}");
            assert!(event["tid"].is_null(), "{event}");
            assert!(event["comm"].is_string(), "{event}");
            assert!(event["cgroup_id"].is_u64(), "{event}");
            assert!(event["sport"].is_u64(), "{event}");
            assert_eq!(event["saddr"], "10.99.0.1", "{event}");
        }
        assert_eq!(failed["given_up"], true, "{failed}");
        assert!(failed["latency_us"].as_u64() > Some(298_000), "{failed}");
        let (_, failed) = events.pair_at(4602, "failed");
        assert_eq!(failed["error"], "ETIMEDOUT", "{failed}");
        // The filter applies to them as well.
        assert!(events.at(4603).is_empty(), "{:#?}", events.at(4603));
        assert_eq!(events.summary["pending"], 0, "{}", events.summary);
        events.assert_whole();
        drop((second, other));
    }
}

#[test]
fn an_attempt_that_is_pending_at_the_end_is_reported_and_no_other() {
    let blackhole = need!(Blackhole::new());
    for (backend, options, names) in backends!().iter().flat_map(|backend| {
        let all: &[&str] = &["attempt", "pending"];
        // A filter on the source port has to wait until that is chosen, but not for the outcome.
        let cases = [
            (&["-p", "4611-4619"][..], all),
            (&["-p", "4611-4619", "--sport", "1024-65535"], all),
            (&["-p", "4611-4619", "--failed"], &[]),
        ];
        cases.map(|(options, names)| (*backend, options, names))
    }) {
        let old = blackhole
            .namespace
            .enter(|| connecting(Blackhole::at(4611)));
        let trace = Trace::start(&blackhole.namespace, backend, options);
        let new = blackhole.namespace.enter(|| {
            drop(connecting(Blackhole::at(4613)));
            let _listener = listen("127.0.0.1", 4614);
            TcpStream::connect("127.0.0.1:4614").unwrap();
            connecting(Blackhole::at(4612))
        });
        std::thread::sleep(Duration::from_millis(20));
        let events = trace.stop();
        for port in [4611, 4612] {
            assert_eq!(
                events.names_at(port),
                names,
                "{options:?} {:#?}",
                events.all
            );
        }
        if !names.is_empty() {
            let pending = events.at(4612)[1];
            assert!(pending["latency_us"].as_u64() > Some(20_000), "{pending}");
            assert_eq!(pending["pid"], std::process::id(), "{pending}");
            let fates = ["established", "failed", "pending"].map(|name| events.count(name));
            assert_eq!(fates, [1, 1, 2], "{:#?}", events.all);
            assert_eq!(events.count("attempt"), 4, "{:#?}", events.all);
        }
        assert_eq!(events.summary["pending"], 2, "{}", events.summary);
        events.assert_whole();
        drop((old, new));
    }
}

#[test]
fn a_simultaneous_open_is_reported_as_pending_with_its_port() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    for backend in backends!() {
        for options in [
            &["-p", "4651"][..],
            &["-p", "4651", "--sport", "1024-65535"],
        ] {
            let trace = Trace::start(&pair.server, backend, options);
            let waiting = pair.server.enter(|| connecting((NOBODY, 4651).into()));
            let waiting = TcpStream::from(waiting);
            let sport = waiting.local_addr().unwrap().port();
            send(&pair, &segment(&pair, NOBODY, SYN, (4651, sport), 77, 0));
            wait_for("the SYN of the peer", || {
                (tcp_info(&waiting)[0] == TCP_SYN_RECV).then_some(())
            });
            let events = trace.stop();
            let (_, pending) = events.pair_at(4651, "pending");
            assert_eq!(pending["sport"], sport, "{options:?} {pending}");
            events.assert_whole();
        }
    }
}

#[test]
fn totals_have_all_attempts_and_their_outcomes_by_process_and_destination() {
    let blackhole = need!(Blackhole::new());
    for backend in backends!() {
        let options = [
            "--summary",
            "-p",
            "4631-4634",
            "--host",
            "10.99.0.2,127.0.0.1",
        ];
        let trace = Trace::start(&blackhole.namespace, backend, &options);
        let waiting = blackhole.namespace.enter(|| {
            let _listener = listen("127.0.0.1", 4631);
            for _ in 0..3 {
                TcpStream::connect("127.0.0.1:4631").unwrap();
                TcpStream::connect("127.0.0.1:4632").expect_err("nobody listens");
            }
            drop(connecting(Blackhole::at(4633)));
            connecting(Blackhole::at(4634))
        });
        let output = trace.tool.stop();
        let rows = output.events("connect_total");
        let process = std::fs::read_to_string("/proc/self/comm").unwrap();
        let found: Vec<_> = rows
            .iter()
            .map(|row| {
                assert_eq!(row["process"], process.trim_end(), "{row}");
                let counts = ["attempts", "established", "failed", "given_up", "pending"]
                    .map(|key| row[key].as_u64().unwrap());
                (row["dport"].as_u64().unwrap(), counts)
            })
            .collect();
        let expected = [
            (4632, [3, 0, 3, 0, 0]),
            (4633, [1, 0, 1, 1, 0]),
            (4631, [3, 3, 0, 0, 0]),
            (4634, [1, 0, 0, 0, 1]),
        ];
        assert_eq!(found, expected, "{rows:#?}");
        let errors = serde_json::json!([{"error": "ECONNREFUSED", "count": 3}]);
        assert_eq!(rows[0]["errors"], errors);
        let summary = output.summary();
        assert_eq!(summary["matched"], 16, "{summary}");
        assert_eq!(summary["emitted"], 16, "{summary}");
        drop(waiting);
    }
}

/// Processes of the user nobody that connect to where nothing answers, until this is dropped.
struct Crowd {
    children: Vec<Pid>,
    until: Option<OwnedFd>,
}

impl Crowd {
    /// Starts this number of connects, in as many processes as the limit on open files requires.
    fn new(count: usize) -> Result<Self, String> {
        let each = most_files().min(20_000) - 1000;
        let (ready, report) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let (wait, until) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut crowd = Self {
            children: Vec::new(),
            until: Some(until),
        };
        let mut left = count;
        while left > 0 {
            let part = left.min(each);
            left -= part;
            // Each has its own destination, so that there are enough source ports. Before Linux
            // 5.14 the lowest address of a network was a broadcast address.
            let addr = SocketAddr::from((
                [10, 99, 1, u8::try_from(crowd.children.len() + 1).unwrap()],
                4621,
            ));
            // SAFETY: the child makes system calls, and allocates as its only thread.
            match unsafe { fork() }.unwrap() {
                ForkResult::Child => crowd_member(addr, part, &report, &wait),
                ForkResult::Parent { child } => crowd.children.push(child),
            }
        }
        drop(report);
        let mut done = 0;
        while done < crowd.children.len() {
            let said = read(&ready, &mut [0; 16]).unwrap();
            if said == 0 {
                let why = crowd.end().expect("one has failed");
                return Err(format!("not all connects could be made: {why}"));
            }
            done += said;
        }
        Ok(crowd)
    }

    /// Ends all of them; returns why one could not make its connects.
    fn end(&mut self) -> Option<Errno> {
        self.until = None;
        let mut error = None;
        for child in self.children.drain(..) {
            if let Ok(WaitStatus::Exited(_, status @ 1..)) = waitpid(child, None) {
                error = Some(Errno::from_raw(status));
            }
        }
        error
    }
}

/// Connects, reports that through one pipe, and closes its sockets when the other pipe is closed.
fn crowd_member(addr: SocketAddr, count: usize, report: &OwnedFd, until: &OwnedFd) -> ! {
    // The sockets of other tests must not stay open in here.
    for fd in (3..4096).filter(|fd| ![report, until].map(OwnedFd::as_raw_fd).contains(fd)) {
        // SAFETY: this process uses no other descriptor any more.
        unsafe { libc::close(fd) };
    }
    let work = || -> Result<Vec<OwnedFd>, Errno> {
        setuid(Uid::from_raw(65534))?;
        (0..count)
            .map(|number| {
                // Pauses, because the event buffers of tests that run at the same time are smaller.
                if number % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let socket = tcp(addr, SockFlag::SOCK_NONBLOCK);
                match connect_to(&socket, addr) {
                    Err(Errno::EINPROGRESS) => Ok(socket),
                    other => Err(other.err().unwrap_or(Errno::EISCONN)),
                }
            })
            .collect()
    };
    let status = match work() {
        Ok(sockets) => {
            let _ = write(report, b"1");
            let _ = read(until, &mut [0]);
            for (number, socket) in sockets.into_iter().enumerate() {
                if number % 50 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
                drop(socket);
            }
            0
        }
        Err(errno) => errno as i32,
    };
    // SAFETY: ends the child without touching what it shares with its parent.
    unsafe { libc::_exit(status) }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn many_pending_connects_do_not_hide_other_connects() {
    // Before Linux 5.11 a table holds 16,384. Guests take long for one connect.
    let count = match is_guest() {
        true if release() < (5, 11) => 17_000,
        true => 5_000,
        false => 100_000,
    };
    let blackhole = need!(Blackhole::new());
    with_room_for_a_crowd(&blackhole);
    for backend in backends!() {
        // Before the tool starts, and then once more while it runs.
        let old = need!(blackhole.namespace.enter(|| Crowd::new(200)));
        let options = ["-p", "4621-4623", "--buffer-size", "67108864"];
        let trace = Trace::everywhere(&blackhole.namespace, backend, &options);
        let crowd = need!(blackhole.namespace.enter(|| Crowd::new(count)));
        blackhole.namespace.enter(|| {
            let _listener = listen("127.0.0.1", 4622);
            TcpStream::connect("127.0.0.1:4622").unwrap();
            TcpStream::connect("127.0.0.1:4623").expect_err("nobody listens");
        });
        trace.wait_for("failed", 4623);
        // For each attempt that was reported, its end is reported too.
        drop(old);
        drop(crowd);
        let events = trace.stop();
        let (attempt, established) = events.pair_at(4622, "established");
        assert_eq!(attempt["pid"], std::process::id(), "{attempt}");
        let (attempt, failed) = events.pair_at(4623, "failed");
        assert_eq!(attempt["pid"], std::process::id(), "{attempt}");
        assert_eq!(failed["error"], "ECONNREFUSED", "{failed}");
        for fate in [established, failed] {
            // If it found no room in the table, its process is unknown.
            let whose = &fate["pid"];
            assert!(whose.is_null() || *whose == std::process::id(), "{fate}");
        }
        let attempts = events.count("attempt");
        let fates = ["established", "failed", "pending"].map(|name| events.count(name));
        let reported = (attempts, fates.iter().sum());
        assert_eq!(reported, (count + 202, count + 202), "{}", events.summary);
        events.assert_whole();
    }
}

/// Prepares for a crowd: its connects have enough source ports, and do not time out.
fn with_room_for_a_crowd(blackhole: &Blackhole) {
    blackhole
        .namespace
        .sysctl("ipv4/ip_local_port_range", "10000 65000");
    // On a loaded machine the connects wait for long. None may time out before its process closes it.
    blackhole.namespace.sysctl("ipv4/tcp_syn_retries", "60");
    for words in [
        "ip addr add 10.99.1.254/24 dev va",
        "ip link set va arp off",
    ] {
        blackhole.namespace.run(words);
    }
}

#[test]
fn more_pending_attempts_than_the_hash_map_holds_are_all_reported() {
    const COUNT: usize = 2_400;
    let blackhole = need!(Blackhole::new());
    with_room_for_a_crowd(&blackhole);
    for backend in backends!() {
        // Half of them before the tool starts.
        let old = need!(blackhole.namespace.enter(|| Crowd::new(COUNT / 2)));
        for options in [&["--sport", "10000-65000"][..], &["--failed"]] {
            let options = [&["-p", "4621", "--buffer-size", "67108864"], options].concat();
            let trace = Trace::start(&blackhole.namespace, backend, &options);
            let new = need!(blackhole.namespace.enter(|| Crowd::new(COUNT / 2)));
            let events = trace.stop();
            assert_eq!(events.summary["pending"], COUNT, "{}", events.summary);
            events.assert_whole();
            if !options.contains(&"--failed") {
                let ports = |name: &str| -> BTreeSet<u64> {
                    let of_kind = events.all.iter().filter(|event| event["event"] == name);
                    of_kind
                        .map(|event| event["sport"].as_u64().unwrap())
                        .collect()
                };
                let counts = ["attempt", "pending"].map(|name| events.count(name));
                assert_eq!(counts, [COUNT; 2], "{}", events.summary);
                assert_eq!(ports("pending").len(), COUNT);
                assert_eq!(ports("pending"), ports("attempt"));
            }
            drop(new);
        }
        drop(old);
    }
}

/// Fills the memory that a socket has for options, as any process can: with keys for other peers.
fn fill_options(socket: &OwnedFd) -> Result<(), String> {
    for peer in 0..u16::MAX {
        // struct tcp_md5sig: the peer's address, flags, prefix, length of the key, interface, key.
        let mut key = [0_u8; 216];
        key[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        key[4] = 10;
        key[5..7].copy_from_slice(&peer.to_be_bytes());
        key[130] = 1;
        // SAFETY: the key is valid for its length, and the descriptor is open.
        let ret = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_MD5SIG,
                key.as_ptr().cast(),
                size_of_val(&key) as u32,
            )
        };
        match Errno::result(ret) {
            Ok(_) => {}
            Err(Errno::ENOMEM) => return Ok(()),
            Err(errno) => return Err(format!("no keys: {errno}")),
        }
    }
    Err("there is room for all keys".to_owned())
}

#[test]
fn a_socket_with_full_option_memory_does_not_lose_the_end_of_another_connection() {
    let blackhole = need!(Blackhole::new());
    with_room_for_a_crowd(&blackhole);
    for backend in backends!() {
        let old = blackhole
            .namespace
            .enter(|| connected(&listen("127.0.0.1", 4641)));
        let options = ["--close", "-p", "4621,4641", "--buffer-size", "67108864"];
        let trace = Trace::start(&blackhole.namespace, backend, &options);
        // With these, the table is full, so that the next one needs the room of its socket.
        let crowd = need!(blackhole.namespace.enter(|| Crowd::new(2_100)));
        let waiting = blackhole.namespace.enter(|| {
            let socket = tcp(Blackhole::ADDR, SockFlag::SOCK_NONBLOCK);
            fill_options(&socket).map(|()| {
                let begun = connect_to(&socket, Blackhole::at(4641));
                assert_eq!(begun, Err(Errno::EINPROGRESS));
                socket
            })
        });
        let waiting = need!(waiting);
        drop(old);
        trace.wait_for("closed", 4641);
        drop(waiting);
        drop(crowd);
        let events = trace.stop();
        let names = events.names_at(4641);
        assert_eq!(
            names,
            ["attempt", "closed", "failed"],
            "{:#?}",
            events.at(4641)
        );
        events.assert_whole();
    }
}
