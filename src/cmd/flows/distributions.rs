//! `flows --histogram`: how the times of flows are distributed.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::time::Duration;

use crate::cli::{FlowHistogram, FlowsArgs};
use crate::domain::flow::{Flow, Outcome};
use crate::domain::histogram::{Histogram, HistogramKey};
use crate::domain::traffic::FlowBy;
use crate::failure::Failure;
use crate::output::clock::Clock;
use crate::output::histogram::{Distribution, HistogramLayout};
use crate::output::line::Line;
use crate::run::session::Session;

/// The most keys that are kept. The times of other keys are in no histogram.
const HISTOGRAM_KEYS: usize = 4096;

/// Distributions of a time by key.
#[derive(Clone)]
pub struct Distributions {
    layout: HistogramLayout,
    of: FlowHistogram,
    by: Option<FlowBy>,
    keys: HashMap<HistogramKey, Histogram>,
    /// Times whose key found no room.
    untracked: u64,
}

impl Distributions {
    /// The distributions that the options ask for.
    ///
    /// # Errors
    /// A column is unknown, or there are no histograms by the key of `--by`.
    pub fn new(args: &FlowsArgs) -> Result<Option<Self>, Failure> {
        let Some(of) = args.histogram else {
            return Ok(None);
        };
        if let Some(by @ (FlowBy::Uid | FlowBy::Container | FlowBy::Net)) = args.by {
            return Err(
                Failure::usage(format!("--histogram can't be shown by {}", by.name()))
                    .hint("--histogram takes --by saddr, daddr, dport or process"),
            );
        }
        Ok(Some(Self {
            layout: HistogramLayout::of(&args.run.output.columns)?,
            of,
            by: args.by,
            keys: HashMap::new(),
            untracked: 0,
        }))
    }

    /// Writes the header line of the text format.
    pub fn header(&self, out: &mut Line<'_>, clock: &Clock) {
        self.layout.header(out, clock);
    }

    /// Adds the time of a flow that is over, if it is known.
    pub fn add(&mut self, flow: &Flow) {
        // There is another record of the same flow later.
        if flow.outcome() == Outcome::Unanswered {
            return;
        }
        let time = match self.of {
            FlowHistogram::Rtt => flow.round_trip().map(|trip| trip.us),
            FlowHistogram::Handshake => flow.handshake_ns().map(|ns| ns / 1000),
        };
        let Some(micros) = time else {
            return;
        };
        let key = match self.by {
            Some(FlowBy::Saddr) => HistogramKey::Address(flow.saddr()),
            Some(FlowBy::Daddr) => HistogramKey::Address(flow.daddr()),
            Some(FlowBy::Dport) => HistogramKey::Port(flow.dport()),
            Some(FlowBy::Process) => {
                let comm = flow.process().map_or(&b""[..], |(_, comm)| comm);
                HistogramKey::Comm(comm.to_vec())
            }
            _ => HistogramKey::All,
        };
        if self.keys.len() >= HISTOGRAM_KEYS && !self.keys.contains_key(&key) {
            self.untracked += 1;
            return;
        }
        self.keys.entry(key).or_default().add(micros);
    }

    /// Writes them, those with the most times first.
    pub fn write(&self, session: &mut Session, length: Duration) {
        let mut all = self.keys.iter().collect::<Vec<_>>();
        all.sort_unstable_by_key(|(key, histogram)| (Reverse(histogram.count()), *key));
        let at = session.clock.now();
        for (key, histogram) in all {
            let distribution = Distribution {
                of: self.of.name(),
                by: self.by.map(FlowBy::name),
                key,
                seconds: length.as_secs_f64(),
                histogram,
            };
            session.write(at, &(&self.layout, &distribution));
        }
        if self.untracked > 0 {
            session.notices.notice(&format!(
                "{} values are in no histogram: there is room for only {HISTOGRAM_KEYS} keys",
                self.untracked
            ));
        }
    }
}
