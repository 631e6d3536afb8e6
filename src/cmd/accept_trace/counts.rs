//! accept-trace: with `--by`, reads what the programs have counted in each interval.

use std::time::Instant;

use anyhow::{Context, Result};

use super::AttemptHandler;
use crate::cli::AcceptBy;
use crate::domain::incoming::{Attempt, Fate};
use crate::domain::tally::{Label, TallyKey};
use crate::domain::until_nul;
use crate::output::counts::{CountsLayout, IntervalCounts};
use crate::run::counts::IntervalCounter;
use crate::run::session::Session;
use crate::skel::accept_trace::AcceptTraceSkel;
use crate::skel::{self, AcceptCountKey, AcceptEvent, AcceptFate, RawAttempt};
use crate::sys::{link, map};

/// The counts of a run.
pub struct CountReports {
    by: AcceptBy,
    layout: CountsLayout,
    counter: IntervalCounter<(&'static str, Label)>,
    /// Fates that were counted by key.
    tracked: u64,
    began: Instant,
}

impl CountReports {
    /// The reports of a run before its first interval, which [`Self::begin`] begins.
    pub fn new(by: AcceptBy, top: usize, layout: CountsLayout) -> Self {
        Self {
            by,
            layout,
            counter: IntervalCounter::new(top),
            tracked: 0,
            began: Instant::now(),
        }
    }

    /// Begins the first interval, and writes the text header.
    pub fn begin(&mut self, session: &mut Session) {
        self.began = Instant::now();
        session.text_header(|out, clock| self.layout.header(out, clock));
    }

    /// Writes the lines of an interval, and begins the next.
    ///
    /// # Errors
    /// The counts can't be read.
    pub fn report(
        &mut self,
        session: &mut Session,
        skels: &mut [AcceptTraceSkel<'_>],
        handler: &mut AttemptHandler<'_>,
    ) -> Result<()> {
        let elapsed = self.began.elapsed();
        self.began = Instant::now();
        let closed = self.close_table(skels)?;
        let mut untracked = 0;
        for skel in &*skels {
            let bss = skel.maps.bss_open_data.as_deref();
            untracked += skel::counts_untracked(bss.context("the programs have no counters")?);
        }
        let mut keys = Vec::new();
        for (raw, count) in closed {
            let (key, reason) = self.decode(&raw, handler);
            if !handler.wanted.is_empty()
                && !reason.is_some_and(|reason| handler.wanted.contains(&reason))
            {
                handler.unwanted += count;
                continue;
            }
            self.tracked += count;
            keys.push(((Fate(AcceptFate(raw.fate.into())).name(), key), count));
        }
        let total = self.tracked + untracked;
        let count = self.counter.take(elapsed, total, keys);
        let counts = IntervalCounts {
            layout: &self.layout,
            event: "accept_count",
            by: self.by.name(),
            seconds: elapsed.as_secs_f64(),
            count,
            top: self.counter.tally.busiest(),
            untracked,
        };
        let at = session.clock.now();
        session.write(at, &counts);
        session.flush();
        self.counter.notify_if_full(
            session.notices,
            untracked,
            "more keys than the table holds: those that came last in an interval are counted in the total only, as untracked",
        );
        Ok(())
    }

    /// Makes the programs count in the other table, and empties this one.
    fn close_table(
        &mut self,
        skels: &mut [AcceptTraceSkel<'_>],
    ) -> Result<Vec<(AcceptCountKey, u64)>> {
        let closed = self.counter.switch(|table| {
            let open = skels.iter_mut();
            for bss in open.filter_map(|skel| skel.maps.bss_open_data.as_deref_mut()) {
                skel::open_counts(bss, table);
            }
        });
        link::synchronize();
        let maps = &skels.first().context("there is no interface")?.maps;
        let table = match closed {
            0 => &maps.even_counts,
            _ => &maps.odd_counts,
        };
        let mut counts = Vec::new();
        let mut add = |key: &[u8], count: &[u8]| {
            let mut raw = AcceptCountKey::default();
            if let (Ok(()), Ok(count)) = (plain::copy_from_bytes(&mut raw, key), count.try_into()) {
                counts.push((raw, u64::from_ne_bytes(count)));
            }
        };
        map::read_all(table, true, &mut add).context("failed to read the counts")?;
        Ok(counts)
    }

    /// The key as it is shown, and the reason if the programs report one.
    fn decode(
        &self,
        raw: &AcceptCountKey,
        handler: &mut AttemptHandler<'_>,
    ) -> (Label, Option<String>) {
        let attempt = attempt(raw);
        let place = handler.symbols.name(raw.place);
        let reason = match attempt.has_failed() {
            true => attempt.reason(&handler.reasons, place).0,
            false => None,
        };
        let reason = reason.map(str::to_owned);
        let name = |name: Option<&[u8]>| match name {
            Some(name) if !name.is_empty() => Label::Name(name.to_vec()),
            _ => Label::Unknown,
        };
        let key = match self.by {
            AcceptBy::Reason => name(reason.as_deref().map(str::as_bytes)),
            AcceptBy::Saddr => Label::Key(TallyKey::Address(attempt.saddr())),
            AcceptBy::Dport => Label::Key(TallyKey::Port(raw.port)),
            AcceptBy::Comm if raw.kind == 0 => name(Some(until_nul(&raw.bytes))),
            AcceptBy::Comm => {
                let owner = handler.owners.as_mut().and_then(|it| it.find(&attempt));
                name(owner.map(|owner| owner.comm.as_slice()))
            }
        };
        (key, reason)
    }
}

/// An attempt with the fields that are in a key. Its address is that of the client or the
/// listener.
fn attempt(raw: &AcceptCountKey) -> Attempt {
    let mut event = AcceptEvent {
        fate: AcceptFate(raw.fate.into()),
        attempt: RawAttempt {
            reason: raw.reason,
            laddr: raw.bytes,
            lport: raw.port,
            ip_version: raw.kind,
            ..RawAttempt::default()
        },
        ..AcceptEvent::default()
    };
    event.key.addr = raw.bytes;
    Attempt { raw: event }
}
