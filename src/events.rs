//! Events from the kernel: the ring buffer, or the perf event array on kernels before 5.8.

use std::cell::RefCell;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use libbpf_rs::{MapMut, OpenMapMut, PerfBuffer, PerfBufferBuilder};

use crate::attach::ring::{Aligned, Bell, Ring, page_size};
use crate::cli::{BufferArgs, BufferChoice};

/// The kind of buffer in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferKind {
    /// One ring for all CPUs.
    Ring,
    /// One buffer a CPU.
    Perf,
}

impl BufferKind {
    /// The kind to use. Which one the kernel has is found by trying.
    ///
    /// # Errors
    /// The kernel can't be asked.
    pub fn choose(choice: BufferChoice) -> Result<Self> {
        Ok(match choice {
            BufferChoice::Ring => Self::Ring,
            BufferChoice::Perf => Self::Perf,
            BufferChoice::Auto => {
                // Without privileges the answer is no as well; loading will tell the true reason.
                match libbpf_rs::MapType::RingBuf.is_supported() {
                    Ok(true) | Err(_) => Self::Ring,
                    Ok(false) => Self::Perf,
                }
            }
        })
    }

    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring buffer",
            Self::Perf => "perf buffer",
        }
    }

    /// Sizes the buffer that is used, and leaves the other one out.
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
                ring.set_max_entries(args.buffer_size)?;
            }
            Self::Perf => ring.set_autocreate(false)?,
        }
        Ok(())
    }
}

/// Where events come from.
pub enum EventSource<'a> {
    /// A ring buffer, and what gets its events.
    Ring(RingSource<'a>),
    /// A perf buffer, which calls by itself.
    Perf(PerfBuffer<'a>),
}

/// A ring buffer, and what gets its events.
pub struct RingSource<'a> {
    ring: RefCell<Ring<'a>>,
    fd: BorrowedFd<'a>,
    size: u32,
    on_event: OnEvent<'a>,
}

/// Gets each event's bytes.
type OnEvent<'a> = RefCell<Box<dyn FnMut(&[u8]) + 'a>>;

/// Events taken from the ring before the caller looks at its other duties.
pub const BATCH: usize = 65_536;

/// The longest nap: one event on a quiet system waits for so long.
const NAP: Duration = Duration::from_millis(1);

impl<'a> EventSource<'a> {
    /// Opens the buffer; `on_event` gets each event's bytes, which begin at a multiple of 8 in
    /// memory.
    ///
    /// # Errors
    /// The buffer can't be mapped.
    pub fn open(
        kind: BufferKind,
        buffer_size: u32,
        ring: &'a MapMut<'_>,
        perf: &'a MapMut<'_>,
        mut on_event: impl FnMut(&[u8]) + 'a,
    ) -> Result<Self> {
        match kind {
            BufferKind::Ring => Ok(Self::Ring(RingSource {
                ring: RefCell::new(Ring::open(ring.as_fd(), buffer_size)?),
                fd: ring.as_fd(),
                size: buffer_size,
                on_event: RefCell::new(Box::new(on_event)),
            })),
            BufferKind::Perf => {
                let cpus = libbpf_rs::num_possible_cpus()?;
                let pages = (buffer_size as usize / page_size()? / cpus).max(1);
                let pages = if pages.is_power_of_two() {
                    pages
                } else {
                    pages.next_power_of_two() / 2
                };
                let mut aligned = Aligned::default();
                let buffer = PerfBufferBuilder::new(perf)
                    .pages(pages)
                    // What is lost is counted where it is lost, in the program.
                    .lost_cb(|_, _: u64| ())
                    .sample_cb(move |_, bytes: &[u8]| on_event(aligned.copy(bytes, &[])))
                    .build()
                    .context("failed to map the perf buffer")?;
                Ok(Self::Perf(buffer))
            }
        }
    }

    /// Takes what is there now, [`BATCH`] events of a ring buffer at most. Returns how many those
    /// were; the events of a perf buffer are not counted.
    pub fn consume(&self, bell: Bell) -> usize {
        match self {
            Self::Ring(source) => {
                let mut on_event = source.on_event.borrow_mut();
                source
                    .ring
                    .borrow_mut()
                    .consume(BATCH, bell, &mut **on_event)
            }
            Self::Perf(perf) => {
                // It fails only where a callback does, and ours don't.
                let _ = perf.consume();
                0
            }
        }
    }

    /// How long events may be left alone, so that not each of them costs a wake-up.
    pub fn nap(&self) -> Duration {
        match self {
            Self::Ring(source) => nap(source.size),
            Self::Perf(_) => Duration::ZERO,
        }
    }
}

/// A millisecond, or what it takes to fill half of a smaller ring buffer, at 12 million events a
/// second of 160 bytes each, which is more than a core can make: twice as long is seldom a loss yet.
fn nap(ring_size: u32) -> Duration {
    const BYTES_A_MICRO: u64 = 2 * 12 * 160;
    NAP.min(Duration::from_micros(u64::from(ring_size) / BYTES_A_MICRO))
}

impl AsFd for EventSource<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Ring(source) => source.fd,
            Self::Perf(perf) => crate::attach::borrow_fd(self, perf.epoll_fd()),
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
