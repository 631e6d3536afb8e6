//! The metrics, by collector.

use std::collections::{BTreeMap, HashMap};

use super::{Exposition, Family, MetricKind};
use crate::domain::connection::Connection;
use crate::domain::counters::{PacketCounters, VERDICTS};
use crate::domain::export::ExportCounts;
use crate::domain::incoming::FATES;
use crate::domain::listener::{Listener, Local};
use crate::domain::loss::detail_name;
use crate::output::connect_trace::errno_name;
use crate::skel::{
    AcceptFate, ConnectClosedBy, ConnectDirection, ConnectEvent, ConnectExport, ConnectKind,
    ExportKey, ExportKind, ExportTimeOf, LossDetail, LossKind,
};

/// The reason if none is known.
const UNKNOWN: &str = "unknown";

/// The address and port of listeners beyond `--max-listeners`.
const OTHER: &str = "other";

const fn counter(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: MetricKind::Counter,
        unit: "",
        help,
    }
}

const fn gauge(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: MetricKind::Gauge,
        unit: "",
        help,
    }
}

const fn seconds(name: &'static str, help: &'static str) -> Family {
    Family {
        name,
        kind: MetricKind::Histogram,
        unit: "seconds",
        help,
    }
}

const SYNS: Family = counter("tcpinspect_syns", "Incoming SYNs without ACK.");
const FRAMES: Family = counter(
    "tcpinspect_frames",
    "Incoming frames, by what the parser found in them.",
);
const LISTENERS: Family = gauge(
    "tcpinspect_listeners",
    "Addresses and ports that are listened on.",
);
const LISTENERS_CUT: Family = gauge(
    "tcpinspect_listeners_cut",
    "Listening addresses and ports beyond --max-listeners, which are in addr=\"other\".",
);
const ACCEPT_QUEUE: Family = gauge(
    "tcpinspect_accept_queue_length",
    "Connections that wait for accept(2).",
);
const ACCEPT_QUEUE_MAX: Family = gauge(
    "tcpinspect_accept_queue_max",
    "The backlog: the queue takes one connection more.",
);
const SYN_QUEUE: Family = gauge(
    "tcpinspect_syn_queue_length",
    "Connections whose handshake is not complete.",
);
const LISTENER_DROPS: Family = counter(
    "tcpinspect_listener_drops",
    "Connection attempts that the kernel dropped at the listening socket.",
);
const ATTEMPTS: Family = counter(
    "tcpinspect_attempts",
    "Incoming connection attempts whose fate is known.",
);
const HANDSHAKE: Family = seconds(
    "tcpinspect_handshake_seconds",
    "From the SYN to the final ACK of incoming connections.",
);
const ACCEPT_WAIT: Family = seconds(
    "tcpinspect_accept_wait_seconds",
    "From the final ACK until a process accepted the connection.",
);
const DROPS: Family = counter(
    "tcpinspect_drops",
    "TCP segments that the kernel dropped, without the silent drops of listeners.",
);
const RETRANSMITS: Family = counter(
    "tcpinspect_retransmits",
    "TCP segments that this host retransmitted.",
);
const RESETS: Family = counter("tcpinspect_resets", "Resets that were sent or received.");
const CONNECTS: Family = counter("tcpinspect_connects", "Outgoing connection attempts.");
const CONNECTS_ESTABLISHED: Family = counter(
    "tcpinspect_connects_established",
    "Outgoing connection attempts that became connections.",
);
const CONNECTS_FAILED: Family = counter(
    "tcpinspect_connects_failed",
    "Outgoing connection attempts that failed.",
);
const CONNECT: Family = seconds(
    "tcpinspect_connect_seconds",
    "From connect(2) to the connection.",
);
const OPENED: Family = counter(
    "tcpinspect_connections_opened",
    "Connections that were established.",
);
const CLOSED: Family = counter("tcpinspect_connections_closed", "Connections that ended.");
const BYTES: Family = Family {
    name: "tcpinspect_connection_bytes",
    kind: MetricKind::Counter,
    unit: "bytes",
    help: "Payload of connections that ended.",
};
const DURATION: Family = seconds(
    "tcpinspect_connection_duration_seconds",
    "From the beginning of connections to their end.",
);
const RTT: Family = seconds(
    "tcpinspect_rtt_seconds",
    "Smoothed round-trip times of connections at their end.",
);
const SOCKETS: Family = gauge("tcpinspect_sockets", "TCP sockets, by state.");
const UP: Family = gauge(
    "tcpinspect_collector_up",
    "1: the collector works. 0: it can't run here, or its counts can't be read.",
);
const LOST: Family = counter(
    "tcpinspect_events_lost",
    "Events that are missing in the metrics of the collector.",
);
const SCRAPES: Family = counter("tcpinspect_exporter_scrapes", "Requests for metrics.");
const BUILD: Family = Family {
    name: "tcpinspect_build",
    kind: MetricKind::Info,
    unit: "",
    help: "The version of tcpinspect.",
};
const CPU: Family = Family {
    name: "process_cpu_seconds",
    kind: MetricKind::Counter,
    unit: "seconds",
    help: "CPU time of this process. That of its programs in the kernel is charged to other processes.",
};
const MEMORY: Family = Family {
    name: "process_resident_memory_bytes",
    kind: MetricKind::Gauge,
    unit: "bytes",
    help: "Memory of this process.",
};
const STARTED: Family = Family {
    name: "process_start_time_seconds",
    kind: MetricKind::Gauge,
    unit: "seconds",
    help: "When this process began to count, since 1970-01-01 UTC.",
};

/// Incoming SYNs and frames of each interface.
pub fn syn(out: &mut Exposition, interfaces: &[(&str, PacketCounters)]) {
    out.family(&SYNS);
    for (iface, counters) in interfaces {
        out.sample(&SYNS, &[("iface", iface)], counters.matched);
    }
    out.family(&FRAMES);
    for (iface, counters) in interfaces {
        for (verdict, count) in VERDICTS.iter().zip(counters.verdicts) {
            out.sample(&FRAMES, &[("iface", iface), ("verdict", verdict)], count);
        }
    }
}

/// Drops of each listener since the start, and which listeners have metrics of their own.
#[derive(Debug, Default)]
pub struct ListenerTotals {
    max: usize,
    shown: HashMap<Local, u64>,
    other: u64,
    has_scanned: bool,
}

impl ListenerTotals {
    /// The largest number of listeners with metrics of their own.
    pub fn new(max: usize) -> Self {
        Self {
            max,
            ..Self::default()
        }
    }

    /// Takes the listeners of a scan. A listener that has metrics of its own keeps them.
    fn update(&mut self, listeners: &[Listener]) {
        let is_there = |local: &Local| listeners.iter().any(|listener| listener.local == *local);
        self.shown.retain(|local, _| is_there(local));
        for listener in listeners {
            let drops = match self.has_scanned {
                true => listener.drops_delta(),
                false => listener.drops_total(),
            };
            if let Some(total) = self.shown.get_mut(&listener.local) {
                *total += drops;
            } else if self.shown.len() < self.max {
                self.shown.insert(listener.local, drops);
            } else {
                self.other += drops;
            }
        }
        self.has_scanned = true;
    }
}

/// The queues of each listener. `iface` names interfaces.
pub fn listeners(
    out: &mut Exposition,
    listeners: &[Listener],
    totals: &mut ListenerTotals,
    iface: impl Fn(u32) -> String,
) {
    totals.update(listeners);
    // Sockets for IPv6 only may be bound to the same address as those for both families. Their labels
    // are the same.
    let mut by_local = BTreeMap::<Local, [u64; 3]>::new();
    for listener in listeners {
        let values = [
            listener.queue_len(),
            listener.queue_max(),
            listener.half_open.into(),
        ];
        let sums = by_local.entry(listener.local).or_default();
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }
    let mut shown = Vec::new();
    let mut other = [0; 3];
    let found = by_local.len();
    for (local, values) in by_local {
        let Some(drops) = totals.shown.get(&local) else {
            for (sum, value) in other.iter_mut().zip(values) {
                *sum += value;
            }
            continue;
        };
        let Local {
            addr,
            port,
            ifindex,
        } = local;
        let mut labels = vec![("addr", addr.to_string()), ("port", port.to_string())];
        if ifindex != 0 {
            labels.push(("iface", iface(ifindex)));
        }
        shown.push((labels, values, *drops));
    }
    shown.sort_unstable_by(|(a, ..), (b, ..)| a.cmp(b));
    let cut = found - shown.len();
    if cut > 0 || totals.other > 0 {
        let labels = vec![("addr", OTHER.to_owned()), ("port", OTHER.to_owned())];
        shown.push((labels, other, totals.other));
    }
    out.family(&LISTENERS);
    out.sample(&LISTENERS, &[], found);
    out.family(&LISTENERS_CUT);
    out.sample(&LISTENERS_CUT, &[], cut);
    let families = [
        &ACCEPT_QUEUE,
        &ACCEPT_QUEUE_MAX,
        &SYN_QUEUE,
        &LISTENER_DROPS,
    ];
    for (at, family) in families.into_iter().enumerate() {
        out.family(family);
        for (labels, values, drops) in &shown {
            let labels = labels.iter().map(|(name, value)| (*name, value.as_str()));
            let value = values.get(at).unwrap_or(drops);
            out.sample(family, &labels.collect::<Vec<_>>(), value);
        }
    }
}

/// Counts by the values of labels, in their order.
type ByLabels<'a> = BTreeMap<(&'a str, &'a str), u64>;

fn write(out: &mut Exposition, family: &Family, names: [&str; 2], counts: &ByLabels<'_>) {
    out.family(family);
    for ((first, second), count) in counts {
        let labels = [(names[0], *first), (names[1], *second)];
        // A label without a value is the same as no label.
        let is_set = |(_, value): &(&str, &str)| !value.is_empty();
        let labels = labels.into_iter().filter(is_set).collect::<Vec<_>>();
        out.sample(family, &labels, count);
    }
}

/// Incoming connection attempts. `reason` names the reason of an attempt that failed.
pub fn accept(
    out: &mut Exposition,
    counts: &ExportCounts,
    mut reason: impl FnMut(&ExportKey) -> Option<String>,
) {
    // These are there from the first scrape on: a series that appears later, already above 0, has no
    // increase that Prometheus could see.
    let mut attempts = ByLabels::from([
        (("accepted", ""), 0),
        (("refused", "no_listener"), 0),
        (("dropped", "accept_queue_full"), 0),
        (("dropped", "syn_queue_full"), 0),
        (("unanswered", "no_final_ack"), 0),
    ]);
    let known = counts.events.iter().map(|(key, count)| {
        let fate = FATES.get(usize::from(key.kind)).copied();
        let name = match AcceptFate(key.kind.into()) {
            AcceptFate::FATE_ACCEPTED | AcceptFate::FATE_FORWARDED => String::new(),
            _ => reason(key).unwrap_or_else(|| UNKNOWN.to_owned()),
        };
        (fate.unwrap_or(UNKNOWN), name, *count)
    });
    let known = known.collect::<Vec<_>>();
    for (fate, reason, count) in &known {
        *attempts.entry((fate, reason)).or_default() += count;
    }
    write(out, &ATTEMPTS, ["fate", "reason"], &attempts);
    for (family, of) in [
        (&HANDSHAKE, ExportTimeOf::EXPORT_HANDSHAKE),
        (&ACCEPT_WAIT, ExportTimeOf::EXPORT_ACCEPT_WAIT),
    ] {
        out.family(family);
        out.histogram(family, &counts.histogram(of));
    }
}

/// Dropped and retransmitted segments, and resets. `reason` names the reason of a drop or reset.
pub fn loss(
    out: &mut Exposition,
    counts: &ExportCounts,
    mut reason: impl FnMut(&ExportKey) -> Option<String>,
) {
    let detail = |key: &ExportKey| detail_name(LossDetail(key.detail.into())).unwrap_or(UNKNOWN);
    let mut named = |kind: LossKind| {
        let events = counts.of_kind(kind.0).map(|(key, count)| {
            let name = reason(key).unwrap_or_else(|| UNKNOWN.to_owned());
            (key, name, *count)
        });
        events.collect::<Vec<_>>()
    };
    let (dropped, resets) = (named(LossKind::LOSS_DROP), named(LossKind::LOSS_RESET));
    let mut by_reason = ByLabels::from([(("no_socket", ""), 0), (("netfilter_drop", ""), 0)]);
    for (_, reason, count) in &dropped {
        *by_reason.entry((reason, "")).or_default() += count;
    }
    write(out, &DROPS, ["reason", ""], &by_reason);
    let mut by_kind = ByLabels::from([(("data", ""), 0), (("syn", ""), 0), (("syn_ack", ""), 0)]);
    for (key, count) in counts.of_kind(LossKind::LOSS_RETRANSMIT.0) {
        *by_kind.entry((detail(key), "")).or_default() += count;
    }
    write(out, &RETRANSMITS, ["kind", ""], &by_kind);
    let mut by_way = ByLabels::from([(("received", ""), 0)]);
    for (key, reason, count) in &resets {
        // The kernel gives reasons for those that it sends.
        let reason = match LossDetail(key.detail.into()) {
            LossDetail::LOSS_RECEIVED => "",
            _ => reason.as_str(),
        };
        *by_way.entry((detail(key), reason)).or_default() += count;
    }
    write(out, &RESETS, ["way", "reason"], &by_way);
}

fn connection(key: &ExportKey) -> Connection {
    let detail = u32::from(key.detail);
    let direction = detail >> ConnectExport::EXPORT_DIRECTION_SHIFT.0;
    let raw = ConnectEvent {
        direction: ConnectDirection(direction & 3),
        closed_by: ConnectClosedBy(detail & 3),
        ..ConnectEvent::default()
    };
    Connection { raw }
}

/// Outgoing connection attempts.
pub fn connect(out: &mut Exposition, counts: &ExportCounts) {
    let sum = |kind: ConnectKind| {
        let counts = counts.of_kind(kind.0).map(|(_, count)| count);
        counts.sum::<u64>()
    };
    for (family, kind) in [
        (&CONNECTS, ConnectKind::CONNECT_ATTEMPT),
        (&CONNECTS_ESTABLISHED, ConnectKind::CONNECT_ESTABLISHED),
    ] {
        out.family(family);
        out.sample(family, &[], sum(kind));
    }
    let failed = counts.of_kind(ConnectKind::CONNECT_FAILED.0);
    let failed = failed.map(|(key, count)| {
        let has_given_up = u32::from(key.detail) & ConnectExport::EXPORT_GIVEN_UP.0 != 0;
        let error = match i32::try_from(key.reason) {
            _ if has_given_up => "given_up".into(),
            Ok(errno @ 1..) => errno_name(errno),
            _ => UNKNOWN.into(),
        };
        (error, *count)
    });
    let failed = failed.collect::<Vec<_>>();
    let mut by_error = ByLabels::from([
        (("ECONNREFUSED", ""), 0),
        (("ETIMEDOUT", ""), 0),
        (("EHOSTUNREACH", ""), 0),
    ]);
    for (error, count) in &failed {
        *by_error.entry((error, "")).or_default() += count;
    }
    write(out, &CONNECTS_FAILED, ["error", ""], &by_error);
    out.family(&CONNECT);
    out.histogram(&CONNECT, &counts.histogram(ExportTimeOf::EXPORT_CONNECT));
}

/// Connections in both directions. `sockets` are numbers of sockets, by state.
pub fn flows(out: &mut Exposition, counts: &ExportCounts, sockets: &[(&str, u64)]) {
    let mut opened = ByLabels::from([(("in", ""), 0), (("out", ""), 0)]);
    for (kind, direction) in [
        (ConnectKind::CONNECT_ACCEPTED, "in"),
        (ConnectKind::CONNECT_ESTABLISHED, "out"),
    ] {
        for (_, count) in counts.of_kind(kind.0) {
            *opened.entry((direction, "")).or_default() += count;
        }
    }
    write(out, &OPENED, ["direction", ""], &opened);
    let mut closed = ByLabels::new();
    for direction in ["in", "out"] {
        for closed_by in ["local", "remote", "reset"] {
            closed.insert((direction, closed_by), 0);
        }
    }
    for (key, count) in counts.of_kind(ConnectKind::CONNECT_CLOSED.0) {
        let connection = connection(key);
        let direction = connection.direction().unwrap_or(UNKNOWN);
        let closed_by = connection.closed_by().unwrap_or(UNKNOWN);
        *closed.entry((direction, closed_by)).or_default() += count;
    }
    write(out, &CLOSED, ["direction", "closed_by"], &closed);
    out.family(&BYTES);
    for (way, kind) in [
        ("received", ExportKind::EXPORT_RX_BYTES),
        ("sent", ExportKind::EXPORT_TX_BYTES),
    ] {
        let bytes = counts.of_kind(kind.0).map(|(_, bytes)| bytes);
        out.sample(&BYTES, &[("way", way)], bytes.sum::<u64>());
    }
    for (family, of) in [
        (&DURATION, ExportTimeOf::EXPORT_DURATION),
        (&RTT, ExportTimeOf::EXPORT_RTT),
    ] {
        out.family(family);
        out.histogram(family, &counts.histogram(of));
    }
    out.family(&SOCKETS);
    for (state, count) in sockets {
        out.sample(&SOCKETS, &[("state", state)], count);
    }
}

/// The exporter's own figures.
#[derive(Debug, Default)]
pub struct Itself {
    /// Collectors that were asked for, and whether they work.
    pub collectors: Vec<(&'static str, bool)>,
    /// Events that are missing, by collector.
    pub lost: Vec<(&'static str, u64)>,
    /// Requests for metrics, this one included.
    pub scrapes: u64,
    /// CPU time of the process in seconds.
    pub cpu: f64,
    /// Memory in bytes, where it is known.
    pub memory: Option<u64>,
    /// When it was started, as seconds of UNIX time.
    pub started: f64,
}

/// Writes the exporter's own figures.
pub fn itself(out: &mut Exposition, itself: &Itself) {
    out.family(&UP);
    for (name, up) in &itself.collectors {
        out.sample(&UP, &[("collector", name)], u8::from(*up));
    }
    out.family(&LOST);
    for (name, lost) in &itself.lost {
        out.sample(&LOST, &[("collector", name)], lost);
    }
    out.family(&SCRAPES);
    out.sample(&SCRAPES, &[], itself.scrapes);
    out.family(&BUILD);
    out.sample(&BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    out.family(&CPU);
    out.sample(&CPU, &[], itself.cpu);
    if let Some(memory) = itself.memory {
        out.family(&MEMORY);
        out.sample(&MEMORY, &[], memory);
    }
    out.family(&STARTED);
    out.sample(&STARTED, &[], itself.started);
}
