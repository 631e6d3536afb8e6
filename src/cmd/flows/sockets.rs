//! Data from the sockets of this host: connections that are older than the tool, the kernel's
//! figures for a connection (`tcp_info`), and processes.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::skel::OpenSkel;
use libbpf_rs::{Iter, Link, OpenObject};

use super::Flows;
use crate::attach::load;
use crate::cli::FlowsArgs;
use crate::filter::FlagsRule;
use crate::host::interfaces::Interface;
use crate::host::netns;
use crate::run::iterator::{self, REST};
use crate::skel;
use crate::skel::flow_sockets::types::bss;
use crate::skel::flow_sockets::{FlowSocketsSkel, FlowSocketsSkelBuilder};
use crate::skel::flows::OpenFlowsMaps;
use crate::sys::object;

/// Scan once more this long after a new flow: an incoming connection has no process until it is
/// accepted.
const AGAIN: Duration = Duration::from_secs(1);

/// The maps that make up a table of flows.
pub struct TableMaps {
    flow_slots: OwnedFd,
    slots: OwnedFd,
    free_slots: OwnedFd,
    unused_slots: OwnedFd,
}

impl TableMaps {
    /// The created maps of an object that need not be loaded yet.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn of(maps: &OpenFlowsMaps<'_>) -> Result<Self> {
        Ok(Self {
            flow_slots: object::map_fd(&maps.flow_slots)?,
            slots: object::map_fd(&maps.slots)?,
            free_slots: object::map_fd(&maps.free_slots)?,
            unused_slots: object::map_fd(&maps.unused_slots)?,
        })
    }
}

/// Loads the programs that read sockets, for this table, which has flows of these interfaces, all in
/// this network namespace.
///
/// # Errors
/// The kernel lacks a feature, or a privilege is missing.
pub fn load<'obj>(
    storage: &'obj mut MaybeUninit<OpenObject>,
    args: &FlowsArgs,
    table: &TableMaps,
    interfaces: &[Interface],
) -> Result<FlowSocketsSkel<'obj>> {
    let (mut open, types) =
        load::open::<FlowSocketsSkelBuilder>(skel::flow_sockets::TYPES, storage)?;
    let rodata = open.maps.rodata_data.as_deref_mut();
    let rodata = rodata.context("the programs have no settings")?;
    rodata.own_netns = u32::try_from(netns::own()?)?;
    rodata.interfaces = u32::try_from(interfaces.len())?;
    for (to, interface) in rodata.ifindexes.iter_mut().zip(interfaces) {
        *to = interface.index;
    }
    rodata.max_flows = args.max_flows;
    let filter = args.packets.addresses.filter();
    filter.configure(&mut open)?;
    let maps = &mut open.maps;
    maps.flow_slots.reuse_fd(table.flow_slots.as_fd())?;
    maps.slots.reuse_fd(table.slots.as_fd())?;
    maps.free_slots.reuse_fd(table.free_slots.as_fd())?;
    maps.unused_slots.reuse_fd(table.unused_slots.as_fd())?;
    let skel = open.load()?;
    types.close();
    filter.fill(&skel)?;
    Ok(skel)
}

/// The attached programs that read sockets.
pub struct Sockets<'obj> {
    skel: FlowSocketsSkel<'obj>,
    /// Hooks that stay attached.
    _hooks: Vec<Link>,
    /// Iterates over all TCP sockets of the network namespace.
    sockets: Link,
    /// Iterates over all open files.
    files: Link,
    /// How many flows there had ever been at the last scan of files.
    known: u64,
    /// The earliest time of the next scan.
    due: Instant,
    /// When to scan once more, if that is needed.
    again: Option<Instant>,
}

impl<'obj> Sockets<'obj> {
    /// Attaches the loaded programs.
    ///
    /// # Errors
    /// The kernel lacks a feature, or a privilege is missing.
    pub fn attach(skel: FlowSocketsSkel<'obj>) -> Result<Self> {
        load::set_handler(&skel.maps.state_handler, &skel.progs.flow_state)?;
        let hooks = vec![
            skel.progs.flow_change.attach_trace()?,
            skel.progs.flow_skipped_change.attach_trace()?,
        ];
        let sockets = skel.progs.flow_sockets.attach()?;
        let files = skel.progs.flow_owner.attach()?;
        Ok(Self {
            _hooks: hooks,
            sockets,
            files,
            skel,
            known: 0,
            due: Instant::now(),
            again: None,
        })
    }

    fn bss(&mut self) -> Result<&mut bss> {
        let bss = self.skel.maps.bss_data.as_deref_mut();
        bss.context("the programs have no variables")
    }

    /// Adds the connections that are there already. Returns how many there was no room for.
    ///
    /// # Errors
    /// The kernel refuses to list sockets.
    pub fn seed(&mut self) -> Result<u64> {
        skel::set_seeding(self.bss()?, true);
        let listed = self.read_numbers();
        let bss = self.bss()?;
        skel::set_seeding(bss, false);
        listed?;
        let seeded = skel::seeded(bss);
        if seeded.found > 0 {
            // Now, because the first sweep may report an attempt.
            self.scan_now()?;
        }
        Ok(seeded.left_out)
    }

    /// How many flows were added for sockets.
    pub fn seeded(&self) -> u64 {
        let bss = self.skel.maps.bss_data.as_deref();
        bss.map_or(0, |bss| skel::seeded(bss).added)
    }

    /// Copies the kernel's figures (`tcp_info`) for all connections into the table.
    ///
    /// # Errors
    /// The kernel refuses to list sockets.
    pub fn read_numbers(&mut self) -> Result<()> {
        run(&self.sockets).context("failed to list TCP sockets")
    }

    /// Looks for processes by open files if there are new flows; `ever` is how many flows there
    /// have ever been.
    ///
    /// # Errors
    /// The kernel refuses the scan.
    pub fn scan(&mut self, ever: u64) -> Result<()> {
        let started = Instant::now();
        let is_new = ever != self.known;
        if started < self.due || !(is_new || self.again.is_some_and(|again| started >= again)) {
            return Ok(());
        }
        self.known = ever;
        self.again = is_new.then_some(started + AGAIN);
        self.scan_now()?;
        self.due = Instant::now() + started.elapsed() * REST;
        Ok(())
    }

    /// Looks for processes now.
    ///
    /// # Errors
    /// The kernel refuses the scan.
    pub fn scan_now(&mut self) -> Result<()> {
        run(&self.files).context("failed to look at open files")
    }
}

/// Whether a socket alone shows if the filter matches its connection.
pub fn suits_sockets(command: &Flows<'_>) -> bool {
    let filter = &command.filter;
    filter.flags == FlagsRule::default() && filter.payload.is_none() && filter.expression.is_none()
}

/// Runs an iterator whose program writes no output: reading to the end makes it visit everything.
fn run(link: &Link) -> Result<()> {
    let mut visits = Iter::new(link)?;
    while iterator::read(&mut visits, &mut [0; 64])? > 0 {}
    Ok(())
}
