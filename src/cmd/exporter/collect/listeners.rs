//! Reads the queues of listening sockets from socket diagnostics.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::Result;

use crate::cli::ExporterArgs;
use crate::domain::listener::ListenerHistory;
use crate::failure::Failure;
use crate::host::interfaces::InterfaceNames;
use crate::host::sock_diag::SockDiag;
use crate::output::exporter::Exposition;
use crate::output::exporter::metrics::{self, ListenerTotals};

pub struct ListenerCollector {
    diag: SockDiag,
    history: ListenerHistory,
    totals: ListenerTotals,
    interfaces: InterfaceNames,
}

impl ListenerCollector {
    pub fn open(args: &ExporterArgs) -> Result<Self, Failure> {
        let mut diag = SockDiag::open()?;
        diag.listening()?;
        Ok(Self {
            diag,
            history: ListenerHistory::default(),
            totals: ListenerTotals::new(args.max_listeners as usize),
            interfaces: InterfaceNames::open()?,
        })
    }

    pub fn write(&mut self, out: &mut Exposition) -> Result<()> {
        let sockets = self.diag.listening()?;
        let bound = sockets.iter().map(|socket| socket.local.ifindex);
        self.interfaces.update(bound)?;
        let half_open = self.diag.half_open()?;
        let unknown = HashMap::new();
        let found = self
            .history
            .update(&sockets, &half_open, &unknown, Duration::ZERO);
        let name = |index: u32| {
            let known = self.interfaces.get(index).map(str::to_owned);
            known.unwrap_or_else(|| index.to_string())
        };
        metrics::listeners(out, &found, &mut self.totals, name);
        Ok(())
    }
}
