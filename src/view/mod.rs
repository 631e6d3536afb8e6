//! The table of flows on a terminal. It knows no clock, no map and no terminal: flows and keys go
//! in, a frame comes out.

pub mod keys;
pub mod terminal;

use std::cmp::Ordering;
use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Sparkline, Table};

use crate::record::flow::Flow;
use keys::Key;

/// Intervals that the sparkline remembers.
const LOADS_KEPT: usize = 240;

/// What the table can be sorted by, in the order of its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    State,
    Source,
    Destination,
    Age,
    Handshake,
    Packets,
    Bytes,
    PacketRate,
    ByteRate,
    History,
}

const COLUMNS: [(Column, &str, Constraint); 10] = [
    (Column::State, "STATE", Constraint::Length(12)),
    (Column::Source, "SOURCE", Constraint::Fill(1)),
    (Column::Destination, "DESTINATION", Constraint::Fill(1)),
    (Column::Age, "AGE", Constraint::Length(8)),
    (Column::Handshake, "HANDSHK", Constraint::Length(8)),
    (Column::Packets, "PACKETS", Constraint::Length(8)),
    (Column::Bytes, "BYTES", Constraint::Length(8)),
    (Column::PacketRate, "PKT/s", Constraint::Length(7)),
    (Column::ByteRate, "BYTE/s", Constraint::Length(7)),
    (Column::History, "HISTORY", Constraint::Length(12)),
];

const KEYS: &str = " q quit  / filter  ←→ sort by  r reverse  ↑↓ select  Enter detail  Space pause";

/// A flow, and what it has carried in the last interval.
struct Entry {
    flow: Flow,
    packet_rate: f64,
    byte_rate: f64,
    /// Nanoseconds since its first packet; if it has ended, until its last.
    age: u64,
    iface: usize,
}

/// What the user sees.
pub struct View {
    ifaces: Vec<String>,
    entries: Vec<Entry>,
    /// Positions in `entries` of those that pass the filter, sorted.
    shown: Vec<usize>,
    sort: usize,
    descending: bool,
    filter: String,
    typing: bool,
    paused: bool,
    detail: bool,
    selected: usize,
    /// First line of the table that is on the screen.
    offset: usize,
    /// Bytes a second, newest last.
    loads: VecDeque<u64>,
    live: usize,
    packet_rate: f64,
    untracked: u64,
}

/// What is to be done after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Draw.
    Draw,
    /// Draw all, even what should be on the screen already.
    Redraw,
    /// Stop the process until it is continued.
    Suspend,
    /// End the run.
    Quit,
}

impl View {
    /// A view without flows, for interfaces of these names.
    pub fn new(ifaces: Vec<String>) -> Self {
        Self {
            ifaces,
            entries: Vec::new(),
            shown: Vec::new(),
            sort: COLUMNS
                .iter()
                .position(|(column, ..)| *column == Column::ByteRate)
                .unwrap_or(0),
            descending: true,
            filter: String::new(),
            typing: false,
            paused: false,
            detail: false,
            selected: 0,
            offset: 0,
            loads: VecDeque::new(),
            live: 0,
            packet_rate: 0.0,
            untracked: 0,
        }
    }

    /// Takes the flows of an interval of this length that ends now, by the clock of their times:
    /// those that are live, and those that have ended in it.
    pub fn update(&mut self, flows: Vec<Flow>, now_ns: u64, seconds: f64, untracked: u64) {
        let seconds = seconds.max(1e-3);
        let (mut packets, mut bytes) = (0, 0);
        let mut entries = Vec::with_capacity(flows.len());
        self.live = 0;
        for flow in flows {
            let since = flow.since_told();
            packets += since.0;
            bytes += since.1;
            self.live += usize::from(flow.is_live());
            entries.push(Entry {
                packet_rate: since.0 as f64 / seconds,
                byte_rate: since.1 as f64 / seconds,
                age: if flow.is_live() {
                    now_ns.saturating_sub(flow.raw.start_ns)
                } else {
                    flow.duration_ns()
                },
                iface: flow.raw.key.interface.into(),
                flow,
            });
        }
        self.packet_rate = packets as f64 / seconds;
        self.loads.push_back((bytes as f64 / seconds) as u64);
        if self.loads.len() > LOADS_KEPT {
            self.loads.pop_front();
        }
        self.untracked = untracked;
        if !self.paused {
            let selected = self.selected_key();
            self.entries = entries;
            self.arrange();
            self.follow(selected);
        }
    }

    fn selected_key(&self) -> Option<([[u8; 16]; 2], [u16; 2], u16)> {
        let entry = &self.entries[*self.shown.get(self.selected)?];
        let key = &entry.flow.raw.key;
        Some((key.addr, key.port, key.interface))
    }

    /// Keeps the same flow selected, wherever it is now.
    fn follow(&mut self, key: Option<([[u8; 16]; 2], [u16; 2], u16)>) {
        let found = self.shown.iter().position(|at| {
            let other = &self.entries[*at].flow.raw.key;
            key == Some((other.addr, other.port, other.interface))
        });
        // The top stays the top: there is what the table is sorted for.
        if let Some(found) = found
            && self.selected > 0
        {
            self.selected = found;
        }
        self.selected = self.selected.min(self.shown.len().saturating_sub(1));
    }

    /// Chooses and sorts what is shown.
    fn arrange(&mut self) {
        let filter = self.filter.to_lowercase();
        let mut shown = (0..self.entries.len())
            .filter(|at| filter.is_empty() || text_of(&self.entries[*at].flow).contains(&filter))
            .collect::<Vec<_>>();
        let column = COLUMNS[self.sort].0;
        shown.sort_by(|a, b| {
            let (a, b) = (&self.entries[*a], &self.entries[*b]);
            let order = compare(column, a, b);
            let order = if self.descending {
                order.reverse()
            } else {
                order
            };
            order.then_with(|| a.flow.raw.start_ns.cmp(&b.flow.raw.start_ns))
        });
        self.shown = shown;
        self.selected = self.selected.min(self.shown.len().saturating_sub(1));
    }

    /// Reacts to a key.
    pub fn key(&mut self, key: Key) -> Reaction {
        match key {
            Key::Ctrl('c') => return Reaction::Quit,
            Key::Ctrl('l') => return Reaction::Redraw,
            Key::Ctrl('z') => return Reaction::Suspend,
            _ if self.typing => {
                self.type_filter(key);
                return Reaction::Draw;
            }
            _ => {}
        }
        let last = self.shown.len().saturating_sub(1);
        match key {
            Key::Char('q') => return Reaction::Quit,
            Key::Esc if self.detail => self.detail = false,
            Key::Esc => {
                self.filter.clear();
                self.arrange();
            }
            Key::Char('/') => self.typing = true,
            Key::Char(' ' | 'p') => self.paused = !self.paused,
            Key::Char('r') => {
                self.descending = !self.descending;
                self.arrange();
            }
            Key::Left | Key::Char('<') => self.sort_by(self.sort + COLUMNS.len() - 1),
            Key::Right | Key::Char('>') => self.sort_by(self.sort + 1),
            Key::Up | Key::Char('k') => self.selected = self.selected.saturating_sub(1),
            Key::Down | Key::Char('j') => self.selected = (self.selected + 1).min(last),
            Key::PageUp => self.selected = self.selected.saturating_sub(20),
            Key::PageDown => self.selected = (self.selected + 20).min(last),
            Key::Home => self.selected = 0,
            Key::End => self.selected = last,
            Key::Enter => self.detail = !self.detail,
            _ => {}
        }
        Reaction::Draw
    }

    fn sort_by(&mut self, column: usize) {
        self.sort = column % COLUMNS.len();
        self.arrange();
    }

    fn type_filter(&mut self, key: Key) {
        match key {
            Key::Enter => self.typing = false,
            Key::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            Key::Backspace => {
                self.filter.pop();
            }
            Key::Char(letter) => self.filter.push(letter),
            _ => {}
        }
        self.arrange();
    }

    /// Draws everything, into a frame of any size.
    pub fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, table, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Fill(1),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        self.draw_head(frame, head);
        self.draw_table(frame, table);
        self.draw_foot(frame, foot);
        if self.detail {
            self.draw_detail(frame, table);
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let [text, chart] =
            Layout::horizontal([Constraint::Fill(2), Constraint::Fill(1)]).areas(area);
        let load = self.loads.back().copied().unwrap_or(0);
        let mut first = vec![
            Span::styled(
                "tcpinspect flows ",
                Style::new().add_modifier(Modifier::BOLD),
            ),
            Span::raw(self.ifaces.join(", ")),
        ];
        if self.paused {
            first.push(Span::styled("  PAUSED", Style::new().fg(Color::Yellow)));
        }
        let mut second = format!(
            "{} flows, {} shown, {} packets/s, {} bytes/s",
            self.live,
            self.shown.len(),
            short(self.packet_rate),
            short(load as f64),
        );
        if self.untracked > 0 {
            second += &format!(", {} packets untracked", self.untracked);
        }
        let lines = vec![Line::from(first), Line::raw(second)];
        frame.render_widget(Paragraph::new(lines), text);
        // As many of the newest as there is room for.
        let skip = self.loads.len().saturating_sub(chart.width.into());
        let loads = self.loads.iter().skip(skip).copied();
        let chart_of = Sparkline::default()
            .data(loads.collect::<Vec<_>>())
            .style(Style::new().fg(Color::Cyan));
        frame.render_widget(chart_of, chart);
    }

    fn draw_table(&mut self, frame: &mut Frame<'_>, area: Rect) {
        let height = usize::from(area.height.saturating_sub(1)).max(1);
        // The selected line is always on the screen.
        self.offset = self
            .offset
            .clamp((self.selected + 1).saturating_sub(height), self.selected);
        let rows = self
            .shown
            .iter()
            .enumerate()
            .skip(self.offset)
            .take(height)
            .map(|(at, entry)| {
                let row = self.row(&self.entries[*entry]);
                if at == self.selected {
                    row.style(Style::new().add_modifier(Modifier::REVERSED))
                } else {
                    row
                }
            });
        let header = COLUMNS.iter().enumerate().map(|(at, (_, name, _))| {
            if at == self.sort {
                let arrow = if self.descending { '▼' } else { '▲' };
                Cell::from(format!("{name}{arrow}"))
            } else {
                Cell::from(*name)
            }
        });
        let widths = COLUMNS.iter().map(|(.., width)| *width);
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    fn row(&self, entry: &Entry) -> Row<'static> {
        let flow = &entry.flow;
        let bytes = flow.orig().bytes + flow.resp().bytes;
        let handshake = flow.handshake_ns().map_or("-".to_owned(), time);
        let state = if flow.is_live() {
            flow.state()
        } else {
            flow.end()
        };
        let history = String::from_utf8_lossy(flow.history()).into_owned();
        Row::new([
            Cell::from(state).style(Style::new().fg(color(flow))),
            Cell::from(endpoint(flow.saddr(), flow.sport())),
            Cell::from(endpoint(flow.daddr(), flow.dport())),
            Cell::from(time(entry.age)),
            Cell::from(handshake),
            Cell::from(short(flow.packets() as f64)),
            Cell::from(short(bytes as f64)),
            Cell::from(short(entry.packet_rate)),
            Cell::from(short(entry.byte_rate)),
            Cell::from(history),
        ])
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let line = if self.typing {
            Line::raw(format!(
                " filter: {}_  (Enter keeps it, Esc clears it)",
                self.filter
            ))
        } else if self.filter.is_empty() {
            Line::raw(KEYS)
        } else {
            Line::raw(format!(" filter: {}  (Esc clears it) {KEYS}", self.filter))
        };
        let style = Style::new().add_modifier(Modifier::REVERSED);
        frame.render_widget(Paragraph::new(line).style(style), area);
    }

    fn draw_detail(&self, frame: &mut Frame<'_>, area: Rect) {
        let Some(entry) = self.shown.get(self.selected).map(|at| &self.entries[*at]) else {
            return;
        };
        let flow = &entry.flow;
        let iface = self.ifaces.get(entry.iface).map_or("-", String::as_str);
        let mut lines = vec![
            Line::raw(format!(
                "{} → {} on {iface}",
                endpoint(flow.saddr(), flow.sport()),
                endpoint(flow.daddr(), flow.dport())
            )),
            Line::raw(format!(
                "{}, Zeek {} {}{}",
                flow.state(),
                flow.conn_state(),
                String::from_utf8_lossy(flow.history()),
                if flow.is_partial() {
                    ", seen midway"
                } else {
                    ""
                }
            )),
            Line::raw(format!(
                "SYN-ACK after {}, handshake {}, {} SYNs repeated, lasts {}",
                flow.syn_ack_ns().map_or("-".to_owned(), time),
                flow.handshake_ns().map_or("-".to_owned(), time),
                flow.raw.syn_retransmits,
                time(flow.duration_ns())
            )),
        ];
        for (name, end) in [("initiator", flow.orig()), ("responder", flow.resp())] {
            lines.push(Line::raw(format!(
                "{name}: {} packets, {} bytes, {} retransmitted, {} zero windows",
                end.packets, end.bytes, end.retransmits, end.zero_windows
            )));
        }
        lines.push(Line::raw(format!(
            "{} unexpected packets",
            flow.raw.unexpected
        )));
        let height = (lines.len() as u16 + 2).min(area.height);
        let width = 76.min(area.width);
        let place = Rect {
            x: area.x + (area.width - width) / 2,
            y: area.y + (area.height - height) / 2,
            width,
            height,
        };
        frame.render_widget(Clear, place);
        let block = Block::bordered().title(" flow, Esc closes ");
        frame.render_widget(Paragraph::new(lines).block(block), place);
    }
}

fn compare(column: Column, a: &Entry, b: &Entry) -> Ordering {
    let bytes = |entry: &Entry| entry.flow.orig().bytes + entry.flow.resp().bytes;
    match column {
        Column::State => a.flow.state().cmp(b.flow.state()),
        Column::Source => (a.flow.saddr(), a.flow.sport()).cmp(&(b.flow.saddr(), b.flow.sport())),
        Column::Destination => {
            (a.flow.daddr(), a.flow.dport()).cmp(&(b.flow.daddr(), b.flow.dport()))
        }
        Column::Age => a.age.cmp(&b.age),
        Column::Handshake => a.flow.handshake_ns().cmp(&b.flow.handshake_ns()),
        Column::Packets => a.flow.packets().cmp(&b.flow.packets()),
        Column::Bytes => bytes(a).cmp(&bytes(b)),
        Column::PacketRate => a.packet_rate.total_cmp(&b.packet_rate),
        Column::ByteRate => a.byte_rate.total_cmp(&b.byte_rate),
        Column::History => a.flow.history().cmp(b.flow.history()),
    }
}

/// What a filter is looked for in.
fn text_of(flow: &Flow) -> String {
    let text = format!(
        "{} {} {} {}",
        endpoint(flow.saddr(), flow.sport()),
        endpoint(flow.daddr(), flow.dport()),
        flow.state(),
        flow.conn_state()
    );
    text.to_lowercase()
}

fn endpoint(addr: std::net::IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}

/// What is being set up is yellow, what is up green, what is ending blue, what went wrong red.
fn color(flow: &Flow) -> Color {
    if !flow.is_live() {
        return Color::DarkGray;
    }
    match flow.state() {
        "SYN-SENT" | "SYN-RECEIVED" => Color::Yellow,
        "ESTABLISHED" => Color::Green,
        "CLOSED" => Color::Red,
        _ => Color::Blue,
    }
}

/// A number in at most six characters.
fn short(value: f64) -> String {
    let mut value = value;
    for unit in ["", "k", "M", "G", "T"] {
        if value < 999.5 {
            return if unit.is_empty() || value >= 99.95 {
                format!("{value:.0}{unit}")
            } else {
                format!("{value:.1}{unit}")
            };
        }
        value /= 1000.0;
    }
    format!("{value:.0}P")
}

/// A time in at most seven characters.
fn time(ns: u64) -> String {
    let seconds = ns as f64 / 1e9;
    if seconds < 0.001 {
        format!("{:.0}us", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1}ms", seconds * 1e3)
    } else if seconds < 100.0 {
        format!("{seconds:.1}s")
    } else if seconds < 6000.0 {
        format!("{:.0}m", seconds / 60.0)
    } else {
        format!("{:.1}h", seconds / 3600.0)
    }
}

#[cfg(test)]
mod tests;
