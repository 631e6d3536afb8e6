//! The pcap format: one header, then records.

use super::error::Fault;
use super::input::Input;
use super::link_type::Framing;
use super::numbers::{PCAP_KUZNETZOV, PCAP_MICROSECONDS, PCAP_NANOSECONDS};
use super::{MAX_FRAME, Order, Record, Step};

const FILE_HEADER: usize = 24;

/// A link type is followed by the length of the frame check sequence and by
/// reserved bits; libpcap's `LT_LINKTYPE` masks them alike.
const LINK_TYPE_MASK: u32 = 0x03ff_ffff;

/// The file header: how to read the records.
pub(super) struct Pcap {
    order: Order,
    /// Nanoseconds in a unit of the timestamp's fraction.
    fraction_ns: i64,
    /// Length of a record's header in bytes.
    record_header: usize,
    version_minor: u16,
    framing: Framing,
}

impl Pcap {
    /// Reads the file's header.
    pub(super) fn open(input: &mut Input) -> Result<Self, Fault> {
        let header = input.fill(FILE_HEADER)?;
        let found = Order::find(|order| match order.u32(header, 0)? {
            PCAP_MICROSECONDS => Some((order, 1000, 16)),
            PCAP_NANOSECONDS => Some((order, 1, 16)),
            PCAP_KUZNETZOV => Some((order, 1000, 24)),
            _ => None,
        });
        let (order, fraction_ns, record_header) = found.ok_or(Fault::NotACapture)?;
        let (Some(version_major), Some(version_minor), Some(link_type)) = (
            order.u16(header, 4),
            order.u16(header, 6),
            order.u32(header, 20),
        ) else {
            return Err(Fault::Cut {
                have: header.len() as u64,
                need: FILE_HEADER as u64,
            });
        };
        if version_major != 2 || version_minor > 4 {
            return Err(Fault::Malformed(format!(
                "pcap version {version_major}.{version_minor} is not supported"
            )));
        }
        let link_type = link_type & LINK_TYPE_MASK;
        let framing = Framing::of(link_type).ok_or(Fault::FileLinkType(link_type))?;
        input.consume(FILE_HEADER);
        Ok(Self {
            order,
            fraction_ns,
            record_header,
            version_minor,
            framing,
        })
    }

    /// Reads one record.
    pub(super) fn step(&self, input: &mut Input) -> Result<Step, Fault> {
        let header = input.fill(self.record_header)?;
        if header.is_empty() {
            return Ok(Step::End);
        }
        let cut = |have: usize, need: usize| Fault::Cut {
            have: have as u64,
            need: need as u64,
        };
        if header.len() < self.record_header {
            return Err(cut(header.len(), self.record_header));
        }
        let (Some(seconds), Some(fraction), Some(mut captured), Some(mut original)) = (
            self.order.u32(header, 0),
            self.order.u32(header, 4),
            self.order.u32(header, 8),
            self.order.u32(header, 12),
        ) else {
            return Err(cut(header.len(), self.record_header));
        };
        // Before version 2.3 the two lengths were the other way round, and in
        // 2.3 it depends on who wrote the file; libpcap decides the same way.
        if self.version_minor < 3 || (self.version_minor == 3 && captured > original) {
            std::mem::swap(&mut captured, &mut original);
        }
        if captured > MAX_FRAME {
            return Err(Fault::TooLong {
                what: "captured length",
                length: captured.into(),
                limit: MAX_FRAME.into(),
            });
        }
        let length = self.record_header + captured as usize;
        let have = input.fill(length)?.len();
        if have < length {
            return Err(cut(have, length));
        }
        let begin = input.consume(length);
        // Neither the product nor the sum can overflow: both factors have 32
        // bits at most, and 2^32 seconds are half of what an i64 holds.
        let ts_ns = i64::from(seconds) * 1_000_000_000 + i64::from(fraction) * self.fraction_ns;
        Ok(Step::Frame(Record {
            data: begin + self.record_header..begin + length,
            ts_ns: Some(ts_ns),
            wire_len: original,
            framing: self.framing,
        }))
    }
}
