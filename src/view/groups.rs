//! Flows of the live table, summed up by what they have in common.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::{Column, Entry, name};

/// What flows are grouped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    Process,
    Source,
    Destination,
    Port,
}

impl GroupBy {
    /// The next one, and after the last one none.
    pub fn after(current: Option<Self>) -> Option<Self> {
        match current {
            None => Some(Self::Process),
            Some(Self::Process) => Some(Self::Source),
            Some(Self::Source) => Some(Self::Destination),
            Some(Self::Destination) => Some(Self::Port),
            Some(Self::Port) => None,
        }
    }

    /// As the head of the table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Self::Process => "PROCESS",
            Self::Source => "SOURCE",
            Self::Destination => "DESTINATION",
            Self::Port => "PORT",
        }
    }

    /// What is shown of a flow's group, and the filter that chooses the flows of the group.
    fn key(self, entry: &Entry) -> (String, String) {
        let flow = &entry.flow;
        match self {
            Self::Process => match flow.process() {
                Some((pid, comm)) => (format!("{} {pid}", name(comm)), format!("pid={pid}")),
                None => ("-".to_owned(), "pid=-".to_owned()),
            },
            Self::Source => (flow.saddr().to_string(), format!("src={}", flow.saddr())),
            Self::Destination => (flow.daddr().to_string(), format!("dst={}", flow.daddr())),
            Self::Port => (flow.dport().to_string(), format!("dport={}", flow.dport())),
        }
    }
}

/// Flows that have something in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Group {
    pub key: String,
    /// Chooses its flows.
    pub filter: String,
    pub flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub packet_rate: f64,
    pub byte_rate: f64,
    pub retransmits: u64,
    /// The longest one, in nanoseconds.
    pub round_trip: Option<u64>,
}

/// Sums up flows.
pub fn groups<'e>(by: GroupBy, entries: impl Iterator<Item = &'e Entry>) -> Vec<Group> {
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
        group.bytes += flow.orig().bytes + flow.resp().bytes;
        group.packet_rate += entry.packet_rate;
        group.byte_rate += entry.byte_rate;
        group.retransmits += flow.retransmits();
        group.round_trip = group.round_trip.max(entry.round_trip_ns());
    }
    groups.into_values().collect()
}

/// The columns of groups, beside what they have in common and the number of flows.
pub const SUMMED: [Column; 6] = [
    Column::Packets,
    Column::Bytes,
    Column::PacketRate,
    Column::ByteRate,
    Column::Retransmits,
    Column::RoundTrip,
];

/// The order of groups by a column of [`SUMMED`]; by the number of flows for any other.
pub fn compare(column: Column, a: &Group, b: &Group) -> Ordering {
    match column {
        Column::Packets => a.packets.cmp(&b.packets),
        Column::Bytes => a.bytes.cmp(&b.bytes),
        Column::PacketRate => a.packet_rate.total_cmp(&b.packet_rate),
        Column::ByteRate => a.byte_rate.total_cmp(&b.byte_rate),
        Column::Retransmits => a.retransmits.cmp(&b.retransmits),
        Column::RoundTrip => a.round_trip.cmp(&b.round_trip),
        _ => a.flows.cmp(&b.flows),
    }
}
