//! `-w`: the content of capture files, as several programs read it, however the run has ended.

use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::frames::{Tag, service_vlan, syn_frame, vlan};
use crate::common::raw::RawSocket;
use crate::common::tool::{account, binary, command, small_disk};
use crate::common::{CLIENT4, Namespace, Pair, SERVER4, SERVER6, Tool, is_guest, need};
use crate::oracle::{capture, pcap_write};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tcpinspect::capture::{Capture, CaptureFile};

/// The frames of a file, which must be whole.
fn frames(path: &Path) -> Vec<Vec<u8>> {
    let mut capture = open(path);
    let mut frames = Vec::new();
    while let Some(frame) = capture.next_frame().unwrap() {
        frames.push(frame.bytes.to_vec());
    }
    frames
}

fn open(path: &Path) -> Capture {
    let file = CaptureFile::open(path).unwrap();
    file.read(std::rc::Rc::new(|_| Ok(()))).unwrap()
}

/// The output of another program that reads the file.
fn output_of(words: &[&str], path: &Path) -> String {
    let output = Command::new(words[0])
        .args(&words[1..])
        .arg(path)
        .stderr(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(output.status.success(), "{words:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Sends bytes over a connection, and returns when the server has them.
fn transfer(pair: &Pair, bytes: &[u8]) {
    for address in [IpAddr::from(SERVER4), IpAddr::from(SERVER6)] {
        let listener = pair
            .server
            .enter(|| TcpListener::bind((address, 8000)).unwrap());
        let mut stream = pair
            .client
            .enter(|| TcpStream::connect(listener.local_addr().unwrap()).unwrap());
        let (mut server, _) = listener.accept().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                stream.write_all(bytes).unwrap();
            });
            let mut received = Vec::new();
            server.read_to_end(&mut received).unwrap();
            assert_eq!(received.len(), bytes.len());
        });
    }
}

#[test]
fn others_read_as_many_packets_as_the_summary_counts() {
    let pair = need!(Pair::new());
    let dir = tempfile::tempdir().unwrap();
    for buffer in ["ring", "perf"] {
        for (name, snaplen) in [("all.pcapng", "0"), ("all.pcap", "0"), ("cut.pcapng", "80")] {
            let path = dir.path().join(name);
            let file = path.to_str().unwrap();
            let args = format!(
                "port-monitor vs --flags any --direction both --json --buffer {buffer} -s {snaplen} -w"
            );
            let mut args: Vec<_> = args.split(' ').collect();
            args.push(file);
            let tool = Tool::start_in(&pair.server, &args);
            transfer(&pair, &[0x5a; 200_000]);
            let output = tool.stop();
            assert_eq!(output.code(), 0, "{output:#?}");
            let summary = output.summary();
            let written = summary["emitted"].as_u64().unwrap();
            assert!(written > 20 && summary["lost"] == 0, "{summary}");

            let args = ["port-monitor", "-r", file, "--flags", "any", "--json"];
            let again = Tool::spawn(&mut command(args)).finish();
            assert_eq!(again.events("packet").len() as u64, written, "{name}");
            let frames = frames(&path);
            let sum: usize = frames.iter().map(Vec::len).sum();
            match snaplen {
                "0" => assert!(sum > 400_000, "{sum}"),
                _ => assert!(frames.iter().all(|frame| frame.len() <= 80)),
            }
            let bytes = fs::read(&path).unwrap();
            let second = capture::read(&bytes);
            assert!(second.end.is_ok());
            assert_eq!(second.records.len() as u64, written);
            if is_guest() {
                continue;
            }
            let lines = output_of(&["tcpdump", "-nr"], &path);
            assert_eq!(lines.lines().count() as u64, written, "tcpdump, {name}");
            let lines = output_of(&["tshark", "-nr"], &path);
            assert_eq!(lines.lines().count() as u64, written, "tshark, {name}");
            let info = output_of(&["capinfos", "-M"], &path);
            let counted = format!("Number of packets:   {written}\n");
            assert!(info.contains(&counted), "{info}");
            if name == "all.pcapng" {
                let fields = [
                    "-e",
                    "frame.interface_name",
                    "-e",
                    "frame.packet_flags_direction",
                ];
                let words = [&["tshark", "-T", "fields"], &fields[..], &["-nr"]].concat();
                let lines = output_of(&words, &path);
                let of = |way: &str| lines.lines().filter(|line| line.ends_with(way)).count();
                let (incoming, outgoing) = (of("vs\t0x00000001"), of("vs\t0x00000002"));
                assert_eq!((incoming + outgoing) as u64, written);
                assert!(incoming > 10 && outgoing > 10);
                assert!(info.contains("Number of stat entries = 1"), "{info}");
            }
        }
    }
}

#[test]
fn a_frame_is_written_as_it_was_on_the_wire() {
    let pair = need!(Pair::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tags.pcapng");
    let tags: [&[Tag]; 3] = [&[], &[vlan(7)], &[service_vlan(3), vlan(0xe007)]];
    let sent = tags.map(|tags| syn_frame(tags, CLIENT4.into(), SERVER4.into(), 81));
    let raw = pair.client.enter(|| RawSocket::open("vc"));
    // With generic XDP before it, TC may lack the Ethernet header.
    for beside in [None, Some("generic")] {
        let counter =
            beside.map(|mode| Tool::start_in(&pair.server, &["syn-count", "vs", "--mode", mode]));
        for buffer in ["ring", "perf"] {
            let file = path.to_str().unwrap();
            let args = [
                "port-monitor",
                "-w",
                file,
                "-c",
                "3",
                "vs",
                "--buffer",
                buffer,
                // These bytes go beyond the end of the Ethernet header.
                "--filter",
                "ether[12:4] != 0",
            ];
            let tool = Tool::start_in(&pair.server, &args);
            for frame in &sent {
                raw.send(frame);
            }
            let output = tool.finish();
            assert_eq!(account(&output), [3, 3, 0, 0], "{output:#?}");
            assert_eq!(frames(&path), sent, "{buffer}");
        }
        if let Some(counter) = counter {
            assert_eq!(counter.stop().code(), 0);
        }
    }
}

#[test]
fn a_full_disk_leaves_a_file_that_is_whole() {
    let pair = need!(Pair::new());
    let mut file = need!(small_disk());
    let mut command = command(["port-monitor", "vs", "--flags", "any", "-w", "-"]);
    command.stdout(file.try_clone().unwrap());
    let tool = Tool::spawn_in(&pair.server, &mut command).attached();
    transfer(&pair, &[1; 100_000]);
    let output = tool.finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    let last = output.stderr.last().unwrap();
    assert!(
        last.starts_with("tcpinspect: failed to write to stdout: No space"),
        "{last}"
    );
    let [_, emitted, lost, _] = account(&output);
    assert!(lost > 0);
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    let capture = capture::read(&bytes);
    assert!(capture.end.is_ok(), "{:?}", capture.end);
    assert_eq!(capture.records.len() as u64, emitted);
    assert!(emitted > 1);
}

#[test]
fn a_limit_on_the_size_of_files_leaves_a_file_that_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let [from, to] = ["from.pcap", "to.pcapng"].map(|name| dir.path().join(name));
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    fs::write(&from, pcap_write::pcap(1, &vec![syn; 100])).unwrap();
    let mut command = command(["port-monitor", "-r", from.to_str().unwrap(), "-w"]);
    command.arg(&to);
    // SAFETY: a system call and nothing else happens between fork and exec.
    unsafe {
        command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_FSIZE, 5000, 5000)?));
    }
    let output = Tool::spawn(&mut command).finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    let [_, emitted, lost, _] = account(&output);
    assert!(emitted > 10 && lost > 10);
    assert_eq!(frames(&to).len() as u64, emitted);
}

#[test]
fn files_are_rotated_by_size_and_each_is_whole() {
    let pair = need!(Pair::new());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("all.pcapng");
    let args = ["port-monitor", "-C", "20k", "-W", "12", "--json", "-w"];
    let mut args = args.to_vec();
    args.extend([file.to_str().unwrap(), "-i", "vs", "port", "8000"]);
    let tool = Tool::start_in(&pair.server, &args);
    transfer(&pair, &[7; 150_000]);
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    let written = output.summary()["emitted"].as_u64().unwrap();
    let names: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!((3..=12).contains(&names.len()), "{names:?}");
    assert!(names.contains(&dir.path().join("all.pcapng00")));
    let mut sum = 0;
    for name in &names {
        sum += frames(name).len() as u64;
        // The last packet may exceed the limit.
        assert!(fs::metadata(name).unwrap().len() < 100_000);
        assert!(
            is_guest() || output_of(&["capinfos"], name).contains("Number of stat entries = 1")
        );
    }
    // None was overwritten.
    assert_eq!(sum, written);
}

#[test]
fn files_are_rotated_by_time_even_without_packets() {
    let namespace = need!(Namespace::new());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("at-%s");
    let args = ["port-monitor", "-G", "1", "-W", "2", "--json", "-w"];
    let mut args = args.to_vec();
    args.extend([file.to_str().unwrap(), "lo"]);
    let output = Tool::start_in(&namespace, &args).finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    assert_eq!(output.summary()["exit_reason"], "done");
    let names = fs::read_dir(dir.path()).unwrap();
    let files: Vec<_> = names.map(|entry| frames(&entry.unwrap().path())).collect();
    assert_eq!(files.len(), 2);
}

#[test]
fn large_frames_are_written_whole_to_a_file_and_to_a_pipe() {
    let namespace = need!(Namespace::new());
    let dir = tempfile::tempdir().unwrap();
    let sent: Vec<_> = (0..1_000_000_u32).map(|n| (n % 251) as u8).collect();
    let path = dir.path().join("large");
    for is_fifo in [false, true] {
        if is_fifo {
            fs::remove_file(&path).unwrap();
            mkfifo(&path, Mode::S_IRWXU).unwrap();
        }
        let args = ["port-monitor", "-w", path.to_str().unwrap(), "-i", "lo"];
        let mut command = command(args);
        let tool = Tool::spawn_in(&namespace, command.arg("dst port 81"));
        let reader = is_fifo.then(|| {
            let path = path.clone();
            std::thread::spawn(move || fs::read(path).unwrap())
        });
        let tool = tool.attached();
        namespace.enter(|| {
            let listener = TcpListener::bind("127.0.0.1:81").unwrap();
            let mut client = TcpStream::connect("127.0.0.1:81").unwrap();
            let mut server = listener.accept().unwrap().0;
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    client.write_all(&sent).unwrap();
                    drop(client);
                });
                server.read_to_end(&mut Vec::new()).unwrap();
            });
        });
        let output = tool.stop();
        let [_, emitted, lost, _] = account(&output);
        assert_eq!(lost, 0, "{output:#?}");
        let bytes = match reader {
            Some(reader) => reader.join().unwrap(),
            None => fs::read(&path).unwrap(),
        };
        let records = capture::read(&bytes).records;
        assert_eq!(records.len() as u64, emitted);
        assert!(records.iter().any(|record| record.bytes.len() > 30_000));
        let seq = |frame: &[u8]| u32::from_be_bytes(frame[38..42].try_into().unwrap());
        let first = seq(records[0].bytes).wrapping_add(1);
        let mut found = vec![0; sent.len()];
        for record in &records[1..] {
            let payload = &record.bytes[34 + usize::from(record.bytes[46] >> 4) * 4..];
            let at = seq(record.bytes).wrapping_sub(first) as usize;
            if !payload.is_empty() {
                found[at..at + payload.len()].copy_from_slice(payload);
            }
        }
        assert!(found == sent);
    }
}

#[test]
fn a_period_that_a_packet_ends_is_not_ended_again() {
    let namespace = need!(Namespace::new());
    let dir = tempfile::tempdir().unwrap();
    // A file of the same second would overwrite the previous one.
    let file = dir.path().join("at-%s");
    let args = ["port-monitor", "-G", "1", "-W", "3", "-w"];
    let mut args = args.to_vec();
    args.extend([file.to_str().unwrap(), "lo"]);
    let tool = Tool::start_in(&namespace, &args);
    let over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            namespace.enter(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = TcpStream::connect("127.0.0.1:81");
                    std::thread::sleep(Duration::from_millis(2));
                }
            });
        });
        let output = tool.finish();
        over.store(true, Ordering::Relaxed);
        output
    });
    let names = fs::read_dir(dir.path()).unwrap();
    let files: Vec<_> = names.map(|entry| frames(&entry.unwrap().path())).collect();
    assert_eq!(files.len(), 3);
    let [_, emitted, ..] = account(&output);
    let sum: usize = files.iter().map(Vec::len).sum();
    assert_eq!(sum as u64, emitted, "{output:#?}");
}

#[test]
fn a_removed_directory_ends_a_rotation_with_an_error() {
    let pair = need!(Pair::new());
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("sub");
    fs::create_dir(&sub).unwrap();
    let file = sub.join("a");
    let args = [
        "port-monitor",
        "vs",
        "-C",
        "1k",
        "-w",
        file.to_str().unwrap(),
    ];
    let tool = Tool::start_in(&pair.server, &args);
    fs::rename(&sub, dir.path().join("other")).unwrap();
    pair.refused_connects((SERVER4, 81).into(), 30);
    let output = tool.finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    let last = output.stderr.last().unwrap();
    assert!(last.contains("sub/a1: "), "{last}");
    let [_, emitted, lost, _] = account(&output);
    assert!(lost > 0);
    let whole = frames(&dir.path().join("other/a"));
    assert_eq!(whole.len() as u64, emitted);
}

#[test]
fn a_reader_of_a_fifo_gets_packets_at_once_and_may_go() {
    let namespace = need!(Namespace::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let file = path.to_str().unwrap();
    let args = ["port-monitor", "-w", file, "-i", "lo", "port", "81"];
    let tool = Tool::spawn_in(&namespace, &mut command(args));
    let mut reader = File::open(&path).unwrap();
    let tool = tool.attached();
    let connect = || namespace.enter(|| drop(TcpStream::connect("127.0.0.1:81")));
    connect();
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    while capture::read(&bytes).records.len() < 2 {
        let len = reader.read(&mut chunk).unwrap();
        assert!(len > 0);
        bytes.extend(&chunk[..len]);
    }
    drop(reader);
    // It noticed this without another packet.
    let output = tool.finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    assert!(output.stderr.last().unwrap().contains("(closed_pipe)"));
    account(&output);
}

#[test]
fn frames_of_a_file_are_copied_with_their_link_type_and_time() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from.pcap"), dir.path().join("to.pcap"));
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    let packet = &syn[14..];
    let ipv4 = [8, 0];
    for (link_type, header) in [
        (1_u32, &syn[..14]),
        (101, &[]),
        (0, &[2, 0, 0, 0]),
        (
            113,
            &[&[0, 0, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 9, 9][..], &ipv4].concat(),
        ),
        (
            276,
            &[
                &ipv4[..],
                &[0, 0, 0, 0, 0, 3, 0, 1, 0, 6, 1, 2, 3, 4, 5, 6, 9, 9],
            ]
            .concat(),
        ),
    ] {
        let frame = [header, packet].concat();
        let (order, unit) = (pcap_write::Order::Little, pcap_write::Unit::Nanoseconds);
        let mut file = pcap_write::Pcap::new(Vec::new(), order, unit, link_type).unwrap();
        let frame = pcap_write::Frame {
            ts_ns: 1_700_000_000_999_999_999,
            bytes: &frame,
            original_len: frame.len() as u32 + 7,
        };
        file.frame(frame).unwrap();
        let bytes = file.finish();
        fs::write(&from, &bytes).unwrap();
        let (from, name) = (from.to_str().unwrap(), to.to_str().unwrap());
        let mut command = command(["port-monitor", "-r", from, "-w", name]);
        assert_eq!(
            account(&Tool::spawn(&mut command).finish()),
            [1, 1, 0, 0],
            "{link_type}"
        );
        assert_eq!(fs::read(&to).unwrap(), bytes, "{link_type}");
    }
}

#[test]
fn the_file_that_is_read_is_not_overwritten_under_any_name() {
    let dir = tempfile::tempdir().unwrap();
    let [read, link, other] = ["a.pcap", "link.pcapng", "b"].map(|name| dir.path().join(name));
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    let (order, unit) = (pcap_write::Order::Little, pcap_write::Unit::Nanoseconds);
    let mut file = pcap_write::Pcap::new(Vec::new(), order, unit, 1).unwrap();
    let frame = pcap_write::Frame {
        ts_ns: 0,
        bytes: &syn,
        original_len: syn.len() as u32,
    };
    file.frame(frame).unwrap();
    let bytes = file.finish();
    fs::write(&read, &bytes).unwrap();
    std::os::unix::fs::symlink("a.pcap", &link).unwrap();
    let from = read.to_str().unwrap();
    for to in [&read, &link] {
        let mut command = command(["port-monitor", "-r", from, "-w", to.to_str().unwrap()]);
        let output = Tool::spawn(&mut command).finish();
        assert_eq!(output.code(), 2, "{output:#?}");
        assert!(output.stderr.concat().contains("-r reads"), "{output:#?}");
        assert_eq!(fs::read(&read).unwrap(), bytes, "{}", to.display());
    }
    let mut command = command(["port-monitor", "-r", from, "-w", other.to_str().unwrap()]);
    assert_eq!(account(&Tool::spawn(&mut command).finish()), [1, 1, 0, 0]);
}

#[test]
fn wireshark_lists_the_interfaces_and_captures_from_one() {
    need!(match is_guest() {
        true => Err("a guest has no Wireshark".to_owned()),
        false => Ok(()),
    });
    let namespace = need!(Namespace::new());
    let dir = tempfile::tempdir().unwrap();
    symlink(binary(), dir.path().join("tcpinspect-extcap")).unwrap();
    let folders = Command::new("tshark").args(["-G", "folders"]).output();
    let folders = String::from_utf8(folders.unwrap().stdout).unwrap();
    let mut folders = folders.lines();
    let extcaps = folders.find_map(|line| line.strip_prefix("Extcap path:"));
    // Run by root, Wireshark accepts no other directory.
    const MOUNTED: &str = "mount --bind \"$1\" \"$2\" && shift 2 && exec tshark \"$@\"";
    let tshark = |args: &[&str]| {
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", MOUNTED, "sh"])
            .arg(dir.path());
        command.arg(extcaps.unwrap().trim()).args(args);
        command.stderr(Stdio::null());
        command
    };
    let listed = namespace.enter(|| tshark(&["-D"]).output().unwrap());
    let listed = String::from_utf8(listed.stdout).unwrap();
    for line in ["tcpinspect-lo (TCP of lo)", "tcpinspect-any (TCP of any)"] {
        assert!(listed.contains(line), "{listed}");
    }
    let args = [
        "-i",
        "tcpinspect-lo",
        "-f",
        "port 81",
        "-c",
        "2",
        "-T",
        "fields",
    ];
    let args = [
        &args[..],
        &["-e", "tcp.flags.str", "-e", "frame.interface_name"],
    ]
    .concat();
    let tshark = namespace.enter(|| tshark(&args).stdout(Stdio::piped()).spawn().unwrap());
    // Until the capture has begun, connects are not seen.
    let over = AtomicBool::new(false);
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            namespace.enter(|| {
                while !over.load(Ordering::Relaxed) {
                    let _ = TcpStream::connect("127.0.0.1:82");
                    let _ = TcpStream::connect("127.0.0.1:81");
                    std::thread::sleep(Duration::from_millis(50));
                }
            });
        });
        let output = tshark.wait_with_output().unwrap();
        over.store(true, Ordering::Relaxed);
        output
    });
    let lines = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{lines}");
    assert_eq!(lines.lines().count(), 2, "{lines}");
    assert!(lines.lines().all(|line| line.ends_with("\tlo")), "{lines}");
}

/// The blocks of a pcapng file in little endian: the type of each, and what is between its lengths.
fn blocks(bytes: &[u8]) -> Vec<(u32, &[u8])> {
    let mut blocks = Vec::new();
    let mut rest = bytes;
    while !rest.is_empty() {
        let number = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
        let len = number(4) as usize;
        blocks.push((number(0), &rest[8..len - 4]));
        rest = &rest[len..];
    }
    blocks
}

#[test]
fn a_packet_has_the_process_of_its_socket_whether_or_not_bound_to_its_interface() {
    let pair = need!(Pair::new());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("named.pcapng");
    // No host has this address: packets to it do not belong to the listener, though that is bound
    // to the wildcard address.
    pair.client
        .run(&format!("ip route add 198.51.100.9 via {SERVER4}"));
    for is_bound in [false, true] {
        let listener = pair
            .server
            .enter(|| TcpListener::bind("0.0.0.0:8000").unwrap());
        if is_bound {
            setsockopt(&listener, BindToDevice, &"vs".into()).unwrap();
        }
        let args = ["port-monitor", "vs", "-w", path.to_str().unwrap()];
        let tool = Tool::start_in(&pair.server, &args);
        pair.client.enter(|| {
            TcpStream::connect((SERVER4, 8000)).unwrap();
            let nobody = ([198, 51, 100, 9], 8000).into();
            TcpStream::connect_timeout(&nobody, Duration::from_millis(50)).unwrap_err();
        });
        let output = tool.stop();
        drop(listener);
        assert_eq!(account(&output), [2, 2, 0, 0], "{output:#?}");
        let bytes = fs::read(&path).unwrap();
        let blocks = blocks(&bytes);
        let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [0x0a0d_0d0a, 1, 0x8000_0001, 6, 6, 5]);
        let process = blocks[2].1;
        assert_eq!(process[..4], std::process::id().to_le_bytes());
        let comm = fs::read("/proc/self/comm").unwrap();
        let comm = comm.strip_suffix(b"\n").unwrap();
        assert_eq!(process[4..8], [2, 0, comm.len() as u8, 0]);
        assert_eq!(&process[8..8 + comm.len()], comm);
        // Option 0x8001 has the number of the process.
        let named = [1, 0x80, 4, 0, 0, 0, 0, 0];
        let has = |block: &[u8]| block.windows(8).any(|found| found == named);
        assert!(has(blocks[3].1));
        assert!(!has(blocks[4].1));
    }
}
