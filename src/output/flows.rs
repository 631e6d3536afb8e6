//! The output of flows: columns of the text format and keys of JSON.

use super::Render;
use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, ColumnSet, Layout, Row, Tone};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_addr, push_float, push_int, push_opt_int, push_opt_key, push_port};
use crate::domain::flow::{ConnState, Flow, TcpState};
use crate::domain::names::Name;
use crate::domain::per_second;
use crate::domain::traffic::{FlowBy, Traffic, TrafficFigures, TrafficKey};
use crate::failure::Failure;
use crate::host::containers::Pod;
use crate::key;

/// The traffic of an interval on one interface.
#[derive(Clone, Debug)]
pub struct FlowInterval<'a> {
    /// `None` in a replay.
    pub iface: Option<&'a str>,
    /// The actual length of the interval in seconds.
    pub seconds: f64,
    /// The kind of key.
    pub by: FlowBy,
    /// All flows.
    pub all: TrafficFigures,
    /// The busiest keys.
    pub top: &'a [(TrafficKey, TrafficFigures)],
    /// How many keys with little traffic were removed to save memory; `all` includes theirs.
    pub forgotten: u64,
    /// Packets since the start whose flow found no room in the table.
    pub untracked: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum FlowColumn {
    Time,
    Iface,
    Saddr,
    Sport,
    Daddr,
    Dport,
    State,
    Conn,
    History,
    Duration,
    Handshake,
    OrigPackets,
    OrigBytes,
    RespPackets,
    RespBytes,
    Retransmits,
    Unexpected,
    End,
    Partial,
    Seeded,
    RoundTrip,
    MinRoundTrip,
    Lost,
    Cwnd,
    Mss,
    Pmtu,
    Unread,
    Unsent,
    Pid,
    Uid,
    Comm,
    Name,
}

const COLUMNS: [Column<FlowColumn>; 32] = [
    Column::time(FlowColumn::Time, Precision::Micros),
    Column::left(FlowColumn::Iface, "IFACE", 5),
    Column::left(FlowColumn::Saddr, "SADDR", 15),
    Column::right(FlowColumn::Sport, "SPORT", 5),
    Column::left(FlowColumn::Daddr, "DADDR", 15),
    Column::right(FlowColumn::Dport, "DPORT", 5),
    Column::left(FlowColumn::State, "STATE", 12),
    Column::left(FlowColumn::Conn, "CONN", 6),
    Column::left(FlowColumn::History, "HISTORY", 10),
    Column::right(FlowColumn::Duration, "DUR_MS", 8),
    Column::right(FlowColumn::Handshake, "HANDSHAKE_MS", 12),
    Column::right(FlowColumn::OrigPackets, "OPKTS", 6),
    Column::right(FlowColumn::OrigBytes, "OBYTES", 6),
    Column::right(FlowColumn::RespPackets, "RPKTS", 6),
    Column::right(FlowColumn::RespBytes, "RBYTES", 7),
    Column::right(FlowColumn::Retransmits, "RTX", 3),
    Column::right(FlowColumn::Unexpected, "UNEXP", 5),
    Column::left(FlowColumn::End, "END", 10),
    Column::left(FlowColumn::Partial, "PARTIAL", 7),
    Column::left(FlowColumn::Seeded, "SEEDED", 6),
    Column::right(FlowColumn::RoundTrip, "RTT_MS", 8),
    Column::right(FlowColumn::MinRoundTrip, "MIN_RTT_MS", 10),
    Column::right(FlowColumn::Lost, "LOST", 4),
    Column::right(FlowColumn::Cwnd, "CWND", 5),
    Column::right(FlowColumn::Mss, "MSS", 5),
    Column::right(FlowColumn::Pmtu, "PMTU", 5),
    Column::right(FlowColumn::Unread, "UNREAD", 7),
    Column::right(FlowColumn::Unsent, "UNSENT", 7),
    Column::left(FlowColumn::Pid, "PID", 7),
    Column::left(FlowColumn::Uid, "UID", 5),
    Column::left(FlowColumn::Comm, "COMM", 9),
    Column::left(FlowColumn::Name, "NAME", 9),
];

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum TrafficColumn {
    Time,
    Iface,
    /// Whether the line has the total or a key.
    Event,
    Key,
    Flows,
    Peers,
    Ports,
    Packets,
    Bytes,
    PacketRate,
    ByteRate,
}

impl ColumnSet for TrafficColumn {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::time(Self::Time, Precision::Seconds),
        Column::left(Self::Iface, "IFACE", 5),
        Column::left(Self::Event, "EVENT", 6),
        Column::left(Self::Key, "KEY", 15),
        Column::right(Self::Flows, "FLOWS", 6),
        Column::right(Self::Peers, "PEERS", 5),
        Column::right(Self::Ports, "PORTS", 5),
        Column::right(Self::Packets, "PACKETS", 9),
        Column::right(Self::Bytes, "BYTES", 11),
        Column::right(Self::PacketRate, "PACKETS/s", 9),
        Column::right(Self::ByteRate, "BYTES/s", 11),
    ];
}

const MILLI: f64 = 1e6;

/// Marks the second line of a connection, whose first line had `unanswered` as its end.
const CONTINUED: u8 = b'+';

/// Writes flows as text or JSON.
#[derive(Clone)]
pub struct FlowWriter {
    /// The columns of the text format: of a flow, and of the traffic of a key.
    pub(crate) flows: Layout<FlowColumn>,
    pub(crate) traffic: Layout<TrafficColumn>,
}

impl FlowWriter {
    /// Takes the columns of `--columns`, or the default ones if there are none. If `by_key`,
    /// `--columns` is about the traffic of keys, else about flows. If `with_names`, the default
    /// columns of flows show the names of servers in place of those of processes.
    ///
    /// # Errors
    /// A column is unknown.
    pub fn new(columns: &[String], by_key: bool, with_names: bool) -> Result<Self, Failure> {
        let (of_flow, of_key) = if by_key {
            (&[][..], columns)
        } else {
            (columns, &[][..])
        };
        Ok(Self {
            flows: Layout::new(&COLUMNS, of_flow, |column| match column {
                FlowColumn::Comm => !with_names,
                FlowColumn::Name => with_names,
                _ => !matches!(
                    column,
                    FlowColumn::State
                        | FlowColumn::History
                        | FlowColumn::Handshake
                        | FlowColumn::OrigPackets
                        | FlowColumn::RespPackets
                        | FlowColumn::Unexpected
                        | FlowColumn::End
                        | FlowColumn::Partial
                        | FlowColumn::Seeded
                        | FlowColumn::RoundTrip
                        | FlowColumn::MinRoundTrip
                        | FlowColumn::Lost
                        | FlowColumn::Cwnd
                        | FlowColumn::Mss
                        | FlowColumn::Pmtu
                        | FlowColumn::Unread
                        | FlowColumn::Unsent
                        | FlowColumn::Pid
                        | FlowColumn::Uid
                ),
            })?,
            traffic: Layout::of(of_key)?,
        })
    }

    /// Makes room for the names of interfaces.
    pub fn widen_iface(&mut self, width: usize) {
        self.flows.widen(FlowColumn::Iface, width);
        self.traffic.widen(TrafficColumn::Iface, width);
    }
}

/// A flow to write. The time of its line is that of its last packet.
pub struct ShownFlow<'a> {
    /// The columns to write.
    pub writer: &'a FlowWriter,
    /// `None` in a replay.
    pub iface: Option<&'a str>,
    /// The time of the first packet.
    pub start: UnixNanos,
    /// The container of its process, if it was looked for.
    pub container: Option<&'a str>,
    /// The pod of its process, if it was looked for.
    pub pod: Option<Pod<'a>>,
    /// The flow.
    pub flow: &'a Flow,
    /// The server name that its initiator has asked for, if it is known.
    pub name: Option<&'a Name>,
}

impl Row for ShownFlow<'_> {
    type Column = FlowColumn;

    fn cell(&self, column: FlowColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let flow = self.flow;
        let (orig, resp) = (flow.orig(), flow.resp());
        match column {
            FlowColumn::Time => clock.push_time(out, at, Precision::Micros),
            FlowColumn::Iface => out.push_text(self.iface.unwrap_or("-").as_bytes()),
            FlowColumn::Saddr => push_addr(out, flow.saddr()),
            FlowColumn::Sport => push_port(out, Some(flow.sport())),
            FlowColumn::Daddr => push_addr(out, flow.daddr()),
            FlowColumn::Dport => push_port(out, Some(flow.dport())),
            FlowColumn::State => out.extend_from_slice(flow.state().name().as_bytes()),
            FlowColumn::Conn => {
                out.extend_from_slice(flow.conn_state().name().as_bytes());
                if flow.is_continued() {
                    out.push(CONTINUED);
                }
            }
            FlowColumn::History => match flow.history() {
                [] => out.push(b'-'),
                history => out.extend_from_slice(history),
            },
            FlowColumn::Duration => push_float(out, flow.duration_ns() as f64 / MILLI),
            FlowColumn::Handshake => match flow.handshake_ns() {
                Some(time) => push_float(out, time as f64 / MILLI),
                None => out.push(b'-'),
            },
            FlowColumn::OrigPackets => push_int(out, orig.packets),
            FlowColumn::OrigBytes => push_int(out, orig.bytes),
            FlowColumn::RespPackets => push_int(out, resp.packets),
            FlowColumn::RespBytes => push_int(out, resp.bytes),
            FlowColumn::Retransmits => {
                push_int(out, flow.retransmits());
            }
            FlowColumn::Unexpected => push_int(out, flow.raw.unexpected),
            FlowColumn::End => out.extend_from_slice(flow.outcome().name().as_bytes()),
            FlowColumn::Partial => {
                out.extend_from_slice(if flow.is_partial() { b"partial" } else { b"-" });
            }
            FlowColumn::Seeded => {
                out.extend_from_slice(if flow.is_seeded() { b"seeded" } else { b"-" });
            }
            FlowColumn::RoundTrip => push_millis(out, flow.round_trip().map(|time| time.us)),
            FlowColumn::MinRoundTrip => {
                push_millis(out, flow.round_trip().and_then(|time| time.min_us));
            }
            FlowColumn::Lost => push_opt_int(out, flow.numbers().map(|numbers| numbers.lost)),
            FlowColumn::Cwnd => push_opt_int(out, flow.numbers().map(|numbers| numbers.cwnd)),
            FlowColumn::Mss => push_opt_int(out, flow.numbers().map(|numbers| numbers.mss)),
            FlowColumn::Pmtu => push_opt_int(out, flow.numbers().map(|numbers| numbers.pmtu)),
            FlowColumn::Unread => push_opt_int(out, flow.numbers().map(|numbers| numbers.unread)),
            FlowColumn::Unsent => push_opt_int(out, flow.numbers().map(|numbers| numbers.unsent)),
            FlowColumn::Uid => push_opt_int(out, flow.uid()),
            FlowColumn::Pid => push_opt_int(out, flow.process().map(|(pid, _)| pid)),
            FlowColumn::Comm => match flow.process() {
                Some((_, comm)) if !comm.is_empty() => out.push_text(comm),
                _ => out.push(b'-'),
            },
            FlowColumn::Name => match self.name.and_then(|name| name.server.as_ref()) {
                Some(server) => out.push_text(server),
                None => out.push(b'-'),
            },
        }
    }

    fn tone(&self, column: FlowColumn) -> Tone {
        let flow = self.flow;
        let ends = [flow.orig(), flow.resp()];
        match column {
            FlowColumn::State => state_tone(flow.state()),
            FlowColumn::Conn => match flow.conn_state() {
                ConnState::S1 | ConnState::Sf => Tone::Good,
                ConnState::S2 | ConnState::S3 | ConnState::Oth => Tone::Plain,
                ConnState::Sh | ConnState::Shr => Tone::Notable,
                _ => Tone::Bad,
            },
            FlowColumn::Retransmits if ends.iter().any(|end| end.retransmits > 0) => Tone::Notable,
            _ => Tone::Plain,
        }
    }
}

pub(crate) fn state_tone(state: TcpState) -> Tone {
    match state {
        TcpState::SynSent | TcpState::SynReceived => Tone::Notable,
        TcpState::Established => Tone::Good,
        TcpState::Closed => Tone::Bad,
        _ => Tone::Ending,
    }
}

/// Milliseconds to the microsecond, or `-`.
fn push_millis(out: &mut Line<'_>, us: Option<u64>) {
    match us {
        Some(us) => push_float(out, us as f64 / 1000.0),
        None => out.push(b'-'),
    }
}

/// The keys with the kernel's numbers of a socket, all null without a socket.
fn push_numbers(line: &mut Object<'_, '_>, flow: &Flow) {
    let time = flow.round_trip();
    line.opt_int(key!("rtt_us"), time.map(|time| time.us));
    line.opt_int(key!("min_rtt_us"), time.and_then(|time| time.min_us));
    line.opt_name(key!("rtt_from"), time.map(|time| time.from.name()));
    let numbers = flow.numbers();
    let rttvar = numbers.filter(|numbers| numbers.srtt_us != 0);
    line.opt_int(key!("rttvar_us"), rttvar.map(|numbers| numbers.rttvar_us));
    line.opt_int(
        key!("retransmits"),
        numbers.map(|numbers| numbers.retransmits),
    );
    line.opt_int(key!("lost"), numbers.map(|numbers| numbers.lost));
    line.opt_int(
        key!("lost_total"),
        numbers.map(|numbers| numbers.lost_total),
    );
    line.opt_int(
        key!("reordering"),
        numbers.map(|numbers| numbers.reordering),
    );
    line.opt_int(key!("cwnd"), numbers.map(|numbers| numbers.cwnd));
    line.opt_int(key!("mss"), numbers.map(|numbers| numbers.mss));
    line.opt_int(key!("pmtu"), numbers.map(|numbers| numbers.pmtu));
    line.opt_int(key!("unread"), numbers.map(|numbers| numbers.unread));
    line.opt_int(key!("unsent"), numbers.map(|numbers| numbers.unsent));
}

impl Render for ShownFlow<'_> {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        self.writer.flows.row(self, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let flow = self.flow;
        let (orig, resp) = (flow.orig(), flow.resp());
        let micros = |ns: u64| ns / 1000;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "flow");
        line.opt_string(key!("iface"), self.iface);
        line.array(key!("vlan"), |ids| {
            flow.vlans().for_each(|id| ids.int(id));
        });
        line.int(key!("ip_version"), flow.raw.key.ip_version);
        line.addr(key!("saddr"), flow.saddr());
        line.int(key!("sport"), flow.sport());
        line.addr(key!("daddr"), flow.daddr());
        line.int(key!("dport"), flow.dport());
        line.name(key!("state"), flow.state().name());
        line.name(key!("conn_state"), flow.conn_state().name());
        line.with(key!("history"), |out| {
            out.extend_from_slice(flow.history());
        });
        line.with(key!("start"), |out| clock.push_rfc3339(out, self.start));
        line.int(key!("duration_us"), micros(flow.duration_ns()));
        line.opt_int(key!("syn_ack_us"), flow.syn_ack_ns().map(micros));
        line.opt_int(key!("handshake_us"), flow.handshake_ns().map(micros));
        line.int(key!("orig_pkts"), orig.packets);
        line.int(key!("orig_bytes"), orig.bytes);
        line.int(key!("resp_pkts"), resp.packets);
        line.int(key!("resp_bytes"), resp.bytes);
        line.tcp_flags(key!("orig_flags"), orig.flags);
        line.tcp_flags(key!("resp_flags"), resp.flags);
        line.int(key!("orig_retransmits"), orig.retransmits);
        line.int(key!("resp_retransmits"), resp.retransmits);
        line.int(key!("syn_retransmits"), flow.raw.syn_retransmits);
        line.int(key!("unexpected"), flow.raw.unexpected);
        line.bool(key!("partial"), flow.is_partial());
        line.bool(key!("seeded"), flow.is_seeded());
        let before = flow.bytes_before();
        line.opt_int(key!("orig_bytes_before"), before.map(|[orig, _]| orig));
        line.opt_int(key!("resp_bytes_before"), before.map(|[_, resp]| resp));
        line.bool(key!("continued"), flow.is_continued());
        line.name(key!("end"), flow.outcome().name());
        push_numbers(&mut line, flow);
        let process = flow.process();
        line.opt_int(key!("pid"), process.map(|(pid, _)| pid));
        line.opt_string(key!("comm"), process.map(|(_, comm)| comm));
        line.opt_int(key!("uid"), flow.uid());
        line.opt_string(key!("container"), self.container);
        line.opt_string(key!("pod"), self.pod.and_then(|pod| pod.name));
        line.opt_string(key!("pod_uid"), self.pod.map(|pod| pod.uid));
        let name = self.name;
        let server = name.and_then(|name| name.server.as_ref());
        line.opt_string(key!("server_name"), server);
        match name.and_then(|name| name.alpn.as_ref()) {
            Some(offered) => line.array(key!("alpn"), |protocols| {
                offered.iter().for_each(|one| protocols.string(one));
            }),
            None => line.null(key!("alpn")),
        };
        let method = name.and_then(|name| name.http_method.as_ref());
        line.opt_string(key!("http_method"), method);
        line.end();
    }
}

/// A line of text with `--by`.
struct TrafficRow<'a> {
    interval: &'a FlowInterval<'a>,
    event: &'static str,
    key: &'a TrafficKey,
    figures: TrafficFigures,
}

impl Row for TrafficRow<'_> {
    type Column = TrafficColumn;

    fn cell(&self, column: TrafficColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let seconds = self.interval.seconds;
        let TrafficFigures {
            traffic,
            peers,
            ports,
        } = self.figures;
        match column {
            TrafficColumn::Time => clock.push_time(out, at, Precision::Seconds),
            TrafficColumn::Iface => out.push_text(self.interval.iface.unwrap_or("-").as_bytes()),
            TrafficColumn::Event => out.extend_from_slice(self.event.as_bytes()),
            TrafficColumn::Key => push_key(out, self.key),
            TrafficColumn::Flows => push_int(out, traffic.flows),
            TrafficColumn::Peers => push_int(out, peers),
            TrafficColumn::Ports => push_int(out, ports),
            TrafficColumn::Packets => push_int(out, traffic.packets),
            TrafficColumn::Bytes => push_int(out, traffic.bytes),
            TrafficColumn::PacketRate => push_float(out, per_second(traffic.packets, seconds)),
            TrafficColumn::ByteRate => push_float(out, per_second(traffic.bytes, seconds)),
        }
    }
}

impl Render for (&FlowWriter, &FlowInterval<'_>) {
    /// The lines of an interval: the total, then the busiest keys.
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (writer, interval) = self;
        let mut push = |event, key, figures| {
            let row = TrafficRow {
                interval,
                event,
                key,
                figures,
            };
            writer.traffic.row(&row, out, clock, at);
        };
        push("total", &TrafficKey::Unknown, interval.all);
        for (key, figures) in interval.top {
            push("key", key, *figures);
        }
        if interval.untracked > 0 {
            let traffic = Traffic {
                packets: interval.untracked,
                ..Traffic::default()
            };
            let figures = TrafficFigures {
                traffic,
                ..TrafficFigures::default()
            };
            push("untrkd", &TrafficKey::Unknown, figures);
        }
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (_, interval) = self;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "flow_count");
        line.opt_string(key!("iface"), interval.iface);
        line.float(key!("interval_s"), interval.seconds);
        push_figures(&mut line, interval.all, interval.seconds);
        line.name(key!("by"), interval.by.name());
        line.array(key!("top"), |top| {
            for (key, figures) in interval.top {
                top.object(|object| {
                    push_json_key(object, key);
                    push_figures(object, *figures, interval.seconds);
                });
            }
        });
        line.int(key!("forgotten"), interval.forgotten);
        line.int(key!("untracked"), interval.untracked);
        line.end();
    }
}

/// Appends a key in a column: `-` where a flow has none.
fn push_key(out: &mut Line<'_>, key: &TrafficKey) {
    match key {
        TrafficKey::Plain(key) => push_opt_key(out, Some(*key)),
        TrafficKey::Net(net) => out.extend_from_slice(net.to_string().as_bytes()),
        TrafficKey::Process(..) => out.push_text(&process_key(key)),
        TrafficKey::Uid(uid) => push_int(out, *uid),
        TrafficKey::Container(name) => out.push_text(name.as_bytes()),
        TrafficKey::Unknown => out.push(b'-'),
    }
}

/// Name and id of a process: `nginx/812`.
fn process_key(key: &TrafficKey) -> Vec<u8> {
    match key {
        TrafficKey::Process(pid, name) => [name, format!("/{pid}").as_bytes()].concat(),
        _ => Vec::new(),
    }
}

fn push_json_key(object: &mut Object<'_, '_>, key: &TrafficKey) {
    match key {
        TrafficKey::Plain(key) => object.tally_key(key!("key"), *key),
        TrafficKey::Net(net) => object.string(key!("key"), net.to_string().as_bytes()),
        TrafficKey::Process(..) => object.string(key!("key"), &process_key(key)),
        TrafficKey::Uid(uid) => object.int(key!("key"), *uid),
        TrafficKey::Container(name) => object.string(key!("key"), name.as_bytes()),
        TrafficKey::Unknown => object.null(key!("key")),
    };
}

fn push_figures(object: &mut Object<'_, '_>, figures: TrafficFigures, seconds: f64) {
    let traffic = figures.traffic;
    object.int(key!("flows"), traffic.flows);
    object.int(key!("peers"), figures.peers);
    object.int(key!("ports"), figures.ports);
    object.int(key!("packets"), traffic.packets);
    object.int(key!("bytes"), traffic.bytes);
    object.float(key!("packet_rate"), per_second(traffic.packets, seconds));
    object.float(key!("byte_rate"), per_second(traffic.bytes, seconds));
}
