//! loss-trace: chooses the programs that this kernel supports, loads and attaches them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::mem::MaybeUninit;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::{Link, OpenObject, ProgramMut};
use std::os::fd::AsFd;

use crate::attach::tc::PreparedLinks;
use crate::attach::{Attached, Pair, load};
use crate::cli::{LossByChoice, LossKindChoice, LossTraceArgs};
use crate::domain::reasons::{DropReason, ReasonFrom, Reasons, reason_of_place};
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::host::kernel_symbols::KernelSymbols;
use crate::host::netns;
use crate::notice::Notices;
use crate::run::drops::{DropTracepoint, check_reasons};
use crate::run::events::BufferKind;
use crate::run::export::Purpose;
use crate::skel::loss_trace::types::rodata as Settings;
use crate::skel::loss_trace::{
    LossTraceProgs, LossTraceSkel, LossTraceSkelBuilder, OpenLossTraceMaps, OpenLossTraceProgs,
};
use crate::skel::{AcceptReason, DropSettings, LossBy, LossKind};
use crate::sys::key_tables::Size;

/// Which reasons the running kernel gives.
pub struct Kernel {
    drops: DropTracepoint,
    /// Whether the tcp_send_reset tracepoint has a reason among its arguments.
    reset_has_reason: bool,
    /// The tcp_retransmit_skb tracepoint also reports retransmissions that failed.
    retransmit_has_error: bool,
    resets: Reasons,
}

impl Kernel {
    /// Asks the running kernel.
    ///
    /// # Errors
    /// It has no type information.
    pub fn look() -> Result<Self, Failure> {
        let types = load::kernel_types(super::NAME)?;
        let has_three = |tracepoint| -> Result<bool> {
            let arguments = types.tracepoint_arguments(tracepoint)?;
            Ok(arguments.is_some_and(|arguments| arguments > 2))
        };
        Ok(Self {
            drops: DropTracepoint::find(&types)?,
            reset_has_reason: has_three("tcp_send_reset")?,
            retransmit_has_error: has_three("tcp_retransmit_skb")?,
            resets: Reasons::new(&types.enumerators("sk_rst_reason")?, "SK_RST_REASON_"),
        })
    }

    /// Reports what can't be learned from this kernel.
    pub fn say_what_is_missing(&self, notices: Notices) {
        if !self.drops.has_reason {
            notices
                .notice("this kernel gives no reasons for drops: some are inferred from the place");
        }
        if !self.reset_has_reason {
            notices.notice("this kernel gives no reasons for resets");
        }
    }

    /// Checks the argument of `--reason`.
    ///
    /// # Errors
    /// A reason is unknown.
    pub fn check_reasons(&self, asked: &[String]) -> Result<(), Failure> {
        let known = self.drops.reasons.names().chain(self.resets.names());
        check_reasons(
            asked,
            known,
            "no_socket, netfilter_drop; retransmissions and received resets are chosen by --only",
        )
    }

    /// Whether programs at interfaces are needed.
    pub fn watches_interfaces(&self, args: &LossTraceArgs) -> bool {
        watches_syns(args) || self.watches_resets(args)
    }

    /// Whether resets are asked for that no tracepoint reports.
    fn watches_resets(&self, args: &LossTraceArgs) -> bool {
        args.kinds().contains(&LossKind::LOSS_RESET)
            && !self.reset_has_reason
            && args.reason.is_empty()
    }

    /// Why something happened, and how that is known. `place` is the function that dropped a
    /// segment.
    pub fn reason(
        &self,
        kind: LossKind,
        number: u32,
        place: Option<&str>,
    ) -> (Option<&str>, ReasonFrom) {
        let names = match kind {
            LossKind::LOSS_DROP => &self.drops.reasons,
            _ => &self.resets,
        };
        names.explain(number, place)
    }

    /// Loads all programs: a set for watched interfaces with an Ethernet header, and one for those
    /// without.
    ///
    /// # Errors
    /// The kernel refuses a program, or an option is wrong.
    pub fn load_all<'obj>(
        &self,
        target: &LossTarget<'_>,
        symbols: &mut KernelSymbols,
        storage: &'obj mut [MaybeUninit<OpenObject>; 2],
    ) -> Result<(Vec<LossTraceSkel<'obj>>, Vec<Pair>), Failure> {
        let mut kinds = Pair::kinds(target.watched);
        if kinds.is_empty() {
            kinds.push(false);
        }
        let (mut skels, mut pairs) = (Vec::new(), Vec::new());
        for (is_raw_ip, storage) in kinds.into_iter().zip(storage) {
            let first = skels.first();
            let (skel, pair) = self.load(target, is_raw_ip, first, symbols, storage)?;
            skels.push(skel);
            pairs.extend(pair);
        }
        Ok((skels, pairs))
    }

    /// Loads a set of programs, for frames without an Ethernet header if `is_raw_ip`. `first` has the
    /// programs that are loaded already: those of tracepoints are loaded once.
    ///
    /// # Errors
    /// The kernel refuses a program, or an option is wrong.
    pub fn load<'obj>(
        &self,
        target: &LossTarget<'_>,
        is_raw_ip: bool,
        first: Option<&LossTraceSkel<'_>>,
        symbols: &mut KernelSymbols,
        storage: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<(LossTraceSkel<'obj>, Option<Pair>), Failure> {
        let (mut open, types) =
            load::open::<LossTraceSkelBuilder>(crate::skel::loss_trace::TYPES, storage)?;
        let rodata = open.maps.rodata_data.as_deref_mut();
        let rodata = rodata.context("the programs have no settings")?;
        let args = target.args;
        rodata.link_is_raw_ip = is_raw_ip;
        self.configure(target, rodata)?;
        self.configure_reasons(args, symbols, rodata)?;
        configure_maps(target, first, &mut open.maps)?;
        args.addresses.filter().configure(&mut open)?;
        self.select_programs(target, first.is_none(), &mut open.progs);
        let is_watching = !target.watched.is_empty();
        let failure = |error| {
            load::failure_to_read(
                "failed to load the loss-trace programs",
                error,
                "where dropped segments are",
            )
        };
        let (skel, loaded) = load::on_two_threads(open, |open| {
            let progs = &mut open.progs;
            match is_watching {
                true => vec![&mut progs.loss_egress, &mut progs.loss_ingress],
                false => Vec::new(),
            }
        })
        .map_err(failure)?;
        let pair = match is_watching {
            true => Some(Pair::new(is_raw_ip, loaded)?),
            false => None,
        };
        types.close();
        let counters = &skel.maps.bss_loss_data;
        counters.as_ref().context("the programs have no counters")?;
        args.addresses.filter().fill(&skel)?;
        Ok((skel, pair))
    }

    /// Sets what the options ask for.
    fn configure(&self, target: &LossTarget<'_>, rodata: &mut Settings) -> Result<(), Failure> {
        let LossTarget {
            args,
            interfaces,
            tables,
            ..
        } = *target;
        rodata.use_perf_buffer = target.purpose == Purpose::Report(BufferKind::Perf);
        if !target.watched.is_empty() {
            rodata.own_netns = u32::try_from(netns::own()?)?;
            rodata.watch_syns = watches_syns(args);
            rodata.watch_resets = self.watches_resets(args);
        }
        for kind in args.kinds() {
            rodata.wanted_kinds |= 1 << kind.0;
        }
        rodata.exporting = target.purpose == Purpose::Export;
        if args.netns.is_given() || rodata.exporting || !interfaces.is_empty() {
            rodata.wanted_netns = u32::try_from(netns::own()?)?;
        }
        rodata.interfaces = u32::try_from(interfaces.len())?;
        if interfaces.len() > rodata.ifindexes.len() {
            return Err(Failure::usage(format!(
                "{} interfaces are too many: at most {} can be watched",
                interfaces.len(),
                rodata.ifindexes.len()
            ))
            .hint("name no interface to watch all of them"));
        }
        for (to, interface) in rodata.ifindexes.iter_mut().zip(interfaces) {
            *to = interface.index;
        }
        rodata.with_noise = args.all;
        if args.recording.write.is_some() {
            rodata.snaplen = args.recording.snaplen();
        }
        rodata.max_rate = args.max_rate.unwrap_or(0);
        rodata.count_by = match args.by {
            None => LossBy::LOSS_BY_NOTHING,
            Some(LossByChoice::Reason) => LossBy::LOSS_BY_REASON,
            Some(LossByChoice::Place) => LossBy::LOSS_BY_PLACE,
            Some(LossByChoice::Saddr) => LossBy::LOSS_BY_SADDR,
            Some(LossByChoice::Dport) => LossBy::LOSS_BY_DPORT,
            Some(LossByChoice::Comm) => LossBy::LOSS_BY_COMM,
        };
        rodata.hash_seed = RandomState::new().build_hasher().finish();
        rodata.sets_per_table = u32::try_from(tables.sets)?;
        rodata.count_slots = u32::try_from(tables.slots)?;
        Ok(())
    }

    /// Tells the programs which reasons the kernel gives, and which are asked for.
    fn configure_reasons(
        &self,
        args: &LossTraceArgs,
        symbols: &mut KernelSymbols,
        rodata: &mut Settings,
    ) -> Result<()> {
        self.drops
            .configure(DropSettings::from(&mut *rodata), symbols);
        let netfilter = self.drops.reasons.number(DropReason::NetfilterDrop.name());
        rodata.reason_netfilter_drop = netfilter.unwrap_or(0);
        if !self.drops.has_reason {
            let is_netfilter =
                |place: &str| reason_of_place(place) == Some(DropReason::NetfilterDrop);
            let found = symbols.ranges(is_netfilter);
            for (to, (start, end)) in rodata.netfilter_places.iter_mut().zip(found) {
                (to.start, to.end) = (start, end);
            }
        }
        rodata.filter_reasons = !args.reason.is_empty();
        let add = |set: &mut [u64], number: u32| {
            if let Some(word) = set.get_mut(number as usize / 64) {
                *word |= 1 << (number % 64);
            }
        };
        let mut ranges = Vec::new();
        for name in &args.reason {
            if let Some(number) = self.drops.reasons.number(name) {
                add(&mut rodata.drop_reasons, number);
            }
            if let Some(reason) = Reasons::ours(name) {
                add(&mut rodata.drop_reasons, reason.0);
            }
            if let Some(number) = self.resets.number(name) {
                add(&mut rodata.reset_reasons, number);
            }
            let drops_for_it =
                |place: &str| reason_of_place(place).is_some_and(|reason| reason.name() == name);
            ranges.extend(symbols.ranges(drops_for_it));
        }
        if ranges.len() > rodata.drop_places.len() {
            return Err(anyhow!(
                "failed to filter by reason: {} functions of this kernel drop segments for these reasons, and at most {} can be watched",
                ranges.len(),
                rodata.drop_places.len()
            ));
        }
        for (to, (start, end)) in rodata.drop_places.iter_mut().zip(ranges) {
            (to.start, to.end) = (start, end);
        }
        Ok(())
    }

    /// Chooses the programs for this kernel and what is asked for. Tracepoint programs are loaded
    /// `once`.
    fn select_programs(
        &self,
        target: &LossTarget<'_>,
        once: bool,
        progs: &mut OpenLossTraceProgs<'_>,
    ) {
        let args = target.args;
        let is_watching = !target.watched.is_empty();
        let wants = |kind| args.kinds().contains(&kind);
        let (drops, resets) = (wants(LossKind::LOSS_DROP), wants(LossKind::LOSS_RESET));
        let retransmits = wants(LossKind::LOSS_RETRANSMIT);
        for (program, wanted) in [
            // It also reports resets of half-open connections.
            (
                &mut progs.loss_drop_socket,
                (drops || resets) && self.drops.has_socket,
            ),
            (
                &mut progs.loss_drop_reason,
                drops && self.drops.has_reason && !self.drops.has_socket,
            ),
            (&mut progs.loss_drop, drops && !self.drops.has_reason),
            (
                &mut progs.loss_retransmit,
                retransmits && !self.retransmit_has_error,
            ),
            (
                &mut progs.loss_retransmit_tried,
                retransmits && self.retransmit_has_error,
            ),
            (&mut progs.loss_retransmit_synack, retransmits),
            (
                &mut progs.loss_sent_reset_reason,
                resets && self.reset_has_reason,
            ),
            (&mut progs.loss_sent_reset, resets && !self.reset_has_reason),
            (&mut progs.loss_received_reset, resets),
            (&mut progs.loss_consumed, is_watching && watches_syns(args)),
        ] {
            program.set_autoload(wanted && once);
        }
        for program in [&mut progs.loss_ingress, &mut progs.loss_egress] {
            program.set_autoload(is_watching);
        }
    }
}

/// Sets the sizes of maps, creates only those that are used, and shares those of the programs that
/// are loaded already.
fn configure_maps(
    target: &LossTarget<'_>,
    first: Option<&LossTraceSkel<'_>>,
    maps: &mut OpenLossTraceMaps<'_>,
) -> Result<()> {
    let LossTarget { args, purpose, .. } = *target;
    maps.packet_scratch
        .set_autocreate(args.recording.write.is_some())?;
    maps.idle_slots.set_autocreate(false)?;
    let sets = &mut maps.count_sets;
    sets.set_max_entries(u32::try_from(target.tables.all_sets())?)?;
    purpose.configure(
        &args.buffer,
        [&mut maps.export_counts, &mut maps.export_times],
        [&mut maps.ring, &mut maps.perf],
    )?;
    if args.by.is_some() {
        maps.ring.set_autocreate(false)?;
        maps.perf.set_autocreate(false)?;
    } else {
        sets.set_autocreate(false)?;
    }
    if let Some(first) = first {
        let known = &first.maps;
        maps.loss_cpus.reuse_fd(known.loss_cpus.as_fd())?;
        maps.bss_rate.reuse_fd(known.bss_rate.as_fd())?;
        match (args.by, purpose) {
            (Some(_), _) => maps.count_sets.reuse_fd(known.count_sets.as_fd())?,
            (None, Purpose::Report(BufferKind::Ring)) => maps.ring.reuse_fd(known.ring.as_fd())?,
            (None, Purpose::Report(BufferKind::Perf)) => maps.perf.reuse_fd(known.perf.as_fd())?,
            // It watches no interface, and so has one set of programs.
            (None, Purpose::Export) => {}
        }
    }
    Ok(())
}

/// What to load programs for.
#[derive(Clone, Copy)]
pub struct LossTarget<'a> {
    /// The options.
    pub args: &'a LossTraceArgs,
    /// What happens to events.
    pub purpose: Purpose,
    /// Only events at these are reported; empty: all.
    pub interfaces: &'a [Interface],
    /// Programs are attached to these.
    pub watched: &'a [Interface],
    /// The size of the tables of counts.
    pub tables: Size,
}

/// Whether drops are asked for that only programs at interfaces can find.
fn watches_syns(args: &LossTraceArgs) -> bool {
    let is_silent = |name: &String| Reasons::ours(name).is_some_and(|it| SILENT.contains(&it));
    args.kinds().contains(&LossKind::LOSS_DROP)
        && (args.reason.is_empty() || args.reason.iter().any(is_silent))
}

/// The reasons for drops that the kernel does not report.
const SILENT: [AcceptReason; 3] = [
    AcceptReason::REASON_ACCEPT_QUEUE_FULL,
    AcceptReason::REASON_SYN_QUEUE_FULL,
    AcceptReason::REASON_NO_ROUTE_BACK,
];

/// Attaches the programs at interfaces.
///
/// # Errors
/// The kernel refuses it.
pub fn watch(
    pairs: &[Pair],
    watched: &[Interface],
    prepared: PreparedLinks,
) -> Result<Attached, Failure> {
    let mut attached = Attached::with(prepared);
    for interface in watched {
        attached.tc_pair(pairs, interface)?;
    }
    Ok(attached)
}

/// The loaded tracepoint programs, each with the name of its tracepoint.
pub fn loaded<'a, 'obj>(
    progs: &'a LossTraceProgs<'obj>,
) -> impl Iterator<Item = (&'static str, &'a ProgramMut<'obj>)> {
    [
        ("kfree_skb", &progs.loss_drop_socket),
        ("kfree_skb", &progs.loss_drop_reason),
        ("kfree_skb", &progs.loss_drop),
        ("tcp_retransmit_skb", &progs.loss_retransmit),
        ("tcp_retransmit_skb", &progs.loss_retransmit_tried),
        ("tcp_retransmit_synack", &progs.loss_retransmit_synack),
        ("tcp_send_reset", &progs.loss_sent_reset_reason),
        ("tcp_send_reset", &progs.loss_sent_reset),
        ("tcp_receive_reset", &progs.loss_received_reset),
        ("consume_skb", &progs.loss_consumed),
    ]
    .into_iter()
    .filter(|(_, program)| program.autoload())
}

/// Attaches the tracepoint programs. Returns the names of their hooks too.
///
/// # Errors
/// The kernel refuses it.
pub fn attach(skel: &LossTraceSkel<'_>) -> Result<(Vec<Link>, Vec<&'static str>), Failure> {
    let mut links = Vec::new();
    let mut hooks = Vec::new();
    for (name, program) in loaded(&skel.progs) {
        let link = program.attach_trace();
        let failed = format!("failed to attach to the tracepoint {name}");
        links.push(link.map_err(|error| load::failure(&failed, error))?);
        hooks.push(name);
    }
    Ok((links, hooks))
}

/// Loads and attaches the programs as a run would, and detaches them again. Returns the hooks, and
/// what can't be shown. `interface` is one to attach to.
///
/// # Errors
/// A run would fail in the same way.
pub fn rehearse(
    args: &LossTraceArgs,
    interface: Option<&Interface>,
) -> Result<(String, Option<String>), Failure> {
    let buffer = BufferKind::choose(args.buffer.buffer);
    let kernel = Kernel::look()?;
    let mut storage = MaybeUninit::uninit();
    let target = LossTarget {
        args,
        purpose: Purpose::Report(buffer),
        interfaces: &[],
        watched: interface.map_or(&[], std::slice::from_ref),
        tables: Size::of(load::possible_cpus()?),
    };
    let is_raw_ip = interface.is_some_and(Interface::is_raw_ip);
    let mut symbols = KernelSymbols::none();
    let (skel, pair) = kernel.load(&target, is_raw_ip, None, &mut symbols, &mut storage)?;
    let (_links, hooks) = attach(&skel)?;
    let hooks = hooks.join(", ");
    let buffer = buffer.name();
    Ok(
        match watch(pair.as_slice(), target.watched, PreparedLinks::default()) {
            Ok(attached) => {
                let names = attached.hooks().iter().map(|hook| hook.name.as_str());
                let all = [hooks.as_str()].into_iter().chain(names).chain([buffer]);
                (all.collect::<Vec<_>>().join(", "), None)
            }
            Err(failure) => (
                format!("{hooks}, {buffer}"),
                Some(format!(
                    "drops because of full queues can't be shown: {:#}",
                    failure.error
                )),
            ),
        },
    )
}

impl LossTraceArgs {
    /// The kinds that are asked for.
    pub fn kinds(&self) -> Vec<LossKind> {
        let kind = |choice: &LossKindChoice| match choice {
            LossKindChoice::Drop => LossKind::LOSS_DROP,
            LossKindChoice::Retransmit => LossKind::LOSS_RETRANSMIT,
            LossKindChoice::Reset => LossKind::LOSS_RESET,
        };
        match self.only.as_slice() {
            [] if self.recording.write.is_some() => vec![LossKind::LOSS_DROP],
            [] => vec![
                LossKind::LOSS_DROP,
                LossKind::LOSS_RETRANSMIT,
                LossKind::LOSS_RESET,
            ],
            only => only.iter().map(kind).collect(),
        }
    }
}
