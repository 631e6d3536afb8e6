//! The clock of the BPF programs.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};

/// The current time by the clock of the BPF programs.
///
/// # Errors
/// The clock can't be read.
pub fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).context("failed to read the clock")?;
    Ok(u64::try_from(Duration::from(now).as_nanos())?)
}
