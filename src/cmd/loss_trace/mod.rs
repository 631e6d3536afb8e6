//! `loss-trace`: TCP segments that were dropped or retransmitted, and resets, with the reason.

pub(super) mod programs;
mod silent;

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use caps::Capability;
use libbpf_rs::Link;

pub use programs::rehearse;
use programs::{Kernel, LossTarget};
use silent::Silent;

use crate::attach::beside::beside;
use crate::attach::tc::PreparedLinks;
use crate::attach::{Attached, Pair, load};
use crate::capture::LINKTYPE_RAW;
use crate::capture::recorder::{Destination, Recorder};
use crate::capture::write::{Encoder, FileFormat, FileInterface, FrameToWrite, Statistics};
use crate::cli::{LossByChoice, LossTraceArgs, OutputFormat, interface_hints};
use crate::domain::loss::{Loss, LossKey, detail_name, kind_name};
use crate::domain::packet::ip_len;
use crate::domain::reasons::{NetfilterHook, ReasonFrom, hook_of_caller};
use crate::domain::tally::{Label, TallyKey};
use crate::failure::{Exit, Failure};
use crate::host::containers::Containers;
use crate::host::interfaces::{self, Interface};
use crate::host::kernel_symbols::KernelSymbols;
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::notice::Notices;
use crate::output::counts::CountsLayout;
use crate::output::loss_trace::{LossLayout, ShownLoss};
use crate::output::summary::Summary;
use crate::run::counts::KeyCounts;
use crate::run::events::{BufferKind, EventSource};
use crate::run::export::Purpose;
use crate::run::holders::{self, Holders, Which};
use crate::run::session::{Session, Wake};
use crate::skel::loss_trace::LossTraceSkel;
use crate::skel::{self, CountKey, LOSS_BYTES, LossCounters};
use crate::sys::key_tables::{KeyTables, Size};
use crate::sys::link;

pub(super) const NAME: &str = "loss-trace";

/// Runs the command.
///
/// # Errors
/// An option is wrong, or a program can't be loaded or attached.
pub fn run(args: &LossTraceArgs) -> Result<Exit, Failure> {
    let mut session = Session::new(&args.run)?;
    args.netns.enter()?;
    let interfaces = match args.interfaces() {
        [] => Vec::new(),
        names => session.interfaces(names, interface_hints::plain_interface_hint)?,
    };
    let tables = Size::of(load::possible_cpus()?);
    let lines = Lines::new(args)?;
    record(&mut session, args)?;
    let buffer = BufferKind::choose(args.buffer.buffer);
    let kernel = Kernel::look()?;
    kernel.check_reasons(&args.reason)?;
    kernel.say_what_is_missing(session.notices);
    let mut symbols = symbols(session.notices);
    let watched = match kernel.watches_interfaces(args) {
        true => watched(&interfaces)?,
        false => Vec::new(),
    };
    let mut storage = [const { MaybeUninit::uninit() }; 2];
    let mut owners = MaybeUninit::uninit();
    let notices = session.notices;
    let prepared = PreparedLinks::both_directions(&watched);
    let target = LossTarget {
        args,
        purpose: Purpose::Report(buffer),
        interfaces: &interfaces,
        watched: &watched,
        tables,
    };
    let (holders, programs) = beside(
        || Holders::new(&mut owners, Which::All, notices),
        || kernel.load_all(&target, &mut symbols, &mut storage),
    );
    let (mut skels, pairs) = programs?;
    let holders = holders
        .inspect_err(|error| {
            notices.notice(&format!("processes can't be shown: {error:#}"));
        })
        .ok();
    let mut handler = LossHandler {
        kernel: &kernel,
        symbols,
        holders,
        silent: Silent::new(&watched, session.notices),
        containers: (args.run.output.format() == OutputFormat::Json).then(Containers::new),
    };
    let mut output = Output::open(args, &lines, buffer, tables, first(&skels)?)?;
    let (links, hooks) = programs::attach(first(&skels)?)?;
    let attached = watch_interfaces(&mut session, &pairs, &watched, prepared)?;
    if interfaces.is_empty() {
        session.watch_unnamed(&watched)?;
    }
    session.open_recording()?;
    drop_privileges(&session, &attached, handler.holders.as_mut())?;
    session.text_header(|out, clock| lines.header(out, clock));
    session.start(match handler.containers {
        Some(_) => Files::Readable,
        None => Files::Opened,
    });
    session.attached(&description(&hooks, &attached, &output, buffer));
    let links = (attached, links);
    let summary = match &mut output {
        Output::Events(layout, source) => {
            handler.events(&mut session, &mut skels, (layout, source), links)?
        }
        Output::Frames(source) => handler.frames(&mut session, &mut skels, source, links)?,
        Output::Counts(counts, by) => {
            handler.count(&mut session, &mut skels, counts, *by, links)?
        }
    };
    session.finish(&summary)
}

/// What is attached, and how its output comes here.
fn description(
    hooks: &[&str],
    attached: &Attached,
    output: &Output<'_>,
    buffer: BufferKind,
) -> String {
    let way = match output {
        Output::Events(..) | Output::Frames(_) => buffer.name(),
        Output::Counts(..) => "per-CPU counters",
    };
    let mut hooks = hooks.join(", ");
    if !attached.hooks().is_empty() {
        hooks += &format!(", {attached}");
    }
    format!("{hooks} ({NAME}, {way})")
}

/// Attaches the programs at interfaces, and has the session check that they stay attached. Reports
/// it if the kernel refuses them: the run goes on without them.
fn watch_interfaces(
    session: &mut Session,
    pairs: &[Pair],
    watched: &[Interface],
    prepared: PreparedLinks,
) -> Result<Attached> {
    let mut attached = programs::watch(pairs, watched, prepared).unwrap_or_else(|failure| {
        session.notices.notice(&format!(
            "drops that no tracepoint reports, such as those because of full queues, can't be shown: {:#}",
            failure.error
        ));
        Attached::default()
    });
    session.follow(&mut attached)?;
    Ok(attached)
}

/// Drops all privileges but those that the run needs.
fn drop_privileges(
    session: &Session,
    attached: &Attached,
    holders: Option<&mut Holders<'_>>,
) -> Result<()> {
    let mut keep = Vec::from_iter(holders::needs(holders)?);
    keep.extend(session.recording_needs()?);
    if attached.needs_privileges() {
        keep.push(Capability::CAP_NET_ADMIN);
    }
    privileges::drop_all_but(&keep)
}

/// The names of kernel functions. Reports it if there are none.
fn symbols(notices: Notices) -> KernelSymbols {
    let opened = KernelSymbols::open().and_then(|symbols| {
        let hidden = symbols.hidden()?;
        Ok((symbols, hidden))
    });
    let (symbols, missing) = match opened {
        Ok((symbols, hidden)) => (symbols, hidden.map(str::to_owned)),
        Err(error) => (KernelSymbols::none(), Some(format!("{error:#}"))),
    };
    if let Some(why) = missing {
        notices.notice(&format!(
            "the functions that drop segments can't be shown: {why}"
        ));
    }
    symbols
}

/// Makes the session write a capture file, if that is asked for.
fn record(session: &mut Session, args: &LossTraceArgs) -> Result<(), Failure> {
    let recording = &args.recording;
    let Some(path) = &recording.write else {
        return Ok(());
    };
    let destination = Destination::new(path)?;
    if destination.format() == FileFormat::Pcap {
        session.notices.notice(
            "a pcap file has no reasons: a name without .pcap makes it a pcapng file, which has them",
        );
    }
    // A packet may be dropped at any interface or above all of them, where it has no link-layer
    // header any more.
    let described = FileInterface {
        name: String::new(),
        link_type: LINKTYPE_RAW,
    };
    let encoder = Encoder::new(
        destination.format(),
        recording.snaplen().min(LOSS_BYTES),
        None,
        vec![described],
    );
    let limits = recording.limits();
    let count = args.run.stop.count;
    session.record_to(Recorder::new(
        destination,
        limits,
        &session.clock,
        encoder,
        count,
    )?);
    Ok(())
}

/// The counts that a capture file ends with.
fn statistics(skels: &[LossTraceSkel<'_>]) -> Vec<Statistics> {
    let counters = counters(skels);
    let matched = counters.kinds.iter().sum();
    vec![Statistics {
        received: matched,
        matched,
        lost: counters.lost,
    }]
}

/// The columns of lines.
enum Lines {
    Events(LossLayout),
    /// With `--by`.
    Counts(CountsLayout, LossByChoice),
}

impl Lines {
    fn new(args: &LossTraceArgs) -> Result<Self, Failure> {
        let columns = &args.run.output.columns;
        Ok(match args.by {
            None => Self::Events(LossLayout::of(columns)?),
            Some(by) => Self::Counts(CountsLayout::of(columns)?, by),
        })
    }

    fn header(&self, out: &mut crate::output::line::Line<'_>, clock: &crate::output::clock::Clock) {
        match self {
            Self::Events(layout) => layout.header(out, clock),
            Self::Counts(layout, _) => layout.header(out, clock),
        }
    }
}

/// The source of output: an event for each line or frame, or counts by key.
enum Output<'a> {
    Events(&'a LossLayout, EventSource),
    /// With `-w`.
    Frames(EventSource),
    Counts(KeyCounts<'a>, LossByChoice),
}

impl<'a> Output<'a> {
    /// Opens the event buffer, or the tables of counts.
    fn open(
        args: &LossTraceArgs,
        lines: &'a Lines,
        buffer: BufferKind,
        tables: Size,
        skel: &LossTraceSkel<'_>,
    ) -> Result<Self> {
        let maps = &skel.maps;
        Ok(match lines {
            Lines::Events(layout) => {
                let size = args.buffer.size();
                let source = EventSource::open(buffer, size, &maps.ring, &maps.perf)?;
                match args.recording.write {
                    Some(_) => Self::Frames(source),
                    None => Self::Events(layout, source),
                }
            }
            Lines::Counts(layout, by) => {
                let tables = KeyTables::map(&maps.count_sets, tables)?;
                let names = ("loss_count", by.name());
                let counts = KeyCounts::new(layout, names, tables, args.interval, args.top);
                Self::Counts(counts, *by)
            }
        })
    }
}

/// The programs of tracepoints.
fn first<'a, 'obj>(skels: &'a [LossTraceSkel<'obj>]) -> Result<&'a LossTraceSkel<'obj>> {
    skels.first().context("there are no programs")
}

/// The interfaces to attach to: those that are named, else all of this network namespace that are
/// up.
fn watched(named: &[Interface]) -> Result<Vec<Interface>> {
    match named.is_empty() {
        true => interfaces::up(),
        false => Ok(named.to_vec()),
    }
}

/// What keeps the programs attached, at interfaces and at tracepoints.
type Links = (Attached, Vec<Link>);

/// Stops and detaches the programs, so that their counters are final.
fn detach(
    session: &mut Session,
    skels: &mut [LossTraceSkel<'_>],
    (mut attached, links): Links,
) -> Result<()> {
    let checked = session.check_hooks();
    // If another process holds the links, the programs stay attached.
    for skel in &mut *skels {
        if let Some(bss) = skel.maps.bss_counters_data.as_deref_mut() {
            skel::stop(&mut bss.stopped);
        }
    }
    for note in attached.detach() {
        session.notices.note(&note);
    }
    drop(links);
    link::synchronize();
    let skipped = skels.iter().map(skipped).sum::<u64>();
    if skipped > 0 {
        session.notices.notice(&format!(
            "{skipped} times the kernel skipped a program that would have interrupted itself: at most that many segments are missing"
        ));
    }
    checked
}

/// How often the kernel has skipped a program that might have reported a segment. The program at
/// consume_skb is left out: it runs for all packets, and a run that is skipped hardly ever matters.
fn skipped(skel: &LossTraceSkel<'_>) -> u64 {
    programs::loaded(&skel.progs)
        .filter(|(hook, _)| *hook != "consume_skb")
        .map(|(_, program)| link::skipped_runs(program.as_fd()))
        .sum()
}

/// The counters of all programs, which are there once they are loaded.
fn counters(skels: &[LossTraceSkel<'_>]) -> LossCounters {
    let mut sum = LossCounters::default();
    for bss in skels
        .iter()
        .filter_map(|skel| skel.maps.bss_loss_data.as_deref())
    {
        skel::add_loss_counters(bss, &mut sum);
    }
    sum
}

/// Why and where something happened.
struct Cause<'a> {
    reason: Option<&'a str>,
    reason_from: ReasonFrom,
    place: Option<&'a str>,
    hook: Option<NetfilterHook>,
}

impl<'a> Cause<'a> {
    fn of(loss: &Loss, symbols: &'a mut KernelSymbols, kernel: &'a Kernel) -> Self {
        let raw = &loss.raw;
        let hook = raw
            .callers
            .iter()
            .find_map(|caller| hook_of_caller(symbols.name(*caller)?));
        let place = symbols.name(raw.place);
        let (reason, reason_from) = kernel.reason(loss.kind(), raw.reason, place);
        Self {
            reason,
            reason_from,
            place,
            hook,
        }
    }
}

/// Turns events into lines: adds reason, place and process, and writes what was asked for.
struct LossHandler<'a> {
    kernel: &'a Kernel,
    symbols: KernelSymbols,
    holders: Option<Holders<'a>>,
    silent: Silent,
    /// Only for JSON.
    containers: Option<Containers>,
}

impl LossHandler<'_> {
    /// Writes a line for each event until the run is over and all is detached.
    fn events(
        &mut self,
        session: &mut Session,
        skels: &mut [LossTraceSkel<'_>],
        (layout, source): (&LossLayout, &mut EventSource),
        links: Links,
    ) -> Result<Summary> {
        let mut take = |session: &mut Session, bytes: &[u8]| self.take(session, layout, bytes);
        session.run_events(source, &mut take)?;
        detach(session, skels, links)?;
        session.drain_rest(source, &mut take)?;
        Ok(self.summary(session, skels))
    }

    /// Writes a frame for each event to a capture file, until the run is over and all is detached.
    fn frames(
        &mut self,
        session: &mut Session,
        skels: &mut [LossTraceSkel<'_>],
        source: &mut EventSource,
        links: Links,
    ) -> Result<Summary> {
        session.record_events(
            source,
            || statistics(skels),
            |session, bytes| self.record(session, bytes, || statistics(skels)),
        )?;
        detach(session, skels, links)?;
        session.drain_rest(source, |session, bytes| {
            self.record(session, bytes, || statistics(skels))
        })?;
        session.end_recording(&statistics(skels));
        Ok(self.summary(session, skels))
    }

    /// The summary of a run that has sent events.
    fn summary(&self, session: &Session, skels: &[LossTraceSkel<'_>]) -> Summary {
        let counters = counters(skels);
        let matched = counters.kinds.iter().sum::<u64>() - self.silent.discarded;
        session.summary(NAME, matched, counters.lost, counters.suppressed)
    }

    fn take(&mut self, session: &mut Session, layout: &LossLayout, bytes: &[u8]) {
        let Some(loss) = Loss::decode(bytes) else {
            session.broken();
            return;
        };
        let Some(loss) = self.silent.judge(loss) else {
            return;
        };
        let raw = &loss.raw;
        let cause = Cause::of(&loss, &mut self.symbols, self.kernel);
        let holders = self.holders.as_mut();
        let holder = holders.and_then(|holders| holders.of_inode(raw.inode));
        let container = match (&mut self.containers, holder) {
            (Some(containers), Some(holder)) => containers.find(holder.cgroup_id, holder.pid),
            _ => None,
        };
        let at = session.clock.unix(raw.ts_ns);
        let shown = ShownLoss {
            layout,
            loss: &loss,
            reason: cause.reason,
            reason_from: cause.reason_from,
            place: cause.place,
            hook: cause.hook,
            holder,
            container,
        };
        session.write_event(at, &shown);
    }

    /// Writes a dropped segment to the capture file, with what is known of it as a comment.
    fn record(
        &mut self,
        session: &mut Session,
        bytes: &[u8],
        statistics: impl FnOnce() -> Vec<Statistics>,
    ) {
        let (Some(loss), Some(packet)) = (Loss::decode(bytes), Loss::packet(bytes)) else {
            session.broken();
            return;
        };
        let Some(loss) = self.silent.judge(loss) else {
            return;
        };
        let raw = &loss.raw;
        let cause = Cause::of(&loss, &mut self.symbols, self.kernel);
        let mut comment = format!(
            "reason={} reason_from={} place={}",
            cause.reason.unwrap_or("-"),
            cause.reason_from.name(),
            cause.place.unwrap_or("-")
        );
        if let Some(hook) = cause.hook {
            comment += &format!(" hook={}", hook.name());
        }
        if let Some(name) = loss.iface() {
            comment += &format!(" iface={}", name.escape_ascii());
        }
        let holders = self.holders.as_mut();
        if let Some(holder) = holders.and_then(|holders| holders.of_inode(raw.inode)) {
            let comm = holder.comm.escape_ascii();
            comment += &format!(" pid={} comm={comm}", holder.pid);
        }
        let len = ip_len(packet);
        let written = FrameToWrite {
            interface: 0,
            at: session.clock.unix(raw.ts_ns),
            // A frame may be longer than the packet in it.
            parts: [&packet[..len.min(packet.len())], &[], &[], &[]],
            wire_len: u32::try_from(len).unwrap_or(u32::MAX),
            direction: Some(loss.direction()),
            // The comment names it.
            process: None,
            comment: Some(&comment),
        };
        session.write_frame(&written, statistics);
    }

    /// Writes the counts of each interval until the run is over, and after that what was counted
    /// until the programs were detached.
    fn count(
        &mut self,
        session: &mut Session,
        skels: &mut [LossTraceSkel<'_>],
        counts: &mut KeyCounts<'_>,
        by: LossByChoice,
        links: Links,
    ) -> Result<Summary> {
        let mut links = Some(links);
        while links.is_some() {
            if session.wait(None, Some(counts.due()))? == Wake::Stop
                && let Some(links) = links.take()
            {
                detach(session, skels, links)?;
            }
            let mut tables = Vec::new();
            let mut totals = Vec::new();
            for skel in &mut *skels {
                let maps = &mut skel.maps;
                let table = maps.bss_counters_data.as_deref_mut();
                let table = table.context("the programs have no table of counts")?;
                tables.push(&mut table.open_table);
                totals.extend(maps.bss_loss_data.as_deref());
            }
            let figures = || {
                let mut sum = LossCounters::default();
                for counters in totals {
                    skel::add_loss_counters(counters, &mut sum);
                }
                (sum.kinds.iter().sum(), sum.untracked + sum.in_use)
            };
            let label = |key: &CountKey| self.label(by, key);
            counts.report(session, tables, figures, label);
        }
        let counters = counters(skels);
        let matched = counters.kinds.iter().sum();
        Ok(Summary {
            untracked: Some(counters.untracked + counters.in_use),
            // Every event is in a total.
            ..session.summary(NAME, matched, 0, 0).all_shown_but(0)
        })
    }

    /// The kind of event of a key, and how the key is shown.
    fn label(&mut self, by: LossByChoice, raw: &CountKey) -> (&'static str, Label) {
        let key = LossKey(raw);
        let name = |name: Option<&[u8]>| name.map_or(Label::Unknown, |it| Label::Name(it.to_vec()));
        let label = match by {
            LossByChoice::Saddr | LossByChoice::Dport => Label::Key(TallyKey::new(raw)),
            LossByChoice::Place => name(self.symbols.name(key.number()).map(str::as_bytes)),
            LossByChoice::Comm => {
                let holders = self.holders.as_mut();
                let holder = holders.and_then(|holders| holders.of_inode(key.number()));
                name(holder.map(|holder| holder.comm.as_slice()))
            }
            LossByChoice::Reason => {
                let (reason, detail) = key.reason();
                let place = self.symbols.name(key.number());
                let (reason, _) = self.kernel.reason(key.kind(), reason, place);
                name(reason.or(detail_name(detail)).map(str::as_bytes))
            }
        };
        (kind_name(key.kind()), label)
    }
}
