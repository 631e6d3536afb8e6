//! Reads the histograms that the programs count, interval by interval.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, Result};
use libbpf_rs::MapMut;

use crate::domain::histogram::{Histogram, HistogramBy, HistogramKey};
use crate::output::histogram::{Distribution, HistogramLayout};
use crate::run::session::Session;
use crate::skel::{RawHistogram, RawHistogramKey};
use crate::sys::map;

/// The histograms of a run.
pub(crate) struct Histograms {
    layout: HistogramLayout,
    /// The name of these times in JSON.
    of: &'static str,
    by: HistogramBy,
    /// The counts of earlier intervals.
    before: HashMap<HistogramKey, Histogram>,
    began: Instant,
    is_full: bool,
}

impl Histograms {
    /// Begins the first interval.
    pub fn new(layout: HistogramLayout, of: &'static str, by: HistogramBy) -> Self {
        Self {
            layout,
            of,
            by,
            before: HashMap::new(),
            began: Instant::now(),
            is_full: false,
        }
    }

    /// Begins the first interval, and writes the text header.
    pub fn begin(&mut self, session: &mut Session) {
        self.began = Instant::now();
        session.text_header(|out, clock| self.layout.header(out, clock));
    }

    /// Writes the histograms of an interval, those with the most values first, and begins the
    /// next.
    ///
    /// # Errors
    /// The map can't be read.
    pub fn report(&mut self, session: &mut Session, table: &MapMut<'_>) -> Result<()> {
        let seconds = self.began.elapsed().as_secs_f64();
        self.began = Instant::now();
        let at = session.clock.now();
        for (key, histogram) in &self.take(session, table)? {
            let distribution = Distribution {
                of: self.of,
                by: self.by.name(),
                key,
                seconds,
                histogram,
            };
            session.write(at, &(&self.layout, &distribution));
        }
        session.flush();
        Ok(())
    }

    /// Reports, once, that values found no room in the map.
    pub fn note_untracked(&mut self, session: &Session, untracked: u64) {
        if untracked > 0 && !self.is_full {
            self.is_full = true;
            session.notices.notice(
                "more keys than the table of histograms holds: those that came last are counted as lost",
            );
        }
    }

    /// The values that were added since the last call.
    fn take(
        &mut self,
        session: &mut Session,
        table: &MapMut<'_>,
    ) -> Result<Vec<(HistogramKey, Histogram)>> {
        let mut added = Vec::new();
        let (by, before) = (self.by, &mut self.before);
        let mut add = |key: &[u8], value: &[u8]| {
            let (mut raw_key, mut raw) = (RawHistogramKey::default(), RawHistogram::default());
            if plain::copy_from_bytes(&mut raw_key, key).is_err()
                || plain::copy_from_bytes(&mut raw, value).is_err()
            {
                session.broken();
                return;
            }
            let (key, now) = (by.key(&raw_key), Histogram::new(&raw));
            let new = match before.get(&key) {
                Some(before) => now.since(before),
                None => now.clone(),
            };
            if new.count() > 0 {
                before.insert(key.clone(), now);
                added.push((key, new));
            }
        };
        map::read_all(table, false, &mut add).context("failed to read the histograms")?;
        added.sort_by_cached_key(|(key, histogram)| (Reverse(histogram.count()), key.clone()));
        Ok(added)
    }
}
