//! Reads what a guest wrote: the lines of its first program, and between them
//! those of libtest.
//!
//! Tests add two kinds of line, written to stderr itself (libtest would keep
//! back what `eprintln!` writes):
//!
//! - `SKIP <test name>: <why>`: the test could not run; libtest reports it as ok.
//! - `BACKEND <fentry|kprobe|tracepoint> <test name>`: the test traced
//!   connects with this backend. A test may name several.
//!
//! libtest writes the name of a test before it runs and the result after it, so
//! anything the test or its children write may come between the two.

/// The names that a `BACKEND` line may have.
pub const BACKENDS: &[&str] = &["fentry", "kprobe", "tracepoint"];

/// How a test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    Failed,
    /// With the reason that the test gave.
    Skipped(String),
}

/// One test of one guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    pub program: String,
    pub name: String,
    pub backends: Vec<String>,
    pub outcome: Outcome,
}

/// All that is known of a guest from its results.
#[derive(Debug, Default)]
pub struct Results {
    /// The output of `uname -r`.
    pub release: Option<String>,
    pub tests: Vec<Test>,
    /// Problems other than failed tests.
    pub problems: Vec<String>,
    /// The names of tests that passed at the second attempt only.
    pub flaky: Vec<String>,
}

impl Results {
    /// The names of the tests that failed.
    pub fn failed(&self) -> Vec<String> {
        let failed = self.tests.iter().filter(|it| it.outcome == Outcome::Failed);
        failed.map(|test| test.name.clone()).collect()
    }

    /// Takes the results of those that failed from another guest, which ran them again.
    pub fn take_second_attempt(&mut self, second: Self) {
        self.problems.extend(second.problems);
        for again in second.tests {
            let same = |test: &&mut Test| test.name == again.name;
            let Some(test) = self.tests.iter_mut().find(same) else {
                continue;
            };
            if again.outcome != Outcome::Failed {
                self.flaky.push(again.name.clone());
            }
            *test = again;
        }
    }
}

/// Reads the results of a guest.
pub fn parse(text: &str) -> Results {
    let mut results = Results::default();
    let mut program: Option<Program> = None;
    let mut ended = false;
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        let Some(report) = line.strip_prefix("@@ ") else {
            if let Some(program) = &mut program {
                program.line(line);
            }
            continue;
        };
        let (what, rest) = report.split_once(' ').unwrap_or((report, ""));
        match what {
            "kernel" => results.release = Some(rest.to_owned()),
            "start" => program = Some(Program::new(rest)),
            "exit" => {
                let status = rest.rsplit(' ').next().unwrap_or_default();
                if let Some(program) = program.take() {
                    program.finish(Some(status), &mut results);
                }
            }
            "problem" => results.problems.push(rest.to_owned()),
            "end" => ended = true,
            _ => results.problems.push(format!("unknown report: {report}")),
        }
    }
    if let Some(program) = program {
        program.finish(None, &mut results);
    }
    if !ended {
        results.problems.push("the guest did not finish".to_owned());
    }
    results
}

/// The part of a guest's results that shows why it failed: all from the programs
/// that failed or did not end, cut to the last lines of each.
pub fn excerpt(text: &str) -> String {
    const LINES: usize = 200;
    let mut excerpt = String::new();
    for part in text.split("@@ start ").skip(1) {
        let name = part.lines().next().unwrap_or_default();
        if part.contains(&format!("@@ exit {name} 0")) {
            continue;
        }
        let lines: Vec<&str> = part
            .lines()
            .filter(|line| !line.trim().is_empty())
            .collect();
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            excerpt.push_str(line);
            excerpt.push('\n');
        }
    }
    excerpt
}

/// A test as far as its output has been read.
struct Pending {
    name: String,
    backends: Vec<String>,
    skip: Option<String>,
    /// `None` until libtest says whether it passed.
    passed: Option<bool>,
}

impl Pending {
    /// Whether this is the test's name, with or without its modules.
    fn is_called(&self, name: &str) -> bool {
        self.name == name || self.name.rsplit("::").next() == Some(name)
    }

    fn line(&mut self, line: &str) {
        match line {
            "ok" => self.passed = Some(true),
            "FAILED" => self.passed = Some(false),
            _ if line == "ignored" || line.starts_with("ignored, ") => {
                self.passed = Some(true);
                self.skip = Some(line.to_owned());
            }
            _ => self.said(line),
        }
    }

    /// Looks for the test's own lines, which may follow other output on the
    /// same line.
    fn said(&mut self, line: &str) {
        if let Some(at) = line.find("SKIP ") {
            let said = &line[at + "SKIP ".len()..];
            match said.split_once(": ") {
                Some((name, why)) if self.is_called(name) => self.skip = Some(why.to_owned()),
                // Under another name it still means that the test did not pass.
                _ if at == 0 => self.skip = Some(said.to_owned()),
                _ => {}
            }
        }
        if let Some(at) = line.find("BACKEND ") {
            let mut words = line[at + "BACKEND ".len()..].split_whitespace();
            if let (Some(backend), Some(name)) = (words.next(), words.next())
                && BACKENDS.contains(&backend)
                && self.is_called(name)
                && !self.backends.iter().any(|have| have == backend)
            {
                self.backends.push(backend.to_owned());
            }
        }
    }
}

/// A test program as far as its output has been read.
struct Program {
    name: String,
    tests: Vec<Pending>,
    /// Set once libtest begins to repeat what failed.
    repeating: bool,
    /// The last line of libtest.
    summary: Option<String>,
}

impl Program {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            tests: Vec::new(),
            repeating: false,
            summary: None,
        }
    }

    fn line(&mut self, line: &str) {
        if let Some(summary) = line.strip_prefix("test result: ") {
            self.summary = Some(summary.to_owned());
        } else if line == "failures:" {
            self.repeating = true;
        } else if self.repeating {
            let failed = line.strip_prefix("    ");
            if let Some(test) = self
                .tests
                .iter_mut()
                .find(|test| failed == Some(&test.name))
            {
                test.passed = Some(false);
            }
        } else if let Some((name, rest)) = line
            .strip_prefix("test ")
            .and_then(|line| line.split_once(" ... "))
        {
            let name = name.trim_end_matches(" - should panic").to_owned();
            self.tests.push(Pending {
                name,
                backends: Vec::new(),
                skip: None,
                passed: None,
            });
            self.in_test(rest);
        } else {
            self.in_test(line);
        }
    }

    fn in_test(&mut self, line: &str) {
        if let Some(test) = self.tests.last_mut() {
            test.line(line);
        }
    }

    /// Decides the result of each test; `status` is missing if the guest stopped before.
    fn finish(self, status: Option<&str>, results: &mut Results) {
        let name = self.name;
        match (&self.summary, status) {
            (Some(_), Some(_)) => {}
            (_, None) => results
                .problems
                .push(format!("the guest stopped during {name}")),
            // The shell adds 128 to the number of the signal.
            (None, Some("137")) => results
                .problems
                .push(format!("{name} was killed: out of time, or out of memory")),
            (None, Some(status)) => {
                results
                    .problems
                    .push(format!("{name} ended early with status {status}"));
            }
        }
        let mut failed = 0;
        let count = self.tests.len();
        for test in self.tests {
            // If other output hides a result, the list of failures at the end shows whether it
            // failed. Without that list, it counts as failed.
            let outcome = match (test.passed.unwrap_or(self.summary.is_some()), test.skip) {
                (false, _) => Outcome::Failed,
                (true, Some(why)) => Outcome::Skipped(why),
                (true, None) => Outcome::Passed,
            };
            failed += usize::from(outcome == Outcome::Failed);
            results.tests.push(Test {
                program: name.clone(),
                name: test.name,
                backends: test.backends,
                outcome,
            });
        }
        // libtest's counts at the end show whether a result was missed.
        if let Some(summary) = self.summary {
            let counted = |what: &str| -> usize {
                let part = summary
                    .split(['.', ';'])
                    .map(str::trim)
                    .find_map(|part| part.strip_suffix(what));
                part.and_then(|number| number.trim().parse().ok())
                    .unwrap_or(0)
            };
            let all = counted("passed") + counted("failed") + counted("ignored");
            if counted("failed") != failed || all != count {
                results.problems.push(format!(
                    "{name}: {count} tests were read, {failed} of them failed, but libtest says {summary}"
                ));
            }
        }
    }
}
