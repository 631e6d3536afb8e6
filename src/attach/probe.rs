//! What tracing the kernel allows, found by a cheap try before a whole program is loaded for it.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::Path;

use libbpf_sys::{bpf_insn, bpf_prog_load_opts};

/// Tries to load a program of two instructions for the entry of a kernel function, by its number
/// among the kernel's types.
///
/// # Errors
/// What the kernel says to fentry programs.
pub fn fentry(function: u32) -> io::Result<()> {
    let opts = bpf_prog_load_opts {
        expected_attach_type: libbpf_sys::BPF_TRACE_FENTRY,
        attach_btf_id: function,
        ..Default::default()
    };
    load(libbpf_sys::BPF_PROG_TYPE_TRACING, &return_0(), opts)
}

/// Tries to load a program that has the address of a variable of the kernel, by its number as well.
///
/// # Errors
/// What the kernel says to it; without CONFIG_KALLSYMS_ALL it does not know the address.
pub fn variable(variable: u32) -> io::Result<()> {
    // r0 = &variable (BPF_LD | BPF_DW | BPF_IMM, in two halves)
    let mut address = instruction(0x18, variable.cast_signed());
    address.set_src_reg(libbpf_sys::BPF_PSEUDO_BTF_ID as u8);
    let [zero, exit] = return_0();
    let instructions = [address, bpf_insn::default(), zero, exit];
    let opts = bpf_prog_load_opts::default();
    load(libbpf_sys::BPF_PROG_TYPE_TRACEPOINT, &instructions, opts)
}

/// Loads a program, and takes it away again.
fn load(
    kind: libbpf_sys::bpf_prog_type,
    instructions: &[bpf_insn],
    mut opts: bpf_prog_load_opts,
) -> io::Result<()> {
    opts.sz = size_of_val(&opts) as libbpf_sys::size_t;
    // SAFETY: the strings end with NUL, the instructions and options outlive the call, and the
    // size and number of these are told.
    let fd = unsafe {
        libbpf_sys::bpf_prog_load(
            kind,
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

/// An instruction that has no registers or the first one.
fn instruction(code: u8, imm: i32) -> bpf_insn {
    bpf_insn {
        code,
        imm,
        ..Default::default()
    }
}

/// `r0 = 0; exit` (linux/bpf.h: BPF_ALU64 | BPF_MOV | BPF_K, BPF_JMP | BPF_EXIT).
fn return_0() -> [bpf_insn; 2] {
    [instruction(0xb7, 0), instruction(0x95, 0)]
}

/// Whether the kernel has kprobes; true as well where sysfs can't tell.
pub fn has_kprobes() -> bool {
    let devices = Path::new("/sys/bus/event_source/devices");
    !devices.exists() || devices.join("kprobe").exists()
}
