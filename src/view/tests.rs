//! The view, on a terminal that is only memory.

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::skel::{EndState, FlowKnown, FlowRecord};

/// A flow from this port of 10.0.0.1 that has sent that many bytes.
fn flow(port: u16, bytes: u64) -> Flow {
    let mut raw = FlowRecord::default();
    raw.key.ip_version = 4;
    for (end, last) in [(0, 1), (1, 2)] {
        raw.key.addr[end][10..].copy_from_slice(&[0xff, 0xff, 10, 0, 0, last]);
    }
    raw.key.port = [port, 443];
    raw.known = (FlowKnown::FLOW_STARTED.0 | FlowKnown::FLOW_ACK.0) as u8;
    for end in &mut raw.ends {
        end.state = EndState::END_ESTABLISHED.0 as u8;
    }
    raw.ends[0].bytes = bytes;
    raw.ends[0].packets = 1;
    Flow { raw }
}

fn view(flows: Vec<Flow>) -> View {
    let mut view = View::new(vec!["eth0".to_owned()]);
    view.update(flows, 5_000_000_000, 1.0, 0);
    view
}

fn press(view: &mut View, keys: &[Key]) {
    for key in keys {
        view.key(*key);
    }
}

fn screen(view: &mut View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| view.draw(frame)).unwrap();
    let buffer = terminal.backend().buffer();
    (0..height)
        .map(|y| {
            (0..width)
                .map(|x| buffer[(x, y)].symbol().to_owned())
                .collect()
        })
        .collect()
}

/// Source ports from the top of the table down.
fn ports(view: &mut View) -> Vec<u16> {
    screen(view, 120, 20)[3..19]
        .iter()
        .filter_map(|line| {
            line.split("10.0.0.1:")
                .nth(1)?
                .split(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect()
}

#[test]
fn the_busiest_flow_is_first_and_the_order_can_be_reversed() {
    let mut view = view(vec![flow(1, 10), flow(2, 3000), flow(3, 200)]);
    assert_eq!(ports(&mut view), [2, 3, 1]);
    press(&mut view, &[Key::Char('r')]);
    assert_eq!(ports(&mut view), [1, 3, 2]);
}

#[test]
fn the_columns_to_sort_by_go_round() {
    let mut view = view(vec![flow(3, 10), flow(1, 20), flow(2, 30)]);
    let before = ports(&mut view);
    for _ in 0..COLUMNS.len() {
        press(&mut view, &[Key::Right]);
    }
    assert_eq!(ports(&mut view), before);
    while COLUMNS[view.sort].0 != Column::Source {
        press(&mut view, &[Key::Left]);
    }
    assert_eq!(ports(&mut view), [3, 2, 1]);
    assert!(screen(&mut view, 120, 20)[2].contains("SOURCE▼"));
}

#[test]
fn a_filter_is_typed_kept_and_cleared() {
    let mut view = view(vec![flow(1111, 1), flow(2222, 1)]);
    press(&mut view, &[Key::Char('/'), Key::Char('2'), Key::Char('2')]);
    assert_eq!(ports(&mut view), [2222]);
    // While it is typed, letters that are keys elsewhere belong to it.
    press(&mut view, &[Key::Char('q'), Key::Backspace, Key::Enter]);
    assert_eq!(ports(&mut view), [2222]);
    press(&mut view, &[Key::Esc]);
    assert_eq!(ports(&mut view).len(), 2);
}

#[test]
fn a_paused_view_keeps_its_flows() {
    let mut view = view(vec![flow(1, 1)]);
    press(&mut view, &[Key::Char(' ')]);
    view.update(vec![flow(2, 2), flow(3, 3)], 5_000_000_000, 1.0, 0);
    assert_eq!(ports(&mut view), [1]);
    assert!(screen(&mut view, 120, 20)[0].contains("PAUSED"));
    press(&mut view, &[Key::Char(' ')]);
    view.update(vec![flow(2, 2), flow(3, 3)], 5_000_000_000, 1.0, 0);
    assert_eq!(ports(&mut view), [3, 2]);
}

#[test]
fn the_selected_flow_stays_selected_when_others_overtake_it() {
    let mut view = view(vec![flow(1, 300), flow(2, 200), flow(3, 100)]);
    press(&mut view, &[Key::Down, Key::Enter]);
    assert!(
        screen(&mut view, 120, 20)
            .iter()
            .any(|line| line.contains("10.0.0.1:2 →"))
    );
    view.update(
        vec![flow(1, 300), flow(2, 10), flow(3, 100)],
        5_000_000_000,
        1.0,
        0,
    );
    assert!(
        screen(&mut view, 120, 20)
            .iter()
            .any(|line| line.contains("10.0.0.1:2 →"))
    );
}

/// A flow between the longest addresses that there are.
fn long_flow() -> Flow {
    let mut flow = flow(50000, 1);
    flow.raw.key.ip_version = 6;
    flow.raw.key.addr = [[0xab; 16]; 2];
    flow.raw.owner.pass = 1;
    flow.raw.owner.pid = 77;
    flow.raw.owner.comm[..5].copy_from_slice(b"a\x1b[2J");
    flow
}

#[test]
fn a_narrow_terminal_shows_both_ports_and_the_column_that_is_sorted_by() {
    let mut view = view(vec![long_flow()]);
    for (width, columns) in [
        (80, "STATE SOURCE DESTINATION BYTES BYTE/s▼"),
        (
            110,
            "STATE SOURCE DESTINATION PROCESS PACKETS BYTES BYTE/s▼",
        ),
        (
            190,
            "STATE SOURCE DESTINATION PROCESS AGE HANDSHK PACKETS BYTES PKT/s BYTE/s▼ HISTORY",
        ),
    ] {
        let lines = screen(&mut view, width, 20);
        let shown = lines[2].split_whitespace().collect::<Vec<_>>();
        assert_eq!(shown.join(" "), columns);
        let ports = [":50000", ":443"].map(|port| lines[3].contains(port));
        assert_eq!(ports, [true; 2], "{lines:#?}");
        // What a process calls itself is not for the terminal to obey.
        assert_eq!(lines[3].contains("a\\x1b[2J"), width > 80, "{lines:#?}");
    }
    press(&mut view, &[Key::Right]);
    assert!(screen(&mut view, 80, 20)[2].contains("HISTORY▼"));
}

#[test]
fn the_flow_that_is_shown_in_detail_stays_when_it_is_over() {
    let mut view = view(vec![flow(1, 300), long_flow()]);
    press(&mut view, &[Key::Enter]);
    let mut ended = flow(1, 300);
    ended.raw.reason = 1;
    view.update(vec![long_flow(), ended], 6_000_000_000, 1.0, 0);
    view.update(vec![long_flow()], 7_000_000_000, 1.0, 0);
    let text = screen(&mut view, 120, 20).join("\n");
    assert!(text.contains("10.0.0.1:1 → 10.0.0.2:443 on eth0"), "{text}");
    assert!(text.contains("closed, Zeek"), "{text}");
    press(&mut view, &[Key::Down, Key::Enter, Key::Enter]);
    let text = screen(&mut view, 120, 20).join("\n");
    assert!(
        text.contains(":443 on eth0") && text.contains("process 77"),
        "{text}"
    );
}

#[test]
fn any_size_can_be_drawn_and_the_selected_line_is_on_it() {
    let flows = (1..=300)
        .map(|port| flow(port, 1000 - u64::from(port)))
        .collect();
    let mut view = view(flows);
    press(&mut view, &[Key::End, Key::Enter]);
    for width in [0, 1, 2, 7, 40, 80, 200] {
        for height in [0, 1, 2, 3, 4, 10, 50] {
            screen(&mut view, width, height);
        }
    }
    press(&mut view, &[Key::Esc]);
    for height in [10, 50, 5] {
        let lines = screen(&mut view, 120, height);
        assert!(
            lines.iter().any(|line| line.contains("10.0.0.1:300 ")),
            "{lines:#?}"
        );
    }
    view.update(Vec::new(), 5_000_000_000, 1.0, 5);
    assert!(screen(&mut view, 120, 5)[1].contains("5 packets untracked"));
}

#[test]
fn a_live_flow_ages_without_packets_and_an_ended_one_does_not() {
    let mut ended = flow(2, 0);
    ended.raw.reason = 1;
    let mut view = view(vec![flow(1, 5), ended]);
    let lines = screen(&mut view, 120, 20);
    assert!(lines[3].contains(" 5.0s "), "{lines:#?}");
    assert!(
        lines[4].contains("closed") && lines[4].contains(" 0us "),
        "{lines:#?}"
    );
}

#[test]
fn numbers_and_times_stay_short() {
    for (value, text) in [
        (0.0, "0"),
        (99.9, "100"),
        (999.0, "999"),
        (1000.0, "1.0k"),
        (999_499.0, "999k"),
        (999_900.0, "1.0M"),
        (1.8e19, "18446P"),
    ] {
        assert!(short(value).len() <= 6, "{}", short(value));
        if value < 1e19 {
            assert_eq!(short(value), text);
        }
    }
    for (ns, text) in [
        (0, "0us"),
        (999_000, "999us"),
        (1_500_000, "1.5ms"),
        (2_000_000_000, "2.0s"),
        (600_000_000_000, "10m"),
        (36_000_000_000_000, "10.0h"),
    ] {
        assert_eq!(time(ns), text);
    }
}
