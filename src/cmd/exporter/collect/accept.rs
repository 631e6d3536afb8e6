//! Counts the fates of incoming attempts, with the programs of accept-trace.

use std::mem::MaybeUninit;
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::OpenObject;

use super::function;
use crate::attach::tc::PreparedLinks;
use crate::cli::{AcceptTraceArgs, defaults};
use crate::cmd::accept_trace::programs::{self, Hooks, Programs};
use crate::cmd::accept_trace::table::AttemptTable;
use crate::domain::reasons::Reasons;
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::host::kernel_symbols::KernelSymbols;
use crate::output::exporter::{Exposition, metrics};
use crate::run::export::{self, Purpose};
use crate::run::session::Session;
use crate::skel;
use crate::skel::accept_trace::AcceptTraceSkel;

/// How often the table of attempts is read for fates that no program sees: a scrape may lack those of
/// this last period.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

pub struct AcceptCollector<'obj> {
    skels: Vec<AcceptTraceSkel<'obj>>,
    pub hooks: Hooks,
    pub table: AttemptTable,
    reasons: Reasons,
}

impl<'obj> AcceptCollector<'obj> {
    pub fn load(
        storage: &'obj mut [MaybeUninit<OpenObject>; 2],
        interfaces: &[Interface],
        session: &mut Session,
    ) -> Result<Self, Failure> {
        let args = defaults::<AcceptTraceArgs>()?;
        let prepared = PreparedLinks::both_directions(interfaces);
        let programs =
            Programs::load(&args, Purpose::Export, interfaces, storage, session.notices)?;
        let first = programs.skels.first().context("there is no interface")?;
        export::prepare(&first.maps.export_counts)?;
        let mut hooks =
            programs::attach(programs.hook, first, &programs.pairs, interfaces, prepared)?;
        session.follow(&mut hooks.interfaces)?;
        Ok(Self {
            skels: programs.skels,
            hooks,
            table: AttemptTable::new(
                interfaces,
                SWEEP_EVERY,
                args.attempt_timeout,
                session.notices,
            )?,
            reasons: programs.reasons,
        })
    }

    pub fn sweep(&mut self) -> Result<()> {
        let first = self.skels.first_mut().context("there is no interface")?;
        self.table.sweep(first)
    }

    pub fn write(&self, out: &mut Exposition, places: &mut KernelSymbols) -> Result<()> {
        let first = self.skels.first().context("there is no interface")?;
        let counts = export::read(&first.maps.export_counts, &first.maps.export_times)?;
        metrics::accept(out, &counts, |key| {
            let place = function(places, key.place);
            self.reasons.explain(key.reason, place).0.map(str::to_owned)
        });
        Ok(())
    }

    pub fn lost(&self) -> u64 {
        let counters = self.skels.iter().filter_map(|skel| {
            let bss = skel.maps.bss_accept_data.as_deref()?;
            Some(skel::accept_counters(bss).untracked)
        });
        counters.sum()
    }
}
