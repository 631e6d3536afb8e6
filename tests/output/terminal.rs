//! Terminals as stdout: colors, and names and payloads that try to control one.

use std::ffi::CStr;
use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::common::frames::{SYN, Segment, ethernet_ip, syn_frame, tcp_between};
use crate::common::raw::RawSocket;
use crate::common::terminal;
use crate::common::{CLIENT4, Namespace, PATIENCE, Pair, SERVER4, Tool, command, need};

/// A terminal: the user's end, and that of a program.
fn terminal() -> Result<(File, File), String> {
    terminal::terminal(120, 20)
}

#[test]
fn a_terminal_gets_lines_and_its_hangup_ends_the_run() {
    let pair = need!(Pair::new());
    for (args, header) in [
        (&["syn-count", "vs", "-I", "0.05"][..], "TIME "),
        (&["port-monitor", "vs"], "TIME "),
        (&["connect-trace"], "TIME "),
    ] {
        let (master, program) = need!(terminal());
        let mut command = command(args);
        command.stdout(program);
        let tool = Tool::spawn_in(&pair.server, &mut command);
        drop(command);
        let tool = tool.attached();
        let mut lines = BufReader::new(master).lines();
        let first = lines.next().unwrap().unwrap();
        assert!(first.starts_with(header), "{first}");
        drop(lines);
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{output:#?}");
    }
}

/// Runs the tool with a terminal for all that it reads and writes until `work` is done, and
/// returns what came to the terminal.
fn on_terminal(namespace: &Namespace, args: &[&str], work: impl FnOnce(&Screen)) -> String {
    let (master, program) = terminal().unwrap();
    let screen = Screen::of(master);
    let mut command = command(args);
    command
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(program.try_clone().unwrap())
        .stdout(program.try_clone().unwrap())
        .stderr(program);
    let tool = Tool::spawn_in(namespace, &mut command);
    drop(command);
    screen.wait("attached:");
    work(&screen);
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{args:?}: {}", screen.text());
    screen.rest()
}

/// The bytes that a terminal was sent.
struct Screen {
    text: Arc<Mutex<Vec<u8>>>,
    reader: thread::JoinHandle<()>,
}

impl Screen {
    fn of(mut master: File) -> Self {
        let text = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&text);
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // When the other end of the terminal is closed, reading fails with EIO instead of returning 0.
            while let Ok(len @ 1..) = master.read(&mut bytes) {
                to.lock().unwrap().extend_from_slice(&bytes[..len]);
            }
        });
        Self { text, reader }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }

    fn wait(&self, text: &str) {
        let give_up = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            assert!(Instant::now() < give_up, "no {text:?} in {:?}", self.text());
            thread::sleep(Duration::from_millis(5));
        }
    }

    fn rest(self) -> String {
        self.reader.join().unwrap();
        String::from_utf8(Arc::into_inner(self.text).unwrap().into_inner().unwrap()).unwrap()
    }
}

/// What the terminal shows, without the colors that the tool gives its own words.
fn without_colors(text: &str) -> String {
    let colors = ["\x1b[0m", "\x1b[31m", "\x1b[32m", "\x1b[33m", "\x1b[34m"];
    colors
        .iter()
        .fold(text.to_owned(), |text, color| text.replace(color, ""))
}

#[test]
fn a_terminal_that_takes_colors_gets_them_and_their_columns_stay_in_place() {
    let pair = need!(Pair::new());
    drop(need!(terminal()));
    let run = |variables: &[(&str, &str)]| {
        let (master, program) = terminal().unwrap();
        let mut command = command(["port-monitor", "vs", "--flags", "any", "-c", "2"]);
        command.args(["--direction", "both"]);
        command
            .env_remove("NO_COLOR")
            .envs(variables.iter().copied());
        command.stdout(program);
        let tool = Tool::spawn_in(&pair.server, &mut command);
        drop(command);
        let tool = tool.attached();
        pair.refused_connects((SERVER4, 80).into(), 1);
        assert_eq!(tool.finish().code(), 0);
        Screen::of(master).rest()
    };
    let colored = run(&[("TERM", "xterm")]);
    assert!(colored.contains(" \x1b[33m[S]\x1b[0m   0 "), "{colored:?}");
    assert!(colored.contains(" \x1b[31m[R.]\x1b[0m  0 "), "{colored:?}");
    for variables in [
        &[("TERM", "xterm"), ("NO_COLOR", "1")][..],
        &[("TERM", "dumb")],
    ] {
        let plain = run(variables);
        assert!(!plain.contains('\x1b'), "{plain:?}");
        assert!(plain.contains(" [R.]  0 "), "{plain:?}");
    }
}

/// Names of processes as an attacker would choose them, and their form in JSON.
const HOSTILE_NAMES: [(&CStr, &str); 5] = [
    (c"\x1b[2J\x07", "\x1b[2J\x07"),
    (c"a\nb {\"x\":1}", "a\nb {\"x\":1}"),
    (c"\"quoted\\\"", "\"quoted\\\""),
    (c"\xff\xfe\xc3", "\\xff\\xfe\\xc3"),
    (c"\xe2\x80\xaebidi\xc2\x9b", "\u{202e}bidi\u{9b}"),
];

#[test]
fn a_hostile_process_name_stays_on_its_line_and_out_of_the_terminal() {
    let pair = need!(Pair::new());
    pair.server.run("ip addr add 10.77.66.6/32 dev lo");
    pair.client.run("ip route add 10.77.66.6 via 10.77.0.2");
    // No other test connects to this one.
    let target = SocketAddr::from(([10, 77, 66, 6], 80));
    let args = ["connect-trace", "--dst", "10.77.66.6"];
    let text = Tool::start(&args);
    let json = Tool::spawn(command(args).arg("--json")).attached();
    for (name, _) in HOSTILE_NAMES {
        pair.client.enter(|| {
            nix::sys::prctl::set_name(name).unwrap();
            let error = TcpStream::connect(target).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        });
    }
    let expected = 2 * HOSTILE_NAMES.len();
    text.events(1 + expected);
    json.events(expected);
    let text = text.stop();
    assert_eq!(text.stdout.len(), 1 + expected, "{text:#?}");
    for line in &text.stdout {
        let strange =
            |c: char| c.is_control() || c == '\u{202e}' || c == char::REPLACEMENT_CHARACTER;
        assert!(!line.contains(strange), "{line:?}");
    }
    let lines = json.stop().json();
    for (line, (_, name)) in lines
        .iter()
        .zip(HOSTILE_NAMES.iter().flat_map(|it| [it, it]))
    {
        assert_eq!(line["comm"], *name, "{line}");
    }
}

#[test]
fn a_hostile_interface_name_reaches_no_terminal() {
    const NAME: &str = "\x1b[31m\x07\u{202e}x";
    const PEER: &str = "other";
    let namespace = need!(Namespace::new());
    namespace.run(&format!("ip link add {NAME} type veth peer name {PEER}"));
    namespace.run(&format!("ip link set {NAME} up"));
    namespace.run(&format!("ip link set {PEER} up"));
    let peer = namespace.enter(|| RawSocket::open(PEER));
    let syn = syn_frame(&[], CLIENT4.into(), SERVER4.into(), 80);
    for args in [
        &["syn-count", NAME, "-I", "0.05"][..],
        &["port-monitor", NAME],
        &["flows", NAME],
    ] {
        let tool = Tool::start_in(&namespace, args);
        peer.send(&syn);
        namespace.run(&format!("ip link set {NAME} down"));
        tool.error("about the interface", |line| line.ends_with(" is down"));
        namespace.run(&format!("ip link set {NAME} up"));
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        let mut rows = output.stdout.iter();
        assert!(rows.any(|line| line.contains("\\x1b[31m")), "{output:#?}");
        for line in output.stdout.iter().chain(&output.stderr) {
            assert!(!line.contains(['\x1b', '\x07', '\u{202e}']), "{line:?}");
        }
    }
    let mut unknown = command(["syn-count", "nosuch"]);
    let output = Tool::spawn_in(&namespace, &mut unknown).finish();
    assert!(!output.complaint().1.unwrap().contains('\x1b'));
    let tool = Tool::start_in(&namespace, &["syn-count", NAME, "-I", "0.05", "--json"]);
    tool.json("with the name", |line| line["iface"] == NAME);
}

#[test]
fn no_name_or_payload_of_others_controls_a_terminal() {
    // Sets the title of a terminal, rings its bell, and writes to the left.
    const NAME: &str = "\x1b]0;p\x07\u{202e}";
    const PEER: &str = "peer";
    let namespace = need!(Namespace::new());
    drop(need!(terminal()));
    namespace.run(&format!("ip link add {NAME} type veth peer name {PEER}"));
    namespace.run(&format!("ip link set {NAME} up"));
    namespace.run(&format!("ip link set {PEER} up"));
    let segment = Segment::new(40000, 80, SYN, b"\x1b]0;p\x07\r\nforged line\r\n");
    let frame = ethernet_ip(&tcp_between(CLIENT4.into(), SERVER4.into(), &segment));
    let peer = namespace.enter(|| RawSocket::open(PEER));
    let happen = |screen: &Screen, shown: &str| {
        peer.send(&frame);
        screen.wait(shown);
        namespace.run(&format!("ip link set {NAME} down"));
        namespace.run(&format!("ip link set {NAME} up"));
    };

    for (args, shown) in [
        (&["syn-count", NAME, "-I", "0.05"][..], "\\x1b]0;p\\x07"),
        (
            &["syn-count", NAME, "-I", "0.05", "--by", "saddr"],
            "10.77.0.1",
        ),
        (&["port-monitor", NAME, "-x", "-vv"], "1b5d303b"),
        (&["port-monitor", NAME, "-x", "--json"], "1b5d303b"),
        (
            &["flows", NAME, "--no-tui", "--idle-timeout", "0.1"],
            "10.77.0.1",
        ),
        (
            &["flows", NAME, "--json", "--idle-timeout", "0.1"],
            "10.77.0.1",
        ),
    ] {
        let text = on_terminal(&namespace, args, |screen| happen(screen, shown));
        let text = without_colors(&text);
        let steers = |c: char| (c.is_control() && !"\r\n".contains(c)) || c == '\u{202e}';
        assert!(!text.contains(steers), "{args:?}: {text:?}");
        assert!(!text.contains("\nforged"), "{args:?}: {text:?}");
    }

    // The view itself controls the terminal, and nobody else may.
    let text = on_terminal(&namespace, &["flows", NAME, "-I", "0.05"], |screen| {
        happen(screen, "10.77.0.1");
    });
    for foreign in ["\x1b]0;p", "\x07", "\u{202e}", "\nforged"] {
        assert!(!text.contains(foreign), "{text:?}");
    }

    for (name, _) in HOSTILE_NAMES {
        let text = on_terminal(
            &namespace,
            &["connect-trace", "--dst", "127.66.66.6"],
            |screen| {
                namespace.enter(|| {
                    nix::sys::prctl::set_name(name).unwrap();
                    TcpStream::connect("127.66.66.6:80").unwrap_err();
                });
                screen.wait("ECONNREFUSED");
            },
        );
        let text = without_colors(&text);
        let steers = |c: char| (c.is_control() && !"\r\n".contains(c)) || c == '\u{202e}';
        assert!(!text.contains(steers), "{name:?}: {text:?}");
        assert!(!text.contains("\nb {"), "{name:?}: {text:?}");
    }
}
