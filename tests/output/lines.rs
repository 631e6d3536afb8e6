//! The form of the lines: columns of text and keys of JSON.

use std::ffi::CString;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use crate::common::{Namespace, Pair, SERVER4, SERVER6, Tool, command, need};

#[test]
fn text_is_a_header_and_columns_and_all_else_is_on_stderr() {
    let pair = need!(Pair::new());
    for (args, columns) in [
        (
            &["syn-count", "vs", "-I", "0.05", "--mode", "generic"][..],
            &["TIME", "IFACE", "MODE", "SYNS", "TOTAL", "RATE/s"][..],
        ),
        (
            &["port-monitor", "vs"],
            &[
                "TIME", "IFACE", "DIR", "SADDR", "SPORT", "DADDR", "DPORT", "FLAGS", "LEN", "WIN",
                "TTL", "VLAN",
            ],
        ),
    ] {
        let tool = Tool::start_in(&pair.server, args);
        pair.refused_connects((SERVER4, 80).into(), 3);
        tool.events(3);
        let output = tool.stop();
        let header: Vec<_> = output.stdout[0].split_whitespace().collect();
        assert_eq!(header, columns);
        for line in &output.stdout[1..] {
            assert_eq!(line.split_whitespace().count(), columns.len(), "{line}");
        }
        assert_eq!(output.stderr.len(), 2, "{output:#?}");
        assert!(output.stderr[0].starts_with("attached: "));
        assert!(output.stderr[1].starts_with("summary: "));
    }
}

#[test]
fn columns_are_those_asked_for_and_values_stand_under_their_names() {
    let pair = need!(Pair::new());
    let columns = "daddr,MSS, dport,time,flags";
    let args = ["port-monitor", "vs", "--columns", columns];
    let tool = Tool::start_in(&pair.server, &args);
    pair.refused_connects((SERVER4, 80).into(), 1);
    pair.refused_connects((SERVER6, 8000).into(), 1);
    tool.events(3);
    let lines = tool.stop().stdout;
    assert_eq!(
        lines[0],
        "DADDR           MSS   DPORT TIME            FLAGS"
    );
    let four = lines[1].strip_prefix("10.77.0.2       1460     80 ");
    assert!(four.is_some_and(|rest| rest.ends_with(" [S]")), "{lines:?}");
    let words = lines[2].split_whitespace().collect::<Vec<_>>();
    let address = SERVER6.to_string();
    assert_eq!(words[..3], [&address, "1440", "8000"], "{lines:?}");
    assert_eq!(words.len(), 5, "{lines:?}");
}

#[test]
fn lines_of_every_command_fit_and_have_a_word_for_each_column() {
    let pair = need!(Pair::new());
    pair.server.run("ip addr add 10.77.66.110/32 dev lo");
    pair.client.run("ip route add 10.77.66.110 via 10.77.0.2");
    // No other test connects to this one.
    let target = SocketAddr::from(([10, 77, 66, 110], 65535));
    let dst = ["--dst", "10.77.66.110"];
    for (args, most) in [
        (&["syn-count", "vs", "-I", "0.05", "--mode", "tc"][..], 110),
        (&["syn-count", "vs", "-I", "0.05", "--alert", "5"], 110),
        (&["port-monitor", "vs"], 110),
        (&["connect-trace"], 110),
        (&["connect-trace", "--close"], 150),
        (&["accept-trace", "vs"], 110),
        (&["flows", "vs"], 110),
        (&["flows", "vs", "-I", "0.05", "--by", "daddr"], 110),
    ] {
        let mut command = command(args);
        command.args(dst);
        let tool = Tool::spawn_in(&pair.server, &mut command).attached();
        for _ in 0..100 {
            let refused = pair.client.enter(|| {
                // A thread with a name of its own is shown beside its process.
                let process = std::fs::read_to_string("/proc/self/comm").unwrap();
                nix::sys::prctl::set_name(&CString::new(process.trim_end()).unwrap()).unwrap();
                TcpStream::connect(target)
            });
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        tool.events(3);
        let lines = tool.stop().stdout;
        let columns = lines[0].split_whitespace().count();
        for line in &lines {
            assert!(line.len() <= most, "{args:?}: {} in {line}", line.len());
            assert_eq!(line.split_whitespace().count(), columns, "{line}");
        }
    }
}

#[test]
fn a_quiet_run_prints_nothing_but_its_lines() {
    let namespace = need!(Namespace::new());
    for quiet in ["-q", "-qq"] {
        let mut command = command(["syn-count", "lo", "-I", "50ms", "-c", "2", quiet]);
        let output = Tool::spawn_in(&namespace, &mut command).finish();
        assert_eq!(output.code(), 0, "{output:#?}");
        assert_eq!(output.stdout.len(), 3, "{output:#?}");
        assert!(output.stderr.is_empty(), "{output:#?}");
    }
}

#[test]
fn every_line_of_json_has_a_time_and_an_event_and_flat_values() {
    let pair = need!(Pair::new());
    let args = [
        "syn-count",
        "vs",
        "--json",
        "-I",
        "0.05",
        "--by",
        "saddr",
        "--alert",
        "5",
    ];
    let tool = Tool::start_in(&pair.server, &args);
    pair.refused_connects((SERVER4, 80).into(), 100);
    for state in ["raised", "cleared"] {
        tool.json(state, |line| {
            line["state"] == state && line["key"].is_string()
        });
    }
    let output = tool.stop();
    let mut last = String::new();
    for line in output.json() {
        let ts = line["ts"].as_str().unwrap();
        // RFC 3339 in UTC with nanoseconds: such texts sort as the times do.
        assert_eq!((ts.len(), ts.ends_with('Z')), (30, true), "{line}");
        assert!(*ts >= *last, "{line} after {last}");
        ts.clone_into(&mut last);
        assert!(line["event"].is_string(), "{line}");
        let members = line.as_object().unwrap();
        let nested = members.iter().filter(|(_, value)| value.is_object());
        let nested: Vec<_> = nested.map(|(key, _)| key.as_str()).collect();
        let allowed: &[&str] = if line["event"] == "summary" {
            &["verdicts"]
        } else {
            &[]
        };
        assert_eq!(nested, allowed, "{line}");
    }
    let mut alerts = output.events("alert");
    alerts.retain(|alert| alert["key"].is_string());
    let alert = &alerts[0];
    assert_eq!(alert["key"], "10.77.0.1", "{alert}");
    assert_eq!(alert["threshold"], 5, "{alert}");
}
