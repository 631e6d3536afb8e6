//! Handles the records that a sweep of the table reports.

use std::time::{Duration, Instant};

use super::Flows;
use super::distributions::Distributions;
use crate::cli::{FlowsArgs, OutputFormat};
use crate::domain::UnixNanos;
use crate::domain::counters::PacketCounters;
use crate::domain::flow::Flow;
use crate::domain::flow_report::FlowReport;
use crate::domain::names::{NamedFlow, Names};
use crate::domain::traffic::{FlowBy, Traffic, TrafficByKey, TrafficKey};
use crate::host::containers::Containers;
use crate::output::clock::Clock;
use crate::output::columns::widest;
use crate::output::flows::{FlowInterval, FlowWriter, ShownFlow};
use crate::output::line::Line;
use crate::output::summary::{FlowTotals, Summary};
use crate::run::line_rate::LineRate;
use crate::run::packet::PacketCommand;
use crate::run::session::Session;
use crate::skel::Sweep;
use crate::skel::flows::FlowsSkel;

/// The most flows ended in an interval that the view shows. There is no such limit for live flows:
/// the table has one.
const ENDED_SHOWN: usize = 16_384;

/// Receives the records that a sweep reports.
pub struct Reporter<'a> {
    args: &'a FlowsArgs,
    writer: FlowWriter,
    /// The names of the interfaces; `None` for the only one of a replay.
    names: &'a [Option<&'a str>],
    /// With `--by`: the traffic by key, instead of lines of flows.
    pub traffic: Option<TrafficByKey>,
    /// With `--histogram`: the times of flows, instead of lines.
    pub distributions: Option<Distributions>,
    /// With `--summary`: the totals of all flows of the run.
    report: Option<FlowReport>,
    /// The server names that initiators have asked for.
    names_asked: Names,
    /// When the current interval began.
    interval_started: Instant,
    /// The header is written: lines may follow.
    has_begun: bool,
    /// Flows that have ended and are not written yet: they are sorted first.
    ended: Vec<Flow>,
    /// For the view: flows of the interval, live and ended.
    pub rows: Vec<NamedFlow>,
    /// Traffic of flows that have ended in the interval but found no room in `rows`.
    pub left_out: Traffic,
    rows_ended: usize,
    has_view: bool,
    rate: LineRate,
    /// Flows that `--max-rate` held back.
    suppressed: u64,
    /// Flows that have ended since the start.
    pub reported: u64,
    /// Records of unanswered attempts, which have another record when they end.
    pub unanswered: u64,
    /// Finds the containers of processes, if they are shown or asked for.
    containers: Option<Containers>,
    /// Flows that `--container` rejects, and their packets.
    foreign: u64,
    foreign_packets: u64,
    /// Flows that the filter on processes rejects in the kernel, and their packets.
    unwanted: u64,
    unwanted_packets: u64,
    /// Of these, the flows that were reported as unanswered and have had no packet since.
    silent: u64,
    /// Records that found no room in the event buffer, and the packets in them.
    lost: u64,
    lost_packets: u64,
    /// With --names: packets with a name to read that found no room in their buffer.
    names_lost: Option<u64>,
    totals: FlowTotals,
}

/// From this many digits on, the beginning of a container's id is enough, as docker(1) shows it.
const SHORT_ID: usize = 12;

/// Whether containers are shown or asked for: in JSON, by `--container`, and by `--by container`.
/// Processes of a file are not known.
pub fn needs_containers(args: &FlowsArgs) -> bool {
    let has_lines = args.by.is_none();
    args.packets.read.is_none()
        && (asks_for_containers(args)
            || (has_lines && args.run.output.format() == OutputFormat::Json))
}

/// Whether containers choose or count flows.
pub fn asks_for_containers(args: &FlowsArgs) -> bool {
    !args.container.is_empty() || args.by == Some(FlowBy::Container)
}

impl<'a> Reporter<'a> {
    /// A reporter that has no records yet.
    pub fn new(
        args: &'a FlowsArgs,
        mut writer: FlowWriter,
        names: &'a [Option<&'a str>],
        has_view: bool,
    ) -> Self {
        writer.widen_iface(widest(names.iter().copied().flatten()));
        Self {
            args,
            writer,
            names,
            traffic: match args.histogram {
                Some(_) => None,
                None => args.by.map(|by| TrafficByKey::new(by, args.top, args.sort)),
            },
            distributions: None,
            report: args.summary.then(FlowReport::default),
            names_asked: Names::default(),
            interval_started: Instant::now(),
            has_begun: false,
            ended: Vec::new(),
            rows: Vec::new(),
            left_out: Traffic::default(),
            rows_ended: 0,
            has_view,
            rate: LineRate::new(args.max_rate),
            suppressed: 0,
            reported: 0,
            unanswered: 0,
            containers: needs_containers(args).then(Containers::new),
            foreign: 0,
            foreign_packets: 0,
            unwanted: 0,
            unwanted_packets: 0,
            silent: 0,
            lost: 0,
            lost_packets: 0,
            names_lost: args.names.then_some(0),
            totals: FlowTotals::default(),
        }
    }

    /// Whether each flow that ends gets a line.
    pub fn has_lines(&self) -> bool {
        self.traffic.is_none() && self.distributions.is_none() && !self.has_view
    }

    /// Writes the header line of the text format.
    pub fn header(&self, out: &mut Line<'_>, clock: &Clock) {
        if let Some(distributions) = &self.distributions {
            return distributions.header(out, clock);
        }
        match &self.traffic {
            Some(_) => self.writer.traffic.header(out, clock),
            None => self.writer.flows.header(out, clock),
        }
    }

    /// Lets lines be written, once the header is. Until then flows that have ended are kept.
    pub fn begin(&mut self) {
        self.has_begun = true;
    }

    /// Takes bytes of an initiator, which may name what it asks for.
    pub fn take_name(&mut self, session: &mut Session, event: &[u8]) {
        if !self.names_asked.take(event) {
            session.broken();
        }
    }

    /// Decodes and handles a record of the sweep.
    pub fn take(&mut self, session: &mut Session, bytes: &[u8]) {
        let Some(flow) = Flow::decode(bytes) else {
            self.reported += 1;
            session.broken();
            return;
        };
        if !self.is_wanted_container(&flow) {
            if !flow.is_live() {
                self.reported += 1;
                self.foreign += 1;
                self.foreign_packets += flow.packets();
            }
            return;
        }
        if let Some(traffic) = &mut self.traffic {
            let (cgroup, pid) = flow.cgroup();
            let containers = self.containers.as_mut();
            let container = containers.and_then(|containers| containers.find(cgroup, pid));
            let key = TrafficKey::of(&flow, traffic.by, self.args.prefix, container);
            traffic.add(&flow, key);
        }
        if self.has_view {
            self.show(flow);
        }
        if flow.is_live() {
            return;
        }
        self.reported += 1;
        if let Some(report) = &mut self.report {
            report.add(&flow);
        }
        if let Some(distributions) = &mut self.distributions {
            distributions.add(&flow);
        }
        if flow.is_continued() && flow.packets() == 0 {
            self.silent += 1;
            return;
        }
        self.totals.evicted += u64::from(flow.is_evicted());
        if self.has_lines() {
            self.ended.push(flow);
        }
    }

    /// Whether the process of the flow is in one of the containers or pods of `--container`.
    fn is_wanted_container(&mut self, flow: &Flow) -> bool {
        let wanted = &self.args.container;
        let Some(containers) = self.containers.as_mut().filter(|_| !wanted.is_empty()) else {
            return true;
        };
        let (cgroup, pid) = flow.cgroup();
        if cgroup == 0 {
            return false;
        }
        let is_it = |name: &str| {
            let mut wanted = wanted.iter();
            wanted.any(|wanted| {
                name == wanted || (wanted.len() >= SHORT_ID && name.starts_with(wanted.as_str()))
            })
        };
        if containers.find(cgroup, pid).is_some_and(is_it) {
            return true;
        }
        let pod = containers.find_pod(cgroup, pid);
        pod.is_some_and(|pod| [Some(pod.uid), pod.name].into_iter().flatten().any(is_it))
    }

    fn show(&mut self, flow: Flow) {
        if self.rows.is_empty() {
            self.rows_ended = 0;
        }
        if flow.is_live() {
            let name = self.names_asked.of(&flow);
            self.rows.push(NamedFlow { flow, name });
            return;
        }
        let name = self.names_asked.take_of(&flow);
        if self.rows_ended < ENDED_SHOWN {
            self.rows_ended += 1;
            self.rows.push(NamedFlow { flow, name });
        } else {
            let (packets, bytes) = flow.since_report();
            self.left_out.flows += 1;
            self.left_out.packets += packets;
            self.left_out.bytes += bytes;
        }
    }

    /// Takes over the counts of the sweep, which are since the start.
    pub fn note_lost(&mut self, sweep: &Sweep) {
        self.reported += sweep.lost - self.lost + sweep.unwanted - self.unwanted;
        self.unanswered = sweep.unanswered;
        self.unwanted = sweep.unwanted;
        self.unwanted_packets = sweep.unwanted_packets;
        self.lost = sweep.lost;
        self.lost_packets = sweep.lost_packets;
    }

    /// Notes how many packets with a name to read the programs could not send.
    pub fn note_names_lost<'s, 'obj: 's>(
        &mut self,
        skels: impl IntoIterator<Item = &'s FlowsSkel<'obj>>,
    ) {
        let counts = skels.into_iter().filter_map(|skel| {
            let bss = skel.maps.bss_names_data.as_deref()?;
            Some(bss.names_lost)
        });
        let lost = counts.sum();
        self.names_lost = self.names_lost.map(|_| lost);
    }

    /// Writes the flows that have ended, in the order of their last packets.
    pub fn settle(&mut self, session: &mut Session) {
        if !self.has_begun {
            return;
        }
        let mut ended = std::mem::take(&mut self.ended);
        ended.sort_unstable_by_key(|flow| {
            let key = &flow.raw.key;
            (
                flow.raw.last_ns,
                flow.raw.start_ns,
                key.addr,
                key.port,
                key.interface,
            )
        });
        for flow in ended.drain(..) {
            if !self.write(session, &flow) {
                self.totals.unreported += flow.packets();
            }
        }
        // Reuse the memory.
        self.ended = ended;
    }

    fn write(&mut self, session: &mut Session, flow: &Flow) -> bool {
        let name = self.names_asked.take_of(flow);
        let iface = self
            .names
            .get(usize::from(flow.raw.key.interface))
            .copied()
            .flatten();
        // Times in a file are UNIX times already, and may be before 1970.
        let unix = |ns: u64| match iface {
            Some(_) => session.clock.unix(ns),
            None => ns.cast_signed(),
        };
        let (start, at) = (unix(flow.raw.start_ns), unix(flow.raw.last_ns));
        if self.rate.is_over(at) {
            self.suppressed += 1;
            return false;
        }
        let (cgroup, pid) = flow.cgroup();
        let (container, pod) = match self.containers.as_mut().filter(|_| cgroup != 0) {
            Some(containers) => {
                let container = containers.find(cgroup, pid).map(str::to_owned);
                (container, containers.find_pod(cgroup, pid))
            }
            None => (None, None),
        };
        let shown = ShownFlow {
            writer: &self.writer,
            iface,
            start,
            container: container.as_deref(),
            pod,
            flow,
            name: name.as_deref(),
        };
        session.write_event(at, &shown)
    }

    /// Writes the traffic of the interval, and begins the next one. In a replay, end and length of
    /// the interval are given.
    pub fn end_interval(
        &mut self,
        session: &mut Session,
        replayed: Option<(UnixNanos, Duration)>,
        untracked: u64,
    ) {
        let Some(traffic) = &mut self.traffic else {
            return;
        };
        let (at, length) = match replayed {
            Some(interval) => interval,
            None => (session.clock.now(), self.interval_started.elapsed()),
        };
        for (position, iface) in (0..).zip(self.names) {
            let (all, top) = traffic.busiest(position);
            let interval = FlowInterval {
                iface: *iface,
                seconds: length.as_secs_f64(),
                by: traffic.by,
                all,
                top: &top,
                forgotten: traffic.forgotten(position),
                untracked,
            };
            session.write(at, &(&self.writer, &interval));
        }
        traffic.clear();
        self.interval_started = Instant::now();
    }

    /// Writes the distributions of `--histogram`.
    pub fn write_distributions(&self, session: &mut Session) {
        if let Some(distributions) = &self.distributions {
            distributions.write(session, self.interval_started.elapsed());
        }
    }

    /// The summary of the run. Without lines, all records that were received count as shown.
    pub fn summary(&self, session: &Session, counters: PacketCounters) -> Summary {
        let counters = PacketCounters {
            matched: counters.matched - self.silent - self.foreign - self.unwanted,
            segments: counters.segments - self.foreign_packets - self.unwanted_packets,
            ..counters
        };
        let account = session.summary(Flows::NAME, counters.matched, self.lost, self.suppressed);
        let summary = Summary {
            packets: Some(counters),
            flows: Some(FlowTotals {
                segments: counters.segments,
                untracked: counters.untracked,
                unreported: self.totals.unreported + self.lost_packets,
                names_lost: self.names_lost,
                ..self.totals
            }),
            report: self.report.clone(),
            ..account
        };
        if self.has_lines() {
            return summary;
        }
        summary.all_shown_but(self.lost)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};
    use crate::skel::FlowRecord;

    #[test]
    fn flows_that_end_in_an_interval_take_bounded_memory_and_are_counted() {
        let cli = ["tcpinspect", "flows", "eth0", "--interval", "1"];
        let Command::Flows(args) = Cli::try_parse_from(cli).unwrap().command else {
            panic!("not flows")
        };
        let writer = FlowWriter::new(&[], false, false).unwrap();
        let names = [Some("eth0")];
        let mut reporter = Reporter::new(&args, writer, &names, true);
        let mut ended = FlowRecord {
            reason: 1,
            ..FlowRecord::default()
        };
        ended.ends[0].packets = 3;
        ended.ends[0].bytes = 100;
        for _ in 0..2 {
            for _ in 0..ENDED_SHOWN + 7 {
                reporter.show(Flow { raw: ended });
            }
            // There is still room for live ones.
            reporter.show(Flow {
                raw: FlowRecord::default(),
            });
            assert_eq!(std::mem::take(&mut reporter.rows).len(), ENDED_SHOWN + 1);
            let left_out = std::mem::take(&mut reporter.left_out);
            let counts = (left_out.flows, left_out.packets, left_out.bytes);
            assert_eq!(counts, (7, 21, 700));
        }
    }
}
