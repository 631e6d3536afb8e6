//! Comparison with bcc's libbpf-tools on the same connections.
//!
//! Everything they report is reported by connect-trace too, with the same values. What they miss is
//! listed, and is at least the failures.

use std::collections::HashMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::FromRawFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::SockFlag;
use nix::unistd::Pid;
use serde_json::Value;

use super::sockets::{connect_to, tcp};
use super::{Events, Trace, backends};
use crate::common::{Namespace, Pair, Reaped, SERVER4, SERVER6, need, say, wait_within};

/// A line of a tool, by the names of its columns.
type Row = HashMap<String, String>;

/// A tool of bcc that runs.
struct Peer {
    name: &'static str,
    child: Reaped,
}

impl Peer {
    /// Starts it and waits until it waits for events.
    fn start(words: &'static str) -> Result<Self, String> {
        let mut split = words.split(' ');
        let name = split.next().unwrap();
        let child = Command::new(name)
            .args(split)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{name} of libbpf-tools: {error}"))?;
        let mut peer = Self {
            name,
            child: Reaped(child),
        };
        let path = format!("/proc/{}/syscall", peer.child.0.id());
        let ready = wait_within("a tool of bcc", Duration::from_secs(60), || {
            if peer.child.0.try_wait().unwrap().is_some() {
                return Some(false);
            }
            let call = fs::read_to_string(&path).unwrap_or_default();
            // In these system calls they wait for events and for nothing else.
            let number = call.split(' ').next().and_then(|word| word.parse().ok());
            number.is_some_and(is_epoll_wait).then_some(true)
        });
        if ready {
            return Ok(peer);
        }
        let mut why = String::new();
        let stderr = peer.child.0.stderr.as_mut().unwrap();
        stderr.read_to_string(&mut why).unwrap();
        let why = why.lines().last().unwrap_or_default();
        Err(format!("{name} of libbpf-tools does not run here: {why}"))
    }

    /// Ends it and returns its lines about this process.
    fn stop(mut self, pid: u32) -> Vec<Row> {
        let id = Pid::from_raw(self.child.0.id().cast_signed());
        kill(id, Signal::SIGINT).unwrap();
        let mut text = String::new();
        let stdout = self.child.0.stdout.as_mut().unwrap();
        stdout.read_to_string(&mut text).unwrap();
        let mut lines = text.lines().map(|line| line.split_whitespace());
        let header: Vec<&str> = lines
            .find(|words| words.clone().any(|word| word == "PID"))
            .unwrap_or_else(|| panic!("{} has no header: {text}", self.name))
            .collect();
        let rows = lines.map(|words| {
            let pairs = header.iter().zip(words);
            pairs
                .map(|(name, value)| ((*name).to_owned(), value.to_owned()))
                .collect::<Row>()
        });
        let own = pid.to_string();
        rows.filter(|row| row.get("PID") == Some(&own)).collect()
    }
}

/// An address as connect-trace writes it.
fn address(text: &str) -> String {
    text.trim_start_matches("::ffff:").to_owned()
}

/// Whether a column has the value of a key, if the tool has the column.
fn agrees(row: &Row, column: &str, value: &Value) -> bool {
    let Some(found) = row.get(column) else {
        return true;
    };
    match value {
        // Some tools truncate the name.
        Value::String(name) if column == "COMM" => name.starts_with(found.as_str()),
        Value::String(text) => address(found) == *text,
        other => found.parse::<Value>().is_ok_and(|found| found == *other),
    }
}

fn agrees_in(row: &Row, event: &Value, columns: &[(&str, &str)]) -> bool {
    columns
        .iter()
        .all(|(column, key)| agrees(row, column, &event[*key]))
}

/// A column of milliseconds, as microseconds.
fn micros(row: &Row, columns: &[&str]) -> f64 {
    let text = columns.iter().find_map(|column| row.get(*column)).unwrap();
    text.parse::<f64>().unwrap() * 1000.0
}

/// Clocks are read at different moments, and an emulated machine may be busy between them.
fn is_near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 30_000.0_f64.max(one * 0.5)
}

/// Makes the connections that all tools have to show: one of each kind.
fn script(pair: &Pair) {
    let unreachable: SocketAddr = "198.51.100.1:4704".parse().unwrap();
    for (port, ip) in [(4701, SERVER4.into()), (4702, SERVER6.into())] {
        let addr = SocketAddr::new(ip, port);
        let listener = pair
            .server
            .enter(|| std::net::TcpListener::bind(addr).unwrap());
        pair.client.enter(|| {
            let mut client = TcpStream::connect(addr).unwrap();
            let (mut server, _) = listener.accept().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| server.write_all(&[1; 300_000]).unwrap());
                client.read_exact(&mut [0; 300_000]).unwrap();
            });
            client.write_all(&[2; 5000]).unwrap();
            server.read_exact(&mut [0; 5000]).unwrap();
            drop(client);
            assert_eq!(server.read(&mut [0]).unwrap(), 0);
        });
    }
    pair.client.enter(|| {
        for addr in [(SERVER4, 4703).into(), (SERVER6, 4703).into(), unreachable] {
            let socket = tcp(addr, SockFlag::empty());
            connect_to(&socket, addr).expect_err("nobody listens");
        }
    });
}

/// Finds the event that says what a row says.
fn find<'e>(tool: &str, row: &Row, events: &[&'e Value], columns: &[(&str, &str)]) -> &'e Value {
    events
        .iter()
        .find(|event| agrees_in(row, event, columns))
        .unwrap_or_else(|| panic!("{tool} has {row:?}, which is not in {events:#?}"))
}

/// Prints which of our events a tool has no line for.
fn list_missed(tool: &str, rows: usize, missed: &[&&Value]) {
    let mut text = format!("\n{tool}: {rows} lines, all of them seen; it misses");
    for event in missed {
        text += &format!(
            "\n  {} {} {} -> {} {} error {}",
            event["event"],
            event["pid"],
            event["saddr"],
            event["daddr"],
            event["dport"],
            event["error"]
        );
    }
    if missed.is_empty() {
        text += " nothing";
    }
    say(&text);
}

const OUTGOING: [(&str, &str); 7] = [
    ("COMM", "comm"),
    ("IP", "ip_version"),
    ("SADDR", "saddr"),
    ("SPORT", "sport"),
    ("LPORT", "sport"),
    ("DADDR", "daddr"),
    ("DPORT", "dport"),
];

fn compare(connects: &[Row], latencies: &[Row], lives: &[Row], steps: &[Row], events: &Events) {
    let attempts = events.named("attempt");
    for row in connects {
        find("tcpconnect", row, &attempts, &OUTGOING);
    }
    let missed: Vec<_> = attempts
        .iter()
        .filter(|event| !connects.iter().any(|row| agrees_in(row, event, &OUTGOING)))
        .collect();
    assert!(connects.len() >= 4, "{connects:#?}");
    list_missed("tcpconnect", connects.len(), &missed);

    let mut fates = events.named("established");
    fates.extend(events.named("failed"));
    for row in latencies {
        let event = find("tcpconnlat", row, &fates, &OUTGOING);
        let (ours, theirs) = (
            event["latency_us"].as_f64().unwrap(),
            micros(row, &["LAT(ms)"]),
        );
        assert!(is_near(ours, theirs), "{row:?} {event}");
    }
    let missed: Vec<_> = fates
        .iter()
        .filter(|event| !latencies.iter().any(|row| agrees_in(row, event, &OUTGOING)))
        .collect();
    assert!(latencies.len() >= 2, "{latencies:#?}");
    list_missed("tcpconnlat", latencies.len(), &missed);

    compare_lives(lives, events);
    compare_steps(steps, events);
}

/// tcplife has local and remote ends, and lines for connections that never were.
fn compare_lives(lives: &[Row], events: &Events) {
    let columns = |event: &Value| {
        let (local, remote) = match event["direction"].as_str() {
            Some("in") => (("daddr", "dport"), ("saddr", "sport")),
            _ => (("saddr", "sport"), ("daddr", "dport")),
        };
        let mut columns = vec![
            ("LADDR", local.0),
            ("LPORT", local.1),
            ("RADDR", remote.0),
            ("RPORT", remote.1),
        ];
        // The tracepoint backend can't know who accepts.
        if !event["comm"].is_null() {
            columns.push(("COMM", "comm"));
        }
        columns
    };
    let mut ends = events.named("closed");
    ends.extend(events.named("failed"));
    for row in lives {
        let event = ends
            .iter()
            .find(|event| agrees_in(row, event, &columns(event)))
            .unwrap_or_else(|| panic!("tcplife has {row:?}, which is not in {ends:#?}"));
        if event["event"] == "closed" {
            for (column, key) in [("TX_KB", "tx_bytes"), ("RX_KB", "rx_bytes")] {
                let theirs = row[column].parse::<f64>().unwrap();
                let ours = event[key].as_f64().unwrap() / 1024.0;
                // Theirs includes SYN and FIN, and is rounded.
                assert!((ours - theirs).abs() <= 1.0, "{column}: {row:?} {event}");
            }
            let theirs = micros(row, &["MS"]);
            assert!(
                is_near(event["duration_us"].as_f64().unwrap(), theirs),
                "{row:?} {event}"
            );
        }
    }
    let missed: Vec<_> = ends
        .iter()
        .filter(|event| {
            !lives
                .iter()
                .any(|row| agrees_in(row, event, &columns(event)))
        })
        .collect();
    assert!(lives.len() >= 4, "{lives:#?}");
    list_missed("tcplife", lives.len(), &missed);
}

/// tcptracer has a letter for what happened: connect, accept, end.
fn compare_steps(steps: &[Row], events: &Events) {
    let mut missed: Vec<&&Value> = Vec::new();
    let of = |name: &str| events.named(name);
    let (established, accepted) = (of("established"), of("accepted"));
    let closed = of("closed");
    let columns = |row: &Row, event: &Value| -> [(&'static str, &'static str); 6] {
        // For an accepted connection and its end, the columns may have source and destination exchanged.
        let is_turned = event["direction"] == "in"
            && !(agrees(row, "SADDR", &event["saddr"]) && agrees(row, "SPORT", &event["sport"]));
        let (saddr, sport, daddr, dport) = if is_turned {
            ("daddr", "dport", "saddr", "sport")
        } else {
            ("saddr", "sport", "daddr", "dport")
        };
        [
            ("COMM", "comm"),
            ("IP", "ip_version"),
            ("SADDR", saddr),
            ("SPORT", sport),
            ("DADDR", daddr),
            ("DPORT", dport),
        ]
    };
    let candidates = |letter: &str| match letter {
        "C" => &established,
        "A" => &accepted,
        _ => &closed,
    };
    for row in steps {
        let events = candidates(&row["T"]);
        let is_there = events
            .iter()
            .any(|event| agrees_in(row, event, &columns(row, event)));
        assert!(
            is_there,
            "tcptracer has {row:?}, which is not in {events:#?}"
        );
    }
    for (letter, events) in [("C", &established), ("A", &accepted), ("X", &closed)] {
        let is_missed = |event: &&&Value| {
            !steps
                .iter()
                .any(|row| row["T"] == letter && agrees_in(row, event, &columns(row, event)))
        };
        missed.extend(events.iter().filter(is_missed));
    }
    let failed = of("failed");
    missed.extend(failed.iter());
    assert!(steps.len() >= 4, "{steps:#?}");
    list_missed("tcptracer", steps.len(), &missed);
}

#[test]
fn everything_that_bccs_tools_see_is_seen_with_the_same_values() {
    let pair = need!(Pair::new());
    for backend in backends!() {
        let mut peers = Vec::new();
        for words in ["tcpconnect", "tcpconnlat -L", "tcplife -w", "tcptracer"] {
            peers.push(need!(Peer::start(words)));
        }
        let trace = Trace::everywhere(&pair.client, backend, &["--accept", "--close"]);
        script(&pair);
        // Both ends of both connections, which are in two namespaces.
        let is_ours = |event: &Value| {
            let port = event["dport"].as_u64();
            event["pid"] == std::process::id()
                || port.is_some_and(|port| (4701..=4704).contains(&port))
        };
        let mut seen = 0;
        trace.tool.json("four ends", |event| {
            seen += usize::from(event["event"] == "closed" && is_ours(event));
            seen == 4
        });
        let output = trace.tool.stop();
        let summary = output.summary();
        let mut all = output.json();
        all.retain(is_ours);
        let events = Events { all, summary };
        let rows: Vec<Vec<Row>> = peers
            .into_iter()
            .map(|peer| peer.stop(std::process::id()))
            .collect();
        if *backend == "tracepoint" {
            // It names no source port at the attempt and no process at the accept, and sees no failure
            // before SYN_SENT. So only the ends of connections are compared.
            compare_lives(&rows[2], &events);
            continue;
        }
        compare(&rows[0], &rows[1], &rows[2], &rows[3], &events);
    }
}

/// Counts state changes in this thread, as `perf stat -e sock:inet_sock_set_state` does.
fn count_state_changes() -> Result<fs::File, String> {
    let path = "/sys/kernel/tracing/events/sock/inet_sock_set_state/id";
    let id = fs::read_to_string(path).map_err(|error| format!("no tracefs ({path}: {error})"))?;
    let attr = libbpf_sys::perf_event_attr {
        type_: libbpf_sys::PERF_TYPE_TRACEPOINT,
        size: size_of::<libbpf_sys::perf_event_attr>() as u32,
        config: id.trim().parse().unwrap(),
        ..Default::default()
    };
    let (this_thread, every_cpu, no_group) = (0, -1, -1);
    // SAFETY: the attributes outlive the call and say their size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            this_thread,
            every_cpu,
            no_group,
            libc::c_ulong::from(libbpf_sys::PERF_FLAG_FD_CLOEXEC),
        )
    };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { fs::File::from_raw_fd(fd as i32) })
}

#[test]
fn perf_events_of_other_programs_still_arrive() {
    let namespace = need!(Namespace::new());
    let connects = || {
        let mut counter = count_state_changes()?;
        for _ in 0..10 {
            TcpStream::connect("127.0.0.1:4509").expect_err("nobody listens");
        }
        let mut count = [0; 8];
        counter.read_exact(&mut count).unwrap();
        Ok::<_, String>(u64::from_ne_bytes(count))
    };
    // Ten connects, each from CLOSE to SYN_SENT and back.
    assert!(need!(namespace.enter(connects)) >= 20);
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        assert!(namespace.enter(connects).unwrap() >= 20);
        trace.stop().assert_whole();
    }
}

fn is_epoll_wait(number: i64) -> bool {
    #[cfg(target_arch = "x86_64")]
    if number == libc::SYS_epoll_wait {
        return true;
    }
    number == libc::SYS_epoll_pwait
}
