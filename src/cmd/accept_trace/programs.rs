//! accept-trace: chooses the programs that this kernel supports, loads and attaches them.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use libbpf_rs::{Link, OpenObject};

use super::wanted_fates;
use crate::attach::tc::PreparedLinks;
use crate::attach::{Attached, Pair, load};
use crate::cli::{AcceptBy, AcceptHistogram, AcceptTraceArgs};
use crate::domain::reasons::Reasons;
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::host::kernel_symbols::KernelSymbols;
use crate::host::kernel_types::KernelTypes;
use crate::host::netns;
use crate::notice::Notices;
use crate::run::drops::{DropTracepoint, check_reasons};
use crate::run::events::BufferKind;
use crate::run::export::Purpose;
use crate::skel::accept_trace::types::process_filter as ProcessFilter;
use crate::skel::accept_trace::{
    AcceptTraceSkel, AcceptTraceSkelBuilder, OpenAcceptTraceMaps, OpenAcceptTraceProgs,
};
use crate::skel::{AcceptByKey, AcceptOutput, DropSettings};
use crate::sys::tiny;

/// The hook for accepted connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptHook {
    /// fexit on inet_csk_accept() with four arguments, before Linux 6.10.
    FourArguments,
    /// fexit on inet_csk_accept() with two arguments.
    TwoArguments,
    /// The tracepoint sys_exit, for kernels without fexit.
    SystemCall,
}

impl AcceptHook {
    /// The name in messages.
    fn name(self) -> &'static str {
        match self {
            Self::FourArguments | Self::TwoArguments => "fexit inet_csk_accept",
            Self::SystemCall => "tracepoint sys_exit",
        }
    }

    /// The names of all hooks outside of interfaces, in the order in which they are attached.
    pub fn with_tracepoints(self) -> [&'static str; 3] {
        [
            "tracepoint kfree_skb",
            "tracepoint inet_sock_set_state",
            self.name(),
        ]
    }

    fn find(types: &KernelTypes, notices: Notices) -> Result<Self> {
        let Some(function) = types.function("inet_csk_accept")? else {
            return Ok(Self::SystemCall);
        };
        if let Err(error) = tiny::try_fentry(function) {
            notices.detail(&format!("fexit can't be used: {error}"));
            return Ok(Self::SystemCall);
        }
        Ok(match types.arguments("inet_csk_accept")? {
            Some(4) => Self::FourArguments,
            Some(2) => Self::TwoArguments,
            _ => Self::SystemCall,
        })
    }
}

/// What to load on this kernel.
struct Plan {
    hook: AcceptHook,
    drops: DropTracepoint,
    /// All programs hash attempts with this.
    reported_seed: u64,
}

impl Plan {
    fn find(notices: Notices) -> Result<Self, Failure> {
        let types = load::kernel_types(super::NAME)?;
        Ok(Self {
            hook: AcceptHook::find(&types, notices)?,
            drops: DropTracepoint::find(&types)?,
            reported_seed: RandomState::new().build_hasher().finish(),
        })
    }
}

/// The loaded programs: one set for interfaces with an Ethernet header, and one for those without.
/// Tracing programs are loaded only in the first set.
pub struct Programs<'obj> {
    /// One or two sets.
    pub skels: Vec<AcceptTraceSkel<'obj>>,
    /// The programs at interfaces of each set.
    pub pairs: Vec<Pair>,
    /// The hook for accepted connections.
    pub hook: AcceptHook,
    /// The names of reasons.
    pub reasons: Reasons,
    /// The names of kernel functions.
    pub symbols: KernelSymbols,
}

impl<'obj> Programs<'obj> {
    /// Loads the programs that these interfaces need.
    ///
    /// # Errors
    /// The kernel refuses a program, or an option is wrong.
    pub fn load(
        args: &AcceptTraceArgs,
        purpose: Purpose,
        interfaces: &[Interface],
        storage: &'obj mut [MaybeUninit<OpenObject>; 2],
        notices: Notices,
    ) -> Result<Self, Failure> {
        let plan = Plan::find(notices)?;
        let mut symbols = KernelSymbols::open().unwrap_or_else(|error| {
            notices.detail(&format!("places of drops can't be shown: {error:#}"));
            KernelSymbols::none()
        });
        check_reasons(
            &args.reason,
            plan.drops.reasons.names(),
            "no_listener, accept_queue_full, netfilter_drop",
        )?;
        let (mut skels, mut pairs) = (Vec::new(), Vec::new());
        for (is_raw_ip, storage) in Pair::kinds(interfaces).into_iter().zip(storage) {
            let (skel, pair) = load_one(
                args,
                purpose,
                &plan,
                is_raw_ip,
                skels.first(),
                &mut symbols,
                storage,
            )?;
            skels.push(skel);
            pairs.push(pair);
        }
        Ok(Self {
            skels,
            pairs,
            hook: plan.hook,
            reasons: plan.drops.reasons,
            symbols,
        })
    }
}

fn load_one<'obj>(
    args: &AcceptTraceArgs,
    purpose: Purpose,
    plan: &Plan,
    is_raw_ip: bool,
    first: Option<&AcceptTraceSkel<'obj>>,
    symbols: &mut KernelSymbols,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> Result<(AcceptTraceSkel<'obj>, Pair), Failure> {
    let (mut open, types) =
        load::open::<AcceptTraceSkelBuilder>(crate::skel::accept_trace::TYPES, storage)?;
    let rodata = open.maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the programs have no settings")?;
    rodata.link_is_raw_ip = is_raw_ip;
    rodata.reported_seed = plan.reported_seed;
    plan.drops
        .configure(DropSettings::from(&mut *rodata), symbols);
    rodata.reason_tcp_reset = plan.drops.reasons.number("tcp_reset").unwrap_or(0);
    configure(args, purpose, &mut open.maps)?;
    if let Some(first) = first {
        share_maps(purpose, &mut open.maps, first)?;
    }
    args.filter().configure(&mut open)?;
    select_programs(plan, first.is_none(), &mut open.progs);
    let failure = |error| {
        load::failure_to_read(
            "failed to load the accept-trace programs",
            error,
            "where sockets and dropped segments are",
        )
    };
    let (skel, loaded) = load::on_two_threads(open, |open| {
        let progs = &mut open.progs;
        vec![&mut progs.accept_egress, &mut progs.accept_ingress]
    })
    .map_err(failure)?;
    let pair = Pair::new(is_raw_ip, loaded)?;
    types.close();
    let counters = &skel.maps.bss_accept_data;
    counters.as_ref().context("the programs have no counters")?;
    load::fill_slots(&skel.maps.idle_slots)?;
    let maps = &skel.maps;
    args.processes
        .rules()
        .fill([&maps.pids, &maps.uids, &maps.comms])?;
    args.filter().fill(&skel)?;
    Ok((skel, pair))
}

/// Sets what the options ask for, and the sizes of maps.
fn configure(
    args: &AcceptTraceArgs,
    purpose: Purpose,
    maps: &mut OpenAcceptTraceMaps<'_>,
) -> Result<()> {
    let rodata = maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the programs have no settings")?;
    // These programs read the namespace of a socket through its BTF pointer, which is faster than
    // bpf_probe_read_kernel().
    rodata.may_probe_read = false;
    rodata.use_perf_buffer = purpose == Purpose::Report(BufferKind::Perf);
    load::configure_slots(
        &mut rodata.preemptible,
        &mut maps.idle_slots,
        &mut [&mut maps.expr_words],
    )?;
    rodata.own_netns = u32::try_from(netns::own()?)?;
    rodata.wanted_fates = wanted_fates(args);
    rodata.exporting = purpose == Purpose::Export;
    // With --reason, user space applies the limit to the lines that it chooses.
    rodata.max_rate = args
        .max_rate
        .filter(|_| args.reason.is_empty())
        .unwrap_or(0);
    rodata.accept_output = match (args.histogram, args.by) {
        (Some(AcceptHistogram::Handshake), _) => AcceptOutput::OUTPUT_HANDSHAKE,
        (Some(AcceptHistogram::AcceptWait), _) => AcceptOutput::OUTPUT_ACCEPT_WAIT,
        (None, Some(_)) => AcceptOutput::OUTPUT_COUNTS,
        (None, None) => AcceptOutput::OUTPUT_EVENTS,
    };
    rodata.accept_by = match args.by {
        Some(AcceptBy::Reason) => AcceptByKey::ACCEPT_BY_REASON,
        Some(AcceptBy::Saddr) => AcceptByKey::ACCEPT_BY_SADDR,
        Some(AcceptBy::Dport) => AcceptByKey::ACCEPT_BY_DPORT,
        Some(AcceptBy::Comm) => AcceptByKey::ACCEPT_BY_COMM,
        None => AcceptByKey::ACCEPT_BY_NOTHING,
    };
    rodata.count_reasons = args.by == Some(AcceptBy::Reason) || !args.reason.is_empty();
    let processes = args.processes.rules();
    let sets = [&mut maps.pids, &mut maps.uids, &mut maps.comms];
    rodata.process_filter = ProcessFilter(processes.size(sets)?);
    let (counts, histograms) = (args.by.is_some(), args.histogram.is_some());
    for (map, is_used) in [
        (&mut maps.even_counts, counts && !histograms),
        (&mut maps.odd_counts, counts && !histograms),
        (&mut maps.histograms, histograms),
    ] {
        if !is_used {
            map.set_max_entries(1)?;
        }
    }
    purpose.configure(
        &args.buffer,
        [&mut maps.export_counts, &mut maps.export_times],
        [&mut maps.ring, &mut maps.perf],
    )?;
    Ok(())
}

/// Has the programs use the maps of those that are loaded already.
fn share_maps(
    purpose: Purpose,
    maps: &mut OpenAcceptTraceMaps<'_>,
    first: &AcceptTraceSkel<'_>,
) -> Result<()> {
    let known = &first.maps;
    maps.attempts.reuse_fd(known.attempts.as_fd())?;
    maps.reported.reuse_fd(known.reported.as_fd())?;
    maps.recent.reuse_fd(known.recent.as_fd())?;
    maps.bss_recent.reuse_fd(known.bss_recent.as_fd())?;
    maps.bss_cpus.reuse_fd(known.bss_cpus.as_fd())?;
    maps.bss_rate.reuse_fd(known.bss_rate.as_fd())?;
    maps.even_counts.reuse_fd(known.even_counts.as_fd())?;
    maps.odd_counts.reuse_fd(known.odd_counts.as_fd())?;
    maps.histograms.reuse_fd(known.histograms.as_fd())?;
    match purpose {
        Purpose::Export => {
            maps.export_counts.reuse_fd(known.export_counts.as_fd())?;
            maps.export_times.reuse_fd(known.export_times.as_fd())?;
        }
        Purpose::Report(BufferKind::Ring) => maps.ring.reuse_fd(known.ring.as_fd())?,
        Purpose::Report(BufferKind::Perf) => maps.perf.reuse_fd(known.perf.as_fd())?,
    }
    Ok(())
}

/// Chooses the tracing programs for this kernel, which are loaded `once`.
fn select_programs(plan: &Plan, once: bool, progs: &mut OpenAcceptTraceProgs<'_>) {
    for (program, wanted) in [
        (
            &mut progs.accept_drop_reason,
            plan.drops.has_reason && !plan.drops.has_socket,
        ),
        (&mut progs.accept_drop_socket, plan.drops.has_socket),
        (&mut progs.accept_drop, !plan.drops.has_reason),
        (&mut progs.accept_free, true),
        (&mut progs.accept_skipped_free, true),
        (&mut progs.accept_state, true),
        (&mut progs.accept_change, true),
        (&mut progs.accept_skipped_change, true),
        (
            &mut progs.accept_exit_4,
            plan.hook == AcceptHook::FourArguments,
        ),
        (
            &mut progs.accept_exit_2,
            plan.hook == AcceptHook::TwoArguments,
        ),
        (&mut progs.accept_call, plan.hook == AcceptHook::SystemCall),
        (&mut progs.accept_close, true),
    ] {
        program.set_autoload(wanted && once);
    }
}

/// The attached programs, which are detached when this is dropped.
pub struct Hooks {
    /// The TC programs at interfaces.
    pub interfaces: Attached,
    /// The names of the tracing hooks.
    pub hooks: [&'static str; 3],
    _links: Vec<Link>,
}

/// Attaches all programs. Those at interfaces are last, because an attempt begins there.
///
/// # Errors
/// The kernel refuses it.
pub fn attach(
    hook: AcceptHook,
    skel: &AcceptTraceSkel<'_>,
    pairs: &[Pair],
    interfaces: &[Interface],
    prepared: PreparedLinks,
) -> Result<Hooks, Failure> {
    let progs = &skel.progs;
    let mut links = Vec::new();
    let hooks = hook.with_tracepoints();
    let accept = match hook {
        AcceptHook::FourArguments => &progs.accept_exit_4,
        AcceptHook::TwoArguments => &progs.accept_exit_2,
        AcceptHook::SystemCall => &progs.accept_call,
    };
    let drops = [
        &progs.accept_drop_socket,
        &progs.accept_drop_reason,
        &progs.accept_drop,
    ];
    let drops = drops.into_iter().find(|program| program.autoload());
    let drops = drops.context("no program for drops is loaded")?;
    load::set_handler(&skel.maps.drop_handler, drops)?;
    load::set_handler(&skel.maps.state_handler, &progs.accept_state)?;
    let [free, change, accepts] = hooks;
    // A stand-in is attached right after its program.
    for (name, program) in [
        (free, &progs.accept_free),
        (free, &progs.accept_skipped_free),
        (change, &progs.accept_change),
        (change, &progs.accept_skipped_change),
        (accepts, accept),
    ] {
        let link = program.attach_trace();
        links
            .push(link.map_err(|error| load::failure(&format!("failed to attach {name}"), error))?);
    }
    let mut attached = Attached::with(prepared);
    for interface in interfaces {
        attached.tc_pair(pairs, interface)?;
    }
    Ok(Hooks {
        interfaces: attached,
        hooks,
        _links: links,
    })
}

/// The result of [`rehearse`].
pub struct Rehearsed {
    /// The hook for accepted connections.
    pub hook: AcceptHook,
    /// Whether the kernel gives reasons of drops.
    pub has_reasons: bool,
    /// Whether kernel functions can be named.
    pub has_places: bool,
}

/// Loads the programs as a run would, attaches them if an interface is given, and detaches them
/// again.
///
/// # Errors
/// A run would fail in the same way.
pub fn rehearse(
    args: &AcceptTraceArgs,
    interface: Option<&Interface>,
    notices: Notices,
) -> Result<Rehearsed, Failure> {
    let purpose = Purpose::Report(BufferKind::choose(args.buffer.buffer));
    let mut storage = [const { MaybeUninit::uninit() }; 2];
    let interfaces = interface.into_iter().cloned().collect::<Vec<_>>();
    let has_none = interfaces.is_empty();
    let mut programs = Programs::load(args, purpose, &interfaces, &mut storage, notices)?;
    if !has_none {
        let first = programs.skels.first();
        attach(
            programs.hook,
            first.context("there is no interface")?,
            &programs.pairs,
            &interfaces,
            PreparedLinks::default(),
        )?;
    }
    Ok(Rehearsed {
        hook: programs.hook,
        has_reasons: programs.reasons.are_known(),
        has_places: programs.symbols.range("tcp_v4_rcv").is_some(),
    })
}
