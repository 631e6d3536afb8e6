//! `listeners`: shows what ss and nstat show, and the right process.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use crate::common::net::{counter, listener, shared_listener};
use crate::common::{
    CLIENT4, Namespace, Pair, Reaped, SERVER4, Tool, command, holder, need, wait_for,
};
use crate::connect::sockets::{multipath, multipath_listener, tcp};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};
use serde_json::Value;

fn once(namespace: &Namespace, args: &[&str]) -> Vec<Value> {
    let mut command = command(["listeners", "--once", "--json"]);
    let output = Tool::spawn_in(namespace, command.args(args)).finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    output.events("listener")
}

/// Connects without waiting for an answer, and keeps the sockets.
fn knock(namespace: &Namespace, from: SocketAddr, addr: SocketAddr, count: usize) -> Vec<OwnedFd> {
    namespace.enter(|| {
        let knock = |_| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let client = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            bind(client.as_raw_fd(), &SockaddrStorage::from(from)).unwrap();
            let _ = nix::sys::socket::connect(client.as_raw_fd(), &SockaddrStorage::from(addr));
            client
        };
        (0..count).map(knock).collect()
    })
}

#[test]
fn a_full_queue_its_process_and_its_drops_are_as_ss_and_nstat_say() {
    let pair = need!(Pair::new());
    let addr = SocketAddr::from((SERVER4, 80));
    let _listener = pair.server.enter(|| listener(addr, 1));
    let tool = Tool::start_in(&pair.server, &["listeners", "--json", "-I", "0.2"]);
    tool.json("of the first report", |line| line["event"] == "listener");
    let _clients = knock(&pair.client, (CLIENT4, 0).into(), addr, 8);
    let full = tool.json("of a drop", |line| {
        line["drops_delta"].as_u64().is_some_and(|drops| drops > 0)
    });
    assert!(full["drop_rate"].as_f64().unwrap() > 0.0, "{full}");
    assert_eq!(tool.stop().code(), 0);

    let shown = once(&pair.server, &[]);
    let [shown] = shown.as_slice() else {
        panic!("expected one listener: {shown:#?}")
    };
    let ss = pair.server.run("ss -Hltmn");
    let fields = ss.split_whitespace().collect::<Vec<_>>();
    let number = |text: &str| text.parse::<u64>().unwrap();
    assert_eq!(shown["queue_len"], number(fields[1]), "{ss}");
    assert_eq!(shown["queue_max"], number(fields[2]), "{ss}");
    // Two fit where the limit is one.
    assert_eq!(
        (&shown["queue_len"], &shown["queue_max"]),
        (&2.into(), &1.into())
    );
    // SYNs are retransmitted meanwhile, so the number grows from one report to the next.
    let before = counter(&pair.server, "TcpExtListenDrops");
    let drops = once(&pair.server, &[])[0]["drops_total"].as_u64().unwrap();
    let after = counter(&pair.server, "TcpExtListenDrops");
    assert!(
        (before..=after).contains(&drops) && before >= 6,
        "{before} {drops} {after}"
    );
    assert_eq!(shown["netns"], pair.server.inode());
    assert_eq!(shown["pid"], std::process::id());
    assert_eq!((&shown["processes"], &shown["uid"]), (&1.into(), &0.into()));
}

#[test]
fn a_group_of_sockets_is_one_row_and_its_members_are_reported() {
    let namespace = need!(Namespace::new());
    let addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080));
    let sockets = namespace.enter(|| [7, 8, 9].map(|backlog| shared_listener(addr, backlog)));
    let rows = once(&namespace, &[]);
    let [row] = rows.as_slice() else {
        panic!("expected one row: {rows:#?}")
    };
    assert_eq!(
        (&row["sockets"], &row["queue_max"]),
        (&3.into(), &24.into())
    );
    assert_eq!(
        (&row["addr"], &row["dual_stack"]),
        (&"::".into(), &true.into())
    );
    let members = row["members"].as_array().unwrap();
    let limits = members
        .iter()
        .map(|member| member["queue_max"].as_u64().unwrap());
    assert_eq!(limits.collect::<Vec<_>>(), [7, 8, 9]);
    drop(sockets);
    assert_eq!(once(&namespace, &[]), [] as [Value; 0]);
}

#[test]
fn the_members_of_a_group_are_in_order_and_its_process_is_the_one_with_the_lowest_id() {
    let namespace = need!(Namespace::new());
    for addr in [[127, 0, 0, 1].into(), Ipv6Addr::LOCALHOST.into()] {
        let addr = SocketAddr::new(addr, 8080);
        let processes =
            [7, 8, 9].map(|backlog| holder(namespace.enter(|| shared_listener(addr, backlog))));
        let rows = once(&namespace, &[]);
        let [row] = rows.as_slice() else {
            panic!("expected one row: {rows:#?}")
        };
        let members = row["members"].as_array().unwrap().iter();
        let members = members.map(|it| (it["queue_max"].as_u64(), it["pid"].as_u64()));
        let pids = processes.each_ref().map(|it| u64::from(it.0.id()));
        let made = std::iter::zip([7, 8, 9], pids).map(|(max, pid)| (Some(max), Some(pid)));
        assert_eq!(members.collect::<Vec<_>>(), made.collect::<Vec<_>>());
        assert_eq!(row["pid"].as_u64(), pids.into_iter().min());
        assert_eq!(row["processes"], 3, "{row}");
    }
}

#[test]
fn sockets_for_ipv6_only_have_a_row_of_their_own() {
    let namespace = need!(Namespace::new());
    let addr = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080));
    let _sockets = namespace.enter(|| {
        [(true, 3), (false, 4)].map(|(only_v6, backlog)| {
            let socket = tcp(addr, SockFlag::empty());
            setsockopt(&socket, sockopt::ReusePort, &true).unwrap();
            setsockopt(&socket, sockopt::Ipv6V6Only, &only_v6).unwrap();
            bind(socket.as_raw_fd(), &SockaddrStorage::from(addr)).unwrap();
            listen(&socket, Backlog::new(backlog).unwrap()).unwrap();
            socket
        })
    });
    let rows = once(&namespace, &[]);
    let shown = rows.iter().map(|row| {
        assert_eq!((&row["addr"], &row["sockets"]), (&"::".into(), &1.into()));
        (row["dual_stack"].as_bool(), row["queue_max"].as_u64())
    });
    let shown = shown.collect::<BTreeMap<_, _>>();
    assert_eq!(
        shown,
        BTreeMap::from([(Some(true), Some(4)), (Some(false), Some(3))])
    );
}

#[test]
fn an_interface_that_is_made_or_renamed_later_has_its_name() {
    let namespace = need!(Namespace::new());
    let tool = Tool::start_in(&namespace, &["listeners", "--json", "-I", "0.2"]);
    namespace.run("ip link add late type veth peer name late2");
    let addr = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 86));
    let _socket = namespace.enter(|| {
        let socket = tcp(addr, SockFlag::empty());
        setsockopt(&socket, sockopt::BindToDevice, &"late".into()).unwrap();
        bind(socket.as_raw_fd(), &SockaddrStorage::from(addr)).unwrap();
        listen(&socket, Backlog::new(8).unwrap()).unwrap();
        socket
    });
    let first = tool.json("of the listener", |line| line["port"] == 86);
    assert_eq!(first["iface"], "late", "{first}");
    namespace.run("ip link set late name later");
    tool.json("of the new name", |line| line["iface"] == "later");
    assert_eq!(tool.stop().code(), 0);
}

#[test]
fn a_multipath_listener_has_a_process() {
    need!(multipath().map_err(|errno| format!("the kernel has no MPTCP ({errno})")));
    let namespace = need!(Namespace::new());
    let _sockets = namespace.enter(|| {
        [
            listener(([127, 0, 0, 1], 84).into(), 8),
            multipath_listener(85),
        ]
    });
    // A program that another test is starting may still have one of them open.
    wait_for("one process for both listeners", || {
        let rows = once(&namespace, &["-p", "84,85"]);
        let [first, second] = rows.as_slice() else {
            panic!("expected two listeners: {rows:#?}")
        };
        let process = |row: &Value| ["pid", "comm", "cgroup_id"].map(|key| row[key].clone());
        let member = &second["members"][0];
        (process(first) == process(second) && first["pid"] == member["pid"]).then_some(())
    });
}

#[test]
fn half_open_connections_count_for_their_listener_and_all_families_are_there() {
    let pair = need!(Pair::new());
    let (first, second) = pair.server.enter(|| {
        let first = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 81)).unwrap();
        let second = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 82)).unwrap();
        (first, second)
    });
    // No answer to this address arrives.
    let from = SocketAddr::from((Ipv4Addr::new(10, 77, 0, 77), 0));
    pair.client.run("ip addr add 10.77.0.77/24 dev vc");
    pair.server
        .run("ip neigh replace 10.77.0.77 lladdr 02:00:00:00:00:77 dev vs nud permanent");
    let _clients = knock(&pair.client, from, (SERVER4, 81).into(), 5);
    let rows = once(&pair.server, &[]);
    let half_open = rows.iter().map(|row| {
        let value = |key: &str| row[key].as_u64().unwrap();
        (value("port"), value("syn_queue_len"))
    });
    let half_open = half_open.collect::<BTreeMap<_, _>>();
    assert_eq!(half_open, BTreeMap::from([(81, 5), (82, 0)]), "{rows:#?}");
    assert_eq!(once(&pair.server, &["-4"]).len(), 1);
    assert_eq!(once(&pair.server, &["-p", "1-81"]).len(), 1);
    assert_eq!(once(&pair.server, &["-p", "!81,!82"]).len(), 0);
    drop((first, second));
}

#[test]
fn an_alert_is_raised_while_a_queue_is_full_and_cleared_after() {
    let pair = need!(Pair::new());
    let addr = SocketAddr::from((SERVER4, 80));
    let listener = pair.server.enter(|| TcpListener::bind(addr).unwrap());
    listen(&listener, Backlog::new(4).unwrap()).unwrap();
    let args = ["listeners", "--json", "-I", "0.2", "--alert", "75"];
    let tool = Tool::start_in(&pair.server, &args);
    let clients = (0..3).map(|_| pair.client.enter(|| TcpStream::connect(addr).unwrap()));
    let clients = clients.collect::<Vec<_>>();
    let alert = |state: &'static str| move |line: &Value| line["state"] == state;
    let raised = tool.json("of an alert", alert("raised"));
    assert_eq!(
        (&raised["port"], &raised["threshold"]),
        (&80.into(), &75.into())
    );
    for _ in &clients {
        listener.accept().unwrap();
    }
    tool.json("of its end", alert("cleared"));
    let output = tool.stop();
    assert_eq!(output.code(), 0);
    assert_eq!(output.events("listener_alert").len(), 2);
}

#[test]
fn another_network_namespace_can_be_named_by_path_and_by_process() {
    let namespace = need!(Namespace::new());
    let _listener = namespace.enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 83)).unwrap());
    let mut sleeper = namespace.enter(|| {
        let mut sleep = std::process::Command::new("sleep");
        Reaped(sleep.arg("60").spawn().unwrap())
    });
    for place in [namespace.path(), sleeper.0.id().to_string()] {
        let args = ["listeners", "--once", "--json", "--netns", &place];
        let output = Tool::spawn(&mut command(args)).finish();
        let rows = output.events("listener");
        assert_eq!(
            (rows.len(), &rows[0]["port"]),
            (1, &83.into()),
            "{output:#?}"
        );
        assert_eq!(rows[0]["netns"], namespace.inode());
    }
    sleeper.0.kill().unwrap();
    let output = Tool::spawn(&mut command(["listeners", "--netns", "no-such"])).finish();
    assert_eq!(output.code(), 2, "{output:#?}");
    let (message, hint) = output.complaint();
    assert!(
        message.contains("unknown network namespace 'no-such'"),
        "{message}"
    );
    assert!(hint.unwrap().contains("ip netns list"));
}

#[test]
fn a_scan_of_many_open_files_is_cheap_enough_to_be_repeated() {
    let namespace = need!(Namespace::new());
    let sockets = namespace.enter(|| {
        let bind = |_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        (0..300).map(bind).collect::<Vec<_>>()
    });
    let started = std::time::Instant::now();
    assert_eq!(once(&namespace, &[]).len(), sockets.len());
    assert!(
        started.elapsed() < Duration::from_secs(5),
        "{:?}",
        started.elapsed()
    );
}
