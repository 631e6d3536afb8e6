//! loss-trace: drops, retransmissions and resets, compared with the kernel's counters.

mod matrix;

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use crate::accept::{NOBODY, segment, send, with_neighbour};
use crate::common::frames::{SYN, syn_frame};
use crate::common::net::{CLIENT4, Growth, SERVER4, counter, nft};
use crate::common::raw::RawSocket;
use crate::common::{
    Namespace, Output, Pair, Tool, command, has_drop_reason, has_enumerator, need, since, wait_for,
};
use crate::connect::sockets::set_int;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

/// The hook of nftables for what this host receives.
const INPUT: &str = "type filter hook input priority 0";

/// Starts loss-trace in a namespace, for that namespace alone.
fn start(namespace: &Namespace, args: &[&str]) -> Tool {
    let path = namespace.path();
    let mut all = vec!["loss-trace", "--json", "--netns", &path];
    all.extend(args);
    Tool::start(&all)
}

fn segments(output: &Output) -> u64 {
    let lines = output.events("retransmit").into_iter();
    lines.map(|line| line["segments"].as_u64().unwrap()).sum()
}

/// Whether the kernel gives reasons for "drops" or "resets". If it does not, the tool must say so.
fn has_reasons(tool: &Tool, events: &str) -> bool {
    let has_reasons = match events {
        "drops" => has_drop_reason("no_socket"),
        _ => has_enumerator("SK_RST_REASON_NO_SOCKET"),
    };
    let notice = format!("gives no reasons for {events}");
    let is_missing = tool.errors().iter().any(|line| line.contains(&notice));
    assert_eq!(is_missing, !has_reasons, "{:#?}", tool.errors());
    has_reasons
}

#[test]
fn a_syn_to_a_closed_port_is_dropped_and_reset_for_the_same_reason() {
    let pair = need!(Pair::new());
    let tool = start(&pair.server, &["-p", "9", "--src", &CLIENT4.to_string()]);
    pair.refused_connects(SocketAddr::from((SERVER4, 9)), 3);
    tool.events(3);
    let has_reason = has_reasons(&tool, "drops");
    let output = tool.stop();
    let drops = output.events("drop");
    assert_eq!(drops.len(), 3, "{output:#?}");
    for drop in &drops {
        assert_eq!(
            (&drop["iface"], &drop["direction"]),
            (&"vs".into(), &"ingress".into())
        );
        assert_eq!(
            (&drop["tcp_flags"][0], &drop["len"]),
            (&"syn".into(), &0.into())
        );
        assert_eq!(drop["netns"], pair.server.inode());
        let expected = match has_reason {
            true => (Some("no_socket"), Some("kernel")),
            false => (None, Some("unknown")),
        };
        let reported = (drop["reason"].as_str(), drop["reason_from"].as_str());
        assert_eq!(reported, expected, "{drop}");
        assert!(drop["pid"].is_null(), "nobody listens: {drop}");
    }
}

#[test]
fn resets_are_as_many_as_the_kernel_counts() {
    let pair = need!(Pair::new());
    let sent = start(&pair.server, &["--only", "reset"]);
    let has_reason = has_reasons(&sent, "resets");
    let received = start(&pair.client, &["--only", "reset"]);
    let before = counter(&pair.server, "TcpOutRsts");
    pair.refused_connects(SocketAddr::from((SERVER4, 9)), 2);
    // Closed with unread data: a reset ends the connection.
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 80)).unwrap());
    let mut client = pair
        .client
        .enter(|| TcpStream::connect((SERVER4, 80)).unwrap());
    let (server, _) = listener.accept().unwrap();
    client.write_all(b"unread").unwrap();
    wait_for("the data", || {
        let mut byte = [0];
        server.peek(&mut byte).ok().filter(|len| *len == 1)
    });
    drop(server);
    received.events(3);
    let (sent, received) = (sent.stop(), received.stop());
    let count = |output: &Output, way: &str| {
        let lines = output.events("reset").into_iter();
        lines.filter(|line| line["way"] == way).count() as u64
    };
    assert_eq!(
        count(&sent, "sent"),
        counter(&pair.server, "TcpOutRsts") - before,
        "{sent:#?}"
    );
    assert_eq!(count(&received, "received"), 3, "{received:#?}");
    let resets = sent.events("reset");
    let mut refusals = resets.iter().filter(|line| line["sport"] == 9);
    assert!(refusals.all(|line| line["iface"] == "vs"), "{resets:#?}");
    let reasons = resets.iter().map(|line| line["reason"].as_str());
    let expected = has_reason.then_some("no_socket");
    assert_eq!(reasons.collect::<Vec<_>>()[..2], [expected; 2]);
}

#[test]
fn drops_by_netfilter_are_reported_and_retransmissions_match_nstat() {
    let pair = need!(Pair::new());
    need!(nft(&pair.server, INPUT, "tcp dport 81 drop"));
    let drops = start(
        &pair.server,
        &["--only", "drop", "--reason", "netfilter_drop"],
    );
    let again = start(&pair.client, &["--only", "retransmit"]);
    let addr = SocketAddr::from((SERVER4, 81));
    let connect = || TcpStream::connect_timeout(&addr, Duration::from_millis(3500)).unwrap_err();
    pair.client.enter(connect);
    let (drops, again) = (drops.stop(), again.stop());
    let expected = counter(&pair.client, "TcpRetransSegs");
    assert!(
        expected >= 1 && segments(&again) == expected,
        "{expected}: {again:#?}"
    );
    // The first SYN, and its retransmissions.
    assert_eq!(
        drops.events("drop").len() as u64,
        expected + 1,
        "{drops:#?}"
    );
    for line in again.events("retransmit") {
        assert_eq!(
            (&line["kind"], &line["state"]),
            (&"syn".into(), &"syn_sent".into())
        );
        if !line["pid"].is_null() {
            assert_eq!(line["pid"], std::process::id());
        }
    }
    for line in drops.events("drop") {
        let place = line["place"].as_str();
        assert!(place.is_none_or(|place| place.starts_with("nf")), "{line}");
    }
}

#[test]
fn retransmitted_data_counts_by_segment() {
    let pair = need!(Pair::new());
    let tool = start(&pair.client, &["--only", "retransmit"]);
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 82)).unwrap());
    let mut client = pair
        .client
        .enter(|| TcpStream::connect((SERVER4, 82)).unwrap());
    let (server, _) = listener.accept().unwrap();
    setsockopt(&client.as_fd(), sockopt::TcpNoDelay, &true).unwrap();
    need!(nft(&pair.server, INPUT, "tcp dport 82 drop"));
    client.write_all(&vec![7; 20_000]).unwrap();
    wait_for("data to be retransmitted", || {
        (counter(&pair.client, "TcpRetransSegs") >= 2).then_some(())
    });
    pair.client.run("ip link set vc down");
    // Segments that can't be retransmitted are not counted.
    let timeouts = Growth::of(&pair.client, "TcpExtTCPTimeouts");
    timeouts.reaches(1);
    let output = tool.stop();
    assert_eq!(
        segments(&output),
        counter(&pair.client, "TcpRetransSegs"),
        "{output:#?}"
    );
    let lines = output.events("retransmit");
    let is_data = |line: &Value| line["kind"] == "data" && line["dport"] == 82;
    assert!(lines.iter().all(is_data), "{lines:#?}");
    drop((client, server));
}

#[test]
fn retransmissions_on_a_lossy_link_are_those_that_nstat_counts() {
    let pair = need!(Pair::new());
    // The IP identification of a retransmitted segment differs.
    need!(nft(
        &pair.server,
        INPUT,
        "tcp dport 83 ip id and 3 == 0 drop"
    ));
    let tool = start(&pair.client, &["--only", "retransmit"]);
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 83)).unwrap());
    let mut client = pair
        .client
        .enter(|| TcpStream::connect((SERVER4, 83)).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        server.read_to_end(&mut all).map(|len| (len, server))
    });
    client.write_all(&vec![7; 300_000]).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let (len, server) = reader.join().unwrap().unwrap();
    assert_eq!(len, 300_000);
    let output = tool.stop();
    let counted = counter(&pair.client, "TcpRetransSegs");
    assert_eq!(segments(&output), counted, "{output:#?}");
    assert!(counted > 0);
    drop((client, server));
}

#[test]
fn a_retransmitted_syn_ack_is_counted_as_one() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_synack_retries", "1");
    let _listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 84)).unwrap());
    let again = Growth::of(&pair.server, "TcpRetransSegs");
    let tool = start(&pair.server, &["--only", "retransmit"]);
    send(&pair, &segment(&pair, NOBODY, SYN, (4000, 84), 77, 0));
    tool.json("of a retransmission", |line| line["event"] == "retransmit");
    let output = tool.stop();
    let lines = output.events("retransmit");
    assert_eq!((lines.len() as u64, again.now()), (1, 1), "{output:#?}");
    let reported = (&lines[0]["kind"], &lines[0]["sport"], &lines[0]["state"]);
    let expected = ("syn_ack".into(), 84.into(), "syn_recv".into());
    assert_eq!(
        reported,
        (&expected.0, &expected.1, &expected.2),
        "{output:#?}"
    );
}

#[test]
fn resets_of_connections_are_those_that_the_kernel_counts() {
    let pair = need!(Pair::new());
    let names = ["TcpOutRsts", "TcpEstabResets"];
    let ends = [&pair.server, &pair.client];
    let before = ends.map(|end| names.map(|name| Growth::of(end, name)));
    let tools = ends.map(|end| start(end, &["--only", "reset"]));
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 85)).unwrap());
    let connect = |listener: &TcpListener| {
        let client = pair
            .client
            .enter(|| TcpStream::connect((SERVER4, 85)).unwrap());
        let (server, _) = listener.accept().unwrap();
        (client, server)
    };
    let wait_for_data = |stream: &TcpStream| {
        let mut byte = [0];
        assert_eq!(stream.peek(&mut byte).unwrap(), 1);
    };
    let both_know = |resets| tools.each_ref().map(|tool| tool.events(resets));
    // Each side closes with unread data.
    let (mut client, server) = connect(&listener);
    client.write_all(b"unread").unwrap();
    wait_for_data(&server);
    drop(server);
    both_know(1);
    drop(client);
    let (client, mut server) = connect(&listener);
    server.write_all(b"unread").unwrap();
    wait_for_data(&client);
    drop(client);
    both_know(2);
    drop(server);
    // Each side asks for a reset instead of a FIN (SO_LINGER).
    let abort = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    let (client, server) = connect(&listener);
    setsockopt(&server, sockopt::Linger, &abort).unwrap();
    drop(server);
    both_know(3);
    drop(client);
    let (client, server) = connect(&listener);
    setsockopt(&client, sockopt::Linger, &abort).unwrap();
    drop(client);
    both_know(4);
    drop(server);
    // The listener is closed before the connection is accepted.
    let client = pair
        .client
        .enter(|| TcpStream::connect((SERVER4, 85)).unwrap());
    drop(listener);
    both_know(5);
    drop(client);
    for (tool, before) in tools.into_iter().zip(before) {
        let output = tool.stop();
        let resets = output.events("reset");
        let is_sent = |line: &&Value| line["way"] == "sent";
        let sent = resets.iter().filter(is_sent).count() as u64;
        let counted = before.map(|counter| counter.now());
        assert_eq!([sent, 5], counted, "{output:#?}");
        assert_eq!(resets.len(), 5, "{output:#?}");
    }
}

#[test]
fn segments_that_a_closing_connection_accepts_are_not_drops() {
    need!(since((6, 11), "the socket of a freed segment is not shown"));
    let pair = need!(Pair::new());
    let tools = [&["-p", "9,86"][..], &["-p", "9,86", "--all"]];
    let tools = tools.map(|args| start(&pair.server, args));
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 86)).unwrap());
    let connect = || {
        let client = pair
            .client
            .enter(|| TcpStream::connect((SERVER4, 86)).unwrap());
        (client, listener.accept().unwrap().0)
    };
    // The client acknowledges data after its FIN.
    let (mut client, mut server) = connect();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    server.write_all(b"data").unwrap();
    client.read_exact(&mut [0; 4]).unwrap();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    // The server closes first.
    let (mut client, server) = connect();
    drop(server);
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
    drop(client);
    pair.refused_connects(SocketAddr::from((SERVER4, 9)), 1);
    let is_refused = |line: &Value| line["event"] == "drop" && line["dport"] == 9;
    let [usual, all] = tools.map(|tool| {
        tool.json("of the refused one", is_refused);
        tool.stop().events("drop").len()
    });
    assert_eq!((usual, all >= 3), (1, true), "{all}");
}

#[test]
fn segments_that_a_half_open_connection_does_not_need_are_not_drops() {
    // Nor have other segments of this kind that are really dropped, so nothing tells them apart.
    need!(since((6, 18), "this drop has no reason"));
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    let tools = [
        &["-p", "9,87", "--only", "drop"][..],
        &["-p", "9,87", "--all"],
    ];
    let tools = tools.map(|args| start(&pair.server, args));
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 87)).unwrap());
    set_int(&listener, libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT, 10).unwrap();
    // The final acknowledgement without data.
    let mut client = pair
        .client
        .enter(|| TcpStream::connect((SERVER4, 87)).unwrap());
    client.write_all(b"x").unwrap();
    listener.accept().unwrap();
    // The same SYN again.
    for _ in 0..2 {
        send(&pair, &segment(&pair, NOBODY, 2, (4000, 87), 77, 0));
    }
    pair.refused_connects(SocketAddr::from((SERVER4, 9)), 1);
    let is_refused = |line: &Value| line["event"] == "drop" && line["dport"] == 9;
    let [usual, all] = tools.map(|tool| {
        tool.json("of the refused one", is_refused);
        tool.stop().events("drop")
    });
    assert_eq!((usual.len(), all.len()), (1, 3), "{all:?}");
}

#[test]
fn events_over_max_rate_are_counted_but_not_those_with_other_reasons() {
    let pair = need!(Pair::new());
    let args = ["-p", "9", "--only", "drop"];
    let limited = start(&pair.server, &[&args[..], &["--max-rate", "2"]].concat());
    let other = ["--reason", "netfilter_drop", "--max-rate", "1"];
    let other = start(&pair.server, &[&args[..], &other].concat());
    pair.refused_connects(SocketAddr::from((SERVER4, 9)), 8);
    let (limited, other) = (limited.stop(), other.stop());
    let figures = |output: &Output| {
        let summary = output.summary();
        ["matched", "emitted", "lost", "suppressed"].map(|key| summary[key].as_u64().unwrap())
    };
    assert_eq!(figures(&limited), [8, 2, 0, 6], "{limited:#?}");
    assert_eq!(figures(&other), [0; 4], "{other:#?}");
}

/// The first count of a kind of event.
fn first_of(count: &Value, kind: &str) -> (Value, u64) {
    let top = count["top"].as_array().unwrap();
    let found = top.iter().find(|key| key["of"] == kind);
    let found = found.unwrap_or_else(|| panic!("no {kind} in {count}"));
    (found["key"].clone(), found["delta"].as_u64().unwrap())
}

#[test]
fn counts_by_key_add_up_to_the_total() {
    let pair = need!(Pair::new());
    let client = CLIENT4.to_string();
    let filter = ["--src", &client, "-p", "9"];
    let keys = ["reason", "place", "saddr", "dport", "comm"];
    let start_by = |by| start(&pair.server, &[&filter[..], &["--by", by]].concat());
    let tools = keys.map(start_by);
    let has_reason = has_reasons(&tools[0], "drops");
    pair.refused_connects(SocketAddr::from((SERVER4, 9)), 7);
    for (by, tool) in keys.into_iter().zip(tools) {
        let output = tool.stop();
        let counts = output.events("loss_count");
        let sum = |key: &str| {
            let figures = counts.iter().map(|count| count[key].as_u64().unwrap());
            figures.sum::<u64>()
        };
        assert_eq!((sum("delta"), sum("untracked")), (7, 0), "{output:#?}");
        // An event that is counted while an interval ends may be in the counts by key of the next
        // one.
        let counted = counts.iter().filter(|count| count["top"] != json!([]));
        let of_keys = counted.map(|count| first_of(count, "drop"));
        let of_keys = of_keys.collect::<Vec<_>>();
        let expected = match by {
            "reason" if has_reason => "no_socket".into(),
            "place" => "tcp_v4_rcv".into(),
            "saddr" => client.as_str().into(),
            "dport" => 9.into(),
            _ => Value::Null,
        };
        assert!(
            of_keys.iter().all(|(key, _)| *key == expected),
            "{output:#?}"
        );
        assert_eq!(of_keys.iter().map(|(_, delta)| delta).sum::<u64>(), 7);
        let summary = output.summary();
        assert_eq!(
            (&summary["matched"], &summary["emitted"]),
            (&7.into(), &7.into())
        );
    }
}

#[test]
fn more_sources_than_the_table_holds_are_counted_and_a_busy_one_is_found() {
    let namespace = need!(Namespace::new());
    let args = [
        "--by", "saddr", "--top", "1", "--only", "drop", "-p", "9", "-I", "1m",
    ];
    let tool = start(&namespace, &args);
    let to = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let busy = Ipv4Addr::new(127, 0, 0, 99);
    let first = u32::from(Ipv4Addr::new(127, 1, 0, 0));
    let frames = (0..100_000).flat_map(|host| [Ipv4Addr::from(first + host), busy]);
    namespace.enter(|| {
        let sender = RawSocket::open("lo");
        frames.for_each(|from| sender.send(&syn_frame(&[], from.into(), to, 9)));
    });
    let output = tool.stop();
    let count = output.events("loss_count").pop().unwrap();
    assert_eq!(count["total"], 200_000, "{output:#?}");
    let untracked = count["untracked"].as_u64().unwrap();
    assert!((1..100_000).contains(&untracked), "{output:#?}");
    let (key, delta) = first_of(&count, "drop");
    assert_eq!(key, busy.to_string(), "{output:#?}");
    assert!((99_000..=100_000).contains(&delta), "{output:#?}");
    assert_eq!(output.summary()["matched"], 200_000);
}

#[test]
fn wrong_options_are_refused() {
    for (args, message) in [
        (
            &["--reason", "no_such"][..],
            "'no_such' is not a reason that this kernel gives",
        ),
        (
            &["--netns", "no-such"],
            "unknown network namespace 'no-such'",
        ),
        (&["--only", "lost"], "invalid value 'lost'"),
    ] {
        let mut command = command(["loss-trace"]);
        let output = Tool::spawn(command.args(args)).finish();
        assert_eq!(output.code(), 2, "{output:#?}");
        assert!(output.complaint().0.contains(message), "{output:#?}");
    }
}
