//! Events of many machines: sent by rsyslog to a collector that is killed meanwhile, and loaded
//! into ClickHouse.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::common::{Namespace, Tool, command, need, wait_within};
use crate::prometheus::{contrib, has, start};

const LIMIT: Duration = Duration::from_secs(60);

/// Nobody listens there, and no other test connects to it: connect-trace sees all namespaces.
const PORT: &str = "39009";

/// The Python of an environment that has ClickHouse as a library.
fn clickhouse() -> Result<PathBuf, String> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/chdb");
    let python = place.join("bin/python");
    let has_it = || {
        let mut command = Command::new(&python);
        command.args(["-c", "import chdb"]).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    if !has_it() {
        let place = place.display();
        crate::common::try_run(&format!("python3 -m venv {place}"))?;
        let install = "install --quiet --disable-pip-version-check chdb-core-lite==26.5.0";
        crate::common::try_run(&format!("{place}/bin/pip {install}"))?;
    }
    match has_it() {
        true => Ok(python),
        false => Err("chdb: can't be imported".to_owned()),
    }
}

/// All lines that the collector has.
fn collected(dir: &Path) -> Vec<String> {
    let files = fs::read_dir(dir).unwrap();
    let texts = files.map(|file| fs::read_to_string(file.unwrap().path()).unwrap());
    let lines = texts.flat_map(|text| text.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.collect()
}

#[test]
fn no_event_is_missing_after_the_collector_was_killed() {
    need!(has(&["rsyslogd", "python3"]));
    let namespace = need!(Namespace::new());
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    for name in ["log", "collected", "state"] {
        fs::create_dir(path(name)).unwrap();
    }
    let log = path("log").display().to_string();
    let sender = contrib("rsyslog/sender.conf")
        .replace("/var/log/tcpinspect", &log)
        .replace("collector.example", "127.0.0.1");
    let state = path("state").display().to_string();
    let sender = format!("global(workDirectory=\"{state}\")\n{sender}");
    let collector = contrib("rsyslog/collector.conf").replace(
        "/var/log/collected",
        &path("collected").display().to_string(),
    );
    fs::write(path("sender.conf"), sender).unwrap();
    fs::write(path("collector.conf"), collector).unwrap();
    let rsyslog = |name: &str, run: &str| {
        let conf = path(&format!("{name}.conf")).display().to_string();
        let pid = path(&format!("{name}.{run}.pid")).display().to_string();
        let words = format!("rsyslogd -n -f {conf} -i {pid}");
        start(&namespace, &words, &path(&format!("{name}.{run}.log")))
    };

    let receiver = rsyslog("collector", "1");
    let _sender = rsyslog("sender", "1");
    let file = fs::File::create(path("log/events.jsonl")).unwrap();
    let mut connect = command(["connect-trace", "--json", "-p", PORT]);
    connect.stdout(file);
    let tool = Tool::spawn_in(&namespace, &mut connect).attached();
    let knock = |count: usize| {
        namespace.enter(|| {
            for _ in 0..count {
                TcpStream::connect(format!("127.0.0.1:{PORT}")).unwrap_err();
            }
        });
    };
    knock(500);
    wait_within("the collector has the first lines", LIMIT, || {
        (collected(&path("collected")).len() >= 500).then_some(())
    });
    // Kills the collector while events are on their way.
    knock(500);
    drop(receiver);
    knock(500);
    let _receiver = rsyslog("collector", "2");
    knock(500);
    assert_eq!(tool.stop().code(), 0);

    let written = fs::read_to_string(path("log/events.jsonl")).unwrap();
    let written = written.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(written.len(), 4001);
    wait_within("the collector has all lines", LIMIT, || {
        let lines = collected(&path("collected"))
            .into_iter()
            .collect::<BTreeSet<_>>();
        (lines.len() == written.len()).then(|| assert_eq!(lines, written))
    });

    let python = need!(clickhouse());
    let all = collected(&path("collected")).join("\n") + "\n";
    fs::write(path("all.jsonl"), all).unwrap();
    let program = "
import json, sys
from chdb import session
clickhouse = session.Session()
clickhouse.query(open(sys.argv[1] + '/schema.sql').read())
# Once more, as after a restart of the loader.
for _ in range(2):
    clickhouse.query(f\"INSERT INTO tcp_events FROM INFILE '{sys.argv[2]}' \"
        \"SETTINGS input_format_skip_unknown_fields = 1, input_format_null_as_default = 1, \"
        \"date_time_input_format = 'best_effort' FORMAT JSONEachRow\")
print(clickhouse.query(open(sys.argv[1] + '/missing.sql').read(), 'JSONEachRow'))
";
    let schema = format!("{}/contrib/clickhouse", env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python)
        .args(["-c", program, &schema])
        .arg(path("all.jsonl"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let row = serde_json::from_str::<Value>(text.trim()).unwrap();
    let number = |name: &str| {
        let value = &row[name];
        value.as_i64().or_else(|| value.as_str()?.parse().ok())
    };
    let names = ["written", "came", "missing", "lost_before"];
    assert_eq!(names.map(number), [4000, 4000, 0, 0].map(Some), "{row}");
}
