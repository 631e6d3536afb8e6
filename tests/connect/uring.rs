//! The part of io_uring(7) that connects and accepts need, by its system calls.

use std::net::SocketAddrV4;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};
use nix::sys::socket::{SockaddrIn, SockaddrLike};

const IORING_OP_ACCEPT: u8 = 13;
const IORING_OP_CONNECT: u8 = 16;
const IORING_ENTER_GETEVENTS: u32 = 1;
const IORING_OFF_SQES: i64 = 0x1000_0000;
const IORING_FEAT_SINGLE_MMAP: u32 = 1;
const PAGE: usize = 4096;

/// struct io_uring_params, of 30 words.
type Params = [u32; 30];
/// Words of [`Params`]: features, offsets in the rings.
const FEATURES: usize = 5;
const SQ_TAIL: usize = 11;
const SQ_ARRAY: usize = 16;
const CQ_HEAD: usize = 20;
const CQ_CQES: usize = 25;

/// struct io_uring_sqe, with names for the fields that are used here.
#[repr(C)]
struct Submission {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    addr_len: u64,
    addr: u64,
    rest: [u64; 5],
}

/// A ring for one request at a time.
pub struct Ring {
    fd: OwnedFd,
    params: Params,
    rings: NonNull<libc::c_void>,
    submissions: NonNull<libc::c_void>,
}

impl Ring {
    pub fn new() -> Result<Self, Errno> {
        let mut params: Params = [0; 30];
        // SAFETY: the kernel fills the parameters, which have the length that it expects.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, params.as_mut_ptr()) };
        let fd = i32::try_from(Errno::result(fd)?).unwrap();
        // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        assert!(params[FEATURES] & IORING_FEAT_SINGLE_MMAP != 0);
        let map = |offset| {
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            let page = NonZeroUsize::new(PAGE).unwrap();
            // SAFETY: a new mapping; both areas of a ring with one entry fit into a page.
            unsafe { mmap(None, page, access, MapFlags::MAP_SHARED, &fd, offset) }
        };
        Ok(Self {
            rings: map(0)?,
            submissions: map(IORING_OFF_SQES)?,
            params,
            fd,
        })
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: the kernel gave the offset of a word in the mapping, which lives as long as self.
        unsafe { AtomicU32::from_ptr(self.rings.byte_add(offset as usize).cast().as_ptr()) }
    }

    /// Connects and waits; returns what connect(2) would, or the negative error.
    pub fn connect(&mut self, socket: &OwnedFd, addr: SocketAddrV4) -> i32 {
        let addr = SockaddrIn::from(addr);
        let (addr_len, addr) = (u64::from(addr.len()), addr.as_ptr() as u64);
        self.request(IORING_OP_CONNECT, socket, addr_len, addr)
    }

    /// Waits for a connection; returns what accept(2) would, or the negative error.
    pub fn accept(&mut self, listener: &impl AsRawFd) -> i32 {
        self.request(IORING_OP_ACCEPT, listener, 0, 0)
    }

    fn request(&mut self, opcode: u8, fd: &impl AsRawFd, addr_len: u64, addr: u64) -> i32 {
        let submission = Submission {
            opcode,
            flags: 0,
            ioprio: 0,
            fd: fd.as_raw_fd(),
            addr_len,
            addr,
            rest: [0; 5],
        };
        // SAFETY: the mapping has room for one submission, and the kernel does not read it yet.
        unsafe { self.submissions.cast::<Submission>().write(submission) };
        self.word(self.params[SQ_ARRAY]).store(0, Ordering::Relaxed);
        self.word(self.params[SQ_TAIL])
            .fetch_add(1, Ordering::Release);
        // SAFETY: no memory is passed; what the submission points to outlives the call, which
        // waits for its completion.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                self.fd.as_raw_fd(),
                1,
                1,
                IORING_ENTER_GETEVENTS,
                std::ptr::null::<libc::sigset_t>(),
                0,
            )
        };
        assert_eq!(ret, 1, "{}", Errno::last());
        // A completion is user data of 8 bytes, the result and flags; the completion ring has two
        // entries.
        let head = self.word(self.params[CQ_HEAD]);
        let at = self.params[CQ_CQES] + (head.load(Ordering::Acquire) % 2) * 16 + 8;
        let result = self.word(at).load(Ordering::Acquire).cast_signed();
        head.fetch_add(1, Ordering::Release);
        result
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        for area in [self.rings, self.submissions] {
            // SAFETY: mapped in `new`, and not used any more.
            let _ = unsafe { munmap(area, PAGE) };
        }
    }
}
