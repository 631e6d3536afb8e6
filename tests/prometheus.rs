//! `exporter` with the real Prometheus and Alertmanager: metrics, alerts and dashboards.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::Value;

use crate::common::{Namespace, Reaped, Tool, need, wait_within};

const PROMETHEUS: u16 = 9090;
const ALERTMANAGER: u16 = 9093;
/// Of the first exporter; the others have the next ports.
const EXPORTER: u16 = 9817;

/// How long the machine has for each step.
const LIMIT: Duration = Duration::from_secs(60);

pub fn contrib(path: &str) -> String {
    let path = format!("{}/contrib/{path}", env!("CARGO_MANIFEST_DIR"));
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

pub fn has(programs: &[&str]) -> Result<(), String> {
    for program in programs {
        let mut command = Command::new(program);
        command
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command
            .status()
            .map_err(|error| format!("{program}: {error}"))?;
    }
    Ok(())
}

/// The answer to a request for JSON; `None` while there is none.
fn get(namespace: &Namespace, port: u16, path: &str) -> Option<Value> {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = namespace.enter(|| TcpStream::connect(addr)).ok()?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

/// The result of a Prometheus query.
fn query(namespace: &Namespace, expression: &str) -> Vec<Value> {
    let escaped = expression.bytes().map(|byte| format!("%{byte:02X}"));
    let path = format!("/api/v1/query?query={}", escaped.collect::<String>());
    let answer = get(namespace, PROMETHEUS, &path).unwrap();
    assert_eq!(answer["status"], "success", "{expression}: {answer}");
    answer["data"]["result"].as_array().unwrap().clone()
}

pub fn start(namespace: &Namespace, words: &str, log: &Path) -> Reaped {
    let log = fs::File::create(log).unwrap();
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command
        .args(words)
        .stdin(Stdio::null())
        .stdout(log.try_clone().unwrap())
        .stderr(log);
    Reaped(namespace.enter(|| command.spawn()).unwrap())
}

/// Times that suit a test.
fn hurried(text: &str) -> String {
    text.replace("[5m]", "[10s]")
        .replace("[1m]", "[10s]")
        .replace("for: 1m", "for: 1s")
}

/// A server whose accept queue is full, and clients that try again and again.
fn overflow(namespace: &Namespace, stop: &AtomicBool) {
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
    namespace.join();
    let _listener = crate::common::net::listener(addr, 1);
    while !stop.load(Ordering::Relaxed) {
        let _ = TcpStream::connect_timeout(&addr, Duration::from_millis(20));
    }
}

/// A client whose connects are refused; for its peer it is a flood.
fn knock(namespace: &Namespace, stop: &AtomicBool) {
    namespace.join();
    while !stop.load(Ordering::Relaxed) {
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, 81));
    }
}

/// Connections whose segments do not arrive.
fn lose(namespace: &Namespace, stop: &AtomicBool) {
    namespace.join();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 82)).unwrap();
    let connect = |_| TcpStream::connect((Ipv4Addr::LOCALHOST, 82)).unwrap();
    let mut clients = (0..100).map(connect).collect::<Vec<_>>();
    let _accepted = (0..100)
        .map(|_| listener.accept().unwrap())
        .collect::<Vec<_>>();
    for rule in [
        "nft add table inet t",
        "nft add chain inet t c { type filter hook input priority 0; }",
        "nft add rule inet t c tcp dport 82 drop",
    ] {
        crate::common::run(rule);
    }
    while !stop.load(Ordering::Relaxed) {
        for client in &mut clients {
            let _ = client.write_all(b"x");
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn real_faults_raise_alerts_and_every_panel_has_data() {
    need!(has(&[
        "prometheus",
        "promtool",
        "prometheus-alertmanager",
        "nft"
    ]));
    let monitor = need!(Namespace::new());
    let watched = [(); 3].map(|()| Namespace::new().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);

    let exporters = watched.iter().zip(EXPORTER..).map(|(namespace, port)| {
        let (listen, netns) = (format!("127.0.0.1:{port}"), namespace.path());
        Tool::start_in(
            &monitor,
            &["exporter", "--listen", &listen, "--netns", &netns, "lo"],
        )
    });
    let exporters = exporters.collect::<Vec<_>>();

    fs::write(path("rules.yml"), hurried(&contrib("prometheus/rules.yml"))).unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [rules.yml]\n\
         alerting: {{alertmanagers: [{{static_configs: [{{targets: ['127.0.0.1:{ALERTMANAGER}']}}]}}]}}\n\
         scrape_configs:\n\
         - job_name: tcpinspect\n  static_configs:\n  - targets: ['127.0.0.1:9817', '127.0.0.1:9818', '127.0.0.1:9819']\n"
    );
    fs::write(path("prometheus.yml"), config).unwrap();
    fs::write(
        path("alertmanager.yml"),
        "route: {receiver: nobody, group_wait: 0s}\nreceivers: [{name: nobody}]\n",
    )
    .unwrap();
    for words in [
        format!("promtool check config {}", path("prometheus.yml").display()),
        format!(
            "promtool check rules {}/contrib/prometheus/rules.yml",
            env!("CARGO_MANIFEST_DIR")
        ),
    ] {
        crate::common::run(&words);
    }
    let _alertmanager = start(
        &monitor,
        &format!(
            "prometheus-alertmanager --config.file={} --storage.path={} --web.listen-address=127.0.0.1:{ALERTMANAGER} --cluster.listen-address=",
            path("alertmanager.yml").display(),
            path("alerts").display()
        ),
        &path("alertmanager.log"),
    );
    let _prometheus = start(
        &monitor,
        &format!(
            "prometheus --config.file={} --storage.tsdb.path={} --web.listen-address=127.0.0.1:{PROMETHEUS}",
            path("prometheus.yml").display(),
            path("data").display()
        ),
        &path("prometheus.log"),
    );

    wait_within("Prometheus scrapes all three", LIMIT, || {
        get(&monitor, PROMETHEUS, "/api/v1/status/runtimeinfo")?;
        let up = query(&monitor, "up == 1 and scrape_samples_scraped > 100");
        (up.len() == 3).then_some(())
    });

    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let [first, second, third] = &watched;
        let faults = [
            scope.spawn(|| overflow(first, &stop)),
            scope.spawn(|| knock(second, &stop)),
            scope.spawn(|| lose(third, &stop)),
        ];
        let mut missing = Vec::new();
        let deadline = std::time::Instant::now() + LIMIT;
        loop {
            let alerts = get(&monitor, ALERTMANAGER, "/api/v2/alerts").unwrap_or_default();
            let alerts = alerts.as_array().cloned().unwrap_or_default();
            missing.clear();
            for (name, port) in [
                ("TcpListenerDrops", EXPORTER),
                ("TcpConnectsRefused", EXPORTER + 1),
                ("TcpSynFlood", EXPORTER + 1),
                ("TcpRetransmits", EXPORTER + 2),
            ] {
                let instance = format!("127.0.0.1:{port}");
                let is_it = |alert: &Value| {
                    let labels = &alert["labels"];
                    labels["alertname"] == name && labels["instance"] == instance.as_str()
                };
                if !alerts.iter().any(is_it) {
                    missing.push(name);
                }
            }
            if missing.is_empty() || std::time::Instant::now() > deadline {
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        let board = serde_json::from_str::<Value>(&contrib("grafana/tcpinspect.json")).unwrap();
        let panels = board["panels"].as_array().unwrap();
        let mut empty = Vec::new();
        for target in panels
            .iter()
            .flat_map(|panel| panel["targets"].as_array().unwrap())
        {
            let expression = target["expr"].as_str().unwrap();
            let expression = expression
                .replace("$__rate_interval", "10s")
                .replace("$instance", ".*");
            assert!(!expression.contains('$'), "{expression}");
            if query(&monitor, &expression).is_empty() {
                empty.push(expression);
            }
        }
        stop.store(true, Ordering::Relaxed);
        for fault in faults {
            fault.join().unwrap();
        }
        assert!(missing.is_empty(), "no alert: {missing:?}");
        assert!(empty.is_empty(), "no data: {empty:#?}");
        assert!(panels.len() > 10);
    });
    // An alert is of the machine that has the fault, and of no other.
    let firing = query(
        &monitor,
        "ALERTS{alertname=\"TcpSynFlood\", alertstate=\"firing\"}",
    );
    assert_eq!(firing.len(), 1, "{firing:?}");
    for exporter in exporters {
        let output = exporter.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
    }
}
