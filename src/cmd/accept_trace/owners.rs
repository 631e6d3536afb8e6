//! accept-trace: finds the process of the listener of a failed attempt, and how long the accept
//! queue of that listener has been full.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use libbpf_rs::OpenObject;

use crate::domain::incoming::Attempt;
use crate::domain::listener::{Holder, ListeningSocket};
use crate::host::routes::Routes;
use crate::host::sock_diag::SockDiag;
use crate::notice::{FirstNotice, Notices};
use crate::run::holders::{Holders, Which};
use crate::skel::AcceptFlag;

/// The shortest time between two lists of listeners: there can be very many failures.
const AGAIN: Duration = Duration::from_secs(1);

/// How many listeners with a full queue, and destinations, are remembered.
const REMEMBERED: usize = 4096;

/// The address and port of a listener.
type Endpoint = (IpAddr, u16);

/// Finds the processes that have listeners open.
pub struct Owners<'obj> {
    holders: Holders<'obj>,
    diag: SockDiag,
    routes: Routes,
    sockets: Listening,
    /// Whether packets from an interface to an address are forwarded.
    forwarded: HashMap<(u32, IpAddr), bool>,
    listed: Option<Instant>,
    failure: FirstNotice,
}

impl<'obj> Owners<'obj> {
    /// Loads the program that scans open files.
    ///
    /// # Errors
    /// The kernel lacks a feature, or a privilege is missing.
    pub fn new(storage: &'obj mut MaybeUninit<OpenObject>, notices: Notices) -> Result<Self> {
        Ok(Self {
            holders: Holders::new(storage, Which::Listening, notices)?,
            diag: SockDiag::open()?,
            routes: Routes::open()?,
            sockets: Listening::default(),
            forwarded: HashMap::new(),
            listed: None,
            failure: FirstNotice::new(notices),
        })
    }

    /// Scans all open files.
    ///
    /// # Errors
    /// The kernel refuses the scan.
    pub fn scan(&mut self) -> Result<()> {
        self.holders.scan()
    }

    /// Lists the listeners. If this fails, those of the last list are used.
    fn list(&mut self) {
        match self.diag.listening() {
            Ok(sockets) => self.sockets = Listening::of(sockets),
            Err(error) => self.failure.notice(&format!(
                "processes of new listeners can't be shown: {error:#}"
            )),
        }
    }

    /// The process that listens where an attempt was sent; of several that hold the socket, the one
    /// with the lowest pid. `None` if the attempt is forwarded: its listener is elsewhere.
    pub fn find(&mut self, attempt: &Attempt) -> Option<&Holder> {
        let (local, (saddr, _)) = attempt.socket();
        if self.listed.is_none_or(|at| at.elapsed() >= AGAIN) {
            self.listed = Some(Instant::now());
            self.list();
            self.forwarded.clear();
        }
        let inode = self.holders.inode_at(attempt.raw.attempt.listener);
        let of_address = inode.and_then(|inode| self.sockets.with_inode(inode, local.1));
        let socket = *of_address.or_else(|| self.sockets.at(local, interface(attempt)))?;
        if socket.local.addr.is_unspecified() && !socket.is_transparent {
            if self.forwarded.len() >= REMEMBERED {
                self.forwarded.clear();
            }
            let ifindex = attempt.raw.attempt.ifindex;
            let routes = &mut self.routes;
            let forwarded = self.forwarded.entry((ifindex, local.0));
            if *forwarded.or_insert_with(|| routes.forward(ifindex, saddr, local.0) == Ok(true)) {
                return None;
            }
        }
        self.holders.of_listener(socket.inode.into())
    }
}

/// The interface that the socket of an attempt is bound to, else that of its SYN; 0: not known.
fn interface(attempt: &Attempt) -> u32 {
    match attempt.raw.attempt.bound_ifindex {
        0 => attempt.raw.attempt.ifindex,
        bound => bound,
    }
}

/// The listening sockets of the network namespace.
#[derive(Default)]
struct Listening(HashMap<u16, Vec<ListeningSocket>>);

impl Listening {
    fn of(sockets: Vec<ListeningSocket>) -> Self {
        let mut by_port = HashMap::<u16, Vec<ListeningSocket>>::new();
        for socket in sockets {
            by_port.entry(socket.local.port).or_default().push(socket);
        }
        Self(by_port)
    }

    fn on(&self, port: u16) -> impl Iterator<Item = &ListeningSocket> {
        self.0.get(&port).into_iter().flatten()
    }

    /// The one with this inode, if it listens on this port: the kernel reuses the memory of sockets.
    fn with_inode(&self, inode: u64, port: u16) -> Option<&ListeningSocket> {
        self.on(port)
            .find(|socket| u64::from(socket.inode) == inode)
    }

    /// The listener that takes a SYN to `local` that comes in at an interface. One that is bound to
    /// the address is preferred to one for all addresses, and then one that is bound to the
    /// interface. If the interface belongs to a VRF, the socket may be bound to another one.
    fn at(&self, local: Endpoint, ifindex: u32) -> Option<&ListeningSocket> {
        let (addr, port) = local;
        let takes = |socket: &&ListeningSocket| {
            let own = socket.local.addr;
            let is_dual = own.is_ipv6() && !socket.v6_only;
            own == addr || (own.is_unspecified() && (own.is_ipv4() == addr.is_ipv4() || is_dual))
        };
        self.on(port).filter(takes).min_by_key(|socket| {
            let own = socket.local;
            let is_other = own.ifindex != 0 && own.ifindex != ifindex;
            let is_other_family = own.addr.is_ipv4() != addr.is_ipv4();
            (
                is_other,
                own.addr != addr,
                own.ifindex == 0,
                is_other_family,
                socket.inode,
            )
        })
    }
}

/// From when until when an accept queue is known to have been full, on the kernel's monotonic clock.
#[derive(Clone, Copy)]
struct Full {
    since: u64,
    until: u64,
}

/// Since when accept queues have been full.
#[derive(Default)]
pub struct FullQueues {
    /// By the address of the listener in the kernel's memory, which is reused, and its port.
    queues: HashMap<(u64, u16), Full>,
}

impl FullQueues {
    /// Notes the state of the queue that an attempt found. Returns for how many nanoseconds the
    /// queue is known to have been full. What became of it after the last SYN is not known.
    pub fn note(&mut self, attempt: &Attempt) -> Option<u64> {
        if !attempt.has(AcceptFlag::ATTEMPT_HAS_LISTENER) {
            return None;
        }
        let full = full_during(attempt);
        if full.is_none() && self.queues.is_empty() {
            return None;
        }
        let ((_, port), _) = attempt.socket();
        let listener = (attempt.raw.attempt.listener, port);
        let Some(full) = full else {
            // A failed attempt may have arrived long ago, so room then means nothing now.
            if !attempt.has_failed() {
                self.queues.remove(&listener);
            }
            return None;
        };
        if self.queues.len() >= REMEMBERED {
            self.queues.clear();
        }
        let known = self.queues.entry(listener).or_insert(full);
        known.since = known.since.min(full.since);
        known.until = known.until.max(full.until);
        Some(known.until - known.since)
    }
}

/// When an attempt found the accept queue full: by its SYNs, else by its final ACK, whose time is
/// not known, but which came after a SYN-ACK.
fn full_during(attempt: &Attempt) -> Option<Full> {
    let raw = &attempt.raw;
    let (since, until) = if attempt.has(AcceptFlag::ATTEMPT_ACCEPT_QUEUE_FULL) {
        (raw.attempt.syn_ns, raw.attempt.last_syn_ns)
    } else if attempt.has(AcceptFlag::ATTEMPT_ACK_DROPPED) {
        (raw.attempt.last_syn_ack_ns, raw.attempt.last_syn_ack_ns)
    } else {
        return None;
    };
    // 0: it came before this run.
    let since = if since == 0 { raw.ts_ns } else { since };
    let until = until.max(since);
    Some(Full { since, until })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::listener::Local;
    use crate::skel::{AcceptEvent, AcceptFate};

    fn socket(addr: &str, ifindex: u32, inode: u32) -> ListeningSocket {
        ListeningSocket {
            local: Local {
                port: 80,
                addr: addr.parse().unwrap(),
                ifindex,
            },
            v6_only: false,
            is_transparent: false,
            cookie: 0,
            inode,
            queue_len: 0,
            queue_max: 0,
            uid: 0,
            drops: 0,
        }
    }

    /// The inode of the socket that takes a SYN.
    fn taker(sockets: &[ListeningSocket], addr: &str, ifindex: u32) -> Option<u32> {
        let listening = Listening::of(sockets.to_vec());
        let found = listening.at((addr.parse().unwrap(), 80), ifindex);
        found.map(|socket| socket.inode)
    }

    #[test]
    fn a_listener_is_found_by_its_address_or_by_all() {
        let sockets = [socket("192.0.2.1", 0, 1), socket("::", 0, 2)];
        assert_eq!(taker(&sockets, "192.0.2.1", 5), Some(1));
        assert_eq!(taker(&sockets, "192.0.2.2", 5), Some(2));
        assert_eq!(taker(&sockets, "2001:db8::1", 5), Some(2));
        let both = [socket("::", 0, 2), socket("0.0.0.0", 0, 3)];
        assert_eq!(taker(&both, "192.0.2.1", 5), Some(3));
        let mut v6_only = socket("::", 0, 2);
        v6_only.v6_only = true;
        assert_eq!(taker(&[v6_only], "192.0.2.1", 5), None);
        assert_eq!(taker(&[v6_only], "2001:db8::1", 5), Some(2));
    }

    #[test]
    fn a_listener_that_is_bound_to_the_interface_comes_first() {
        let sockets = [
            socket("0.0.0.0", 0, 1),
            socket("0.0.0.0", 5, 2),
            socket("0.0.0.0", 6, 3),
            socket("192.0.2.1", 0, 4),
        ];
        let found = [5, 6, 7].map(|ifindex| taker(&sockets, "192.0.2.2", ifindex));
        assert_eq!(found, [Some(2), Some(3), Some(1)]);
        assert_eq!(taker(&sockets, "192.0.2.1", 5), Some(4));
        // The interface of the SYN belongs to a VRF.
        assert_eq!(taker(&sockets[1..2], "192.0.2.2", 7), Some(2));
    }

    #[test]
    fn a_listener_is_known_by_its_inode_if_it_has_the_port() {
        let listening = Listening::of(vec![socket("::", 0, 1), socket("::", 0, 2)]);
        let port_of = |inode, port| {
            let found = listening.with_inode(inode, port);
            found.map(|socket| socket.inode)
        };
        assert_eq!([port_of(2, 80), port_of(2, 81)], [Some(2), None]);
        assert_eq!(port_of(3, 80), None);
    }

    #[test]
    fn a_queue_is_full_from_the_first_syn_that_found_it_so_to_the_last() {
        let mut queues = FullQueues::default();
        let attempt = |syns: [u64; 2], ts_ns, is_full, fate| {
            let mut raw = AcceptEvent {
                ts_ns,
                fate,
                ..AcceptEvent::default()
            };
            [raw.attempt.syn_ns, raw.attempt.last_syn_ns] = syns;
            raw.attempt.flags = AcceptFlag::ATTEMPT_HAS_LISTENER.0 as u16;
            if is_full {
                raw.attempt.flags |= AcceptFlag::ATTEMPT_ACCEPT_QUEUE_FULL.0 as u16;
            }
            Attempt { raw }
        };
        let (dropped, accepted) = (AcceptFate::FATE_DROPPED, AcceptFate::FATE_ACCEPTED);
        let mut note =
            |syns, ts_ns, is_full, fate| queues.note(&attempt(syns, ts_ns, is_full, fate));
        assert_eq!(note([100, 120], 150, true, dropped), Some(20));
        assert_eq!(note([200, 200], 250, true, dropped), Some(100));
        assert_eq!(note([110, 110], 260, true, dropped), Some(100));
        assert_eq!(note([260, 260], 270, false, accepted), None);
        assert_eq!(note([300, 310], 390, true, dropped), Some(10));
    }
}
