//! The box with all that is known about one flow.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::text::Line;
use ratatui::widgets::Paragraph;

use super::entry::{FlowEntry, endpoint, state};
use crate::domain::flow::{Flow, MeasuredBy, in_short, meaning_of_letter};
use crate::domain::names::Name;
use crate::view::chart::{draw_chart, push_newest};
use crate::view::popup::{self, centered, draw_box};
use crate::view::text::{escaped, short, time, time_or_none, wrapped};

/// How many intervals the charts remember.
const HISTORY_LEN: usize = 240;

/// A flow that is shown in detail.
pub struct Detail {
    /// The flow as it was last seen: it may have ended.
    entry: FlowEntry,
    /// Bytes a second since the box was opened, newest last.
    rates: VecDeque<u64>,
    /// Round trips in microseconds since the box was opened, newest last.
    round_trips: VecDeque<u64>,
}

impl Detail {
    pub fn new(entry: FlowEntry) -> Self {
        let mut detail = Self {
            entry,
            rates: VecDeque::new(),
            round_trips: VecDeque::new(),
        };
        detail.remember();
        detail
    }

    /// Updates the flow at the end of an interval.
    pub fn update(&mut self, entries: &[FlowEntry]) {
        match entries.iter().find(|it| it.key() == self.entry.key()) {
            Some(now) => self.entry = now.clone(),
            None => self.entry.byte_rate = 0.0,
        }
        self.remember();
    }

    fn remember(&mut self) {
        let round_trip = self.entry.flow.round_trip().map_or(0, |trip| trip.us);
        push_newest(&mut self.rates, self.entry.byte_rate as u64, HISTORY_LEN);
        push_newest(&mut self.round_trips, round_trip, HISTORY_LEN);
    }

    /// Draws the box. `ifaces` are the names of the interfaces.
    pub fn draw(&self, frame: &mut Frame<'_>, area: Rect, ifaces: &[String]) {
        let entry = &self.entry;
        let mut lines = ends(entry, ifaces, area.width);
        lines.extend(facts(entry));
        let widest = lines.iter().map(Line::width).max().unwrap_or(0) as u16;
        let width = (widest + 2).max(popup::WIDTH).min(area.width);
        let history = history_in_words(&entry.flow);
        lines.extend(wrapped(&history, usize::from(width.saturating_sub(2))));
        let charts = [
            (&self.rates, format!("bytes/s {}", short(entry.byte_rate))),
            (
                &self.round_trips,
                format!("round trip {}", time_or_none(entry.round_trip_ns())),
            ),
        ];
        let text_height = lines.len() as u16;
        let height = (text_height + 2 + charts.len() as u16).min(area.height);
        let place = centered(area, width, height);
        let inner = draw_box(frame, place, " flow, Esc closes ", lines);
        // Below the text, if there is room.
        for (row, (values, label)) in (0..).zip(charts) {
            let line = Rect {
                y: inner.y + text_height + row,
                height: 1,
                ..inner
            };
            if line.y >= inner.bottom() || line.width < 40 {
                break;
            }
            let [text, chart] =
                Layout::horizontal([Constraint::Length(22), Constraint::Fill(1)]).areas(line);
            frame.render_widget(Paragraph::new(label), text);
            draw_chart(frame, chart, values);
        }
    }
}

/// Both ends of a flow and its interface, on one line if it is wide enough.
fn ends(entry: &FlowEntry, ifaces: &[String], width: u16) -> Vec<Line<'static>> {
    let flow = &entry.flow;
    let iface = ifaces.get(entry.iface).map_or("-", String::as_str);
    let source = endpoint(flow.saddr(), flow.sport());
    let destination = format!("→ {} on {iface}", endpoint(flow.daddr(), flow.dport()));
    let both = Line::raw(format!("{source} {destination}"));
    if both.width() + 2 <= usize::from(width) {
        vec![both]
    } else {
        vec![Line::raw(source), Line::raw(destination)]
    }
}

/// State, times, process and counts of a flow.
fn facts(entry: &FlowEntry) -> Vec<Line<'static>> {
    let flow = &entry.flow;
    let conn = flow.conn_state();
    let midstream = match flow.is_partial() {
        true => ", seen from midstream",
        false => "",
    };
    // When it began is not known.
    let lasts = match flow.is_partial() {
        true => "followed for",
        false => "lasts",
    };
    let mut lines = vec![
        Line::raw(format!(
            "{}, Zeek {}: {}{midstream}",
            state(flow),
            conn.name(),
            in_short(conn.meaning()),
        )),
        Line::raw(format!(
            "SYN-ACK after {}, handshake {}, {lasts} {}, SYNs retransmitted: {}",
            time_or_none(flow.syn_ack_ns()),
            time_or_none(flow.handshake_ns()),
            time(flow.duration_ns()),
            flow.raw.syn_retransmits
        )),
    ];
    if let Some(trip) = flow.round_trip() {
        let us = |us: u64| us * 1000;
        lines.push(Line::raw(match trip.from {
            MeasuredBy::Kernel => format!(
                "round trip {}, minimum {}",
                time(us(trip.us)),
                time_or_none(trip.min_us.map(us))
            ),
            MeasuredBy::Packets => format!(
                "round trip {}, measured in the handshake",
                time(us(trip.us))
            ),
        }));
    }
    lines.push(Line::raw(match (flow.process(), flow.uid()) {
        (Some((pid, comm)), Some(uid)) => {
            format!("{}, process {pid}, user {uid}", escaped(comm))
        }
        (_, Some(uid)) => format!("several processes of user {uid}"),
        _ => "process unknown".to_owned(),
    }));
    lines.extend(entry.name.as_deref().and_then(asked_for));
    for (name, end) in [("initiator", flow.orig()), ("responder", flow.resp())] {
        lines.push(Line::raw(format!(
            "{name}: {} packets, {} bytes, {} retransmitted, {} zero windows",
            end.packets, end.bytes, end.retransmits, end.zero_windows
        )));
    }
    lines.push(Line::raw(format!(
        "unexpected packets: {}",
        flow.raw.unexpected
    )));
    lines
}

/// The history of a flow in words. An arrow shows the direction: → from the initiator.
fn history_in_words(flow: &Flow) -> String {
    let words = flow.history().iter().map(|letter| {
        let letter = char::from(*letter);
        match meaning_of_letter(letter).unwrap_or("?") {
            word if letter == '^' => word.to_owned(),
            word if letter.is_ascii_uppercase() => format!("→ {word}"),
            word => format!("← {word}"),
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

/// The server that the initiator asked for, and how.
fn asked_for(asked: &Name) -> Option<Line<'static>> {
    let server = asked.server.as_ref().map(|server| escaped(server));
    let server = server.unwrap_or_else(|| "no server by name".to_owned());
    let offered = asked.alpn.iter().flatten().map(|one| escaped(one));
    let offered = offered.collect::<Vec<_>>().join(", ");
    match &asked.http_method {
        Some(method) => Some(format!("asks for {server} (HTTP {})", escaped(method))),
        None if !offered.is_empty() => Some(format!("asks for {server} (offers {offered})")),
        None => asked
            .server
            .is_some()
            .then(|| format!("asks for {server} (TLS)")),
    }
    .map(Line::raw)
}
