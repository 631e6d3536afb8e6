//! SYNs per key: totals from the kernel, rates per interval, the busiest, and alerts. Pure.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use crate::cli::CountBy;
use crate::output::count::{Count, KeyCount};

/// What SYNs are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Source or destination.
    Address(IpAddr),
    /// Destination port.
    Port(u16),
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(addr) => addr.fmt(f),
            Self::Port(port) => port.fmt(f),
        }
    }
}

/// Counts per key. It holds as many as the table in the kernel, which is bounded.
#[derive(Debug)]
pub struct Tally {
    /// Which key.
    pub by: CountBy,
    /// How many of the busiest are shown.
    pub top: usize,
    counts: HashMap<Key, Count>,
    seconds: f64,
}

impl Tally {
    /// A tally without counts.
    pub fn new(by: CountBy, top: usize) -> Self {
        Self {
            by,
            top,
            counts: HashMap::new(),
            seconds: 1.0,
        }
    }

    /// Begins a new interval: this long has passed since the last one began.
    pub fn begin(&mut self, elapsed: Duration) {
        self.seconds = elapsed.as_secs_f64().max(1e-9);
        for count in self.counts.values_mut() {
            count.delta = 0;
            count.rate = 0.0;
        }
    }

    /// Takes a key's total from the kernel.
    pub fn count(&mut self, key: Key, total: u64) {
        let count = self.counts.entry(key).or_default();
        count.delta = total.saturating_sub(count.total);
        count.rate = count.delta as f64 / self.seconds;
        count.total = total;
    }

    /// The keys with the most SYNs in this interval, then in total.
    pub fn busiest(&self) -> Vec<KeyCount> {
        let mut all = self.counts.iter().collect::<Vec<_>>();
        let rank =
            |(key, count): &(&Key, &Count)| (std::cmp::Reverse((count.delta, count.total)), **key);
        if all.len() > self.top && self.top > 0 {
            all.select_nth_unstable_by_key(self.top - 1, rank);
        }
        all.truncate(self.top);
        all.sort_unstable_by_key(rank);
        all.into_iter()
            .map(|(key, count)| KeyCount {
                key: key.to_string(),
                count: *count,
            })
            .collect()
    }
}

/// A key that crossed the threshold.
#[derive(Clone, Debug, PartialEq)]
pub struct AlertChange {
    /// Above it, or fallen back.
    pub raised: bool,
    /// Which key.
    pub key: String,
    /// SYNs a second in this interval.
    pub rate: f64,
}

/// Which keys are above the threshold.
#[derive(Debug)]
pub struct Alerts {
    /// SYNs a second above which an alert is raised.
    pub threshold: f64,
    raised: HashSet<Key>,
}

/// An alert is cleared below this part of the threshold, so that a rate near it doesn't flap.
const CLEAR_BELOW: f64 = 0.8;

impl Alerts {
    /// No alerts yet.
    pub fn new(threshold: f64) -> Self {
        Self {
            threshold,
            raised: HashSet::new(),
        }
    }

    /// Whether a key is above the threshold now.
    pub fn any_raised(&self) -> bool {
        !self.raised.is_empty()
    }

    /// What changed with this interval, in the order of the keys.
    ///
    /// An interval that the end of the run cut short says little: two SYNs in a millisecond are no
    /// flood, and none in a millisecond is not its end. With `cut_short`, which is how long it
    /// would have been, its SYNs count as if no more had come in all of it, and nothing is cleared.
    pub fn update(&mut self, tally: &Tally, cut_short: Option<Duration>) -> Vec<AlertChange> {
        let mut changes = Vec::new();
        for (key, count) in &tally.counts {
            let is_raised = self.raised.contains(key);
            let rate = match cut_short {
                Some(whole) => count.delta as f64 / whole.as_secs_f64().max(tally.seconds),
                None => count.rate,
            };
            if !is_raised && rate > self.threshold {
                self.raised.insert(*key);
                changes.push((*key, true, rate));
            } else if is_raised && rate < self.threshold * CLEAR_BELOW && cut_short.is_none() {
                self.raised.remove(key);
                changes.push((*key, false, rate));
            }
        }
        changes.sort_unstable_by_key(|(key, ..)| *key);
        changes
            .into_iter()
            .map(|(key, raised, rate)| AlertChange {
                raised,
                key: key.to_string(),
                rate,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> Key {
        Key::Address(text.parse().unwrap())
    }

    #[test]
    fn rates_are_of_the_interval_and_totals_of_the_run() {
        let mut tally = Tally::new(CountBy::Saddr, 10);
        tally.begin(Duration::from_secs(2));
        tally.count(key("10.0.0.1"), 10);
        assert_eq!(
            tally.busiest()[0].count,
            Count {
                total: 10,
                delta: 10,
                rate: 5.0
            }
        );
        tally.begin(Duration::from_secs(1));
        tally.count(key("10.0.0.1"), 13);
        assert_eq!(
            tally.busiest()[0].count,
            Count {
                total: 13,
                delta: 3,
                rate: 3.0
            }
        );
        tally.begin(Duration::from_secs(1));
        assert_eq!(
            tally.busiest()[0].count,
            Count {
                total: 13,
                delta: 0,
                rate: 0.0
            }
        );
    }

    #[test]
    fn the_busiest_come_first_and_ties_have_an_order() {
        let mut tally = Tally::new(CountBy::Saddr, 2);
        tally.begin(Duration::from_secs(1));
        for (addr, total) in [
            ("10.0.0.3", 5),
            ("10.0.0.1", 5),
            ("10.0.0.2", 9),
            ("10.0.0.4", 1),
        ] {
            tally.count(key(addr), total);
        }
        let keys = tally
            .busiest()
            .into_iter()
            .map(|key| key.key)
            .collect::<Vec<_>>();
        assert_eq!(keys, ["10.0.0.2", "10.0.0.1"]);
    }

    #[test]
    fn an_alert_is_raised_once_and_cleared_below_the_threshold() {
        let mut tally = Tally::new(CountBy::Saddr, 1);
        let mut alerts = Alerts::new(10.0);
        let mut step = |total| {
            tally.begin(Duration::from_secs(1));
            tally.count(key("::1"), total);
            alerts
                .update(&tally, None)
                .into_iter()
                .map(|change| change.raised)
                .collect::<Vec<_>>()
        };
        assert!(step(10).is_empty());
        assert_eq!(step(21), [true]);
        assert!(step(50).is_empty());
        // 9 a second is below the threshold, but not far enough.
        assert!(step(59).is_empty());
        assert_eq!(step(66), [false]);
        assert!(step(66).is_empty());
    }

    #[test]
    fn an_interval_cut_short_raises_only_what_a_whole_one_would_and_clears_nothing() {
        let whole = Some(Duration::from_secs(2));
        let mut tally = Tally::new(CountBy::Saddr, 1);
        let mut alerts = Alerts::new(10.0);
        tally.begin(Duration::from_millis(1));
        tally.count(key("::1"), 20);
        assert!(alerts.update(&tally, whole).is_empty());
        tally.begin(Duration::from_millis(1));
        tally.count(key("::1"), 41);
        let changes = alerts.update(&tally, whole);
        assert_eq!((changes[0].raised, changes[0].rate), (true, 10.5));
        tally.begin(Duration::from_millis(1));
        assert!(alerts.update(&tally, whole).is_empty());
        assert!(alerts.any_raised());
        assert!(!alerts.update(&tally, None)[0].raised);
        assert!(!alerts.any_raised());
    }
}
