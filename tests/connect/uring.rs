//! Connects and accepts by io_uring(7).

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode, squeue};
use nix::sys::socket::{SockaddrIn, SockaddrLike};

/// A ring for one request at a time.
pub struct Ring(IoUring);

impl Ring {
    pub fn new() -> io::Result<Self> {
        IoUring::new(1).map(Self)
    }

    /// Connects and waits; returns what connect(2) would, or the negative error.
    pub fn connect(&mut self, socket: &OwnedFd, addr: SocketAddrV4) -> i32 {
        let addr = SockaddrIn::from(addr);
        let socket = Fd(socket.as_raw_fd());
        self.request(&opcode::Connect::new(socket, addr.as_ptr(), addr.len()).build())
    }

    /// Waits for a connection; returns what accept(2) would, or the negative error.
    pub fn accept(&mut self, listener: &impl AsRawFd) -> i32 {
        let listener = Fd(listener.as_raw_fd());
        let accept = opcode::Accept::new(listener, ptr::null_mut(), ptr::null_mut());
        self.request(&accept.flags(nix::libc::SOCK_CLOEXEC).build())
    }

    fn request(&mut self, request: &squeue::Entry) -> i32 {
        // SAFETY: what the request points to outlives the call, which waits for its completion.
        unsafe { self.0.submission().push(request) }.unwrap();
        self.0.submit_and_wait(1).unwrap();
        self.0.completion().next().unwrap().result()
    }
}
