//! Reads events from the BPF programs: from a ring buffer, or from perf buffers, as on kernels
//! before 5.8.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{MapHandle, MapMut, OpenMapMut, PerfBuffer, PerfBufferBuilder};

use crate::cli::{BufferArgs, BufferChoice};
use crate::sys::page_size;
use crate::sys::ring::{Aligned, Ring, Wakeup};

/// The kind of buffer in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferKind {
    /// One ring buffer for all CPUs.
    Ring,
    /// One perf buffer per CPU.
    Perf,
}

impl BufferKind {
    /// The kind to use. With `auto`, it tries whether the kernel has ring buffers.
    pub fn choose(choice: BufferChoice) -> Self {
        match choice {
            BufferChoice::Ring => Self::Ring,
            BufferChoice::Perf => Self::Perf,
            BufferChoice::Auto => {
                // This fails without privileges too. Loading will then give the true reason.
                match libbpf_rs::MapType::RingBuf.is_supported() {
                    Ok(true) | Err(_) => Self::Ring,
                    Ok(false) => Self::Perf,
                }
            }
        }
    }

    /// The name in messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring buffer",
            Self::Perf => "perf buffer",
        }
    }

    /// Sets the size of the buffer that is used, and does not create the map of the other.
    ///
    /// # Errors
    /// A map can't be changed.
    pub fn configure(
        self,
        args: &BufferArgs,
        ring: &mut OpenMapMut<'_>,
        perf: &mut OpenMapMut<'_>,
    ) -> Result<()> {
        match self {
            Self::Ring => {
                perf.set_autocreate(false)?;
                ring.set_max_entries(args.size())?;
            }
            Self::Perf => ring.set_autocreate(false)?,
        }
        Ok(())
    }
}

/// The reader of the event buffer.
pub enum EventSource {
    /// Reads the ring buffer.
    Ring {
        /// The reader.
        ring: Ring,
        /// The size of the buffer in bytes.
        size: u32,
    },
    /// Reads the perf buffers of all CPUs.
    Perf(PerfSource),
}

/// Perf buffers. libbpf passes their events to a callback, which collects them here.
pub struct PerfSource {
    buffer: PerfBuffer<'static>,
    /// The size of the buffer of each CPU in bytes.
    size: usize,
    /// Below `buffer`, so that it is dropped later: the buffer uses its descriptor.
    _map: MapHandle,
    collected: Rc<RefCell<Vec<u8>>>,
    events: Vec<u8>,
    aligned: Aligned,
}

/// The most events taken from the ring buffer before the caller does its other work.
pub const BATCH: usize = 65_536;

/// The longest nap. On a quiet system an event waits at most this long.
const NAP: Duration = Duration::from_millis(1);

/// Size of the length before each collected event.
const LENGTH: usize = size_of::<u32>();

impl EventSource {
    /// Maps the buffer.
    ///
    /// # Errors
    /// The buffer can't be mapped.
    pub fn open(
        kind: BufferKind,
        buffer_size: u32,
        ring: &MapMut<'_>,
        perf: &MapMut<'_>,
    ) -> Result<Self> {
        match kind {
            BufferKind::Ring => Ok(Self::Ring {
                ring: Ring::open(ring.as_fd(), buffer_size)?,
                size: buffer_size,
            }),
            BufferKind::Perf => PerfSource::open(buffer_size, perf).map(Self::Perf),
        }
    }

    /// Passes the pending events to `on_event`, at most [`BATCH`] of a ring buffer. Each is aligned
    /// to 8 bytes. Returns the number of events from a ring buffer; 0 for perf buffers.
    #[inline]
    pub fn drain(&mut self, wakeup: Wakeup, on_event: impl FnMut(&[u8])) -> usize {
        match self {
            Self::Ring { ring, .. } => ring.consume(BATCH, wakeup, on_event),
            Self::Perf(perf) => {
                perf.drain(on_event);
                0
            }
        }
    }

    /// Passes the pending events to `on_batch`, about `bytes` at a time. All events of a batch can
    /// be used until it is done. Returns the same as [`Self::drain`].
    pub fn drain_batches(
        &mut self,
        bytes: usize,
        wakeup: Wakeup,
        mut on_batch: impl FnMut(&[&[u8]]),
    ) -> usize {
        match self {
            Self::Ring { ring, .. } => ring.consume_batches(bytes, BATCH, wakeup, |records| {
                on_batch(&records.collect::<Vec<_>>());
            }),
            Self::Perf(perf) => {
                perf.drain(|event| on_batch(&[event]));
                0
            }
        }
    }

    /// Passes all pending events to `on_event`, but no more than the buffer can hold: they may come
    /// faster than they are handled.
    pub fn drain_all(&mut self, mut on_event: impl FnMut(&[u8])) {
        let mut left = match self {
            // The shortest record has a header and eight bytes.
            Self::Ring { size, .. } => *size as usize / 16,
            Self::Perf(_) => 0,
        };
        while self.drain(Wakeup::Wanted, &mut on_event) == BATCH && left > BATCH {
            left -= BATCH;
        }
    }

    /// How many events of this length certainly find room in an empty buffer, even if all are from
    /// one CPU. At least one is tried.
    pub fn room(&self, event: usize) -> usize {
        // Both kinds of buffer add less than this to an event.
        const OVERHEAD: usize = 64;
        let bytes = match self {
            Self::Ring { size, .. } => *size as usize,
            Self::Perf(perf) => perf.size / 2,
        };
        (bytes / (event + OVERHEAD)).max(1)
    }

    /// How long to sleep between reads, so that not every event causes a wakeup.
    pub fn nap(&self) -> Duration {
        match self {
            Self::Ring { size, .. } => nap(*size),
            Self::Perf(_) => Duration::ZERO,
        }
    }
}

impl PerfSource {
    fn open(buffer_size: u32, perf: &MapMut<'_>) -> Result<Self> {
        let cpus = libbpf_rs::num_possible_cpus()?;
        let pages = (buffer_size as usize / page_size()? / cpus).max(1);
        let pages = if pages.is_power_of_two() {
            pages
        } else {
            pages.next_power_of_two() / 2
        };
        let collected = Rc::new(RefCell::new(Vec::new()));
        let callback = Rc::clone(&collected);
        let map = MapHandle::try_from(perf).context("failed to map the perf buffer")?;
        let buffer = PerfBufferBuilder::new(&map)
            .pages(pages)
            // The BPF program itself counts events that are lost.
            .lost_cb(|_, _: u64| ())
            .sample_cb(move |_, bytes: &[u8]| {
                let mut collected = callback.borrow_mut();
                // The size fits: that of a perf sample has 16 bits.
                collected.extend_from_slice(&(bytes.len() as u32).to_ne_bytes());
                collected.extend_from_slice(bytes);
            })
            .build()
            .context("failed to map the perf buffer")?;
        Ok(Self {
            buffer,
            size: pages * page_size()?,
            _map: map,
            collected,
            events: Vec::new(),
            aligned: Aligned::default(),
        })
    }

    fn drain(&mut self, mut on_event: impl FnMut(&[u8])) {
        // It fails only if a callback fails, and ours can't.
        let _ = self.buffer.consume();
        std::mem::swap(&mut self.events, &mut self.collected.borrow_mut());
        let mut rest = self.events.as_slice();
        while let Some((length, after)) = rest.split_first_chunk::<LENGTH>() {
            let (event, after) = after.split_at(u32::from_ne_bytes(*length) as usize);
            on_event(self.aligned.copy(event, &[]));
            rest = after;
        }
        self.events.clear();
    }
}

/// A millisecond, or the time in which a core can fill half of a smaller ring buffer. That assumes
/// 12 million events of 160 bytes per second, more than a core can produce. So even a nap of twice
/// that time seldom loses events.
fn nap(ring_size: u32) -> Duration {
    const BYTES_A_MICRO: u64 = 2 * 12 * 160;
    NAP.min(Duration::from_micros(u64::from(ring_size) / BYTES_A_MICRO))
}

impl AsFd for EventSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ring { ring, .. } => ring.as_fd(),
            Self::Perf(perf) => crate::sys::link::borrow_fd(self, perf.buffer.epoll_fd()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nap_is_over_when_half_of_the_ring_could_be_full() {
        let micros = |ring_size| nap(ring_size).as_micros();
        assert_eq!(micros(4 << 20), 1000);
        assert_eq!(micros(1 << 30), 1000);
        assert_eq!(micros(1 << 20), 273);
        assert_eq!(micros(4096), 1);
    }
}
