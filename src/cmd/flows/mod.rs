//! `flows`: one line per finished connection, or the traffic of connections by key.

mod distributions;
mod replay;
mod reporter;
mod sockets;
mod table;
mod watch;

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use caps::Capability;
use libbpf_rs::{OpenObject, ProgramMut};

use distributions::Distributions;
use reporter::{Reporter, asks_for_containers};
use sockets::{Sockets, TableMaps};
use table::FlowTable;

use crate::attach::beside::beside;
use crate::attach::load;
use crate::cli::FlowsArgs;
use crate::domain::Direction;
use crate::domain::counters::PacketCounters;
use crate::domain::traffic::FlowBy;
use crate::failure::{Exit, Failure};
use crate::filter::process::ProcessRules;
use crate::filter::{Filter, FlagsRule};
use crate::host::containers::sees_cgroups;
use crate::host::interfaces::Interface;
use crate::host::netns;
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::output::flows::FlowWriter;
use crate::output::summary::Summary;
use crate::run::events::{BufferKind, EventSource};
use crate::run::monotonic::monotonic_ns;
use crate::run::packet::{self, Live, LoadTarget, Options, PacketCommand, Replay};
use crate::skel::SweepMode;
use crate::skel::flow_sockets::FlowSocketsSkel;
use crate::skel::flows::types::process_filter;
use crate::skel::flows::{FlowsSkel, FlowsSkelBuilder, OpenFlowsMaps, OpenFlowsSkel};

/// How often the table is swept for flows that are over.
const SWEEP_EVERY: Duration = Duration::from_millis(100);

/// How long a finished flow stays in the table for late packets. Linux retransmits a FIN whose ACK was
/// lost after 200 ms (TCP_RTO_MIN) and 600 ms at the earliest.
const LINGER: Duration = Duration::from_secs(1);

/// How long a flow waits for the answer to a SYN or to its FINs, unless --idle-timeout is shorter.
/// Linux retransmits a SYN after at most 32 s.
const HALF_OPEN: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
/// An option is wrong, or a program can't be loaded or attached.
pub fn run(args: &FlowsArgs) -> Result<Exit, Failure> {
    let mut storage = MaybeUninit::uninit();
    let flows = Flows::new(args)?;
    flows.sockets.set(SocketPrograms::Storage(&mut storage));
    packet::run(&flows)
}

/// The programs that read sockets.
#[derive(Default)]
enum SocketPrograms<'a> {
    /// There are none.
    #[default]
    None,
    /// The memory for them.
    Storage(&'a mut MaybeUninit<OpenObject>),
    /// The loaded programs, or the error of loading them.
    Loaded(Box<Result<FlowSocketsSkel<'a>>>),
}

/// The command as its options ask for it.
pub struct Flows<'a> {
    args: &'a FlowsArgs,
    filter: Filter,
    writer: FlowWriter,
    distributions: Option<Distributions>,
    sockets: Cell<SocketPrograms<'a>>,
}

impl<'a> Flows<'a> {
    /// Whether the options make no sense if processes are not known.
    fn needs_processes(&self) -> bool {
        let by_process = self.args.by.is_some_and(FlowBy::needs_process);
        by_process || !self.args.processes.rules().is_empty() || !self.args.container.is_empty()
    }

    /// The filter on processes for the programs of an interface. Only the sweep applies it, and that
    /// is one of the programs of the first interface.
    fn rules_after(&self, first: Option<&FlowsSkel<'_>>) -> ProcessRules<'_> {
        match first {
            Some(_) => ProcessRules::default(),
            None => self.args.processes.rules(),
        }
    }

    /// Loads the opened programs; for a live run those that read sockets as well, at the same time.
    fn load_with_sockets<'obj>(
        &self,
        mut open: OpenFlowsSkel<'obj>,
        target: &LoadTarget<'_>,
    ) -> Result<FlowsSkel<'obj>, Failure> {
        let storage = match self.sockets.take() {
            SocketPrograms::Storage(storage) if !target.replay => storage,
            others => {
                self.sockets.set(others);
                return packet::load(Self::NAME, open, target);
            }
        };
        packet::create_maps(Self::NAME, &mut open)?;
        let table = TableMaps::of(&open.maps)?;
        let (args, interfaces) = (self.args, target.interfaces);
        let (sockets, skel) = beside(
            || sockets::load(storage, args, &table, interfaces),
            || packet::load(Self::NAME, open, target),
        );
        self.sockets.set(SocketPrograms::Loaded(Box::new(sockets)));
        skel
    }

    /// Attaches the programs that read sockets.
    fn attach_sockets(&self) -> Result<Sockets<'a>> {
        match self.sockets.take() {
            SocketPrograms::Loaded(loaded) => Sockets::attach((*loaded)?),
            SocketPrograms::None | SocketPrograms::Storage(_) => {
                bail!("the programs that read sockets were not loaded")
            }
        }
    }

    /// The table of a live run, with the connections that are older than the tool. `ifaces` are the
    /// names of the interfaces.
    fn open_table<'t>(
        &self,
        live: &mut Live<'_, FlowsSkel<'_>>,
        ifaces: &'t [Option<&'t str>],
        has_view: bool,
    ) -> Result<FlowTable<'t>, Failure>
    where
        'a: 't,
    {
        let args = self.args;
        let source = live.take_source()?;
        let mut reporter = Reporter::new(args, self.writer.clone(), ifaces, has_view);
        reporter.distributions = self.distributions.clone();
        let mut table = FlowTable::new(args, source, reporter);
        table.name_source = name_source(args, live.buffer, live.first()?.1)?;
        let notices = live.session.notices;
        if asks_for_containers(args) && !sees_cgroups() {
            notices.notice(
                "no cgroup2 is mounted here, so a process that has ended has no container; \
                 use --netns NAME instead of \"ip netns exec NAME\"",
            );
        }
        table.sockets = match self.attach_sockets() {
            Ok(sockets) => Some(sockets),
            Err(error) if self.needs_processes() => {
                let error = error.context("failed to find the processes of connections");
                return Err(Failure::from(error).hint(
                    "this needs CAP_PERFMON and Linux 5.11 or later, where programs that read sockets may take spin locks",
                ));
            }
            Err(error) => {
                table::without_sockets(notices, &error);
                None
            }
        };
        if sockets::suits_sockets(self) {
            table.seed(notices);
        }
        Ok(table)
    }

    /// The command with its default for `--flags`.
    ///
    /// # Errors
    /// A column is unknown, or an option about processes is given with a file.
    pub fn new(args: &'a FlowsArgs) -> Result<Self, Failure> {
        if args.packets.read.is_some()
            && let Some(by) = args.by.filter(|by| by.needs_process())
        {
            let what = format!(
                "--by {} can't be used with -r: a file has no processes",
                by.name()
            );
            return Err(Failure::usage(what).hint("other keys are saddr, daddr, dport and net"));
        }
        Ok(Self {
            args,
            filter: args.packets.filter(FlagsRule::default()),
            writer: {
                // With --histogram, --columns chooses columns of histograms.
                let columns = match args.histogram {
                    Some(_) => &[][..],
                    None => &args.run.output.columns,
                };
                FlowWriter::new(columns, args.by.is_some(), args.names)?
            },
            distributions: Distributions::new(args)?,
            sockets: Cell::default(),
        })
    }
}

/// Which files may be opened during the run: to show containers, some have to be read.
pub fn files(args: &FlowsArgs) -> Files {
    match reporter::needs_containers(args) {
        true => Files::Readable,
        false => Files::Opened,
    }
}

/// The directions to watch. The loopback device shows each packet twice, going out and coming in:
/// once is enough.
pub fn directions(interface: &Interface) -> &'static [Direction] {
    // The kernel gives this index to the loopback device of each namespace, and to no other.
    const LOOPBACK_IFINDEX: u32 = 1;
    if interface.index == LOOPBACK_IFINDEX {
        &[Direction::Ingress]
    } else {
        // Egress first, so that no answer to a SYN seen at ingress is missed.
        &[Direction::Egress, Direction::Ingress]
    }
}

/// Has the programs use the maps of those that are loaded already. `name_buffer` is the kind of
/// buffer for the bytes that names are read from, if there is one.
fn share_maps(
    maps: &mut OpenFlowsMaps<'_>,
    first: &FlowsSkel<'_>,
    has_filter: bool,
    name_buffer: Option<BufferKind>,
) -> Result<()> {
    let known = &first.maps;
    maps.flow_slots.reuse_fd(known.flow_slots.as_fd())?;
    maps.slots.reuse_fd(known.slots.as_fd())?;
    maps.free_slots.reuse_fd(known.free_slots.as_fd())?;
    maps.unused_slots.reuse_fd(known.unused_slots.as_fd())?;
    if has_filter {
        maps.rejected.reuse_fd(known.rejected.as_fd())?;
    }
    match name_buffer {
        Some(BufferKind::Ring) => maps.name_ring.reuse_fd(known.name_ring.as_fd())?,
        Some(BufferKind::Perf) => maps.name_perf.reuse_fd(known.name_perf.as_fd())?,
        None => {}
    }
    Ok(())
}

/// Sweeps the table, and returns the capability that the run needs for that, if any.
fn sweep_and_find_needs(
    live: &mut Live<'_, FlowsSkel<'_>>,
    table: &mut FlowTable<'_>,
) -> Result<Option<Capability>> {
    let (session, first) = live.first()?;
    let now = monotonic_ns()?;
    let can_sweep = || {
        let sweep = table.sweep(session, first, SweepMode::SWEEP_ENDED, now);
        sweep.is_ok()
    };
    privileges::needed_for(Capability::CAP_BPF, can_sweep)
}

/// The buffer of the bytes that names are read from, with --names.
fn name_source(
    args: &FlowsArgs,
    buffer: BufferKind,
    skel: &FlowsSkel<'_>,
) -> Result<Option<EventSource>> {
    let maps = &skel.maps;
    args.names
        .then(|| {
            let size = args.buffer.size();
            EventSource::open(buffer, size, &maps.name_ring, &maps.name_perf)
        })
        .transpose()
}

impl PacketCommand for Flows<'_> {
    const NAME: &'static str = "flows";
    type Skel<'obj> = FlowsSkel<'obj>;
    type Builder = FlowsSkelBuilder;

    fn options(&self) -> Options<'_> {
        Options {
            buffer: Some(&self.args.buffer),
            ..Options::new(&self.args.packets, &self.filter, &self.args.run)
        }
    }

    fn configure(
        &self,
        open: &mut OpenFlowsSkel<'_>,
        target: &LoadTarget<'_>,
        first: Option<&FlowsSkel<'_>>,
    ) -> Result<()> {
        // The key of a flow has 16 bits for the interface.
        u16::try_from(target.position)?;
        let maps = &mut open.maps;
        let rodata = maps.rodata_data.as_deref_mut();
        let rodata = rodata.context("the programs have no settings")?;
        // For a replay, this host's range means nothing: keep the default one.
        if !target.replay
            && let Some((first, last)) = netns::ephemeral_ports()
        {
            (rodata.ephemeral_first, rodata.ephemeral_last) = (first, last);
        }
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        rodata.max_flows = self.args.max_flows;
        rodata.reads_names = self.args.names;
        rodata.idle_ns = nanos(self.args.idle_timeout);
        rodata.half_open_ns = nanos(self.args.idle_timeout.min(HALF_OPEN));
        rodata.linger_ns = nanos(LINGER);
        // Only if flows have lines, and a live run shows them.
        let has_lines = self.args.by.is_none() && self.args.histogram.is_none();
        if has_lines && !target.replay && !watch::shows_view(self.args) {
            rodata.attempt_ns = nanos(self.args.attempt_timeout);
        }
        load::configure_slots(
            &mut rodata.preemptible,
            &mut maps.idle_slots,
            &mut [&mut maps.tracked, &mut maps.name_events],
        )?;
        let has_filter = rodata.filter.parts.0 != 0;
        maps.rejected.set_autocreate(has_filter)?;
        if self.args.names {
            let (ring, perf) = (&mut maps.name_ring, &mut maps.name_perf);
            target.buffer.configure(&self.args.buffer, ring, perf)?;
        } else {
            maps.name_ring.set_autocreate(false)?;
            maps.name_perf.set_autocreate(false)?;
        }
        for map in [&mut maps.flow_slots, &mut maps.slots, &mut maps.free_slots] {
            map.set_max_entries(self.args.max_flows)?;
        }
        let sets = [&mut maps.pids, &mut maps.uids, &mut maps.comms];
        rodata.process_filter = process_filter(self.rules_after(first).size(sets)?);
        if let Some(first) = first {
            let name_buffer = self.args.names.then_some(target.buffer);
            share_maps(maps, first, has_filter, name_buffer)?;
        }
        open.progs.flows_sweep.set_autoload(first.is_none());
        Ok(())
    }

    fn load<'obj>(
        &self,
        target: &LoadTarget<'_>,
        storage: &'obj mut MaybeUninit<OpenObject>,
        first: Option<&FlowsSkel<'_>>,
    ) -> Result<FlowsSkel<'obj>, Failure> {
        let open = packet::open(self, target, storage, first)?;
        let skel = self.load_with_sockets(open, target)?;
        let sets = [&skel.maps.pids, &skel.maps.uids, &skel.maps.comms];
        self.rules_after(first).fill(sets)?;
        Ok(skel)
    }

    fn tc_directions(&self, interface: &Interface) -> &'static [Direction] {
        directions(interface)
    }

    fn program<'s>(&self, skel: &'s FlowsSkel<'_>, _: Direction) -> &'s ProgramMut<'s> {
        &skel.progs.flows_packet
    }

    fn watch(&self, live: &mut Live<'_, FlowsSkel<'_>>) -> Result<Summary, Failure> {
        let args = self.args;
        let interfaces = live.interfaces.iter();
        let ifaces = interfaces
            .map(|interface| Some(interface.name.as_str()))
            .collect::<Vec<_>>();
        let has_view = watch::shows_view(args);
        let mut table = self.open_table(live, &ifaces, has_view)?;
        let keep = sweep_and_find_needs(live, &mut table)?;
        let keep = keep.as_slice();
        if has_view {
            live.give_up_privileges(keep)?;
            live.session.stop.start();
            live.say_attached();
            watch::run_view(live, args, &mut table)?;
        } else {
            let files = files(args);
            live.begin_with(keep, files, |out, clock| table.reporter.header(out, clock))?;
            table.reporter.begin();
            watch::run_sweeps(live, args, &mut table)?;
        }

        live.detach()?;
        table.read_sockets_again(live.session.notices);
        let (session, first) = live.first()?;
        table.sweep(session, first, SweepMode::SWEEP_ALL, monotonic_ns()?)?;
        let counters = live.counters();
        let counters = PacketCounters {
            matched: table.ever(&counters),
            ..counters
        };
        table.reporter.note_names_lost(&*live.skels);
        let session = &mut *live.session;
        table
            .reporter
            .end_interval(session, None, counters.untracked);
        table.reporter.write_distributions(session);
        session.flush();
        Ok(table.reporter.summary(session, counters))
    }

    fn replay<'obj>(&self, replay: &mut Replay<'_, FlowsSkel<'obj>>) -> Result<Summary, Failure> {
        let mut reporter = Reporter::new(self.args, self.writer.clone(), &[None], false);
        reporter.distributions = self.distributions.clone();
        let source = replay.take_source()?;
        let name_source = name_source(self.args, replay.buffer, replay.skel)?;
        replay.begin(|out, clock| reporter.header(out, clock))?;
        reporter.begin();
        let mut table = FlowTable::new(self.args, source, reporter);
        table.name_source = name_source;
        replay::run(self.args, table, replay)
    }
}
