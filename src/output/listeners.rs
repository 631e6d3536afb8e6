//! The output of listeners: columns of the text format and keys of JSON.

use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, Layout, Row, Tone};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_addr, push_float, push_int, push_opt_int};
use super::{Render, alert_state};
use crate::domain::listener::{Listener, Member};
use crate::failure::Failure;
use crate::key;

/// A listener to write, with its interface and container.
pub struct ListenerRecord<'a> {
    /// The listener.
    pub listener: &'a Listener,
    /// The interface that it is bound to, if any.
    pub iface: Option<&'a str>,
    /// The container of its process.
    pub container: Option<String>,
}

/// An alert about a listener: raised if its queue is nearly full or it drops attempts, and cleared when
/// neither is true any more.
pub struct ListenerAlert<'a> {
    /// Raised, or else cleared.
    pub raised: bool,
    /// The listener.
    pub record: &'a ListenerRecord<'a>,
}

#[derive(Clone, Copy, PartialEq)]
enum ListenerColumn {
    Time,
    /// Whether the line is an alert.
    Event,
    Addr,
    Port,
    Queue,
    Max,
    /// Half-open connections.
    HalfOpen,
    Drops,
    /// Drops per second.
    Rate,
    Sockets,
    Pid,
    Comm,
    Uid,
    Container,
}

const COLUMNS: [Column<ListenerColumn>; 14] = [
    Column::time(ListenerColumn::Time, Precision::Seconds),
    Column::left(ListenerColumn::Event, "EVENT", 7),
    Column::left(ListenerColumn::Addr, "ADDR", 15),
    Column::right(ListenerColumn::Port, "PORT", 5),
    Column::right(ListenerColumn::Queue, "QUEUE", 5),
    Column::right(ListenerColumn::Max, "MAX", 5),
    Column::right(ListenerColumn::HalfOpen, "HALF", 5),
    Column::right(ListenerColumn::Drops, "DROPS", 8),
    Column::right(ListenerColumn::Rate, "DROP/s", 7),
    Column::right(ListenerColumn::Sockets, "SOCKS", 5),
    Column::right(ListenerColumn::Pid, "PID", 7),
    Column::left(ListenerColumn::Comm, "COMM", 15),
    Column::right(ListenerColumn::Uid, "UID", 5),
    Column::left(ListenerColumn::Container, "CONTAINER", 12),
];

/// Writes listeners as text or JSON.
pub struct ListenerWriter {
    /// The network namespace.
    netns: u64,
    /// The argument of `--alert`, in percent.
    threshold: f64,
    layout: Layout<ListenerColumn>,
}

impl ListenerWriter {
    /// Takes the columns of `--columns`, or the default ones if there are none. `netns` is the
    /// network namespace of the listeners.
    ///
    /// # Errors
    /// A column is unknown.
    pub fn new(columns: &[String], netns: u64, alert: Option<f64>) -> Result<Self, Failure> {
        let layout = Layout::new(&COLUMNS, columns, |column| match column {
            ListenerColumn::Event => alert.is_some(),
            ListenerColumn::Uid | ListenerColumn::Container => false,
            _ => true,
        })?;
        Ok(Self {
            netns,
            threshold: alert.unwrap_or(f64::INFINITY),
            layout,
        })
    }

    /// Writes the header line of the text format.
    pub fn header(&self, out: &mut Line<'_>, clock: &Clock) {
        self.layout.header(out, clock);
    }

    fn json(&self, line: &mut Object<'_, '_>, record: &ListenerRecord<'_>) {
        let listener = record.listener;
        let holder = listener.holder();
        line.int(
            key!("ip_version"),
            if listener.local.addr.is_ipv4() {
                4_u8
            } else {
                6
            },
        );
        line.addr(key!("addr"), listener.local.addr);
        line.int(key!("port"), listener.local.port);
        line.opt_string(key!("iface"), record.iface);
        line.bool(key!("dual_stack"), listener.is_dual());
        line.int(key!("netns"), self.netns);
        line.opt_int(key!("pid"), holder.map(|holder| holder.pid));
        line.opt_string(key!("comm"), holder.map(|holder| &holder.comm));
        line.opt_int(key!("uid"), listener.uid());
        line.opt_int(key!("cgroup_id"), holder.map(|holder| holder.cgroup_id));
        line.opt_string(key!("container"), record.container.as_ref());
        line.int(key!("processes"), listener.processes() as u64);
        line.int(key!("sockets"), listener.members.len() as u64);
        line.int(key!("queue_len"), listener.queue_len());
        line.int(key!("queue_max"), listener.queue_max());
        line.int(key!("syn_queue_len"), listener.half_open);
        line.int(key!("drops_total"), listener.drops_total());
        line.int(key!("drops_delta"), listener.drops_delta());
        match listener.drop_rate() {
            Some(rate) => line.float(key!("drop_rate"), rate),
            None => line.null(key!("drop_rate")),
        };
        match listener.seconds {
            Some(seconds) => line.float(key!("interval_s"), seconds),
            None => line.null(key!("interval_s")),
        };
    }
}

/// The subject of a line of the text format.
#[derive(Clone, Copy)]
enum About {
    Listener,
    Alert { is_raised: bool },
}

impl About {
    fn name(self) -> &'static str {
        match self {
            Self::Listener => "listen",
            Self::Alert { is_raised } => alert_state(is_raised),
        }
    }
}

/// A line of the text format.
struct ListenerRow<'a> {
    record: &'a ListenerRecord<'a>,
    about: About,
}

impl Row for ListenerRow<'_> {
    type Column = ListenerColumn;

    fn cell(&self, column: ListenerColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let listener = self.record.listener;
        let holder = listener.holder();
        match column {
            ListenerColumn::Time => clock.push_time(out, at, Precision::Seconds),
            ListenerColumn::Event => out.extend_from_slice(self.about.name().as_bytes()),
            ListenerColumn::Addr => {
                // As ss(8) shows a socket that accepts both address families.
                if listener.is_dual() {
                    out.push(b'*');
                } else {
                    push_addr(out, listener.local.addr);
                }
                if let Some(iface) = self.record.iface {
                    out.push(b'%');
                    out.push_text(iface.as_bytes());
                }
            }
            ListenerColumn::Port => push_int(out, listener.local.port),
            ListenerColumn::Queue => push_int(out, listener.queue_len()),
            ListenerColumn::Max => push_int(out, listener.queue_max()),
            ListenerColumn::HalfOpen => push_int(out, listener.half_open),
            ListenerColumn::Drops => push_int(out, listener.drops_total()),
            ListenerColumn::Rate => match listener.drop_rate() {
                Some(rate) => push_float(out, rate),
                None => out.push(b'-'),
            },
            ListenerColumn::Sockets => push_int(out, listener.members.len() as u64),
            ListenerColumn::Pid => push_opt_int(out, holder.map(|holder| holder.pid)),
            ListenerColumn::Comm => match holder {
                Some(holder) => out.push_text(&holder.comm),
                None => out.push(b'-'),
            },
            ListenerColumn::Uid => push_opt_int(out, listener.uid()),
            ListenerColumn::Container => {
                out.push_text(self.record.container.as_deref().unwrap_or("-").as_bytes());
            }
        }
    }

    fn tone(&self, column: ListenerColumn) -> Tone {
        let listener = self.record.listener;
        match (column, self.about) {
            (ListenerColumn::Event, About::Alert { is_raised: true }) => Tone::Bad,
            (ListenerColumn::Event, About::Alert { is_raised: false }) => Tone::Good,
            (ListenerColumn::Queue, _) if listener.queue_len() > listener.queue_max() => Tone::Bad,
            _ => Tone::Plain,
        }
    }
}

impl Render for (&ListenerWriter, &ListenerRecord<'_>) {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (writer, record) = *self;
        let about = About::Listener;
        writer
            .layout
            .row(&ListenerRow { record, about }, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (writer, record) = self;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "listener");
        writer.json(&mut line, record);
        line.array(key!("members"), |members| {
            for member in &record.listener.members {
                members.object(|object| push_member(object, member));
            }
        });
        line.end();
    }
}

impl Render for (&ListenerWriter, &ListenerAlert<'_>) {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (writer, alert) = self;
        let row = ListenerRow {
            record: alert.record,
            about: About::Alert {
                is_raised: alert.raised,
            },
        };
        writer.layout.row(&row, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (writer, alert) = self;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "listener_alert");
        line.name(key!("state"), alert_state(alert.raised));
        line.float(key!("threshold"), writer.threshold);
        writer.json(&mut line, alert.record);
        line.end();
    }
}

fn push_member(object: &mut Object<'_, '_>, member: &Member) {
    let socket = &member.socket;
    object.int(key!("inode"), socket.inode);
    object.opt_int(key!("pid"), member.holders.first().map(|holder| holder.pid));
    object.int(key!("queue_len"), socket.queue_len);
    object.int(key!("queue_max"), socket.queue_max);
    object.int(key!("drops_total"), socket.drops);
    object.int(key!("drops_delta"), member.drops_delta);
}
