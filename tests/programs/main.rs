//! The shipped programs, run frame by frame inside the kernel through `-r`, against the oracle.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "in a test a broken assumption has to stop it, and numbers are worth seeing"
)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../oracle/mod.rs"]
mod oracle;

mod all_syns;
mod counts;
mod crafted;
mod files;
mod filters;
mod frames;
mod parity;
mod streams;
