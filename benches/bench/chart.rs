//! Bar charts as SVG. plotters was tried: it takes nearly as many lines, because the labels have to
//! be placed by hand there too, and its files are twice as large.

use std::fmt::Write as _;

use crate::stat::Stat;

const ROW: usize = 24;
const LABELS: usize = 290;
const BARS: usize = 360;
const VALUES: usize = 90;
const TOP: usize = 34;

/// A bar, with its label.
pub struct Bar {
    pub label: String,
    pub stat: Stat,
    /// tcpinspect's own bars have a color.
    pub is_ours: bool,
}

/// One horizontal bar for each median, with its quartiles as a line. It has a background of its
/// own, because pages may be dark.
pub fn svg(title: &str, bars: &[Bar]) -> String {
    let (width, height) = (LABELS + BARS + VALUES, TOP + ROW * bars.len() + 10);
    let largest = bars
        .iter()
        .map(|bar| bar.stat.high)
        .fold(f64::MIN_POSITIVE, f64::max);
    // A difference can be negative; the length of a bar can't.
    let scale = |value: f64| LABELS as f64 + value.max(0.0) / largest * BARS as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"10\" y=\"21\" font-weight=\"bold\">{}</text>\n",
        escape(title)
    );
    for (at, bar) in bars.iter().enumerate() {
        let Bar { label, stat, .. } = bar;
        let top = TOP + at * ROW;
        let (text_y, middle) = (top + 16, top + ROW / 2);
        let end = scale(stat.median);
        let (low, high) = (scale(stat.low), scale(stat.high));
        let _ = writeln!(
            out,
            "<text x=\"{}\" y=\"{text_y}\" text-anchor=\"end\">{}</text>\
             <rect x=\"{LABELS}\" y=\"{}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"/>\
             <path d=\"M{low:.1} {middle}H{high:.1}\" stroke=\"#222\"/>\
             <text x=\"{:.1}\" y=\"{text_y}\">{}</text>",
            LABELS - 8,
            escape(label),
            top + 3,
            end - LABELS as f64,
            ROW - 6,
            if bar.is_ours { "#2a7ab0" } else { "#b8bec4" },
            end.max(high) + 6.0,
            number(stat.median),
        );
    }
    out + "</svg>\n"
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
