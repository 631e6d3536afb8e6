//! The output of accept-trace: columns of the text format and keys of JSON.

use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, ColumnSet, Layout, Row, Tone};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_addr, push_int, push_opt_int, push_port};
use super::{Render, micros};
use crate::domain::incoming::{Attempt, Fate};
use crate::domain::listener::Holder;
use crate::domain::reasons::{ReasonFrom, name_of_ours};
use crate::key;
use crate::skel::{AcceptFate, AcceptFlag, AcceptReason};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum AcceptColumn {
    Time,
    Iface,
    Fate,
    Saddr,
    Sport,
    Daddr,
    Dport,
    Handshake,
    Wait,
    Pid,
    Comm,
    Queue,
    Place,
    Reason,
}

impl ColumnSet for AcceptColumn {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::time(Self::Time, Precision::Micros),
        Column::left(Self::Iface, "IFACE", 8),
        Column::left(Self::Fate, "FATE", 10),
        Column::left(Self::Saddr, "SADDR", 15),
        Column::right(Self::Sport, "SPORT", 5),
        Column::left(Self::Daddr, "DADDR", 15),
        Column::right(Self::Dport, "DPORT", 5),
        Column::right(Self::Handshake, "HS_US", 6),
        Column::right(Self::Wait, "WAIT_US", 7),
        Column::left(Self::Pid, "PID", 5),
        Column::left(Self::Comm, "COMM", 7),
        Column::left(Self::Queue, "QUEUE", 7),
        Column::left(Self::Place, "PLACE", 16),
        Column::left(Self::Reason, "REASON", 6),
    ];

    fn is_usual(self) -> bool {
        !matches!(
            self,
            Self::Iface | Self::Handshake | Self::Queue | Self::Place
        )
    }
}

/// The columns of attempts.
pub(crate) type AttemptLayout = Layout<AcceptColumn>;

/// An attempt together with what user space has found out about it.
pub(crate) struct ShownAttempt<'a> {
    /// The columns to write.
    pub layout: &'a AttemptLayout,
    /// The attempt.
    pub attempt: &'a Attempt,
    /// The interface where its SYN came in.
    pub iface: Option<&'a str>,
    /// The network namespace, by inode number.
    pub netns: u64,
    /// Why it failed, and how that is known.
    pub reason: (Option<&'a str>, ReasonFrom),
    /// The kernel function that dropped its packet.
    pub place: Option<&'a str>,
    /// The process that listens, if no process has accepted the attempt.
    pub owner: Option<&'a Holder>,
    /// How long the listener's accept queue had been full.
    pub queue_full_ns: Option<u64>,
    /// The container of the process that accepted it, or else of the process that listens.
    pub container: Option<&'a str>,
}

impl ShownAttempt<'_> {
    fn has(&self, flag: AcceptFlag) -> bool {
        self.attempt.has(flag)
    }

    /// Id and name of the process that accepted it, or else of the process that listens.
    fn process(&self) -> Option<(u32, &[u8])> {
        match self.has(AcceptFlag::ATTEMPT_HAS_PROCESS) {
            true => Some((self.attempt.raw.pid, self.attempt.comm())),
            false => self.owner.map(|owner| (owner.pid, owner.comm.as_slice())),
        }
    }
}

impl Row for ShownAttempt<'_> {
    type Column = AcceptColumn;

    fn cell(&self, column: AcceptColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let attempt = self.attempt;
        let raw = &attempt.raw;
        match column {
            AcceptColumn::Time => clock.push_time(out, at, Precision::Micros),
            AcceptColumn::Iface => out.push_text(self.iface.unwrap_or("-").as_bytes()),
            AcceptColumn::Fate => out.extend_from_slice(attempt.name().as_bytes()),
            AcceptColumn::Saddr => push_addr(out, attempt.saddr()),
            AcceptColumn::Sport => push_port(out, Some(raw.key.port)),
            AcceptColumn::Daddr => push_addr(out, attempt.daddr()),
            AcceptColumn::Dport => push_port(out, Some(raw.attempt.dport)),
            AcceptColumn::Handshake => push_opt_int(out, micros(attempt.handshake_ns())),
            AcceptColumn::Wait => push_opt_int(out, micros(attempt.accept_wait_ns())),
            AcceptColumn::Pid => push_opt_int(out, self.process().map(|(pid, _)| pid)),
            AcceptColumn::Comm => match self.process() {
                None | Some((_, [])) => out.push(b'-'),
                Some((_, comm)) => out.push_text(comm),
            },
            AcceptColumn::Queue => {
                if self.has(AcceptFlag::ATTEMPT_HAS_LISTENER) {
                    push_int(out, raw.attempt.queue_len);
                    out.push(b'/');
                    push_int(out, raw.attempt.queue_max);
                } else {
                    out.push(b'-');
                }
            }
            AcceptColumn::Place => out.push_text(self.place.unwrap_or("-").as_bytes()),
            AcceptColumn::Reason => {
                out.extend_from_slice(self.reason.0.unwrap_or("-").as_bytes());
                // Also show for how long the queue had been full.
                if let Some(nanos) = self.queue_full_ns
                    && self.reason.0 == Some(ACCEPT_QUEUE_FULL)
                {
                    let tenths = nanos / 100_000_000;
                    out.push(b':');
                    push_int(out, tenths / 10);
                    out.push(b'.');
                    push_int(out, tenths % 10);
                    out.push(b's');
                }
            }
        }
    }

    fn tone(&self, column: AcceptColumn) -> Tone {
        let raw = &self.attempt.raw;
        match column {
            AcceptColumn::Fate => Fate(raw.fate).tone(),
            AcceptColumn::Reason if self.attempt.has_failed() => Fate(raw.fate).tone(),
            _ => Tone::Plain,
        }
    }
}

impl Fate {
    /// The tone in which it is shown.
    pub(super) fn tone(self) -> Tone {
        match self.0 {
            AcceptFate::FATE_ACCEPTED | AcceptFate::FATE_FORWARDED => Tone::Good,
            AcceptFate::FATE_NONE | AcceptFate::FATE_PENDING => Tone::Notable,
            _ => Tone::Bad,
        }
    }
}

/// The reason that is shown together with its duration.
const ACCEPT_QUEUE_FULL: &str = name_of_ours(AcceptReason::REASON_ACCEPT_QUEUE_FULL);

impl Render for ShownAttempt<'_> {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        self.layout.row(self, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let attempt = self.attempt;
        let raw = &attempt.raw;
        let known = &raw.attempt;
        let event = match attempt.is_arrival() {
            true => "attempt",
            false => "fate",
        };
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), event);
        line.opt_string(key!("iface"), self.iface);
        line.int(key!("netns"), self.netns);
        line.int(key!("ip_version"), known.ip_version);
        line.addr(key!("saddr"), attempt.saddr());
        line.int(key!("sport"), raw.key.port);
        line.addr(key!("daddr"), attempt.daddr());
        line.int(key!("dport"), known.dport);
        if !attempt.is_arrival() {
            self.fate_keys(&mut line);
        }
        line.end();
    }
}

impl ShownAttempt<'_> {
    fn fate_keys(&self, line: &mut Object<'_, '_>) {
        let attempt = self.attempt;
        let raw = &attempt.raw;
        let known = &raw.attempt;
        let (reason, from) = self.reason;
        line.name(key!("fate"), attempt.fate());
        line.opt_name(key!("reason"), reason);
        // Only a failed attempt has a reason.
        line.opt_name(
            key!("reason_from"),
            attempt.has_failed().then(|| from.name()),
        );
        line.opt_string(key!("place"), self.place);
        let has_listener = self.has(AcceptFlag::ATTEMPT_HAS_LISTENER);
        line.opt_int(key!("queue_len"), has_listener.then_some(known.queue_len));
        line.opt_int(key!("queue_max"), has_listener.then_some(known.queue_max));
        line.opt_int(
            key!("syn_queue_len"),
            has_listener.then_some(known.syn_queue_len),
        );
        let queue_full_ms = self.queue_full_ns.map(|nanos| nanos / 1_000_000);
        line.opt_int(key!("queue_full_ms"), queue_full_ms);
        line.int(key!("syn_retransmits"), known.syn_retransmits);
        line.int(key!("syn_ack_retransmits"), known.syn_ack_retransmits);
        line.opt_int(key!("syn_ack_us"), micros(attempt.syn_ack_ns()));
        line.opt_int(key!("handshake_us"), micros(attempt.handshake_ns()));
        line.opt_int(key!("accept_wait_us"), micros(attempt.accept_wait_ns()));
        line.bool(key!("cookie"), self.has(AcceptFlag::ATTEMPT_COOKIE));
        line.bool(key!("fast_open"), self.has(AcceptFlag::ATTEMPT_FAST_OPEN));
        line.bool(key!("mptcp"), self.has(AcceptFlag::ATTEMPT_MPTCP));
        line.bool(key!("continued"), self.has(AcceptFlag::ATTEMPT_CONTINUED));
        line.bool(key!("seeded"), self.has(AcceptFlag::ATTEMPT_SEEDED));
        let has_process = self.has(AcceptFlag::ATTEMPT_HAS_PROCESS);
        let process = self.process();
        line.opt_int(key!("pid"), process.map(|(pid, _)| pid));
        line.opt_int(key!("tid"), has_process.then_some(raw.tid));
        let uid = match has_process {
            true => Some(raw.uid),
            false => has_listener.then_some(known.uid),
        };
        line.opt_int(key!("uid"), uid);
        match process {
            Some((_, comm)) => line.string(key!("comm"), comm),
            None => line.null(key!("comm")),
        };
        let cgroup_id = match has_process {
            true => Some(raw.cgroup_id),
            false => self.owner.map(|owner| owner.cgroup_id),
        };
        line.opt_int(key!("cgroup_id"), cgroup_id);
        line.opt_string(key!("container"), self.container);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;
    use crate::skel::AcceptEvent;

    fn accepted() -> Attempt {
        let mut raw = AcceptEvent {
            ts_ns: 9_000_000,
            pid: 4242,
            tid: 4243,
            fate: AcceptFate::FATE_ACCEPTED,
            ..AcceptEvent::default()
        };
        raw.comm[..6].copy_from_slice(b"a name");
        raw.key.port = 40000;
        raw.key.addr[10..].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
        raw.attempt.daddr[10..].copy_from_slice(&[0xff, 0xff, 198, 51, 100, 2]);
        raw.attempt.dport = 443;
        raw.attempt.ip_version = 4;
        raw.attempt.syn_ns = 1_000_000;
        raw.attempt.syn_ack_ns = 1_001_000;
        raw.attempt.established_ns = 4_000_000;
        raw.attempt.flags = AcceptFlag::ATTEMPT_HAS_PROCESS.0 as u16;
        Attempt { raw }
    }

    fn render(
        attempt: &Attempt,
        push: impl FnOnce(&ShownAttempt<'_>, &mut Line<'_>, &mut Clock),
    ) -> String {
        let layout = AttemptLayout::of(&[]).unwrap();
        let shown = ShownAttempt {
            layout: &layout,
            attempt,
            iface: Some("eth0"),
            netns: 7,
            reason: (None, ReasonFrom::Unknown),
            place: None,
            owner: None,
            queue_full_ns: None,
            container: None,
        };
        let mut clock = Clock::at_epoch();
        rendered(|out| push(&shown, out, &mut clock))
    }

    #[test]
    fn text_has_the_columns_of_its_header() {
        let header = render(&accepted(), |shown, out, clock| {
            shown.layout.header(out, clock)
        });
        let line = render(&accepted(), |shown, out, clock| shown.text(out, clock, 0));
        for (column, value) in [
            ("FATE", "accepted "),
            ("SADDR", "192.0.2.1 "),
            ("SPORT", "40000 "),
            ("DADDR", "198.51.100.2 "),
            ("DPORT", "  443 "),
            ("WAIT_US", "   5000 "),
            ("PID", "4242 "),
            ("COMM", "a\\x20name "),
        ] {
            let at = header.find(column).unwrap();
            assert!(line[at..].starts_with(value), "{column}: {line}");
        }
        assert!(line.len() <= 111, "{line}");
    }

    #[test]
    fn an_arrival_says_no_more_than_is_known_then() {
        let mut arrival = accepted();
        arrival.raw.fate = AcceptFate::FATE_NONE;
        let line = render(&arrival, |shown, out, clock| shown.json(out, clock, 0));
        assert_eq!(
            line,
            "{\"ts\":\"1970-01-01T00:00:00.000000000Z\",\"event\":\"attempt\",\"iface\":\"eth0\",\"netns\":7,\"ip_version\":4,\"saddr\":\"192.0.2.1\",\"sport\":40000,\"daddr\":\"198.51.100.2\",\"dport\":443}\n"
        );
    }
}
