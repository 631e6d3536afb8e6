//! `connect-trace`: outgoing connection attempts and their fate, accepted and closed connections.

mod backend;
mod pending;

use std::mem::MaybeUninit;
use std::time::Instant;

use anyhow::{Context, Result};
use caps::Capability;
use libbpf_rs::MapMut;

use self::backend::histogram_by;
pub use self::backend::{Backend, candidates};
pub(super) use self::backend::{LOADS_MAX, Tracer, choose};
use self::pending::PendingEvents;
use crate::attach::load;
use crate::cli::{ConnectTraceArgs, OutputFormat};
use crate::domain::connect_totals::Totals;
use crate::domain::connection::Connection;
use crate::failure::{Exit, Failure};
use crate::host::containers::Containers;
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::notice::Notices;
use crate::output::connect_trace::{ConnectWriter, ShownTotal, TotalsLayout};
use crate::output::histogram::HistogramLayout;
use crate::output::summary::Summary;
use crate::run::events::{BufferKind, EventSource};
use crate::run::export::Purpose;
use crate::run::histograms::Histograms;
use crate::run::session::{Session, Wake, next_due};
use crate::skel::{self, ConnectCounters};
use crate::sys::{link, map};

pub(super) const NAME: &str = "connect-trace";

/// The size of an event.
const EVENT_LEN: usize = size_of::<skel::ConnectEvent>();

/// Runs the command.
///
/// # Errors
/// An option is wrong, or a program can't be loaded or attached.
pub fn run(args: &ConnectTraceArgs) -> Result<Exit, Failure> {
    let mut handler = ConnectHandler::new(args)?;
    let mut session = Session::new(&args.run)?;
    args.netns.enter()?;
    load::possible_cpus()?;
    let buffer = BufferKind::choose(args.buffer.buffer);

    // One for each load, because the skeleton that is kept borrows the one that it was loaded into.
    let mut storage = [const { MaybeUninit::uninit() }; LOADS_MAX];
    let mut tracer = choose(args, Purpose::Report(buffer), &mut storage, session.notices)?;
    handler.writer.backend = tracer.backend.name();
    let maps = &tracer.skel.maps;
    let mut source = EventSource::open(buffer, args.buffer.size(), &maps.ring, &maps.perf)?;
    privileges::drop_all_but(handler.reports.needs(&maps.histograms)?.as_slice())?;
    handler.begin(&mut session);
    if let Some(pending) = &mut tracer.pending {
        let mut on_event = |session: &mut Session, bytes: &[u8]| handler.take(session, bytes);
        pending.find(&mut session, &mut source, &mut on_event)?;
    }
    session.start(match handler.containers {
        Some(_) => Files::Readable,
        None => Files::Opened,
    });
    session.attached(&format!(
        "{} ({NAME}, backend {}, {})",
        tracer.hooks.join(", "),
        tracer.backend.name(),
        buffer.name()
    ));

    let mut due = args.interval.map(|length| Instant::now() + length);
    loop {
        let on_event = |session: &mut Session, bytes: &[u8]| handler.take(session, bytes);
        if session.take_events(&mut source, due, on_event)? == Wake::Stop {
            break;
        }
        if let (Reports::Histograms(histograms), Some(at)) =
            (&mut handler.reports, due.filter(|at| Instant::now() >= *at))
        {
            histograms.report(&mut session, &tracer.skel.maps.histograms)?;
            due = args.interval.map(|length| next_due(at, length));
        }
    }
    let (reported, unhooked) = detach(&mut tracer, args.failed || args.histogram.is_some())?;
    session.drain_rest(&mut source, |session, bytes| handler.take(session, bytes))?;
    for event in reported.events.chunks_exact(EVENT_LEN) {
        handler.take(&mut session, event);
    }
    handler.reports.end(&mut session, &tracer)?;
    session.flush();
    let counters = tracer.skel.maps.bss_data.as_deref();
    let counters = counters.map(skel::connect_counters);
    let counters = counters.context("the programs have no counters")?;
    note_untracked(session.notices, counters.untracked, tracer.storage);
    let summary = summary(
        &session,
        &tracer,
        &handler.reports,
        &counters,
        &reported,
        unhooked,
    );
    session.finish(&summary)
}

/// Detaches the programs. Returns the attempts without a fate, and for how many attempts the kernel
/// has skipped the hook on the connect function.
fn detach(tracer: &mut Tracer<'_>, only_failures: bool) -> Result<(PendingEvents, u64)> {
    let maps = &mut tracer.skel.maps;
    if let Some(bss) = maps.bss_data.as_deref_mut() {
        skel::stop(&mut bss.ending);
    }
    // Before the hooks are detached: they still report attempts that get their fate meanwhile.
    let reported = match &mut tracer.pending {
        Some(pending) => pending.report(only_failures)?,
        None => PendingEvents::default(),
    };
    // Read before the hooks are detached: afterwards each attempt would count as unhooked.
    let unhooked = maps
        .bss_data
        .as_deref()
        .map_or(0, |bss| skel::connect_counters(bss).unhooked);
    // If another process holds the links, the programs stay attached: stop them.
    if let Some(bss) = maps.bss_data.as_deref_mut() {
        skel::stop(&mut bss.stopped);
    }
    tracer.links.clear();
    link::synchronize();
    Ok((reported, unhooked))
}

/// Prints a notice if connections found no room in the tables.
fn note_untracked(notices: Notices, untracked: u64, has_storage: bool) {
    if untracked == 0 {
        return;
    }
    let (place, advice) = match has_storage {
        true => (
            "storage of its socket, because the socket's option memory was full",
            "a larger net.core.optmem_max helps",
        ),
        false => (
            "table",
            "a filter (--uid, --pid, -p, --dst) helps, or Linux 5.11, which has no such limit",
        ),
    };
    notices.notice(&format!(
        "{untracked} times a connection found no room in the {place}; each time, its outcome was reported without a process, or counted as lost; {advice}"
    ));
}

/// The summary of a run.
fn summary(
    session: &Session,
    tracer: &Tracer<'_>,
    reports: &Reports,
    counters: &ConnectCounters,
    reported: &PendingEvents,
    unhooked: u64,
) -> Summary {
    let untracked_times = untracked_times(tracer);
    let untracked_pending = counters
        .untracked_pending
        .cast_signed()
        .max(0)
        .cast_unsigned();
    let unseen = tracer.unseen(counters, unhooked) + untracked_pending;
    let mut summary = session.summary(
        NAME,
        counters.matched + reported.count() + unseen,
        counters.lost + unseen + untracked_times,
        counters.suppressed,
    );
    summary.pending = tracer
        .pending
        .is_some()
        .then_some(reported.attempts + untracked_pending);
    match reports {
        Reports::Lines => {}
        Reports::Totals(_, totals) => summary.emitted = totals.events(),
        // Histograms show all that was counted: nothing is queued.
        Reports::Histograms(_) => {
            summary.emitted = counters.matched - counters.lost - untracked_times
        }
    }
    summary
}

/// How many values have found no room in the table of histograms.
fn untracked_times(tracer: &Tracer<'_>) -> u64 {
    let bss = tracer.skel.maps.bss_histogram_data.as_deref();
    bss.map_or(0, |bss| skel::histogram_untracked(&bss.histogram_untracked))
}

/// The kind of output: a line for each event, totals at the end, or histograms.
enum Reports {
    Lines,
    Totals(TotalsLayout, Totals),
    Histograms(Histograms),
}

impl Reports {
    fn new(args: &ConnectTraceArgs) -> Result<Self, Failure> {
        let columns = &args.run.output.columns;
        Ok(match args.histogram {
            Some(of) => {
                let layout = HistogramLayout::of(columns)?;
                Self::Histograms(Histograms::new(layout, of.name(), histogram_by(args).0))
            }
            None if args.summary => Self::Totals(TotalsLayout::of(columns)?, Totals::default()),
            None => Self::Lines,
        })
    }

    /// The capability that the run needs to read histograms, if any.
    fn needs(&self, table: &MapMut<'_>) -> Result<Option<Capability>> {
        let can_read = || map::read_all(table, false, |_, _| {}).is_ok();
        match self {
            Self::Histograms(_) => privileges::needed_for(Capability::CAP_BPF, can_read),
            _ => Ok(None),
        }
    }

    /// Writes what is shown at the end.
    fn end(&mut self, session: &mut Session, tracer: &Tracer<'_>) -> Result<()> {
        match self {
            Self::Lines => {}
            Self::Totals(layout, totals) => {
                session.text_header(|out, clock| layout.header(out, clock));
                let now = session.clock.now();
                for (key, counts) in totals.rows() {
                    let shown = ShownTotal {
                        layout,
                        key,
                        counts,
                    };
                    session.write(now, &shown);
                }
            }
            Self::Histograms(histograms) => {
                histograms.report(session, &tracer.skel.maps.histograms)?;
                histograms.note_untracked(session, untracked_times(tracer));
            }
        }
        Ok(())
    }
}

/// Writes or counts events.
struct ConnectHandler {
    writer: ConnectWriter,
    reports: Reports,
    /// Only for JSON.
    containers: Option<Containers>,
}

impl ConnectHandler {
    fn new(args: &ConnectTraceArgs) -> Result<Self, Failure> {
        let reports = Reports::new(args)?;
        let columns = match reports {
            Reports::Lines => &*args.run.output.columns,
            _ => &[],
        };
        Ok(Self {
            writer: ConnectWriter::new(columns, args.close)?,
            reports,
            containers: (args.run.output.format() == OutputFormat::Json).then(Containers::new),
        })
    }

    /// Writes the header of what comes during the run.
    fn begin(&mut self, session: &mut Session) {
        match &mut self.reports {
            Reports::Lines => {
                session.text_header(|out, clock| self.writer.layout.header(out, clock))
            }
            Reports::Totals(..) => {}
            Reports::Histograms(histograms) => histograms.begin(session),
        }
    }

    fn take(&mut self, session: &mut Session, bytes: &[u8]) {
        let Some(connection) = Connection::decode(bytes) else {
            session.broken();
            return;
        };
        if let Reports::Totals(_, totals) = &mut self.reports {
            totals.add(&connection);
            return;
        }
        let raw = &connection.raw;
        let containers = self.containers.as_mut();
        let containers = containers.filter(|_| connection.has_process());
        let container = containers.and_then(|known| known.find(raw.cgroup_id, raw.pid));
        let at = session.clock.unix(raw.ts_ns);
        session.write_event(at, &self.writer.shown(&connection, container));
    }
}

/// Loads and attaches the programs as a run would, and detaches them again.
///
/// # Errors
/// A run would fail in the same way.
pub fn rehearse(args: &ConnectTraceArgs, notices: Notices) -> Result<(), Failure> {
    let purpose = Purpose::Report(BufferKind::choose(args.buffer.buffer));
    let mut storage = [const { MaybeUninit::uninit() }; LOADS_MAX];
    choose(args, purpose, &mut storage, notices)?;
    Ok(())
}
