//! Whether a way of tracing kernel functions is there at all, found out for less than it takes to
//! load and relocate the whole program.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;
use std::ptr;

use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::Func;

/// Loads a program of two instructions for the entry of a function, and attaches it to nothing.
///
/// # Errors
/// The kernel refuses fentry programs, or has no such function.
pub fn try_fentry(btf: &Btf<'_>, function: &str) -> io::Result<()> {
    let function = btf
        .type_by_name::<Func<'_>>(function)
        .ok_or(io::ErrorKind::NotFound)?;
    let mut opts = libbpf_sys::bpf_prog_load_opts {
        sz: size_of::<libbpf_sys::bpf_prog_load_opts>() as libbpf_sys::size_t,
        expected_attach_type: libbpf_sys::BPF_TRACE_FENTRY,
        attach_btf_id: function.type_id().into(),
        ..Default::default()
    };
    let mut return_zero = [libbpf_sys::bpf_insn::default(); 2];
    // r0 = 0
    return_zero[0].code = (libbpf_sys::BPF_ALU64 | libbpf_sys::BPF_MOV | libbpf_sys::BPF_K) as u8;
    return_zero[1].code = (libbpf_sys::BPF_JMP | libbpf_sys::BPF_EXIT) as u8;
    // SAFETY: name may be null; the other pointers are valid for the call and of the length given.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            libbpf_sys::BPF_PROG_TYPE_TRACING,
            ptr::null(),
            c"Dual BSD/GPL".as_ptr(),
            return_zero.as_ptr(),
            return_zero.len() as libbpf_sys::size_t,
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

/// Looks for kprobes. Where they can't be looked for, they may be there.
///
/// # Errors
/// The kernel has none.
pub fn try_kprobe() -> io::Result<()> {
    let devices = Path::new("/sys/bus/event_source/devices");
    if !devices.exists() || devices.join("kprobe").exists() {
        return Ok(());
    }
    Err(io::Error::other(
        "this kernel has no kprobes (CONFIG_KPROBES)",
    ))
}
