//! bpf_links, programs and other uses of bpf(2) by file descriptor.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::{Rc, Weak};

/// A bpf_link on an interface. Dropping it detaches the program. If the process ends without that,
/// the kernel detaches the program, unless another process has a descriptor of the link.
pub struct Link(Rc<OwnedFd>);

impl Drop for Link {
    fn drop(&mut self) {
        // Closing is not enough if another process has a descriptor. Before Linux 5.19 this needs
        // CAP_BPF; without it, only closing is left.
        // SAFETY: the descriptor is open.
        let _ = unsafe { libbpf_sys::bpf_link_detach(self.0.as_raw_fd()) };
    }
}

impl From<OwnedFd> for Link {
    fn from(link: OwnedFd) -> Self {
        Self(Rc::new(link))
    }
}

impl Link {
    /// Attaches a program. Returns the descriptor instead of a [`Link`], which can't be sent to another
    /// thread.
    pub(crate) fn create(
        program: BorrowedFd<'_>,
        ifindex: u32,
        attach_type: libbpf_sys::bpf_attach_type,
        flags: u32,
    ) -> io::Result<OwnedFd> {
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
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Replaces the program. From now on the new one runs for each packet.
    pub(crate) fn update(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        let link = self.0.as_raw_fd();
        // SAFETY: both descriptors are open, and there are no options.
        match unsafe { libbpf_sys::bpf_link_update(link, program.as_raw_fd(), std::ptr::null()) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(-error)),
        }
    }

    /// Creates a handle to check the link, which does not keep it attached.
    pub fn state(&self) -> LinkState {
        let path = format!("/proc/self/fdinfo/{}", self.0.as_raw_fd());
        let info = File::open(path).ok();
        LinkState {
            link: Rc::downgrade(&self.0),
            program: info.as_ref().and_then(|info| field(info, "prog_id")),
            info,
        }
    }
}

/// Checks whether a link still has its interface and its program.
pub struct LinkState {
    link: Weak<OwnedFd>,
    /// The link's file in /proc/self/fdinfo. It is used because bpf(2) needs CAP_BPF before Linux
    /// 5.19, and is opened early because the sandbox allows no open(2) later.
    info: Option<File>,
    /// The id of the program that the link was created with.
    program: Option<u32>,
}

impl LinkState {
    /// False once the link is dropped, or detached by another process (BPF_LINK_DETACH), or has
    /// another program (BPF_LINK_UPDATE), or its interface is deleted in any network namespace.
    /// Without /proc it is always true until the link is dropped.
    pub fn is_attached(&self) -> bool {
        let Some(_link) = self.link.upgrade() else {
            return false;
        };
        let Some(info) = &self.info else {
            return true;
        };
        // XDP and tcx links both have this field: 0 once the interface is gone.
        field(info, "ifindex") != Some(0) && field(info, "prog_id") == self.program
    }
}

/// Reads a number from a file in /proc/PID/fdinfo.
fn field(info: &File, name: &str) -> Option<u32> {
    let mut text = [0; 1024];
    let len = info.read_at(&mut text, 0).ok()?;
    let text = str::from_utf8(text.get(..len)?).ok()?;
    let mut fields = text.lines().filter_map(|line| line.split_once(":\t"));
    let (_, value) = fields.find(|(field, _)| *field == name)?;
    value.trim().parse().ok()
}

/// Lends a descriptor that `owner` keeps open.
pub(crate) fn borrow_fd<T>(owner: &T, fd: i32) -> BorrowedFd<'_> {
    let _ = owner;
    // SAFETY: only dropping the owner closes the descriptor, and the lifetime prevents that.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// How often the kernel skipped a program because it was already running on that CPU. Kernels that
/// do not report this do not skip programs, and those that skip them report it without privileges.
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

/// Whether all commands of bpf(2) need a capability that this process lacks now. That is so before
/// Linux 5.19, unless kernel.unprivileged_bpf_disabled is 0.
pub fn needs_capability() -> bool {
    const NO_FILE: i32 = -1;
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut len = size_of_val(&info) as u32;
    // SAFETY: `info` is valid for `len` bytes.
    let ret = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(NO_FILE, (&raw mut info).cast(), &raw mut len)
    };
    // A process that may call it gets EBADF, because there is no such descriptor.
    ret == -nix::libc::EPERM
}

/// The XDP programs of an interface; `None` if the kernel does not tell.
pub fn query_xdp(ifindex: u32) -> Option<libbpf_sys::bpf_xdp_query_opts> {
    let mut opts = libbpf_sys::bpf_xdp_query_opts {
        sz: size_of::<libbpf_sys::bpf_xdp_query_opts>() as libbpf_sys::size_t,
        ..Default::default()
    };
    let ifindex = i32::try_from(ifindex).ok()?;
    // SAFETY: `opts` is valid for the call and its size is set.
    let ret = unsafe { libbpf_sys::bpf_xdp_query(ifindex, 0, &raw mut opts) };
    (ret == 0).then_some(opts)
}

/// Waits until no CPU runs a program that was detached before, so that its counters are final.
pub fn synchronize() {
    // MEMBARRIER_CMD_GLOBAL waits for an RCU grace period, and programs run in RCU readers.
    const MEMBARRIER_CMD_GLOBAL: i32 = 1;
    // SAFETY: membarrier takes three integers and touches no memory of ours.
    let ret = unsafe { nix::libc::syscall(nix::libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if ret != 0 {
        // A kernel with nohz_full CPUs refuses that. A program runs only for microseconds.
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}
