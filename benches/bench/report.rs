//! Medians, tables in Markdown, charts, targets, and bounds on gross regressions.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};

use crate::chart::{self, Bar};

/// What the parts have reported, for the document.
static REPORT: Mutex<Report> = Mutex::new(Report {
    parts: Vec::new(),
    charts: Vec::new(),
    figures: Vec::new(),
    broken: Vec::new(),
});

struct Report {
    /// The name of a part, and its Markdown.
    parts: Vec<(&'static str, String)>,
    /// The name of a file, and the chart.
    charts: Vec<(String, String)>,
    figures: Vec<Figure>,
    /// The parts with the bounds that were broken when they were measured last, as printed.
    broken: Vec<(&'static str, String)>,
}

/// A figure that has a target or a bound: a ratio, or a small difference.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The part that has measured it.
    pub part: &'static str,
    pub what: String,
    pub value: f64,
    /// Whether lower is better.
    pub at_most: bool,
}

/// What figures depend on in addition to the program.
#[derive(Clone, Debug)]
pub struct Machine {
    pub cpus: usize,
    pub kernel: String,
    pub arch: &'static str,
    /// The commit that was built.
    pub commit: String,
}

impl Machine {
    /// The one that this runs on.
    pub fn this() -> Self {
        let release = read("/proc/sys/kernel/osrelease");
        Self {
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            // What follows a dash names a build, not a kernel.
            kernel: release.split('-').next().unwrap_or_default().to_owned(),
            arch: std::env::consts::ARCH,
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
        }
    }
}

/// The commit, and whether anything that is built was changed since; `None` without git.
fn commit() -> Option<String> {
    let git = |args: &[&str]| Command::new("git").args(args).output().ok();
    let head = git(&["rev-parse", "--short", "HEAD"])?;
    let head = String::from_utf8(head.stdout).ok()?;
    let built = [
        "src",
        "benches/bench",
        "benches/bpf",
        "build.rs",
        "Cargo.lock",
    ];
    let is_same = git(&[&["diff", "--quiet", "HEAD", "--"], &built[..]].concat())?;
    let changed = if is_same.status.success() {
        ""
    } else {
        "-dirty"
    };
    Some(format!("{}{changed}", head.trim()))
}

/// The figures that were compared with targets and bounds so far.
pub fn figures() -> Vec<Figure> {
    report().figures.clone()
}

/// The bounds that were broken when their part was measured last.
pub fn broken() -> Vec<String> {
    let broken = &report().broken;
    broken.iter().map(|(_, outcome)| outcome.clone()).collect()
}

fn report() -> MutexGuard<'static, Report> {
    // Parts run one after the other. After a panic the report still consists of whole lines.
    REPORT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins the report of a part: says where and how it is measured.
pub fn begin(name: &'static str, rounds: usize) {
    let Machine {
        cpus,
        kernel,
        arch,
        commit,
    } = Machine::this();
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    let mut report = report();
    report.broken.retain(|(part, _)| *part != name);
    report.parts.push((name, String::new()));
    drop(report);
    say(&format!(
        "\n_{cpus} CPUs, Linux {kernel}, {arch}, commit {commit}; load average before: {load}; {rounds} rounds; medians, with the quartiles in parentheses._",
    ));
}

fn read(path: &str) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.trim().to_owned()
}

/// Prints a line or more, which the document gets as well.
fn say(text: &str) {
    println!("{text}");
    if let Some((_, part)) = report().parts.last_mut() {
        part.push_str(text);
        part.push('\n');
    }
}

/// Prints a table.
pub fn table(title: &str, head: &[&str], rows: &[Vec<String>]) {
    let mut text = format!("\n### {title}\n\n| {} |\n", head.join(" | "));
    text += &format!("|{}", "---|".repeat(head.len()));
    for row in rows {
        let _ = write!(text, "\n| {} |", row.join(" | "));
    }
    say(&text);
}

/// Draws bars; `file` is the name without its ending.
pub fn bars(file: &str, title: &str, bars: &[Bar]) {
    if bars.is_empty() {
        return;
    }
    let mut report = report();
    report
        .charts
        .push((file.to_owned(), chart::svg(title, bars)));
    if let Some((_, part)) = report.parts.last_mut() {
        let _ = write!(part, "\n![{title}](performance/{file}.svg)\n");
    }
}

/// Prints a target and whether it is met. Only a [`bound`] makes the bench fail.
pub fn target(what: &str, value: f64, limit: f64, at_most: bool) {
    keep(what, value, at_most);
    let met = if within(value, limit, at_most) {
        "met"
    } else {
        "**missed**"
    };
    let sign = if at_most { "≤" } else { "≥" };
    say(&format!(
        "\nTarget: {what} {sign} {limit}: {met}, it is {value:.3}."
    ));
}

/// Prints a bound and whether it is kept. Bounds should hold on a busy machine too: only a gross
/// regression breaks them.
pub fn bound(what: &str, value: f64, limit: f64, at_most: bool) -> bool {
    keep(what, value, at_most);
    let kept = within(value, limit, at_most);
    let sign = if at_most { "≤" } else { "≥" };
    let outcome = format!("{what}: {value:.2} {sign} {limit:.2}");
    println!("{} {outcome}", if kept { "ok  " } else { "FAIL" });
    let mut report = report();
    if let (false, Some((part, _))) = (kept, report.parts.last()) {
        let part = *part;
        report.broken.push((part, outcome));
    }
    kept
}

fn keep(what: &str, value: f64, at_most: bool) {
    let mut report = report();
    if let Some((part, _)) = report.parts.last() {
        let figure = Figure {
            part,
            what: what.to_owned(),
            value,
            at_most,
        };
        report.figures.push(figure);
    }
}

fn within(value: f64, limit: f64, at_most: bool) -> bool {
    if at_most {
        value <= limit
    } else {
        value >= limit
    }
}

/// Puts what was reported into a document, between the marks of each part, and the charts beside
/// it.
///
/// # Errors
/// A mark is missing, or a file can't be written.
pub fn update(document: &Path) -> Result<()> {
    let report = report();
    let mut text = std::fs::read_to_string(document)
        .with_context(|| format!("failed to read {}", document.display()))?;
    for (name, part) in &report.parts {
        let (begin, end) = (
            format!("<!-- bench {name} -->\n"),
            format!("<!-- end {name} -->"),
        );
        let (Some(from), Some(to)) = (text.find(&begin), text.find(&end)) else {
            bail!("{} has no marks for {name}", document.display());
        };
        text.replace_range(from + begin.len()..to, &format!("{part}\n"));
    }
    std::fs::write(document, text)?;
    let folder = document.with_extension("");
    std::fs::create_dir_all(&folder)?;
    for (file, svg) in &report.charts {
        std::fs::write(folder.join(file).with_extension("svg"), svg)?;
    }
    Ok(())
}
