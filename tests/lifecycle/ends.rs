//! However a run ends, it leaves nothing behind.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{WAYS, is_tc};
use crate::common::bpf::{has_tcx, objects_of};
use crate::common::tool::COMMANDS;
use crate::common::{Namespace, Output, Pair, Tool, command, is_guest, need, quick, wait_within};

#[test]
fn killed_at_any_moment_it_leaves_nothing() {
    let pair = need!(Pair::new());
    let before = pair.state();
    // Without tcx links, filters stay behind until the next start.
    let tcx = has_tcx().is_ok();
    let commands = COMMANDS.map(|line| line.split(' ').collect::<Vec<_>>());
    let commands = commands.into_iter().filter(|args| tcx || !is_tc(args));
    let commands: Vec<_> = commands
        .map(|args| {
            let (usual, _) = Tool::start_in(&pair.server, &args).attached_line();
            (args, usual)
        })
        .collect();
    // Emulated processors take seconds to detach the many links of some commands.
    let limit = Duration::from_secs(if is_guest() { 20 } else { 1 });
    let mut with_objects = 0;
    // Two thirds of them by SIGKILL.
    let rounds = if is_guest() { 30 } else { 150 };
    let mut killed = 0;
    for round in 0..rounds {
        // All commands get all signals.
        let (args, usual) = &commands[(round + round / 6) as usize % commands.len()];
        let tool = Tool::spawn_in(&pair.server, &mut command(args));
        // From before main to well after attaching.
        thread::sleep(*usual * round * 3 / 2 / rounds);
        // Stopped, so that nothing can be added to what is listed.
        tool.pause();
        let objects = objects_of(tool.pid());
        with_objects += usize::from(!objects.is_empty());
        let signal = match round % 6 {
            0 => Signal::SIGTERM,
            // A panic in a callback ends the process like this.
            1 => Signal::SIGABRT,
            _ => Signal::SIGKILL,
        };
        killed += usize::from(signal == Signal::SIGKILL);
        tool.signal(signal);
        tool.signal(Signal::SIGCONT);
        if signal != Signal::SIGTERM {
            assert_eq!(tool.finish().status.signal(), Some(signal as i32));
        } else {
            // Before main it may end by the signal itself.
            let output = tool.finish();
            assert!(
                [Some(0), None].contains(&output.status.code()),
                "{output:#?}"
            );
        }
        let what = format!("{args:?} leaves nothing in round {round}");
        wait_within(&what, quick(limit), || {
            (!objects.iter().any(|object| object.exists())).then_some(())
        });
    }
    assert_eq!(pair.state(), before);
    assert_eq!(killed, rounds as usize * 2 / 3);
    assert!(
        with_objects > rounds as usize / 10,
        "{with_objects} of {rounds} times"
    );
}

#[test]
fn the_next_start_removes_what_a_killed_run_leaves_before_linux_6_6() {
    let pair = need!(Pair::new());
    let before = pair.state();
    // This takes long in a guest. There other tests have killed the commands that use links.
    let mut killed = WAYS.to_vec();
    killed.retain(|args| !is_guest() || is_tc(args));
    for killed in killed {
        for next in WAYS {
            let tool = Tool::start_in(&pair.server, killed);
            let objects = objects_of(tool.pid());
            tool.signal(Signal::SIGKILL);
            tool.finish();
            let left = is_tc(killed) && has_tcx().is_err();
            let output = Tool::start_in(&pair.server, next).stop();
            assert_eq!(output.code(), 0, "{output:#?}");
            let is_reported = |line: &String| line.contains("had left when it was killed");
            let mut lines = output.stderr.iter();
            assert_eq!(
                lines.any(is_reported),
                left,
                "{killed:?}, {next:?}: {output:#?}"
            );
            wait_within("all is gone", quick(Duration::from_secs(1)), || {
                (!objects.iter().any(|object| object.exists())).then_some(())
            });
            assert_eq!(pair.state(), before, "{killed:?}, {next:?}");
        }
    }
}

#[test]
fn a_normal_end_leaves_nothing_and_restores_what_native_xdp_changed() {
    let pair = need!(Pair::new());
    let before = pair.state();
    for args in WAYS {
        let tool = Tool::start_in(&pair.server, args);
        let objects = objects_of(tool.pid());
        assert!(!objects.is_empty());
        assert_ne!(pair.state(), before, "{args:?}");
        assert_eq!(tool.stop().code(), 0);
        wait_within("everything is gone", quick(Duration::from_secs(1)), || {
            (!objects.iter().any(|object| object.exists())).then_some(())
        });
        assert_eq!(pair.state(), before, "{args:?}");
    }
}

#[test]
fn what_native_xdp_changes_on_the_other_end_is_reported() {
    let namespace = need!(Namespace::new());
    need!(namespace.try_run("ip link add va type veth peer name vb"));
    let features = || namespace.run("ethtool -k vb");
    let before = features();
    let tool = Tool::start_in(&namespace, &["syn-count", "va", "--mode", "native"]);
    let during = features();
    let is_reported = |output: &Output| {
        let mut lines = output.stderr.iter();
        lines.any(|line| line.starts_with("notice: native XDP changed vb: "))
    };
    assert_eq!(is_reported(&tool.stop()), during != before);
    assert_eq!(features(), before);

    let elsewhere = Namespace::new().unwrap();
    namespace.run(&format!("ip link set vb netns {}", elsewhere.path()));
    let tool = Tool::start_in(&namespace, &["syn-count", "va", "--mode", "native"]);
    tool.error("about the unseen peer", |line| {
        line.starts_with("notice: ") && line.contains("another network namespace")
    });
    assert_eq!(tool.stop().code(), 0);
    for quiet in [["--mode", "generic"], ["--mode", "tc"]] {
        let args = [["syn-count", "va"], quiet].concat();
        let output = Tool::start_in(&namespace, &args).stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        // The `attached:` line and the summary.
        assert_eq!(output.stderr.len(), 2, "{output:#?}");
    }
}
