//! Finds the processes that have TCP sockets open: their holders.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use caps::Capability;
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{Iter, Link, OpenObject};

use crate::attach::load;
use crate::domain::listener::{Holder, ListeningSocket};
use crate::domain::until_nul;
use crate::host::privileges;
use crate::notice::{FirstNotice, Notices};
use crate::run::iterator::{self, REST};
use crate::skel::SocketHolder;
use crate::skel::socket_owner::{SocketOwnerSkel, SocketOwnerSkelBuilder};

/// Scan again after this time even if all sockets are known: processes pass sockets on, and exit.
const AGAIN: Duration = Duration::from_secs(5);

/// Which sockets to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Listening sockets.
    Listening,
    /// All TCP sockets.
    All,
}

/// The result of a scan.
#[derive(Default)]
struct KnownSockets {
    /// The holders of each socket, by its inode.
    holders: HashMap<u64, Vec<Holder>>,
    /// The inode of each listener, by the address of its `struct sock`.
    inodes: HashMap<u64, u64>,
}

/// Scans open files for TCP sockets, and keeps the result of the last scan.
pub struct Holders<'obj> {
    _skel: SocketOwnerSkel<'obj>,
    link: Link,
    known: KnownSockets,
    /// When the last scan ended.
    scanned_at: Instant,
    /// How long the last scan took.
    took: Duration,
    failure: FirstNotice,
}

impl<'obj> Holders<'obj> {
    /// Loads the program and scans once.
    ///
    /// # Errors
    /// The kernel lacks a feature, or a privilege is missing.
    pub fn new(
        storage: &'obj mut MaybeUninit<OpenObject>,
        which: Which,
        notices: Notices,
    ) -> Result<Self> {
        let (mut open, types) =
            load::open::<SocketOwnerSkelBuilder>(crate::skel::socket_owner::TYPES, storage)?;
        let rodata = open.maps.rodata_data.as_deref_mut();
        let rodata = rodata.context("the program has no settings")?;
        rodata.all_states = which == Which::All;
        let skel = open.load()?;
        types.close();
        let link = skel.progs.socket_owner.attach()?;
        let mut holders = Self {
            _skel: skel,
            link,
            known: KnownSockets::default(),
            scanned_at: Instant::now(),
            took: Duration::ZERO,
            failure: FirstNotice::new(notices),
        };
        holders.scan()?;
        Ok(holders)
    }

    /// The holders of all sockets found. Scans again first if one of `sockets` is not known, or the
    /// last scan is too old.
    ///
    /// # Errors
    /// The kernel refuses the scan.
    pub fn of(&mut self, sockets: &[ListeningSocket]) -> Result<&HashMap<u64, Vec<Holder>>> {
        let mut inodes = sockets.iter().map(|socket| socket.inode.into());
        if self.is_old() || inodes.any(|inode| self.may_find(inode)) {
            self.scan()?;
        }
        Ok(&self.known.holders)
    }

    /// The process that has this listener open; of several, the one with the lowest pid. Scans
    /// again as [`Holders::of`] does.
    pub fn of_listener(&mut self, inode: u64) -> Option<&Holder> {
        if self.is_old() || self.may_find(inode) {
            self.scan_again();
        }
        self.known.holders.get(&inode)?.first()
    }

    /// The process that has the socket of this inode open; of several, the one with the lowest pid.
    /// Scans again first if the inode is not known.
    pub fn of_inode(&mut self, inode: u64) -> Option<&Holder> {
        if self.may_find(inode) {
            self.scan_again();
        }
        self.known.holders.get(&inode)?.first()
    }

    /// The inode of the listener at this address of the kernel's memory. Scans again as
    /// [`Holders::of`] does.
    pub fn inode_at(&mut self, listener: u64) -> Option<u64> {
        let is_unknown = listener != 0 && !self.known.inodes.contains_key(&listener);
        if self.is_old() || (is_unknown && self.may_scan()) {
            self.scan_again();
        }
        self.known.inodes.get(&listener).copied()
    }

    fn is_old(&self) -> bool {
        self.scanned_at.elapsed() >= AGAIN
    }

    /// Whether to scan again because this inode is not known.
    fn may_find(&self, inode: u64) -> bool {
        inode != 0 && !self.known.holders.contains_key(&inode) && self.may_scan()
    }

    /// Whether enough time has passed since the last scan.
    fn may_scan(&self) -> bool {
        self.scanned_at.elapsed() >= self.took * REST
    }

    /// Scans once more. If this fails, the next unknown socket tries again.
    fn scan_again(&mut self) {
        if let Err(error) = self.scan() {
            let failure = &mut self.failure;
            failure.notice(&format!(
                "processes of new sockets can't be shown: {error:#}"
            ));
        }
    }

    /// Scans the open files of all processes.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn scan(&mut self) -> Result<()> {
        const FAILED: &str = "failed to look at open files";
        let started = Instant::now();
        let mut files = Iter::new(&self.link).context(FAILED)?;
        let mut bytes = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match iterator::read(&mut files, &mut chunk).context(FAILED)? {
                0 => break,
                len => bytes.extend_from_slice(&chunk[..len]),
            }
        }
        self.known = decode(&bytes);
        self.scanned_at = Instant::now();
        self.took = started.elapsed();
        Ok(())
    }
}

/// The capability that scans need for the rest of a run, if any.
///
/// # Errors
/// Capabilities can't be set.
pub fn needs(holders: Option<&mut Holders<'_>>) -> Result<Option<Capability>> {
    match holders {
        Some(holders) => privileges::needed_for(Capability::CAP_BPF, || holders.scan().is_ok()),
        None => Ok(None),
    }
}

/// The sockets, with the holders of each sorted by pid. A process with several descriptors is there
/// once.
fn decode(bytes: &[u8]) -> KnownSockets {
    let mut known = KnownSockets::default();
    for bytes in bytes.chunks_exact(size_of::<SocketHolder>()) {
        let mut raw = SocketHolder::default();
        // Can't fail: the chunk has the size of the struct.
        if plain::copy_from_bytes(&mut raw, bytes).is_err() {
            continue;
        }
        let comm = raw.comm.map(i8::cast_unsigned);
        if raw.listener != 0 {
            known.inodes.insert(raw.listener, raw.inode);
        }
        let of_socket = known.holders.entry(raw.inode).or_default();
        if of_socket.iter().all(|holder| holder.pid != raw.pid) {
            of_socket.push(Holder {
                pid: raw.pid,
                comm: until_nul(&comm).to_vec(),
                cgroup_id: raw.cgroup_id,
            });
        }
    }
    for of_socket in known.holders.values_mut() {
        of_socket.sort_by_key(|holder| holder.pid);
    }
    known
}
