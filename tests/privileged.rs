//! The tests that load programs and make network namespaces, for which they need root. In one
//! executable, which the emulated machines run as well.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::explicit_write,
    reason = "in a test a broken assumption has to stop it, and numbers are worth seeing"
)]

mod common;
mod flow_model;
mod oracle;

mod accept;
mod accounting;
mod check;
mod clsact;
mod connect;
mod exporter;
mod fleet;
mod flows;
mod host;
mod lifecycle;
mod listeners;
mod loss;
mod network;
mod output;
mod privileges;
mod programs;
mod prometheus;
mod recording;
mod schema;
