//! How the results of guests are read and judged.

#![allow(clippy::panic, reason = "in a test a broken assumption has to stop it")]

use std::fs;
use std::path::Path;

use super::output::{Outcome, Results, excerpt, parse};
use super::report::{AllowedSkip, Run, merge, render};
use super::{ALLOWED_SKIPS, CORE_PARTS, KERNELS, Mode, PARTS, Turn, parts, turns};

const GOOD: &str = "\
@@ kernel 6.1.0-1-amd64
@@ start connect

running 4 tests
test one ... BACKEND fentry one
BACKEND kprobe one
ok
test module::two ... noise without an endSKIP two: no tracepoint here
more noise\r
ok
test three - should panic ... ok
test four ... ignored, not now

test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.07s

@@ exit connect 0

@@ end
";

fn run(text: &str) -> Run {
    Run {
        series: "6.1".to_owned(),
        kernel: "6.1.0-1-amd64 (6.1.5-1)".to_owned(),
        mode: Some(Mode::Default),
        needs_backends: false,
        needs_tests: true,
        seconds: 9,
        results: parse(text),
    }
}

fn outcomes(results: &Results) -> Vec<(&str, Outcome)> {
    results
        .tests
        .iter()
        .map(|test| (test.name.as_str(), test.outcome.clone()))
        .collect()
}

#[test]
fn results_are_read_between_other_output() {
    let results = parse(GOOD);
    assert_eq!(results.release.as_deref(), Some("6.1.0-1-amd64"));
    assert_eq!(results.problems, [""; 0]);
    assert_eq!(
        outcomes(&results),
        [
            ("one", Outcome::Passed),
            (
                "module::two",
                Outcome::Skipped("no tracepoint here".to_owned())
            ),
            ("three", Outcome::Passed),
            ("four", Outcome::Skipped("ignored, not now".to_owned())),
        ]
    );
    assert_eq!(results.tests[0].backends, ["fentry", "kprobe"]);
}

#[test]
fn a_failure_is_found_even_if_other_output_hides_its_result() {
    let text = "@@ start a\ntest one ... noiseFAILED\ntest two ... noiseok\n\nfailures:\n\n\
                ---- one stdout ----\ntest two ... FAILED\n\nfailures:\n    one\n\n\
                test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
                @@ exit a 101\n@@ end\n";
    let results = parse(text);
    assert_eq!(
        outcomes(&results),
        [("one", Outcome::Failed), ("two", Outcome::Passed)]
    );
    assert_eq!(results.problems, [""; 0]);
    assert!(excerpt(text).contains("---- one stdout ----"));
    assert_eq!(excerpt(GOOD), "");
}

#[test]
fn a_test_that_does_not_end_has_failed() {
    let text = "@@ start a\ntest one ... ok\ntest two ... \n@@ exit a 137\n@@ end\n";
    let results = parse(text);
    assert_eq!(
        outcomes(&results),
        [("one", Outcome::Passed), ("two", Outcome::Failed)]
    );
    assert_eq!(
        results.problems,
        ["a was killed: out of time, or out of memory"]
    );
}

#[test]
fn a_guest_that_stops_has_failed() {
    let results = parse("@@ start a\ntest one ... ");
    assert_eq!(outcomes(&results), [("one", Outcome::Failed)]);
    assert_eq!(
        results.problems,
        ["the guest stopped during a", "the guest did not finish"]
    );
    assert_eq!(parse("").problems, ["the guest did not finish"]);
}

#[test]
fn a_lost_result_is_a_problem() {
    let text = GOOD.replace("3 passed", "4 passed");
    assert_eq!(parse(&text).problems.len(), 1);
}

#[test]
fn only_allowed_skips_are_accepted() {
    let allowed = |series| {
        [("", "ignored"), (series, "no tracepoint")]
            .map(|(series, reason)| AllowedSkip { series, reason })
    };
    assert_eq!(run(GOOD).faults(&allowed("6.1")), [""; 0]);
    assert_eq!(
        run(GOOD).faults(&allowed("5.10")),
        ["connect::module::two was skipped for a reason that is not allowed: no tracepoint here"]
    );
}

#[test]
fn a_backend_on_which_no_test_passed_is_a_fault() {
    let run = Run {
        needs_backends: true,
        ..run(GOOD)
    };
    let allowed = [AllowedSkip {
        series: "",
        reason: "",
    }];
    assert_eq!(
        run.faults(&allowed),
        ["no test passed on the tracepoint backend"]
    );
}

#[test]
fn a_run_without_tests_is_a_fault() {
    assert_eq!(run("@@ end\n").faults(&[]), ["no test ran"]);
}

#[test]
fn the_table_has_a_row_for_each_backend_and_the_reasons_for_skips_below() {
    let expected = "\
kernel                   mode     backend  passed  failed  skipped  seconds
6.1.0-1-amd64 (6.1.5-1)  default  fentry        1       0        0
6.1.0-1-amd64 (6.1.5-1)  default  kprobe        1       0        0
6.1.0-1-amd64 (6.1.5-1)  default  -             1       0        2        9

skipped:
  ignored, not now
    6.1 default connect::four
  no tracepoint here
    6.1 default connect::module::two
";
    let allowed = [AllowedSkip {
        series: "",
        reason: "",
    }];
    assert_eq!(render(&[run(GOOD)], &allowed), expected);
}

#[test]
fn the_parts_of_a_kernel_are_one_run_with_the_faults_of_each() {
    let text = "@@ kernel 6.1\n@@ start flows\ntest five ... FAILED\n@@ exit flows 101\n@@ end\n";
    let part = Run {
        needs_backends: true,
        ..run(text)
    };
    let other_mode = Run {
        mode: Some(Mode::Paranoid),
        ..run(GOOD)
    };
    let runs = merge(vec![run(GOOD), part, other_mode]);
    let [whole, other] = &runs[..] else {
        panic!("{} runs", runs.len());
    };
    assert_eq!(other.mode, Some(Mode::Paranoid));
    assert_eq!((other.results.tests.len(), other.seconds), (4, 9));
    assert_eq!((whole.results.tests.len(), whole.seconds), (5, 18));
    let faults = whole.faults(&[]).join("\n");
    assert!(faults.contains("flows::five failed"), "{faults}");
    assert!(faults.contains("the tracepoint backend"), "{faults}");
}

#[test]
fn with_turns_each_part_runs_on_one_kernel_and_after_three_runs_on_all() {
    let everything = parts(&KERNELS[0], Mode::Default, &[], Turn::Everything);
    assert_eq!(everything.len(), PARTS.len() + 1);
    let (core, others) = everything.split_at(CORE_PARTS);
    for other in others {
        let mut seen = Vec::new();
        for number in 0..3 {
            let shares = turns(3, number)
                .into_iter()
                .map(|turn| parts(&KERNELS[0], Mode::Default, &[], turn));
            let runs = shares.enumerate().filter_map(|(kernel, parts)| {
                assert_eq!(&parts[..CORE_PARTS], core);
                parts[CORE_PARTS..].contains(other).then_some(kernel)
            });
            let runs: Vec<_> = runs.collect();
            assert_eq!(runs.len(), 1, "{other:?}");
            seen.extend(runs);
        }
        seen.sort_unstable();
        assert_eq!(seen, [0, 1, 2], "{other:?}");
    }
}

#[test]
fn a_test_that_passes_at_the_second_attempt_is_reported_but_is_no_fault() {
    let first = "@@ start a\ntest one ... FAILED\ntest two ... FAILED\ntest three ... ok\n\n\
                 test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n\
                 @@ exit a 101\n@@ end\n";
    let second = "@@ start a\ntest one ... ok\ntest two ... FAILED\n\n\
                  test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out\n\
                  @@ exit a 101\n@@ end\n";
    let mut run = run(first);
    assert_eq!(run.results.failed(), ["one", "two"]);
    run.results.take_second_attempt(parse(second));
    assert_eq!(run.results.failed(), ["two"]);
    assert_eq!(run.faults(&[]), ["a::two failed"]);
    let text = render(&[run], &[]);
    assert!(
        text.contains("passed at the second attempt:\n  6.1 default: one\n"),
        "{text}"
    );
}

/// The source text of all tests below a directory, without white space.
fn sources(directory: &Path) -> String {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{directory:?}: {error}"));
    let texts = entries.flatten().map(|entry| match entry.path() {
        path if path.is_dir() => sources(&path),
        path => fs::read_to_string(path).unwrap_or_default(),
    });
    texts
        .map(|text| text.split_whitespace().collect::<String>())
        .collect()
}

#[test]
fn each_skip_that_is_allowed_is_one_that_a_test_can_give() {
    let tests = sources(&crate::root().join("tests"));
    for AllowedSkip { reason, .. } in ALLOWED_SKIPS {
        // A version is an argument of the function that makes the reason.
        let wanted = match reason.strip_prefix("before Linux ") {
            Some(version) => format!("since(({})", version.replace('.', ",")),
            None => reason.trim_end_matches(": ").replace(' ', ""),
        };
        assert!(tests.contains(&wanted), "no test is skipped for {reason:?}");
    }
}
