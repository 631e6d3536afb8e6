//! Loading: libbpf's log, what a refusal means, and the slots of programs that run at the same time.

use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result, bail};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{
    MapCore, MapFlags, MapType, OpenMapMut, OpenObject, OpenProgramMut, PrintLevel, ProgramMut,
    set_print,
};
use nix::sys::utsname::uname;

use crate::attach::beside::beside;
use crate::failure::Failure;
use crate::host::kernel;
use crate::host::kernel_types::{Excerpt, KernelTypes};
use crate::host::privileges::{self, Lockdown, READ_NO_KERNEL_MEMORY, RefusedCall, explain_eperm};
use crate::skel::COUNTER_SLOTS;
use crate::sys::object::{self, LoadedProgram, SeparateProgram};

/// Part of the version string of kernels with PREEMPT_RT.
const RT: &[u8] = b"PREEMPT_RT";

/// How many unfinished runs of packet programs there can be per CPU, where one can preempt another.
const SLOTS_PER_CPU: usize = 8;

/// Sends libbpf's log and the verifier's to stderr, or nowhere.
pub fn set_log(verbose: bool) {
    let print = |_: PrintLevel, line: String| {
        // If stderr is closed, the message is lost.
        let _ = std::io::stderr().write_all(line.as_bytes());
    };
    set_print(verbose.then_some((PrintLevel::Debug, print as fn(PrintLevel, String))));
}

/// The types of the running kernel, for a command that traces.
///
/// # Errors
/// It has no type information.
pub fn kernel_types(command: &str) -> Result<KernelTypes, Failure> {
    KernelTypes::load().map_err(|error| {
        Failure::from(error).hint(format!(
            "{command} needs /sys and a kernel with CONFIG_DEBUG_INFO_BTF; {READ_NO_KERNEL_MEMORY} do not"
        ))
    })
}

/// Opens programs that read the kernel types with these names. The excerpt of the kernel's types that is
/// returned is needed until the programs are loaded.
///
/// # Errors
/// libbpf rejects the object.
pub fn open<'obj, B: SkelBuilder<'obj> + Default>(
    types: &[&str],
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> Result<(B::Output, Excerpt)> {
    const FAILED: &str = "failed to open the programs";
    let mut builder = B::default();
    let excerpt = Excerpt::of(types, builder.object_builder_mut()).context(FAILED)?;
    let open = builder.open(storage).context(FAILED)?;
    Ok((open, excerpt))
}

/// The failure of a step that libbpf did: `what` failed because of `error`.
pub fn failure(what: &str, error: libbpf_rs::Error) -> Failure {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => refused(what, error.into()),
        // Some kernels have other errors for a program that needs a missing privilege: EINVAL, or
        // EFAULT, because for an unprivileged user the verifier checks more paths.
        libbpf_rs::ErrorKind::InvalidInput | libbpf_rs::ErrorKind::Other
            if !privileges::missing().is_empty() =>
        {
            refused(what, error.into())
        }
        _ => anyhow::Error::new(error).context(what.to_owned()).into(),
    }
}

/// The failure to load programs that read memory of the kernel, which lockdown may forbid.
/// `where_it_is` names the data that they read there.
pub fn failure_to_read(what: &str, error: libbpf_rs::Error, where_it_is: &str) -> Failure {
    let is_invalid = error.kind() == libbpf_rs::ErrorKind::InvalidInput;
    let failure = failure(what, error);
    match Lockdown::now() {
        Some(mode @ Lockdown::Confidentiality) if is_invalid => failure.hint(format!(
            "lockdown is {mode}, {where_it_is}; {READ_NO_KERNEL_MEMORY} do not need that"
        )),
        _ => failure,
    }
}

/// The failure of a step that the kernel refused: names the privilege that is missing, or what
/// else forbids it.
pub fn refused(what: &str, error: anyhow::Error) -> Failure {
    let explanation = explain_eperm(RefusedCall::Bpf);
    if privileges::missing().is_empty() {
        return Failure::from(error.context(what.to_owned())).hint(format!(
            "{}; -vv shows what the kernel says",
            explanation.hint
        ));
    }
    let error = anyhow::Error::new(privileges::Missing(explanation.reason));
    Failure::from(error.context(what.to_owned())).hint(explanation.hint)
}

/// The failure to attach a kprobe, which is made by perf_event_open(2).
pub fn kprobe_failure(what: &str, error: libbpf_rs::Error) -> Failure {
    let is_refused = error.kind() == libbpf_rs::ErrorKind::PermissionDenied;
    let failure = failure(what, error);
    if !is_refused {
        return failure;
    }
    let explanation = explain_eperm(RefusedCall::Perf);
    failure.hint(format!("{}: {}", explanation.reason, explanation.hint))
}

/// Loads an object. Meanwhile another thread loads those of its programs that `separate` names, and
/// they are returned in the same order: the kernel verifies each program on the CPU of the thread that
/// loads it.
///
/// # Errors
/// The kernel refuses a map or a program.
pub fn on_two_threads<'obj, S: OpenSkel<'obj>>(
    mut open: S,
    separate: impl FnOnce(&mut S) -> Vec<&mut OpenProgramMut<'obj>>,
) -> libbpf_rs::Result<(S::Output, Vec<LoadedProgram>)> {
    object::create_maps(open.open_object_mut())?;
    let btf = object::btf_fd(open.open_object());
    let separate = separate(&mut open)
        .into_iter()
        .map(|program| SeparateProgram::take(program, btf))
        .collect::<Vec<_>>();
    if separate.is_empty() {
        return Ok((open.load()?, Vec::new()));
    }
    let load = || Ok(separate.iter().map(SeparateProgram::load).collect());
    let (loaded, skel) = beside(load, || open.load());
    let loaded: libbpf_rs::Result<_> =
        loaded.map_err(|error| libbpf_rs::Error::from(std::io::Error::other(error.to_string())))?;
    Ok((skel?, loaded?))
}

/// Puts the program into the map through which others tail-call it.
///
/// # Errors
/// The kernel refuses it.
pub fn set_handler(map: &impl MapCore, program: &ProgramMut<'_>) -> Result<()> {
    const SLOT: u32 = 0;
    let program = program.as_fd().as_raw_fd();
    map.update(&SLOT.to_ne_bytes(), &program.to_ne_bytes(), MapFlags::ANY)
        .context("failed to set up a tail call")
}

/// How many CPUs can run a program, each with counters of its own.
///
/// # Errors
/// There are more CPUs than slots, or the kernel does not say how many there are.
pub fn possible_cpus() -> Result<usize> {
    let cpus = libbpf_rs::num_possible_cpus()?;
    if cpus > COUNTER_SLOTS {
        bail!("this machine may have {cpus} CPUs, and counts are kept for {COUNTER_SLOTS} at most");
    }
    Ok(cpus)
}

/// How many slots packet programs have, each with counters and scratch space: one for each CPU, or
/// more where they can be preempted.
///
/// # Errors
/// As for [`possible_cpus`].
pub fn packet_slots() -> Result<usize> {
    let cpus = possible_cpus()?;
    Ok(match is_preemptible() {
        true => (cpus * SLOTS_PER_CPU).min(COUNTER_SLOTS),
        false => cpus,
    })
}

/// Where packet programs can preempt each other on a CPU, makes each run take a slot from
/// `idle_slots`. `scratch` are the maps with one entry per CPU, which get one per slot.
///
/// # Errors
/// A map can't be changed.
pub fn configure_slots<'obj>(
    preemptible: &mut bool,
    idle_slots: &mut OpenMapMut<'obj>,
    scratch: &mut [&mut OpenMapMut<'obj>],
) -> Result<()> {
    *preemptible = is_preemptible();
    if !*preemptible {
        idle_slots.set_autocreate(false)?;
        return Ok(());
    }
    let slots = u32::try_from(packet_slots()?)?;
    idle_slots.set_max_entries(slots)?;
    for map in scratch {
        map.set_type(MapType::Array)?;
        map.set_max_entries(slots)?;
    }
    Ok(())
}

/// Puts all slots but 0 into the map of idle slots: 0 means that none is left.
///
/// # Errors
/// The map can't be written to.
pub fn fill_slots(idle_slots: &impl MapCore) -> Result<()> {
    if !is_preemptible() {
        return Ok(());
    }
    for slot in 1..u32::try_from(packet_slots()?)? {
        let slot = slot.to_ne_bytes();
        idle_slots
            .update(&[], &slot, MapFlags::ANY)
            .context("failed to give the programs their slots")?;
    }
    Ok(())
}

/// Whether a packet program can be preempted by one that runs for another task: with PREEMPT_RT since
/// Linux 6.18.
fn is_preemptible() -> bool {
    kernel::version() >= Some((6, 18))
        && uname().is_ok_and(|name| {
            let version = name.version().as_encoded_bytes();
            version.windows(RT.len()).any(|at| at == RT)
        })
}
