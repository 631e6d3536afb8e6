//! The view, on a terminal in memory.

use std::rc::Rc;

use ratatui::Terminal;
use ratatui::backend::TestBackend;

use super::*;
use crate::domain::flow::Flow;
use crate::domain::names::Name;
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

/// A second that ends at this time.
fn interval(now_ns: u64, untracked: u64) -> Interval {
    Interval {
        now_ns,
        seconds: 1.0,
        untracked,
        ..Interval::default()
    }
}

/// Flows without names.
fn named(flows: Vec<Flow>) -> Vec<NamedFlow> {
    let flows = flows.into_iter();
    flows.map(|flow| NamedFlow { flow, name: None }).collect()
}

fn view(flows: Vec<Flow>) -> FlowsView {
    let mut view = FlowsView::new(vec!["eth0".to_owned()]);
    view.update(named(flows), &interval(5_000_000_000, 0));
    view
}

fn press(view: &mut FlowsView, keys: &[Key]) {
    for key in keys {
        view.key(*key);
    }
}

fn screen(view: &mut FlowsView, width: u16, height: u16) -> Vec<String> {
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
fn ports(view: &mut FlowsView) -> Vec<u16> {
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
fn the_columns_to_sort_by_wrap_around() {
    let mut view = view(vec![flow(3, 10), flow(1, 20), flow(2, 30)]);
    let before = ports(&mut view);
    // Names have a column only where there are any.
    for _ in 1..COLUMNS.len() {
        press(&mut view, &[Key::Right]);
    }
    assert_eq!(ports(&mut view), before);
    while COLUMNS[view.sort].column != FlowViewColumn::Source {
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
    view.update(
        named(vec![flow(2, 2), flow(3, 3)]),
        &interval(5_000_000_000, 0),
    );
    assert_eq!(ports(&mut view), [1]);
    assert!(screen(&mut view, 120, 20)[0].contains("PAUSED"));
    press(&mut view, &[Key::Char(' ')]);
    view.update(
        named(vec![flow(2, 2), flow(3, 3)]),
        &interval(5_000_000_000, 0),
    );
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
        named(vec![flow(1, 300), flow(2, 10), flow(3, 100)]),
        &interval(5_000_000_000, 0),
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
    flow.raw.owner.from = 1;
    flow.raw.owner.pid = 77;
    flow.raw.owner.comm[..5].copy_from_slice(b"a\x1b[2J");
    flow
}

#[test]
fn a_narrow_terminal_shows_both_ports_and_the_column_that_is_sorted_by() {
    let mut view = view(vec![long_flow()]);
    for (width, columns) in [
        (80, "STATE SOURCE DESTINATION BYTE/s▼ RETRANS RTT"),
        (
            110,
            "STATE SOURCE DESTINATION PROCESS BYTES PKT/s BYTE/s▼ RETRANS RTT",
        ),
        (
            190,
            "STATE SOURCE DESTINATION PROCESS PID AGE HANDSHK PACKETS BYTES PKT/s BYTE/s▼ RETRANS RTT HISTORY",
        ),
    ] {
        let lines = screen(&mut view, width, 20);
        let shown = lines[2].split_whitespace().collect::<Vec<_>>();
        assert_eq!(shown.join(" "), columns);
        let ports = [":50000", ":443"].map(|port| lines[3].contains(port));
        assert_eq!(ports, [true; 2], "{lines:#?}");
        // A process name must not control the terminal.
        assert_eq!(lines[3].contains("a\\x1b[2J"), width > 80, "{lines:#?}");
    }
    press(&mut view, &[Key::Right, Key::Right, Key::Right]);
    assert!(screen(&mut view, 80, 20)[2].contains("HISTORY▼"));
}

#[test]
fn the_flow_that_is_shown_in_detail_stays_when_it_is_over() {
    let mut view = view(vec![flow(1, 300), long_flow()]);
    press(&mut view, &[Key::Enter]);
    let mut ended = flow(1, 300);
    ended.raw.reason = 1;
    view.update(named(vec![long_flow(), ended]), &interval(6_000_000_000, 0));
    view.update(named(vec![long_flow()]), &interval(7_000_000_000, 0));
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
    view.update(Vec::new(), &interval(5_000_000_000, 5));
    assert!(screen(&mut view, 120, 5)[1].contains("5 packets untracked"));
}

#[test]
fn a_larger_screen_is_filled_after_the_end_of_the_table_was_looked_at() {
    let flows = (1..=40).map(|port| flow(port, 1000 - u64::from(port)));
    let mut view = view(flows.collect());
    screen(&mut view, 120, 10);
    press(&mut view, &[Key::End]);
    screen(&mut view, 120, 10);
    let lines = screen(&mut view, 120, 40);
    assert!(lines[3].contains("10.0.0.1:5 "), "{lines:#?}");
    assert!(lines[38].contains("10.0.0.1:40 "), "{lines:#?}");
}

#[test]
fn the_number_of_flows_that_have_ended_never_falls() {
    let mut ended = flow(2, 0);
    ended.raw.reason = 1;
    let mut view = view(vec![flow(1, 5), ended]);
    assert!(screen(&mut view, 120, 20)[1].contains("1 open, 1 ended"));
    let left_out = Traffic {
        flows: 7,
        packets: 7,
        bytes: 0,
    };
    view.update(
        named(vec![flow(1, 5)]),
        &Interval {
            left_out,
            ..interval(5_000_000_000, 0)
        },
    );
    let text = &screen(&mut view, 120, 20)[1];
    assert!(text.contains("1 open, 8 ended"), "{text}");
    assert!(text.contains("7 ended not shown"), "{text}");
    view.update(named(vec![flow(1, 5)]), &interval(6_000_000_000, 0));
    assert!(screen(&mut view, 120, 20)[1].contains("1 open, 8 ended"));
}

#[test]
fn repeated_syns_are_among_the_retransmissions() {
    let mut hung = flow(1, 0);
    hung.raw.syn_retransmits = 3;
    hung.raw.ends[0].retransmits = 2;
    let lines = screen(&mut view(vec![hung]), 120, 20);
    assert!(lines[2].contains("RETRANS"), "{lines:#?}");
    assert!(lines[3].contains(" 5"), "{lines:#?}");
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

/// A flow of this process, whose client asks for this server.
fn asking(port: u16, bytes: u64, server: &str, (pid, comm): (u32, &str)) -> NamedFlow {
    let mut flow = flow(port, bytes);
    flow.raw.owner.from = 1;
    flow.raw.owner.pid = pid;
    flow.raw.owner.comm[..comm.len()].copy_from_slice(comm.as_bytes());
    flow.raw.history[..4].copy_from_slice(b"ShAd");
    flow.raw.history_len = 4;
    flow.raw.numbers.is_known = 1;
    flow.raw.numbers.srtt_us = 1500;
    flow.raw.numbers.min_rtt_us = 900;
    flow.raw.ends[1].retransmits = u32::from(port);
    let name = Name {
        server: Some(server.as_bytes().to_vec()),
        alpn: Some(vec![b"h2".to_vec()]),
        http_method: None,
    };
    NamedFlow {
        flow,
        name: Some(Rc::new(name)),
    }
}

fn two_processes() -> FlowsView {
    let mut view = view(Vec::new());
    let flows = vec![
        asking(1, 300, "a.example", (10, "curl")),
        asking(2, 200, "b.example", (20, "nginx")),
        asking(3, 100, "b.example", (20, "nginx")),
    ];
    view.update(flows, &interval(5_000_000_000, 0));
    view
}

fn type_keys(view: &mut FlowsView, text: &str) {
    text.chars()
        .for_each(|letter| press(view, &[Key::Char(letter)]));
}

#[test]
fn on_an_ordinary_terminal_a_flow_has_its_process_retransmits_and_round_trip() {
    let mut view = view(vec![asking(65_535, 1, "", (1, "a-name-of-15---")).flow]);
    for (width, columns) in [
        (80, "STATE SOURCE DESTINATION PROCESS BYTE/s▼ RETRANS RTT"),
        (
            120,
            "STATE SOURCE DESTINATION PROCESS AGE HANDSHK PACKETS BYTES PKT/s BYTE/s▼ RETRANS RTT",
        ),
    ] {
        let lines = screen(&mut view, width, 24);
        let shown = lines[2].split_whitespace().collect::<Vec<_>>();
        assert_eq!(shown.join(" "), columns);
        assert!(lines[23].contains("? help"), "{lines:#?}");
    }
}

#[test]
fn a_name_has_a_column_once_there_is_one() {
    let mut view = two_processes();
    let lines = screen(&mut view, 160, 24);
    assert!(lines[2].contains(" NAME "), "{lines:#?}");
    assert!(lines[3].contains(" a.example "), "{lines:#?}");
    assert!(lines[3].contains(" 1.5ms"), "{lines:#?}");
}

#[test]
fn groups_are_summed_up_sorted_and_opened() {
    let mut view = two_processes();
    press(&mut view, &[Key::Char('g')]);
    let lines = screen(&mut view, 80, 24);
    let words =
        |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    assert_eq!(
        words(&lines[2]),
        [
            "PROCESS",
            "FLOWS",
            "PACKETS",
            "BYTES",
            "PKT/s",
            "BYTE/s▼",
            "RETRANS",
            "RTT"
        ]
    );
    assert_eq!(
        words(&lines[3]),
        ["curl", "10", "1", "1", "300", "1", "300", "1", "1.5ms"]
    );
    assert_eq!(
        words(&lines[4]),
        ["nginx", "20", "2", "2", "300", "2", "300", "5", "1.5ms"]
    );
    press(&mut view, &[Key::Right]);
    let lines = screen(&mut view, 80, 24);
    assert!(lines[2].contains("RETRANS▼"), "{lines:#?}");
    assert!(lines[3].starts_with("nginx 20"), "{lines:#?}");
    press(&mut view, &[Key::Enter]);
    assert_eq!(ports(&mut view), [3, 2]);
    let lines = screen(&mut view, 80, 24);
    assert!(lines[23].contains("filter: pid=20"), "{lines:#?}");
    let words_after = "/sport=3".chars().map(Key::Char);
    press(&mut view, &words_after.collect::<Vec<_>>());
    assert_eq!(ports(&mut view), [3], "both words count");
    press(&mut view, &[Key::Enter]);
    for (title, first) in [
        ("SOURCE", "10.0.0.1"),
        ("DESTINATION", "10.0.0.2"),
        ("PORT", "443"),
    ] {
        press(&mut view, &[Key::Esc]);
        while view.grouped.is_none_or(|by| by.title() != title) {
            press(&mut view, &[Key::Char('g')]);
        }
        let lines = screen(&mut view, 80, 24);
        let line = words(&lines[3]);
        assert_eq!(
            (line[0].as_str(), line[1].as_str()),
            (first, "3"),
            "{lines:#?}"
        );
    }
    press(&mut view, &[Key::Char('g')]);
    assert_eq!(ports(&mut view).len(), 3);
}

#[test]
fn a_filter_may_compare_and_says_what_is_not_complete() {
    let mut view = two_processes();
    type_keys(&mut view, "/retrans>1 name=b. pid=20 rtt>1ms");
    assert_eq!(ports(&mut view), [2, 3]);
    type_keys(&mut view, " sport=");
    assert_eq!(ports(&mut view), [2, 3]);
    let lines = screen(&mut view, 120, 20);
    assert!(lines[19].contains("not complete: sport="), "{lines:#?}");
    type_keys(&mut view, "3");
    assert_eq!(ports(&mut view), [3]);
}

#[test]
fn the_details_say_in_words_what_happened() {
    let mut view = two_processes();
    press(&mut view, &[Key::Enter]);
    for height in [24, 50] {
        let text = screen(&mut view, 80, height).join("\n");
        for part in [
            "→ SYN, ← SYN-ACK, → ACK without data, ← data",
            "Zeek S1: established, not closed",
            "round trip 1.5ms, minimum 900us",
            "asks for a.example (offers h2)",
            "curl, process 10",
            "bytes/s 300",
            "█",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

#[test]
fn help_covers_the_table_until_it_is_closed() {
    let mut view = two_processes();
    for close in [Key::Char('?'), Key::Esc, Key::Enter] {
        press(&mut view, &[Key::Char('?')]);
        let text = screen(&mut view, 80, 24).join("\n");
        for part in [
            "group by process",
            "retrans>0",
            "handshake age",
            "established",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        press(&mut view, &[close]);
        assert_eq!(ports(&mut view).len(), 3);
    }
}
