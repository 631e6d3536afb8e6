//! The output of `--by` of the commands that trace: how many events in an interval, and how many by
//! key.

use super::Render;
use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, ColumnSet, Layout, Row};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_float, push_int, push_opt_key};
use crate::domain::tally::{Count, Label};
use crate::key;

/// The counts of an interval.
pub(crate) struct IntervalCounts<'a> {
    /// The columns to write.
    pub layout: &'a CountsLayout,
    /// The name of the event in JSON.
    pub event: &'static str,
    /// The actual length of the interval in seconds.
    pub seconds: f64,
    /// All events that matched.
    pub count: Count,
    /// The name of the key, as given to `--by`.
    pub by: &'static str,
    /// The busiest keys, each with its kind of event.
    pub top: &'a [((&'static str, Label), Count)],
    /// Events since the start that count only in the total, because their key found no room.
    pub untracked: u64,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum CountsColumn {
    Time,
    Event,
    Key,
    Count,
    Total,
    Rate,
}

impl ColumnSet for CountsColumn {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::time(Self::Time, Precision::Seconds),
        Column::left(Self::Event, "EVENT", 10),
        Column::left(Self::Key, "KEY", 24),
        Column::right(Self::Count, "COUNT", 11),
        Column::right(Self::Total, "TOTAL", 13),
        Column::right(Self::Rate, "RATE/s", 12),
    ];
}

/// The columns of counts.
pub(crate) type CountsLayout = Layout<CountsColumn>;

/// A line of text: a key, or `total` or `untracked`.
struct CountsRow<'a> {
    about: &'a str,
    label: &'a Label,
    count: Count,
}

impl Row for CountsRow<'_> {
    type Column = CountsColumn;

    fn cell(&self, column: CountsColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        match column {
            CountsColumn::Time => clock.push_time(out, at, Precision::Seconds),
            CountsColumn::Event => out.extend_from_slice(self.about.as_bytes()),
            CountsColumn::Key => match self.label {
                Label::Key(key) => push_opt_key(out, Some(*key)),
                Label::Name(name) => out.push_text(name),
                Label::Unknown => out.push(b'-'),
            },
            CountsColumn::Count => push_int(out, self.count.delta),
            CountsColumn::Total => push_int(out, self.count.total),
            CountsColumn::Rate => push_float(out, self.count.rate),
        }
    }
}

impl Render for IntervalCounts<'_> {
    /// The lines of an interval: the total, then the busiest keys.
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let mut row = |about, label, count| {
            let row = CountsRow {
                about,
                label,
                count,
            };
            self.layout.row(&row, out, clock, at);
        };
        row("total", &Label::Unknown, self.count);
        for ((of, label), count) in self.top {
            row(of, label, *count);
        }
        if self.untracked > 0 {
            let count = Count {
                total: self.untracked,
                ..Count::default()
            };
            row("untracked", &Label::Unknown, count);
        }
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), self.event);
        line.float(key!("interval_s"), self.seconds);
        line.int(key!("total"), self.count.total);
        line.int(key!("delta"), self.count.delta);
        line.float(key!("rate"), self.count.rate);
        line.name(key!("by"), self.by);
        line.array(key!("top"), |list| {
            for ((of, label), count) in self.top {
                list.object(|object| {
                    object.name(key!("of"), of);
                    match label {
                        Label::Key(key) => object.tally_key(key!("key"), *key),
                        Label::Name(name) => object.string(key!("key"), name),
                        Label::Unknown => object.null(key!("key")),
                    };
                    object.int(key!("total"), count.total);
                    object.int(key!("delta"), count.delta);
                    object.float(key!("rate"), count.rate);
                });
            }
        });
        line.int(key!("untracked"), self.untracked);
        line.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    fn render(push: impl FnOnce(&IntervalCounts<'_>, &mut Line<'_>, &mut Clock)) -> String {
        let count = |delta| Count {
            total: 10 * delta,
            delta,
            rate: delta as f64 / 2.0,
        };
        let top = [
            (("drop", Label::Name(b"a \"b\"".to_vec())), count(3)),
            (("reset", Label::Unknown), count(1)),
        ];
        let counts = IntervalCounts {
            layout: &CountsLayout::of(&[]).unwrap(),
            event: "loss_count",
            seconds: 2.0,
            count: count(4),
            by: "comm",
            top: &top,
            untracked: 5,
        };
        let mut clock = Clock::at_epoch();
        rendered(|out| push(&counts, out, &mut clock))
    }

    #[test]
    fn an_interval_has_a_line_for_the_total_each_key_and_what_found_no_room() {
        let text = render(|counts, out, clock| counts.text(out, clock, 0));
        let words = text.lines().map(|line| line.split_whitespace());
        let words = words.map(|words| words.skip(1).collect::<Vec<_>>().join(" "));
        let expected = [
            "total - 4 40 2",
            "drop a\\x20\"b\" 3 30 1.5",
            "reset - 1 10 0.5",
            "untracked - 0 5 0",
        ];
        assert_eq!(words.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn json_has_the_same_and_null_for_an_unknown_key() {
        let json = render(|counts, out, clock| counts.json(out, clock, 0));
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(line["top"][0]["key"], "a \"b\"");
        assert!(line["top"][1]["key"].is_null());
        let total = ["total", "delta", "untracked"].map(|key| line[key].as_u64().unwrap());
        assert_eq!(total, [40, 4, 5]);
    }
}
