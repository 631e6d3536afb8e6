//! Sweeps the table of flows in the kernel.

use anyhow::{Context, Result};
use libbpf_rs::ErrorKind;

use super::reporter::Reporter;
use super::sockets::Sockets;
use crate::cli::FlowsArgs;
use crate::domain::counters::PacketCounters;
use crate::notice::Notices;
use crate::run::call::call;
use crate::run::events::EventSource;
use crate::run::session::Session;
use crate::skel::flows::FlowsSkel;
use crate::skel::{self, FLOW_RANKS, FlowRecord, Sweep, SweepLimit, SweepMode};

/// The table is nearly full above this fraction.
const NEARLY_FULL: (u64, u64) = (9, 10);
/// If it is nearly full, flows are evicted down to this fraction.
const LEFT: (u64, u64) = (3, 4);

/// The table of flows, read by the sweep program.
pub struct FlowTable<'a> {
    source: EventSource,
    /// `None` if sockets can't be read.
    pub sockets: Option<Sockets<'a>>,
    /// With --names: the bytes that names are read from.
    pub name_source: Option<EventSource>,
    /// Receives the records.
    pub reporter: Reporter<'a>,
    /// Flows that were added for sockets, until sockets could no longer be read.
    lost_seeded: u64,
    /// How many records certainly find room in the buffer.
    room: u32,
    max_flows: u64,
}

impl<'a> FlowTable<'a> {
    /// Reads the records of the sweep from this buffer.
    pub fn new(args: &FlowsArgs, source: EventSource, reporter: Reporter<'a>) -> Self {
        // Only the sweep writes to the buffer, and it is emptied after each run. So no record is lost,
        // except on a CPU that came online after a perf buffer was opened.
        let room = source.room(size_of::<FlowRecord>());
        Self {
            source,
            sockets: None,
            name_source: None,
            reporter,
            lost_seeded: 0,
            room: u32::try_from(room).unwrap_or(u32::MAX),
            max_flows: args.max_flows.into(),
        }
    }

    /// How many flows there have ever been: those of packets that were counted, those that were
    /// added for sockets, and once more those that were reported as unanswered.
    pub fn ever(&self, counted: &PacketCounters) -> u64 {
        counted.matched
            + self.reporter.unanswered
            + self.lost_seeded
            + self.sockets.as_ref().map_or(0, Sockets::seeded)
    }

    /// Adds the connections that are older than the tool.
    pub fn seed(&mut self, notices: Notices) {
        match self.sockets.as_mut().map(Sockets::seed) {
            Some(Ok(0)) | None => {}
            Some(Ok(left_out)) => notices.notice(&format!(
                "{left_out} older connections have no room in the table; --max-flows makes it larger"
            )),
            Some(Err(error)) => self.lose_sockets(notices, &error),
        }
    }

    /// Copies the kernel's numbers of all connections into the table.
    pub fn read_numbers(&mut self, notices: Notices) {
        if let Some(sockets) = &mut self.sockets
            && let Err(error) = sockets.read_numbers()
        {
            self.lose_sockets(notices, &error);
        }
    }

    /// Reads the sockets once more, at the end of the run.
    pub fn read_sockets_again(&mut self, notices: Notices) {
        self.read_numbers(notices);
        if let Some(sockets) = &mut self.sockets
            && let Err(error) = sockets.scan_now()
        {
            self.lose_sockets(notices, &error);
        }
    }

    /// Looks for the processes of new flows; `ever` is how many flows there have ever been.
    pub fn find_owners(&mut self, ever: u64, notices: Notices) {
        if let Some(sockets) = &mut self.sockets
            && let Err(error) = sockets.scan(ever)
        {
            self.lose_sockets(notices, &error);
        }
    }

    fn lose_sockets(&mut self, notices: Notices, error: &anyhow::Error) {
        without_sockets(notices, error);
        self.lost_seeded = self.sockets.take().map_or(0, |sockets| sockets.seeded());
    }

    /// Reads the names in the bytes that have arrived.
    pub fn read_names(&mut self, session: &mut Session) {
        if let Some(source) = &mut self.name_source {
            source.drain_all(|bytes| self.reporter.take_name(session, bytes));
        }
    }

    /// Runs a whole sweep in this mode. `now_ns` is the current time, by the clock of the flows: one
    /// for all, because reading the clock for each takes a tenth of the sweep.
    pub fn sweep(
        &mut self,
        session: &mut Session,
        skel: &mut FlowsSkel<'_>,
        mode: SweepMode,
        now_ns: u64,
    ) -> Result<Sweep> {
        let request = Sweep {
            mode: mode.0,
            now_ns,
            ..Sweep::default()
        };
        self.sweep_with(session, skel, request)
    }

    fn sweep_with(
        &mut self,
        session: &mut Session,
        skel: &mut FlowsSkel<'_>,
        mut request: Sweep,
    ) -> Result<Sweep> {
        // Before the flows that are over: a record is reported after its last packet.
        self.read_names(session);
        let maps = &mut skel.maps;
        let bss = maps
            .bss_sweep_data
            .as_deref_mut()
            .context("the sweep has no place for its settings")?;
        let before = skel::read_sweep(bss);
        request.lost = before.lost;
        request.lost_packets = before.lost_packets;
        request.unanswered = before.unanswered;
        request.unwanted = before.unwanted;
        request.unwanted_packets = before.unwanted_packets;
        skel::set_sweep(bss, &request);
        let mut left = before.end;
        loop {
            let times = (left / SweepLimit::SWEEP_STEP.0 + 2).min(self.room);
            match call(&skel.progs.flows_sweep, times) {
                Ok(()) => {}
                // Interrupted by a signal: go on from the cursor.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("failed to read the table of flows"),
            }
            self.source
                .drain_all(|bytes| self.reporter.take(session, bytes));
            self.reporter.settle(session);
            let sweep = skel::read_sweep(bss);
            self.reporter.note_lost(&sweep);
            left = sweep.end.saturating_sub(sweep.cursor);
            if left == 0 {
                return Ok(sweep);
            }
        }
    }

    /// Evicts the least valuable flows if the table is nearly full. Returns whether it was. `ever`
    /// is how many flows there have ever been.
    pub fn make_room(
        &mut self,
        session: &mut Session,
        skel: &mut FlowsSkel<'_>,
        ever: u64,
        now_ns: u64,
    ) -> Result<bool> {
        let in_table = ever.saturating_sub(self.reporter.reported);
        if in_table <= self.max_flows * NEARLY_FULL.0 / NEARLY_FULL.1 {
            return Ok(false);
        }
        let surplus = in_table.saturating_sub(self.max_flows * LEFT.0 / LEFT.1);
        let ranks = self
            .sweep(session, skel, SweepMode::SWEEP_ENDED, now_ns)?
            .ranks;
        let request = Sweep {
            mode: SweepMode::SWEEP_EVICT.0,
            now_ns,
            evict_rank: least_worth(&ranks, surplus),
            budget: u32::try_from(surplus).unwrap_or(u32::MAX),
            ..Sweep::default()
        };
        self.sweep_with(session, skel, request)?;
        Ok(true)
    }
}

/// The lowest rank that has to be evicted to remove `surplus` flows. Established flows with a
/// packet in the last minute are never among them, so that a flood evicts no real connection.
fn least_worth(ranks: &[u32; FLOW_RANKS], surplus: u64) -> u32 {
    let first_old = SweepLimit::FLOW_RANK_OLD.0;
    let mut sum = 0;
    for (rank, count) in (0..FLOW_RANKS as u32).zip(ranks).rev() {
        sum += u64::from(*count);
        if sum >= surplus || rank == first_old {
            return rank;
        }
    }
    first_old
}

/// Reports why sockets can't be read.
pub fn without_sockets(notices: Notices, error: &anyhow::Error) {
    notices.notice(&format!(
        "processes and the kernel's TCP metrics can't be shown, which needs CAP_PERFMON and Linux 5.11 or later: {error:#}"
    ));
}
