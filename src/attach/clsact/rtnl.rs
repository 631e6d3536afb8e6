//! Traffic control over netlink: the qdisc and the filters of one interface.
//!
//! Layouts and numbers are those of `<linux/rtnetlink.h>`,
//! `<linux/pkt_sched.h>` and `<linux/pkt_cls.h>`.

use std::os::fd::{AsRawFd, BorrowedFd};

use anyhow::Result;
use nix::errno::Errno;
use nix::libc::{
    ETH_P_ALL, RTM_DELQDISC, RTM_DELTFILTER, RTM_GETQDISC, RTM_GETTFILTER, RTM_NEWQDISC,
    RTM_NEWTFILTER,
};
use nix::sys::socket::{SockFlag, SockProtocol};

use super::Direction;
use crate::host::netlink::{
    NLM_F_CREATE, NLM_F_EXCL, Socket, attributes, push_attribute, read_u32, text,
};

// libc has no name for it.
const RTM_GETCHAIN: u16 = 102;

const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_INGRESS_BLOCK: u16 = 13;
const TCA_EGRESS_BLOCK: u16 = 14;

const TCA_BPF_FD: u16 = 6;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_FLAGS: u16 = 8;
const TCA_BPF_FLAGS_GEN: u16 = 9;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
const TCA_CLS_FLAGS_SKIP_HW: u32 = 1;

const TC_H_CLSACT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const TC_H_MIN_INGRESS: u32 = 0xfff2;
const TC_H_MIN_EGRESS: u32 = 0xfff3;

const TCMSG_LEN: usize = 20;

/// `ETH_P_ALL` as a filter's protocol: in network byte order.
#[allow(clippy::cast_possible_truncation)] // It is 3.
pub(super) const ALL_PROTOCOLS: u16 = (ETH_P_ALL as u16).to_be();

/// The qdisc that ingress and egress filters are attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Qdisc {
    /// `clsact`, or `ingress`, which has no egress side.
    pub(super) kind: String,
    /// Directions whose filters are in a block that is shared with other
    /// interfaces.
    pub(super) shared: Vec<Direction>,
}

impl Qdisc {
    /// The directions that it has filters for.
    pub(super) fn directions(&self) -> &'static [Direction] {
        // An ingress qdisc would answer for egress as well, with the filters of
        // ingress: ingress_tcf_block() ignores the direction.
        if self.is_clsact() {
            &[Direction::Ingress, Direction::Egress]
        } else {
            &[Direction::Ingress]
        }
    }

    pub(super) fn is_clsact(&self) -> bool {
        self.kind == "clsact"
    }
}

/// A filter, or the head of the filters of one priority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TcFilter {
    pub(super) direction: Direction,
    pub(super) priority: u16,
    /// In network byte order.
    pub(super) protocol: u16,
    pub(super) kind: String,
    pub(super) chain: u32,
    /// 0 for the head of a priority.
    pub(super) handle: u32,
    /// The name that a filter of kind `bpf` may have.
    pub(super) name: Option<String>,
}

/// Traffic control of one interface.
pub(super) struct Tc {
    socket: Socket,
    ifindex: u32,
}

impl Tc {
    /// Opens the interface of that index in the network namespace of this
    /// thread.
    pub(super) fn open(ifindex: u32) -> Result<Self> {
        let socket = Socket::open(SockProtocol::NetlinkRoute, 0, SockFlag::empty())?;
        Ok(Self { socket, ifindex })
    }

    /// Makes a clsact qdisc; `EEXIST` if there is one, or an ingress qdisc.
    pub(super) fn create_qdisc(&mut self) -> Result<(), Errno> {
        let request = self.clsact()?;
        self.socket
            .change(RTM_NEWQDISC, NLM_F_CREATE | NLM_F_EXCL, &request)
    }

    /// Removes the clsact qdisc with all filters; an error if it is of another
    /// kind.
    pub(super) fn delete_qdisc(&mut self) -> Result<(), Errno> {
        let request = self.clsact()?;
        self.socket.change(RTM_DELQDISC, 0, &request)
    }

    pub(super) fn qdisc(&mut self) -> Result<Option<Qdisc>> {
        let ifindex = self.ifindex;
        let request = self.tcmsg(0, 0, 0);
        let found = self.socket.dump(RTM_GETQDISC, &request, |payload| {
            // The kernel answers with the qdiscs of all interfaces.
            let own = read_u32(payload, 4)? == ifindex && read_u32(payload, 12)? == TC_H_CLSACT;
            own.then(|| qdisc(payload)).flatten()
        })?;
        Ok(found.into_iter().next())
    }

    /// The filters of a direction in the order in which packets pass them.
    pub(super) fn filters(&mut self, direction: Direction) -> Result<Vec<TcFilter>> {
        let request = self.tcmsg(0, parent(direction), 0);
        self.socket.dump(RTM_GETTFILTER, &request, |payload| {
            filter(direction, payload)
        })
    }

    /// The name of the filter of kind `bpf` at this priority and handle, or none if there is no
    /// such filter. It asks for this one alone, because there may be thousands.
    pub(super) fn filter_name(
        &mut self,
        direction: Direction,
        (priority, handle): (u16, u32),
    ) -> Result<Option<String>, Errno> {
        let info = info(priority, ALL_PROTOCOLS);
        let mut request = self.tcmsg(handle, parent(direction), info);
        push_attribute(&mut request, TCA_KIND, b"bpf\0")?;
        match self.socket.get(RTM_GETTFILTER, &request) {
            Ok(payload) => Ok(filter(direction, &payload).and_then(|found| found.name)),
            // No such filter; no qdisc or chain, or filters of another kind; no such interface.
            Err(Errno::ENOENT | Errno::EINVAL | Errno::ENODEV) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Another socket for the same interface.
    pub(super) fn reopen(&self) -> Result<Self> {
        Self::open(self.ifindex)
    }

    /// Whether there are chains in a direction. There is one for all filters, but
    /// a chain can be made without filters too.
    pub(super) fn has_chains(&mut self, direction: Direction) -> Result<bool> {
        let request = self.tcmsg(0, parent(direction), 0);
        match self.socket.dump(RTM_GETCHAIN, &request, |_| Some(())) {
            Ok(found) => Ok(!found.is_empty()),
            // Linux 4.19 is the first that can be asked.
            Err(error) if error.downcast_ref() == Some(&Errno::EOPNOTSUPP) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Adds a filter of kind `bpf` for all protocols in direct-action mode.
    /// `EEXIST` if the handle is in use.
    pub(super) fn add_filter(
        &mut self,
        direction: Direction,
        (priority, handle): (u16, u32),
        program: BorrowedFd<'_>,
        name: &str,
    ) -> Result<(), Errno> {
        let mut options = Vec::new();
        push_attribute(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes())?;
        push_attribute(
            &mut options,
            TCA_BPF_NAME,
            &[name.as_bytes(), &[0]].concat(),
        )?;
        push_attribute(
            &mut options,
            TCA_BPF_FLAGS,
            &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes(),
        )?;
        // The program uses maps of this host, so it must not be offloaded to a
        // network card.
        push_attribute(
            &mut options,
            TCA_BPF_FLAGS_GEN,
            &TCA_CLS_FLAGS_SKIP_HW.to_ne_bytes(),
        )?;
        let info = info(priority, ALL_PROTOCOLS);
        let mut request = self.tcmsg(handle, parent(direction), info);
        push_attribute(&mut request, TCA_KIND, b"bpf\0")?;
        push_attribute(&mut request, TCA_OPTIONS, &options)?;
        self.socket
            .change(RTM_NEWTFILTER, NLM_F_CREATE | NLM_F_EXCL, &request)
    }

    /// Removes exactly this filter, which must be one with a handle: without one
    /// the kernel removes all of the priority.
    pub(super) fn delete_filter(&mut self, filter: &TcFilter) -> Result<(), Errno> {
        if filter.handle == 0 {
            return Err(Errno::EINVAL);
        }
        let info = info(filter.priority, filter.protocol);
        let mut request = self.tcmsg(filter.handle, parent(filter.direction), info);
        push_attribute(&mut request, TCA_KIND, &kind_bytes(&filter.kind))?;
        push_attribute(&mut request, TCA_CHAIN, &filter.chain.to_ne_bytes())?;
        self.socket.change(RTM_DELTFILTER, 0, &request)
    }

    fn clsact(&self) -> Result<Vec<u8>, Errno> {
        let mut request = self.tcmsg(CLSACT_HANDLE, TC_H_CLSACT, 0);
        push_attribute(&mut request, TCA_KIND, b"clsact\0")?;
        Ok(request)
    }

    /// A `struct tcmsg`. The address family and the padding are 0.
    fn tcmsg(&self, handle: u32, parent: u32, info: u32) -> Vec<u8> {
        [0, self.ifindex, handle, parent, info]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect()
    }
}

fn parent(direction: Direction) -> u32 {
    let minor = match direction {
        Direction::Ingress => TC_H_MIN_INGRESS,
        Direction::Egress => TC_H_MIN_EGRESS,
    };
    CLSACT_HANDLE | minor
}

fn info(priority: u16, protocol: u16) -> u32 {
    u32::from(priority) << 16 | u32::from(protocol)
}

fn kind_bytes(kind: &str) -> Vec<u8> {
    [kind.as_bytes(), &[0]].concat()
}

fn qdisc(payload: &[u8]) -> Option<Qdisc> {
    let mut found = Qdisc {
        kind: String::new(),
        shared: Vec::new(),
    };
    for (attribute, value) in attributes(payload.get(TCMSG_LEN..)?) {
        match attribute {
            TCA_KIND => found.kind = text(value),
            TCA_INGRESS_BLOCK => found.shared.push(Direction::Ingress),
            TCA_EGRESS_BLOCK => found.shared.push(Direction::Egress),
            _ => {}
        }
    }
    Some(found)
}

#[allow(clippy::cast_possible_truncation)] // tcm_info has two numbers of 16 bits.
fn filter(direction: Direction, payload: &[u8]) -> Option<TcFilter> {
    let info = read_u32(payload, 16)?;
    let mut found = TcFilter {
        direction,
        priority: (info >> 16) as u16,
        protocol: info as u16,
        kind: String::new(),
        chain: 0,
        handle: read_u32(payload, 8)?,
        name: None,
    };
    for (attribute, value) in attributes(payload.get(TCMSG_LEN..)?) {
        match attribute {
            TCA_KIND => found.kind = text(value),
            TCA_CHAIN => found.chain = read_u32(value, 0)?,
            // The kind comes before its options, which mean something else in
            // each kind.
            TCA_OPTIONS if found.kind == "bpf" => {
                found.name = attributes(value)
                    .find(|&(option, _)| option == TCA_BPF_NAME)
                    .map(|(_, name)| text(name));
            }
            _ => {}
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(handle: u32, info: u32) -> Vec<u8> {
        [0, 7, handle, parent(Direction::Ingress), info]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect()
    }

    #[test]
    fn a_filter_is_read_from_its_message() {
        let mut options = Vec::new();
        push_attribute(&mut options, TCA_BPF_FLAGS, &1_u32.to_ne_bytes()).unwrap();
        push_attribute(&mut options, TCA_BPF_NAME, b"a name\0").unwrap();
        let mut bytes = payload(5, info(49_152, ALL_PROTOCOLS));
        push_attribute(&mut bytes, TCA_KIND, b"bpf\0").unwrap();
        push_attribute(&mut bytes, TCA_CHAIN, &3_u32.to_ne_bytes()).unwrap();
        push_attribute(&mut bytes, TCA_OPTIONS, &options).unwrap();
        let expected = TcFilter {
            direction: Direction::Ingress,
            priority: 49_152,
            protocol: ALL_PROTOCOLS,
            kind: "bpf".to_owned(),
            chain: 3,
            handle: 5,
            name: Some("a name".to_owned()),
        };
        assert_eq!(filter(Direction::Ingress, &bytes), Some(expected));
        assert_eq!(filter(Direction::Ingress, &bytes[..TCMSG_LEN - 1]), None);
    }

    #[test]
    fn options_of_other_kinds_are_not_taken_for_a_name() {
        let mut options = Vec::new();
        push_attribute(&mut options, TCA_BPF_NAME, b"a name\0").unwrap();
        let mut bytes = payload(5, 0);
        push_attribute(&mut bytes, TCA_KIND, b"u32\0").unwrap();
        push_attribute(&mut bytes, TCA_OPTIONS, &options).unwrap();
        assert_eq!(filter(Direction::Ingress, &bytes).unwrap().name, None);
    }

    #[test]
    fn a_qdisc_is_read_from_its_message() {
        let mut bytes = payload(CLSACT_HANDLE, 0);
        push_attribute(&mut bytes, TCA_KIND, b"clsact\0").unwrap();
        push_attribute(&mut bytes, TCA_EGRESS_BLOCK, &9_u32.to_ne_bytes()).unwrap();
        let found = qdisc(&bytes).unwrap();
        assert!(found.is_clsact());
        assert_eq!(found.shared, [Direction::Egress]);
    }
}
