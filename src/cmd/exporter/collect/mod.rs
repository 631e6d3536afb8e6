//! The collectors of the exporter: the programs of the other commands, which count in the kernel
//! and send no events.

mod accept;
mod connect;
mod listeners;
mod loss;
mod syn;

use std::fmt;
use std::mem::MaybeUninit;
use std::time::Instant;

use anyhow::{Error, Result};
use clap::ValueEnum;
use libbpf_rs::OpenObject;

use accept::AcceptCollector;
use connect::ConnectCollector;
use listeners::ListenerCollector;
use loss::LossCollector;
use syn::SynCollector;

use crate::attach::Attached;
use crate::cli::{CollectorChoice, ExporterArgs};
use crate::cmd::connect_trace;
use crate::domain::reasons::reason_of_place;
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::host::kernel_symbols::KernelSymbols;
use crate::host::privileges;
use crate::notice::Notices;
use crate::output::exporter::{Exposition, ExpositionFormat};
use crate::run::packet;
use crate::run::session::Session;
use crate::skel::{self, PacketSkel};

use CollectorChoice::{Accept, Connect, Flows, Listeners, Loss, Syn};

fn chosen(args: &ExporterArgs) -> Vec<CollectorChoice> {
    let is_chosen = |one: &CollectorChoice| args.collect.is_empty() || args.collect.contains(one);
    let all = CollectorChoice::value_variants().iter().copied();
    all.filter(is_chosen).collect()
}

/// Whether a collector watches interfaces.
pub fn needs_interfaces(args: &ExporterArgs) -> bool {
    let chosen = chosen(args);
    chosen.contains(&Syn) || chosen.contains(&Accept)
}

/// Memory for the programs of the collectors, which refer to it.
pub struct Storage {
    syn: Vec<MaybeUninit<OpenObject>>,
    accept: [MaybeUninit<OpenObject>; 2],
    loss: MaybeUninit<OpenObject>,
    connect: [MaybeUninit<OpenObject>; connect_trace::LOADS_MAX],
}

impl Storage {
    /// Has room for the programs of these interfaces.
    pub fn new(interfaces: &[Interface]) -> Self {
        Self {
            syn: packet::storage_for(interfaces),
            accept: [const { MaybeUninit::uninit() }; 2],
            loss: MaybeUninit::uninit(),
            connect: [const { MaybeUninit::uninit() }; connect_trace::LOADS_MAX],
        }
    }
}

/// The collectors that were asked for.
pub struct Collectors<'obj> {
    syn: Option<SynCollector<'obj>>,
    listeners: Option<ListenerCollector>,
    accept: Option<AcceptCollector<'obj>>,
    loss: Option<LossCollector<'obj>>,
    connect: Option<ConnectCollector<'obj>>,
    /// The kernel functions whose name says why they drop segments.
    places: KernelSymbols,
    /// Each collector, and whether it works.
    states: Vec<(CollectorChoice, bool)>,
    /// Those whose failure has been printed.
    failed: Vec<CollectorChoice>,
    notices: Notices,
}

impl<'obj> Collectors<'obj> {
    /// Loads and attaches the programs. A collector that was not asked for by name may be missing.
    ///
    /// # Errors
    /// A collector that was asked for can't run here, or none can, or a privilege is missing.
    pub fn load(
        args: &ExporterArgs,
        interfaces: &[Interface],
        storage: &'obj mut Storage,
        session: &mut Session,
    ) -> Result<Self, Failure> {
        let mut loading = Loading {
            chosen: chosen(args),
            must_work: !args.collect.is_empty() || !privileges::missing().is_empty(),
            notices: session.notices,
            states: Vec::new(),
            failure: None,
        };
        let mut places = KernelSymbols::none();
        if [Accept, Loss]
            .iter()
            .any(|one| loading.chosen.contains(one))
        {
            places = KernelSymbols::open().unwrap_or_else(|error| {
                session
                    .notices
                    .detail(&format!("the places of drops can't be shown: {error:#}"));
                KernelSymbols::none()
            });
            // Reading the symbols later would delay a scrape.
            places.keep(|name| reason_of_place(name).is_some());
        }
        let has_flows = loading.chosen.contains(&Flows);
        let Storage {
            syn,
            accept,
            loss,
            connect,
        } = storage;
        // Connections begin at interfaces: the programs there are attached last, so that those that
        // see how connections go on are attached already.
        let loss = loading.take(&[Loss], || LossCollector::load(loss))?;
        let connect = loading.take(&[Connect, Flows], || {
            ConnectCollector::load(connect, has_flows, session.notices)
        })?;
        let listeners = loading.take(&[Listeners], || ListenerCollector::open(args))?;
        let accept = loading.take(&[Accept], || {
            AcceptCollector::load(accept, interfaces, session)
        })?;
        let syn = loading.take(&[Syn], || SynCollector::load(syn, interfaces, session))?;
        let Loading {
            states, failure, ..
        } = loading;
        if let Some(failure) = failure
            && states.iter().all(|(_, works)| !works)
        {
            return Err(failure);
        }
        Ok(Self {
            syn,
            listeners,
            accept,
            loss,
            connect,
            places,
            states,
            failed: Vec::new(),
            notices: session.notices,
        })
    }

    /// Whether everything can be read with the capabilities that are in effect.
    pub fn can_read(&mut self) -> bool {
        self.try_write(&mut Exposition::new(ExpositionFormat::Text));
        let readable = self.states.iter().all(|(_, works)| *works);
        let swept = self.accept.as_mut().map_or(Ok(()), AcceptCollector::sweep);
        readable && swept.is_ok()
    }

    /// Whether detaching needs CAP_NET_ADMIN.
    pub fn needs_privileges(&self) -> bool {
        self.attached().any(Attached::needs_privileges)
    }

    fn attached(&self) -> impl Iterator<Item = &Attached> {
        let syn = self.syn.as_ref().map(|syn| &syn.attached);
        let accept = self.accept.as_ref().map(|accept| &accept.hooks.interfaces);
        syn.into_iter().chain(accept)
    }

    /// When [`Collectors::sweep`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.accept.as_ref().map(|accept| accept.table.due())
    }

    /// Finds the fate of attempts that no program has seen end, if it is time.
    ///
    /// # Errors
    /// The kernel refuses to read the table.
    pub fn sweep(&mut self) -> Result<()> {
        match &mut self.accept {
            Some(accept) if accept.table.due() <= Instant::now() => accept.sweep(),
            _ => Ok(()),
        }
    }

    /// Writes the metrics of all collectors. The first failure of each is printed.
    pub fn write(&mut self, out: &mut Exposition) {
        for (collectors, error) in self.try_write(out) {
            for (one, _) in &self.states {
                if collectors.contains(one) && !self.failed.contains(one) {
                    self.failed.push(*one);
                    let name = one.name();
                    let text = format!("the collector {name} can't be read: {error:#}");
                    self.notices.notice(&text);
                }
            }
        }
    }

    /// Writes the metrics of all collectors. Returns those that can't be read.
    fn try_write(&mut self, out: &mut Exposition) -> Vec<(&'static [CollectorChoice], Error)> {
        let mut results: Vec<(&[CollectorChoice], _)> = Vec::new();
        if let Some(syn) = &self.syn {
            syn.write(out);
        }
        if let Some(listeners) = &mut self.listeners {
            results.push((&[Listeners], listeners.write(out)));
        }
        if let Some(accept) = &mut self.accept {
            results.push((&[Accept], accept.write(out, &mut self.places)));
        }
        if let Some(loss) = &mut self.loss {
            results.push((&[Loss], loss.write(out, &mut self.places)));
        }
        if let Some(connect) = &mut self.connect {
            let chosen = |one| self.states.iter().any(|(known, _)| *known == one);
            let result = connect.write(out, chosen(Connect), chosen(Flows));
            results.push((&[Connect, Flows], result));
        }
        for (collectors, result) in &results {
            for (known, works) in &mut self.states {
                if collectors.contains(known) {
                    *works = result.is_ok();
                }
            }
        }
        let failures = results.into_iter();
        failures
            .filter_map(|(collectors, result)| Some((collectors, result.err()?)))
            .collect()
    }

    /// The names of the collectors, and whether they work.
    pub fn states(&self) -> Vec<(&'static str, bool)> {
        let states = self.states.iter();
        states.map(|(one, works)| (one.name(), *works)).collect()
    }

    /// Events that are missing from the metrics, by collector.
    pub fn lost(&self) -> Vec<(&'static str, u64)> {
        let accept = self.accept.as_ref().map(|it| (Accept.name(), it.lost()));
        let loss = self.loss.as_ref().map(|it| (Loss.name(), it.lost()));
        let connect = self.connect.as_ref().map(|it| (Connect.name(), it.lost()));
        [accept, loss, connect].into_iter().flatten().collect()
    }

    /// Detaches all. Returns how many events are missing from the metrics.
    pub fn end(&mut self, notices: Notices) -> u64 {
        let lost = self.lost().iter().map(|(_, lost)| lost).sum();
        if let Some(syn) = &mut self.syn {
            for stopped in syn.skels.iter_mut().filter_map(PacketSkel::stopped) {
                skel::stop(stopped);
            }
        }
        let syn = self.syn.as_mut().map(|syn| &mut syn.attached);
        let accept = self.accept.as_mut().map(|it| &mut it.hooks.interfaces);
        for attached in syn.into_iter().chain(accept) {
            for note in attached.detach() {
                notices.note(&note);
            }
        }
        lost
    }
}

/// The hooks of all collectors, as the `attached:` line has them.
impl fmt::Display for Collectors<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hooks = self.attached().map(Attached::to_string).collect::<Vec<_>>();
        let mut add = |names: &[&'static str]| {
            for name in names {
                if !hooks.iter().any(|known| known == name) {
                    hooks.push((*name).to_owned());
                }
            }
        };
        add(self.accept.as_ref().map_or(&[], |it| &it.hooks.hooks));
        add(self.loss.as_ref().map_or(&[], |it| &it.hooks));
        add(self.connect.as_ref().map_or(&[], |it| &it.tracer.hooks));
        if self.listeners.is_some() {
            add(&["socket diagnostics"]);
        }
        f.write_str(&hooks.join(", "))
    }
}

/// The state while collectors are loaded one after the other.
struct Loading {
    chosen: Vec<CollectorChoice>,
    must_work: bool,
    notices: Notices,
    states: Vec<(CollectorChoice, bool)>,
    failure: Option<Failure>,
}

impl Loading {
    /// Loads what these collectors need, if one of them was chosen.
    fn take<T>(
        &mut self,
        collectors: &[CollectorChoice],
        load: impl FnOnce() -> Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        let chosen = collectors.iter().filter(|one| self.chosen.contains(one));
        let chosen = chosen.copied().collect::<Vec<_>>();
        if chosen.is_empty() {
            return Ok(None);
        }
        let loaded = load();
        let states = chosen.iter().map(|one| (*one, loaded.is_ok()));
        self.states.extend(states);
        match loaded {
            Ok(loaded) => Ok(Some(loaded)),
            Err(failure) if self.must_work => Err(failure),
            Err(failure) => {
                let names = chosen.iter().map(|one| one.name()).collect::<Vec<_>>();
                self.notices.notice(&format!(
                    "without {}: {:#}",
                    names.join(" and "),
                    failure.error
                ));
                self.failure = Some(failure);
                Ok(None)
            }
        }
    }
}

/// The kernel function at an address.
fn function(places: &mut KernelSymbols, address: u64) -> Option<&str> {
    match address {
        0 => None,
        address => places.name(address),
    }
}
