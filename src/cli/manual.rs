//! Examples and explanations: what `--help` shows below the options, and the manual pages have in
//! sections of their own.

use std::fmt::Write;

use crate::domain::flow::{self, ConnState, Outcome, TcpState};
use crate::domain::incoming::Fate;
use crate::domain::packet::FLAG_LETTERS;
use crate::domain::reasons::name_of_ours;
use crate::skel::{AcceptFate, AcceptReason};

/// A command line, and what it is for.
type Example = (&'static str, &'static str);

/// A word of the output and its meaning.
type Term = (&'static str, &'static str);

/// The text of help and manual page of a command, apart from its options.
pub struct Page {
    /// At least three.
    pub examples: &'static [Example],
    /// Titles, and the words that they explain.
    pub sections: &'static [(&'static str, &'static [Term])],
}

impl Page {
    /// The page of a subcommand, or of the program itself for `tcpinspect`.
    pub fn of(name: &str) -> Option<&'static Self> {
        let named = |(page, _): &&(&str, Self)| *page == name;
        PAGES.iter().find(named).map(|(_, page)| page)
    }

    /// The examples, for `-h`.
    pub fn examples(&self) -> String {
        let mut text = "Examples:".to_owned();
        for (line, purpose) in self.examples {
            let _ = write!(text, "\n  {line}\n          {purpose}");
        }
        text
    }

    /// Examples and explanations, for `--help`.
    pub fn help(&self) -> String {
        let mut text = self.examples();
        for (title, terms) in self.sections {
            let _ = write!(text, "\n\n{title}:");
            let width = terms.iter().map(|(term, _)| term.len()).max();
            for (term, meaning) in *terms {
                let _ = write!(
                    text,
                    "\n  {term:<width$}  {meaning}",
                    width = width.unwrap_or(0)
                );
            }
        }
        text
    }
}

/// In every manual page, and in the help of the program itself.
pub const EXIT_STATUS: &[Term] = &[
    (
        "0",
        "ended by a signal, --duration, --count, the end of a file or a closed pipe",
    ),
    (
        "1",
        "could not attach, the interface went away, a program was detached, or output could not be \
         written; check: a command can't run",
    ),
    ("2", "the command line is wrong"),
    (
        "3",
        "ended well, but events were lost and --strict was given",
    ),
];

const CONN_STATES: [Term; ConnState::ALL.len()] = {
    let mut terms = [("", ""); ConnState::ALL.len()];
    let mut at = 0;
    while at < terms.len() {
        terms[at] = (ConnState::ALL[at].name(), ConnState::ALL[at].meaning());
        at += 1;
    }
    terms
};

const PAGES: &[(&str, Page)] = &[
    (
        "tcpinspect",
        Page {
            examples: &[
                ("tcpinspect check", "What can run on this machine"),
                (
                    "tcpinspect syn-count --by saddr eth0",
                    "Who sends SYNs to eth0, every 2 seconds",
                ),
                (
                    "tcpinspect port-monitor -p 22,8000-8100",
                    "Who tries to connect to these ports",
                ),
                (
                    "tcpinspect connect-trace --failed",
                    "Which processes fail to connect, where to, and why",
                ),
                ("tcpinspect flows", "A live table of all connections"),
            ],
            sections: &[("Exit status", EXIT_STATUS)],
        },
    ),
    (
        "syn-count",
        Page {
            examples: &[
                (
                    "tcpinspect syn-count --by saddr --top 5 eth0",
                    "The five addresses that send the most SYNs, every 2 seconds",
                ),
                (
                    "tcpinspect syn-count --alert 1k --json eth0 | jq 'select(.event == \"alert\")'",
                    "A line when all SYNs, or those of one source, exceed 1000 a second, and when the rate is low again",
                ),
                (
                    "tcpinspect syn-count -I 60 --by dport -r trace.pcapng",
                    "The most tried ports of each minute in a capture file",
                ),
            ],
            sections: &[
                (
                    "Lines with --by or --alert (EVENT)",
                    &[
                        ("total", "all SYNs of the interval"),
                        (
                            "key",
                            "one address or port; those without SYNs are left out",
                        ),
                        (
                            "untrkd",
                            "SYNs whose key lost its place in the table to a busier one: they are in the total only",
                        ),
                        ("ALERT", "the rate is above --alert; `raised` in JSON"),
                        ("cleared", "the rate has fallen below 0.8 times --alert"),
                    ],
                ),
                (
                    "Columns",
                    &[
                        ("SYNS", "SYNs in the interval"),
                        ("TOTAL", "SYNs since the start"),
                        ("RATE/s", "SYNs per second in the interval"),
                        (
                            "SOURCES",
                            "different source addresses in the interval, estimated",
                        ),
                    ],
                ),
                (
                    "Where it is attached (MODE)",
                    &[
                        (
                            "generic",
                            "XDP in the network stack: works on any interface; turns off LRO and hardware GRO where they are on",
                        ),
                        (
                            "native",
                            "XDP in the driver: cheapest; some drivers reset the link, veth turns offloads off",
                        ),
                        ("tc", "TC ingress: works alongside another XDP program"),
                        ("replay", "packets come from a file"),
                    ],
                ),
            ],
        },
    ),
    (
        "port-monitor",
        Page {
            examples: &[
                (
                    "tcpinspect port-monitor -p 22 --src '!192.0.2.0/24' eth0",
                    "Who tries to connect to port 22 from outside 192.0.2.0/24",
                ),
                (
                    "tcpinspect port-monitor --flags rst --direction both eth0",
                    "Every reset, in both directions",
                ),
                (
                    "tcpinspect port-monitor -p 80 --flags any --payload '0:\"GET \"' -x eth0",
                    "Packets that begin with GET, with the first bytes of their payload in hex",
                ),
                (
                    "tcpinspect port-monitor -w trace.pcapng -i eth0 port 443",
                    "Write the incoming packets of port 443 to a file for Wireshark",
                ),
            ],
            sections: &[
                ("TCP flags (FLAGS)", &FLAG_LETTERS),
                (
                    "Columns",
                    &[
                        ("DIR", "ingress or egress"),
                        ("LEN", "bytes of TCP payload"),
                        ("WIN", "window as in the header, not scaled"),
                        ("TTL", "time to live, or hop limit"),
                        ("VLAN", "VLAN ids, outermost first"),
                        ("PAYLOAD", "with -x: first bytes of the payload in hex"),
                    ],
                ),
            ],
        },
    ),
    (
        "connect-trace",
        Page {
            examples: &[
                (
                    "tcpinspect connect-trace --failed --comm curl,wget",
                    "Failed connections of these programs, with the error they got",
                ),
                (
                    "tcpinspect connect-trace --accept --close -p 5432",
                    "Connections to port 5432 in both directions, with bytes and who closed them",
                ),
                (
                    "tcpinspect connect-trace --json | jq -r 'select(.latency_us > 100000) | [.comm, .daddr] | @tsv'",
                    "Which attempts take more than 100 ms: thread and destination",
                ),
                (
                    "tcpinspect connect-trace --summary -d 60",
                    "How often each process tried each destination in a minute, and with which errors",
                ),
                (
                    "tcpinspect connect-trace --histogram connect --by process -I 10s",
                    "How long it takes each process to connect, every ten seconds",
                ),
            ],
            sections: &[
                (
                    "Events",
                    &[
                        ("attempt", "a process opens a connection"),
                        (
                            "established",
                            "the attempt succeeded; the latency is that of the handshake",
                        ),
                        (
                            "failed",
                            "the attempt failed, with the error that the process gets",
                        ),
                        ("pending", "the run ended before the attempt did"),
                        (
                            "accepted",
                            "with --accept: an incoming connection; with the tracepoint backend before a process has it",
                        ),
                        ("closed", "with --close: a connection ended"),
                    ],
                ),
                (
                    "Columns",
                    &[
                        ("PID", "the process"),
                        (
                            "COMM",
                            "the name of the thread; process/thread if the process has another name",
                        ),
                        (
                            "LAT_US",
                            "microseconds from the attempt to its outcome, or to the end of the run",
                        ),
                        (
                            "ERROR",
                            "the name of the error, see errno(3); gave-up if the process itself ended the attempt",
                        ),
                        (
                            "DUR_US",
                            "with --close: microseconds that the connection lasted",
                        ),
                        ("TX_BYTES", "with --close: payload sent and acknowledged"),
                        ("RX_BYTES", "with --close: payload received"),
                        (
                            "CLOSED",
                            "with --close: whose FIN came first, local or remote; or reset",
                        ),
                    ],
                ),
                (
                    "Columns of --summary",
                    &[
                        ("OK", "attempts that were established"),
                        ("FAILED", "attempts that failed"),
                        ("PENDING", "attempts that had no outcome at the end"),
                        (
                            "ERRORS",
                            "each error and how often it occurred; gave-up: the process itself ended the attempt",
                        ),
                    ],
                ),
            ],
        },
    ),
    (
        "flows",
        Page {
            examples: &[
                (
                    "tcpinspect flows eth0",
                    "A live table of the connections on eth0; press q to quit",
                ),
                (
                    "tcpinspect flows --json eth0 | jq -c 'select(.conn_state == \"REJ\") | {saddr, daddr, dport}'",
                    "Connections that were rejected, as they end",
                ),
                (
                    "tcpinspect flows --by daddr --top 5 -I 10 eth0",
                    "The five destinations with the most traffic, every 10 seconds",
                ),
                (
                    "tcpinspect flows --by saddr --sort ports eth0",
                    "Who scans ports: the sources with the most different ports, every second",
                ),
                (
                    "tcpinspect flows --histogram handshake --by dport -d 1m eth0",
                    "How long handshakes with each port take",
                ),
                (
                    "tcpinspect flows --summary --by daddr -I 1m -d 1h eth0 > traffic.txt",
                    "An hour of traffic by destination, with a summary at the end",
                ),
                (
                    "tcpinspect flows --names --json eth0 | jq -r '[.saddr, .server_name, .http_method] | @tsv'",
                    "Who asks for which server, by TLS server name or HTTP host",
                ),
                (
                    "tcpinspect flows -r trace.pcapng",
                    "The connections in a capture file",
                ),
            ],
            sections: &[
                (
                    "States (STATE), as RFC 9293 names them",
                    &[
                        (TcpState::SynSent.name(), "a SYN has no answer yet"),
                        (
                            TcpState::SynReceived.name(),
                            "the SYN was answered by SYN-ACK",
                        ),
                        (TcpState::Established.name(), "both ends may send"),
                        (TcpState::FinWait1.name(), "one end has sent FIN"),
                        (
                            TcpState::FinWait2.name(),
                            "that FIN was acknowledged; the other end may still send",
                        ),
                        (
                            TcpState::Closing.name(),
                            "both ends have sent FIN, neither is acknowledged",
                        ),
                        (
                            TcpState::LastAck.name(),
                            "both ends have sent FIN, one is acknowledged",
                        ),
                        (TcpState::TimeWait.name(), "both FINs were acknowledged"),
                        (TcpState::Closed.name(), "an end has sent RST"),
                    ],
                ),
                (
                    "How a connection went (CONN, conn_state), as Zeek names it",
                    &CONN_STATES,
                ),
                ("What packets were seen, in order (HISTORY)", &flow::HISTORY),
                (
                    "Columns",
                    &[
                        ("SADDR, SPORT", "the initiator, which opened the connection"),
                        ("DADDR, DPORT", "the responder"),
                        ("DUR_MS", "milliseconds from the first packet to the last"),
                        ("OBYTES", "payload from the initiator"),
                        ("RBYTES", "payload from the responder"),
                        ("RTX", "retransmitted segments of both sides, SYNs included"),
                        ("COMM", "the process on this machine that holds the socket"),
                    ],
                ),
                (
                    "Why a line was written (END)",
                    &[
                        (
                            Outcome::Closed.name(),
                            "both sides have closed, or one has reset the connection",
                        ),
                        (
                            Outcome::Unanswered.name(),
                            "no answer for --attempt-timeout; if more packets follow, there is another line, whose CONN ends with +",
                        ),
                        (
                            Outcome::Idle.name(),
                            "no packet for --idle-timeout, or for a minute after an unanswered SYN or after both FINs",
                        ),
                        (
                            Outcome::Replaced.name(),
                            "a new connection with the same addresses and ports began",
                        ),
                        (
                            Outcome::Evicted.name(),
                            "removed early to make room in the table; see --max-flows",
                        ),
                        (Outcome::Open.name(), "the run ended first"),
                    ],
                ),
            ],
        },
    ),
    (
        "accept-trace",
        Page {
            examples: &[
                (
                    "tcpinspect accept-trace",
                    "Each incoming connection attempt: who accepted it and after how long, or why it failed",
                ),
                (
                    "tcpinspect accept-trace --failed -p 443",
                    "Only failed attempts to one port",
                ),
                (
                    "tcpinspect accept-trace --json | jq -r 'select(.reason == \"accept_queue_full\") | [.daddr, .dport, .queue_max] | @tsv'",
                    "Which listeners turn connections away",
                ),
                (
                    "tcpinspect accept-trace --by reason -I 10s",
                    "Every ten seconds, how many attempts had which outcome, and why: also in a flood",
                ),
                (
                    "tcpinspect accept-trace --histogram accept-wait --by comm -d 1m",
                    "How long connections wait until their server accepts them",
                ),
            ],
            sections: &[
                (
                    "Fates",
                    &[
                        (
                            Fate(AcceptFate::FATE_ACCEPTED).name(),
                            "by PID, WAIT_US microseconds after the handshake",
                        ),
                        (
                            Fate(AcceptFate::FATE_REFUSED).name(),
                            "answered with a RST: nobody listens, or a firewall rejects it",
                        ),
                        (
                            Fate(AcceptFate::FATE_DROPPED).name(),
                            "a packet of the handshake was dropped on this machine",
                        ),
                        (
                            Fate(AcceptFate::FATE_UNANSWERED).name(),
                            "the client never acknowledged the answer",
                        ),
                        (
                            Fate(AcceptFate::FATE_RESET).name(),
                            "by the client, before it was accepted",
                        ),
                        (
                            Fate(AcceptFate::FATE_ABORTED).name(),
                            "the listening socket was closed before the connection was accepted",
                        ),
                        (
                            Fate(AcceptFate::FATE_FORWARDED).name(),
                            "to another machine or network namespace",
                        ),
                        (
                            Fate(AcceptFate::FATE_PENDING).name(),
                            "the run ended before the outcome was known",
                        ),
                    ],
                ),
                (
                    "Reasons that are not the kernel's (REASON)",
                    &[
                        (
                            name_of_ours(AcceptReason::REASON_NO_LISTENER),
                            "nothing listens on that port",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_ACCEPT_QUEUE_FULL),
                            "the process accepts too slowly; after the colon, the minimum time for which the queue had been full",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_SYN_QUEUE_FULL),
                            "too many half-open connections, and SYN cookies are off",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_NO_ROUTE_BACK),
                            "there is no route to the source of the SYN",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_NO_FINAL_ACK),
                            "the answer was sent and never acknowledged",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_PEER_RESET),
                            "the client sent a RST",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_LISTENER_CLOSED),
                            "the listening socket was closed",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_TABLE_FULL),
                            "it was removed to make room in the table of attempts; its fate is pending",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_TIME_WAIT),
                            "the SYN met an earlier connection of the client from the same port, which is in TIME_WAIT",
                        ),
                        (
                            name_of_ours(AcceptReason::REASON_NOT_UNICAST),
                            "the SYN came in a broadcast or multicast frame, which TCP drops",
                        ),
                    ],
                ),
            ],
        },
    ),
    (
        "loss-trace",
        Page {
            examples: &[
                (
                    "tcpinspect loss-trace --only drop -p 443",
                    "Which segments to port 443 the kernel drops, and why",
                ),
                (
                    "tcpinspect loss-trace --only retransmit --host 192.0.2.7",
                    "Which segments from or to this host are retransmitted, and by which process",
                ),
                (
                    "tcpinspect loss-trace --only reset --json | jq -r 'select(.way == \"sent\") | .reason'",
                    "Why this machine resets connections",
                ),
                (
                    "tcpinspect loss-trace -w drops.pcapng --reason tcp_csum",
                    "Write the segments with a wrong checksum to a file, each with a comment",
                ),
                (
                    "tcpinspect loss-trace --only drop --by reason -I 5",
                    "How many segments are dropped for which reason, every five seconds",
                ),
            ],
            sections: &[
                (
                    "Events",
                    &[
                        (
                            "drop",
                            "the kernel dropped a segment; REASON is the kernel's, PLACE the function that dropped it",
                        ),
                        (
                            "retransmit",
                            "this machine retransmitted a segment; REASON is syn, syn_ack or data",
                        ),
                        (
                            "reset",
                            "a RST was sent or received; REASON is received, or why it was sent if the kernel says so",
                        ),
                    ],
                ),
                ("Flags (FLAGS)", &FLAG_LETTERS),
            ],
        },
    ),
    (
        "listeners",
        Page {
            examples: &[
                (
                    "tcpinspect listeners",
                    "A live table of all listening sockets, those with drops or full queues first",
                ),
                (
                    "tcpinspect listeners --once -p 80,443",
                    "Who listens on these ports, and how full the queues are now",
                ),
                (
                    "tcpinspect listeners --alert 80 --json | jq 'select(.event == \"listener_alert\")'",
                    "A line when an accept queue is 80 % full or attempts are dropped, and when neither is the case any more",
                ),
            ],
            sections: &[(
                "Columns",
                &[
                    (
                        "ADDR",
                        "the address it is bound to; * for a socket that takes IPv6 and IPv4",
                    ),
                    (
                        "QUEUE",
                        "connections that are established and wait for accept(2)",
                    ),
                    ("MAX", "the backlog; the queue takes one connection more"),
                    ("HALF", "connections whose handshake is not complete"),
                    (
                        "DROPS",
                        "attempts that were dropped since the socket was created",
                    ),
                    (
                        "SOCKS",
                        "sockets that share the address and port (SO_REUSEPORT)",
                    ),
                    (
                        "PID",
                        "a process that holds the socket; of several the lowest number",
                    ),
                ],
            )],
        },
    ),
    (
        "exporter",
        Page {
            examples: &[
                (
                    "tcpinspect exporter eth0",
                    "Serve metrics of eth0 and of all sockets at http://127.0.0.1:9817/metrics",
                ),
                (
                    "tcpinspect exporter --listen '[::]:9817' --collect listeners,loss",
                    "Only queues and losses, on all addresses: the port should be behind a firewall",
                ),
                (
                    "tcpinspect exporter --netns web --listen 127.0.0.1:9818",
                    "Watch another network namespace, and serve in this one",
                ),
            ],
            sections: &[(
                "Collectors (--collect)",
                &[
                    (
                        "syn",
                        "tcpinspect_syns_total and tcpinspect_frames_total, by interface",
                    ),
                    (
                        "listeners",
                        "tcpinspect_accept_queue_length, tcpinspect_accept_queue_max, tcpinspect_syn_queue_length and tcpinspect_listener_drops_total, by address and port",
                    ),
                    (
                        "accept",
                        "tcpinspect_attempts_total, by fate and reason; histograms tcpinspect_handshake_seconds and tcpinspect_accept_wait_seconds",
                    ),
                    (
                        "loss",
                        "tcpinspect_drops_total by reason, tcpinspect_retransmits_total by kind, tcpinspect_resets_total by way and reason",
                    ),
                    (
                        "connect",
                        "tcpinspect_connects_total, tcpinspect_connects_established_total, tcpinspect_connects_failed_total by error; histogram tcpinspect_connect_seconds",
                    ),
                    (
                        "flows",
                        "tcpinspect_connections_opened_total, tcpinspect_connections_closed_total, tcpinspect_connection_bytes_total, tcpinspect_sockets; histograms tcpinspect_connection_duration_seconds and tcpinspect_rtt_seconds",
                    ),
                ],
            )],
        },
    ),
    (
        "check",
        Page {
            examples: &[
                (
                    "tcpinspect check",
                    "What works here as this user, and what each command would use",
                ),
                (
                    "tcpinspect check --json | jq -r 'select(.kind == \"command\" and .ok == false).detail'",
                    "Why a command can't run",
                ),
                (
                    "tcpinspect check -q >/dev/null && tcpinspect flows",
                    "Run only where all commands can: the exit status is 1 if one can't",
                ),
            ],
            sections: &[
                (
                    "What a line is about (KIND)",
                    &[
                        ("privilege", "a capability of this process"),
                        (
                            "limit",
                            "a setting of this machine that may prevent something",
                        ),
                        (
                            "feature",
                            "something that the kernel or a driver has or lacks",
                        ),
                        (
                            "command",
                            "a command, and the hook or backend that it would use",
                        ),
                        (
                            "filter",
                            "with --filter: the first test for an IP version, or one of the tests",
                        ),
                    ],
                ),
                (
                    "The answer (OK)",
                    &[
                        ("yes", "it is there, or can run"),
                        ("no", "it is not there, or can't run; DETAIL says why"),
                        ("?", "could not be tried, mostly for lack of privileges"),
                    ],
                ),
            ],
        },
    ),
    (
        "completions",
        Page {
            examples: &[
                (
                    "source <(tcpinspect completions bash)",
                    "Complete in this shell only",
                ),
                (
                    "tcpinspect completions bash | sudo tee /etc/bash_completion.d/tcpinspect >/dev/null",
                    "For all users of bash",
                ),
                (
                    "tcpinspect completions fish > ~/.config/fish/completions/tcpinspect.fish",
                    "For your own fish shell",
                ),
            ],
            sections: &[],
        },
    ),
    (
        "man",
        Page {
            examples: &[
                (
                    "tcpinspect man | man -l -",
                    "Read the manual page of the program",
                ),
                (
                    "tcpinspect man flows | man -l -",
                    "Read the manual page of a command",
                ),
                (
                    "sudo tcpinspect man --dir /usr/local/share/man/man1",
                    "Install all pages, for `man tcpinspect-flows`",
                ),
            ],
            sections: &[],
        },
    ),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::command;

    #[test]
    fn every_command_has_three_examples_and_each_of_them_is_right() {
        let all = command();
        let commands = all.get_subcommands().map(|sub| sub.get_name());
        for name in commands.chain(["tcpinspect"]) {
            let page = Page::of(name).unwrap_or_else(|| panic!("no page for {name}"));
            assert!(page.examples.len() >= 3, "{name}");
            for (line, _) in page.examples {
                assert!(line.contains(name), "{name}: {line}");
                let at = line.find("tcpinspect").unwrap();
                let own = line[at..].split([')', '|', '>', '&']).next().unwrap();
                let words = own.split_whitespace().map(|word| word.trim_matches('\''));
                // A quoted string is one word.
                let words = words.map(|word| if word == "0:\"GET" { "0:\"GET\"" } else { word });
                let words = words.filter(|word| *word != "\"");
                if let Err(error) = command().try_get_matches_from(words) {
                    panic!("{line}: {error}");
                }
            }
        }
    }
}
