//! Attaching to XDP, natively or generically, always as a bpf_link.

use std::io;
use std::os::fd::BorrowedFd;

use anyhow::anyhow;
use libbpf_rs::query::ProgInfoIter;
use nix::errno::Errno;

use super::load;
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::sys::link::{Link, query_xdp};

/// Where in the receive path the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// In the stack, after the skb is made.
    Generic,
}

impl XdpMode {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
        }
    }

    fn flags(self) -> u32 {
        match self {
            Self::Native => libbpf_sys::XDP_FLAGS_DRV_MODE,
            Self::Generic => libbpf_sys::XDP_FLAGS_SKB_MODE,
        }
    }
}

/// Attaches in one of `modes`, the first that the interface accepts. Returns the mode, and why
/// those before it were refused.
///
/// # Errors
/// Another XDP program is there, a privilege is missing, or no mode works.
pub fn attach(
    program: BorrowedFd<'_>,
    interface: &Interface,
    modes: &[XdpMode],
) -> Result<(Link, XdpMode, Option<String>), Failure> {
    let mut refused = None;
    let mut last = io::Error::from(Errno::EINVAL);
    for mode in modes {
        match Link::create(program, interface.index, libbpf_sys::BPF_XDP, mode.flags()) {
            Ok(link) => return Ok((link.into(), *mode, refused)),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EBUSY | Errno::EEXIST) => return Err(occupied(interface, &error)),
                Some(Errno::EPERM | Errno::EACCES) => {
                    let what = format!("failed to attach XDP to {}", interface.name);
                    return Err(load::refused(&what, error.into()));
                }
                Some(Errno::ENODEV) => {
                    return Err(anyhow!("interface {} went away", interface.name).into());
                }
                _ => {
                    refused = Some(format!("{} XDP: {}", mode.name(), explain(&error)));
                    last = error;
                }
            },
        }
    }
    let names = modes.iter().map(|mode| mode.name()).collect::<Vec<_>>();
    let failure = Failure::from(anyhow!("{}", explain(&last)).context(format!(
        "failed to attach XDP ({}) to {}",
        names.join(", "),
        interface.name
    )));
    Err(failure.hint("--mode tc works on any interface, and --mode generic on most"))
}

/// The usual meaning of the errors of drivers.
fn explain(error: &io::Error) -> String {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EOPNOTSUPP) => "the driver does not support it".into(),
        Some(Errno::ERANGE) => "the MTU is too large for it".into(),
        Some(Errno::EINVAL) => {
            "the driver refused it (jumbo MTU, LRO and too few queues are usual reasons)".into()
        }
        _ => error.to_string(),
    }
}

/// The XDP program that is attached: its mode, its id, and its name if this process may read it.
pub fn occupant(interface: &Interface) -> Option<String> {
    let (mode, id) = query(interface)?;
    Some(format!("{mode} XDP program {id}{}", name_of(id)))
}

/// The failure that another program is already attached; names that program.
fn occupied(interface: &Interface, error: &io::Error) -> Failure {
    let mut text = format!("failed to attach XDP to {}", interface.name);
    text += &match occupant(interface) {
        Some(program) => format!(": {program} is already attached"),
        None => format!(": another XDP program is already attached ({error})"),
    };
    Failure::from(anyhow!(text)).hint(
        "an interface takes one XDP program, and tcpinspect never replaces another's; --mode tc works alongside it",
    )
}

/// The name of a program, in quotes after a space; empty if this process may not read it.
fn name_of(id: u32) -> String {
    ProgInfoIter::default()
        .find(|program| program.id == id)
        .map(|program| format!(" '{}'", program.name.to_string_lossy().escape_debug()))
        .unwrap_or_default()
}

/// The mode and id of the XDP program that is attached.
fn query(interface: &Interface) -> Option<(&'static str, u32)> {
    let opts = query_xdp(interface.index)?;
    [
        (XdpMode::Native.name(), opts.drv_prog_id),
        (XdpMode::Generic.name(), opts.skb_prog_id),
        ("offloaded", opts.hw_prog_id),
    ]
    .into_iter()
    .find(|(_, id)| *id != 0)
}
