//! accept-trace: finds the process of the listener of a failed attempt, and how long the accept
//! queue of that listener has been full.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
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
    sockets: HashMap<Endpoint, ListeningSocket>,
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
            sockets: HashMap::new(),
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
            Ok(sockets) => {
                let placed = sockets.into_iter();
                self.sockets = placed
                    .map(|socket| ((socket.local.addr, socket.local.port), socket))
                    .collect();
            }
            Err(error) => self.failure.notice(&format!(
                "processes of new listeners can't be shown: {error:#}"
            )),
        }
    }

    /// The process that listens where an attempt was sent; of several, the one with the lowest pid.
    /// `None` if the attempt is forwarded: its listener is elsewhere.
    pub fn find(&mut self, attempt: &Attempt) -> Option<&Holder> {
        let (local, (saddr, _)) = attempt.socket();
        if self.listed.is_none_or(|at| at.elapsed() >= AGAIN) {
            self.listed = Some(Instant::now());
            self.list();
            self.forwarded.clear();
        }
        let socket = *listener_at(&self.sockets, local)?;
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

/// The listener that is bound to this address, or to all addresses.
fn listener_at(
    sockets: &HashMap<Endpoint, ListeningSocket>,
    local: Endpoint,
) -> Option<&ListeningSocket> {
    let (addr, port) = local;
    let any_v6 = (IpAddr::from(Ipv6Addr::UNSPECIFIED), port);
    let own = sockets.get(&local);
    match addr {
        IpAddr::V4(_) => own
            .or_else(|| sockets.get(&(Ipv4Addr::UNSPECIFIED.into(), port)))
            .or_else(|| sockets.get(&any_v6).filter(|socket| !socket.v6_only)),
        IpAddr::V6(_) => own.or_else(|| sockets.get(&any_v6)),
    }
}

/// From when until when an accept queue is known to have been full, on the kernel's monotonic clock.
#[derive(Clone, Copy)]
struct Full {
    since: u64,
    until: u64,
}

/// Since when accept queues are full.
#[derive(Default)]
pub struct FullQueues {
    queues: HashMap<Endpoint, Full>,
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
        let (place, _) = attempt.socket();
        let Some(full) = full else {
            // A failed attempt may have arrived long ago, so room then means nothing now.
            if !attempt.has_failed() {
                self.queues.remove(&place);
            }
            return None;
        };
        if self.queues.len() >= REMEMBERED {
            self.queues.clear();
        }
        let known = self.queues.entry(place).or_insert(full);
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

    fn socket(addr: &str, v6_only: bool) -> (Endpoint, ListeningSocket) {
        let addr = addr.parse().unwrap();
        let socket = ListeningSocket {
            local: Local {
                port: 80,
                addr,
                ifindex: 0,
            },
            v6_only,
            is_transparent: false,
            cookie: 0,
            inode: 0,
            queue_len: 0,
            queue_max: 0,
            uid: 0,
            drops: 0,
        };
        ((addr, 80), socket)
    }

    #[test]
    fn a_listener_is_found_by_its_address_or_by_all() {
        let all = [("192.0.2.1", false), ("::", false)];
        let sockets = all.map(|(addr, v6_only)| socket(addr, v6_only)).into();
        let at = |addr: &str| {
            let found = listener_at(&sockets, (addr.parse().unwrap(), 80));
            found.map(|socket| socket.local.addr.to_string())
        };
        assert_eq!(at("192.0.2.1").as_deref(), Some("192.0.2.1"));
        assert_eq!(at("192.0.2.2").as_deref(), Some("::"));
        assert_eq!(at("2001:db8::1").as_deref(), Some("::"));
        let only_v6 = [socket("::", true)].into();
        let v4 = ("192.0.2.1".parse().unwrap(), 80);
        assert_eq!(listener_at(&only_v6, v4), None);
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
