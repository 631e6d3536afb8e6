//! Counts drops, retransmissions and resets, with the programs of loss-trace.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use anyhow::Result;
use libbpf_rs::{Link, OpenObject};

use super::function;
use crate::cli::{LossTraceArgs, defaults};
use crate::cmd::loss_trace::programs::{self, Kernel, LossTarget};
use crate::failure::Failure;
use crate::host::kernel_symbols::KernelSymbols;
use crate::output::exporter::{Exposition, metrics};
use crate::run::export::{self, Purpose};
use crate::skel::LossKind;
use crate::skel::loss_trace::LossTraceSkel;
use crate::sys::key_tables::Size;
use crate::sys::link;

pub struct LossCollector<'obj> {
    skel: LossTraceSkel<'obj>,
    kernel: Kernel,
    pub hooks: Vec<&'static str>,
    _links: Vec<Link>,
}

impl<'obj> LossCollector<'obj> {
    pub fn load(storage: &'obj mut MaybeUninit<OpenObject>) -> Result<Self, Failure> {
        let args = defaults::<LossTraceArgs>()?;
        let kernel = Kernel::look()?;
        // Only kernels without reasons need it here.
        let mut symbols = KernelSymbols::open().unwrap_or_else(|_| KernelSymbols::none());
        let target = LossTarget {
            args: &args,
            purpose: Purpose::Export,
            interfaces: &[],
            watched: &[],
            tables: Size::of(1),
        };
        let (skel, _) = kernel.load(&target, false, None, &mut symbols, storage)?;
        export::prepare(&skel.maps.export_counts)?;
        let (links, hooks) = programs::attach(&skel)?;
        Ok(Self {
            skel,
            kernel,
            hooks,
            _links: links,
        })
    }

    pub fn write(&self, out: &mut Exposition, places: &mut KernelSymbols) -> Result<()> {
        let counts = export::read(&self.skel.maps.export_counts, &self.skel.maps.export_times)?;
        metrics::loss(out, &counts, |key| {
            let place = function(places, key.place);
            let kind = LossKind(key.kind.into());
            let (name, _) = self.kernel.reason(kind, key.reason, place);
            name.map(str::to_owned)
        });
        Ok(())
    }

    pub fn lost(&self) -> u64 {
        let loaded = programs::loaded(&self.skel.progs);
        loaded
            .map(|(_, program)| link::skipped_runs(program.as_fd()))
            .sum()
    }
}
