//! Filters show exactly the attempts that were asked for.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use super::{Trace, begin, local};
use crate::common::net::nft;
use crate::common::{Namespace, Tool, need};

/// Two that are accepted, at different ports, and two that are refused.
fn traffic(namespace: &Namespace) {
    namespace.enter(|| {
        for port in [8101, 8102] {
            let addr = (Ipv4Addr::LOCALHOST, port);
            let listener = TcpListener::bind(addr).unwrap();
            let _client = TcpStream::connect(addr).unwrap();
            listener.accept().unwrap();
        }
        for port in [8103, 8104] {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap_err();
        }
    });
}

#[test]
fn a_filter_shows_what_was_asked_for_and_counts_no_more() {
    let namespace = need!(Namespace::new());
    let pid = std::process::id().to_string();
    let other = (std::process::id() + 1).to_string();
    for (args, fates) in [
        (&["--failed"][..], 2),
        (&["-p", "8101"], 1),
        (&["-p", "8101,8103"], 2),
        (&["-6"], 0),
        (&["--src", "127.0.0.1"], 4),
        (&["--src", "!127.0.0.1"], 0),
        (&["--reason", "no_listener"], 2),
        // The kernel's name for it.
        (&["--reason", "no_socket"], 2),
        (&["--reason", "accept_queue_full"], 0),
        (&["--pid", &pid], 2),
        (&["--pid", &other], 0),
        (&["--uid", "0"], 2),
        (&["--comm", "no-such-name"], 0),
        (&["-f", "dst port 8101 or dst port 8103"], 2),
        (&["dst port 8101 and not ip6"], 1),
        (
            &["--failed", "-p", "8101,8103", "-f", "len > 1000 or ip"],
            1,
        ),
        (&["tcp[tcpflags]", "==", "tcp-syn|tcp-ack"], 0),
    ] {
        let mut all = vec!["accept-trace", "--json", "-i", "lo"];
        all.extend(args);
        let tool = Tool::start_in(&namespace, &all);
        traffic(&namespace);
        if fates > 0 {
            tool.events(fates);
        }
        let output = tool.stop();
        assert_eq!(output.events("fate").len(), fates, "{args:?}: {output:#?}");
        assert_eq!(output.summary()["matched"], fates, "{args:?}: {output:#?}");
    }
}

#[test]
fn another_namespace_is_watched_by_its_name_or_path() {
    let namespace = need!(Namespace::new());
    let path = namespace.path();
    let tool = Tool::start(&["accept-trace", "--json", "--netns", &path, "lo"]);
    traffic(&namespace);
    tool.events(4);
    let output = tool.stop();
    for fate in output.events("fate") {
        assert_eq!(fate["netns"], namespace.inode(), "{fate}");
    }
    assert_eq!(output.summary()["attempts"], 4, "{output:#?}");
}

#[test]
fn all_attempts_are_in_the_summary_whatever_is_shown() {
    let namespace = need!(Namespace::new());
    let trace = Trace::start(&namespace, &["lo"]);
    traffic(&namespace);
    trace.wait_for_fates(4);
    let fates = trace.stop();
    assert_eq!(fates.summary["attempts"], 4);
    assert_eq!((fates.count("accepted"), fates.count("refused")), (2, 2));
}

#[test]
fn lines_beyond_the_rate_are_counted_as_suppressed() {
    let namespace = need!(Namespace::new());
    let args = ["accept-trace", "--json", "lo", "--max-rate", "3"];
    let tool = Tool::start_in(&namespace, &args);
    namespace.enter(|| {
        for _ in 0..100 {
            TcpStream::connect((Ipv4Addr::LOCALHOST, 8105)).unwrap_err();
        }
    });
    tool.events(3);
    let summary = tool.stop().summary();
    assert_eq!(summary["matched"], 100, "{summary}");
    assert_eq!(summary["fates"]["refused"], 100, "{summary}");
    let emitted = summary["emitted"].as_u64().unwrap();
    assert!((3..100).contains(&emitted), "{summary}");
    assert_eq!(summary["suppressed"], 100 - emitted, "{summary}");
}

#[test]
fn the_rate_is_that_of_the_lines_with_the_wanted_reason() {
    let namespace = need!(Namespace::new());
    let rule = "tcp dport 8106 drop";
    need!(nft(&namespace, "type filter hook input priority 0", rule));
    let args = [
        "accept-trace",
        "--json",
        "lo",
        "--max-rate",
        "3",
        "--reason",
        "netfilter_drop",
    ];
    let tool = Tool::start_in(&namespace, &args);
    let clients = namespace.enter(|| {
        for _ in 0..100 {
            TcpStream::connect(local(8105)).unwrap_err();
        }
        [(); 8].map(|()| begin(local(8106)))
    });
    tool.events(3);
    drop(clients);
    let output = tool.stop();
    for line in output.events("fate") {
        assert_eq!(line["reason"], "netfilter_drop", "{line}");
    }
    let summary = output.summary();
    assert_eq!(summary["matched"], 8, "{summary}");
    let fates = &summary["fates"];
    assert_eq!(
        (&fates["refused"], &fates["dropped"]),
        (&100.into(), &8.into())
    );
    let emitted = summary["emitted"].as_u64().unwrap();
    assert!((3..=8).contains(&emitted), "{summary}");
    assert_eq!(summary["suppressed"], 8 - emitted, "{summary}");
}

#[test]
fn an_unknown_reason_is_refused_before_anything_is_attached() {
    let namespace = need!(Namespace::new());
    let output = Tool::spawn_in(
        &namespace,
        &mut crate::common::command(["accept-trace", "lo", "--reason", "bad_luck"]),
    )
    .finish();
    assert_eq!(output.code(), 2, "{output:#?}");
    assert!(output.complaint().0.contains("bad_luck"), "{output:#?}");
    let mut errors = output.stderr.iter();
    let attached = errors.find(|line| line.starts_with("attached:"));
    assert_eq!(attached, None, "{output:#?}");
}
