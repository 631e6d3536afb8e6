//! Reads a BPF ring buffer that is mapped once.
//!
//! libbpf maps the data twice in a row, so that a record that wraps around is contiguous. That
//! doubles the resident memory of the buffer, which is the largest part of this process's memory.
//! One mapping is enough: the few records that wrap around are copied. The layout is that of the
//! kernel (Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c): a page with the consumer's
//! position, a page with the producer's, then the data.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::sys::mman::ProtFlags;

use super::mapping::Mapping;
use super::page_size;

/// Flags in the length of a record (linux/bpf.h).
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// Size of the header before each record: its length, and a page offset for the kernel.
const HEADER: usize = 8;

/// The most bytes to read before the consumer's position is stored, which frees them.
const RELEASE_EVERY: usize = 64 * 1024;

const FAILED: &str = "failed to map the ring buffer";

/// The only reader of a ring buffer: nobody else stores the consumer's position.
pub struct Ring {
    fd: OwnedFd,
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    size: usize,
    /// The position up to which records were read. While wakeups are unwanted, the consumer's position
    /// that the kernel sees is lower.
    read: u64,
    wrapped: Aligned,
}

/// A copy of a record, aligned to 8 bytes like the records in a ring buffer.
#[derive(Default)]
pub struct Aligned(Vec<u64>);

impl Aligned {
    /// The first bytes of what was copied.
    fn bytes(&self, len: usize) -> &[u8] {
        // SAFETY: any 8 bytes are valid as bytes, and nothing changes them meanwhile.
        let (_, bytes, _) = unsafe { self.0.align_to::<u8>() };
        bytes.get(..len).unwrap_or_default()
    }

    /// Copies a record that consists of two parts.
    pub fn copy(&mut self, first: &[u8], second: &[u8]) -> &[u8] {
        let len = first.len() + second.len();
        self.0.resize(len.div_ceil(8), 0);
        // SAFETY: any 8 bytes are a valid u64 and the reverse, and the borrow is exclusive.
        let (_, bytes, _) = unsafe { self.0.align_to_mut::<u8>() };
        bytes[..first.len()].copy_from_slice(first);
        bytes[first.len()..len].copy_from_slice(second);
        &bytes[..len]
    }
}

/// Whether the kernel wakes the reader when the next record is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakeup {
    /// It does: the descriptor becomes readable.
    Wanted,
    /// It does not, because the reader will soon read again anyway. That saves the producer an
    /// interrupt, which is expensive in a virtual machine.
    Unwanted,
}

impl Ring {
    /// Maps the ring buffer with this descriptor, of `size` bytes. It keeps its own descriptor.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn open(fd: BorrowedFd<'_>, size: u32) -> Result<Self> {
        let page = page_size()?;
        let size = usize::try_from(size)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mut ring = Self {
            fd: fd.try_clone_to_owned().context(FAILED)?,
            consumer: Mapping::new(fd, 0, page, both).context(FAILED)?,
            producer: Mapping::new(fd, page, page + size, ProtFlags::PROT_READ).context(FAILED)?,
            page,
            size,
            read: 0,
            wrapped: Aligned::default(),
        };
        ring.read = ring.consumer_position().load(Ordering::Relaxed);
        Ok(ring)
    }

    fn consumer_position(&self) -> &AtomicU64 {
        // SAFETY: the start of a page, mapped as long as self lives and accessed only atomically.
        unsafe { self.consumer.start().cast::<AtomicU64>().as_ref() }
    }

    fn producer_position(&self) -> &AtomicU64 {
        // SAFETY: the start of a mapped page that only the kernel writes, atomically.
        unsafe { self.producer.start().cast::<AtomicU64>().as_ref() }
    }

    /// The data at a position: `len` bytes, or fewer if the buffer wraps around before.
    fn data(&self, position: u64, len: usize) -> &[u8] {
        let at = position as usize & (self.size - 1);
        let len = len.min(self.size - at);
        // SAFETY: within the mapping, which has `size` bytes after the first page. The kernel does
        // not write to a record between the producer's release and the consumer's.
        unsafe {
            let start = self.producer.start().cast::<u8>().add(self.page + at);
            std::slice::from_raw_parts(start.as_ptr(), len)
        }
    }

    /// The length of the record at a position, with its two flags.
    fn header(&self, position: u64) -> u32 {
        let at = position as usize & (self.size - 1);
        // SAFETY: positions are multiples of 8, so the header is aligned and does not wrap. The
        // kernel sets it atomically when the record is ready.
        let header = unsafe {
            let start = self.producer.start().cast::<u8>().add(self.page + at);
            start.cast::<AtomicU32>().as_ref()
        };
        header.load(Ordering::Acquire)
    }

    /// Passes the records that are ready to `on_record`, at most `max`. Each is aligned to 8 bytes.
    /// Returns how many there were.
    pub fn consume(
        &mut self,
        max: usize,
        wakeup: Wakeup,
        mut on_record: impl FnMut(&[u8]),
    ) -> usize {
        self.consume_batches(RELEASE_EVERY, max, wakeup, |records| {
            records.for_each(&mut on_record);
        })
    }

    /// Passes the records that are ready to `on_batch`, at most `max`, in batches of at least one
    /// record and about `batch` bytes at most. All records of a batch stay where they are until the
    /// batch is done. Returns how many records there were.
    pub fn consume_batches(
        &mut self,
        batch: usize,
        max: usize,
        wakeup: Wakeup,
        mut on_batch: impl FnMut(Records<'_>),
    ) -> usize {
        let batch = batch.min(self.size / 4) as u64;
        let mut wrapped = std::mem::take(&mut self.wrapped);
        let mut position = self.read;
        // The start of the last record. The kernel wakes the reader for a new record only if the
        // consumer's position is at that record. So a position before it suppresses wakeups.
        let mut last = self.consumer_position().load(Ordering::Relaxed);
        let mut taken = 0;
        loop {
            let produced = self.producer_position().load(Ordering::Acquire);
            let start = position;
            while position < produced && taken < max && position - start < batch {
                let header = self.header(position);
                if header & BUSY != 0 {
                    break;
                }
                let len = (header & !DISCARDED) as usize;
                if header & DISCARDED == 0 {
                    let first = self.data(position + HEADER as u64, len);
                    if first.len() < len {
                        let after = position + (HEADER + first.len()) as u64;
                        wrapped.copy(first, self.data(after, len - first.len()));
                    }
                    taken += 1;
                }
                last = position;
                position += (len + HEADER).next_multiple_of(8) as u64;
            }
            if position == start {
                break;
            }
            on_batch(Records {
                ring: self,
                wrapped: &wrapped,
                position: start,
                end: position,
            });
            if wakeup == Wakeup::Wanted && position >= produced {
                // Store the position before loading the producer's again, so that the kernel wakes
                // for any record that this load misses. poll(2) checks both positions as well.
                self.consumer_position().store(position, Ordering::SeqCst);
            } else {
                self.consumer_position().store(last, Ordering::Release);
            }
        }
        self.wrapped = wrapped;
        self.read = position;
        let consumed = match wakeup {
            Wakeup::Wanted => position,
            Wakeup::Unwanted => last,
        };
        self.consumer_position().store(consumed, Ordering::SeqCst);
        taken
    }
}

/// The records of a batch, each aligned to 8 bytes.
pub struct Records<'a> {
    ring: &'a Ring,
    /// The record that wraps around, if there is one. There are never two: that would take more
    /// bytes than the buffer has.
    wrapped: &'a Aligned,
    position: u64,
    end: u64,
}

impl<'a> Iterator for Records<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        while self.position < self.end {
            let header = self.ring.header(self.position);
            let len = (header & !DISCARDED) as usize;
            let data = self.position + HEADER as u64;
            self.position += (len + HEADER).next_multiple_of(8) as u64;
            if header & DISCARDED == 0 {
                let first = self.ring.data(data, len);
                return Some(match first.len() == len {
                    true => first,
                    false => self.wrapped.bytes(len),
                });
            }
        }
        None
    }
}

impl AsFd for Ring {
    /// Readable while there are records, and always after a read with [`Wakeup::Unwanted`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
