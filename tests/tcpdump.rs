//! Filter expressions against tcpdump's, on Debian's captures. `TCPINSPECT_EXPRESSIONS=N` has N random
//! ones compared instead of a few, and `TCPINSPECT_SEED` says which.

use std::collections::HashSet;
use std::fs;
use std::process::Command;

use jiff::Timestamp;

use crate::common::need;
use crate::oracle::frames::Random;
use crate::oracle::{Link, capture, corpus, judge};
use crate::parity::{COUNT, CaptureFile, FLOWS, MONITOR, for_each};

/// Expressions that people write, and corners of the language.
const PICKED: [&str; 70] = [
    "tcp",
    "ip",
    "ip6",
    "not ip6",
    "port 80",
    "port http or https",
    "tcp port 80 or 443 or 22",
    "src port 80",
    "dst port 80",
    "src or dst port 80",
    "src and dst port 179",
    "not port 22 and not port 80 and not port 25 and not port 179",
    "portrange 1-1023",
    "src portrange 1024-65535 and dst portrange 1-1023",
    "host 127.0.0.1",
    "src host 127.0.0.1",
    "dst 10.0.0.1 or src 10.0.0.1",
    "host ::1",
    "ip6 host ::1",
    "net 10",
    "net 10.0.0.0/8",
    "net 192.168",
    "net 127.0.0.0 mask 255.0.0.0",
    "src net 10 and dst net 10",
    "net 2001:db8::/32",
    "net fe80::/10 or net 192.0.0.0/8",
    "ip host 127.0.0.1 and port 80 or 25",
    "port 80 and (host 10.0.0.1 or net 192.168.0.0/16)",
    "port 80 && ! host 127.0.0.1 || port 179",
    "ip and tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
    "ip and tcp[13] = 18",
    "ip and tcp[13] & 7 != 0",
    "ip and tcp[tcpflags] & tcp-push != 0 and port 80",
    "ip and tcp[0:2] > tcp[2:2]",
    "ip and tcp[14:2] < 1000",
    "ip and tcp[4:4] & 0xff = 0x10",
    "ip and tcp[((tcp[12] & 0xf0) >> 2):4] = 0x47455420",
    "ip and tcp[(tcp[12] >> 2)] = 0xff",
    "ip and ip[2:2] - ((ip[0] & 0xf) << 2) - ((tcp[12] & 0xf0) >> 2) != 0",
    "ip[8] < 64",
    "ip[8] = 1 or ip[8] = 255",
    "ip[6] & 0x40 != 0",
    "ip[0] & 0xf != 5",
    "ip[1] != 0",
    "ip6[7] = 64",
    "ip6[4:2] > 40",
    "not ip6[4:2] > 40",
    "ip6 proto 6",
    "ip proto \\tcp",
    "proto 6",
    "ether proto \\ip",
    "ether proto 0x86dd",
    "ether[0] & 1 = 0",
    "ether[6:4] = ether[0:4]",
    "ether broadcast or ip multicast",
    "less 60",
    "greater 200",
    "len > 100 and len <= 1000",
    "len - 14 = ip[2:2]",
    "len * 2 / 3 % 7 = 3",
    "ip[2:2] + 14 < len",
    "not (tcp[13] & 2 = 0 or ip6)",
    "host 127.0.0.1 or host 10.0.0.1 or host 10.0.0.2 or host 192.168.0.1",
    "not (src host 127.0.0.1 or src host 10.0.0.1 or src host 10.0.0.2)",
    "dst (10.0.0.1 or 127.0.0.1 or 192.168.1.1 or ::1) and not port 22",
    "ip and tcp[13] & (tcp-syn|tcp-ack|tcp-rst) = tcp-syn and port 80",
    "ip and tcp[13] & tcp-fin != 0 and tcp[13] & tcp-rst = 0",
    "ip and not port 80 and not src port 22 and dst portrange 1-1023",
    "src port 80 and dst portrange 1024-65535 and not host 10.0.0.1",
    "port 80 and port 1024 or port 443",
];

/// What a random expression is made of. Bytes of IP and TCP are asked for of IPv4 alone: of IPv6
/// tcpdump does not look at those of TCP, and it forgets some checks.
fn condition(random: &mut Random, depth: usize) -> String {
    let mut pick = |from: &[&'static str]| random.pick(from);
    let side = pick(&["", "", "", "src ", "dst ", "src or dst ", "src and dst "]);
    let port = pick(&["80", "443", "22", "25", "179", "http", "1024", "0x50", "53"]);
    let text = match pick(&[
        "port", "range", "host", "net", "bytes", "bytes", "len", "many",
    ]) {
        "port" => format!("{side}port {port}"),
        "many" => format!("{side}port ({port} or 179 or not 443 or 25)"),
        "range" => format!(
            "{side}portrange {}",
            pick(&["1-100", "ssh-http", "1024-65535"])
        ),
        "host" => format!(
            "{side}host {}",
            pick(&["127.0.0.1", "10.0.0.1", "::1", "fe80::1"])
        ),
        "net" => format!(
            "{side}net {}",
            pick(&["10", "192.168", "0.0.0.0/1", "fe80::/10", "::/0"])
        ),
        "len" => format!(
            "len {} {}",
            pick(&["<", ">=", "!="]),
            pick(&["60", "66", "74", "1514"])
        ),
        _ => {
            let header = pick(&["tcp", "tcp", "ip", "ether"]);
            let offset = pick(&[
                "0",
                "2",
                "4",
                "8",
                "12",
                "13",
                "tcpflags",
                "14",
                "len",
                "tcp[12] >> 2",
            ]);
            let size = pick(&["", ":1", ":2", ":4"]);
            let operation = pick(&[
                "& 2", "& 0xf0", "% 3", "/ 7", "<< 3", ">> 4", "+ 1", "- 5", "| 1", "* 3",
            ]);
            let comparison = pick(&["=", "!=", "<", ">", "<=", ">="]);
            let right = pick(&[
                "0", "1", "2", "16", "80", "0xff00", "len", "ip[2:2]", "tcp[0:2]",
            ]);
            format!("{header}[{offset}{size}] {operation} {comparison} {right}")
        }
    };
    let text = match pick(&["", "", "", "not ", "! "]) {
        "" => text,
        not => format!("{not}({text})"),
    };
    if depth == 0 {
        return text;
    }
    let joint = pick(&["and", "or", "&&", "||"]);
    let left = condition(random, depth - 1);
    let right = condition(random, depth - 1);
    match random.percent(50) {
        true => format!("({left}) {joint} {text} {joint} {right}"),
        false => format!("{left} {joint} ({right} {joint} {text})"),
    }
}

/// The Ethernet frames of all captures that hold a TCP segment, without what tcpdump sees in another
/// way: tags, extension headers, frames that were cut.
fn frames() -> Result<Vec<Vec<u8>>, String> {
    let mut frames = Vec::new();
    for path in corpus::captures()? {
        let bytes = fs::read(&path).map_err(|error| error.to_string())?;
        for record in capture::read(&bytes).records {
            let is_whole = record.bytes.len() == record.original_len as usize;
            if Link::from_type(record.link_type) != Some(Link::Ethernet) || !is_whole {
                continue;
            }
            let found = judge(record.bytes, Link::Ethernet).packet;
            if found.is_some_and(|tcp| {
                tcp.vlan.is_empty() && (tcp.ip_version == 4 || tcp.ip_header_len == 40)
            }) {
                frames.push(record.bytes.to_vec());
            }
        }
    }
    Ok(frames)
}

/// The numbers of the frames that tcpdump shows; `None` if it refuses the expression.
fn of_tcpdump(file: &CaptureFile, text: &str) -> Option<Vec<i64>> {
    let mut command = Command::new("tcpdump");
    // Not optimized (-O): the optimizer leaves out bytes that do not matter, and with them that they
    // may not be there.
    command
        .args(["-O", "-nn", "-tt", "-r"])
        .arg(&file.path)
        .arg(text);
    let output = command.output().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    // What belongs to the packet before is indented.
    let packets = lines
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()));
    let seconds = packets.map(|line| line.split('.').next().unwrap().parse().unwrap());
    output.status.success().then(|| seconds.collect())
}

#[test]
fn expressions_choose_the_packets_that_tcpdump_chooses_in_each_command() {
    need!(
        Command::new("tcpdump")
            .arg("--version")
            .output()
            .map_err(|error| format!("no tcpdump: {error}"))
    );
    let frames = need!(frames());
    assert!(frames.len() > 1000, "only {} frames", frames.len());
    let file = CaptureFile::of(Link::Ethernet, &frames);
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse::<u64>().unwrap())
    };
    let mut random = Random::new(number("TCPINSPECT_SEED").unwrap_or(1));
    let mut texts = PICKED.map(str::to_owned).to_vec();
    for _ in 0..number("TCPINSPECT_EXPRESSIONS").unwrap_or(40) {
        let depth = random.below(3);
        texts.push(format!("ip and ({})", condition(&mut random, depth)));
    }
    // syn-count counts SYNs alone. flows asks about the first packet of each connection, so it gets
    // nothing else: then each is a flow, and its source is the initiator.
    let (mut syns, mut firsts, mut connections) = (HashSet::new(), Vec::new(), HashSet::new());
    for (number, frame) in (1..).zip(&frames) {
        let tcp = judge(frame, Link::Ethernet).packet.unwrap();
        if tcp.flags & 0x12 != 0x02 {
            continue;
        }
        syns.insert(number);
        let mut ends = [(tcp.saddr, tcp.sport), (tcp.daddr, tcp.dport)];
        ends.sort();
        if connections.insert(ends) {
            firsts.push(frame.clone());
        }
    }
    assert!(firsts.len() > 50, "only {} connections", firsts.len());
    let connections = CaptureFile::of(Link::Ethernet, &firsts);
    for_each(&texts, |text| {
        let Some(wanted) = of_tcpdump(&file, text) else {
            return;
        };
        let output = file.replay(MONITOR, &["--filter", text]);
        if output.code() == 2 {
            // What can't match is an error.
            assert!(wanted.is_empty(), "{text}: {:?}", output.stderr);
            return;
        }
        let found: Vec<_> = output
            .events("packet")
            .iter()
            .map(|event| {
                event["ts"]
                    .as_str()
                    .unwrap()
                    .parse::<Timestamp>()
                    .unwrap()
                    .as_second()
            })
            .collect();
        assert_eq!(found, wanted, "{text}");
        let counted = file.replay(COUNT, &["--filter", text]).summary();
        let wanted = wanted.iter().filter(|number| syns.contains(*number));
        assert_eq!(counted["syn_total"], wanted.count(), "syn-count: {text}");
        let flows = connections.replay(FLOWS, &["--filter", text]);
        let wanted = of_tcpdump(&connections, text).unwrap();
        assert_eq!(flows.events("flow").len(), wanted.len(), "flows: {text}");
    });
}
