//! Traffic of flows per interval, by key and interface.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::domain::distinct::Distinct;
use crate::domain::flow::Flow;
use crate::domain::tally::TallyKey;

/// The keys of `flows --by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowBy {
    /// Address of the initiator.
    Saddr,
    /// Address of the responder.
    Daddr,
    /// Port of the responder.
    Dport,
    /// Process on this machine.
    Process,
    /// User whose socket it is.
    Uid,
    /// Container of the process.
    Container,
    /// Network of the initiator.
    Net,
}

impl FlowBy {
    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saddr => "saddr",
            Self::Daddr => "daddr",
            Self::Dport => "dport",
            Self::Process => "process",
            Self::Uid => "uid",
            Self::Container => "container",
            Self::Net => "net",
        }
    }

    /// Whether it is about the process of a flow.
    pub fn needs_process(self) -> bool {
        matches!(self, Self::Process | Self::Uid | Self::Container)
    }
}

/// The figure that the keys of --by are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlowSort {
    /// Payload both ways.
    #[default]
    Bytes,
    /// Packets both ways.
    Packets,
    /// Connections.
    Flows,
    /// Different addresses at the other end.
    Peers,
    /// Different ports of responders.
    Ports,
}

/// Traffic of a key, or of all flows, in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Flows with at least one packet.
    pub flows: u64,
    /// Packets both ways.
    pub packets: u64,
    /// Payload bytes both ways.
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, other: Self) {
        self.flows += other.flows;
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

/// Traffic, and between how many peers and ports it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrafficFigures {
    /// Flows, packets and bytes.
    pub traffic: Traffic,
    /// Different addresses at the other end.
    pub peers: u64,
    /// Different ports of responders.
    pub ports: u64,
}

impl TrafficFigures {
    /// The order of the busiest.
    fn weight(self, sort: FlowSort) -> (u64, u64, u64) {
        let Traffic {
            flows,
            packets,
            bytes,
        } = self.traffic;
        match sort {
            FlowSort::Bytes => (bytes, packets, flows),
            FlowSort::Packets => (packets, bytes, flows),
            FlowSort::Flows => (flows, packets, bytes),
            FlowSort::Peers => (self.peers, flows, packets),
            FlowSort::Ports => (self.ports, flows, packets),
        }
    }
}

/// The traffic of flows while it is summed up.
#[derive(Debug, Default)]
struct Sum {
    traffic: Traffic,
    peers: Distinct,
    ports: Distinct,
}

impl Sum {
    fn add(&mut self, one: &One) {
        self.traffic.add(one.traffic);
        self.peers.add(one.peer);
        self.ports.add(one.port);
    }

    fn figures(&self) -> TrafficFigures {
        // A flow has one peer and one port, so an estimate above the number of flows is too high.
        let flows = self.traffic.flows;
        TrafficFigures {
            traffic: self.traffic,
            peers: self.peers.count().min(flows),
            ports: self.ports.count().min(flows),
        }
    }
}

/// The traffic that a flow adds, with hashes of its peer and port.
struct One {
    traffic: Traffic,
    peer: u64,
    port: u64,
}

/// A key by which traffic is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficKey {
    /// An address or a port.
    Plain(TallyKey),
    /// A network.
    Net(IpNet),
    /// A process: its id and name.
    Process(u32, Vec<u8>),
    /// A user.
    Uid(u32),
    /// A container.
    Container(String),
    /// The flow has no such key.
    Unknown,
}

impl TrafficKey {
    /// The key of a flow, whose process is in this container. Networks have this prefix length.
    pub fn of(flow: &Flow, by: FlowBy, prefix: Option<u8>, container: Option<&str>) -> Self {
        match by {
            FlowBy::Saddr => Self::Plain(TallyKey::Address(flow.saddr())),
            FlowBy::Daddr => Self::Plain(TallyKey::Address(flow.daddr())),
            FlowBy::Dport => Self::Plain(TallyKey::Port(flow.dport())),
            FlowBy::Net => network(flow.saddr(), prefix).map_or(Self::Unknown, Self::Net),
            FlowBy::Process => flow.process().map_or(Self::Unknown, |(pid, name)| {
                Self::Process(pid, name.to_vec())
            }),
            FlowBy::Uid => flow.uid().map_or(Self::Unknown, Self::Uid),
            FlowBy::Container => {
                container.map_or(Self::Unknown, |name| Self::Container(name.to_owned()))
            }
        }
    }
}

/// The network of an address. A prefix that is too long for its family means a single address.
fn network(addr: IpAddr, prefix: Option<u8>) -> Option<IpNet> {
    let (usual, longest) = if addr.is_ipv4() { (24, 32) } else { (64, 128) };
    let net = IpNet::new(addr, prefix.unwrap_or(usual).min(longest)).ok()?;
    Some(net.trunc())
}

/// How many keys are kept. A flood can bring any number of keys: when there are twice as many, only
/// those with the most traffic stay.
const KEYS_KEPT: usize = 32_768;

/// Traffic by key in an interval.
#[derive(Debug)]
pub struct TrafficByKey {
    /// The kind of key.
    pub by: FlowBy,
    /// How many of the busiest are shown.
    top: usize,
    sort: FlowSort,
    sums: HashMap<(u16, TrafficKey), Sum>,
    /// For each interface, the sum over all keys.
    totals: HashMap<u16, Sum>,
    /// For each interface, how many keys were removed from `sums`.
    forgotten: HashMap<u16, u64>,
    /// With a random key, so that nobody can choose peers whose hashes collide.
    hasher: RandomState,
}

impl TrafficByKey {
    /// No traffic yet.
    pub fn new(by: FlowBy, top: usize, sort: FlowSort) -> Self {
        Self {
            by,
            top,
            sort,
            sums: HashMap::new(),
            totals: HashMap::new(),
            forgotten: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Begins a new interval.
    pub fn clear(&mut self) {
        self.sums.clear();
        self.totals.clear();
        self.forgotten.clear();
    }

    /// Adds the traffic of a flow with this key since its last report.
    pub fn add(&mut self, flow: &Flow, key: TrafficKey) {
        let (packets, bytes) = flow.since_report();
        if packets == 0 {
            return;
        }
        let peer = match self.by {
            FlowBy::Saddr | FlowBy::Net => flow.daddr(),
            FlowBy::Daddr | FlowBy::Dport => flow.saddr(),
            FlowBy::Process | FlowBy::Uid | FlowBy::Container => flow.peer(),
        };
        let one = One {
            traffic: Traffic {
                flows: 1,
                packets,
                bytes,
            },
            peer: self.hasher.hash_one(peer),
            port: self.hasher.hash_one(flow.dport()),
        };
        self.add_to(flow.raw.key.interface, key, &one);
    }

    fn add_to(&mut self, interface: u16, key: TrafficKey, one: &One) {
        self.totals.entry(interface).or_default().add(one);
        self.sums.entry((interface, key)).or_default().add(one);
        if self.sums.len() >= 2 * KEYS_KEPT {
            self.forget_small();
        }
    }

    /// Removes the keys that are least busy.
    fn forget_small(&mut self) {
        let weight = |sum: &Sum| sum.figures().weight(self.sort);
        let all = self.sums.drain().map(|(key, sum)| (weight(&sum), key, sum));
        let mut all = all.collect::<Vec<_>>();
        all.select_nth_unstable_by_key(KEYS_KEPT, |(weight, ..)| Reverse(*weight));
        for (_, (interface, _), _) in all.drain(KEYS_KEPT..) {
            *self.forgotten.entry(interface).or_default() += 1;
        }
        self.sums
            .extend(all.into_iter().map(|(_, key, sum)| (key, sum)));
    }

    /// How often a key of an interface was removed; the same key may count several times.
    pub fn forgotten(&self, interface: u16) -> u64 {
        self.forgotten.get(&interface).copied().unwrap_or(0)
    }

    /// The total of an interface, and its busiest keys.
    pub fn busiest(&self, interface: u16) -> (TrafficFigures, Vec<(TrafficKey, TrafficFigures)>) {
        let sums = self.sums.iter().filter(|((at, _), _)| *at == interface);
        let mut keys = sums
            .map(|((_, key), sum)| (key.clone(), sum.figures()))
            .collect::<Vec<_>>();
        let weight = |figures: &TrafficFigures| Reverse(figures.weight(self.sort));
        keys.sort_unstable_by(|(key, figures), (other, with)| {
            (weight(figures), key).cmp(&(weight(with), other))
        });
        keys.truncate(self.top);
        let total = self.totals.get(&interface);
        (
            total.map_or_else(TrafficFigures::default, Sum::figures),
            keys,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_network_has_the_prefix_length_that_is_asked_for_limited_to_its_family() {
        let net = |addr: &str, prefix| network(addr.parse().unwrap(), prefix).unwrap().to_string();
        assert_eq!(net("192.0.2.77", None), "192.0.2.0/24");
        assert_eq!(net("192.0.2.77", Some(8)), "192.0.0.0/8");
        assert_eq!(net("192.0.2.77", Some(64)), "192.0.2.77/32");
        assert_eq!(net("2001:db8::1", None), "2001:db8::/64");
        assert_eq!(net("2001:db8::1", Some(32)), "2001:db8::/32");
    }

    fn key(number: u32) -> TrafficKey {
        TrafficKey::Plain(TallyKey::Address(Ipv4Addr::from(number).into()))
    }

    /// The traffic of one flow whose peer and port have these hashes.
    fn one(bytes: u64, [peer, port]: [u64; 2]) -> One {
        let traffic = Traffic {
            flows: 1,
            packets: 1,
            bytes,
        };
        One {
            traffic,
            peer,
            port,
        }
    }

    #[test]
    fn a_flood_of_keys_takes_bounded_memory_and_hides_neither_the_busy_ones_nor_the_sum() {
        let mut traffic = TrafficByKey::new(FlowBy::Saddr, 2, FlowSort::Bytes);
        for number in 0..1_000_000 {
            traffic.add_to(0, key(number), &one(0, [1, 2]));
            assert!(traffic.sums.len() < 2 * KEYS_KEPT);
            if number % 1000 == 7 {
                traffic.add_to(0, key(u32::MAX), &one(10, [1, 2]));
            }
        }
        let (all, top) = traffic.busiest(0);
        let sum = all.traffic;
        assert_eq!((sum.packets, sum.bytes), (1_001_000, 10_000));
        assert_eq!((all.peers, all.ports), (1, 1));
        assert_eq!(top[0].0, key(u32::MAX));
        assert_eq!(top[0].1.traffic.bytes, 10_000);
        assert!(traffic.forgotten(0) > 900_000);
        assert_eq!(traffic.forgotten(1), 0);
        traffic.clear();
        assert_eq!(
            (traffic.forgotten(0), traffic.busiest(0).0),
            (0, TrafficFigures::default())
        );
    }

    #[test]
    fn a_scanner_is_first_by_ports_or_peers_however_little_it_sends() {
        for (sort, first) in [
            (FlowSort::Bytes, 1),
            (FlowSort::Packets, 2),
            (FlowSort::Flows, 2),
            (FlowSort::Ports, 3),
            (FlowSort::Peers, 4),
        ] {
            let mut traffic = TrafficByKey::new(FlowBy::Saddr, 1, sort);
            let state = RandomState::new();
            let hash = |number: u64| state.hash_one(number);
            for number in 0..20 {
                traffic.add_to(0, key(1), &one(1000, [7, 7]));
                (0..3).for_each(|_| traffic.add_to(0, key(2), &one(1, [7, 7])));
                traffic.add_to(0, key(3), &one(0, [7, hash(number)]));
                traffic.add_to(0, key(4), &one(0, [hash(number), 7]));
            }
            let (all, top) = traffic.busiest(0);
            assert_eq!(top[0].0, key(first), "{sort:?}");
            assert_eq!((all.peers, all.ports), (21, 21));
            assert_eq!(top[0].1.ports, if first == 3 { 20 } else { 1 });
        }
    }
}
