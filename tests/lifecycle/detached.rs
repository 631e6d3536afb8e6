//! Programs that another process detaches.

use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{WAYS, is_tc, linked};
use crate::common::bpf::{detach_link, has_tcx, hold_link, links_of, replace_xdp};
use crate::common::frames::syn_frame;
use crate::common::raw::RawSocket;
use crate::common::{CLIENT4, Output, Pair, SERVER4, Tool, is_guest, need, quick, release};

/// Detaches one program of a tool from `vs`, as another process can.
fn detach(pair: &Pair, tool: &Tool, args: &[&str], round: usize) {
    if linked().iter().any(|way| args.starts_with(way)) {
        let mut links = links_of(tool.pid());
        let first = round % links.len();
        links.rotate_left(first);
        // Links of tracing programs can't be detached.
        let detached = links.into_iter().any(|link| detach_link(link).is_ok());
        assert!(detached, "{args:?}");
        return;
    }
    pair.server.run(match round % 2 {
        0 => "tc qdisc del dev vs clsact",
        _ => "tc filter del dev vs ingress",
    });
}

/// Checks the end of a run whose program was detached.
fn assert_reported(output: &Output, args: &[&str]) {
    assert_eq!(output.code(), 1, "{args:?}: {output:#?}");
    let summary = output.summary();
    assert_eq!(summary["exit_reason"], "detached", "{args:?}");
    let is_reported = |line: &String| {
        line.starts_with("tcpinspect: ") && line.contains(" on vs was detached: another process")
    };
    assert!(
        output.stderr.iter().any(is_reported),
        "{args:?}: {output:#?}"
    );
}

#[test]
fn a_program_that_another_process_detaches_ends_the_run_within_a_second() {
    let pair = need!(Pair::new());
    for (round, args) in [WAYS, WAYS].concat().into_iter().enumerate() {
        let mut args = args.to_vec();
        args.push("--json");
        // With two interfaces, it is enough that the program at one of them is detached: here at the first
        // one.
        let round = match args.contains(&"native") || round >= WAYS.len() {
            true => round,
            false => {
                args.push("lo");
                0
            }
        };
        let tool = Tool::start_in(&pair.server, &args);
        pair.refused_connects((SERVER4, 80).into(), 3);
        let detached = Instant::now();
        detach(&pair, &tool, &args, round);
        let output = tool.finish();
        let took = detached.elapsed();
        assert!(took < quick(Duration::from_secs(1)), "{args:?}: {took:?}");
        assert_reported(&output, &args);
        assert!(output.summary()["matched"].as_u64() >= Some(3), "{args:?}");
    }
}

#[test]
fn a_detached_interface_program_of_a_tracing_command_ends_the_run_within_a_second() {
    need!(has_tcx());
    let pair = need!(Pair::new());
    for args in [
        &["loss-trace", "vs", "--json"][..],
        &["loss-trace", "vs", "--json", "--by", "reason"],
        &["accept-trace", "vs", "--json"],
    ] {
        let tool = Tool::start_in(&pair.server, args);
        pair.refused_connects((SERVER4, 80).into(), 3);
        let detached = Instant::now();
        // Links of tracing programs can't be detached.
        let mut links = links_of(tool.pid()).into_iter();
        assert!(links.any(|link| detach_link(link).is_ok()), "{args:?}");
        let output = tool.finish();
        let took = detached.elapsed();
        // An emulated processor takes seconds to detach the many links that these commands have.
        let is_quick = is_guest() || took < quick(Duration::from_secs(1));
        assert!(is_quick, "{args:?}: {took:?}");
        assert_reported(&output, args);
        assert!(output.summary()["matched"].as_u64() >= Some(3), "{args:?}");
    }
}

#[test]
fn loss_trace_of_all_interfaces_goes_on_without_one() {
    let pair = need!(Pair::new());
    pair.server
        .run("ip link add spare type veth peer name other");
    pair.server.run("ip link set spare up");
    let tool = Tool::start_in(&pair.server, &["loss-trace", "--json"]);
    pair.server.run("ip link del spare");
    std::thread::sleep(Duration::from_millis(1200));
    pair.refused_connects((SERVER4, 80).into(), 3);
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    assert!(
        output.summary()["matched"].as_u64() >= Some(3),
        "{output:#?}"
    );
}

#[test]
fn a_program_that_another_process_replaces_ends_the_run_within_a_second() {
    let pair = need!(Pair::new());
    for args in WAYS.into_iter().filter(|args| !is_tc(args)) {
        let mut args = args.to_vec();
        args.push("--json");
        let tool = Tool::start_in(&pair.server, &args);
        let replaced = Instant::now();
        replace_xdp(links_of(tool.pid())[0]);
        let output = tool.finish();
        assert!(
            replaced.elapsed() < quick(Duration::from_secs(1)),
            "{args:?}"
        );
        assert_reported(&output, &args);
    }
}

#[test]
fn a_program_that_was_detached_just_before_the_end_is_reported_too() {
    let pair = need!(Pair::new());
    for (round, args) in WAYS.into_iter().enumerate() {
        let mut args = args.to_vec();
        args.push("--json");
        let tool = Tool::start_in(&pair.server, &args);
        detach(&pair, &tool, &args, round);
        assert_reported(&tool.stop(), &args);
    }
}

#[test]
fn links_of_tracing_programs_cannot_be_detached() {
    let pair = need!(Pair::new());
    let tool = Tool::start_in(&pair.server, &["connect-trace", "--json"]);
    let links = links_of(tool.pid());
    for link in links {
        assert!(detach_link(link).is_err(), "{link}");
    }
    pair.client
        .enter(|| drop(TcpStream::connect((SERVER4, 80))));
    tool.json("of the connect", |line| line["event"] == "failed");
    assert_eq!(tool.stop().code(), 0);
}

#[test]
fn the_counts_are_exact_and_the_interface_is_clean_though_another_process_holds_the_links() {
    let pair = need!(Pair::new());
    let before = pair.state();
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    let client = pair.client.enter(|| RawSocket::open("vc"));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::SeqCst) {
                client.send(&syn);
            }
        });
        // A check that fails must not leave the flood running.
        let _guard = SetAtTheEnd(&over);
        let traces: [&[&str]; 3] = [
            &["connect-trace"],
            &["accept-trace", "vs"],
            &["loss-trace", "vs"],
        ];
        for args in linked().into_iter().chain(traces) {
            let mut args = args.to_vec();
            args.extend(["--json", "-d", "0.3"]);
            let tool = Tool::start_in(&pair.server, &args);
            let held: Vec<_> = links_of(tool.pid()).into_iter().map(hold_link).collect();
            if args[0] == "connect-trace" {
                // Connects until after the end of the run.
                let end = Instant::now() + Duration::from_millis(600);
                while Instant::now() < end {
                    pair.client
                        .enter(|| drop(TcpStream::connect((SERVER4, 80))));
                }
            }
            let output = tool.finish();
            // This also checks the sums.
            let summary = output.summary();
            assert_eq!(output.code(), 0, "{output:#?}");
            assert!(summary["matched"].as_u64() > Some(0), "{summary}");
            assert!(!held.is_empty());
            // Before Linux 5.19 detaching a link needs CAP_BPF, which the tool has dropped.
            if release() >= (5, 19) {
                assert_eq!(pair.state(), before, "{args:?}");
            }
        }
    });
    assert_eq!(pair.state(), before);
}

struct SetAtTheEnd<'a>(&'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
