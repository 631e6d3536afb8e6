//! Counts and histograms that tracing programs keep in place of events.

use anyhow::{Context, Result};
use libbpf_rs::{MapCore, MapFlags, MapMut, OpenMapMut};

use crate::cli::BufferArgs;
use crate::domain::export::{ExportCounts, TIMES, TimeHistogram};
use crate::run::events::BufferKind;
use crate::skel::{self, ExportHistogram, ExportKey, ExportKind};
use crate::sys::map;

/// What tracing programs do with events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// They send them to this buffer.
    Report(BufferKind),
    /// They count them, for exporter.
    Export,
}

impl Purpose {
    /// Sets the size of the buffer, and creates either it or the maps of counts.
    ///
    /// # Errors
    /// A map can't be changed.
    pub fn configure<'obj>(
        self,
        args: &BufferArgs,
        counts: [&mut OpenMapMut<'obj>; 2],
        [ring, perf]: [&mut OpenMapMut<'obj>; 2],
    ) -> Result<()> {
        let unused = match self {
            Self::Report(buffer) => {
                buffer.configure(args, ring, perf)?;
                counts
            }
            Self::Export => [ring, perf],
        };
        for map in unused {
            map.set_autocreate(false)?;
        }
        Ok(())
    }
}

/// Adds the entry that counts all events whose own key finds no room in the map.
///
/// # Errors
/// The kernel refuses it.
pub fn prepare(events: &MapMut<'_>) -> Result<()> {
    let rest = ExportKey {
        kind: rest(),
        ..ExportKey::default()
    };
    events
        .update(
            skel::key_bytes(&rest),
            &0_u64.to_ne_bytes(),
            MapFlags::NO_EXIST,
        )
        .context("failed to prepare the counts")
}

/// Reads all that was counted.
///
/// # Errors
/// The kernel refuses to read the maps.
pub fn read(events: &MapMut<'_>, histograms: &MapMut<'_>) -> Result<ExportCounts> {
    const FAILED: &str = "failed to read the counts";
    let mut counts = ExportCounts::default();
    map::read_all(events, false, |key, count| {
        let mut whole = ExportKey::default();
        let (Ok(()), Ok(count)) = (
            plain::copy_from_bytes(&mut whole, key),
            <[u8; 8]>::try_from(count),
        ) else {
            return;
        };
        let count = u64::from_ne_bytes(count);
        match whole.kind == rest() {
            true => counts.uncounted += count,
            false => counts.events.push((whole, count)),
        }
    })
    .context(FAILED)?;
    for of in TIMES {
        let found = histograms
            .lookup(&of.0.to_ne_bytes(), MapFlags::ANY)
            .context(FAILED)?;
        let mut raw = ExportHistogram::default();
        if found.is_some_and(|bytes| plain::copy_from_bytes(&mut raw, &bytes).is_ok()) {
            counts.histograms.push((of, TimeHistogram::from(&raw)));
        }
    }
    Ok(counts)
}

fn rest() -> u8 {
    ExportKind::EXPORT_REST.0 as u8
}
