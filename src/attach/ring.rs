//! Reading a BPF ring buffer, mapped once.
//!
//! libbpf maps the data twice in a row, so that a record that wraps around looks whole. That
//! counts as twice the resident memory, and here the buffer is most of it. One mapping does: the
//! few records that wrap are copied. The layout is the kernel's (Documentation/bpf/ringbuf.rst,
//! kernel/bpf/ringbuf.c): a page with the consumer's position, one with the producer's, the data.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, Result};
use nix::sys::mman::ProtFlags;
use nix::unistd::{SysconfVar, sysconf};

use super::mapping::Mapping;

/// Bits of a record's length (linux/bpf.h).
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;

/// Bytes of the header before each record: its length, and the page offset that the kernel needs.
const HEADER: usize = 8;

/// How many bytes are taken, at most, before the kernel is told that they are free.
const RELEASE_EVERY: usize = 64 * 1024;

const FAILED: &str = "failed to map the ring buffer";

/// The reader of a ring buffer: there is one, and nobody else moves the consumer's position.
pub struct Ring<'a> {
    fd: BorrowedFd<'a>,
    consumer: Mapping,
    producer: Mapping,
    page: usize,
    size: usize,
    /// What was read: beyond what the kernel was told, if a bell is unwanted.
    read: u64,
    wrapped: Aligned,
}

/// A copy of a record that begins at a multiple of 8 in memory, as those in a ring do.
#[derive(Default)]
pub struct Aligned(Vec<u64>);

impl Aligned {
    /// Copies a record that is in two parts.
    pub fn copy(&mut self, first: &[u8], second: &[u8]) -> &[u8] {
        let len = first.len() + second.len();
        self.0.resize(len.div_ceil(8), 0);
        // SAFETY: any 8 bytes are an integer, and any integer is 8 bytes; they are ours alone.
        let (_, bytes, _) = unsafe { self.0.align_to_mut::<u8>() };
        bytes[..first.len()].copy_from_slice(first);
        bytes[first.len()..len].copy_from_slice(second);
        &bytes[..len]
    }
}

/// What the kernel is to do when the next record is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bell {
    /// Make the descriptor readable, and wake who waits for that.
    Wanted,
    /// Nothing: the reader looks again by itself, soon. That saves the producer an interrupt, which
    /// a virtual machine's host may have to deliver.
    Unwanted,
}

impl<'a> Ring<'a> {
    /// Maps the ring buffer with this descriptor, of `size` bytes.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn open(fd: BorrowedFd<'a>, size: u32) -> Result<Self> {
        let page = page_size()?;
        let size = usize::try_from(size)?;
        let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let mut ring = Self {
            fd,
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
        // SAFETY: the start of a page that is mapped as long as self, and only accessed atomically.
        unsafe { self.consumer.start().cast::<AtomicU64>().as_ref() }
    }

    fn producer_position(&self) -> &AtomicU64 {
        // SAFETY: the start of a mapped page that only the kernel writes, atomically.
        unsafe { self.producer.start().cast::<AtomicU64>().as_ref() }
    }

    /// The data at a position, at most `len` bytes of it: fewer where the buffer wraps around.
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

    /// Hands over the records that are ready, `max` at most; each begins at a multiple of 8 in
    /// memory. Returns how many.
    pub fn consume(&mut self, max: usize, bell: Bell, mut on_record: impl FnMut(&[u8])) -> usize {
        let release_every = RELEASE_EVERY.min(self.size / 4) as u64;
        let mut position = self.read;
        let mut released = position;
        // Where the last record begins. The kernel rings for a record when all before it were read,
        // so for as long as it is told of one that was not, it is still.
        let mut last = self.consumer_position().load(Ordering::Relaxed);
        let mut taken = 0;
        'records: while taken < max {
            let produced = self.producer_position().load(Ordering::Acquire);
            if position >= produced {
                break;
            }
            while position < produced && taken < max {
                let header = self.header(position);
                if header & BUSY != 0 {
                    break 'records;
                }
                let len = (header & !DISCARDED) as usize;
                if header & DISCARDED == 0 {
                    self.hand_over(position + HEADER as u64, len, &mut on_record);
                    taken += 1;
                }
                last = position;
                position += (len + HEADER).next_multiple_of(8) as u64;
                if position - released >= release_every {
                    self.consumer_position().store(last, Ordering::Release);
                    released = position;
                }
            }
            if bell == Bell::Wanted {
                // It has to see where we are before we look whether more has come. Of what comes
                // between the last look and the last word, poll(2) tells, which looks as well.
                self.consumer_position().store(position, Ordering::SeqCst);
            }
        }
        self.read = position;
        let told = match bell {
            Bell::Wanted => position,
            Bell::Unwanted => last,
        };
        self.consumer_position().store(told, Ordering::SeqCst);
        taken
    }

    fn hand_over(&mut self, position: u64, len: usize, on_record: &mut impl FnMut(&[u8])) {
        let mut whole = std::mem::take(&mut self.wrapped);
        let first = self.data(position, len);
        if first.len() == len {
            on_record(first);
        } else {
            let second = self.data(position + first.len() as u64, len - first.len());
            on_record(whole.copy(first, second));
        }
        self.wrapped = whole;
    }
}

impl AsFd for Ring<'_> {
    /// Readable while there are records, and as well since the bell was unwanted last.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

/// Bytes of a page of memory.
///
/// # Errors
/// The system does not tell.
pub fn page_size() -> Result<usize> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?.context("the page size is unknown")?;
    Ok(usize::try_from(size)?)
}
