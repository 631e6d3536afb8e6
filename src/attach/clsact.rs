//! TC programs on kernels before 6.6, which have no tcx links: a clsact qdisc
//! and a filter of kind `bpf` in direct-action mode.
//!
//! Neither is removed when its process ends. So the name of a filter says which process
//! made it (`owner`), and the next instance that attaches removes the filters of
//! processes that were killed. A qdisc has no name: if an instance of this program
//! made it, the name of that instance's filter says so too, and each later instance
//! copies this into the name of its own filter. So the last instance to detach knows
//! that it has to remove the qdisc, in whatever order they end.
//!
//! Limits of this kernel interface:
//! - If a process is killed between making the qdisc and adding its filter, the
//!   empty qdisc stays.
//! - The kernel can't be told to remove a qdisc only if it is empty. If another
//!   program adds a filter in the microseconds between the check and the removal,
//!   its filter is removed too.
//! - Filters that others add later may come before ours.

mod lock;
mod owner;
mod priority;
mod rtnl;

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;

use super::Direction;
use lock::NamespaceLock;
use owner::{FilterName, Liveness, Owner};
use rtnl::{Qdisc, Tc, TcFilter};

/// The handle of our filters, or the first free one after it: `tcpi` in ASCII. Other
/// programs add or replace filters by handles of their choice, usually 1; at the same
/// priority these must not be ours.
const HANDLE: u32 = 0x7463_7069;

/// How many times a priority and a handle are tried: another program may take them first.
const PLACE_ATTEMPTS: usize = 5;

/// A program that is attached by a clsact filter, which is removed when this is
/// dropped; so is the qdisc if an instance of this program made it and no filter
/// is left in it.
///
/// Removal needs `CAP_NET_ADMIN`, in the thread that drops it.
pub struct Clsact {
    tc: Tc,
    lock: NamespaceLock,
    direction: Direction,
    id: FilterId,
    name: FilterName,
    notes: Vec<String>,
    attached: bool,
}

/// Where a filter is: its priority and its handle.
type FilterId = (u16, u32);

impl Clsact {
    /// Attaches a loaded program of type `BPF_PROG_TYPE_SCHED_CLS` in the network
    /// namespace of this thread. It should return `TC_ACT_UNSPEC` (-1, the same as
    /// `TCX_NEXT`), so that the filters after it see the packet as well.
    ///
    /// Its filter is placed before those of others, and what killed instances
    /// have left on the interface is removed.
    ///
    /// # Errors
    ///
    /// If the kernel refuses: the cause is an [`Errno`], `EPERM` without
    /// `CAP_NET_ADMIN`, `ENOENT` without the module `sch_ingress` or `cls_bpf`.
    /// Also if another program's qdisc is in the way. After an error nothing is left.
    pub fn attach(
        program: BorrowedFd<'_>,
        program_name: &str,
        ifindex: u32,
        direction: Direction,
    ) -> Result<Self> {
        let mut tc = Tc::open(ifindex)?;
        let lock = NamespaceLock::open();
        let locked = lock.lock();
        let made_qdisc = match tc.create_qdisc() {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(Errno::ENOENT) => {
                return Err(Errno::ENOENT)
                    .context("the kernel has no clsact qdisc (module sch_ingress)");
            }
            Err(errno) => return Err(errno).context("failed to add a clsact qdisc"),
        };
        let mut clsact = Self {
            tc,
            lock,
            direction,
            id: (0, 0),
            name: FilterName {
                owner: Owner::this_process(),
                made_qdisc,
                program: program_name.to_owned(),
            },
            notes: Vec::new(),
            attached: false,
        };
        if let Err(error) = clsact.add_filter(program) {
            if made_qdisc {
                // The user has to know why attaching failed, not this.
                let _ = remove_empty_qdisc(&mut clsact.tc);
            }
            return Err(error);
        }
        drop(locked);
        clsact.check_order()?;
        Ok(clsact)
    }

    /// Notes for the user: what was cleaned up, and whether filters of other
    /// programs come first. They begin in lower case and do not name the interface.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// A way to ask whether the filter is still there. Another program may remove it, with the
    /// qdisc for example.
    ///
    /// # Errors
    ///
    /// If no netlink socket can be opened.
    pub fn state(&self) -> Result<FilterState> {
        Ok(FilterState {
            tc: self.tc.reopen()?,
            direction: self.direction,
            id: self.id,
            name: self.name.to_string(),
        })
    }

    /// Removes the filter, and the qdisc if it is ours and empty.
    ///
    /// # Errors
    ///
    /// If the kernel refuses. It is not an error if they are already gone.
    pub fn detach(mut self) -> Result<()> {
        self.remove()
    }

    fn add_filter(&mut self, program: BorrowedFd<'_>) -> Result<()> {
        let qdisc = self.tc.qdisc()?.context("the qdisc is gone again")?;
        check_qdisc(&qdisc, self.direction)?;
        let found = Found::survey(&mut self.tc, &qdisc, &self.name.owner)?;
        self.name.made_qdisc |= found.made_qdisc;
        self.id = self.place_filter(program)?;
        self.attached = true;
        // After that, so that at any time a filter says who made the qdisc.
        self.notes = found.clean(&mut self.tc);
        Ok(())
    }

    /// Adds the filter with the best priority.
    fn place_filter(&mut self, program: BorrowedFd<'_>) -> Result<FilterId> {
        let name = self.name.to_string();
        let mut attempts = 0;
        loop {
            let filters = self.tc.filters(self.direction)?;
            let priority = priority::choose(&priority::taken(&filters))
                .context("filters of other programs use every priority")?;
            let is_free = |handle: &u32| {
                !filters
                    .iter()
                    .any(|filter| (filter.priority, filter.handle) == (priority, *handle))
            };
            let handle = (HANDLE..).find(is_free).unwrap_or(HANDLE);
            let id = (priority, handle);
            attempts += 1;
            match self.tc.add_filter(self.direction, id, program, &name) {
                Ok(()) => return Ok(id),
                // Meanwhile another program has taken the handle, or has taken the
                // priority for another kind or protocol: choose again.
                Err(Errno::EEXIST | Errno::EINVAL | Errno::ENOSPC) if attempts < PLACE_ATTEMPTS => {
                }
                Err(Errno::ENOENT) => {
                    return Err(Errno::ENOENT)
                        .context("the kernel has no BPF classifier (module cls_bpf)");
                }
                Err(errno) => return Err(errno).context("failed to add a filter"),
            }
        }
    }

    fn check_order(&mut self) -> Result<()> {
        let filters = self.tc.filters(self.direction)?;
        let (priority, handle) = self.id;
        let before = priority::foreign_before(&filters, priority, handle);
        if before > 0 {
            self.notes.push(format!(
                "{before} {} filter{} of other programs come{} first: packets that stop there \
                 are not seen",
                self.direction,
                if before == 1 { "" } else { "s" },
                if before == 1 { "s" } else { "" },
            ));
        }
        Ok(())
    }

    fn find(&mut self) -> Result<Option<TcFilter>> {
        let name = self.name.to_string();
        let filters = self.tc.filters(self.direction)?;
        Ok(filters.into_iter().find(|filter| {
            (filter.priority, filter.handle) == self.id && filter.name.as_ref() == Some(&name)
        }))
    }

    fn remove(&mut self) -> Result<()> {
        if !self.attached {
            return Ok(());
        }
        let _locked = self.lock.lock();
        // If another process has removed the filter, the qdisc may be another one by
        // now, so it stays.
        if let Some(filter) = self.find()? {
            delete(&mut self.tc, &filter).context("failed to remove our filter")?;
            if self.name.made_qdisc {
                remove_empty_qdisc(&mut self.tc)?;
            }
        }
        self.attached = false;
        Ok(())
    }
}

/// Finds out whether a filter is still there. This needs no privilege, and opens no file.
pub struct FilterState {
    tc: Tc,
    direction: Direction,
    id: FilterId,
    name: String,
}

impl FilterState {
    /// False once the filter, its qdisc or its interface is gone, or another filter has its place.
    /// If the kernel can't be asked, it is true.
    pub fn is_attached(&mut self) -> bool {
        let found = self.tc.filter_name(self.direction, self.id);
        found.is_err() || found == Ok(Some(self.name.clone()))
    }
}

impl Drop for Clsact {
    fn drop(&mut self) {
        // An error can't be reported from here. `detach` reports it.
        let _ = self.remove();
    }
}

/// Removes what killed instances have left on an interface, and says what it was.
///
/// For commands that attach in another way, or not at all: [`Clsact::attach`] does this
/// itself.
///
/// # Errors
///
/// If the kernel can't be asked. What could not be removed is among the notes.
pub fn remove_stale(ifindex: u32) -> Result<Vec<String>> {
    let mut tc = Tc::open(ifindex)?;
    let lock = NamespaceLock::open();
    let _locked = lock.lock();
    let Some(qdisc) = tc.qdisc()? else {
        return Ok(Vec::new());
    };
    let found = Found::survey(&mut tc, &qdisc, &Owner::this_process())?;
    if found.stale.is_empty() {
        return Ok(Vec::new());
    }
    let made_qdisc = found.made_qdisc;
    let mut notes = found.clean(&mut tc);
    if made_qdisc && remove_empty_qdisc(&mut tc)? {
        notes.push("removed the clsact qdisc that a killed run had added".to_owned());
    }
    Ok(notes)
}

/// The filters of instances of this program on an interface.
struct Found {
    stale: Vec<(TcFilter, FilterName)>,
    /// Those whose process may or may not be alive.
    unknown: Vec<(TcFilter, FilterName)>,
    made_qdisc: bool,
}

impl Found {
    fn survey(tc: &mut Tc, qdisc: &Qdisc, here: &Owner) -> Result<Self> {
        let mut found = Self {
            stale: Vec::new(),
            unknown: Vec::new(),
            made_qdisc: false,
        };
        for &direction in qdisc.directions() {
            for filter in tc.filters(direction)? {
                let Some(name) = priority::our_name(&filter) else {
                    continue;
                };
                found.made_qdisc |= name.made_qdisc;
                match name.owner.liveness(here) {
                    Liveness::Alive => {}
                    Liveness::Gone => found.stale.push((filter, name)),
                    Liveness::Unknown => found.unknown.push((filter, name)),
                }
            }
        }
        Ok(found)
    }

    /// Removes what is stale and says what was done.
    fn clean(self, tc: &mut Tc) -> Vec<String> {
        let mut notes = Vec::new();
        for (filter, name) in self.stale {
            let what = format!(
                "the {} filter {} that process {} had left when it was killed",
                filter.direction, name.program, name.owner.pid
            );
            notes.push(match delete(tc, &filter) {
                Ok(()) => format!("removed {what}"),
                Err(errno) => format!("failed to remove {what}: {errno}"),
            });
        }
        notes.extend(self.unknown.into_iter().map(|(filter, name)| {
            format!(
                "kept the {} filter {} of process {}: can't find out whether that process still runs",
                filter.direction, name.program, name.owner.pid
            )
        }));
        notes
    }
}

/// Checks that a filter can be added to this qdisc, which may be another
/// program's.
fn check_qdisc(qdisc: &Qdisc, direction: Direction) -> Result<()> {
    if !qdisc.directions().contains(&direction) {
        bail!(
            "another program's {} qdisc is there, which has no {direction}, and a clsact qdisc \
             can't be added alongside it",
            qdisc.kind
        );
    }
    if qdisc.shared.contains(&direction) {
        bail!("its filters are in a shared block, which other interfaces use too");
    }
    Ok(())
}

/// Removes one of our filters. It is not an error if it is already gone.
fn delete(tc: &mut Tc, filter: &TcFilter) -> Result<(), Errno> {
    match tc.delete_filter(filter) {
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(()),
        result => result,
    }
}

/// Removes a clsact qdisc that has no filters and no chains, and says whether
/// it did.
fn remove_empty_qdisc(tc: &mut Tc) -> Result<bool> {
    let Some(qdisc) = tc.qdisc()? else {
        return Ok(false);
    };
    if !qdisc.is_clsact() || !qdisc.shared.is_empty() {
        return Ok(false);
    }
    for &direction in qdisc.directions() {
        if !tc.filters(direction)?.is_empty() || tc.has_chains(direction)? {
            return Ok(false);
        }
    }
    match tc.delete_qdisc() {
        Ok(()) => Ok(true),
        Err(Errno::ENOENT | Errno::ENODEV) => Ok(false),
        Err(errno) => Err(errno).context("failed to remove our clsact qdisc"),
    }
}
