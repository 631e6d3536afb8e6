//! Finds the process whose socket a packet comes from or goes to, for capture files.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::Result;
use libbpf_rs::OpenObject;
use nix::errno::Errno;

use crate::domain::UnixNanos;
use crate::domain::listener::Holder;
use crate::host::routes::Routes;
use crate::host::sock_diag::SockDiag;
use crate::notice::{FirstNotice, Notices};
use crate::run::holders::{Holders, Which};

/// How long an answer is valid: ports are reused, and sockets are passed to other processes.
const KEPT: u64 = 1_000_000_000;

/// In each period of this many ns, at most [`BUDGET`] is spent on asking: in a flood every packet
/// has new ports.
const PERIOD: u64 = 100_000_000;
const BUDGET: Duration = Duration::from_millis(10);

/// The most connections that are remembered.
const REMEMBERED: usize = 65_536;

/// The two ends of a packet, each with its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ends {
    /// The end on this machine.
    pub local: (IpAddr, u16),
    /// The other end.
    pub remote: (IpAddr, u16),
    /// The index of the interface on which the packet is seen: a socket may be bound to it.
    pub interface: u32,
}

/// Asks the kernel for sockets and their processes, in the network namespace in which it was made.
pub struct Processes<'obj> {
    holders: Holders<'obj>,
    sockets: SockDiag,
    routes: Routes,
    known: HashMap<Ends, (Holder, UnixNanos)>,
    /// The answer for a listener, which is valid for one packet only.
    listener: Option<Holder>,
    period_start: UnixNanos,
    spent: Duration,
    failure: FirstNotice,
}

impl<'obj> Processes<'obj> {
    /// Loads the program that scans open files, and scans once.
    ///
    /// # Errors
    /// The kernel lacks a feature, or a privilege is missing.
    pub fn new(storage: &'obj mut MaybeUninit<OpenObject>, notices: Notices) -> Result<Self> {
        Ok(Self {
            holders: Holders::new(storage, Which::All, notices)?,
            sockets: SockDiag::open()?,
            routes: Routes::open()?,
            known: HashMap::new(),
            listener: None,
            period_start: 0,
            spent: Duration::ZERO,
            failure: FirstNotice::new(notices),
        })
    }

    /// The scanner of open files.
    pub fn holders(&mut self) -> &mut Holders<'obj> {
        &mut self.holders
    }

    /// The process of the socket for a packet of this time; `None` if none is known now.
    pub fn of(&mut self, ends: Ends, at: UnixNanos) -> Option<&Holder> {
        let is_fresh = |(_, since): &(Holder, UnixNanos)| at.abs_diff(*since) < KEPT;
        if !self.known.get(&ends).is_some_and(is_fresh) {
            self.known.remove(&ends);
            if at.abs_diff(self.period_start) >= PERIOD {
                self.period_start = at;
                self.spent = Duration::ZERO;
            }
            if self.spent >= BUDGET {
                return None;
            }
            let started = Instant::now();
            let found = self.ask(ends).unwrap_or_else(|errno| {
                let why = format!("processes of some packets can't be shown: {errno}");
                self.failure.notice(&why);
                None
            });
            self.spent += started.elapsed();
            let (holder, listens) = found?;
            // When the connection is accepted, its socket may be that of another process.
            if listens {
                self.listener = Some(holder);
                return self.listener.as_ref();
            }
            if self.known.len() >= REMEMBERED {
                self.known.clear();
            }
            self.known.insert(ends, (holder, at));
        }
        self.known.get(&ends).map(|(holder, _)| holder)
    }

    /// The process, and whether its socket is a listener.
    fn ask(&mut self, ends: Ends) -> Result<Option<(Holder, bool)>, Errno> {
        // A packet that is forwarded looks as if it were for a listener of any address.
        if !self.routes.is_local(ends.local.0)? {
            return Ok(None);
        }
        let Some(mut found) = self.sockets.find(ends.local, ends.remote, ends.interface)? else {
            return Ok(None);
        };
        if found.is_queued {
            let nobody = match ends.remote.0 {
                IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
                IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
            };
            let any = (nobody, 0);
            found = match self.sockets.find(ends.local, any, ends.interface)? {
                Some(listener) => listener,
                None => return Ok(None),
            };
        }
        let holder = self.holders.of_inode(found.inode.into());
        Ok(holder.map(|holder| (holder.clone(), found.listens)))
    }
}
