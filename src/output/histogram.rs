//! The output of `--histogram`: a line of text for each bucket, an object of JSON for each key.

use super::Render;
use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, ColumnSet, Layout, Row};
use super::json::Object;
use super::line::Line;
use super::scalar::{push_addr, push_int};
use crate::domain::histogram::{Histogram, HistogramKey};
use crate::key;

/// The unit of all times.
const UNIT: &str = "us";

/// Characters of the longest bar.
const BAR: u64 = 40;

/// The values of a key in an interval.
pub struct Distribution<'a> {
    /// The name of the quantity.
    pub of: &'static str,
    /// The name of the key; `None` without `--by`.
    pub by: Option<&'static str>,
    /// The port, address or process that they belong to.
    pub key: &'a HistogramKey,
    /// The length of the interval.
    pub seconds: f64,
    /// The values, in microseconds.
    pub histogram: &'a Histogram,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum HistogramColumn {
    Time,
    Of,
    Key,
    Le,
    Count,
    UpTo,
    Bar,
}

impl ColumnSet for HistogramColumn {
    const COLUMNS: &'static [Column<Self>] = &[
        Column::time(Self::Time, Precision::Seconds),
        Column::left(Self::Of, "OF", 11),
        Column::left(Self::Key, "KEY", 15),
        Column::right(Self::Le, "UP_TO_US", 10),
        Column::right(Self::Count, "COUNT", 9),
        Column::right(Self::UpTo, "SUM_%", 6),
        Column::left(Self::Bar, "BAR", 0),
    ];
}

/// The columns of histograms.
pub(crate) type HistogramLayout = Layout<HistogramColumn>;

/// A bucket as a line of text.
struct Bucket<'a> {
    of: &'static str,
    key: &'a HistogramKey,
    le: Option<u64>,
    count: u64,
    /// The values of this bucket and of all earlier ones, in tenths of a percent of all values.
    up_to: u64,
    /// Characters of its bar.
    bar: u64,
}

impl Row for Bucket<'_> {
    type Column = HistogramColumn;

    fn cell(&self, column: HistogramColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        match column {
            HistogramColumn::Time => clock.push_time(out, at, Precision::Seconds),
            HistogramColumn::Of => out.extend_from_slice(self.of.as_bytes()),
            HistogramColumn::Key => match self.key {
                HistogramKey::All => out.extend_from_slice(b"all"),
                HistogramKey::Port(port) => push_int(out, *port),
                HistogramKey::Address(addr) => push_addr(out, *addr),
                HistogramKey::Comm(name) if name.is_empty() => out.push(b'-'),
                HistogramKey::Comm(name) => out.push_text(name),
            },
            HistogramColumn::Le => match self.le {
                Some(le) => push_int(out, le),
                None => out.extend_from_slice(b"inf"),
            },
            HistogramColumn::Count => push_int(out, self.count),
            HistogramColumn::UpTo => {
                push_int(out, self.up_to / 10);
                out.push(b'.');
                push_int(out, self.up_to % 10);
            }
            HistogramColumn::Bar => match self.bar {
                0 => out.push(b'-'),
                bar => (0..bar).for_each(|_| out.push(b'#')),
            },
        }
    }
}

impl Render for (&HistogramLayout, &Distribution<'_>) {
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (layout, distribution) = self;
        let histogram = distribution.histogram;
        let all = histogram.count().max(1);
        let most = histogram.buckets.iter().copied().max().unwrap_or(0).max(1);
        let mut below = 0;
        for (le, count) in histogram.filled() {
            below += count;
            let share = |part: u64, scale: u64, whole: u64| {
                // In 128 bits, because both factors can be large.
                let scaled = u128::from(part) * u128::from(scale) / u128::from(whole);
                u64::try_from(scaled).unwrap_or(scale)
            };
            let row = Bucket {
                of: distribution.of,
                key: distribution.key,
                le,
                count,
                up_to: share(below, 1000, all),
                // A bucket that is not empty has a bar.
                bar: share(count, BAR, most).max(u64::from(count > 0)),
            };
            layout.row(&row, out, clock, at);
        }
    }

    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let (_, distribution) = self;
        let histogram = distribution.histogram;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "histogram");
        line.name(key!("of"), distribution.of);
        line.opt_name(key!("by"), distribution.by);
        match distribution.key {
            HistogramKey::All => line.null(key!("key")),
            HistogramKey::Port(port) => line.int(key!("key"), *port),
            HistogramKey::Address(addr) => line.addr(key!("key"), *addr),
            HistogramKey::Comm(name) => line.string(key!("key"), name),
        };
        line.name(key!("unit"), UNIT);
        line.float(key!("interval_s"), distribution.seconds);
        line.int(key!("count"), histogram.count());
        line.int(key!("sum"), histogram.sum);
        line.array(key!("buckets"), |buckets| {
            for (le, count) in histogram.filled() {
                buckets.object(|bucket| {
                    bucket.opt_int(key!("le"), le);
                    bucket.int(key!("count"), count);
                });
            }
        });
        line.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;
    use crate::skel::HISTOGRAM_BUCKETS;

    fn render(
        histogram: &Histogram,
        key: &HistogramKey,
        push: impl FnOnce(&(&HistogramLayout, &Distribution<'_>), &mut Line<'_>, &mut Clock),
    ) -> String {
        let layout = HistogramLayout::of(&[]).unwrap();
        let distribution = Distribution {
            of: "handshake",
            by: Some("dport"),
            key,
            seconds: 1.0,
            histogram,
        };
        let mut clock = Clock::at_epoch();
        rendered(|out| push(&(&layout, &distribution), out, &mut clock))
    }

    fn example() -> Histogram {
        let mut it = Histogram {
            sum: 1234,
            ..Histogram::default()
        };
        it.buckets[5] = 30;
        it.buckets[7] = 60;
        it.buckets[HISTOGRAM_BUCKETS - 1] = 1;
        it
    }

    #[test]
    fn text_has_a_bar_for_each_bucket_with_values() {
        let text = render(&example(), &HistogramKey::Port(443), |it, out, clock| {
            it.text(out, clock, 0);
        });
        let words = |line: &str| -> Vec<String> {
            line.split_whitespace().skip(1).map(str::to_owned).collect()
        };
        let lines: Vec<_> = text.lines().map(words).collect();
        assert_eq!(lines.len(), HISTOGRAM_BUCKETS - 5, "{text}");
        let bar = |len: usize| "#".repeat(len);
        assert_eq!(lines[0], ["handshake", "443", "32", "30", "32.9", &bar(20)]);
        assert_eq!(lines[1], ["handshake", "443", "64", "0", "32.9", "-"]);
        assert_eq!(
            lines[2],
            ["handshake", "443", "128", "60", "98.9", &bar(40)]
        );
        assert_eq!(
            lines[HISTOGRAM_BUCKETS - 6],
            ["handshake", "443", "inf", "1", "100.0", "#"]
        );
        assert!(text.lines().all(|line| line.len() <= 110), "{text}");
    }

    #[test]
    fn json_has_all_buckets_between_the_first_and_the_last_with_values() {
        let mut short = example();
        short.buckets[HISTOGRAM_BUCKETS - 1] = 0;
        let key = HistogramKey::Comm(b"a\"b".to_vec());
        let line = render(&short, &key, |it, out, clock| it.json(out, clock, 0));
        assert_eq!(
            line,
            "{\"ts\":\"1970-01-01T00:00:00.000000000Z\",\"event\":\"histogram\",\"of\":\"handshake\",\"by\":\"dport\",\"key\":\"a\\\"b\",\"unit\":\"us\",\"interval_s\":1,\"count\":90,\"sum\":1234,\"buckets\":[{\"le\":32,\"count\":30},{\"le\":64,\"count\":0},{\"le\":128,\"count\":60}]}\n"
        );
    }
}
