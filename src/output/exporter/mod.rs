//! Renders metrics as OpenMetrics 1.0 or as the text format 0.0.4 of Prometheus.
//!
//! The crate prometheus-client writes OpenMetrics only. `promtool check metrics`, and people who
//! read the page with curl, take the older format: the same lines, except for the names of counters
//! and the end.

pub mod metrics;

use std::fmt::{Display, Write};

use crate::domain::export::TimeHistogram;
use crate::output::escape;

/// The format of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpositionFormat {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Text format 0.0.4 of Prometheus.
    Text,
}

impl ExpositionFormat {
    /// The media type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The format that an `Accept` header prefers. A client that does not ask for OpenMetrics gets text.
    pub fn negotiate(accept: &str) -> Self {
        let (mut open_metrics, mut text) = (0.0, 0.0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default().to_ascii_lowercase();
            let quality = parts
                .filter_map(|part| part.strip_prefix("q="))
                .find_map(|quality| quality.parse::<f64>().ok())
                .unwrap_or(1.0);
            match media.as_str() {
                "application/openmetrics-text" => open_metrics = quality.max(open_metrics),
                "text/plain" | "text/*" => text = quality.max(text),
                _ => {}
            }
        }
        match open_metrics > 0.0 && open_metrics >= text {
            true => Self::OpenMetrics,
            false => Self::Text,
        }
    }
}

/// The type of a family of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It grows and falls.
    Gauge,
    /// Always 1: the information is in its labels.
    Info,
    /// Times, counted in buckets.
    Histogram,
}

impl MetricKind {
    fn name(self, format: ExpositionFormat) -> &'static str {
        match (self, format) {
            (Self::Counter, _) => "counter",
            (Self::Info, ExpositionFormat::OpenMetrics) => "info",
            (Self::Gauge | Self::Info, _) => "gauge",
            (Self::Histogram, _) => "histogram",
        }
    }

    /// The suffix of the names of samples, after the name of the family.
    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }
}

/// Names and values of labels.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A family of metrics.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The name without `_total`.
    pub name: &'static str,
    /// The TYPE.
    pub kind: MetricKind,
    /// The unit, with which the name ends; empty if there is none.
    pub unit: &'static str,
    /// The HELP text.
    pub help: &'static str,
}

/// The text of an answer that is being written.
pub struct Exposition {
    format: ExpositionFormat,
    text: String,
}

impl Exposition {
    /// An empty one.
    pub fn new(format: ExpositionFormat) -> Self {
        Self {
            format,
            text: String::new(),
        }
    }

    /// Begins a family, to which the samples that follow belong.
    pub fn family(&mut self, family: &Family) {
        let Family {
            name,
            kind,
            unit,
            help,
        } = family;
        let suffix = match self.format {
            ExpositionFormat::OpenMetrics => "",
            ExpositionFormat::Text => kind.suffix(),
        };
        let type_name = kind.name(self.format);
        let _ = writeln!(self.text, "# HELP {name}{suffix} {help}");
        let _ = writeln!(self.text, "# TYPE {name}{suffix} {type_name}");
        if self.format == ExpositionFormat::OpenMetrics && !unit.is_empty() {
            let _ = writeln!(self.text, "# UNIT {name} {unit}");
        }
    }

    /// A sample of a counter, gauge or info.
    pub fn sample(&mut self, family: &Family, labels: Labels<'_>, value: impl Display) {
        self.line(family.name, family.kind.suffix(), labels, None, value);
    }

    /// The samples of a histogram.
    pub fn histogram(&mut self, family: &Family, histogram: &TimeHistogram) {
        let mut count = 0;
        for (at, bucket) in histogram.buckets.iter().enumerate() {
            count += bucket;
            let bound = TimeHistogram::bound(at);
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
            self.line(family.name, "_bucket", &[], Some(&bound), count);
        }
        self.line(family.name, "_sum", &[], None, histogram.sum);
        self.line(family.name, "_count", &[], None, count);
    }

    fn line(
        &mut self,
        name: &str,
        suffix: &str,
        labels: Labels<'_>,
        bound: Option<&str>,
        value: impl Display,
    ) {
        let _ = write!(self.text, "{name}{suffix}");
        let bound = bound.map(|bound| ("le", bound));
        let mut separator = '{';
        for (label, value) in labels.iter().copied().chain(bound) {
            let _ = write!(self.text, "{separator}{label}=\"");
            push_escaped(&mut self.text, value);
            self.text.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.text.push('}');
        }
        let _ = writeln!(self.text, " {value}");
    }

    /// The whole text.
    pub fn finish(mut self) -> String {
        if self.format == ExpositionFormat::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

/// Escapes the value of a label: for terminals, as in all text, and then for the format.
fn push_escaped(text: &mut String, value: &str) {
    let mut shown = Vec::with_capacity(value.len());
    escape::push_text(&mut shown, value.as_bytes());
    for c in String::from_utf8_lossy(&shown).chars() {
        if matches!(c, '\\' | '"') {
            text.push('\\');
        }
        text.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SYNS: Family = Family {
        name: "tcpinspect_syns",
        kind: MetricKind::Counter,
        unit: "",
        help: "Incoming SYNs.",
    };
    const WAIT: Family = Family {
        name: "tcpinspect_wait_seconds",
        kind: MetricKind::Histogram,
        unit: "seconds",
        help: "Waits.",
    };

    fn rendered(format: ExpositionFormat) -> String {
        let mut exposition = Exposition::new(format);
        exposition.family(&SYNS);
        exposition.sample(&SYNS, &[("iface", "e\"\\\x1b0"), ("kind", "x")], 7);
        exposition.sample(&SYNS, &[], 0.5);
        exposition.finish()
    }

    #[test]
    fn a_counter_is_named_as_its_format_wants_it() {
        assert_eq!(
            rendered(ExpositionFormat::OpenMetrics),
            "# HELP tcpinspect_syns Incoming SYNs.\n# TYPE tcpinspect_syns counter\n\
             tcpinspect_syns_total{iface=\"e\\\"\\\\\\\\\\\\x1b0\",kind=\"x\"} 7\ntcpinspect_syns_total 0.5\n# EOF\n"
        );
        assert_eq!(
            rendered(ExpositionFormat::Text),
            "# HELP tcpinspect_syns_total Incoming SYNs.\n# TYPE tcpinspect_syns_total counter\n\
             tcpinspect_syns_total{iface=\"e\\\"\\\\\\\\\\\\x1b0\",kind=\"x\"} 7\ntcpinspect_syns_total 0.5\n"
        );
    }

    #[test]
    fn buckets_of_a_histogram_add_up() {
        let mut histogram = TimeHistogram {
            sum: 1.5,
            ..TimeHistogram::default()
        };
        histogram.buckets[0] = 1;
        histogram.buckets[20] = 2;
        histogram.buckets[27] = 1;
        let mut exposition = Exposition::new(ExpositionFormat::OpenMetrics);
        exposition.family(&WAIT);
        exposition.histogram(&WAIT, &histogram);
        let text = exposition.finish();
        for line in [
            "# UNIT tcpinspect_wait_seconds seconds",
            "tcpinspect_wait_seconds_bucket{le=\"0.000001\"} 1",
            "tcpinspect_wait_seconds_bucket{le=\"0.524288\"} 1",
            "tcpinspect_wait_seconds_bucket{le=\"1.048576\"} 3",
            "tcpinspect_wait_seconds_bucket{le=\"+Inf\"} 4",
            "tcpinspect_wait_seconds_sum 1.5",
            "tcpinspect_wait_seconds_count 4",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }

    #[test]
    fn the_format_is_the_one_that_is_asked_for() {
        for (accept, format) in [
            ("", ExpositionFormat::Text),
            ("*/*", ExpositionFormat::Text),
            ("text/plain", ExpositionFormat::Text),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                ExpositionFormat::OpenMetrics,
            ),
            (
                "application/openmetrics-text; q=0.2, text/plain",
                ExpositionFormat::Text,
            ),
            ("application/openmetrics-text;q=0", ExpositionFormat::Text),
            (
                "application/openmetrics-text;q=x",
                ExpositionFormat::OpenMetrics,
            ),
            (",;,;;q=,", ExpositionFormat::Text),
        ] {
            assert_eq!(ExpositionFormat::negotiate(accept), format, "{accept}");
        }
    }
}
