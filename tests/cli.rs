//! The command line, as far as it can be tested without privileges.

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
use common::{Output, Tool, command, need};
use tempfile::NamedTempFile;

fn run<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> Output {
    Tool::spawn(&mut command(args)).finish()
}

/// The error of a wrong command line: always two lines, with two more between them that mark the
/// position in a filter, and status 2.
fn refusal<I: AsRef<OsStr>>(args: impl IntoIterator<Item = I>) -> (String, String) {
    let output = run(args);
    assert_eq!(output.code(), 2, "{output:#?}");
    assert!(output.stdout.is_empty(), "{output:#?}");
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
        ("port-monitor -p nosuchservice lo", "nosuchservice"),
        ("port-monitor -p 80,,443 lo", "''"),
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
        ("syn-count -I 0 lo", "--interval"),
        ("syn-count --by colour lo", "colour"),
        ("accept-trace --by dport --top 0 lo", "0"),
        ("loss-trace --by dport --top 0", "0"),
        ("syn-count --alert many --by saddr lo", "many"),
        ("syn-count -d -1 lo", "-1"),
        ("syn-count -c 0 lo", "--count"),
        ("syn-count -o xml lo", "xml"),
        ("syn-count --columns time,size lo", "size"),
        ("port-monitor --columns nosuch lo", "nosuch"),
        ("connect-trace --columns iface", "iface"),
        ("flows --columns key lo", "key"),
        ("flows --by saddr --columns saddr lo", "saddr"),
        ("flows --by process -r x.pcap", "--by process"),
        ("flows --pid 1 -r x.pcap", "--pid"),
        ("check --columns ok,why", "why"),
        ("connect-trace --json --columns comm", "--columns"),
        ("flows --max-flows 0 lo", "--max-flows"),
        ("flows --idle-timeout never lo", "never"),
        ("check lo", "lo"),
        ("connect-trace --pid none", "none"),
        ("connect-trace --uid no-such-user", "no-such-user"),
        ("connect-trace -d 5x", "5x"),
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
        "port-monitor -r file.pcap -i lo",
        "syn-count --json -o text lo",
        "check --json -o text",
        "syn-count --src ::1/64 -4 lo",
        "connect-trace --dst 192.0.2.1 -6",
        "flows --host 2001:db8::/32 -4 lo",
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
    assert!(hint.starts_with("the interfaces are lo"), "{hint}");
    let (_, hint) = refusal(["syn-count", "--interva", "1", "lo"]);
    assert!(hint.contains("--interval"), "{hint}");
    let (_, hint) = refusal(["port-monitr"]);
    assert!(hint.contains("port-monitor"), "{hint}");
}

#[test]
fn the_hint_names_what_was_probably_meant() {
    // A filter in quotes is one word.
    let (_, hint) = refusal(["port-monitor", "port 80"]);
    assert!(hint.contains("-f 'port 80'"), "{hint}");
    for (line, hinted) in [
        ("port-monitor -tttt -i lo tcp", "--time"),
        ("port-monitor -Q in -i lo tcp", "--direction"),
        ("syn-count -i 2", "-I 2"),
        ("syn-count 2", "-I 2"),
        ("syn-count -i 500ms lo", "-I 500ms"),
        ("port-monitor port 80", "-f 'port 80'"),
        ("loss-trace -i lo tcp port 80", "--any-port 80"),
        ("loss-trace lo src host 192.0.2.1", "--src 192.0.2.1"),
        ("loss-trace -i lo not tcp", "--host ADDRESS"),
        ("port-monitor lo port 80", "-i lo 'port 80'"),
        ("flows src host 192.0.2.1", "-f 'src host 192.0.2.1'"),
        ("port-monitor -A lo", "-x"),
        ("port-monitor 80", "-p 80"),
        ("flows 192.0.2.1", "--host 192.0.2.1"),
        ("flows host www.example.org", "-f 'host www.example.org'"),
        ("connect-trace not tcp", "takes no filter expression"),
        ("connect-trace lo port 80", "--any-port 80"),
        ("connect-trace port 80", "--any-port 80"),
        ("connect-trace dst port 80", "-p 80"),
        ("connect-trace -i lo", "whole machine"),
        ("connect-trace lo", "whole machine"),
        ("connect-trace lo -d 1", "whole machine"),
        ("connect-trace curl", "tcpinspect connect-trace --comm curl"),
        ("connect-trace a-name-of-sixteen", "whole machine"),
        ("connect-trace --pid nginx", "--comm nginx"),
        ("connect-trace -p nginx", "--comm nginx"),
        ("listeners lo", "network namespace"),
        ("listeners port 80", "-p PORT"),
        ("listeners -ltn", "-1"),
        ("loss-trace --drop", "--only drop"),
        ("port-monitor --pid 1 lo", "connect-trace"),
        ("port-monitor -c 5s lo", "-d 5s"),
        ("port-monitor -p 80, 443", "quotes"),
        ("flows -4 -6", "leave one of them out"),
        ("flows -d", "tcpinspect flows --help"),
        ("-i lo", "tcpinspect flows -i lo"),
        ("lo", "tcpinspect flows lo"),
        ("version", "connect-trace"),
        (
            "port-monitor --dst www.example.org lo",
            "getent hosts www.example.org",
        ),
    ] {
        let (_, hint) = refusal(line.split(' '));
        assert!(hint.contains(hinted), "{line}: {hint}");
    }
}

#[test]
fn a_filter_that_is_wrong_is_shown_with_the_place() {
    for line in [
        &["port-monitor", "-i", "lo", "port", "80", "and", "udp"][..],
        &["flows", "-i", "lo", "port 80 and udp"],
        &["syn-count", "-f", "port 80 and udp", "lo"],
        &["port-monitor", "-r", "nosuchfile", "port 80 and udp"],
    ] {
        let output = run(line);
        assert_eq!(output.code(), 2, "{output:#?}");
        let expected = [
            "tcpinspect: failed to read the filter: 'udp' never matches: only TCP is looked at",
            "  port 80 and udp",
            "              ^^^",
            "hint: the language is that of tcpdump: man 7 pcap-filter",
        ];
        assert_eq!(output.stderr, expected, "{line:?}");
    }
    let output = run(["port-monitor", "-i", "lo", "host", "\x1b[2Jname"]);
    assert!(output.stderr.iter().all(|line| !line.contains('\x1b')));
    let output = run(["port-monitor", "-i", "lo", "host", "www.example.org"]);
    assert_eq!(
        output.stderr[3],
        "hint: for its addresses: getent hosts www.example.org"
    );
}

#[test]
fn a_filter_is_given_once_and_a_file_has_no_direction() {
    for (args, named) in [
        (
            &["port-monitor", "-i", "lo", "-f", "port 80", "port", "81"][..],
            "twice",
        ),
        (
            &["port-monitor", "-r", "nosuchfile", "inbound"],
            "not read from files",
        ),
    ] {
        let (error, _) = refusal(args);
        assert!(error.contains(named), "{error}");
    }
}

/// The options are checked before the file is opened. So an error about the file means that the options
/// are right.
#[test]
fn values_are_accepted_as_people_type_them() {
    for args in [
        &["-p", "80, 443, !22"][..],
        &["-p", "ssh,8000-8100"],
        &["-n", "-d", "10m", "-nn"],
        &["-f", "-tcp[0] != -1"],
        &["--src", "10.0.0.0/8, !10.1.0.0/16"],
        &["--src", "::1/64,10.0.0.0/8", "-4"],
        &["--json", "-o", "json"],
    ] {
        let all = [&["port-monitor", "-r", "/nonexistent.pcap"], args].concat();
        let (error, _) = refusal(&all);
        assert!(error.contains("/nonexistent.pcap"), "{args:?}: {error}");
    }
}

#[test]
fn a_hostile_argument_cannot_forge_a_line_or_reach_the_terminal() {
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
fn a_file_that_is_not_a_capture_is_an_error_that_names_it() {
    let mut empty = NamedTempFile::new().unwrap();
    let path = empty.path().to_str().unwrap().to_owned();
    let complains = |path: &str| {
        let output = run(["syn-count", "--json", "-r", path]);
        let (error, hint) = output.complaint();
        assert_eq!(output.code(), 2, "{output:#?}");
        assert!(error.contains(path), "{error}");
        let hint = hint.unwrap();
        assert!(hint.contains("pcapng"), "{hint}");
    };
    complains(&path);
    empty.write_all(b"this is no capture of packets").unwrap();
    complains(&path);
    complains("/nonexistent.pcap");
    complains("/");
}

#[test]
fn without_privileges_each_command_that_needs_them_names_what_is_missing() {
    let binary = PublicBinary::new();
    for line in [
        "syn-count lo",
        "syn-count --mode tc lo",
        "port-monitor lo",
        "flows lo",
        "connect-trace",
        "connect-trace --backend kprobe",
        "accept-trace lo",
        "loss-trace -q",
        "exporter --listen 127.0.0.1:0 lo",
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
fn help_is_not_an_error_and_explains_every_command() {
    let output = run(["--help"]);
    assert_eq!(output.code(), 0, "{output:#?}");
    assert!(output.stderr.is_empty(), "{output:#?}");
    for command in commands() {
        let output = run([&command, "--help"]);
        assert_eq!(output.code(), 0, "{output:#?}");
        let text = output.stdout.join("\n");
        let usage = format!("Usage: tcpinspect {command} ");
        assert!(text.contains(&usage), "{text}");
        let widest = output.stdout.iter().map(|line| line.chars().count()).max();
        assert!(widest <= Some(100), "{command}: {widest:?}");
    }
    for command in [
        "syn-count",
        "port-monitor",
        "connect-trace",
        "accept-trace",
        "flows",
        "loss-trace",
    ] {
        let text = run([command, "--help"]).stdout.join("\n");
        for option in ["--output", "--duration", "--count", "--src", "--port"] {
            assert!(text.contains(option), "{command} {option}: {text}");
        }
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

/// The commands that the help lists, without `help` itself.
fn commands() -> Vec<String> {
    let help = run(["-h"]).stdout;
    let lines = help.iter().skip_while(|line| *line != "Commands:");
    let lines = lines.skip(1).take_while(|line| line.starts_with("  "));
    // Lines that are indented further continue the previous one.
    let names = lines.filter(|line| !line.starts_with("   "));
    let names = names.map(|line| line.split_whitespace().next().unwrap().to_owned());
    let names: Vec<_> = names.filter(|name| name != "help").collect();
    assert!(names.len() >= 7, "{names:?}");
    names
}

#[test]
fn help_shows_examples_and_says_what_letters_mean() {
    for command in commands() {
        for flag in ["-h", "--help"] {
            let text = run([&command, flag]).stdout.join("\n");
            let (_, examples) = text.split_once("Examples:").unwrap();
            assert!(
                examples.contains(&format!("tcpinspect {command}")),
                "{examples}"
            );
        }
    }
    for (command, words) in [
        ("flows", &["RSTOS0", "zero window", "evicted"][..]),
        ("port-monitor", &["PSH", "CWR"]),
        ("connect-trace", &["established"]),
        ("syn-count", &["untrkd", "generic"]),
    ] {
        let text = run([command, "--help"]).stdout.join("\n");
        for word in words {
            assert!(text.contains(word), "{command}: no {word}");
        }
    }
    let text = run(["--help"]).stdout.join("\n");
    assert!(text.contains("Exit status:"), "{text}");
}

#[test]
fn each_command_has_a_manual_page_and_no_page_names_another_that_is_missing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    let output = run(["man", "--dir", path]);
    assert_eq!(output.code(), 0, "{output:#?}");
    let mut expected: Vec<_> = commands()
        .iter()
        .map(|command| format!("tcpinspect-{command}.1"))
        .chain(["tcpinspect.1".to_owned()])
        .collect();
    expected.sort();
    let mut written: Vec<_> = std::fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    written.sort();
    assert_eq!(written, expected);
    for file in &written {
        let page = std::fs::read_to_string(directory.path().join(file)).unwrap();
        for section in [
            "NAME",
            "SYNOPSIS",
            "EXAMPLES",
            "\"EXIT STATUS\"",
            "\"SEE ALSO\"",
        ] {
            let times = page.matches(&format!(".SH {section}\n")).count();
            assert_eq!(times, 1, "{file}: {section}");
        }
        let plain = page.replace('\\', "").replace("fI", "").replace("fR", "");
        for (at, _) in plain.match_indices("(1)") {
            let name = plain[..at].rsplit([' ', '\n']).next().unwrap();
            assert!(expected.contains(&format!("{name}.1")), "{file}: {name}");
        }
    }
    // One page alone is the same.
    let output = run(["man", "flows"]);
    let page = std::fs::read_to_string(directory.path().join("tcpinspect-flows.1")).unwrap();
    assert_eq!(output.stdout.join("\n") + "\n", page);
    assert!(page.contains("RSTOS0"), "{page}");
    let (error, hint) = refusal(["man", "nosuch"]);
    assert!(
        error.contains("nosuch") && hint.contains("flows"),
        "{error} {hint}"
    );
    let output = run(["man", "--dir", "/nonexistent"]);
    assert_eq!(output.code(), 1, "{output:#?}");
    assert!(output.complaint().0.contains("/nonexistent"), "{output:#?}");
}

#[test]
fn completions_know_every_command_and_the_interfaces() {
    for shell in ["bash", "zsh", "fish"] {
        let output = run(["completions", shell]);
        assert_eq!(output.code(), 0, "{shell}: {output:#?}");
        assert!(output.stderr.is_empty(), "{shell}: {output:#?}");
        let text = output.stdout.join("\n");
        for command in commands() {
            assert!(text.contains(&command), "{shell}: no {command}");
        }
        assert!(text.contains("idle-timeout"), "{shell}");
        let interfaces = match shell {
            "bash" => "$(_tcpinspect_interfaces)",
            "zsh" => ":_tcpinspect_interfaces'",
            _ => "(__fish_print_interfaces)",
        };
        // Interfaces are completed in several places: after -i and as arguments, for several commands.
        assert!(text.matches(interfaces).count() >= 3, "{shell}: {text}");
    }
}

/// The completions that bash offers for the last of these words.
fn proposals(words: &str) -> Result<Vec<String>, String> {
    let script = run(["completions", "bash"]).stdout.join("\n");
    let line = format!(
        "{script}\nCOMP_WORDS=({words})\nCOMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
         _tcpinspect tcpinspect \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"\n\
         printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    );
    let output = std::process::Command::new("bash")
        .args(["--norc", "-c", &line])
        .output()
        .map_err(|error| format!("no bash: {error}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

#[test]
fn bash_proposes_interfaces_where_one_is_expected() {
    let lo = "/sys/class/net/lo";
    need!(std::fs::metadata(lo).map_err(|error| format!("{lo}: {error}")));
    for words in [
        "tcpinspect syn-count l",
        "tcpinspect flows -i l",
        "tcpinspect port-monitor --interface l",
    ] {
        let found = need!(proposals(words));
        assert!(found.contains(&"lo".to_owned()), "{words}: {found:?}");
    }
    let found = need!(proposals("tcpinspect check l"));
    assert!(!found.contains(&"lo".to_owned()), "{found:?}");
}

#[test]
fn a_closed_pipe_is_not_an_error() {
    for args in [&["--help"][..], &["man"], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Tool::spawn(command(args).stdout(writer)).finish();
        assert_eq!(output.code(), 0, "{args:?}: {output:#?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:#?}");
    }
}

#[test]
fn a_full_stdout_is_an_error_and_a_closed_one_does_not_panic() {
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

/// The source text of all tests. The test that uses it runs only where the sources are.
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

/// The words of a command line, split as a shell does, up to a pipe, redirection or comment.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut quote = None;
    for letter in line.chars() {
        match letter {
            _ if quote == Some(letter) => quote = None,
            '"' | '\'' if quote.is_none() => {
                quote = Some(letter);
                word.get_or_insert_default();
            }
            '|' | '>' | '&' | ';' | '#' if quote.is_none() => {
                // Leaves out the number of the descriptor that is redirected.
                word = word.filter(|word| letter != '>' || word.parse::<u8>().is_err());
                break;
            }
            ' ' if quote.is_none() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

#[test]
fn every_command_line_in_the_docs_is_accepted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut texts = vec![std::fs::read_to_string(root.join("README.md")).unwrap()];
    for entry in std::fs::read_dir(root.join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            texts.push(std::fs::read_to_string(path).unwrap());
        }
    }
    let mut lines = Vec::new();
    for text in texts {
        // Lines of a block, or what is between backticks in a sentence.
        for (at, part) in text.replace("\\\n", " ").split("```").enumerate() {
            let codes = match at % 2 {
                1 => part.lines().collect::<Vec<_>>(),
                _ => part.split('`').skip(1).step_by(2).collect(),
            };
            let codes = codes.iter().map(|code| code.replace('\n', " "));
            lines.extend(codes.filter_map(|code| {
                let code = code.trim_start_matches([' ', '#', '$']);
                let code = code.trim_start_matches("sudo ");
                let is_one = code.starts_with("tcpinspect ") && !code.contains(" COMMAND");
                is_one.then(|| code.to_owned())
            }));
        }
    }
    let mut wrong = Vec::new();
    for line in &lines {
        if let Err(error) = tcpinspect::cli::command().try_get_matches_from(words(line)) {
            wrong.push(format!("{line}\n{error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(lines.len() > 50, "{}", lines.len());
}
