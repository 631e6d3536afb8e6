//! flows: the view on a terminal.

use std::time::Instant;

use super::*;
use crate::common::terminal::{self, resize};

/// A terminal: the user's end, and that of the program.
fn terminal() -> (fs::File, fs::File) {
    terminal::terminal(100, 20).unwrap()
}

/// The output of the program so far, which a separate thread reads.
fn screen_of(user: &fs::File) -> std::sync::Arc<std::sync::Mutex<String>> {
    let screen = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
    let (to, mut user) = (screen.clone(), user.try_clone().unwrap());
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(len @ 1..) = user.read(&mut bytes) {
            to.lock()
                .unwrap()
                .push_str(&String::from_utf8_lossy(&bytes[..len]));
        }
    });
    screen
}

/// The output without the terminal's control sequences. The program skips blanks that are already
/// on the screen; each skip becomes one blank here.
fn plain(written: &str) -> String {
    let mut text = String::new();
    let mut rest = written.chars();
    while let Some(letter) = rest.next() {
        if letter != '\x1b' {
            text.push(letter);
        } else if rest.by_ref().skip(1).find(char::is_ascii_alphabetic) == Some('H') {
            text.push(' ');
        }
    }
    text
}

/// flows with a view on this terminal.
fn view_command(program: &fs::File) -> std::process::Command {
    // An emulated processor takes longer than a tenth of a second to draw.
    view_every(if is_guest() { "1" } else { "0.1" }, program)
}

fn view_every(interval: &str, program: &fs::File) -> std::process::Command {
    command_on(program, &["flows", "lo", "-I", interval])
}

/// The tool on this terminal, which can draw.
fn command_on(program: &fs::File, args: &[&str]) -> std::process::Command {
    let mut command = command(args);
    command
        .env("TERM", "xterm")
        .stdin(Stdio::from(program.try_clone().unwrap()))
        .stdout(Stdio::from(program.try_clone().unwrap()));
    command
}

const OTHER_SCREEN: &str = "\x1b[?1049h";
const BACK: &str = "\x1b[?1049l";

/// Longer than the view takes to end, and much shorter than a user would wait after a signal.
const SOON: Duration = Duration::from_secs(2);

fn ends_soon(tool: Tool) -> crate::common::Output {
    let asked = Instant::now();
    let output = tool.finish();
    assert!(
        asked.elapsed() < quick(SOON),
        "{:?} {output:#?}",
        asked.elapsed()
    );
    assert_eq!(output.code(), 0, "{output:#?}");
    output
}

#[test]
fn the_view_shows_flows_and_gives_the_terminal_back_however_it_ends() {
    let namespace = need!(Namespace::new());
    for end in ["q", "\x03", "SIGTERM", "SIGINT"] {
        let (mut user, program) = terminal();
        let before = tcgetattr(&program).unwrap();
        let tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
        let screen = screen_of(&user);
        let wait = |text: &str| {
            crate::common::wait_for(text, || screen.lock().unwrap().contains(text).then_some(()));
        };
        wait(OTHER_SCREEN);
        wait("q quit");
        transfer(&namespace, &namespace, ([127, 0, 0, 1], 0).into(), [10, 10]);
        wait("127.0.0.1:");
        let taken = tcgetattr(&program).unwrap().local_flags;
        assert!(!taken.intersects(LocalFlags::ICANON | LocalFlags::ECHO | LocalFlags::ISIG));
        // The smaller screen is redrawn, with a line of keys that is cut, although no signal
        // announces the new size.
        screen.lock().unwrap().clear();
        resize(&program, 30, 8);
        wait("q quit  / filter");
        match end {
            "SIGTERM" => tool.signal(Signal::SIGTERM),
            "SIGINT" => tool.signal(Signal::SIGINT),
            keys => user.write_all(keys.as_bytes()).unwrap(),
        }
        let output = ends_soon(tool);
        wait(BACK);
        assert_eq!(tcgetattr(&program).unwrap(), before, "{end:?}");
        let reason = if end.starts_with("SIG") {
            "(signal)"
        } else {
            "(quit)"
        };
        let said = output.stderr.last().unwrap();
        assert!(said.contains(reason), "{end:?}: {said}");
        assert!(
            output
                .stderr
                .last()
                .unwrap()
                .contains("matched 1 = emitted 1")
        );
    }
}

#[test]
fn the_keys_of_the_view_do_what_its_help_says() {
    let namespace = need!(Namespace::new());
    let (mut user, program) = terminal();
    resize(&program, 160, 20);
    let _tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
    let screen = screen_of(&user);
    let listener = namespace.enter(|| TcpListener::bind(("127.0.0.1", 0)).unwrap());
    let addr = listener.local_addr().unwrap();
    let stream = namespace.enter(|| TcpStream::connect(addr).unwrap());
    let own = stream.local_addr().unwrap();
    // Each is followed by Ctrl-L, which draws everything again; this is slow on a slow machine.
    const REDRAW: Duration = Duration::from_millis(500);
    for (keys, shows) in [
        ("", own.to_string().as_str()),
        ("\x1b[C", "RETRANS▼"),
        ("\x1b[D\x1b[D", "PKT/s▼"),
        ("r", "PKT/s▲"),
        (" ", "PAUSED"),
        (" \r", &format!("{own} → {addr} on lo")),
        ("\x1b", "q quit"),
        ("/syn-sent", "filter: syn-sent_"),
        ("\r", "0 shown"),
        ("\x1b", "1 open, 0 ended"),
    ] {
        screen.lock().unwrap().clear();
        user.write_all(keys.as_bytes()).unwrap();
        let mut asked: Option<Instant> = None;
        crate::common::wait_for(&format!("{shows:?} after {keys:?}"), || {
            if asked.is_none_or(|asked| asked.elapsed() > REDRAW) {
                user.write_all(b"\x0c").unwrap();
                asked = Some(Instant::now());
            }
            let text = plain(&screen.lock().unwrap());
            text.contains(shows).then_some(())
        });
    }
}

#[test]
fn the_view_of_listeners_fills_a_terminal_that_gets_another_size() {
    let namespace = need!(Namespace::new());
    let (user, program) = terminal();
    let mut command = command_on(&program, &["listeners", "-I", "1h"]);
    let _tool = Tool::spawn_in(&namespace, &mut command).attached();
    let screen = screen_of(&user);
    let wait_drawn = || {
        crate::common::wait_for("the view is drawn", || {
            let text = plain(&screen.lock().unwrap());
            text.contains("q quit").then_some(())
        });
    };
    // No key is pressed, and the next report is due in an hour.
    for columns in [120, 80] {
        wait_drawn();
        screen.lock().unwrap().clear();
        resize(&program, columns, 24);
    }
    wait_drawn();
}

#[test]
fn keys_are_taken_where_drawing_takes_longer_than_the_interval() {
    let namespace = need!(Namespace::new());
    let (mut user, program) = terminal();
    resize(&program, 1000, 1000);
    let mut command = view_every("0.001", &program);
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    let screen = screen_of(&user);
    crate::common::wait_for("the view", || {
        screen.lock().unwrap().contains("q quit").then_some(())
    });
    user.write_all(b"/x\x1b[A\rq").unwrap();
    ends_soon(tool);
}

#[test]
fn ctrl_z_stops_the_view_which_gives_the_terminal_back_and_takes_it_again() {
    let namespace = need!(Namespace::new());
    let (mut user, program) = terminal();
    let before = tcgetattr(&program).unwrap();
    // In a process group of its own, whose parent, like a shell, could continue it: the kernel does not stop
    // orphaned process groups.
    let mut command = view_command(&program);
    command.process_group(0);
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    let screen = screen_of(&user);
    let wait = |text: &str| {
        crate::common::wait_for(text, || screen.lock().unwrap().contains(text).then_some(()));
    };
    wait("q quit");
    user.write_all(b"\x1a").unwrap();
    crate::common::wait_for("stopped", || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", tool.pid())).unwrap();
        stat.contains(") T ").then_some(())
    });
    wait(BACK);
    assert_eq!(tcgetattr(&program).unwrap(), before);
    screen.lock().unwrap().clear();
    tool.signal(Signal::SIGCONT);
    wait(OTHER_SCREEN);
    wait("q quit");
    assert!(tcgetattr(&program).unwrap() != before);
    user.write_all(b"q").unwrap();
    ends_soon(tool);
    assert_eq!(tcgetattr(&program).unwrap(), before);
}

#[test]
fn a_terminal_that_is_hung_up_ends_the_view() {
    let namespace = need!(Namespace::new());
    let (user, program) = terminal();
    let tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
    // Whether the view is there already, or about to be.
    drop(program);
    drop(user);
    let output = ends_soon(tool);
    assert!(
        output.stderr.last().unwrap().contains("(closed_pipe)"),
        "{output:#?}"
    );
}

#[test]
fn a_signal_ends_the_view_when_nobody_reads_the_terminal_and_half_a_key_was_pressed() {
    let namespace = need!(Namespace::new());
    let (mut user, program) = terminal();
    let before = tcgetattr(&program).unwrap();
    // No room is left for the view.
    let nonblocking = |on: bool| {
        let flags = if on {
            OFlag::O_NONBLOCK
        } else {
            OFlag::empty()
        };
        fcntl(&program, FcntlArg::F_SETFL(OFlag::O_RDWR | flags)).unwrap();
    };
    nonblocking(true);
    while (&program).write(&[b'x'; 512]).is_ok() {}
    nonblocking(false);
    let tool = Tool::spawn_in(&namespace, &mut view_command(&program)).attached();
    user.write_all(b"\x1b[").unwrap();
    crate::common::wait_for("raw mode", || {
        (tcgetattr(&program).unwrap() != before).then_some(())
    });
    tool.signal(Signal::SIGTERM);
    ends_soon(tool);
    assert_eq!(tcgetattr(&program).unwrap(), before);
}

#[test]
fn a_terminal_gets_lines_if_they_are_asked_for_or_it_cannot_draw() {
    lines_on_a_terminal(&["--no-tui"], Some("xterm"));
    lines_on_a_terminal(&[], Some("dumb"));
    lines_on_a_terminal(&[], Some(""));
    lines_on_a_terminal(&[], None);
}

fn lines_on_a_terminal(options: &[&str], term: Option<&str>) {
    let namespace = need!(Namespace::new());
    let (user, program) = terminal();
    let mut command = command_on(&program, &[&["flows", "lo"], options].concat());
    match term {
        Some(term) => command.env("TERM", term),
        None => command.env_remove("TERM"),
    };
    command.env("NO_COLOR", "1");
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    drop(command);
    let screen = screen_of(&user);
    transfer(&namespace, &namespace, ([127, 0, 0, 1], 0).into(), [10, 10]);
    crate::common::wait_for("a line", || {
        screen.lock().unwrap().contains(" SF ").then_some(())
    });
    assert!(!screen.lock().unwrap().contains(OTHER_SCREEN));
    assert_eq!(tool.stop().code(), 0);
}
