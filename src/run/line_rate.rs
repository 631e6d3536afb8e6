//! `--max-rate` where user space applies it, because the kernel does not know which lines are shown.

const SECOND: u64 = 1_000_000_000;

/// Counts the lines of each second, by the times that the lines have.
pub struct LineRate {
    /// The most lines in a second; `None`: no limit.
    max: Option<u64>,
    /// When the current second began, in nanoseconds.
    started: i64,
    lines: u64,
}

impl LineRate {
    /// Limits the lines of a second; `None`: no limit.
    pub fn new(max: Option<u64>) -> Self {
        Self {
            max,
            started: 0,
            lines: 0,
        }
    }

    /// Counts a line of this time. Returns whether it is over the limit. Lines need not be in the order
    /// of their times.
    pub fn is_over(&mut self, at: i64) -> bool {
        let Some(max) = self.max else {
            return false;
        };
        if at.abs_diff(self.started) >= SECOND {
            self.started = at;
            self.lines = 0;
        }
        self.lines += 1;
        self.lines > max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_applies_to_each_second() {
        const SECOND: i64 = super::SECOND as i64;
        let mut rate = LineRate::new(Some(2));
        let times = [5, 6, 4, 5 + SECOND - 1, 5 + SECOND, 6 + SECOND, 7 + SECOND];
        let over = times.map(|at| rate.is_over(2 * SECOND + at));
        assert_eq!(over, [false, false, true, true, false, false, true]);
        let mut unlimited = LineRate::new(None);
        assert!((0..1000).all(|at| !unlimited.is_over(at)));
    }
}
