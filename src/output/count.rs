//! syn-count's lines.

use super::clock::{Clock, UnixNanos};
use super::json::{Object, push_float, push_int};
use super::line::Line;
use crate::key;

/// SYNs of an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Since the start.
    pub total: u64,
    /// In this interval.
    pub delta: u64,
    /// A second, in this interval.
    pub rate: f64,
}

/// One of the busiest keys.
#[derive(Clone, Debug, PartialEq)]
pub struct KeyCount {
    /// An address or a port, as text.
    pub key: String,
    /// Its SYNs.
    pub count: Count,
}

/// What an interval's line says.
#[derive(Clone, Debug)]
pub struct Interval<'a> {
    /// `None` in a replay.
    pub iface: Option<&'a str>,
    /// How the program is attached.
    pub mode: &'a str,
    /// Seconds that the interval really took.
    pub seconds: f64,
    /// All SYNs that matched.
    pub count: Count,
    /// With `--by`: its name, the busiest keys, and SYNs whose key found no room.
    pub by: Option<(&'a str, &'a [KeyCount], u64)>,
}

/// A source that crossed `--alert`, or fell back.
#[derive(Clone, Debug)]
pub struct Alert<'a> {
    /// `None` in a replay.
    pub iface: Option<&'a str>,
    /// Raised, or cleared.
    pub raised: bool,
    /// The key, as text.
    pub key: &'a str,
    /// SYNs a second in the last interval.
    pub rate: f64,
    /// The rate asked for.
    pub threshold: f64,
}

/// Writes counts as text or JSON.
pub struct CountWriter {
    /// Width of the IFACE column.
    pub iface_width: usize,
    /// There are lines for keys and alerts, with columns of their own.
    pub with_keys: bool,
}

impl CountWriter {
    /// The header line of the text format.
    pub fn text_header(&self, out: &mut Line<'_>) {
        out.extend_from_slice(b"TIME     ");
        out.pad_right(self.iface_width + 1, |out| out.extend_from_slice(b"IFACE"));
        out.extend_from_slice(b"MODE    ");
        if self.with_keys {
            out.extend_from_slice(b"EVENT   KEY                                     ");
        }
        out.extend_from_slice(b"SYNS         TOTAL          RATE/s\n");
    }

    /// The lines of an interval: the total, then the busiest keys.
    pub fn text(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        interval: &Interval<'_>,
    ) {
        let (iface, mode) = (interval.iface, interval.mode);
        self.text_row(out, clock, at, (iface, mode, "total", "-"), interval.count);
        let Some((_, top, untracked)) = interval.by else {
            return;
        };
        for key in top {
            self.text_row(out, clock, at, (iface, mode, "key", &key.key), key.count);
        }
        if untracked > 0 {
            let count = Count {
                total: untracked,
                ..Count::default()
            };
            self.text_row(out, clock, at, (iface, mode, "untrkd", "-"), count);
        }
    }

    fn text_row(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        (iface, mode, event, key): (Option<&str>, &str, &str, &str),
        count: Count,
    ) {
        self.text_start(out, clock, at, iface, mode, event, key);
        out.pad_right(13, |out| push_int(out, count.delta));
        out.pad_right(15, |out| push_int(out, count.total));
        push_float(out, count.rate);
        out.push(b'\n');
    }

    #[allow(clippy::too_many_arguments)]
    fn text_start(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        iface: Option<&str>,
        mode: &str,
        event: &str,
        key: &str,
    ) {
        clock.push_local(out, at);
        out.push(b' ');
        out.pad_right(self.iface_width + 1, |out| {
            out.push_text(iface.unwrap_or("-").as_bytes());
        });
        out.pad_right(8, |out| out.extend_from_slice(mode.as_bytes()));
        if self.with_keys {
            out.pad_right(8, |out| out.extend_from_slice(event.as_bytes()));
            out.pad_right(40, |out| out.extend_from_slice(key.as_bytes()));
        }
    }

    /// An alert as a line of text.
    pub fn text_alert(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        mode: &str,
        alert: &Alert<'_>,
    ) {
        let event = if alert.raised { "ALERT" } else { "cleared" };
        self.text_start(out, clock, at, alert.iface, mode, event, alert.key);
        out.pad_right(13, |out| out.push(b'-'));
        out.pad_right(15, |out| out.push(b'-'));
        push_float(out, alert.rate);
        out.push(b'\n');
    }

    /// An interval as a line of JSON.
    pub fn json(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        interval: &Interval<'_>,
    ) {
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "syn_count");
        push_iface(&mut line, interval.iface);
        line.name(key!("mode"), interval.mode);
        line.float(key!("interval_s"), interval.seconds);
        line.int(key!("syn_total"), interval.count.total);
        line.int(key!("syn_delta"), interval.count.delta);
        line.float(key!("syn_rate"), interval.count.rate);
        if let Some((by, top, untracked)) = interval.by {
            line.name(key!("by"), by);
            line.raw(key!("top"), |out| push_top(out, top));
            line.int(key!("untracked"), untracked);
        }
        line.end();
    }

    /// An alert as a line of JSON.
    pub fn json_alert(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        alert: &Alert<'_>,
    ) {
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "alert");
        push_iface(&mut line, alert.iface);
        line.name(
            key!("state"),
            if alert.raised { "raised" } else { "cleared" },
        );
        line.raw(key!("key"), |out| push_count_key(out, alert.key));
        line.float(key!("syn_rate"), alert.rate);
        line.float(key!("threshold"), alert.threshold);
        line.end();
    }
}

fn push_iface(line: &mut Object<'_, '_>, iface: Option<&str>) {
    match iface {
        Some(name) => line.string(key!("iface"), name.as_bytes()),
        None => line.null(key!("iface")),
    };
}

/// An address is text, a port a number.
pub(crate) fn push_count_key(out: &mut Line<'_>, key: &str) {
    if key.bytes().all(|byte| byte.is_ascii_digit()) {
        out.extend_from_slice(key.as_bytes());
    } else {
        out.push(b'"');
        out.extend_from_slice(key.as_bytes());
        out.push(b'"');
    }
}

fn push_top(out: &mut Line<'_>, top: &[KeyCount]) {
    out.push(b'[');
    for (i, key) in top.iter().enumerate() {
        out.extend_from_slice(if i == 0 { b"{\"key\":" } else { b",{\"key\":" });
        push_count_key(out, &key.key);
        out.extend_from_slice(key!("syn_total").as_bytes());
        push_int(out, key.count.total);
        out.extend_from_slice(key!("syn_delta").as_bytes());
        push_int(out, key.count.delta);
        out.extend_from_slice(key!("syn_rate").as_bytes());
        push_float(out, key.count.rate);
        out.push(b'}');
    }
    out.push(b']');
}
