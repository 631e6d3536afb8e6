//! Events on their way to user space: lost, suppressed or late, and without leftover memory.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tcpinspect::domain::packet::Packet;
use tcpinspect::skel::PacketEvent;

use crate::common::bpf::last_in_ring;
use crate::common::frames::{SYN, Segment, ethernet_ip, tcp_between};
use crate::common::raw::RawSocket;
use crate::common::tool::parse;
use crate::common::{CLIENT4, Pair, SERVER4, Tool, command, need, quick, say};

#[test]
fn events_that_find_no_room_are_counted_exactly() {
    let pair = need!(Pair::new());
    for buffer in ["ring", "perf"] {
        let args = [
            "port-monitor",
            "vs",
            "--json",
            "--strict",
            "--buffer",
            buffer,
            "--buffer-size",
            "8192",
        ];
        let tool = Tool::start_in(&pair.server, &args);
        tool.signal(Signal::SIGSTOP);
        pair.refused_connects((SERVER4, 80).into(), 500);
        tool.signal(Signal::SIGCONT);
        // Events that find room again are not lost.
        tool.events(1);
        pair.refused_connects((SERVER4, 80).into(), 1);
        let output = tool.stop();
        assert_eq!(output.code(), 3, "{output:#?}");
        let summary = output.summary();
        assert_eq!(summary["matched"], 501, "{buffer}: {summary}");
        let emitted = summary["emitted"].as_u64().unwrap();
        assert!((10..500).contains(&emitted), "{buffer}: {summary}");
        assert_eq!(output.events("packet").len() as u64, emitted);
        let mut notices = output.stderr.iter();
        let warning = format!("warning: {} events were lost", summary["lost"]);
        assert!(
            notices.any(|line| line.starts_with(&warning)),
            "{output:#?}"
        );
    }
}

#[test]
fn events_above_max_rate_are_counted_as_suppressed() {
    let pair = need!(Pair::new());
    // A port of its own: connect-trace sees all namespaces.
    for words in [
        &["port-monitor", "vs"][..],
        &["flows", "vs"],
        &["connect-trace", "--failed"],
    ] {
        let options = ["-p", "8099", "--json", "--max-rate", "10"];
        let args = [words, &options].concat();
        let tool = Tool::start_in(&pair.server, &args);
        pair.refused_connects((SERVER4, 8099).into(), 300);
        let summary = tool.stop().summary();
        assert_eq!(summary["matched"], 300, "{summary}");
        assert_eq!(summary["lost"], 0, "{summary}");
        let seconds = summary["duration_s"].as_f64().unwrap();
        let emitted = summary["emitted"].as_f64().unwrap();
        assert!(
            (10.0..=10.0 * (seconds + 1.0)).contains(&emitted),
            "{summary}"
        );
    }
}

#[test]
fn an_event_reaches_the_pipe_within_100_ms() {
    let pair = need!(Pair::new());
    for buffer in ["ring", "perf"] {
        let args = ["port-monitor", "vs", "--json", "--buffer", buffer];
        let tool = Tool::start_in(&pair.server, &args);
        let mut latencies: Vec<_> = (80..90)
            .map(|port| {
                let sent = Instant::now();
                pair.refused_connects((SERVER4, port).into(), 1);
                let (came, _) = tool.line("of this packet", |line| parse(line)["dport"] == port);
                came - sent
            })
            .collect();
        latencies.sort();
        let (attached, _) = tool.attached_line();
        let median = latencies[latencies.len() / 2];
        say(&format!(
            "{buffer}: attached {attached:.1?} after the start, latency {median:.2?} (median), {:.2?} (longest)",
            latencies[latencies.len() - 1]
        ));
        assert!(median < quick(Duration::from_millis(100)), "{latencies:?}");
    }
}

#[test]
fn an_event_has_no_data_that_was_in_its_memory_before() {
    const CAPTURED: usize = 24;
    let pair = need!(Pair::new());
    let captured = CAPTURED.to_string();
    let args = ["port-monitor", "vs", "--json", "--payload-bytes", &captured];
    let mut command = command(args);
    command.args(["--buffer", "ring", "--buffer-size", "4096"]);
    let tool = Tool::spawn_in(&pair.server, &mut command).attached();
    let client = pair.client.enter(|| RawSocket::open("vc"));
    let send = |segment: &Segment| {
        let packet = tcp_between(CLIENT4.into(), SERVER4.into(), segment);
        client.send(&ethernet_ip(&packet));
    };
    // All of the buffer is written more than once, with options and payload.
    let full = Segment {
        options: vec![0xee; 40],
        ..Segment::new(40000, 80, SYN, &[0xee; CAPTURED])
    };
    for count in 1..100 {
        send(&full);
        tool.events(count);
    }
    send(&Segment::new(40000, 81, SYN, &[]));
    tool.events(100);
    let bytes = last_in_ring(tool.pid(), size_of::<PacketEvent>() + CAPTURED);
    let event = Packet::decode(&bytes).unwrap().raw;
    assert_eq!((event.dport, event.options_len), (81, 0));
    assert_eq!(event.options, [0; 40]);
    assert_eq!(event.pad, [0; 4]);
    assert_eq!(event.payload_captured, 0);
}
