//! Distributions of times by key, as the programs count them.

use std::net::{IpAddr, Ipv6Addr};

use super::until_nul;
use crate::skel::{HISTOGRAM_BUCKETS, RawHistogram, RawHistogramKey};

/// A key of a histogram.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HistogramKey {
    /// All values together.
    All,
    /// Destination port.
    Port(u16),
    /// An address.
    Address(IpAddr),
    /// Process name.
    Comm(Vec<u8>),
}

/// The kind of key that the histograms of a run have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HistogramBy {
    /// No key: all values together.
    Nothing,
    /// Destination port.
    Dport,
    /// Destination address.
    Daddr,
    /// Thread name.
    Comm,
    /// Process name.
    Process,
}

impl HistogramBy {
    /// The name in JSON.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Dport => Some("dport"),
            Self::Daddr => Some("daddr"),
            Self::Comm => Some("comm"),
            Self::Process => Some("process"),
        }
    }

    /// Decodes a key.
    pub fn key(self, raw: &RawHistogramKey) -> HistogramKey {
        let bytes = &raw.bytes;
        match self {
            Self::Nothing => HistogramKey::All,
            Self::Dport => HistogramKey::Port(u16::from_ne_bytes([bytes[0], bytes[1]])),
            Self::Daddr => HistogramKey::Address(Ipv6Addr::from(*bytes).to_canonical()),
            Self::Comm | Self::Process => HistogramKey::Comm(until_nul(bytes).to_vec()),
        }
    }
}

/// A histogram with power-of-two buckets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    /// The sum of all values.
    pub sum: u64,
    /// Values by size: bucket N has those up to 2^N that are not in an earlier bucket.
    pub buckets: [u64; HISTOGRAM_BUCKETS],
}

impl Histogram {
    /// As the programs counted it.
    pub fn new(raw: &RawHistogram) -> Self {
        Self {
            sum: raw.sum,
            buckets: raw.buckets,
        }
    }

    /// Counts a value, as `histogram_add()` of the programs does.
    pub fn add(&mut self, value: u64) {
        let bucket = u64::BITS - value.saturating_sub(1).leading_zeros();
        self.sum += value;
        self.buckets[(bucket as usize).min(HISTOGRAM_BUCKETS - 1)] += 1;
    }

    /// The number of all values.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// The values that were added since `earlier`.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut since = self.clone();
        since.sum -= earlier.sum;
        for (bucket, before) in since.buckets.iter_mut().zip(earlier.buckets) {
            *bucket -= before;
        }
        since
    }

    /// The upper bound of each bucket, and how many values it has, from the first bucket that is not
    /// empty to the last. The last of all buckets has no upper bound.
    pub fn filled(&self) -> impl Iterator<Item = (Option<u64>, u64)> {
        let has_any = |count: &u64| *count > 0;
        let first = self
            .buckets
            .iter()
            .position(has_any)
            .unwrap_or(HISTOGRAM_BUCKETS);
        let end = self
            .buckets
            .iter()
            .rposition(has_any)
            .map_or(0, |at| at + 1);
        let buckets = self.buckets.iter().enumerate().take(end).skip(first);
        buckets.map(|(at, count)| ((at + 1 < HISTOGRAM_BUCKETS).then(|| 1 << at), *count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::octets;

    fn histogram(filled: &[(usize, u64)]) -> Histogram {
        let mut it = Histogram::default();
        for (at, count) in filled {
            it.buckets[*at] = *count;
            it.sum += count << at;
        }
        it
    }

    #[test]
    fn buckets_are_listed_from_the_first_with_values_to_the_last() {
        let filled = histogram(&[(3, 5), (5, 1)]);
        let listed: Vec<_> = filled.filled().collect();
        assert_eq!(listed, [(Some(8), 5), (Some(16), 0), (Some(32), 1)]);
        assert_eq!(filled.count(), 6);
        assert_eq!(Histogram::default().filled().count(), 0);
        let last = histogram(&[(HISTOGRAM_BUCKETS - 1, 1)]);
        assert_eq!(last.filled().collect::<Vec<_>>(), [(None, 1)]);
    }

    #[test]
    fn a_value_counts_in_the_first_bucket_that_is_large_enough() {
        for (value, bucket) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 2),
            (4, 2),
            (5, 3),
            (u64::MAX, 31),
        ] {
            let mut it = Histogram::default();
            it.add(value);
            assert_eq!(
                it.buckets.iter().position(|count| *count == 1),
                Some(bucket),
                "{value}"
            );
            assert_eq!(it.sum, value);
        }
    }

    #[test]
    fn an_interval_has_what_was_added_in_it() {
        let (before, now) = (histogram(&[(3, 5)]), histogram(&[(3, 6), (4, 2)]));
        assert_eq!(now.since(&before), histogram(&[(3, 1), (4, 2)]));
    }

    #[test]
    fn keys_are_ports_addresses_or_names() {
        let mut raw = RawHistogramKey::default();
        raw.bytes[..2].copy_from_slice(&443_u16.to_ne_bytes());
        assert_eq!(HistogramBy::Dport.key(&raw), HistogramKey::Port(443));
        raw.bytes[..5].copy_from_slice(b"nginx");
        assert_eq!(
            HistogramBy::Comm.key(&raw),
            HistogramKey::Comm(b"nginx".to_vec())
        );
        assert_eq!(
            HistogramBy::Process.key(&raw),
            HistogramKey::Comm(b"nginx".to_vec())
        );
        assert_eq!(HistogramBy::Nothing.key(&raw), HistogramKey::All);
        for addr in ["192.0.2.1", "2001:db8::1", "::1"] {
            let addr: IpAddr = addr.parse().unwrap();
            raw.bytes = octets(addr);
            assert_eq!(HistogramBy::Daddr.key(&raw), HistogramKey::Address(addr));
        }
    }
}
