//! The command line, as far as it goes without any privilege.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;

use common::tool::{PublicBinary, as_nobody, command_of};
use common::{Output, Tool, command};
use tempfile::NamedTempFile;

fn run<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Output {
    Tool::spawn(&mut command(args)).finish()
}

/// What a wrong command line is told: always two lines, and status 2.
fn refusal<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> (String, String) {
    let output = run(args);
    assert_eq!(output.code(), 2, "{output:#?}");
    assert!(output.stdout.is_empty(), "{output:#?}");
    assert_eq!(output.stderr.len(), 2, "{output:#?}");
    let (error, hint) = output.complaint();
    (error, hint.unwrap())
}

#[test]
fn a_wrong_value_is_refused_in_two_lines_that_name_it() {
    for (line, named) in [
        ("syn-count nosuch0", "nosuch0"),
        ("port-monitor lo nosuch0", "nosuch0"),
        (
            "syn-count a-name-that-is-too-long",
            "a-name-that-is-too-long",
        ),
        ("port-monitor -p 70000 lo", "70000"),
        ("port-monitor -p 80-70 lo", "80-70"),
        ("port-monitor -p http lo", "http"),
        ("port-monitor --sport 0x50 lo", "0x50"),
        ("connect-trace -p 65536", "65536"),
        ("syn-count --src 10.0.0.0/33 lo", "10.0.0.0/33"),
        ("syn-count --dst fd00::/129 lo", "fd00::/129"),
        ("connect-trace --dst example.org", "example.org"),
        ("port-monitor --flags syn,!syn lo", "syn"),
        ("port-monitor --flags sin lo", "sin"),
        ("syn-count --flags ack lo", "SYN"),
        (
            "port-monitor --payload 0:0102030405060708090a0b0c0d0e0f1011 lo",
            "16",
        ),
        ("port-monitor --payload 0:123 lo", "123"),
        ("port-monitor --payload GET lo", "GET"),
        ("port-monitor --max-rate 0 lo", "--max-rate"),
        ("port-monitor --payload-bytes 257 lo", "257"),
        ("port-monitor --direction sideways lo", "sideways"),
        ("port-monitor --buffer-size 5000 lo", "5000"),
        ("port-monitor --buffer disk lo", "disk"),
        ("syn-count --mode warp lo", "warp"),
        ("syn-count -i 0 lo", "--interval"),
        ("syn-count --by colour lo", "colour"),
        ("syn-count --alert many --by saddr lo", "many"),
        ("syn-count -d -1 lo", "-1"),
        ("syn-count -c 0 lo", "--count"),
        ("syn-count -o xml lo", "xml"),
        ("flows --max-flows 0 lo", "--max-flows"),
        ("flows --idle-timeout never lo", "never"),
        ("check lo", "lo"),
        ("connect-trace --pid none", "none"),
        (
            "connect-trace --comm a-name-of-sixteen",
            "a-name-of-sixteen",
        ),
        ("connect-trace --backend magic", "magic"),
        ("frobnicate", "frobnicate"),
        ("syn-count --frobnicate lo", "--frobnicate"),
    ] {
        let (error, hint) = refusal(line.split(' '));
        assert!(error.contains(named), "{line}: {error}");
        assert!(!hint.is_empty(), "{line}");
    }
}

#[test]
fn options_that_contradict_each_other_are_refused() {
    for line in [
        "syn-count -4 -6 lo",
        "port-monitor -q -v lo",
        "port-monitor -r file.pcap lo",
        "syn-count --top 3 lo",
        "completions",
        "completions tcsh",
    ] {
        refusal(line.split(' '));
    }
}

#[test]
fn a_similar_name_is_proposed() {
    let (error, hint) = refusal(["syn-count", "lo0"]);
    assert!(error.contains("no interface \"lo0\""), "{error}");
    assert!(hint.starts_with("there are lo"), "{hint}");
    let (_, hint) = refusal(["syn-count", "--interva", "1", "lo"]);
    assert!(hint.contains("--interval"), "{hint}");
    let (_, hint) = refusal(["port-monitr"]);
    assert!(hint.contains("port-monitor"), "{hint}");
}

#[test]
fn a_hostile_argument_can_not_forge_a_line_or_reach_the_terminal() {
    for args in [
        ["syn-count", "a\nattached: all\x1b[2J"],
        ["port-monitor", "-pa\nhint: no\x1b[2J"],
        ["port-monitor", "--flags=a\nhint: no\x1b[2J"],
        ["port-monitor", "--src=a\nhint: no\x1b[2J"],
        ["port-monitor", "--payload=0:a\nhint: no\x1b[2J"],
        ["connect-trace", "--comm=aaaaaaaaaaaaaaaa\nhint: no\x1b[2J"],
        ["connect-trace", "--no\nhint: no\x1b[2J"],
        ["no\nhint: no\x1b[2J", "lo"],
        ["syn-count", "--read=/no\nhint: no\x1b[2J"],
    ] {
        let output = run(args);
        assert!([1, 2].contains(&output.code()), "{args:?}: {output:#?}");
        output.complaint();
        for line in &output.stderr {
            assert!(!line.contains('\x1b'), "{args:?}: {output:#?}");
        }
    }
    let (error, _) = refusal([OsStr::new("syn-count"), OsStr::from_bytes(b"\xff\xfe")]);
    assert!(!error.is_empty());
}

#[test]
fn a_file_that_is_no_capture_is_an_error_that_names_it() {
    let mut empty = NamedTempFile::new().unwrap();
    let path = empty.path().to_str().unwrap().to_owned();
    let tell = |path: &str| {
        let output = run(["syn-count", "--json", "-r", path]);
        let (error, hint) = output.complaint();
        assert_eq!(output.code(), 2, "{output:#?}");
        assert!(error.contains(path), "{error}");
        let hint = hint.unwrap();
        assert!(hint.contains("pcapng"), "{hint}");
    };
    tell(&path);
    empty.write_all(b"this is no capture of packets").unwrap();
    tell(&path);
    tell("/nonexistent.pcap");
    tell("/");
}

#[test]
fn without_privileges_each_command_names_the_capability_that_is_missing() {
    let binary = PublicBinary::new();
    for line in [
        "syn-count lo",
        "syn-count --mode tc lo",
        "port-monitor lo",
        "flows lo",
        "connect-trace",
        "connect-trace --backend kprobe",
    ] {
        let mut command = command_of(&binary.path(), line.split(' '));
        if nix::unistd::geteuid().is_root() {
            as_nobody(&mut command, &[]);
        }
        let output = Tool::spawn(&mut command).finish();
        assert_eq!(output.code(), 1, "{line}: {output:#?}");
        assert!(output.stdout.is_empty(), "{line}: {output:#?}");
        let (error, hint) = output.complaint();
        assert!(error.contains("CAP_BPF"), "{line}: {error}");
        assert!(hint.unwrap().contains("setcap"), "{line}");
    }
}

#[test]
fn help_is_no_error_and_explains_every_command() {
    let output = run(["--help"]);
    assert_eq!(output.code(), 0, "{output:#?}");
    assert!(output.stderr.is_empty(), "{output:#?}");
    let text = output.stdout.join("\n");
    for command in ["check", "completions", "man"] {
        assert!(text.contains(command), "{text}");
    }
    for command in ["syn-count", "port-monitor", "connect-trace", "flows"] {
        assert!(text.contains(command), "{text}");
        let output = run([command, "--help"]);
        assert_eq!(output.code(), 0, "{output:#?}");
        let text = output.stdout.join("\n");
        let usage = format!("Usage: tcpinspect {command} [OPTIONS]");
        assert!(text.contains(&usage), "{text}");
        for option in ["--output", "--duration", "--count", "--src", "--port"] {
            assert!(text.contains(option), "{command} {option}: {text}");
        }
        let widest = output.stdout.iter().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{command}: {widest:?}");
    }
}

#[test]
fn the_version_is_one_line() {
    let output = run(["--version"]);
    let expected = format!("tcpinspect {}", env!("CARGO_PKG_VERSION"));
    assert_eq!(output.stdout, [expected]);
    assert_eq!(output.code(), 0);
}

#[test]
fn without_a_command_the_help_is_shown_as_an_error() {
    let output = run([""; 0]);
    assert_eq!(output.code(), 2, "{output:#?}");
    assert!(output.stdout.is_empty(), "{output:#?}");
    assert!(output.stderr.join("\n").contains("syn-count"));
}

#[test]
fn completions_and_the_manual_know_every_command() {
    for args in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["man"],
    ] {
        let output = run(args);
        assert_eq!(output.code(), 0, "{args:?}: {output:#?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:#?}");
        let text = output.stdout.join("\n").replace('\\', "").to_lowercase();
        for word in [
            "syn-count",
            "port-monitor",
            "connect-trace",
            "flows",
            "idle-timeout",
        ] {
            assert!(text.contains(word), "{args:?}: no {word}");
        }
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    for args in [&["--help"][..], &["man"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Tool::spawn(command(args).stdout(writer)).finish();
        assert_eq!(output.code(), 0, "{args:?}: {output:#?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:#?}");
    }
}

#[test]
fn a_stdout_that_takes_nothing_is_an_error_and_a_closed_one_no_panic() {
    for args in [
        &["--help"][..],
        &["--version"],
        &["man"],
        &["completions", "bash"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = Tool::spawn(command(args).stdout(full)).finish();
        assert_eq!(output.code(), 1, "{args:?}: {output:#?}");
        let (error, _) = output.complaint();
        assert!(error.contains("stdout"), "{args:?}: {error}");

        let mut closed = command(args);
        // SAFETY: close is a system call and nothing else.
        unsafe {
            closed.stdout(Stdio::inherit()).pre_exec(|| {
                nix::libc::close(1);
                Ok(())
            })
        };
        let output = Tool::spawn(&mut closed).finish();
        assert!([0, 1].contains(&output.code()), "{args:?}: {output:#?}");
    }
}

/// The text of all tests: this one does not run where the sources are not.
fn sources(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text += &std::fs::read_to_string(path).unwrap();
        }
    }
    text
}

#[test]
fn every_test_that_the_docs_name_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = sources(&root.join("tests"));
    let docs = std::fs::read_to_string(root.join("docs/trust.md")).unwrap();
    let (_, promises) = docs.split_once("## Promises").unwrap();
    let mut named = 0;
    for word in promises.split('`').skip(1).step_by(2) {
        let is_name = |text: &str| text.contains('_') && !text.contains(['=', ' ']);
        if let Some(module) = word.strip_suffix("::") {
            assert!(tests.contains(&format!("mod {module};")), "{word}");
        } else if is_name(word) && word == word.to_lowercase() && word != "no_new_privs" {
            assert!(tests.contains(&format!("fn {word}()")), "{word}");
            named += 1;
        }
    }
    assert!(named > 20, "{named}");
}
