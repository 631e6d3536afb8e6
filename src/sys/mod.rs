//! System calls and shared memory that need `unsafe`. Outside of this module only `skel.rs` uses it.

pub mod key_tables;
pub mod link;
pub mod map;
pub mod mapping;
pub mod object;
pub mod perf_event;
pub mod probe;
pub mod ring;
pub mod signal;

/// Has threads that start later share the first one's memory for allocation: glibc keeps what is free at
/// the end of other arenas.
pub fn share_arena() {
    // SAFETY: it sets a number.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::mallopt(nix::libc::M_ARENA_MAX, 1);
    }
}

/// Gives memory that was freed back to the kernel: glibc keeps what it may need again.
pub fn give_back_memory() {
    // SAFETY: it looks only at what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
