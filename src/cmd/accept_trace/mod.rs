//! `accept-trace`: incoming connection attempts and their fate.

mod counts;
mod owners;
pub(super) mod programs;
pub(super) mod table;

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use caps::Capability;

use counts::CountReports;
use owners::{FullQueues, Owners};
pub use programs::{AcceptHook, Rehearsed, rehearse};
use programs::{Hooks, Programs};
use table::AttemptTable;

use crate::attach::beside::beside;
use crate::attach::load;
use crate::attach::tc::PreparedLinks;
use crate::cli::{AcceptBy, AcceptTraceArgs, OutputFormat, interface_hints};
use crate::domain::histogram::HistogramBy;
use crate::domain::incoming::Attempt;
use crate::domain::reasons::{ReasonFrom, Reasons};
use crate::failure::{Exit, Failure};
use crate::host::containers::Containers;
use crate::host::interfaces::Interface;
use crate::host::kernel_symbols::KernelSymbols;
use crate::host::netns;
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::notice::Notices;
use crate::output::accept_trace::{AttemptLayout, ShownAttempt};
use crate::output::counts::CountsLayout;
use crate::output::histogram::HistogramLayout;
use crate::output::summary::{AttemptTotals, Summary};
use crate::run::events::{BufferKind, EventSource};
use crate::run::export::Purpose;
use crate::run::histograms::Histograms;
use crate::run::line_rate::LineRate;
use crate::run::session::{Session, Wake, next_due};
use crate::skel::accept_trace::AcceptTraceSkel;
use crate::skel::{AcceptFate, AcceptFlag};

pub(super) const NAME: &str = "accept-trace";

/// Runs the command.
///
/// # Errors
/// An option is wrong, or a program can't be loaded or attached.
pub fn run(args: &AcceptTraceArgs) -> Result<Exit, Failure> {
    let mut session = Session::new(&args.run)?;
    args.netns.enter()?;
    let layout = match args.by.is_some() || args.histogram.is_some() {
        true => AttemptLayout::of(&[])?,
        false => AttemptLayout::of(&args.run.output.columns)?,
    };
    let mut shown = Reports::new(args)?;
    let interfaces = session.interfaces(args.interfaces(), interface_hints::interface_hint)?;
    load::possible_cpus()?;
    let buffer = BufferKind::choose(args.buffer.buffer);
    let mut storage = [const { MaybeUninit::uninit() }; 2];
    let mut owners_storage = MaybeUninit::uninit();
    let notices = session.notices;
    let prepared = PreparedLinks::both_directions(&interfaces);
    let (owners, programs) = beside(
        || Owners::new(&mut owners_storage, notices),
        || {
            let purpose = Purpose::Report(buffer);
            Programs::load(args, purpose, &interfaces, &mut storage, notices)
        },
    );
    let programs = programs?;
    let mut handler = AttemptHandler::new(
        args,
        &interfaces,
        programs.symbols,
        programs.reasons,
        layout,
    )?;
    handler.owners = owners
        .inspect_err(|error| {
            notices.detail(&format!("processes that listen can't be shown: {error:#}"));
        })
        .ok();
    let mut skels = programs.skels;
    let first = skels.first().context("there is no interface")?;
    let maps = &first.maps;
    let mut source = EventSource::open(buffer, args.buffer.size(), &maps.ring, &maps.perf)?;
    let mut table = AttemptTable::new(
        &interfaces,
        table::SWEEP_EVERY,
        args.attempt_timeout,
        session.notices,
    )?;

    let mut attached =
        programs::attach(programs.hook, first, &programs.pairs, &interfaces, prepared)?;
    session.follow(&mut attached.interfaces)?;
    let first = skels.first_mut().context("there is no interface")?;
    seed(&mut table, first, notices);
    drop_privileges(&attached, &mut handler, &mut table, first)?;
    shown.begin(&mut session, &handler);
    session.start(match handler.containers {
        Some(_) => Files::Readable,
        None => Files::Opened,
    });
    session.attached(&format!(
        "{}, {} ({NAME}, {})",
        attached.interfaces,
        attached.hooks.join(", "),
        buffer.name()
    ));

    let interval = shown.interval(args);
    let mut report_due = interval.map(|length| Instant::now() + length);
    loop {
        let due = report_due.map_or(table.due(), |at| at.min(table.due()));
        let on_event = |session: &mut Session, bytes: &[u8]| handler.take(session, bytes);
        if session.take_events(&mut source, Some(due), on_event)? == Wake::Stop {
            break;
        }
        if Instant::now() >= table.due() {
            let first = skels.first_mut().context("there is no interface")?;
            table.sweep(first)?;
        }
        if let Some(at) = report_due.filter(|at| Instant::now() >= *at) {
            shown.report(&mut session, &mut skels, &mut handler)?;
            report_due = interval.map(|length| next_due(at, length));
        }
    }
    detach(&mut session, &mut skels, attached)?;
    let mut on_event = |session: &mut Session, bytes: &[u8]| handler.take(session, bytes);
    session.drain_rest(&mut source, &mut on_event)?;
    let first = skels.first_mut().context("there is no interface")?;
    table.end(first, || session.drain_rest(&mut source, &mut on_event))?;
    shown.report(&mut session, &mut skels, &mut handler)?;
    let summary = summary(&session, &skels, &handler, &shown)?;
    session.finish(&summary)
}

/// Adds the attempts that arrived before the start. Reports it if they can't be found.
fn seed(table: &mut AttemptTable, first: &mut AcceptTraceSkel<'_>, notices: Notices) {
    if let Err(error) = table.seed(first) {
        notices.notice(&format!(
            "attempts that arrived before the start can't be shown: {error:#}"
        ));
    }
}

/// Drops all privileges but those that the run needs, to read maps and to run a program.
fn drop_privileges(
    attached: &Hooks,
    handler: &mut AttemptHandler<'_>,
    table: &mut AttemptTable,
    first: &mut AcceptTraceSkel<'_>,
) -> Result<()> {
    let can_do_all = || {
        let can_scan = handler.owners.as_mut().is_none_or(|it| it.scan().is_ok());
        can_scan && table.sweep(first).is_ok()
    };
    let needed = privileges::needed_for(Capability::CAP_BPF, can_do_all)?;
    let mut keep = Vec::from_iter(needed);
    if attached.interfaces.needs_privileges() {
        keep.push(Capability::CAP_NET_ADMIN);
    }
    privileges::drop_all_but(&keep)
}

/// Stops and detaches the programs, so that their counters are final.
fn detach(
    session: &mut Session,
    skels: &mut [AcceptTraceSkel<'_>],
    mut attached: Hooks,
) -> Result<()> {
    let checked = session.check_hooks();
    // If another process holds the links, the programs stay attached: stop them.
    for skel in skels {
        if let Some(bss) = skel.maps.bss_counters_data.as_deref_mut() {
            crate::skel::stop(&mut bss.stopped);
        }
    }
    for note in attached.interfaces.detach() {
        session.notices.note(&note);
    }
    drop(attached);
    checked?;
    crate::sys::link::synchronize();
    Ok(())
}

/// The summary of a run. Attempts that found no room in the table count as lost: their fate is
/// unknown.
fn summary(
    session: &Session,
    skels: &[AcceptTraceSkel<'_>],
    handler: &AttemptHandler<'_>,
    shown: &Reports,
) -> Result<Summary> {
    let mut totals = AttemptTotals::default();
    let (mut matched, mut lost, mut suppressed) = (0, 0, 0);
    for skel in skels {
        let bss = skel.maps.bss_accept_data.as_deref();
        let counters = bss.map(crate::skel::accept_counters);
        let counters = counters.context("the programs have no counters")?;
        for (to, from) in totals.fates.iter_mut().zip(counters.fates) {
            *to = to.wrapping_add(from);
        }
        totals.untracked += counters.untracked;
        totals.forgotten += counters.forgotten;
        matched += counters.matched + counters.untracked;
        lost += counters.lost + counters.untracked;
        suppressed += counters.suppressed;
        lost += untracked(skel);
    }
    matched -= handler.unwanted;
    suppressed += handler.suppressed;
    let summary = Summary {
        attempts: Some(totals),
        ..session.summary(NAME, matched, lost, suppressed)
    };
    Ok(match shown {
        Reports::Lines => summary,
        Reports::Counts(_) | Reports::Histograms(_) => summary.all_shown_but(lost),
    })
}

/// How many values have found no room in the table of histograms.
fn untracked(skel: &AcceptTraceSkel<'_>) -> u64 {
    let bss = skel.maps.bss_histogram_data.as_deref();
    bss.map_or(0, |bss| {
        crate::skel::histogram_untracked(&bss.histogram_untracked)
    })
}

/// The kind of output: a line for each event, or reports of counts.
enum Reports {
    Lines,
    Counts(CountReports),
    Histograms(Histograms),
}

impl Reports {
    fn new(args: &AcceptTraceArgs) -> Result<Self, Failure> {
        let columns = &args.run.output.columns;
        Ok(match (args.histogram, args.by) {
            (Some(of), by) => {
                let by = match by {
                    Some(AcceptBy::Dport) => HistogramBy::Dport,
                    Some(AcceptBy::Comm) => HistogramBy::Comm,
                    _ => HistogramBy::Nothing,
                };
                let layout = HistogramLayout::of(columns)?;
                Self::Histograms(Histograms::new(layout, of.name(), by))
            }
            (None, Some(by)) => {
                Self::Counts(CountReports::new(by, args.top, CountsLayout::of(columns)?))
            }
            (None, None) => Self::Lines,
        })
    }

    /// The time between two reports; `None`: there is one at the end, or none.
    fn interval(&self, args: &AcceptTraceArgs) -> Option<Duration> {
        match self {
            Self::Lines => None,
            Self::Counts(_) => Some(args.interval.unwrap_or(Duration::from_secs(1))),
            Self::Histograms(_) => args.interval,
        }
    }

    /// Writes the header.
    fn begin(&mut self, session: &mut Session, handler: &AttemptHandler<'_>) {
        match self {
            Self::Lines => session.text_header(|out, clock| handler.layout.header(out, clock)),
            Self::Counts(counts) => counts.begin(session),
            Self::Histograms(histograms) => histograms.begin(session),
        }
    }

    fn report(
        &mut self,
        session: &mut Session,
        skels: &mut [AcceptTraceSkel<'_>],
        handler: &mut AttemptHandler<'_>,
    ) -> Result<()> {
        match self {
            Self::Lines => Ok(()),
            Self::Counts(counts) => counts.report(session, skels, handler),
            Self::Histograms(histograms) => {
                let first = skels.first().context("there is no interface")?;
                histograms.report(session, &first.maps.histograms)?;
                let untracked = skels.iter().map(untracked).sum();
                histograms.note_untracked(session, untracked);
                Ok(())
            }
        }
    }
}

/// Turns events into lines: adds reason, place and process, and writes what was asked for.
struct AttemptHandler<'a> {
    layout: AttemptLayout,
    interfaces: HashMap<u32, &'a str>,
    netns: u64,
    reasons: Reasons,
    /// The argument of `--reason`; empty: all reasons.
    wanted: &'a [String],
    symbols: KernelSymbols,
    /// Only for JSON.
    containers: Option<Containers>,
    /// `None` if the processes of listeners can't be found.
    owners: Option<Owners<'a>>,
    full_queues: FullQueues,
    /// Events whose reason was not asked for.
    unwanted: u64,
    /// Limits the lines that `--reason` chooses.
    rate: LineRate,
    /// Events above this rate.
    suppressed: u64,
}

impl<'a> AttemptHandler<'a> {
    fn new(
        args: &'a AcceptTraceArgs,
        interfaces: &'a [Interface],
        symbols: KernelSymbols,
        reasons: Reasons,
        layout: AttemptLayout,
    ) -> Result<Self> {
        let names = interfaces.iter();
        Ok(Self {
            layout,
            interfaces: names
                .map(|interface| (interface.index, interface.name.as_str()))
                .collect(),
            netns: netns::own()?,
            reasons,
            wanted: &args.reason,
            symbols,
            containers: (args.run.output.format() == OutputFormat::Json).then(Containers::new),
            owners: None,
            full_queues: FullQueues::default(),
            unwanted: 0,
            rate: LineRate::new(args.max_rate.filter(|_| !args.reason.is_empty())),
            suppressed: 0,
        })
    }

    fn take(&mut self, session: &mut Session, bytes: &[u8]) {
        let Some(attempt) = Attempt::decode(bytes) else {
            session.broken();
            return;
        };
        let raw = &attempt.raw;
        let place = self.symbols.name(raw.attempt.place);
        let reason = match attempt.has_failed() {
            true => attempt.reason(&self.reasons, place),
            false => (None, ReasonFrom::Unknown),
        };
        if !is_wanted(self.wanted, &attempt, reason.0) {
            self.unwanted += 1;
            return;
        }
        let queue_full_ns = match attempt.is_arrival() {
            true => None,
            false => self.full_queues.note(&attempt),
        };
        if self.rate.is_over(raw.ts_ns.cast_signed()) {
            self.suppressed += 1;
            return;
        }
        let has_process = attempt.has(AcceptFlag::ATTEMPT_HAS_PROCESS);
        let has_listener = attempt.has(AcceptFlag::ATTEMPT_HAS_LISTENER);
        let owners = self
            .owners
            .as_mut()
            .filter(|_| !has_process && has_listener && attempt.has_failed());
        let owner = owners.and_then(|owners| owners.find(&attempt));
        let cgroup = match (has_process, owner) {
            (true, _) => Some((raw.cgroup_id, raw.pid)),
            (false, owner) => owner.map(|owner| (owner.cgroup_id, owner.pid)),
        };
        let containers = self.containers.as_mut().zip(cgroup);
        let shown = ShownAttempt {
            layout: &self.layout,
            attempt: &attempt,
            iface: self.interfaces.get(&raw.attempt.ifindex).copied(),
            netns: self.netns,
            reason,
            place,
            owner,
            queue_full_ns,
            container: containers.and_then(|(known, (cgroup, pid))| known.find(cgroup, pid)),
        };
        let at = session.clock.unix(raw.ts_ns);
        session.write_event(at, &shown);
    }
}

/// Whether an event passes `--reason`. Arrivals always pass.
fn is_wanted(wanted: &[String], attempt: &Attempt, reason: Option<&str>) -> bool {
    wanted.is_empty()
        || attempt.is_arrival()
        || reason.is_some_and(|reason| wanted.iter().any(|name| name == reason))
}

/// The fates that are asked for, as bits.
fn wanted_fates(args: &AcceptTraceArgs) -> u32 {
    let mut wanted = u32::MAX;
    if args.histogram.is_some() {
        return 1 << AcceptFate::FATE_ACCEPTED.0;
    }
    if !args.attempts {
        wanted &= !(1 << AcceptFate::FATE_NONE.0);
    }
    if args.failed || !args.reason.is_empty() {
        wanted &= !(1 << AcceptFate::FATE_ACCEPTED.0 | 1 << AcceptFate::FATE_FORWARDED.0);
    }
    wanted
}
