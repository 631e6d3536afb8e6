//! Other programs, filters and instances on the same interface.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::Command;

use super::{WAYS, datagram_passes, is_tc};
use crate::common::bpf::{
    Foreign, Hook, TCX_DROP, TCX_NEXT, XDP_PASS, cgroup_programs, has_fentry, has_tcx, tcx_programs,
};
use crate::common::cgroup::Cgroup;
use crate::common::{Pair, SERVER4, Tool, command, need, try_run};

#[test]
fn a_foreign_xdp_program_is_named_and_stays_and_tc_works_beside_it() {
    let pair = need!(Pair::new());
    for (hook, mode) in [(Hook::XdpNative, "native"), (Hook::XdpGeneric, "generic")] {
        let foreign = pair
            .server
            .enter(|| Foreign::attach(hook, "vs", XDP_PASS))
            .unwrap();
        let before = pair.state();
        let named = format!("{mode} XDP program {} 'foreign'", foreign.id());
        for ours in ["auto", "native", "generic"] {
            let mut command = command(["syn-count", "vs", "--mode", ours]);
            let output = Tool::spawn_in(&pair.server, &mut command).finish();
            assert_eq!(output.code(), 1, "{output:#?}");
            let (error, hint) = output.complaint();
            assert!(error.contains(&named), "{error}");
            assert!(hint.unwrap().contains("--mode tc"));
        }
        assert_eq!(pair.state(), before);
        let tool = Tool::start_in(
            &pair.server,
            &["syn-count", "vs", "--json", "-I", "0.05", "--mode", "tc"],
        );
        pair.refused_connects((SERVER4, 80).into(), 10);
        tool.syn_total(10);
        assert_eq!(tool.stop().summary()["syn_total"], 10);
        assert_eq!(pair.state(), before);
    }
}

#[test]
fn tc_programs_of_others_before_and_after_ours_still_act() {
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
fn two_instances_give_right_answers_or_a_clear_refusal() {
    let pair = need!(Pair::new());
    let args = ["syn-count", "vs", "--json", "-I", "0.05"];
    let with_mode = |mode| {
        let mut args = args.to_vec();
        args.extend(["--mode", mode]);
        Tool::start_in(&pair.server, &args)
    };
    let counting = [with_mode("auto"), with_mode("tc"), with_mode("tc")];
    let monitors =
        [(); 2].map(|()| Tool::start_in(&pair.server, &["port-monitor", "vs", "--json"]));
    let tables = [(); 2].map(|()| Tool::start_in(&pair.server, &["flows", "vs", "--json"]));

    let output = Tool::spawn_in(&pair.server, &mut command(args)).finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    assert!(output.complaint().0.contains("generic XDP program"));

    pair.refused_connects((SERVER4, 80).into(), 50);
    for tool in counting {
        tool.syn_total(50);
        assert_eq!(tool.stop().summary()["syn_total"], 50);
    }
    for tool in monitors {
        tool.events(50);
        assert_eq!(tool.stop().summary()["emitted"], 50);
    }
    for tool in tables {
        assert_eq!(tool.stop().summary()["emitted"], 50);
    }
}

/// xdp-filter of xdp-tools on an interface of the server, until this is dropped: it lets all pass.
struct XdpFilter<'a>(&'a Pair);

impl<'a> XdpFilter<'a> {
    fn load(pair: &'a Pair, mode: &str) -> Result<Self, String> {
        // libxdp pins what it loads, where systemd has mounted the file system for it.
        let mounts = std::fs::read_to_string("/proc/self/mounts").map_err(|e| e.to_string())?;
        if !mounts.contains(" /sys/fs/bpf bpf ") {
            try_run("mount -t bpf bpf /sys/fs/bpf")?;
        }
        let load = format!("xdp-filter load vs -m {mode} -f tcp -p allow");
        pair.server.try_run(&load)?;
        Ok(Self(pair))
    }

    /// The id of the program that the interface has: libxdp's dispatcher, or where the kernel has
    /// no programs that extend others, the filter itself.
    fn id(&self) -> u32 {
        let link = self.0.server.run("ip -d link show dev vs");
        let mut words = link.split_whitespace();
        words.find(|word| *word == "prog/xdp").unwrap();
        words.nth(1).unwrap().parse().unwrap()
    }

    fn status(&self) -> String {
        self.0.server.run("xdp-loader status vs")
    }
}

impl Drop for XdpFilter<'_> {
    fn drop(&mut self) {
        // libxdp pins what it loads, which would outlive the interface.
        let _ = self.0.server.try_run("xdp-filter unload vs");
    }
}

#[test]
fn the_dispatcher_of_libxdp_is_named_and_stays_and_tc_works_beside_it() {
    let pair = need!(Pair::new());
    need!(try_run("xdp-loader status lo"));
    let clean = pair.state();
    for (theirs, mode) in [("skb", "generic"), ("native", "native")] {
        let filter = XdpFilter::load(&pair, theirs).unwrap();
        let (before, status) = (pair.state(), filter.status());
        let named = format!("{mode} XDP program {}", filter.id());
        for ours in ["auto", "native", "generic"] {
            let mut command = command(["syn-count", "vs", "--mode", ours]);
            let output = Tool::spawn_in(&pair.server, &mut command).finish();
            assert_eq!(output.code(), 1, "{output:#?}");
            let (error, hint) = output.complaint();
            assert!(error.contains(&named), "{error}");
            if has_fentry().is_ok() {
                assert!(error.contains("'xdp_dispatcher'"), "{error}");
            }
            assert!(hint.unwrap().contains("--mode tc"));
        }
        for args in WAYS.into_iter().filter(|args| is_tc(args)) {
            let tool = Tool::spawn_in(&pair.server, command(args).arg("--json")).attached();
            pair.refused_connects((SERVER4, 80).into(), 10);
            let output = tool.stop();
            assert_eq!(output.code(), 0, "{output:#?}");
            let summary = output.summary();
            assert_eq!(summary["matched"], 10, "{args:?}: {summary}");
        }
        assert_eq!(pair.state(), before);
        assert_eq!(filter.status(), status);
        drop(filter);
        assert_eq!(pair.state(), clean);
    }
}

#[test]
fn a_chain_of_others_keeps_its_order_around_ours() {
    let pair = need!(Pair::new());
    need!(has_tcx());
    let attach = |hook| {
        pair.server
            .enter(|| Foreign::attach(hook, "vs", TCX_NEXT))
            .unwrap()
    };
    let programs = || pair.server.enter(|| tcx_programs("vs"));
    let hooks = [
        Hook::TcxFirst,
        Hook::TcxLast,
        Hook::TcxFirstOut,
        Hook::TcxLastOut,
    ];
    for args in WAYS.into_iter().filter(|args| is_tc(args)) {
        let inner = hooks.map(attach);
        let before = programs();
        assert_eq!(before, inner.each_ref().map(Foreign::id), "{args:?}");

        let tool = Tool::spawn_in(&pair.server, command(args).arg("--json")).attached();
        let theirs = || {
            let mut all = programs();
            all.retain(|id| before.contains(id));
            all
        };
        assert_eq!(theirs(), before, "{args:?}");
        assert_ne!(programs(), before, "{args:?}");
        // Other programs come and go around ours, like the programs of an agent that is restarted.
        let outer = hooks.map(attach);
        assert_eq!(theirs(), before, "{args:?}");
        pair.refused_connects((SERVER4, 80).into(), 10);
        drop(outer);
        let summary = tool.stop().summary();
        // On a busy machine a SYN may have to be sent twice.
        assert!(
            summary["matched"].as_u64() >= Some(10),
            "{args:?}: {summary}"
        );
        assert_eq!(programs(), before, "{args:?}");
    }
}

#[test]
fn filters_and_qdiscs_of_others_stay_as_they_are() {
    const FILTERS: [&str; 3] = [
        "ingress pref 20 bpf bytecode 1,6~0~0~0",
        "ingress protocol ip pref 21 u32 match ip dport 9 0xffff flowid 1:2",
        "egress pref 22 bpf bytecode 1,6~0~0~0",
    ];
    let pair = need!(Pair::new());
    need!(pair.server.try_run("tc qdisc add dev vs clsact"));
    pair.server
        .run("tc qdisc add dev vs root handle 5: pfifo limit 77");
    let add = |filter: &&str| {
        // A space within a word is written as ~ here.
        let words = filter.split(' ').map(|word| word.replace('~', " "));
        let mut tc = Command::new("tc");
        tc.args(["filter", "add", "dev", "vs"]).args(words);
        pair.server.enter(|| tc.output().unwrap().status.success())
    };
    // A kernel may lack a kind.
    let added = FILTERS.iter().filter(|filter| add(filter)).count();
    assert!(added > 1, "{added} filters");
    let before = pair.state();
    for args in WAYS {
        let tool = Tool::spawn_in(&pair.server, command(args).arg("--json")).attached();
        let during = pair.state();
        let mut lines = during.lines();
        for line in before.lines().filter(|line| line.contains("filter")) {
            assert!(lines.any(|other| other == line), "{args:?}: {line}");
        }
        if is_tc(args) && has_tcx().is_ok() {
            let filters = |state: &str| {
                let mut lines: Vec<_> = state.lines().map(str::to_owned).collect();
                lines.retain(|line| line.contains("filter") || line.contains("qdisc"));
                lines
            };
            assert_eq!(filters(&during), filters(&before), "{args:?}");
        }
        pair.refused_connects((SERVER4, 80).into(), 5);
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        assert_eq!(output.summary()["matched"], 5, "{args:?}");
        assert_eq!(pair.state(), before, "{args:?}");
    }
}

#[test]
fn programs_of_cgroups_stay_as_they_are() {
    let pair = need!(Pair::new());
    let cgroup = need!(Cgroup::new("programs"));
    let directory = File::open(cgroup.path()).unwrap();
    let foreign = Foreign::attach_to_cgroup(directory.as_fd()).unwrap();
    assert_eq!(cgroup_programs(directory.as_fd()), [foreign.id()]);
    for args in WAYS.into_iter().chain([&["connect-trace"][..]]) {
        let tool = Tool::start_in(&pair.server, args);
        assert_eq!(cgroup_programs(directory.as_fd()), [foreign.id()]);
        assert_eq!(tool.stop().code(), 0);
        assert_eq!(cgroup_programs(directory.as_fd()), [foreign.id()]);
    }
}
