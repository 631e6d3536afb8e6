//! Calls of programs that look at no packet.

use libbpf_rs::{ProgramInput, ProgramMut};

/// A test run takes no less than an Ethernet header.
const FRAME: [u8; 14] = [0; 14];

/// Runs a TC program this many times.
///
/// # Errors
/// The kernel refuses it, or a signal comes.
pub fn call(program: &ProgramMut<'_>, times: u32) -> libbpf_rs::Result<()> {
    let input = ProgramInput {
        data_in: Some(&FRAME),
        repeat: times,
        ..ProgramInput::default()
    };
    program.test_run(input).map(drop)
}
