//! `port-monitor`: one line per packet that matches.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use caps::Capability;
use libbpf_rs::skel::{OpenSkel, SkelBuilder};
use libbpf_rs::{OpenObject, ProgramInput, ProgramMut};

use super::replay::{self, Prepared, Replayed};
use crate::attach::ring::Bell;
use crate::attach::tc::{self, TcLink};
use crate::attach::{Direction, load};
use crate::capture::{Frame, LinkKind};
use crate::cli::{DirectionChoice, OutputFormat, PortMonitorArgs};
use crate::events::{BufferKind, EventSource};
use crate::failure::{Exit, Failure};
use crate::filter::{Filter, FlagsRule};
use crate::host::interfaces::{Interface, LinkLayer};
use crate::host::privileges;
use crate::host::sandbox::Files;
use crate::notice::Notices;
use crate::output::packet::{PacketWriter, Place, iface_width};
use crate::output::summary::Summary;
use crate::record::Packet;
use crate::session::{Delivery, Session};
use crate::skel::port_monitor::types::bss_replay;
use crate::skel::port_monitor::{PortMonitorSkel, PortMonitorSkelBuilder};
use crate::skel::{self, PacketCounters};
use crate::{filter_slots, filter_tries};

/// Bytes of the payload that `-x` shows unless `--payload-bytes` says otherwise.
const DEFAULT_HEX_BYTES: u32 = 16;

/// Runs the command.
///
/// # Errors
/// As SPEC's exit codes: wrong options, or something that can't be attached or written.
pub fn run(args: &PortMonitorArgs) -> Result<Exit, Failure> {
    let filter = args.packets.filter(FlagsRule::SYN);
    if let Some(file) = &args.packets.read {
        return replay_file(args, &filter, file);
    }

    let mut session = Session::new(&args.output, &args.stop, args.sandbox)?;
    let interfaces = session.interfaces(&args.packets.interfaces)?;
    let cpus = load::possible_cpus()?;
    let buffer = BufferKind::choose(args.buffer.buffer)?;

    let mut storage = interfaces
        .iter()
        .map(|_| MaybeUninit::uninit())
        .collect::<Vec<_>>();
    let mut skels = Vec::<PortMonitorSkel<'_>>::new();
    for (interface, storage) in interfaces.iter().zip(&mut storage) {
        let setup = Setup {
            args,
            filter: &filter,
            buffer,
            raw_ip: interface.link_layer == LinkLayer::None,
            replay: false,
            position: skels.len(),
        };
        let skel = setup.load(storage, skels.first())?;
        skels.push(skel);
    }
    let first = skels.first().context("there is no interface")?;

    let names = interfaces.iter().map(|interface| interface.name.as_str());
    let writer = PacketWriter {
        iface_width: iface_width(names),
        with_payload: payload_bytes(args) > 0,
    };
    let delivery = Delivery::new(session.io());
    let source = EventSource::open(
        buffer,
        args.buffer.buffer_size,
        &first.maps.ring,
        &first.maps.perf,
        |bytes| {
            print(&delivery, &writer, bytes, |packet| {
                interfaces
                    .get(packet.raw.interface as usize)
                    .map(|interface| Place {
                        iface: Some(&interface.name),
                        has_macs: interface.link_layer == LinkLayer::Ethernet,
                        has_ethertype: interface.link_layer == LinkLayer::Ethernet,
                        offset_shift: 0,
                    })
            });
        },
    )?;

    let mut links = Vec::new();
    for (interface, skel) in interfaces.iter().zip(&skels) {
        attach(args, interface, skel, session.notices, &mut links)?;
    }
    for (interface, _, link) in &links {
        session.follow(interface, link.state());
    }
    give_up_privileges(&links)?;
    session.text_header(|out| writer.text_header(out));
    session.ready(Files::Opened)?;
    session.attached(&describe(&links, buffer));

    session.run_events(&source)?;
    let duration = session.stop.elapsed();
    for (.., link) in links {
        link.detach(session.notices);
    }
    crate::attach::synchronize();
    session.drain_rest(&source)?;

    let mut counters = PacketCounters::default();
    for skel in &skels {
        counters.add(&read_counters(skel, cpus));
    }
    let summary = summary(&session, &delivery, duration, counters);
    session.finish(&summary)
}

fn read_counters(skel: &PortMonitorSkel<'_>, cpus: usize) -> PacketCounters {
    match skel.maps.bss_counters_data.as_deref() {
        Some(bss) => skel::port_monitor_counters(bss, cpus),
        None => PacketCounters::default(),
    }
}

/// Bytes of the payload that are shown.
fn payload_bytes(args: &PortMonitorArgs) -> u32 {
    args.payload_bytes
        .unwrap_or(if args.hex { DEFAULT_HEX_BYTES } else { 0 })
}

fn directions(choice: DirectionChoice) -> &'static [Direction] {
    match choice {
        DirectionChoice::Ingress => &[Direction::Ingress],
        DirectionChoice::Egress => &[Direction::Egress],
        DirectionChoice::Both => &[Direction::Ingress, Direction::Egress],
    }
}

type Attached<'a> = (&'a Interface, Direction, TcLink);

fn attach<'a>(
    args: &PortMonitorArgs,
    interface: &'a Interface,
    skel: &PortMonitorSkel<'_>,
    notices: Notices,
    links: &mut Vec<Attached<'a>>,
) -> Result<(), Failure> {
    for direction in directions(args.direction) {
        let program = match direction {
            Direction::Ingress => &skel.progs.port_monitor_ingress,
            Direction::Egress => &skel.progs.port_monitor_egress,
        };
        let link = tc::attach(program, interface, *direction, notices)?;
        links.push((interface, *direction, link));
    }
    Ok(())
}

fn hook(direction: Direction, link: &TcLink) -> String {
    format!("tc {direction} ({})", link.kind())
}

/// Loads the program, attaches it if there is an interface to try it on, and takes it away again.
/// Returns what it was attached to.
///
/// # Errors
/// The command would fail in the same way.
pub fn probe(
    args: &PortMonitorArgs,
    interface: Option<&Interface>,
    notices: Notices,
) -> Result<Option<String>, Failure> {
    let setup = Setup {
        args,
        filter: &args.packets.filter(FlagsRule::SYN),
        buffer: BufferKind::choose(args.buffer.buffer)?,
        raw_ip: false,
        replay: false,
        position: 0,
    };
    let mut storage = MaybeUninit::uninit();
    let skel = setup.load(&mut storage, None)?;
    let mut links = Vec::new();
    if let Some(interface) = interface {
        attach(args, interface, &skel, notices, &mut links)?;
    }
    let hooks = links
        .iter()
        .map(|(_, direction, link)| hook(*direction, link));
    Ok(hooks.reduce(|all, hook| all + ", " + &hook))
}

/// Events come through mapped memory, so nothing is needed any more, except to remove a filter
/// that is no link.
fn give_up_privileges(links: &[Attached<'_>]) -> Result<()> {
    if links.iter().any(|(.., link)| link.needs_privileges()) {
        privileges::drop_all_but(&[Capability::CAP_NET_ADMIN])
    } else {
        privileges::drop_all()
    }
}

/// What was attached, for the `attached:` line.
fn describe(links: &[Attached<'_>], buffer: BufferKind) -> String {
    let places = links
        .iter()
        .map(|(interface, direction, link)| {
            format!("{} on {}", hook(*direction, link), interface.name)
        })
        .collect::<Vec<_>>();
    format!("{} (port-monitor, {})", places.join(", "), buffer.name())
}

/// Decodes an event and writes its line; `place` tells where the packet was seen.
fn print<'p>(
    delivery: &Delivery,
    writer: &PacketWriter,
    bytes: &[u8],
    place: impl FnOnce(&Packet<'_>) -> Option<Place<'p>>,
) {
    let record = Packet::decode(bytes).and_then(|packet| Some((place(&packet)?, packet)));
    delivery.deliver(
        record,
        |clock, (place, packet)| match place.iface {
            Some(_) => clock.unix(packet.raw.ts_ns),
            // A file's time is UNIX time already, and may be before 1970.
            None => packet.raw.ts_ns.cast_signed(),
        },
        |out, clock, at, (place, packet)| match delivery.format() {
            OutputFormat::Json => writer.json(out, clock, at, *place, packet),
            OutputFormat::Text => writer.text(out, clock, at, *place, packet),
        },
    );
}

fn summary(
    session: &Session,
    delivery: &Delivery,
    duration: Duration,
    counters: PacketCounters,
) -> Summary {
    Summary {
        exit_reason: session.exit_reason().name(),
        packets: Some(counters),
        ..delivery.summary(
            "port-monitor",
            duration,
            counters.matched,
            counters.lost,
            counters.suppressed,
        )
    }
}

/// What a program is loaded for.
struct Setup<'a> {
    args: &'a PortMonitorArgs,
    filter: &'a Filter,
    buffer: BufferKind,
    raw_ip: bool,
    replay: bool,
    position: usize,
}

impl Setup<'_> {
    /// Loads the programs; `first` owns the event buffer that all share.
    fn load<'obj>(
        &self,
        storage: &'obj mut MaybeUninit<OpenObject>,
        first: Option<&PortMonitorSkel<'_>>,
    ) -> Result<PortMonitorSkel<'obj>, Failure> {
        let mut open = PortMonitorSkelBuilder::default()
            .open(storage)
            .context("failed to open the programs")?;
        let rodata = open
            .maps
            .rodata_data
            .as_deref_mut()
            .context("the programs have no settings")?;
        rodata.link_is_raw_ip = self.raw_ip;
        rodata.replay = self.replay;
        rodata.use_perf_buffer = self.buffer == BufferKind::Perf;
        rodata.interface = u32::try_from(self.position)?;
        rodata.payload_capture = payload_bytes(self.args);
        rodata.max_rate = self.args.max_rate.unwrap_or(0);
        self.filter.configure(filter_slots!(open, rodata))?;
        let maps = &mut open.maps;
        self.buffer
            .configure(&self.args.buffer, &mut maps.ring, &mut maps.perf)?;
        maps.scratch
            .set_autocreate(self.buffer == BufferKind::Perf)?;
        maps.rate.set_autocreate(self.args.max_rate.is_some())?;
        if let Some(first) = first {
            match self.buffer {
                BufferKind::Ring => maps.ring.reuse_fd(first.maps.ring.as_fd())?,
                BufferKind::Perf => maps.perf.reuse_fd(first.maps.perf.as_fd())?,
            }
            if self.args.max_rate.is_some() {
                maps.rate.reuse_fd(first.maps.rate.as_fd())?;
            }
        }
        let wanted = directions(self.args.direction);
        let progs = &mut open.progs;
        progs
            .port_monitor_ingress
            .set_autoload(self.replay || wanted.contains(&Direction::Ingress));
        progs
            .port_monitor_egress
            .set_autoload(!self.replay && wanted.contains(&Direction::Egress));
        let skel = open
            .load()
            .map_err(|error| load::failure("failed to load the port-monitor program", error))?;
        self.filter.fill(filter_tries!(skel))?;
        Ok(skel)
    }
}

/// Prints the packets of a capture file.
fn replay_file(args: &PortMonitorArgs, filter: &Filter, file: &Path) -> Result<Exit, Failure> {
    // Opened first: while it waits for a FIFO's writer, signals still end the process.
    let mut capture = replay::open(file)?;
    let mut session = Session::new(&args.output, &args.stop, args.sandbox)?;
    let cpus = load::possible_cpus()?;
    let setup = Setup {
        args,
        filter,
        buffer: BufferKind::choose(args.buffer.buffer)?,
        raw_ip: false,
        replay: true,
        position: 0,
    };
    let mut storage = MaybeUninit::uninit();
    let mut skel = setup.load(&mut storage, None)?;
    let delivery = Delivery::new(session.io());
    let writer = PacketWriter {
        iface_width: iface_width([]),
        with_payload: payload_bytes(args) > 0,
    };
    let place = Cell::new(Place {
        iface: None,
        has_macs: true,
        has_ethertype: true,
        offset_shift: 0,
    });
    let source = EventSource::open(
        setup.buffer,
        args.buffer.buffer_size,
        &skel.maps.ring,
        &skel.maps.perf,
        |bytes| print(&delivery, &writer, bytes, |_| Some(place.get())),
    )?;
    session.ready(Files::Opened)?;
    session.text_header(|out| writer.text_header(out));

    let mut replay = Replay {
        program: &skel.progs.port_monitor_ingress,
        bss: &mut skel.maps.bss_replay_data,
        source: &source,
        place: &place,
    };
    let file_error = replay::run(&mut session, &mut capture, &mut replay)?;
    session.output.borrow_mut().sink.flush(&session.stop);
    let counters = read_counters(&skel, cpus);
    let summary = summary(&session, &delivery, session.stop.elapsed(), counters);
    let exit = session.finish(&summary)?;
    file_error.map_or(Ok(exit), Err)
}

/// A replay in progress.
struct Replay<'a, 'obj, 'events> {
    program: &'a ProgramMut<'obj>,
    bss: &'a mut Option<&'obj mut bss_replay>,
    source: &'a EventSource<'events>,
    place: &'a Cell<Place<'static>>,
}

impl Replayed for Replay<'_, '_, '_> {
    fn run(
        &mut self,
        _: &Session,
        frame: &Frame<'_>,
        prepared: &Prepared<'_>,
        input: ProgramInput<'_>,
    ) -> Result<()> {
        self.place.set(Place {
            iface: None,
            has_macs: frame.link == LinkKind::Ethernet,
            has_ethertype: matches!(frame.link, LinkKind::Ethernet | LinkKind::Cooked),
            offset_shift: frame.offset_shift,
        });
        let bss = self
            .bss
            .as_deref_mut()
            .context("the program has no place for the frame's length")?;
        let at = prepared.at.cast_unsigned();
        skel::set_port_monitor_replay(bss, prepared.len, prepared.beyond, at);
        self.program.test_run(input)?;
        // The event of this frame, before the next one has another place.
        self.source.consume(Bell::Wanted);
        Ok(())
    }
}
