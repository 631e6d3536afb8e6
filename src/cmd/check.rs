//! `check`: what this kernel and these privileges allow, and what each command would use. It finds
//! out by loading and attaching the programs of the commands, and removes them at once.

use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use caps::Capability;
use clap::ValueEnum;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{ErrorKind, MapType, OpenObject};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::utsname::uname;
use nix::unistd::{SysconfVar, sysconf};

use super::accept_trace::{self, Rehearsed};
use super::connect_trace;
use super::connect_trace::Backend;
use super::exporter;
use super::flows::{self, Flows};
use super::listeners;
use super::loss_trace;
use super::port_monitor::PortMonitor;
use super::syn_count::SynCount;
use crate::attach::{Attached, load, xdp};
use crate::cli::{
    BackendChoice, BufferChoice, CheckArgs, CollectorChoice, ConnectTraceArgs, CountMode, RunArgs,
    SynCountArgs, defaults,
};
use crate::domain::finding::{CheckKind, Finding};
use crate::failure::{Exit, Failure};
use crate::filter::expr::Expression;
use crate::host::features::supports_native_xdp;
use crate::host::interfaces::{Interface, resolve};
use crate::host::kernel;
use crate::host::kernel_types::KernelTypes;
use crate::host::privileges;
use crate::notice::Notices;
use crate::output::check::FindingLayout;
use crate::output::summary::{NoEvents, Summary};
use crate::run::events::BufferKind;
use crate::run::packet::{self, PacketCommand};
use crate::run::session::Session;
use crate::skel::flows::FlowsSkelBuilder;
use crate::skel::loss_trace::LossTraceSkelBuilder;
use crate::skel::port_monitor::PortMonitorSkelBuilder;
use crate::stop::ExitReason;
use crate::sys::key_tables::Size;

/// Runs the command.
///
/// # Errors
/// A command can't run here, or the output can't be written.
pub fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let layout = FindingLayout::of(&args.output.columns)?;
    let expression = args.filter.as_deref().map(Expression::new).transpose()?;
    let mut session = Session::new(&RunArgs {
        output: args.output.clone(),
        ..RunArgs::default()
    })?;
    let findings = match &expression {
        Some(expression) => explain(expression),
        None => find_out(session.notices)?,
    };
    let duration = session.stop.elapsed();
    privileges::drop_all()?;
    session.stop.start();

    session.text_header(|out, clock| layout.header(out, clock));
    for finding in &findings {
        let at = session.clock.now();
        session.write(at, &(&layout, finding));
    }
    finish(&mut session, &findings, duration)
}

/// Describes the filter that an expression was compiled to.
fn explain(expression: &Expression) -> Vec<Finding> {
    let described = expression.describe().into_iter();
    described
        .map(|(name, text)| Finding {
            kind: CheckKind::Filter,
            name,
            ok: Some(true),
            uses: Some(text),
            detail: None,
        })
        .collect()
}

fn finish(
    session: &mut Session,
    findings: &[Finding],
    duration: Duration,
) -> Result<Exit, Failure> {
    session.flush();
    if !session.is_over() {
        session.end(ExitReason::Done);
    }
    let commands = findings
        .iter()
        .filter(|finding| finding.kind == CheckKind::Command);
    let all = commands.clone().count();
    let unable = commands
        .filter(|command| command.ok == Some(false))
        .map(|command| command.name)
        .collect::<Vec<_>>();
    let matched = findings.len() as u64;
    let summary = Summary {
        duration_s: duration.as_secs_f64(),
        lost: matched - session.sink.written(),
        no_events: Some(NoEvents::Commands {
            able: all - unable.len(),
            all,
        }),
        ..session.summary("check", matched, 0, 0)
    };
    session.finish(&summary)?;
    if unable.is_empty() {
        return Ok(Exit::Success);
    }
    let failure = Failure::from(anyhow!("can't run here: {}", unable.join(", ")));
    Err(failure.hint(if privileges::missing().is_empty() {
        "the lines above say why"
    } else {
        privileges::HOW_TO_GET
    }))
}

/// The findings so far.
#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
}

/// What a command would use, with a remark if there is one; or why it can't run.
type Answer = Result<(String, Detail), String>;

type Detail = Option<String>;

impl Report {
    fn add(&mut self, kind: CheckKind, name: &'static str, ok: Option<bool>, detail: Detail) {
        self.findings.push(Finding {
            kind,
            name,
            ok,
            uses: None,
            detail,
        });
    }

    fn feature(&mut self, name: &'static str, ok: Option<bool>, detail: Detail) {
        self.add(CheckKind::Feature, name, ok, detail);
    }

    fn command(&mut self, name: &'static str, answer: Answer) {
        let (ok, uses, detail) = match answer {
            Ok((uses, detail)) => (true, Some(uses), detail),
            Err(why) => (false, None, Some(why)),
        };
        self.findings.push(Finding {
            kind: CheckKind::Command,
            name,
            ok: Some(ok),
            uses,
            detail,
        });
    }
}

fn find_out(notices: Notices) -> Result<Vec<Finding>, Failure> {
    let mut report = Report::default();
    for (name, held) in privileges::needed() {
        let detail = (!held).then(|| "missing".to_owned());
        report.add(CheckKind::Privilege, name, Some(held), detail);
    }
    for (name, meaning) in privileges::limits() {
        report.add(CheckKind::Limit, name, Some(false), Some(meaning));
    }
    look_at_kernel(&mut report)?;
    let interface = default_interface();
    if let Ok(interface) = &interface {
        look_at_native_xdp(&mut report, interface);
    }
    let trials = try_apart(notices)?;
    let backends = try_backends(notices)?;
    report_trials(&mut report, &trials, &backends);
    report_commands(&mut report, &interface, trials, &backends, notices);
    Ok(report.findings)
}

fn look_at_native_xdp(report: &mut Report, interface: &Interface) {
    let (offer, what) = match supports_native_xdp(interface) {
        Ok(Some(true)) => (Some(true), "supports native XDP".to_owned()),
        Ok(Some(false)) => (Some(false), "does not support native XDP".to_owned()),
        Ok(None) => (
            None,
            "does not report whether it supports native XDP".to_owned(),
        ),
        Err(error) => (
            None,
            format!("can't be asked whether it supports native XDP ({error:#})"),
        ),
    };
    let mut why = format!("the driver of {} {what}", interface.name);
    if offer != Some(false) {
        why += "; not tried, because some drivers reset the link for it and veth turns offloads off; --mode native uses it, and saves building an skb for each packet";
    }
    report.feature("xdp_native", offer, Some(why));
}

/// Reports the features of the kernel that trying its hooks has shown.
fn report_trials(report: &mut Report, trials: &Trials, backends: &[(Backend, Option<String>)]) {
    report.feature("xdp_generic", trials.xdp.ok(), Some(trials.xdp.detail()));
    report.feature("xdp_frags", trials.frags, None);
    report.feature("tc", trials.tc.ok(), Some(trials.tc.detail()));
    for (backend, why) in backends {
        let name = match backend {
            Backend::Fentry => "fentry",
            Backend::Kprobe => "kprobe",
            Backend::Tracepoint => "tp_btf",
        };
        report.feature(name, Some(why.is_none()), why.clone());
    }
    if let Ok(accept) = &trials.accept {
        let why = (!accept.has_reasons)
            .then(|| "accept-trace shows the kernel function instead".to_owned());
        report.feature("drop_reasons", Some(accept.has_reasons), why);
        let why = (!accept.has_places).then(|| {
            "/proc/kallsyms shows no addresses (kernel.kptr_restrict, CAP_SYSLOG)".to_owned()
        });
        report.feature("symbols", Some(accept.has_places), why);
    }
}

/// Reports what each command would use.
fn report_commands(
    report: &mut Report,
    interface: &Result<Interface, String>,
    trials: Trials,
    backends: &[(Backend, Option<String>)],
    notices: Notices,
) {
    let buffer = BufferKind::choose(BufferChoice::Auto).name();
    let syn_count = match (interface, trials.xdp) {
        (_, Trial::Refused(why)) => Err(why),
        (Err(why), _) => Err(why.clone()),
        (Ok(interface), _) => syn_count_answer(interface),
    };
    let listeners = listeners::rehearse(notices).map_err(|error| format!("{error:#}"));
    let port_monitor = port_monitor_answer(interface, &trials.tc, buffer);
    let connect = connect_trace_answer(backends, buffer);
    let accept = accept_trace_answer(interface, trials.accept, buffer);
    let loss = trials.loss;
    // The exporter uses the hooks of the other commands, and at interfaces only TC.
    let exporter = exporter_answer(|collector| match collector {
        CollectorChoice::Syn => port_monitor.is_ok(),
        CollectorChoice::Listeners => listeners.is_ok(),
        CollectorChoice::Accept => accept.is_ok(),
        CollectorChoice::Loss => loss.is_ok(),
        CollectorChoice::Connect | CollectorChoice::Flows => connect.is_ok(),
    });
    report.command(SynCount::NAME, syn_count);
    report.command(listeners::NAME, listeners);
    report.command(PortMonitor::NAME, port_monitor);
    report.command(Flows::NAME, flows_answer(interface, &trials.flows, buffer));
    report.command(connect_trace::NAME, connect);
    report.command(accept_trace::NAME, accept);
    report.command(loss_trace::NAME, loss);
    report.command(exporter::NAME, exporter);
}

fn exporter_answer(can_run: impl Fn(CollectorChoice) -> bool) -> Answer {
    let (able, unable) = CollectorChoice::value_variants()
        .iter()
        .partition::<Vec<_>, _>(|collector| can_run(**collector));
    let names = |list: &[CollectorChoice]| {
        let names = list.iter().map(|collector| collector.name());
        names.collect::<Vec<_>>().join(", ")
    };
    let why = (!unable.is_empty()).then(|| format!("without {}", names(&unable)));
    match able.is_empty() || !privileges::missing().is_empty() {
        true => Err("the commands above say why".to_owned()),
        false => Ok((format!("collectors {}", names(&able)), why)),
    }
}

fn look_at_kernel(report: &mut Report) -> Result<()> {
    let kernel = uname().context("failed to read the kernel's name")?;
    let release = format!(
        "{} {}",
        kernel.release().to_string_lossy(),
        kernel.machine().to_string_lossy()
    );
    report.feature("kernel", Some(true), Some(release));
    let types = KernelTypes::load();
    let why = types.as_ref().err().map(|error| format!("{error:#}"));
    report.feature("btf", Some(types.is_ok()), why);
    let (has_ring, why) = match MapType::RingBuf.is_supported() {
        Ok(true) => (Some(true), None),
        Ok(false) if privileges::missing().contains(&Capability::CAP_BPF) => {
            (None, Some("can't be tried without CAP_BPF".to_owned()))
        }
        Ok(false) => (
            Some(false),
            Some("a perf event array is used instead".to_owned()),
        ),
        Err(error) => (None, Some(error.to_string())),
    };
    report.feature("ring_buffer", has_ring, why);
    match look_at_cpus() {
        Ok(found) => report.feature("cpus", Some(true), Some(found)),
        Err(error) => report.feature("cpus", Some(false), Some(format!("{error:#}"))),
    }
    Ok(())
}

/// CPUs and NUMA nodes, and the memory that grows with the CPUs that the kernel considers possible,
/// which may be many more than are present.
fn look_at_cpus() -> Result<String> {
    let possible = load::possible_cpus()?;
    let online =
        sysconf(SysconfVar::_NPROCESSORS_ONLN)?.context("the number of CPUs online is unknown")?;
    let kib = |bytes: usize| bytes.div_ceil(1024);
    let [mut first, mut second, mut third] = [const { MaybeUninit::uninit() }; 3];
    let monitor = per_cpu_memory(PortMonitorSkelBuilder::default(), &mut first)?;
    let flows = per_cpu_memory(FlowsSkelBuilder::default(), &mut second)?;
    let loss = per_cpu_memory(LossTraceSkelBuilder::default(), &mut third)?;
    let memory = [
        ("port-monitor", monitor),
        ("flows", flows),
        ("loss-trace", loss),
        (
            "--by",
            Size::of(load::packet_slots()?).bytes() / possible.max(1),
        ),
    ];
    let memory = memory.map(|(name, bytes)| format!("{name} {} KiB", kib(bytes)));
    Ok(format!(
        "{possible} possible, {online} online{}; memory per possible CPU: {}",
        kernel::numa_nodes().map_or(String::new(), |nodes| format!(", NUMA nodes: {nodes}")),
        memory.join(", "),
    ))
}

/// Bytes that each possible CPU has to itself in the maps of some programs.
fn per_cpu_memory<'obj>(
    builder: impl SkelBuilder<'obj>,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> Result<usize> {
    let open = builder.open(storage)?;
    let maps = open.open_object().maps();
    let per_cpu = maps.filter(|map| map.map_type().is_percpu());
    let bytes = per_cpu.map(|map| map.value_size() as usize * map.max_entries() as usize);
    Ok(bytes.sum())
}

/// The interface that packet commands watch if none is named.
fn default_interface() -> Result<Interface, String> {
    let interface = resolve(&[])
        .map_err(|error| error.to_string())?
        .pop()
        .ok_or("there is no interface")?;
    match interface.unreadable_frames() {
        Some(frames) => Err(format!("frames of {} are {frames}", interface.name)),
        None => Ok(interface),
    }
}

/// The result of trying a hook.
enum Trial {
    /// The program was attached to this hook.
    Attached(String),
    /// The program was loaded; why it was not attached.
    Loaded(&'static str),
    /// Why it does not work.
    Refused(String),
}

impl Trial {
    fn new(outcome: Result<Option<String>, Failure>, no_interface: Option<&'static str>) -> Self {
        match outcome {
            Ok(Some(hook)) => Self::Attached(hook),
            Ok(None) => Self::Loaded(no_interface.unwrap_or("attaching was not tried")),
            Err(failure) => Self::Refused(why_not(&failure)),
        }
    }

    fn ok(&self) -> Option<bool> {
        match self {
            Self::Attached(_) => Some(true),
            Self::Loaded(_) => None,
            Self::Refused(_) => Some(false),
        }
    }

    fn detail(&self) -> String {
        match self {
            Self::Attached(hook) => format!("{hook} on lo, in a network namespace made to try it"),
            Self::Loaded(why) => format!("the program loads; {why}"),
            Self::Refused(why) => why.clone(),
        }
    }
}

/// The results of trying hooks on a temporary interface.
struct Trials {
    xdp: Trial,
    /// Whether multi-buffer XDP (xdp.frags) works.
    frags: Option<bool>,
    tc: Trial,
    flows: Trial,
    accept: Result<Rehearsed, String>,
    loss: Answer,
}

/// Attaches to `lo` in a temporary network namespace, which ends with its thread.
fn try_apart(notices: Notices) -> Result<Trials, Failure> {
    let attempt = || -> Result<Trials, Failure> {
        let (lo, no_interface) = match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => (resolve(&["lo".to_owned()])?.pop(), None),
            Err(Errno::EPERM) => (
                None,
                Some(
                    "not attached: trying it needs a temporary network namespace, and so CAP_SYS_ADMIN",
                ),
            ),
            Err(_) => (
                None,
                Some("not attached: no network namespace could be made to try it in"),
            ),
        };
        let mut args = defaults::<SynCountArgs>()?;
        args.mode = CountMode::Generic;
        let xdp = packet::rehearse(&SynCount::new(&args)?, lo.as_ref(), notices);
        let frags = xdp.is_ok().then(kernel::knows_xdp_frags);
        let args = defaults()?;
        let tc = packet::rehearse(&PortMonitor::new(&args)?, lo.as_ref(), notices);
        let args = defaults()?;
        let flows = packet::rehearse(&Flows::new(&args)?, lo.as_ref(), notices);
        let args = defaults()?;
        let accept = accept_trace::rehearse(&args, lo.as_ref(), notices);
        let accept = accept.map_err(|failure| why_not(&failure));
        let args = defaults()?;
        let loss = loss_trace::rehearse(&args, lo.as_ref());
        let loss = loss.map_err(|failure| why_not(&failure));
        let kind = |attached: Attached| attached.hooks().first().map(|hook| hook.kind().to_owned());
        let name = |attached: Attached| attached.hooks().first().map(|hook| hook.name.clone());
        Ok(Trials {
            xdp: Trial::new(xdp.map(name), no_interface),
            frags,
            tc: Trial::new(tc.map(name), no_interface),
            flows: Trial::new(flows.map(kind), no_interface),
            accept,
            loss,
        })
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(attempt);
        thread
            .join()
            .map_err(|_| anyhow!("the thread that tries hooks ended early"))?
    })
}

/// Tries each backend, and returns why it can't be used. This affects the whole system for some
/// milliseconds, because tracing can't be limited to a part of it.
fn try_backends(notices: Notices) -> Result<Vec<(Backend, Option<String>)>> {
    let mut answers = Vec::new();
    for backend in connect_trace::candidates(BackendChoice::Auto) {
        let mut args = defaults::<ConnectTraceArgs>()?;
        args.backend = (*backend).into();
        let why = connect_trace::rehearse(&args, notices)
            .err()
            .map(|failure| why_not(&failure));
        answers.push((*backend, why));
    }
    Ok(answers)
}

/// The answer for port-monitor, which attaches to TC ingress.
fn port_monitor_answer(
    interface: &Result<Interface, String>,
    trial: &Trial,
    buffer: &str,
) -> Answer {
    match (interface, trial) {
        (_, Trial::Refused(why)) | (Err(why), _) => Err(why.clone()),
        (Ok(interface), Trial::Attached(hook)) => {
            Ok((format!("{hook} on {}, {buffer}", interface.name), None))
        }
        (Ok(interface), Trial::Loaded(why)) => Ok((
            format!("tc ingress on {}, {buffer}", interface.name),
            Some((*why).to_owned()),
        )),
    }
}

/// The answer for flows. Its programs were attached to a loopback device, which needs fewer hooks
/// than other interfaces.
fn flows_answer(interface: &Result<Interface, String>, flows: &Trial, buffer: &str) -> Answer {
    let interface = interface.as_ref().map_err(Clone::clone)?;
    let (kind, why) = match flows {
        Trial::Refused(why) => return Err(why.clone()),
        Trial::Loaded(why) => (None, Some((*why).to_owned())),
        Trial::Attached(kind) => (Some(kind), None),
    };
    let places = flows::directions(interface)
        .iter()
        .map(|direction| match kind {
            Some(kind) => format!("tc {direction} ({kind}) on {}", interface.name),
            None => format!("tc {direction} on {}", interface.name),
        })
        .collect::<Vec<_>>();
    Ok((format!("{}, {buffer}", places.join(", ")), why))
}

/// The answer for accept-trace, with what it can't show on this kernel.
fn accept_trace_answer(
    interface: &Result<Interface, String>,
    accept: Result<Rehearsed, String>,
    buffer: &str,
) -> Answer {
    let (interface, accept) = (interface.as_ref().map_err(Clone::clone)?, accept?);
    // Without privileges there was no interface to try it on, and nothing was loaded.
    if !privileges::missing().is_empty() {
        return Err(missing());
    }
    let uses = format!(
        "tc egress and ingress on {}, {}, {buffer}",
        interface.name,
        accept.hook.with_tracepoints().join(", ")
    );
    let mut limits = Vec::new();
    if !accept.has_reasons {
        limits.push(
            "the kernel gives no reasons: checksum, TTL, socket filter and MD5 drops look alike",
        );
    }
    if accept.hook == accept_trace::AcceptHook::SystemCall {
        limits.push("processes that accept through io_uring are not named");
    }
    Ok((uses, (!limits.is_empty()).then(|| limits.join("; "))))
}

/// The answer for syn-count, if generic XDP works.
fn syn_count_answer(interface: &Interface) -> Answer {
    let name = &interface.name;
    if let Some(program) = xdp::occupant(interface) {
        return Err(format!(
            "{program} is attached to {name}; --mode tc works alongside it"
        ));
    }
    Ok((format!("xdp generic on {name}"), None))
}

/// The first backend that works, and why those before it do not.
fn connect_trace_answer(backends: &[(Backend, Option<String>)], buffer: &str) -> Answer {
    if !privileges::missing().is_empty() && backends.iter().all(|(_, why)| why.is_some()) {
        return Err(missing());
    }
    let refused = backends
        .iter()
        .map_while(|(backend, why)| Some(format!("{}: {}", backend.name(), why.as_ref()?)))
        .collect::<Vec<_>>();
    match backends.get(refused.len()) {
        Some((backend, _)) => {
            let why = (!refused.is_empty()).then(|| refused.join("; "));
            Ok((format!("{}, {buffer}", backend.name()), why))
        }
        None => Err(refused.join("; ")),
    }
}

/// The capabilities that are missing, as the cause of a failure.
fn missing() -> String {
    format!("missing {}", privileges::names(&privileges::missing()))
}

/// The cause of a failure, without the steps that led to it.
fn why_not(failure: &Failure) -> String {
    let is_refused = failure.error.chain().any(|error| {
        let kind = |error: &libbpf_rs::Error| error.kind() == ErrorKind::PermissionDenied;
        error.downcast_ref().is_some_and(kind)
    });
    let cause = failure.error.root_cause().to_string();
    let cause = cause.split(" (os error").next().unwrap_or_default();
    if failure.error.is::<privileges::Missing>() {
        missing()
    } else if is_refused && privileges::missing().is_empty() {
        format!("{cause}, though no capability is missing")
    } else {
        cause.to_owned()
    }
}
