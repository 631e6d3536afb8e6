//! Watches what happens to interfaces while a program is attached to them.
//!
//! A BPF link does not notify its owner when the interface is gone. So this module listens to
//! the kernel's notifications about interfaces (`RTNLGRP_LINK`). That needs no privilege.

use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::libc::{RTM_DELLINK, RTM_NEWLINK};
use nix::sys::socket::{SockFlag, SockProtocol};

use super::interfaces::{Interface, LinkInfo, link_by_index, route_socket};
use super::netlink::{Socket, messages};

/// Bit of `RTNLGRP_LINK` (1) in the group mask.
const RTMGRP_LINK: u32 = 1;

/// A change of a followed interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkEvent {
    /// Its index.
    pub index: u32,
    /// Its name before the event.
    pub name: String,
    /// The change.
    pub change: LinkChange,
}

/// A change of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// It was deleted. It is no longer followed.
    Gone,
    /// It was moved to another network namespace, where it may have another index. BPF links
    /// (XDP, tcx) move with it; clsact filters are lost (`dev_shutdown()`). The interface is no
    /// longer followed, because a link itself shows whether the interface still exists: it has
    /// the new index, or 0 after the interface was deleted.
    MovedAway,
    /// It has a new name.
    Renamed {
        /// The new name.
        to: String,
    },
    /// It was set up by the administrator (`IFF_UP`).
    Up,
    /// It was set down.
    Down,
}

struct Followed {
    index: u32,
    name: String,
    up: bool,
}

/// Listens to the kernel's notifications about interfaces.
///
/// To miss nothing: open it, resolve the interfaces, [`follow`](Self::follow)
/// them, then attach. Poll it for input and call [`events`](Self::events).
pub struct LinkWatch {
    socket: Socket,
    /// For requests, if notifications were dropped: by then the sandbox forbids new sockets.
    requests: Socket,
    followed: Vec<Followed>,
}

impl LinkWatch {
    /// Starts to listen. From now on notifications wait in the socket.
    ///
    /// # Errors
    ///
    /// A netlink socket can't be opened.
    pub fn new() -> Result<Self> {
        let socket = Socket::open(
            SockProtocol::NetlinkRoute,
            RTMGRP_LINK,
            SockFlag::SOCK_NONBLOCK,
        )
        .context("failed to listen to interface changes")?;
        Ok(Self {
            socket,
            requests: route_socket()?,
            followed: Vec::new(),
        })
    }

    /// Follows these interfaces: others cause no events.
    pub fn follow(&mut self, interfaces: &[Interface]) {
        self.followed
            .extend(interfaces.iter().map(|interface| Followed {
                index: interface.index,
                name: interface.name.clone(),
                up: interface.up,
            }));
    }

    /// The changes since the last call, in order. It does not block.
    ///
    /// If the kernel had to drop notifications, the state of each followed
    /// interface is read instead. Then changes that were undone meanwhile are
    /// not seen, and [`LinkChange::MovedAway`] looks like
    /// [`LinkChange::Gone`].
    ///
    /// # Errors
    ///
    /// The socket fails for any other reason.
    pub fn events(&mut self) -> Result<Vec<LinkEvent>> {
        let mut events = Vec::new();
        let mut overrun = false;
        loop {
            match self.socket.receive() {
                // Messages still in the socket are older than those that were dropped.
                Ok(_) if overrun => {}
                Ok(datagram) => {
                    for message in messages(datagram) {
                        let Some(link) = LinkInfo::decode(message.payload) else {
                            continue;
                        };
                        match message.kind {
                            RTM_NEWLINK => changed(&mut self.followed, &link, &mut events),
                            RTM_DELLINK => {
                                let change = if link.moved {
                                    LinkChange::MovedAway
                                } else {
                                    LinkChange::Gone
                                };
                                lost(&mut self.followed, link.index, &change, &mut events);
                            }
                            _ => {}
                        }
                    }
                }
                Err(Errno::ENOBUFS) => overrun = true,
                Err(Errno::EAGAIN) => {
                    if overrun {
                        self.ask(&mut events)?;
                    }
                    return Ok(events);
                }
                Err(errno) => return Err(errno).context("failed to read interface changes"),
            }
        }
    }

    /// Whether there is an interface with this index, in the network namespace of the socket.
    ///
    /// # Errors
    ///
    /// The request fails.
    pub fn exists(&mut self, index: u32) -> Result<bool> {
        Ok(link_by_index(&mut self.requests, index)?.is_some())
    }

    fn ask(&mut self, events: &mut Vec<LinkEvent>) -> Result<()> {
        let indices: Vec<_> = self.followed.iter().map(|known| known.index).collect();
        for index in indices {
            match link_by_index(&mut self.requests, index)? {
                Some(link) => changed(&mut self.followed, &link, events),
                None => lost(&mut self.followed, index, &LinkChange::Gone, events),
            }
        }
        Ok(())
    }
}

impl AsFd for LinkWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Compares the state in a notification with the known state, and updates that.
/// Most notifications (addresses, statistics, carrier) change nothing here.
fn changed(followed: &mut [Followed], link: &LinkInfo, events: &mut Vec<LinkEvent>) {
    let Some(known) = followed.iter_mut().find(|known| known.index == link.index) else {
        return;
    };
    let mut push = |name: &str, change| {
        events.push(LinkEvent {
            index: link.index,
            name: name.to_owned(),
            change,
        });
    };
    // Messages of other subsystems (bridge ports, wireless) carry no name.
    if known.name != link.name && !link.name.is_empty() {
        let to = link.name.clone();
        push(&known.name, LinkChange::Renamed { to });
        known.name.clone_from(&link.name);
    }
    if known.up != link.up {
        let change = if link.up {
            LinkChange::Up
        } else {
            LinkChange::Down
        };
        push(&known.name, change);
        known.up = link.up;
    }
}

fn lost(
    followed: &mut Vec<Followed>,
    index: u32,
    change: &LinkChange,
    events: &mut Vec<LinkEvent>,
) {
    followed.retain(|known| {
        let is_it = known.index == index;
        if is_it {
            events.push(LinkEvent {
                index,
                name: known.name.clone(),
                change: change.clone(),
            });
        }
        !is_it
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, name: &str, up: bool) -> LinkInfo {
        LinkInfo {
            index,
            name: name.to_owned(),
            up,
            ..LinkInfo::default()
        }
    }

    #[test]
    fn only_differences_of_followed_interfaces_are_events() {
        let mut followed = vec![Followed {
            index: 3,
            name: "a".to_owned(),
            up: true,
        }];
        let mut events = Vec::new();
        changed(&mut followed, &link(3, "a", true), &mut events);
        changed(&mut followed, &link(4, "other", false), &mut events);
        assert_eq!(events, []);
        changed(&mut followed, &link(3, "b", false), &mut events);
        lost(&mut followed, 3, &LinkChange::Gone, &mut events);
        lost(&mut followed, 3, &LinkChange::Gone, &mut events);
        let event = |name: &str, change| LinkEvent {
            index: 3,
            name: name.to_owned(),
            change,
        };
        let renamed = LinkChange::Renamed { to: "b".to_owned() };
        assert_eq!(
            events,
            [
                event("a", renamed),
                event("b", LinkChange::Down),
                event("b", LinkChange::Gone)
            ]
        );
    }
}
