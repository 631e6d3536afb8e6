//! Each event is written, or counted as lost or suppressed. The counts are exact, whatever goes wrong.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::tool::{account, into_small_pipe, small_disk, take_account};
use crate::common::{Pair, Tool, command, need, wait_for};
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

/// Commands, and how many lines each has for a connection that is refused.
const COMMANDS: [(&[&str], u64); 3] = [
    (&["port-monitor", "vs"], 1),
    (&["flows", "vs"], 1),
    (&["connect-trace"], 2),
];

/// Two hosts, and an address of the server to which nobody but this test connects: connect-trace
/// sees the whole machine.
struct World {
    pair: Pair,
    addr: Ipv4Addr,
}

impl World {
    fn new(number: u8) -> Result<Self, String> {
        let pair = Pair::new()?;
        let addr = Ipv4Addr::new(10, 77, 66, number);
        pair.server.run(&format!("ip addr add {addr}/32 dev lo"));
        pair.client
            .run(&format!("ip route add {addr} via 10.77.0.2"));
        Ok(Self { pair, addr })
    }

    /// A command with a filter for this address alone.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = command(args);
        command.args(["--dst", &self.addr.to_string()]);
        command
    }

    fn spawn(&self, command: &mut Command) -> Tool {
        Tool::spawn_in(&self.pair.server, command)
    }

    /// Makes connections that are refused.
    fn connect(&self, count: usize) {
        self.pair.refused_connects((self.addr, 80).into(), count);
    }

    /// Makes connections while the tool is stopped, so that all are there when it goes on.
    fn connect_while_stopped(&self, tool: &Tool, count: usize) {
        tool.signal(Signal::SIGSTOP);
        self.connect(count);
        tool.signal(Signal::SIGCONT);
    }
}

#[test]
fn events_lost_to_a_stopped_reader_are_counted() {
    let world = need!(World::new(101));
    for (args, lines_each) in COMMANDS {
        for (format, strict) in [("text", false), ("json", true)] {
            let mut command = world.command(args);
            command.args(["-o", format]);
            command.args(strict.then_some("--strict"));
            let (tool, mut reader) = into_small_pipe(&world.pair.server, command);
            world.connect_while_stopped(&tool, 100);
            tool.signal(Signal::SIGTERM);
            let output = tool.finish();
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            assert!(text.ends_with('\n'), "{args:?}: a line was cut");
            let mut lines: Vec<_> = text.lines().collect();
            let [matched, emitted, lost, suppressed] = take_account(&mut lines, &output);
            let header = usize::from(format == "text");
            assert_eq!(matched, 100 * lines_each, "{args:?}");
            assert_eq!(emitted as usize, lines.len() - header, "{args:?}");
            assert!(lost > 0 && suppressed == 0, "{args:?}: {output:#?}");
            assert_eq!(output.code(), if strict { 3 } else { 0 }, "{output:#?}");
        }
    }
}

#[test]
fn flows_are_reported_promptly_again_after_a_reader_was_slow() {
    let world = need!(World::new(108));
    let command = world.command(&["flows", "vs", "--json"]);
    let (tool, reader) = into_small_pipe(&world.pair.server, command);
    world.connect(100);
    // The pipe is full, and a line waits for it.
    wait_for("flows that are over", || {
        let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
        (poll(&mut fds, PollTimeout::ZERO) == Ok(1)).then_some(())
    });
    thread::sleep(Duration::from_secs(1));
    let mut lines = BufReader::new(reader).lines();
    for _ in 0..100 {
        lines.next().unwrap().unwrap();
    }
    let slow = Instant::now();
    world.connect(1);
    let line = lines.next().unwrap().unwrap();
    // A flow waits for a second, in case more packets of it come.
    assert!(slow.elapsed() < Duration::from_secs(10), "{line}");
    drop(lines);
    assert_eq!(tool.finish().code(), 0);
}

#[test]
fn events_lost_to_a_full_buffer_are_counted() {
    let world = need!(World::new(102));
    for (args, lines_each) in COMMANDS {
        for buffer in ["ring", "perf"] {
            let mut command = world.command(args);
            command.args(["--json", "--strict", "--buffer", buffer]);
            command.args(["--buffer-size", "4096"]);
            let tool = world.spawn(&mut command).attached();
            world.connect_while_stopped(&tool, 300);
            let output = tool.stop();
            let summary = output.summary();
            let number = |name: &str| summary[name].as_u64().unwrap();
            let what = format!("{args:?}, {buffer}: {summary}");
            assert_eq!(number("matched"), 300 * lines_each, "{what}");
            assert_eq!(
                number("emitted") as usize,
                output.stdout.len() - 1,
                "{what}"
            );
            if args[0] == "flows" {
                // The table holds what waits for its reader.
                assert_eq!(number("lost"), 0, "{what}");
                assert_eq!(output.code(), 0, "{what}");
            } else {
                assert!(number("lost") > 0 && number("emitted") > 0, "{what}");
                assert_eq!(output.code(), 3, "{what}");
            }
        }
    }
}

#[test]
fn a_full_disk_is_an_error_and_events_that_were_not_written_are_counted() {
    let world = need!(World::new(103));
    for (args, lines_each) in COMMANDS {
        for format in ["text", "json"] {
            for kind in ["disk", "limit", "/dev/full"] {
                let mut command = world.command(args);
                command.args(["-o", format]);
                let mut file = match kind {
                    "disk" => need!(small_disk()),
                    "limit" => tempfile::tempfile().unwrap(),
                    _ => File::options().write(true).open("/dev/full").unwrap(),
                };
                command.stdout(file.try_clone().unwrap());
                if kind == "limit" {
                    // SAFETY: two system calls and nothing else happen between fork and exec.
                    unsafe {
                        command.pre_exec(|| {
                            // Otherwise a write beyond the limit kills the process.
                            signal(Signal::SIGXFSZ, SigHandler::SigIgn)?;
                            Ok(setrlimit(Resource::RLIMIT_FSIZE, 5000, 5000)?)
                        });
                    }
                }
                let tool = world.spawn(&mut command).attached();
                // If not even the header can be written, the run ends without an event.
                if kind != "/dev/full" || format == "json" {
                    world.connect_while_stopped(&tool, 100);
                }
                let output = tool.finish();
                let what = format!("{args:?}, {format}, {kind}: {output:#?}");
                assert_eq!(output.code(), 1, "{what}");
                let last = output.stderr.last().unwrap();
                let expected = "tcpinspect: failed to write to stdout: ";
                assert!(last.starts_with(expected), "{what}");
                let [matched, emitted, lost, suppressed] = account(&output);
                let mut text = String::new();
                if kind == "/dev/full" {
                    assert_eq!(emitted, 0, "{what}");
                } else {
                    file.rewind().unwrap();
                    file.read_to_string(&mut text).unwrap();
                    let header = usize::from(format == "text");
                    let whole = text.matches('\n').count() - header;
                    assert_eq!(emitted as usize, whole, "{what}");
                    assert_eq!(matched, 100 * lines_each, "{what}");
                    assert!(lost > 0, "{what}");
                }
                assert_eq!(suppressed, 0, "{what}");
            }
        }
    }
}

#[test]
fn events_lost_to_a_closed_pipe_are_counted() {
    let world = need!(World::new(104));
    for (args, lines_each) in COMMANDS {
        for strict in [false, true] {
            let mut command = world.command(args);
            command.args(strict.then_some("--strict"));
            let (tool, mut reader) = into_small_pipe(&world.pair.server, command);
            // The header has room, and was written.
            reader.read_exact(&mut [0]).unwrap();
            tool.signal(Signal::SIGSTOP);
            world.connect(20);
            drop(reader);
            tool.signal(Signal::SIGCONT);
            let output = tool.finish();
            let [matched, emitted, lost, suppressed] = account(&output);
            assert_eq!(
                [matched, emitted, lost, suppressed],
                [20 * lines_each, 0, 20 * lines_each, 0],
                "{args:?}: {output:#?}"
            );
            assert_eq!(output.code(), if strict { 3 } else { 0 }, "{output:#?}");
            let mut lines = output.stderr.iter();
            assert!(
                !lines.any(|line| line.starts_with("warning:")),
                "{output:#?}"
            );
        }
    }
}

#[test]
fn strict_changes_nothing_if_no_event_is_lost() {
    let world = need!(World::new(105));
    let counting: &[&str] = &["syn-count", "vs", "-I", "0.05"];
    for args in COMMANDS.map(|(args, _)| args).into_iter().chain([counting]) {
        let mut command = world.command(args);
        command.args(["--json", "--strict"]);
        let tool = world.spawn(&mut command).attached();
        world.connect(10);
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        let summary = output.summary();
        let each = if args[0] == "connect-trace" { 20 } else { 10 };
        assert_eq!(summary["matched"], each, "{summary}");
        assert_eq!(summary["emitted"], each, "{summary}");
    }
}

#[test]
fn events_above_count_or_max_rate_are_suppressed_and_not_lost() {
    let world = need!(World::new(106));
    for (args, lines_each) in COMMANDS {
        let mut command = world.command(args);
        command.args(["--json", "--strict", "-c", "7"]);
        let tool = world.spawn(&mut command).attached();
        world.connect_while_stopped(&tool, 20);
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{output:#?}");
        let summary = output.summary();
        assert_eq!(summary["exit_reason"], "count", "{summary}");
        assert_eq!(summary["matched"], 20 * lines_each, "{summary}");
        assert_eq!(summary["emitted"], 7, "{summary}");
        assert_eq!(summary["lost"], 0, "{summary}");
    }
    // The rate is that of all interfaces and directions together.
    let args = [
        "port-monitor",
        "vs",
        "lo",
        "--json",
        "--strict",
        "--max-rate",
        "5",
    ];
    let tool = world.spawn(&mut world.command(&args)).attached();
    world.connect(100);
    world.pair.server.enter(|| {
        for _ in 0..100 {
            std::net::TcpStream::connect((world.addr, 80)).expect_err("nobody listens there");
        }
    });
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    let summary = output.summary();
    assert_eq!(summary["matched"], 200, "{summary}");
    assert_eq!(summary["lost"], 0, "{summary}");
    let emitted = summary["emitted"].as_f64().unwrap();
    let seconds = summary["duration_s"].as_f64().unwrap();
    assert!(
        (5.0..=5.0 * (seconds + 1.0)).contains(&emitted),
        "{summary}"
    );
}

#[test]
fn counts_are_in_the_summary_even_if_no_line_can_be_written() {
    let world = need!(World::new(107));
    let (_reader, mut writer) = std::io::pipe().unwrap();
    fcntl(writer.as_fd(), FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    writer.write_all(&[b'x'; 4096]).unwrap();
    let mut command = world.command(&["syn-count", "vs", "-I", "0.05", "--json"]);
    command.stdout(writer);
    let tool = world.spawn(&mut command).attached();
    world.connect(50);
    tool.signal(Signal::SIGTERM);
    let output = tool.finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    let summary = output.stderr.last().unwrap();
    assert!(summary.contains(" 50 SYNs"), "{summary}");
}
