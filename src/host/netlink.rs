//! The part of netlink that is needed: a socket, requests, and iterators over
//! messages and attributes.
//!
//! Layouts are those of `<linux/netlink.h>`; everything is in host byte order
//! and aligned to 4 bytes. The bytes come from the kernel, but no length
//! is trusted: a message that does not fit ends the iteration.
//!
//! netlink-packet-route 0.34 with -core and -sys was tried: one program that dumps links and TC
//! filters is 765 KB larger with them than with this module, and the messages of ethtool and netdev
//! that are needed too are in none of the three.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, connect, recv,
    send, socket,
};

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

// In requests that read objects, the same bits mean something else.
/// Fail with `EEXIST` if the object exists.
pub(crate) const NLM_F_EXCL: u16 = 0x200;
/// Create the object if it does not exist.
pub(crate) const NLM_F_CREATE: u16 = 0x400;

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// Bytes of `struct rtmsg`: family and prefix length, and fields that are 0 in a request.
pub(super) const RTMSG_LEN: usize = 12;

const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;
/// Clears `NLA_F_NESTED` and `NLA_F_NET_BYTEORDER`.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

/// Bytes of the receive buffer. The kernel builds dumps in pieces of at most
/// 32 KiB (`netlink_dump()`) and a link with many virtual functions may ask for
/// more in a single message.
const BUFFER_LEN: usize = 64 * 1024;

/// How many times a dump is tried if changes interrupt it.
const DUMP_ATTEMPTS: usize = 5;

/// A netlink socket that talks to the kernel only.
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Socket {
    /// Opens a socket that joins the multicast `groups` (a bit mask).
    pub(crate) fn open(protocol: SockProtocol, groups: u32, flags: SockFlag) -> Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | flags,
            protocol,
        )
        .context("failed to open a netlink socket")?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))
            .context("failed to bind a netlink socket")?;
        // Once connected to port 0 no other process can send to this socket
        // (netlink_getsockbyportid()).
        connect(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))
            .context("failed to connect a netlink socket")?;
        Ok(Self {
            fd,
            buffer: vec![0; BUFFER_LEN],
            sequence: 0,
        })
    }

    /// Receives one datagram: some whole messages.
    pub(crate) fn receive(&mut self) -> Result<&[u8], Errno> {
        let len = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        // With MSG_TRUNC the length is that of the datagram, not of the copy.
        self.buffer.get(..len).ok_or(Errno::EMSGSIZE)
    }

    /// Sends a request for one object and returns the payload of the answer.
    pub(crate) fn get(&mut self, kind: u16, payload: &[u8]) -> Result<Vec<u8>, Errno> {
        let mut answer = Vec::new();
        self.exchange(kind, NLM_F_ACK, payload, &mut |found| {
            answer = found.to_vec();
        })?;
        Ok(answer)
    }

    /// Creates, changes or removes an object, and waits for the result. `flags`
    /// are those of creation: [`NLM_F_CREATE`], [`NLM_F_EXCL`].
    pub(crate) fn change(&mut self, kind: u16, flags: u16, payload: &[u8]) -> Result<(), Errno> {
        self.exchange(kind, NLM_F_ACK | flags, payload, &mut |_| {})
    }

    /// Asks for all objects of a kind and returns what `decode` makes of each
    /// payload. The answer is consistent: if the kernel says that something
    /// has changed meanwhile, the dump is repeated.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        payload: &[u8],
        decode: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..DUMP_ATTEMPTS {
            let mut found = Vec::new();
            match self.exchange(kind, NLM_F_DUMP, payload, &mut |payload| {
                found.extend(decode(payload));
            }) {
                Ok(()) => return Ok(found),
                // exchange() reports an interrupted dump in this way.
                Err(Errno::EAGAIN) => {}
                Err(errno) => return Err(errno).context("failed to read from netlink"),
            }
        }
        bail!("the list changed faster than it could be read")
    }

    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), Errno> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let request = request(kind, flags | NLM_F_REQUEST, sequence, payload)?;
        send(self.fd.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut interrupted = false;
        loop {
            for message in messages(self.receive()?) {
                if message.sequence != sequence {
                    continue;
                }
                interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_NOOP => {}
                    // Both begin with a negative errno, or 0 for success. NLMSG_DONE
                    // without it means success.
                    NLMSG_ERROR | NLMSG_DONE => {
                        return match read_i32(message.payload, 0).unwrap_or(0) {
                            0 if interrupted => Err(Errno::EAGAIN),
                            0 => Ok(()),
                            error => Err(Errno::from_raw(error.saturating_neg())),
                        };
                    }
                    _ => each(message.payload),
                }
            }
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// One netlink message.
pub(crate) struct Message<'a> {
    /// `nlmsg_type`: what the payload is.
    pub(crate) kind: u16,
    pub(crate) payload: &'a [u8],
    flags: u16,
    sequence: u32,
}

/// The messages of a datagram.
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let len = read_u32(bytes, 0)? as usize;
        let message = Message {
            kind: read_u16(bytes, 4)?,
            flags: read_u16(bytes, 6)?,
            sequence: read_u32(bytes, 8)?,
            payload: bytes.get(HEADER_LEN..len)?,
        };
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    })
}

/// The attributes (type without flags, value) of a payload.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(read_u16(bytes, 0)?);
        let kind = read_u16(bytes, 2)? & ATTRIBUTE_TYPE_MASK;
        let value = bytes.get(ATTRIBUTE_HEADER_LEN..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Appends an attribute, padded to 4 bytes. `EMSGSIZE` if its value is too long.
pub(crate) fn push_attribute(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) -> Result<(), Errno> {
    let len = ATTRIBUTE_HEADER_LEN + value.len();
    let len = u16::try_from(len).map_err(|_| Errno::EMSGSIZE)?;
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(())
}

/// A NUL-terminated attribute as a string.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(value.get(..end.unwrap_or(value.len())).unwrap_or_default())
        .into_owned()
}

pub(crate) fn read_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

pub(crate) fn read_i32(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn request(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Result<Vec<u8>, Errno> {
    let len = u32::try_from(HEADER_LEN + payload.len()).map_err(|_| Errno::EMSGSIZE)?;
    let mut bytes = Vec::with_capacity(HEADER_LEN + payload.len());
    bytes.extend(len.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend(0_u32.to_ne_bytes());
    bytes.extend(payload);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_come_back_as_they_were_pushed() {
        let mut bytes = Vec::new();
        push_attribute(&mut bytes, 3, b"veth0\0").unwrap();
        push_attribute(&mut bytes, 0x8000 | 18, &[]).unwrap();
        push_attribute(&mut bytes, 4, &1500_u32.to_ne_bytes()).unwrap();
        let found: Vec<_> = attributes(&bytes).collect();
        assert_eq!(
            found,
            [
                (3, &b"veth0\0"[..]),
                (18, &[][..]),
                (4, &1500_u32.to_ne_bytes()[..])
            ]
        );
        assert_eq!(text(found[0].1), "veth0");
        let too_long = push_attribute(&mut bytes, 5, &[0; 65536]);
        assert_eq!(too_long, Err(Errno::EMSGSIZE));
    }

    #[test]
    fn messages_cut_at_any_byte_end_the_iteration() {
        let mut bytes = request(16, 0, 7, b"abcdef").unwrap();
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        let first = bytes.len();
        bytes.extend(request(17, 0, 7, b"ghij").unwrap());
        let all: Vec<_> = messages(&bytes).map(|m| (m.kind, m.payload)).collect();
        assert_eq!(all, [(16, &b"abcdef"[..]), (17, &b"ghij"[..])]);
        for end in 0..bytes.len() {
            let expected = usize::from(end >= first - 2);
            assert_eq!(messages(&bytes[..end]).count(), expected, "cut at {end}");
        }
    }

    #[test]
    fn attributes_and_messages_with_a_wrong_length_are_left_out() {
        for len in [0_u16, 1, 3, 5, u16::MAX] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.extend(1_u16.to_ne_bytes());
            assert_eq!(attributes(&bytes).count(), 0, "attribute of {len}");
        }
        for len in [0_u32, 1, 15, 17, u32::MAX] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.resize(HEADER_LEN, 0);
            assert_eq!(messages(&bytes).count(), 0, "message of {len}");
        }
    }
}
