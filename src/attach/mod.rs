//! The only place that attaches programs. What is returned detaches when it is dropped.

pub mod clsact;
pub mod event;
pub mod load;
pub mod mapping;
pub mod probe;
pub mod ring;
pub mod tc;
pub mod xdp;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::{Rc, Weak};

/// The side of an interface that a TC program sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Packets that come in.
    Ingress,
    /// Packets that go out.
    Egress,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// A bpf_link of an interface. It lives as long as its file descriptor: the kernel detaches the
/// program when this is dropped, or when the process ends, however it ends.
pub struct Link(Rc<OwnedFd>);

impl Link {
    fn create(
        program: BorrowedFd<'_>,
        ifindex: u32,
        attach_type: libbpf_sys::bpf_attach_type,
        flags: u32,
    ) -> io::Result<Self> {
        let opts = libbpf_sys::bpf_link_create_opts {
            sz: size_of::<libbpf_sys::bpf_link_create_opts>() as libbpf_sys::size_t,
            flags,
            ..Default::default()
        };
        let ifindex =
            i32::try_from(ifindex).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: `opts` is valid for the call and its size is set; the descriptor is open.
        let fd = unsafe {
            libbpf_sys::bpf_link_create(program.as_raw_fd(), ifindex, attach_type, &raw const opts)
        };
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(-fd));
        }
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        Ok(Self(Rc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// A way to ask about it that does not keep it attached.
    pub fn state(&self) -> LinkState {
        let info = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        LinkState {
            link: Rc::downgrade(&self.0),
            info: File::open(info).ok(),
        }
    }
}

/// Tells whether a link still has its interface.
pub struct LinkState {
    link: Weak<OwnedFd>,
    /// What the kernel says of it. Before Linux 5.19 bpf(2) says so only to processes with CAP_BPF,
    /// and later no file can be opened.
    info: Option<File>,
}

impl LinkState {
    /// False once the link is dropped or its interface deleted, in whatever network namespace that
    /// was. Where there is no /proc to tell it, it is true.
    pub fn is_attached(&self) -> bool {
        let Some(_link) = self.link.upgrade() else {
            return false;
        };
        let mut text = [0; 1024];
        let read = self.info.as_ref().map(|info| info.read_at(&mut text, 0));
        let Some(Ok(len)) = read else {
            return true;
        };
        // Of XDP and of tcx links alike this is the interface; 0 once it is deleted.
        let mut lines = text[..len].split(|byte| *byte == b'\n');
        !lines.any(|line| line == b"ifindex:\t0")
    }
}

/// Lends a descriptor that `owner` keeps open.
pub(crate) fn borrow_fd<T>(owner: &T, fd: i32) -> BorrowedFd<'_> {
    let _ = owner;
    // SAFETY: the owner closes the descriptor when it is dropped, which the lifetime precludes.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// How often the kernel skipped a program because it was running on that CPU already. Kernels
/// that don't tell don't skip either, and those that skip tell without any privilege.
pub fn skipped_runs(program: BorrowedFd<'_>) -> u64 {
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of::<libbpf_sys::bpf_prog_info>() as u32;
    // SAFETY: `info` is valid for `len` bytes, zeroed, and asks for no array.
    let ret = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            program.as_raw_fd(),
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    if ret == 0 { info.recursion_misses } else { 0 }
}

/// Waits until no CPU runs a program that was detached before: all it did can be counted then.
pub fn synchronize() {
    // MEMBARRIER_CMD_GLOBAL waits for an RCU grace period, and programs run in RCU readers.
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let ret = unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if ret != 0 {
        // A kernel with isolated CPUs refuses; a program runs for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
