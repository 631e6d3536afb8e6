//! A plain reader of pcap and pcapng, apart from the product's own.
//!
//! It takes a whole file as bytes and gives back what it holds up to the first malformed record.
//! Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng.

/// One captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// LINKTYPE_ number as the file gives it.
    pub link_type: u32,
    /// Nanoseconds since 1970; 0 where the format has no timestamp. Wide enough that no
    /// resolution or offset that a file can state overflows it.
    pub ts_ns: i128,
    pub bytes: &'a [u8],
    /// Bytes that the frame had on the wire, as the file gives it.
    pub original_len: u32,
}

/// The records before the end, and whether that was the end of the file or a malformed record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capture<'a> {
    pub records: Vec<Record<'a>>,
    /// The description begins with the offset of the malformed record.
    pub end: Result<(), String>,
}

const PCAP_MICROSECONDS: u32 = 0xa1b2_c3d4;
const PCAP_NANOSECONDS: u32 = 0xa1b2_3c4d;
const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE: u32 = 1;
const OLD_PACKET: u32 = 2;
const SIMPLE_PACKET: u32 = 3;
const ENHANCED_PACKET: u32 = 6;

const NS_PER_SECOND: i128 = 1_000_000_000;

/// Reads a pcap or pcapng file.
pub fn read(file: &[u8]) -> Capture<'_> {
    let mut records = Vec::new();
    let end = match Cursor::new(file, false).u32() {
        Ok(SECTION_HEADER) => read_pcapng(file, &mut records),
        _ => read_pcap(file, &mut records),
    };
    Capture { records, end }
}

/// Walks over bytes in one of the two byte orders.
#[derive(Clone)]
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    big_endian: bool,
}

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8], big_endian: bool) -> Self {
        Self {
            bytes,
            at: 0,
            big_endian,
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let rest = &self.bytes[self.at..];
        if count > rest.len() {
            return Err(format!("{count} bytes wanted, {} are left", rest.len()));
        }
        self.at += count;
        Ok(&rest[..count])
    }

    fn u16(&mut self) -> Result<u16, String> {
        let bytes = self.take(2)?.try_into().expect("two bytes");
        Ok(if self.big_endian {
            u16::from_be_bytes(bytes)
        } else {
            u16::from_le_bytes(bytes)
        })
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?.try_into().expect("four bytes");
        Ok(if self.big_endian {
            u32::from_be_bytes(bytes)
        } else {
            u32::from_le_bytes(bytes)
        })
    }

    fn at_end(&self) -> bool {
        self.at == self.bytes.len()
    }
}

fn read_pcap<'a>(file: &'a [u8], records: &mut Vec<Record<'a>>) -> Result<(), String> {
    let at_start = |err| format!("offset 0: {err}");
    let mut file = Cursor::new(file, false);
    let magic = file.u32().map_err(at_start)?;
    file.big_endian = matches!(magic.swap_bytes(), PCAP_MICROSECONDS | PCAP_NANOSECONDS);
    let ns_per_fraction = match (magic, magic.swap_bytes()) {
        (PCAP_MICROSECONDS, _) | (_, PCAP_MICROSECONDS) => 1000,
        (PCAP_NANOSECONDS, _) | (_, PCAP_NANOSECONDS) => 1,
        _ => return Err(format!("offset 0: magic {magic:#010x} is unknown")),
    };
    // Two version numbers, a time zone and an accuracy, which are not used, and the snapshot length.
    file.take(2 + 2 + 4 + 4 + 4).map_err(at_start)?;
    // The upper bits describe the frame check sequence.
    let link_type = file.u32().map_err(at_start)? & 0xffff;

    while !file.at_end() {
        let start = file.at;
        let record = pcap_record(&mut file, link_type, ns_per_fraction);
        records.push(record.map_err(|err| format!("offset {start}: {err}"))?);
    }
    Ok(())
}

fn pcap_record<'a>(
    file: &mut Cursor<'a>,
    link_type: u32,
    ns_per_fraction: i128,
) -> Result<Record<'a>, String> {
    let seconds = i128::from(file.u32()?);
    let fraction = i128::from(file.u32()?);
    let captured_len = file.u32()?;
    let original_len = file.u32()?;
    Ok(Record {
        link_type,
        ts_ns: seconds * NS_PER_SECOND + fraction * ns_per_fraction,
        bytes: file.take(captured_len as usize)?,
        original_len,
    })
}

/// An Interface Description Block. Interfaces are numbered from 0 in each section.
struct Interface {
    link_type: u32,
    /// 0 is no limit.
    snap_len: u32,
    /// The if_tsresol byte.
    resolution: u8,
    offset_s: i64,
}

impl Interface {
    /// Nanoseconds of a timestamp of this interface.
    fn ts_ns(&self, high: u32, low: u32) -> i128 {
        let ticks = (i128::from(high) << 32 | i128::from(low)) * NS_PER_SECOND;
        let exponent = u32::from(self.resolution & 0x7f);
        let ns = match self.resolution & 0x80 {
            // If the power overflows, every timestamp is shorter than a nanosecond.
            0 => 10_i128.checked_pow(exponent).map_or(0, |unit| ticks / unit),
            _ => ticks >> exponent,
        };
        ns + i128::from(self.offset_s) * NS_PER_SECOND
    }
}

fn read_pcapng<'a>(file: &'a [u8], records: &mut Vec<Record<'a>>) -> Result<(), String> {
    let mut file = Cursor::new(file, false);
    let mut interfaces = Vec::new();
    while !file.at_end() {
        let start = file.at;
        let record = pcapng_block(&mut file, &mut interfaces);
        let record = record.map_err(|err| format!("offset {start}: {err}"))?;
        records.extend(record);
    }
    Ok(())
}

/// Reads one block, which may describe an interface, hold a frame, or be neither.
fn pcapng_block<'a>(
    file: &mut Cursor<'a>,
    interfaces: &mut Vec<Interface>,
) -> Result<Option<Record<'a>>, String> {
    let kind = file.u32()?;
    if kind == SECTION_HEADER {
        // The header of a section gives its byte order, after the length.
        let mut ahead = file.clone();
        ahead.take(4)?;
        ahead.big_endian = false;
        file.big_endian = match ahead.u32()? {
            BYTE_ORDER => false,
            order if order.swap_bytes() == BYTE_ORDER => true,
            order => return Err(format!("byte-order magic {order:#010x} is unknown")),
        };
    }
    let length = file.u32()?;
    if length < 12 || !length.is_multiple_of(4) {
        return Err(format!("a block can't have {length} bytes"));
    }
    let mut body = Cursor::new(file.take(length as usize - 12)?, file.big_endian);
    let length_again = file.u32()?;
    if length != length_again {
        return Err(format!("block lengths {length} and {length_again} differ"));
    }
    match kind {
        SECTION_HEADER => {
            section_header(&mut body)?;
            interfaces.clear();
            Ok(None)
        }
        INTERFACE => {
            interfaces.push(interface(&mut body)?);
            Ok(None)
        }
        ENHANCED_PACKET => {
            let number = body.u32()?;
            packet(&mut body, interfaces, number).map(Some)
        }
        OLD_PACKET => {
            let number = u32::from(body.u16()?);
            body.take(2)?;
            packet(&mut body, interfaces, number).map(Some)
        }
        SIMPLE_PACKET => simple_packet(&mut body, interfaces).map(Some),
        _ => Ok(None),
    }
}

fn section_header(body: &mut Cursor) -> Result<(), String> {
    body.take(4)?;
    match (body.u16()?, body.u16()?) {
        // Version 1.2 is 1.0 under another name.
        (1, 0 | 2) => {}
        (major, minor) => return Err(format!("pcapng version {major}.{minor} is unknown")),
    }
    body.take(8)?;
    Ok(())
}

fn interface(body: &mut Cursor) -> Result<Interface, String> {
    let mut interface = Interface {
        link_type: u32::from(body.u16()?),
        snap_len: {
            body.take(2)?;
            body.u32()?
        },
        resolution: 6,
        offset_s: 0,
    };
    while !body.at_end() {
        let code = body.u16()?;
        let length = usize::from(body.u16()?);
        if code == 0 {
            break;
        }
        let mut value = Cursor::new(body.take(length)?, body.big_endian);
        body.take(length.next_multiple_of(4) - length)?;
        match code {
            9 => {
                let [resolution] = value.bytes else {
                    return Err(format!("if_tsresol can't have {length} bytes"));
                };
                interface.resolution = *resolution;
            }
            14 => {
                if length != 8 {
                    return Err(format!("if_tsoffset can't have {length} bytes"));
                }
                let (first, second) = (value.u32()?, value.u32()?);
                let (high, low) = if value.big_endian {
                    (first, second)
                } else {
                    (second, first)
                };
                interface.offset_s = (u64::from(high) << 32 | u64::from(low)).cast_signed();
            }
            _ => {}
        }
    }
    Ok(interface)
}

/// The part that Enhanced and old Packet Blocks share: everything after the interface's number.
fn packet<'a>(
    body: &mut Cursor<'a>,
    interfaces: &[Interface],
    number: u32,
) -> Result<Record<'a>, String> {
    let interface = described(interfaces, number)?;
    let (high, low) = (body.u32()?, body.u32()?);
    let captured_len = body.u32()?;
    let original_len = body.u32()?;
    Ok(Record {
        link_type: interface.link_type,
        ts_ns: interface.ts_ns(high, low),
        bytes: body.take(captured_len as usize)?,
        original_len,
    })
}

/// A simple packet has neither a timestamp nor a captured length: the latter is what interface 0
/// would have let through.
fn simple_packet<'a>(
    body: &mut Cursor<'a>,
    interfaces: &[Interface],
) -> Result<Record<'a>, String> {
    let interface = described(interfaces, 0)?;
    let original_len = body.u32()?;
    let captured_len = match interface.snap_len {
        0 => original_len,
        limit => original_len.min(limit),
    };
    Ok(Record {
        link_type: interface.link_type,
        ts_ns: 0,
        bytes: body.take(captured_len as usize)?,
        original_len,
    })
}

fn described(interfaces: &[Interface], number: u32) -> Result<&Interface, String> {
    interfaces
        .get(number as usize)
        .ok_or_else(|| format!("interface {number} is not described"))
}
