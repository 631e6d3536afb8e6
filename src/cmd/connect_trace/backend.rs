//! Loads and attaches the first backend that works.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow, ensure};
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{ErrorKind, Link, OpenObject, ProgramMut};

use super::pending::Pending;
use crate::attach::load;
use crate::cli::{BackendChoice, ConnectBy, ConnectTraceArgs};
use crate::domain::histogram::HistogramBy;
use crate::failure::Failure;
use crate::host::kernel;
use crate::host::kernel_symbols;
use crate::host::kernel_types::KernelTypes;
use crate::host::netns;
use crate::host::privileges::{self, Lockdown};
use crate::notice::Notices;
use crate::run::events::BufferKind;
use crate::run::export::Purpose;
use crate::skel::connect_trace::{
    ConnectTraceSkel, ConnectTraceSkelBuilder, OpenConnectTraceMaps, OpenConnectTraceProgs,
};
use crate::skel::{ConnectCounters, ConnectHistogramBy, ConnectKind, ProcessFilter};
use crate::sys::{link, perf_event, tiny};

/// The most attempts without a fate at a time, where there is no socket storage for more.
const WAITING_MAX: u32 = 16_384;

/// The most attempts without a fate in the hash map, where there is socket storage for more. Socket
/// storage takes three times as long.
const CHEAP_MAX: u32 = 2_048;

/// The most connections that are followed to their end at a time.
const OPEN_MAX: u32 = 65_536;

/// The tracepoint of TCP state changes.
const STATE_EVENT: &str = "sock/inet_sock_set_state";

/// The most loads that [`Plan::next`] leads to: each backend can be tried again without socket
/// storage, without the perf event of the tracepoint, and, except kprobe, without
/// bpf_probe_read_kernel().
pub(in crate::cmd) const LOADS_MAX: usize = 12;

/// The ways to hook connection attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// fentry and fexit on the connect functions.
    Fentry,
    /// kprobe and kretprobe on the connect functions.
    Kprobe,
    /// Only the tracepoint inet_sock_set_state.
    Tracepoint,
}

impl Backend {
    /// The name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

impl From<Backend> for BackendChoice {
    fn from(backend: Backend) -> Self {
        match backend {
            Backend::Fentry => Self::Fentry,
            Backend::Kprobe => Self::Kprobe,
            Backend::Tracepoint => Self::Tracepoint,
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
pub(in crate::cmd) struct Tracer<'obj> {
    pub(in crate::cmd) backend: Backend,
    pub(in crate::cmd) skel: ConnectTraceSkel<'obj>,
    pub(super) links: Vec<Link>,
    pub(in crate::cmd) hooks: Vec<&'static str>,
    /// `None` before Linux 5.9, which lacks the iterators.
    pub(super) pending: Option<Pending>,
    /// Connections are kept in socket storage.
    pub(super) storage: bool,
    /// Runs for state changes that the kernel skipped before the stand-in was attached, and so
    /// before the run.
    skipped_before: u64,
}

/// The programs, maps and features of one attempt to load a backend.
#[derive(Clone, Copy, Debug)]
struct Plan {
    backend: Backend,
    /// The kernel has tcp_v6_connect().
    ipv6: bool,
    /// The hook for accepted connections.
    accept: Accept,
    /// bpf_probe_read_kernel() is allowed.
    may_probe_read: bool,
    /// State changes are handled at the perf event of the tracepoint.
    by_perf_event: bool,
    /// Connections are kept in socket storage.
    storage: bool,
    /// Iterators find attempts without a fate at the start and the end.
    pending: bool,
}

/// The hook for accepted connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accept {
    /// None: accepts are not wanted, or count when the incoming connection is established.
    Unhooked,
    /// fexit on inet_csk_accept() with four arguments, before Linux 6.10.
    FourArguments,
    /// fexit on inet_csk_accept() with two arguments.
    TwoArguments,
    /// kretprobe on inet_csk_accept().
    Kretprobe,
}

impl Plan {
    /// What to try with the same backend when this plan has failed, because the kernel called a program
    /// invalid or for another reason.
    fn next(self, is_invalid: bool, has_state_event: bool) -> Option<Self> {
        if self.by_perf_event {
            // The perf event exists, but the kernel may refuse to open it.
            Some(Self {
                by_perf_event: false,
                ..self
            })
        } else if self.storage && !(self.may_probe_read && is_invalid) {
            Some(Self {
                storage: false,
                may_probe_read: true,
                by_perf_event: has_state_event,
                ..self
            })
        } else if self.backend != Backend::Kprobe && self.may_probe_read && is_invalid {
            // lockdown=confidentiality forbids it, but allows reads by BTF pointers.
            Some(Self {
                may_probe_read: false,
                ..self
            })
        } else {
            None
        }
    }
}

/// What the running kernel supports.
struct Support {
    version: (u32, u32),
    types: KernelTypes,
    /// Its type information has tcp_v6_connect().
    has_ipv6: bool,
    /// State changes can be handled at the perf event of the tracepoint.
    has_state_event: bool,
    /// Connections can be kept in socket storage.
    has_storage: bool,
    /// It has the iterators that find attempts without a fate.
    has_iterators: bool,
}

impl Support {
    fn look(notices: Notices) -> Result<Self, Failure> {
        let types = load::kernel_types(super::NAME)?;
        let [has_ipv6, storage_helper, file_iterator, map_iterator] = types
            .functions([
                "tcp_v6_connect",
                "bpf_sk_storage_get_tracing",
                "bpf_iter_task_file",
                "bpf_iter_bpf_map_elem",
            ])?
            .map(|function| function.is_some());
        let version = kernel::version().unwrap_or_default();
        let state_event = find_state_event(version, &types);
        if let Err(error) = &state_event {
            notices.detail(&format!(
                "the perf event of {STATE_EVENT} is not used: {error:#}"
            ));
        }
        let has_state_event = state_event.is_ok();
        Ok(Self {
            version,
            types,
            has_ipv6,
            has_state_event,
            // Perf event programs can't use socket storage.
            has_storage: storage_helper && !(version >= (7, 0) && has_state_event),
            has_iterators: file_iterator && map_iterator,
        })
    }

    /// What to try first with a backend.
    fn plan(&self, backend: Backend, args: &ConnectTraceArgs, purpose: Purpose) -> Result<Plan> {
        let is_kprobe = backend == Backend::Kprobe;
        let storage = !is_kprobe && self.has_storage;
        let exports = purpose == Purpose::Export;
        Ok(Plan {
            backend,
            // pahole may leave a function out of BTF; a kprobe finds it by its name all the same.
            ipv6: self.has_ipv6 || is_kprobe && kernel_symbols::is_listed("tcp_v6_connect"),
            // To count them, it is enough that incoming connections are established.
            accept: accept_hook(backend, args.accept && !exports, &self.types)?,
            may_probe_read: true,
            by_perf_event: !storage && self.has_state_event,
            storage,
            pending: self.has_iterators && !exports,
        })
    }

    /// Reports what can't be seen with a plan.
    fn say_what_is_missing(&self, plan: Plan, wants_accepts: bool, notices: Notices) {
        if plan.backend != Backend::Tracepoint && !plan.ipv6 {
            notices.notice("tcp_v6_connect can't be hooked in this kernel: IPv6 is seen by the state tracepoint alone");
        }
        if self.version >= (7, 0) && !plan.by_perf_event {
            notices.notice("a task can be preempted in a program at the tracepoint: what other tasks on that CPU do then may be reported twice, or counted as lost; -v says why the perf event of the tracepoint is not used");
        }
        if wants_accepts && plan.accept == Accept::Unhooked {
            notices.notice("this backend sees incoming connections as they are established, without the process that will accept them");
        }
    }
}

/// Loads and attaches the first backend that works.
pub(in crate::cmd) fn choose<'obj>(
    args: &ConnectTraceArgs,
    purpose: Purpose,
    storage: &'obj mut [MaybeUninit<OpenObject>],
    notices: Notices,
) -> Result<Tracer<'obj>, Failure> {
    let support = Support::look(notices)?;
    let mut storage = storage.iter_mut();
    let mut last = None;
    for backend in candidates(args.backend) {
        if let Err(failure) = try_cheaply(*backend, &support.types) {
            notices.detail(&format!("{:#}", failure.error));
            last = Some(failure);
            continue;
        }
        let mut next = Some(support.plan(*backend, args, purpose)?);
        while let Some(plan) = next {
            let storage = storage.next().context("too many attempts to attach")?;
            match Tracer::attach(plan, args, purpose, storage) {
                Ok(tracer) => {
                    let wants_accepts = args.accept && purpose != Purpose::Export;
                    support.say_what_is_missing(plan, wants_accepts, notices);
                    return Ok(tracer);
                }
                Err(failure) => {
                    notices.detail(&format!(
                        "backend {} can't be used: {:#}",
                        backend.name(),
                        failure.error
                    ));
                    next = plan.next(is_invalid(&failure), support.has_state_event);
                    last = Some(failure);
                }
            }
        }
    }
    Err(last.context("there is no backend to try")?)
}

/// Checks that state changes can be handled at the perf event of the tracepoint. tracefs may be
/// missing or only for root, and the kernel may not show bpf_prog_active to programs.
fn find_state_event(kernel: (u32, u32), types: &KernelTypes) -> Result<()> {
    ensure!(kernel >= (6, 7), "Linux counts what is skipped since 6.7");
    perf_event::id(STATE_EVENT)?;
    let flag = types
        .variable("bpf_prog_active")?
        .context("the kernel's BTF lacks bpf_prog_active")?;
    tiny::try_variable(flag).context("the kernel hides bpf_prog_active")
}

const OTHER_BACKEND: &str = "--backend auto takes one that works";

/// Checks cheaply what would fail anyway, before maps are created and programs verified.
fn try_cheaply(backend: Backend, types: &KernelTypes) -> Result<(), Failure> {
    let what = format!("failed to use backend {}", backend.name());
    match backend {
        Backend::Fentry => {
            let Some(function) = types.function("tcp_v4_connect")? else {
                return Err(anyhow!("this kernel has no tcp_v4_connect")
                    .context(what)
                    .into());
            };
            tiny::try_fentry(function).map_err(|error| match error.kind() {
                std::io::ErrorKind::PermissionDenied => load::refused(&what, error.into()),
                std::io::ErrorKind::Unsupported => {
                    Failure::from(anyhow::Error::new(error).context(what)).hint(OTHER_BACKEND)
                }
                _ => anyhow::Error::new(error).context(what).into(),
            })
        }
        // If privileges are missing, report those first.
        Backend::Kprobe if privileges::missing().is_empty() && !kernel::has_kprobes() => {
            let why = anyhow!("this kernel has no kprobes (CONFIG_KPROBES)");
            Err(Failure::from(why.context(what)).hint(OTHER_BACKEND))
        }
        Backend::Kprobe | Backend::Tracepoint => Ok(()),
    }
}

fn is_invalid(failure: &Failure) -> bool {
    failure
        .error
        .downcast_ref::<libbpf_rs::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::InvalidInput)
}

/// The hook for `--accept`. BTF has the number of arguments of inet_csk_accept().
fn accept_hook(backend: Backend, is_wanted: bool, types: &KernelTypes) -> Result<Accept> {
    Ok(match (is_wanted, backend) {
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
        purpose: Purpose,
        storage: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self, Failure> {
        let (mut open, types) =
            load::open::<ConnectTraceSkelBuilder>(crate::skel::connect_trace::TYPES, storage)?;
        configure(plan, args, purpose, &mut open.maps)?;
        let is_filtered = args.addresses.filter().configure(&mut open)?;
        let remembers_rejected = args.close && is_filtered && !plan.storage;
        open.maps.rejected.set_autocreate(remembers_rejected)?;
        select_programs(plan, &mut open.progs);
        let skel = open.load().map_err(|error| not_loaded(plan, error))?;
        types.close();
        let maps = &skel.maps;
        let counters = maps.bss_data.as_ref();
        counters.context("the programs have no counters")?;
        let processes = args.processes.rules();
        processes.fill([&maps.pids, &maps.uids, &maps.comms])?;
        args.addresses.filter().fill(&skel)?;
        let (links, hooks) = attach_programs(plan, &skel)?;
        let skipped_before = skipped(&[&skel.progs.on_state_change]);
        let pending = plan
            .pending
            .then(|| Pending::open(plan.storage, &skel))
            .transpose()
            .context("failed to make iterators over pending attempts")?;
        Ok(Self {
            backend: plan.backend,
            skel,
            links,
            hooks,
            pending,
            storage: plan.storage,
            skipped_before,
        })
    }

    /// Calls, accepts and state changes for which the kernel skipped the programs. Whether they match
    /// is unknown.
    pub(in crate::cmd) fn unseen(&self, counters: &ConnectCounters, unhooked: u64) -> u64 {
        let progs = &self.skel.progs;
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
        accepts
            + changes.saturating_sub(self.skipped_before + counters.nested)
            + calls.saturating_sub(unhooked)
    }
}

/// The failure to load the programs of a plan.
fn not_loaded(plan: Plan, error: libbpf_rs::Error) -> Failure {
    let what = format!(
        "failed to load the connect-trace program (backend {})",
        plan.backend.name()
    );
    let failure = load::failure(&what, error);
    match Lockdown::now() {
        // Lockdown makes the kernel refuse kprobe programs as invalid.
        Some(mode) if plan.backend == Backend::Kprobe && is_invalid(&failure) => failure.hint(
            format!("lockdown is {mode}; the fentry and tracepoint backends do not need that"),
        ),
        _ => failure,
    }
}

/// Sets what plan and options ask for.
fn configure(
    plan: Plan,
    args: &ConnectTraceArgs,
    purpose: Purpose,
    maps: &mut OpenConnectTraceMaps<'_>,
) -> Result<()> {
    let rodata = maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the programs have no settings")?;
    rodata.wanted_kinds = wanted_kinds(args);
    rodata.max_rate = args.max_rate.unwrap_or(0);
    rodata.exporting = purpose == Purpose::Export;
    if rodata.exporting || args.netns.is_given() {
        rodata.wanted_netns = u32::try_from(netns::own()?)?;
    }
    rodata.histogram_by = histogram_by(args).1;
    rodata.accept_is_hooked = plan.accept != Accept::Unhooked;
    rodata.may_probe_read = plan.may_probe_read;
    rodata.use_storage = plan.storage;
    rodata.ipv4_is_hooked = plan.backend != Backend::Tracepoint;
    rodata.ipv6_is_hooked = plan.backend != Backend::Tracepoint && plan.ipv6;
    rodata.use_perf_buffer = purpose == Purpose::Report(BufferKind::Perf);
    let sets = [&mut maps.pids, &mut maps.uids, &mut maps.comms];
    rodata.process_filter = ProcessFilter(args.processes.rules().size(sets)?);
    configure_maps(plan, args, purpose, maps)
}

/// Sets the sizes of maps, and creates only those that are used.
fn configure_maps(
    plan: Plan,
    args: &ConnectTraceArgs,
    purpose: Purpose,
    maps: &mut OpenConnectTraceMaps<'_>,
) -> Result<()> {
    purpose.configure(
        &args.buffer,
        [&mut maps.export_counts, &mut maps.export_times],
        [&mut maps.ring, &mut maps.perf],
    )?;
    maps.histograms.set_autocreate(args.histogram.is_some())?;
    maps.stored.set_autocreate(plan.storage)?;
    maps.connections.set_max_entries(match plan.storage {
        true => CHEAP_MAX,
        false if args.close => OPEN_MAX,
        false => WAITING_MAX,
    })?;
    maps.calls.set_autocreate(plan.backend == Backend::Kprobe)?;
    maps.handler.set_autocreate(!plan.by_perf_event)?;
    Ok(())
}

/// The key of `--histogram`, for decoding and for the programs.
pub(super) fn histogram_by(args: &ConnectTraceArgs) -> (HistogramBy, ConnectHistogramBy) {
    match (args.histogram, args.by) {
        (None, _) => (
            HistogramBy::Nothing,
            ConnectHistogramBy::CONNECT_NO_HISTOGRAM,
        ),
        (_, None) => (HistogramBy::Nothing, ConnectHistogramBy::CONNECT_BY_NOTHING),
        (_, Some(ConnectBy::Process)) => {
            (HistogramBy::Process, ConnectHistogramBy::CONNECT_BY_PROCESS)
        }
        (_, Some(ConnectBy::Daddr)) => (HistogramBy::Daddr, ConnectHistogramBy::CONNECT_BY_DADDR),
        (_, Some(ConnectBy::Dport)) => (HistogramBy::Dport, ConnectHistogramBy::CONNECT_BY_DPORT),
    }
}

fn wanted_kinds(args: &ConnectTraceArgs) -> u32 {
    if args.histogram.is_some() {
        return 1 << ConnectKind::CONNECT_ESTABLISHED.0;
    }
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

/// Loads only the programs that the plan needs.
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
        (&mut progs.on_skipped_state_change, !plan.by_perf_event),
        (&mut progs.handle_state_change, !plan.by_perf_event),
        (&mut progs.on_state_event, plan.by_perf_event),
        (&mut progs.on_skipped_state_event, plan.by_perf_event),
        (&mut progs.find_pending, plan.pending),
        (&mut progs.report_pending_in_table, plan.pending),
        (
            &mut progs.report_pending_in_storage,
            plan.pending && plan.storage,
        ),
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

/// Attaches what was loaded. The state tracepoint is last, so that the other hooks have seen
/// whatever it sees.
fn attach_programs(
    plan: Plan,
    skel: &ConnectTraceSkel<'_>,
) -> Result<(Vec<Link>, Vec<&'static str>), Failure> {
    let progs = &skel.progs;
    let calls = [
        ("fexit tcp_v4_connect", &progs.exit_tcp_v4_connect),
        ("fentry tcp_v4_connect", &progs.enter_tcp_v4_connect),
        ("fexit tcp_v6_connect", &progs.exit_tcp_v6_connect),
        ("fentry tcp_v6_connect", &progs.enter_tcp_v6_connect),
        ("kretprobe tcp_v4_connect", &progs.kretprobe_tcp_v4_connect),
        ("kprobe tcp_v4_connect", &progs.kprobe_tcp_v4_connect),
        ("kretprobe tcp_v6_connect", &progs.kretprobe_tcp_v6_connect),
        ("kprobe tcp_v6_connect", &progs.kprobe_tcp_v6_connect),
        ("fexit inet_csk_accept", &progs.exit_accept_4),
        ("fexit inet_csk_accept", &progs.exit_accept_2),
        ("kretprobe inet_csk_accept", &progs.kretprobe_accept),
    ];
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
    for (hook, program) in calls.into_iter().filter(|(_, program)| program.autoload()) {
        keep(hook, program.attach())?;
    }
    let hook = "tracepoint inet_sock_set_state";
    if plan.by_perf_event {
        keep(hook, progs.on_skipped_state_event.attach())?;
        keep(hook, perf_event::attach(&progs.on_state_event, STATE_EVENT))?;
    } else {
        load::set_handler(&skel.maps.handler, &progs.handle_state_change)?;
        keep(hook, progs.on_state_change.attach())?;
        keep(hook, progs.on_skipped_state_change.attach())?;
    }
    hooks.dedup();
    Ok((links, hooks))
}

/// How often the kernel skipped those of the programs that are loaded.
fn skipped(programs: &[&ProgramMut<'_>]) -> u64 {
    let programs = programs.iter().filter(|program| program.autoload());
    programs
        .map(|program| link::skipped_runs(program.as_fd()))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The most loads of a backend from this plan on, whatever the kernel says.
    fn loads(plan: Plan, has_state_event: bool) -> usize {
        let next = [false, true].map(|is_invalid| plan.next(is_invalid, has_state_event));
        let rest = next.into_iter().flatten();
        let rest = rest.map(|plan| loads(plan, has_state_event));
        1 + rest.max().unwrap_or(0)
    }

    #[test]
    fn there_is_room_for_the_most_loads_and_no_more() {
        let most = candidates(BackendChoice::Auto).iter().map(|backend| {
            let first = |storage: bool, has_state_event: bool| {
                let plan = Plan {
                    backend: *backend,
                    ipv6: true,
                    accept: Accept::Unhooked,
                    may_probe_read: true,
                    by_perf_event: !storage && has_state_event,
                    storage,
                    pending: true,
                };
                loads(plan, has_state_event)
            };
            let has_storage = *backend != Backend::Kprobe;
            [false, true]
                .map(|has_event| first(has_storage, has_event).max(first(false, has_event)))
        });
        let [without, with] = most.fold([0, 0], |sum, most| [sum[0] + most[0], sum[1] + most[1]]);
        assert_eq!(without.max(with), LOADS_MAX);
    }
}
