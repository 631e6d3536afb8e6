//! Attaches programs to the perf event of a tracepoint.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use libbpf_rs::{ErrorExt, Link, ProgramMut};
use nix::libc;

/// Attaches a program to the perf event of a tracepoint.
///
/// # Errors
/// As [`id`], or the kernel refuses the event or the program.
pub fn attach(program: &ProgramMut<'_>, tracepoint: &str) -> libbpf_rs::Result<Link> {
    let event = open(tracepoint)?;
    let link = program.attach_perf_event(event.as_raw_fd())?;
    // The link owns the descriptor now.
    let _ = event.into_raw_fd();
    Ok(link)
}

/// The id of a tracepoint, such as `sock/inet_sock_set_state`.
///
/// # Errors
/// tracefs is not mounted at /sys/kernel/tracing, or can't be read.
pub fn id(tracepoint: &str) -> io::Result<u64> {
    let path = format!("/sys/kernel/tracing/events/{tracepoint}/id");
    fs::read_to_string(&path)
        .and_then(|id| id.trim().parse().map_err(io::Error::other))
        .map_err(|error| io::Error::new(error.kind(), format!("{path}: {error}")))
}

/// Opens the perf event of a tracepoint.
///
/// libbpf does the same, but also looks below debugfs, which can automount tracefs there.
fn open(tracepoint: &str) -> libbpf_rs::Result<OwnedFd> {
    let attr = libbpf_sys::perf_event_attr {
        type_: libbpf_sys::PERF_TYPE_TRACEPOINT,
        size: size_of::<libbpf_sys::perf_event_attr>() as u32,
        config: id(tracepoint)?,
        ..Default::default()
    };
    let (every_process, cpu, no_group) = (-1, 0, -1);
    // SAFETY: the attributes outlive the call and contain their size.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_perf_event_open,
            &raw const attr,
            every_process,
            cpu,
            no_group,
            libc::c_ulong::from(libbpf_sys::PERF_FLAG_FD_CLOEXEC),
        )
    };
    if fd < 0 {
        let error = libbpf_rs::Error::from(io::Error::last_os_error());
        return Err(error.context(format!("failed to open the perf event of {tracepoint}")));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
