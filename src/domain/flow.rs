//! A flow: decodes its record into the terms of RFC 9293 and of Zeek.

use std::net::IpAddr;

use super::{address, until_nul};
use crate::skel::{EndKnown, EndState, FlowEnd, FlowEndReason, FlowKnown, FlowNumbers, FlowRecord};

/// A TCP connection as it was seen.
#[derive(Clone, Copy)]
pub struct Flow {
    /// The record as the programs kept it.
    pub raw: FlowRecord,
}

/// Why the record of a flow was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The flow goes on.
    Live,
    /// It goes on, but its SYN has had no answer for too long.
    Unanswered,
    /// Both ends have closed, or one has reset the connection.
    Closed,
    /// No packet came for too long.
    Idle,
    /// A new connection has the same addresses and ports.
    Replaced,
    /// It was removed to make room in the table.
    Evicted,
    /// The run ended before the flow.
    Open,
}

impl Outcome {
    /// The name in text and JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Unanswered => "unanswered",
            Self::Closed => "closed",
            Self::Idle => "idle",
            Self::Replaced => "replaced",
            Self::Evicted => "evicted",
            Self::Open => "open",
        }
    }
}

/// How a round-trip time was measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasuredBy {
    /// The kernel has measured it at an end that is on this machine.
    Kernel,
    /// By the packets of the handshake as they passed.
    Packets,
}

impl MeasuredBy {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Packets => "passive",
        }
    }
}

/// A round-trip time in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrip {
    /// The smoothed one.
    pub us: u64,
    /// The shortest.
    pub min_us: Option<u64>,
    /// How it was measured.
    pub from: MeasuredBy,
}

/// The states of RFC 9293 that a connection goes through, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum TcpState {
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    Closing,
    LastAck,
    TimeWait,
    Closed,
}

impl TcpState {
    /// The name in RFC 9293.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN-SENT",
            Self::SynReceived => "SYN-RECEIVED",
            Self::Established => "ESTABLISHED",
            Self::FinWait1 => "FIN-WAIT-1",
            Self::FinWait2 => "FIN-WAIT-2",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST-ACK",
            Self::TimeWait => "TIME-WAIT",
            Self::Closed => "CLOSED",
        }
    }
}

/// Zeek's `conn_state`, explained in its documentation of conn.log and in `docs/output.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ConnState {
    S0,
    S1,
    Sf,
    Rej,
    S2,
    S3,
    Rsto,
    Rstr,
    Rstos0,
    Rstrh,
    Sh,
    Shr,
    Oth,
}

const _: () = assert!(ConnState::Oth as usize + 1 == ConnState::ALL.len());

impl ConnState {
    /// All of them, as Zeek lists them.
    pub const ALL: [Self; 13] = [
        Self::S0,
        Self::S1,
        Self::Sf,
        Self::Rej,
        Self::S2,
        Self::S3,
        Self::Rsto,
        Self::Rstr,
        Self::Rstos0,
        Self::Rstrh,
        Self::Sh,
        Self::Shr,
        Self::Oth,
    ];

    /// The name in Zeek.
    pub const fn name(self) -> &'static str {
        match self {
            Self::S0 => "S0",
            Self::S1 => "S1",
            Self::Sf => "SF",
            Self::Rej => "REJ",
            Self::S2 => "S2",
            Self::S3 => "S3",
            Self::Rsto => "RSTO",
            Self::Rstr => "RSTR",
            Self::Rstos0 => "RSTOS0",
            Self::Rstrh => "RSTRH",
            Self::Sh => "SH",
            Self::Shr => "SHR",
            Self::Oth => "OTH",
        }
    }

    /// What it means. What follows a colon or a semicolon is left out by [`in_short`].
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::S0 => "a SYN without an answer",
            Self::S1 => "established, not closed",
            Self::Sf => "established and closed normally",
            Self::Rej => "the SYN was answered by RST: refused",
            Self::S2 => "closed by the initiator only",
            Self::S3 => "closed by the responder only",
            Self::Rsto => "reset by the initiator",
            Self::Rstr => "reset by the responder",
            Self::Rstos0 => "SYN, then RST, both from the initiator: typical of a port scan",
            Self::Rstrh => "SYN-ACK, then RST, both from the responder; the SYN was not seen",
            Self::Sh => "SYN, then FIN, both from the initiator",
            Self::Shr => "SYN-ACK, then FIN, both from the responder; the SYN was not seen",
            Self::Oth => "the start was not seen",
        }
    }
}

/// The letters of a history and what they mean, as [`ConnState::meaning`].
pub const HISTORY: [(&str, &str); 11] = [
    (
        "S, s",
        "SYN; a capital letter if the initiator sent it, a small one if the responder did",
    ),
    ("H, h", "SYN-ACK"),
    ("A, a", "ACK without data"),
    ("D, d", "data"),
    ("T, t", "retransmitted data"),
    ("F, f", "FIN"),
    ("R, r", "RST"),
    ("W, w", "zero window: the receiver has no room"),
    ("I, i", "FIN and RST in one packet"),
    ("Q, q", "SYN with FIN or RST"),
    ("^", "the first packet came from the responder"),
];

/// What a letter of a history means, in short.
pub fn meaning_of_letter(letter: char) -> Option<&'static str> {
    let mut all = HISTORY.iter();
    let found = all.find(|(letters, _)| letters.starts_with(letter.to_ascii_uppercase()));
    found.map(|(_, meaning)| in_short(meaning))
}

/// The part of a meaning before its details.
pub fn in_short(meaning: &'static str) -> &'static str {
    meaning.split([';', ':']).next().unwrap_or(meaning)
}

impl Flow {
    /// Decodes a record, which begins at a multiple of 8 in memory; `None` if it is too short or
    /// contradicts itself.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let raw: &FlowRecord = plain::from_bytes(bytes).ok()?;
        let history = raw.history.get(..raw.history_len.into());
        let is_known = |letter: &u8| letter.is_ascii_alphabetic() || *letter == b'^';
        let valid = history.is_some_and(|letters| letters.iter().all(is_known))
            && raw.initiator <= 1
            && matches!(raw.key.ip_version, 4 | 6);
        valid.then_some(Self { raw: *raw })
    }

    fn initiator(&self) -> usize {
        usize::from(self.raw.initiator & 1)
    }

    fn addr(&self, end: usize) -> IpAddr {
        address(self.raw.key.addr[end], self.raw.key.ip_version == 4)
    }

    /// The initiator's address.
    pub fn saddr(&self) -> IpAddr {
        self.addr(self.initiator())
    }

    /// The responder's address.
    pub fn daddr(&self) -> IpAddr {
        self.addr(1 - self.initiator())
    }

    /// The address of the end that does not belong to the process on this machine; the responder's if no
    /// process is known.
    pub fn peer(&self) -> IpAddr {
        match self.uid() {
            Some(_) => self.addr(1 - usize::from(self.raw.owner.end & 1)),
            None => self.daddr(),
        }
    }

    /// The initiator's port.
    pub fn sport(&self) -> u16 {
        self.raw.key.port[self.initiator()]
    }

    /// The responder's port.
    pub fn dport(&self) -> u16 {
        self.raw.key.port[1 - self.initiator()]
    }

    /// Ids of its VLANs, outermost first.
    pub fn vlans(&self) -> impl Iterator<Item = u16> {
        self.raw.key.vlan.into_iter().filter(|id| *id != 0)
    }

    /// The initiator's end, with what it has sent.
    pub fn orig(&self) -> &FlowEnd {
        &self.raw.ends[self.initiator()]
    }

    /// The responder's end, with what it has sent.
    pub fn resp(&self) -> &FlowEnd {
        &self.raw.ends[1 - self.initiator()]
    }

    /// Retransmitted segments, both ways, SYNs of the initiator among them.
    pub fn retransmits(&self) -> u64 {
        let data = self.raw.ends.iter().map(|end| u64::from(end.retransmits));
        data.sum::<u64>() + u64::from(self.raw.syn_retransmits)
    }

    /// Packets both ways.
    pub fn packets(&self) -> u64 {
        self.raw.ends.iter().map(|end| end.packets).sum()
    }

    /// Packets and bytes both ways since the flow was last reported as live.
    pub fn since_report(&self) -> (u64, u64) {
        self.raw.ends.iter().fold((0, 0), |(packets, bytes), end| {
            (
                packets + (end.packets - end.packets_reported.min(end.packets)),
                bytes + (end.bytes - end.bytes_reported.min(end.bytes)),
            )
        })
    }

    fn knows(&self, part: FlowKnown) -> bool {
        u32::from(self.raw.known) & part.0 != 0
    }

    /// Whether the first packet seen was not the initiator's SYN.
    pub fn is_partial(&self) -> bool {
        self.knows(FlowKnown::FLOW_PARTIAL)
    }

    /// Whether its socket existed before the programs were attached.
    pub fn is_seeded(&self) -> bool {
        self.knows(FlowKnown::FLOW_SEEDED)
    }

    /// Payload bytes that the initiator and the responder had sent before the programs were attached.
    pub fn bytes_before(&self) -> Option<[u64; 2]> {
        let before = self.raw.bytes_before;
        let at = self.initiator();
        self.is_seeded().then(|| [before[at], before[1 - at]])
    }

    /// The kernel's figures, if the socket of an end is on this machine.
    pub fn numbers(&self) -> Option<&FlowNumbers> {
        (self.raw.numbers.is_known != 0).then_some(&self.raw.numbers)
    }

    /// The round-trip time; `None` if there was nothing to measure it by.
    pub fn round_trip(&self) -> Option<RoundTrip> {
        if let Some(numbers) = self.numbers() {
            return (numbers.srtt_us != 0).then_some(RoundTrip {
                us: numbers.srtt_us.into(),
                // The kernel has ~0 if it has measured none.
                min_us: (numbers.min_rtt_us != u32::MAX).then_some(numbers.min_rtt_us.into()),
                from: MeasuredBy::Kernel,
            });
        }
        // With several SYNs it is not known which one was answered.
        let us = self
            .handshake_ns()
            .filter(|_| self.raw.syn_retransmits == 0)?
            / 1000;
        Some(RoundTrip {
            us,
            min_us: Some(us),
            from: MeasuredBy::Packets,
        })
    }

    /// Whether the flow goes on, and only its numbers are reported.
    pub fn is_live(&self) -> bool {
        self.raw.reason == reason(FlowEndReason::FLOW_IS_LIVE)
    }

    /// Whether the flow was removed to make room in the table.
    pub fn is_evicted(&self) -> bool {
        self.raw.reason == reason(FlowEndReason::FLOW_EVICTED)
    }

    /// Whether an earlier line has reported it as unanswered, with all that was counted until then.
    pub fn is_continued(&self) -> bool {
        self.knows(FlowKnown::FLOW_REPORTED)
    }

    /// Why the record was reported.
    pub fn outcome(&self) -> Outcome {
        match FlowEndReason(self.raw.reason.into()) {
            FlowEndReason::FLOW_IS_LIVE => Outcome::Live,
            FlowEndReason::FLOW_UNANSWERED => Outcome::Unanswered,
            FlowEndReason::FLOW_CLOSED => Outcome::Closed,
            FlowEndReason::FLOW_IDLE => Outcome::Idle,
            FlowEndReason::FLOW_REPLACED => Outcome::Replaced,
            FlowEndReason::FLOW_EVICTED => Outcome::Evicted,
            _ => Outcome::Open,
        }
    }

    /// Nanoseconds from the first packet to the last.
    pub fn duration_ns(&self) -> u64 {
        self.raw.last_ns.wrapping_sub(self.raw.start_ns)
    }

    /// Nanoseconds from the first SYN to the SYN-ACK.
    pub fn syn_ack_ns(&self) -> Option<u64> {
        self.since_syn(FlowKnown::FLOW_SYN_ACK, self.raw.syn_ack_ns)
    }

    /// Nanoseconds from the first SYN to the initiator's ACK of the SYN-ACK.
    pub fn handshake_ns(&self) -> Option<u64> {
        self.since_syn(FlowKnown::FLOW_ACK, self.raw.ack_ns)
    }

    fn since_syn(&self, part: FlowKnown, at: u64) -> Option<u64> {
        // The times of a capture file may go back.
        let passed = at.wrapping_sub(self.raw.start_ns).cast_signed().max(0);
        (self.knows(part) && !self.is_partial()).then_some(passed.cast_unsigned())
    }

    /// The user who owns the socket of this machine's end; `None` if it was not found.
    pub fn uid(&self) -> Option<u32> {
        let owner = &self.raw.owner;
        (owner.from != 0).then_some(owner.uid)
    }

    /// The id and name of the process that holds that socket; `None` if none was found.
    pub fn process(&self) -> Option<(u32, &[u8])> {
        let owner = &self.raw.owner;
        let is_known = owner.from != 0 && owner.pid != 0;
        is_known.then(|| (owner.pid, until_nul(&owner.comm)))
    }

    /// The cgroup of the process when it was found, and a process that was in it; 0 if there is none.
    pub fn cgroup(&self) -> (u64, u32) {
        (self.raw.owner.cgroup_id, self.raw.owner.pid)
    }

    /// The history in Zeek's letters, oldest first.
    pub fn history(&self) -> &[u8] {
        &self.raw.history[..usize::from(self.raw.history_len)]
    }

    /// The state of the connection: that of the end which closed first, or, before either has
    /// closed, of the one that has progressed less.
    pub fn state(&self) -> TcpState {
        let ends = [self.orig(), self.resp()];
        if ends.iter().any(|end| is(end, EndState::END_RESET)) {
            return TcpState::Closed;
        }
        let has = |part: EndKnown| {
            ends.iter()
                .filter(|end| u32::from(end.known) & part.0 != 0)
                .count()
        };
        match (has(EndKnown::END_FIN), has(EndKnown::END_FIN_ACKED)) {
            (2, 2) => TcpState::TimeWait,
            (2, 1) => TcpState::LastAck,
            (2, _) => TcpState::Closing,
            (1, 1) => TcpState::FinWait2,
            (1, _) => TcpState::FinWait1,
            _ if is(ends[0], EndState::END_SYN_SENT) => TcpState::SynSent,
            _ if self.awaits_ack() => TcpState::SynReceived,
            _ => TcpState::Established,
        }
    }

    /// Whether the responder's SYN was seen, and nothing that acknowledges it.
    fn awaits_ack(&self) -> bool {
        self.knows(FlowKnown::FLOW_SYN_ACK) && !self.knows(FlowKnown::FLOW_ACK)
    }

    /// Zeek's `conn_state`, derived from the states of both ends like in Zeek's `Conn::conn_state`.
    pub fn conn_state(&self) -> ConnState {
        let (orig, resp) = (self.orig(), self.resp());
        let inactive = |end| is(end, EndState::END_INACTIVE) || is(end, EndState::END_PARTIAL);
        let reset = |end| is(end, EndState::END_RESET);
        let closed = |end| is(end, EndState::END_CLOSED);
        let syn_sent = is(orig, EndState::END_SYN_SENT);
        if reset(resp) {
            let nothing_sent = orig.bytes == 0 && resp.bytes == 0;
            return if syn_sent || (reset(orig) && nothing_sent) {
                ConnState::Rej
            } else if inactive(orig) {
                ConnState::Rstrh
            } else {
                ConnState::Rstr
            };
        }
        if reset(orig) {
            return if !inactive(resp) {
                ConnState::Rsto
            } else if is_syn_then_rst(self.history()) {
                ConnState::Rstos0
            } else {
                ConnState::Oth
            };
        }
        match (closed(orig), closed(resp)) {
            (true, true) => ConnState::Sf,
            (true, false) if inactive(resp) => ConnState::Sh,
            (true, false) => ConnState::S2,
            (false, true) if inactive(orig) => ConnState::Shr,
            (false, true) => ConnState::S3,
            _ if syn_sent && is(resp, EndState::END_INACTIVE) => ConnState::S0,
            _ if is(orig, EndState::END_ESTABLISHED) && is(resp, EndState::END_ESTABLISHED) => {
                ConnState::S1
            }
            _ => ConnState::Oth,
        }
    }
}

fn is(end: &FlowEnd, state: EndState) -> bool {
    u32::from(end.state) == state.0
}

fn reason(reason: FlowEndReason) -> u8 {
    // The values of the enum fit in a byte.
    reason.0 as u8
}

/// Zeek's `/\^?S[^HAFGIQ]*R.*/`: the initiator sent a SYN, then a RST, and nothing of note between.
fn is_syn_then_rst(history: &[u8]) -> bool {
    let history = history.strip_prefix(b"^").unwrap_or(history);
    match history.split_first() {
        Some((b'S', rest)) => rest.iter().find(|letter| b"HAFGIQR".contains(letter)) == Some(&b'R'),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::skel::key_bytes;

    #[test]
    fn a_record_with_other_letters_than_zeeks_in_its_history_is_refused() {
        let mut raw = FlowRecord::default();
        raw.key.ip_version = 4;
        raw.history[..2].copy_from_slice(b"^h");
        for (len, is_valid) in [(0, true), (2, true), (3, false), (255, false)] {
            raw.history_len = len;
            assert_eq!(Flow::decode(key_bytes(&raw)).is_some(), is_valid, "{len}");
        }
    }
}
