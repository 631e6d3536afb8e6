//! `check`: what it finds, and that it leaves nothing attached.

use crate::common::tool::{ENOUGH, PublicBinary, as_nobody, command_of};
use crate::common::{Namespace, Output, Tool, command, need, run};
use serde_json::Value;

fn finding(output: &Output, name: &str) -> Value {
    let mut found = output.events("check");
    found.retain(|line| line["name"] == name);
    assert_eq!(found.len(), 1, "{name}: {output:#?}");
    found.remove(0)
}

/// What was found out about each command.
fn commands(output: &Output) -> Vec<Value> {
    let mut found = output.events("check");
    found.retain(|line| line["kind"] == "command");
    assert_eq!(found.len(), 8, "{output:#?}");
    found
}

#[test]
fn what_check_says_a_command_would_use_is_what_it_uses() {
    let namespace = need!(Namespace::new());
    let check = Tool::spawn_in(&namespace, &mut command(["check", "--json"])).finish();
    for command in commands(&check) {
        let name = command["name"].as_str().unwrap();
        let args = [name, "--duration", "0.01"];
        let ran = Tool::spawn_in(&namespace, &mut crate::common::command(args)).finish();
        assert_eq!(command["ok"] == true, ran.code() == 0, "{command} {ran:#?}");
        let (Some(uses), true) = (command["uses"].as_str(), ran.code() == 0) else {
            continue;
        };
        let attached = ran.stderr.iter().find(|line| line.starts_with("attached:"));
        if name == "exporter" {
            // It uses hooks of the other commands, and names its collectors.
            assert!(uses.starts_with("collectors "), "{uses}: {attached:?}");
            continue;
        }
        // "tracepoint, ring buffer", "tc ingress (tcx) on lo, ring buffer", "xdp generic on lo".
        let holds = |part: &str| attached.unwrap().contains(part);
        for part in uses.split(", ") {
            let is_used = match part {
                "tc egress and ingress on lo" => {
                    ["tc egress (", "tc ingress (", ") on lo"].map(holds) == [true; 3]
                }
                part => holds(part),
            };
            assert!(is_used, "{uses}: {attached:?}");
        }
    }
    let able = commands(&check).iter().all(|line| line["ok"] == true);
    assert_eq!(check.code(), i32::from(!able));
    assert_eq!(check.summary()["exit_reason"], "done");
}

#[test]
fn check_shows_the_memory_of_each_possible_cpu() {
    let namespace = need!(Namespace::new());
    let check = Tool::spawn_in(&namespace, &mut command(["check", "--json"])).finish();
    let cpus = finding(&check, "cpus");
    let possible = run("cat /sys/devices/system/cpu/possible");
    let last = possible.trim().rsplit(['-', ',']).next().unwrap();
    let count = last.parse::<usize>().unwrap() + 1;
    let detail = cpus["detail"].as_str().unwrap();
    assert!(
        detail.starts_with(&format!("{count} possible, ")),
        "{detail}"
    );
    let (_, memory) = detail.split_once("; memory per possible CPU: ").unwrap();
    let parts = memory.split(", ").map(|part| {
        let words: Vec<_> = part.split(' ').collect();
        let [name, kib, "KiB"] = words[..] else {
            panic!("{part}");
        };
        assert!((1..8192).contains(&kib.parse::<u32>().unwrap()), "{part}");
        name
    });
    let parts: Vec<_> = parts.collect();
    assert_eq!(parts, ["port-monitor", "flows", "loss-trace", "--by"]);
}

#[test]
fn check_leaves_no_program_on_any_interface() {
    let namespace = need!(Namespace::new());
    let look = "ip -d link show";
    let before = (run(look), namespace.run(look));
    Tool::spawn_in(&namespace, &mut command(["check"])).finish();
    assert_eq!(before, (run(look), namespace.run(look)));
}

#[test]
fn without_privileges_every_command_says_what_is_missing() {
    need!(Namespace::new());
    let binary = PublicBinary::new();
    let mut command = command_of(&binary.path(), ["check", "--json"]);
    as_nobody(&mut command, &[]);
    let output = Tool::spawn(&mut command).finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    for command in commands(&output) {
        let (runs, detail) = match command["name"].as_str().unwrap() {
            "listeners" => (true, "processes can't be shown: "),
            "exporter" => (false, "the commands above say why"),
            _ => (false, "missing CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON"),
        };
        assert_eq!(command["ok"], runs, "{command}");
        let found = command["detail"].as_str().unwrap();
        let fits = match runs {
            true => found.starts_with(detail),
            false => found == detail,
        };
        assert!(fits, "{command}");
    }
    let (error, hint) = output.complaint();
    assert!(error.contains("port-monitor"), "{error}");
    assert!(hint.unwrap().contains("setcap"));
}

#[test]
fn with_three_capabilities_programs_are_loaded_and_not_attached() {
    need!(Namespace::new());
    let binary = PublicBinary::new();
    let mut command = command_of(&binary.path(), ["check", "--json"]);
    as_nobody(&mut command, &ENOUGH);
    let output = Tool::spawn(&mut command).finish();
    for capability in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"] {
        assert_eq!(finding(&output, capability)["ok"], true);
    }
    let generic = finding(&output, "xdp_generic");
    assert_eq!(generic["ok"], Value::Null);
    assert!(
        generic["detail"]
            .as_str()
            .unwrap()
            .contains("CAP_SYS_ADMIN")
    );
}

#[test]
fn a_quiet_check_says_only_what_it_found() {
    for (quiet, rest) in [("-q", &[][..]), ("-qq", &["--json"])] {
        let mut command = command(["check", quiet]);
        let output = Tool::spawn(command.args(rest)).finish();
        assert!(output.stdout.len() > 5, "{output:#?}");
        // Commands that can't run are errors, which are still reported.
        if output.code() == 0 {
            assert_eq!(output.stderr, [""; 0], "{output:#?}");
        }
    }
}
