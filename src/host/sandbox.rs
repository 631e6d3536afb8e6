//! A seccomp filter that leaves the process the system calls it still needs when all is attached.
//!
//! The capabilities are dropped by then, but a process of root still owns the files of root. So the
//! filter allows only what a run needs until its end: it waits, reads open files, writes, measures
//! time, and manages its memory. It can't create a process, a socket or executable memory, and can't
//! open a file for writing. There are two exceptions: exporter accepts connections, and a capture
//! with several files creates them. Of bpf(2) it can read and empty maps, and run the programs that
//! it has loaded.
//!
//! Everything else fails with `ENOSYS`, as on a kernel without that system call: C libraries then
//! try another way. Killing the process instead would lose the summary, and before Linux 6.6 leave a
//! TC filter behind, just because a system call is missing from this list.

use std::collections::BTreeMap;
use std::env::consts::ARCH;
use std::os::fd::RawFd;
use std::path::Path;

use super::containers::{POD_LOGS, cgroup_root};
use anyhow::{Context, Result};
use landlock::{
    ABI, Access, AccessFs, Ruleset, RulesetAttr, RulesetCreatedAttr, path_beneath_rules,
};
use nix::libc;
use nix::unistd::getpid;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter_all_threads,
};

/// Whether files can be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Files {
    /// No file can be opened.
    Opened,
    /// Files can be opened for reading.
    Readable,
    /// No file can be opened, but connections can be accepted from the listening socket that has
    /// this descriptor.
    Accepted(RawFd),
}

/// The access to capture files that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording<'a> {
    /// There is none.
    No,
    /// One that is open can be cut to its last whole packet.
    Opened,
    /// Others can be created in this directory as well.
    Rotated(&'a Path),
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
    libc::SYS_lseek,
    libc::SYS_fstat,
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
    // Locks, and the wait for programs that were detached.
    libc::SYS_futex,
    libc::SYS_membarrier,
    // Signals, and the ids of this process.
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

/// Older system calls, which newer architectures do not have.
#[cfg(target_arch = "x86_64")]
const OLD: &[i64] = &[libc::SYS_poll, libc::SYS_epoll_wait, libc::SYS_getpgrp];
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[i64] = &[];

/// Reads metadata of files, and directories.
const LOOKING: &[i64] = &[libc::SYS_statx, libc::SYS_newfstatat, libc::SYS_getdents64];

/// Commands of bpf(2) that read maps, run programs and iterators, and query and detach links, all by
/// descriptors that this process already has.
const BPF: &[u32] = &[
    libbpf_sys::BPF_MAP_LOOKUP_ELEM,
    libbpf_sys::BPF_MAP_GET_NEXT_KEY,
    libbpf_sys::BPF_MAP_LOOKUP_BATCH,
    libbpf_sys::BPF_MAP_LOOKUP_AND_DELETE_BATCH,
    libbpf_sys::BPF_PROG_TEST_RUN,
    libbpf_sys::BPF_ITER_CREATE,
    libbpf_sys::BPF_LINK_DETACH,
    libbpf_sys::BPF_OBJ_GET_INFO_BY_FD,
];

/// Commands of fcntl(2): to duplicate a descriptor and to look at it. With F_SETOWN, F_SETSIG and
/// O_ASYNC the kernel would send any signal to any process of this user.
const FCNTL: &[u32] = &[
    libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    libc::F_GETFD.cast_unsigned(),
    libc::F_GETFL.cast_unsigned(),
];

/// Requests of ioctl(2): to query, set up and restore a terminal, to ask how much is unread in a pipe,
/// and to stop a perf event. Newer C libraries use the second form of the first
/// four.
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
    0x541b,      // FIONREAD
    0x2401,      // PERF_EVENT_IOC_DISABLE
];

/// Permanently denies all threads of this process every system call that the run no longer needs.
///
/// # Errors
/// The kernel has no seccomp filters, or there is no list for this architecture. Nothing is changed
/// then.
pub fn confine(files: Files, recording: Recording<'_>) -> Result<()> {
    if files == Files::Readable || matches!(recording, Recording::Rotated(_)) {
        limit_files(files, recording).context("failed to limit which files can be opened")?;
    }
    let arch = TargetArch::try_from(ARCH)?;
    let (refuse, allow) = (
        SeccompAction::Errno(libc::ENOSYS.cast_unsigned()),
        SeccompAction::Allow,
    );
    let filter = SeccompFilter::new(rules(files, recording)?, refuse, allow, arch)?;
    let program: seccompiler::BpfProgram = filter.try_into()?;
    apply_filter_all_threads(&program).context("failed to set a seccomp filter")
}

/// Limits this thread, the only one, to reading files of /proc, of the tree of cgroups and of the
/// logs of pods, which name the container and the pod of a process, and to creating capture files
/// in their directory. A kernel without Landlock (before 5.13) limits nothing.
fn limit_files(files: Files, recording: Recording<'_>) -> Result<()> {
    let handled = AccessFs::from_all(ABI::V5);
    let read = match files {
        Files::Readable => [Some("/proc".into()), cgroup_root(), Some(POD_LOGS.into())],
        Files::Opened | Files::Accepted(_) => [None, None, None],
    };
    let written = match recording {
        Recording::Rotated(directory) => Some(directory),
        Recording::No | Recording::Opened => None,
    };
    Ruleset::default()
        .handle_access(handled)?
        .create()?
        .add_rules(path_beneath_rules(
            read.into_iter().flatten(),
            AccessFs::ReadFile | AccessFs::ReadDir,
        ))?
        .add_rules(path_beneath_rules(
            written,
            AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::Truncate,
        ))?
        .restrict_self()?;
    Ok(())
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(files: Files, recording: Recording<'_>) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    for call in ALWAYS.iter().chain(OLD) {
        // Without conditions it is always allowed.
        rules.insert(*call, Vec::new());
    }
    rules.insert(libc::SYS_bpf, any_of(0, BPF)?);
    rules.insert(libc::SYS_ioctl, any_of(1, IOCTL)?);
    rules.insert(libc::SYS_fcntl, any_of(1, FCNTL)?);
    let name = libc::PR_SET_NAME.cast_unsigned();
    rules.insert(libc::SYS_prctl, any_of(0, &[name])?);
    // To itself: that is what abort() does.
    let own = getpid().as_raw().cast_unsigned();
    rules.insert(libc::SYS_tgkill, any_of(0, &[own])?);
    // Only on connected sockets, to the kernel or of exporter's clients: without an address.
    rules.insert(libc::SYS_sendto, without(4, u64::MAX)?);
    let executable = libc::PROT_EXEC.cast_unsigned().into();
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, without(2, executable)?);
    }
    if recording != Recording::No {
        rules.insert(libc::SYS_ftruncate, Vec::new());
    }
    if let Files::Accepted(socket) = files {
        let socket = socket.cast_unsigned();
        rules.insert(libc::SYS_accept4, any_of(0, &[socket])?);
        rules.insert(libc::SYS_shutdown, Vec::new());
    }
    // Flags with which openat(2) could change a file.
    let changing = libc::O_ACCMODE | libc::O_CREAT | libc::O_TRUNC;
    let mut opening = Vec::new();
    if files == Files::Readable {
        for call in LOOKING {
            rules.insert(*call, Vec::new());
        }
        opening.extend(without(2, changing.cast_unsigned().into())?);
    }
    if let Recording::Rotated(_) = recording {
        let all = changing | libc::O_APPEND | libc::O_EXCL | libc::O_PATH | libc::O_TMPFILE;
        let creating = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        opening.push(SeccompRule::new(vec![SeccompCondition::new(
            2,
            SeccompCmpArgLen::Qword,
            SeccompCmpOp::MaskedEq(all.cast_unsigned().into()),
            creating.cast_unsigned().into(),
        )?])?);
    }
    if !opening.is_empty() {
        rules.insert(libc::SYS_openat, opening);
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
