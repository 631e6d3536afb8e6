//! accept-trace: finds the fate of overdue attempts, whose end no BPF program has seen.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::domain::incoming::{Attempt, has_only_left, is_overdue};
use crate::domain::octets;
use crate::host::interfaces::Interface;
use crate::host::routes::Routes;
use crate::host::sock_diag::{Found, SockDiag, Waiting};
use crate::notice::{FirstNotice, Notices};
use crate::run::call::call;
use crate::run::monotonic::monotonic_ns;
use crate::skel::accept_trace::AcceptTraceSkel;
use crate::skel::{
    self, AcceptEvent, AcceptFate, AcceptFlag, AcceptPhase, AcceptReason, AttemptKey, FoundFate,
    RawAttempt,
};
use crate::sys::map;

/// How often the table is read, so that each fate is reported soon.
pub(in crate::cmd) const SWEEP_EVERY: Duration = Duration::from_millis(250);

/// The longest time for a sweep. Each attempt that is overdue takes some microseconds.
const SWEEP_AT_MOST: Duration = Duration::from_millis(50);

/// Facts that rarely change are requested only in one of this many sweeps.
const RARELY: u32 = 4;

/// Keep the reason in the table, if there is one.
const KNOWN: AcceptReason = AcceptReason(0);

/// At the end, how many pending attempts are reported before their events are read.
const PENDING_BATCH: usize = 4096;

/// Sweeps the table of attempts.
pub struct AttemptTable {
    sockets: SockDiag,
    routes: Routes,
    failure: FirstNotice,
    /// The indexes of the interfaces that are watched.
    watched: Vec<u32>,
    /// Whether an interface that is not watched is up; `None` until a sweep has to know.
    has_others: Option<bool>,
    every: Duration,
    due: Instant,
    /// Where in the table the next sweep goes on; 0: the last one has reached the end.
    from: usize,
    sweeps: u32,
    /// `--attempt-timeout` in nanoseconds.
    timeout: u64,
}

impl AttemptTable {
    /// Opens netlink sockets for the sockets and routes of this network namespace, in which these
    /// interfaces are watched. The table is to be read once in each period of `every`.
    ///
    /// # Errors
    /// A netlink socket can't be opened.
    pub fn new(
        watched: &[Interface],
        every: Duration,
        timeout: Duration,
        notices: Notices,
    ) -> Result<Self> {
        Ok(Self {
            sockets: SockDiag::open()?,
            routes: Routes::open()?,
            failure: FirstNotice::new(notices),
            watched: watched.iter().map(|interface| interface.index).collect(),
            has_others: None,
            every,
            due: Instant::now() + every,
            from: 0,
            sweeps: 0,
            timeout: u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    /// When the next sweep is due.
    pub fn due(&self) -> Instant {
        self.due
    }

    /// Adds what had arrived before the programs were attached: half-open connections, and those in
    /// the queues of listeners.
    ///
    /// # Errors
    /// The kernel refuses to list sockets, or to change the table.
    pub fn seed(&mut self, skel: &mut AcceptTraceSkel<'_>) -> Result<()> {
        let waiting = self.sockets.waiting()?;
        if waiting.is_empty() {
            return Ok(());
        }
        let seen = read(skel)?.into_iter();
        let seen = seen.map(|(key, attempt)| whole(&key, &attempt).socket());
        let seen = seen.collect::<HashSet<_>>();
        // Between the two lists the table was read. A connection that is in both lists had no fate
        // then. So it was in the table if the programs had seen its SYN.
        let still = self.sockets.waiting()?.into_iter();
        let still = still
            .map(|it| (it.local, it.remote))
            .collect::<HashSet<_>>();
        let watches_all = !self.routes.has_others(&self.watched).unwrap_or(true);
        for connection in waiting {
            let ends = (connection.local, connection.remote);
            if seen.contains(&ends) || !still.contains(&ends) {
                continue;
            }
            let ifindex = match connection.bound_ifindex {
                0 => self.routes.interface(connection.remote.0)?.unwrap_or(0),
                bound => bound,
            };
            // The answer may go out through another interface than the one where the SYN came in.
            let is_watched = self.watched.contains(&ifindex)
                || (watches_all && !self.routes.is_local(connection.remote.0)?);
            if is_watched {
                seed(skel, &connection, ifindex)?;
            }
        }
        Ok(())
    }

    /// Reports the fate of attempts that no BPF program has seen end.
    ///
    /// # Errors
    /// The kernel refuses to read or change the table.
    pub fn sweep(&mut self, skel: &mut AcceptTraceSkel<'_>) -> Result<()> {
        self.has_others = None;
        self.due = Instant::now() + self.every;
        let attempts = read(skel)?;
        let (now, started) = (monotonic_ns()?, Instant::now());
        let from = std::mem::take(&mut self.from);
        if from == 0 {
            self.sweeps = self.sweeps.wrapping_add(1);
        }
        let mut reported = 0;
        for (at, (key, attempt)) in attempts.iter().enumerate().skip(from) {
            // Events wait meanwhile. The next sweep goes on here: if it began again, those that may
            // still go on would take all the time, and the rest would never be looked at.
            if started.elapsed() > SWEEP_AT_MOST {
                self.from = at - reported;
                break;
            }
            if is_overdue(attempt, now, self.timeout)
                && let Some((fate, reason)) = self.judge(key, attempt)
            {
                report(skel, key, attempt, fate, reason)?;
                reported += 1;
            }
        }
        Ok(())
    }

    /// Reports all attempts that are left as pending, after the programs are detached. `take` is
    /// called to read the events.
    ///
    /// # Errors
    /// As [`AttemptTable::sweep`], and those of `take`.
    pub fn end(
        &mut self,
        skel: &mut AcceptTraceSkel<'_>,
        mut take: impl FnMut() -> Result<()>,
    ) -> Result<()> {
        let left = read(skel)?;
        for batch in left.chunks(PENDING_BATCH) {
            for (key, attempt) in batch {
                let is_established = attempt.phase == AcceptPhase::ATTEMPT_ESTABLISHED.0 as u8;
                let (fate, reason) = match is_established.then(|| self.socket(key, attempt)) {
                    // It was accepted, which no program has seen.
                    Some(Some(Some(found))) if !found.listens && found.inode != 0 => {
                        (AcceptFate::FATE_ACCEPTED, KNOWN)
                    }
                    _ if has_left(attempt) => (AcceptFate::FATE_FORWARDED, KNOWN),
                    _ => (
                        AcceptFate::FATE_PENDING,
                        silent_reason(attempt).unwrap_or(KNOWN),
                    ),
                };
                report(skel, key, attempt, fate, reason)?;
            }
            take()?;
        }
        Ok(())
    }

    /// The fate and reason of an overdue attempt; `None`: it may still go on.
    fn judge(
        &mut self,
        key: &AttemptKey,
        attempt: &RawAttempt,
    ) -> Option<(AcceptFate, AcceptReason)> {
        let is_turn = self.sweeps.is_multiple_of(RARELY);
        if has_only_left(attempt) {
            return Some((AcceptFate::FATE_FORWARDED, KNOWN));
        }
        match AcceptPhase(attempt.phase.into()) {
            AcceptPhase::ATTEMPT_NEW => match self.socket(key, attempt)? {
                // It is half-open, but its SYN-ACK was not seen at the interface.
                Some(found) if !found.listens => {
                    (attempt.reason != 0).then_some((AcceptFate::FATE_DROPPED, KNOWN))
                }
                _ if self.answers_elsewhere(key, attempt) => {
                    Some((AcceptFate::FATE_REFUSED, KNOWN))
                }
                found if self.is_elsewhere(key, attempt, found) => {
                    Some((AcceptFate::FATE_FORWARDED, KNOWN))
                }
                _ => {
                    let reason = silent_reason(attempt)
                        .or_else(|| self.no_route_back(key, attempt))
                        .unwrap_or(KNOWN);
                    Some((AcceptFate::FATE_DROPPED, reason))
                }
            },
            // A SYN cookie has no socket, and stays valid for a while.
            AcceptPhase::ATTEMPT_ANSWERED
                if !is_turn && has(attempt, AcceptFlag::ATTEMPT_COOKIE) =>
            {
                None
            }
            AcceptPhase::ATTEMPT_ANSWERED => match self.socket(key, attempt)? {
                Some(found) if !found.listens => {
                    // It was established, which no program has seen.
                    (found.inode != 0).then_some((AcceptFate::FATE_ACCEPTED, KNOWN))
                }
                // A SYN cookie has no socket, and stays valid for a while.
                _ if has(attempt, AcceptFlag::ATTEMPT_COOKIE) && !is_cookie_old(attempt)? => None,
                _ if attempt.reason == AcceptReason::REASON_LISTENER_CLOSED.0 => {
                    Some((AcceptFate::FATE_ABORTED, KNOWN))
                }
                _ if attempt.reason != 0 => Some((AcceptFate::FATE_DROPPED, KNOWN)),
                _ => Some((
                    AcceptFate::FATE_UNANSWERED,
                    AcceptReason::REASON_NO_FINAL_ACK,
                )),
            },
            _ if !is_turn => None,
            _ => match self.socket(key, attempt)? {
                Some(found) if !found.listens => {
                    (found.inode != 0).then_some((AcceptFate::FATE_ACCEPTED, KNOWN))
                }
                // It has gone, and its listener has not: it was accepted and closed, neither of which
                // a program has seen.
                Some(_) => Some((AcceptFate::FATE_ACCEPTED, KNOWN)),
                None => Some((AcceptFate::FATE_ABORTED, KNOWN)),
            },
        }
    }

    /// Whether a SYN that was neither answered nor dropped by a known function has left by an interface,
    /// or may have left by one that is not watched. If it can't have left, a listener has silently dropped
    /// it, perhaps one at another address or port, to which a firewall redirects.
    fn is_elsewhere(
        &mut self,
        key: &AttemptKey,
        attempt: &RawAttempt,
        listener: Option<Found>,
    ) -> bool {
        if attempt.reason != 0 || attempt.place != 0 {
            return false;
        }
        let ((daddr, _), (saddr, _)) = whole(key, attempt).socket();
        if has(attempt, AcceptFlag::ATTEMPT_LEFT)
            && (silent_reason(attempt).is_none()
                || matches!(self.routes.is_local(daddr), Ok(false)))
        {
            return true;
        }
        let forwards = self.routes.forward(attempt.ifindex, saddr, daddr) == Ok(true);
        if has(attempt, AcceptFlag::ATTEMPT_HAS_LISTENER) || listener.is_some() {
            return forwards && !listener.is_some_and(|found| found.is_transparent);
        }
        let (routes, watched) = (&mut self.routes, &self.watched);
        forwards
            || *self
                .has_others
                .get_or_insert_with(|| routes.has_others(watched).unwrap_or(true))
    }

    /// Whether a SYN found no listener, and the RST that refuses it has left by an interface that is not
    /// watched.
    fn answers_elsewhere(&mut self, key: &AttemptKey, attempt: &RawAttempt) -> bool {
        if attempt.reason != AcceptReason::REASON_NO_LISTENER.0
            || has(attempt, AcceptFlag::ATTEMPT_RST_DROPPED)
        {
            return false;
        }
        let (_, (saddr, _)) = whole(key, attempt).socket();
        let leaves_by = self.routes.interface(saddr);
        matches!(leaves_by, Ok(Some(ifindex)) if !self.watched.contains(&ifindex))
    }

    /// A listener also silently drops a SYN if there is no route back to its source.
    fn no_route_back(&mut self, key: &AttemptKey, attempt: &RawAttempt) -> Option<AcceptReason> {
        if attempt.reason != 0 || !has(attempt, AcceptFlag::ATTEMPT_HAS_LISTENER) {
            return None;
        }
        let (_, (saddr, _)) = whole(key, attempt).socket();
        match self.routes.lead_to(saddr) {
            Ok(false) => Some(AcceptReason::REASON_NO_ROUTE_BACK),
            Ok(true) | Err(_) => None,
        }
    }

    /// The socket of an attempt, if it has one. The outer `None`: the request failed.
    fn socket(&mut self, key: &AttemptKey, attempt: &RawAttempt) -> Option<Option<Found>> {
        let (local, remote) = whole(key, attempt).socket();
        let ifindex = match attempt.bound_ifindex {
            0 => attempt.ifindex,
            bound => bound,
        };
        let found = self.sockets.find(local, remote, ifindex);
        found
            .inspect_err(|error| {
                self.failure.notice(&format!(
                    "attempts whose end no program sees stay pending: sockets can't be looked up: {error}"
                ));
            })
            .ok()
    }
}

fn whole(key: &AttemptKey, attempt: &RawAttempt) -> Attempt {
    Attempt {
        raw: AcceptEvent {
            key: *key,
            attempt: *attempt,
            ..AcceptEvent::default()
        },
    }
}

/// How long a SYN cookie is valid (MAX_SYNCOOKIE_AGE in net/tcp.h: two periods of a minute).
const COOKIE_AGE_NS: u64 = 120_000_000_000;

fn is_cookie_old(attempt: &RawAttempt) -> Option<bool> {
    let now = monotonic_ns().ok()?;
    Some(now.saturating_sub(attempt.last_syn_ack_ns) > COOKIE_AGE_NS)
}

fn has(attempt: &RawAttempt, flag: AcceptFlag) -> bool {
    u32::from(attempt.flags) & flag.0 != 0
}

/// Whether the SYN has left, and the queues of a listener do not explain why it was not answered.
fn has_left(attempt: &RawAttempt) -> bool {
    has(attempt, AcceptFlag::ATTEMPT_LEFT)
        && attempt.phase == AcceptPhase::ATTEMPT_NEW.0 as u8
        && attempt.reason == 0
        && silent_reason(attempt).is_none()
}

/// Why a SYN was silently dropped, from the state of the listener when it came.
fn silent_reason(attempt: &RawAttempt) -> Option<AcceptReason> {
    let is_new = attempt.phase == AcceptPhase::ATTEMPT_NEW.0 as u8 && attempt.reason == 0;
    if !is_new {
        None
    } else if has(attempt, AcceptFlag::ATTEMPT_ACCEPT_QUEUE_FULL) {
        Some(AcceptReason::REASON_ACCEPT_QUEUE_FULL)
    } else if has(attempt, AcceptFlag::ATTEMPT_SYN_QUEUE_FULL) {
        Some(AcceptReason::REASON_SYN_QUEUE_FULL)
    } else {
        None
    }
}

/// All attempts in the table.
fn read(skel: &AcceptTraceSkel<'_>) -> Result<Vec<(AttemptKey, RawAttempt)>> {
    let mut all = Vec::new();
    let mut add = |key: &[u8], attempt: &[u8]| {
        let (mut whole_key, mut whole) = (AttemptKey::default(), RawAttempt::default());
        let is_whole = plain::copy_from_bytes(&mut whole_key, key).is_ok()
            && plain::copy_from_bytes(&mut whole, attempt).is_ok();
        if is_whole {
            all.push((whole_key, whole));
        }
    };
    map::read_all(&skel.maps.attempts, false, &mut add)
        .context("failed to read the table of attempts")?;
    Ok(all)
}

/// Runs the program that reports fates.
fn run(skel: &mut AcceptTraceSkel<'_>) -> Result<()> {
    call(&skel.progs.accept_close, 1).context("failed to report what became of an attempt")
}

fn seed(skel: &mut AcceptTraceSkel<'_>, connection: &Waiting, ifindex: u32) -> Result<()> {
    let ((daddr, dport), (saddr, port)) = (connection.local, connection.remote);
    let phase = match connection.is_half_open {
        true => AcceptPhase::ATTEMPT_ANSWERED,
        false => AcceptPhase::ATTEMPT_ESTABLISHED,
    };
    let attempt = RawAttempt {
        last_syn_ns: monotonic_ns()?,
        daddr: octets(daddr),
        laddr: octets(daddr),
        ifindex,
        bound_ifindex: connection.bound_ifindex,
        dport,
        lport: dport,
        flags: u16::try_from(AcceptFlag::ATTEMPT_SEEDED.0)?,
        phase: u8::try_from(phase.0)?,
        ip_version: if daddr.is_ipv4() { 4 } else { 6 },
        ..RawAttempt::default()
    };
    let found = FoundFate {
        key: AttemptKey {
            addr: octets(saddr),
            port,
            ..AttemptKey::default()
        },
        fate: AcceptFate::FATE_NONE,
        ..FoundFate::default()
    };
    let bss = skel.maps.bss_close_data.as_deref_mut();
    let bss = bss.context("the programs have no variable for an attempt")?;
    skel::set_found_fate(bss, &found);
    skel::set_accept_seed(bss, &attempt);
    run(skel)
}

fn report(
    skel: &mut AcceptTraceSkel<'_>,
    key: &AttemptKey,
    attempt: &RawAttempt,
    fate: AcceptFate,
    reason: AcceptReason,
) -> Result<()> {
    let bss = skel.maps.bss_close_data.as_deref_mut();
    let bss = bss.context("the programs have no variable for a fate")?;
    let found = FoundFate {
        key: *key,
        last_syn_ns: attempt.last_syn_ns,
        last_syn_ack_ns: attempt.last_syn_ack_ns,
        fate,
        reason: reason.0,
        phase: attempt.phase.into(),
        ..FoundFate::default()
    };
    skel::set_found_fate(bss, &found);
    run(skel)
}
