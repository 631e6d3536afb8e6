//! The columns of the table: what they show, how they are sorted, and which fit the screen.

use std::net::IpAddr;

use ratatui::style::{Color, Style};
use ratatui::text::Line;
use ratatui::widgets::Cell;

use super::entry::{FlowEntry, bytes, endpoint, process, server, state};
use crate::domain::flow::{Flow, TcpState};
use crate::output::columns::Tone;
use crate::output::flows::state_tone;
use crate::view::text::{short, shortened, time, time_or_none};

/// The columns, in their order. The table can be sorted by each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowViewColumn {
    State,
    Source,
    Destination,
    Name,
    Process,
    Pid,
    Age,
    Handshake,
    Packets,
    Bytes,
    PacketRate,
    ByteRate,
    Retransmits,
    RoundTrip,
    History,
}

/// How a column is shown.
pub struct Spec {
    pub column: FlowViewColumn,
    pub title: &'static str,
    /// 0 for the two ends of a flow, which share the width that the other columns leave.
    pub width: u16,
    /// A narrow screen leaves out the columns of low priority first.
    priority: u8,
}

/// The priority of a column that is never left out.
const ALWAYS: u8 = 11;

/// The columns of [`FlowViewColumn`], in the same order.
pub const COLUMNS: [Spec; 15] = [
    spec(FlowViewColumn::State, "STATE", 12, ALWAYS),
    spec(FlowViewColumn::Source, "SOURCE", 0, ALWAYS),
    spec(FlowViewColumn::Destination, "DESTINATION", 0, ALWAYS),
    spec(FlowViewColumn::Name, "NAME", 24, 8),
    spec(FlowViewColumn::Process, "PROCESS", 15, 7),
    spec(FlowViewColumn::Pid, "PID", 7, 1),
    spec(FlowViewColumn::Age, "AGE", 7, 4),
    spec(FlowViewColumn::Handshake, "HANDSHK", 7, 3),
    spec(FlowViewColumn::Packets, "PACKETS", 7, 5),
    spec(FlowViewColumn::Bytes, "BYTES", 6, 6),
    spec(FlowViewColumn::PacketRate, "PKT/s", 6, 2),
    spec(FlowViewColumn::ByteRate, "BYTE/s", 6, ALWAYS),
    spec(FlowViewColumn::Retransmits, "RETRANS", 7, 10),
    spec(FlowViewColumn::RoundTrip, "RTT", 7, 9),
    spec(FlowViewColumn::History, "HISTORY", 10, 0),
];

const fn spec(column: FlowViewColumn, title: &'static str, width: u16, priority: u8) -> Spec {
    Spec {
        column,
        title,
        width,
        priority,
    }
}

/// Enough width for an address and port: any of IPv4 fits. A longer one is shortened before another
/// column is left out. With this, retransmits and round trips fit 80 columns.
const END_WIDTH: usize = 21;

/// The width of a process name if there is no room for all of it.
const SHORT_PROCESS: u16 = 8;

/// The text of a flow in a column.
pub fn cell(column: FlowViewColumn, entry: &FlowEntry, width: usize) -> Cell<'static> {
    let flow = &entry.flow;
    let text = match column {
        FlowViewColumn::State => {
            return Cell::from(state(flow)).style(Style::new().fg(color(flow)));
        }
        FlowViewColumn::Source => shortened(&endpoint(flow.saddr(), flow.sport()), width),
        FlowViewColumn::Destination => shortened(&endpoint(flow.daddr(), flow.dport()), width),
        FlowViewColumn::Name => shortened(&server(entry).unwrap_or_else(|| "-".to_owned()), width),
        FlowViewColumn::Process => {
            shortened(&process(flow).unwrap_or_else(|| "-".to_owned()), width)
        }
        FlowViewColumn::Pid => flow
            .process()
            .map_or("-".to_owned(), |(pid, _)| pid.to_string()),
        FlowViewColumn::Age => time(entry.age),
        FlowViewColumn::Handshake => time_or_none(flow.handshake_ns()),
        FlowViewColumn::Packets => short(flow.packets() as f64),
        FlowViewColumn::Bytes => short(bytes(flow) as f64),
        FlowViewColumn::PacketRate => short(entry.packet_rate),
        FlowViewColumn::ByteRate => short(entry.byte_rate),
        FlowViewColumn::Retransmits => short(flow.retransmits() as f64),
        FlowViewColumn::RoundTrip => time_or_none(entry.round_trip_ns()),
        FlowViewColumn::History => String::from_utf8_lossy(flow.history()).into_owned(),
    };
    aligned(column, text)
}

/// Aligns numbers to the right.
pub fn aligned(column: FlowViewColumn, text: String) -> Cell<'static> {
    let line = Line::from(text);
    Cell::from(match column {
        FlowViewColumn::Age
        | FlowViewColumn::Handshake
        | FlowViewColumn::Packets
        | FlowViewColumn::Bytes
        | FlowViewColumn::PacketRate
        | FlowViewColumn::ByteRate
        | FlowViewColumn::Retransmits
        | FlowViewColumn::RoundTrip
        | FlowViewColumn::Pid => line.right_aligned(),
        _ => line,
    })
}

/// A value to sort by. Those of a column are all of the same kind.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub enum SortKey<'a> {
    State(TcpState),
    End(IpAddr, u16),
    Name(Option<String>),
    Process(Option<(&'a [u8], u32)>),
    Number(Option<u64>),
    Text(&'a [u8]),
}

/// The value that flows are sorted by.
pub fn sort_key(column: FlowViewColumn, entry: &FlowEntry) -> SortKey<'_> {
    let flow = &entry.flow;
    SortKey::Number(match column {
        FlowViewColumn::State => return SortKey::State(flow.state()),
        FlowViewColumn::Source => return SortKey::End(flow.saddr(), flow.sport()),
        FlowViewColumn::Destination => return SortKey::End(flow.daddr(), flow.dport()),
        FlowViewColumn::Name => return SortKey::Name(server(entry)),
        FlowViewColumn::Process => {
            return SortKey::Process(flow.process().map(|(pid, comm)| (comm, pid)));
        }
        FlowViewColumn::History => return SortKey::Text(flow.history()),
        FlowViewColumn::Pid => flow.process().map(|(pid, _)| pid.into()),
        FlowViewColumn::Age => Some(entry.age),
        FlowViewColumn::Handshake => flow.handshake_ns(),
        FlowViewColumn::Packets => Some(flow.packets()),
        FlowViewColumn::Bytes => Some(bytes(flow)),
        // The bits of floats that are not negative have the order of the floats.
        FlowViewColumn::PacketRate => Some(entry.packet_rate.to_bits()),
        FlowViewColumn::ByteRate => Some(entry.byte_rate.to_bits()),
        FlowViewColumn::Retransmits => Some(flow.retransmits()),
        FlowViewColumn::RoundTrip => entry.round_trip_ns(),
    })
}

/// The color of flows that have ended.
pub const ENDED: Color = Color::DarkGray;

/// The color of a flow's state.
fn color(flow: &Flow) -> Color {
    match flow.is_live() {
        true => tone_color(state_tone(flow.state())),
        false => ENDED,
    }
}

/// The color that stands for a tone.
pub fn tone_color(tone: Tone) -> Color {
    match tone {
        Tone::Plain => Color::Reset,
        Tone::Good => Color::Green,
        Tone::Notable => Color::Yellow,
        Tone::Ending => Color::Blue,
        Tone::Bad => Color::Red,
    }
}

/// The width of a column, with room for the arrow if the table is sorted by it.
pub fn width(column: &Spec, is_sorted_by: bool) -> u16 {
    match is_sorted_by && column.width > 0 {
        true => column.width.max(column.title.len() as u16 + 1),
        false => column.width,
    }
}

/// Those of the columns `available` that fit a screen: their indexes in [`COLUMNS`], and their
/// widths. The one that the table is sorted by is always among them. `longest` is the length of the
/// longest address and port.
pub fn fitting(
    available: impl Iterator<Item = usize>,
    sort: usize,
    longest: usize,
    screen: u16,
) -> Vec<(usize, u16)> {
    let width_of = |at: usize| width(&COLUMNS[at], at == sort);
    let (always, mut others) =
        available.partition::<Vec<_>, _>(|at| COLUMNS[*at].priority == ALWAYS || *at == sort);
    let mut columns = always
        .iter()
        .map(|at| (*at, width_of(*at)))
        .collect::<Vec<_>>();
    // With the gaps.
    let mut used = columns
        .iter()
        .map(|(_, width)| usize::from(*width) + 1)
        .sum::<usize>()
        - 1;
    let end_width = |used: usize| usize::from(screen).saturating_sub(used) / 2;
    let longest = longest.max("DESTINATION▼".chars().count());
    others.sort_by_key(|at| std::cmp::Reverse(COLUMNS[*at].priority));
    for at in others {
        let width = width_of(at);
        let shortest = match COLUMNS[at].column {
            FlowViewColumn::Process => SHORT_PROCESS,
            _ => width,
        };
        let enough = longest.min(END_WIDTH);
        let mut widths = [width, shortest].into_iter();
        if let Some(width) = widths.find(|it| end_width(used + usize::from(*it) + 1) >= enough) {
            used += usize::from(width) + 1;
            columns.push((at, width));
        }
    }
    // No wider than needed, to keep the columns of a line close together.
    let end = end_width(used).min(longest) as u16;
    for (at, width) in &mut columns {
        if COLUMNS[*at].width == 0 {
            *width = end;
        }
    }
    columns.sort_unstable();
    columns
}
