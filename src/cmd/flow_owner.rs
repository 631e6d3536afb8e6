//! flows: looks which process holds the socket of a flow.

use std::io::{ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{Iter, Link, OpenObject};

use crate::skel::flow_owner::{FlowOwnerSkel, FlowOwnerSkelBuilder};
use crate::skel::{self, flows::FlowsSkel};

/// A look takes no more than this part of the time: a machine may have very many open files.
const REST: u32 = 50;

/// How long after it was new a flow is looked for once more: a socket is nobody's until it is
/// accepted.
const AGAIN: Duration = Duration::from_secs(1);

/// Looks at all open files of all processes when new flows have come.
pub struct Owners<'obj> {
    skel: FlowOwnerSkel<'obj>,
    link: Link,
    pass: u32,
    /// Flows that there ever were at the last look.
    known: u64,
    /// Not before this.
    due: Instant,
    /// Once more.
    again: Option<Instant>,
}

impl<'obj> Owners<'obj> {
    /// Loads the program for this table, which is for so many interfaces of this network
    /// namespace.
    ///
    /// # Errors
    /// The kernel lacks something, or a privilege is missing.
    pub fn new(
        storage: &'obj mut MaybeUninit<OpenObject>,
        flows: &FlowsSkel<'_>,
        interfaces: usize,
    ) -> Result<Self> {
        let netns = std::fs::metadata("/proc/self/ns/net")
            .context("failed to look at the network namespace")?;
        let mut open = FlowOwnerSkelBuilder::default().open(storage)?;
        let rodata = open
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the program has no settings")?;
        rodata.netns = u32::try_from(netns.ino())?;
        rodata.interfaces = u32::try_from(interfaces)?;
        let (maps, table) = (&mut open.maps, &flows.maps);
        maps.flow_slots.reuse_fd(table.flow_slots.as_fd())?;
        maps.slots.reuse_fd(table.slots.as_fd())?;
        let skel = open.load()?;
        let link = skel.progs.flow_owner.attach()?;
        Ok(Self {
            skel,
            link,
            pass: 0,
            known: 0,
            due: Instant::now(),
            again: None,
        })
    }

    /// Looks, if there is reason to; `ever` is how many flows there ever were.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn look(&mut self, ever: u64) -> Result<()> {
        let started = Instant::now();
        let is_new = ever != self.known;
        if started < self.due || !(is_new || self.again.is_some_and(|again| started >= again)) {
            return Ok(());
        }
        self.known = ever;
        self.again = is_new.then_some(started + AGAIN);
        self.look_now()?;
        self.due = Instant::now() + started.elapsed() * REST;
        Ok(())
    }

    fn look_now(&mut self) -> Result<()> {
        let bss = self.skel.maps.bss_data.as_deref_mut();
        let bss = bss.context("the program has no place for the number of the look")?;
        // Zero is what a flow has before any.
        self.pass = self.pass.checked_add(1).unwrap_or(1);
        skel::set_owner_pass(bss, self.pass);
        let mut files = Iter::new(&self.link).context("failed to look at open files")?;
        // Nothing is written to it: it is read to its end for what the program does meanwhile.
        let mut nothing = [0; 64];
        loop {
            match files.read(&mut nothing) {
                Ok(0) => return Ok(()),
                // There are a million files before the end.
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(error) => return Err(error).context("failed to look at open files"),
            }
        }
    }
}
