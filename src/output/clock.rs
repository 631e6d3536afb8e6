//! Times: from the kernel's monotonic clock to wall-clock text.

use anyhow::{Context, Result};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use nix::time::{ClockId, clock_gettime};

use super::line::Line;
use super::number::eight_digits;

const NANOS_PER_SEC: i64 = 1_000_000_000;

/// Nanoseconds since the UNIX epoch.
pub type UnixNanos = i64;

/// Writes times as text. The seconds are kept as text, for most events share them.
pub struct Clock {
    zone: TimeZone,
    /// What must be added to CLOCK_MONOTONIC to get UNIX time, in ns.
    offset: i64,
    utc: Cached<19>,
    local: Cached<8>,
}

/// The text of a second.
struct Cached<const N: usize> {
    /// When it began.
    start: Option<UnixNanos>,
    text: [u8; N],
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
            utc: Cached::new(),
            local: Cached::new(),
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
    #[inline(always)]
    pub fn push_rfc3339(&mut self, out: &mut Line<'_>, at: UnixNanos) {
        let nanos = self
            .utc
            .nanos(at, |time| time.strftime("%Y-%m-%dT%H:%M:%S").to_string());
        out.put(self.utc.text, 19);
        let (first, rest) = (nanos / 100_000_000, nanos % 100_000_000);
        out.put([b'.', b'0' + first as u8], 2);
        out.put(eight_digits(rest).to_le_bytes(), 8);
        out.push(b'Z');
    }

    /// Appends local time of day with microseconds, as events have it in text.
    #[inline(always)]
    pub fn push_local_micros(&mut self, out: &mut Line<'_>, at: UnixNanos) {
        let nanos = self.push_local(out, at);
        out.push(b'.');
        // The first two of eight digits are 0.
        out.put((eight_digits(nanos / 1000) >> 16).to_le_bytes(), 6);
    }

    /// Appends local time of day to the second, and returns the nanoseconds that are left.
    #[inline(always)]
    pub fn push_local(&mut self, out: &mut Line<'_>, at: UnixNanos) -> u32 {
        let zone = &self.zone;
        let nanos = self.local.nanos(at, |time| {
            time.to_zoned(zone.clone()).strftime("%H:%M:%S").to_string()
        });
        out.put(self.local.text, 8);
        nanos
    }
}

impl<const N: usize> Cached<N> {
    fn new() -> Self {
        Self {
            start: None,
            text: [b' '; N],
        }
    }

    /// Nanoseconds since the beginning of the second, of which `text` then has the text.
    #[inline(always)]
    fn nanos(&mut self, at: UnixNanos, format: impl FnOnce(Timestamp) -> String) -> u32 {
        let nanos = self.start.and_then(|start| at.checked_sub(start));
        match nanos {
            Some(nanos @ 0..NANOS_PER_SEC) => nanos as u32,
            _ => self.renew(at, format),
        }
    }

    #[cold]
    #[inline(never)]
    fn renew(&mut self, at: UnixNanos, format: impl FnOnce(Timestamp) -> String) -> u32 {
        let nanos = at.rem_euclid(NANOS_PER_SEC);
        // The first second that there may be begins before all times: it is not kept.
        self.start = at.checked_sub(nanos);
        // An i64 of nanoseconds is always within a Timestamp's range, and its year has four digits.
        let second = Timestamp::from_second(at.div_euclid(NANOS_PER_SEC));
        let text = format(second.unwrap_or(Timestamp::UNIX_EPOCH));
        for (to, from) in self.text.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        nanos as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    fn rfc3339(at: UnixNanos) -> String {
        let mut clock = Clock::with_zone(TimeZone::UTC);
        rendered(|out| clock.push_rfc3339(out, at))
    }

    #[test]
    fn no_time_is_taken_for_one_of_the_second_before() {
        let times = [i64::MIN, i64::MAX, i64::MIN + 1, -1, 0, i64::MAX - 1];
        for first in times {
            for second in times {
                let mut clock = Clock::with_zone(TimeZone::UTC);
                rendered(|out| clock.push_rfc3339(out, first));
                let text = rendered(|out| clock.push_rfc3339(out, second));
                assert_eq!(text, rfc3339(second), "{second} after {first}");
            }
        }
    }

    #[test]
    fn json_times_are_utc_with_nanoseconds() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(
            rfc3339(1_764_000_000_000_000_007),
            "2025-11-24T16:00:00.000000007Z"
        );
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999999999Z");
        assert_eq!(rfc3339(i64::MAX), "2262-04-11T23:47:16.854775807Z");
        assert_eq!(rfc3339(i64::MIN), "1677-09-21T00:12:43.145224192Z");
    }

    #[test]
    fn text_times_are_local_with_microseconds() {
        let mut clock = Clock::with_zone(TimeZone::fixed(jiff::tz::offset(2)));
        let out = rendered(|out| clock.push_local_micros(out, 1_764_000_000_000_042_999));
        assert_eq!(out, "18:00:00.000042");
    }

    #[test]
    fn a_new_second_is_not_the_cached_one() {
        let mut clock = Clock::with_zone(TimeZone::UTC);
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (61 * NANOS_PER_SEC, "1970-01-01T00:01:01.000000000Z"),
            (61 * NANOS_PER_SEC - 1, "1970-01-01T00:01:00.999999999Z"),
            (62 * NANOS_PER_SEC - 1, "1970-01-01T00:01:01.999999999Z"),
            (i64::MIN, "1677-09-21T00:12:43.145224192Z"),
            (i64::MIN + 1, "1677-09-21T00:12:43.145224193Z"),
        ] {
            assert_eq!(rendered(|out| clock.push_rfc3339(out, at)), text);
        }
    }
}
