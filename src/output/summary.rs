//! The summary, which is the last line: how much was seen, written and lost.

use super::clock::{Clock, UnixNanos};
use super::flow_report;
use super::json::Object;
use super::line::Line;
use crate::domain::counters::{PacketCounters, VERDICTS};
use crate::domain::flow_report::FlowReport;
use crate::domain::incoming::FATES;
use crate::key;
use crate::stop::ExitReason;

/// The end of a run in numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The subcommand.
    pub command: &'static str,
    /// Seconds from attached to detached.
    pub duration_s: f64,
    /// Events that passed the filter: always `emitted + lost + suppressed`.
    pub matched: u64,
    /// Of these, those that reached stdout.
    pub emitted: u64,
    /// Of these, those that found no room in a buffer or a table, or no reader of the output.
    pub lost: u64,
    /// Of these, those that `--max-rate` or `--count` suppressed.
    pub suppressed: u64,
    /// Why the run ended.
    pub exit_reason: ExitReason,
    /// The counters of the packet programs; `None` for other commands.
    pub packets: Option<PacketCounters>,
    /// syn-count's total.
    pub syn_total: Option<u64>,
    /// SYNs or events whose key lost its place in the table; `None` if they are not counted by key.
    pub untracked: Option<u64>,
    /// connect-trace's attempts without a fate at the end; `None` if the kernel can't list them.
    pub pending: Option<u64>,
    /// The packet counts of flows.
    pub flows: Option<FlowTotals>,
    /// The fates of accept-trace's attempts.
    pub attempts: Option<AttemptTotals>,
    /// The report about the flows of the run; `None` without `--summary`.
    pub report: Option<FlowReport>,
    /// What commands without events report in the text format; `None` for those with events.
    pub no_events: Option<NoEvents>,
}

/// What commands without events report at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoEvents {
    /// The exporter has answered requests.
    Scrapes {
        /// How many events its metrics lack.
        missing: u64,
    },
    /// check has tried the commands.
    Commands {
        /// How many can run.
        able: usize,
        /// How many there are; 0: only a filter was tried.
        all: usize,
    },
}

/// The fates of incoming attempts, including those that were not asked for. All attempts are the
/// sum of the fates and of `untracked`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttemptTotals {
    /// The number of attempts by fate, in the order of [`FATES`].
    pub fates: [u64; FATES.len()],
    /// Attempts that found no room in the table.
    pub untracked: u64,
    /// Attempts whose fate was reported and forgotten: a retransmitted SYN counts as a new one.
    pub forgotten: u64,
}

impl AttemptTotals {
    /// All attempts.
    pub fn all(&self) -> u64 {
        self.fates.iter().sum::<u64>() + self.untracked
    }

    /// The name of each fate, and how many attempts had it.
    fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
        FATES.into_iter().zip(self.fates).skip(1)
    }
}

/// The packet counts of flows. `segments` is the sum of the packets in all lines on stdout,
/// `untracked` and `unreported`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTotals {
    /// Packets of the flows that were asked for; each segment of a GSO packet counts.
    pub segments: u64,
    /// Of these, those whose flow found no room in the table.
    pub untracked: u64,
    /// Of these, those in records that were lost or suppressed.
    pub unreported: u64,
    /// Flows that were evicted to make room in the table.
    pub evicted: u64,
    /// Packets with a name to read for which the buffer had no room; `None` without `--names`.
    pub names_lost: Option<u64>,
}

impl Summary {
    /// The summary of a run that queues nothing: all that was counted is shown, except `lost`, for
    /// which there was no room.
    pub fn all_shown_but(self, lost: u64) -> Self {
        Self {
            emitted: self.matched - lost,
            lost,
            suppressed: 0,
            ..self
        }
    }

    /// The summary as a line of JSON.
    pub fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "summary");
        line.name(key!("command"), self.command);
        line.float(key!("duration_s"), self.duration_s);
        line.int(key!("matched"), self.matched);
        line.int(key!("emitted"), self.emitted);
        line.int(key!("lost"), self.lost);
        line.int(key!("suppressed"), self.suppressed);
        line.name(key!("exit_reason"), self.exit_reason.name());
        if let Some(counters) = &self.packets {
            line.int(key!("packets"), counters.packets());
            line.object(key!("verdicts"), |verdicts| {
                for (name, count) in VERDICTS.iter().zip(counters.verdicts) {
                    verdicts.int_of(name, count);
                }
            });
        }
        if let Some(total) = self.syn_total {
            line.int(key!("syn_total"), total);
        }
        if let Some(untracked) = self.untracked {
            line.int(key!("untracked"), untracked);
        }
        if let Some(pending) = self.pending {
            line.int(key!("pending"), pending);
        }
        if let Some(flows) = self.flows {
            line.int(key!("segments"), flows.segments);
            line.int(key!("untracked"), flows.untracked);
            line.int(key!("unreported"), flows.unreported);
            line.int(key!("evicted"), flows.evicted);
            if let Some(lost) = flows.names_lost {
                line.int(key!("names_lost"), lost);
            }
        }
        if let Some(attempts) = &self.attempts {
            line.int(key!("attempts"), attempts.all());
            line.int(key!("untracked"), attempts.untracked);
            line.int(key!("forgotten"), attempts.forgotten);
            line.object(key!("fates"), |fates| {
                for (name, count) in attempts.named() {
                    fates.int_of(name, count);
                }
            });
        }
        if let Some(report) = &self.report {
            flow_report::push_members(&mut line, report);
        }
        line.end();
    }

    /// The summary as text: one line without its end.
    pub fn text(&self) -> String {
        let Self {
            command, matched, ..
        } = self;
        match self.no_events {
            None => {}
            Some(NoEvents::Scrapes { missing }) => {
                return format!(
                    "summary: {command}: {matched} scrapes in {:.1} s; {missing} events missing in the metrics",
                    self.duration_s
                );
            }
            Some(NoEvents::Commands { all: 0, .. }) => {
                return format!("summary: {command}: the filter can be run");
            }
            Some(NoEvents::Commands { able, all }) => {
                return format!("summary: {command}: {able} of {all} commands can run");
            }
        }
        let mut text = format!(
            "summary: {} after {:.1} s ({})",
            self.command,
            self.duration_s,
            self.exit_reason.name()
        );
        if let Some(total) = self.syn_total {
            text += &format!(": {total} SYNs");
        } else {
            text += &format!(
                ": matched {} = emitted {} + lost {} + suppressed {}",
                self.matched, self.emitted, self.lost, self.suppressed
            );
        }
        if let Some(untracked @ 1..) = self.untracked {
            text += &format!(", untracked {untracked}");
        }
        if let Some(counters) = &self.packets {
            text += &format!("; {} packets", counters.packets());
            for (name, count) in VERDICTS.iter().zip(counters.verdicts) {
                if count > 0 {
                    text += &format!(", {name} {count}");
                }
            }
        }
        if let Some(pending @ 1..) = self.pending {
            text += &format!("; {pending} pending");
        }
        if let Some(flows) = self.flows {
            text += &format!("; {} segments", flows.segments);
            for (name, count) in [
                ("untracked", flows.untracked),
                ("unreported", flows.unreported),
                ("names lost", flows.names_lost.unwrap_or(0)),
            ] {
                if count > 0 {
                    text += &format!(", {name} {count}");
                }
            }
            if flows.evicted > 0 {
                text += &format!("; {} flows evicted", flows.evicted);
            }
        }
        if let Some(attempts) = &self.attempts {
            text += &format!("; {} attempts", attempts.all());
            let counts = attempts.named().chain([
                ("untracked", attempts.untracked),
                ("forgotten", attempts.forgotten),
            ]);
            for (name, count) in counts.filter(|(_, count)| *count > 0) {
                text += &format!(", {name} {count}");
            }
        }
        text
    }

    /// With `--summary` of flows: the lines that follow it.
    pub fn report_text(&self) -> String {
        self.report
            .as_ref()
            .map_or_else(String::new, flow_report::text)
    }
}
