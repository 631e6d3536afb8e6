//! Tiny programs: to find out what kinds of tracing the kernel allows, and to make tcx links ahead of
//! time.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use libbpf_sys::{bpf_insn, bpf_prog_load_opts};

/// The kernel's own number for "not supported" (include/linux/errno.h), which libc has no name for.
const ENOTSUPP: i32 = 524;

/// The name of programs that are unloaded at once.
const PROBE: &CStr = c"probe";

/// Tries to load and attach an fentry program of two instructions for a kernel function, given by
/// its BTF id. arm64 before Linux 6.4 loads such programs and refuses only to attach them.
///
/// # Errors
/// The kernel refuses fentry programs.
pub fn try_fentry(function: u32) -> io::Result<()> {
    let opts = bpf_prog_load_opts {
        expected_attach_type: libbpf_sys::BPF_TRACE_FENTRY,
        attach_btf_id: function,
        ..Default::default()
    };
    let program = load(libbpf_sys::BPF_PROG_TYPE_TRACING, &return_0(), opts, PROBE)?;
    // SAFETY: a program of this kind is attached without a name; the descriptor is open.
    let link = unsafe { libbpf_sys::bpf_raw_tracepoint_open(ptr::null(), program.as_raw_fd()) };
    match own(link) {
        Err(error) if error.raw_os_error() == Some(ENOTSUPP) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel can't attach fentry programs on this processor",
        )),
        attached => attached.map(drop),
    }
}

/// Tries to load a program that takes the address of a kernel variable, given by its BTF id.
///
/// # Errors
/// The kernel refuses it; without CONFIG_KALLSYMS_ALL it does not know the address.
pub fn try_variable(variable: u32) -> io::Result<()> {
    // r0 = &variable (BPF_LD | BPF_DW | BPF_IMM, in two halves)
    let mut address = instruction(0x18, variable.cast_signed());
    address.set_src_reg(libbpf_sys::BPF_PSEUDO_BTF_ID as u8);
    let [zero, exit] = return_0();
    let instructions = [address, bpf_insn::default(), zero, exit];
    let opts = bpf_prog_load_opts::default();
    load(
        libbpf_sys::BPF_PROG_TYPE_TRACEPOINT,
        &instructions,
        opts,
        PROBE,
    )
    .map(drop)
}

/// Loads a TC program that leaves each packet to the next one.
///
/// # Errors
/// The kernel refuses it.
pub fn pass_on() -> io::Result<OwnedFd> {
    const TCX_NEXT: i32 = -1;
    let [_, exit] = return_0();
    let instructions = [instruction(MOV, TCX_NEXT), exit];
    let opts = bpf_prog_load_opts::default();
    load(
        libbpf_sys::BPF_PROG_TYPE_SCHED_CLS,
        &instructions,
        opts,
        c"pass_on",
    )
}

/// Loads a program, which is unloaded when its descriptor is closed.
fn load(
    kind: libbpf_sys::bpf_prog_type,
    instructions: &[bpf_insn],
    mut opts: bpf_prog_load_opts,
    name: &CStr,
) -> io::Result<OwnedFd> {
    opts.sz = size_of_val(&opts) as libbpf_sys::size_t;
    // SAFETY: the strings end with NUL, the instructions and options outlive the call, and their
    // number and size are passed along.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
            name.as_ptr(),
            c"Dual BSD/GPL".as_ptr(),
            instructions.as_ptr(),
            instructions.len() as libbpf_sys::size_t,
            &raw mut opts,
        )
    };
    own(fd)
}

/// The descriptor that libbpf has returned, or its error.
fn own(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// An instruction whose registers are both r0, or that has none.
fn instruction(code: u8, imm: i32) -> bpf_insn {
    bpf_insn {
        code,
        imm,
        ..Default::default()
    }
}

/// `r0 = value` (linux/bpf.h: BPF_ALU64 | BPF_MOV | BPF_K).
const MOV: u8 = 0xb7;

/// `r0 = 0; exit` (BPF_JMP | BPF_EXIT).
fn return_0() -> [bpf_insn; 2] {
    [instruction(MOV, 0), instruction(0x95, 0)]
}
