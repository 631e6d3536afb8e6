//! `flows`: one line per finished connection, or what connections carry by key.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use caps::Capability;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, OpenObject, ProgramInput, ProgramMut};
use nix::time::{ClockId, clock_gettime};

use super::flow_owner::Owners;
use super::replay::{self, Prepared, Replayed};
use crate::attach::ring::Bell;
use crate::attach::tc::{self, TcLink};
use crate::attach::{Direction, load};
use crate::capture::Frame;
use crate::cli::{FlowsArgs, OutputFormat};
use crate::events::{BATCH, BufferKind, EventSource};
use crate::failure::{Exit, Failure};
use crate::filter::{Filter, FlagsRule};
use crate::host::interfaces::{Interface, LinkLayer};
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::load::Loads;
use crate::notice::Notices;
use crate::output::clock::UnixNanos;
use crate::output::flow::{FlowInterval, FlowWriter};
use crate::output::line::Line;
use crate::output::packet::iface_width;
use crate::output::summary::{FlowTotals, Summary};
use crate::record::flow::Flow;
use crate::session::{Delivery, Output, Session, Wake};
use crate::skel::flows::types::{bss_replay, bss_sweep};
use crate::skel::flows::{FlowsSkel, FlowsSkelBuilder};
use crate::skel::{self, AGE_CLASSES, FlowRecord, PacketCounters, Sweep, SweepLimit, SweepMode};
use crate::stop::ExitReason;
use crate::view::terminal::{self, Screen};
use crate::view::{Reaction, View};
use crate::{filter_slots, filter_tries};

/// How often flows that are over are looked for. A sweep that takes long comes less often, so that
/// it takes no more than a fiftieth of the time.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
const SWEEP_REST: u32 = 50;

/// The same while the table is nearly full.
const SWEEP_FULL: Duration = Duration::from_millis(10);

/// The table is nearly full from this part on, and then oldest flows go until only that part is
/// left.
const NEARLY_FULL: (u64, u64) = (9, 10);
const LEFT: (u64, u64) = (3, 4);

/// How long a flow waits for stragglers after its end: as long as a FIN whose ACK was lost takes
/// to come again, twice (RFC 6298: 1 s; Linux begins at 200 ms).
const LINGER: Duration = Duration::from_secs(1);

/// How long a flow waits for the answer to a SYN, or to its FINs, unless --idle-timeout is
/// shorter. Linux repeats a SYN after 32 s at most.
const HALF_OPEN: Duration = Duration::from_secs(60);

/// Runs the command.
///
/// # Errors
/// As SPEC's exit codes: wrong options, or something that can't be attached or written.
pub fn run(args: &FlowsArgs) -> Result<Exit, Failure> {
    let filter = args.packets.filter(FlagsRule::default());
    if let Some(file) = &args.packets.read {
        return replay_file(args, &filter, file);
    }

    let mut session = Session::new(&args.output, &args.stop, args.sandbox)?;
    let interfaces = session.interfaces(&args.packets.interfaces)?;
    let cpus = load::possible_cpus()?;
    let buffer = BufferKind::choose(args.buffer.buffer)?;

    let mut storage = interfaces
        .iter()
        .map(|_| MaybeUninit::uninit())
        .collect::<Vec<_>>();
    let mut skels = Vec::<FlowsSkel<'_>>::new();
    for (interface, storage) in interfaces.iter().zip(&mut storage) {
        let setup = Setup {
            args,
            filter: &filter,
            buffer,
            raw_ip: interface.link_layer == LinkLayer::None,
            replay: false,
            position: skels.len(),
        };
        let skel = setup.load(storage, skels.first())?;
        skels.push(skel);
    }

    let mut storage = MaybeUninit::uninit();
    let owners = match skels.first() {
        // Sums by key have no process.
        Some(first) if args.by.is_none() => Owners::new(&mut storage, first, interfaces.len())
            .inspect_err(|error| without_owners(session.notices, error))
            .ok(),
        _ => None,
    };

    let delivery = Delivery::new(session.io());
    let names = interfaces
        .iter()
        .map(|interface| Some(interface.name.as_str()))
        .collect::<Vec<_>>();
    let has_view = shows_view(args);
    let book = Book::new(args, &delivery, &names, has_view);

    let counted_from = Instant::now();
    let mut links = Vec::new();
    for (interface, skel) in interfaces.iter().zip(&skels) {
        for direction in directions(interface) {
            let program = &skel.progs.flows_packet;
            let link = tc::attach(program, interface, *direction, session.notices)?;
            session.follow(interface, link.state());
            links.push((interface, *direction, link));
        }
    }

    let (first, others) = skels.split_first_mut().context("there is no interface")?;
    let source = EventSource::open(
        buffer,
        args.buffer.buffer_size,
        &first.maps.ring,
        &first.maps.perf,
        |bytes| book.borrow_mut().take(bytes),
    )?;
    let mut table = Table {
        sweep: &first.progs.flows_sweep,
        bss: &mut first.maps.bss_sweep_data,
        source: &source,
        owners,
        book: &book,
        chunk: chunk(args, buffer, cpus),
        max_flows: args.max_flows.into(),
    };
    let counters = || {
        let mut sum = PacketCounters::default();
        let all = std::iter::once(&first.maps.bss_counters_data)
            .chain(others.iter().map(|skel| &skel.maps.bss_counters_data));
        for bss in all.filter_map(Option::as_deref) {
            sum.add(&skel::flows_counters(bss, cpus));
        }
        sum
    };
    give_up_privileges(&links, &mut table)?;
    if !has_view {
        session.text_header(|out| book.borrow().header(out));
    }
    if has_view {
        session.stop.listen()?;
    } else {
        session.ready(Files::Opened)?;
    }
    session.attached(&describe(&links, buffer));

    if has_view {
        let names = interfaces.iter().map(|interface| interface.name.clone());
        let view = View::new(names.collect());
        run_view(
            &mut session,
            args,
            &mut table,
            &counters,
            (view, counted_from),
        )?;
    } else {
        run_sweeps(&mut session, args, &mut table, &counters)?;
    }
    let duration = session.stop.elapsed();
    for (.., link) in links {
        link.detach(session.notices);
    }
    crate::attach::synchronize();
    table.sweep(SweepMode::SWEEP_ALL, 0)?;
    let counters = counters();
    book.borrow_mut()
        .end_interval(&session, None, counters.untracked);
    session.output.borrow_mut().sink.flush(&session.stop);
    let summary = book.borrow().summary(&session, duration, counters);
    session.finish(&summary)
}

/// Looks for flows that are over, and shows what is asked for, until the run is over.
fn run_sweeps(
    session: &mut Session,
    args: &FlowsArgs,
    table: &mut Table<'_, '_, '_>,
    counters: &dyn Fn() -> PacketCounters,
) -> Result<()> {
    let started = Instant::now();
    let mut interval_due = args.by.map(|_| started + args.interval);
    let mut sweep_due = started + SWEEP_EVERY;
    loop {
        let until = interval_due.map_or(sweep_due, |due| due.min(sweep_due));
        if session.wait(None, Some(until))? == Wake::Stop {
            return Ok(());
        }
        session.output.borrow_mut().clock.sync()?;
        table.find_owners(counters().matched, session.notices);
        let now = Instant::now();
        let worked = cpu_time()?;
        let interval_ends = interval_due.is_some_and(|due| now >= due);
        let mode = if interval_ends {
            SweepMode::SWEEP_LIVE
        } else {
            SweepMode::SWEEP_ENDED
        };
        table.sweep(mode, 0)?;
        let counted = counters();
        if interval_ends {
            let mut book = table.book.borrow_mut();
            book.end_interval(session, None, counted.untracked);
            // After a pause of the whole machine the missed intervals are one long one.
            interval_due = interval_due.map(|due| (due + args.interval).max(now));
        }
        let evicted = table.make_room(counted.matched, 0)?;
        session.output.borrow_mut().sink.flush(&session.stop);
        let every = if evicted { SWEEP_FULL } else { SWEEP_EVERY };
        sweep_due = Instant::now() + every.max(rest_since(worked)?);
    }
}

/// Whether there is a terminal for the view, and nothing else is asked for.
fn shows_view(args: &FlowsArgs) -> bool {
    let is_asked = !args.no_tui && args.by.is_none() && args.stop.count.is_none();
    is_asked && args.output.format() == OutputFormat::Text && terminal::is_there()
}

/// When the first flows are shown: soon, but not before there are rates worth the name.
const FIRST_VIEW: Duration = Duration::from_millis(250);

/// Shows on the terminal what came since a time, until the run is over. The terminal is given back
/// on return, whatever the reason.
fn run_view(
    session: &mut Session,
    args: &FlowsArgs,
    table: &mut Table<'_, '_, '_>,
    counters: &dyn Fn() -> PacketCounters,
    (mut view, mut updated): (View, Instant),
) -> Result<()> {
    let opened = Screen::open(&session.output.borrow().sink)?;
    let Some(mut screen) = opened else {
        session.end(ExitReason::ClosedPipe);
        return Ok(());
    };
    session.confine(Files::Opened);
    let stdin = std::io::stdin();
    let mut due = Instant::now() + args.interval.min(FIRST_VIEW);
    let mut sweep_due = due;
    loop {
        screen.show(&mut view, &mut session.output.borrow_mut().sink);
        let wake = session.wait(Some(stdin.as_fd()), Some(due.min(sweep_due)))?;
        if wake == Wake::Stop {
            return Ok(());
        }
        if wake == Wake::Events {
            let Some(keys) = screen.keys()? else {
                session.end(ExitReason::ClosedPipe);
                return Ok(());
            };
            for key in keys {
                match view.key(key) {
                    Reaction::Quit => {
                        session.end(ExitReason::Signal);
                        return Ok(());
                    }
                    Reaction::Redraw => screen.redraw(),
                    Reaction::Suspend => suspend(session, &mut screen)?,
                    Reaction::Draw => screen.touch(),
                }
            }
        }
        table.find_owners(counters().matched, session.notices);
        let now = Instant::now();
        let worked = cpu_time()?;
        if now >= due {
            table.sweep(SweepMode::SWEEP_LIVE, 0)?;
            let flows = std::mem::take(&mut table.book.borrow_mut().rows);
            let length = updated.elapsed().as_secs_f64();
            view.update(flows, monotonic_ns()?, length, counters().untracked);
            screen.touch();
            updated = now;
            due = now + args.interval.max(rest_since(worked)?);
        } else if now >= sweep_due {
            table.sweep(SweepMode::SWEEP_ENDED, 0)?;
        }
        if now >= sweep_due {
            let full = table.make_room(counters().matched, 0)?;
            let every = if full { SWEEP_FULL } else { SWEEP_EVERY };
            sweep_due = Instant::now() + every.max(rest_since(worked)?);
        }
    }
}

/// Stops the process until it has the terminal again, or is to end.
fn suspend(session: &mut Session, screen: &mut Screen) -> Result<()> {
    loop {
        screen.suspend()?;
        if screen.resume(&mut session.output.borrow_mut().sink)? {
            return Ok(());
        }
        // Continued in the background, perhaps for the sake of another signal.
        if session.wait(None, Some(Instant::now() + SWEEP_EVERY))? == Wake::Stop {
            return Ok(());
        }
    }
}

/// CPU time of this thread, in which the sweep runs too.
fn cpu_time() -> Result<Duration> {
    let time =
        clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).context("failed to read the clock")?;
    Ok(time.into())
}

/// How long to rest after work that began at this CPU time. Time in which others ran, or a reader
/// was waited for, is none to rest for: flows go on meanwhile, and the table would fill.
fn rest_since(worked: Duration) -> Result<Duration> {
    Ok(cpu_time()?.saturating_sub(worked) * SWEEP_REST)
}

/// The clock of the programs.
fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("failed to read the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}

/// The loopback device shows each packet twice, leaving and coming in: once is enough.
pub fn directions(interface: &Interface) -> &'static [Direction] {
    // The kernel gives this index to the loopback device of each namespace, and to no other.
    const LOOPBACK_IFINDEX: u32 = 1;
    if interface.index == LOOPBACK_IFINDEX {
        &[Direction::Ingress]
    } else {
        &[Direction::Ingress, Direction::Egress]
    }
}

/// Loads the programs, and attaches to an interface if there is one: whether that can be done, and
/// if so, as which kind of attachment.
///
/// # Errors
/// The command would fail in the same way.
pub fn probe(
    args: &FlowsArgs,
    interface: Option<&Interface>,
    notices: Notices,
) -> Result<Option<String>, Failure> {
    let setup = Setup {
        args,
        filter: &args.packets.filter(FlagsRule::default()),
        buffer: BufferKind::choose(args.buffer.buffer)?,
        raw_ip: false,
        replay: false,
        position: 0,
    };
    let mut storage = MaybeUninit::uninit();
    let skel = setup.load(&mut storage, None)?;
    let Some(interface) = interface else {
        return Ok(None);
    };
    let link = tc::attach(
        &skel.progs.flows_packet,
        interface,
        Direction::Ingress,
        notices,
    )?;
    Ok(Some(link.kind().to_owned()))
}

type Attached<'a> = (&'a Interface, Direction, TcLink);

fn without_owners(notices: Notices, error: &anyhow::Error) {
    notices.detail(&format!("no process is named: {error:#}"));
}

/// Keeps what the rest of the run needs: the sweep is run by bpf(2), which before 5.19 asks for
/// CAP_BPF, and a filter that is no link must be removed.
fn give_up_privileges(links: &[Attached<'_>], table: &mut Table<'_, '_, '_>) -> Result<()> {
    let mut keep = Vec::new();
    if !privileges::without_capabilities(|| table.sweep(SweepMode::SWEEP_ENDED, 0).is_ok())? {
        keep.push(Capability::CAP_BPF);
    }
    if links.iter().any(|(.., link)| link.needs_privileges()) {
        keep.push(Capability::CAP_NET_ADMIN);
    }
    privileges::drop_all_but(&keep)
}

/// What was attached, for the `attached:` line.
fn describe(links: &[Attached<'_>], buffer: BufferKind) -> String {
    let places = links
        .iter()
        .map(|(interface, direction, link)| {
            format!("tc {} ({}) on {}", direction, link.kind(), interface.name)
        })
        .collect::<Vec<_>>();
    format!("{} (flows, {})", places.join(", "), buffer.name())
}

/// Records that surely fit into the event buffer at once. Only the sweep writes to it, and it is
/// emptied after each run, so that none is lost, but on a CPU that has come later than the perf
/// buffer.
fn chunk(args: &FlowsArgs, buffer: BufferKind, cpus: usize) -> u32 {
    // Either kind of buffer adds less than this to a record.
    const OVERHEAD: usize = 64;
    let bytes = args.buffer.buffer_size as usize;
    let bytes = match buffer {
        BufferKind::Ring => bytes,
        BufferKind::Perf => (bytes / cpus / 2).max(4096),
    };
    u32::try_from(bytes / (size_of::<FlowRecord>() + OVERHEAD)).unwrap_or(u32::MAX)
}

/// The table in the kernel, as the sweep shows it.
struct Table<'a, 'obj, 'b> {
    sweep: &'a ProgramMut<'obj>,
    bss: &'a mut Option<&'obj mut bss_sweep>,
    source: &'a EventSource<'b>,
    /// `None` where processes can't be looked at, or need not.
    owners: Option<Owners<'a>>,
    book: &'a RefCell<Book<'b>>,
    chunk: u32,
    max_flows: u64,
}

impl Table<'_, '_, '_> {
    /// Looks for the processes of new flows, of all that ever were in the table.
    fn find_owners(&mut self, ever: u64, notices: Notices) {
        if let Some(owners) = &mut self.owners
            && let Err(error) = owners.look(ever)
        {
            without_owners(notices, &error);
            self.owners = None;
        }
    }

    /// Takes the records that are asked for. In a replay, `now_ns` is the time.
    fn sweep(&mut self, mode: SweepMode, now_ns: u64) -> Result<Sweep> {
        self.sweep_with(Sweep {
            mode: mode.0,
            now_ns,
            ..Sweep::default()
        })
    }

    fn sweep_with(&mut self, mut request: Sweep) -> Result<Sweep> {
        let bss = self
            .bss
            .as_deref_mut()
            .context("the sweep has no place for its settings")?;
        let before = skel::read_sweep(bss);
        request.lost = before.lost;
        request.lost_packets = before.lost_packets;
        skel::set_sweep(bss, &request);
        let frame = [0; 14];
        let mut left = before.end;
        loop {
            let input = ProgramInput {
                data_in: Some(&frame),
                repeat: (left / SweepLimit::SWEEP_STEP.0 + 2).min(self.chunk),
                ..ProgramInput::default()
            };
            match self.sweep.test_run(input) {
                Ok(_) => {}
                // A signal: the cursor knows how far it came.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("failed to read the table of flows"),
            }
            while self.source.consume(Bell::Wanted) == BATCH {}
            self.book.borrow_mut().settle();
            let sweep = skel::read_sweep(bss);
            self.book.borrow_mut().note_lost(&sweep);
            left = sweep.end.saturating_sub(sweep.cursor);
            if left == 0 {
                return Ok(sweep);
            }
        }
    }

    /// Reports the oldest flows if the table is nearly full, of all that ever were in it. Whether
    /// it was.
    fn make_room(&mut self, ever: u64, now_ns: u64) -> Result<bool> {
        let in_table = ever.saturating_sub(self.book.borrow().reported);
        if in_table <= self.max_flows * NEARLY_FULL.0 / NEARLY_FULL.1 {
            return Ok(false);
        }
        let surplus = in_table.saturating_sub(self.max_flows * LEFT.0 / LEFT.1);
        let ages = self.sweep(SweepMode::SWEEP_ENDED, now_ns)?.ages;
        self.sweep_with(Sweep {
            mode: SweepMode::SWEEP_OLDEST.0,
            now_ns,
            evict_age: oldest(&ages, surplus),
            budget: u32::try_from(surplus).unwrap_or(u32::MAX),
            ..Sweep::default()
        })?;
        Ok(true)
    }
}

/// The age class from which on there are that many flows.
fn oldest(ages: &[u32; AGE_CLASSES], surplus: u64) -> u32 {
    let mut sum = 0;
    for (class, count) in (0..AGE_CLASSES as u32).zip(ages).rev() {
        sum += u64::from(*count);
        if sum >= surplus {
            return class;
        }
    }
    0
}

/// Takes the records that a sweep reports.
struct Book<'a> {
    delivery: &'a Delivery,
    writer: FlowWriter,
    /// Names of the interfaces; `None` for a replay's only one.
    names: &'a [Option<&'a str>],
    /// With `--by`: no lines, but sums.
    loads: Option<Loads>,
    /// When the interval began that runs.
    interval_started: Instant,
    /// Flows that have ended since they were last written, to be written in order.
    ended: Vec<Flow>,
    /// For the view: flows of the interval, live and ended.
    rows: Vec<Flow>,
    has_view: bool,
    /// Flows that have ended since the start.
    reported: u64,
    /// Of these, and of their packets, those whose record found no room.
    lost: u64,
    lost_packets: u64,
    totals: FlowTotals,
}

impl<'a> Book<'a> {
    fn new(
        args: &FlowsArgs,
        delivery: &'a Delivery,
        names: &'a [Option<&'a str>],
        has_view: bool,
    ) -> RefCell<Self> {
        RefCell::new(Self {
            delivery,
            writer: FlowWriter {
                iface_width: iface_width(names.iter().copied().flatten()),
            },
            names,
            loads: args.by.map(|by| Loads::new(by, args.top)),
            interval_started: Instant::now(),
            ended: Vec::new(),
            rows: Vec::new(),
            has_view,
            reported: 0,
            lost: 0,
            lost_packets: 0,
            totals: FlowTotals::default(),
        })
    }

    /// Whether each flow that ends gets a line.
    fn has_lines(&self) -> bool {
        self.loads.is_none() && !self.has_view
    }

    fn header(&self, out: &mut Line<'_>) {
        match &self.loads {
            Some(_) => self.writer.text_interval_header(out),
            None => self.writer.text_header(out),
        }
    }

    /// Takes a record as the sweep sends it.
    fn take(&mut self, bytes: &[u8]) {
        let Some(flow) = Flow::decode(bytes) else {
            self.reported += 1;
            self.delivery.broken();
            return;
        };
        if let Some(loads) = &mut self.loads {
            loads.add(&flow);
        }
        if self.has_view {
            self.rows.push(flow);
        }
        if flow.is_live() {
            return;
        }
        self.reported += 1;
        self.totals.evicted += u64::from(flow.is_evicted());
        if self.has_lines() {
            self.ended.push(flow);
        }
    }

    /// Notes how many records the sweep could not send, of all since the start.
    fn note_lost(&mut self, sweep: &Sweep) {
        self.reported += sweep.lost - self.lost;
        self.lost = sweep.lost;
        self.lost_packets = sweep.lost_packets;
    }

    /// Writes the flows that have ended, in the order of their last packets.
    fn settle(&mut self) {
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
            if !self.write(&flow) {
                self.totals.unreported += flow.packets();
            }
        }
        // The memory is used again.
        self.ended = ended;
    }

    fn write(&self, flow: &Flow) -> bool {
        let iface = self
            .names
            .get(usize::from(flow.raw.key.interface))
            .copied()
            .flatten();
        // A file's time is UNIX time already, and may be before 1970.
        let unix = |clock: &crate::output::clock::Clock, ns: u64| match iface {
            Some(_) => clock.unix(ns),
            None => ns.cast_signed(),
        };
        self.delivery.deliver(
            Some(*flow),
            |clock, flow| unix(clock, flow.raw.last_ns),
            |out, clock, at, flow| match self.delivery.format() {
                OutputFormat::Json => {
                    let start = unix(clock, flow.raw.start_ns);
                    self.writer.json(out, clock, (start, at), iface, flow);
                }
                OutputFormat::Text => self.writer.text(out, clock, at, iface, flow),
            },
        )
    }

    /// Writes what the interval's flows have carried, and begins another. In a replay the interval
    /// is given: its end, and how long it was.
    fn end_interval(
        &mut self,
        session: &Session,
        replayed: Option<(UnixNanos, Duration)>,
        untracked: u64,
    ) {
        let Some(loads) = &mut self.loads else {
            return;
        };
        let mut output = session.output.borrow_mut();
        let Output { sink, clock } = &mut *output;
        let (at, length) = match replayed {
            Some(interval) => interval,
            None => (clock.now(), self.interval_started.elapsed()),
        };
        for (position, iface) in (0..).zip(self.names) {
            let (all, top) = loads.busiest(position);
            let interval = FlowInterval {
                iface: *iface,
                seconds: length.as_secs_f64(),
                by: loads.by.name(),
                all,
                top: &top,
                untracked,
            };
            sink.line(&session.stop, |out| match session.format {
                OutputFormat::Json => self.writer.json_interval(out, clock, at, &interval),
                OutputFormat::Text => self.writer.text_interval(out, clock, at, &interval),
            });
        }
        loads.clear();
        self.interval_started = Instant::now();
    }

    /// The account of the run. Where there are no lines, all that was received was shown.
    fn summary(&self, session: &Session, duration: Duration, counters: PacketCounters) -> Summary {
        let account = self
            .delivery
            .summary("flows", duration, counters.matched, self.lost, 0);
        let summary = Summary {
            exit_reason: session.exit_reason().name(),
            packets: Some(counters),
            flows: Some(FlowTotals {
                segments: counters.segments,
                untracked: counters.untracked,
                unreported: self.totals.unreported + self.lost_packets,
                ..self.totals
            }),
            ..account
        };
        if self.has_lines() {
            return summary;
        }
        Summary {
            emitted: counters.matched - self.lost,
            lost: self.lost,
            suppressed: 0,
            ..summary
        }
    }
}

/// What a program is loaded for.
struct Setup<'a> {
    args: &'a FlowsArgs,
    filter: &'a Filter,
    buffer: BufferKind,
    raw_ip: bool,
    replay: bool,
    position: usize,
}

impl Setup<'_> {
    /// Loads the programs; `first` owns the table and the event buffer that all share.
    fn load<'obj>(
        &self,
        storage: &'obj mut MaybeUninit<OpenObject>,
        first: Option<&FlowsSkel<'_>>,
    ) -> Result<FlowsSkel<'obj>, Failure> {
        let mut open = FlowsSkelBuilder::default()
            .open(storage)
            .context("failed to open the programs")?;
        let rodata = open
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the programs have no settings")?;
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        rodata.link_is_raw_ip = self.raw_ip;
        rodata.replay = self.replay;
        rodata.use_perf_buffer = self.buffer == BufferKind::Perf;
        rodata.interface = u32::from(u16::try_from(self.position)?);
        rodata.max_flows = self.args.max_flows;
        rodata.idle_ns = nanos(self.args.idle_timeout);
        rodata.half_open_ns = nanos(self.args.idle_timeout.min(HALF_OPEN));
        rodata.linger_ns = nanos(LINGER);
        self.filter.configure(filter_slots!(open, rodata))?;
        let maps = &mut open.maps;
        self.buffer
            .configure(&self.args.buffer, &mut maps.ring, &mut maps.perf)?;
        for map in [&mut maps.flow_slots, &mut maps.slots, &mut maps.free_slots] {
            map.set_max_entries(self.args.max_flows)?;
        }
        if let Some(first) = first {
            match self.buffer {
                BufferKind::Ring => maps.ring.reuse_fd(first.maps.ring.as_fd())?,
                BufferKind::Perf => maps.perf.reuse_fd(first.maps.perf.as_fd())?,
            }
            maps.flow_slots.reuse_fd(first.maps.flow_slots.as_fd())?;
            maps.slots.reuse_fd(first.maps.slots.as_fd())?;
            maps.free_slots.reuse_fd(first.maps.free_slots.as_fd())?;
            maps.unused_slots
                .reuse_fd(first.maps.unused_slots.as_fd())?;
        }
        open.progs.flows_sweep.set_autoload(first.is_none());
        let skel = open
            .load()
            .map_err(|error| load::failure("failed to load the flows program", error))?;
        self.filter.fill(filter_tries!(skel))?;
        Ok(skel)
    }
}

/// Shows the flows of a capture file.
fn replay_file(args: &FlowsArgs, filter: &Filter, file: &Path) -> Result<Exit, Failure> {
    // Opened first: while it waits for a FIFO's writer, signals still end the process.
    let mut capture = replay::open(file)?;
    let mut session = Session::new(&args.output, &args.stop, args.sandbox)?;
    let cpus = load::possible_cpus()?;
    let setup = Setup {
        args,
        filter,
        buffer: BufferKind::choose(args.buffer.buffer)?,
        raw_ip: false,
        replay: true,
        position: 0,
    };
    let mut storage = MaybeUninit::uninit();
    let mut skel = setup.load(&mut storage, None)?;
    let delivery = Delivery::new(session.io());
    let book = Book::new(args, &delivery, &[None], false);
    let source = EventSource::open(
        setup.buffer,
        args.buffer.buffer_size,
        &skel.maps.ring,
        &skel.maps.perf,
        |bytes| book.borrow_mut().take(bytes),
    )?;
    session.ready(Files::Opened)?;
    session.text_header(|out| book.borrow().header(out));

    let counters = || match skel.maps.bss_counters_data.as_deref() {
        Some(bss) => skel::flows_counters(bss, cpus),
        None => PacketCounters::default(),
    };
    let mut replay = Replay {
        program: &skel.progs.flows_packet,
        bss: &mut skel.maps.bss_replay_data,
        table: Table {
            sweep: &skel.progs.flows_sweep,
            bss: &mut skel.maps.bss_sweep_data,
            source: &source,
            owners: None,
            book: &book,
            chunk: chunk(args, setup.buffer, cpus),
            max_flows: args.max_flows.into(),
        },
        counters: &counters,
        interval: i64::try_from(args.interval.as_nanos()).unwrap_or(i64::MAX),
        interval_started: None,
        swept: None,
        latest: 0,
        frames: 0,
    };
    let file_error = replay::run(&mut session, &mut capture, &mut replay)?;
    replay.finish(&session)?;
    let counters = counters();
    session.output.borrow_mut().sink.flush(&session.stop);
    let summary = book
        .borrow()
        .summary(&session, session.stop.elapsed(), counters);
    let exit = session.finish(&summary)?;
    file_error.map_or(Ok(exit), Err)
}

/// A replay in progress. Times are UNIX times in ns, lengths ns.
struct Replay<'a, 'obj, 'b> {
    program: &'a ProgramMut<'obj>,
    bss: &'a mut Option<&'obj mut bss_replay>,
    table: Table<'a, 'obj, 'b>,
    counters: &'a dyn Fn() -> PacketCounters,
    interval: i64,
    /// When the interval began that runs; `None` before the first frame.
    interval_started: Option<UnixNanos>,
    /// When flows that are over were last looked for.
    swept: Option<UnixNanos>,
    latest: UnixNanos,
    frames: u64,
}

/// Frames between two looks at how full the table is.
const CHECK_ROOM_EVERY: u64 = 1024;

impl Replay<'_, '_, '_> {
    /// Does what is due before a frame of this time.
    fn catch_up(&mut self, session: &Session, at: UnixNanos) -> Result<()> {
        self.latest = self.latest.max(at);
        let started = *self.interval_started.get_or_insert(at);
        let passed = at.saturating_sub(started);
        if self.table.book.borrow().loads.is_some() && passed >= self.interval {
            self.table
                .sweep(SweepMode::SWEEP_LIVE, at.cast_unsigned())?;
            self.end_interval(session, self.interval);
            // Intervals without a frame are left out: a file may skip over years.
            let whole = passed / self.interval * self.interval;
            self.interval_started = Some(started.saturating_add(whole));
        }
        let swept = *self.swept.get_or_insert(at);
        if at.saturating_sub(swept).unsigned_abs() >= SWEEP_EVERY.as_nanos() as u64 {
            self.swept = Some(at);
            self.table
                .sweep(SweepMode::SWEEP_ENDED, at.cast_unsigned())?;
        }
        self.frames += 1;
        if self.frames.is_multiple_of(CHECK_ROOM_EVERY) {
            let ever = (self.counters)().matched;
            self.table.make_room(ever, at.cast_unsigned())?;
        }
        Ok(())
    }

    fn end_interval(&mut self, session: &Session, length: i64) {
        let end = self
            .interval_started
            .unwrap_or(self.latest)
            .saturating_add(length);
        let length = Duration::from_nanos(length.unsigned_abs());
        let untracked = (self.counters)().untracked;
        let mut book = self.table.book.borrow_mut();
        book.end_interval(session, Some((end, length)), untracked);
    }

    fn finish(&mut self, session: &Session) -> Result<()> {
        self.table
            .sweep(SweepMode::SWEEP_ALL, self.latest.cast_unsigned())?;
        if let Some(started) = self.interval_started {
            // A file may hold no time at all; rates are then those of a whole interval.
            let passed = self.latest.saturating_sub(started);
            self.end_interval(session, if passed > 0 { passed } else { self.interval });
        }
        Ok(())
    }
}

impl Replayed for Replay<'_, '_, '_> {
    fn run(
        &mut self,
        session: &Session,
        _: &Frame<'_>,
        prepared: &Prepared<'_>,
        input: ProgramInput<'_>,
    ) -> Result<()> {
        self.catch_up(session, prepared.at)?;
        let bss = self
            .bss
            .as_deref_mut()
            .context("the program has no place for the frame's length")?;
        let at = prepared.at.cast_unsigned();
        skel::set_flows_replay(bss, prepared.len, prepared.beyond, at);
        self.program.test_run(input)?;
        Ok(())
    }
}
