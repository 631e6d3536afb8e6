//! Counts SYNs at interfaces, with the programs of syn-count.

use std::mem::MaybeUninit;

use libbpf_rs::OpenObject;

use crate::attach::{Attached, load};
use crate::cli::{CountMode, SynCountArgs, defaults};
use crate::cmd::syn_count::SynCount;
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::output::exporter::{Exposition, metrics};
use crate::run::packet;
use crate::run::session::Session;
use crate::skel::PacketSkel;
use crate::skel::syn_count::SynCountSkel;

pub struct SynCollector<'obj> {
    pub skels: Vec<SynCountSkel<'obj>>,
    pub attached: Attached,
    interfaces: Vec<String>,
    slots: usize,
}

impl<'obj> SynCollector<'obj> {
    pub fn load(
        storage: &'obj mut [MaybeUninit<OpenObject>],
        interfaces: &[Interface],
        session: &mut Session,
    ) -> Result<Self, Failure> {
        // An interface takes one XDP program. The exporter runs for a long time, so it leaves that
        // place to others.
        let mut args = defaults::<SynCountArgs>()?;
        args.mode = CountMode::Tc;
        let command = SynCount::new(&args)?;
        let prepared = packet::prepare_links(&command, interfaces);
        let skels = packet::load_all(&command, interfaces, storage)?;
        let attached = packet::attach_all(&command, session, interfaces, &skels, prepared)?;
        let names = interfaces.iter().map(|interface| interface.name.clone());
        Ok(Self {
            skels,
            attached,
            interfaces: names.collect(),
            slots: load::packet_slots()?,
        })
    }

    pub fn write(&self, out: &mut Exposition) {
        let counters = self.skels.iter().map(|skel| skel.counters(self.slots));
        let names = self.interfaces.iter().map(String::as_str);
        metrics::syn(out, &names.zip(counters).collect::<Vec<_>>());
    }
}
