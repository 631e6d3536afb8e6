//! Network interfaces: finds those that the command line names, and what their frames
//! begin with.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use anyhow::Context;
use nix::errno::Errno;
use nix::libc::{
    self, ARPHRD_ETHER, ARPHRD_IPGRE, ARPHRD_LOOPBACK, ARPHRD_NONE, ARPHRD_PPP, ARPHRD_SIT,
    ARPHRD_TUNNEL, ARPHRD_TUNNEL6, IFNAMSIZ, RT_TABLE_MAIN, RTA_OIF, RTM_GETLINK, RTM_GETROUTE,
    RTN_UNICAST,
};
use nix::sys::socket::{SockFlag, SockProtocol};

use super::netlink::{
    RTMSG_LEN, Socket, attributes, push_attribute, read_i32, read_u16, read_u32, text,
};

// From <linux/if_arp.h>; libc lacks these two.
const ARPHRD_RAWIP: u16 = 519;
const ARPHRD_IP6GRE: u16 = 823;

// <linux/if_link.h>
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_NEW_NETNSID: u16 = 45;
const IFLA_MAX_MTU: u16 = 51;
const IFLA_PROP_LIST: u16 = 52;
const IFLA_ALT_IFNAME: u16 = 53;
const IFLA_INFO_KIND: u16 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
const IFINFOMSG_LEN: usize = 16;

// <linux/rtnetlink.h>
const RTA_PRIORITY: u16 = 6;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTNH_F_DEAD: u32 = 1;
const RTM_F_CLONED: u32 = 0x200;

/// The most interfaces that a hint lists.
const HINT_NAMES: usize = 8;

/// An interface of this network namespace, as it was when it was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The kernel's name for it, never an alternative name.
    pub name: String,
    /// Its index, which stays the same when it is renamed.
    pub index: u32,
    /// The header that its frames begin with.
    pub link_layer: LinkLayer,
    /// Whether it is administratively up (`IFF_UP`).
    pub up: bool,
}

impl Interface {
    /// Whether its frames begin with the IP header.
    pub fn is_raw_ip(&self) -> bool {
        self.link_layer == LinkLayer::None
    }

    /// What its frames are, if they can't be read.
    pub fn unreadable_frames(&self) -> Option<String> {
        match self.link_layer {
            LinkLayer::Unsupported(kind) => Some(format!(
                "of hardware type {kind}, neither Ethernet nor plain IP"
            )),
            _ => None,
        }
    }
}

/// The header that frames of an interface begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: the network header comes first (tun, wireguard, PPP, IP
    /// tunnels).
    ///
    /// A TC program must count from the network header
    /// (`bpf_skb_load_bytes_relative` with `BPF_HDR_START_NET`), not from the
    /// first byte of the packet. At ingress the packet begins at
    /// `skb->mac_header`, which on some of these devices is before the network
    /// header. On a GRE device without a fixed remote address, the packet begins
    /// with the outer IP header, both at ingress (`__ipgre_rcv()`) and at egress
    /// (`ipgre_header()`). Before Linux 5.14 this was so at ingress of most IP
    /// tunnels. `skb->len` includes these bytes. A generic XDP program sees them
    /// too, and can't find out what they are.
    None,
    /// Something that can't be decoded here: the `ARPHRD_*` number.
    Unsupported(u16),
}

impl LinkLayer {
    /// Classifies a device type of `<linux/if_arp.h>`.
    fn from_arphrd(arphrd: u16) -> Self {
        match arphrd {
            // The loopback device gives its packets an Ethernet header of zeros.
            ARPHRD_ETHER | ARPHRD_LOOPBACK => Self::Ethernet,
            ARPHRD_NONE | ARPHRD_RAWIP | ARPHRD_PPP | ARPHRD_TUNNEL | ARPHRD_TUNNEL6
            | ARPHRD_SIT | ARPHRD_IPGRE | ARPHRD_IP6GRE => Self::None,
            other => Self::Unsupported(other),
        }
    }
}

/// Why the interfaces of a command line could not be resolved.
#[derive(Debug)]
pub enum ResolveError {
    /// The command line is wrong.
    Usage {
        /// The error.
        message: String,
        /// A correction, if one is known.
        hint: Option<String>,
    },
    /// The kernel could not be asked.
    Failed(anyhow::Error),
}

impl fmt::Display for ResolveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage { message, .. } => f.write_str(message),
            Self::Failed(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for ResolveError {}

impl From<anyhow::Error> for ResolveError {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

/// Stands for all interfaces, as with tcpdump.
pub const ANY: &str = "any";

/// Finds the interfaces with these names, each once, in the order in which they are first named.
/// Alternative names (`ip link property add … altname`) are understood, and `any` for all that are
/// up and whose frames can be read.
///
/// Without names, it is the interface of the default route in the main table with the lowest metric,
/// of IPv4 or else of IPv6. The metrics of the two families are not compared, because they use
/// different scales. Without a default route, it is `any`.
///
/// # Errors
///
/// `Usage` for a name that is not an interface here, or if none is up; `Failed` if the kernel can't be
/// asked.
pub fn resolve(names: &[String]) -> Result<Vec<Interface>, ResolveError> {
    let mut socket = route_socket()?;
    let links = links(&mut socket)?;
    if names.is_empty() {
        return match default_interface(&mut socket, &links)? {
            Some(interface) => Ok(vec![interface]),
            None => some_up(&links),
        };
    }
    let mut found: Vec<Interface> = Vec::new();
    for name in names {
        let named = match links.iter().find(|link| link.answers_to(name)) {
            Some(link) => vec![link.to_interface()],
            None if name == ANY => some_up(&links)?,
            None => return Err(unknown_interface(name, &links)),
        };
        for interface in named {
            if !found.iter().any(|other| other.index == interface.index) {
                found.push(interface);
            }
        }
    }
    Ok(found)
}

/// All interfaces that are up and whose frames can be read.
///
/// # Errors
/// The kernel can't be asked.
pub fn up() -> anyhow::Result<Vec<Interface>> {
    Ok(all_up(&links(&mut route_socket()?)?))
}

/// The names of interfaces of this network namespace.
pub struct InterfaceNames {
    socket: Socket,
    /// By index. An interface that is gone keeps its last name: sockets stay bound to it.
    known: HashMap<u32, String>,
}

impl InterfaceNames {
    /// Opens a socket for requests.
    ///
    /// # Errors
    /// The socket can't be opened.
    pub fn open() -> anyhow::Result<Self> {
        Ok(Self {
            socket: route_socket()?,
            known: HashMap::new(),
        })
    }

    /// Asks for the present names of the interfaces with these indexes; 0 stands for none.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn update(&mut self, indexes: impl Iterator<Item = u32>) -> anyhow::Result<()> {
        let indexes = indexes.filter(|index| *index != 0);
        let indexes = indexes.collect::<BTreeSet<_>>();
        self.known.retain(|index, _| indexes.contains(index));
        for index in indexes {
            if let Some(link) = link_by_index(&mut self.socket, index)? {
                self.known.insert(index, link.name);
            }
        }
        Ok(())
    }

    /// The name of an interface at the last update.
    pub fn get(&self, index: u32) -> Option<&str> {
        self.known.get(&index).map(String::as_str)
    }
}

fn default_interface(
    socket: &mut Socket,
    links: &[LinkInfo],
) -> Result<Option<Interface>, ResolveError> {
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut routes = default_routes(socket, family)?;
        routes.sort_by_key(|route| route.metric);
        let link = routes
            .iter()
            .find_map(|route| links.iter().find(|link| link.index == route.interface));
        if let Some(link) = link {
            return Ok(Some(link.to_interface()));
        }
    }
    Ok(None)
}

fn all_up(links: &[LinkInfo]) -> Vec<Interface> {
    links
        .iter()
        .map(LinkInfo::to_interface)
        .filter(|link| link.up && link.unreadable_frames().is_none())
        .collect()
}

/// As [`all_up`], but it is an error if there is none.
fn some_up(links: &[LinkInfo]) -> Result<Vec<Interface>, ResolveError> {
    let up = all_up(links);
    if up.is_empty() {
        return Err(ResolveError::Usage {
            message: "no interface is up".to_owned(),
            hint: existing("", links),
        });
    }
    Ok(up)
}

fn unknown_interface(name: &str, links: &[LinkInfo]) -> ResolveError {
    // The user chose the name: it is escaped, so that it stays on one line.
    let message = if name.len() >= IFNAMSIZ {
        format!(
            "no interface {name:?}: names have at most {} bytes, and no interface has this as an alternative name",
            IFNAMSIZ - 1
        )
    } else {
        format!("no interface {name:?}")
    };
    ResolveError::Usage {
        message,
        hint: existing(name, links),
    }
}

/// A hint that lists interfaces, first those whose names begin like `name`.
fn existing(name: &str, links: &[LinkInfo]) -> Option<String> {
    let mut links: Vec<_> = links.iter().collect();
    links.sort_by_key(|link| {
        let alike = std::iter::zip(link.name.bytes(), name.bytes());
        std::cmp::Reverse(alike.take_while(|(a, b)| a == b).count())
    });
    let (first, rest) = links.split_at(links.len().min(HINT_NAMES));
    let names: Vec<_> = first
        .iter()
        .map(|link| link.name.escape_debug().to_string())
        .collect();
    let more = match rest.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    (!names.is_empty()).then(|| format!("the interfaces are {}{more}", names.join(", ")))
}

/// The attributes of an interface that are used here, from rtnetlink.
#[derive(Debug, Default)]
pub(super) struct LinkInfo {
    pub(super) index: u32,
    pub(super) name: String,
    pub(super) up: bool,
    /// Largest MTU that can be set, in bytes; 0 if there is no limit.
    pub(super) max_mtu: Option<u32>,
    /// Index of the other end of a veth pair (or of a lower device).
    pub(super) peer: Option<u32>,
    /// The peer is in another network namespace.
    pub(super) peer_elsewhere: bool,
    /// `veth`, `tun`, …; empty for physical devices.
    pub(super) kind: String,
    /// Only in `RTM_DELLINK`: it was not deleted but moved to another network
    /// namespace (`__dev_change_net_namespace()`).
    pub(super) moved: bool,
    pub(super) alternative_names: Vec<String>,
    pub(super) arphrd: u16,
}

impl LinkInfo {
    /// Decodes the payload of an `RTM_NEWLINK` or `RTM_DELLINK` message.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let mut link = Self {
            arphrd: read_u16(payload, 2)?,
            index: u32::try_from(read_i32(payload, 4)?).ok()?,
            up: read_u32(payload, 8)? & 1 != 0,
            ..Self::default()
        };
        for (kind, value) in attributes(payload.get(IFINFOMSG_LEN..)?) {
            match kind {
                IFLA_IFNAME => link.name = text(value),
                IFLA_MAX_MTU => link.max_mtu = read_u32(value, 0),
                IFLA_LINK => link.peer = read_u32(value, 0),
                IFLA_LINK_NETNSID => link.peer_elsewhere = true,
                IFLA_NEW_NETNSID => link.moved = true,
                IFLA_LINKINFO => {
                    let kind = attributes(value).find(|&(kind, _)| kind == IFLA_INFO_KIND);
                    link.kind = kind.map(|(_, value)| text(value)).unwrap_or_default();
                }
                IFLA_PROP_LIST => link.alternative_names.extend(
                    attributes(value)
                        .filter(|&(kind, _)| kind == IFLA_ALT_IFNAME)
                        .map(|(_, value)| text(value)),
                ),
                _ => {}
            }
        }
        Some(link)
    }

    fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.alternative_names.iter().any(|other| other == name)
    }

    fn to_interface(&self) -> Interface {
        Interface {
            name: self.name.clone(),
            index: self.index,
            link_layer: LinkLayer::from_arphrd(self.arphrd),
            up: self.up,
        }
    }
}

/// Opens a socket for the requests of this module.
pub(super) fn route_socket() -> anyhow::Result<Socket> {
    Socket::open(SockProtocol::NetlinkRoute, 0, SockFlag::empty())
}

fn links(socket: &mut Socket) -> anyhow::Result<Vec<LinkInfo>> {
    socket
        .dump(RTM_GETLINK, &link_request(0)?, LinkInfo::decode)
        .context("failed to list the interfaces")
}

/// Whether an interface is up that is not in the list; the loopback interface does not count.
pub(super) fn has_others(socket: &mut Socket, listed: &[u32]) -> anyhow::Result<bool> {
    let links = links(socket)?;
    let mut others = links
        .iter()
        .filter(|link| link.up && link.arphrd != ARPHRD_LOOPBACK);
    Ok(others.any(|link| !listed.contains(&link.index)))
}

/// The link with this index, or none if there is no such link any more.
pub(super) fn link_by_index(socket: &mut Socket, index: u32) -> anyhow::Result<Option<LinkInfo>> {
    match socket.get(RTM_GETLINK, &link_request(index)?) {
        Ok(payload) => Ok(LinkInfo::decode(&payload)),
        Err(Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno).with_context(|| format!("failed to look up interface {index}")),
    }
}

/// The request for one link, or with index 0 for all of them.
fn link_request(index: u32) -> Result<Vec<u8>, Errno> {
    let mut payload = vec![0; 4];
    payload.extend(index.to_ne_bytes());
    payload.resize(IFINFOMSG_LEN, 0);
    push_attribute(
        &mut payload,
        IFLA_EXT_MASK,
        &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
    )?;
    Ok(payload)
}

#[derive(Debug, PartialEq, Eq)]
struct DefaultRoute {
    metric: u32,
    interface: u32,
}

fn default_routes(socket: &mut Socket, family: i32) -> anyhow::Result<Vec<DefaultRoute>> {
    let mut payload = vec![0; RTMSG_LEN];
    if let Some(first) = payload.first_mut() {
        *first = u8::try_from(family).unwrap_or_default();
    }
    match socket.dump(RTM_GETROUTE, &payload, default_route) {
        // A kernel without IPv6 does not know this family.
        Err(error) if error.downcast_ref() == Some(&Errno::EOPNOTSUPP) => Ok(Vec::new()),
        other => other.context("failed to list the routes"),
    }
}

/// Decodes an `RTM_NEWROUTE` payload if it is a usable default route of the main
/// table. Of a multipath route, the first hop is used.
fn default_route(payload: &[u8]) -> Option<DefaultRoute> {
    let prefix_len = *payload.get(1)?;
    let mut table = u32::from(*payload.get(4)?);
    let route_type = *payload.get(7)?;
    let flags = read_u32(payload, 8)?;
    let mut metric = 0;
    let mut interface = None;
    for (kind, value) in attributes(payload.get(RTMSG_LEN..)?) {
        match kind {
            RTA_TABLE => table = read_u32(value, 0)?,
            RTA_PRIORITY => metric = read_u32(value, 0)?,
            RTA_OIF => interface = read_u32(value, 0),
            // struct rtnexthop: length, flags, hops, then the interface.
            RTA_MULTIPATH if interface.is_none() => interface = read_u32(value, 4),
            _ => {}
        }
    }
    let usable = prefix_len == 0
        && table == u32::from(RT_TABLE_MAIN)
        && route_type == RTN_UNICAST
        && flags & (RTNH_F_DEAD | RTM_F_CLONED) == 0;
    usable.then_some(DefaultRoute {
        metric,
        interface: interface?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(prefix_len: u8, table: u8, route_type: u8, flags: u32) -> Vec<u8> {
        let mut payload = vec![2, prefix_len, 0, 0, table, 3, 0, route_type];
        payload.extend(flags.to_ne_bytes());
        push_attribute(&mut payload, RTA_PRIORITY, &600_u32.to_ne_bytes()).unwrap();
        payload
    }

    fn through(mut payload: Vec<u8>, interface: u32) -> Option<DefaultRoute> {
        push_attribute(&mut payload, RTA_OIF, &interface.to_ne_bytes()).unwrap();
        default_route(&payload)
    }

    #[test]
    fn only_usable_default_routes_of_the_main_table_count() {
        let expected = DefaultRoute {
            metric: 600,
            interface: 7,
        };
        assert_eq!(through(route(0, 254, 1, 0), 7), Some(expected));
        assert_eq!(through(route(8, 254, 1, 0), 7), None, "not the default");
        assert_eq!(through(route(0, 255, 1, 0), 7), None, "local table");
        assert_eq!(through(route(0, 254, 7, 0), 7), None, "unreachable");
        assert_eq!(through(route(0, 254, 1, 1), 7), None, "dead");
    }

    #[test]
    fn a_table_above_255_is_read_from_its_attribute() {
        let mut payload = route(0, 254, 1, 0);
        push_attribute(&mut payload, RTA_TABLE, &1000_u32.to_ne_bytes()).unwrap();
        assert_eq!(through(payload, 7), None);
    }

    #[test]
    fn the_first_hop_of_a_multipath_route_counts() {
        let mut hops = Vec::new();
        for interface in [9_u32, 10] {
            hops.extend([8, 0, 0, 0]);
            hops.extend(interface.to_ne_bytes());
        }
        let mut payload = route(0, 254, 1, 0);
        push_attribute(&mut payload, RTA_MULTIPATH, &hops).unwrap();
        let found = default_route(&payload).map(|route| route.interface);
        assert_eq!(found, Some(9));
    }

    #[test]
    fn device_types_are_distinguished() {
        assert_eq!(LinkLayer::from_arphrd(1), LinkLayer::Ethernet);
        assert_eq!(LinkLayer::from_arphrd(772), LinkLayer::Ethernet);
        for raw in [512, 519, 768, 769, 776, 778, 823, 65534] {
            assert_eq!(LinkLayer::from_arphrd(raw), LinkLayer::None, "{raw}");
        }
        let infiniband = 32;
        assert_eq!(
            LinkLayer::from_arphrd(infiniband),
            LinkLayer::Unsupported(infiniband)
        );
    }

    #[test]
    fn a_hint_puts_similar_names_first_and_stays_short() {
        let mut links: Vec<_> = (0..20)
            .map(|number| LinkInfo {
                name: format!("veth{number}"),
                ..LinkInfo::default()
            })
            .collect();
        links.push(LinkInfo {
            name: "eno1".to_owned(),
            ..LinkInfo::default()
        });
        let hint = existing("eno2", &links).unwrap();
        assert!(
            hint.starts_with("the interfaces are eno1, veth0, "),
            "{hint}"
        );
        assert!(hint.ends_with(" and 13 more"), "{hint}");
        assert_eq!(existing("eno2", &[]), None);
    }

    #[test]
    fn a_hostile_name_cannot_forge_a_line() {
        let ResolveError::Usage { message, .. } = unknown_interface("a\nb\x1b[2J", &[]) else {
            panic!("not a usage error");
        };
        assert!(!message.contains(['\n', '\x1b']), "{message:?}");
    }
}
