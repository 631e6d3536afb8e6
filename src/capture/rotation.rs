//! `-C`, `-G` and `-W`: when a new capture file begins, and its name. Both are as with tcpdump.

use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::Timestamp;
use jiff::fmt::strtime;
use jiff::tz::TimeZone;

use crate::domain::UnixNanos;
use crate::failure::Failure;

/// When a new file begins, and how many files there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `-C`: a file that has more bytes than this gets no more packets.
    pub bytes: Option<u64>,
    /// `-G`: for how long packets go into one file.
    pub period: Option<Duration>,
    /// `-W`: with `-C`, how many files are written in turn; with `-G` alone, after how many files
    /// the run ends.
    pub files: Option<u32>,
}

impl Limits {
    /// Whether there can be more than one file.
    pub fn rotates(&self) -> bool {
        self.bytes.is_some() || self.period.is_some()
    }
}

/// Whether a packet begins a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotate {
    /// No: it goes into the current file.
    No,
    /// Yes: it goes into the next file.
    Yes,
    /// The run ends: this packet and all later ones are not written.
    Stop,
}

/// Names the files and counts them.
pub struct Rotation {
    path: PathBuf,
    limits: Limits,
    zone: TimeZone,
    /// The number that is appended to the name.
    number: u32,
    /// When the period began.
    began: UnixNanos,
    /// Periods that have ended.
    periods: u32,
}

impl Rotation {
    /// Names files after this path. `now` is used to check that the name is valid.
    ///
    /// # Errors
    /// With `-G`, the name is not UTF-8 or not a valid format of strftime(3), or the directory has
    /// a `%`.
    pub fn new(
        path: &Path,
        limits: Limits,
        zone: TimeZone,
        now: UnixNanos,
    ) -> Result<Self, Failure> {
        let directory = path.parent().unwrap_or(Path::new(""));
        if limits.period.is_some() && directory.to_string_lossy().contains('%') {
            return Err(Failure::usage(format!(
                "the directory {} has a %, and with -G only the name of the file can have a time",
                directory.display()
            )));
        }
        let rotation = Self {
            path: path.to_owned(),
            limits,
            zone,
            number: 0,
            began: now,
            periods: 0,
        };
        rotation.name()?;
        Ok(rotation)
    }

    /// Begins the first period.
    pub fn begin(&mut self, now: UnixNanos) {
        self.began = now;
    }

    /// The path of the current file.
    ///
    /// # Errors
    /// As [`Rotation::new`].
    pub fn name(&self) -> Result<PathBuf, Failure> {
        let name = self.path.file_name().unwrap_or_default();
        let mut name = name.to_os_string();
        if self.limits.period.is_some() {
            let wrong = |why: String| Failure::usage(format!("invalid file name for -w: {why}"));
            let pattern = name.to_str();
            let pattern = pattern.ok_or_else(|| wrong("with -G it has to be UTF-8".to_owned()))?;
            let time = Timestamp::from_nanosecond(self.began.into())?.to_zoned(self.zone.clone());
            let text = strtime::format(pattern, &time).map_err(|error| wrong(error.to_string()))?;
            if text.contains('/') {
                return Err(wrong(format!("{text} is in another directory")));
            }
            name = text.into();
        }
        // As many digits as the highest number has, so that the names sort.
        let digits = match self.limits.files {
            Some(files) if self.limits.bytes.is_some() => (files.saturating_sub(1))
                .checked_ilog10()
                .map_or(0, |log| log as usize + 1),
            _ => 0,
        };
        if self.number > 0 || digits > 0 {
            name.push(format!("{:0digits$}", self.number));
        }
        Ok(self.path.with_file_name(name))
    }

    /// Whether a packet with this time begins a new file, if the current one has `len` bytes.
    #[inline]
    pub fn decide(&mut self, at: UnixNanos, len: u64) -> Rotate {
        if self.limits.period.is_some_and(|period| {
            u128::try_from(at.saturating_sub(self.began)).is_ok_and(|age| age >= period.as_nanos())
        }) {
            return self.end_period(at);
        }
        if self.limits.bytes.is_some_and(|limit| len > limit) {
            self.number += 1;
            if self.limits.files == Some(self.number) {
                self.number = 0;
            }
            return Rotate::Yes;
        }
        Rotate::No
    }

    /// Ends the current period.
    pub fn end_period(&mut self, at: UnixNanos) -> Rotate {
        self.began = at;
        self.periods += 1;
        self.number = 0;
        // With -C as well, -W limits the number of files in a period, and does not end the run.
        if self.limits.bytes.is_none() && self.limits.files == Some(self.periods) {
            return Rotate::Stop;
        }
        Rotate::Yes
    }

    /// For how long packets go into one file.
    pub fn period(&self) -> Option<Duration> {
        self.limits.period
    }

    /// The directory of all files.
    pub fn directory(&self) -> &Path {
        match self.path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    fn rotation(
        path: &str,
        bytes: Option<u64>,
        period: Option<u64>,
        files: Option<u32>,
    ) -> Rotation {
        let limits = Limits {
            bytes,
            period: period.map(Duration::from_secs),
            files,
        };
        Rotation::new(Path::new(path), limits, TimeZone::UTC, 0).unwrap()
    }

    fn name(rotation: &Rotation) -> String {
        rotation.name().unwrap().display().to_string()
    }

    #[test]
    fn files_are_numbered_by_size_as_tcpdump_does() {
        let mut all = rotation("dir/a.pcapng", Some(100), None, None);
        assert_eq!(name(&all), "dir/a.pcapng");
        assert_eq!(all.decide(0, 100), Rotate::No);
        assert_eq!(all.decide(0, 101), Rotate::Yes);
        assert_eq!(name(&all), "dir/a.pcapng1");
        assert_eq!(all.decide(0, 101), Rotate::Yes);
        assert_eq!(name(&all), "dir/a.pcapng2");
    }

    #[test]
    fn a_number_of_files_is_used_in_turn_with_digits_that_sort() {
        for (files, expected) in [
            (1, ["a", "a", "a"]),
            (2, ["a0", "a1", "a0"]),
            (10, ["a0", "a1", "a2"]),
            (11, ["a00", "a01", "a02"]),
        ] {
            let mut ring = rotation("a", Some(1), None, Some(files));
            for expected in expected {
                assert_eq!(name(&ring), expected, "{files}");
                assert_eq!(ring.decide(0, 2), Rotate::Yes);
            }
        }
    }

    #[test]
    fn a_period_names_files_by_time_and_a_number_of_them_ends_the_run() {
        let mut timed = rotation("/tmp/%H%M%S", None, Some(60), Some(2));
        assert_eq!(name(&timed), "/tmp/000000");
        assert_eq!(timed.decide(60 * SECOND - 1, 1 << 40), Rotate::No);
        assert_eq!(timed.decide(-1, 0), Rotate::No);
        assert_eq!(timed.decide(61 * SECOND, 0), Rotate::Yes);
        assert_eq!(name(&timed), "/tmp/000101");
        assert_eq!(timed.decide(121 * SECOND, 0), Rotate::Stop);

        let mut both = rotation("%S", Some(1), Some(60), Some(2));
        assert_eq!(name(&both), "000");
        assert_eq!(both.decide(0, 2), Rotate::Yes);
        assert_eq!(name(&both), "001");
        assert_eq!(both.decide(61 * SECOND, 2), Rotate::Yes);
        assert_eq!(name(&both), "010");
    }

    #[test]
    fn a_percent_is_literal_without_a_period_and_must_be_a_valid_format_with_one() {
        assert_eq!(name(&rotation("a%H", Some(1), None, None)), "a%H");
        let limits = Limits {
            period: Some(Duration::from_secs(1)),
            ..Limits::default()
        };
        for path in ["a%!", "%H/a", "a%D"] {
            let refused = Rotation::new(Path::new(path), limits, TimeZone::UTC, 0);
            assert!(refused.is_err(), "{path}");
        }
    }
}
