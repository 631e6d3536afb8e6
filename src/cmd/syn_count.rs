//! `syn-count`: counts incoming SYNs per interval.

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use caps::Capability;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{MapCore, MapFlags, OpenObject, ProgramInput, ProgramMut};

use super::replay::{self, Prepared, Replayed};
use crate::attach::tc::{self, TcLink};
use crate::attach::xdp::{self, XdpMode};
use crate::attach::{self, Direction, LinkState, clsact, load};
use crate::capture::Frame;
use crate::cli::{CountBy, CountMode, OutputFormat, SynCountArgs};
use crate::failure::{Exit, Failure};
use crate::filter::{Filter, FlagsRule};
use crate::host::features::Snapshot;
use crate::host::interfaces::{Interface, LinkLayer};
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::notice::Notices;
use crate::output::clock::UnixNanos;
use crate::output::count::{Alert, Count, CountWriter, Interval};
use crate::output::packet::iface_width;
use crate::output::summary::Summary;
use crate::session::{Output, Session, Wake};
use crate::skel::syn_count::{SynCountSkel, SynCountSkelBuilder};
use crate::skel::{self, CountByKey, CountKey, PacketCounters};
use crate::tally::{Alerts, Key, Tally};
use crate::{filter_slots, filter_tries};

/// Runs the command.
///
/// # Errors
/// As SPEC's exit codes: wrong options, or something that can't be attached or written.
pub fn run(args: &SynCountArgs) -> Result<Exit, Failure> {
    let filter = args.packets.filter(FlagsRule::default());
    filter.check_syn().map_err(|error| {
        Failure::usage(format!("invalid value for '--flags': {error}"))
            .hint("leave syn and !ack to syn-count; port-monitor --flags shows other packets")
    })?;
    if let Some(file) = &args.packets.read {
        return replay_file(args, &filter, file);
    }

    let mut session = Session::new(&args.output, &args.stop, args.sandbox)?;
    let interfaces = session.interfaces(&args.packets.interfaces)?;
    let cpus = load::possible_cpus()?;

    let mut storage = interfaces
        .iter()
        .map(|_| MaybeUninit::uninit())
        .collect::<Vec<_>>();
    let mut counters = Vec::new();
    for (interface, storage) in interfaces.iter().zip(&mut storage) {
        let counter = Counter::attach(args, &filter, interface, storage, cpus, session.notices)?;
        session.follow(interface, counter.state());
        counters.push(counter);
    }
    give_up_privileges(&counters)?;
    session.ready(Files::Opened)?;
    session.attached(&describe(&counters));

    let writer = CountWriter {
        iface_width: iface_width(interfaces.iter().map(|interface| interface.name.as_str())),
        with_keys: args.by.is_some() || args.alert.is_some(),
    };
    session.text_header(|out| writer.text_header(out));
    run_intervals(&mut session, args, &writer, &mut counters)?;

    let duration = session.stop.elapsed();
    for counter in &mut counters {
        counter.detach(session.notices);
    }
    attach::synchronize();
    let mut total = PacketCounters::default();
    for counter in &counters {
        total.add(&counter.program.counters());
    }
    session.finish(&summary(&session, duration, total))
}

/// What the command can use, found by trying.
pub struct Probe {
    /// What it attached to; `None` if there was no interface to try it on.
    pub hook: Option<String>,
    /// The program takes frames of several buffers.
    pub has_frags: bool,
}

/// Loads the program, attaches it if there is an interface to try it on, and takes it away again.
///
/// # Errors
/// The command would fail in the same way.
pub fn probe(
    args: &SynCountArgs,
    interface: Option<&Interface>,
    notices: Notices,
) -> Result<Probe, Failure> {
    let filter = args.packets.filter(FlagsRule::default());
    let cpus = load::possible_cpus()?;
    let mut storage = MaybeUninit::uninit();
    if let Some(interface) = interface {
        let counter = Counter::attach(args, &filter, interface, &mut storage, cpus, notices)?;
        return Ok(Probe {
            hook: Some(counter.hook()),
            has_frags: counter.program.which.has_frags(),
        });
    }
    let source = Source::of(args.mode);
    let program = Program::load(args, &filter, source, false, false, &mut storage, cpus)?;
    Ok(Probe {
        hook: None,
        has_frags: program.which.has_frags(),
    })
}

fn summary(session: &Session, duration: Duration, counters: PacketCounters) -> Summary {
    Summary {
        command: "syn-count",
        duration_s: duration.as_secs_f64(),
        // A SYN that is counted has reached the user: nothing is queued, so nothing is lost.
        matched: counters.matched,
        emitted: counters.matched,
        lost: 0,
        suppressed: 0,
        exit_reason: session.exit_reason().name(),
        packets: Some(counters),
        syn_total: Some(counters.matched),
        flows: None,
    }
}

/// Prints a line for each interface at the end of each interval, and of the last one.
fn run_intervals(
    session: &mut Session,
    args: &SynCountArgs,
    writer: &CountWriter,
    counters: &mut [Counter<'_>],
) -> Result<()> {
    let mut started = Instant::now();
    let mut due = started + args.interval;
    loop {
        let wake = session.wait(None, Some(due))?;
        let elapsed = started.elapsed();
        if wake == Wake::Timer {
            started = Instant::now();
            // After a pause of the whole machine the missed intervals are one long one.
            due = (due + args.interval).max(started);
        }
        let at = session.output.borrow().clock.now();
        for counter in &mut *counters {
            let cut_short = (wake == Wake::Stop).then_some(args.interval);
            counter.report(session, writer, at, elapsed, cut_short)?;
        }
        session.output.borrow_mut().sink.flush(&session.stop);
        if wake == Wake::Stop {
            return Ok(());
        }
    }
}

/// What was attached, for the `attached:` line.
fn describe(counters: &[Counter<'_>]) -> String {
    let mut text = String::new();
    for (i, counter) in counters.iter().enumerate() {
        if i > 0 {
            text += ", ";
        }
        text += &format!("{} on {}", counter.hook(), counter.name);
    }
    text + " (syn-count, per-CPU counters)"
}

/// Keeps what the rest of the run needs, which is nothing where links are used: counts are read
/// from mapped memory. A table of keys is read by bpf(2), which before 5.19 asks for CAP_BPF.
fn give_up_privileges(counters: &[Counter<'_>]) -> Result<()> {
    let reads_table = |counter: &Counter<'_>| {
        counter
            .program
            .skel
            .maps
            .counts
            .lookup(&[0; 20], MapFlags::ANY)
            .is_ok()
    };
    let mut keep = Vec::new();
    let with_table = counters.iter().filter(|counter| counter.tally.is_some());
    for counter in with_table {
        if !privileges::without_capabilities(|| reads_table(counter))? {
            keep.push(Capability::CAP_BPF);
            break;
        }
    }
    if counters
        .iter()
        .any(|counter| matches!(&counter.link, Some(Link::Tc(link)) if link.needs_privileges()))
    {
        keep.push(Capability::CAP_NET_ADMIN);
    }
    privileges::drop_all_but(&keep)
}

/// What keeps a program attached.
enum Link {
    Xdp(attach::Link),
    Tc(TcLink),
}

/// A program that counts on one interface.
struct Counter<'a> {
    name: String,
    mode: &'static str,
    link: Option<Link>,
    program: Program<'a>,
    last: u64,
    tally: Option<Tally>,
    alerts: Option<Alerts>,
}

impl<'a> Counter<'a> {
    fn attach(
        args: &SynCountArgs,
        filter: &Filter,
        interface: &Interface,
        storage: &'a mut MaybeUninit<OpenObject>,
        cpus: usize,
        notices: Notices,
    ) -> Result<Self, Failure> {
        let source = Source::of(args.mode);
        let raw_ip = interface.link_layer == LinkLayer::None;
        let program = Program::load(args, filter, source, raw_ip, false, storage, cpus)?;
        let modes: &[XdpMode] = match args.mode {
            CountMode::Auto => &[XdpMode::Native, XdpMode::Generic],
            CountMode::Native => &[XdpMode::Native],
            CountMode::Generic => &[XdpMode::Generic],
            CountMode::Tc => &[],
        };
        let (link, mode) = if modes.is_empty() {
            (
                Link::Tc(tc::attach(
                    program.program(),
                    interface,
                    Direction::Ingress,
                    notices,
                )?),
                "tc",
            )
        } else {
            // What a killed run of a TC command left here before Linux 6.6 goes with this start.
            for text in clsact::remove_stale(interface.index).unwrap_or_default() {
                notices.notice(&format!("{}: {text}", interface.name));
            }
            let before = Snapshot::take(interface);
            let fd = program.program().as_fd();
            let (link, mode, refused) = xdp::attach(fd, interface, modes)?;
            if let Some(why) = refused {
                notices.detail(&format!(
                    "{}: {why}, so generic XDP is used",
                    interface.name
                ));
            }
            if mode == XdpMode::Native {
                tell_changes(interface, before, notices);
            }
            (Link::Xdp(link), mode.name())
        };
        Ok(Self {
            name: interface.name.clone(),
            mode,
            link: Some(link),
            program,
            last: 0,
            tally: tally(args),
            alerts: args.alert.map(Alerts::new),
        })
    }

    /// What it is attached to.
    fn hook(&self) -> String {
        match &self.link {
            Some(Link::Tc(link)) => format!("tc ingress ({})", link.kind()),
            _ => format!("xdp {}", self.mode),
        }
    }

    fn state(&self) -> Option<LinkState> {
        match self.link.as_ref()? {
            Link::Xdp(link) => Some(link.state()),
            Link::Tc(link) => link.state(),
        }
    }

    fn detach(&mut self, notices: Notices) {
        if let Some(Link::Tc(link)) = self.link.take() {
            link.detach(notices);
        }
    }

    fn report(
        &mut self,
        session: &Session,
        writer: &CountWriter,
        at: UnixNanos,
        elapsed: Duration,
        cut_short: Option<Duration>,
    ) -> Result<()> {
        let counters = self.program.counters();
        let count = count_since(self.last, counters.matched, elapsed);
        self.last = counters.matched;
        if let Some(tally) = &mut self.tally {
            self.program.read_keys(tally, elapsed)?;
        }
        let place = Place {
            iface: Some(&self.name),
            mode: self.mode,
        };
        report(
            session,
            writer,
            at,
            elapsed,
            &Report {
                place,
                count,
                untracked: counters.untracked,
            },
            self.tally.as_ref(),
        );
        if let (Some(alerts), Some(tally)) = (&mut self.alerts, &self.tally) {
            report_alerts(session, writer, at, place, alerts, tally, cut_short);
        }
        Ok(())
    }
}

fn tally(args: &SynCountArgs) -> Option<Tally> {
    // An alert is about sources unless another key is asked for.
    let by = args.by.or(args.alert.map(|_| CountBy::Saddr))?;
    Some(Tally::new(by, args.by.map_or(0, |_| args.top)))
}

/// What native XDP does to an interface besides running a program is said, never hidden.
fn tell_changes(interface: &Interface, before: Result<Snapshot>, notices: Notices) {
    let changes =
        before.and_then(|before| Ok((Snapshot::take(interface)?.changes_since(&before), before)));
    match changes {
        Ok((changes, before)) => {
            for change in changes {
                notices.notice(&format!(
                    "native XDP changed {change}; it is restored at the end"
                ));
            }
            if before.has_unseen_peer() {
                notices.notice(&format!(
                    "native XDP on {} turns off TSO and GSO of its peer in another network namespace until the end; --mode generic and tc don't",
                    interface.name
                ));
            }
        }
        Err(error) => notices.detail(&format!("can't tell what native XDP changed: {error:#}")),
    }
}

/// Where counts are from.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// `None` in a replay.
    iface: Option<&'a str>,
    mode: &'a str,
}

struct Report<'a> {
    place: Place<'a>,
    count: Count,
    untracked: u64,
}

fn count_since(last: u64, total: u64, elapsed: Duration) -> Count {
    let delta = total - last;
    Count {
        total,
        delta,
        rate: delta as f64 / elapsed.as_secs_f64().max(1e-9),
    }
}

/// Writes the lines of an interval.
fn report(
    session: &Session,
    writer: &CountWriter,
    at: UnixNanos,
    elapsed: Duration,
    report: &Report<'_>,
    tally: Option<&Tally>,
) {
    let top = tally
        .filter(|tally| tally.top > 0)
        .map(|tally| (tally.by.name(), tally.busiest()));
    let interval = Interval {
        iface: report.place.iface,
        mode: report.place.mode,
        seconds: elapsed.as_secs_f64(),
        count: report.count,
        by: top
            .as_ref()
            .map(|(by, top)| (*by, top.as_slice(), report.untracked)),
    };
    let mut output = session.output.borrow_mut();
    let Output { sink, clock } = &mut *output;
    match session.format {
        OutputFormat::Json => {
            sink.line(&session.stop, |out| writer.json(out, clock, at, &interval))
        }
        OutputFormat::Text => {
            sink.line(&session.stop, |out| writer.text(out, clock, at, &interval))
        }
    };
}

/// Writes the alerts that an interval raised or cleared; see [`Alerts::update`].
fn report_alerts(
    session: &Session,
    writer: &CountWriter,
    at: UnixNanos,
    place: Place<'_>,
    alerts: &mut Alerts,
    tally: &Tally,
    cut_short: Option<Duration>,
) {
    let mut output = session.output.borrow_mut();
    let Output { sink, clock } = &mut *output;
    for change in alerts.update(tally, cut_short) {
        let alert = Alert {
            iface: place.iface,
            raised: change.raised,
            key: &change.key,
            rate: change.rate,
            threshold: alerts.threshold,
        };
        match session.format {
            OutputFormat::Json => sink.line(&session.stop, |out| {
                writer.json_alert(out, clock, at, &alert)
            }),
            OutputFormat::Text => sink.line(&session.stop, |out| {
                writer.text_alert(out, clock, at, place.mode, &alert);
            }),
        };
    }
}

/// Where frames come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Xdp,
    Tc,
}

impl Source {
    fn of(mode: CountMode) -> Self {
        if mode == CountMode::Tc {
            Self::Tc
        } else {
            Self::Xdp
        }
    }
}

/// Which of the programs is loaded: each hook has one that counts all SYNs of an Ethernet interface
/// and one for whatever else is asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    AllXdpFrags,
    XdpFrags,
    AllXdp,
    Xdp,
    AllTc,
    Tc,
}

impl Which {
    fn of(source: Source, all: bool) -> Self {
        match source {
            Source::Tc if all => Self::AllTc,
            Source::Tc => Self::Tc,
            // Multi-buffer XDP is found by trying: before 5.18 the kernel refuses its flag.
            Source::Xdp => match (knows_xdp_frags(), all) {
                (true, true) => Self::AllXdpFrags,
                (true, false) => Self::XdpFrags,
                (false, true) => Self::AllXdp,
                (false, false) => Self::Xdp,
            },
        }
    }

    fn has_frags(self) -> bool {
        matches!(self, Self::AllXdpFrags | Self::XdpFrags)
    }
}

/// The loaded programs of one interface, or of a replay.
struct Program<'a> {
    skel: SynCountSkel<'a>,
    which: Which,
    cpus: usize,
}

impl<'a> Program<'a> {
    fn load(
        args: &SynCountArgs,
        filter: &Filter,
        source: Source,
        raw_ip: bool,
        replay: bool,
        storage: &'a mut MaybeUninit<OpenObject>,
        cpus: usize,
    ) -> Result<Self, Failure> {
        let mut open = SynCountSkelBuilder::default()
            .open(storage)
            .context("failed to open the programs")?;
        let rodata = open
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the programs have no settings")?;
        rodata.link_is_raw_ip = raw_ip;
        rodata.replay = replay;
        let tally = tally(args);
        rodata.count_by = match tally.as_ref().map(|tally| tally.by) {
            None => CountByKey::COUNT_BY_NOTHING,
            Some(CountBy::Saddr) => CountByKey::COUNT_BY_SADDR,
            Some(CountBy::Daddr) => CountByKey::COUNT_BY_DADDR,
            Some(CountBy::Dport) => CountByKey::COUNT_BY_DPORT,
        };
        filter.configure(filter_slots!(open, rodata))?;
        open.maps.counts.set_autocreate(tally.is_some())?;
        let is_filtered = rodata.filter.parts.0 != 0;
        let which = Which::of(
            source,
            tally.is_none() && !(is_filtered || raw_ip || replay),
        );
        let progs = &mut open.progs;
        for (program, its) in [
            (&mut progs.syn_count_all_xdp_frags, Which::AllXdpFrags),
            (&mut progs.syn_count_xdp_frags, Which::XdpFrags),
            (&mut progs.syn_count_all_xdp, Which::AllXdp),
            (&mut progs.syn_count_xdp, Which::Xdp),
            (&mut progs.syn_count_all_tc, Which::AllTc),
            (&mut progs.syn_count_tc, Which::Tc),
        ] {
            program.set_autoload(its == which);
        }
        let skel = open
            .load()
            .map_err(|error| load::failure("failed to load the syn-count program", error))?;
        filter.fill(filter_tries!(skel))?;
        Ok(Self { skel, which, cpus })
    }

    /// The one that is loaded.
    fn program(&self) -> &ProgramMut<'a> {
        let progs = &self.skel.progs;
        match self.which {
            Which::AllXdpFrags => &progs.syn_count_all_xdp_frags,
            Which::XdpFrags => &progs.syn_count_xdp_frags,
            Which::AllXdp => &progs.syn_count_all_xdp,
            Which::Xdp => &progs.syn_count_xdp,
            Which::AllTc => &progs.syn_count_all_tc,
            Which::Tc => &progs.syn_count_tc,
        }
    }

    fn counters(&self) -> PacketCounters {
        match self.skel.maps.bss_counters_data.as_deref() {
            Some(bss) => skel::syn_count_counters(bss, self.cpus),
            None => PacketCounters::default(),
        }
    }

    /// Brings the tally up to date with the table in the kernel.
    fn read_keys(&self, tally: &mut Tally, elapsed: Duration) -> Result<()> {
        let counts = &self.skel.maps.counts;
        tally.begin(elapsed);
        for key in counts.keys() {
            let value = counts
                .lookup(&key, MapFlags::ANY)
                .context("failed to read the table of keys")?;
            let (Some(key), Some(total)) =
                (decode_key(&key), value.as_deref().and_then(decode_count))
            else {
                continue;
            };
            tally.count(key, total);
        }
        Ok(())
    }
}

/// Whether the kernel takes a multi-buffer XDP program: a kernel that does has the helper too.
fn knows_xdp_frags() -> bool {
    // BPF_FUNC_xdp_load_bytes came with the flag, in 5.18.
    !matches!(
        libbpf_rs::ProgramType::Xdp.is_helper_supported(libbpf_sys::BPF_FUNC_xdp_load_bytes),
        Ok(false)
    )
}

fn decode_count(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

/// A key of the table as text that sorts and prints: an address, or a port.
fn decode_key(bytes: &[u8]) -> Option<Key> {
    let mut key = CountKey::default();
    plain::copy_from_bytes(&mut key, bytes).ok()?;
    Some(match key.family {
        4 => Key::Address(Ipv4Addr::new(key.addr[0], key.addr[1], key.addr[2], key.addr[3]).into()),
        6 => Key::Address(Ipv6Addr::from(key.addr).into()),
        _ => Key::Port(key.port),
    })
}

/// Counts the SYNs of a capture file; intervals are those of its times.
fn replay_file(args: &SynCountArgs, filter: &Filter, file: &Path) -> Result<Exit, Failure> {
    // Opened first: while it waits for a FIFO's writer, signals still end the process.
    let mut capture = replay::open(file)?;
    let mut session = Session::new(&args.output, &args.stop, args.sandbox)?;
    let mut storage = MaybeUninit::uninit();
    let program = Program::load(
        args,
        filter,
        Source::of(args.mode),
        false,
        true,
        &mut storage,
        load::possible_cpus()?,
    )?;
    session.ready(Files::Opened)?;
    let writer = CountWriter {
        iface_width: iface_width([]),
        with_keys: args.by.is_some() || args.alert.is_some(),
    };
    session.text_header(|out| writer.text_header(out));

    let mut replay = Replay {
        program,
        writer: &writer,
        interval: i64::try_from(args.interval.as_nanos()).unwrap_or(i64::MAX),
        started: None,
        latest: UnixNanos::MIN,
        last: 0,
        tally: tally(args),
        alerts: args.alert.map(Alerts::new),
    };
    let file_error = replay::run(&mut session, &mut capture, &mut replay)?;
    replay.close_last_interval(&session)?;
    session.output.borrow_mut().sink.flush(&session.stop);
    let counters = replay.program.counters();
    let summary = summary(&session, session.stop.elapsed(), counters);
    let exit = session.finish(&summary)?;
    file_error.map_or(Ok(exit), Err)
}

/// A replay in progress. Times are UNIX times in ns, lengths ns.
struct Replay<'a> {
    program: Program<'a>,
    writer: &'a CountWriter,
    interval: i64,
    /// When the interval began that runs; `None` before the first frame.
    started: Option<UnixNanos>,
    latest: UnixNanos,
    last: u64,
    tally: Option<Tally>,
    alerts: Option<Alerts>,
}

impl Replay<'_> {
    /// Where the counts of a file are from.
    const PLACE: Place<'static> = Place {
        iface: None,
        mode: "replay",
    };

    /// Reports the interval that has begun, of this length in ns; with `cut_short` the file ended
    /// within it.
    fn close_interval(
        &mut self,
        session: &Session,
        length: i64,
        cut_short: Option<Duration>,
    ) -> Result<()> {
        let elapsed = Duration::from_nanos(length.unsigned_abs());
        let counters = self.program.counters();
        let count = count_since(self.last, counters.matched, elapsed);
        self.last = counters.matched;
        if let Some(tally) = &mut self.tally {
            self.program.read_keys(tally, elapsed)?;
        }
        let interval = Report {
            place: Self::PLACE,
            count,
            untracked: counters.untracked,
        };
        let at = self.started.unwrap_or(self.latest).saturating_add(length);
        let tally = self.tally.as_ref();
        report(session, self.writer, at, elapsed, &interval, tally);
        if let (Some(alerts), Some(tally)) = (&mut self.alerts, tally) {
            let place = Self::PLACE;
            report_alerts(session, self.writer, at, place, alerts, tally, cut_short);
        }
        Ok(())
    }

    /// Reports the last interval. A file may hold no time at all between its first frame and its
    /// last; rates are then those of a whole interval.
    fn close_last_interval(&mut self, session: &Session) -> Result<()> {
        let Some(started) = self.started else {
            return Ok(());
        };
        let length = match self.latest.saturating_sub(started) {
            length @ 1.. => length,
            _ => self.interval,
        };
        let whole = Duration::from_nanos(self.interval.unsigned_abs());
        self.close_interval(session, length, Some(whole))
    }

    /// Passes over intervals in which the file has no frame: no line is written for them, but the
    /// first one clears what alerts there are.
    fn pass_over(&mut self, session: &Session, empty_until: UnixNanos) {
        let (Some(alerts), Some(tally)) = (&mut self.alerts, &mut self.tally) else {
            return;
        };
        if alerts.any_raised() {
            tally.begin(Duration::from_nanos(self.interval.unsigned_abs()));
            let (writer, place, at) = (self.writer, Self::PLACE, empty_until);
            report_alerts(session, writer, at, place, alerts, tally, None);
        }
    }
}

impl Replayed for Replay<'_> {
    fn run(
        &mut self,
        session: &Session,
        _: &Frame<'_>,
        prepared: &Prepared<'_>,
        input: ProgramInput<'_>,
    ) -> Result<()> {
        let started = *self.started.get_or_insert(prepared.at);
        let passed = prepared.at.saturating_sub(started);
        if passed >= self.interval {
            self.close_interval(session, self.interval, None)?;
            // Intervals without a frame are left out: a file may skip over years.
            let intervals = passed / self.interval;
            if intervals > 1 {
                let second = self.interval.saturating_mul(2);
                self.pass_over(session, started.saturating_add(second));
            }
            self.started = Some(started.saturating_add(intervals * self.interval));
            // This frame is behind the last line that was asked for.
            if session.output.borrow().sink.ended().is_some() {
                return Ok(());
            }
        }
        self.latest = self.latest.max(prepared.at);
        let bss = self
            .program
            .skel
            .maps
            .bss_replay_data
            .as_deref_mut()
            .context("the program has no place for the frame's length")?;
        skel::set_syn_count_replay(bss, prepared.len, prepared.beyond);
        self.program.program().test_run(input)?;
        Ok(())
    }
}
