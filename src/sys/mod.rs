//! System calls and shared memory that need `unsafe`. Outside of this module only `skel.rs` uses it,
//! and one call in `attach/xdp.rs`.

pub mod key_tables;
pub mod link;
pub mod map;
pub mod mapping;
pub mod object;
pub mod perf_event;
pub mod probe;
pub mod ring;
pub mod signal;

/// Gives memory that was freed back to the kernel: glibc keeps what it may need again.
pub fn give_back_memory() {
    // SAFETY: it looks only at what is free.
    #[cfg(target_env = "gnu")]
    unsafe {
        nix::libc::malloc_trim(0);
    }
}
