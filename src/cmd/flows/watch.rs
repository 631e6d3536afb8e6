//! The loops of a live run: lines, traffic by key, or the full-screen view.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

use super::table::FlowTable;
use super::{SWEEP_EVERY, files};
use crate::cli::{FlowsArgs, OutputFormat};
use crate::run::monotonic::monotonic_ns;
use crate::run::packet::Live;
use crate::run::screen;
use crate::run::session::{Wake, next_due};
use crate::skel::SweepMode;
use crate::skel::flows::FlowsSkel;
use crate::stop::ExitReason;
use crate::view::flows::{FlowsView, Interval};
use crate::view::terminal::{self, Screen};

/// After a sweep, wait this many times as long as it took.
const SWEEP_REST: u32 = 50;

/// How often to sweep while the table is nearly full.
const SWEEP_FULL: Duration = Duration::from_millis(10);

/// After a sweep of a table that is nearly full, wait this many times as long as it took. In a flood,
/// sweeps then take up to a fifth of a CPU: with fewer of them, more new connections would find no
/// room, and would not be shown.
const SWEEP_FULL_REST: u32 = 4;

/// Sweeps the table and writes the lines until the run is over.
pub fn run_sweeps(
    live: &mut Live<'_, FlowsSkel<'_>>,
    args: &FlowsArgs,
    table: &mut FlowTable<'_>,
) -> Result<()> {
    let started = Instant::now();
    let has_intervals = args.by.is_some() && args.histogram.is_none();
    let mut interval_due = has_intervals.then(|| started + args.interval);
    let mut sweep_due = started + SWEEP_EVERY;
    loop {
        let until = interval_due.map_or(sweep_due, |due| due.min(sweep_due));
        if live.session.wait(None, Some(until))? == Wake::Stop {
            return Ok(());
        }
        live.session.clock.sync()?;
        let ever = table.ever(&live.counters());
        table.find_owners(ever, live.session.notices);
        let now = Instant::now();
        let worked = cpu_time()?;
        let interval_ends = interval_due.is_some_and(|due| now >= due);
        let mode = if interval_ends {
            SweepMode::SWEEP_LIVE
        } else {
            SweepMode::SWEEP_ENDED
        };
        let (session, skel) = live.first()?;
        table.sweep(session, skel, mode, monotonic_ns()?)?;
        let counted = live.counters();
        let (session, skel) = live.first()?;
        if interval_ends {
            table
                .reporter
                .end_interval(session, None, counted.untracked);
            interval_due = interval_due.map(|due| next_due(due, args.interval));
        }
        let ever = table.ever(&counted);
        let evicted = table.make_room(session, skel, ever, monotonic_ns()?)?;
        session.flush();
        sweep_due = next_sweep(evicted, worked)?;
    }
}

/// Whether to show the view: there is a terminal, and no option asks for lines.
pub fn shows_view(args: &FlowsArgs) -> bool {
    // `--columns` is about lines.
    let asks_for_lines = args.no_tui
        || args.by.is_some()
        || args.histogram.is_some()
        || !args.run.output.columns.is_empty();
    let is_asked = !asks_for_lines && args.run.stop.count.is_none();
    is_asked && args.run.output.format() == OutputFormat::Text && terminal::is_there()
}

/// When the view is first drawn: soon, but late enough for meaningful rates.
const FIRST_VIEW: Duration = Duration::from_millis(250);

/// Shows the view until the run is over. The terminal is restored on return in any case.
pub fn run_view(
    live: &mut Live<'_, FlowsSkel<'_>>,
    args: &FlowsArgs,
    table: &mut FlowTable<'_>,
) -> Result<()> {
    let names = live
        .interfaces
        .iter()
        .map(|interface| interface.name.clone());
    let mut view = FlowsView::new(names.collect());
    let mut updated = live.started;
    let session = &mut *live.session;
    let opened = Screen::open(&session.sink)?;
    let Some(mut screen) = opened else {
        session.end(ExitReason::ClosedPipe);
        return Ok(());
    };
    session.confine(files(args));
    let stdin = std::io::stdin();
    let mut due = Instant::now() + args.interval.min(FIRST_VIEW);
    let mut sweep_due = due;
    loop {
        let session = &mut *live.session;
        screen.show(&mut view, &mut session.sink);
        let wake = session.wait(Some(stdin.as_fd()), Some(due.min(sweep_due)))?;
        if wake == Wake::Stop {
            return Ok(());
        }
        if wake == Wake::Events {
            screen::take_keys(session, &mut screen, &mut view)?;
            if session.is_over() {
                return Ok(());
            }
        }
        let ever = table.ever(&live.counters());
        let (session, skel) = live.first()?;
        table.find_owners(ever, session.notices);
        let now = Instant::now();
        let worked = cpu_time()?;
        if now >= due {
            table.read_numbers(session.notices);
            let now_ns = monotonic_ns()?;
            table.sweep(session, skel, SweepMode::SWEEP_LIVE, now_ns)?;
            let interval = Interval {
                now_ns,
                seconds: updated.elapsed().as_secs_f64(),
                untracked: live.counters().untracked,
                left_out: std::mem::take(&mut table.reporter.left_out),
            };
            view.update(table.reporter.rows.drain(..), &interval);
            screen.touch();
            updated = now;
            due = now + args.interval.max(worked_since(worked)? * SWEEP_REST);
        } else if now >= sweep_due {
            table.sweep(session, skel, SweepMode::SWEEP_ENDED, monotonic_ns()?)?;
        }
        if now >= sweep_due {
            let ever = table.ever(&live.counters());
            let (session, skel) = live.first()?;
            let evicted = table.make_room(session, skel, ever, monotonic_ns()?)?;
            sweep_due = next_sweep(evicted, worked)?;
        }
    }
}

/// CPU time of this thread, which includes that of the sweep.
fn cpu_time() -> Result<Duration> {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("failed to read the clock")?;
    Ok(time.into())
}

/// When to sweep again, after work that began at this CPU time.
fn next_sweep(evicted: bool, worked: Duration) -> Result<Instant> {
    let (every, rest) = if evicted {
        (SWEEP_FULL, SWEEP_FULL_REST)
    } else {
        (SWEEP_EVERY, SWEEP_REST)
    };
    Ok(Instant::now() + every.max(worked_since(worked)? * rest))
}

/// The CPU time that this thread has used since its CPU time was `before`. Waiting does not count:
/// after waiting for other processes or for the reader of the output, a long rest would let the
/// table fill up.
fn worked_since(before: Duration) -> Result<Duration> {
    Ok(cpu_time()?.saturating_sub(before))
}
