//! What the packet programs count.

use crate::skel::CounterSlot;

/// The counters of the packet programs, summed over all slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketCounters {
    /// Frames by verdict, in the order of [`VERDICTS`].
    pub verdicts: [u64; VERDICTS.len()],
    /// Frames that passed the filter.
    pub matched: u64,
    /// Of these, those for which the event buffer had no room.
    pub lost: u64,
    /// Of these, those that `--max-rate` held back.
    pub suppressed: u64,
    /// Of these, those whose key or flow lost its place in the table, or found none.
    pub untracked: u64,
    /// Packets of flows, GSO packets by their segments.
    pub segments: u64,
}

/// Names of the verdicts in the order of `enum verdict`.
pub const VERDICTS: [&str; 7] = [
    "tcp",
    "not_ip",
    "not_tcp",
    "fragment",
    "truncated",
    "malformed",
    "too_deep",
];

impl PacketCounters {
    /// Adds what another program counted.
    pub fn add(&mut self, other: &Self) {
        for (to, from) in self.verdicts.iter_mut().zip(other.verdicts) {
            *to += from;
        }
        self.matched += other.matched;
        self.lost += other.lost;
        self.suppressed += other.suppressed;
        self.untracked += other.untracked;
        self.segments += other.segments;
    }

    /// All frames seen.
    pub fn packets(&self) -> u64 {
        self.verdicts.iter().sum()
    }
}

impl From<CounterSlot> for PacketCounters {
    fn from(slot: CounterSlot) -> Self {
        Self {
            verdicts: slot.verdicts,
            matched: slot.matched,
            lost: slot.lost,
            suppressed: slot.suppressed,
            untracked: slot.untracked,
            segments: slot.segments,
        }
    }
}
