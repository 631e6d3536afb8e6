//! A flow: what its record says in the words of RFC 9293 and of Zeek.

use std::net::IpAddr;

use super::address;
use crate::skel::{EndKnown, EndState, FlowEnd, FlowEndReason, FlowKnown, FlowRecord};

/// A TCP connection as it was seen.
#[derive(Clone, Copy)]
pub struct Flow {
    /// The record as the programs kept it.
    pub raw: FlowRecord,
}

impl Flow {
    /// Decodes a record; `None` if it is too short or contradicts itself.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut raw = FlowRecord::default();
        plain::copy_from_bytes(&mut raw, bytes).ok()?;
        let valid = usize::from(raw.history_len) <= raw.history.len()
            && raw.initiator <= 1
            && matches!(raw.key.ip_version, 4 | 6);
        valid.then_some(Self { raw })
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

    /// The initiator's port.
    pub fn sport(&self) -> u16 {
        self.raw.key.port[self.initiator()]
    }

    /// The responder's port.
    pub fn dport(&self) -> u16 {
        self.raw.key.port[1 - self.initiator()]
    }

    /// What the initiator has sent.
    pub fn orig(&self) -> &FlowEnd {
        &self.raw.ends[self.initiator()]
    }

    /// What the responder has sent.
    pub fn resp(&self) -> &FlowEnd {
        &self.raw.ends[1 - self.initiator()]
    }

    /// Packets both ways.
    pub fn packets(&self) -> u64 {
        self.raw.ends.iter().map(|end| end.packets).sum()
    }

    /// Packets and bytes both ways since the flow was last reported as live.
    pub fn since_told(&self) -> (u64, u64) {
        self.raw.ends.iter().fold((0, 0), |(packets, bytes), end| {
            (
                packets + (end.packets - end.packets_told.min(end.packets)),
                bytes + (end.bytes - end.bytes_told.min(end.bytes)),
            )
        })
    }

    fn knows(&self, part: FlowKnown) -> bool {
        u32::from(self.raw.known) & part.0 != 0
    }

    /// Whether the first packet seen was another than the initiator's SYN.
    pub fn is_partial(&self) -> bool {
        self.knows(FlowKnown::FLOW_PARTIAL)
    }

    /// Whether the flow goes on, and only its numbers are reported.
    pub fn is_live(&self) -> bool {
        self.raw.reason == reason(FlowEndReason::FLOW_IS_LIVE)
    }

    /// Whether the flow had to make room in the table.
    pub fn is_evicted(&self) -> bool {
        self.raw.reason == reason(FlowEndReason::FLOW_EVICTED)
    }

    /// Why the record was reported: `closed`, `idle`, `replaced`, `evicted` or `open`.
    pub fn end(&self) -> &'static str {
        match FlowEndReason(self.raw.reason.into()) {
            FlowEndReason::FLOW_IS_LIVE => "live",
            FlowEndReason::FLOW_CLOSED => "closed",
            FlowEndReason::FLOW_IDLE => "idle",
            FlowEndReason::FLOW_REPLACED => "replaced",
            FlowEndReason::FLOW_EVICTED => "evicted",
            _ => "open",
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
        (owner.pass != 0).then_some(owner.uid)
    }

    /// The process that holds that socket, its id and name; `None` if none was found, or several.
    pub fn process(&self) -> Option<(u32, &[u8])> {
        let owner = &self.raw.owner;
        let name = owner.comm.split(|byte| *byte == 0).next();
        (owner.pass != 0 && owner.pid != 0).then(|| (owner.pid, name.unwrap_or_default()))
    }

    /// What happened, in Zeek's letters, oldest first.
    pub fn history(&self) -> &[u8] {
        &self.raw.history[..usize::from(self.raw.history_len)]
    }

    /// The state of the connection as RFC 9293 names it: that of the end which closed first, or,
    /// before any did, of the one that is further behind.
    pub fn state(&self) -> &'static str {
        let ends = [self.orig(), self.resp()];
        if ends.iter().any(|end| is(end, EndState::END_RESET)) {
            return "CLOSED";
        }
        let has = |part: EndKnown| {
            ends.iter()
                .filter(|end| u32::from(end.known) & part.0 != 0)
                .count()
        };
        match (has(EndKnown::END_FIN), has(EndKnown::END_FIN_ACKED)) {
            (2, 2) => "TIME-WAIT",
            (2, 1) => "LAST-ACK",
            (2, _) => "CLOSING",
            (1, 1) => "FIN-WAIT-2",
            (1, _) => "FIN-WAIT-1",
            _ if is(ends[0], EndState::END_SYN_SENT) => "SYN-SENT",
            _ if self.awaits_ack() => "SYN-RECEIVED",
            _ => "ESTABLISHED",
        }
    }

    /// Whether the responder's SYN was seen, and nothing that acknowledges it.
    fn awaits_ack(&self) -> bool {
        self.knows(FlowKnown::FLOW_SYN_ACK) && !self.knows(FlowKnown::FLOW_ACK)
    }

    /// Zeek's `conn_state`, from the states of both ends as its `Conn::conn_state` has it.
    pub fn conn_state(&self) -> &'static str {
        let (orig, resp) = (self.orig(), self.resp());
        let inactive = |end| is(end, EndState::END_INACTIVE) || is(end, EndState::END_PARTIAL);
        let reset = |end| is(end, EndState::END_RESET);
        let closed = |end| is(end, EndState::END_CLOSED);
        let syn_sent = is(orig, EndState::END_SYN_SENT);
        if reset(resp) {
            let nothing_sent = orig.bytes == 0 && resp.bytes == 0;
            return if syn_sent || (reset(orig) && nothing_sent) {
                "REJ"
            } else if inactive(orig) {
                "RSTRH"
            } else {
                "RSTR"
            };
        }
        if reset(orig) {
            return if !inactive(resp) {
                "RSTO"
            } else if is_syn_then_rst(self.history()) {
                "RSTOS0"
            } else {
                "OTH"
            };
        }
        match (closed(orig), closed(resp)) {
            (true, true) => "SF",
            (true, false) if inactive(resp) => "SH",
            (true, false) => "S2",
            (false, true) if inactive(orig) => "SHR",
            (false, true) => "S3",
            _ if syn_sent && is(resp, EndState::END_INACTIVE) => "S0",
            _ if is(orig, EndState::END_ESTABLISHED) && is(resp, EndState::END_ESTABLISHED) => "S1",
            _ => "OTH",
        }
    }
}

fn is(end: &FlowEnd, state: EndState) -> bool {
    u32::from(end.state) == state.0
}

fn reason(reason: FlowEndReason) -> u8 {
    // The enum's values are few.
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
