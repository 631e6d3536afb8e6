//! Decodes the events of accept-trace: incoming connection attempts and their outcomes, which are called
//! fates.

use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::reasons::{ReasonFrom, Reasons, reason_of_place};
use super::{address, until_nul};
use crate::skel::{AcceptEvent, AcceptFate, AcceptFlag, AcceptPhase, RawAttempt};

/// Names of the fates, by number.
pub const FATES: [&str; 9] = [
    "none",
    "accepted",
    "refused",
    "dropped",
    "unanswered",
    "reset",
    "aborted",
    "forwarded",
    "pending",
];
const _: () = assert!(FATES.len() as u32 == AcceptFate::FATE_COUNT.0);

/// The outcome of an incoming attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate(pub AcceptFate);

impl Fate {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match FATES.len() > self.0.0 as usize {
            true => FATES[self.0.0 as usize],
            false => "none",
        }
    }

    /// Whether an attempt with this fate has failed on this host.
    fn is_failure(self) -> bool {
        !matches!(
            self.0,
            AcceptFate::FATE_NONE | AcceptFate::FATE_ACCEPTED | AcceptFate::FATE_FORWARDED
        )
    }
}

/// The arrival of an attempt, or its fate.
#[derive(Clone, Copy)]
pub struct Attempt {
    /// The event as the program filled it.
    pub raw: AcceptEvent,
}

impl Attempt {
    /// Decodes an event; `None` if it is too short or of an unknown kind.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut raw = AcceptEvent::default();
        plain::copy_from_bytes(&mut raw, bytes).ok()?;
        let is_known =
            raw.fate.0 < AcceptFate::FATE_COUNT.0 && matches!(raw.attempt.ip_version, 4 | 6);
        is_known.then_some(Self { raw })
    }

    /// Whether the event reports only the arrival.
    pub fn is_arrival(&self) -> bool {
        self.raw.fate == AcceptFate::FATE_NONE
    }

    /// Whether the attempt has failed on this host.
    pub fn has_failed(&self) -> bool {
        Fate(self.raw.fate).is_failure()
    }

    /// The name of its fate.
    pub fn fate(&self) -> &'static str {
        Fate(self.raw.fate).name()
    }

    /// The name of the event: the arrival, or the fate.
    pub fn name(&self) -> &'static str {
        match self.is_arrival() {
            true => "attempt",
            false => self.fate(),
        }
    }

    /// Whether a flag is set.
    pub fn has(&self, flag: AcceptFlag) -> bool {
        u32::from(self.raw.attempt.flags) & flag.0 != 0
    }

    /// The initiator's address.
    pub fn saddr(&self) -> IpAddr {
        address(self.raw.key.addr, self.raw.attempt.ip_version == 4)
    }

    /// The destination address of its SYN.
    pub fn daddr(&self) -> IpAddr {
        address(self.raw.attempt.daddr, self.raw.attempt.ip_version == 4)
    }

    /// The local and the remote end of its socket. Without a socket, the local end is the
    /// destination of its SYN.
    pub fn socket(&self) -> ((IpAddr, u16), (IpAddr, u16)) {
        let attempt = &self.raw.attempt;
        let is_ipv4 = attempt.ip_version == 4;
        let local = match attempt.lport {
            0 => (self.daddr(), attempt.dport),
            port => (address(attempt.laddr, is_ipv4), port),
        };
        (local, (self.saddr(), self.raw.key.port))
    }

    /// The process's name without the NUL that ends it.
    pub fn comm(&self) -> &[u8] {
        until_nul(&self.raw.comm)
    }

    /// Nanoseconds from the SYN to the SYN-ACK.
    pub fn syn_ack_ns(&self) -> Option<u64> {
        between(self.raw.attempt.syn_ns, self.raw.attempt.syn_ack_ns)
    }

    /// Nanoseconds from the SYN to the final ACK.
    pub fn handshake_ns(&self) -> Option<u64> {
        between(self.raw.attempt.syn_ns, self.raw.attempt.established_ns)
    }

    /// Nanoseconds that it waited in the accept queue. If no program saw the accept, it happened
    /// some time before the event.
    pub fn accept_wait_ns(&self) -> Option<u64> {
        let is_seen = self.has(AcceptFlag::ATTEMPT_HAS_PROCESS);
        between(self.raw.attempt.established_ns, self.raw.ts_ns).filter(|_| is_seen)
    }

    /// Why it failed, and how that is known. `place` is the function that dropped it.
    pub fn reason<'a>(
        &self,
        reasons: &'a Reasons,
        place: Option<&str>,
    ) -> (Option<&'a str>, ReasonFrom) {
        if let Some(name) = reasons.name(self.raw.attempt.reason) {
            let from = match self.has(AcceptFlag::ATTEMPT_REASON_FROM_KERNEL) {
                true => ReasonFrom::Kernel,
                false => ReasonFrom::Inferred,
            };
            return (Some(name), from);
        }
        match place.and_then(reason_of_place) {
            Some(reason) => (Some(reason.name()), ReasonFrom::Inferred),
            None => (None, ReasonFrom::Unknown),
        }
    }
}

fn between(from: u64, to: u64) -> Option<u64> {
    (from != 0 && to != 0).then(|| to.saturating_sub(from))
}

const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1000 * MILLISECOND;

/// The tolerance for a retransmission that comes later than expected.
const SLACK: u64 = 250 * MILLISECOND;

/// The time from one transmission to the next: a second, or twice the last one (RFC 6298). Linux
/// begins with four SYNs a second apart (tcp_syn_linear_timeouts).
const WAITS: RangeInclusive<u64> = SECOND..=120 * SECOND;

/// Whether an attempt in the table has left, and nothing else is known of it: there was no listener for
/// it, and none of its packets was dropped.
pub fn has_only_left(attempt: &RawAttempt) -> bool {
    let flags = u32::from(attempt.flags);
    attempt.phase == AcceptPhase::ATTEMPT_NEW.0 as u8
        && flags & AcceptFlag::ATTEMPT_LEFT.0 != 0
        && flags & AcceptFlag::ATTEMPT_HAS_LISTENER.0 == 0
        && (attempt.reason, attempt.place) == (0, 0)
}

/// Whether the next packet of an attempt in the table is overdue, so that its fate has to be determined.
/// `timeout` is how long the client may repeat a SYN that is dropped silently, in nanoseconds.
pub fn is_overdue(attempt: &RawAttempt, now: u64, timeout: u64) -> bool {
    let since = |at: u64| now.saturating_sub(at);
    let wait = |count: u8| (SECOND << count.min(7)).clamp(*WAITS.start(), *WAITS.end()) + SLACK;
    match AcceptPhase(attempt.phase.into()) {
        // This host would have handled it at once.
        AcceptPhase::ATTEMPT_NEW if has_only_left(attempt) => {
            since(attempt.last_syn_ns) > SLACK || since(attempt.syn_ns) > timeout
        }
        // The client has given up when no repeated SYN comes.
        AcceptPhase::ATTEMPT_NEW => {
            since(attempt.last_syn_ns) > wait(attempt.syn_retransmits)
                || since(attempt.syn_ns) > timeout
        }
        AcceptPhase::ATTEMPT_ANSWERED => {
            since(attempt.last_syn_ack_ns.max(attempt.last_syn_ns))
                > wait(attempt.syn_ack_retransmits)
        }
        _ => since(attempt.established_ns.max(attempt.last_syn_ns)) > SECOND,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reasons() -> Reasons {
        let names = ["NOT_SPECIFIED", "NO_SOCKET", "TCP_CSUM", "MAX"];
        let numbered = names.into_iter().zip(2..);
        let mut all = vec![("SKB_CONSUMED".to_owned(), 1)];
        all.extend(numbered.map(|(name, at)| (format!("SKB_DROP_REASON_{name}"), at)));
        Reasons::new(&all, "SKB_DROP_REASON_")
    }

    fn attempt(reason: u32, flags: u32) -> Attempt {
        let mut raw = AcceptEvent::default();
        raw.attempt.reason = reason;
        raw.attempt.flags = flags as u16;
        Attempt { raw }
    }

    #[test]
    fn no_bytes_make_the_decoder_of_attempts_panic() {
        for len in 0..500 {
            for fill in [0, 1, 4, 6, 41, 0x7f, 0xff] {
                if let Some(attempt) = Attempt::decode(&vec![fill; len]) {
                    attempt.comm();
                    attempt.reason(&reasons(), None);
                }
            }
        }
        assert!(Attempt::decode(&[0; size_of::<AcceptEvent>() - 1]).is_none());
    }

    #[test]
    fn reasons_have_the_names_of_the_running_kernel() {
        let reasons = reasons();
        let kernel = AcceptFlag::ATTEMPT_REASON_FROM_KERNEL.0;
        for (number, flags, expected) in [
            (0, 0, (None, ReasonFrom::Unknown)),
            (2, kernel, (None, ReasonFrom::Unknown)),
            (4, kernel, (Some("tcp_csum"), ReasonFrom::Kernel)),
            (256, 0, (Some("no_listener"), ReasonFrom::Inferred)),
            (256, kernel, (Some("no_listener"), ReasonFrom::Kernel)),
            (255, kernel, (None, ReasonFrom::Unknown)),
            (u32::MAX, kernel, (None, ReasonFrom::Unknown)),
        ] {
            assert_eq!(attempt(number, flags).reason(&reasons, None), expected);
        }
    }

    #[test]
    fn where_the_kernel_gives_no_reason_the_place_may_imply_one() {
        let place = Some("nf_hook_slow");
        let inferred = (Some("netfilter_drop"), ReasonFrom::Inferred);
        assert_eq!(attempt(2, 0).reason(&reasons(), place), inferred);
        assert_eq!(attempt(0, 0).reason(&Reasons::default(), place), inferred);
        let unknown = (None, ReasonFrom::Unknown);
        assert_eq!(
            attempt(0, 0).reason(&reasons(), Some("tcp_v4_rcv")),
            unknown
        );
    }

    #[test]
    fn an_attempt_is_overdue_when_no_retransmission_came() {
        const TIMEOUT: u64 = 3 * SECOND + SECOND / 2;
        let is_overdue = |raw: &RawAttempt, now| is_overdue(raw, now, TIMEOUT);
        let mut raw = RawAttempt {
            syn_ns: SECOND,
            last_syn_ns: SECOND,
            last_syn_ack_ns: 2 * SECOND,
            ..RawAttempt::default()
        };
        assert!(!is_overdue(&raw, 2 * SECOND + SLACK));
        assert!(is_overdue(&raw, 2 * SECOND + SLACK + 1));
        // Its SYN was repeated twice. The next one is not due yet, but the timeout is over.
        raw.last_syn_ns = 4 * SECOND;
        raw.syn_retransmits = 2;
        assert!(!is_overdue(&raw, SECOND + TIMEOUT));
        assert!(is_overdue(&raw, SECOND + TIMEOUT + 1));
        raw.last_syn_ns = SECOND;
        raw.phase = AcceptPhase::ATTEMPT_ANSWERED.0 as u8;
        assert!(!is_overdue(&raw, 3 * SECOND + SLACK));
        assert!(is_overdue(&raw, 3 * SECOND + SLACK + 1));
        raw.syn_ack_retransmits = 3;
        assert!(!is_overdue(&raw, 10 * SECOND));
        assert!(is_overdue(&raw, 11 * SECOND));
        raw.syn_ack_retransmits = 255;
        assert!(!is_overdue(&raw, 122 * SECOND));
        assert!(is_overdue(&raw, 123 * SECOND));
        let mut raw = RawAttempt {
            syn_ns: SECOND,
            last_syn_ns: SECOND,
            flags: AcceptFlag::ATTEMPT_LEFT.0 as u16,
            ..RawAttempt::default()
        };
        assert!(!is_overdue(&raw, SECOND + SLACK));
        assert!(is_overdue(&raw, SECOND + SLACK + 1));
        // A RST waits for the address of the next hop.
        raw.reason = 1;
        assert!(!is_overdue(&raw, SECOND + SLACK + 1));
    }
}
