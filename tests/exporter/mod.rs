//! `exporter`: its figures are exact, its formats right, and its clients can do it no harm.

mod hostile;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::tool::{ENOUGH, PublicBinary, as_nobody, command_of};
use crate::common::{Namespace, Pair, SERVER4, Tool, command, need, wait_for};
use nix::sys::signal::Signal;

const OPEN_METRICS: &str = "Accept: application/openmetrics-text;version=1.0.0\r\n";

/// An exporter that serves in a namespace, at a port that the kernel chooses.
struct Exporter {
    tool: Tool,
    namespace: Namespace,
    addr: SocketAddr,
}

impl Exporter {
    fn start(namespace: &Namespace, args: &[&str]) -> Self {
        Self::listening(namespace, "127.0.0.1:0", args)
    }

    fn listening(namespace: &Namespace, listen: &str, args: &[&str]) -> Self {
        let args = [&["exporter", "--listen", listen], args].concat();
        Self::of(Tool::start_in(namespace, &args), namespace)
    }

    fn of(tool: Tool, namespace: &Namespace) -> Self {
        let (_, line) = tool.attached_line();
        let url = line.split("http://").nth(1).unwrap();
        let addr = url.split("/metrics").next().unwrap().parse().unwrap();
        Self {
            tool,
            namespace: namespace.clone(),
            addr,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = self
            .namespace
            .enter(|| TcpStream::connect(self.addr))
            .unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    /// Sends this, and reads until the server closes.
    fn exchange(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(&self, path: &str, fields: &str) -> (String, String) {
        let request = format!("GET {path} HTTP/1.1\r\n{fields}Connection: close\r\n\r\n");
        let mut stream = self.connect();
        stream.write_all(request.as_bytes()).unwrap();
        read_answer(&mut stream)
    }

    fn text(&self) -> String {
        self.get("/metrics", "").1
    }

    /// The samples by name and labels.
    fn samples(&self) -> BTreeMap<String, f64> {
        let text = self.text();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').unwrap();
                (name.to_owned(), value.parse().unwrap())
            })
            .collect()
    }

    /// Waits until these samples have these values.
    fn expect(&self, expected: &[(&str, f64)]) {
        let mut last = BTreeMap::new();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let samples = self.samples();
            if expected
                .iter()
                .all(|(name, value)| samples.get(*name) == Some(value))
            {
                return;
            }
            last.clone_from(&samples);
            assert!(
                Instant::now() < deadline,
                "{expected:#?}\n{:#?}",
                last.iter()
                    .filter(|(name, value)| !name.contains("_bucket") && **value != 0.0)
                    .collect::<Vec<_>>()
            );
            thread::sleep(Duration::from_millis(250));
        }
    }
}

/// Reads one answer: its head, and a body of the length that the head gives.
fn read_answer(stream: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let (_, len) = fields.find(|(name, _)| *name == "Content-Length").unwrap();
    let mut body = vec![0; len.parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn every_figure_is_exact() {
    let pair = need!(Pair::new());
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 80)))
        .unwrap();
    let exporter = Exporter::start(&pair.server, &["vs"]);
    pair.refused_connects((SERVER4, 81).into(), 3);
    for _ in 0..5 {
        let mut client = pair
            .client
            .enter(|| TcpStream::connect((SERVER4, 80)))
            .unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(&[0; 100]).unwrap();
        client.read_exact(&mut [0; 100]).unwrap();
        drop(client);
        assert_eq!(accepted.read(&mut [0]).unwrap(), 0);
    }
    pair.server.enter(|| {
        let error = TcpStream::connect((SERVER4, 82)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    exporter.expect(&[
        ("tcpinspect_syns_total{iface=\"vs\"}", 8.0),
        ("tcpinspect_attempts_total{fate=\"accepted\"}", 5.0),
        (
            "tcpinspect_attempts_total{fate=\"refused\",reason=\"no_listener\"}",
            3.0,
        ),
        ("tcpinspect_handshake_seconds_count", 5.0),
        ("tcpinspect_accept_wait_seconds_count", 5.0),
        (
            "tcpinspect_accept_queue_length{addr=\"10.77.0.2\",port=\"80\"}",
            0.0,
        ),
        (
            "tcpinspect_listener_drops_total{addr=\"10.77.0.2\",port=\"80\"}",
            0.0,
        ),
        ("tcpinspect_listeners", 2.0),
        (
            "tcpinspect_connects_failed_total{error=\"ECONNREFUSED\"}",
            1.0,
        ),
        ("tcpinspect_retransmits_total{kind=\"data\"}", 0.0),
        ("tcpinspect_listeners_cut", 0.0),
        ("tcpinspect_events_lost_total{collector=\"accept\"}", 0.0),
    ]);
    let samples = exporter.samples();
    let value = |name: &str| samples[name];
    // Connections of the exporter's clients are counted too.
    let closed = "tcpinspect_connections_closed_total{direction=\"in\",closed_by=\"remote\"}";
    assert!(value(closed) >= 5.0);
    assert!(value("tcpinspect_rtt_seconds_count") >= value(closed));
    assert!(value("tcpinspect_connection_bytes_total{way=\"sent\"}") >= 500.0);
    let connects = value("tcpinspect_connects_total");
    let established = value("tcpinspect_connects_established_total");
    assert_eq!(connects, established + 1.0);
    let handshakes = value("tcpinspect_handshake_seconds_sum");
    assert!(handshakes > 0.0 && handshakes < 5.0, "{handshakes}");
    for collector in ["syn", "listeners", "accept", "loss", "connect", "flows"] {
        assert_eq!(
            value(&format!(
                "tcpinspect_collector_up{{collector=\"{collector}\"}}"
            )),
            1.0
        );
    }
    assert!(value("process_resident_memory_bytes") > 1e6);
    assert!(!exporter.text().contains("10.77.0.1"), "a peer is named");

    let output = exporter.tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    assert!(output.stdout.is_empty());
    let summary = output.stderr.last().unwrap();
    assert!(summary.starts_with("summary: exporter: "), "{summary}");
}

#[test]
fn drops_at_a_full_queue_are_attempts_and_drops_of_the_listener() {
    let pair = need!(Pair::new());
    let addr = SocketAddr::from((SERVER4, 80));
    let _listener = pair.server.enter(|| crate::common::net::listener(addr, 1));
    let exporter = Exporter::start(&pair.server, &["vs", "--collect", "listeners,accept"]);
    let queue = "tcpinspect_accept_queue_length{addr=\"10.77.0.2\",port=\"80\"}";
    let connect = || TcpStream::connect(addr).unwrap();
    // The others come only after these: SYNs that come together all find room in the queue.
    let _waiting = pair.client.enter(|| [connect(), connect()]);
    wait_for("the queue is full", || {
        (exporter.samples()[queue] == 2.0).then_some(())
    });
    let clients = pair.client.enter(|| {
        let knock =
            |_| thread::spawn(move || TcpStream::connect_timeout(&addr, Duration::from_secs(3)));
        // Each in the namespace of the thread that starts it.
        (0..4).map(knock).collect::<Vec<_>>()
    });
    let dropped = "tcpinspect_attempts_total{fate=\"dropped\",reason=\"accept_queue_full\"}";
    let mut last = [0.0; 3];
    wait_for("attempts are dropped", || {
        let samples = exporter.samples();
        let drops = "tcpinspect_listener_drops_total{addr=\"10.77.0.2\",port=\"80\"}";
        let mut now = [drops, dropped, queue].map(|name| samples[name]);
        // A flood of another test may fill the backlog of a CPU, which packets pass before the
        // queue.
        let earlier = samples.get(&dropped.replace("accept_queue_full", "cpu_backlog"));
        let earlier = earlier.copied().unwrap_or_default();
        now[1] += earlier;
        if now != last {
            println!("drops, attempts dropped, queue: {now:?}");
            last = now;
        }
        (now[0] >= 4.0 && now[1] >= 4.0 && now[2] == 2.0).then_some(())
    });
    let max = "tcpinspect_accept_queue_max{addr=\"10.77.0.2\",port=\"80\"}";
    assert_eq!(exporter.samples()[max], 1.0);
    for client in clients {
        let _ = client.join().unwrap();
    }
}

#[test]
fn the_number_of_time_series_is_limited_and_what_is_cut_is_reported() {
    let namespace = need!(Namespace::new());
    let bind = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let mut listeners = namespace.enter(|| (1..=9).map(bind).collect::<Vec<_>>());
    let args = ["--collect", "listeners", "--max-listeners", "4"];
    let exporter = Exporter::start(&namespace, &args);
    let ports = || {
        let samples = exporter.samples();
        let names = samples
            .keys()
            .filter(|name| name.starts_with("tcpinspect_accept_queue_max"));
        names.cloned().collect::<Vec<_>>()
    };
    let before = ports();
    assert_eq!(before.len(), 5, "{before:?}");
    let other = "tcpinspect_accept_queue_max{addr=\"other\",port=\"other\"}";
    assert!(before.iter().any(|name| name == other));
    assert_eq!(exporter.samples()["tcpinspect_listeners_cut"], 6.0);
    // Listeners with metrics of their own keep them while they exist.
    listeners.extend(namespace.enter(|| (20..=29).map(bind).collect::<Vec<_>>()));
    thread::sleep(Duration::from_millis(300));
    assert_eq!(ports(), before);
    assert_eq!(exporter.samples()["tcpinspect_listeners"], 20.0);
}

#[test]
fn both_formats_are_what_prometheus_reads() {
    let namespace = need!(Namespace::new());
    let exporter = Exporter::start(&namespace, &["lo"]);
    let (head, text) = exporter.get("/metrics", "");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(
        head.contains("Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n"),
        "{head}"
    );
    assert!(!text.contains("# EOF"));
    let (head, open_metrics) = exporter.get("/metrics", OPEN_METRICS);
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n";
    assert!(head.contains(kind), "{head}");
    assert!(open_metrics.ends_with("\n# EOF\n"));
    // Each name is described once, and before its samples.
    for text in [&text, &open_metrics] {
        let types = text.lines().filter(|line| line.starts_with("# TYPE"));
        let mut names = types
            .map(|line| line.split(' ').nth(2).unwrap())
            .collect::<Vec<_>>();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(all > 25, "{all}");
    }
    let documented = include_str!("../../docs/exporter.md");
    for line in text.lines().filter(|line| line.starts_with("# TYPE")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(
            documented.contains(&format!("`{name}`")),
            "{name} is not documented"
        );
    }
    let (head, page) = exporter.get("/", "");
    assert!(head.contains("text/html") && page.contains("/metrics"));
    let (head, _) = exporter.get("/nothing", "");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
    let head = exporter.exchange(b"HEAD /metrics HTTP/1.0\r\n\r\n");
    assert!(
        head.starts_with("HTTP/1.1 200 OK") && head.ends_with("\r\n\r\n"),
        "{head}"
    );

    let promtool = Command::new("promtool").arg("--version").output();
    need!(promtool.map_err(|error| format!("promtool: {error}")));
    let mut check = Command::new("promtool");
    check
        .args(["check", "metrics"])
        .stdin(std::process::Stdio::piped());
    check
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped());
    let mut child = check.spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(
        (output.stdout.len(), output.stderr.len()),
        (0, 0),
        "{output:?}"
    );
}

#[test]
fn it_watches_another_namespace_and_serves_in_its_own() {
    let (own, watched) = (need!(Namespace::new()), need!(Namespace::new()));
    let path = watched.path();
    let args = [
        "--netns",
        &path,
        "lo",
        "--collect",
        "syn,listeners,loss,connect",
    ];
    let exporter = Exporter::start(&own, &args);
    let _listener = watched
        .enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 80)))
        .unwrap();
    watched
        .enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 80)))
        .unwrap();
    own.enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 9)))
        .unwrap_err();
    exporter.expect(&[
        ("tcpinspect_syns_total{iface=\"lo\"}", 1.0),
        ("tcpinspect_connects_total", 1.0),
        ("tcpinspect_listeners", 1.0),
        (
            "tcpinspect_connects_failed_total{error=\"ECONNREFUSED\"}",
            0.0,
        ),
    ]);
}

#[test]
fn it_serves_over_ipv6_and_says_who_can_read_it() {
    let namespace = need!(Namespace::new());
    for (listen, is_open) in [
        ("[::1]:0", false),
        ("[::]:0", true),
        ("0.0.0.0:0", true),
        ("127.0.0.2:0", false),
    ] {
        let exporter = Exporter::listening(&namespace, listen, &["--collect", "listeners"]);
        assert!(exporter.text().contains("tcpinspect_listeners 1"));
        let port = exporter.addr.port();
        let loopback = if listen.starts_with('[') {
            "::1"
        } else {
            "127.0.0.2"
        };
        let addr = SocketAddr::from((loopback.parse::<IpAddr>().unwrap(), port));
        namespace.enter(|| TcpStream::connect(addr)).unwrap();
        let output = exporter.tool.stop();
        let warned = output
            .stderr
            .iter()
            .any(|line| line.contains("can read the metrics"));
        assert_eq!(warned, is_open, "{listen}: {output:#?}");
    }
}

#[test]
fn a_port_that_is_taken_or_an_address_of_others_is_an_error_with_a_hint() {
    let namespace = need!(Namespace::new());
    let exporter = Exporter::start(&namespace, &["--collect", "listeners"]);
    let taken = exporter.addr.to_string();
    for (listen, code, words) in [
        (taken.as_str(), 1, "failed to listen on"),
        ("192.0.2.1:9817", 1, "failed to listen on"),
        ("localhost:9817", 2, "not an address and a port"),
        ("127.0.0.1", 2, "not an address and a port"),
        ("127.0.0.1:70000", 2, "not an address and a port"),
    ] {
        let output =
            Tool::spawn_in(&namespace, &mut command(["exporter", "--listen", listen])).finish();
        assert_eq!(output.code(), code, "{output:#?}");
        let (error, hint) = output.complaint();
        assert!(error.contains(words), "{error}");
        assert!(hint.is_some(), "{listen}");
    }
}

#[test]
fn every_signal_ends_it_and_nothing_is_left() {
    let pair = need!(Pair::new());
    let before = pair.state();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let exporter = Exporter::start(&pair.server, &["vs"]);
        assert_ne!(pair.state(), before);
        let _idle = exporter.connect();
        exporter.tool.signal(signal);
        assert_eq!(exporter.tool.finish().code(), 0);
        assert_eq!(pair.state(), before);
    }
    let exporter = Exporter::start(&pair.server, &["vs"]);
    drop(exporter);
    let left = || {
        let state = pair.state();
        // Before Linux 6.6 the next start removes what a killed one left.
        (state == before || crate::common::bpf::has_tcx().is_err()).then_some(())
    };
    wait_for("a killed exporter leaves nothing", left);
}

#[test]
fn three_capabilities_are_enough_and_none_is_kept_that_is_not_needed() {
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    let args = ["exporter", "--listen", "127.0.0.1:0", "vs"];
    let mut command = command_of(&binary.path(), args);
    as_nobody(&mut command, &ENOUGH);
    let exporter = Exporter::of(
        Tool::spawn_in(&pair.server, &mut command).attached(),
        &pair.server,
    );
    pair.refused_connects((SERVER4, 81).into(), 1);
    exporter.expect(&[
        ("tcpinspect_syns_total{iface=\"vs\"}", 1.0),
        (
            "tcpinspect_attempts_total{fate=\"refused\",reason=\"no_listener\"}",
            1.0,
        ),
    ]);
    let status = std::fs::read_to_string(format!("/proc/{}/status", exporter.tool.pid())).unwrap();
    let value = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(
        (value("NoNewPrivs:"), value("Seccomp:")),
        ("1".to_owned(), "2".to_owned())
    );
    if crate::common::release() >= (6, 6) {
        assert_eq!(value("CapPrm:"), "0000000000000000");
    }
    drop(exporter);

    let mut command = command_of(&binary.path(), args);
    as_nobody(&mut command, &[]);
    let output = Tool::spawn_in(&pair.server, &mut command).finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    let (error, _) = output.complaint();
    assert!(error.contains("CAP_"), "{error}");
}
