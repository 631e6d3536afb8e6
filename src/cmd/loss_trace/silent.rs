//! loss-trace: drops that no tracepoint reports. Programs at interfaces send events of them; this
//! adds what these programs can't find out.

use std::collections::HashMap;

use crate::domain::loss::Loss;
use crate::host::interfaces::Interface;
use crate::host::routes::Routes;
use crate::host::sock_diag::SockDiag;
use crate::notice::{FirstNotice, Notices};

const NOT_SHOWN: &str = "drops for lack of a route back can't be shown";

/// Completes the events of programs at interfaces.
pub struct Silent {
    /// The names of the interfaces that have programs.
    names: HashMap<u32, String>,
    /// Asks for sockets and routes; `None` if the kernel can't be asked.
    kernel: Option<(SockDiag, Routes)>,
    failure: FirstNotice,
    /// Events that have turned out to be no drops.
    pub discarded: u64,
}

impl Silent {
    /// Opens the netlink sockets that are needed.
    pub fn new(watched: &[Interface], notices: Notices) -> Self {
        let names = watched.iter();
        let names = names.map(|interface| (interface.index, interface.name.clone()));
        let names = names.collect::<HashMap<_, _>>();
        let mut failure = FirstNotice::new(notices);
        let open = || anyhow::Ok((SockDiag::open()?, Routes::open()?));
        let kernel = match names.is_empty() {
            true => None,
            false => open()
                .inspect_err(|error| failure.notice(&format!("{NOT_SHOWN}: {error:#}")))
                .ok(),
        };
        Self {
            names,
            kernel,
            failure,
            discarded: 0,
        }
    }

    /// Adds the name of the interface to an event; `None` if the event turns out to be no drop.
    ///
    /// A SYN that was not answered at once is not always dropped. Its answer may wait for the
    /// address of the next hop, or have left through an interface that is not watched: then the
    /// half-open connection is there.
    pub fn judge(&mut self, mut loss: Loss) -> Option<Loss> {
        if loss.is_unsure() && !self.is_dropped(&mut loss) {
            self.discarded += 1;
            return None;
        }
        if loss.iface().is_none()
            && let Some(name) = self.names.get(&loss.raw.ifindex)
        {
            loss.set_iface(name);
        }
        Some(loss)
    }

    fn is_dropped(&mut self, loss: &mut Loss) -> bool {
        let Some((sockets, routes)) = &mut self.kernel else {
            return false;
        };
        let remote = (loss.saddr(), loss.raw.sport);
        match sockets.find((loss.daddr(), loss.raw.dport), remote, loss.raw.ifindex) {
            Ok(found) if found.is_none_or(|found| found.listens) => {}
            Ok(_) => return false,
            Err(error) => {
                self.failure.notice(&format!("{NOT_SHOWN}: {error}"));
                return false;
            }
        }
        // If there is a route, the cause is another one, which is not known.
        if !matches!(routes.lead_to(remote.0), Ok(false)) {
            loss.raw.reason = 0;
        }
        true
    }
}
