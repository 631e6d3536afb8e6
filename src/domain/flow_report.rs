//! The totals of a run of flows, for `--summary`.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;

use super::flow::{ConnState, Flow, Outcome};

/// How many talkers are kept. A scan brings any number of them: when there are twice as many, only those
/// with the most bytes are kept.
const TALKERS_KEPT: usize = 16_384;

/// How many talkers and handshakes are shown.
const SHOWN: usize = 5;

/// All states, in the order in which they are shown.
const STATES: [ConnState; ConnState::ALL.len()] = [
    ConnState::Sf,
    ConnState::S1,
    ConnState::S2,
    ConnState::S3,
    ConnState::Oth,
    ConnState::S0,
    ConnState::Rej,
    ConnState::Rsto,
    ConnState::Rstr,
    ConnState::Rstos0,
    ConnState::Rstrh,
    ConnState::Sh,
    ConnState::Shr,
];

/// States of connections that were never established.
const FAILED: [ConnState; 6] = [
    ConnState::S0,
    ConnState::Rej,
    ConnState::Rstos0,
    ConnState::Rstrh,
    ConnState::Sh,
    ConnState::Shr,
];

/// States of those that ended with a RST.
const RESET: [ConnState; 2] = [ConnState::Rsto, ConnState::Rstr];

/// An initiator, a responder and its port, whose connections are summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Talker {
    /// The initiator.
    pub saddr: IpAddr,
    /// The responder.
    pub daddr: IpAddr,
    /// Its port.
    pub dport: u16,
}

/// The traffic of a talker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Talk {
    /// Connections.
    pub flows: u64,
    /// Of these, those that were never established.
    pub failed: u64,
    /// Retransmitted segments, both ways, SYNs included.
    pub retransmits: u64,
    /// Payload bytes both ways.
    pub bytes: u64,
}

/// A handshake that took long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// Nanoseconds from the first SYN to the ACK of the SYN-ACK.
    pub ns: u64,
    /// The two hosts.
    pub talker: Talker,
    /// The initiator's port.
    pub sport: u16,
}

/// The sums over all flows of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlowReport {
    /// By the value of the state.
    states: [u64; ConnState::ALL.len()],
    /// Payload bytes of initiators and of responders.
    pub bytes: [u64; 2],
    /// Retransmitted SYNs.
    pub syn_retransmits: u64,
    /// Segments with data that initiators and responders retransmitted.
    pub retransmits: [u64; 2],
    talkers: HashMap<Talker, Talk>,
    /// Talkers that were removed to save memory; one can count several times.
    pub forgotten: u64,
    /// The longest first.
    longest: Vec<Handshake>,
}

impl FlowReport {
    /// Adds a record of a flow that is over, or of one that had no answer so far.
    pub fn add(&mut self, flow: &Flow) {
        let talker = Talker {
            saddr: flow.saddr(),
            daddr: flow.daddr(),
            dport: flow.dport(),
        };
        let sent = [flow.orig().bytes, flow.resp().bytes];
        for (sum, bytes) in self.bytes.iter_mut().zip(sent) {
            *sum += bytes;
        }
        let talk = self.talkers.entry(talker).or_default();
        talk.bytes += sent.iter().sum::<u64>();
        // There is another record of the same flow later.
        if flow.outcome() != Outcome::Unanswered {
            talk.flows += 1;
            talk.failed += u64::from(FAILED.contains(&flow.conn_state()));
            talk.retransmits += flow.retransmits();
            self.add_once(flow, talker);
        }
        if self.talkers.len() >= 2 * TALKERS_KEPT {
            self.forget_small();
        }
    }

    /// Adds what counts once for each flow, however many records it has.
    fn add_once(&mut self, flow: &Flow, talker: Talker) {
        self.states[flow.conn_state() as usize] += 1;
        self.syn_retransmits += u64::from(flow.raw.syn_retransmits);
        for (sum, end) in self.retransmits.iter_mut().zip([flow.orig(), flow.resp()]) {
            *sum += u64::from(end.retransmits);
        }
        if let Some(ns) = flow.handshake_ns() {
            let at = self.longest.partition_point(|longer| longer.ns >= ns);
            let sport = flow.sport();
            self.longest.insert(at, Handshake { ns, talker, sport });
            self.longest.truncate(SHOWN);
        }
    }

    fn forget_small(&mut self) {
        let mut all = self.talkers.drain().collect::<Vec<_>>();
        all.select_nth_unstable_by_key(TALKERS_KEPT, |(_, talk)| {
            Reverse((talk.bytes, talk.failed, talk.flows))
        });
        self.forgotten += (all.len() - TALKERS_KEPT) as u64;
        all.truncate(TALKERS_KEPT);
        self.talkers.extend(all);
    }

    /// How many connections ended in each state.
    pub fn states(&self) -> impl Iterator<Item = (ConnState, u64)> {
        let counts = self.states;
        STATES
            .map(|state| (state, counts[state as usize]))
            .into_iter()
    }

    /// All connections.
    pub fn connections(&self) -> u64 {
        self.states.iter().sum()
    }

    /// Those that were never established.
    pub fn failed(&self) -> u64 {
        self.in_states(&FAILED)
    }

    /// Those that were reset after they had been established.
    pub fn reset(&self) -> u64 {
        self.in_states(&RESET)
    }

    fn in_states(&self, wanted: &[ConnState]) -> u64 {
        wanted
            .iter()
            .map(|state| self.states[*state as usize])
            .sum()
    }

    /// The talkers with the most bytes.
    pub fn talkers(&self) -> Vec<(Talker, Talk)> {
        self.top(|talk| talk.bytes)
    }

    /// The talkers with the most failed connections.
    pub fn failing(&self) -> Vec<(Talker, Talk)> {
        self.top(|talk| talk.failed)
    }

    /// The talkers with the most retransmitted segments.
    pub fn resending(&self) -> Vec<(Talker, Talk)> {
        self.top(|talk| talk.retransmits)
    }

    /// The talkers with the highest value, then with the most connections. Those whose value is 0 are
    /// left out.
    fn top(&self, of: impl Fn(&Talk) -> u64) -> Vec<(Talker, Talk)> {
        let all = self.talkers.iter().filter(|(_, talk)| of(talk) > 0);
        let mut all = all
            .map(|(talker, talk)| (*talker, *talk))
            .collect::<Vec<_>>();
        all.sort_unstable_by_key(|(talker, talk)| (Reverse((of(talk), talk.flows)), *talker));
        all.truncate(SHOWN);
        all
    }

    /// The longest handshakes, the longest first.
    pub fn longest(&self) -> &[Handshake] {
        &self.longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skel::{EndState, FlowEndReason, FlowKnown, FlowRecord};

    fn flow(last: u8, bytes: u64, state: EndState, handshake: u64) -> Flow {
        let mut raw = FlowRecord::default();
        raw.key.ip_version = 4;
        for (end, last) in [(0, last), (1, 200)] {
            raw.key.addr[end][10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, last]);
        }
        raw.key.port = [5000, 443];
        raw.known = (FlowKnown::FLOW_STARTED.0 | FlowKnown::FLOW_ACK.0) as u8;
        raw.ack_ns = handshake;
        raw.ends[0].state = EndState::END_ESTABLISHED.0 as u8;
        raw.ends[1].state = state.0 as u8;
        raw.ends[0].bytes = bytes;
        raw.ends[1].retransmits = 2;
        raw.reason = FlowEndReason::FLOW_CLOSED.0 as u8;
        Flow { raw }
    }

    #[test]
    fn all_states_are_shown() {
        let mut shown = STATES.map(|state| state as usize);
        shown.sort_unstable();
        assert!(shown.into_iter().eq(0..ConnState::ALL.len()));
    }

    #[test]
    fn flows_are_summed_up_and_the_worst_talkers_are_named() {
        let mut report = FlowReport::default();
        for last in 1..=9 {
            let established = EndState::END_ESTABLISHED;
            report.add(&flow(
                last,
                u64::from(last),
                established,
                u64::from(last) * 1000,
            ));
        }
        report.add(&flow(7, 100, EndState::END_RESET, 5));
        let states = report.states().filter(|(_, count)| *count > 0);
        let expected = [(ConnState::S1, 9), (ConnState::Rstr, 1)];
        assert_eq!(states.collect::<Vec<_>>(), expected);
        assert_eq!(report.connections(), 10);
        assert_eq!(report.bytes, [145, 0]);
        assert_eq!(report.retransmits, [0, 20]);
        let top = report.talkers();
        assert_eq!(top.len(), SHOWN);
        assert_eq!(top[0].0.saddr.to_string(), "10.0.0.7");
        assert_eq!(
            top[0].1,
            Talk {
                flows: 2,
                failed: 0,
                retransmits: 4,
                bytes: 107
            }
        );
        assert_eq!((report.failed(), report.reset()), (0, 1));
        assert_eq!(report.failing(), []);
        assert_eq!(report.resending()[0], top[0]);
        let longest = report.longest().iter().map(|it| it.ns).collect::<Vec<_>>();
        assert_eq!(longest, [9000, 8000, 7000, 6000, 5000]);
    }

    #[test]
    fn an_attempt_that_was_reported_before_its_end_counts_once() {
        let mut report = FlowReport::default();
        let mut reported = flow(1, 0, EndState::END_INACTIVE, 0);
        reported.raw.ends[0].state = EndState::END_SYN_SENT.0 as u8;
        reported.raw.syn_retransmits = 2;
        reported.raw.reason = FlowEndReason::FLOW_UNANSWERED.0 as u8;
        report.add(&reported);
        assert_eq!(report.connections(), 0);
        reported.raw.syn_retransmits = 5;
        reported.raw.reason = FlowEndReason::FLOW_IDLE.0 as u8;
        report.add(&reported);
        assert_eq!((report.connections(), report.syn_retransmits), (1, 5));
        assert_eq!((report.failed(), report.failing()[0].1.failed), (1, 1));
    }

    #[test]
    fn a_scan_takes_bounded_memory_and_hides_no_busy_talker() {
        let mut report = FlowReport::default();
        for number in 0..100_000_u32 {
            let mut small = flow(1, 1, EndState::END_ESTABLISHED, 0);
            small.raw.key.addr[0][12..].copy_from_slice(&number.to_be_bytes());
            report.add(&small);
            if number % 1000 == 0 {
                report.add(&flow(9, 1000, EndState::END_ESTABLISHED, 0));
            }
            assert!(report.talkers.len() < 2 * TALKERS_KEPT);
        }
        let (talker, talk) = report.talkers()[0];
        assert_eq!(talker.saddr.to_string(), "10.0.0.9");
        assert_eq!(talk.bytes, 100_000);
        assert!(report.forgotten > 50_000);
        assert_eq!(report.connections(), 100_100);
    }
}
