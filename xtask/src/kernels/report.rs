//! Judges the results of all guests and writes them as a table.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use super::guest::Mode;
use super::output::{BACKENDS, Outcome, Results, Test};

/// A reason for which a test may be skipped.
pub struct AllowedSkip {
    /// The kernel series for which it is allowed, or "" for all.
    pub series: &'static str,
    /// A part of the reason that the test gives.
    pub reason: &'static str,
}

/// A guest: what it was to run, and its results.
pub struct Run {
    /// The kernel series, such as `6.1`.
    pub series: String,
    /// The kernel's full version.
    pub kernel: String,
    /// `None` if its kernel could not even be fetched.
    pub mode: Option<Mode>,
    /// Whether each backend must have a test that passed.
    pub needs_backends: bool,
    /// Whether a run without a single test is a failure.
    pub needs_tests: bool,
    pub seconds: u64,
    pub results: Results,
}

impl Run {
    fn mode_name(&self) -> &'static str {
        self.mode.map_or("-", Mode::name)
    }

    fn has_passed_on(&self, backend: &str) -> bool {
        self.results.tests.iter().any(|test| {
            test.outcome == Outcome::Passed && test.backends.iter().any(|have| have == backend)
        })
    }

    /// Why the run is a failure, one line for each reason.
    pub fn faults(&self, allowed: &[AllowedSkip]) -> Vec<String> {
        let mut faults = self.results.problems.clone();
        for test in &self.results.tests {
            match &test.outcome {
                Outcome::Passed => {}
                Outcome::Failed => faults.push(format!("{}::{} failed", test.program, test.name)),
                Outcome::Skipped(why) => {
                    let allowed = allowed.iter().any(|skip| {
                        (skip.series.is_empty() || skip.series == self.series)
                            && why.contains(skip.reason)
                    });
                    if !allowed {
                        faults.push(format!(
                            "{}::{} was skipped for a reason that is not allowed: {why}",
                            test.program, test.name
                        ));
                    }
                }
            }
        }
        if self.needs_tests && self.results.tests.is_empty() {
            faults.push("no test ran".to_owned());
        }
        if self.needs_backends {
            let missing = BACKENDS
                .iter()
                .filter(|backend| !self.has_passed_on(backend));
            faults
                .extend(missing.map(|backend| format!("no test passed on the {backend} backend")));
        }
        faults
    }
}

/// Joins the guests of the same kernel and mode, each of which ran a part of the tests.
pub fn merge(parts: Vec<Run>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for mut part in parts {
        if part.needs_tests && part.results.tests.is_empty() {
            let problem = "a guest ran no test".to_owned();
            part.results.problems.push(problem);
        }
        let same = |run: &&mut Run| run.series == part.series && run.mode == part.mode;
        match runs.iter_mut().find(same) {
            Some(run) => {
                run.needs_backends |= part.needs_backends;
                run.seconds += part.seconds;
                run.results.tests.extend(part.results.tests);
                run.results.problems.extend(part.results.problems);
                run.results.flaky.extend(part.results.flaky);
            }
            None => runs.push(part),
        }
    }
    runs
}

/// Draws the table, and below it why tests were skipped and what is wrong.
pub fn render(runs: &[Run], allowed: &[AllowedSkip]) -> String {
    let mut rows = vec![
        [
            "kernel", "mode", "backend", "passed", "failed", "skipped", "seconds",
        ]
        .map(str::to_owned)
        .to_vec(),
    ];
    for run in runs {
        rows.extend(rows_of(run));
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                // The first columns are words, the others are numbers.
                if column < 3 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
    }

    let mut skips: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for run in runs {
        for test in &run.results.tests {
            if let Outcome::Skipped(why) = &test.outcome {
                let by = format!(
                    "{} {} {}::{}",
                    run.series,
                    run.mode_name(),
                    test.program,
                    test.name
                );
                skips.entry(why).or_default().insert(by);
            }
        }
    }
    if !skips.is_empty() {
        text.push_str("\nskipped:\n");
    }
    for (why, tests) in skips {
        let _ = writeln!(text, "  {why}");
        for test in tests {
            let _ = writeln!(text, "    {test}");
        }
    }

    if runs.iter().any(|run| !run.results.flaky.is_empty()) {
        text.push_str("\npassed at the second attempt:\n");
    }
    for run in runs {
        for name in &run.results.flaky {
            let _ = writeln!(text, "  {} {}: {name}", run.series, run.mode_name());
        }
    }

    let faults = runs.iter().flat_map(|run| {
        let faults = run.faults(allowed).into_iter();
        faults.map(move |fault| format!("  {} {}: {fault}\n", run.series, run.mode_name()))
    });
    let faults: String = faults.collect();
    if !faults.is_empty() {
        text.push_str("\nFAILED:\n");
        text.push_str(&faults);
    }
    text
}

/// A row for each backend, and one for the tests that have none.
///
/// A test that names several backends is in the row of each.
fn rows_of(run: &Run) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for backend in BACKENDS.iter().copied().map(Some).chain([None]) {
        let tests: Vec<&Test> = run
            .results
            .tests
            .iter()
            .filter(|test| match backend {
                Some(name) => test.backends.iter().any(|have| have == name),
                None => test.backends.is_empty(),
            })
            .collect();
        if tests.is_empty() && backend.is_some() {
            continue;
        }
        let count = |wanted: fn(&Outcome) -> bool| {
            tests
                .iter()
                .filter(|test| wanted(&test.outcome))
                .count()
                .to_string()
        };
        rows.push(vec![
            run.kernel.clone(),
            run.mode_name().to_owned(),
            backend.unwrap_or("-").to_owned(),
            count(|outcome| *outcome == Outcome::Passed),
            count(|outcome| *outcome == Outcome::Failed),
            count(|outcome| matches!(outcome, Outcome::Skipped(_))),
            // The time is the guest's, so it is given once.
            if backend.is_none() {
                run.seconds.to_string()
            } else {
                String::new()
            },
        ]);
    }
    rows
}
