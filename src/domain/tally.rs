//! Counts per key: totals, rates per interval, the busiest keys, and alerts.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::per_second;
use crate::skel::{CountKey, LossKeyBits};

/// The keys of `syn-count --by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountBy {
    /// Source address.
    Saddr,
    /// Destination address.
    Daddr,
    /// Destination port.
    Dport,
}

impl CountBy {
    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saddr => "saddr",
            Self::Daddr => "daddr",
            Self::Dport => "dport",
        }
    }
}

/// The count of a key, or of all keys together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Since the start.
    pub total: u64,
    /// In this interval.
    pub delta: u64,
    /// Per second in this interval.
    pub rate: f64,
}

impl Count {
    /// The count after an interval of this many seconds.
    pub fn after(seconds: f64, total: u64, delta: u64) -> Self {
        Self {
            total,
            delta,
            rate: per_second(delta, seconds),
        }
    }
}

/// A key that SYNs, traffic or events are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TallyKey {
    /// Source or destination.
    Address(IpAddr),
    /// Destination port.
    Port(u16),
}

impl TallyKey {
    /// A key of the tables in the kernel that is an address or a port.
    pub fn new(raw: &CountKey) -> Self {
        // In loss-trace the upper bits have the kind of event.
        match raw.family & ((1 << LossKeyBits::LOSS_KIND_SHIFT.0) - 1) {
            4 => Self::Address(Ipv4Addr::from_bits(u32::from_be(raw.addr[0])).into()),
            6 => {
                let words = raw.addr.map(|word| u128::from(u32::from_be(word)));
                let bits = words.into_iter().fold(0, |bits, word| bits << 32 | word);
                Self::Address(Ipv6Addr::from_bits(bits).into())
            }
            _ => Self::Port(raw.port),
        }
    }
}

/// How a key is shown.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Label {
    /// By its address or port.
    Key(TallyKey),
    /// By a name, which may have any bytes.
    Name(Vec<u8>),
    /// It has no known name.
    Unknown,
}

/// How many keys have totals that are kept from one interval to the next.
const TOTALS: usize = 16_384;

/// Counts per key of an interval, and totals of the keys that were seen recently. The counts are bounded by
/// the tables in the kernel, the totals by `TOTALS`.
#[derive(Debug)]
pub struct Tally<K> {
    /// How many of the busiest are shown.
    pub top: usize,
    /// The keys that were counted in the interval, the busiest first.
    counts: Vec<(K, Count)>,
    totals: HashMap<K, u64>,
    seconds: f64,
}

impl<K: Clone + Hash + Ord> Tally<K> {
    /// A tally without counts.
    pub fn new(top: usize) -> Self {
        Self {
            top,
            counts: Vec::new(),
            totals: HashMap::new(),
            seconds: 1.0,
        }
    }

    /// Takes the keys of an interval of this length, and their counts. A key may come several times.
    pub fn take(&mut self, elapsed: Duration, keys: impl IntoIterator<Item = (K, u64)>) {
        self.seconds = elapsed.as_secs_f64();
        self.counts.clear();
        let counts = keys.into_iter().map(|(key, delta)| {
            let count = Count {
                delta,
                ..Count::default()
            };
            (key, count)
        });
        self.counts.extend(counts);
        self.counts.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        self.counts.dedup_by(|(key, count), (first, sum)| {
            let is_same = key == first;
            if is_same {
                sum.delta += count.delta;
            }
            is_same
        });
        if self.totals.len() + self.counts.len() > TOTALS {
            let counts = &self.counts;
            let is_there = |key: &K| counts.binary_search_by(|(it, _)| it.cmp(key)).is_ok();
            self.totals.retain(|key, _| is_there(key));
        }
        for (key, count) in &mut self.counts {
            let total = count.delta + self.totals.get(key).copied().unwrap_or(0);
            *count = Count::after(self.seconds, total, count.delta);
        }
        let busier = |count: &Count| Reverse((count.delta, count.total));
        // The keys are in order: of two that are as busy, the lower one stays first.
        self.counts.sort_by_key(|(_, count)| busier(count));
        for (key, count) in &self.counts {
            if let Some(total) = self.totals.get_mut(key) {
                *total = count.total;
            } else if self.totals.len() < TOTALS {
                self.totals.insert(key.clone(), count.total);
            }
        }
    }

    /// The keys with the highest counts in this interval, then in total.
    pub fn busiest(&self) -> &[(K, Count)] {
        &self.counts[..self.top.min(self.counts.len())]
    }
}

/// An alert that was raised or cleared.
#[derive(Clone, Debug, PartialEq)]
pub struct RateAlert {
    /// Raised, or else cleared.
    pub raised: bool,
    /// Which key; `None` for the total.
    pub key: Option<TallyKey>,
    /// SYNs per second in this interval.
    pub rate: f64,
}

/// The alerts that are raised: for keys, and for the total as `None`.
#[derive(Debug)]
pub struct Alerts {
    /// An alert is raised above this many SYNs per second.
    pub threshold: f64,
    raised: HashSet<Option<TallyKey>>,
}

/// An alert is cleared below this fraction of the threshold, so that it doesn't flap near it.
const CLEAR_BELOW: f64 = 0.8;

impl Alerts {
    /// No alerts yet.
    pub fn new(threshold: f64) -> Self {
        Self {
            threshold,
            raised: HashSet::new(),
        }
    }

    /// Whether any alert is raised now.
    pub fn any_raised(&self) -> bool {
        !self.raised.is_empty()
    }

    /// Raises and clears alerts after an interval with `total` SYNs. Returns the changes: the total
    /// first, then keys in order.
    ///
    /// The last interval may be cut short by the end of the run. Two SYNs in a millisecond are not
    /// a flood, and a millisecond without a SYN does not mean that a flood is over. So with `cut_short`,
    /// the full length of the interval, rates are per that length, and no alert is cleared.
    pub fn update(
        &mut self,
        total: u64,
        tally: &Tally<TallyKey>,
        cut_short: Option<Duration>,
    ) -> Vec<RateAlert> {
        let seconds = match cut_short {
            Some(whole) => whole.as_secs_f64().max(tally.seconds),
            None => tally.seconds,
        };
        let mut changes = Vec::new();
        let mut unseen = std::mem::take(&mut self.raised);
        let keys = tally.counts.iter();
        let keys = keys.map(|(key, count)| (Some(*key), count.delta));
        for (key, syns) in std::iter::once((None, total)).chain(keys) {
            let rate = per_second(syns, seconds);
            let was_raised = unseen.remove(&key);
            let is_raised = if was_raised {
                rate >= self.threshold * CLEAR_BELOW || cut_short.is_some()
            } else {
                rate > self.threshold
            };
            if is_raised {
                self.raised.insert(key);
            }
            if is_raised != was_raised {
                changes.push(RateAlert {
                    raised: is_raised,
                    key,
                    rate,
                });
            }
        }
        // These had no SYN at all.
        if cut_short.is_some() {
            self.raised.extend(unseen);
        } else {
            changes.extend(unseen.into_iter().map(|key| RateAlert {
                raised: false,
                key,
                rate: 0.0,
            }));
        }
        changes.sort_unstable_by_key(|change| change.key);
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> TallyKey {
        TallyKey::Address(text.parse().unwrap())
    }

    fn second(tally: &mut Tally<TallyKey>, keys: &[(&str, u64)]) {
        let keys = keys.iter().map(|(text, syns)| (key(text), *syns));
        tally.take(Duration::from_secs(1), keys);
    }

    #[test]
    fn rates_are_of_the_interval_and_totals_of_the_run() {
        let mut tally = Tally::new(10);
        // From two CPUs.
        let keys = [(key("10.0.0.1"), 4), (key("10.0.0.1"), 6)];
        tally.take(Duration::from_secs(2), keys);
        let count = |total, delta, rate| Count { total, delta, rate };
        assert_eq!(tally.busiest()[0].1, count(10, 10, 5.0));
        second(&mut tally, &[("10.0.0.1", 3)]);
        assert_eq!(tally.busiest()[0].1, count(13, 3, 3.0));
        // A key without SYNs is not among those of the interval, but its total is known when it is back.
        second(&mut tally, &[]);
        assert!(tally.busiest().is_empty());
        second(&mut tally, &[("10.0.0.1", 1)]);
        assert_eq!(tally.busiest()[0].1, count(14, 1, 1.0));
    }

    #[test]
    fn the_busiest_come_first_and_ties_have_an_order() {
        let mut tally = Tally::new(2);
        let keys = [
            ("10.0.0.3", 5),
            ("10.0.0.1", 5),
            ("10.0.0.2", 9),
            ("10.0.0.4", 1),
        ];
        second(&mut tally, &keys);
        let busiest = tally.busiest().iter().map(|(key, _)| *key);
        assert_eq!(
            busiest.collect::<Vec<_>>(),
            [key("10.0.0.2"), key("10.0.0.1")]
        );
    }

    #[test]
    fn totals_of_busy_keys_outlive_any_number_of_others() {
        let mut tally = Tally::new(1);
        let busy = (key("192.0.2.1"), 100);
        for interval in 0..4_u32 {
            let others = (0..50_000_u32).map(|host| {
                (
                    TallyKey::Address(IpAddr::from((host + interval * 50_000).to_be_bytes())),
                    1,
                )
            });
            tally.take(Duration::from_secs(1), others.chain([busy]));
            assert!(tally.totals.len() <= TOTALS);
            let total = u64::from(interval + 1) * 100;
            assert_eq!(tally.busiest()[0].1.total, total);
        }
    }

    #[test]
    fn an_alert_is_raised_once_and_cleared_below_the_threshold() {
        let mut tally = Tally::new(1);
        let mut alerts = Alerts::new(10.0);
        let mut step = |syns| {
            second(&mut tally, &[("::1", syns)]);
            let changes = alerts.update(1, &tally, None).into_iter();
            changes.map(|change| change.raised).collect::<Vec<_>>()
        };
        assert!(step(10).is_empty());
        assert_eq!(step(11), [true]);
        assert!(step(29).is_empty());
        // 9 a second is below the threshold, but not far enough.
        assert!(step(9).is_empty());
        assert_eq!(step(7), [false]);
        assert!(step(0).is_empty());
    }

    #[test]
    fn the_total_raises_an_alert_though_no_key_does() {
        let mut tally = Tally::new(1);
        let mut alerts = Alerts::new(10.0);
        second(&mut tally, &[("::1", 6), ("::2", 6)]);
        let total = RateAlert {
            raised: true,
            key: None,
            rate: 12.0,
        };
        assert_eq!(alerts.update(12, &tally, None), [total]);
        second(&mut tally, &[("::1", 11)]);
        // It is still above, and one key is now.
        let changes = alerts.update(11, &tally, None);
        assert_eq!((changes.len(), changes[0].key), (1, Some(key("::1"))));
        second(&mut tally, &[]);
        let cleared = alerts.update(0, &tally, None).into_iter();
        let cleared = cleared.map(|change| (change.raised, change.key));
        assert_eq!(
            cleared.collect::<Vec<_>>(),
            [(false, None), (false, Some(key("::1")))]
        );
    }

    #[test]
    fn an_interval_cut_short_raises_only_what_a_whole_one_would_and_clears_nothing() {
        let whole = Some(Duration::from_secs(2));
        let millisecond = Duration::from_millis(1);
        let mut tally = Tally::new(1);
        let mut alerts = Alerts::new(10.0);
        tally.take(millisecond, [(key("::1"), 20)]);
        assert!(alerts.update(0, &tally, whole).is_empty());
        tally.take(millisecond, [(key("::1"), 21)]);
        let changes = alerts.update(0, &tally, whole);
        assert_eq!((changes[0].raised, changes[0].rate), (true, 10.5));
        tally.take(millisecond, []);
        assert!(alerts.update(0, &tally, whole).is_empty());
        assert!(alerts.any_raised());
        assert!(!alerts.update(0, &tally, None)[0].raised);
        assert!(!alerts.any_raised());
    }
}
