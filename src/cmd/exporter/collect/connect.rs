//! Counts outgoing connects and ended connections, with the programs of connect-trace.

use std::mem::MaybeUninit;

use anyhow::Result;
use libbpf_rs::OpenObject;

use crate::cli::{ConnectTraceArgs, defaults};
use crate::cmd::connect_trace::{self, Tracer};
use crate::failure::Failure;
use crate::host::socket_counts::SocketCounts;
use crate::notice::Notices;
use crate::output::exporter::{Exposition, metrics};
use crate::run::export::{self, Purpose};
use crate::skel;

pub struct ConnectCollector<'obj> {
    pub tracer: Tracer<'obj>,
    sockets: SocketCounts,
}

impl<'obj> ConnectCollector<'obj> {
    pub fn load(
        storage: &'obj mut [MaybeUninit<OpenObject>],
        has_flows: bool,
        notices: Notices,
    ) -> Result<Self, Failure> {
        let mut args = defaults::<ConnectTraceArgs>()?;
        args.accept = has_flows;
        args.close = has_flows;
        let tracer = connect_trace::choose(&args, Purpose::Export, storage, notices)?;
        export::prepare(&tracer.skel.maps.export_counts)?;
        Ok(Self {
            tracer,
            sockets: SocketCounts::open(),
        })
    }

    pub fn write(&self, out: &mut Exposition, with_connects: bool, with_flows: bool) -> Result<()> {
        let maps = &self.tracer.skel.maps;
        let counts = export::read(&maps.export_counts, &maps.export_times)?;
        if with_connects {
            metrics::connect(out, &counts);
        }
        if with_flows {
            metrics::flows(out, &counts, &self.sockets.read());
        }
        Ok(())
    }

    pub fn lost(&self) -> u64 {
        let Some(bss) = self.tracer.skel.maps.bss_data.as_deref() else {
            return 0;
        };
        let counters = skel::connect_counters(bss);
        let untracked_pending = counters
            .untracked_pending
            .cast_signed()
            .max(0)
            .cast_unsigned();
        self.tracer.unseen(&counters, counters.unhooked) + counters.lost + untracked_pending
    }
}
