//! Decodes the events of loss-trace: drops, retransmissions and resets.

use std::mem::offset_of;
use std::net::IpAddr;

use super::{Direction, address, until_nul};
use crate::skel::{CountKey, LossDetail, LossEvent, LossKeyBits, LossKind, LossKnown, LossPacket};

/// A drop, a retransmission or a reset.
#[derive(Clone, Copy)]
pub struct Loss {
    /// The event as the program filled it.
    pub raw: LossEvent,
}

/// The key that events are counted by, as it is in the table of the program.
pub struct LossKey<'a>(pub &'a CountKey);

impl LossKey<'_> {
    /// The kind of event.
    pub fn kind(&self) -> LossKind {
        LossKind((self.0.family >> LossKeyBits::LOSS_KIND_SHIFT.0).into())
    }

    /// The number of the reason, and what kind of segment or reset it was.
    pub fn reason(&self) -> (u32, LossDetail) {
        (self.0.addr[0], LossDetail(self.0.port.into()))
    }

    /// The address of the function that dropped the segment, or the inode of the socket.
    pub fn number(&self) -> u64 {
        u64::from(self.0.addr[2]) << 32 | u64::from(self.0.addr[1])
    }
}

/// The name of a kind of event.
pub fn kind_name(kind: LossKind) -> &'static str {
    match kind {
        LossKind::LOSS_DROP => "drop",
        LossKind::LOSS_RETRANSMIT => "retransmit",
        _ => "reset",
    }
}

/// The name of a kind of segment, or of a reset that was sent or received.
pub fn detail_name(detail: LossDetail) -> Option<&'static str> {
    Some(match detail {
        LossDetail::LOSS_SYN => "syn",
        LossDetail::LOSS_SYN_ACK => "syn_ack",
        LossDetail::LOSS_DATA => "data",
        LossDetail::LOSS_SENT => "sent",
        LossDetail::LOSS_RECEIVED => "received",
        _ => return None,
    })
}

/// Names of TCP states, by number from 1 on (tcp_states.h). The last is TCP_NEW_SYN_RECV.
const STATES: [&str; 12] = [
    "established",
    "syn_sent",
    "syn_recv",
    "fin_wait1",
    "fin_wait2",
    "time_wait",
    "close",
    "close_wait",
    "last_ack",
    "listen",
    "closing",
    "syn_recv",
];

impl Loss {
    /// Decodes an event; `None` if it is too short or of an unknown kind. Programs leave out the
    /// callers at its end if they have none.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        const SHORT: usize = offset_of!(LossEvent, callers);
        let mut raw = LossEvent::default();
        if plain::copy_from_bytes(&mut raw, bytes).is_err() {
            let mut whole = [0; size_of::<LossEvent>()];
            whole[..SHORT].copy_from_slice(bytes.get(..SHORT)?);
            plain::copy_from_bytes(&mut raw, &whole).ok()?;
        }
        (u32::from(raw.kind) < LossKind::LOSS_KINDS.0).then_some(Self { raw })
    }

    /// The bytes of its packet, from the IP header on, if the event has them.
    pub fn packet(bytes: &[u8]) -> Option<&[u8]> {
        let len = bytes.get(offset_of!(LossPacket, len)..)?.first_chunk()?;
        let len = u32::from_ne_bytes(*len) as usize;
        bytes.get(offset_of!(LossPacket, bytes)..)?.get(..len)
    }

    /// The kind of event.
    pub fn kind(&self) -> LossKind {
        LossKind(self.raw.kind.into())
    }

    /// The event's name in JSON.
    pub fn name(&self) -> &'static str {
        kind_name(self.kind())
    }

    /// The kind of segment that was retransmitted, or whether a reset was sent or received.
    pub fn detail(&self) -> Option<&'static str> {
        detail_name(LossDetail(self.raw.detail.into()))
    }

    fn knows(&self, part: LossKnown) -> bool {
        u32::from(self.raw.known) & part.0 != 0
    }

    /// Whether sequence number, flags and length are known.
    pub fn has_segment(&self) -> bool {
        self.knows(LossKnown::LOSS_KNOWN_SEGMENT)
    }

    /// Which way the segment went.
    pub fn direction(&self) -> Direction {
        match self.knows(LossKnown::LOSS_OUTGOING) {
            true => Direction::Egress,
            false => Direction::Ingress,
        }
    }

    /// The state of the socket, if there is one.
    pub fn state(&self) -> Option<&'static str> {
        let at = usize::from(self.raw.state).checked_sub(1)?;
        let known = self.knows(LossKnown::LOSS_KNOWN_STATE);
        known.then(|| STATES.get(at).copied()).flatten()
    }

    /// The name of the interface, if one is known.
    pub fn iface(&self) -> Option<&[u8]> {
        let name = until_nul(&self.raw.iface);
        (!name.is_empty()).then_some(name)
    }

    /// Sets the name of the interface.
    pub fn set_iface(&mut self, name: &str) {
        for (to, from) in self.raw.iface.iter_mut().zip(name.bytes()) {
            *to = from;
        }
    }

    /// Whether it may turn out not to be a drop.
    pub fn is_unsure(&self) -> bool {
        self.knows(LossKnown::LOSS_UNSURE)
    }

    /// Source of the segment.
    pub fn saddr(&self) -> IpAddr {
        address(self.raw.saddr, self.raw.ip_version == 4)
    }

    /// Destination of the segment.
    pub fn daddr(&self) -> IpAddr {
        address(self.raw.daddr, self.raw.ip_version == 4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_is_cut_or_of_an_unknown_kind_is_none() {
        let mut raw = LossEvent {
            kind: LossKind::LOSS_KINDS.0 as u8,
            ..LossEvent::default()
        };
        let bytes = |raw: &LossEvent| crate::skel::key_bytes(raw).to_vec();
        assert!(Loss::decode(&bytes(&raw)).is_none());
        raw.kind = 0;
        assert!(Loss::decode(&bytes(&raw)).is_some());
        raw.callers = [7; 6];
        let whole = bytes(&raw);
        assert_eq!(Loss::decode(&whole).unwrap().raw.callers, [7; 6]);
        assert_eq!(Loss::decode(&whole[..124]).unwrap().raw.callers, [0; 6]);
        assert!(Loss::decode(&whole[..119]).is_none());
    }
}
