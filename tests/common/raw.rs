//! Sends and receives frames as they are.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::ptr;

use nix::errno::Errno;
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socket};

/// A packet socket that sends frames as they are, or receives them.
pub struct RawSocket {
    fd: OwnedFd,
}

impl RawSocket {
    /// To send on an interface of the namespace that the calling thread is in.
    pub fn open(interface: &str) -> Self {
        // Protocol 0 receives nothing.
        Self::of_protocol(interface, 0)
    }

    /// To receive all frames of an interface of the namespace that the calling thread is in.
    pub fn open_to_receive(interface: &str) -> Self {
        Self::of_protocol(interface, libc::ETH_P_ALL as u16)
    }

    fn of_protocol(interface: &str, protocol: u16) -> Self {
        // What it receives is chosen by binding it.
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Packet, SockType::Raw, flags, None).unwrap();
        // SAFETY: all zeros is a value of this struct of integers.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = protocol.to_be();
        addr.sll_ifindex = if_nametoindex(interface).unwrap().cast_signed();
        // SAFETY: the address is valid for the call, and its length is its size.
        let ret = unsafe {
            libc::bind(
                fd.as_raw_fd(),
                (&raw const addr).cast(),
                size_of_val(&addr) as libc::socklen_t,
            )
        };
        check(ret, "bind");
        Self { fd }
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// After [`PATIENCE`](super::PATIENCE) without room for it.
    pub fn send(&self, frame: &[u8]) {
        let sent = super::wait_for("room for a frame", || {
            match send(self.fd.as_raw_fd(), frame, MsgFlags::empty()) {
                // The backlog of a busy machine was full, and the other end has not seen the frame.
                Err(Errno::ENOBUFS) => None,
                sent => Some(sent),
            }
        });
        sent.unwrap();
    }

    /// The next frame.
    ///
    /// # Panics
    /// After [`PATIENCE`](super::PATIENCE) without one.
    pub fn receive(&self) -> Vec<u8> {
        let mut fds = [PollFd::new(self.fd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(super::PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, timeout), Ok(1), "no frame");
        let mut frame = vec![0; 65536];
        let received = recv(self.fd.as_raw_fd(), &mut frame, MsgFlags::empty());
        frame.truncate(received.unwrap());
        frame
    }

    /// Sends frames by PACKET_TX_RING: the kernel makes packets of them in which only the Ethernet
    /// header is linear.
    pub fn send_by_ring(self, frames: &[Vec<u8>]) {
        const SLOT: usize = 2048;
        const BLOCK: usize = 4096;
        // TPACKET2_HDRLEN - sizeof(struct sockaddr_ll): where the frame begins in its slot.
        const DATA: usize = 32;
        let blocks = frames.len().div_ceil(BLOCK / SLOT);
        let version = libc::tpacket_versions::TPACKET_V2 as i32;
        self.option(libc::PACKET_VERSION, &version);
        let request = libc::tpacket_req {
            tp_block_size: BLOCK as u32,
            tp_block_nr: blocks as u32,
            tp_frame_size: SLOT as u32,
            tp_frame_nr: (blocks * BLOCK / SLOT) as u32,
        };
        self.option(libc::PACKET_TX_RING, &request);
        let len = blocks * BLOCK;
        // SAFETY: a new mapping of the socket's ring, at an address that the kernel chooses.
        let ring = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.fd.as_raw_fd(),
                0,
            )
        };
        assert_ne!(ring, libc::MAP_FAILED, "{}", io::Error::last_os_error());
        for (i, frame) in frames.iter().enumerate() {
            assert!(frame.len() <= SLOT - DATA);
            // SAFETY: slot `i` is inside the mapping, header and data fit in it (asserted), and
            // the kernel reads a slot only once its status says so, which is written last.
            unsafe {
                let slot = ring.cast::<u8>().add(i * SLOT);
                ptr::copy_nonoverlapping(frame.as_ptr(), slot.add(DATA), frame.len());
                let header = slot.cast::<libc::tpacket2_hdr>();
                (*header).tp_len = frame.len() as u32;
                (&raw mut (*header).tp_status).write_volatile(libc::TP_STATUS_SEND_REQUEST);
            }
        }
        // This sends what the ring holds, and returns when all of it is sent.
        send(self.fd.as_raw_fd(), &[], MsgFlags::empty()).unwrap();
        // SAFETY: the mapping made above, of which no reference is left.
        unsafe { libc::munmap(ring, len) };
    }

    fn option<T>(&self, name: i32, value: &T) {
        // SAFETY: the value is valid for the call, and its length is its size.
        let ret = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                name,
                ptr::from_ref(value).cast(),
                size_of::<T>() as libc::socklen_t,
            )
        };
        check(ret, "setsockopt");
    }
}

/// A tun device, which carries IP packets without an Ethernet header. It is gone when this is
/// dropped.
pub struct Tun(File);

impl Tun {
    /// Makes one in the namespace that the calling thread is in.
    ///
    /// # Errors
    /// The kernel has no tun devices.
    pub fn new(name: &str) -> Result<Self, String> {
        const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .map_err(|error| format!("no tun devices: {error}"))?;
        // SAFETY: all zeros is a value of this struct of integers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as i16;
        // SAFETY: the request is valid for the call.
        let ret = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw mut request) };
        if ret != 0 {
            return Err(format!("no tun devices: {}", io::Error::last_os_error()));
        }
        Ok(Self(file))
    }

    /// Lets a packet come in on the device.
    pub fn receive(&mut self, packet: &[u8]) {
        self.0.write_all(packet).unwrap();
    }
}

fn check(ret: i32, call: &str) {
    assert!(ret >= 0, "{call}: {}", io::Error::last_os_error());
}
