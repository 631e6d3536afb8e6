//! Output: the sink that writes to stdout, and the functions that render into it.

pub(crate) mod accept_trace;
pub(crate) mod check;
pub mod clock;
pub(crate) mod columns;
pub mod connect_trace;
pub(crate) mod counts;
pub(crate) mod escape;
pub(crate) mod exporter;
pub(crate) mod flow_report;
pub mod flows;
pub(crate) mod histogram;
pub(crate) mod json;
pub mod line;
pub(crate) mod listeners;
pub(crate) mod loss_trace;
pub(crate) mod number;
mod pipe;
pub mod port_monitor;
pub(crate) mod scalar;
pub(crate) mod sink;
pub(crate) mod stdout;
pub(crate) mod summary;
pub(crate) mod syn_count;

use clock::{Clock, UnixNanos};
use line::Line;

/// A record that is written as text, mostly one line, or as a line of JSON. Columns and keys are in
/// the file of its command in this module.
pub trait Render {
    /// Writes the lines of text.
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos);

    /// Writes the line of JSON.
    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos);
}

/// The state of an alert, in JSON and in the columns of listeners.
fn alert_state(is_raised: bool) -> &'static str {
    match is_raised {
        true => "raised",
        false => "cleared",
    }
}

/// Converts a time to microseconds, the unit of most columns and keys.
fn micros(nanos: Option<u64>) -> Option<u64> {
    nanos.map(|nanos| nanos / 1000)
}
