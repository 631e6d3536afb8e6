//! Attaching to TC: a tcx link from Linux 6.6 on.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::load;
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::notice::Notices;

/// Puts the program before all others (linux/bpf.h).
const BPF_F_BEFORE: u32 = 1 << 3;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Coming in.
    Ingress,
    /// Going out.
    Egress,
}

impl Direction {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A program attached to TC.
#[derive(Debug)]
pub enum TcLink {
    /// A bpf_link: gone with the process, and detached without any privilege.
    Tcx(OwnedFd),
}

impl TcLink {
    /// The kind of attachment, as it is printed.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Tcx(_) => "tcx",
        }
    }

    /// Whether detaching needs CAP_NET_ADMIN.
    pub fn needs_privileges(&self) -> bool {
        match self {
            Self::Tcx(_) => false,
        }
    }
}

/// Attaches before all other programs of the interface, which still get every packet.
///
/// # Errors
/// A privilege is missing, or the interface went away.
pub fn attach(
    program: BorrowedFd<'_>,
    interface: &Interface,
    direction: Direction,
    _notices: Notices,
) -> Result<TcLink, Failure> {
    let attach_type = match direction {
        Direction::Ingress => libbpf_sys::BPF_TCX_INGRESS,
        Direction::Egress => libbpf_sys::BPF_TCX_EGRESS,
    };
    match super::create_link(program, interface.index, attach_type, BPF_F_BEFORE) {
        Ok(link) => Ok(TcLink::Tcx(link)),
        Err(error) => {
            let errno = error.raw_os_error().map(Errno::from_raw);
            let what = format!(
                "failed to attach to TC {} of {}",
                direction.name(),
                interface.name
            );
            Err(match errno {
                Some(Errno::EPERM | Errno::EACCES) => load::refused(&what, error.into()),
                _ => anyhow::Error::new(error).context(what).into(),
            })
        }
    }
}
