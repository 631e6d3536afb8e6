//! `syn-count`: counts incoming SYNs per interval.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::ProgramMut;

use crate::attach::Attached;
use crate::attach::xdp::XdpMode;
use crate::cli::{CountMode, SynCountArgs};
use crate::domain::Direction;
use crate::domain::UnixNanos;
use crate::domain::counters::PacketCounters;
use crate::domain::distinct;
use crate::domain::tally::{Alerts, CountBy, TallyKey};
use crate::failure::Failure;
use crate::filter::{Filter, FlagsRule};
use crate::host::interfaces::Interface;
use crate::host::kernel;
use crate::output::columns::widest;
use crate::output::summary::Summary;
use crate::output::syn_count::{KeyFigures, SynAlert, SynColumn, SynCounts, SynWriter};
use crate::run::counts::{IntervalCounter, TABLES_ARE_FULL};
use crate::run::packet::{Live, LoadTarget, Options, PacketCommand, Replay};
use crate::run::replay::{AroundFrames, Intervals};
use crate::run::session::{Session, Wake, next_due};
use crate::skel::syn_count::{OpenSynCountSkel, SynCountSkel, SynCountSkelBuilder};
use crate::skel::{self, CountByKey, PacketSkel};
use crate::sys::key_tables::{KeyTables, Size, Sketches};
use crate::sys::link;

/// The command with its options.
pub struct SynCount<'a> {
    args: &'a SynCountArgs,
    filter: Filter,
    writer: SynWriter,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ProgramHook {
    Xdp,
    /// Multi-buffer XDP (xdp.frags).
    XdpFrags,
    Tc,
}

impl<'a> SynCount<'a> {
    /// The command with its default for `--flags`.
    ///
    /// # Errors
    /// A column is unknown, or `--flags` excludes SYNs.
    pub fn new(args: &'a SynCountArgs) -> Result<Self, Failure> {
        let filter = args.packets.filter(FlagsRule::default());
        filter.check_syn().map_err(|error| {
            Failure::usage(format!("invalid value for '--flags': {error}"))
                .hint("leave syn and !ack to syn-count; port-monitor --flags shows other packets")
        })?;
        Ok(Self {
            args,
            filter,
            writer: SynWriter::new(&args.run.output.columns, counted_by(args).is_some())?,
        })
    }

    /// The hook of the program. Frames of a file go to TC in batches, unless a mode is asked for:
    /// only at TC can a test run be repeated without a pause.
    fn hook(&self) -> ProgramHook {
        match self.args.mode {
            CountMode::Tc => ProgramHook::Tc,
            CountMode::Auto if self.args.packets.read.is_some() => ProgramHook::Tc,
            _ if kernel::knows_xdp_frags() => ProgramHook::XdpFrags,
            _ => ProgramHook::Xdp,
        }
    }

    fn counter<'n>(
        &self,
        iface: Option<&'n str>,
        mode: &'static str,
        skel: &SynCountSkel<'_>,
        slots: usize,
    ) -> Result<Counter<'n>> {
        let keys = || -> Result<_> {
            let maps = &skel.maps;
            Ok(KeyCounter {
                by: self.args.by,
                tables: KeyTables::map(&maps.count_sets, Size::of(slots))?,
                sketches: Sketches::map(&maps.source_sketches, Size::of(slots))?,
                sources: 0,
                alerts: self.args.alert.map(Alerts::new),
            })
        };
        Ok(Counter {
            iface,
            mode,
            counts: IntervalCounter::new(self.args.top),
            keys: counted_by(self.args).map(|_| keys()).transpose()?,
        })
    }

    fn summary(&self, summary: Summary, counters: PacketCounters) -> Summary {
        Summary {
            syn_total: Some(counters.matched),
            untracked: counted_by(self.args).map(|_| counters.untracked),
            ..summary
        }
    }
}

/// The key that SYNs are counted by. Alerts are about source addresses unless `--by` chooses
/// another key.
fn counted_by(args: &SynCountArgs) -> Option<CountBy> {
    args.by.or(args.alert.map(|_| CountBy::Saddr))
}

impl PacketCommand for SynCount<'_> {
    const NAME: &'static str = "syn-count";
    type Skel<'obj> = SynCountSkel<'obj>;
    type Builder = SynCountSkelBuilder;

    fn options(&self) -> Options<'_> {
        Options::new(&self.args.packets, &self.filter, &self.args.run)
    }

    fn replays_one_at_a_time(&self) -> bool {
        self.args.mode != CountMode::Auto
    }

    fn configure(
        &self,
        open: &mut OpenSynCountSkel<'_>,
        target: &LoadTarget<'_>,
        _: Option<&SynCountSkel<'_>>,
    ) -> Result<()> {
        let maps = &mut open.maps;
        let rodata = maps.rodata_data.as_deref_mut();
        let rodata = rodata.context("the programs have no settings")?;
        let by = counted_by(self.args);
        rodata.count_by = match by {
            None => CountByKey::COUNT_BY_NOTHING,
            Some(CountBy::Saddr) => CountByKey::COUNT_BY_SADDR,
            Some(CountBy::Daddr) => CountByKey::COUNT_BY_DADDR,
            Some(CountBy::Dport) => CountByKey::COUNT_BY_DPORT,
        };
        let size = Size::of(target.slots);
        rodata.hash_seed = RandomState::new().build_hasher().finish();
        rodata.sets_per_table = u32::try_from(size.sets)?;
        rodata.count_slots = u32::try_from(target.slots)?;
        for (map, len) in [
            (&mut maps.count_sets, size.all_sets()),
            (&mut maps.source_sketches, size.all_sketches()),
        ] {
            map.set_autocreate(by.is_some())?;
            map.set_max_entries(u32::try_from(len)?)?;
        }
        // For each hook there is one program that counts all SYNs of an Ethernet interface,
        // and one that can do everything else.
        let is_filtered = rodata.filter.parts.0 != 0;
        let all = by.is_none() && !(is_filtered || target.is_raw_ip || target.replay);
        let hook = self.hook();
        let progs = &mut open.progs;
        for (program, its_hook, counts_all) in [
            (
                &mut progs.syn_count_all_xdp_frags,
                ProgramHook::XdpFrags,
                true,
            ),
            (&mut progs.syn_count_xdp_frags, ProgramHook::XdpFrags, false),
            (&mut progs.syn_count_all_xdp, ProgramHook::Xdp, true),
            (&mut progs.syn_count_xdp, ProgramHook::Xdp, false),
            (&mut progs.syn_count_all_tc, ProgramHook::Tc, true),
            (&mut progs.syn_count_tc, ProgramHook::Tc, false),
        ] {
            program.set_autoload(its_hook == hook && counts_all == all);
        }
        Ok(())
    }

    fn tc_directions(&self, _: &Interface) -> &'static [Direction] {
        match self.args.mode {
            CountMode::Tc => &[Direction::Ingress],
            CountMode::Auto | CountMode::Native | CountMode::Generic => &[],
        }
    }

    /// The one program that is loaded.
    fn program<'s>(&self, skel: &'s SynCountSkel<'_>, _: Direction) -> &'s ProgramMut<'s> {
        let progs = &skel.progs;
        [
            &progs.syn_count_all_xdp_frags,
            &progs.syn_count_xdp_frags,
            &progs.syn_count_all_xdp,
            &progs.syn_count_xdp,
            &progs.syn_count_all_tc,
        ]
        .into_iter()
        .find(|program| program.autoload())
        .unwrap_or(&progs.syn_count_tc)
    }

    fn attach(
        &self,
        skel: &SynCountSkel<'_>,
        interface: &Interface,
        attached: &mut Attached,
    ) -> Result<(), Failure> {
        let program = self.program(skel, Direction::Ingress);
        match self.args.mode {
            CountMode::Tc => attached.tc(program, interface, Direction::Ingress),
            CountMode::Native => attached.xdp(program, interface, &[XdpMode::Native]),
            CountMode::Auto | CountMode::Generic => {
                attached.xdp(program, interface, &[XdpMode::Generic])
            }
        }
    }

    fn watch(&self, live: &mut Live<'_, SynCountSkel<'_>>) -> Result<Summary, Failure> {
        let interfaces = live.interfaces;
        let names = interfaces.iter().map(|interface| interface.name.as_str());
        let mut writer = self.writer.clone();
        writer.layout.widen(SynColumn::Iface, widest(names));
        let mut counters = Vec::new();
        for ((interface, skel), hook) in interfaces
            .iter()
            .zip(&*live.skels)
            .zip(live.attached().hooks())
        {
            let mode = match self.args.mode {
                CountMode::Tc => "tc",
                _ => hook.kind(),
            };
            counters.push(self.counter(Some(&interface.name), mode, skel, live.slots)?);
        }
        // Counters and keys are mapped: reading them needs no privilege.
        live.begin(&[], |out, clock| writer.layout.header(out, clock))?;
        self.run_intervals(live, &writer, &mut counters)?;
        live.detach()?;
        Ok(self.summary(live.summary(), live.counters()))
    }

    fn replay<'obj>(
        &self,
        replay: &mut Replay<'_, SynCountSkel<'obj>>,
    ) -> Result<Summary, Failure> {
        let mut schedule = Schedule {
            writer: &self.writer,
            counter: self.counter(None, "replay", replay.skel, replay.slots)?,
            slots: replay.slots,
            intervals: Intervals::new(self.args.interval),
            latest: UnixNanos::MIN,
        };
        replay.begin(|out, clock| schedule.writer.layout.header(out, clock))?;
        replay.run(|skel| self.program(skel, Direction::Ingress), &mut schedule);
        schedule.close_last_interval(replay.session, replay.skel);
        replay.session.flush();
        Ok(self.summary(replay.summary(), replay.counters()))
    }
}

impl SynCount<'_> {
    /// Prints a line per interface at the end of each interval, including the last.
    fn run_intervals(
        &self,
        live: &mut Live<'_, SynCountSkel<'_>>,
        writer: &SynWriter,
        counters: &mut [Counter<'_>],
    ) -> Result<()> {
        let length = self.args.interval;
        let mut started = Instant::now();
        let mut due = started + length;
        loop {
            let wake = live.session.wait(None, Some(due))?;
            let elapsed = started.elapsed();
            if wake == Wake::Timer {
                started = Instant::now();
                due = next_due(due, length);
            }
            let at = live.session.clock.now();
            let closed = counters
                .iter_mut()
                .zip(&mut *live.skels)
                .map(|(counter, skel)| counter.close_table(skel))
                .collect::<Vec<_>>();
            if counted_by(self.args).is_some() {
                link::synchronize();
            }
            let cut_short = (wake == Wake::Stop).then_some(length);
            for ((counter, skel), closed) in counters.iter_mut().zip(&*live.skels).zip(closed) {
                let interval = Ended {
                    at,
                    elapsed,
                    counters: skel.counters(live.slots),
                    closed,
                    cut_short,
                };
                counter.report(live.session, writer, &interval);
            }
            live.session.flush();
            if wake == Wake::Stop {
                return Ok(());
            }
        }
    }
}

/// Counts of one interface, or of a file.
struct Counter<'a> {
    /// `None` in a replay.
    iface: Option<&'a str>,
    mode: &'static str,
    counts: IntervalCounter<TallyKey>,
    /// With `--by` or `--alert`.
    keys: Option<KeyCounter>,
}

struct KeyCounter {
    /// `--by`: the key whose counts are shown.
    by: Option<CountBy>,
    tables: KeyTables,
    sketches: Sketches,
    /// Estimated number of source addresses in the interval, by HyperLogLog: about 1.6 % off.
    sources: u64,
    alerts: Option<Alerts>,
}

/// An interval that has ended.
struct Ended {
    at: UnixNanos,
    elapsed: Duration,
    counters: PacketCounters,
    /// The table of keys that the programs wrote to in it.
    closed: u32,
    /// Its full length, if the end of the run cut it short.
    cut_short: Option<Duration>,
}

impl Counter<'_> {
    /// Makes the programs write to the other table of keys, and returns the previous one. They may
    /// still write to that until [`link::synchronize`].
    fn close_table(&mut self, skel: &mut SynCountSkel<'_>) -> u32 {
        let bss = skel.maps.bss_counters_data.as_deref_mut();
        self.counts.switch(|table| {
            if let Some(bss) = bss {
                skel::open_table(&mut bss.open_table, table);
            }
        })
    }

    /// Writes the lines of an interval, and the alerts that it raised or cleared.
    fn report(&mut self, session: &mut Session, writer: &SynWriter, ended: &Ended) {
        let untracked = ended.counters.untracked;
        let mut found = Vec::new();
        if let Some(keys) = &mut self.keys {
            keys.tables.take(ended.closed, |key, syns| {
                found.push((TallyKey::new(key), syns));
            });
            keys.sources = distinct::estimate(&keys.sketches.take(ended.closed).registers);
        }
        let total = ended.counters.matched;
        let count = self.counts.take(ended.elapsed, total, found);
        let keys = self.keys.as_ref();
        let by = keys.and_then(|keys| keys.by);
        let interval = SynCounts {
            iface: self.iface,
            mode: self.mode,
            seconds: ended.elapsed.as_secs_f64(),
            count,
            by: by.map(|by| (by, self.counts.tally.busiest())),
            keys: keys.map(|keys| KeyFigures {
                sources: keys.sources,
                untracked,
            }),
        };
        session.write(ended.at, &(writer, &interval));
        self.report_alerts(session, writer, ended.at, count.delta, ended.cut_short);
        self.counts
            .notify_if_full(session.notices, untracked, TABLES_ARE_FULL);
    }

    /// Writes the alerts that an interval of this many SYNs raised or cleared; see
    /// [`Alerts::update`].
    fn report_alerts(
        &mut self,
        session: &mut Session,
        writer: &SynWriter,
        at: UnixNanos,
        syns: u64,
        cut_short: Option<Duration>,
    ) {
        let tally = &self.counts.tally;
        let Some(KeyCounter {
            sources,
            alerts: Some(alerts),
            ..
        }) = &mut self.keys
        else {
            return;
        };
        for change in alerts.update(syns, tally, cut_short) {
            let alert = SynAlert {
                iface: self.iface,
                mode: self.mode,
                raised: change.raised,
                key: change.key,
                rate: change.rate,
                sources: *sources,
                threshold: alerts.threshold,
            };
            session.write(at, &(writer, &alert));
        }
    }
}

/// When to report in a replay.
struct Schedule<'a> {
    writer: &'a SynWriter,
    counter: Counter<'a>,
    slots: usize,
    intervals: Intervals,
    latest: UnixNanos,
}

impl Schedule<'_> {
    /// Reports an interval with this end and length; with `cut_short`, the file ended within it.
    fn close_interval(
        &mut self,
        session: &mut Session,
        skel: &mut SynCountSkel<'_>,
        (at, elapsed): (UnixNanos, Duration),
        cut_short: Option<Duration>,
    ) {
        let interval = Ended {
            at,
            elapsed,
            counters: skel.counters(self.slots),
            // A test run is over when the call returns: there is nothing to wait for.
            closed: self.counter.close_table(skel),
            cut_short,
        };
        self.counter.report(session, self.writer, &interval);
    }

    fn close_last_interval(&mut self, session: &mut Session, skel: &mut SynCountSkel<'_>) {
        if let Some(last) = self.intervals.last(self.latest) {
            let whole = self.intervals.length();
            self.close_interval(session, skel, last, Some(whole));
        }
    }

    /// Skips intervals in which the file has no frame: they get no line, but the first one clears
    /// all alerts.
    fn pass_over(&mut self, session: &mut Session, empty_until: UnixNanos) {
        let Some(keys) = &mut self.counter.keys else {
            return;
        };
        if keys.alerts.as_ref().is_some_and(Alerts::any_raised) {
            let interval = self.intervals.length();
            keys.sources = 0;
            self.counter.counts.tally.take(interval, []);
            self.counter
                .report_alerts(session, self.writer, empty_until, 0, None);
        }
    }
}

impl AroundFrames<SynCountSkel<'_>> for Schedule<'_> {
    fn is_due(&mut self, at: UnixNanos) -> bool {
        let is_due = self.intervals.is_over(at);
        if !is_due {
            self.latest = self.latest.max(at);
        }
        is_due
    }

    fn before(
        &mut self,
        session: &mut Session,
        skel: &mut SynCountSkel<'_>,
        at: UnixNanos,
    ) -> Result<()> {
        let current = self.intervals.current(at);
        self.close_interval(session, skel, current, None);
        if self.intervals.skip_to(at) > 0 {
            let (end, length) = current;
            let length = i64::try_from(length.as_nanos()).unwrap_or(i64::MAX);
            self.pass_over(session, end.saturating_add(length));
        }
        if session.sink.ended().is_none() {
            self.latest = self.latest.max(at);
        }
        Ok(())
    }
}
