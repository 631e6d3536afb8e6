//! Writes capture files for tests: pcap and pcapng in either byte order, block by block, so that
//! odd but legal files can be made. Broken ones are made by damaging what this writes.

use std::io::{self, Write};

/// The byte order of a file or section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Little,
    Big,
}

impl Order {
    fn u16(self, value: u16) -> [u8; 2] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }

    fn u32(self, value: u32) -> [u8; 4] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }

    fn u64(self, value: u64) -> [u8; 8] {
        match self {
            Self::Little => value.to_le_bytes(),
            Self::Big => value.to_be_bytes(),
        }
    }
}

/// The fraction of a second that a pcap file counts in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Microseconds,
    Nanoseconds,
}

/// A frame to be written.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// Nanoseconds since 1970; what the file's unit can't hold is cut off.
    pub ts_ns: u64,
    pub bytes: &'a [u8],
    /// More than `bytes.len()` for a frame that was cut by the snapshot length.
    pub original_len: u32,
}

impl<'a> Frame<'a> {
    /// A frame that was captured whole.
    pub fn whole(ts_ns: u64, bytes: &'a [u8]) -> Self {
        Self {
            ts_ns,
            bytes,
            original_len: length(bytes),
        }
    }
}

fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a frame is shorter than 4 GiB")
}

/// A pcap file that is being written.
pub struct Pcap<W: Write> {
    out: W,
    order: Order,
    unit: Unit,
}

impl<W: Write> Pcap<W> {
    /// Writes the file header.
    ///
    /// # Errors
    /// Those of `out`, here and below.
    pub fn new(mut out: W, order: Order, unit: Unit, link_type: u32) -> io::Result<Self> {
        let magic = match unit {
            Unit::Microseconds => 0xa1b2_c3d4,
            Unit::Nanoseconds => 0xa1b2_3c4d,
        };
        out.write_all(&order.u32(magic))?;
        out.write_all(&order.u16(2))?;
        out.write_all(&order.u16(4))?;
        // No time zone, no accuracy, and the largest snapshot length that libpcap takes.
        for value in [0, 0, 262_144, link_type] {
            out.write_all(&order.u32(value))?;
        }
        Ok(Self { out, order, unit })
    }

    pub fn frame(&mut self, frame: Frame) -> io::Result<()> {
        let (seconds, ns) = (frame.ts_ns / 1_000_000_000, frame.ts_ns % 1_000_000_000);
        let fraction = match self.unit {
            Unit::Microseconds => ns / 1000,
            Unit::Nanoseconds => ns,
        };
        for value in [
            u32::try_from(seconds).expect("a time before 2106"),
            u32::try_from(fraction).expect("less than a second"),
            length(frame.bytes),
            frame.original_len,
        ] {
            self.out.write_all(&self.order.u32(value))?;
        }
        self.out.write_all(frame.bytes)
    }

    /// Flushes `out`.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    pub fn finish(self) -> W {
        self.out
    }
}

/// A whole pcap file with frames of one link type, each with its time in nanoseconds since 1970.
pub fn timed(link_type: u16, frames: impl IntoIterator<Item = (u64, impl AsRef<[u8]>)>) -> Vec<u8> {
    let (order, unit) = (Order::Little, Unit::Nanoseconds);
    let mut file = Pcap::new(Vec::new(), order, unit, link_type.into()).expect("to memory");
    for (ts_ns, bytes) in frames {
        let frame = Frame::whole(ts_ns, bytes.as_ref());
        file.frame(frame).expect("to memory");
    }
    file.finish()
}

/// The same with frames a second apart.
pub fn pcap(link_type: u16, frames: &[Vec<u8>]) -> Vec<u8> {
    let seconds = (1..).map(|second: u64| second * 1_000_000_000);
    timed(link_type, seconds.zip(frames))
}

/// A block of a pcapng file, padded to 32 bits.
pub fn block(order: Order, kind: u32, body: &[u8]) -> Vec<u8> {
    let padding = &[0; 3][..body.len().next_multiple_of(4) - body.len()];
    let total = order.u32(length(body).next_multiple_of(4) + 12);
    [&order.u32(kind)[..], &total, body, padding, &total].concat()
}

/// A pcapng file that is being written. Interfaces are numbered from 0 in each section.
pub struct PcapNg<W: Write> {
    out: W,
    order: Order,
}

impl<W: Write> PcapNg<W> {
    /// Writes the first section header.
    ///
    /// # Errors
    /// Those of `out`, here and below.
    pub fn new(out: W, order: Order) -> io::Result<Self> {
        let mut file = Self { out, order };
        file.section(order)?;
        Ok(file)
    }

    /// Begins a section, possibly in another byte order, without interfaces.
    pub fn section(&mut self, order: Order) -> io::Result<()> {
        self.order = order;
        let mut body = order.u32(0x1a2b_3c4d).to_vec();
        body.extend(order.u16(1));
        body.extend(order.u16(0));
        // The section's length is not stated.
        body.extend(order.u64(u64::MAX));
        self.block(0x0a0d_0d0a, &body)
    }

    /// Describes an interface. `resolution` is the if_tsresol byte; without it, timestamps count
    /// microseconds.
    pub fn interface(
        &mut self,
        link_type: u16,
        snap_len: u32,
        resolution: Option<u8>,
    ) -> io::Result<()> {
        let mut body = self.order.u16(link_type).to_vec();
        body.extend(self.order.u16(0));
        body.extend(self.order.u32(snap_len));
        if let Some(resolution) = resolution {
            body.extend(self.order.u16(9));
            body.extend(self.order.u16(1));
            body.extend([resolution, 0, 0, 0]);
            body.extend([0; 4]);
        }
        self.block(1, &body)
    }

    /// Writes an enhanced packet block; `ticks` count in the interface's resolution.
    pub fn enhanced(
        &mut self,
        interface: u32,
        ticks: u64,
        bytes: &[u8],
        original_len: u32,
    ) -> io::Result<()> {
        let body = self.order.u32(interface).to_vec();
        self.packet(6, body, ticks, bytes, original_len)
    }

    /// Writes a packet block of the obsolete kind.
    pub fn old(
        &mut self,
        interface: u16,
        ticks: u64,
        bytes: &[u8],
        original_len: u32,
    ) -> io::Result<()> {
        let mut body = self.order.u16(interface).to_vec();
        body.extend(self.order.u16(0));
        self.packet(2, body, ticks, bytes, original_len)
    }

    /// Writes a simple packet block; the caller cuts `bytes` to the snapshot length.
    pub fn simple(&mut self, bytes: &[u8], original_len: u32) -> io::Result<()> {
        let mut body = self.order.u32(original_len).to_vec();
        body.extend(bytes);
        self.block(3, &body)
    }

    fn packet(
        &mut self,
        kind: u32,
        mut body: Vec<u8>,
        ticks: u64,
        bytes: &[u8],
        original_len: u32,
    ) -> io::Result<()> {
        let (high, low) = ((ticks >> 32) as u32, ticks as u32);
        for value in [high, low, length(bytes), original_len] {
            body.extend(self.order.u32(value));
        }
        body.extend(bytes);
        self.block(kind, &body)
    }

    /// Writes any block, padded to 32 bits.
    pub fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        self.out.write_all(&block(self.order, kind, body))
    }

    pub fn finish(self) -> W {
        self.out
    }
}
