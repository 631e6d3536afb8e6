//! The output of loss-trace: columns of the text format and keys of JSON.

use super::Render;
use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, Layout, Row};
use super::json::{Object, push_addr, push_opt_int, push_port};
use super::line::Line;
use super::port_monitor::{push_flag_letters, push_flag_names};
use crate::domain::listener::Holder;
use crate::domain::loss::Loss;
use crate::domain::reasons::ReasonFrom;
use crate::failure::Failure;
use crate::key;
use crate::skel::LossKind;

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum LossColumn {
    Time,
    Event,
    Iface,
    Direction,
    Saddr,
    Sport,
    Daddr,
    Dport,
    Flags,
    Seq,
    Len,
    State,
    Reason,
    Place,
    Hook,
    Pid,
    Comm,
}

const COLUMNS: [Column<LossColumn>; 17] = [
    Column::time(LossColumn::Time, Precision::Micros),
    Column::left(LossColumn::Event, "EVENT", 10),
    Column::left(LossColumn::Iface, "IFACE", 5),
    Column::left(LossColumn::Direction, "DIR", 7),
    Column::left(LossColumn::Saddr, "SADDR", 13),
    Column::right(LossColumn::Sport, "SPORT", 5),
    Column::left(LossColumn::Daddr, "DADDR", 13),
    Column::right(LossColumn::Dport, "DPORT", 5),
    Column::left(LossColumn::Flags, "FLAGS", 5),
    Column::right(LossColumn::Seq, "SEQ", 10),
    Column::right(LossColumn::Len, "LEN", 5),
    Column::left(LossColumn::State, "STATE", 11),
    Column::left(LossColumn::Reason, "REASON", 14),
    Column::left(LossColumn::Place, "PLACE", 14),
    Column::left(LossColumn::Hook, "HOOK", 11),
    Column::right(LossColumn::Pid, "PID", 7),
    Column::left(LossColumn::Comm, "COMM", 8),
];

/// The columns of the text format.
pub struct LossWriter {
    layout: Layout<LossColumn>,
}

impl LossWriter {
    /// Takes the columns of `--columns`, or the default ones if there are none.
    ///
    /// # Errors
    /// A column is unknown.
    pub fn new(columns: &[String]) -> Result<Self, Failure> {
        let layout = Layout::new(&COLUMNS, columns, |column| {
            !matches!(
                column,
                LossColumn::Direction
                    | LossColumn::Seq
                    | LossColumn::State
                    | LossColumn::Hook
                    | LossColumn::Pid
                    | LossColumn::Len
            )
        })?;
        Ok(Self { layout })
    }

    /// The header line of the text format.
    pub fn text_header(&self, out: &mut Line<'_>, clock: &Clock) {
        self.layout.header(out, clock);
    }
}

/// An event together with what user space has found out about it.
pub struct ShownLoss<'a> {
    /// The columns to write.
    pub writer: &'a LossWriter,
    /// The event.
    pub loss: &'a Loss,
    /// Why the segment was dropped or the connection reset; `None`: unknown.
    pub reason: Option<&'a str>,
    /// Whether the kernel gave the reason, or it is inferred.
    pub reason_from: ReasonFrom,
    /// The kernel function that dropped the segment.
    pub place: Option<&'a str>,
    /// The hook of netfilter that it was called from.
    pub hook: Option<&'a str>,
    /// The process that has the socket open.
    pub holder: Option<&'a Holder>,
    /// The container of that process.
    pub container: Option<&'a str>,
}

impl Row for ShownLoss<'_> {
    type Column = LossColumn;

    fn cell(&self, column: LossColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let loss = self.loss;
        let raw = &loss.raw;
        let word = |out: &mut Line<'_>, word: Option<&str>| {
            out.extend_from_slice(word.unwrap_or("-").as_bytes());
        };
        match column {
            LossColumn::Time => clock.push_time(out, at, Precision::Micros),
            LossColumn::Event => out.extend_from_slice(loss.name().as_bytes()),
            LossColumn::Iface => out.push_text(loss.iface().unwrap_or(b"-")),
            LossColumn::Direction => out.extend_from_slice(loss.direction().as_bytes()),
            LossColumn::Saddr => push_addr(out, loss.saddr()),
            LossColumn::Sport => push_port(out, Some(raw.sport)),
            LossColumn::Daddr => push_addr(out, loss.daddr()),
            LossColumn::Dport => push_port(out, Some(raw.dport)),
            LossColumn::Flags => match raw.tcp_flags {
                0 => out.push(b'-'),
                flags => push_flag_letters(out, flags),
            },
            LossColumn::Seq => push_opt_int(out, loss.has_segment().then_some(raw.seq)),
            LossColumn::Len => push_opt_int(out, loss.has_segment().then_some(raw.len)),
            LossColumn::State => word(out, loss.state()),
            LossColumn::Reason => word(out, self.reason.or(loss.detail())),
            LossColumn::Place => word(out, self.place),
            LossColumn::Hook => word(out, self.hook),
            LossColumn::Pid => push_opt_int(out, self.holder.map(|holder| holder.pid)),
            LossColumn::Comm => match self.holder {
                Some(holder) => out.push_text(&holder.comm),
                None => out.push(b'-'),
            },
        }
    }
}

impl Render for ShownLoss<'_> {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        self.writer.layout.row(self, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let loss = self.loss;
        let raw = &loss.raw;
        let has_segment = loss.has_segment();
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), loss.name());
        match loss.iface() {
            Some(name) => line.string(key!("iface"), name),
            None => line.null(key!("iface")),
        };
        line.opt_int(key!("netns"), Some(raw.netns).filter(|inode| *inode != 0));
        line.name(key!("direction"), loss.direction());
        line.int(key!("ip_version"), raw.ip_version);
        line.with(key!("saddr"), |out| push_addr(out, loss.saddr()));
        line.int(key!("sport"), raw.sport);
        line.with(key!("daddr"), |out| push_addr(out, loss.daddr()));
        line.int(key!("dport"), raw.dport);
        line.array(key!("tcp_flags"), |flags| {
            push_flag_names(flags, raw.tcp_flags)
        });
        line.opt_int(key!("seq"), has_segment.then_some(raw.seq));
        line.opt_int(key!("len"), has_segment.then_some(raw.len));
        line.opt_name(key!("state"), loss.state());
        line.opt_name(key!("reason"), self.reason);
        line.name(key!("reason_from"), self.reason_from.name());
        line.opt_name(key!("place"), self.place);
        line.opt_int(key!("pid"), self.holder.map(|holder| holder.pid));
        match self.holder {
            Some(holder) => line.string(key!("comm"), &holder.comm),
            None => line.null(key!("comm")),
        };
        match self.container {
            Some(container) => line.string(key!("container"), container.as_bytes()),
            None => line.null(key!("container")),
        };
        match loss.kind() {
            LossKind::LOSS_RETRANSMIT => {
                line.opt_name(key!("kind"), loss.detail());
                line.int(key!("segments"), raw.segments);
            }
            LossKind::LOSS_RESET => {
                line.opt_name(key!("way"), loss.detail());
            }
            _ => {
                line.opt_name(key!("hook"), self.hook);
            }
        }
        line.end();
    }
}
