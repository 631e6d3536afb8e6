//! Attaching to TC: a tcx link from Linux 6.6 on, a clsact filter before.

use std::io;
use std::os::fd::AsFd;

use libbpf_rs::ProgramMut;
use nix::errno::Errno;

use super::clsact::Clsact;
use super::{Direction, Link, LinkState, load};
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::notice::Notices;

/// Puts the program before all others (linux/bpf.h).
const BPF_F_BEFORE: u32 = 1 << 3;

/// A program attached to TC. It is detached when this is dropped.
pub enum TcLink {
    /// Gone with the process, and detached without any privilege.
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

    /// A way to ask whether it is still attached; a filter does not follow its interface to
    /// another network namespace.
    pub fn state(&self) -> Option<LinkState> {
        match self {
            Self::Tcx(link) => Some(link.state()),
            Self::Clsact(_) => None,
        }
    }

    /// Detaches, and says if that failed.
    pub fn detach(self, notices: Notices) {
        let Self::Clsact(mut filter) = self else {
            return;
        };
        if filter.is_attached().is_ok_and(|attached| !attached) {
            notices
                .notice("another program had removed the filter: packets after that were not seen");
        }
        if let Err(error) = filter.detach() {
            notices.notice(&format!("{error:#}; the next start removes it"));
        }
    }
}

/// Attaches before all other programs of the interface, which still get every packet.
///
/// # Errors
/// A privilege is missing, or the interface went away.
pub fn attach(
    program: &ProgramMut<'_>,
    interface: &Interface,
    direction: Direction,
    notices: Notices,
) -> Result<TcLink, Failure> {
    let attach_type = match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_EGRESS,
    };
    let what = format!("failed to attach to TC {direction} of {}", interface.name);
    match Link::create(program.as_fd(), interface.index, attach_type, BPF_F_BEFORE) {
        Ok(link) => Ok(TcLink::Tcx(link)),
        Err(error) => match errno(&error) {
            // A kernel without tcx does not know the attach type.
            Some(Errno::EINVAL) => attach_filter(program, interface, direction, notices),
            Some(Errno::EPERM | Errno::EACCES) => Err(load::refused(&what, error.into())),
            _ => Err(anyhow::Error::new(error).context(what).into()),
        },
    }
}

fn attach_filter(
    program: &ProgramMut<'_>,
    interface: &Interface,
    direction: Direction,
    notices: Notices,
) -> Result<TcLink, Failure> {
    let name = program.name().to_string_lossy();
    let attached = Clsact::attach(
        program.as_fd(),
        &name,
        &interface.name,
        interface.index,
        direction,
    );
    let filter = attached.map_err(|error| match error.downcast_ref() {
        Some(Errno::EPERM | Errno::EACCES) => {
            let what = format!("failed to attach to TC {direction} of {}", interface.name);
            load::refused(&what, error)
        }
        _ => error.into(),
    })?;
    for text in filter.notices() {
        notices.notice(&format!("{}: {text}", interface.name));
    }
    Ok(TcLink::Clsact(Box::new(filter)))
}

fn errno(error: &io::Error) -> Option<Errno> {
    error.raw_os_error().map(Errno::from_raw)
}
