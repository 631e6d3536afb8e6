//! The output of syn-count: columns of the text format and keys of JSON.

use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, Layout, Row, Tone};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_float, push_opt_int, push_opt_key};
use super::{Render, alert_state};
use crate::domain::tally::{Count, CountBy, TallyKey};
use crate::failure::Failure;
use crate::key;

/// The counts of an interval on one interface.
#[derive(Clone, Debug)]
pub struct SynCounts<'a> {
    /// `None` in a replay.
    pub iface: Option<&'a str>,
    /// How the program is attached.
    pub mode: &'a str,
    /// The actual length of the interval in seconds.
    pub seconds: f64,
    /// All SYNs that matched.
    pub count: Count,
    /// With `--by`: the kind of key, and the busiest keys.
    pub by: Option<(CountBy, &'a [(TallyKey, Count)])>,
    /// With `--by` or `--alert`: figures about all keys.
    pub keys: Option<KeyFigures>,
}

/// Figures about all keys.
#[derive(Clone, Copy, Debug)]
pub struct KeyFigures {
    /// Estimated number of source addresses in the interval.
    pub sources: u64,
    /// SYNs since the start that count only in the total, because another key has replaced theirs
    /// in the table.
    pub untracked: u64,
}

/// An alert that was raised or cleared, for the total or for a key.
#[derive(Clone, Debug)]
pub struct SynAlert<'a> {
    /// `None` in a replay.
    pub iface: Option<&'a str>,
    /// How the program is attached.
    pub mode: &'a str,
    /// Raised, or else cleared.
    pub raised: bool,
    /// `None` for the total.
    pub key: Option<TallyKey>,
    /// SYNs per second in the last interval.
    pub rate: f64,
    /// Estimated number of source addresses in the last interval.
    pub sources: u64,
    /// The argument of `--alert`.
    pub threshold: f64,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum SynColumn {
    Time,
    Iface,
    Mode,
    /// Whether the line has the total, a key, or an alert.
    Event,
    Key,
    Syns,
    Total,
    /// SYNs per second.
    Rate,
    Sources,
}

const COLUMNS: [Column<SynColumn>; 9] = [
    Column::time(SynColumn::Time, Precision::Seconds),
    Column::left(SynColumn::Iface, "IFACE", 5),
    Column::left(SynColumn::Mode, "MODE", 7),
    Column::left(SynColumn::Event, "EVENT", 7),
    Column::left(SynColumn::Key, "KEY", 15),
    Column::right(SynColumn::Syns, "SYNS", 11),
    Column::right(SynColumn::Total, "TOTAL", 13),
    Column::right(SynColumn::Rate, "RATE/s", 12),
    Column::right(SynColumn::Sources, "SOURCES", 10),
];

/// The subject of a line of text.
#[derive(Clone, Copy, PartialEq)]
enum About {
    Total,
    Key,
    Untracked,
    Raised,
    Cleared,
}

impl About {
    fn name(self) -> &'static str {
        match self {
            Self::Total => "total",
            Self::Key => "key",
            Self::Untracked => "untrkd",
            Self::Raised => "ALERT",
            Self::Cleared => "cleared",
        }
    }
}

/// Writes counts as text or JSON.
#[derive(Clone)]
pub struct SynWriter {
    /// The columns of the text format.
    pub(crate) layout: Layout<SynColumn>,
}

impl SynWriter {
    /// Takes the columns of `--columns`, or the default ones if there are none. If `with_keys`, the
    /// default ones include those of keys and alerts.
    ///
    /// # Errors
    /// A column is unknown.
    pub fn new(columns: &[String], with_keys: bool) -> Result<Self, Failure> {
        let layout = Layout::new(&COLUMNS, columns, |column| match column {
            SynColumn::Event | SynColumn::Key | SynColumn::Sources => with_keys,
            _ => true,
        })?;
        Ok(Self { layout })
    }
}

/// A line of text.
struct SynRow<'a> {
    iface: Option<&'a str>,
    mode: &'a str,
    about: About,
    key: Option<TallyKey>,
    /// SYNs of the interval.
    syns: Option<u64>,
    total: Option<u64>,
    rate: f64,
    sources: Option<u64>,
}

impl Row for SynRow<'_> {
    type Column = SynColumn;

    fn cell(&self, column: SynColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        match column {
            SynColumn::Time => clock.push_time(out, at, Precision::Seconds),
            SynColumn::Iface => out.push_text(self.iface.unwrap_or("-").as_bytes()),
            SynColumn::Mode => out.extend_from_slice(self.mode.as_bytes()),
            SynColumn::Event => out.extend_from_slice(self.about.name().as_bytes()),
            SynColumn::Key => match (self.key, self.about) {
                (None, About::Raised | About::Cleared) => out.extend_from_slice(b"total"),
                (key, _) => push_opt_key(out, key),
            },
            SynColumn::Syns => push_opt_int(out, self.syns),
            SynColumn::Total => push_opt_int(out, self.total),
            SynColumn::Rate => push_float(out, self.rate),
            SynColumn::Sources => push_opt_int(out, self.sources),
        }
    }

    fn tone(&self, column: SynColumn) -> Tone {
        match (column, self.about) {
            (SynColumn::Event, About::Raised) => Tone::Bad,
            (SynColumn::Event, About::Cleared) => Tone::Good,
            _ => Tone::Plain,
        }
    }
}

impl Render for (&SynWriter, &SynCounts<'_>) {
    /// The lines of an interval: the total, then the busiest keys.
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (writer, interval) = self;
        let total = SynRow {
            iface: interval.iface,
            mode: interval.mode,
            about: About::Total,
            key: None,
            syns: Some(interval.count.delta),
            total: Some(interval.count.total),
            rate: interval.count.rate,
            sources: interval.keys.map(|keys| keys.sources),
        };
        writer.layout.row(&total, out, clock, at);
        for (key, count) in interval.by.map_or(&[][..], |(_, top)| top) {
            let row = SynRow {
                about: About::Key,
                key: Some(*key),
                syns: Some(count.delta),
                total: Some(count.total),
                rate: count.rate,
                sources: None,
                ..total
            };
            writer.layout.row(&row, out, clock, at);
        }
        if let Some(untracked) = interval.keys.map(|keys| keys.untracked)
            && untracked > 0
        {
            let row = SynRow {
                about: About::Untracked,
                syns: Some(0),
                total: Some(untracked),
                rate: 0.0,
                sources: None,
                ..total
            };
            writer.layout.row(&row, out, clock, at);
        }
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (_, interval) = self;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "syn_count");
        line.opt_string(key!("iface"), interval.iface);
        line.name(key!("mode"), interval.mode);
        line.float(key!("interval_s"), interval.seconds);
        line.int(key!("syn_total"), interval.count.total);
        line.int(key!("syn_delta"), interval.count.delta);
        line.float(key!("syn_rate"), interval.count.rate);
        if let Some((by, top)) = interval.by {
            line.name(key!("by"), by.name());
            line.array(key!("top"), |list| {
                for (key, count) in top {
                    list.object(|object| {
                        object.tally_key(key!("key"), *key);
                        object.int(key!("syn_total"), count.total);
                        object.int(key!("syn_delta"), count.delta);
                        object.float(key!("syn_rate"), count.rate);
                    });
                }
            });
        }
        if let Some(keys) = interval.keys {
            line.int(key!("sources"), keys.sources);
            line.int(key!("untracked"), keys.untracked);
        }
        line.end();
    }
}

impl Render for (&SynWriter, &SynAlert<'_>) {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (writer, alert) = self;
        let row = SynRow {
            iface: alert.iface,
            mode: alert.mode,
            about: if alert.raised {
                About::Raised
            } else {
                About::Cleared
            },
            key: alert.key,
            syns: None,
            total: None,
            rate: alert.rate,
            sources: Some(alert.sources),
        };
        writer.layout.row(&row, out, clock, at);
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (_, alert) = self;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "alert");
        line.opt_string(key!("iface"), alert.iface);
        line.name(key!("state"), alert_state(alert.raised));
        match alert.key {
            Some(key) => line.tally_key(key!("key"), key),
            None => line.null(key!("key")),
        };
        line.float(key!("syn_rate"), alert.rate);
        line.float(key!("threshold"), alert.threshold);
        line.int(key!("sources"), alert.sources);
        line.end();
    }
}
