//! Loading: libbpf's log, and what a refusal means.

use std::io::Write;

use anyhow::{Result, bail};
use libbpf_rs::{PrintLevel, set_print};

use crate::failure::Failure;
use crate::host::privileges::{self, Operation, explain_eperm};
use crate::skel::COUNTER_SLOTS;

/// Sends libbpf's log and the verifier's to stderr, or nowhere.
pub fn set_log(verbose: bool) {
    let print = |_: PrintLevel, line: String| {
        // There is nobody to tell that stderr is closed.
        let _ = std::io::stderr().write_all(line.as_bytes());
    };
    set_print(verbose.then_some((PrintLevel::Debug, print as fn(PrintLevel, String))));
}

/// The failure of a step that libbpf did: `what` failed because of `error`.
pub fn failure(what: &str, error: libbpf_rs::Error) -> Failure {
    match error.kind() {
        libbpf_rs::ErrorKind::PermissionDenied => refused(what, error.into()),
        // Of a program by somebody who may not do all that it does, some verifiers say EINVAL, or
        // EFAULT where they look at more paths than for others.
        libbpf_rs::ErrorKind::InvalidInput | libbpf_rs::ErrorKind::Other
            if !privileges::missing().is_empty() =>
        {
            refused(what, error.into())
        }
        _ => anyhow::Error::new(error).context(what.to_owned()).into(),
    }
}

/// The failure of a step that the kernel refused: names the privilege that is missing, or what
/// else forbids it.
pub fn refused(what: &str, error: anyhow::Error) -> Failure {
    let explanation = explain_eperm(Operation::Bpf);
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
    let explanation = explain_eperm(Operation::Perf);
    failure.hint(format!("{}: {}", explanation.reason, explanation.hint))
}

/// How many CPUs can run a program, each with a counter slot of its own.
///
/// # Errors
/// There are more than there are slots, or the kernel does not tell.
pub fn possible_cpus() -> Result<usize> {
    let cpus = libbpf_rs::num_possible_cpus()?;
    if cpus > COUNTER_SLOTS {
        bail!("this machine may have {cpus} CPUs, and counts are kept for {COUNTER_SLOTS} at most");
    }
    Ok(cpus)
}
