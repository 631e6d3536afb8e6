//! Readers of stdout that close it, stop, are slow, or share it with another writer.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::common::frames::syn_frame;
use crate::common::raw::RawSocket;
use crate::common::tool::{ENOUGH, PublicBinary, as_nobody, command_of, parse, take_account};
use crate::common::{CLIENT4, Pair, SERVER4, Tool, command, need, quick};

/// A tool whose stdout is a pipe. The test need not read it.
fn into_pipe(pair: &Pair, mut command: Command) -> (Tool, PipeReader) {
    let (reader, writer) = std::io::pipe().unwrap();
    command.stdout(writer);
    let tool = Tool::spawn_in(&pair.server, &mut command);
    // The command has a copy of the writing end, and with that the pipe would never close.
    drop(command);
    (tool.attached(), reader)
}

#[test]
fn a_closed_pipe_ends_the_run_silently() {
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
fn a_stdout_that_cannot_be_written_is_an_error() {
    let pair = need!(Pair::new());
    for args in [
        &["syn-count", "vs", "-I", "0.05", "--json"][..],
        &["port-monitor", "vs"],
        &["port-monitor", "vs", "--json"],
        &["connect-trace", "--json"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let tool = Tool::spawn_in(&pair.server, command(args).stdout(full));
        tool.error("about attaching", |line| line.starts_with("attached:"));
        pair.refused_connects((SERVER4, 80).into(), 2);
        let output = tool.finish();
        assert_eq!(output.code(), 1, "{output:#?}");
        let last = output.stderr.last().unwrap();
        let expected = "tcpinspect: failed to write to stdout: No space left on device";
        assert!(last.starts_with(expected), "{output:#?}");
    }
}

#[test]
fn a_reader_that_stops_neither_delays_the_end_nor_loses_events_silently() {
    // More than the pipe holds.
    const SENT: u64 = 40_000;
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    let client = pair.client.enter(|| RawSocket::open("vc"));
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    for (format, user) in [("text", "root"), ("json", "root"), ("json", "nobody")] {
        let args = ["port-monitor", "vs", "-o", format];
        let mut command = command_of(&binary.path(), args);
        if user == "nobody" {
            // The pipe belongs to root, and others can't open it again.
            as_nobody(&mut command, &ENOUGH);
        }
        let (tool, mut reader) = into_pipe(&pair, command);
        (0..SENT).for_each(|_| client.send(&syn));
        // The pipe is full and blocks the tool. Some events are written, some wait in the ring buffer.
        let asked = Instant::now();
        tool.signal(Signal::SIGTERM);
        let output = tool.finish();
        let took = asked.elapsed();
        assert!(took < quick(Duration::from_secs(1)), "{format}: {took:?}");
        assert_eq!(output.code(), 0, "{output:#?}");

        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert!(text.ends_with('\n'), "a line was cut");
        let mut lines: Vec<_> = text.lines().collect();
        let [matched, emitted, lost, _] = take_account(&mut lines, &output);
        let header = usize::from(format == "text");
        assert_eq!(matched, SENT);
        assert_eq!(emitted as usize, lines.len() - header);
        assert!(lost > 0);
        if format == "json" {
            lines.iter().for_each(|line| drop(parse(line)));
        }
    }
}

#[test]
fn lines_are_whole_beside_another_writer_and_after_the_reader_stopped() {
    const OTHER: &str = "a line of somebody else\n";
    // The half of them that is not read is more than the pipe holds.
    const SENT: usize = 60_000;
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
        let [matched, emitted, lost, _] = take_account(&mut lines, &output);
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
    // The tool waits for a reader that makes progress.
    tool.signal(Signal::SIGTERM);
    let output = tool.finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    let (packets, longest) = reader.join().unwrap();
    // On a busy machine this reader may have stopped for longer than the tool waits for a reader.
    let stopped = longest > Duration::from_millis(400);
    assert!(packets == 1000 || stopped, "{packets}, {longest:?}");
}
