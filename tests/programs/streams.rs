//! Files that are still being written, long files, and the progress that is shown meanwhile.

use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::common::terminal::terminal;
use crate::common::{Output, PATIENCE, Tool, command, status_kib, wait_within};
use crate::oracle::Link;
use crate::oracle::frames::{Ipv4, Ipv6, Segment, on_link};
use crate::oracle::parity::{
    COUNT, COUNT_XDP, CaptureFile, MONITOR, MONITOR_PERF, PROGRAMS, times,
};
use crate::oracle::pcap_write::{Frame, Order, Pcap, PcapNg, Unit};

const SECOND: u64 = 1_000_000_000;

fn syn_to(dport: u16) -> Vec<u8> {
    let segment = Segment {
        dport,
        ..Segment::default()
    };
    let packet = match dport % 2 {
        0 => Ipv4::default().tcp(&segment),
        _ => Ipv6::default().tcp(&segment),
    };
    on_link(Link::Ethernet, &[], &packet)
}

/// The end of a FIFO into which a capture is written.
struct Fifo {
    file: Pcap<BufWriter<File>>,
    frames: u64,
}

impl Fifo {
    /// Makes the FIFO and starts the tool on it. The header is there at once.
    fn new(directory: &Path, program: &[&str], options: &[&str]) -> (Self, Tool) {
        let path = directory.join("fifo");
        let _ = std::fs::remove_file(&path);
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        // For reading as well, so that neither side has to wait for the other.
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let mut command = command([program, options].concat());
        let tool = Tool::spawn(command.arg("-r").arg(&path));
        let (order, unit) = (Order::Little, Unit::Nanoseconds);
        let mut file = Pcap::new(BufWriter::new(file), order, unit, 1).unwrap();
        file.flush().unwrap();
        (Self { file, frames: 0 }, tool)
    }

    /// Writes a frame that is a second later than the previous one.
    fn write(&mut self, frame: &[u8]) {
        self.frames += 1;
        let frame = Frame::whole(self.frames * SECOND, frame);
        self.file.frame(frame).unwrap();
    }

    fn flush(&mut self) {
        self.file.flush().unwrap();
    }
}

#[test]
fn lines_of_a_pipe_come_while_it_is_still_written_and_a_signal_ends_the_wait() {
    let directory = tempfile::tempdir().unwrap();
    for program in PROGRAMS {
        let (mut fifo, tool) = Fifo::new(directory.path(), program, &[]);
        // syn-count writes a line when two seconds have passed in the file.
        for (packets, intervals) in [(1, 1), (2, 2), (3, 4)] {
            for frame in [&syn_to(80)[..20], &syn_to(81), &[]] {
                fifo.write(frame);
            }
            fifo.flush();
            tool.events(if program == MONITOR {
                packets
            } else {
                intervals
            });
        }
        tool.signal(Signal::SIGTERM);
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{output:?}");
        let summary = output.summary();
        assert_eq!(summary["exit_reason"], "signal");
        assert_eq!(summary["packets"], fifo.frames, "{summary}");
    }
}

#[test]
fn a_duration_and_a_closed_stdout_end_the_wait_for_a_pipe() {
    let directory = tempfile::tempdir().unwrap();
    for program in PROGRAMS {
        let (mut fifo, tool) = Fifo::new(directory.path(), program, &["-d", "0.3"]);
        fifo.write(&syn_to(80));
        fifo.flush();
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{output:?}");
        let summary = output.summary();
        assert_eq!(summary["exit_reason"], "duration");
        assert_eq!(summary["matched"], 1);
    }

    // A closed stdout is noticed even if there is no line to write.
    let path = directory.path().join("idle");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let unit = Unit::Nanoseconds;
    let mut file = Pcap::new(BufWriter::new(file), Order::Big, unit, 1).unwrap();
    file.flush().unwrap();
    let mut child = command(["port-monitor"])
        .arg("-r")
        .arg(&path)
        .spawn()
        .unwrap();
    // The header line shows that the tool is ready.
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut [0]).unwrap();
    drop(stdout);
    let status = wait_within("the end", PATIENCE, || child.try_wait().unwrap());
    assert_eq!(status.code(), Some(0));
}

#[test]
fn the_end_of_a_pipe_is_the_end_of_the_file_and_a_cut_frame_an_error() {
    let directory = tempfile::tempdir().unwrap();
    for program in PROGRAMS {
        let (mut fifo, tool) = Fifo::new(directory.path(), program, &[]);
        fifo.write(&syn_to(80));
        fifo.flush();
        // It is opened by now, so that closing this side leaves no writer.
        tool_has_opened(&tool);
        drop(fifo);
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{output:?}");
        let summary = output.summary();
        assert_eq!(summary["exit_reason"], "end_of_file");
        assert_eq!(summary["matched"], 1);

        let path = directory.path().join("fifo");
        let (fifo, tool) = Fifo::new(directory.path(), program, &[]);
        tool_has_opened(&tool);
        let mut file = fifo.file.finish();
        file.write_all(&[0; 15]).unwrap();
        drop(file);
        let output = tool.finish();
        assert_eq!(output.code(), 1, "{output:?}");
        let (error, _) = output.complaint();
        let name = path.display();
        let why = "record at byte 24: cut short: 15 of its 16 bytes are there";
        assert_eq!(error, format!("failed to read {name}: {why}"));
        assert_eq!(output.summary()["packets"], 0);
    }
}

/// Waits until the tool has opened the FIFO: its stdin and outputs are pipes without a name. A descriptor
/// that is for writing too was inherited from this process, and is closed when the tool is executed.
fn tool_has_opened(tool: &Tool) {
    let of_tool = |what: &str| format!("/proc/{}/{what}", tool.pid());
    let is_open = || {
        let mut all = std::fs::read_dir(of_tool("fd")).ok()?;
        all.find_map(|entry| {
            let entry = entry.ok()?;
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry.file_name();
            let info = of_tool("fdinfo") + "/" + number.to_str()?;
            let info = std::fs::read_to_string(info).ok()?;
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
            let for_reading_only = flags.ends_with(['0', '4']);
            (target.ends_with("fifo") && for_reading_only).then_some(())
        })
    };
    wait_within("the tool opens the FIFO", PATIENCE, is_open);
}

#[test]
fn a_capture_can_come_from_stdin() {
    let frames = vec![syn_to(80); 500];
    let file = CaptureFile::of(Link::Ethernet, &frames);
    for program in PROGRAMS {
        let mut command = command([program, &["-r", "-"]].concat());
        command.stdin(File::open(&file.path).unwrap());
        let output = Tool::spawn(&mut command).finish();
        assert_eq!(output.code(), 0);
        assert_eq!(output.summary()["matched"], 500);

        command.stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let bytes = std::fs::read(&file.path).unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&bytes[..3000])
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(
            error.starts_with("tcpinspect: failed to read stdin: record at byte "),
            "{error}"
        );
    }
}

/// How many frames a long capture has.
fn many() -> u64 {
    times(1_000_000, 30_000) as u64
}

/// The most memory that a process ever had resident, in bytes.
fn peak_memory(tool: &Tool) -> u64 {
    status_kib(tool.pid(), "VmHWM").unwrap() * 1024
}

#[test]
fn a_capture_of_a_million_frames_takes_little_memory_and_time() {
    const MOST: u64 = 16 << 20;
    const BUFFER: u64 = 4 << 20;
    let directory = tempfile::tempdir().unwrap();
    let frames = [syn_to(80), syn_to(443), syn_to(8080)];
    for program in [COUNT, COUNT_XDP, MONITOR, MONITOR_PERF] {
        let monitor = program == MONITOR || program == MONITOR_PERF;
        let options: &[&str] = if monitor {
            &["-p", "81"]
        } else {
            &["-I", "1000"]
        };
        let (mut fifo, tool) = Fifo::new(directory.path(), program, options);
        let started = Instant::now();
        for number in 0..many() {
            // One in a hundred is looked for, the last one among them.
            let last_of_hundred = number % 100 == 99;
            let of_three = frames[(number % 3) as usize].as_slice();
            match last_of_hundred {
                true => fifo.write(&syn_to(81)),
                false => fifo.write(of_three),
            }
        }
        fifo.flush();
        let matched = if monitor { many() / 100 } else { many() };
        // Without the last interval, which still goes on.
        let lines = if monitor { matched } else { many() / 1000 - 1 };
        let lines = usize::try_from(lines).unwrap();
        let limit = Duration::from_secs(120);
        wait_within("all lines", limit, || {
            (tool.lines().len() >= lines).then_some(())
        });
        let peak = peak_memory(&tool);
        let allowed = if monitor { MOST + BUFFER } else { MOST };
        assert!(peak <= allowed, "{program:?}: {peak} bytes");
        drop(fifo);
        let output = tool.finish();
        let summary = output.summary();
        assert_eq!(summary["packets"], many(), "{summary}");
        assert_eq!(summary["matched"], matched, "{summary}");
        assert_eq!(summary["lost"], 0, "{summary}");
        eprintln!("{program:?}: {:?}, {} KiB", started.elapsed(), peak / 1024);
    }
}

#[test]
fn an_interrupted_replay_reports_what_it_did() {
    let file = long_file(many());
    for program in PROGRAMS {
        let options: &[&str] = if program == MONITOR {
            &[]
        } else {
            &["-I", "1000"]
        };
        let mut command = command([program, options].concat());
        let tool = Tool::spawn(command.arg("-r").arg(&file.path));
        tool.events(1);
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{:?}", output.stderr);
        let summary = output.summary();
        assert_eq!(summary["matched"], summary["packets"], "{summary}");
        assert_eq!(summary["lost"], 0, "{summary}");
        if program == MONITOR {
            let lines = output.events("packet").len();
            assert_eq!(summary["emitted"], lines, "{summary}");
        }
        // On a fast machine it may have read the whole file before the signal.
        if summary["packets"] != many() {
            assert_eq!(summary["exit_reason"], "signal", "{summary}");
        }
    }
}

/// A file of SYNs, a second apart.
fn long_file(count: u64) -> CaptureFile {
    let file = CaptureFile::new(&[]);
    let out = BufWriter::new(File::create(&file.path).unwrap());
    let mut pcap = Pcap::new(out, Order::Little, Unit::Nanoseconds, 1).unwrap();
    let frame = syn_to(80);
    for number in 0..count {
        pcap.frame(Frame::whole(number * SECOND, &frame)).unwrap();
    }
    pcap.finish().flush().unwrap();
    file
}

/// Runs the tool with a terminal for stderr, and perhaps for stdout; returns what came there.
fn on_terminal(file: &CaptureFile, words: &[&str], stdout_too: bool) -> String {
    let (mut user, program) = terminal(0, 0).unwrap();
    let mut command = command(words);
    command.arg("-r").arg(&file.path);
    command.stderr(program.try_clone().unwrap());
    command.stdout(match stdout_too {
        true => Stdio::from(program.try_clone().unwrap()),
        false => Stdio::null(),
    });
    let mut child = command.spawn().unwrap();
    // The descriptors of the terminal in `command` must be closed. Otherwise it would never end.
    drop((command, program));
    let reader = thread::spawn(move || {
        let mut text = Vec::new();
        let mut piece = [0; 4096];
        // When the other end of the terminal is closed, reading fails with EIO instead of returning 0.
        while let Ok(count @ 1..) = user.read(&mut piece) {
            text.extend_from_slice(&piece[..count]);
        }
        text
    });
    let status = wait_within("the end", Duration::from_secs(120), || {
        child.try_wait().unwrap()
    });
    assert_eq!(status.code(), Some(0));
    String::from_utf8(reader.join().unwrap()).unwrap()
}

/// The lines that a terminal shows in the end, after returns and erasures.
fn shown(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for part in text.split_inclusive(['\r', '\n']) {
        let line = lines.last_mut().unwrap();
        let (written, end) = part.split_at(part.trim_end_matches(['\r', '\n']).len());
        match written.strip_prefix("\u{1b}[K") {
            Some(rest) => *line = rest.to_owned(),
            None if written.len() >= line.len() => *line = written.to_owned(),
            None => line.replace_range(..written.len(), written),
        }
        if end == "\n" {
            lines.push(String::new());
        }
    }
    lines
}

#[test]
fn on_a_terminal_a_long_replay_shows_how_far_it_is() {
    // It has to take longer than a moment, in a guest as well.
    let count = times(1_000_000, 150_000) as u64;
    let file = long_file(count);
    let progress = |text: &str| {
        text.split('\r')
            .filter_map(|part| part.strip_prefix("\u{1b}[K"))
            .filter_map(|part| part.split_once(" frames, "))
            .map(|(frames, percent)| {
                let percent = percent.strip_suffix(" %").unwrap();
                (
                    frames.parse::<u64>().unwrap(),
                    percent.parse::<u64>().unwrap(),
                )
            })
            .collect::<Vec<_>>()
    };
    for (words, stdout_too) in [
        (&["syn-count", "--mode", "tc", "-I", "100000"][..], false),
        (&["syn-count", "--mode", "tc", "-I", "100000"], true),
        (&["syn-count", "--mode", "generic", "-I", "100000"], true),
    ] {
        let text = on_terminal(&file, words, stdout_too);
        let steps = progress(&text);
        assert!(!steps.is_empty(), "{text:?}");
        assert!(steps.is_sorted(), "{steps:?}");
        for (frames, percent) in steps {
            // The reader is at most a buffer of 64 KiB, some 900 frames, ahead of the programs.
            let behind = percent.abs_diff(frames * 100 / count);
            assert!(behind <= 1 + 100_000 / count, "{frames}: {percent} %");
        }
        // Nothing of the progress stays, and it spoils no other line.
        for line in shown(&text) {
            let is_whole = ["TIME", "summary: ", ""]
                .iter()
                .any(|it| line.starts_with(it));
            assert!(is_whole && !line.contains(" frames"), "{line:?} {text:?}");
            let is_data = line.contains("replay ");
            assert!(!is_data || line.split_whitespace().count() == 6, "{line:?}");
        }
        let data = shown(&text)
            .iter()
            .filter(|it| it.contains("replay "))
            .count();
        let intervals = usize::try_from(count.div_ceil(100_000)).unwrap();
        let wanted = if stdout_too && words[0] == "syn-count" {
            intervals
        } else {
            0
        };
        assert_eq!(data, wanted, "{text:?}");
    }
    let text = on_terminal(&file, &["syn-count", "-q", "--mode", "tc"], false);
    assert!(progress(&text).is_empty(), "{text:?}");
}

#[test]
fn a_file_of_unknown_blocks_takes_no_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("blocks");
    let out = BufWriter::new(File::create(&path).unwrap());
    let mut file = PcapNg::new(out, Order::Little).unwrap();
    file.interface(1, 0, None).unwrap();
    // Three blocks of 8 MiB that are skipped, then a packet.
    let nothing = vec![0; 8 << 20];
    for _ in 0..3 {
        file.block(0x0bad, &nothing).unwrap();
    }
    let frame = syn_to(80);
    let length = u32::try_from(frame.len()).unwrap();
    file.enhanced(0, 0, &frame, length).unwrap();
    file.finish().flush().unwrap();
    let output: Output = {
        let mut command = command(["syn-count", "--json", "-r"]);
        Tool::spawn(command.arg(&path)).finish()
    };
    assert_eq!(output.code(), 0);
    assert_eq!(output.summary()["matched"], 1);
}
