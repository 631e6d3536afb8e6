//! The pcapng format: sections of blocks, each block framed by its length.

use super::error::Fault;
use super::input::Input;
use super::link_type::Framing;
use super::numbers::*;
use super::{MAX_FRAME, Order, Record, Step};

/// The type and length in front of a block's body.
const BLOCK_HEADER: usize = 8;
/// The length, repeated at the end.
const BLOCK_TRAILER: usize = 4;
const BLOCK_MIN: usize = BLOCK_HEADER + BLOCK_TRAILER;
/// Where the bytes of the frame begin in the body of an enhanced and an old
/// packet block, and of a simple one.
const PACKET_DATA: usize = 20;
const SIMPLE_PACKET_DATA: usize = 4;

/// The longest block that is parsed, in bytes: a frame of full length and
/// three times as much for its options. Other blocks are skipped, however long
/// they are.
const MAX_BLOCK: u32 = 1024 * 1024;
/// How many interfaces a section can describe, so that a file that has nothing
/// else doesn't fill the memory.
const MAX_INTERFACES: usize = 65_536;

/// The state of the current section.
pub(super) struct PcapNg {
    order: Order,
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy)]
struct Interface {
    link_type: u16,
    /// The longest capture in bytes, 0 if there is no limit.
    snap_len: u32,
    clock: Clock,
}

/// How an interface counts time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Clock {
    /// `if_tsresol`: negative power of ten, or of two if the top bit is set.
    resolution: u8,
    /// `if_tsoffset`: what to add, in seconds.
    offset: i64,
}

impl PcapNg {
    pub(super) fn new() -> Self {
        Self {
            // The section header, always the first block, gives the real one.
            order: Order::Little,
            interfaces: Vec::new(),
        }
    }

    /// Reads one block.
    pub(super) fn step(&mut self, input: &mut Input) -> Result<Step, Fault> {
        let head = input.fill(BLOCK_MIN)?;
        if head.is_empty() {
            return Ok(Step::End);
        }
        let is_section = head.starts_with(&SECTION.to_le_bytes());
        if is_section && head.len() >= BLOCK_MIN {
            let order =
                Order::find(|order| (order.u32(head, 8)? == BYTE_ORDER_MAGIC).then_some(order));
            self.order =
                order.ok_or_else(|| malformed("section without a valid byte-order magic"))?;
        }
        let (Some(block_type), Some(length), true) = (
            self.order.u32(head, 0),
            self.order.u32(head, 4),
            head.len() >= BLOCK_MIN,
        ) else {
            return Err(Fault::Cut {
                have: head.len() as u64,
                need: BLOCK_MIN as u64,
            });
        };
        if (length as usize) < BLOCK_MIN || length % 4 != 0 {
            return Err(Fault::Malformed(format!(
                "block length {length} is under {BLOCK_MIN} or not a multiple of 4"
            )));
        }
        if is_section {
            let body = self.body(input, length)?;
            self.section(body)?;
        } else {
            match block_type {
                INTERFACE => {
                    let body = self.body(input, length)?;
                    self.interface(body)?;
                }
                ENHANCED_PACKET | OLD_PACKET | SIMPLE_PACKET => {
                    let body = self.body(input, length)?;
                    let packet = match block_type {
                        SIMPLE_PACKET => self.simple_packet(body)?,
                        ENHANCED_PACKET => self.packet(body, self.order.u32(body, 0))?,
                        _ => self.packet(body, self.order.u16(body, 0).map(u32::from))?,
                    };
                    let body_at = input.consume(length as usize) + BLOCK_HEADER;
                    let data = body_at + packet.data_at;
                    return Ok(Step::Frame(Record {
                        data: data..data + packet.captured as usize,
                        ts_ns: packet.ts_ns,
                        wire_len: packet.original,
                        framing: packet.framing,
                    }));
                }
                _ => return self.skip(input, length),
            }
        }
        input.consume(length as usize);
        Ok(Step::Other)
    }

    /// Reads a whole block, and returns the body between its two lengths.
    fn body<'a>(&self, input: &'a mut Input, length: u32) -> Result<&'a [u8], Fault> {
        if length > MAX_BLOCK {
            return Err(Fault::TooLong {
                what: "block length",
                length: length.into(),
                limit: MAX_BLOCK.into(),
            });
        }
        let block = input.fill(length as usize)?;
        let trailer = length as usize - BLOCK_TRAILER;
        let Some(end) = self.order.u32(block, trailer) else {
            return Err(Fault::Cut {
                have: block.len() as u64,
                need: length.into(),
            });
        };
        check_trailer(length, end)?;
        Ok(block.get(BLOCK_HEADER..trailer).unwrap_or_default())
    }

    /// Skips a block of a type that says nothing about frames.
    fn skip(&self, input: &mut Input, length: u32) -> Result<Step, Fault> {
        let mut have = input.skip(u64::from(length) - BLOCK_TRAILER as u64)?;
        let trailer = input.fill(BLOCK_TRAILER)?;
        let Some(end) = self.order.u32(trailer, 0) else {
            have += trailer.len() as u64;
            return Err(Fault::Cut {
                have,
                need: length.into(),
            });
        };
        check_trailer(length, end)?;
        input.consume(BLOCK_TRAILER);
        Ok(Step::Other)
    }

    /// A Section Header Block: the numbers of interfaces start again here.
    fn section(&mut self, body: &[u8]) -> Result<(), Fault> {
        let (Some(major), Some(minor), Some(_section_length)) = (
            self.order.u16(body, 4),
            self.order.u16(body, 6),
            body.get(8..16),
        ) else {
            return Err(malformed("section header is too short"));
        };
        if major != 1 {
            return Err(Fault::Malformed(format!(
                "pcapng version {major}.{minor} is not supported"
            )));
        }
        self.interfaces.clear();
        Ok(())
    }

    /// An Interface Description Block.
    fn interface(&mut self, body: &[u8]) -> Result<(), Fault> {
        let (Some(link_type), Some(snap_len), Some(options)) = (
            self.order.u16(body, 0),
            self.order.u32(body, 4),
            body.get(8..),
        ) else {
            return Err(malformed("interface description is too short"));
        };
        if self.interfaces.len() >= MAX_INTERFACES {
            return Err(Fault::Malformed(format!(
                "section describes more than {MAX_INTERFACES} interfaces"
            )));
        }
        let clock = Clock::from_options(self.order, options)?;
        self.interfaces.push(Interface {
            link_type,
            snap_len,
            clock,
        });
        Ok(())
    }

    /// An Enhanced Packet Block, or an old Packet Block, which differs in how
    /// it gives the number of its interface.
    fn packet(&self, body: &[u8], interface: Option<u32>) -> Result<Packet, Fault> {
        let (
            Some(interface),
            Some(ts_high),
            Some(ts_low),
            Some(captured),
            Some(original),
            Some(data),
        ) = (
            interface,
            self.order.u32(body, 4),
            self.order.u32(body, 8),
            self.order.u32(body, 12),
            self.order.u32(body, 16),
            body.get(PACKET_DATA..),
        )
        else {
            return Err(malformed("packet block is too short"));
        };
        check_captured(captured, data)?;
        let interface = self.find(interface)?;
        let ts = u64::from(ts_high) << 32 | u64::from(ts_low);
        Ok(Packet {
            data_at: PACKET_DATA,
            captured,
            original,
            ts_ns: Some(interface.clock.unix_ns(ts)),
            framing: interface.framing()?,
        })
    }

    /// A Simple Packet Block: it is of the first interface, has no timestamp,
    /// and its captured length follows from the other lengths.
    fn simple_packet(&self, body: &[u8]) -> Result<Packet, Fault> {
        let (Some(original), Some(data)) =
            (self.order.u32(body, 0), body.get(SIMPLE_PACKET_DATA..))
        else {
            return Err(malformed("packet block is too short"));
        };
        let interface = self.find(0)?;
        let captured = match interface.snap_len {
            0 => original,
            limit => original.min(limit),
        };
        check_captured(captured, data)?;
        Ok(Packet {
            data_at: SIMPLE_PACKET_DATA,
            captured,
            original,
            ts_ns: None,
            framing: interface.framing()?,
        })
    }

    fn find(&self, number: u32) -> Result<&Interface, Fault> {
        self.interfaces.get(number as usize).ok_or_else(|| {
            Fault::Malformed(format!(
                "interface {number} is not described: the section has {}",
                self.interfaces.len()
            ))
        })
    }
}

/// The content of a packet block of any type.
struct Packet {
    /// Where the frame begins in the block's body.
    data_at: usize,
    captured: u32,
    original: u32,
    ts_ns: Option<i64>,
    framing: Framing,
}

impl Interface {
    fn framing(&self) -> Result<Framing, Fault> {
        let link_type = u32::from(self.link_type);
        Framing::of(link_type).ok_or(Fault::FrameLinkType(link_type))
    }
}

impl Clock {
    /// Reads the options of an interface description. All of them must be
    /// valid: with the wrong resolution every time would be wrong.
    fn from_options(order: Order, mut options: &[u8]) -> Result<Self, Fault> {
        let mut clock = Self {
            resolution: 6,
            offset: 0,
        };
        while !options.is_empty() {
            let (Some(code), Some(length)) = (order.u16(options, 0), order.u16(options, 2)) else {
                return Err(malformed("interface option is cut short"));
            };
            if code == OPTION_END {
                break;
            }
            let length = usize::from(length);
            let Some(value) = options.get(4..4 + length) else {
                return Err(Fault::Malformed(format!(
                    "interface option {code} of {length} bytes runs past the end of its block"
                )));
            };
            match (code, value) {
                (INTERFACE_TIME_RESOLUTION, &[resolution]) => clock.resolution = resolution,
                (INTERFACE_TIME_OFFSET, &[a, b, c, d, e, f, g, h]) => {
                    let bytes = [a, b, c, d, e, f, g, h];
                    clock.offset = match order {
                        Order::Little => i64::from_le_bytes(bytes),
                        Order::Big => i64::from_be_bytes(bytes),
                    };
                }
                (INTERFACE_TIME_RESOLUTION | INTERFACE_TIME_OFFSET, _) => {
                    return Err(Fault::Malformed(format!(
                        "interface option {code} has {length} bytes"
                    )));
                }
                _ => {}
            }
            let padded = 4 + length.next_multiple_of(4);
            options = options.get(padded..).unwrap_or_default();
        }
        Ok(clock)
    }

    /// A timestamp as nanoseconds of UNIX time, saturated.
    fn unix_ns(self, ts: u64) -> i64 {
        let exponent = u32::from(self.resolution & 0x7f);
        // Below 2^64 * 10^9, so that 128 bits are enough.
        let ts = i128::from(ts);
        let since_offset = if self.resolution & 0x80 != 0 {
            (ts * 1_000_000_000) >> exponent
        } else if exponent <= 9 {
            ts * 10_i128.pow(9 - exponent)
        } else {
            // A divisor that 128 bits don't hold is far greater than any
            // timestamp of 64.
            10_i128
                .checked_pow(exponent - 9)
                .map_or(0, |divisor| ts / divisor)
        };
        let ns = since_offset + i128::from(self.offset) * 1_000_000_000;
        i64::try_from(ns).unwrap_or(if ns < 0 { i64::MIN } else { i64::MAX })
    }
}

fn check_trailer(length: u32, end: u32) -> Result<(), Fault> {
    if length == end {
        return Ok(());
    }
    Err(Fault::Malformed(format!(
        "block length is {length} at its start and {end} at its end"
    )))
}

fn check_captured(captured: u32, data: &[u8]) -> Result<(), Fault> {
    if captured > MAX_FRAME {
        return Err(Fault::TooLong {
            what: "captured length",
            length: captured.into(),
            limit: MAX_FRAME.into(),
        });
    }
    if captured as usize > data.len() {
        return Err(Fault::Malformed(format!(
            "captured length {captured} is over the {} bytes that the block has for it",
            data.len()
        )));
    }
    Ok(())
}

fn malformed(what: &str) -> Fault {
    Fault::Malformed(what.to_owned())
}
