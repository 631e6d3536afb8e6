//! Times: from the kernel's monotonic clock to wall-clock text.

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::time::{ClockId, clock_gettime};

const NANOS_PER_SEC: i64 = 1_000_000_000;

/// Nanoseconds since the UNIX epoch.
pub type UnixNanos = i64;

/// Writes times as text. The seconds are kept as text, for most events share them.
pub struct Clock {
    zone: TimeZone,
    /// What must be added to CLOCK_MONOTONIC to get UNIX time, in ns.
    offset: i64,
    utc: Cached,
    local: Cached,
}

#[derive(Default)]
struct Cached {
    second: Option<i64>,
    text: String,
}

impl Clock {
    /// A clock for this host's time zone.
    ///
    /// # Errors
    /// The system clock can't be read.
    pub fn new() -> Result<Self> {
        let mut clock = Self::with_zone(TimeZone::system());
        clock.sync()?;
        Ok(clock)
    }

    /// A clock for a certain zone, not yet in step with the monotonic clock.
    pub fn with_zone(zone: TimeZone) -> Self {
        Self {
            zone,
            offset: 0,
            utc: Cached::default(),
            local: Cached::default(),
        }
    }

    /// Reads anew how far UNIX time is from the monotonic clock: it moves when somebody sets it.
    ///
    /// # Errors
    /// The system clock can't be read.
    pub fn sync(&mut self) -> Result<()> {
        let nanos = |id| -> Result<i64> {
            let time = clock_gettime(id).context("failed to read the clock")?;
            Ok(time.tv_sec() * NANOS_PER_SEC + time.tv_nsec())
        };
        self.offset = nanos(ClockId::CLOCK_REALTIME)? - nanos(ClockId::CLOCK_MONOTONIC)?;
        Ok(())
    }

    /// UNIX time of an event's CLOCK_MONOTONIC time.
    pub fn unix(&self, monotonic_ns: u64) -> UnixNanos {
        i64::try_from(monotonic_ns)
            .unwrap_or(i64::MAX)
            .saturating_add(self.offset)
    }

    /// UNIX time now.
    pub fn now(&self) -> UnixNanos {
        i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// Appends RFC 3339 in UTC with nanoseconds, as JSON has it.
    pub fn push_rfc3339(&mut self, out: &mut Vec<u8>, at: UnixNanos) {
        let (second, nanos) = split(at);
        let text = self.utc.get(second, |time| {
            time.strftime("%Y-%m-%dT%H:%M:%S").to_string()
        });
        out.extend_from_slice(text.as_bytes());
        out.push(b'.');
        push_padded::<9>(out, nanos);
        out.push(b'Z');
    }

    /// Appends local time of day with microseconds, as events have it in text.
    pub fn push_local_micros(&mut self, out: &mut Vec<u8>, at: UnixNanos) {
        let nanos = self.push_local(out, at);
        out.push(b'.');
        push_padded::<6>(out, nanos / 1000);
    }

    /// Appends local time of day to the second, and returns the nanoseconds that are left.
    pub fn push_local(&mut self, out: &mut Vec<u8>, at: UnixNanos) -> u32 {
        let (second, nanos) = split(at);
        let zone = &self.zone;
        let text = self.local.get(second, |time| {
            time.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string()
        });
        out.extend_from_slice(text.as_bytes());
        nanos
    }
}

impl Cached {
    fn get(&mut self, second: i64, format: impl FnOnce(Timestamp) -> String) -> &str {
        if self.second != Some(second) {
            self.second = Some(second);
            // An i64 of nanoseconds is always within a Timestamp's range.
            self.text = format(Timestamp::from_second(second).unwrap_or(Timestamp::UNIX_EPOCH));
        }
        &self.text
    }
}

/// Whole seconds, and the nanoseconds that are left.
fn split(at: UnixNanos) -> (i64, u32) {
    let nanos = at.rem_euclid(NANOS_PER_SEC);
    (at.div_euclid(NANOS_PER_SEC), nanos as u32)
}

/// Appends the last `N` digits of a number.
fn push_padded<const N: usize>(out: &mut Vec<u8>, mut value: u32) {
    let mut digits = [b'0'; N];
    for digit in digits.iter_mut().rev() {
        *digit += (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&digits);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rfc3339(at: UnixNanos) -> String {
        let mut out = Vec::new();
        Clock::with_zone(TimeZone::UTC).push_rfc3339(&mut out, at);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn json_times_are_utc_with_nanoseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            rfc3339(1_764_000_000_000_000_007),
            "2025-11-24T16:00:00.000000007Z"
        );
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999999Z");
        rfc3339(i64::MAX);
        rfc3339(i64::MIN);
    }

    #[test]
    fn text_times_are_local_with_microseconds() {
        let mut clock = Clock::with_zone(TimeZone::fixed(jiff::tz::offset(2)));
        let mut out = Vec::new();
        clock.push_local_micros(&mut out, 1_764_000_000_000_042_999);
        assert_eq!(out, b"18:00:00.000042");
    }

    #[test]
    fn a_new_second_is_not_the_cached_one() {
        let mut clock = Clock::with_zone(TimeZone::UTC);
        let mut out = Vec::new();
        clock.push_rfc3339(&mut out, 0);
        out.clear();
        clock.push_rfc3339(&mut out, 61 * NANOS_PER_SEC);
        assert_eq!(out, b"1970-01-01T00:01:01.000000000Z");
    }
}
