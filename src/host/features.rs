//! Offload features and maximum MTU of interfaces.
//!
//! Attaching XDP natively can change both: veth turns segmentation offload of the
//! *other* end off and lowers its maximum MTU (`veth_xdp_set()`), and NICs turn
//! LRO off. For generic XDP the kernel turns LRO and hardware GRO off. Comparing a
//! snapshot from before with one from after shows what has changed.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::socket::{SockFlag, SockProtocol};

use super::interfaces::{Interface, link_by_index, route_socket};
use super::netlink::{Socket, attributes, push_attribute, read_u16, text};

// <linux/genetlink.h>
const GENL_ID_CTRL: u16 = 0x10;
const GENL_HEADER_LEN: usize = 4;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

// <linux/ethtool_netlink.h>
const ETHTOOL_GENL_NAME: &[u8] = b"ethtool\0";
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
const NLA_F_NESTED: u16 = 0x8000;

// <linux/netdev.h>
const NETDEV_FAMILY_NAME: &[u8] = b"netdev\0";
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_XDP_ACT_BASIC: u64 = 1;

/// Active features and maximum MTU of an interface and of its veth peer.
#[derive(Debug)]
pub struct Snapshot {
    devices: Vec<Device>,
    unseen_peer: bool,
}

#[derive(Debug)]
struct Device {
    index: u32,
    name: String,
    /// In bytes; 0 means no limit. `None`: the kernel does not report it.
    max_mtu: Option<u32>,
    /// Names as `ethtool -k` shows them. `None`: the kernel does not report them.
    features: Option<BTreeSet<String>>,
}

impl Snapshot {
    /// Reads the current state. That needs no privilege.
    ///
    /// # Errors
    ///
    /// Netlink can't be used. If the interface is gone, or the kernel does not have
    /// a value, the snapshot just lacks it.
    pub fn take(interface: &Interface) -> Result<Self> {
        let mut route = route_socket()?;
        let mut ethtool = Ethtool::open()?;
        let mut snapshot = Self {
            devices: Vec::new(),
            unseen_peer: false,
        };
        let mut next = Some(interface.index);
        while let Some(index) = next.take() {
            let Some(link) = link_by_index(&mut route, index)? else {
                break;
            };
            if snapshot.devices.is_empty() && link.kind == "veth" {
                snapshot.unseen_peer = link.peer_elsewhere;
                next = link.peer.filter(|_| !link.peer_elsewhere);
            }
            snapshot.devices.push(Device {
                index,
                name: link.name,
                max_mtu: link.max_mtu,
                features: match &mut ethtool {
                    Some(ethtool) => ethtool.active_features(index)?,
                    None => None,
                },
            });
        }
        Ok(snapshot)
    }

    /// Whether the interface has a veth peer in another network namespace, such as that
    /// of a container, where changes can't be seen from here.
    #[must_use]
    pub fn has_unseen_peer(&self) -> bool {
        self.unseen_peer
    }

    /// The differences from an `earlier` snapshot: a line for each device that
    /// changed, such as `veth1: tx-tcp-segmentation on → off, maximum MTU 65535
    /// → 3506`. MTUs are in bytes.
    #[must_use]
    pub fn changes_since(&self, earlier: &Self) -> Vec<String> {
        self.devices
            .iter()
            .filter_map(|now| {
                let before = earlier.devices.iter().find(|d| d.index == now.index)?;
                let changes = now.changes_since(before);
                (!changes.is_empty())
                    .then(|| format!("{}: {}", now.name.escape_debug(), changes.join(", ")))
            })
            .collect()
    }
}

impl Device {
    fn changes_since(&self, before: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        if let (Some(now), Some(before)) = (&self.features, &before.features) {
            let off = before.difference(now).map(|f| format!("{f} on → off"));
            let on = now.difference(before).map(|f| format!("{f} off → on"));
            changes.extend(off.chain(on));
        }
        if let (Some(now), Some(before)) = (self.max_mtu, before.max_mtu)
            && now != before
        {
            changes.push(format!("maximum MTU {before} → {now}"));
        }
        changes
    }
}

/// Whether the driver of an interface supports native XDP; `None` before Linux 6.3, which can't
/// report it. A driver that supports it may still refuse, because of the MTU or the number of queues.
///
/// # Errors
///
/// Netlink can't be used, or the interface is gone.
pub fn supports_native_xdp(interface: &Interface) -> Result<Option<bool>> {
    let mut socket = generic_socket()?;
    let Some(family) = family(&mut socket, NETDEV_FAMILY_NAME)? else {
        return Ok(None);
    };
    let mut payload = generic_header(NETDEV_CMD_DEV_GET);
    push_attribute(
        &mut payload,
        NETDEV_A_DEV_IFINDEX,
        &interface.index.to_ne_bytes(),
    )?;
    let answer = socket
        .get(family, &payload)
        .with_context(|| format!("failed to read XDP features of {}", interface.name))?;
    let features = find(&answer, NETDEV_A_DEV_XDP_FEATURES)
        .and_then(|value| value.try_into().ok())
        .map(u64::from_ne_bytes);
    Ok(features.map(|features| features & NETDEV_XDP_ACT_BASIC != 0))
}

fn generic_socket() -> Result<Socket> {
    Socket::open(SockProtocol::NetlinkGeneric, 0, SockFlag::empty())
}

/// The id of a generic netlink family; `None` if the kernel does not have it.
fn family(socket: &mut Socket, name: &[u8]) -> Result<Option<u16>> {
    let mut payload = generic_header(CTRL_CMD_GETFAMILY);
    push_attribute(&mut payload, CTRL_ATTR_FAMILY_NAME, name)?;
    match socket.get(GENL_ID_CTRL, &payload) {
        Ok(answer) => Ok(find(&answer, CTRL_ATTR_FAMILY_ID).and_then(|value| read_u16(value, 0))),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno).context("failed to look for a netlink family"),
    }
}

/// The generic netlink family `ethtool`.
struct Ethtool {
    socket: Socket,
    family: u16,
}

impl Ethtool {
    /// Opens the family; `None` if the kernel does not have it.
    fn open() -> Result<Option<Self>> {
        let mut socket = generic_socket()?;
        let family = family(&mut socket, ETHTOOL_GENL_NAME)?;
        Ok(family.map(|family| Self { socket, family }))
    }

    /// Names of the features that are on; `None` if the device is gone or reports
    /// none.
    fn active_features(&mut self, index: u32) -> Result<Option<BTreeSet<String>>> {
        let mut header = Vec::new();
        push_attribute(
            &mut header,
            ETHTOOL_A_HEADER_DEV_INDEX,
            &index.to_ne_bytes(),
        )?;
        let mut payload = generic_header(ETHTOOL_MSG_FEATURES_GET);
        push_attribute(
            &mut payload,
            ETHTOOL_A_FEATURES_HEADER | NLA_F_NESTED,
            &header,
        )?;
        match self.socket.get(self.family, &payload) {
            Ok(answer) => Ok(Some(active_features(&answer))),
            Err(Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(None),
            Err(errno) => {
                Err(errno).with_context(|| format!("failed to read features of interface {index}"))
            }
        }
    }
}

fn generic_header(command: u8) -> Vec<u8> {
    // Command, version (1 for both families used here), 2 reserved bytes.
    vec![command, 1, 0, 0]
}

fn find(answer: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(answer.get(GENL_HEADER_LEN..)?)
        .find(|&(kind, _)| kind == wanted)
        .map(|(_, value)| value)
}

/// Decodes the list form of an ethtool bitset, which, without a mask, holds
/// only the bits that are set (`ethnl_put_bitset()`).
fn active_features(answer: &[u8]) -> BTreeSet<String> {
    let bitset = find(answer, ETHTOOL_A_FEATURES_ACTIVE).unwrap_or_default();
    attributes(bitset)
        .filter(|&(kind, _)| kind == ETHTOOL_A_BITSET_BITS)
        .flat_map(|(_, bits)| attributes(bits))
        .flat_map(|(_, bit)| attributes(bit))
        .filter(|&(kind, _)| kind == ETHTOOL_A_BITSET_BIT_NAME)
        .map(|(_, name)| text(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(features: Option<&[&str]>, max_mtu: u32) -> Snapshot {
        let device = Device {
            index: 5,
            name: "veth1".to_owned(),
            max_mtu: Some(max_mtu),
            features: features.map(|names| names.iter().map(|&name| name.to_owned()).collect()),
        };
        Snapshot {
            devices: vec![device],
            unseen_peer: false,
        }
    }

    #[test]
    fn changes_are_named_and_unchanged_features_are_not() {
        let before = snapshot(Some(&["rx-checksum", "tx-tcp-segmentation"]), 65535);
        let after = snapshot(Some(&["rx-checksum", "rx-gro"]), 3506);
        assert_eq!(
            after.changes_since(&before),
            ["veth1: tx-tcp-segmentation on → off, rx-gro off → on, maximum MTU 65535 → 3506"]
        );
        assert!(after.changes_since(&after).is_empty());
    }

    #[test]
    fn features_that_are_unknown_at_one_time_are_not_changes() {
        let before = snapshot(None, 1500);
        let after = snapshot(Some(&["rx-gro"]), 1500);
        assert!(after.changes_since(&before).is_empty());
    }
}
