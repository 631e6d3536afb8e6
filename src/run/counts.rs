//! `--by` of the commands that trace: reads the counts by key of each interval, and writes them.

use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::domain::tally::{Count, Label, Tally};
use crate::notice::Notices;
use crate::output::counts::{CountsLayout, IntervalCounts};
use crate::run::session::{Session, next_due};
use crate::skel::CountKey;
use crate::sys::key_tables::KeyTables;
use crate::sys::link;

/// The notice that keys found no room.
pub(crate) const TABLES_ARE_FULL: &str = "more keys than the tables hold: the least busy ones are counted in the total only, as untracked";

/// Counts by key in intervals. The programs write to one of two tables, while the other one is read.
pub(crate) struct IntervalCounter<K> {
    /// The keys of the last interval.
    pub tally: Tally<K>,
    /// Which of the two tables the programs write to.
    open: u32,
    /// The number of events before this interval.
    last: u64,
    /// The user was notified that keys found no room.
    is_full: bool,
}

impl<K: Clone + Hash + Ord> IntervalCounter<K> {
    /// Starts with empty tables. `top` keys are shown in each interval.
    pub fn new(top: usize) -> Self {
        Self {
            tally: Tally::new(top),
            open: 0,
            last: 0,
            is_full: false,
        }
    }

    /// Makes the programs write to the other table, by `open`, and returns the previous one. They may
    /// still write to that until [`link::synchronize`].
    pub fn switch(&mut self, open: impl FnOnce(u32)) -> u32 {
        let closed = self.open;
        self.open ^= 1;
        open(self.open);
        closed
    }

    /// Takes the keys of an interval, at the end of which there were `total` events.
    pub fn take(
        &mut self,
        elapsed: Duration,
        total: u64,
        keys: impl IntoIterator<Item = (K, u64)>,
    ) -> Count {
        self.tally.take(elapsed, keys);
        let delta = total - self.last;
        self.last = total;
        Count::after(elapsed.as_secs_f64(), total, delta)
    }

    /// Says once that keys found no room.
    pub fn notify_if_full(&mut self, notices: Notices, untracked: u64, what: &str) {
        if untracked > 0 && !self.is_full {
            self.is_full = true;
            notices.notice(what);
        }
    }
}

/// The counts by key of a run.
pub(crate) struct KeyCounts<'a> {
    /// Writes them.
    pub layout: &'a CountsLayout,
    /// The name of the event in JSON.
    pub event: &'static str,
    /// The name of the key, as given to `--by`.
    pub by: &'static str,
    tables: KeyTables,
    counter: IntervalCounter<(&'static str, Label)>,
    interval: Duration,
    started: Instant,
    due: Instant,
    /// An interval was written.
    is_begun: bool,
}

impl<'a> KeyCounts<'a> {
    /// Starts with empty tables. `top` keys are shown in each interval.
    pub fn new(
        layout: &'a CountsLayout,
        (event, by): (&'static str, &'static str),
        tables: KeyTables,
        interval: Duration,
        top: usize,
    ) -> Self {
        let started = Instant::now();
        Self {
            layout,
            event,
            by,
            tables,
            counter: IntervalCounter::new(top),
            interval,
            started,
            due: started + interval,
            is_begun: false,
        }
    }

    /// When the interval ends.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Ends the interval: makes the programs write to the other table, and reads the one that they
    /// wrote to before.
    ///
    /// `open_tables` are the variables that tell the programs which table to write to. `figures`
    /// reads the number of all events, and of those whose key found no room. `label` names a key
    /// and the kind of event.
    pub fn report(
        &mut self,
        session: &mut Session,
        open_tables: Vec<&mut u32>,
        figures: impl FnOnce() -> (u64, u64),
        mut label: impl FnMut(&CountKey) -> (&'static str, Label),
    ) {
        let elapsed = self.started.elapsed();
        self.started = Instant::now();
        self.due = next_due(self.due, self.interval);
        let at = session.clock.now();
        let closed = self.counter.switch(|table| {
            for open_table in open_tables {
                crate::skel::open_table(open_table, table);
            }
        });
        link::synchronize();
        let (total, untracked) = figures();
        let mut found = Vec::new();
        self.tables.take(closed, |key, count| {
            found.push((label(key), count));
        });
        let is_empty = found.is_empty();
        let count = self.counter.take(elapsed, total, found);
        // The run may end right after an interval. An event that is counted while an interval ends
        // can be in its total, and in the counts by key of the next one.
        if count.delta == 0 && is_empty && session.is_over() && self.is_begun {
            return;
        }
        self.is_begun = true;
        let counts = IntervalCounts {
            layout: self.layout,
            event: self.event,
            seconds: elapsed.as_secs_f64(),
            count,
            by: self.by,
            top: self.counter.tally.busiest(),
            untracked,
        };
        session.write(at, &counts);
        session.flush();
        self.counter
            .notify_if_full(session.notices, untracked, TABLES_ARE_FULL);
    }
}
