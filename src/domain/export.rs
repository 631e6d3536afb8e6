//! Counts that tracing programs keep for the exporter, instead of sending events.

use crate::skel::{EXPORT_BUCKETS, ExportHistogram, ExportKey, ExportTimeOf};

/// The times of which there is a histogram.
pub const TIMES: [ExportTimeOf; 5] = [
    ExportTimeOf::EXPORT_HANDSHAKE,
    ExportTimeOf::EXPORT_ACCEPT_WAIT,
    ExportTimeOf::EXPORT_CONNECT,
    ExportTimeOf::EXPORT_DURATION,
    ExportTimeOf::EXPORT_RTT,
];
const _: () = assert!(TIMES.len() as u32 == ExportTimeOf::EXPORT_TIMES.0);

/// How often events happened, and how long they took.
#[derive(Clone, Debug, Default)]
pub struct ExportCounts {
    /// Events by kind, detail and reason.
    pub events: Vec<(ExportKey, u64)>,
    /// Events that were not counted, because there was no room for their key.
    pub uncounted: u64,
    /// The histogram of each kind of time.
    pub histograms: Vec<(ExportTimeOf, TimeHistogram)>,
}

impl ExportCounts {
    /// The histogram of these times.
    pub fn histogram(&self, of: ExportTimeOf) -> TimeHistogram {
        let mut known = self.histograms.iter();
        known
            .find(|(known, _)| *known == of)
            .map_or_else(TimeHistogram::default, |(_, histogram)| *histogram)
    }

    /// The events of one kind.
    pub fn of_kind(&self, kind: u32) -> impl Iterator<Item = &(ExportKey, u64)> {
        let is_it = move |(key, _): &&(ExportKey, u64)| u32::from(key.kind) == kind;
        self.events.iter().filter(is_it)
    }
}

/// How many times fall into each bucket.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TimeHistogram {
    /// By upper bound, in seconds. The last bucket has no bound.
    pub buckets: [u64; EXPORT_BUCKETS],
    /// The sum of all times, in seconds.
    pub sum: f64,
}

impl TimeHistogram {
    /// The upper bound of a bucket in seconds; `None` for the last one.
    pub fn bound(bucket: usize) -> Option<f64> {
        (bucket + 1 < EXPORT_BUCKETS).then(|| (1_u64 << bucket) as f64 / 1e6)
    }
}

impl From<&ExportHistogram> for TimeHistogram {
    fn from(raw: &ExportHistogram) -> Self {
        Self {
            buckets: raw.buckets,
            sum: raw.sum_ns as f64 / 1e9,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_from_a_microsecond_to_a_minute() {
        assert_eq!(TimeHistogram::bound(0), Some(1e-6));
        assert_eq!(TimeHistogram::bound(20), Some(1.048_576));
        assert_eq!(TimeHistogram::bound(26), Some(67.108_864));
        assert_eq!(TimeHistogram::bound(27), None);
    }
}
