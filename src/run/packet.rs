//! Runs the commands that look at the packets of interfaces, from the command line to the summary:
//! live, and with `-r`.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use caps::Capability;
use libbpf_rs::skel::SkelBuilder;
use libbpf_rs::{OpenObject, ProgramMut};
use nix::sched::{CpuSet, sched_getcpu, sched_setaffinity};
use nix::unistd::Pid;

use crate::attach::tc::PreparedLinks;
use crate::attach::{Attached, load};
use crate::capture::recorder::{Destination, Recorder};
use crate::capture::write::{Encoder, FileInterface, Statistics};
use crate::capture::{Capture, CaptureFile};
use crate::capture::{LINKTYPE_ETHERNET, LINKTYPE_RAW};
use crate::cli::{BufferArgs, BufferChoice, PacketArgs, RecordingArgs, RunArgs, interface_hints};
use crate::domain::Direction;
use crate::domain::counters::PacketCounters;
use crate::failure::{Exit, Failure};
use crate::filter::Filter;
use crate::host::interfaces::{Interface, LinkLayer};
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::notice::Notices;
use crate::output::clock::Clock;
use crate::output::line::Line;
use crate::output::summary::Summary;
use crate::run::events::{BufferKind, EventSource};
use crate::run::replay::{self, AroundFrames, Origin, Runner};
use crate::run::session::Session;
use crate::skel::{self, OpenPacketSkel, PacketSkel};
use crate::sys::{link, object};

/// A command that looks at the packets of interfaces.
pub trait PacketCommand: Sized {
    /// The subcommand.
    const NAME: &'static str;
    /// The skeleton of its BPF programs.
    type Skel<'obj>: PacketSkel<'obj>;
    /// Opens the skeleton.
    type Builder: Default
        + for<'obj> SkelBuilder<'obj, Output: OpenPacketSkel<'obj, Output = Self::Skel<'obj>>>;

    /// The options that all packet commands have.
    fn options(&self) -> Options<'_>;

    /// Whether the program gets each frame of a file as its packet, as if it had come in at the
    /// hook. Otherwise a test run takes many frames from a map.
    fn replays_one_at_a_time(&self) -> bool {
        false
    }

    /// Sets what this command alone has: constants, sizes of maps, which programs to load. `first`
    /// has the programs of the first interface, whose maps the others may share.
    ///
    /// # Errors
    /// A setting can't be changed.
    fn configure<'obj>(
        &self,
        _open: &mut <Self::Builder as SkelBuilder<'obj>>::Output,
        _target: &LoadTarget<'_>,
        _first: Option<&Self::Skel<'_>>,
    ) -> Result<()> {
        Ok(())
    }

    /// Loads the programs for an interface with [`open`] and [`load()`]. `first` has the programs of
    /// the first interface, whose event buffer the others share.
    ///
    /// # Errors
    /// The kernel refuses the programs.
    fn load<'obj>(
        &self,
        target: &LoadTarget<'_>,
        storage: &'obj mut MaybeUninit<OpenObject>,
        first: Option<&Self::Skel<'_>>,
    ) -> Result<Self::Skel<'obj>, Failure> {
        load(Self::NAME, open(self, target, storage, first)?, target)
    }

    /// The directions in which the programs are attached to TC of the interface.
    fn tc_directions(&self, interface: &Interface) -> &'static [Direction];

    /// The program for packets of this direction.
    fn program<'s>(&self, skel: &'s Self::Skel<'_>, direction: Direction) -> &'s ProgramMut<'s>;

    /// Attaches the programs to the interface: to TC, unless the command says otherwise.
    ///
    /// # Errors
    /// The kernel refuses it.
    fn attach(
        &self,
        skel: &Self::Skel<'_>,
        interface: &Interface,
        attached: &mut Attached,
    ) -> Result<(), Failure> {
        for direction in self.tc_directions(interface) {
            attached.tc(self.program(skel, *direction), interface, *direction)?;
        }
        Ok(())
    }

    /// Reports what the attached programs see until the run is over, then detaches them. It has to
    /// call [`Live::begin`] and [`Live::detach`].
    ///
    /// # Errors
    /// The kernel refuses something, or the output can't be set up.
    fn watch(&self, live: &mut Live<'_, Self::Skel<'_>>) -> Result<Summary, Failure>;

    /// Reports what the programs see in a capture file. It has to call [`Replay::begin`] and
    /// [`Replay::run`].
    ///
    /// # Errors
    /// As [`PacketCommand::watch`].
    fn replay<'obj>(&self, replay: &mut Replay<'_, Self::Skel<'obj>>) -> Result<Summary, Failure>;
}

/// The options that all packet commands have.
#[derive(Clone, Copy)]
pub struct Options<'a> {
    /// The source of packets: interfaces or a file.
    pub packets: &'a PacketArgs,
    /// Which packets match.
    pub filter: &'a Filter,
    /// The event buffer; `None` for programs that only count.
    pub buffer: Option<&'a BufferArgs>,
    /// The capture file to write, for commands that can write one.
    pub recording: Option<&'a RecordingArgs>,
    /// Output, when to stop, and the sandbox.
    pub run: &'a RunArgs,
}

impl<'a> Options<'a> {
    /// The options of a command that only counts, and writes no capture file.
    pub fn new(packets: &'a PacketArgs, filter: &'a Filter, run: &'a RunArgs) -> Self {
        Self {
            packets,
            filter,
            buffer: None,
            recording: None,
            run,
        }
    }
}

/// An interface or a replay that programs are loaded for.
pub struct LoadTarget<'a> {
    /// The index of the interface among the watched ones.
    pub position: usize,
    /// Frames of the interface begin with the IP header.
    pub is_raw_ip: bool,
    /// Frames come from a capture file.
    pub replay: bool,
    /// A test run takes many frames.
    pub replay_batch: bool,
    /// All watched interfaces.
    pub interfaces: &'a [Interface],
    /// The kind of event buffer.
    pub buffer: BufferKind,
    /// Number of slots that runs of programs have.
    pub slots: usize,
    options: Options<'a>,
}

/// Opens the programs, and sets the constants and maps that all packet programs have, and those that
/// this command alone has.
///
/// # Errors
/// A setting can't be changed.
pub fn open<'obj, C: PacketCommand>(
    command: &C,
    target: &LoadTarget<'_>,
    storage: &'obj mut MaybeUninit<OpenObject>,
    first: Option<&C::Skel<'_>>,
) -> Result<<C::Builder as SkelBuilder<'obj>>::Output> {
    let mut open = C::Builder::default()
        .open(storage)
        .context("failed to open the programs")?;
    let link = open
        .link_settings()
        .context("the programs have no settings")?;
    *link.is_raw_ip = target.is_raw_ip;
    *link.replay = target.replay;
    *link.replay_batch = target.replay_batch;
    load::configure_slots(link.preemptible, link.idle_slots, &mut [link.expr_words])?;
    target.options.filter.simplified().configure(&mut open)?;
    if let (Some(events), Some(args)) = (open.event_settings(), target.options.buffer) {
        *events.interface = u32::try_from(target.position)?;
        *events.use_perf_buffer = target.buffer == BufferKind::Perf;
        target
            .buffer
            .configure(args, &mut *events.ring, &mut *events.perf)?;
        if let Some((ring, perf)) = first.and_then(PacketSkel::event_maps) {
            match target.buffer {
                BufferKind::Ring => events.ring.reuse_fd(ring.as_fd())?,
                BufferKind::Perf => events.perf.reuse_fd(perf.as_fd())?,
            }
        }
    }
    command.configure(&mut open, target, first)?;
    Ok(open)
}

fn not_loaded(command: &str, error: libbpf_rs::Error) -> Failure {
    load::failure(&format!("failed to load the {command} program"), error)
}

/// Creates the maps of the opened programs, which [`load()`] does otherwise.
///
/// # Errors
/// The kernel refuses a map.
pub fn create_maps<'obj>(
    command: &str,
    open: &mut impl OpenPacketSkel<'obj>,
) -> Result<(), Failure> {
    object::create_maps(open.open_object_mut()).map_err(|error| not_loaded(command, error))
}

/// Loads the opened programs, and fills the maps of their filter.
///
/// # Errors
/// The kernel refuses a program, or has no memory for the filter.
pub fn load<'obj, O: OpenPacketSkel<'obj>>(
    command: &str,
    open: O,
    target: &LoadTarget<'_>,
) -> Result<O::Output, Failure> {
    let skel = open.load().map_err(|error| not_loaded(command, error))?;
    skel.counter_slots()
        .context("the programs have no counters")?;
    load::fill_slots(skel.idle_slots())?;
    target.options.filter.fill(&skel)?;
    Ok(skel)
}

/// Runs a packet command, on interfaces or on a file.
///
/// # Errors
/// Something can't be attached, read or written.
pub fn run<C: PacketCommand>(command: &C) -> Result<Exit, Failure> {
    let options = command.options();
    if let Some(file) = &options.packets.read {
        return run_on_file(command, options, file);
    }
    let destination = destination(options)?;
    let mut session = Session::new(options.run)?;
    options.packets.netns.enter()?;
    let interfaces = session.interfaces(
        options.packets.interfaces(),
        interface_hints::interface_hint,
    )?;
    record(&mut session, options, destination, &interfaces, None)?;
    let slots = load::packet_slots()?;
    let buffer = choose_buffer(options);
    let mut storage = storage_for(&interfaces);
    let prepared = prepare_links(command, &interfaces);
    let mut skels = load_all(command, &interfaces, &mut storage)?;
    let first = skels.first().context("there is no interface")?;
    let source = open_source(first, options, buffer)?;
    let started = Instant::now();
    let attached = attach_all(command, &mut session, &interfaces, &skels, prepared)?;
    let mut live = Live {
        interfaces: &interfaces,
        skels: &mut skels,
        source,
        buffer,
        slots,
        started,
        attached,
        command: C::NAME,
        session: &mut session,
    };
    let summary = command.watch(&mut live)?;
    session.finish(&summary)
}

/// The destination of `-w`.
fn destination(options: Options<'_>) -> Result<Option<Destination>, Failure> {
    let path = options.recording.and_then(|args| args.write.as_ref());
    path.map(|path| Destination::new(path)).transpose()
}

/// Makes the session write to a capture file instead of stdout, if that is asked for.
fn record(
    session: &mut Session,
    options: Options<'_>,
    destination: Option<Destination>,
    interfaces: &[Interface],
    input: Option<&CaptureFile>,
) -> Result<(), Failure> {
    let (Some(destination), Some(args)) = (destination, options.recording) else {
        return Ok(());
    };
    let described = interfaces.iter().map(|interface| FileInterface {
        name: interface.name.clone(),
        link_type: match interface.link_layer {
            LinkLayer::None => LINKTYPE_RAW,
            LinkLayer::Ethernet | LinkLayer::Unsupported(_) => LINKTYPE_ETHERNET,
        },
    });
    let encoder = Encoder::new(
        destination.format(),
        args.snaplen(),
        options.packets.expression(),
        described.collect(),
    );
    let recorder = Recorder::new(
        destination,
        args.limits(),
        &session.clock,
        encoder,
        options.run.stop.count,
    )?;
    if let Some(input) = input {
        recorder.check_input(input)?;
    }
    session.record_to(recorder);
    Ok(())
}

/// Memory for the programs of each interface.
pub fn storage_for(interfaces: &[Interface]) -> Vec<MaybeUninit<OpenObject>> {
    let uninit = |_: &Interface| MaybeUninit::uninit();
    interfaces.iter().map(uninit).collect()
}

/// Starts to make the tcx links for the programs of each interface.
pub fn prepare_links<C: PacketCommand>(command: &C, interfaces: &[Interface]) -> PreparedLinks {
    let at = |interface| {
        let directions = command.tc_directions(interface).iter();
        directions.map(|direction| (interface.index, *direction))
    };
    PreparedLinks::start(interfaces.iter().flat_map(at).collect())
}

/// Loads the programs of each interface.
///
/// # Errors
/// The kernel refuses them.
pub fn load_all<'obj, C: PacketCommand>(
    command: &C,
    interfaces: &[Interface],
    storage: &'obj mut [MaybeUninit<OpenObject>],
) -> Result<Vec<C::Skel<'obj>>, Failure> {
    let options = command.options();
    let buffer = choose_buffer(options);
    let slots = load::packet_slots()?;
    let mut skels = Vec::<C::Skel<'obj>>::new();
    for (interface, storage) in interfaces.iter().zip(storage) {
        let target = LoadTarget {
            position: skels.len(),
            is_raw_ip: interface.is_raw_ip(),
            replay: false,
            replay_batch: false,
            interfaces,
            buffer,
            slots,
            options,
        };
        let skel = command.load(&target, storage, skels.first())?;
        skels.push(skel);
    }
    Ok(skels)
}

/// Attaches the programs of each interface. The session checks from now on that they stay
/// attached.
///
/// # Errors
/// The kernel refuses it.
pub fn attach_all<C: PacketCommand>(
    command: &C,
    session: &mut Session,
    interfaces: &[Interface],
    skels: &[C::Skel<'_>],
    prepared: PreparedLinks,
) -> Result<Attached, Failure> {
    let mut attached = Attached::with(prepared);
    for (interface, skel) in interfaces.iter().zip(skels) {
        command.attach(skel, interface, &mut attached)?;
        for note in attached.take_notes() {
            session.notices.note(&note);
        }
    }
    session.follow(&mut attached)?;
    Ok(attached)
}

fn choose_buffer(options: Options<'_>) -> BufferKind {
    let choice = options
        .buffer
        .map_or(BufferChoice::Ring, |args| args.buffer);
    BufferKind::choose(choice)
}

fn open_source<'obj>(
    skel: &impl PacketSkel<'obj>,
    options: Options<'_>,
    buffer: BufferKind,
) -> Result<Option<EventSource>> {
    match (skel.event_maps(), options.buffer) {
        (Some((ring, perf)), Some(args)) => {
            EventSource::open(buffer, args.size(), ring, perf).map(Some)
        }
        _ => Ok(None),
    }
}

/// Loads the programs as a run would, and attaches them if an interface is given. They are detached
/// when the returned value is dropped.
///
/// # Errors
/// A run would fail in the same way.
pub fn rehearse<C: PacketCommand>(
    command: &C,
    interface: Option<&Interface>,
    notices: Notices,
) -> Result<Attached, Failure> {
    let options = command.options();
    let target = LoadTarget {
        position: 0,
        is_raw_ip: false,
        replay: false,
        replay_batch: false,
        interfaces: &[],
        buffer: choose_buffer(options),
        slots: load::packet_slots()?,
        options,
    };
    let mut storage = MaybeUninit::uninit();
    let skel = command.load(&target, &mut storage, None)?;
    let mut attached = Attached::default();
    if let Some(interface) = interface {
        command.attach(&skel, interface, &mut attached)?;
    }
    for note in attached.take_notes() {
        notices.note(&note);
    }
    Ok(attached)
}

/// A live run: the programs are attached.
pub struct Live<'a, S> {
    /// The session.
    pub session: &'a mut Session,
    /// The watched interfaces.
    pub interfaces: &'a [Interface],
    /// The programs of each interface.
    pub skels: &'a mut [S],
    /// The kind of event buffer.
    pub buffer: BufferKind,
    /// Number of slots that runs of programs have.
    pub slots: usize,
    /// When attaching began.
    pub started: Instant,
    source: Option<EventSource>,
    attached: Attached,
    command: &'static str,
}

impl<'obj, S: PacketSkel<'obj>> Live<'_, S> {
    /// Takes the reader of the event buffer that all programs share.
    ///
    /// # Errors
    /// The programs have no event buffer, or it was taken before.
    pub fn take_source(&mut self) -> Result<EventSource> {
        self.source.take().context("the programs send no events")
    }

    /// The session, and the programs of the first interface.
    ///
    /// # Errors
    /// There is no interface.
    pub fn first(&mut self) -> Result<(&mut Session, &mut S)> {
        let first = self.skels.first_mut().context("there is no interface")?;
        Ok((&mut *self.session, first))
    }

    /// The attached programs.
    pub fn attached(&self) -> &Attached {
        &self.attached
    }

    /// Gives up all capabilities that the rest of the run does not need, writes the header, enters
    /// the sandbox, and reports that all is attached. `keep` lists further capabilities to keep.
    ///
    /// # Errors
    /// A capability can't be given up.
    pub fn begin(
        &mut self,
        keep: &[Capability],
        header: impl FnOnce(&mut Line<'_>, &Clock),
    ) -> Result<()> {
        self.begin_with(keep, Files::Opened, header)
    }

    /// Does what [`Live::begin`] does, for a command that may have to open files later.
    ///
    /// # Errors
    /// As [`Live::begin`].
    pub fn begin_with(
        &mut self,
        keep: &[Capability],
        files: Files,
        header: impl FnOnce(&mut Line<'_>, &Clock),
    ) -> Result<()> {
        self.session.open_recording()?;
        let keep = [keep, self.session.recording_needs()?.as_slice()].concat();
        self.give_up_privileges(&keep)?;
        self.session.text_header(header);
        self.session.start(files);
        self.say_attached();
        Ok(())
    }

    /// Gives up all capabilities except `keep`, and CAP_NET_ADMIN if a clsact filter has to be
    /// removed at the end.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn give_up_privileges(&self, keep: &[Capability]) -> Result<()> {
        let mut keep = keep.to_vec();
        if self.attached.needs_privileges() {
            keep.push(Capability::CAP_NET_ADMIN);
        }
        privileges::drop_all_but(&keep)
    }

    /// Reports that all is attached.
    pub fn say_attached(&self) {
        let reader = match self.skels.first().and_then(PacketSkel::event_maps) {
            Some(_) => self.buffer.name(),
            None => "per-CPU counters",
        };
        self.session
            .attached(&format!("{} ({}, {reader})", self.attached, self.command));
    }

    /// Stops and detaches the programs, so that their counters are final. If another process has
    /// detached one before, the run ends with an error.
    ///
    /// # Errors
    /// The kernel can't be asked about interfaces.
    pub fn detach(&mut self) -> Result<()> {
        let checked = self.session.check_hooks();
        // If another process holds our links, detaching may fail: stop the programs before.
        for stopped in self.skels.iter_mut().filter_map(PacketSkel::stopped) {
            skel::stop(stopped);
        }
        for note in self.attached.detach() {
            self.session.notices.note(&note);
        }
        checked
    }

    /// Writes the header, handles events until the run is over, detaches, and handles those that are
    /// left. Returns the summary.
    ///
    /// # Errors
    /// As [`Live::begin`] and [`Live::detach`], or waiting fails.
    pub fn run_events(
        &mut self,
        header: impl FnOnce(&mut Line<'_>, &Clock),
        mut on_event: impl FnMut(&mut Session, &[u8]),
    ) -> Result<Summary> {
        let mut source = self.take_source()?;
        // The event buffer is mapped: reading it needs no privilege.
        self.begin(&[], header)?;
        self.session.run_events(&mut source, &mut on_event)?;
        self.detach()?;
        self.session.drain_rest(&mut source, &mut on_event)?;
        Ok(self.summary())
    }

    /// The summary of the run.
    pub fn summary(&self) -> Summary {
        let first = self.skels.first();
        summary(self.session, self.command, first, self.counters())
    }

    /// The session, and what counts the frames of each interface.
    pub fn recording(&mut self) -> (&mut Session, impl Fn() -> Vec<Statistics>) {
        let (skels, slots) = (&*self.skels, self.slots);
        let counters = move || skels.iter().map(move |skel| skel.counters(slots));
        let statistics = move || counters().map(statistics).collect();
        (&mut *self.session, statistics)
    }

    /// The counters of the programs of all interfaces.
    pub fn counters(&self) -> PacketCounters {
        sum_counters(self.skels, self.slots)
    }
}

fn statistics(counters: PacketCounters) -> Statistics {
    Statistics {
        received: counters.packets(),
        matched: counters.matched,
        lost: counters.lost,
    }
}

/// The summary of a run whose programs send an event for each packet that matches, or only count.
fn summary<'obj>(
    session: &Session,
    command: &'static str,
    skel: Option<&impl PacketSkel<'obj>>,
    counters: PacketCounters,
) -> Summary {
    let summary = Summary {
        packets: Some(counters),
        ..session.summary(
            command,
            counters.matched,
            counters.lost,
            counters.suppressed,
        )
    };
    if skel.and_then(PacketSkel::event_maps).is_some() {
        return summary;
    }
    // Those that are lost found no slot.
    summary.all_shown_but(counters.lost)
}

/// Adds the counters of the programs of all interfaces.
fn sum_counters<'obj>(skels: &[impl PacketSkel<'obj>], slots: usize) -> PacketCounters {
    let mut sum = PacketCounters::default();
    for skel in skels {
        sum.add(&skel.counters(slots));
    }
    sum
}

/// A run on a capture file.
pub struct Replay<'a, S> {
    /// The session.
    pub session: &'a mut Session,
    /// The programs.
    pub skel: &'a mut S,
    /// The kind of event buffer.
    pub buffer: BufferKind,
    /// Number of slots that runs of programs have.
    pub slots: usize,
    source: Option<EventSource>,
    command: &'static str,
    /// See [`PacketCommand::replays_one_at_a_time`].
    one_at_a_time: bool,
    /// The opened file, until its header is read.
    file: Option<CaptureFile>,
    /// The file after its header; `None` if the run ended before that was read.
    capture: Option<Capture>,
    /// The error that ended the replay early.
    failure: Option<Failure>,
}

impl<'obj, S: PacketSkel<'obj>> Replay<'_, S> {
    /// Takes the reader of the event buffer.
    ///
    /// # Errors
    /// The programs have no event buffer, or it was taken before.
    pub fn take_source(&mut self) -> Result<EventSource> {
        self.source.take().context("the programs send no events")
    }

    /// Gives up all capabilities that the rest of the run does not need, and enters the sandbox.
    /// After that it reads the header of the untrusted file, and writes that of the output.
    ///
    /// # Errors
    /// A capability can't be given up, or the file is not a capture or can't be read.
    pub fn begin(&mut self, header: impl FnOnce(&mut Line<'_>, &Clock)) -> Result<(), Failure> {
        self.session.open_recording()?;
        let can_run = || !link::needs_capability();
        let mut keep = Vec::from_iter(privileges::needed_for(Capability::CAP_BPF, can_run)?);
        keep.extend(self.session.recording_needs()?);
        privileges::drop_all_but(&keep)?;
        self.session.start(Files::Opened);
        if let Some(file) = self.file.take() {
            self.capture = replay::begin(self.session, file)?;
        }
        self.session.clock.expect_dates();
        self.session.text_header(header);
        Ok(())
    }

    /// Runs all frames of the file through a program.
    pub fn run(
        &mut self,
        program: impl Fn(&S) -> &ProgramMut<'_>,
        around: &mut impl AroundFrames<S>,
    ) {
        let mut runner = Runner::new(&mut *self.skel, program, around, self.one_at_a_time);
        if let Some(capture) = &mut self.capture {
            self.failure = replay::run(self.session, capture, &mut runner);
        }
    }

    /// Runs all frames of the file through a program, and handles its events of `event_len` bytes at
    /// most, each with the frames of its test run.
    ///
    /// # Errors
    /// The programs send no events.
    pub fn run_events(
        &mut self,
        program: impl Fn(&S) -> &ProgramMut<'_>,
        event_len: usize,
        on_event: impl FnMut(&mut Session, &[Origin], &[u8]),
    ) -> Result<()> {
        let mut events = ReplayedEvents {
            source: self.take_source()?,
            event_len,
            on_event,
        };
        self.run(program, &mut events);
        self.session.flush();
        Ok(())
    }

    /// The summary of the run.
    pub fn summary(&self) -> Summary {
        summary(
            self.session,
            self.command,
            Some(&*self.skel),
            self.counters(),
        )
    }

    /// The sums of the programs' counters.
    pub fn counters(&self) -> PacketCounters {
        self.skel.counters(self.slots)
    }
}

/// Handles the events of each test run.
struct ReplayedEvents<F> {
    source: EventSource,
    event_len: usize,
    on_event: F,
}

impl<S, F: FnMut(&mut Session, &[Origin], &[u8])> AroundFrames<S> for ReplayedEvents<F> {
    fn room(&self, session: &Session) -> usize {
        let lines = session.output_room();
        let events = self.source.room(self.event_len);
        events.min(usize::try_from(lines).unwrap_or(usize::MAX))
    }

    fn after(&mut self, session: &mut Session, frames: &[Origin]) {
        self.source
            .drain_all(|bytes| (self.on_event)(session, frames, bytes));
    }
}

fn run_on_file<C: PacketCommand>(
    command: &C,
    options: Options<'_>,
    file: &Path,
) -> Result<Exit, Failure> {
    // Opened first, because this can wait for the writer of a FIFO: signals are not blocked yet,
    // and can end the process.
    let file = replay::open(file)?;
    let destination = destination(options)?;
    let mut session = Session::new(options.run)?;
    record(&mut session, options, destination, &[], Some(&file))?;
    let slots = load::packet_slots()?;
    let buffer = choose_buffer(options);
    let target = LoadTarget {
        position: 0,
        is_raw_ip: false,
        replay: true,
        replay_batch: !command.replays_one_at_a_time(),
        interfaces: &[],
        buffer,
        slots,
        options,
    };
    let mut storage = MaybeUninit::uninit();
    let mut skel = match command.load(&target, &mut storage, None) {
        Ok(skel) => skel,
        Err(failure) => return Err(why_no_replay(&mut session, file, failure)),
    };
    let source = open_source(&skel, options, buffer)?;
    if buffer == BufferKind::Perf {
        stay_on_this_cpu()?;
    }
    let mut replay = Replay {
        session: &mut session,
        skel: &mut skel,
        buffer,
        slots,
        source,
        command: C::NAME,
        one_at_a_time: command.replays_one_at_a_time(),
        file: Some(file),
        capture: None,
        failure: None,
    };
    let summary = command.replay(&mut replay)?;
    let failure = replay.failure.take();
    let exit = session.finish(&summary)?;
    failure.map_or(Ok(exit), Err)
}

/// If the kernel moved a test run to another CPU, its events would go to the perf buffer of that
/// CPU, and their order would be lost.
fn stay_on_this_cpu() -> Result<()> {
    let mut only = CpuSet::new();
    sched_getcpu()
        .and_then(|cpu| only.set(cpu))
        .and_then(|()| sched_setaffinity(Pid::from_raw(0), &only))
        .context("failed to stay on one CPU")
}

/// The error to report if the programs can't be loaded. If the file is not a capture file, that is
/// reported instead: it would fail with every privilege.
fn why_no_replay(session: &mut Session, file: CaptureFile, failure: Failure) -> Failure {
    if file.may_wait() || privileges::drop_all().is_err() {
        return failure;
    }
    session.start(Files::Opened);
    match replay::begin(session, file) {
        Err(error) if error.exit == Exit::Usage => error,
        _ => failure,
    }
}
