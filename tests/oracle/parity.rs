//! Runs capture files through the tool, and compares the results with those of the oracle.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::common::{Output, Tool, command, is_guest, say};
use crate::oracle::capture::Record;
use crate::oracle::pcap_write::{Order, PcapNg};
use crate::oracle::{Link, Tcp, Verdict, judge, pcap_write};

/// The commands that replay files, one for each program. With `--mode`, each frame is the packet of a
/// test run of its own; otherwise a test run repeats the program, which takes the frames from a map.
pub const COUNT: &[&str] = &["syn-count", "--json"];
pub const COUNT_XDP: &[&str] = &["syn-count", "--json", "--mode", "generic"];
pub const COUNT_TC: &[&str] = &["syn-count", "--json", "--mode", "tc"];
pub const FLOWS: &[&str] = &["flows", "--json"];
pub const MONITOR: &[&str] = &["port-monitor", "--json"];
pub const MONITOR_PERF: &[&str] = &["port-monitor", "--json", "--buffer", "perf"];
pub const PROGRAMS: [&[&str]; 4] = [COUNT, COUNT_XDP, COUNT_TC, MONITOR];

/// The names of the TCP flags, from the lowest bit on.
pub const FLAGS: [&str; 8] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr"];

/// The longest frame that the tool takes from a file.
pub const LONGEST_FRAME: usize = 262_144;

/// A number of repetitions, smaller in a guest.
pub fn times(here: usize, in_guest: usize) -> usize {
    if is_guest() { in_guest } else { here }
}

/// The seed of all random data of a test. It differs from run to run unless TCPINSPECT_SEED sets
/// it, and is printed so that a failure can be repeated.
pub fn seed(test: &str) -> u64 {
    let seed = match std::env::var("TCPINSPECT_SEED") {
        Ok(seed) => seed.parse().expect("TCPINSPECT_SEED is a number"),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            u64::try_from(now.as_micros()).unwrap()
        }
    };
    say(&format!("{test}: TCPINSPECT_SEED={seed}"));
    seed
}

/// Does something for each item, several at a time, because the tool mostly waits for the kernel to
/// load and free its programs and maps.
pub fn for_each<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    let take = || items.get(next.fetch_add(1, Ordering::Relaxed));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while let Some(item) = take() {
                    work(item);
                }
            });
        }
    });
}

/// A temporary capture file, removed when this is dropped.
pub struct CaptureFile {
    _directory: TempDir,
    pub path: PathBuf,
}

impl CaptureFile {
    pub fn new(bytes: &[u8]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("frames.pcap");
        fs::write(&path, bytes).unwrap();
        Self {
            _directory: directory,
            path,
        }
    }

    /// Frames of one link type, a second apart from second 1 on.
    pub fn of(link: Link, frames: &[Vec<u8>]) -> Self {
        Self::new(&pcap_write::pcap(link.to_type(), frames))
    }

    /// Frames of any link types, each from an interface of its type, a second apart from second 1
    /// on.
    pub fn of_links(frames: &[(Link, Vec<u8>)]) -> Self {
        let mut file = PcapNg::new(Vec::new(), Order::Little).unwrap();
        for link in Link::ALL {
            file.interface(link.to_type(), 0, None).unwrap();
        }
        for ((link, frame), second) in frames.iter().zip(1..) {
            let interface = Link::ALL.iter().position(|it| it == link).unwrap();
            let interface = u32::try_from(interface).unwrap();
            let length = u32::try_from(frame.len()).unwrap();
            file.enhanced(interface, second * 1_000_000, frame, length)
                .unwrap();
        }
        Self::new(&file.finish())
    }

    /// Runs the tool over the file, to its end.
    pub fn replay(&self, program: &[&str], options: &[&str]) -> Output {
        replay(&self.path, program, options)
    }
}

/// Runs the tool over a file, to its end.
pub fn replay(file: &Path, program: &[&str], options: &[&str]) -> Output {
    let mut command = command([program, options].concat());
    command.arg("-r").arg(file);
    Tool::spawn(&mut command).finish()
}

/// The expected `verdicts` of the summary.
pub fn verdicts(found: impl IntoIterator<Item = Verdict>) -> Value {
    let mut counts = Verdict::ALL.map(|verdict| (verdict, 0_u64));
    for verdict in found {
        counts[verdict as usize].1 += 1;
    }
    let counts = counts.map(|(verdict, count)| (verdict.name().to_owned(), count.into()));
    Value::Object(counts.into_iter().collect())
}

/// The `packet` event that is expected for a frame at this time. A time beyond what 64 bits of
/// nanoseconds hold (in a capture from the year 4139, say) is shown as the end of that range.
pub fn event(tcp: &Tcp, ts_ns: i128) -> Value {
    let ts_ns = ts_ns.clamp(i64::MIN.into(), i64::MAX.into());
    let flags = (0..8).filter(|bit| tcp.flags & 1 << bit != 0);
    let flags: Vec<&str> = flags.map(|bit| FLAGS[bit]).collect();
    let mac = |mac: Option<[u8; 6]>| mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
    // In two steps: the macro has a limit to how many pairs it takes at once.
    let mut event = json!({
        "ts": rfc3339(ts_ns),
        "event": "packet",
        "iface": null,
        "direction": "ingress",
        "src_mac": mac(tcp.src_mac),
        "dst_mac": mac(tcp.dst_mac),
        "ethertype": tcp.ethertype,
        "vlan": tcp.vlan,
        "ip_version": tcp.ip_version,
        "saddr": tcp.saddr.to_string(),
        "daddr": tcp.daddr.to_string(),
        "ttl": tcp.ttl,
        "tos": tcp.tos,
        "ip_id": tcp.ip_id,
        "ip_len": tcp.ip_len,
        "ip_header_len": tcp.ip_header_len,
    });
    let rest = json!({
        "sport": tcp.sport,
        "dport": tcp.dport,
        "seq": tcp.seq,
        "ack": tcp.ack,
        "data_offset": tcp.data_offset,
        "tcp_flags": flags,
        "tcp_flags_raw": tcp.flags,
        "window": tcp.window,
        "checksum": tcp.checksum,
        "urgent": tcp.urgent,
        "mss": tcp.options.mss,
        "wscale": tcp.options.wscale,
        "sack_permitted": tcp.options.sack_permitted,
        "ts_val": tcp.options.ts_val,
        "ts_ecr": tcp.options.ts_ecr,
        "payload_offset": tcp.payload_offset,
        "payload_len": tcp.payload_len,
        "payload": null,
    });
    let (Value::Object(all), Value::Object(rest)) = (&mut event, rest) else {
        unreachable!("both are objects");
    };
    all.extend(rest);
    event
}

/// The payload bytes of a frame that was judged to be this packet.
pub fn payload<'a>(frame: &'a [u8], tcp: &Tcp) -> &'a [u8] {
    match tcp.payload_len {
        0 => &[],
        len => &frame[tcp.payload_offset..][..len],
    }
}

/// Bytes as the tool prints them.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// RFC 3339 in UTC with nanoseconds.
pub fn rfc3339(ts_ns: i128) -> String {
    let second = i64::try_from(ts_ns.div_euclid(1_000_000_000)).unwrap();
    let second = Timestamp::from_second(second).unwrap();
    let nanos = ts_ns.rem_euclid(1_000_000_000);
    format!("{}.{nanos:09}Z", second.strftime("%Y-%m-%dT%H:%M:%S"))
}

/// Runs frames through all programs, which must agree with the oracle on the verdict of each, on
/// each SYN, and on each field of each event.
pub fn check_frames(what: &str, frames: &[(Link, Vec<u8>)]) {
    // In a guest every n-th of them.
    let step = frames.len().div_ceil(times(usize::MAX, 1500));
    let frames: Vec<_> = frames.iter().step_by(step).cloned().collect();
    let frames = frames.as_slice();
    let file = CaptureFile::of_links(frames);
    let records: Vec<Record<'_>> = frames
        .iter()
        .zip(1..)
        .map(|((link, bytes), second)| Record {
            link_type: link.to_type().into(),
            ts_ns: second * 1_000_000_000,
            bytes,
            original_len: u32::try_from(bytes.len()).unwrap(),
        })
        .collect();
    check_records(what, &file.path, &records, frames.len(), Ending::EndOfFile);

    // The tool prints only how many frames have which verdict, and two errors could cancel each
    // other out. So the frames of each verdict are run once more alone. Guests need not do this,
    // because their kernels run the same instructions.
    if is_guest() {
        return;
    }
    for verdict in Verdict::ALL {
        let of_it: Vec<_> = frames
            .iter()
            .filter(|(link, frame)| judge(frame, *link).verdict == verdict)
            .cloned()
            .collect();
        let file = CaptureFile::of_links(&of_it);
        let wanted = verdicts(of_it.iter().map(|_| verdict));
        for program in PROGRAMS {
            let found = &file.replay(program, &[]).summary()["verdicts"];
            if *found != wanted {
                let (link, frame) = find_culprit(program, verdict, &of_it);
                panic!(
                    "{what}: {program:?}: {found} instead of {wanted}, for example {link:?} {}",
                    hex(frame)
                );
            }
        }
    }
}

/// Finds, by bisection, a frame on whose verdict program and oracle disagree.
fn find_culprit<'a>(
    program: &[&str],
    verdict: Verdict,
    frames: &'a [(Link, Vec<u8>)],
) -> &'a (Link, Vec<u8>) {
    if let [frame] = frames {
        return frame;
    }
    let (first, second) = frames.split_at(frames.len() / 2);
    let output = CaptureFile::of_links(first).replay(program, &[]);
    let is_right = output.summary()["verdicts"][verdict.name()] == first.len();
    find_culprit(program, verdict, if is_right { second } else { first })
}

/// How a replay must end.
#[derive(Clone, Copy)]
pub enum Ending<'a> {
    EndOfFile,
    /// With this exit status, and an error that contains this text.
    Error(i32, &'a str),
}

impl Ending<'_> {
    fn check(self, what: &str, output: &Output) {
        let reason = &output.summary()["exit_reason"];
        match self {
            Self::EndOfFile => {
                assert_eq!(output.code(), 0, "{what}: {:?}", output.stderr);
                assert_eq!(reason, "end_of_file", "{what}");
                assert!(output.stderr.is_empty(), "{what}: {:?}", output.stderr);
            }
            Self::Error(code, why) => {
                assert_eq!(output.code(), code, "{what}: {:?}", output.stderr);
                assert_eq!(reason, "error", "{what}");
                let (error, _) = output.complaint();
                assert!(error.contains(why), "{what}: {error}");
            }
        }
    }
}

/// Runs a file through all programs. They must agree with the oracle, whose reader gives these records, on
/// the number of each verdict, on SYNs, and on each field of each event. The first `apart` records are each
/// at least a second after the previous one. For these it is checked which of them are SYNs, for the others
/// only how many are.
pub fn check_records(
    what: &str,
    file: &Path,
    records: &[Record],
    apart: usize,
    ending: Ending<'_>,
) {
    let judgements: Vec<_> = records
        .iter()
        .map(|record| {
            let link = Link::from_type(record.link_type).expect("a supported link type");
            judge(record.bytes, link)
        })
        .collect();
    let wanted = verdicts(judgements.iter().map(|judgement| judgement.verdict));
    let syns: Vec<_> = judgements.iter().map(|it| it.is_syn()).collect();
    let total = syns.iter().filter(|is_syn| **is_syn).count();

    for program in [COUNT_XDP, COUNT_TC] {
        let output = replay(file, program, &["-I", "0.5"]);
        ending.check(what, &output);
        let summary = output.summary();
        assert_eq!(summary["verdicts"], wanted, "{what}: {program:?}");
        assert_eq!(summary["packets"], records.len(), "{what}: {program:?}");
        assert_eq!(summary["syn_total"], total, "{what}: {program:?}");
        let deltas = output.events("syn_count").into_iter();
        let deltas: Vec<u64> = deltas
            .map(|line| line["syn_delta"].as_u64().unwrap())
            .collect();
        assert_eq!(deltas.iter().sum::<u64>(), total as u64, "{what}");
        // Each of these frames has an interval of its own.
        for (at, delta) in deltas.iter().take(apart).enumerate() {
            let wanted = u64::from(syns[at]);
            let bytes = records[at].bytes;
            assert_eq!(*delta, wanted, "{what}: {program:?}: {}", hex(bytes));
        }
    }

    // Both kinds of buffer deliver the same events: for small files one of them is enough.
    let buffers = [MONITOR, MONITOR_PERF];
    let buffers = if apart > 0 {
        &buffers[..]
    } else {
        &buffers[..1]
    };
    for program in buffers {
        let output = replay(file, program, &["--flags", "any"]);
        ending.check(what, &output);
        let summary = output.summary();
        assert_eq!(summary["verdicts"], wanted, "{what}: {program:?}");
        assert_eq!(summary["lost"], 0, "{what}: {program:?}");
        let found = output.events("packet");
        let packets = judgements.iter().zip(records);
        let packets = packets.filter_map(|(it, record)| Some((it.packet.as_ref()?, record)));
        let packets: Vec<_> = packets.collect();
        for ((tcp, record), found) in packets.iter().zip(&found) {
            let wanted = event(tcp, record.ts_ns);
            assert_eq!(*found, wanted, "{what}: {program:?}: {}", hex(record.bytes));
        }
        assert_eq!(found.len(), packets.len(), "{what}: {program:?}");
    }
}

/// Checks that the tool refuses a file before its first frame, and says why in one line.
pub fn check_refused(path: &Path, why: &str) {
    for program in PROGRAMS {
        let output = replay(path, program, &[]);
        assert_eq!(output.code(), 2, "{path:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{path:?}: {output:?}");
        check_complaint(&output, path, why);
    }
}

/// The error of a run, which has to name the file and say why in one line.
pub fn check_complaint(output: &Output, path: &Path, why: &str) {
    let (error, _) = output.complaint();
    let beginning = format!("failed to read {}: ", path.display());
    let rest = error.strip_prefix(&beginning);
    let rest = rest.unwrap_or_else(|| panic!("the error names no file: {error}"));
    assert!(rest.contains(why), "{error}");
}
