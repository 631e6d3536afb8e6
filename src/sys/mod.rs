//! System calls and shared memory that need `unsafe`. Only this module and `skel.rs` use it.

pub mod key_tables;
pub mod link;
pub mod map;
pub mod mapping;
pub mod perf_event;
pub mod probe;
pub mod ring;
pub mod signal;
