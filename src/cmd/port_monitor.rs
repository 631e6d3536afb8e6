//! `port-monitor`: one line per packet that matches.

use std::mem::MaybeUninit;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use libbpf_rs::{OpenObject, ProgramMut};

use crate::attach::load;
use crate::capture::write::{FrameToWrite, InPlace, Process, Statistics};
use crate::capture::{Frame, LinkKind};
use crate::cli::{BufferArgs, DirectionChoice, PortMonitorArgs};
use crate::domain::Direction;
use crate::domain::packet::{CapturedFrame, Packet};
use crate::failure::Failure;
use crate::filter::{Filter, FlagsRule};
use crate::host::interfaces::{Interface, LinkLayer};
use crate::output::columns::widest;
use crate::output::port_monitor::{CapturePoint, PacketColumn, PacketWriter};
use crate::output::summary::Summary;
use crate::run::events::{BufferKind, EventSource};
use crate::run::holders;
use crate::run::packet::{Live, LoadTarget, Options, PacketCommand, Replay};
use crate::run::processes::{Ends, Processes};
use crate::run::replay::{AroundFrames, Origin};
use crate::run::session::Session;
use crate::skel::port_monitor::{OpenPortMonitorSkel, PortMonitorSkel, PortMonitorSkelBuilder};
use crate::skel::{FrameEvent, PacketEvent};

/// Bytes of a frame that an event in a replay has room for: none are sent.
const REPLAYED_BYTES: usize = 8;

/// Payload bytes that `-x` shows if `--payload-bytes` is not given.
const DEFAULT_HEX_BYTES: u32 = 16;

/// The command with its options.
pub struct PortMonitor<'a> {
    args: &'a PortMonitorArgs,
    filter: Filter,
    writer: PacketWriter,
    buffer: BufferArgs,
}

impl<'a> PortMonitor<'a> {
    /// The command with its default for `--flags`.
    ///
    /// # Errors
    /// A column is unknown.
    pub fn new(args: &'a PortMonitorArgs) -> Result<Self, Failure> {
        let is_live_recording = args.recording.write.is_some() && args.packets.read.is_none();
        Ok(Self {
            args,
            buffer: match is_live_recording {
                true => args.buffer.for_frames(),
                false => args.buffer.clone(),
            },
            filter: args.packets.filter(FlagsRule::SYN),
            writer: PacketWriter::new(&args.run.output.columns, payload_bytes(args) > 0)?,
        })
    }

    fn is_recording(&self) -> bool {
        self.args.recording.write.is_some()
    }

    /// Reports what a capture file will leave out, unless the options chose the packets.
    fn say_what_is_left_out(&self, session: &Session) {
        let packets = &self.args.packets;
        if self.is_recording() && packets.flags.is_none() && packets.expression().is_none() {
            session.notices.notice(
                "only connection attempts (SYN without ACK) are written; --flags any or a filter \
                 expression writes more",
            );
        }
    }

    fn directions(&self) -> &'static [Direction] {
        match self.args.direction {
            DirectionChoice::Ingress => &[Direction::Ingress],
            DirectionChoice::Egress => &[Direction::Egress],
            DirectionChoice::Both => &[Direction::Ingress, Direction::Egress],
        }
    }
}

/// How many payload bytes to copy.
fn payload_bytes(args: &PortMonitorArgs) -> u32 {
    let default = if args.hex { DEFAULT_HEX_BYTES } else { 0 };
    args.payload_bytes.unwrap_or(default)
}

impl PacketCommand for PortMonitor<'_> {
    const NAME: &'static str = "port-monitor";
    type Skel<'obj> = PortMonitorSkel<'obj>;
    type Builder = PortMonitorSkelBuilder;

    fn options(&self) -> Options<'_> {
        Options {
            buffer: Some(&self.buffer),
            recording: Some(&self.args.recording),
            ..Options::new(&self.args.packets, &self.filter, &self.args.run)
        }
    }

    fn configure(
        &self,
        open: &mut OpenPortMonitorSkel<'_>,
        target: &LoadTarget<'_>,
        first: Option<&PortMonitorSkel<'_>>,
    ) -> Result<()> {
        let maps = &mut open.maps;
        let rodata = maps.rodata_data.as_deref_mut();
        let rodata = rodata.context("the programs have no settings")?;
        load::configure_slots(
            &mut rodata.preemptible,
            &mut maps.idle_slots,
            &mut [&mut maps.scratch],
        )?;
        rodata.payload_capture = payload_bytes(self.args);
        if self.is_recording() {
            rodata.snaplen = self.args.recording.snaplen();
        }
        rodata.max_rate = self.args.max_rate.unwrap_or(0);
        maps.scratch
            .set_autocreate(target.buffer == BufferKind::Perf)?;
        maps.rate.set_autocreate(self.args.max_rate.is_some())?;
        if let (Some(first), Some(_)) = (first, self.args.max_rate) {
            maps.rate.reuse_fd(first.maps.rate.as_fd())?;
        }
        let ingress = target.replay || self.directions().contains(&Direction::Ingress);
        let egress = !target.replay && self.directions().contains(&Direction::Egress);
        open.progs.port_monitor_ingress.set_autoload(ingress);
        open.progs.port_monitor_egress.set_autoload(egress);
        Ok(())
    }

    fn tc_directions(&self, _: &Interface) -> &'static [Direction] {
        self.directions()
    }

    fn program<'s>(
        &self,
        skel: &'s PortMonitorSkel<'_>,
        direction: Direction,
    ) -> &'s ProgramMut<'s> {
        match direction {
            Direction::Ingress => &skel.progs.port_monitor_ingress,
            Direction::Egress => &skel.progs.port_monitor_egress,
        }
    }

    fn watch(&self, live: &mut Live<'_, PortMonitorSkel<'_>>) -> Result<Summary, Failure> {
        self.say_what_is_left_out(live.session);
        if self.is_recording() {
            return record_live(live);
        }
        let interfaces = live.interfaces;
        let names = interfaces.iter().map(|interface| interface.name.as_str());
        let mut writer = self.writer.clone();
        writer.layout.widen(PacketColumn::Iface, widest(names));
        let on_event = |session: &mut Session, bytes: &[u8]| {
            print(session, &writer, bytes, |packet| {
                let interface = interfaces.get(packet.raw.interface as usize)?;
                let is_ethernet = interface.link_layer == LinkLayer::Ethernet;
                Some(CapturePoint {
                    iface: Some(&interface.name),
                    has_macs: is_ethernet,
                    has_ethertype: is_ethernet,
                    offset_shift: 0,
                })
            });
        };
        Ok(live.run_events(|out, clock| writer.layout.header(out, clock), on_event)?)
    }

    fn replay<'obj>(
        &self,
        replay: &mut Replay<'_, PortMonitorSkel<'obj>>,
    ) -> Result<Summary, Failure> {
        self.say_what_is_left_out(replay.session);
        replay.begin(|out, clock| self.writer.layout.header(out, clock))?;
        if self.is_recording() {
            let mut copier = Copier {
                source: replay.take_source()?,
                bytes: Vec::new(),
                frames: Vec::new(),
            };
            replay.run(|skel| &skel.progs.port_monitor_ingress, &mut copier);
            replay.session.end_recording(&[]);
        } else {
            let event_len = size_of::<PacketEvent>() + payload_bytes(self.args) as usize;
            replay.run_events(
                |skel| &skel.progs.port_monitor_ingress,
                event_len,
                |session, frames, bytes| {
                    print(session, &self.writer, bytes, |packet| {
                        let frame = frames.get(packet.raw.interface as usize)?;
                        Some(CapturePoint {
                            iface: None,
                            has_macs: frame.link == LinkKind::Ethernet,
                            has_ethertype: matches!(
                                frame.link,
                                LinkKind::Ethernet | LinkKind::Cooked
                            ),
                            offset_shift: frame.offset_shift,
                        })
                    });
                },
            )?;
        }
        Ok(replay.summary())
    }
}

/// Writes packets to a capture file until the run is over.
fn record_live(live: &mut Live<'_, PortMonitorSkel<'_>>) -> Result<Summary, Failure> {
    let mut source = live.take_source()?;
    let interfaces = live.interfaces;
    let mut storage = MaybeUninit::uninit();
    let mut processes = processes(live.session, &mut storage);
    let keep = holders::needs(processes.as_mut().map(Processes::holders))?;
    live.begin(keep.as_slice(), |_, _| ())?;
    {
        let (session, statistics) = live.recording();
        session.record_batches(&mut source, &statistics, |session, frames| {
            write_frames(session, interfaces, processes.as_mut(), frames, &statistics);
        })?;
    }
    live.detach()?;
    {
        let (session, statistics) = live.recording();
        session.drain_rest(&mut source, |session, bytes| {
            write_frames(
                session,
                interfaces,
                processes.as_mut(),
                &[bytes],
                &statistics,
            );
        })?;
        session.end_recording(&statistics());
    }
    Ok(live.summary())
}

/// The finder of the processes of packets, if the file can have them; `None`, with a notice,
/// where that is not possible.
fn processes<'obj>(
    session: &Session,
    storage: &'obj mut MaybeUninit<OpenObject>,
) -> Option<Processes<'obj>> {
    if !session.names_processes() {
        return None;
    }
    match Processes::new(storage, session.notices) {
        Ok(processes) => Some(processes),
        Err(error) => {
            session.notices.notice(&format!(
                "the capture file will not name the processes of packets: {error:#}"
            ));
            None
        }
    }
}

/// Writes frames to the capture file.
fn write_frames(
    session: &mut Session,
    interfaces: &[Interface],
    mut processes: Option<&mut Processes<'_>>,
    frames: &[&[u8]],
    statistics: impl Fn() -> Vec<Statistics>,
) {
    let mut in_place = InPlace::default();
    for bytes in frames {
        let processes = processes.as_deref_mut();
        write_frame(
            session,
            interfaces,
            processes,
            bytes,
            &mut in_place,
            &statistics,
        );
    }
    session.write_out(&mut in_place);
}

/// Writes a frame to the capture file.
fn write_frame<'f>(
    session: &mut Session,
    interfaces: &[Interface],
    processes: Option<&mut Processes<'_>>,
    bytes: &'f [u8],
    in_place: &mut InPlace<'f>,
    statistics: impl Fn() -> Vec<Statistics>,
) {
    let Some(frame) = CapturedFrame::decode(bytes) else {
        session.broken();
        return;
    };
    let at = session.clock.unix(frame.raw.ts_ns);
    let direction = frame.direction();
    let process = processes.zip(frame.ends()).and_then(|(processes, ends)| {
        let [remote, local] = match direction {
            Direction::Ingress => ends,
            Direction::Egress => [ends[1], ends[0]],
        };
        let ends = Ends {
            local,
            remote,
            interface: interfaces.get(frame.raw.interface as usize)?.index,
        };
        let holder = processes.of(ends, at)?;
        Some(Process {
            pid: holder.pid,
            comm: &holder.comm,
        })
    });
    let written = FrameToWrite {
        interface: frame.raw.interface,
        at,
        parts: frame.parts(),
        wire_len: frame.wire_len(),
        direction: Some(direction),
        process,
        comment: None,
    };
    session.write_frame_in_place(&written, in_place, statistics);
}

/// Decodes an event and writes its line. `point` returns where the packet was seen.
fn print<'p>(
    session: &mut Session,
    writer: &PacketWriter,
    bytes: &[u8],
    point: impl FnOnce(&Packet<'_>) -> Option<CapturePoint<'p>>,
) {
    let record = Packet::decode(bytes).and_then(|packet| Some((point(&packet)?, packet)));
    let Some((point, packet)) = record else {
        session.broken();
        return;
    };
    let at = match point.iface {
        Some(_) => session.clock.unix(packet.raw.ts_ns),
        // Times in a file are UNIX times already, and may be before 1970.
        None => packet.raw.ts_ns.cast_signed(),
    };
    session.write_event(at, &writer.shown(point, &packet));
}

/// Copies the packets of a file that match to another file.
struct Copier {
    source: EventSource,
    /// The bytes of the frames of a test run, as they were captured.
    bytes: Vec<u8>,
    frames: Vec<Copied>,
}

/// A frame of a test run.
struct Copied {
    /// Where its bytes end.
    end: usize,
    link_type: u16,
    wire_len: u32,
}

impl<S> AroundFrames<S> for Copier {
    fn take(&mut self, frame: &Frame<'_>) {
        for part in frame.captured() {
            self.bytes.extend_from_slice(part);
        }
        self.frames.push(Copied {
            end: self.bytes.len(),
            link_type: frame.link_type,
            wire_len: frame.wire_len,
        });
    }

    fn room(&self, session: &Session) -> usize {
        let events = self.source.room(size_of::<FrameEvent>() + REPLAYED_BYTES);
        events.min(usize::try_from(session.output_room()).unwrap_or(usize::MAX))
    }

    fn after(&mut self, session: &mut Session, _: &[Origin]) {
        self.source.drain_all(|event| {
            let event = CapturedFrame::decode(event);
            let found = event.and_then(|event| {
                let at = event.raw.interface as usize;
                let start = match at.checked_sub(1) {
                    Some(before) => self.frames.get(before)?.end,
                    None => 0,
                };
                let frame = self.frames.get(at)?;
                Some((event, frame, self.bytes.get(start..frame.end)?))
            });
            let Some((event, frame, bytes)) = found else {
                session.broken();
                return;
            };
            // If there can be no such interface, the run has ended, and the frame counts as late.
            let interface = session.recorded_interface(frame.link_type);
            let written = FrameToWrite {
                interface: interface.unwrap_or(0),
                at: event.raw.ts_ns.cast_signed(),
                parts: [bytes, &[], &[], &[]],
                wire_len: frame.wire_len,
                direction: None,
                process: None,
                comment: None,
            };
            session.write_frame(&written, Vec::new);
        });
        self.frames.clear();
        self.bytes.clear();
    }
}
