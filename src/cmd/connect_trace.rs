//! `connect-trace`: outgoing connection attempts and their fate.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, ensure};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, Link, MapCore, MapFlags, MapMut, OpenMapMut, OpenObject, ProgramMut};

use crate::attach::{self, event, load, probe};
use crate::cli::{BackendChoice, ConnectTraceArgs, OutputFormat};
use crate::events::{BufferKind, EventSource};
use crate::failure::{Exit, Failure};
use crate::host::containers::Containers;
use crate::host::kernel_types::KernelTypes;
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::notice::Notices;
use crate::output::connect::ConnectWriter;
use crate::output::summary::Summary;
use crate::record::Connection;
use crate::session::{Delivery, Session};
use crate::skel::connect_trace::{
    ConnectTraceProgs, ConnectTraceSkel, ConnectTraceSkelBuilder, OpenConnectTraceProgs,
};
use crate::skel::{self, CommKey, ConnectCounters, ConnectKind, ProcessFilter};
use crate::{filter_slots, filter_tries};

/// Connections that can be on their way at once.
const WAITING_MAX: u32 = 16_384;

/// Connections that can be followed to their end at once.
const OPEN_MAX: u32 = 65_536;

/// The tracepoint of what happens to connections.
const STATE_EVENT: &str = "sock/inet_sock_set_state";

/// Loads at most: each backend is tried once more without the perf event of the tracepoint, and
/// fentry and the tracepoint where memory may not be read freely.
const ATTEMPTS: usize = 8;

/// Runs the command.
///
/// # Errors
/// As SPEC's exit codes: wrong options, or something that can't be attached or written.
pub fn run(args: &ConnectTraceArgs) -> Result<Exit, Failure> {
    let mut session = Session::new(&args.output, &args.stop, args.sandbox)?;
    load::possible_cpus()?;
    let buffer = BufferKind::choose(args.buffer.buffer)?;

    // One for each attempt: the skeleton that is kept borrows its own.
    let mut storage = [const { MaybeUninit::uninit() }; ATTEMPTS];
    let tracer = choose(args, buffer, &mut storage, session.notices)?;
    let writer = ConnectWriter {
        backend: tracer.backend.name(),
        with_close: args.close,
    };
    let delivery = Delivery::new(session.io());
    let mut containers = Containers::new();
    let maps = &tracer.skel.maps;
    let source = EventSource::open(
        buffer,
        args.buffer.buffer_size,
        &maps.ring,
        &maps.perf,
        |bytes| {
            delivery.deliver(
                Connection::decode(bytes),
                |clock, connection| clock.unix(connection.raw.ts_ns),
                |out, clock, at, connection| match delivery.format() {
                    OutputFormat::Json => {
                        let raw = &connection.raw;
                        let container = connection
                            .has_process()
                            .then(|| containers.find(raw.cgroup_id, raw.pid))
                            .flatten();
                        writer.json(out, clock, at, connection, container);
                    }
                    OutputFormat::Text => writer.text(out, clock, at, connection),
                },
            );
        },
    )?;
    privileges::drop_all()?;
    session.text_header(|out| writer.text_header(out));
    // Which container a process is in, files tell.
    session.ready(match args.output.format() {
        OutputFormat::Json => Files::Readable,
        OutputFormat::Text => Files::Opened,
    })?;
    session.attached(&format!(
        "{} (connect-trace, backend {}, {})",
        tracer.hooks.join(", "),
        tracer.backend.name(),
        buffer.name()
    ));

    session.run_events(&source)?;
    let duration = session.stop.elapsed();
    // Once the hooks are gone, each attempt is without one.
    let unhooked = maps
        .bss_data
        .as_deref()
        .map_or(0, |bss| skel::connect_counters(bss).unhooked);
    drop(tracer.links);
    attach::synchronize();
    session.drain_rest(&source)?;
    let counters = maps
        .bss_data
        .as_deref()
        .map(skel::connect_counters)
        .context("the programs have no counters")?;
    let unseen = unseen(&counters, unhooked, &tracer.skel.progs);
    let summary = Summary {
        exit_reason: session.exit_reason().name(),
        ..delivery.summary(
            "connect-trace",
            duration,
            counters.matched + unseen,
            counters.lost + unseen,
            0,
        )
    };
    session.finish(&summary)
}

/// What the programs know or the kernel says that they did not see: attempts whose call has not
/// returned to them, and calls, accepts and state changes for which they were skipped, of which
/// nobody knows whether they match.
fn unseen(counters: &ConnectCounters, unhooked: u64, progs: &ConnectTraceProgs<'_>) -> u64 {
    let skipped = |programs: &[&ProgramMut<'_>]| {
        let programs = programs.iter().filter(|program| program.autoload());
        programs
            .map(|program| attach::skipped_runs(program.as_fd()))
            .sum::<u64>()
    };
    let changes = skipped(&[&progs.on_state_change, &progs.on_state_event]);
    let calls = skipped(&[
        &progs.enter_tcp_v4_connect,
        &progs.enter_tcp_v6_connect,
        &progs.kprobe_tcp_v4_connect,
        &progs.kprobe_tcp_v6_connect,
    ]);
    let accepts = skipped(&[
        &progs.exit_accept_2,
        &progs.exit_accept_4,
        &progs.kretprobe_accept,
    ]);
    counters.calling
        + accepts
        + changes.saturating_sub(counters.nested)
        + calls.saturating_sub(unhooked)
}

/// Loads and attaches what the options ask for, and takes it away again. Returns the backend.
///
/// # Errors
/// The command would fail in the same way.
pub fn rehearse(args: &ConnectTraceArgs, notices: Notices) -> Result<Backend, Failure> {
    let buffer = BufferKind::choose(args.buffer.buffer)?;
    let mut storage = [const { MaybeUninit::uninit() }; ATTEMPTS];
    Ok(choose(args, buffer, &mut storage, notices)?.backend)
}

/// The ways to look at connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// fentry and fexit on the connect functions.
    Fentry,
    /// kprobe and kretprobe on them.
    Kprobe,
    /// The state tracepoint alone.
    Tracepoint,
}

impl Backend {
    /// As it is spelled on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// The backends to try, in order.
pub fn candidates(choice: BackendChoice) -> &'static [Backend] {
    match choice {
        BackendChoice::Auto => &[Backend::Fentry, Backend::Kprobe, Backend::Tracepoint],
        BackendChoice::Fentry => &[Backend::Fentry],
        BackendChoice::Kprobe => &[Backend::Kprobe],
        BackendChoice::Tracepoint => &[Backend::Tracepoint],
    }
}

/// Programs that are loaded and attached.
struct Tracer<'obj> {
    backend: Backend,
    skel: ConnectTraceSkel<'obj>,
    links: Vec<Link>,
    hooks: Vec<&'static str>,
}

/// What to load for a backend.
#[derive(Clone, Copy, Debug)]
struct Plan {
    backend: Backend,
    /// tcp_v6_connect is there.
    ipv6: bool,
    /// The hook that sees accepts, if any.
    accept: Accept,
    /// bpf_probe_read_kernel is allowed.
    may_probe_read: bool,
    /// State changes are handled at the perf event of the tracepoint.
    by_perf_event: bool,
}

/// How accepts are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    /// Not asked for, or only as the establishment of an incoming connection.
    Unhooked,
    /// fexit on inet_csk_accept with four arguments, before Linux 6.10.
    FourArguments,
    /// The same with two.
    TwoArguments,
    /// kretprobe.
    Kretprobe,
}

/// Loads and attaches the first backend that works.
fn choose<'obj>(
    args: &ConnectTraceArgs,
    buffer: BufferKind,
    storage: &'obj mut [MaybeUninit<OpenObject>],
    notices: Notices,
) -> Result<Tracer<'obj>, Failure> {
    let types = KernelTypes::load().map_err(|error| {
        Failure::from(error).hint(
            "connect-trace needs /sys and a kernel with CONFIG_DEBUG_INFO_BTF; packet commands work without",
        )
    })?;
    let ipv6 = types.function("tcp_v6_connect")?.is_some();
    if !ipv6 {
        notices.notice(
            "this kernel has no tcp_v6_connect: IPv6 is seen by the state tracepoint alone",
        );
    }
    let kernel = privileges::kernel_version().unwrap_or_default();
    let state_event = find_state_event(kernel, &types);
    if let Err(error) = &state_event {
        notices.detail(&format!(
            "no use of the perf event of {STATE_EVENT}: {error:#}"
        ));
    }
    let mut storage = storage.iter_mut();
    let mut last = None;
    for backend in candidates(args.backend) {
        if let Err(failure) = try_cheaply(*backend, &types) {
            notices.detail(&format!("{:#}", failure.error));
            last = Some(failure);
            continue;
        }
        let mut plan = Plan {
            backend: *backend,
            ipv6,
            accept: accept_hook(*backend, args, &types)?,
            may_probe_read: true,
            by_perf_event: state_event.is_ok(),
        };
        loop {
            let storage = storage.next().context("too many attempts to attach")?;
            match Tracer::attach(plan, args, buffer, storage) {
                Ok(tracer) => {
                    if kernel >= (7, 0) && !plan.by_perf_event {
                        notices.notice("tasks can be preempted in programs at the tracepoint, and what others do meanwhile is counted as lost; -v says why its perf event is not used");
                    }
                    if args.accept && plan.accept == Accept::Unhooked {
                        notices.notice("this backend sees incoming connections as they are established, without the process that will accept them");
                    }
                    return Ok(tracer);
                }
                Err(failure) => {
                    notices.detail(&format!(
                        "backend {} can't be used: {:#}",
                        backend.name(),
                        failure.error
                    ));
                    let invalid = is_invalid(&failure);
                    last = Some(failure);
                    if plan.by_perf_event {
                        // It is there, but opening it may be refused.
                        plan.by_perf_event = false;
                    } else if *backend != Backend::Kprobe && plan.may_probe_read && invalid {
                        // Under lockdown=confidentiality only what BTF pointers reach may be read.
                        plan.may_probe_read = false;
                    } else {
                        break;
                    }
                }
            }
        }
    }
    Err(last.context("there is no backend to try")?)
}

/// Whether state changes can be taken from the perf event of the tracepoint. tracefs may be missing
/// or for root alone, and the kernel may hide the flag that says when its programs are skipped.
fn find_state_event(kernel: (u32, u32), types: &KernelTypes) -> Result<()> {
    ensure!(kernel >= (6, 7), "Linux counts what is skipped since 6.7");
    event::id(STATE_EVENT)?;
    let flag = types
        .variable("bpf_prog_active")?
        .context("the kernel doesn't tell of bpf_prog_active")?;
    probe::variable(flag).context("the kernel hides bpf_prog_active")
}

/// Finds out what would fail anyway, before maps are made and programs verified for it.
fn try_cheaply(backend: Backend, types: &KernelTypes) -> Result<(), Failure> {
    let what = format!("failed to use backend {}", backend.name());
    match backend {
        Backend::Fentry => {
            let Some(function) = types.function("tcp_v4_connect")? else {
                return Err(anyhow!("this kernel has no tcp_v4_connect")
                    .context(what)
                    .into());
            };
            probe::fentry(function).map_err(|error| match error.kind() {
                std::io::ErrorKind::PermissionDenied => load::refused(&what, error.into()),
                _ => anyhow::Error::new(error).context(what).into(),
            })
        }
        // Without privileges it is these that are missing first.
        Backend::Kprobe if privileges::missing().is_empty() && !probe::has_kprobes() => {
            let why = anyhow!("this kernel has no kprobes (CONFIG_KPROBES)");
            Err(Failure::from(why.context(what)).hint("--backend auto takes one that works"))
        }
        Backend::Kprobe | Backend::Tracepoint => Ok(()),
    }
}

/// What to say of a kprobe program that a lockdown of the kernel refuses as invalid.
fn forbidden_by_lockdown() -> Option<String> {
    let limits = privileges::limits();
    let (_, meaning) = limits.iter().find(|(name, _)| *name == "lockdown")?;
    Some(format!(
        "lockdown is {meaning}; the fentry and tracepoint backends do without"
    ))
}

fn is_invalid(failure: &Failure) -> bool {
    failure
        .error
        .downcast_ref::<libbpf_rs::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::InvalidInput)
}

/// The hook for `--accept`. How many arguments inet_csk_accept has, its BTF tells.
fn accept_hook(backend: Backend, args: &ConnectTraceArgs, types: &KernelTypes) -> Result<Accept> {
    Ok(match (args.accept, backend) {
        (true, Backend::Kprobe) => Accept::Kretprobe,
        (true, Backend::Fentry) => match types.arguments("inet_csk_accept")? {
            Some(4) => Accept::FourArguments,
            Some(2) => Accept::TwoArguments,
            _ => Accept::Unhooked,
        },
        _ => Accept::Unhooked,
    })
}

impl<'obj> Tracer<'obj> {
    fn attach(
        plan: Plan,
        args: &ConnectTraceArgs,
        buffer: BufferKind,
        storage: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self, Failure> {
        let mut open = ConnectTraceSkelBuilder::default()
            .open(storage)
            .context("failed to open the programs")?;
        let rodata = open
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the programs have no settings")?;
        rodata.wanted_kinds = wanted_kinds(args);
        rodata.accept_is_hooked = plan.accept != Accept::Unhooked;
        rodata.may_probe_read = plan.may_probe_read;
        rodata.ipv4_is_hooked = plan.backend != Backend::Tracepoint;
        rodata.ipv6_is_hooked = plan.backend != Backend::Tracepoint && plan.ipv6;
        rodata.use_perf_buffer = buffer == BufferKind::Perf;
        let mut process_filter = 0;
        let sets = [
            (
                &mut open.maps.pids,
                args.pid.len(),
                ProcessFilter::FILTER_PID,
            ),
            (
                &mut open.maps.uids,
                args.uid.len(),
                ProcessFilter::FILTER_UID,
            ),
            (
                &mut open.maps.comms,
                args.comm.len(),
                ProcessFilter::FILTER_COMM,
            ),
        ];
        for (map, len, part) in sets {
            if size_set(map, len)? {
                process_filter |= part.0;
            }
        }
        rodata.process_filter = ProcessFilter(process_filter);
        args.addresses
            .filter()
            .configure(filter_slots!(open, rodata))?;
        let remembers_passed_over = args.close && rodata.filter.parts.0 != 0;
        let maps = &mut open.maps;
        buffer.configure(&args.buffer, &mut maps.ring, &mut maps.perf)?;
        maps.connections
            .set_max_entries(if args.close { OPEN_MAX } else { WAITING_MAX })?;
        maps.calls.set_autocreate(plan.backend == Backend::Kprobe)?;
        maps.passed_over.set_autocreate(remembers_passed_over)?;
        select_programs(plan, &mut open.progs);
        let what = format!(
            "failed to load the connect-trace program (backend {})",
            plan.backend.name()
        );
        let skel = open.load().map_err(|error| {
            let failure = load::failure(&what, error);
            match forbidden_by_lockdown() {
                Some(hint) if plan.backend == Backend::Kprobe && is_invalid(&failure) => {
                    failure.hint(hint)
                }
                _ => failure,
            }
        })?;
        fill_sets(args, &skel)?;
        let (links, hooks) = attach_programs(plan, &skel)?;
        Ok(Self {
            backend: plan.backend,
            skel,
            links,
            hooks,
        })
    }
}

fn wanted_kinds(args: &ConnectTraceArgs) -> u32 {
    let mut kinds = vec![ConnectKind::CONNECT_FAILED];
    if !args.failed {
        kinds.extend([
            ConnectKind::CONNECT_ATTEMPT,
            ConnectKind::CONNECT_ESTABLISHED,
        ]);
    }
    if args.accept {
        kinds.push(ConnectKind::CONNECT_ACCEPTED);
    }
    if args.close {
        kinds.push(ConnectKind::CONNECT_CLOSED);
    }
    kinds.into_iter().fold(0, |bits, kind| bits | 1 << kind.0)
}

/// Sizes the table of a list, or leaves it out; true if the list was given.
fn size_set(map: &mut OpenMapMut<'_>, len: usize) -> Result<bool> {
    if len == 0 {
        map.set_autocreate(false)?;
    } else {
        map.set_max_entries(u32::try_from(len)?)?;
    }
    Ok(len > 0)
}

fn fill_sets(args: &ConnectTraceArgs, skel: &ConnectTraceSkel<'_>) -> Result<()> {
    let add = |map: &MapMut<'_>, key: &[u8]| {
        map.update(key, &[1], MapFlags::ANY)
            .context("failed to fill the filter on processes")
    };
    for pid in &args.pid {
        add(&skel.maps.pids, &pid.to_ne_bytes())?;
    }
    for uid in &args.uid {
        add(&skel.maps.uids, &uid.to_ne_bytes())?;
    }
    for comm in &args.comm {
        let mut key = CommKey::default();
        key.comm[..comm.len()].copy_from_slice(comm.as_bytes());
        add(&skel.maps.comms, skel::key_bytes(&key))?;
    }
    args.addresses.filter().fill(filter_tries!(skel))
}

/// Loads what the plan needs and nothing else.
fn select_programs(plan: Plan, progs: &mut OpenConnectTraceProgs<'_>) {
    let fentry = plan.backend == Backend::Fentry;
    let kprobe = plan.backend == Backend::Kprobe;
    for (program, wanted) in [
        (&mut progs.enter_tcp_v4_connect, fentry),
        (&mut progs.exit_tcp_v4_connect, fentry),
        (&mut progs.enter_tcp_v6_connect, fentry && plan.ipv6),
        (&mut progs.exit_tcp_v6_connect, fentry && plan.ipv6),
        (&mut progs.kprobe_tcp_v4_connect, kprobe),
        (&mut progs.kretprobe_tcp_v4_connect, kprobe),
        (&mut progs.kprobe_tcp_v6_connect, kprobe && plan.ipv6),
        (&mut progs.kretprobe_tcp_v6_connect, kprobe && plan.ipv6),
        (&mut progs.on_state_change, !plan.by_perf_event),
        (&mut progs.on_nested_state_change, !plan.by_perf_event),
        (&mut progs.on_state_event, plan.by_perf_event),
        (&mut progs.on_skipped_state_event, plan.by_perf_event),
        (
            &mut progs.exit_accept_4,
            plan.accept == Accept::FourArguments,
        ),
        (
            &mut progs.exit_accept_2,
            plan.accept == Accept::TwoArguments,
        ),
        (
            &mut progs.kretprobe_accept,
            plan.accept == Accept::Kretprobe,
        ),
    ] {
        program.set_autoload(wanted);
    }
}

/// Attaches what was loaded. The state tracepoint is last: what it sees then, the others see too.
fn attach_programs(
    plan: Plan,
    skel: &ConnectTraceSkel<'_>,
) -> Result<(Vec<Link>, Vec<&'static str>), Failure> {
    let progs = &skel.progs;
    let mut links = Vec::new();
    let mut hooks = Vec::new();
    let mut keep = |hook, link: libbpf_rs::Result<Link>| match link {
        Ok(link) => {
            links.push(link);
            hooks.push(hook);
            Ok(())
        }
        Err(error) => {
            let what = format!("failed to attach {hook}");
            Err(match plan.backend {
                Backend::Kprobe => load::kprobe_failure(&what, error),
                _ => load::failure(&what, error),
            })
        }
    };
    match plan.backend {
        Backend::Fentry => {
            keep(
                "fexit tcp_v4_connect",
                progs.exit_tcp_v4_connect.attach_trace(),
            )?;
            keep(
                "fentry tcp_v4_connect",
                progs.enter_tcp_v4_connect.attach_trace(),
            )?;
            if plan.ipv6 {
                keep(
                    "fexit tcp_v6_connect",
                    progs.exit_tcp_v6_connect.attach_trace(),
                )?;
                keep(
                    "fentry tcp_v6_connect",
                    progs.enter_tcp_v6_connect.attach_trace(),
                )?;
            }
        }
        Backend::Kprobe => {
            let (v4, v6) = ("tcp_v4_connect", "tcp_v6_connect");
            keep(
                "kretprobe tcp_v4_connect",
                progs.kretprobe_tcp_v4_connect.attach_kprobe(true, v4),
            )?;
            keep(
                "kprobe tcp_v4_connect",
                progs.kprobe_tcp_v4_connect.attach_kprobe(false, v4),
            )?;
            if plan.ipv6 {
                keep(
                    "kretprobe tcp_v6_connect",
                    progs.kretprobe_tcp_v6_connect.attach_kprobe(true, v6),
                )?;
                keep(
                    "kprobe tcp_v6_connect",
                    progs.kprobe_tcp_v6_connect.attach_kprobe(false, v6),
                )?;
            }
        }
        Backend::Tracepoint => {}
    }
    match plan.accept {
        Accept::FourArguments => keep("fexit inet_csk_accept", progs.exit_accept_4.attach_trace())?,
        Accept::TwoArguments => keep("fexit inet_csk_accept", progs.exit_accept_2.attach_trace())?,
        Accept::Kretprobe => {
            let link = progs
                .kretprobe_accept
                .attach_kprobe(true, "inet_csk_accept");
            keep("kretprobe inet_csk_accept", link)?;
        }
        Accept::Unhooked => {}
    }
    let tracepoint = "tracepoint inet_sock_set_state";
    if plan.by_perf_event {
        keep(tracepoint, progs.on_skipped_state_event.attach_trace())?;
        let link = event::attach(&progs.on_state_event, STATE_EVENT);
        keep(tracepoint, link)?;
    } else {
        keep(tracepoint, progs.on_state_change.attach_trace())?;
        keep(tracepoint, progs.on_nested_state_change.attach_trace())?;
    }
    hooks.dedup();
    Ok((links, hooks))
}
