//! System calls and shared memory that need `unsafe`. Outside of this module only `skel.rs` uses it.

pub mod key_tables;
pub mod link;
pub mod map;
pub mod mapping;
pub mod object;
pub mod perf_event;
pub mod pipe;
pub mod ring;
pub mod signal;
pub mod tiny;

use anyhow::{Context, Result};
use nix::unistd::{SysconfVar, sysconf};

/// The size of a memory page.
///
/// # Errors
/// The system does not report it.
pub fn page_size() -> Result<usize> {
    let size = sysconf(SysconfVar::PAGE_SIZE)?.context("the page size is unknown")?;
    Ok(usize::try_from(size)?)
}

/// Makes all threads allocate from one arena. malloc_trim(3) does not return the free memory at the end of
/// other arenas to the kernel.
pub fn share_arena() {
    // SAFETY: it only sets a parameter of the allocator.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Returns freed memory to the kernel. Otherwise glibc keeps it for later allocations.
pub fn give_back_memory() {
    // SAFETY: it touches only memory that is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
