//! Flows of a capture file. The time is that of its frames.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::SWEEP_EVERY;
use super::table::FlowTable;
use crate::cli::FlowsArgs;
use crate::domain::UnixNanos;
use crate::failure::Failure;
use crate::output::summary::Summary;
use crate::run::packet::Replay;
use crate::run::replay::{AroundFrames, Intervals, Origin};
use crate::run::session::Session;
use crate::skel::flows::FlowsSkel;
use crate::skel::{PacketSkel, SweepMode};

/// Runs the frames of the file through the programs, and sweeps the table when their times say so.
pub fn run(
    args: &FlowsArgs,
    table: FlowTable<'_>,
    replay: &mut Replay<'_, FlowsSkel<'_>>,
) -> Result<Summary, Failure> {
    let mut schedule = Schedule {
        table,
        slots: replay.slots,
        intervals: Intervals::new(args.interval),
        swept: None,
        swept_slots: 0,
        sweep_by: Instant::now() + SWEEP_WITHIN,
        latest: 0,
        frames: 0,
        frames_swept: 0,
        check_room_every: (u64::from(args.max_flows) / 16).clamp(1, CHECK_ROOM_EVERY),
    };
    replay.run(|skel| &skel.progs.flows_packet, &mut schedule);
    schedule.finish(replay.session, replay.skel)?;
    schedule.table.reporter.write_distributions(replay.session);
    replay.session.flush();
    let mut reporter = schedule.table.reporter;
    reporter.note_names_lost([&*replay.skel]);
    Ok(reporter.summary(replay.session, replay.counters()))
}

/// When to sweep and to report in a replay.
struct Schedule<'a> {
    table: FlowTable<'a>,
    slots: usize,
    intervals: Intervals,
    /// The time of the last sweep.
    swept: Option<UnixNanos>,
    /// How many slots the last sweep has looked at.
    swept_slots: u64,
    /// When to sweep even though few frames have come, as from a slow pipe.
    sweep_by: Instant,
    latest: UnixNanos,
    frames: u64,
    /// How many frames came before the last sweep.
    frames_swept: u64,
    /// The number of frames between two checks of how full the table is: that many can't fill the
    /// rest.
    check_room_every: u64,
}

/// The largest number of frames between two checks of how full the table is.
const CHECK_ROOM_EVERY: u64 = 1024;

/// If a sweep has looked at N slots, the next one waits for N frames divided by this number: then
/// sweeps cost no more than the frames do. When a sweep comes does not change what is reported.
const SLOTS_PER_FRAME: u64 = 8;

/// How long sweeps wait for frames at most.
const SWEEP_WITHIN: Duration = Duration::from_secs(1);

impl Schedule<'_> {
    /// Reports an interval with this end and length.
    fn end_interval(
        &mut self,
        session: &mut Session,
        skel: &FlowsSkel<'_>,
        ended: (UnixNanos, Duration),
    ) {
        let untracked = skel.counters(self.slots).untracked;
        let reporter = &mut self.table.reporter;
        reporter.end_interval(session, Some(ended), untracked);
    }

    /// Whether a frame of this time comes after the current interval, if there are any.
    fn ends_interval(&mut self, at: UnixNanos) -> bool {
        self.intervals.is_over(at) && self.table.reporter.traffic.is_some()
    }

    fn is_sweep_due(&mut self, at: UnixNanos) -> bool {
        let swept = *self.swept.get_or_insert(at);
        at.saturating_sub(swept).unsigned_abs() >= SWEEP_EVERY.as_nanos() as u64
            && ((self.frames - self.frames_swept) * SLOTS_PER_FRAME >= self.swept_slots
                || Instant::now() >= self.sweep_by)
    }

    fn is_room_due(&self) -> bool {
        self.frames.is_multiple_of(self.check_room_every)
    }

    fn finish(&mut self, session: &mut Session, skel: &mut FlowsSkel<'_>) -> Result<()> {
        let now = self.latest.cast_unsigned();
        self.table.sweep(session, skel, SweepMode::SWEEP_ALL, now)?;
        if let Some(last) = self.intervals.last(self.latest) {
            self.end_interval(session, skel, last);
        }
        Ok(())
    }
}

impl AroundFrames<FlowsSkel<'_>> for Schedule<'_> {
    fn is_due(&mut self, at: UnixNanos) -> bool {
        self.latest = self.latest.max(at);
        self.frames += 1;
        self.ends_interval(at) || self.is_sweep_due(at) || self.is_room_due()
    }

    fn after(&mut self, session: &mut Session, _: &[Origin]) {
        self.table.read_names(session);
    }

    /// Does what is due before a frame of this time.
    fn before(
        &mut self,
        session: &mut Session,
        skel: &mut FlowsSkel<'_>,
        at: UnixNanos,
    ) -> Result<()> {
        if self.ends_interval(at) {
            self.table
                .sweep(session, skel, SweepMode::SWEEP_LIVE, at.cast_unsigned())?;
            let current = self.intervals.current(at);
            self.end_interval(session, skel, current);
            self.intervals.skip_to(at);
        }
        if self.is_sweep_due(at) {
            let now = at.cast_unsigned();
            let sweep = self
                .table
                .sweep(session, skel, SweepMode::SWEEP_ENDED, now)?;
            self.swept = Some(at);
            self.swept_slots = sweep.end.into();
            self.sweep_by = Instant::now() + SWEEP_WITHIN;
            self.frames_swept = self.frames;
        }
        if self.is_room_due() {
            let ever = skel.counters(self.slots).matched;
            self.table
                .make_room(session, skel, ever, at.cast_unsigned())?;
        }
        Ok(())
    }
}
