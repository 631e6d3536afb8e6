//! Capture files of frames that differ from those of [`syn`] in flags and source.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::Result;

use crate::pcap_write::{Frame, Order, Pcap, Unit};
use crate::world::syn;

/// Offsets in a frame of [`syn`]: of the flags, of the source port, and of the last three bytes of the
/// source address.
pub const FLAGS: usize = 47;
pub const SPORT: usize = 34;
pub const SADDR: usize = 27;

/// The link type of Ethernet.
const ETHERNET: u32 = 1;

/// Writes one frame for each of `packets`, a microsecond apart. `change` makes the frame of a packet out of
/// the previous frame; the first one is made out of [`syn`].
pub fn write<T>(
    path: &Path,
    packets: impl IntoIterator<Item = T>,
    change: impl Fn(&mut [u8], T),
) -> Result<()> {
    let file = BufWriter::new(File::create(path)?);
    let mut file = Pcap::new(file, Order::Little, Unit::Nanoseconds, ETHERNET)?;
    let mut frame = syn();
    for (micros, packet) in (0..).zip(packets) {
        change(&mut frame, packet);
        file.frame(Frame::whole(micros * 1000, &frame))?;
    }
    Ok(file.flush()?)
}
