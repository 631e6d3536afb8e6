//! Lists TCP sockets by the kernel's socket diagnostics (sock_diag(7)), as ss(8) does.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc::{AF_INET, AF_INET6, IPPROTO_TCP};
use nix::sys::socket::{SockFlag, SockProtocol};

use super::netlink::{Socket, attributes, read_u32};
use crate::domain::listener::{ListeningSocket, Local};

const SOCK_DIAG_BY_FAMILY: u16 = 20;

/// `INET_DIAG_SKMEMINFO`, an array with an element `SK_MEMINFO_DROPS`.
const SKMEMINFO: u16 = 7;
const MEMINFO_DROPS: usize = 8;
/// `INET_DIAG_SKV6ONLY`: the socket takes no IPv4 connections.
const SKV6ONLY: u16 = 11;
/// `INET_DIAG_SOCKOPT`, which Linux 5.10 lacks: a bit field, whose bit 5 is `IP_TRANSPARENT`.
const SOCKOPT: u16 = 22;
const TRANSPARENT: u8 = 1 << 5;

/// States such as `TCP_ESTABLISHED` as bits of a request.
const ESTABLISHED: u32 = 1 << 1;
const SYN_RECV: u32 = 1 << 3;
const CLOSE_WAIT: u32 = 1 << 8;
const LISTEN: u32 = 1 << 10;

/// Offset of `struct inet_diag_sockid` in `struct inet_diag_req_v2`, and size of the request.
const SOCKID_AT: usize = 8;
const REQUEST_LEN: usize = 56;
/// Size of `struct inet_diag_msg`, and offsets of its members.
const MESSAGE_LEN: usize = 72;
const RQUEUE_AT: usize = 56;
const WQUEUE_AT: usize = 60;
const UID_AT: usize = 64;
const INODE_AT: usize = 68;

/// A socket that was found by addresses and ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// It is a listener.
    pub listens: bool,
    /// The inode of its file; 0: no process has it open.
    pub inode: u32,
    /// It waits in the queue of a listener. A socket that a process has closed is in another state.
    pub is_queued: bool,
    /// It also takes connections to addresses that are not this machine's (`IP_TRANSPARENT`).
    pub is_transparent: bool,
}

/// A connection that no process has accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Its end on this machine.
    pub local: (IpAddr, u16),
    /// The other end.
    pub remote: (IpAddr, u16),
    /// The interface that it is bound to; 0: none.
    pub bound_ifindex: u32,
    /// The final ACK has not come.
    pub is_half_open: bool,
}

/// A netlink socket for the network namespace in which it was opened.
pub struct SockDiag(Socket);

impl SockDiag {
    /// Opens the netlink socket.
    ///
    /// # Errors
    /// The kernel has no socket diagnostics.
    pub fn open() -> Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        Ok(Self(Socket::open(protocol, 0, SockFlag::empty())?))
    }

    /// All listening TCP sockets.
    ///
    /// # Errors
    /// The kernel refuses, for example because it has no `tcp_diag`.
    pub fn listening(&mut self) -> Result<Vec<ListeningSocket>> {
        let mut sockets = self.dump(AF_INET, LISTEN, listening_socket)?;
        sockets.extend(self.dump(AF_INET6, LISTEN, listening_socket)?);
        Ok(sockets)
    }

    /// The local ends of all half-open connections.
    ///
    /// # Errors
    /// As for [`SockDiag::listening`].
    pub fn half_open(&mut self) -> Result<Vec<Local>> {
        let mut sockets = self.dump(AF_INET, SYN_RECV, local)?;
        sockets.extend(self.dump(AF_INET6, SYN_RECV, local)?);
        Ok(sockets)
    }

    /// Connections that no process has accepted: those that are half-open, and those that wait in the
    /// queue of a listener.
    ///
    /// # Errors
    /// As for [`SockDiag::listening`].
    pub fn waiting(&mut self) -> Result<Vec<Waiting>> {
        let mut states = SYN_RECV;
        if self.listening()?.iter().any(|socket| socket.queue_len > 0) {
            states |= ESTABLISHED | CLOSE_WAIT;
        }
        let mut waiting = self.dump(AF_INET, states, waiting)?;
        waiting.extend(self.dump(AF_INET6, states, self::waiting)?);
        Ok(waiting.into_iter().flatten().collect())
    }

    /// The socket that a segment from `remote` to `local` reaches, which may be a listener. The
    /// segment comes in at interface `ifindex`. With 0, no socket is found that is bound to an
    /// interface.
    ///
    /// # Errors
    /// The request fails.
    pub fn find(
        &mut self,
        local: (IpAddr, u16),
        remote: (IpAddr, u16),
        ifindex: u32,
    ) -> Result<Option<Found>, Errno> {
        let family = match local.0 {
            IpAddr::V4(_) => AF_INET,
            IpAddr::V6(_) => AF_INET6,
        };
        let mut request = request(family, u32::MAX);
        request[8..10].copy_from_slice(&local.1.to_be_bytes());
        request[10..12].copy_from_slice(&remote.1.to_be_bytes());
        put_address(&mut request[12..28], local.0);
        put_address(&mut request[28..44], remote.0);
        request[44..48].copy_from_slice(&ifindex.to_ne_bytes());
        // With any cookie (`INET_DIAG_NOCOOKIE`).
        request[48..].fill(0xff);
        match self.0.get(SOCK_DIAG_BY_FAMILY, &request) {
            Ok(message) => Ok(found(&message)),
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    fn dump<T>(
        &mut self,
        family: i32,
        states: u32,
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        let request = request(family, states);
        self.0.dump(SOCK_DIAG_BY_FAMILY, &request, decode)
    }
}

/// `struct inet_diag_req_v2` for a family and states, with any address.
fn request(family: i32, states: u32) -> [u8; REQUEST_LEN] {
    let mut request = [0; REQUEST_LEN];
    request[0] = family.to_le_bytes()[0];
    request[1] = IPPROTO_TCP.to_le_bytes()[0];
    // One bit per attribute: the lowest for attribute 1.
    request[2] = 1 << (SKMEMINFO - 1);
    request[4..SOCKID_AT].copy_from_slice(&states.to_ne_bytes());
    request
}

fn put_address(to: &mut [u8], address: IpAddr) {
    match address {
        IpAddr::V4(v4) => to[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => to.copy_from_slice(&v6.octets()),
    }
}

fn found(message: &[u8]) -> Option<Found> {
    let state = 1 << message.get(1)?;
    let inode = read_u32(message, INODE_AT)?;
    Some(Found {
        listens: LISTEN == state,
        inode,
        is_queued: inode == 0 && state & (ESTABLISHED | SYN_RECV | CLOSE_WAIT) != 0,
        is_transparent: attributes(message.get(MESSAGE_LEN..)?)
            .any(|(kind, value)| kind == SOCKOPT && is_transparent(value)),
    })
}

fn is_transparent(options: &[u8]) -> bool {
    options
        .first()
        .is_some_and(|options| options & TRANSPARENT != 0)
}

/// The inner `None`: a process has it.
fn waiting(message: &[u8]) -> Option<Option<Waiting>> {
    let local = local(message)?;
    let found = found(message)?;
    let remote = address(message, 24)?;
    let port = u16::from_be_bytes(*message.get(6..)?.first_chunk()?);
    Some(found.is_queued.then_some(Waiting {
        local: (local.addr, local.port),
        remote: (remote, port),
        bound_ifindex: local.ifindex,
        is_half_open: 1 << message.get(1)? == SYN_RECV,
    }))
}

fn local(message: &[u8]) -> Option<Local> {
    let message: &[u8; MESSAGE_LEN] = message.first_chunk()?;
    Some(Local {
        port: u16::from_be_bytes([message[4], message[5]]),
        addr: address(message, 8)?,
        ifindex: read_u32(message, 40)?,
    })
}

/// The address at this offset, of the family of the message.
fn address(message: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: &[u8; 16] = message.get(at..)?.first_chunk()?;
    Some(match i32::from(*message.first()?) {
        AF_INET => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
        AF_INET6 => Ipv6Addr::from(*bytes).to_canonical(),
        _ => return None,
    })
}

fn listening_socket(message: &[u8]) -> Option<ListeningSocket> {
    let mut socket = ListeningSocket {
        local: local(message)?,
        v6_only: false,
        is_transparent: false,
        cookie: u64::from(read_u32(message, 44)?) | u64::from(read_u32(message, 48)?) << 32,
        inode: read_u32(message, INODE_AT)?,
        queue_len: read_u32(message, RQUEUE_AT)?,
        queue_max: read_u32(message, WQUEUE_AT)?,
        uid: read_u32(message, UID_AT)?,
        drops: 0,
    };
    for (kind, value) in attributes(message.get(MESSAGE_LEN..)?) {
        match kind {
            SKMEMINFO => socket.drops = read_u32(value, 4 * MEMINFO_DROPS)?,
            SKV6ONLY => socket.v6_only = *value.first()? != 0,
            SOCKOPT => socket.is_transparent = is_transparent(value),
            _ => {}
        }
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_listening_socket_is_found_with_its_queue() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let waiting = std::net::TcpStream::connect(addr).unwrap();
        let sockets = SockDiag::open().unwrap().listening().unwrap();
        let mut found = sockets
            .iter()
            .filter(|socket| (socket.local.addr, socket.local.port) == (addr.ip(), addr.port()));
        let socket = found.next().unwrap();
        assert_eq!((socket.queue_len, socket.drops), (1, 0), "{socket:?}");
        assert!(socket.queue_max > 1 && socket.inode > 0, "{socket:?}");
        assert_eq!(found.next(), None);
        drop(waiting);
    }

    #[test]
    fn messages_cut_at_any_byte_are_not_sockets() {
        let message = [AF_INET.to_le_bytes()[0]; MESSAGE_LEN];
        assert!(listening_socket(&message).is_some());
        for len in 0..MESSAGE_LEN {
            assert_eq!(listening_socket(&message[..len]), None, "{len} bytes");
        }
    }
}
