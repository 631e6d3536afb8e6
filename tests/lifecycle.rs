//! What the tool leaves behind (nothing), whom it lives beside, and what its interfaces go through.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use common::bpf::{Foreign, Hook, TCX_DROP, TCX_NEXT, XDP_PASS, has_tcx, objects_of, tcx_programs};
use common::frames::Tun;
use common::tool::{binary, command_of};
use common::{
    CLIENT4, Namespace, Output, Pair, SERVER4, Tool, command, is_guest, need, run, wait_within,
};
use nix::sys::signal::Signal;

/// The ways to attach to an interface.
const WAYS: [&[&str]; 5] = [
    &["syn-count", "vs", "--mode", "native"],
    &["syn-count", "vs", "--mode", "generic"],
    &["syn-count", "vs", "--mode", "tc"],
    &["port-monitor", "vs", "--direction", "both"],
    &["flows", "vs"],
];

/// Those of them that are links here, which the kernel removes when the process is gone.
fn linked() -> Vec<&'static [&'static str]> {
    let tcx = has_tcx().is_ok();
    let mut ways = WAYS.to_vec();
    ways.retain(|args| tcx || !is_tc(args));
    ways
}

fn is_tc(args: &[&str]) -> bool {
    matches!(args[0], "port-monitor" | "flows") || args.contains(&"tc")
}

/// Everything about both ends of a pair that attaching could change.
fn state(pair: &Pair) -> String {
    let mut state = String::new();
    for (namespace, device) in [(&pair.client, "vc"), (&pair.server, "vs")] {
        for command in [
            "ip -d link show dev",
            "tc qdisc show dev",
            "tc filter show ingress dev",
            "tc filter show egress dev",
            "ethtool -k",
        ] {
            state += &namespace.run(&format!("{command} {device}"));
        }
        let tcx = namespace.enter(|| tcx_programs(device));
        state += &format!("tcx {tcx:?}\n");
    }
    state
}

/// Sends a datagram through the pair and tells whether it arrives.
fn datagram_passes(pair: &Pair) -> bool {
    let (to, from) = (
        pair.server.enter(|| UdpSocket::bind((SERVER4, 0)).unwrap()),
        pair.client.enter(|| UdpSocket::bind((CLIENT4, 0)).unwrap()),
    );
    from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
    // What passes is there at once: both ends are on this machine.
    to.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    to.recv(&mut [0; 8]).is_ok()
}

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    let pair = need!(Pair::new());
    let before = state(&pair);
    let mut commands = linked();
    commands.push(&["connect-trace"]);
    let (usual, _) = Tool::start_in(&pair.server, &["syn-count", "lo"]).attached_line();
    let mut with_objects = 0;
    let rounds = if is_guest() { 30 } else { 100 };
    for round in 0..rounds {
        let args = commands[round % commands.len()];
        let tool = Tool::spawn_in(&pair.server, &mut command(args));
        // From before main to well after attaching.
        thread::sleep(usual * round as u32 * 3 / (2 * rounds as u32));
        // Stopped, so that nothing can be added to what is listed.
        tool.signal(Signal::SIGSTOP);
        let objects = objects_of(tool.pid());
        with_objects += usize::from(!objects.is_empty());
        let signal = if round % 3 == 0 {
            Signal::SIGTERM
        } else {
            Signal::SIGKILL
        };
        tool.signal(signal);
        tool.signal(Signal::SIGCONT);
        if signal == Signal::SIGKILL {
            tool.finish();
        } else {
            // Before main it may end by the signal itself.
            let output = tool.finish();
            assert!(
                [Some(0), None].contains(&output.status.code()),
                "{output:#?}"
            );
        }
        let what = format!("{args:?} leaves nothing in round {round}");
        wait_within(&what, Duration::from_secs(1), || {
            (!objects.iter().any(|object| object.exists())).then_some(())
        });
    }
    assert_eq!(state(&pair), before);
    assert!(
        with_objects > rounds / 10,
        "{with_objects} of {rounds} times"
    );
}

#[test]
fn a_normal_end_leaves_nothing_and_restores_what_native_xdp_changed() {
    let pair = need!(Pair::new());
    let before = state(&pair);
    for args in WAYS {
        let tool = Tool::start_in(&pair.server, args);
        let objects = objects_of(tool.pid());
        assert!(!objects.is_empty());
        assert_ne!(state(&pair), before, "{args:?}");
        assert_eq!(tool.stop().code(), 0);
        wait_within("everything is gone", Duration::from_secs(1), || {
            (!objects.iter().any(|object| object.exists())).then_some(())
        });
        assert_eq!(state(&pair), before, "{args:?}");
    }
}

#[test]
fn what_native_xdp_changes_on_the_other_end_is_told() {
    let namespace = need!(Namespace::new());
    need!(namespace.try_run("ip link add va type veth peer name vb"));
    let features = || namespace.run("ethtool -k vb");
    let before = features();
    let tool = Tool::start_in(&namespace, &["syn-count", "va", "--mode", "native"]);
    let during = features();
    let told = |output: &Output| {
        let mut lines = output.stderr.iter();
        lines.any(|line| line.starts_with("notice: native XDP changed vb: "))
    };
    assert_eq!(told(&tool.stop()), during != before);
    assert_eq!(features(), before);

    let elsewhere = Namespace::new().unwrap();
    namespace.run(&format!("ip link set vb netns {}", elsewhere.path()));
    let tool = Tool::start_in(&namespace, &["syn-count", "va", "--mode", "native"]);
    tool.error("about the unseen peer", |line| {
        line.starts_with("notice: ") && line.contains("another network namespace")
    });
    assert_eq!(tool.stop().code(), 0);
    for quiet in [&["-q"][..], &["--mode", "generic"], &["--mode", "tc"]] {
        let args = [&["syn-count", "va"], quiet].concat();
        let output = Tool::start_in(&namespace, &args).stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        // Attached, and the summary.
        assert_eq!(output.stderr.len(), 2, "{output:#?}");
    }
}

#[test]
fn a_foreign_xdp_program_is_named_and_stays_and_tc_works_beside_it() {
    let pair = need!(Pair::new());
    for (hook, mode) in [(Hook::XdpNative, "native"), (Hook::XdpGeneric, "generic")] {
        let foreign = pair
            .server
            .enter(|| Foreign::attach(hook, "vs", XDP_PASS))
            .unwrap();
        let before = state(&pair);
        let named = format!("{mode} XDP program {} 'foreign'", foreign.id());
        for ours in ["auto", "native", "generic"] {
            let mut command = command(["syn-count", "vs", "--mode", ours]);
            let output = Tool::spawn_in(&pair.server, &mut command).finish();
            assert_eq!(output.code(), 1, "{output:#?}");
            let (error, hint) = output.complaint();
            assert!(error.contains(&named), "{error}");
            assert!(hint.unwrap().contains("--mode tc"));
        }
        assert_eq!(state(&pair), before);
        let tool = Tool::start_in(
            &pair.server,
            &["syn-count", "vs", "--json", "-i", "0.05", "--mode", "tc"],
        );
        pair.refused_connects((SERVER4, 80).into(), 10);
        tool.syn_total(10);
        assert_eq!(tool.stop().summary()["syn_total"], 10);
        assert_eq!(state(&pair), before);
    }
}

#[test]
fn foreign_tc_programs_before_and_after_ours_still_act() {
    let pair = need!(Pair::new());
    need!(has_tcx());
    let attach = |hook, verdict| {
        pair.server
            .enter(|| Foreign::attach(hook, "vs", verdict))
            .unwrap()
    };
    let start = || {
        Tool::start_in(
            &pair.server,
            &["port-monitor", "vs", "--json", "--flags", "any"],
        )
    };
    let packets = |tool: Tool| tool.stop().summary()["packets"].as_u64().unwrap();

    let _passes = attach(Hook::TcxFirst, TCX_NEXT);
    assert!(datagram_passes(&pair));
    let tool = start();
    assert!(datagram_passes(&pair), "nothing is dropped by ours");
    assert!(packets(tool) > 0);

    let drops = attach(Hook::TcxLast, TCX_DROP);
    assert!(!datagram_passes(&pair));
    let tool = start();
    assert!(!datagram_passes(&pair), "what follows ours still acts");
    assert!(packets(tool) > 0, "ours is first and sees what others drop");
    assert!(!datagram_passes(&pair));
    drop(drops);

    let tool = start();
    let before = attach(Hook::TcxFirst, TCX_DROP);
    assert!(!datagram_passes(&pair), "what came before ours acts");
    drop(before);
    assert!(datagram_passes(&pair));
    assert_eq!(tool.stop().code(), 0);
}

#[test]
fn the_mode_that_is_really_in_use_is_printed() {
    let namespace = need!(Namespace::new());
    let mut devices = vec!["lo"];
    let tun = namespace.enter(|| Tun::new("tun0"));
    if tun.is_ok() {
        devices.push("tun0");
    }
    for device in devices {
        let tool = Tool::start_in(
            &namespace,
            &["syn-count", device, "--json", "-i", "0.05", "-v"],
        );
        let (_, attached) = tool.attached_line();
        assert!(
            attached.contains(&format!("xdp generic on {device}")),
            "{attached}"
        );
        tool.json("with the mode", |line| line["mode"] == "generic");
        let output = tool.stop();
        let why = format!("notice: {device}: native XDP: ");
        let mut lines = output.stderr.iter();
        assert!(lines.any(|line| line.starts_with(&why)), "{output:#?}");

        let mut command = command(["syn-count", device, "--mode", "native"]);
        let output = Tool::spawn_in(&namespace, &mut command).finish();
        assert_eq!(output.code(), 1);
        let (error, hint) = output.complaint();
        assert!(error.contains("native"), "{error}");
        assert!(hint.unwrap().contains("--mode"));
    }
}

#[test]
fn two_instances_give_right_answers_or_a_clear_refusal() {
    let pair = need!(Pair::new());
    let args = ["syn-count", "vs", "--json", "-i", "0.05"];
    let with_mode = |mode| {
        let mut args = args.to_vec();
        args.extend(["--mode", mode]);
        Tool::start_in(&pair.server, &args)
    };
    let counting = [with_mode("auto"), with_mode("tc"), with_mode("tc")];
    let monitors =
        [(); 2].map(|()| Tool::start_in(&pair.server, &["port-monitor", "vs", "--json"]));

    let output = Tool::spawn_in(&pair.server, &mut command(args)).finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    assert!(output.complaint().0.contains("native XDP program"));

    pair.refused_connects((SERVER4, 80).into(), 50);
    for tool in counting {
        tool.syn_total(50);
        assert_eq!(tool.stop().summary()["syn_total"], 50);
    }
    for tool in monitors {
        tool.events(50);
        assert_eq!(tool.stop().summary()["emitted"], 50);
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
        // By itself, or with the other end.
        if round % 2 == 0 {
            pair.server.run("ip link del vs");
        } else {
            pair.client.run("ip link del vc");
        }
        let output = tool.finish();
        assert!(deleted.elapsed() < Duration::from_secs(2), "{args:?}");
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
    let pair = need!(Pair::new());
    let tool = Tool::start_in(&pair.server, &["port-monitor", "vs"]);
    let batch = "ip link del vs\nip link add vs type veth peer name other";
    pair.server
        .enter(|| batch.lines().for_each(|line| drop(run(line))));
    assert_eq!(tool.finish().code(), 1);
}

#[test]
fn while_one_interface_is_left_the_run_goes_on() {
    let pair = need!(Pair::new());
    let tools = [
        Tool::start_in(&pair.server, &["port-monitor", "vs", "lo", "--json"]),
        Tool::start_in(
            &pair.server,
            &["syn-count", "vs", "lo", "--json", "-i", "0.05"],
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
fn a_renamed_stopped_restarted_or_resized_interface_is_counted_on() {
    for args in WAYS {
        let pair = need!(Pair::new());
        let mut args = args.to_vec();
        args.push("--json");
        if args[0] == "syn-count" {
            args.extend(["-i", "0.05"]);
        }
        let tool = Tool::start_in(&pair.server, &args);
        let told = |text: &str| {
            tool.error(text, |line| line == format!("notice: interface {text}"));
        };
        pair.server.run("ip link set vs down");
        told("vs is down");
        pair.server.run("ip link set vs name renamed");
        told("vs was renamed to renamed");
        pair.server.run("ip link set renamed mtu 1400");
        pair.server.run("ip link set renamed up");
        told("renamed is up");
        pair.refused_connects((SERVER4, 80).into(), 5);
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        assert_eq!(output.summary()["matched"], 5, "{args:?}");
    }
}

#[test]
fn an_interface_that_moves_to_another_namespace_is_counted_on_until_it_is_deleted_there() {
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
        assert!(gone.elapsed() < Duration::from_secs(2), "{args:?}");
        assert_eq!(output.code(), 1, "{output:#?}");
        let matched = output.summary()["matched"].as_u64();
        assert_eq!(matched > Some(0), is_link, "{args:?}");
    }
}

/// A namespace with a name, for `ip netns exec`.
struct Named(String);

impl Named {
    fn new() -> Result<Self, String> {
        // Made by a namespace of its own first, for the reason why it can't be.
        Namespace::new()?;
        let name = format!("tcpinspect-test-{}", std::process::id());
        common::try_run(&format!("ip netns add {name}"))?;
        Ok(Self(name))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = common::try_run(&format!("ip netns del {}", self.0));
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
        &["connect-trace"],
    ] {
        let mut exec = command_of("ip".as_ref(), ["netns", "exec", &named.0]);
        exec.arg(binary()).args(args);
        let output = Tool::spawn(&mut exec).attached().stop();
        assert_eq!(output.code(), 0, "{output:#?}");
    }
}
