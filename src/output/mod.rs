//! Output: the sink that writes to stdout, and the functions that render into it.

pub mod accept_trace;
pub mod check;
pub mod clock;
pub(crate) mod columns;
pub mod connect_trace;
pub mod counts;
pub mod escape;
pub mod exporter;
pub mod flow_report;
pub mod flows;
pub mod histogram;
pub mod json;
pub mod line;
pub mod listeners;
pub mod loss_trace;
pub mod number;
pub mod port_monitor;
pub mod scalar;
pub mod sink;
mod stage;
pub mod stdout;
pub mod summary;
pub mod syn_count;

use clock::{Clock, UnixNanos};
use line::Line;

/// A record that is written as one line of text or JSON. Columns and keys are in the file of its
/// command in this module.
pub trait Render {
    /// Writes the line of text.
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
