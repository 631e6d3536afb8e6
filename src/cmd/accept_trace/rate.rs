//! accept-trace: `--max-rate` for lines that `--reason` chooses. The kernel does not know which these
//! are, so it sends all, and the limit is applied here.

const SECOND: u64 = 1_000_000_000;

/// Counts the lines of each second.
pub struct LineRate {
    /// The most lines in a second; `None`: no limit.
    max: Option<u64>,
    /// When the current second began, on the kernel's monotonic clock.
    began: Option<u64>,
    used: u64,
}

impl LineRate {
    /// Begins with a new second at the first line.
    pub fn new(max: Option<u64>) -> Self {
        Self {
            max,
            began: None,
            used: 0,
        }
    }

    /// Whether a line at this time is over the limit.
    pub fn is_over(&mut self, ns: u64) -> bool {
        let Some(max) = self.max else {
            return false;
        };
        if self
            .began
            .is_none_or(|began| ns.saturating_sub(began) >= SECOND)
        {
            self.began = Some(ns);
            self.used = 0;
        }
        if self.used >= max {
            return true;
        }
        self.used += 1;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_lines_pass_in_each_second() {
        let mut rate = LineRate::new(Some(2));
        let times = [5, 6, 4, 5 + SECOND - 1, 5 + SECOND, 6 + SECOND, 7 + SECOND];
        let over = times.map(|ns| rate.is_over(ns));
        assert_eq!(over, [false, false, true, true, false, false, true]);
        let mut unlimited = LineRate::new(None);
        assert!((0..1000).all(|ns| !unlimited.is_over(ns)));
    }
}
