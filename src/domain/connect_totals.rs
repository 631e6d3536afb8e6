//! Attempts to connect and their outcomes, by process and destination.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::connection::Connection;
use crate::skel::ConnectKind;

/// The most keys. Processes may choose any number of names and destinations; the attempts of all further
/// keys are counted together.
const KEYS_MAX: usize = 4096;

/// A process and the destination of its attempts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TotalsKey {
    /// Name of the process; `None` where none is known.
    pub process: Option<Vec<u8>>,
    /// Destination address; `None` if it could not be read.
    pub daddr: Option<IpAddr>,
    /// Destination port.
    pub dport: u16,
}

/// The counts of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TotalsCounts {
    /// Attempts.
    pub attempts: u64,
    /// Of these, those that were established.
    pub established: u64,
    /// Those that failed.
    pub failed: u64,
    /// Of the failed ones, those that the process ended itself.
    pub given_up: u64,
    /// Those without an outcome at the end.
    pub pending: u64,
    /// Of the failed ones, those with an error, by errno.
    pub errors: BTreeMap<i32, u64>,
}

impl TotalsCounts {
    /// Failures whose error is not known.
    pub fn unknown(&self) -> u64 {
        let known = self.given_up + self.errors.values().sum::<u64>();
        self.failed.saturating_sub(known)
    }
}

/// Counts by key, for a limited number of keys.
#[derive(Debug, Default)]
pub struct Totals {
    by_key: HashMap<TotalsKey, TotalsCounts>,
    others: TotalsCounts,
    events: u64,
}

impl Totals {
    /// Counts an event of a connection.
    pub fn add(&mut self, connection: &Connection) {
        self.events += 1;
        let key = TotalsKey {
            process: connection
                .has_process()
                .then(|| connection.process().to_vec()),
            daddr: connection.daddr(),
            dport: connection.raw.dport,
        };
        let has_room = self.by_key.len() < KEYS_MAX || self.by_key.contains_key(&key);
        let counts = if has_room {
            self.by_key.entry(key).or_default()
        } else {
            &mut self.others
        };
        match connection.raw.kind {
            ConnectKind::CONNECT_ATTEMPT => counts.attempts += 1,
            ConnectKind::CONNECT_ESTABLISHED => counts.established += 1,
            ConnectKind::CONNECT_PENDING => counts.pending += 1,
            _ => {
                counts.failed += 1;
                counts.given_up += u64::from(connection.given_up());
                if let Some(errno) = connection.error() {
                    *counts.errors.entry(errno).or_default() += 1;
                }
            }
        }
    }

    /// How many events were counted.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// The counts, most failures first. The row without a key has those of all keys for which there
    /// was no room.
    pub fn rows(&self) -> Vec<(Option<&TotalsKey>, &TotalsCounts)> {
        let keys = self.by_key.iter();
        let mut rows: Vec<_> = keys.map(|(key, counts)| (Some(key), counts)).collect();
        rows.sort_by_key(|(key, counts)| {
            let name = key.map(|key| (&key.process, key.daddr, key.dport));
            (Reverse(counts.failed), Reverse(counts.attempts), name)
        });
        if self.others != TotalsCounts::default() {
            rows.push((None, &self.others));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skel::{ConnectEvent, ConnectKnown};

    fn step(kind: ConnectKind, dport: u16) -> Connection {
        let raw = ConnectEvent {
            kind,
            dport,
            ip_version: 4,
            known: ConnectKnown::KNOWN_PROCESS,
            ..Default::default()
        };
        Connection { raw }
    }

    #[test]
    fn keys_are_counted_separately_until_there_is_no_room_for_another() {
        let mut totals = Totals::default();
        for dport in 0..=u16::MAX {
            totals.add(&step(ConnectKind::CONNECT_ATTEMPT, dport));
        }
        totals.add(&step(ConnectKind::CONNECT_FAILED, 7));
        totals.add(&step(ConnectKind::CONNECT_FAILED, u16::MAX));
        let rows = totals.rows();
        assert_eq!(rows.len(), KEYS_MAX + 1);
        let (key, counts) = rows[0];
        assert_eq!(key.map(|key| key.dport), Some(7));
        assert_eq!((counts.attempts, counts.failed), (1, 1));
        let (key, counts) = rows[KEYS_MAX];
        assert_eq!(key, None);
        assert_eq!((counts.attempts, counts.failed), (65_536 - 4096, 1));
        assert_eq!(totals.events(), 65_538);
    }
}
