//! Attaches programs to interfaces, until the value that is returned is dropped.

pub(crate) mod beside;
pub mod clsact;
pub mod load;
pub mod tc;
pub mod xdp;

use std::fmt;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use libbpf_rs::ProgramMut;

use crate::domain::Direction;
use crate::failure::Failure;
use crate::host::features::Snapshot;
use crate::host::interfaces::Interface;
use crate::notice::Note;
use crate::sys::link::{Link, LinkState, synchronize};
use crate::sys::object::LoadedProgram;
use clsact::FilterState;
use tc::{PreparedLinks, TcLink, TcProgram};
use xdp::XdpMode;

/// Programs attached to interfaces. They are detached when this is dropped.
#[derive(Default)]
pub struct Attached {
    hooks: Vec<Hook>,
    notes: Vec<Note>,
    prepared: PreparedLinks,
}

/// The programs for both directions, for interfaces whose frames begin with the same kind of header.
pub struct Pair {
    /// Frames begin with the IP header.
    is_raw_ip: bool,
    egress: LoadedProgram,
    ingress: LoadedProgram,
}

impl Pair {
    /// The pairs that these interfaces need: for each, whether frames begin with the IP header.
    pub fn kinds(interfaces: &[Interface]) -> Vec<bool> {
        let mut kinds = interfaces
            .iter()
            .map(Interface::is_raw_ip)
            .collect::<Vec<_>>();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    }

    /// From the programs for egress and ingress.
    ///
    /// # Errors
    /// There are not two.
    pub fn new(is_raw_ip: bool, programs: Vec<LoadedProgram>) -> Result<Self> {
        let [egress, ingress] = programs
            .try_into()
            .map_err(|_| anyhow!("a TC program is not loaded"))?;
        Ok(Self {
            is_raw_ip,
            egress,
            ingress,
        })
    }
}

/// A program at a hook of an interface.
pub struct Hook {
    /// The interface's name.
    pub iface: String,
    /// The interface's index.
    pub ifindex: u32,
    /// The hook, as it is printed.
    pub name: String,
    link: HookLink,
}

enum HookLink {
    Xdp(Link, XdpMode),
    Tc(TcLink),
}

impl Hook {
    /// A way to ask whether it is still attached.
    ///
    /// # Errors
    /// No file descriptor is left.
    pub fn state(&self) -> Result<HookState> {
        match &self.link {
            HookLink::Xdp(link, _) => Ok(HookState::Link(link.state())),
            HookLink::Tc(link) => link.state(),
        }
    }

    /// The kind of attachment, as it is printed.
    pub fn kind(&self) -> &'static str {
        match &self.link {
            HookLink::Xdp(_, mode) => mode.name(),
            HookLink::Tc(link) => link.kind(),
        }
    }
}

/// Finds out whether a program is still attached, without keeping it attached.
pub enum HookState {
    /// A link, which moves to another network namespace together with its interface.
    Link(LinkState),
    /// A filter, which is lost when its interface moves.
    Filter(FilterState),
}

impl HookState {
    /// False once any process has detached it, or its interface is gone. True if the kernel can't
    /// be asked.
    pub fn is_attached(&mut self) -> bool {
        match self {
            Self::Link(link) => link.is_attached(),
            Self::Filter(filter) => filter.is_attached(),
        }
    }
}

impl Attached {
    /// No programs yet. Those at TC will use these tcx links.
    pub fn with(prepared: PreparedLinks) -> Self {
        Self {
            prepared,
            ..Self::default()
        }
    }

    /// Attaches a program to TC.
    ///
    /// # Errors
    /// As [`tc::attach`].
    pub fn tc(
        &mut self,
        program: &impl TcProgram,
        interface: &Interface,
        direction: Direction,
    ) -> Result<(), Failure> {
        let (link, notes) = tc::attach(program, interface, direction, &mut self.prepared)?;
        self.notes.extend(notes.into_iter().map(Note::Notice));
        let name = format!("tc {direction} ({})", link.kind());
        self.push(interface, name, HookLink::Tc(link));
        Ok(())
    }

    /// Attaches the programs for an interface to both directions of TC, ingress last.
    ///
    /// # Errors
    /// As [`tc::attach`], or there is no pair for such an interface.
    pub fn tc_pair(&mut self, pairs: &[Pair], interface: &Interface) -> Result<(), Failure> {
        let is_for = |pair: &&Pair| pair.is_raw_ip == interface.is_raw_ip();
        let pair = pairs.iter().find(is_for);
        let pair = pair.context("an interface has no programs")?;
        self.tc(&pair.egress, interface, Direction::Egress)?;
        self.tc(&pair.ingress, interface, Direction::Ingress)
    }

    /// Attaches a program to XDP, in the first of the modes that the interface accepts.
    ///
    /// # Errors
    /// As [`xdp::attach`].
    pub fn xdp(
        &mut self,
        program: &ProgramMut<'_>,
        interface: &Interface,
        modes: &[XdpMode],
    ) -> Result<(), Failure> {
        // A TC filter that a killed run left here before Linux 6.6 is removed as well.
        let name = &interface.name;
        match clsact::remove_stale(interface.index) {
            Ok(texts) => {
                let texts = texts.into_iter();
                self.notes
                    .extend(texts.map(|text| Note::Notice(format!("{name}: {text}"))));
            }
            Err(error) => self.notes.push(Note::Detail(format!(
                "{name}: can't find out whether a killed run has left a filter there: {error:#}"
            ))),
        }
        let before = Snapshot::take(interface);
        let (link, mode, refused) = xdp::attach(program.as_fd(), interface, modes)?;
        if let Some(why) = refused {
            self.notes.push(Note::Detail(format!(
                "{}: {why}, so generic XDP is used",
                interface.name
            )));
        }
        self.note_changes(interface, mode, before);
        let name = format!("xdp {}", mode.name());
        self.push(interface, name, HookLink::Xdp(link, mode));
        Ok(())
    }

    /// Notes the settings of the interface that XDP has changed.
    fn note_changes(&mut self, interface: &Interface, mode: XdpMode, before: Result<Snapshot>) {
        let name = mode.name();
        let end = match mode {
            XdpMode::Native => "this is restored at the end",
            // The kernel turns LRO and hardware GRO off (generic_xdp_install()).
            XdpMode::Generic => "this is not restored; --mode tc changes nothing",
        };
        let changes = before
            .and_then(|before| Ok((Snapshot::take(interface)?.changes_since(&before), before)));
        match changes {
            Ok((changes, before)) => {
                self.notes.extend(
                    changes
                        .into_iter()
                        .map(|change| Note::Notice(format!("{name} XDP changed {change}; {end}"))),
                );
                if mode == XdpMode::Native && before.has_unseen_peer() {
                    self.notes.push(Note::Notice(format!(
                        "native XDP on {} turns off TSO and GSO of its peer in another network namespace until the end; --mode generic and tc don't",
                        interface.name
                    )));
                }
            }
            Err(error) => self.notes.push(Note::Detail(format!(
                "can't find out what {name} XDP changed: {error:#}"
            ))),
        }
    }

    fn push(&mut self, interface: &Interface, name: String, link: HookLink) {
        self.hooks.push(Hook {
            iface: interface.name.clone(),
            ifindex: interface.index,
            name,
            link,
        });
    }

    /// Takes the notes for the user that were made so far.
    pub fn take_notes(&mut self) -> Vec<Note> {
        std::mem::take(&mut self.notes)
    }

    /// All hooks, in the order in which they were attached.
    pub fn hooks(&self) -> &[Hook] {
        &self.hooks
    }

    /// Whether detaching needs CAP_NET_ADMIN.
    pub fn needs_privileges(&self) -> bool {
        let mut hooks = self.hooks.iter();
        hooks.any(|hook| matches!(&hook.link, HookLink::Tc(link) if link.needs_privileges()))
    }

    /// Detaches all, and waits until no CPU runs any of them. Returns notes for the user.
    pub fn detach(&mut self) -> Vec<Note> {
        let mut notes = Vec::new();
        // In reverse order, because a program may rely on those that were attached before it.
        for hook in std::mem::take(&mut self.hooks).into_iter().rev() {
            if let HookLink::Tc(link) = hook.link {
                notes.extend(link.detach().into_iter().map(Note::Notice));
            }
        }
        synchronize();
        notes
    }
}

/// The hooks, as the `attached:` line shows them.
impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, hook) in self.hooks.iter().enumerate() {
            let comma = if i > 0 { ", " } else { "" };
            write!(f, "{comma}{} on {}", hook.name, hook.iface)?;
        }
        Ok(())
    }
}
