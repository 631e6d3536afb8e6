//! `check`: what this kernel and these privileges allow, and what each command would use. It is
//! found by loading and attaching the commands' own programs, and nothing of that lasts.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::{ErrorKind, MapType};
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::utsname::uname;

use super::connect_trace::Backend;
use super::{connect_trace, flows, port_monitor, syn_count};
use crate::attach::xdp;
use crate::cli::{
    BackendChoice, BufferChoice, CheckArgs, OutputFormat, SandboxArgs, StopArgs, arguments,
};
use crate::events::BufferKind;
use crate::failure::{Exit, Failure};
use crate::host::features::offers_native_xdp;
use crate::host::interfaces::{Interface, LinkLayer, resolve};
use crate::host::kernel_types::KernelTypes;
use crate::host::privileges;
use crate::notice::Notices;
use crate::output::check::{self, CheckKind, Finding};
use crate::output::summary::Summary;
use crate::session::{Output, Session};
use crate::stop::ExitReason;

/// Runs the command.
///
/// # Errors
/// A command can't run here, or the output can't be written.
pub fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let mut session = Session::new(&args.output, &StopArgs::default(), SandboxArgs::default())?;
    let findings = find_out(session.notices)?;
    let duration = session.stop.elapsed();
    privileges::drop_all()?;
    session.stop.listen()?;

    session.text_header(check::text_header);
    for finding in &findings {
        let mut output = session.output.borrow_mut();
        let Output { sink, clock } = &mut *output;
        let at = clock.now();
        sink.line(&session.stop, |out| match session.format {
            OutputFormat::Json => check::json(out, clock, at, finding),
            OutputFormat::Text => check::text(out, clock, at, finding),
        });
    }
    finish(&mut session, &findings, duration)
}

fn finish(
    session: &mut Session,
    findings: &[Finding],
    duration: Duration,
) -> Result<Exit, Failure> {
    session.output.borrow_mut().sink.flush(&session.stop);
    if !session.is_over() {
        session.end(ExitReason::Done);
    }
    let emitted = session.output.borrow().sink.written();
    let matched = findings.len() as u64;
    let summary = Summary {
        command: "check",
        duration_s: duration.as_secs_f64(),
        matched,
        emitted,
        lost: matched - emitted,
        suppressed: 0,
        exit_reason: session.exit_reason().name(),
        packets: None,
        syn_total: None,
        flows: None,
    };
    let commands = findings
        .iter()
        .filter(|finding| finding.kind == CheckKind::Command)
        .collect::<Vec<_>>();
    let unable = commands
        .iter()
        .filter(|command| command.ok == Some(false))
        .map(|command| command.name)
        .collect::<Vec<_>>();
    let able = commands.len() - unable.len();
    let text = format!(
        "summary: check: {able} of {} commands can run",
        commands.len()
    );
    session.finish_saying(&summary, &text)?;
    if unable.is_empty() {
        return Ok(Exit::Success);
    }
    let failure = Failure::from(anyhow!("can't run here: {}", unable.join(", ")));
    Err(failure.hint(if privileges::missing().is_empty() {
        "the lines above say why"
    } else {
        "run with sudo, or: setcap cap_bpf,cap_net_admin,cap_perfmon=ep $(command -v tcpinspect)"
    }))
}

/// What was found out so far.
#[derive(Default)]
struct Report {
    findings: Vec<Finding>,
}

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

    fn command(&mut self, name: &'static str, answer: Result<(String, Detail), String>) {
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

type Detail = Option<String>;

fn find_out(notices: Notices) -> Result<Vec<Finding>> {
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
    let native = interface.as_ref().ok().and_then(|interface| {
        let offer = offers_native_xdp(interface).unwrap_or(None);
        let what = match offer {
            Some(true) => "offers it",
            Some(false) => "does not offer it",
            None => "can't be asked",
        };
        let why = format!("the driver of {} {what}; not tried", interface.name);
        report.feature("xdp_native", offer, Some(why));
        offer
    });
    let Trials {
        xdp,
        frags,
        tc,
        flows,
    } = try_apart(notices)?;
    report.feature("xdp_generic", xdp.ok(), Some(xdp.detail()));
    report.feature("xdp_frags", frags, None);
    report.feature("tc", tc.ok(), Some(tc.detail()));
    let backends = try_backends(notices)?;
    for (backend, why) in &backends {
        let name = match backend {
            Backend::Fentry => "fentry",
            Backend::Kprobe => "kprobe",
            Backend::Tracepoint => "tp_btf",
        };
        report.feature(name, Some(why.is_none()), why.clone());
    }

    let buffer = BufferKind::choose(BufferChoice::Auto)?.name();
    report.command(
        "syn-count",
        match (&interface, xdp) {
            (_, Trial::Refused(why)) => Err(why),
            (Err(why), _) => Err(why.clone()),
            (Ok(interface), _) => syn_count_answer(interface, native),
        },
    );
    let flows_answer = flows_answer(&interface, &flows, buffer);
    report.command(
        "port-monitor",
        match (interface, tc) {
            (_, Trial::Refused(why)) | (Err(why), _) => Err(why),
            (Ok(interface), Trial::Attached(hook)) => {
                Ok((format!("{hook} on {}, {buffer}", interface.name), None))
            }
            (Ok(interface), Trial::Loaded(why)) => Ok((
                format!("tc ingress on {}, {buffer}", interface.name),
                Some(why.to_owned()),
            )),
        },
    );
    report.command("flows", flows_answer);
    report.command("connect-trace", connect_trace_answer(&backends, buffer));
    Ok(report.findings)
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
        Ok(false) if privileges::missing().contains(&"CAP_BPF") => {
            (None, Some("can't be tried without CAP_BPF".to_owned()))
        }
        Ok(false) => (Some(false), Some("the perf event array is used".to_owned())),
        Err(error) => (None, Some(error.to_string())),
    };
    report.feature("ring_buffer", has_ring, why);
    Ok(())
}

/// The interface that packet commands look at if none is named.
fn default_interface() -> Result<Interface, String> {
    let interface = resolve(&[])
        .map_err(|error| error.to_string())?
        .pop()
        .ok_or("there is no interface")?;
    match interface.link_layer {
        LinkLayer::Unsupported(kind) => Err(format!(
            "frames of {} are of hardware type {kind}, neither Ethernet nor plain IP",
            interface.name
        )),
        _ => Ok(interface),
    }
}

/// What came of trying a hook.
enum Trial {
    /// It works, as this.
    Attached(String),
    /// The program loads; why it was not attached.
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
            Self::Attached(hook) => format!("{hook} on lo of a network namespace of its own"),
            Self::Loaded(why) => format!("the program loads; {why}"),
            Self::Refused(why) => why.clone(),
        }
    }
}

/// What was tried on an interface that nobody uses.
struct Trials {
    xdp: Trial,
    /// The program takes frames of several buffers.
    frags: Option<bool>,
    tc: Trial,
    flows: Trial,
}

/// Attaches to `lo` of a network namespace that is made for this, in a thread that ends with it.
fn try_apart(notices: Notices) -> Result<Trials> {
    let attempt = || -> Result<Trials> {
        let (lo, no_interface) = match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => (resolve(&["lo".to_owned()])?.pop(), None),
            Err(Errno::EPERM) => (
                None,
                Some(
                    "not attached, for that takes a network namespace of its own and CAP_SYS_ADMIN",
                ),
            ),
            Err(_) => (
                None,
                Some("not attached, for no network namespace can be made to try it in"),
            ),
        };
        let xdp = syn_count::probe(&arguments(&["--mode", "generic"])?, lo.as_ref(), notices);
        let frags = xdp.as_ref().ok().map(|probe| probe.has_frags);
        let tc = port_monitor::probe(&arguments(&[])?, lo.as_ref(), notices);
        let flows = flows::probe(&arguments(&[])?, lo.as_ref(), notices);
        Ok(Trials {
            xdp: Trial::new(xdp.map(|probe| probe.hook), no_interface),
            frags,
            tc: Trial::new(tc, no_interface),
            flows: Trial::new(flows, no_interface),
        })
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(attempt);
        thread
            .join()
            .map_err(|_| anyhow!("the thread that tries hooks ended early"))?
    })
}

/// Tries each backend, with why it can't be used. This is done on the whole system, for there is
/// no part of it to try them on, and for some milliseconds.
fn try_backends(notices: Notices) -> Result<Vec<(Backend, Option<String>)>> {
    let mut answers = Vec::new();
    for backend in connect_trace::candidates(BackendChoice::Auto) {
        let args = arguments(&["--backend", backend.name()])?;
        let why = connect_trace::rehearse(&args, notices)
            .err()
            .map(|failure| why_not(&failure));
        answers.push((*backend, why));
    }
    Ok(answers)
}

/// What flows would use: its programs were loaded, and attached to a loopback device, which needs
/// fewer hooks than others.
fn flows_answer(
    interface: &Result<Interface, String>,
    flows: &Trial,
    buffer: &str,
) -> Result<(String, Detail), String> {
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

/// What syn-count would use where generic XDP is known to work.
fn syn_count_answer(
    interface: &Interface,
    native: Option<bool>,
) -> Result<(String, Detail), String> {
    let name = &interface.name;
    if let Some(program) = xdp::occupant(interface) {
        return Err(format!(
            "{program} is attached to {name}; --mode tc counts beside it"
        ));
    }
    let mode = match native {
        Some(false) => "generic",
        _ => "native else generic",
    };
    Ok((format!("xdp {mode} on {name}"), None))
}

/// The first backend that works, and why those before it don't.
fn connect_trace_answer(
    backends: &[(Backend, Option<String>)],
    buffer: &str,
) -> Result<(String, Detail), String> {
    let missing = privileges::missing();
    if !missing.is_empty() && backends.iter().all(|(_, why)| why.is_some()) {
        return Err(format!("missing {}", missing.join(", ")));
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

/// The cause of a failure, without the steps that led to it.
fn why_not(failure: &Failure) -> String {
    let missing = privileges::missing();
    let is_refused = failure.error.chain().any(|error| {
        let kind = |error: &libbpf_rs::Error| error.kind() == ErrorKind::PermissionDenied;
        error.downcast_ref().is_some_and(kind)
    });
    let cause = failure.error.root_cause().to_string();
    let cause = cause.split(" (os error").next().unwrap_or_default();
    if cause.starts_with("missing ") {
        format!("missing {}", missing.join(", "))
    } else if is_refused && missing.is_empty() {
        format!("{cause}, though no capability is missing")
    } else {
        cause.to_owned()
    }
}
