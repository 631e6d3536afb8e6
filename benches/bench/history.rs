//! Ratios of earlier runs, a line of JSON for each run, and what has become worse since.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use crate::report::{Figure, Machine};
use crate::stat::Stat;

/// A ratio that is worse than before by this much is shown as a regression.
const TOLERANCE: f64 = 0.1;

/// Appends what was measured to a history.
///
/// # Errors
/// The file can't be written.
pub fn append(file: &Path, machine: &Machine, figures: &[Figure]) -> Result<()> {
    let mut ratios = Map::new();
    for figure in figures {
        let value = json!({ "value": figure.value, "at_most": figure.at_most });
        ratios.insert(format!("{}: {}", figure.part, figure.what), value);
    }
    let line = json!({
        "time": SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
        "commit": machine.commit,
        "kernel": machine.kernel,
        "arch": machine.arch,
        "cpus": machine.cpus,
        "ratios": ratios,
    });
    let mut file = OpenOptions::new().create(true).append(true).open(file)?;
    writeln!(file, "{line}").context("failed to write the history")
}

/// Prints for each ratio of a history a sparkline, its last value, and the median of its earlier values
/// on machines like the last one. False if one has become worse by more than [`TOLERANCE`].
///
/// # Errors
/// The file can't be read, or has something else in it.
pub fn show(file: &Path) -> Result<bool> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("failed to read {}", file.display()))?;
    let runs = text.lines().map(serde_json::from_str);
    let runs: Vec<Value> = runs.collect::<Result<_, _>>()?;
    let last = runs.last().context("there is no run in the history")?;
    let same = |run: &&Value| {
        ["kernel", "arch", "cpus"]
            .iter()
            .all(|key| run[key] == last[key])
    };
    let runs: Vec<&Value> = runs.iter().filter(same).collect();
    // A short run does not have all of them.
    let mut names: Vec<&String> = Vec::new();
    for run in &runs {
        let ratios = run["ratios"].as_object().into_iter().flat_map(Map::keys);
        names.extend(ratios);
    }
    names.sort_unstable();
    names.dedup();
    let mut is_good = true;
    for name in names {
        let of = |run: &&Value| run["ratios"][name]["value"].as_f64();
        let mut values: Vec<f64> = runs.iter().filter_map(of).collect();
        let line = sparkline(&values);
        let Some(now) = of(&last).and_then(|_| values.pop()) else {
            continue;
        };
        if values.is_empty() {
            println!("{line} {name}: {now:.3}");
            continue;
        }
        let before = Stat::of(values).median;
        let at_most = last["ratios"][name]["at_most"] == true;
        let change = (now - before) / before.abs();
        let is_worse = if at_most { change } else { -change } > TOLERANCE;
        let mark = if is_worse { "  WORSE" } else { "" };
        println!(
            "{line} {name}: {now:.3}, before {before:.3} ({:+.0} %){mark}",
            100.0 * change
        );
        is_good &= !is_worse;
    }
    Ok(is_good)
}

/// A sparkline: a character for each value.
fn sparkline(values: &[f64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let low = values.iter().copied().fold(f64::MAX, f64::min);
    let high = values.iter().copied().fold(f64::MIN, f64::max);
    let bar = |value: &f64| {
        let place = (value - low) / (high - low).max(f64::MIN_POSITIVE) * 7.0;
        BARS.get(place.round() as usize).copied().unwrap_or(' ')
    };
    values.iter().map(bar).collect()
}
