//! Filter expressions compared with tcpdump's, on Debian's captures. `TCPINSPECT_EXPRESSIONS=N` compares N
//! random ones instead of a few; `TCPINSPECT_SEED` sets the seed.

use std::collections::HashSet;
use std::fs;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;

use crate::common::need;
use crate::oracle::frames::Random;
use crate::oracle::parity::{COUNT, CaptureFile, FLOWS, MONITOR, for_each};
use crate::oracle::{Link, capture, corpus, judge};

/// Expressions that people write, and corners of the language.
const PICKED: [&str; 82] = [
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
    "ether host 00c0df206cdf",
    "portrange 80-90 or 443",
    "ip and tcp[-1] = tcp[2 - tcp[13]]",
    "ip and tcp[-(tcp[13] - ether[0:1]):2] > 9",
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
    "ip and (tcp[2:2] = 80 or tcp[2:2] = 25 or 40000 < tcp[2:2] or tcp[2:2] & 0xff = 9)",
    "ip and tcp[0:2] != 80 and tcp[0:2] != 443 and not (tcp[0:2] > 2000 or tcp[0:2] = 22)",
    "ip and tcp[13] & 2 = 0 and tcp[13] & 1 = 0 and tcp[13] != 16",
    "ip and (tcp[13] = 2 or tcp[13] = 18)",
    "ip and (tcp[8:4] = 0 or tcp[8:4] = 1 or tcp[8:4] = 0x10 or tcp[8:4] = 0xffffffff)",
    "ip and tcp[8:4] != 0 and not tcp[8:4] = 1 and tcp[8:4] != 4294967295",
    "ip and (tcp[20:4] > 0xfffffffe or tcp[20:4] = 0x101080a or tcp[20:4] = 0x20405b4)",
    "ip and not (tcp[24] = 8 or tcp[24] = 1 or tcp[24] = 2)",
];

/// Makes random expressions: any primitive, as people and programs write them.
struct Grammar {
    random: Random,
    /// The headers whose bytes an expression compares. They belong to one IP version only: tcpdump does
    /// not look at TCP bytes over IPv6, and misses some checks if versions are mixed.
    headers: &'static [&'static str],
}

const PORTS: &[&str] = &[
    "80", "443", "22", "25", "179", "53", "139", "1723", "0", "65535", "0x50", "026", "http",
    "ssh", "ftp-data", "iso-tsap", "z3950", "\\domain",
];
const HOSTS: &[&str] = &[
    "127.0.0.1",
    "10.0.0.1",
    "10.0.0.2",
    "131.151.32.21",
    "192.168.1.103",
    "10.1.1.101",
    "255.255.255.255",
    "10.1",
    "::1",
    "fe80::1",
    "2001:DB8::1",
];
const NETS: &[&str] = &[
    "10",
    "192.168",
    "0.0.0.0/0",
    "0.0.0.0/1",
    "131.151.0.0/020",
    "127.0.0.0 mask 255.0.0.0",
    "0.0.0.1 mask 0.0.0.255",
    "fe80::/10",
    "::/0",
    "::1/128",
];
const MACS: &[&str] = &[
    "ff:ff:ff:ff:ff:ff",
    "0:1:2:3:4:5",
    "00-c0-df-20-6c-df",
    "00c0.df20.6cdf",
    "00c0df206cdf",
];
const RANGES: &[&str] = &[
    "1-100",
    "90-80",
    "ssh-http",
    "http-ftp-data",
    "0x10-0x50",
    "1024-65535",
    "0-0",
    "80",
];
const WHOLE: &[&str] = &[
    "ip",
    "ip6",
    "tcp",
    "proto \\tcp",
    "ip proto 6",
    "ip6 proto 0x6",
    "ip protochain 6",
    "ether proto \\ip",
    "link proto 0x86DD",
    "broadcast",
    "ether multicast",
    "ip multicast",
    "ip6 multicast",
    "udp",
    "arp",
    "icmp6",
    "ip proto 17",
    "udp port 80",
];

impl Grammar {
    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        self.random.pick(from)
    }

    fn number(&mut self) -> String {
        let number = [
            0,
            1,
            2,
            3,
            6,
            13,
            16,
            20,
            31,
            40,
            60,
            80,
            255,
            1460,
            0xff00,
            0xffff,
            0x7fff_ffff,
            u32::MAX,
        ][self.random.below(18)];
        match self.random.below(4) {
            0 => format!("{number:#x}"),
            1 => format!("0X{number:X}"),
            // Twelve octal digits would be an Ethernet address.
            2 if number < 0x4000_0000 => format!("0{number:o}"),
            _ => number.to_string(),
        }
    }

    fn value(&mut self, depth: usize) -> String {
        if depth == 0 || self.random.percent(35) {
            return match self.random.below(6) {
                0 => self.number(),
                1 => self.pick(&["len", "length"]).to_owned(),
                2 if self.headers.contains(&"tcp") => self
                    .pick(&[
                        "tcp[tcpflags]",
                        "tcp [13]",
                        "tcp[ tcpflags : 1 ]",
                        "tcp[12+1]",
                    ])
                    .to_owned(),
                _ => {
                    let header = self.pick(self.headers);
                    let offset = match self.random.percent(70) {
                        true => self
                            .pick(&["0", "2", "4", "9", "0xc", "015", "18", "40", "1400", "-1"])
                            .to_owned(),
                        false => self.value(depth.saturating_sub(1)),
                    };
                    let size = self.pick(&["", "", ":1", ":2", " : 4"]);
                    format!("{header}[{offset}{size}]")
                }
            };
        }
        let left = self.value(depth - 1);
        let operator = self.pick(&["+", "-", "*", "|", "^", "&", "&", "/", "%", "<<", ">>"]);
        let right = match operator {
            "/" | "%" | "<<" | ">>" => self.pick(&["1", "2", "3", "0x7"]).to_owned(),
            "&" => self
                .pick(&[
                    "tcp-syn",
                    "(tcp-syn|tcp-ack)",
                    "0xf0",
                    "tcp-push",
                    "(tcp-fin | tcp-rst)",
                ])
                .to_owned(),
            _ => self.value(depth - 1),
        };
        let space = self.pick(&["", " "]);
        let text = format!("{left}{space}{operator}{space}{right}");
        match self.random.below(8) {
            0..5 => format!("({text})"),
            5 => format!("-({text})"),
            _ => text,
        }
    }

    /// One id or several, which take the qualifiers before them.
    fn ids(&mut self, from: &[&'static str]) -> String {
        let not = self.pick(&["", "", "", "not ", "!"]);
        let joint = self.pick(&[" or ", " and ", "||", " && "]);
        let [a, b, c] = [(); 3].map(|()| self.pick(from));
        match self.random.below(6) {
            0..3 => a.to_owned(),
            3 => format!("{a}{joint}{not}{b}"),
            4 => format!("({a}{joint}{not}{b}{joint}{c})"),
            _ => format!("({not}{a} or {b} or {c} or 65534)"),
        }
    }

    fn primitive(&mut self) -> String {
        let side = self.pick(&[
            "",
            "",
            "",
            "src ",
            "dst ",
            "src or dst ",
            "dst and src ",
            "src and dst ",
        ]);
        let ip = self.pick(&["", "", "", "ip ", "ip6 "]);
        let tcp = self.pick(&["", "", "tcp "]);
        match self.random.below(11) {
            0 | 1 => format!("{tcp}{side}port {}", self.ids(PORTS)),
            2 => format!("{tcp}{side}portrange {}", self.ids(RANGES)),
            3 => format!("{side}host {}", self.ids(HOSTS)),
            4 => format!("{ip}{side}net {}", self.pick(NETS)),
            5 => format!("ether {side}host {}", self.pick(MACS)),
            6 => format!("{} {}", self.pick(&["less", "greater"]), self.number()),
            7 => self.pick(WHOLE).to_owned(),
            _ => {
                let depth = self.random.below(3);
                let left = self.value(depth);
                let comparison = self.pick(&["=", "==", "!=", "<", ">", "<=", ">="]);
                let right = self.value(depth / 2);
                let space = self.pick(&["", " ", "  "]);
                format!("{left}{space}{comparison}{space}{right}")
            }
        }
    }

    fn expression(&mut self, depth: usize) -> String {
        if depth == 0 {
            return self.primitive();
        }
        match self.random.below(20) {
            0..4 => self.primitive(),
            4..7 => format!(
                "{}{}",
                self.pick(&["not ", "!", "! ", "not not "]),
                self.expression(depth - 1)
            ),
            7..11 => format!("( {} )", self.expression(depth - 1)),
            _ => {
                let left = self.expression(depth - 1);
                let joint = self.pick(&[" and ", " or ", "&&", " || ", "\tand\n", "\nor\t"]);
                format!("{left}{joint}{}", self.expression(depth - 1))
            }
        }
    }

    /// The expression of a seed.
    fn text(seed: u64) -> String {
        let random = Random::new(seed);
        let (version, headers): (_, &[_]) = match seed % 4 {
            0 => ("ip6", &["ip6", "ether"]),
            _ => ("ip", &["tcp", "tcp", "ip", "ether", "link"]),
        };
        let mut grammar = Self { random, headers };
        let depth = grammar.random.below(6);
        format!("{version} and ({})", grammar.expression(depth))
    }
}

/// The Ethernet frames with a TCP segment in all captures, without those that tcpdump treats
/// differently: with tags or extension headers, or truncated.
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

/// Without tcpdump's optimizer, which removes comparisons whose result does not matter, and with them
/// the check that the bytes exist.
const PLAIN: &[&str] = &["-O"];
const OPTIMIZED: &[&str] = &[];

/// The numbers of the frames that tcpdump shows; `None` if it refuses the expression.
fn of_tcpdump(file: &CaptureFile, options: &[&str], text: &str) -> Option<Vec<i64>> {
    let mut command = Command::new("tcpdump");
    command
        .args(options)
        .args(["-nn", "-tt", "-r"])
        .arg(&file.path)
        .arg(text);
    let output = command.output().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    // Lines that belong to the previous packet are indented.
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
    let first = number("TCPINSPECT_SEED").unwrap_or(1);
    let count = number("TCPINSPECT_EXPRESSIONS").unwrap_or(130);
    let mut texts = PICKED.map(str::to_owned).to_vec();
    texts.extend((first..first + count).map(Grammar::text));
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
    let some = AtomicU32::new(0);
    for_each(&texts, |text| {
        let output = file.replay(MONITOR, &["--filter", text]);
        let Some(mut wanted) = of_tcpdump(&file, PLAIN, text) else {
            assert_eq!(output.code(), 2, "{text}: tcpdump refuses it");
            return;
        };
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
        let mut options = PLAIN;
        if found != wanted {
            // Only the optimizer finds out that an offset is negative.
            options = OPTIMIZED;
            wanted = of_tcpdump(&file, options, text).unwrap_or_default();
        }
        assert_eq!(found, wanted, "{text}");
        some.fetch_add(u32::from(!wanted.is_empty()), Ordering::Relaxed);
        let counted = file.replay(COUNT, &["--filter", text]).summary();
        let wanted = wanted.iter().filter(|number| syns.contains(*number));
        assert_eq!(counted["syn_total"], wanted.count(), "syn-count: {text}");
        let flows = connections.replay(FLOWS, &["--filter", text]);
        let wanted = of_tcpdump(&connections, options, text).unwrap();
        assert_eq!(flows.events("flow").len(), wanted.len(), "flows: {text}");
    });
    let (some, all) = (some.into_inner() as usize, texts.len());
    assert!(
        2 * some > all,
        "only {some} of {all} expressions match any packet"
    );
}
