//! The TIME column of a file's packets: `--time`, and the time zone that TZ names.

use std::path::Path;

use crate::common::frames::syn_frame;
use crate::common::{CLIENT4, Output, SERVER4, Tool, command};
use crate::oracle::parity::CaptureFile;
use crate::oracle::pcap_write;

/// 2025-11-24 16:00:00 UTC, and half a second later.
const TIMES: [u64; 2] = [1_764_000_000_000_042_999, 1_764_000_000_500_042_999];

fn capture(times: &[u64]) -> CaptureFile {
    let frame = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    let frames = times.iter().map(|at| (*at, &frame));
    CaptureFile::new(&pcap_write::timed(1, frames))
}

/// Runs a command on the file with these options, in the named time zone.
fn replay(subcommand: &str, file: &CaptureFile, zone: &str, options: &[&str]) -> Output {
    let mut command = command([subcommand, "-r"]);
    command.arg(&file.path).args(options).env("TZ", zone);
    let output = Tool::spawn(&mut command).finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    output
}

fn times(output: &Output) -> Vec<&str> {
    let first = |line: &'_ String| line.split(' ').next().unwrap_or_default().len();
    let lines = output.stdout.iter().skip(1);
    lines.map(|line| &line[..first(line)]).collect()
}

#[test]
fn the_time_column_is_shown_as_asked_for() {
    let file = capture(&TIMES);
    for (style, expected) in [
        (
            "local",
            ["2025-11-24T16:00:00.000042", "2025-11-24T16:00:00.500042"],
        ),
        (
            "iso",
            [
                "2025-11-24T16:00:00.000042+00:00",
                "2025-11-24T16:00:00.500042+00:00",
            ],
        ),
        ("unix", ["1764000000.000042", "1764000000.500042"]),
        ("delta", ["0.000000", "0.500000"]),
    ] {
        let output = replay("port-monitor", &file, "UTC", &["--time", style]);
        assert_eq!(times(&output), expected, "{output:#?}");
        let [title, row] = [0, 1].map(|at| {
            let line = &output.stdout[at];
            let (_, rest) = line.split_once(' ').unwrap();
            line.len() - rest.trim_start().len()
        });
        assert_eq!(title, row, "{output:#?}");
    }
}

#[test]
fn packets_of_today_have_no_date_unless_it_is_asked_for() {
    let now = jiff::Timestamp::now();
    let file = capture(&[now.as_nanosecond().try_into().unwrap()]);
    let output = replay("port-monitor", &file, "UTC", &[]);
    // If midnight has passed since, the packet is of the day before.
    if now.to_zoned(jiff::tz::TimeZone::UTC).date()
        == jiff::Timestamp::now()
            .to_zoned(jiff::tz::TimeZone::UTC)
            .date()
    {
        assert_eq!(
            times(&output)[0].len(),
            "16:00:00.000042".len(),
            "{output:#?}"
        );
    }
    let output = replay("port-monitor", &file, "UTC", &["--time", "iso"]);
    assert!(times(&output)[0].contains('T'), "{output:#?}");
}

#[test]
fn a_time_zone_can_be_named() {
    let file = capture(&TIMES);
    let mut zones = vec![("JST-9", "2025-11-25T01:00:00")];
    if Path::new("/usr/share/zoneinfo/Asia/Tokyo").exists() {
        zones.push(("Asia/Tokyo", "2025-11-25T01:00:00"));
        zones.push(("America/New_York", "2025-11-24T11:00:00"));
    }
    for (zone, expected) in zones {
        for subcommand in ["port-monitor", "flows", "syn-count"] {
            let output = replay(subcommand, &file, zone, &[]);
            // The time of an interval is that of its end.
            let (day_and_hour, _) = expected.split_once(':').unwrap();
            assert!(times(&output)[0].starts_with(day_and_hour), "{output:#?}");
            let has_notice = output.stderr.iter().any(|line| line.contains("notice"));
            assert!(!has_notice, "{output:#?}");
        }
    }
}

#[test]
fn an_unknown_time_zone_is_reported_and_is_utc() {
    let file = capture(&TIMES);
    let output = replay("port-monitor", &file, "Asia/Tokio", &[]);
    assert_eq!(times(&output)[0], "2025-11-24T16:00:00.000042");
    assert!(
        output.stderr[0].starts_with("notice: the time zone TZ=Asia/Tokio is unknown"),
        "{output:#?}"
    );
    // JSON is in UTC whatever the zone is.
    let output = replay("port-monitor", &file, "Asia/Tokio", &["--json"]);
    assert!(output.stderr.is_empty(), "{output:#?}");
    assert_eq!(output.json()[0]["ts"], "2025-11-24T16:00:00.000042999Z");
}
