//! What tracing the kernel allows, found by a cheap try before a whole program is loaded for it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use libbpf_rs::btf::TypeId;

/// Tries to load a program of two instructions for the entry of a kernel function.
///
/// # Errors
/// What the kernel says to fentry programs.
pub fn fentry(function: TypeId) -> io::Result<()> {
    // r0 = 0; exit (linux/bpf.h: BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT)
    let instructions = [0xb7, 0x95].map(|code| libbpf_sys::bpf_insn {
        code,
        ..Default::default()
    });
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: libbpf_sys::BPF_TRACE_FENTRY,
        attach_btf_id: function.into(),
        ..Default::default()
    };
    // SAFETY: the strings end with NUL, the instructions and options outlive the call, and the
    // size and number of these are told.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_TRACING,
            c"probe".as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as libbpf_sys::size_t,
            &raw mut opts,
        )
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// Whether the kernel has kprobes; true as well where sysfs can't tell.
pub fn has_kprobes() -> bool {
    let devices = Path::new("/sys/bus/event_source/devices");
    !devices.exists() || devices.join("kprobe").exists()
}
