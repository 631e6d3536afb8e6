//! Attempts without a fate, when the run starts and when it ends.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use libbpf_rs::{Iter, Link};

use super::EVENT_LEN;
use crate::domain::connection::Connection;
use crate::run::events::EventSource;
use crate::run::iterator;
use crate::run::session::Session;
use crate::skel::connect_trace::ConnectTraceSkel;

/// Finds attempts without a fate, at the start and at the end of the run.
pub(super) struct Pending {
    at_start: Iter,
    /// Over the table and, if it is used, over socket storage.
    at_end: Vec<Iter>,
    /// Kept because before Linux 6.0 an iterator needs its link.
    _links: Vec<Link>,
}

/// The events of attempts without a fate at the end.
#[derive(Default)]
pub(super) struct PendingEvents {
    pub(super) events: Vec<u8>,
    /// How many attempts these are, including those whose events are left out.
    pub(super) attempts: u64,
}

impl PendingEvents {
    pub(super) fn count(&self) -> u64 {
        (self.events.len() / EVENT_LEN) as u64
    }
}

impl Pending {
    /// Creates the iterators, which must be done before privileges are dropped. `storage`:
    /// connections are also kept in socket storage.
    pub(super) fn open(storage: bool, skel: &ConnectTraceSkel<'_>) -> Result<Self> {
        let (progs, maps) = (&skel.progs, &skel.maps);
        let start = progs.find_pending.attach()?;
        let mut links = vec![
            progs
                .report_pending_in_table
                .attach_iter(maps.connections.as_fd())?,
        ];
        if storage {
            let in_storage = &progs.report_pending_in_storage;
            links.push(in_storage.attach_iter(maps.stored.as_fd())?);
        }
        let at_start = Iter::new(&start)?;
        let at_end = links.iter().map(Iter::new).collect::<Result<_, _>>()?;
        links.push(start);
        Ok(Self {
            at_start,
            at_end,
            _links: links,
        })
    }

    /// Finds and reports attempts that began before everything was attached.
    pub(super) fn find(
        &mut self,
        session: &mut Session,
        source: &mut EventSource,
        on_event: &mut impl FnMut(&mut Session, &[u8]),
    ) -> Result<()> {
        // Only the number of bytes matters: it limits how many attempts one read(2) reports, so
        // that the event buffer can be emptied in between.
        let mut found = [0; 4096];
        while read(&mut self.at_start, &mut found)? > 0 {
            session.drain_rest(source, &mut *on_event)?;
        }
        Ok(())
    }

    /// Reads the events of attempts without a fate. With `only_failures` they are only counted.
    pub(super) fn report(&mut self, only_failures: bool) -> Result<PendingEvents> {
        let mut bytes = vec![0; 256 * EVENT_LEN];
        let mut reported = PendingEvents::default();
        for iterator in &mut self.at_end {
            let mut filled = 0;
            loop {
                let len = read(iterator, &mut bytes[filled..])?;
                if len == 0 {
                    break;
                }
                filled += len;
                let whole = filled - filled % EVENT_LEN;
                for event in bytes[..whole].chunks_exact(EVENT_LEN) {
                    let decoded = Connection::decode(event);
                    let is_pending = decoded.is_some_and(|event| event.is_pending());
                    reported.attempts += u64::from(is_pending);
                    if !(is_pending && only_failures) {
                        reported.events.extend_from_slice(event);
                    }
                }
                bytes.copy_within(whole..filled, 0);
                filled -= whole;
            }
        }
        Ok(reported)
    }
}

fn read(iterator: &mut Iter, bytes: &mut [u8]) -> Result<usize> {
    iterator::read(iterator, bytes).context("failed to look for pending attempts")
}
