//! What the exporter collects: the programs of the other commands, which count in the kernel and
//! send no events.

use std::collections::HashMap;
use std::fmt;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libbpf_rs::{Link, OpenObject};

use crate::attach::tc::Places;
use crate::attach::{Attached, load};
use crate::cli::{
    AcceptTraceArgs, CollectorChoice, ConnectTraceArgs, ExporterArgs, LossTraceArgs, SynCountArgs,
    arguments,
};
use crate::cmd::accept_trace::programs::{self, Hooks, Programs};
use crate::cmd::accept_trace::table::AttemptTable;
use crate::cmd::connect_trace::{self, Tracer};
use crate::cmd::listeners;
use crate::cmd::loss_trace::programs::{self as loss_programs, Kernel, LoadOptions};
use crate::cmd::syn_count::SynCount;
use crate::domain::listener::Looks;
use crate::domain::reasons::{DropReason, Reasons, reason_of_place};
use crate::failure::Failure;
use crate::host::interfaces::Interface;
use crate::host::kernel_symbols::KernelSymbols;
use crate::host::privileges;
use crate::host::sock_diag::SockDiag;
use crate::host::socket_counts::SocketCounts;
use crate::notice::Notices;
use crate::output::exporter::metrics::{self, ListenerTotals};
use crate::output::exporter::{Exposition, ExpositionFormat};
use crate::run::events::BufferKind;
use crate::run::export;
use crate::run::packet;
use crate::run::session::Session;
use crate::skel::accept_trace::AcceptTraceSkel;
use crate::skel::loss_trace::LossTraceSkel;
use crate::skel::syn_count::SynCountSkel;
use crate::skel::{self, LossKind, PacketSkel};
use crate::sys::key_tables::Size;
use crate::sys::link;

use CollectorChoice::{Accept, Connect, Flows, Listeners, Loss, Syn};

/// How often the table of attempts is read for fates that no program sees: a scrape may lack those of
/// this last period.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Each collector, with the command that uses the same hooks.
pub const COLLECTORS: [(CollectorChoice, &str); 6] = [
    (Syn, "port-monitor"),
    (Listeners, "listeners"),
    (Accept, "accept-trace"),
    (Loss, "loss-trace"),
    (Connect, "connect-trace"),
    (Flows, "connect-trace"),
];

fn chosen(args: &ExporterArgs) -> Vec<CollectorChoice> {
    let is_chosen = |one: &CollectorChoice| args.collect.is_empty() || args.collect.contains(one);
    let all = COLLECTORS.into_iter().map(|(collector, _)| collector);
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
    connect: [MaybeUninit<OpenObject>; connect_trace::ATTEMPTS],
}

impl Storage {
    /// Has room for the programs of these interfaces.
    pub fn new(interfaces: &[Interface]) -> Self {
        Self {
            syn: packet::storage_for(interfaces),
            accept: [const { MaybeUninit::uninit() }; 2],
            loss: MaybeUninit::uninit(),
            connect: [const { MaybeUninit::uninit() }; connect_trace::ATTEMPTS],
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
        })
    }

    /// Whether everything can be read without capabilities.
    pub fn can_read(&mut self) -> bool {
        self.write(&mut Exposition::new(ExpositionFormat::Text));
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

    /// Writes the metrics of all collectors.
    pub fn write(&mut self, out: &mut Exposition) {
        let mut results = Vec::new();
        if let Some(syn) = &self.syn {
            syn.write(out);
        }
        if let Some(listeners) = &mut self.listeners {
            results.push((Listeners, listeners.write(out).is_ok()));
        }
        if let Some(accept) = &mut self.accept {
            results.push((Accept, accept.write(out, &mut self.places).is_ok()));
        }
        if let Some(loss) = &mut self.loss {
            results.push((Loss, loss.write(out, &mut self.places).is_ok()));
        }
        if let Some(connect) = &mut self.connect {
            let chosen = |one| self.states.iter().any(|(known, _)| *known == one);
            let works = connect.write(out, chosen(Connect), chosen(Flows)).is_ok();
            results.extend([(Connect, works), (Flows, works)]);
        }
        for (one, is_read) in results {
            for (known, works) in &mut self.states {
                if *known == one {
                    *works = is_read;
                }
            }
        }
    }

    /// The names of the collectors, and whether they work.
    pub fn states(&self) -> Vec<(&'static str, bool)> {
        let states = self.states.iter();
        states.map(|(one, works)| (one.name(), *works)).collect()
    }

    /// Events that are missing in the metrics, by collector.
    pub fn lost(&self) -> Vec<(&'static str, u64)> {
        let accept = self.accept.as_ref().map(|it| (Accept.name(), it.lost()));
        let loss = self.loss.as_ref().map(|it| (Loss.name(), it.lost()));
        let connect = self.connect.as_ref().map(|it| (Connect.name(), it.lost()));
        [accept, loss, connect].into_iter().flatten().collect()
    }

    /// Detaches all. Returns how many events are missing in the metrics.
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

/// The hooks of all collectors, for people.
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

struct SynCollector<'obj> {
    skels: Vec<SynCountSkel<'obj>>,
    attached: Attached,
    interfaces: Vec<String>,
    slots: usize,
}

impl<'obj> SynCollector<'obj> {
    fn load(
        storage: &'obj mut [MaybeUninit<OpenObject>],
        interfaces: &[Interface],
        session: &mut Session,
    ) -> Result<Self, Failure> {
        // An interface takes one XDP program. The exporter runs for long, and leaves it to others.
        let args = arguments::<SynCountArgs>(&["--mode", "tc"])?;
        let command = SynCount::new(&args)?;
        let places = packet::places(&command, interfaces);
        let skels = packet::load_all(&command, interfaces, storage)?;
        let attached = packet::attach_all(&command, session, interfaces, &skels, places)?;
        let names = interfaces.iter().map(|interface| interface.name.clone());
        Ok(Self {
            skels,
            attached,
            interfaces: names.collect(),
            slots: load::packet_slots()?,
        })
    }

    fn write(&self, out: &mut Exposition) {
        let counters = self.skels.iter().map(|skel| skel.counters(self.slots));
        let names = self.interfaces.iter().map(String::as_str);
        metrics::syn(out, &names.zip(counters).collect::<Vec<_>>());
    }
}

struct ListenerCollector {
    diag: SockDiag,
    looks: Looks,
    totals: ListenerTotals,
    interfaces: HashMap<u32, String>,
}

impl ListenerCollector {
    fn open(args: &ExporterArgs) -> Result<Self, Failure> {
        let mut diag = SockDiag::open()?;
        diag.listening()?;
        Ok(Self {
            diag,
            looks: Looks::default(),
            totals: ListenerTotals::new(args.max_listeners as usize),
            interfaces: listeners::interface_names()?,
        })
    }

    fn write(&mut self, out: &mut Exposition) -> Result<()> {
        let sockets = self.diag.listening()?;
        let half_open = self.diag.half_open()?;
        let unknown = HashMap::new();
        let found = self
            .looks
            .update(&sockets, &half_open, &unknown, Duration::ZERO);
        let name = |index: u32| {
            let known = self.interfaces.get(&index).cloned();
            known.unwrap_or_else(|| index.to_string())
        };
        metrics::listeners(out, &found, &mut self.totals, name);
        Ok(())
    }
}

struct AcceptCollector<'obj> {
    skels: Vec<AcceptTraceSkel<'obj>>,
    hooks: Hooks,
    table: AttemptTable,
    reasons: Reasons,
}

impl<'obj> AcceptCollector<'obj> {
    fn load(
        storage: &'obj mut [MaybeUninit<OpenObject>; 2],
        interfaces: &[Interface],
        session: &mut Session,
    ) -> Result<Self, Failure> {
        let mut args = arguments::<AcceptTraceArgs>(&[])?;
        args.exporting = true;
        let buffer = BufferKind::choose(args.buffer.buffer)?;
        let places = Places::both_ways(interfaces);
        let programs = Programs::load(&args, buffer, interfaces, storage, session.notices)?;
        let first = programs.skels.first().context("there is no interface")?;
        export::prepare(&first.maps.export_counts)?;
        let mut hooks = programs::attach(programs.hook, &programs.skels, interfaces, places)?;
        for note in hooks.interfaces.take_notes() {
            session.notices.note(&note);
        }
        for hook in hooks.interfaces.hooks() {
            session.follow(hook)?;
        }
        Ok(Self {
            skels: programs.skels,
            hooks,
            table: AttemptTable::new(interfaces, SWEEP_EVERY, args.attempt_timeout)?,
            reasons: programs.reasons,
        })
    }

    fn sweep(&mut self) -> Result<()> {
        let first = self.skels.first_mut().context("there is no interface")?;
        self.table.sweep(first)
    }

    fn write(&self, out: &mut Exposition, places: &mut KernelSymbols) -> Result<()> {
        let first = self.skels.first().context("there is no interface")?;
        let counts = export::read(&first.maps.export_counts, &first.maps.export_times)?;
        metrics::accept(out, &counts, |key| {
            name(&self.reasons, key.reason, place(places, key.place))
        });
        Ok(())
    }

    fn lost(&self) -> u64 {
        let counters = self.skels.iter().filter_map(|skel| {
            let bss = skel.maps.bss_accept_data.as_deref()?;
            Some(skel::accept_counters(bss).untracked)
        });
        counters.sum()
    }
}

/// The name of a reason; if it has none, the reason that the dropping function implies.
fn name(reasons: &Reasons, number: u32, place: Option<&str>) -> Option<String> {
    let name = reasons.name(number);
    name.or_else(|| place.and_then(reason_of_place).map(DropReason::name))
        .map(str::to_owned)
}

fn place(places: &mut KernelSymbols, address: u64) -> Option<&str> {
    match address {
        0 => None,
        address => places.name(address),
    }
}

struct LossCollector<'obj> {
    skel: LossTraceSkel<'obj>,
    kernel: Kernel,
    hooks: Vec<&'static str>,
    _links: Vec<Link>,
}

impl<'obj> LossCollector<'obj> {
    fn load(storage: &'obj mut MaybeUninit<OpenObject>) -> Result<Self, Failure> {
        let mut args = arguments::<LossTraceArgs>(&[])?;
        args.exporting = true;
        let buffer = BufferKind::choose(args.buffer.buffer)?;
        let kernel = Kernel::look()?;
        // Only kernels without reasons need it here.
        let mut symbols = KernelSymbols::open().unwrap_or_else(|_| KernelSymbols::none());
        let target = LoadOptions {
            interfaces: &[],
            watched: &[],
            tables: Size::of(1),
            is_raw_ip: false,
            first: None,
        };
        let skel = kernel.load(&args, buffer, &target, &mut symbols, storage)?;
        export::prepare(&skel.maps.export_counts)?;
        let (links, hooks) = loss_programs::attach(&skel)?;
        Ok(Self {
            skel,
            kernel,
            hooks,
            _links: links,
        })
    }

    fn write(&self, out: &mut Exposition, places: &mut KernelSymbols) -> Result<()> {
        let counts = export::read(&self.skel.maps.export_counts, &self.skel.maps.export_times)?;
        metrics::loss(out, &counts, |key| {
            let place = place(places, key.place);
            let kind = LossKind(key.kind.into());
            let (name, _) = self.kernel.reason(kind, key.reason, place);
            name.map(str::to_owned)
        });
        Ok(())
    }

    fn lost(&self) -> u64 {
        let programs = loss_programs::loaded(&self.skel.progs);
        programs
            .map(|(_, program)| link::skipped_runs(program.as_fd()))
            .sum()
    }
}

struct ConnectCollector<'obj> {
    tracer: Tracer<'obj>,
    sockets: SocketCounts,
}

impl<'obj> ConnectCollector<'obj> {
    fn load(
        storage: &'obj mut [MaybeUninit<OpenObject>],
        has_flows: bool,
        notices: Notices,
    ) -> Result<Self, Failure> {
        let mut args = arguments::<ConnectTraceArgs>(&[])?;
        args.exporting = true;
        args.accept = has_flows;
        args.close = has_flows;
        let buffer = BufferKind::choose(args.buffer.buffer)?;
        let tracer = connect_trace::choose(&args, buffer, storage, notices)?;
        export::prepare(&tracer.skel.maps.export_counts)?;
        Ok(Self {
            tracer,
            sockets: SocketCounts::open(),
        })
    }

    fn write(&self, out: &mut Exposition, with_connects: bool, with_flows: bool) -> Result<()> {
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

    fn lost(&self) -> u64 {
        let Some(bss) = self.tracer.skel.maps.bss_data.as_deref() else {
            return 0;
        };
        let counters = skel::connect_counters(bss);
        let untold = counters.untold.cast_signed().max(0).cast_unsigned();
        let progs = &self.tracer.skel.progs;
        connect_trace::unseen(&counters, counters.unhooked, progs) + counters.lost + untold
    }
}
