//! `connect-trace`: outgoing connection attempts and their fate, accepted and closed connections.

mod backend;
mod pending;

use std::mem::MaybeUninit;
use std::time::Instant;

use anyhow::Context;
use caps::Capability;

use self::backend::histogram_by;
pub(super) use self::backend::{ATTEMPTS, Tracer, choose, unseen};
pub use self::backend::{Backend, candidates};
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
use crate::run::events::{BufferKind, EventSource};
use crate::run::histograms::Histograms;
use crate::run::session::{Session, Wake, next_due};
use crate::skel;
use crate::sys::{link, map};

/// The size of an event.
const EVENT_LEN: usize = size_of::<skel::ConnectEvent>();

/// Runs the command.
///
/// # Errors
/// An option is wrong, or a program can't be loaded or attached.
pub fn run(args: &ConnectTraceArgs) -> Result<Exit, Failure> {
    let columns = &args.run.output.columns;
    let has_lines = !args.summary && args.histogram.is_none();
    let lines = if has_lines { columns } else { &[][..] };
    let mut writer = ConnectWriter::new(lines, args.close)?;
    let mut totals = args
        .summary
        .then(|| TotalsLayout::of(columns).map(|layout| (layout, Totals::default())))
        .transpose()?;
    let mut histograms = args
        .histogram
        .map(|of| {
            let layout = HistogramLayout::of(columns)?;
            Ok::<_, Failure>(Histograms::new(layout, of.name(), histogram_by(args).0))
        })
        .transpose()?;
    let mut session = Session::new(&args.run)?;
    args.netns.enter()?;
    load::possible_cpus()?;
    let buffer = BufferKind::choose(args.buffer.buffer)?;

    // One for each load: the skeleton that is kept borrows its own.
    let mut storage = [const { MaybeUninit::uninit() }; ATTEMPTS];
    let mut tracer = choose(args, buffer, &mut storage, session.notices)?;
    writer.backend = tracer.backend.name();
    let has_containers = args.run.output.format() == OutputFormat::Json;
    let mut containers = Containers::new();
    let mut pending = tracer.pending.take();
    let maps = &mut tracer.skel.maps;
    let mut source = EventSource::open(buffer, args.buffer.size(), &maps.ring, &maps.perf)?;
    let mut on_event = |session: &mut Session, bytes: &[u8]| {
        let Some(connection) = Connection::decode(bytes) else {
            session.broken();
            return;
        };
        if let Some((_, totals)) = &mut totals {
            totals.add(&connection);
            return;
        }
        let raw = &connection.raw;
        let container = (has_containers && connection.has_process())
            .then(|| containers.find(raw.cgroup_id, raw.pid))
            .flatten();
        let at = session.clock.unix(raw.ts_ns);
        session.write_event(at, &writer.shown(&connection, container));
    };
    // Histograms are read with bpf(2), which needs CAP_BPF before Linux 5.19.
    let can_read = || map::read_all(&maps.histograms, false, |_, _| {}).is_ok();
    let keep = match histograms.is_none() || privileges::without_capabilities(can_read)? {
        true => &[][..],
        false => &[Capability::CAP_BPF],
    };
    privileges::drop_all_but(keep)?;
    if has_lines {
        session.text_header(|out, clock| writer.layout.header(out, clock));
    }
    if let Some(histograms) = &mut histograms {
        histograms.begin(&mut session);
    }
    if let Some(pending) = &mut pending {
        pending.find(&mut session, &mut source, &mut on_event)?;
    }
    // The container of a process is found in files.
    session.start(if has_containers {
        Files::Readable
    } else {
        Files::Opened
    });
    session.attached(&format!(
        "{} (connect-trace, backend {}, {})",
        tracer.hooks.join(", "),
        tracer.backend.name(),
        buffer.name()
    ));

    let started = Instant::now();
    let mut due = args.interval.map(|length| started + length);
    while session.take_events(&mut source, due, &mut on_event)? != Wake::Stop {
        if let (Some(histograms), Some(at)) =
            (&mut histograms, due.filter(|at| Instant::now() >= *at))
        {
            histograms.report(&mut session, &maps.histograms)?;
            due = args.interval.map(|length| next_due(at, length));
        }
    }
    if let Some(bss) = maps.bss_data.as_deref_mut() {
        skel::stop(&mut bss.ending);
    }
    // Before the hooks are detached: they still report attempts that get their fate meanwhile.
    let reported = match &mut pending {
        Some(pending) => pending.report(args.failed || args.histogram.is_some())?,
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
    drop(tracer.links);
    link::synchronize();
    session.drain_rest(&mut source, &mut on_event)?;
    for event in reported.events.chunks_exact(EVENT_LEN) {
        on_event(&mut session, event);
    }
    if let Some((layout, totals)) = &totals {
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
    let bss = maps.bss_histogram_data.as_deref();
    let untracked = bss.map_or(0, |bss| skel::histogram_untracked(&bss.histogram_untracked));
    if let Some(histograms) = &mut histograms {
        histograms.report(&mut session, &maps.histograms)?;
        histograms.note_untracked(&session, untracked);
    }
    session.flush();
    let counters = maps
        .bss_data
        .as_deref()
        .map(skel::connect_counters)
        .context("the programs have no counters")?;
    let unkept_pending = counters.unkept_pending.cast_signed().max(0).cast_unsigned();
    let unseen = unseen(&counters, unhooked, &tracer.skel.progs) + unkept_pending;
    if counters.unkept > 0 {
        let (place, advice) = match tracer.storage {
            true => (
                "socket, because the socket's memory for options was full",
                "a larger net.core.optmem_max helps",
            ),
            false => (
                "table",
                "a filter (--uid, --pid, -p, --dst) helps, or Linux 5.11, which has no such limit",
            ),
        };
        session.notices.notice(&format!(
            "{} times a connection found no room in the {place}: its fate was reported without a process, or counted as lost; {advice}",
            counters.unkept
        ));
    }
    let mut summary = session.summary(
        "connect-trace",
        counters.matched + reported.count() + unseen,
        counters.lost + unseen + untracked,
        counters.suppressed,
    );
    summary.pending = pending.is_some().then_some(reported.fates + unkept_pending);
    if let Some((_, totals)) = &totals {
        summary.emitted = totals.events();
    }
    if histograms.is_some() {
        // Histograms show all that was counted: nothing is queued.
        summary.emitted = counters.matched - counters.lost - untracked;
    }
    session.finish(&summary)
}

/// Loads and attaches the programs as a run would, and detaches them again. Returns the backend.
///
/// # Errors
/// A run would fail in the same way.
pub fn rehearse(args: &ConnectTraceArgs, notices: Notices) -> Result<Backend, Failure> {
    let buffer = BufferKind::choose(args.buffer.buffer)?;
    let mut storage = [const { MaybeUninit::uninit() }; ATTEMPTS];
    Ok(choose(args, buffer, &mut storage, notices)?.backend)
}
