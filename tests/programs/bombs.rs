//! Files that take practically forever to read: a run on them still ends at once, and the process
//! that reads them has no privileges and is in the sandbox from the first byte on.

use std::fs::{self, File};
use std::io::{PipeReader, Write};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use nix::sys::signal::Signal;

use crate::common::frames::syn_frame;
use crate::common::{CLIENT4, SERVER4, Tool, command, release, wait_for};
use crate::oracle::pcap_write::{Order, PcapNg, block};

/// How long the end may take if nothing else needs the CPU.
const AT_ONCE: Duration = Duration::from_millis(200);

/// Tries on a machine that is busy with other things.
const TRIES: usize = 10;

/// The blocks that a file begins with: a section, and an interface of Ethernet frames.
fn header() -> Vec<u8> {
    let mut file = PcapNg::new(Vec::new(), Order::Little).unwrap();
    file.interface(1, 0, None).unwrap();
    file.finish()
}

/// A block that no reader knows, so that it is skipped.
fn unknown(len: usize) -> Vec<u8> {
    block(Order::Little, 0xbad, &vec![0; len])
}

/// A Simple Packet Block.
fn simple_packet(frame: &[u8]) -> Vec<u8> {
    let len = (frame.len() as u32).to_le_bytes();
    block(Order::Little, 3, &[&len, frame].concat())
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Beginnings of files, and what follows again and again.
fn endless() -> [(&'static str, Vec<u8>, Vec<u8>); 4] {
    let empty = gzip(b"");
    [
        ("blocks", header(), unknown(1 << 20)),
        ("small blocks", header(), unknown(0).repeat(1 << 16)),
        ("a bomb", gzip(&header()), gzip(&unknown(16 << 20))),
        ("empty members", gzip(&header()), empty.repeat(1 << 12)),
    ]
}

/// Starts a command whose input is `first` and then `rest` again and again, as long as it reads.
/// Meanwhile calls `run` with it, and with the number of bytes that were written to it.
fn with_input<T>(
    mut command: Command,
    first: &[u8],
    rest: &[u8],
    run: impl FnOnce(Tool, &AtomicU64) -> T,
) -> T {
    let (reader, mut writer): (PipeReader, _) = std::io::pipe().unwrap();
    command.stdin(reader);
    let tool = Tool::spawn(&mut command);
    drop(command);
    let written = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut piece = first;
            while writer.write_all(piece).is_ok() {
                written.fetch_add(piece.len() as u64, Ordering::SeqCst);
                piece = rest;
            }
        });
        run(tool, &written)
    })
}

/// Tries up to [`TRIES`] times, until one of them is quick enough.
fn at_once(what: &str, mut attempt: impl FnMut() -> Duration) {
    let took: Vec<_> = (0..TRIES)
        .map(|_| attempt())
        .take_while(|took| *took >= AT_ONCE)
        .collect();
    assert!(took.len() < TRIES, "{what}: {took:?}");
}

#[test]
fn a_signal_ends_the_reading_of_any_file_at_once() {
    for (what, first, rest) in endless() {
        at_once(what, || {
            let command = command(["syn-count", "-r", "-", "--json"]);
            with_input(command, &first, &rest, |tool, written| {
                // More than fits into the pipe and the buffers.
                let read = || (written.load(Ordering::SeqCst) > 1 << 18).then_some(());
                wait_for(what, read);
                let asked = Instant::now();
                tool.signal(Signal::SIGTERM);
                let output = tool.finish();
                let took = asked.elapsed();
                assert_eq!(output.code(), 0, "{what}: {output:#?}");
                assert_eq!(output.summary()["exit_reason"], "signal", "{what}");
                took
            })
        });
    }
}

#[test]
fn a_duration_ends_the_reading_of_any_file_in_time() {
    const DURATION: Duration = Duration::from_millis(300);
    let late = |tool: Tool, what: &str| {
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{what}: {output:#?}");
        let summary = output.summary();
        assert_eq!(summary["exit_reason"], "duration", "{what}");
        Duration::from_secs_f64(summary["duration_s"].as_f64().unwrap()) - DURATION
    };
    for (what, first, rest) in endless() {
        at_once(what, || {
            let command = command(["port-monitor", "-r", "-", "--json", "-d", "300ms"]);
            with_input(command, &first, &rest, |tool, _| late(tool, what))
        });
    }
    // A sparse regular file, nearly all of which is one block.
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("sparse");
    let mut file = File::create(&path).unwrap();
    let kind_and_len = [0xbad_u32, 0xffff_fff0].map(u32::to_le_bytes);
    let bytes = [&header()[..], kind_and_len.as_flattened()].concat();
    file.write_all(&bytes).unwrap();
    file.set_len(1 << 40).unwrap();
    at_once("a sparse file", || {
        let mut command = command(["port-monitor", "--json", "-d", "300ms", "-r"]);
        late(Tool::spawn(command.arg(&path)), "a sparse file")
    });
}

#[test]
fn a_count_ends_the_reading_of_any_file() {
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    let packet = simple_packet(&syn);
    for (what, first, rest) in endless() {
        let packet = match what {
            "blocks" | "small blocks" => packet.clone(),
            _ => gzip(&packet),
        };
        let command = command(["port-monitor", "-r", "-", "--json", "-c", "1"]);
        with_input(command, &[first, packet].concat(), &rest, |tool, _| {
            let output = tool.finish();
            assert_eq!(output.code(), 0, "{what}: {output:#?}");
            assert_eq!(output.summary()["exit_reason"], "count", "{what}");
        });
    }
}

#[test]
fn a_replay_enters_the_sandbox_before_it_reads_the_first_byte() {
    for command_name in ["syn-count", "port-monitor", "flows"] {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut command = command([command_name, "-r", "-", "--json"]);
        command.stdin(reader);
        let tool = Tool::spawn(&mut command);
        drop(command);
        let status = || fs::read_to_string(format!("/proc/{}/status", tool.pid())).unwrap();
        wait_for("the filter", || {
            status().contains("Seccomp:\t2").then_some(())
        });
        let status = status();
        let kept = status
            .lines()
            .find_map(|line| line.strip_prefix("CapPrm:\t"));
        let kept = u64::from_str_radix(kept.unwrap(), 16).unwrap();
        // Before Linux 5.19 a test run needs CAP_BPF.
        let allowed = caps::Capability::CAP_BPF.bitmask();
        assert_eq!(kept & !allowed, 0, "{command_name}: {status}");
        if need_no_capability() {
            assert_eq!(kept, 0, "{command_name}: {status}");
        }
        assert!(
            status.contains("NoNewPrivs:\t1"),
            "{command_name}: {status}"
        );
        drop(writer);
        let output = tool.finish();
        assert_eq!(output.code(), 2, "{command_name}: {output:#?}");
        let (error, _) = output.complaint();
        assert_eq!(error, "failed to read stdin: the file is empty");
    }
}

/// Whether bpf(2) needs no capability here to use programs and maps that are loaded already.
fn need_no_capability() -> bool {
    let sysctl = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled");
    release() >= (5, 19) || sysctl.is_ok_and(|value| value.trim() == "0")
}
