//! Times: from the kernel's monotonic clock to wall-clock text.

use anyhow::{Context, Result};
use clap::ValueEnum;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};
use nix::time::{ClockId, clock_gettime};

use super::line::Line;
use super::number::{Integer, eight_digits};
pub use crate::domain::UnixNanos;

const NANOS_PER_SEC: i64 = 1_000_000_000;

/// How times are shown in the TIME column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TimeStyle {
    /// Local time of day, with the date if it is not the day of the start
    #[default]
    Local,
    /// Local date and time with UTC offset, such as 2026-01-31T12:00:00.000000+01:00
    Iso,
    /// Seconds since 1970-01-01 UTC
    Unix,
    /// Seconds since the previous line
    Delta,
}

/// Writes times as text. The text of a second is kept, because the next event is usually in the same
/// second.
pub struct Clock {
    zone: TimeZone,
    style: TimeStyle,
    /// The day on which the run began: times of other days are shown with their date.
    today: Date,
    /// The TIME column is wide enough for dates.
    has_dates: bool,
    /// The offset of UNIX time from CLOCK_MONOTONIC, in ns.
    offset: i64,
    utc: Cached<19>,
    local: Cached<19>,
    /// The offset of local time from UTC, as `iso` shows it.
    zone_text: ZoneText,
    /// The time that was shown last, for `delta`.
    previous: Option<UnixNanos>,
}

/// How exactly a time is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// To the second: intervals and findings.
    Seconds,
    /// To the microsecond: events.
    Micros,
}

/// The text of a second.
struct Cached<const N: usize> {
    /// When it began.
    start: Option<UnixNanos>,
    text: [u8; N],
    len: usize,
}

/// `+01:00`, or with seconds, which zones had long ago.
struct ZoneText {
    text: [u8; 9],
    len: usize,
}

impl Clock {
    /// A clock for this time zone.
    ///
    /// # Errors
    /// The system clock can't be read.
    pub fn new(zone: TimeZone, style: TimeStyle) -> Result<Self> {
        let mut clock = Self::starting_at(zone, style, Timestamp::now());
        clock.sync()?;
        Ok(clock)
    }

    /// For tests: a clock in UTC, of a run that began in 1970.
    #[cfg(test)]
    pub fn at_epoch() -> Self {
        Self::starting_at(TimeZone::UTC, TimeStyle::Local, Timestamp::UNIX_EPOCH)
    }

    /// A clock of a run that began at this time, not yet in step with the monotonic clock.
    fn starting_at(zone: TimeZone, style: TimeStyle, now: Timestamp) -> Self {
        Self {
            today: now.to_zoned(zone.clone()).date(),
            zone,
            style,
            has_dates: false,
            offset: 0,
            utc: Cached::new(),
            local: Cached::new(),
            zone_text: ZoneText {
                text: [b' '; 9],
                len: 0,
            },
            previous: None,
        }
    }

    /// Makes the TIME column wide enough for dates, before its title is written: most files are of
    /// another day.
    pub fn expect_dates(&mut self) {
        self.has_dates = true;
    }

    /// Reads the offset of UNIX time from the monotonic clock again: it changes when the clock is
    /// set.
    ///
    /// # Errors
    /// The system clock can't be read.
    pub fn sync(&mut self) -> Result<()> {
        /// A smaller difference comes from reading the two clocks one after the other, not from a
        /// step of the system clock. Then the offset stays, so that a time is the same in all lines.
        const NOISE: i64 = 1000;
        let nanos = |id| -> Result<i64> {
            let time = clock_gettime(id).context("failed to read the clock")?;
            Ok(time.tv_sec() * NANOS_PER_SEC + time.tv_nsec())
        };
        let before = nanos(ClockId::CLOCK_MONOTONIC)?;
        let real = nanos(ClockId::CLOCK_REALTIME)?;
        let took = nanos(ClockId::CLOCK_MONOTONIC)? - before;
        let offset = real - before - took / 2;
        if (offset - self.offset).abs() > took.max(NOISE) {
            self.offset = offset;
        }
        Ok(())
    }

    /// UNIX time of an event's CLOCK_MONOTONIC time.
    pub fn unix(&self, monotonic_ns: u64) -> UnixNanos {
        i64::try_from(monotonic_ns)
            .unwrap_or(i64::MAX)
            .saturating_add(self.offset)
    }

    /// The time zone of local times.
    pub fn zone(&self) -> &TimeZone {
        &self.zone
    }

    /// UNIX time now.
    pub fn now(&self) -> UnixNanos {
        i64::try_from(Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
    }

    /// Appends the time as in JSON: RFC 3339 in UTC with nanoseconds.
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

    /// Appends the value of the TIME column.
    #[inline(always)]
    pub fn push_time(&mut self, out: &mut Line<'_>, at: UnixNanos, precision: Precision) {
        match self.style {
            TimeStyle::Local | TimeStyle::Iso => self.push_local(out, at, precision),
            TimeStyle::Unix => push_seconds(out, at, precision),
            TimeStyle::Delta => {
                let previous = self.previous.replace(at).unwrap_or(at);
                push_seconds(out, at.saturating_sub(previous), Precision::Micros);
            }
        }
    }

    /// The width of the TIME column.
    #[inline(always)]
    pub fn width(&self, precision: Precision) -> usize {
        let fraction = match precision {
            Precision::Seconds => 0,
            Precision::Micros => ".000000".len(),
        };
        match self.style {
            TimeStyle::Local if self.has_dates => "2026-01-31T12:00:00".len() + fraction,
            TimeStyle::Local => "12:00:00".len() + fraction,
            TimeStyle::Iso => "2026-01-31T12:00:00+01:00".len() + fraction,
            TimeStyle::Unix => "1769860800".len() + fraction,
            TimeStyle::Delta => "-100.000000".len(),
        }
    }

    #[inline(always)]
    fn push_local(&mut self, out: &mut Line<'_>, at: UnixNanos, precision: Precision) {
        let Self {
            zone,
            style,
            today,
            zone_text,
            local,
            ..
        } = self;
        let nanos = local.nanos(at, |time| {
            let time = time.to_zoned(zone.clone());
            *zone_text = ZoneText::new(*style, &time);
            let format = if *style == TimeStyle::Iso || time.date() != *today {
                "%Y-%m-%dT%H:%M:%S"
            } else {
                "%H:%M:%S"
            };
            time.strftime(format).to_string()
        });
        out.put(local.text, local.len);
        if precision == Precision::Micros {
            push_micros(out, nanos);
        }
        out.put(zone_text.text, zone_text.len);
    }
}

impl ZoneText {
    fn new(style: TimeStyle, time: &Zoned) -> Self {
        let mut zone = Self {
            text: [b' '; 9],
            len: 0,
        };
        if style == TimeStyle::Iso {
            zone.len = fill(&mut zone.text, &time.strftime("%:z").to_string());
        }
        zone
    }
}

/// Appends a point and the microseconds of these nanoseconds.
#[inline(always)]
fn push_micros(out: &mut Line<'_>, nanos: u32) {
    out.push(b'.');
    // The first two of eight digits are 0.
    out.put((eight_digits(nanos / 1000) >> 16).to_le_bytes(), 6);
}

/// Appends nanoseconds as seconds.
fn push_seconds(out: &mut Line<'_>, nanos: i64, precision: Precision) {
    if nanos < 0 {
        out.push(b'-');
    }
    let nanos = nanos.unsigned_abs();
    let second = NANOS_PER_SEC.unsigned_abs();
    (nanos / second).push(out);
    if precision == Precision::Micros {
        push_micros(out, (nanos % second) as u32);
    }
}

/// Copies as much of a string as fits into an array. Returns how many bytes that is.
fn fill(to: &mut [u8], text: &str) -> usize {
    let len = text.len().min(to.len());
    to[..len].copy_from_slice(&text.as_bytes()[..len]);
    len
}

impl<const N: usize> Cached<N> {
    fn new() -> Self {
        Self {
            start: None,
            text: [b' '; N],
            len: 0,
        }
    }

    /// Makes `text` the text of the second that this time is in. Returns the nanoseconds since the
    /// beginning of that second.
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
        // `None` if the second begins before the smallest time: then its text is not kept.
        self.start = at.checked_sub(nanos);
        // An i64 of nanoseconds is always within a Timestamp's range, and its year has four digits.
        let second = Timestamp::from_second(at.div_euclid(NANOS_PER_SEC));
        let text = format(second.unwrap_or(Timestamp::UNIX_EPOCH));
        self.len = fill(&mut self.text, &text);
        nanos as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::line::rendered;

    fn rfc3339(at: UnixNanos) -> String {
        let mut clock = utc(TimeStyle::Local);
        rendered(|out| clock.push_rfc3339(out, at))
    }

    #[test]
    fn a_time_does_not_change_by_reading_the_clocks_again() {
        let mut clock = Clock::new(TimeZone::UTC, TimeStyle::Local).unwrap();
        let mut changes = 0;
        for _ in 0..1000 {
            let before = clock.unix(0);
            clock.sync().unwrap();
            changes += u32::from(clock.unix(0) != before);
        }
        // A busy machine may interrupt a reading.
        assert!(changes < 50, "{changes}");
    }

    #[test]
    fn no_time_is_taken_for_one_of_the_cached_second() {
        let times = [i64::MIN, i64::MAX, i64::MIN + 1, -1, 0, i64::MAX - 1];
        for first in times {
            for second in times {
                let mut clock = utc(TimeStyle::Local);
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

    const DAY: UnixNanos = 86_400 * NANOS_PER_SEC;

    fn clock(zone: TimeZone, style: TimeStyle) -> Clock {
        Clock::starting_at(zone, style, Timestamp::UNIX_EPOCH)
    }

    fn utc(style: TimeStyle) -> Clock {
        clock(TimeZone::UTC, style)
    }

    /// The TIME column of some events.
    fn column(clock: &mut Clock, precision: Precision, times: &[UnixNanos]) -> Vec<String> {
        let text = |at| rendered(|out| clock.push_time(out, at, precision));
        times.iter().copied().map(text).collect()
    }

    #[test]
    fn times_of_the_day_of_the_start_are_local_and_have_no_date() {
        let mut clock = clock(TimeZone::fixed(jiff::tz::offset(2)), TimeStyle::Local);
        let times = [42_999, 22 * 3600 * NANOS_PER_SEC - 1];
        assert_eq!(
            column(&mut clock, Precision::Micros, &times),
            ["02:00:00.000042", "23:59:59.999999"]
        );
        assert_eq!(
            column(&mut clock, Precision::Seconds, &times),
            ["02:00:00", "23:59:59"]
        );
    }

    #[test]
    fn times_of_another_day_have_their_date() {
        let mut clock = utc(TimeStyle::Local);
        let times = [DAY - 1, DAY, DAY + 1000, -1, 0];
        assert_eq!(
            column(&mut clock, Precision::Micros, &times),
            [
                "23:59:59.999999",
                "1970-01-02T00:00:00.000000",
                "1970-01-02T00:00:00.000001",
                "1969-12-31T23:59:59.999999",
                "00:00:00.000000",
            ]
        );
    }

    #[test]
    fn iso_times_have_date_and_offset() {
        let mut clock = clock(TimeZone::fixed(-jiff::tz::offset(3)), TimeStyle::Iso);
        let times = [0, DAY];
        assert_eq!(
            column(&mut clock, Precision::Micros, &times),
            [
                "1969-12-31T21:00:00.000000-03:00",
                "1970-01-01T21:00:00.000000-03:00"
            ]
        );
        assert_eq!(
            column(&mut clock, Precision::Seconds, &times)[0],
            "1969-12-31T21:00:00-03:00"
        );
    }

    #[test]
    fn unix_times_are_seconds_since_1970() {
        let times = [1_764_000_000_000_042_999, -1000, -1_500_000_000, 0];
        assert_eq!(
            column(&mut utc(TimeStyle::Unix), Precision::Micros, &times),
            ["1764000000.000042", "-0.000001", "-1.500000", "0.000000"]
        );
        assert_eq!(
            column(&mut utc(TimeStyle::Unix), Precision::Seconds, &times)[0],
            "1764000000"
        );
    }

    #[test]
    fn a_delta_is_the_time_since_the_previous_line() {
        let times = [5_000, 1_500_005_000, 1_500_004_000, i64::MAX, i64::MIN];
        assert_eq!(
            column(&mut utc(TimeStyle::Delta), Precision::Micros, &times),
            [
                "0.000000",
                "1.500000",
                "-0.000001",
                "9223372035.354771",
                "-9223372036.854775",
            ]
        );
    }

    #[test]
    fn a_time_is_as_wide_as_its_column() {
        for style in [TimeStyle::Local, TimeStyle::Iso, TimeStyle::Unix] {
            for precision in [Precision::Seconds, Precision::Micros] {
                for dates in [false, true] {
                    let mut clock = utc(style);
                    let mut at = 1_764_000_000_000_042_999;
                    if dates {
                        clock.expect_dates();
                    } else if style == TimeStyle::Local {
                        at = 0;
                    }
                    let width = clock.width(precision);
                    let time = rendered(|out| clock.push_time(out, at, precision));
                    assert_eq!(time.len(), width, "{style:?} {precision:?}: {time:?}");
                }
            }
        }
    }

    #[test]
    fn a_new_second_is_not_the_cached_one() {
        let mut clock = utc(TimeStyle::Local);
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
