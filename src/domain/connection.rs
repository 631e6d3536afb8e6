//! The events of connections, as connect-trace's programs send them.

use std::net::IpAddr;

use super::{address, until_nul};
use crate::skel::{ConnectClosedBy, ConnectDirection, ConnectEvent, ConnectKind, ConnectKnown};

/// An event of a connection: an attempt, its outcome, or the end.
#[derive(Clone, Copy)]
pub struct Connection {
    /// The event as the program filled it.
    pub raw: ConnectEvent,
}

impl Connection {
    /// Decodes an event; `None` if it is too short or of an unknown kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut raw = ConnectEvent::default();
        plain::copy_from_bytes(&mut raw, bytes).ok()?;
        (raw.kind.0 <= ConnectKind::CONNECT_PENDING.0).then_some(Self { raw })
    }

    /// The event's name in JSON.
    pub fn name(&self) -> &'static str {
        match self.raw.kind {
            ConnectKind::CONNECT_ATTEMPT => "attempt",
            ConnectKind::CONNECT_ESTABLISHED => "established",
            ConnectKind::CONNECT_FAILED => "failed",
            ConnectKind::CONNECT_ACCEPTED => "accepted",
            ConnectKind::CONNECT_PENDING => "pending",
            _ => "closed",
        }
    }

    fn known(&self, part: ConnectKnown) -> bool {
        self.raw.known.0 & part.0 != 0
    }

    /// Whether the process is known, and with it `pid`, `tid`, `uid`, `comm` and `cgroup_id`.
    pub fn has_process(&self) -> bool {
        self.known(ConnectKnown::KNOWN_PROCESS)
    }

    /// The thread's name without the NUL that ends it.
    pub fn comm(&self) -> &[u8] {
        until_nul(&self.raw.comm)
    }

    /// The process's name, which is that of its first thread.
    pub fn process(&self) -> &[u8] {
        until_nul(&self.raw.process)
    }

    /// The return value of the connect function.
    pub fn ret(&self) -> Option<i32> {
        self.known(ConnectKnown::KNOWN_RET).then_some(self.raw.ret)
    }

    /// Why it failed, as a positive errno.
    pub fn error(&self) -> Option<i32> {
        (self.is_failed() && self.known(ConnectKnown::KNOWN_ERROR)).then_some(self.raw.error)
    }

    /// Whether the process ended the attempt itself, without an error.
    pub fn given_up(&self) -> bool {
        self.is_failed() && self.known(ConnectKnown::KNOWN_GIVEN_UP)
    }

    /// Whether this is an attempt that has no outcome when the run ends.
    pub fn is_pending(&self) -> bool {
        self.raw.kind == ConnectKind::CONNECT_PENDING
    }

    /// The thread; `None` where only the process is known.
    pub fn tid(&self) -> Option<u32> {
        Some(self.raw.tid).filter(|tid| self.has_process() && *tid != 0)
    }

    /// Nanoseconds from the attempt to its outcome, or to the end of the run.
    pub fn latency_ns(&self) -> Option<u64> {
        let is_outcome = matches!(
            self.raw.kind,
            ConnectKind::CONNECT_ESTABLISHED
                | ConnectKind::CONNECT_FAILED
                | ConnectKind::CONNECT_PENDING
        );
        (is_outcome && self.known(ConnectKnown::KNOWN_START)).then_some(self.raw.elapsed_ns)
    }

    /// Nanoseconds from establishment to end.
    pub fn duration_ns(&self) -> Option<u64> {
        (self.is_closed() && self.known(ConnectKnown::KNOWN_START)).then_some(self.raw.elapsed_ns)
    }

    /// The smoothed round-trip time when it ended, in microseconds; `None` if none was measured.
    pub fn round_trip_us(&self) -> Option<u32> {
        Some(self.raw.srtt_us).filter(|us| self.is_closed() && *us != 0)
    }

    /// The shortest round-trip time in microseconds.
    pub fn min_round_trip_us(&self) -> Option<u32> {
        // The kernel has ~0 if it has measured none.
        Some(self.raw.min_rtt_us).filter(|us| self.is_closed() && *us != u32::MAX)
    }

    /// Segments that this end has retransmitted.
    pub fn retransmits(&self) -> Option<u32> {
        self.is_closed().then_some(self.raw.retransmits)
    }

    /// Whether this is the outcome of an attempt that failed.
    pub fn is_failed(&self) -> bool {
        self.raw.kind == ConnectKind::CONNECT_FAILED
    }

    /// Whether this is the end of a connection.
    pub fn is_closed(&self) -> bool {
        self.raw.kind == ConnectKind::CONNECT_CLOSED
    }

    /// Source address; `None` if it is not chosen yet.
    pub fn saddr(&self) -> Option<IpAddr> {
        Some(self.address(self.raw.saddr)).filter(|addr| !addr.is_unspecified())
    }

    /// Destination address; `None` if it could not be read. (`0.0.0.0` can be asked for; the
    /// kernel puts `::1` in the place of `::`.)
    pub fn daddr(&self) -> Option<IpAddr> {
        Some(self.address(self.raw.daddr)).filter(|addr| addr.is_ipv4() || !addr.is_unspecified())
    }

    fn address(&self, bytes: [u8; 16]) -> IpAddr {
        address(bytes, self.raw.ip_version == 4)
    }

    /// Source port; `None` if it is not chosen yet.
    pub fn sport(&self) -> Option<u16> {
        Some(self.raw.sport).filter(|port| *port != 0)
    }

    /// Which way the connection was opened.
    pub fn direction(&self) -> Option<&'static str> {
        match self.raw.direction {
            ConnectDirection::DIRECTION_OUT => Some("out"),
            ConnectDirection::DIRECTION_IN => Some("in"),
            _ => None,
        }
    }

    /// Who ended it.
    pub fn closed_by(&self) -> Option<&'static str> {
        match self.raw.closed_by {
            ConnectClosedBy::CLOSED_BY_LOCAL => Some("local"),
            ConnectClosedBy::CLOSED_BY_REMOTE => Some("remote"),
            ConnectClosedBy::CLOSED_BY_RESET => Some("reset"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_bytes_make_the_decoder_of_connections_panic() {
        for len in 0..500 {
            for fill in [0, 1, 4, 6, 41, 0x7f, 0xff] {
                if let Some(connection) = Connection::decode(&vec![fill; len]) {
                    connection.comm();
                }
            }
        }
        assert!(Connection::decode(&[0; size_of::<ConnectEvent>() - 1]).is_none());
    }
}
