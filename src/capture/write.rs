//! Writes pcapng and pcap: blocks and records as bytes, without any input or output.
//!
//! The formats are those of draft-ietf-opsawg-pcapng and draft-ietf-opsawg-pcap. The crate pcap-file
//! (2.0) takes a frame in one piece only, and a vector with the options of each. Here most frames
//! have options, and a frame whose VLAN tag the kernel has taken out comes in three pieces.

use std::collections::HashMap;
use std::io::IoSlice;

use nix::sys::utsname::uname;

use super::numbers::*;
use crate::domain::Direction;

/// The default and the maximum of `--snaplen`, in bytes of a frame, as for tcpdump.
pub const MAX_SNAPLEN: u32 = super::MAX_FRAME;

/// The longest value of an option.
const OPTION_MAX: usize = u16::MAX as usize;

const NS_PER_S: u64 = 1_000_000_000;

/// The format of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFormat {
    /// Blocks: interfaces, directions, comments and statistics.
    PcapNg,
    /// Records of one link type, with times and lengths only.
    Pcap,
}

/// An interface whose frames are in the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInterface {
    /// Its name; empty if it is not known.
    pub name: String,
    /// Its link type: [`LINKTYPE_ETHERNET`], [`LINKTYPE_RAW`] or another number of the registry.
    pub link_type: u16,
}

/// A frame that is to be written.
#[derive(Clone, Copy, Debug, Default)]
pub struct FrameToWrite<'f, 'a> {
    /// The index of its interface among those of [`Encoder::new`].
    pub interface: u32,
    /// When it was seen, in nanoseconds of UNIX time. Earlier times are written as 0.
    pub at: i64,
    /// Its bytes in pieces, of which the file gets no more than the snapshot length.
    pub parts: [&'f [u8]; 4],
    /// How long the frame was.
    pub wire_len: u32,
    /// Which way it went, if that is known.
    pub direction: Option<Direction>,
    /// The process whose socket it comes from or goes to.
    pub process: Option<Process<'a>>,
    /// A comment on it.
    pub comment: Option<&'a str>,
}

/// Large parts of frames. They are not copied into the buffer but written from where they are,
/// between its bytes: a copy costs more than one more piece of a write.
#[derive(Debug, Default)]
pub struct InPlace<'f> {
    /// Each part, with the length that the buffer had before it.
    parts: Vec<(usize, &'f [u8])>,
    len: usize,
}

/// From this many bytes on, a part is not copied.
const LARGE_PART: usize = 4096;

impl<'f> InPlace<'f> {
    /// The number of their bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        self.parts.clear();
        self.len = 0;
    }

    /// All pieces of the output in order: those of the buffer, and the parts between them.
    pub fn between<'s>(&'s self, buffer: &'s [u8]) -> Vec<IoSlice<'s>> {
        let mut pieces = Vec::with_capacity(2 * self.parts.len() + 1);
        let mut done = 0;
        for (at, part) in &self.parts {
            pieces.push(IoSlice::new(&buffer[done..*at]));
            pieces.push(IoSlice::new(part));
            done = *at;
        }
        pieces.push(IoSlice::new(&buffer[done..]));
        pieces
    }

    /// Appends a part of a frame to the output.
    #[inline]
    fn push(&mut self, out: &mut Vec<u8>, part: &'f [u8]) {
        if part.len() < LARGE_PART {
            out.extend_from_slice(part);
        } else {
            self.parts.push((out.len(), part));
            self.len += part.len();
        }
    }
}

/// A process, by id and name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process<'a> {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub comm: &'a [u8],
}

/// Counts of the frames of an interface since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Frames that the interface had.
    pub received: u64,
    /// Of these, those that passed the filter.
    pub matched: u64,
    /// Of these, those that found no room on their way to the file.
    pub lost: u64,
}

/// Makes the bytes of a file.
pub struct Encoder {
    format: FileFormat,
    snaplen: u32,
    filter: Option<String>,
    interfaces: Vec<FileInterface>,
    /// Frames written of each interface.
    delivered: Vec<u64>,
    /// The processes that the file describes: for each id the last name, and its number.
    processes: HashMap<u32, (Vec<u8>, u32)>,
    /// How many processes the file describes.
    described: u32,
}

impl Encoder {
    /// An encoder for frames of these interfaces, which for [`FileFormat::Pcap`] have one link type.
    pub fn new(
        format: FileFormat,
        snaplen: u32,
        filter: Option<String>,
        interfaces: Vec<FileInterface>,
    ) -> Self {
        let delivered = vec![0; interfaces.len()];
        Self {
            format,
            snaplen,
            filter,
            interfaces,
            delivered,
            processes: HashMap::new(),
            described: 0,
        }
    }

    /// The number of the first interface with this link type.
    pub fn find(&self, link_type: u16) -> Option<u32> {
        let mut known = self.interfaces.iter();
        let at = known.position(|known| known.link_type == link_type)?;
        u32::try_from(at).ok()
    }

    /// Describes one more interface, without a name, and returns its number. `None`: the file
    /// already has an interface with another link type, and its format allows only one.
    pub fn add(&mut self, link_type: u16, out: &mut Vec<u8>) -> Option<u32> {
        if self.format == FileFormat::Pcap && !self.interfaces.is_empty() {
            return None;
        }
        let at = self.interfaces.len();
        self.interfaces.push(FileInterface {
            name: String::new(),
            link_type,
        });
        self.delivered.push(0);
        match self.format {
            FileFormat::PcapNg => self.describe(at, out),
            FileFormat::Pcap => self.header(out),
        }
        u32::try_from(at).ok()
    }

    /// Whether the header of a file is still missing, because no link type is known.
    pub fn has_no_header(&self) -> bool {
        self.format == FileFormat::Pcap && self.interfaces.is_empty()
    }

    /// Appends what a file begins with. For pcap that needs an interface.
    pub fn header(&mut self, out: &mut Vec<u8>) {
        self.processes.clear();
        self.described = 0;
        match self.format {
            FileFormat::PcapNg => {
                section(out);
                for at in 0..self.interfaces.len() {
                    self.describe(at, out);
                }
            }
            FileFormat::Pcap => {
                let Some(first) = self.interfaces.first() else {
                    return;
                };
                out.extend(PCAP_NANOSECONDS.to_le_bytes());
                // Version 2.4, and two fields that are 0 today.
                out.extend([2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                out.extend(self.snaplen.to_le_bytes());
                out.extend(u32::from(first.link_type).to_le_bytes());
            }
        }
    }

    fn describe(&self, at: usize, out: &mut Vec<u8>) {
        let Some(interface) = self.interfaces.get(at) else {
            return;
        };
        block(out, INTERFACE, |out| {
            out.extend(interface.link_type.to_le_bytes());
            out.extend([0, 0]);
            out.extend(self.snaplen.to_le_bytes());
            if !interface.name.is_empty() {
                option(out, INTERFACE_NAME, interface.name.as_bytes());
            }
            // 10^-9 seconds.
            option(out, INTERFACE_TIME_RESOLUTION, &[9]);
            if let Some(filter) = &self.filter {
                // The first byte says that it is in the language of libpcap.
                let mut value = vec![0];
                value.extend(filter.as_bytes());
                option(out, INTERFACE_FILTER, &value);
            }
            option(out, OPTION_END, &[]);
        });
    }

    /// How many bytes of a frame are written.
    #[inline]
    fn captured(&self, packet: &FrameToWrite<'_, '_>) -> u32 {
        let available: usize = packet.parts.iter().map(|part| part.len()).sum();
        self.snaplen
            .min(u32::try_from(available).unwrap_or(u32::MAX))
    }

    /// Appends a frame.
    #[inline]
    pub fn packet<'f>(
        &mut self,
        out: &mut Vec<u8>,
        packet: &FrameToWrite<'f, '_>,
        in_place: &mut InPlace<'f>,
    ) {
        let captured = self.captured(packet);
        let mut push = |out: &mut Vec<u8>| {
            let before = in_place.len();
            for part in cut(packet.parts, captured as usize) {
                in_place.push(out, part);
            }
            in_place.len() - before
        };
        let process = match self.format {
            FileFormat::PcapNg => packet.process.map(|process| self.process(process, out)),
            FileFormat::Pcap => None,
        };
        // A frame is at least as long as its captured part.
        let wire_len = packet.wire_len.max(captured);
        let at = u64::try_from(packet.at).unwrap_or(0);
        match self.format {
            FileFormat::PcapNg => block_around(out, ENHANCED_PACKET, |out| {
                let mut head = [0; 20];
                for (to, value) in head.chunks_exact_mut(4).zip([
                    packet.interface,
                    (at >> 32) as u32,
                    at as u32,
                    captured,
                    wire_len,
                ]) {
                    to.copy_from_slice(&value.to_le_bytes());
                }
                out.extend_from_slice(&head);
                let elsewhere = push(out);
                pad(out, captured as usize);
                let flags = match packet.direction {
                    Some(Direction::Ingress) => 1,
                    Some(Direction::Egress) => 2,
                    None => 0_u32,
                };
                if flags != 0 {
                    option(out, PACKET_FLAGS, &flags.to_le_bytes());
                }
                if let Some(process) = process {
                    option(out, PACKET_PROCESS, &process.to_le_bytes());
                }
                if let Some(comment) = packet.comment {
                    option(out, OPTION_COMMENT, comment.as_bytes());
                }
                if flags != 0 || process.is_some() || packet.comment.is_some() {
                    option(out, OPTION_END, &[]);
                }
                elsewhere
            }),
            FileFormat::Pcap => {
                for value in [
                    (at / NS_PER_S) as u32,
                    (at % NS_PER_S) as u32,
                    captured,
                    wire_len,
                ] {
                    out.extend_from_slice(&value.to_le_bytes());
                }
                push(out);
            }
        }
        if let Some(delivered) = self.delivered.get_mut(packet.interface as usize) {
            *delivered += 1;
        }
    }

    /// The number of a process in this file, which is described now if it was not before.
    fn process(&mut self, process: Process<'_>, out: &mut Vec<u8>) -> u32 {
        if let Some((comm, number)) = self.processes.get(&process.pid)
            && comm == process.comm
        {
            return *number;
        }
        let number = self.described;
        self.described += 1;
        self.processes
            .insert(process.pid, (process.comm.to_vec(), number));
        block(out, PROCESS, |out| {
            out.extend(process.pid.to_le_bytes());
            let name = String::from_utf8_lossy(process.comm);
            option(out, PROCESS_NAME, name.as_bytes());
            option(out, OPTION_END, &[]);
        });
        number
    }

    /// Appends the statistics of each interface; nothing for pcap, which has no place for them.
    /// `started` and `now` are nanoseconds of UNIX time.
    pub fn statistics(&self, out: &mut Vec<u8>, started: i64, now: i64, all: &[Statistics]) {
        if self.format == FileFormat::Pcap {
            return;
        }
        let time = |at: i64| {
            let at = u64::try_from(at).unwrap_or(0);
            let [high, low] = [(at >> 32) as u32, at as u32];
            [high.to_le_bytes(), low.to_le_bytes()].concat()
        };
        let delivered = self.delivered.iter().copied();
        for (at, (statistics, delivered)) in (0_u32..).zip(all.iter().zip(delivered)) {
            block(out, STATISTICS, |out| {
                out.extend(at.to_le_bytes());
                out.extend(time(now));
                option(out, STATISTICS_START, &time(started));
                option(out, STATISTICS_END, &time(now));
                for (code, value) in [
                    (STATISTICS_RECEIVED, statistics.received),
                    // Wireshark shows this one, and dumpcap also writes its losses here.
                    (STATISTICS_DROPPED, statistics.lost),
                    (STATISTICS_ACCEPTED, statistics.matched),
                    (STATISTICS_DROPPED_BY_OS, statistics.lost),
                    (STATISTICS_DELIVERED, delivered),
                ] {
                    option(out, code, &value.to_le_bytes());
                }
                option(out, OPTION_END, &[]);
            });
        }
    }

    /// Whether the format has a place for processes.
    pub fn names_processes(&self) -> bool {
        self.format == FileFormat::PcapNg
    }

    /// Whether all interfaces fit into one file.
    pub fn fits(&self) -> bool {
        let types = self.interfaces.iter().map(|interface| interface.link_type);
        self.format == FileFormat::PcapNg || types.clone().min() == types.max()
    }
}

/// Appends the header of a section.
fn section(out: &mut Vec<u8>) {
    block(out, SECTION, |out| {
        out.extend(BYTE_ORDER_MAGIC.to_le_bytes());
        // Version 1.0. The length of the section is not given.
        out.extend([1, 0, 0, 0]);
        out.extend(u64::MAX.to_le_bytes());
        if let Ok(system) = uname() {
            let (name, release) = (system.sysname(), system.release());
            let text = format!("{} {}", name.display(), release.display());
            option(out, SECTION_OS, text.as_bytes());
        }
        let application = concat!("tcpinspect ", env!("CARGO_PKG_VERSION"));
        option(out, SECTION_APPLICATION, application.as_bytes());
        option(out, OPTION_END, &[]);
    });
}

/// The first `captured` bytes of the pieces of a frame.
#[inline]
fn cut(parts: [&[u8]; 4], captured: usize) -> [&[u8]; 4] {
    let mut left = captured;
    parts.map(|part| {
        let len = part.len().min(left);
        left -= len;
        &part[..len]
    })
}

/// Appends a block with this body.
#[inline]
fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    block_around(out, kind, |out| {
        body(out);
        0
    });
}

/// Appends a block. `body` returns how many bytes of it are elsewhere than in `out`.
#[inline]
fn block_around(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>) -> usize) {
    let start = out.len();
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    let elsewhere = body(out);
    let len = (out.len() - start + elsewhere + 4) as u32;
    out.extend_from_slice(&len.to_le_bytes());
    if let Some(place) = out.get_mut(start + 4..start + 8) {
        place.copy_from_slice(&len.to_le_bytes());
    }
}

/// Appends an option. A value that is too long is cut.
fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(OPTION_MAX)];
    out.extend_from_slice(&code.to_le_bytes());
    out.extend_from_slice(&(value.len() as u16).to_le_bytes());
    out.extend_from_slice(value);
    pad(out, value.len());
}

/// Appends zeros up to a multiple of four bytes.
#[inline]
fn pad(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&[0; 3][..len.next_multiple_of(4) - len]);
}
