//! Attaching to TC: a tcx link from Linux 6.6 on, a clsact filter before.

use std::borrow::Cow;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::{self, JoinHandle};

use anyhow::Result;
use libbpf_rs::ProgramMut;
use nix::errno::Errno;

use super::clsact::Clsact;
use super::{Direction, HookState, load};
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::sys::link::Link;
use crate::sys::object::LoadedProgram;
use crate::sys::tiny;

/// A program that can be attached to TC.
pub trait TcProgram: AsFd {
    /// The name that the kernel shows.
    fn name(&self) -> Cow<'_, str>;
}

impl TcProgram for ProgramMut<'_> {
    fn name(&self) -> Cow<'_, str> {
        libbpf_rs::Program::name(self).to_string_lossy()
    }
}

impl TcProgram for LoadedProgram {
    fn name(&self) -> Cow<'_, str> {
        LoadedProgram::name(self).into()
    }
}

/// A program attached to TC. It is detached when this is dropped.
pub enum TcLink {
    /// Goes away with the process, and is detached without any privilege.
    Tcx(Link),
    /// A filter, which has to be removed.
    Clsact(Box<Clsact>),
}

impl TcLink {
    /// The kind of attachment, as it is printed.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcx(_) => "tcx",
            Self::Clsact(_) => "clsact",
        }
    }

    /// Whether detaching needs CAP_NET_ADMIN.
    pub fn needs_privileges(&self) -> bool {
        matches!(self, Self::Clsact(_))
    }

    /// A way to ask whether it is still attached.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn state(&self) -> Result<HookState> {
        Ok(match self {
            Self::Tcx(link) => HookState::Link(link.state()),
            Self::Clsact(filter) => HookState::Filter(filter.state()?),
        })
    }

    /// Detaches. Returns a warning for the user if that failed.
    pub fn detach(self) -> Option<String> {
        let Self::Clsact(filter) = self else {
            return None;
        };
        let error = filter.detach().err()?;
        Some(format!("{error:#}; the next run removes it"))
    }
}

/// tcx links that are made ahead of time, with a program that does nothing; the real programs replace
/// it later. Another thread makes the links while the programs are loaded, because the kernel waits
/// for an RCU grace period when it makes a tcx link, which takes longer than to verify most programs.
/// It does not wait when the program of a link is replaced.
#[derive(Default)]
pub struct PreparedLinks {
    maker: Option<JoinHandle<Vec<PreparedLink>>>,
    made: Vec<PreparedLink>,
}

struct PreparedLink {
    ifindex: u32,
    direction: Direction,
    link: OwnedFd,
}

impl PreparedLinks {
    /// Starts to make links for these directions of interfaces, in this order. It stops at the first
    /// failure: before Linux 6.6 that is the first link. A program for which no link was made is
    /// attached in the usual way.
    pub fn start(wanted: Vec<(u32, Direction)>) -> Self {
        if wanted.is_empty() {
            return Self::default();
        }
        let make = move || {
            let Ok(program) = tiny::pass_on() else {
                return Vec::new();
            };
            let make = |(ifindex, direction)| {
                let link = create(program.as_fd(), ifindex, direction).ok()?;
                Some(PreparedLink {
                    ifindex,
                    direction,
                    link,
                })
            };
            wanted.into_iter().map_while(make).collect()
        };
        Self {
            maker: thread::Builder::new().spawn(make).ok(),
            made: Vec::new(),
        }
    }

    /// Starts to make links for both directions of each interface, ingress last.
    pub fn both_directions(interfaces: &[Interface]) -> Self {
        let directions = |interface: &Interface| {
            let index = interface.index;
            [(index, Direction::Egress), (index, Direction::Ingress)]
        };
        Self::start(interfaces.iter().flat_map(directions).collect())
    }

    /// Takes the link that was made there, if any.
    fn take(&mut self, ifindex: u32, direction: Direction) -> Option<Link> {
        self.finish();
        let is_there = |one: &PreparedLink| one.ifindex == ifindex && one.direction == direction;
        let at = self.made.iter().position(is_there)?;
        Some(self.made.swap_remove(at).link.into())
    }

    fn finish(&mut self) {
        let made = self.maker.take().and_then(|maker| maker.join().ok());
        self.made.extend(made.into_iter().flatten());
    }
}

impl Drop for PreparedLinks {
    /// The thread ends before this process gives up privileges.
    fn drop(&mut self) {
        self.finish();
    }
}

fn create(program: BorrowedFd<'_>, ifindex: u32, direction: Direction) -> io::Result<OwnedFd> {
    let attach_type = match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_EGRESS,
    };
    Link::create(program, ifindex, attach_type, libbpf_sys::BPF_F_BEFORE)
}

/// Attaches before all other programs of the interface, which still get every packet. Also returns
/// notes for the user.
///
/// # Errors
/// A privilege is missing, or the interface went away.
pub fn attach(
    program: &impl TcProgram,
    interface: &Interface,
    direction: Direction,
    prepared: &mut PreparedLinks,
) -> Result<(TcLink, Vec<String>), Failure> {
    if let Some(link) = prepared.take(interface.index, direction)
        && link.update(program.as_fd()).is_ok()
    {
        return Ok((TcLink::Tcx(link), Vec::new()));
    }
    let what = format!("failed to attach to TC {direction} of {}", interface.name);
    match create(program.as_fd(), interface.index, direction) {
        Ok(link) => Ok((TcLink::Tcx(link.into()), Vec::new())),
        Err(error) => match errno(&error) {
            // A kernel without tcx does not know the attach type.
            Some(Errno::EINVAL) => attach_filter(program, interface, direction, &what),
            Some(Errno::EPERM | Errno::EACCES) => Err(load::refused(&what, error.into())),
            _ => Err(anyhow::Error::new(error).context(what).into()),
        },
    }
}

fn attach_filter(
    program: &impl TcProgram,
    interface: &Interface,
    direction: Direction,
    what: &str,
) -> Result<(TcLink, Vec<String>), Failure> {
    let attached = Clsact::attach(program.as_fd(), &program.name(), interface.index, direction);
    let filter = attached.map_err(|error| match error.downcast_ref() {
        Some(Errno::EPERM | Errno::EACCES) => load::refused(what, error),
        _ => error.context(what.to_owned()).into(),
    })?;
    let note = |text| format!("{}: {text}", interface.name);
    let notes = filter.notes().iter().map(note).collect();
    Ok((TcLink::Clsact(Box::new(filter)), notes))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}
