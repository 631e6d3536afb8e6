//! What flows carry, by key and interface, in an interval. Pure.

use std::collections::HashMap;

use crate::cli::CountBy;
use crate::output::flow::Load;
use crate::record::flow::Flow;
use crate::tally::Key;

/// Sums of an interval. They hold no more keys than the table in the kernel has had flows.
#[derive(Debug)]
pub struct Loads {
    /// Which key.
    pub by: CountBy,
    /// How many of the busiest are shown.
    pub top: usize,
    loads: HashMap<(u16, Key), Load>,
}

impl Loads {
    /// Sums of nothing.
    pub fn new(by: CountBy, top: usize) -> Self {
        Self {
            by,
            top,
            loads: HashMap::new(),
        }
    }

    /// Begins a new interval.
    pub fn clear(&mut self) {
        self.loads.clear();
    }

    /// Adds what a flow has carried since it was last reported.
    pub fn add(&mut self, flow: &Flow) {
        let (packets, bytes) = flow.since_told();
        if packets == 0 {
            return;
        }
        let key = match self.by {
            CountBy::Saddr => Key::Address(flow.saddr()),
            CountBy::Daddr => Key::Address(flow.daddr()),
            CountBy::Dport => Key::Port(flow.dport()),
        };
        let load = self.loads.entry((flow.raw.key.interface, key)).or_default();
        load.flows += 1;
        load.packets += packets;
        load.bytes += bytes;
    }

    /// The sum of an interface, and its keys with the most bytes, then packets, then flows.
    pub fn busiest(&self, interface: u16) -> (Load, Vec<(String, Load)>) {
        let mut all = Load::default();
        let mut keys = Vec::new();
        for ((_, key), load) in self.loads.iter().filter(|((at, _), _)| *at == interface) {
            all.flows += load.flows;
            all.packets += load.packets;
            all.bytes += load.bytes;
            keys.push((*key, *load));
        }
        keys.sort_unstable_by_key(|(key, load)| {
            (
                std::cmp::Reverse((load.bytes, load.packets, load.flows)),
                *key,
            )
        });
        keys.truncate(self.top);
        let keys = keys
            .into_iter()
            .map(|(key, load)| (key.to_string(), load))
            .collect();
        (all, keys)
    }
}
