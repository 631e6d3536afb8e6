//! Medians, and tables in Markdown.

/// The median and the spread of some measurements.
#[derive(Clone, Copy, Debug)]
pub struct Stat {
    /// The middle one.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Stat {
    /// Of at least one measurement.
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            min: values[0],
            max: values[values.len() - 1],
        }
    }
}

impl std::fmt::Display for Stat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = if self.median.abs() < 10.0 { 2 } else { 0 };
        write!(
            f,
            "{:.digits$} ({:.digits$} to {:.digits$})",
            self.median, self.min, self.max
        )
    }
}

/// Prints a table.
pub fn table(title: &str, head: &[&str], rows: &[Vec<String>]) {
    println!("\n### {title}\n");
    println!("| {} |", head.join(" | "));
    println!("|{}", "---|".repeat(head.len()));
    for row in rows {
        println!("| {} |", row.join(" | "));
    }
}

/// Prints a bound and whether it is kept.
pub fn bound(what: &str, value: f64, limit: f64, at_most: bool) -> bool {
    let kept = if at_most {
        value <= limit
    } else {
        value >= limit
    };
    let sign = if at_most { "≤" } else { "≥" };
    println!(
        "{} {what}: {value:.2} {sign} {limit:.2}",
        if kept { "ok  " } else { "FAIL" }
    );
    kept
}
