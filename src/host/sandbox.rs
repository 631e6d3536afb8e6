//! What the process may still ask of the kernel once all is set up: a seccomp filter.
//!
//! The capabilities are gone by then, but a process of root owns root's files all the same. So
//! what is left is what a run does until its end: it waits, reads what is open, writes, measures
//! time, and manages its memory. It can't make a process, a socket or executable memory, can't
//! open a file for writing, and of bpf(2) it has what reads maps and runs the programs that it has.
//!
//! Anything else fails with `ENOSYS`, as on a kernel that lacks it: that is the error for which C
//! libraries have another way. To kill the process instead would lose the summary, and on kernels
//! before 6.6 leave a filter behind, for a system call that was forgotten here.

use std::collections::BTreeMap;
use std::env::consts::ARCH;

use anyhow::{Context, Result};
use nix::libc;
use nix::unistd::getpid;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

/// Whether files can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// What is open is all there is.
    Opened,
    /// Others can be opened, for reading.
    Readable,
}

/// System calls that are allowed whatever their arguments are.
const ALWAYS: &[i64] = &[
    // Reading and writing what is open; waiting for it.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_splice,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_close,
    libc::SYS_ppoll,
    libc::SYS_epoll_pwait,
    // Memory; mmap and mprotect are below.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Time, and randomness for the keys of hash tables.
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_getrandom,
    // Threads, of which the one for signals may only be starting, and signals.
    libc::SYS_futex,
    libc::SYS_membarrier,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_getpid,
    libc::SYS_getpgid,
    libc::SYS_gettid,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The older names that newer architectures do without.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_getpgrp];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// What looks at files, besides opening them.
const LOOKING: &[i64] = &[libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_getdents64];

/// Commands of bpf(2): they read maps, run programs and iterators, and tell of links, all by
/// descriptors that this process has already.
const BPF: &[u32] = &[
    libbpf_sys::BPF_MAP_LOOKUP_ELEM,
    libbpf_sys::BPF_MAP_GET_NEXT_KEY,
    libbpf_sys::BPF_PROG_TEST_RUN,
    libbpf_sys::BPF_ITER_CREATE,
    libbpf_sys::BPF_OBJ_GET_INFO_BY_FD,
];

/// Requests of ioctl(2): to look at a terminal and whose it is, to set it up and to give it back,
/// and to stop a perf event. The second form of the first four is that of newer C libraries.
const IOCTL: &[u32] = &[
    0x5401,      // TCGETS
    0x5402,      // TCSETS
    0x5403,      // TCSETSW
    0x5404,      // TCSETSF
    0x802c_542a, // TCGETS2
    0x402c_542b, // TCSETS2
    0x402c_542c, // TCSETSW2
    0x402c_542d, // TCSETSF2
    0x540f,      // TIOCGPGRP
    0x5413,      // TIOCGWINSZ
    0x2401,      // PERF_EVENT_IOC_DISABLE
];

/// Takes everything from all threads of this process, for good, that a run does not need any more.
///
/// # Errors
/// The kernel has no seccomp filters, or there is no list for this architecture. Nothing is taken
/// then.
pub fn confine(files: Files) -> Result<()> {
    let arch = TargetArch::try_from(ARCH)?;
    let (refuse, allow) = (
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        SeccompAction::Allow,
    );
    let filter = SeccompFilter::new(rules(files)?, refuse, allow, arch)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    apply_filter_all_threads(&program).context("failed to set a seccomp filter")
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(files: Files) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    for call in ALWAYS.iter().chain(OLD) {
        // Without conditions it is always allowed.
        rules.insert(*call, Vec::new());
    }
    rules.insert(libc::SYS_bpf, any_of(0, BPF)?);
    rules.insert(libc::SYS_ioctl, any_of(1, IOCTL)?);
    let name = libc::PR_SET_NAME.cast_unsigned();
    rules.insert(libc::SYS_prctl, any_of(0, &[name])?);
    // To itself: that is what abort() does.
    let own = getpid().as_raw().cast_unsigned();
    rules.insert(libc::SYS_tgkill, any_of(0, &[own])?);
    // On what is connected already, which is netlink to the kernel: to no address.
    rules.insert(libc::SYS_sendto, without(4, u64::MAX)?);
    let executable = libc::PROT_EXEC.cast_unsigned().into();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, without(2, executable)?);
    }
    if files == Files::Readable {
        for call in LOOKING {
            rules.insert(*call, Vec::new());
        }
        let changing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
        rules.insert(
            libc::SYS_openat,
            without(2, changing.cast_unsigned().into())?,
        );
    }
    Ok(rules)
}

/// Allows a call if the lower half of an argument is one of these.
fn any_of(argument: u8, values: &[u32]) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let rule = |value: &u32| {
        SeccompRule::new(vec![SeccompCondition::new(
            argument,
            SeccompCmpArgLen::Dword,
            SeccompCmpOp::Eq,
            u64::from(*value),
        )?])
    };
    values.iter().map(rule).collect()
}

/// Allows a call if none of these bits is set in an argument.
fn without(argument: u8, bits: u64) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    let condition = SeccompCondition::new(
        argument,
        SeccompCmpArgLen::Qword,
        SeccompCmpOp::MaskedEq(bits),
        0,
    )?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}
