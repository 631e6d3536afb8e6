//! Flows grouped by process, address or port.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::columns::FlowViewColumn;
use super::entry::{FlowEntry, bytes};
use crate::view::text::escaped;

/// The key that flows are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    Process,
    Source,
    Destination,
    Port,
}

impl GroupBy {
    /// The key after this one in the cycle of the key `g`; after the last one, no groups.
    pub fn after(current: Option<Self>) -> Option<Self> {
        match current {
            None => Some(Self::Process),
            Some(Self::Process) => Some(Self::Source),
            Some(Self::Source) => Some(Self::Destination),
            Some(Self::Destination) => Some(Self::Port),
            Some(Self::Port) => None,
        }
    }

    /// The title of its column.
    pub fn title(self) -> &'static str {
        match self {
            Self::Process => "PROCESS",
            Self::Source => "SOURCE",
            Self::Destination => "DESTINATION",
            Self::Port => "PORT",
        }
    }

    /// The text of the group that a flow belongs to, and the filter that selects the group's flows.
    fn key(self, entry: &FlowEntry) -> (String, String) {
        let flow = &entry.flow;
        match self {
            Self::Process => match flow.process() {
                Some((pid, comm)) => (format!("{} {pid}", escaped(comm)), format!("pid={pid}")),
                None => ("-".to_owned(), "pid=-".to_owned()),
            },
            Self::Source => (flow.saddr().to_string(), format!("src={}", flow.saddr())),
            Self::Destination => (flow.daddr().to_string(), format!("dst={}", flow.daddr())),
            Self::Port => (flow.dport().to_string(), format!("dport={}", flow.dport())),
        }
    }
}

/// The flows of one key, summed up.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    pub key: String,
    /// The filter that selects its flows.
    pub filter: String,
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub packet_rate: f64,
    pub byte_rate: f64,
    pub retransmits: u64,
    /// The longest round trip, in nanoseconds.
    pub round_trip: Option<u64>,
}

/// Groups flows, and sums up each group.
pub fn groups<'e>(by: GroupBy, entries: impl Iterator<Item = &'e FlowEntry>) -> Vec<Group> {
    let mut groups = HashMap::<String, Group>::new();
    for entry in entries {
        let (key, filter) = by.key(entry);
        let group = groups.entry(filter).or_insert_with_key(|filter| Group {
            key,
            filter: filter.clone(),
            ..Group::default()
        });
        let flow = &entry.flow;
        group.flows += 1;
        group.packets += flow.packets();
        group.bytes += bytes(flow);
        group.packet_rate += entry.packet_rate;
        group.byte_rate += entry.byte_rate;
        group.retransmits += flow.retransmits();
        group.round_trip = group.round_trip.max(entry.round_trip_ns());
    }
    groups.into_values().collect()
}

/// The columns of groups, besides the key and the number of flows.
pub const SUMMED: [FlowViewColumn; 6] = [
    FlowViewColumn::Packets,
    FlowViewColumn::Bytes,
    FlowViewColumn::PacketRate,
    FlowViewColumn::ByteRate,
    FlowViewColumn::Retransmits,
    FlowViewColumn::RoundTrip,
];

/// The order of groups by a column of [`SUMMED`]; by the number of flows for any other.
pub fn compare(column: FlowViewColumn, a: &Group, b: &Group) -> Ordering {
    match column {
        FlowViewColumn::Packets => a.packets.cmp(&b.packets),
        FlowViewColumn::Bytes => a.bytes.cmp(&b.bytes),
        FlowViewColumn::PacketRate => a.packet_rate.total_cmp(&b.packet_rate),
        FlowViewColumn::ByteRate => a.byte_rate.total_cmp(&b.byte_rate),
        FlowViewColumn::Retransmits => a.retransmits.cmp(&b.retransmits),
        FlowViewColumn::RoundTrip => a.round_trip.cmp(&b.round_trip),
        _ => a.flows.cmp(&b.flows),
    }
}
