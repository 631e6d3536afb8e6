//! The output of connect-trace: columns of the text format and keys of JSON.

use std::borrow::Cow;

use nix::errno::Errno;

use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, ColumnSet, Layout, Row, Tone};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_int, push_opt_addr, push_opt_int, push_port};
use super::{Render, micros};
use crate::domain::connect_totals::{TotalsCounts, TotalsKey};
use crate::domain::connection::Connection;
use crate::failure::Failure;
use crate::key;
use crate::skel::{ConnectClosedBy, ConnectKind};

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum ConnectColumn {
    Time,
    Event,
    Pid,
    Comm,
    Ip,
    Saddr,
    Sport,
    Daddr,
    Dport,
    Lat,
    Error,
    Dur,
    TxBytes,
    RxBytes,
    ClosedBy,
    RoundTrip,
    MinRoundTrip,
    Retransmits,
}

const COLUMNS: [Column<ConnectColumn>; 18] = [
    Column::time(ConnectColumn::Time, Precision::Micros),
    Column::left(ConnectColumn::Event, "EVENT", 8),
    Column::left(ConnectColumn::Pid, "PID", 7),
    Column::left(ConnectColumn::Comm, "COMM", 10),
    Column::left(ConnectColumn::Ip, "IP", 2),
    Column::left(ConnectColumn::Saddr, "SADDR", 15),
    Column::right(ConnectColumn::Sport, "SPORT", 5),
    Column::left(ConnectColumn::Daddr, "DADDR", 15),
    Column::right(ConnectColumn::Dport, "DPORT", 5),
    Column::right(ConnectColumn::Lat, "LAT_US", 7),
    Column::left(ConnectColumn::Error, "ERROR", 12),
    Column::right(ConnectColumn::Dur, "DUR_US", 9),
    Column::right(ConnectColumn::TxBytes, "TX_BYTES", 9),
    Column::right(ConnectColumn::RxBytes, "RX_BYTES", 9),
    Column::left(ConnectColumn::ClosedBy, "CLOSED", 6),
    Column::right(ConnectColumn::RoundTrip, "RTT_US", 7),
    Column::right(ConnectColumn::MinRoundTrip, "MIN_RTT_US", 10),
    Column::right(ConnectColumn::Retransmits, "RTX", 3),
];

/// Writes events of connections as text or JSON.
pub struct ConnectWriter {
    /// The columns of the text format.
    pub(crate) layout: Layout<ConnectColumn>,
    /// The name of the backend; empty before one is chosen.
    pub backend: &'static str,
}

impl ConnectWriter {
    /// Takes the columns of `--columns`, or the default ones if there are none. If `with_close`,
    /// the default ones include those of closed connections.
    ///
    /// # Errors
    /// A column is unknown.
    pub fn new(columns: &[String], with_close: bool) -> Result<Self, Failure> {
        let layout = Layout::new(&COLUMNS, columns, |column| match column {
            ConnectColumn::Ip
            | ConnectColumn::RoundTrip
            | ConnectColumn::MinRoundTrip
            | ConnectColumn::Retransmits => false,
            ConnectColumn::Dur
            | ConnectColumn::TxBytes
            | ConnectColumn::RxBytes
            | ConnectColumn::ClosedBy => with_close,
            _ => true,
        })?;
        Ok(Self {
            layout,
            backend: "",
        })
    }

    /// An event to write, with the container of its process, which only JSON shows.
    pub fn shown<'a>(
        &'a self,
        connection: &'a Connection,
        container: Option<&'a str>,
    ) -> ShownConnection<'a> {
        ShownConnection {
            writer: self,
            connection,
            container,
        }
    }
}

/// Text shows this instead of an error if the process itself ended the attempt.
const GAVE_UP: &str = "gave-up";

/// A column of `--summary`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TotalColumn {
    Time,
    Process,
    Daddr,
    Dport,
    Attempts,
    Established,
    Failed,
    Pending,
    Errors,
}

impl ColumnSet for TotalColumn {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::time(Self::Time, Precision::Micros),
        Column::left(Self::Process, "PROCESS", 15),
        Column::left(Self::Daddr, "DADDR", 15),
        Column::right(Self::Dport, "DPORT", 5),
        Column::right(Self::Attempts, "ATTEMPTS", 8),
        Column::right(Self::Established, "OK", 6),
        Column::right(Self::Failed, "FAILED", 6),
        Column::right(Self::Pending, "PENDING", 7),
        Column::left(Self::Errors, "ERRORS", 14),
    ];
}

/// The columns of totals.
pub(crate) type TotalsLayout = Layout<TotalColumn>;

/// The counts of a key.
pub(crate) struct ShownTotal<'a> {
    /// The columns to write.
    pub layout: &'a TotalsLayout,
    /// `None`: all keys that were not kept.
    pub key: Option<&'a TotalsKey>,
    /// Their counts.
    pub counts: &'a TotalsCounts,
}

impl ShownTotal<'_> {
    fn process(&self) -> Option<&[u8]> {
        self.key.and_then(|key| key.process.as_deref())
    }
}

impl Row for ShownTotal<'_> {
    type Column = TotalColumn;

    fn cell(&self, column: TotalColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let counts = self.counts;
        match column {
            TotalColumn::Time => clock.push_time(out, at, Precision::Micros),
            TotalColumn::Process => match self.process() {
                None | Some([]) => out.push(b'-'),
                Some(name) => out.push_text(name),
            },
            TotalColumn::Daddr => push_opt_addr(out, self.key.and_then(|key| key.daddr)),
            TotalColumn::Dport => push_port(out, self.key.map(|key| key.dport)),
            TotalColumn::Attempts => push_int(out, counts.attempts),
            TotalColumn::Established => push_int(out, counts.established),
            TotalColumn::Failed => push_int(out, counts.failed),
            TotalColumn::Pending => push_int(out, counts.pending),
            TotalColumn::Errors if counts.failed == 0 => out.push(b'-'),
            TotalColumn::Errors => {
                let errors = counts.errors.iter();
                let errors = errors.map(|(errno, count)| (errno_name(*errno), *count));
                let others = [
                    (GAVE_UP.into(), counts.given_up),
                    ("unknown".into(), counts.unknown()),
                ];
                let all = errors.chain(others).filter(|(_, count)| *count > 0);
                for (i, (name, count)) in all.enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(name.as_bytes());
                    out.push(b':');
                    push_int(out, count);
                }
            }
        }
    }
}

impl Render for ShownTotal<'_> {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        self.layout.row(self, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let counts = self.counts;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "connect_total");
        line.opt_string(key!("process"), self.process());
        line.opt_addr(key!("daddr"), self.key.and_then(|key| key.daddr));
        line.opt_int(key!("dport"), self.key.map(|key| key.dport));
        line.int(key!("attempts"), counts.attempts);
        line.int(key!("established"), counts.established);
        line.int(key!("failed"), counts.failed);
        line.int(key!("given_up"), counts.given_up);
        line.int(key!("pending"), counts.pending);
        line.array(key!("errors"), |list| {
            for (errno, count) in &counts.errors {
                list.object(|object| {
                    object.name(key!("error"), &errno_name(*errno));
                    object.int(key!("count"), *count);
                });
            }
        });
        line.end();
    }
}

/// An event together with the container of its process.
pub struct ShownConnection<'a> {
    writer: &'a ConnectWriter,
    connection: &'a Connection,
    container: Option<&'a str>,
}

impl Row for ShownConnection<'_> {
    type Column = ConnectColumn;

    fn cell(&self, column: ConnectColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let connection = self.connection;
        let raw = &connection.raw;
        let has_process = connection.has_process();
        let closed = connection.is_closed();
        match column {
            ConnectColumn::Time => clock.push_time(out, at, Precision::Micros),
            ConnectColumn::Event => out.extend_from_slice(connection.name().as_bytes()),
            ConnectColumn::Pid => push_opt_int(out, has_process.then_some(raw.pid)),
            ConnectColumn::Comm => match (connection.process(), connection.comm()) {
                (_, []) => out.push(b'-'),
                (process, comm) if process != comm && !process.is_empty() => {
                    out.push_text(process);
                    out.push(b'/');
                    out.push_text(comm);
                }
                (_, comm) => out.push_text(comm),
            },
            ConnectColumn::Ip => push_int(out, raw.ip_version),
            ConnectColumn::Saddr => push_opt_addr(out, connection.saddr()),
            ConnectColumn::Sport => push_port(out, connection.sport()),
            ConnectColumn::Daddr => push_opt_addr(out, connection.daddr()),
            ConnectColumn::Dport => push_port(out, Some(raw.dport)),
            ConnectColumn::Lat => push_opt_int(out, micros(connection.latency_ns())),
            ConnectColumn::Error => {
                let error = match connection.error() {
                    Some(errno) => errno_name(errno),
                    None if connection.given_up() => GAVE_UP.into(),
                    None => "-".into(),
                };
                out.extend_from_slice(error.as_bytes());
            }
            ConnectColumn::Dur => push_opt_int(out, micros(connection.duration_ns())),
            ConnectColumn::TxBytes => push_opt_int(out, closed.then_some(raw.tx_bytes)),
            ConnectColumn::RxBytes => push_opt_int(out, closed.then_some(raw.rx_bytes)),
            ConnectColumn::ClosedBy => {
                out.extend_from_slice(connection.closed_by().unwrap_or("-").as_bytes());
            }
            ConnectColumn::RoundTrip => push_opt_int(out, connection.round_trip_us()),
            ConnectColumn::MinRoundTrip => push_opt_int(out, connection.min_round_trip_us()),
            ConnectColumn::Retransmits => push_opt_int(out, connection.retransmits()),
        }
    }

    fn tone(&self, column: ConnectColumn) -> Tone {
        let connection = self.connection;
        match (column, connection.raw.kind) {
            (ConnectColumn::Event | ConnectColumn::Error, ConnectKind::CONNECT_FAILED) => Tone::Bad,
            (
                ConnectColumn::Event,
                ConnectKind::CONNECT_ESTABLISHED | ConnectKind::CONNECT_ACCEPTED,
            ) => Tone::Good,
            (ConnectColumn::Event, ConnectKind::CONNECT_CLOSED) => Tone::Ending,
            (ConnectColumn::ClosedBy, _)
                if connection.raw.closed_by == ConnectClosedBy::CLOSED_BY_RESET =>
            {
                Tone::Bad
            }
            _ => Tone::Plain,
        }
    }
}

impl Render for ShownConnection<'_> {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        self.writer.layout.row(self, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let connection = self.connection;
        let raw = &connection.raw;
        let has_process = connection.has_process();
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), connection.name());
        line.opt_int(key!("pid"), has_process.then_some(raw.pid));
        line.opt_int(key!("tid"), connection.tid());
        line.opt_int(key!("uid"), has_process.then_some(raw.uid));
        if has_process {
            line.string(key!("comm"), connection.comm());
            line.string(key!("process"), connection.process());
        } else {
            line.null(key!("comm"));
            line.null(key!("process"));
        }
        line.int(key!("ip_version"), raw.ip_version);
        line.opt_addr(key!("saddr"), connection.saddr());
        line.opt_int(key!("sport"), connection.sport());
        line.opt_addr(key!("daddr"), connection.daddr());
        line.int(key!("dport"), raw.dport);
        line.opt_name(key!("direction"), connection.direction());
        line.opt_int(key!("ret"), connection.ret());
        line.opt_name(key!("error"), connection.error().map(errno_name).as_deref());
        if connection.is_failed() {
            line.bool(key!("given_up"), connection.given_up());
        }
        line.opt_int(key!("latency_us"), micros(connection.latency_ns()));
        if connection.is_closed() {
            line.opt_int(key!("duration_us"), micros(connection.duration_ns()));
            line.int(key!("tx_bytes"), raw.tx_bytes);
            line.int(key!("rx_bytes"), raw.rx_bytes);
            line.opt_name(key!("closed_by"), connection.closed_by());
            line.opt_int(key!("rtt_us"), connection.round_trip_us());
            line.opt_int(key!("min_rtt_us"), connection.min_round_trip_us());
            line.int(key!("retransmits"), raw.retransmits);
        }
        line.opt_int(key!("netns"), Some(raw.netns).filter(|inode| *inode != 0));
        line.opt_int(key!("cgroup_id"), has_process.then_some(raw.cgroup_id));
        line.opt_string(key!("container"), self.container);
        line.name(key!("backend"), self.writer.backend);
        line.end();
    }
}

/// The name of an errno (errno-base.h, errno.h), or its number if it has none.
pub(crate) fn errno_name(errno: i32) -> Cow<'static, str> {
    match Errno::from_raw(errno) {
        Errno::UnknownErrno => format!("E{errno}").into(),
        known => format!("{known:?}").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    #[test]
    fn the_errors_of_totals_add_up_to_the_failures() {
        let mut counts = TotalsCounts {
            attempts: 9,
            established: 2,
            failed: 7,
            given_up: 2,
            ..TotalsCounts::default()
        };
        counts.errors.insert(Errno::ECONNREFUSED as i32, 3);
        let columns = ["failed", "errors"].map(str::to_owned);
        let layout = TotalsLayout::of(&columns).unwrap();
        let mut clock = Clock::at_epoch();
        let mut text = |counts| {
            let shown = ShownTotal {
                layout: &layout,
                key: None,
                counts,
            };
            rendered(|out| shown.text(out, &mut clock, 0))
        };
        let words = text(&counts);
        let words = words.split_whitespace().collect::<Vec<_>>();
        assert_eq!(words, ["7", "ECONNREFUSED:3,gave-up:2,unknown:2"]);
        assert!(text(&TotalsCounts::default()).ends_with("0 -\n"));
    }
}
