//! The output of loss-trace: columns of the text format and keys of JSON.

use super::Render;
use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, ColumnSet, Layout, Row};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_addr, push_flag_letters, push_opt_int, push_port};
use crate::domain::listener::Holder;
use crate::domain::loss::Loss;
use crate::domain::reasons::{NetfilterHook, ReasonFrom};
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

impl ColumnSet for LossColumn {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::time(Self::Time, Precision::Micros),
        Column::left(Self::Event, "EVENT", 10),
        Column::left(Self::Iface, "IFACE", 5),
        Column::left(Self::Direction, "DIR", 7),
        Column::left(Self::Saddr, "SADDR", 13),
        Column::right(Self::Sport, "SPORT", 5),
        Column::left(Self::Daddr, "DADDR", 13),
        Column::right(Self::Dport, "DPORT", 5),
        Column::left(Self::Flags, "FLAGS", 5),
        Column::right(Self::Seq, "SEQ", 10),
        Column::right(Self::Len, "LEN", 5),
        Column::left(Self::State, "STATE", 11),
        Column::left(Self::Reason, "REASON", 14),
        Column::left(Self::Place, "PLACE", 14),
        Column::left(Self::Hook, "HOOK", 11),
        Column::right(Self::Pid, "PID", 7),
        Column::left(Self::Comm, "COMM", 8),
    ];

    fn is_usual(self) -> bool {
        !matches!(
            self,
            Self::Direction | Self::Seq | Self::State | Self::Hook | Self::Pid | Self::Len
        )
    }
}

/// The columns of losses.
pub(crate) type LossLayout = Layout<LossColumn>;

/// An event together with what user space has found out about it.
pub(crate) struct ShownLoss<'a> {
    /// The columns to write.
    pub layout: &'a LossLayout,
    /// The event.
    pub loss: &'a Loss,
    /// Why the segment was dropped or the connection reset; `None`: unknown.
    pub reason: Option<&'a str>,
    /// Whether the kernel gave the reason, or it is inferred.
    pub reason_from: ReasonFrom,
    /// The kernel function that dropped the segment.
    pub place: Option<&'a str>,
    /// The hook of netfilter that it was called from.
    pub hook: Option<NetfilterHook>,
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
            LossColumn::Direction => out.extend_from_slice(loss.direction().name().as_bytes()),
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
            LossColumn::Hook => word(out, self.hook.map(NetfilterHook::name)),
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
        self.layout.row(self, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let loss = self.loss;
        let raw = &loss.raw;
        let has_segment = loss.has_segment();
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), loss.name());
        line.opt_string(key!("iface"), loss.iface());
        line.opt_int(key!("netns"), Some(raw.netns).filter(|inode| *inode != 0));
        line.name(key!("direction"), loss.direction().name());
        line.int(key!("ip_version"), raw.ip_version);
        line.addr(key!("saddr"), loss.saddr());
        line.int(key!("sport"), raw.sport);
        line.addr(key!("daddr"), loss.daddr());
        line.int(key!("dport"), raw.dport);
        line.tcp_flags(key!("tcp_flags"), raw.tcp_flags);
        line.opt_int(key!("seq"), has_segment.then_some(raw.seq));
        line.opt_int(key!("len"), has_segment.then_some(raw.len));
        line.opt_name(key!("state"), loss.state());
        line.opt_name(key!("reason"), self.reason);
        line.name(key!("reason_from"), self.reason_from.name());
        line.opt_name(key!("place"), self.place);
        line.opt_int(key!("pid"), self.holder.map(|holder| holder.pid));
        line.opt_string(key!("comm"), self.holder.map(|holder| &holder.comm));
        line.opt_string(key!("container"), self.container);
        match loss.kind() {
            LossKind::LOSS_RETRANSMIT => {
                line.opt_name(key!("kind"), loss.detail());
                line.int(key!("segments"), raw.segments);
            }
            LossKind::LOSS_RESET => {
                line.opt_name(key!("way"), loss.detail());
            }
            _ => {
                line.opt_name(key!("hook"), self.hook.map(NetfilterHook::name));
            }
        }
        line.end();
    }
}
