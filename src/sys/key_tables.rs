//! The tables of counts by key, and the sketches of sources, mapped from BPF arrays. Each slot has two
//! of them: programs write to one while this process reads the other.

use std::os::fd::AsFd;

use anyhow::{Context, Result};
use nix::sys::mman::ProtFlags;

use super::mapping::Mapping;
use crate::skel::{CountKey, CountSet, SourceSketch};

/// Keys in one table, for all slots together.
const KEYS: usize = 65_536;

/// The fewest keys per slot: with less room, keys that all CPUs see would evict each other.
const KEYS_PER_SLOT: usize = 4096;

const WAYS: usize = CountSet::WAYS;

/// The size of the tables.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Number of slots: one for each CPU or, where programs can be preempted, for each run that can
    /// be unfinished.
    pub slots: usize,
    /// Sets per slot in one table: a power of two.
    pub sets: usize,
}

impl Size {
    /// The size for this many slots.
    pub fn of(slots: usize) -> Self {
        let keys = (KEYS / slots.max(1)).max(KEYS_PER_SLOT);
        Self {
            slots,
            sets: (keys / WAYS).next_power_of_two(),
        }
    }

    /// Sets in both tables of all slots.
    pub fn all_sets(self) -> usize {
        2 * self.slots * self.sets
    }

    /// Memory of all tables and sketches.
    pub fn bytes(self) -> usize {
        self.all_sets() * size_of::<CountSet>() + self.all_sketches() * size_of::<SourceSketch>()
    }

    /// Sketches in both tables of all slots.
    pub fn all_sketches(self) -> usize {
        2 * self.slots
    }
}

fn map(what: &str, fd: impl AsFd, len: usize) -> Result<Mapping> {
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    Mapping::new(fd.as_fd(), 0, len, access).with_context(|| format!("failed to map {what}"))
}

/// The tables of all slots, mapped.
pub struct KeyTables {
    sets: Mapping,
    size: Size,
}

impl KeyTables {
    /// Maps the array, which was created with this size.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn map(sets: impl AsFd, size: Size) -> Result<Self> {
        let sets = map(
            "the tables of keys",
            sets,
            size.all_sets() * size_of::<CountSet>(),
        )?;
        Ok(Self { sets, size })
    }

    /// Reads and empties table 0 or 1, which no program may write to any more. Calls `each` with a
    /// key and how often it was counted, once per slot that has the key.
    pub fn take(&mut self, table: u32, mut each: impl FnMut(&CountKey, u64)) {
        let table = (table & 1) as usize;
        let per_table = self.size.slots * self.size.sets;
        let sets = self.sets.start().cast::<CountSet>();
        for at in table * per_table..(table + 1) * per_table {
            // SAFETY: inside the mapping, which has `all_sets()` sets, and aligned, as the mapping
            // starts at a page. Any bytes are a valid set; volatile, as BPF programs write to it.
            let (place, set) = unsafe { (sets.add(at), sets.add(at).read_volatile()) };
            // Ways are filled from the first one on and never freed: this set is empty.
            if set.ranks[0] == 0 {
                continue;
            }
            for way in 0..WAYS {
                let counted = set.ranks[way].saturating_sub(set.inherited[way]);
                if counted > 0 {
                    each(&set.keys[way], counted);
                }
            }
            // SAFETY: as above.
            unsafe { place.write_volatile(CountSet::default()) };
        }
    }
}

/// The sketches of all slots, mapped.
pub struct Sketches {
    sketches: Mapping,
    size: Size,
}

impl Sketches {
    /// Maps the array, which was created with this size.
    ///
    /// # Errors
    /// The kernel refuses the mapping.
    pub fn map(sketches: impl AsFd, size: Size) -> Result<Self> {
        let sketches = map(
            "the sketches of sources",
            sketches,
            size.all_sketches() * size_of::<SourceSketch>(),
        )?;
        Ok(Self { sketches, size })
    }

    /// Reads and empties the sketches of table 0 or 1, which no program may write to any more.
    /// Returns the sketch of all sources.
    pub fn take(&mut self, table: u32) -> SourceSketch {
        let table = (table & 1) as usize;
        let mut sum = SourceSketch::default();
        let sketches = self.sketches.start().cast::<SourceSketch>();
        for at in table * self.size.slots..(table + 1) * self.size.slots {
            // SAFETY: inside the mapping, which has `all_sketches()` sketches.
            let registers = unsafe { sketches.add(at) }.cast::<u8>();
            for (at, most) in sum.registers.iter_mut().enumerate() {
                // SAFETY: inside the sketch, which is nothing but registers of a byte; volatile, as
                // above, and one by one: the compiler would unroll the copy of a whole sketch.
                let zeros = unsafe { registers.add(at).read_volatile() };
                *most = (*most).max(zeros);
            }
            // SAFETY: as above.
            unsafe { registers.write_bytes(0, sum.registers.len()) };
        }
        sum
    }
}
