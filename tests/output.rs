//! What reaches stdout and stderr, when, and that it adds up.

use std::ffi::CStr;
use std::ffi::CString;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, PipeReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::bpf::last_in_ring;
use crate::common::frames::{RawSocket, SYN, TCP, ethernet, ip, syn_frame, tcp};
use crate::common::tool::{
    ENOUGH, PublicBinary, account, as_nobody, command_of, json_account, parse,
};
use crate::common::{
    CLIENT4, Namespace, PATIENCE, Pair, SERVER4, SERVER6, Tool, command, is_guest, need, quick,
};
use nix::fcntl::OFlag;
use nix::libc;
use nix::pty::{PtyMaster, Winsize, grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::signal::{SigHandler, Signal, signal};
use tcpinspect::domain::packet::Packet;
use tcpinspect::skel::PacketEvent;

/// A tool of which stdout is a pipe that the test reads, or not.
fn into_pipe(pair: &Pair, mut command: Command) -> (Tool, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    let tool = Tool::spawn_in(&pair.server, &mut command);
    // The command has a copy of the writing end, and with that the pipe would never close.
    drop(command);
    (tool.attached(), reader)
}

#[test]
fn text_is_a_header_and_columns_and_says_all_else_on_stderr() {
    let pair = need!(Pair::new());
    for (args, columns) in [
        (
            &["syn-count", "vs", "-I", "0.05", "--mode", "generic"][..],
            &["TIME", "IFACE", "MODE", "SYNS", "TOTAL", "RATE/s"][..],
        ),
        (
            &["port-monitor", "vs"],
            &[
                "TIME", "IFACE", "DIR", "SADDR", "SPORT", "DADDR", "DPORT", "FLAGS", "LEN", "WIN",
                "TTL", "VLAN",
            ],
        ),
    ] {
        let tool = Tool::start_in(&pair.server, args);
        pair.refused_connects((SERVER4, 80).into(), 3);
        tool.events(3);
        let output = tool.stop();
        let header: Vec<_> = output.stdout[0].split_whitespace().collect();
        assert_eq!(header, columns);
        for line in &output.stdout[1..] {
            assert_eq!(line.split_whitespace().count(), columns.len(), "{line}");
        }
        assert_eq!(output.stderr.len(), 2, "{output:#?}");
        assert!(output.stderr[0].starts_with("attached: "));
        assert!(output.stderr[1].starts_with("summary: "));
    }
}

#[test]
fn columns_are_those_asked_for_and_values_stand_under_their_names() {
    let pair = need!(Pair::new());
    let columns = "daddr,MSS, dport,time,flags";
    let args = ["port-monitor", "vs", "--columns", columns];
    let tool = Tool::start_in(&pair.server, &args);
    pair.refused_connects((SERVER4, 80).into(), 1);
    pair.refused_connects((SERVER6, 8000).into(), 1);
    tool.events(3);
    let lines = tool.stop().stdout;
    assert_eq!(
        lines[0],
        "DADDR           MSS   DPORT TIME            FLAGS"
    );
    let four = lines[1].strip_prefix("10.77.0.2       1460     80 ");
    assert!(four.is_some_and(|rest| rest.ends_with(" [S]")), "{lines:?}");
    let words = lines[2].split_whitespace().collect::<Vec<_>>();
    let address = SERVER6.to_string();
    assert_eq!(words[..3], [&address, "1440", "8000"], "{lines:?}");
    assert_eq!(words.len(), 5, "{lines:?}");
}

#[test]
fn lines_of_every_command_fit_and_have_a_word_for_each_column() {
    let pair = need!(Pair::new());
    pair.server.run("ip addr add 10.77.66.110/32 dev lo");
    pair.client.run("ip route add 10.77.66.110 via 10.77.0.2");
    // No other test connects to this one.
    let target = SocketAddr::from(([10, 77, 66, 110], 65535));
    let dst = ["--dst", "10.77.66.110"];
    for (args, most) in [
        (&["syn-count", "vs", "-I", "0.05", "--mode", "tc"][..], 110),
        (&["syn-count", "vs", "-I", "0.05", "--alert", "5"], 110),
        (&["port-monitor", "vs"], 110),
        (&["connect-trace"], 110),
        (&["connect-trace", "--close"], 150),
        (&["accept-trace", "vs"], 110),
        (&["flows", "vs"], 110),
        (&["flows", "vs", "-I", "0.05", "--by", "daddr"], 110),
    ] {
        let mut command = command(args);
        command.args(dst);
        let tool = Tool::spawn_in(&pair.server, &mut command).attached();
        for _ in 0..100 {
            let refused = pair.client.enter(|| {
                // A thread with a name of its own is shown beside its process.
                let process = std::fs::read_to_string("/proc/self/comm").unwrap();
                nix::sys::prctl::set_name(&CString::new(process.trim_end()).unwrap()).unwrap();
                TcpStream::connect(target)
            });
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::ConnectionRefused);
        }
        tool.events(3);
        let lines = tool.stop().stdout;
        let columns = lines[0].split_whitespace().count();
        for line in &lines {
            assert!(line.len() <= most, "{args:?}: {} in {line}", line.len());
            assert_eq!(line.split_whitespace().count(), columns, "{line}");
        }
    }
}

#[test]
fn a_quiet_run_says_nothing_but_its_lines() {
    let namespace = need!(Namespace::new());
    for quiet in ["-q", "-qq"] {
        let mut command = command(["syn-count", "lo", "-I", "50ms", "-c", "2", quiet]);
        let output = Tool::spawn_in(&namespace, &mut command).finish();
        assert_eq!(output.code(), 0, "{output:#?}");
        assert_eq!(output.stdout.len(), 3, "{output:#?}");
        assert!(output.stderr.is_empty(), "{output:#?}");
    }
}

#[test]
fn every_signal_that_asks_for_an_end_gets_a_good_one() {
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
fn a_signal_that_was_ignored_at_the_start_stays_so() {
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
        // The first look of listeners has no interval before it.
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
fn a_count_ends_the_run_after_exactly_so_many_lines() {
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
fn a_reader_that_goes_ends_the_run_in_silence() {
    let pair = need!(Pair::new());
    for args in [
        &["syn-count", "vs", "-I", "0.05"][..],
        &["syn-count", "vs", "-I", "60"],
        &["port-monitor", "vs"],
        &["port-monitor", "vs", "--json"],
        &["flows", "vs"],
        &["connect-trace"],
    ] {
        let (tool, reader) = into_pipe(&pair, command(args));
        pair.refused_connects((SERVER4, 80).into(), 2);
        let mut reader = BufReader::new(reader);
        if !args.contains(&"--json") {
            reader.read_line(&mut String::new()).unwrap();
        }
        let gone = Instant::now();
        drop(reader);
        let output = tool.finish();
        assert!(gone.elapsed() < quick(Duration::from_secs(1)), "{args:?}");
        assert_eq!(output.code(), 0, "{output:#?}");
        let mut lines = output.stderr.iter();
        assert!(!lines.any(|line| line.contains("panic") || line.starts_with("tcpinspect:")));
    }
}

#[test]
fn an_output_that_takes_nothing_is_an_error() {
    let pair = need!(Pair::new());
    for args in [
        &["syn-count", "vs", "-I", "0.05", "--json"][..],
        &["port-monitor", "vs"],
        &["port-monitor", "vs", "--json"],
        &["connect-trace", "--json"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let tool = Tool::spawn_in(&pair.server, command(args).stdout(full));
        tool.error("that tells of attaching", |line| {
            line.starts_with("attached:")
        });
        pair.refused_connects((SERVER4, 80).into(), 2);
        let output = tool.finish();
        assert_eq!(output.code(), 1, "{output:#?}");
        let last = output.stderr.last().unwrap();
        let expected = "tcpinspect: failed to write to stdout: No space left on device";
        assert!(last.starts_with(expected), "{output:#?}");
    }
}

#[test]
fn a_reader_that_stops_can_not_hold_up_the_end_and_nothing_is_lost_in_silence() {
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    for (format, user) in [("text", "root"), ("json", "root"), ("json", "nobody")] {
        let args = ["port-monitor", "vs", "-o", format];
        let mut command = command_of(&binary.path(), args);
        if user == "nobody" {
            // The pipe belongs to root, and can't be opened anew by others.
            as_nobody(&mut command, &ENOUGH);
        }
        let (tool, mut reader) = into_pipe(&pair, command);
        pair.refused_connects((SERVER4, 80).into(), 2000);
        // The tool sits in a full pipe; some events are written, some wait in the ring.
        let asked = Instant::now();
        tool.signal(Signal::SIGTERM);
        let output = tool.finish();
        let took = asked.elapsed();
        assert!(took < quick(Duration::from_secs(1)), "{format}: {took:?}");
        assert_eq!(output.code(), 0, "{output:#?}");

        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.ends_with('\n'), "a line was cut");
        let lines: Vec<_> = text.lines().collect();
        let (extra, [matched, emitted, lost, _]) = match lines.last().map(|line| (*line, format)) {
            // The summary is short, and may still have found room.
            Some((last, "json")) if last.contains("\"summary\"") => (1, json_account(last)),
            Some((_, "text")) => (1, account(&output)),
            _ => (0, account(&output)),
        };
        assert_eq!(matched, 2000);
        assert_eq!(emitted as usize, lines.len() - extra);
        assert!(lost > 0);
        if format == "json" {
            lines.iter().for_each(|line| drop(parse(line)));
        }
    }
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
            let mut command = command(["port-monitor", "vs", "--json"]);
            command.args(args).stdout(Stdio::null());
            let tool = Tool::spawn_in(&pair.server, &mut command);
            tool.error("that tells of attaching", |line| {
                line.starts_with("attached:")
            });
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

#[test]
fn lines_are_whole_beside_another_writer_and_after_the_reader_stopped() {
    const OTHER: &str = "a line of somebody else\n";
    const SENT: usize = 20_000;
    let pair = need!(Pair::new());
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    for format in ["text", "json"] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut other = writer.try_clone().unwrap();
        let mut command = command(["port-monitor", "vs", "-o", format]);
        command.stdout(writer);
        let tool = Tool::spawn_in(&pair.server, &mut command);
        // The command has a copy of the writing end, and with that the pipe would never close.
        drop(command);
        let tool = tool.attached();
        let over = Arc::new(AtomicBool::new(false));
        let other = thread::spawn({
            let over = Arc::clone(&over);
            move || {
                while !over.load(Ordering::SeqCst) {
                    other.write_all(OTHER.as_bytes()).unwrap();
                    thread::sleep(Duration::from_micros(50));
                }
            }
        });
        let client = pair.client.enter(|| RawSocket::open("vc"));
        let sender = thread::spawn({
            let syn = syn.clone();
            move || (0..SENT).for_each(|_| client.send(&syn))
        });
        // It reads half of what comes, and no more until the tool has gone.
        let mut reader = BufReader::new(reader);
        let mut lines = Vec::new();
        for _ in 0..SENT / 2 {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            lines.push(line);
        }
        sender.join().unwrap();
        tool.signal(Signal::SIGTERM);
        let output = tool.finish();
        over.store(true, Ordering::SeqCst);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        other.join().unwrap();

        lines.extend(rest.split_inclusive('\n').map(str::to_owned));
        assert!(lines.iter().all(|line| line.ends_with('\n')));
        lines.retain(|line| line != OTHER);
        let is_summary = |line: &String| line.contains("\"summary\"");
        let sums = match lines.pop_if(|line| is_summary(line)) {
            Some(summary) => json_account(&summary),
            None => account(&output),
        };
        let [matched, emitted, lost, _] = sums;
        if format == "text" {
            assert!(lines.remove(0).starts_with("TIME"));
            for line in &lines {
                assert_eq!(line.split_whitespace().count(), 12, "{line}");
            }
        } else {
            lines.iter().for_each(|line| drop(parse(line)));
        }
        assert_eq!(matched as usize, SENT, "{format}");
        assert_eq!(emitted as usize, lines.len(), "{format}");
        assert!(lost > 0, "{format}");
    }
}

#[test]
fn a_slow_reader_gets_every_line_even_after_the_end_was_asked_for() {
    let pair = need!(Pair::new());
    let (tool, reader) = into_pipe(&pair, command(["port-monitor", "vs", "--json"]));
    pair.refused_connects((SERVER4, 80).into(), 1000);
    let reader = thread::spawn(move || {
        let (mut packets, mut longest) = (0, Duration::ZERO);
        let mut last = Instant::now();
        for line in BufReader::new(reader).lines() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
            packets += usize::from(parse(&line.unwrap())["event"] == "packet");
            if packets % 100 == 0 {
                thread::sleep(Duration::from_millis(10));
            }
        }
        (packets, longest)
    });
    // A reader that moves is waited for.
    tool.signal(Signal::SIGTERM);
    let output = tool.finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    let (packets, longest) = reader.join().unwrap();
    // On a busy machine this reader may have had to stop for as long as none is waited for.
    let stopped = longest > Duration::from_millis(400);
    assert!(packets == 1000 || stopped, "{packets}, {longest:?}");
}

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
        // What there is room for again is not lost.
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
        let told = format!("warning: {} events were lost", summary["lost"]);
        assert!(notices.any(|line| line.starts_with(&told)), "{output:#?}");
    }
}

#[test]
fn what_is_above_the_rate_is_counted_as_suppressed() {
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
        tell(&format!(
            "{buffer}: attached {attached:.1?} after the start, latency {median:.2?} (median), {:.2?} (longest)",
            latencies[latencies.len() - 1]
        ));
        assert!(median < quick(Duration::from_millis(100)), "{latencies:?}");
    }
}

#[test]
fn an_event_carries_nothing_that_was_in_its_memory_before() {
    const CAPTURED: usize = 24;
    let pair = need!(Pair::new());
    let captured = CAPTURED.to_string();
    let args = ["port-monitor", "vs", "--json", "--payload-bytes", &captured];
    let mut command = command(args);
    command.args(["--buffer", "ring", "--buffer-size", "4096"]);
    let tool = Tool::spawn_in(&pair.server, &mut command).attached();
    let client = pair.client.enter(|| RawSocket::open("vc"));
    let send = |segment: &[u8]| {
        let (ethertype, packet) = ip(CLIENT4.into(), SERVER4.into(), TCP, segment);
        client.send(&ethernet(&[], ethertype, &packet));
    };
    // All of the buffer is written more than once, with options and payload.
    let mut full = tcp(40000, 80, SYN, &[0xee; 40 + CAPTURED]);
    full[12] = 15 << 4;
    for count in 1..100 {
        send(&full);
        tool.events(count);
    }
    send(&tcp(40000, 81, SYN, &[]));
    tool.events(100);
    let bytes = last_in_ring(tool.pid(), size_of::<PacketEvent>() + CAPTURED);
    let event = Packet::decode(&bytes).unwrap().raw;
    assert_eq!((event.dport, event.options_len), (81, 0));
    assert_eq!(event.options, [0; 40]);
    assert_eq!(event.pad, [0; 4]);
    assert_eq!(event.payload_captured, 0);
}

/// A figure for whoever reads the log.
fn tell(figure: &str) {
    let _ = writeln!(std::io::stderr(), "{figure}");
}

/// Names of processes as an enemy would choose them, with how JSON has to say them.
const HOSTILE_NAMES: [(&CStr, &str); 5] = [
    (c"\x1b[2J\x07", "\x1b[2J\x07"),
    (c"a\nb {\"x\":1}", "a\nb {\"x\":1}"),
    (c"\"quoted\\\"", "\"quoted\\\""),
    (c"\xff\xfe\xc3", "\\xff\\xfe\\xc3"),
    (c"\xe2\x80\xaebidi\xc2\x9b", "\u{202e}bidi\u{9b}"),
];

#[test]
fn a_hostile_process_name_stays_on_its_line_and_out_of_the_terminal() {
    let pair = need!(Pair::new());
    pair.server.run("ip addr add 10.77.66.6/32 dev lo");
    pair.client.run("ip route add 10.77.66.6 via 10.77.0.2");
    // No other test connects to this one.
    let target = SocketAddr::from(([10, 77, 66, 6], 80));
    let args = ["connect-trace", "--dst", "10.77.66.6"];
    let text = Tool::start(&args);
    let json = Tool::spawn(command(args).arg("--json")).attached();
    for (name, _) in HOSTILE_NAMES {
        pair.client.enter(|| {
            nix::sys::prctl::set_name(name).unwrap();
            let error = TcpStream::connect(target).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        });
    }
    let expected = 2 * HOSTILE_NAMES.len();
    text.events(1 + expected);
    json.events(expected);
    let text = text.stop();
    assert_eq!(text.stdout.len(), 1 + expected, "{text:#?}");
    for line in &text.stdout {
        let strange =
            |c: char| c.is_control() || c == '\u{202e}' || c == char::REPLACEMENT_CHARACTER;
        assert!(!line.contains(strange), "{line:?}");
    }
    let lines = json.stop().json();
    for (line, (_, name)) in lines
        .iter()
        .zip(HOSTILE_NAMES.iter().flat_map(|it| [it, it]))
    {
        assert_eq!(line["comm"], *name, "{line}");
    }
}

#[test]
fn a_hostile_interface_name_reaches_no_terminal() {
    const NAME: &str = "\x1b[31m\x07\u{202e}x";
    const PEER: &str = "other";
    let namespace = need!(Namespace::new());
    namespace.run(&format!("ip link add {NAME} type veth peer name {PEER}"));
    namespace.run(&format!("ip link set {NAME} up"));
    namespace.run(&format!("ip link set {PEER} up"));
    let peer = namespace.enter(|| RawSocket::open(PEER));
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    for args in [
        &["syn-count", NAME, "-I", "0.05"][..],
        &["port-monitor", NAME],
        &["flows", NAME],
    ] {
        let tool = Tool::start_in(&namespace, args);
        peer.send(&syn);
        namespace.run(&format!("ip link set {NAME} down"));
        tool.error("about the interface", |line| line.ends_with(" is down"));
        namespace.run(&format!("ip link set {NAME} up"));
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        let mut rows = output.stdout.iter();
        assert!(rows.any(|line| line.contains("\\x1b[31m")), "{output:#?}");
        for line in output.stdout.iter().chain(&output.stderr) {
            assert!(!line.contains(['\x1b', '\x07', '\u{202e}']), "{line:?}");
        }
    }
    let mut unknown = command(["syn-count", "nosuch"]);
    let output = Tool::spawn_in(&namespace, &mut unknown).finish();
    assert!(!output.complaint().1.unwrap().contains('\x1b'));
    let tool = Tool::start_in(&namespace, &["syn-count", NAME, "-I", "0.05", "--json"]);
    tool.json("with the name", |line| line["iface"] == NAME);
}

/// A terminal: the end that its user has, and that of a program.
fn terminal() -> Result<(PtyMaster, File), String> {
    // Not openpty(), which would let every process that another test starts have it too.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = posix_openpt(flags).map_err(|errno| format!("there are no terminals: {errno}"))?;
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let path = ptsname_r(&master).unwrap();
    let program = File::options().read(true).write(true).open(path).unwrap();
    let size = Winsize {
        ws_row: 20,
        ws_col: 120,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the size is valid for the call.
    let ret = unsafe { libc::ioctl(program.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(ret, 0, "TIOCSWINSZ");
    Ok((master, program))
}

#[test]
fn a_terminal_gets_lines_and_its_end_is_that_of_the_run() {
    let pair = need!(Pair::new());
    for (args, header) in [
        (&["syn-count", "vs", "-I", "0.05"][..], "TIME "),
        (&["port-monitor", "vs"], "TIME "),
        (&["connect-trace"], "TIME "),
    ] {
        let (master, program) = need!(terminal());
        let mut command = command(args);
        command.stdout(program);
        let tool = Tool::spawn_in(&pair.server, &mut command);
        drop(command);
        let tool = tool.attached();
        let mut lines = BufReader::new(master).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.starts_with(header), "{first}");
        drop(lines);
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{output:#?}");
    }
}

/// Runs the tool with a terminal for all that it reads and writes until `work` is done, and
/// returns what came to the terminal.
fn on_terminal(namespace: &Namespace, args: &[&str], work: impl FnOnce(&Screen)) -> String {
    let (master, program) = terminal().unwrap();
    let screen = Screen::of(master);
    let mut command = command(args);
    command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(program.try_clone().unwrap())
        .stdout(program.try_clone().unwrap())
        .stderr(program);
    let tool = Tool::spawn_in(namespace, &mut command);
    drop(command);
    screen.wait("attached:");
    work(&screen);
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{args:?}: {}", screen.text());
    screen.rest()
}

/// What a terminal was told to show.
struct Screen {
    text: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Screen {
    fn of(mut master: PtyMaster) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // A terminal that nobody writes to any more is an error (EIO), not an end.
            while let Ok(len @ 1..) = master.read(&mut bytes) {
                to.lock().unwrap().extend_from_slice(&bytes[..len]);
            }
        });
        Self { text, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    fn wait(&self, text: &str) {
        let give_up = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            assert!(Instant::now() < give_up, "no {text:?} in {:?}", self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn rest(self) -> String {
        self.reader.join().unwrap();
        String::from_utf8(Arc::into_inner(self.text).unwrap().into_inner().unwrap()).unwrap()
    }
}

/// A text without the colors that the tool gives its own words.
fn without_colors(text: &str) -> String {
    let colors = ["\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m"];
    colors
        .iter()
        .fold(text.to_owned(), |text, color| text.replace(color, ""))
}

#[test]
fn a_terminal_that_takes_colors_gets_them_and_their_columns_stay_in_place() {
    let pair = need!(Pair::new());
    drop(need!(terminal()));
    let run = |variables: &[(&str, &str)]| {
        let (master, program) = terminal().unwrap();
        let mut command = command(["port-monitor", "vs", "--flags", "any", "-c", "2"]);
        command.args(["--direction", "both"]);
        command
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied());
        command.stdout(program);
        let tool = Tool::spawn_in(&pair.server, &mut command);
        drop(command);
        let tool = tool.attached();
        pair.refused_connects((SERVER4, 80).into(), 1);
        assert_eq!(tool.finish().code(), 0);
        Screen::of(master).rest()
    };
    let colored = run(&[("TERM", "xterm")]);
    assert!(colored.contains(" \x1b[33m[S]\x1b[0m   0 "), "{colored:?}");
    assert!(colored.contains(" \x1b[31m[R.]\x1b[0m  0 "), "{colored:?}");
    for variables in [
        &[("TERM", "xterm"), ("NO_COLOR", "1")][..],
        &[("TERM", "dumb")],
    ] {
        let plain = run(variables);
        assert!(!plain.contains('\x1b'), "{plain:?}");
        assert!(plain.contains(" [R.]  0 "), "{plain:?}");
    }
}

#[test]
fn nothing_that_others_have_named_or_sent_steers_a_terminal() {
    // Sets the title of a terminal, rings its bell, and writes to the left.
    const NAME: &str = "\x1b]0;p\x07\u{202e}";
    const PEER: &str = "peer";
    let namespace = need!(Namespace::new());
    drop(need!(terminal()));
    namespace.run(&format!("ip link add {NAME} type veth peer name {PEER}"));
    namespace.run(&format!("ip link set {NAME} up"));
    namespace.run(&format!("ip link set {PEER} up"));
    let segment = tcp(40000, 80, SYN, b"\x1b]0;p\x07\r\nforged line\r\n");
    let (ethertype, packet) = ip(CLIENT4.into(), SERVER4.into(), TCP, &segment);
    let frame = ethernet(&[], ethertype, &packet);
    let peer = namespace.enter(|| RawSocket::open(PEER));
    let happen = |screen: &Screen, shown: &str| {
        peer.send(&frame);
        screen.wait(shown);
        namespace.run(&format!("ip link set {NAME} down"));
        namespace.run(&format!("ip link set {NAME} up"));
    };

    for (args, shown) in [
        (&["syn-count", NAME, "-I", "0.05"][..], "\\x1b]0;p\\x07"),
        (
            &["syn-count", NAME, "-I", "0.05", "--by", "saddr"],
            "10.77.0.1",
        ),
        (&["port-monitor", NAME, "-x", "-vv"], "1b5d303b"),
        (&["port-monitor", NAME, "-x", "--json"], "1b5d303b"),
        (
            &["flows", NAME, "--no-tui", "--idle-timeout", "0.1"],
            "10.77.0.1",
        ),
        (
            &["flows", NAME, "--json", "--idle-timeout", "0.1"],
            "10.77.0.1",
        ),
    ] {
        let text = on_terminal(&namespace, args, |screen| happen(screen, shown));
        let text = without_colors(&text);
        let steers = |c: char| (c.is_control() && !"\r\n".contains(c)) || c == '\u{202e}';
        assert!(!text.contains(steers), "{args:?}: {text:?}");
        assert!(!text.contains("\nforged"), "{args:?}: {text:?}");
    }

    // The view steers it by itself, and else nobody.
    let text = on_terminal(&namespace, &["flows", NAME, "-I", "0.05"], |screen| {
        happen(screen, "10.77.0.1");
    });
    for foreign in ["\x1b]0;p", "\x07", "\u{202e}", "\nforged"] {
        assert!(!text.contains(foreign), "{text:?}");
    }

    for (name, _) in HOSTILE_NAMES {
        let text = on_terminal(
            &namespace,
            &["connect-trace", "--dst", "127.66.66.6"],
            |screen| {
                namespace.enter(|| {
                    nix::sys::prctl::set_name(name).unwrap();
                    TcpStream::connect("127.66.66.6:80").unwrap_err();
                });
                screen.wait("ECONNREFUSED");
            },
        );
        let text = without_colors(&text);
        let steers = |c: char| (c.is_control() && !"\r\n".contains(c)) || c == '\u{202e}';
        assert!(!text.contains(steers), "{name:?}: {text:?}");
        assert!(!text.contains("\nb {"), "{name:?}: {text:?}");
    }
}

#[test]
fn every_line_of_json_has_a_time_and_an_event_and_flat_values() {
    let pair = need!(Pair::new());
    let args = [
        "syn-count",
        "vs",
        "--json",
        "-I",
        "0.05",
        "--by",
        "saddr",
        "--alert",
        "5",
    ];
    let tool = Tool::start_in(&pair.server, &args);
    pair.refused_connects((SERVER4, 80).into(), 100);
    for state in ["raised", "cleared"] {
        tool.json(state, |line| {
            line["state"] == state && line["key"].is_string()
        });
    }
    let output = tool.stop();
    let mut last = String::new();
    for line in output.json() {
        let ts = line["ts"].as_str().unwrap();
        // RFC 3339 in UTC with nanoseconds: such texts sort as the times do.
        assert_eq!((ts.len(), ts.ends_with('Z')), (30, true), "{line}");
        assert!(*ts >= *last, "{line} after {last}");
        ts.clone_into(&mut last);
        assert!(line["event"].is_string(), "{line}");
        let members = line.as_object().unwrap();
        let nested = members.iter().filter(|(_, value)| value.is_object());
        let nested: Vec<_> = nested.map(|(key, _)| key.as_str()).collect();
        let allowed: &[&str] = if line["event"] == "summary" {
            &["verdicts"]
        } else {
            &[]
        };
        assert_eq!(nested, allowed, "{line}");
    }
    let mut alerts = output.events("alert");
    alerts.retain(|alert| alert["key"].is_string());
    let alert = &alerts[0];
    assert_eq!(alert["key"], "10.77.0.1", "{alert}");
    assert_eq!(alert["threshold"], 5, "{alert}");
}
