//! Traffic of flows per interval, by key and interface. Pure.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::cli::FlowBy;
use crate::domain::flow::Flow;
use crate::domain::tally::Key;

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

    /// The order of the busiest: bytes, then packets, then flows.
    fn weight(self) -> (u64, u64, u64) {
        (self.bytes, self.packets, self.flows)
    }
}

/// What the traffic of a flow is counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TrafficKey {
    /// An address or a port.
    Plain(Key),
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
    /// The key of a flow, whose process is in this container. `prefix` is the length of networks.
    pub fn of(flow: &Flow, by: FlowBy, prefix: Option<u8>, container: Option<&str>) -> Self {
        match by {
            FlowBy::Saddr => Self::Plain(Key::Address(flow.saddr())),
            FlowBy::Daddr => Self::Plain(Key::Address(flow.daddr())),
            FlowBy::Dport => Self::Plain(Key::Port(flow.dport())),
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

/// The network of an address. A length that the family does not have means a single address.
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
    /// Which key.
    pub by: FlowBy,
    /// How many of the busiest are shown.
    pub top: usize,
    loads: HashMap<(u16, TrafficKey), Traffic>,
    /// For each interface, the traffic of keys that were removed from `loads`, and how many were.
    forgotten: HashMap<u16, (Traffic, u64)>,
}

impl TrafficByKey {
    /// No traffic yet.
    pub fn new(by: FlowBy, top: usize) -> Self {
        Self {
            by,
            top,
            loads: HashMap::new(),
            forgotten: HashMap::new(),
        }
    }

    /// Begins a new interval.
    pub fn clear(&mut self) {
        self.loads.clear();
        self.forgotten.clear();
    }

    /// Adds the traffic of a flow with this key since its last report.
    pub fn add(&mut self, flow: &Flow, key: TrafficKey) {
        let (packets, bytes) = flow.since_told();
        if packets == 0 {
            return;
        }
        let load = Traffic {
            flows: 1,
            packets,
            bytes,
        };
        self.add_to(flow.raw.key.interface, key, load);
    }

    fn add_to(&mut self, interface: u16, key: TrafficKey, load: Traffic) {
        self.loads.entry((interface, key)).or_default().add(load);
        if self.loads.len() >= 2 * KEYS_KEPT {
            self.forget_small();
        }
    }

    /// Removes the keys with the least traffic.
    fn forget_small(&mut self) {
        let mut all = self.loads.drain().collect::<Vec<_>>();
        all.select_nth_unstable_by_key(KEYS_KEPT, |(_, load)| Reverse(load.weight()));
        for ((interface, _), load) in all.drain(KEYS_KEPT..) {
            let (sum, keys) = self.forgotten.entry(interface).or_default();
            sum.add(load);
            *keys += 1;
        }
        self.loads.extend(all);
    }

    /// How often a key of an interface was removed; the same key may count several times.
    pub fn forgotten(&self, interface: u16) -> u64 {
        self.forgotten.get(&interface).map_or(0, |(_, keys)| *keys)
    }

    /// The total of an interface, and its keys with the most bytes, then packets, then flows.
    pub fn busiest(&self, interface: u16) -> (Traffic, Vec<(TrafficKey, Traffic)>) {
        let mut all = self
            .forgotten
            .get(&interface)
            .map_or_else(Traffic::default, |(sum, _)| *sum);
        let mut keys = Vec::new();
        for ((_, key), load) in self.loads.iter().filter(|((at, _), _)| *at == interface) {
            all.add(*load);
            keys.push((key.clone(), *load));
        }
        keys.sort_unstable_by(|(key, load), (other, with)| {
            (Reverse(load.weight()), key).cmp(&(Reverse(with.weight()), other))
        });
        keys.truncate(self.top);
        (all, keys)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_network_has_the_length_that_is_asked_for_as_far_as_its_family_has_it() {
        let net = |addr: &str, prefix| network(addr.parse().unwrap(), prefix).unwrap().to_string();
        assert_eq!(net("192.0.2.77", None), "192.0.2.0/24");
        assert_eq!(net("192.0.2.77", Some(8)), "192.0.0.0/8");
        assert_eq!(net("192.0.2.77", Some(64)), "192.0.2.77/32");
        assert_eq!(net("2001:db8::1", None), "2001:db8::/64");
        assert_eq!(net("2001:db8::1", Some(32)), "2001:db8::/32");
    }

    #[test]
    fn a_flood_of_keys_takes_bounded_memory_and_hides_neither_the_busy_ones_nor_the_sum() {
        let mut traffic = TrafficByKey::new(FlowBy::Saddr, 2);
        let small = Traffic {
            flows: 1,
            packets: 1,
            bytes: 0,
        };
        let key = |number: u32| TrafficKey::Plain(Key::Address(Ipv4Addr::from(number).into()));
        for number in 0..1_000_000 {
            traffic.add_to(0, key(number), small);
            assert!(traffic.loads.len() < 2 * KEYS_KEPT);
            if number % 1000 == 7 {
                let busy = Traffic { bytes: 10, ..small };
                traffic.add_to(0, key(u32::MAX), busy);
            }
        }
        let (all, top) = traffic.busiest(0);
        assert_eq!((all.packets, all.bytes), (1_001_000, 10_000));
        assert_eq!(top[0].0, key(u32::MAX));
        assert_eq!(top[0].1.bytes, 10_000);
        assert!(traffic.forgotten(0) > 900_000);
        assert_eq!(traffic.forgotten(1), 0);
        traffic.clear();
        assert_eq!(
            (traffic.forgotten(0), traffic.busiest(0).0),
            (0, Traffic::default())
        );
    }
}
