//! Every attempt has one outcome, or is counted as lost; no table fills up.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use super::sockets::reset_on_close;
use super::{Trace, backends, is_guest};
use crate::common::{Namespace, Tool, need, try_run, wait_for};

const LISTENING: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4501);
const REFUSING: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 4502);

/// A server that accepts connections and closes them at once, until it is dropped.
struct Server {
    stop: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn new() -> Self {
        let listener = TcpListener::bind(LISTENING).unwrap();
        // The longest backlog that the kernel allows, so that no SYN is dropped.
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::MAXALLOWABLE).unwrap();
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&stop);
        let accepted = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&accepted);
        let thread = thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(20_u8));
                while let Ok(stream) = listener.accept() {
                    count.fetch_add(1, Ordering::Relaxed);
                    drop(stream);
                }
            }
        });
        Self {
            stop,
            accepted,
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Connects in many threads at once. Every other connect is to a port on which nobody listens.
fn storm(threads: usize, connects: usize) {
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..threads {
            let work = || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= connects {
                        break;
                    }
                    let listens = number.is_multiple_of(2);
                    let stream = TcpStream::connect(if listens { LISTENING } else { REFUSING });
                    assert_eq!(stream.is_ok(), listens, "{stream:?}");
                    if let Ok(stream) = stream {
                        reset_on_close(&stream);
                    }
                }
            };
            thread::Builder::new()
                .stack_size(64 << 10)
                .spawn_scoped(scope, work)
                .unwrap();
        }
    });
}

#[test]
fn ten_thousand_connects_of_256_threads_are_all_reported_or_counted() {
    let namespace = need!(Namespace::new());
    let server = namespace.enter(Server::new);
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &["-p", "4501,4502"]);
        namespace.enter(|| storm(256, 10_000));
        let events = trace.stop();
        let attempts = events.count("attempt");
        let lost = usize::try_from(events.summary["lost"].as_u64().unwrap()).unwrap();
        assert_eq!(attempts + lost, 10_000, "{}", events.summary);
        let (established, failed) = (events.count("established"), events.count("failed"));
        assert_eq!(established + failed, attempts, "{}", events.summary);
        for event in events.named("failed") {
            assert_eq!(event["error"], "ECONNREFUSED", "{event}");
            assert!(event["sport"].is_u64(), "{event}");
        }
        for event in events.named("established") {
            assert_eq!(event["dport"], LISTENING.port(), "{event}");
        }
        if lost == 0 {
            assert_eq!(established, 5_000);
        }
    }
    drop(server);
}

#[test]
fn a_storm_with_accepts_and_ends_is_reported_or_counted() {
    let namespace = need!(Namespace::new());
    let server = namespace.enter(Server::new);
    for backend in backends!() {
        let trace = Trace::start(
            &namespace,
            backend,
            &["-p", "4501,4502", "--accept", "--close"],
        );
        let before = server.accepted.load(Ordering::Relaxed);
        namespace.enter(|| storm(32, 1000));
        let accepted = || server.accepted.load(Ordering::Relaxed) - before;
        let expected = || {
            let count = accepted();
            [
                ("attempt", 1000),
                ("established", 500),
                ("failed", 500),
                ("accepted", count),
                ("closed", 500 + count),
            ]
        };
        // The server may be slow to accept. A line that is lost never comes. And if a RST overtakes the ACK
        // before it, the connection ends before the server has it.
        let mut last = (0, Instant::now());
        wait_for("all accepts and ends, or the last of them", || {
            let lines = trace.tool.lines().len();
            if lines != last.0 {
                last = (lines, Instant::now());
            }
            (lines == 3500 || last.1.elapsed() > Duration::from_secs(10)).then_some(())
        });
        assert!((450..=500).contains(&accepted()), "{}", accepted());
        let events = trace.stop();
        let missing = expected()
            .into_iter()
            .map(|(name, count)| count.checked_sub(events.count(name)))
            .sum::<Option<usize>>()
            .unwrap_or_else(|| panic!("more than there were: {}", events.summary));
        // If its first event is lost, a connection has no other: that makes three missing at most.
        let lost = usize::try_from(events.summary["lost"].as_u64().unwrap()).unwrap();
        assert!(
            lost <= 10 && missing <= 3 * lost,
            "{missing} missing: {}",
            events.summary
        );
        for event in events.named("closed") {
            assert_eq!(event["tx_bytes"], 0, "{event}");
            assert_eq!(event["rx_bytes"], 0, "{event}");
        }
    }
    drop(server);
}

/// How many entries there are in the tool's tables of connections and calls. An error if it has no tables,
/// because entries are in socket storage.
fn table_entries(tool: &Tool) -> Result<usize, String> {
    let mut entries = 0;
    let mut tables = 0;
    for fd in fs::read_dir(format!("/proc/{}/fdinfo", tool.pid())).unwrap() {
        let text = fs::read_to_string(fd.unwrap().path()).unwrap();
        let Some(id) = text.lines().find_map(|line| line.strip_prefix("map_id:")) else {
            continue;
        };
        let map = try_run(&format!("bpftool -j map show id {id}"))?;
        let map: Value = serde_json::from_str(&map).unwrap();
        if map["name"] == "connections" || map["name"] == "calls" {
            let dump = try_run(&format!("bpftool -j map dump id {id}"))?;
            let dump: Value = serde_json::from_str(&dump).unwrap();
            entries += dump.as_array().unwrap().len();
            tables += 1;
        }
    }
    if tables > 0 {
        Ok(entries)
    } else {
        Err("the tool has no table".to_owned())
    }
}

#[test]
fn no_entry_is_left_behind_and_the_tables_never_fill_up() {
    let namespace = need!(Namespace::new());
    namespace.run("ip route add unreachable 192.0.2.1");
    // More than twice as many as the table holds without socket storage. On an emulated machine that
    // takes too long: there, some more than it holds with socket storage.
    let connects = if is_guest() { 3_000 } else { 40_000 };
    // Room for all events, however long a busy machine keeps their reader waiting.
    let buffer = if is_guest() { "4194304" } else { "67108864" };
    // Nobody else connects there: the buffer is for the events of this test alone.
    let host = [127, 66, 45, 4];
    let refusing = SocketAddr::from((host, 4504));
    for backend in backends!() {
        let hosts = "127.66.45.4,192.0.2.1";
        let options = ["--buffer-size", buffer, "--dst", hosts];
        let trace = Trace::everywhere(&namespace, backend, &options);
        namespace.enter(|| {
            for _ in 0..connects {
                TcpStream::connect(refusing).expect_err("nobody listens");
            }
            for _ in 0..100 {
                TcpStream::connect("192.0.2.1:1").expect_err("unreachable");
            }
            TcpStream::connect((Ipv4Addr::from(host), 4503)).expect_err("nobody listens");
        });
        trace.wait_for("failed", 4503);
        // Not 0, because other processes of this machine may be connecting. Without bpftool, only the
        // events are checked.
        if let Ok(entries) = table_entries(&trace.tool) {
            assert!(entries < 100, "{entries} entries");
        }
        let events = trace.stop();
        assert_eq!(events.at(refusing.port()).len(), 2 * connects);
        events.pair_at(4503, "failed");
        events.assert_whole();
    }
}
