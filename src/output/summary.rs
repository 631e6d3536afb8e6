//! The last line: what was seen, passed on and lost.

use super::clock::{Clock, UnixNanos};
use super::json::{Object, push_int};
use super::line::Line;
use crate::key;
use crate::skel::{PacketCounters, VERDICTS};

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
    /// Of these, those that found no room in a buffer or a table, or no reader.
    pub lost: u64,
    /// Of these, those that `--max-rate` or `--count` held back.
    pub suppressed: u64,
    /// Why the run ended.
    pub exit_reason: &'static str,
    /// What the packet programs judged; `None` for other commands.
    pub packets: Option<PacketCounters>,
    /// syn-count's total.
    pub syn_total: Option<u64>,
    /// Where the packets of `flows` are.
    pub flows: Option<FlowTotals>,
}

/// Where the packets of `flows` are: those in the lines that reached stdout, `untracked` and
/// `unreported` add up to `segments`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTotals {
    /// Packets of the flows that were asked for, GSO packets by their segments.
    pub segments: u64,
    /// Of these, those whose flow found no room in the table.
    pub untracked: u64,
    /// Of these, those in records that were lost or held back.
    pub unreported: u64,
    /// Flows that were reported early, to make room in the table.
    pub evicted: u64,
}

impl Summary {
    /// The summary as a line of JSON.
    pub fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "summary");
        line.name(key!("command"), self.command);
        line.float(key!("duration_s"), self.duration_s);
        line.int(key!("matched"), self.matched);
        line.int(key!("emitted"), self.emitted);
        line.int(key!("lost"), self.lost);
        line.int(key!("suppressed"), self.suppressed);
        line.name(key!("exit_reason"), self.exit_reason);
        if let Some(counters) = &self.packets {
            line.int(key!("packets"), counters.packets());
            line.raw(key!("verdicts"), |out| {
                out.push(b'{');
                for (i, (name, count)) in VERDICTS.iter().zip(counters.verdicts).enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.push(b'"');
                    out.extend_from_slice(name.as_bytes());
                    out.extend_from_slice(b"\":");
                    push_int(out, count);
                }
                out.push(b'}');
            });
        }
        if let Some(total) = self.syn_total {
            line.int(key!("syn_total"), total);
        }
        if let Some(flows) = self.flows {
            line.int(key!("segments"), flows.segments);
            line.int(key!("untracked"), flows.untracked);
            line.int(key!("unreported"), flows.unreported);
            line.int(key!("evicted"), flows.evicted);
        }
        line.end();
    }

    /// The summary for people, as one line without its end.
    pub fn text(&self) -> String {
        let mut text = format!(
            "summary: {} after {:.1} s ({})",
            self.command, self.duration_s, self.exit_reason
        );
        if let Some(total) = self.syn_total {
            text += &format!(": {total} SYNs");
        } else {
            text += &format!(
                ": matched {} = emitted {} + lost {} + suppressed {}",
                self.matched, self.emitted, self.lost, self.suppressed
            );
        }
        if let Some(counters) = &self.packets {
            text += &format!("; {} packets", counters.packets());
            for (name, count) in VERDICTS.iter().zip(counters.verdicts) {
                if count > 0 {
                    text += &format!(", {name} {count}");
                }
            }
        }
        if let Some(flows) = self.flows {
            text += &format!("; {} segments", flows.segments);
            for (name, count) in [
                ("untracked", flows.untracked),
                ("unreported", flows.unreported),
            ] {
                if count > 0 {
                    text += &format!(", {name} {count}");
                }
            }
            if flows.evicted > 0 {
                text += &format!("; {} flows evicted", flows.evicted);
            }
        }
        text
    }
}
