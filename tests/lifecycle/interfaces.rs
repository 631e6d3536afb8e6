//! Kinds of interfaces, and changes of them while the tool is attached.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{WAYS, linked};
use crate::common::bpf::tcx_programs;
use crate::common::raw::Tun;
use crate::common::tool::{binary, command_of};
use crate::common::{Namespace, Pair, SERVER4, Tool, command, need, quick, run, try_run};

#[test]
fn native_xdp_is_used_only_where_it_is_asked_for_and_available() {
    let pair = need!(Pair::new());
    for (mode, used) in [("auto", "generic"), ("native", "native")] {
        let args = ["syn-count", "vs", "--json", "-I", "0.05", "--mode", mode];
        let tool = Tool::start_in(&pair.server, &args);
        let (_, attached) = tool.attached_line();
        assert!(
            attached.contains(&format!("xdp {used} on vs")),
            "{attached}"
        );
        tool.json("with the mode", |line| line["mode"] == used);
        assert_eq!(tool.stop().code(), 0);
    }
    let namespace = need!(Namespace::new());
    let mut devices = vec!["lo"];
    let tun = namespace.enter(|| Tun::new("tun0"));
    if tun.is_ok() {
        devices.push("tun0");
    }
    for device in devices {
        let mut command = command(["syn-count", device, "--mode", "native"]);
        let output = Tool::spawn_in(&namespace, &mut command).finish();
        assert_eq!(output.code(), 1);
        let (error, hint) = output.complaint();
        assert!(error.contains("native"), "{error}");
        assert!(hint.unwrap().contains("--mode"));
    }
}

#[test]
fn a_deleted_interface_ends_the_run_within_two_seconds() {
    for (round, args) in WAYS.into_iter().enumerate() {
        let pair = need!(Pair::new());
        let mut args = args.to_vec();
        args.push("--json");
        let tool = Tool::start_in(&pair.server, &args);
        let deleted = Instant::now();
        // Directly, or by deleting the other end.
        if round % 2 == 0 {
            pair.server.run("ip link del vs");
        } else {
            pair.client.run("ip link del vc");
        }
        let output = tool.finish();
        assert!(
            deleted.elapsed() < quick(Duration::from_secs(2)),
            "{args:?}"
        );
        assert_eq!(output.code(), 1, "{output:#?}");
        let last = output.stderr.last().unwrap();
        assert!(
            last.starts_with("tcpinspect: the interface went away"),
            "{last}"
        );
        assert_eq!(output.summary()["exit_reason"], "interface_gone");
    }
}

#[test]
fn a_new_interface_with_the_same_name_is_another_one() {
    for args in WAYS {
        let pair = need!(Pair::new());
        let tool = Tool::spawn_in(&pair.server, command(args).arg("--json")).attached();
        let batch = "ip link del vs\nip link add vs type veth peer name other\nip link set vs up";
        pair.server
            .enter(|| batch.lines().for_each(|line| drop(run(line))));
        let output = tool.finish();
        assert_eq!(output.code(), 1, "{output:#?}");
        assert_eq!(output.summary()["exit_reason"], "interface_gone");
        // Nothing was attached to the new one.
        let link = pair.server.run("ip -d link show dev vs");
        assert!(!link.contains("xdp"), "{args:?}: {link}");
        let programs = pair.server.enter(|| tcx_programs("vs"));
        assert_eq!(programs, [0; 0], "{args:?}");
        let qdiscs = pair.server.run("tc qdisc show dev vs");
        assert!(!qdiscs.contains("clsact"), "{args:?}: {qdiscs}");
    }
}

#[test]
fn while_one_interface_is_left_the_run_goes_on() {
    let pair = need!(Pair::new());
    let tools = [
        Tool::start_in(&pair.server, &["port-monitor", "vs", "lo", "--json"]),
        Tool::start_in(
            &pair.server,
            &["syn-count", "vs", "lo", "--json", "-I", "0.05"],
        ),
    ];
    pair.server.run("ip link del vs");
    for tool in &tools {
        tool.error("about the end", |line| {
            line == "notice: interface vs is gone"
        });
    }
    pair.server.enter(|| {
        let error = TcpStream::connect("127.0.0.1:80").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
    let [monitor, count] = tools;
    monitor.events(1);
    count.json("of lo", |line| {
        line["iface"] == "lo" && line["syn_total"] == 1
    });
    assert_eq!(monitor.stop().summary()["matched"], 1);
    assert_eq!(count.stop().summary()["syn_total"], 1);
}

#[test]
fn a_renamed_stopped_restarted_or_resized_interface_is_still_counted() {
    for args in WAYS {
        let pair = need!(Pair::new());
        let mut args = args.to_vec();
        args.push("--json");
        if args[0] == "syn-count" {
            args.extend(["-I", "0.05"]);
        }
        let tool = Tool::start_in(&pair.server, &args);
        let expect_notice = |text: &str| {
            tool.error(text, |line| line == format!("notice: interface {text}"));
        };
        pair.server.run("ip link set vs down");
        expect_notice("vs is down");
        pair.server.run("ip link set vs name renamed");
        expect_notice("vs was renamed to renamed");
        pair.server.run("ip link set renamed mtu 1400");
        pair.server.run("ip link set renamed up");
        expect_notice("renamed is up");
        pair.refused_connects((SERVER4, 80).into(), 5);
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        assert_eq!(output.summary()["matched"], 5, "{args:?}");
    }
}

#[test]
fn an_interface_that_moves_to_another_namespace_is_still_counted_until_it_is_deleted_there() {
    for args in WAYS {
        let pair = need!(Pair::new());
        let elsewhere = Namespace::new().unwrap();
        let mut args = args.to_vec();
        args.push("--json");
        let tool = Tool::start_in(&pair.server, &args);
        let mut gone = Instant::now();
        pair.server
            .run(&format!("ip link set vs netns {}", elsewhere.path()));
        tool.error("about the move", |line| {
            line.starts_with("notice: interface vs was moved to another network namespace")
        });
        // A filter, unlike a link, stays behind.
        let is_link = linked().iter().any(|way| args.starts_with(way));
        if is_link {
            elsewhere.run(&format!("ip addr add {SERVER4}/24 dev vs"));
            elsewhere.run("ip link set vs up");
            let listener = elsewhere.enter(|| TcpListener::bind((SERVER4, 80)).unwrap());
            pair.client
                .enter(|| TcpStream::connect((SERVER4, 80)).unwrap());
            drop(listener);
            gone = Instant::now();
            elsewhere.run("ip link del vs");
        }
        let output = tool.finish();
        assert!(gone.elapsed() < quick(Duration::from_secs(2)), "{args:?}");
        assert_eq!(output.code(), 1, "{output:#?}");
        let matched = output.summary()["matched"].as_u64();
        assert_eq!(matched > Some(0), is_link, "{args:?}");
    }
}

/// A namespace with a name, for `ip netns exec`.
struct Named(String);

impl Named {
    fn new() -> Result<Self, String> {
        // If no namespace can be made, this says why.
        Namespace::new()?;
        let name = format!("tcpinspect-test-{}", std::process::id());
        try_run(&format!("ip netns add {name}"))?;
        Ok(Self(name))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = try_run(&format!("ip netns del {}", self.0));
    }
}

#[test]
fn it_works_inside_ip_netns_exec_where_sys_is_mounted_anew() {
    let named = need!(Named::new());
    run(&format!("ip -n {} link set lo up", named.0));
    for args in [
        &["syn-count", "lo"][..],
        &["syn-count", "lo", "--mode", "tc"],
        &["port-monitor", "lo"],
        &["flows", "lo"],
        &["connect-trace"],
    ] {
        let mut exec = command_of("ip".as_ref(), ["netns", "exec", &named.0]);
        exec.arg(binary()).args(args);
        let output = Tool::spawn(&mut exec).attached().stop();
        assert_eq!(output.code(), 0, "{output:#?}");
    }
}
