//! flows' lines.

use super::clock::{Clock, UnixNanos};
use super::count::push_count_key;
use super::json::{Object, push_addr, push_float, push_int, push_port};
use super::line::Line;
use super::packet::push_flag_names;
use crate::key;
use crate::record::flow::Flow;

/// What a key, or everything, has carried in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Flows with at least one packet.
    pub flows: u64,
    /// Packets both ways.
    pub packets: u64,
    /// Payload bytes both ways.
    pub bytes: u64,
}

/// What an interval's line says.
#[derive(Clone, Debug)]
pub struct FlowInterval<'a> {
    /// `None` in a replay.
    pub iface: Option<&'a str>,
    /// Seconds that the interval really took.
    pub seconds: f64,
    /// Which key.
    pub by: &'a str,
    /// All flows.
    pub all: Load,
    /// The busiest keys.
    pub top: &'a [(String, Load)],
    /// Packets since the start whose flow found no room in the table.
    pub untracked: u64,
}

/// Writes flows as text or JSON.
pub struct FlowWriter {
    /// Width of the IFACE column.
    pub iface_width: usize,
}

const MILLI: f64 = 1e6;

impl FlowWriter {
    fn iface(&self, out: &mut Line<'_>, name: &str) {
        out.pad_right(self.iface_width + 1, |out| {
            out.push_text(name.as_bytes());
        });
    }

    /// The header line of the text format.
    pub fn text_header(&self, out: &mut Line<'_>) {
        out.extend_from_slice(b"TIME            ");
        self.iface(out, "IFACE");
        out.extend_from_slice(
            b"SADDR                                   SPORT DADDR                                   DPORT STATE        CONN   HISTORY          DURATION_MS  HANDSHAKE_MS OPKTS     OBYTES       RPKTS     RBYTES       RETRANS UNEXP  END      PARTIAL PID     COMM\n",
        );
    }

    /// One line of text.
    pub fn text(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        iface: Option<&str>,
        flow: &Flow,
    ) {
        let (orig, resp) = (flow.orig(), flow.resp());
        clock.push_local_micros(out, at);
        out.push(b' ');
        self.iface(out, iface.unwrap_or("-"));
        for (addr, port) in [(flow.saddr(), flow.sport()), (flow.daddr(), flow.dport())] {
            out.pad_right(40, |out| push_addr(out, addr));
            push_port(out, Some(port));
            out.push(b' ');
        }
        out.pad_right(13, |out| out.extend_from_slice(flow.state().as_bytes()));
        out.pad_right(7, |out| {
            out.extend_from_slice(flow.conn_state().as_bytes());
        });
        out.pad_right(17, |out| out.extend_from_slice(flow.history()));
        out.pad_right(13, |out| {
            push_float(out, flow.duration_ns() as f64 / MILLI);
        });
        out.pad_right(13, |out| match flow.handshake_ns() {
            Some(time) => push_float(out, time as f64 / MILLI),
            None => out.push(b'-'),
        });
        for end in [orig, resp] {
            out.pad_right(10, |out| push_int(out, end.packets));
            out.pad_right(13, |out| push_int(out, end.bytes));
        }
        out.pad_right(8, |out| {
            push_int(
                out,
                u64::from(orig.retransmits) + u64::from(resp.retransmits),
            );
        });
        out.pad_right(7, |out| push_int(out, flow.raw.unexpected));
        out.pad_right(9, |out| out.extend_from_slice(flow.end().as_bytes()));
        out.pad_right(8, |out| {
            out.extend_from_slice(if flow.is_partial() { b"partial" } else { b"-" });
        });
        let process = flow.process();
        out.pad_right(8, |out| match process {
            Some((pid, _)) => push_int(out, pid),
            None => out.push(b'-'),
        });
        match process {
            Some((_, comm)) if !comm.is_empty() => out.push_text(comm),
            _ => out.push(b'-'),
        }
        out.push(b'\n');
    }

    /// One line of JSON; `start` is the time of the first packet, `at` that of the last.
    pub fn json(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        (start, at): (UnixNanos, UnixNanos),
        iface: Option<&str>,
        flow: &Flow,
    ) {
        let (orig, resp) = (flow.orig(), flow.resp());
        let micros = |ns: u64| ns / 1000;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "flow");
        match iface {
            Some(name) => line.string(key!("iface"), name.as_bytes()),
            None => line.null(key!("iface")),
        };
        line.int(key!("ip_version"), flow.raw.key.ip_version);
        line.with(key!("saddr"), |out| push_addr(out, flow.saddr()));
        line.int(key!("sport"), flow.sport());
        line.with(key!("daddr"), |out| push_addr(out, flow.daddr()));
        line.int(key!("dport"), flow.dport());
        line.name(key!("state"), flow.state());
        line.name(key!("conn_state"), flow.conn_state());
        line.with(key!("history"), |out| {
            out.extend_from_slice(flow.history());
        });
        line.with(key!("start"), |out| clock.push_rfc3339(out, start));
        line.int(key!("duration_us"), micros(flow.duration_ns()));
        line.opt_int(key!("syn_ack_us"), flow.syn_ack_ns().map(micros));
        line.opt_int(key!("handshake_us"), flow.handshake_ns().map(micros));
        line.int(key!("orig_pkts"), orig.packets);
        line.int(key!("orig_bytes"), orig.bytes);
        line.int(key!("resp_pkts"), resp.packets);
        line.int(key!("resp_bytes"), resp.bytes);
        line.raw(key!("orig_flags"), |out| push_flag_names(out, orig.flags));
        line.raw(key!("resp_flags"), |out| push_flag_names(out, resp.flags));
        line.int(key!("orig_retransmits"), orig.retransmits);
        line.int(key!("resp_retransmits"), resp.retransmits);
        line.int(key!("syn_retransmits"), flow.raw.syn_retransmits);
        line.int(key!("unexpected"), flow.raw.unexpected);
        line.bool(key!("partial"), flow.is_partial());
        line.name(key!("end"), flow.end());
        let process = flow.process();
        line.opt_int(key!("pid"), process.map(|(pid, _)| pid));
        match process {
            Some((_, comm)) => line.string(key!("comm"), comm),
            None => line.null(key!("comm")),
        };
        line.opt_int(key!("uid"), flow.uid());
        line.end();
    }

    /// The header line of the text format with `--by`.
    pub fn text_interval_header(&self, out: &mut Line<'_>) {
        out.extend_from_slice(b"TIME     ");
        self.iface(out, "IFACE");
        out.extend_from_slice(
            b"EVENT   KEY                                     FLOWS     PACKETS      BYTES          PACKETS/s    BYTES/s\n",
        );
    }

    /// The lines of an interval: the total, then the busiest keys.
    pub fn text_interval(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        interval: &FlowInterval<'_>,
    ) {
        self.text_load(out, clock, at, interval, ("total", "-"), interval.all);
        for (key, load) in interval.top {
            self.text_load(out, clock, at, interval, ("key", key), *load);
        }
        if interval.untracked > 0 {
            let load = Load {
                packets: interval.untracked,
                ..Load::default()
            };
            self.text_load(out, clock, at, interval, ("untrkd", "-"), load);
        }
    }

    fn text_load(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        interval: &FlowInterval<'_>,
        (event, key): (&str, &str),
        load: Load,
    ) {
        clock.push_local(out, at);
        out.push(b' ');
        self.iface(out, interval.iface.unwrap_or("-"));
        out.pad_right(8, |out| out.extend_from_slice(event.as_bytes()));
        out.pad_right(40, |out| out.extend_from_slice(key.as_bytes()));
        out.pad_right(10, |out| push_int(out, load.flows));
        out.pad_right(13, |out| push_int(out, load.packets));
        out.pad_right(15, |out| push_int(out, load.bytes));
        out.pad_right(13, |out| {
            push_float(out, rate(load.packets, interval.seconds));
        });
        push_float(out, rate(load.bytes, interval.seconds));
        out.push(b'\n');
    }

    /// The line of an interval in JSON.
    pub fn json_interval(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        interval: &FlowInterval<'_>,
    ) {
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "flow_count");
        match interval.iface {
            Some(name) => line.string(key!("iface"), name.as_bytes()),
            None => line.null(key!("iface")),
        };
        line.float(key!("interval_s"), interval.seconds);
        line.raw(",", |out| {
            push_load(out, interval.all, interval.seconds);
        });
        line.name(key!("by"), interval.by);
        line.raw(key!("top"), |out| {
            out.push(b'[');
            for (i, (key, load)) in interval.top.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(b"{\"key\":");
                push_count_key(out, key);
                out.push(b',');
                push_load(out, *load, interval.seconds);
                out.push(b'}');
            }
            out.push(b']');
        });
        line.int(key!("untracked"), interval.untracked);
        line.end();
    }
}

fn push_load(out: &mut Line<'_>, load: Load, seconds: f64) {
    for (i, (key, value)) in [
        (r#""flows":"#, load.flows),
        (r#""packets":"#, load.packets),
        (r#""bytes":"#, load.bytes),
    ]
    .into_iter()
    .enumerate()
    {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(key.as_bytes());
        push_int(out, value);
    }
    out.extend_from_slice(br#","packet_rate":"#);
    push_float(out, rate(load.packets, seconds));
    out.extend_from_slice(br#","byte_rate":"#);
    push_float(out, rate(load.bytes, seconds));
}

fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}
