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
