//! The privileges of this process: which are missing, why the kernel refused something, and
//! dropping those that are no longer needed.

use std::error::Error;
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Context, Result, bail};
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::unistd::{getresgid, getresuid, gettid};

use super::kernel;

/// The capabilities that loading and attaching programs needs; some options need others. In Linux
/// 5.8 `CAP_BPF` and `CAP_PERFMON` were split from `CAP_SYS_ADMIN`, which still includes both.
const NEEDED: [(Capability, &str); 3] = [
    (Capability::CAP_BPF, "CAP_BPF"),
    (Capability::CAP_NET_ADMIN, "CAP_NET_ADMIN"),
    (Capability::CAP_PERFMON, "CAP_PERFMON"),
];

/// The hint where some of them are missing.
pub const HOW_TO_GET: &str =
    "run with sudo, or: setcap cap_bpf,cap_net_admin,cap_perfmon=ep $(command -v tcpinspect)";

/// The commands whose programs read no memory of the kernel.
pub const READ_NO_KERNEL_MEMORY: &str = "syn-count, port-monitor and flows";

/// Inode of the initial user namespace (`PROC_USER_INIT_INO`,
/// `<linux/proc_ns.h>`).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// From this kernel on, BPF memory is accounted to cgroups and no longer to
/// `RLIMIT_MEMLOCK`.
const NO_MEMLOCK_SINCE: (u32, u32) = (5, 11);

/// Which of `CAP_BPF`, `CAP_NET_ADMIN` and `CAP_PERFMON` this thread lacks. `CAP_SYS_ADMIN`
/// includes the first and the last.
#[must_use]
pub fn missing() -> Vec<Capability> {
    let sys_admin = has(Capability::CAP_SYS_ADMIN);
    NEEDED
        .into_iter()
        .map(|(capability, _)| capability)
        .filter(|&capability| {
            let substituted = sys_admin && capability != Capability::CAP_NET_ADMIN;
            !substituted && !has(capability)
        })
        .collect()
}

/// The names of capabilities, separated by commas.
pub fn names(capabilities: &[Capability]) -> String {
    let names = capabilities.iter().map(Capability::to_string);
    names.collect::<Vec<_>>().join(", ")
}

/// The capabilities that this tool needs, by name, and whether this thread has them, directly or by
/// `CAP_SYS_ADMIN`.
#[must_use]
pub fn needed() -> [(&'static str, bool); NEEDED.len()] {
    let missing = missing();
    NEEDED.map(|(capability, name)| (name, !missing.contains(&capability)))
}

fn has(capability: Capability) -> bool {
    caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false)
}

/// The capability to keep: `capability` if `attempt` fails without any capability in effect, or none
/// if it works.
///
/// Before Linux 5.19 every bpf(2) command needs `CAP_BPF` unless
/// `kernel.unprivileged_bpf_disabled` is 0.
///
/// # Errors
///
/// As [`without_capabilities`].
pub fn needed_for(
    capability: Capability,
    attempt: impl FnOnce() -> bool,
) -> Result<Option<Capability>> {
    let works = without_capabilities(attempt)?;
    Ok((!works).then_some(capability))
}

/// Tries something without any capability in effect, and restores them.
///
/// # Errors
///
/// If the kernel refuses to change the effective set.
pub fn without_capabilities<T>(attempt: impl FnOnce() -> T) -> Result<T> {
    let before = caps::read(None, CapSet::Effective).context("failed to read capabilities")?;
    caps::clear(None, CapSet::Effective).context("failed to lower capabilities")?;
    let outcome = attempt();
    caps::set(None, CapSet::Effective, &before).context("failed to raise capabilities")?;
    Ok(outcome)
}

/// Drops every capability for good: see [`drop_all_but`].
///
/// # Errors
///
/// As [`drop_all_but`].
pub fn drop_all() -> Result<()> {
    drop_all_but(&[])
}

/// Drops every capability except those in `keep` that this thread has, and
/// sets `no_new_privs`, with which no later exec can gain any, not even as root
/// (`cap_bprm_creds_from_file()`).
///
/// The kernel does this for the calling thread and for those that it starts
/// later. So call it before there are other threads.
///
/// # Errors
///
/// If the kernel refuses, or if another thread of this process still has
/// capabilities; the calling thread has none in that case.
pub fn drop_all_but(keep: &[Capability]) -> Result<()> {
    let keep: CapsHashSet = keep.iter().copied().filter(|&kept| has(kept)).collect();
    prctl::set_no_new_privs().context("failed to set no_new_privs")?;
    caps::clear(None, CapSet::Ambient).context("failed to clear ambient capabilities")?;
    // Effective first: it must be a subset of the permitted set at all times.
    for set in [CapSet::Effective, CapSet::Permitted] {
        caps::set(None, set, &keep).context("failed to give up capabilities")?;
    }
    caps::clear(None, CapSet::Inheritable).context("failed to clear inheritable capabilities")?;
    check_other_threads(&keep)
}

fn check_other_threads(keep: &CapsHashSet) -> Result<()> {
    // Without /proc this can't be checked.
    let Ok(threads) = fs::read_dir("/proc/self/task") else {
        return Ok(());
    };
    let own = gettid().as_raw();
    for thread in threads.flatten() {
        let Some(thread) = thread
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // A thread that has ended meanwhile can't be read, and does not matter.
        let Ok(permitted) = caps::read(Some(thread), CapSet::Permitted) else {
            continue;
        };
        if thread != own && !permitted.is_subset(keep) {
            bail!("failed to give up capabilities: thread {thread} still has some");
        }
    }
    Ok(())
}

/// Refuses to run as a set-user-ID or set-group-ID program, where an unprivileged
/// user would choose the arguments and the environment of a privileged process.
/// File capabilities are fine: they do not change IDs, and whoever set them chose
/// who may run the file.
///
/// # Errors
///
/// If a real and an effective ID differ.
pub fn refuse_setuid() -> Result<()> {
    let user = getresuid().context("failed to read user IDs")?;
    let group = getresgid().context("failed to read group IDs")?;
    if user.real != user.effective || group.real != group.effective {
        bail!("refusing to run set-user-ID or set-group-ID");
    }
    Ok(())
}

/// The system call that the kernel refused with EPERM or EACCES.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedCall {
    /// bpf(2): a map, a program, a link or a filter.
    Bpf,
    /// perf_event_open(2): a tracepoint or kprobe, or a perf buffer.
    Perf,
}

/// The most likely reason why the kernel refused, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Lowercase, without full stop: fit for the end of an error line.
    pub reason: String,
    /// Fit for the `hint:` line.
    pub hint: String,
}

/// Explains an EPERM or EACCES by the state of this process and the system.
///
/// The kernel gives no reason. So this checks the possible causes in the order of their
/// likelihood; if none applies, the answer is a guess.
#[must_use]
pub fn explain_eperm(call: RefusedCall) -> Explanation {
    Facts::gather().explain(call)
}

/// Limits on this process besides missing capabilities: names, and what they mean here.
#[must_use]
pub fn limits() -> Vec<(&'static str, String)> {
    Facts::gather().limits()
}

/// The mode of kernel lockdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// Nobody may change the running kernel.
    Integrity,
    /// Nobody may read its memory either.
    Confidentiality,
}

impl Lockdown {
    /// The current mode of the kernel; `None` if it is not locked down.
    pub fn now() -> Option<Self> {
        // Without securityfs, or without lockdown in the kernel, there is no such file.
        Self::parse(&fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default())
    }

    /// The mode in brackets: `none [integrity] confidentiality`.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once('[')?;
        match rest.split_once(']')?.0 {
            "integrity" => Some(Self::Integrity),
            "confidentiality" => Some(Self::Confidentiality),
            _ => None,
        }
    }
}

/// Its name, and what it means here.
impl fmt::Display for Lockdown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Integrity => "integrity: BPF may read kernel memory, and nobody may write it",
            Self::Confidentiality => "confidentiality: BPF and perf may not read kernel memory",
        })
    }
}

/// The state that explains a refusal.
#[derive(Clone, Debug, Default)]
struct Facts {
    missing: Vec<Capability>,
    sys_admin: bool,
    in_user_namespace: bool,
    kernel: Option<(u32, u32)>,
    /// Soft limit in bytes; `None` if there is no limit.
    memlock: Option<u64>,
    unprivileged_bpf_disabled: Option<i32>,
    perf_event_paranoid: Option<i32>,
    lockdown: Option<Lockdown>,
    seccomp_filter: bool,
}

impl Facts {
    fn gather() -> Self {
        let user_namespace = fs::metadata("/proc/self/ns/user").map(|meta| meta.ino());
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            missing: missing(),
            sys_admin: has(Capability::CAP_SYS_ADMIN),
            in_user_namespace: user_namespace.is_ok_and(|inode| inode != INITIAL_USER_NAMESPACE),
            kernel: kernel::version(),
            memlock: getrlimit(Resource::RLIMIT_MEMLOCK)
                .ok()
                .map(|(soft, _)| soft)
                .filter(|&soft| soft != RLIM_INFINITY),
            unprivileged_bpf_disabled: number("/proc/sys/kernel/unprivileged_bpf_disabled"),
            perf_event_paranoid: number("/proc/sys/kernel/perf_event_paranoid"),
            lockdown: Lockdown::now(),
            seccomp_filter: status
                .lines()
                .filter_map(|line| line.strip_prefix("Seccomp:"))
                .any(|mode| mode.trim() == "2"),
        }
    }

    fn limits(&self) -> Vec<(&'static str, String)> {
        let mut limits = Vec::new();
        if self.in_user_namespace {
            limits.push((
                "user_namespace",
                "BPF needs capabilities in the initial user namespace".to_owned(),
            ));
        }
        if let Some(level @ 1..) = self.unprivileged_bpf_disabled
            && self.missing.contains(&Capability::CAP_BPF)
        {
            limits.push((
                "unprivileged_bpf_disabled",
                format!("{level}: bpf(2) requires CAP_BPF"),
            ));
        }
        if let Some(level) = self.perf_event_paranoid
            && level > 2
            && !self.sys_admin
        {
            limits.push((
                "perf_event_paranoid",
                format!("{level}: kprobes and perf buffers need CAP_SYS_ADMIN"),
            ));
        }
        if let Some(mode) = self.lockdown {
            limits.push(("lockdown", mode.to_string()));
        }
        if let Some(limit) = self.memlock
            && self.has_old_memlock()
        {
            limits.push((
                "rlimit_memlock",
                format!(
                    "{limit} bytes; before Linux 5.11 the memory of BPF maps counts against it"
                ),
            ));
        }
        if self.seccomp_filter {
            limits.push((
                "seccomp",
                "a seccomp filter is active, which may forbid bpf and perf_event_open".to_owned(),
            ));
        }
        limits
    }

    fn has_old_memlock(&self) -> bool {
        self.kernel.is_some_and(|kernel| kernel < NO_MEMLOCK_SINCE)
    }

    fn explain(&self, call: RefusedCall) -> Explanation {
        if !self.missing.is_empty() {
            return self.explain_missing();
        }
        if self.in_user_namespace {
            return explanation(
                "this process is in a user namespace, and BPF needs capabilities in the initial one",
                "run outside of the rootless container or user namespace",
            );
        }
        // Debian (3) and Ubuntu (4) patch perf_event_open(): these levels
        // need CAP_SYS_ADMIN, with or without CAP_PERFMON.
        if let Some(level) = self.perf_event_paranoid
            && call == RefusedCall::Perf
            && level > 2
            && !self.sys_admin
        {
            return explanation(
                format!("kernel.perf_event_paranoid is {level}, which requires CAP_SYS_ADMIN"),
                "run with sudo, or: sysctl kernel.perf_event_paranoid=2",
            );
        }
        if self.lockdown == Some(Lockdown::Confidentiality) {
            return explanation(
                "kernel lockdown is in confidentiality mode, in which BPF and perf may not read kernel memory",
                &format!(
                    "boot without lockdown=confidentiality; {READ_NO_KERNEL_MEMORY} work with it"
                ),
            );
        }
        if let Some(limit) = self.memlock
            && call == RefusedCall::Bpf
            && self.has_old_memlock()
        {
            return explanation(
                format!(
                    "BPF memory counts as locked before Linux 5.11, and RLIMIT_MEMLOCK is {limit} bytes"
                ),
                "raise it: ulimit -l unlimited",
            );
        }
        if self.seccomp_filter {
            return explanation(
                "a seccomp filter, such as that of a container runtime, may forbid the system call",
                "allow bpf and perf_event_open in the seccomp profile of the container",
            );
        }
        explanation(
            "no capability is missing, so a security module (SELinux, AppArmor) may have denied it",
            "look for a denial in the audit log or in dmesg",
        )
    }

    fn explain_missing(&self) -> Explanation {
        let names = names(&self.missing);
        let reason = match self.unprivileged_bpf_disabled {
            Some(1..) if self.missing.contains(&Capability::CAP_BPF) => {
                format!("missing {names} (kernel.unprivileged_bpf_disabled is set)")
            }
            _ => format!("missing {names}"),
        };
        explanation(reason, HOW_TO_GET)
    }
}

/// Why the kernel refused something: capabilities are missing, which the text names.
#[derive(Debug)]
pub struct Missing(pub String);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Missing {}

fn explanation(reason: impl Into<String>, hint: &str) -> Explanation {
    Explanation {
        reason: reason.into(),
        hint: hint.to_owned(),
    }
}

fn number(path: &str) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(facts: &Facts, call: RefusedCall) -> String {
        facts.explain(call).reason
    }

    #[test]
    fn a_missing_capability_is_named_before_anything_else() {
        let facts = Facts {
            missing: vec![Capability::CAP_BPF, Capability::CAP_PERFMON],
            in_user_namespace: true,
            unprivileged_bpf_disabled: Some(2),
            ..Facts::default()
        };
        let explained = facts.explain(RefusedCall::Bpf);
        assert_eq!(
            explained.reason,
            "missing CAP_BPF, CAP_PERFMON (kernel.unprivileged_bpf_disabled is set)"
        );
        assert!(explained.hint.contains("setcap cap_bpf,"), "{explained:?}");
    }

    #[test]
    fn a_paranoid_level_above_two_explains_perf_but_not_bpf() {
        let facts = Facts {
            perf_event_paranoid: Some(3),
            ..Facts::default()
        };
        assert!(reason(&facts, RefusedCall::Perf).contains("perf_event_paranoid is 3"));
        assert!(!reason(&facts, RefusedCall::Bpf).contains("paranoid"));
        let root = Facts {
            sys_admin: true,
            ..facts
        };
        assert!(!reason(&root, RefusedCall::Perf).contains("paranoid"));
    }

    #[test]
    fn locked_memory_is_a_reason_only_before_5_11() {
        let old = Facts {
            kernel: Some((5, 10)),
            memlock: Some(65536),
            ..Facts::default()
        };
        assert!(reason(&old, RefusedCall::Bpf).contains("65536 bytes"));
        let new = Facts {
            kernel: Some((5, 11)),
            ..old
        };
        assert!(!reason(&new, RefusedCall::Bpf).contains("MEMLOCK"));
    }

    #[test]
    fn only_confidentiality_lockdown_is_a_reason() {
        for (mode, expected) in [
            (Lockdown::Integrity, false),
            (Lockdown::Confidentiality, true),
        ] {
            let facts = Facts {
                lockdown: Some(mode),
                ..Facts::default()
            };
            let reason = reason(&facts, RefusedCall::Bpf);
            assert_eq!(reason.contains("lockdown"), expected, "{mode}: {reason}");
        }
    }

    #[test]
    fn limits_are_reported_only_where_they_limit() {
        let facts = Facts {
            sys_admin: true,
            kernel: Some((6, 1)),
            memlock: Some(65536),
            unprivileged_bpf_disabled: Some(2),
            perf_event_paranoid: Some(3),
            ..Facts::default()
        };
        assert_eq!(facts.limits(), []);
        let limited = Facts {
            missing: vec![Capability::CAP_BPF],
            sys_admin: false,
            in_user_namespace: true,
            kernel: Some((5, 10)),
            lockdown: Some(Lockdown::Integrity),
            seccomp_filter: true,
            ..facts
        };
        let names = limited.limits().into_iter().map(|(name, _)| name);
        assert_eq!(
            names.collect::<Vec<_>>(),
            [
                "user_namespace",
                "unprivileged_bpf_disabled",
                "perf_event_paranoid",
                "lockdown",
                "rlimit_memlock",
                "seccomp"
            ]
        );
    }

    #[test]
    fn the_lockdown_mode_is_the_one_in_brackets() {
        assert_eq!(Lockdown::parse("[none] integrity confidentiality\n"), None);
        let mode = Lockdown::parse("none [integrity] confidentiality\n");
        assert_eq!(mode, Some(Lockdown::Integrity));
        assert_eq!(Lockdown::parse(""), None);
    }
}
