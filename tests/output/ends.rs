//! Ends of a run, and how soon they come: signals, `--duration` and `--count`.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigHandler, Signal, signal};

use crate::common::frames::syn_frame;
use crate::common::raw::RawSocket;
use crate::common::{CLIENT4, PATIENCE, Pair, SERVER4, Tool, command, is_guest, need, quick};

#[test]
fn every_terminating_signal_ends_the_run_normally() {
    let pair = need!(Pair::new());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        for args in [
            &["syn-count", "vs", "--json"][..],
            &["port-monitor", "vs", "--json"],
            &["flows", "vs", "--json"],
            &["connect-trace", "--json"],
        ] {
            let tool = Tool::start_in(&pair.server, args);
            let asked = Instant::now();
            tool.signal(signal);
            let output = tool.finish();
            assert!(asked.elapsed() < quick(Duration::from_secs(1)), "{args:?}");
            assert_eq!(output.code(), 0, "{output:#?}");
            assert_eq!(output.summary()["exit_reason"], "signal");
            assert_eq!(output.summary()["command"], args[0]);
        }
    }
}

#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let pair = need!(Pair::new());
    let asks = [Signal::SIGHUP, Signal::SIGINT];
    for args in [
        &["syn-count", "vs", "--json", "-I", "0.05"][..],
        &["port-monitor", "vs", "--json"],
        &["flows", "vs", "--json"],
        &["connect-trace", "--json"],
    ] {
        let mut command = command(args);
        // SAFETY: system calls and nothing else happen between fork and exec.
        unsafe {
            command.pre_exec(move || {
                for ignored in asks {
                    signal(ignored, SigHandler::SigIgn)?;
                }
                Ok(())
            });
        }
        let tool = Tool::spawn_in(&pair.server, &mut command).attached();
        for ignored in asks {
            tool.signal(ignored);
        }
        thread::sleep(Duration::from_millis(200));
        let ended = Instant::now();
        tool.signal(Signal::SIGTERM);
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{output:#?}");
        let summary = output.summary();
        assert_eq!(summary["exit_reason"], "signal");
        let lasted = Duration::from_secs_f64(summary["duration_s"].as_f64().unwrap());
        assert!(lasted >= Duration::from_millis(200), "{summary}");
        assert!(ended.elapsed() < quick(Duration::from_secs(1)), "{args:?}");
    }
}

#[test]
fn a_duration_ends_the_run_in_time() {
    let pair = need!(Pair::new());
    for command in ["syn-count", "port-monitor", "flows"] {
        let tool = Tool::start_in(&pair.server, &[command, "vs", "--json", "-d", "0.3"]);
        let output = tool.finish();
        assert_eq!(output.code(), 0);
        let summary = output.summary();
        assert_eq!(summary["exit_reason"], "duration");
        let seconds = summary["duration_s"].as_f64().unwrap();
        assert!((0.3..0.6).contains(&seconds), "{summary}");
    }
}

#[test]
fn the_interval_after_a_pause_is_long_enough_for_a_rate() {
    const COMMANDS: [&str; 6] = [
        "syn-count vs",
        "syn-count vs --by saddr --mode tc",
        "flows vs --by saddr",
        "accept-trace vs --by dport",
        "loss-trace --by reason",
        "listeners -p 80",
    ];
    let pair = need!(Pair::new());
    let _listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 80)).unwrap());
    let tools = COMMANDS.map(|command| {
        let args = command.split(' ').chain(["--json", "-I", "0.6", "-c", "6"]);
        let tool = Tool::start_in(&pair.server, &args.collect::<Vec<_>>());
        // Before the next one starts, which takes seconds in a guest.
        tool.json("of an interval", |line| line["interval_s"].is_number());
        tool.signal(Signal::SIGSTOP);
        tool
    });
    thread::sleep(Duration::from_millis(1500));
    for tool in &tools {
        tool.signal(Signal::SIGCONT);
    }
    for (command, tool) in COMMANDS.iter().zip(tools) {
        let output = tool.finish();
        let lengths = output.json().into_iter();
        let lengths = lengths.filter_map(|line| line["interval_s"].as_f64());
        // The first report of listeners has no interval before it.
        let lengths = lengths.skip(usize::from(command.starts_with("listeners")));
        let lengths = lengths.collect::<Vec<_>>();
        assert!(lengths.iter().any(|it| *it > 1.2), "{command}: {lengths:?}");
        assert!(
            lengths.iter().all(|it| *it >= 0.3),
            "{command}: {lengths:?}"
        );
    }
}

#[test]
fn a_count_ends_the_run_after_exactly_that_many_lines() {
    let pair = need!(Pair::new());
    let args = ["port-monitor", "vs", "--json", "-c", "7"];
    let tool = Tool::start_in(&pair.server, &args);
    tool.signal(Signal::SIGSTOP);
    pair.refused_connects((SERVER4, 80).into(), 20);
    tool.signal(Signal::SIGCONT);
    let output = tool.finish();
    assert_eq!(output.code(), 0);
    assert_eq!(output.events("packet").len(), 7, "{output:#?}");
    let summary = output.summary();
    assert_eq!(summary["exit_reason"], "count", "{summary}");
    assert_eq!(summary["matched"], 20, "{summary}");
    assert_eq!(summary["emitted"], 7, "{summary}");
    assert_eq!(summary["suppressed"], 13, "{summary}");

    let args = ["syn-count", "vs", "--json", "-I", "0.05", "-c", "3"];
    let output = Tool::start_in(&pair.server, &args).finish();
    assert_eq!(output.events("syn_count").len(), 3, "{output:#?}");
    assert_eq!(output.summary()["exit_reason"], "count");
}

#[test]
fn a_signal_ends_a_busy_run_at_once() {
    let pair = need!(Pair::new());
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    let client = pair.client.enter(|| RawSocket::open("vc"));
    let over = AtomicBool::new(false);
    let deadline = Instant::now() + PATIENCE;
    // An emulated machine takes seconds to print what is in the buffer.
    let limit = Duration::from_secs(if is_guest() { 10 } else { 1 });
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) && Instant::now() < deadline {
                client.send(&syn);
            }
        });
        for args in [&[][..], &["--buffer", "perf"], &["--buffer-size", "4096"]] {
            let mut command = command(["port-monitor", "vs"]);
            command.args(args).stdout(Stdio::null());
            let tool = Tool::spawn_in(&pair.server, &mut command);
            tool.error("about attaching", |line| line.starts_with("attached:"));
            thread::sleep(Duration::from_millis(50));
            let asked = Instant::now();
            tool.signal(Signal::SIGTERM);
            let output = tool.finish();
            let took = asked.elapsed();
            assert!(took < quick(limit), "{args:?}: {took:?}");
            assert_eq!(output.code(), 0, "{output:#?}");
        }
        over.store(true, Ordering::SeqCst);
    });
}
