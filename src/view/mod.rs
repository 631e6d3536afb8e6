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

use crate::output::escape::push_text;
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
    Process,
    Age,
    Handshake,
    Packets,
    Bytes,
    PacketRate,
    ByteRate,
    History,
}

/// Each with its width, and its place among those that go where there is no room; the ends of a flow
/// share what the others leave, and like its state and rate they always stay.
const COLUMNS: [(Column, &str, u16, u8); 11] = [
    (Column::State, "STATE", 12, STAYS),
    (Column::Source, "SOURCE", 0, STAYS),
    (Column::Destination, "DESTINATION", 0, STAYS),
    (Column::Process, "PROCESS", 15, 4),
    (Column::Age, "AGE", 7, 3),
    (Column::Handshake, "HANDSHK", 8, 1),
    (Column::Packets, "PACKETS", 8, 5),
    (Column::Bytes, "BYTES", 7, 6),
    (Column::PacketRate, "PKT/s", 7, 2),
    (Column::ByteRate, "BYTE/s", 7, STAYS),
    (Column::History, "HISTORY", 10, 0),
];
const STAYS: u8 = 7;

/// Letters of an address and port that tell it from others: for more no other column goes.
const ENOUGH_OF_AN_END: usize = 24;

/// Columns of the box with a flow's details, unless they need more or there is less.
const DETAIL_WIDTH: u16 = 76;

const KEYS: &str = " q quit  / filter  ←→ sort by  r reverse  ↑↓ select  Enter detail  Space pause";

/// A flow, and what it has carried in the last interval.
#[derive(Clone, Copy)]
struct Entry {
    flow: Flow,
    packet_rate: f64,
    byte_rate: f64,
    /// Nanoseconds since its first packet; if it has ended, until its last.
    age: u64,
    iface: usize,
}

/// Ends, ports and interface.
type FlowKey = ([[u8; 16]; 2], [u16; 2], u16);

impl Entry {
    fn key(&self) -> FlowKey {
        let key = &self.flow.raw.key;
        (key.addr, key.port, key.interface)
    }
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
    /// The flow that is shown in detail, as it was last seen: it may be over.
    detail: Option<Entry>,
    selected: usize,
    /// Lines of the table on the screen.
    height: usize,
    /// Letters of the longest end of a flow.
    longest: usize,
    /// First line of the table that is on the screen.
    offset: usize,
    /// Bytes a second, newest last.
    loads: VecDeque<u64>,
    live: usize,
    /// In the last interval.
    ended: usize,
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
            detail: None,
            selected: 0,
            height: 1,
            longest: 0,
            offset: 0,
            loads: VecDeque::new(),
            live: 0,
            ended: 0,
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
        self.ended = entries.len() - self.live;
        self.packet_rate = packets as f64 / seconds;
        self.loads.push_back((bytes as f64 / seconds) as u64);
        if self.loads.len() > LOADS_KEPT {
            self.loads.pop_front();
        }
        self.untracked = untracked;
        if !self.paused {
            let selected = self.selected().map(Entry::key);
            self.entries = entries;
            self.arrange();
            self.follow(selected);
            self.update_detail();
        }
    }

    fn selected(&self) -> Option<&Entry> {
        Some(&self.entries[*self.shown.get(self.selected)?])
    }

    /// Keeps the same flow selected, wherever it is now.
    fn follow(&mut self, key: Option<FlowKey>) {
        let found = self
            .shown
            .iter()
            .position(|at| key == Some(self.entries[*at].key()));
        // The top stays the top: there is what the table is sorted for.
        if let Some(found) = found
            && self.selected > 0
        {
            self.selected = found;
        }
        self.selected = self.selected.min(self.shown.len().saturating_sub(1));
    }

    fn update_detail(&mut self) {
        if let Some(detail) = &mut self.detail
            && let Some(now) = self.entries.iter().find(|it| it.key() == detail.key())
        {
            *detail = *now;
        }
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
        // So that columns stay where they are while the user moves, not only what is on the screen
        // counts; but of very many flows the first are enough.
        let longest = shown.iter().take(1000).map(|at| {
            let flow = &self.entries[*at].flow;
            let source = endpoint(flow.saddr(), flow.sport());
            let destination = endpoint(flow.daddr(), flow.dport());
            source.len().max(destination.len())
        });
        self.longest = longest.max().unwrap_or(0);
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
        match key {
            Key::Char('q') => return Reaction::Quit,
            Key::Esc if self.detail.is_some() => self.detail = None,
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
            Key::Up | Key::Char('k') => self.select(self.selected.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(self.selected + 1),
            Key::PageUp => self.select(self.selected.saturating_sub(self.height)),
            Key::PageDown => self.select(self.selected + self.height),
            Key::Home => self.select(0),
            Key::End => self.select(usize::MAX),
            Key::Enter if self.detail.is_some() => self.detail = None,
            Key::Enter => self.detail = self.selected().copied(),
            _ => {}
        }
        Reaction::Draw
    }

    fn select(&mut self, line: usize) {
        self.selected = line.min(self.shown.len().saturating_sub(1));
        if self.detail.is_some() {
            self.detail = self.selected().copied();
        }
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
        if let Some(entry) = &self.detail {
            self.draw_detail(frame, table, entry);
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
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
            "{} open, {} ended, {} packets/s, {} bytes/s",
            self.live,
            self.ended,
            short(self.packet_rate),
            short(load as f64),
        );
        if !self.filter.is_empty() {
            second += &format!(", {} shown", self.shown.len());
        }
        if self.untracked > 0 {
            second += &format!(", {} packets untracked", self.untracked);
        }
        let lines = vec![Line::from(first), Line::raw(second)];
        // The chart has a third, or what the text leaves of it.
        let widest = lines.iter().map(Line::width).max().unwrap_or(0) as u16;
        let width = (widest + 2).max(area.width / 3 * 2);
        let [text, chart] =
            Layout::horizontal([Constraint::Length(width), Constraint::Fill(1)]).areas(area);
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
        self.height = usize::from(area.height.saturating_sub(1)).max(1);
        // The selected line is always on the screen.
        self.offset = self.offset.clamp(
            (self.selected + 1).saturating_sub(self.height),
            self.selected,
        );
        let (columns, end_width) = self.columns(area.width);
        let lines = self.shown.iter().skip(self.offset).take(self.height);
        let rows = (self.offset..).zip(lines).map(|(at, entry)| {
            let entry = &self.entries[*entry];
            let cells = columns
                .iter()
                .map(|at| cell(COLUMNS[*at].0, entry, end_width));
            let row = Row::new(cells);
            if at == self.selected {
                row.style(Style::new().add_modifier(Modifier::REVERSED))
            } else {
                row
            }
        });
        let header = columns.iter().map(|at| {
            let (column, name, ..) = COLUMNS[*at];
            let arrow = match (*at == self.sort, self.descending) {
                (false, _) => "",
                (true, true) => "▼",
                (true, false) => "▲",
            };
            aligned(column, format!("{name}{arrow}"))
        });
        let widths = columns.iter().map(|at| match COLUMNS[*at].2 {
            0 => Constraint::Length(end_width as u16),
            width => Constraint::Length(width),
        });
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    /// The columns that there is room for, and the width of each end of a flow. The column that is
    /// sorted by is always there.
    fn columns(&self, width: u16) -> (Vec<usize>, usize) {
        let room = |columns: &[usize]| {
            let others: usize = columns.iter().map(|at| usize::from(COLUMNS[*at].2)).sum();
            let gaps = columns.len().saturating_sub(1);
            usize::from(width).saturating_sub(others + gaps) / 2
        };
        let longest = self.longest.max("DESTINATION▼".chars().count());
        let mut columns = (0..COLUMNS.len()).collect::<Vec<_>>();
        for rank in 0..STAYS {
            if room(&columns) >= longest.min(ENOUGH_OF_AN_END) {
                break;
            }
            columns.retain(|at| COLUMNS[*at].3 != rank || *at == self.sort);
        }
        // As much as is needed, so that what belongs together is close together.
        let end_width = room(&columns).min(longest);
        (columns, end_width)
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

    fn draw_detail(&self, frame: &mut Frame<'_>, area: Rect, entry: &Entry) {
        let flow = &entry.flow;
        let iface = self.ifaces.get(entry.iface).map_or("-", String::as_str);
        let source = endpoint(flow.saddr(), flow.sport());
        let destination = format!("→ {} on {iface}", endpoint(flow.daddr(), flow.dport()));
        let both = Line::raw(format!("{source} {destination}"));
        let mut lines = if both.width() + 2 <= usize::from(area.width) {
            vec![both]
        } else {
            vec![Line::raw(source), Line::raw(destination)]
        };
        lines.extend([
            Line::raw(format!(
                "{}, Zeek {} {}{}",
                state(flow),
                flow.conn_state(),
                String::from_utf8_lossy(flow.history()),
                if flow.is_partial() {
                    ", seen midway"
                } else {
                    ""
                }
            )),
            Line::raw(format!(
                "SYN-ACK after {}, handshake {}, lasts {}, SYNs repeated: {}",
                flow.syn_ack_ns().map_or("-".to_owned(), time),
                flow.handshake_ns().map_or("-".to_owned(), time),
                time(flow.duration_ns()),
                flow.raw.syn_retransmits
            )),
        ]);
        lines.push(Line::raw(match (flow.process(), flow.uid()) {
            (Some((pid, comm)), Some(uid)) => format!("{}, process {pid}, user {uid}", name(comm)),
            (_, Some(uid)) => format!("several processes of user {uid}"),
            _ => "process unknown".to_owned(),
        }));
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
        let height = (lines.len() as u16 + 2).min(area.height);
        let widest = lines.iter().map(Line::width).max().unwrap_or(0) as u16;
        let width = (widest + 2).max(DETAIL_WIDTH).min(area.width);
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

/// The text of a flow in a column.
fn cell(column: Column, entry: &Entry, end_width: usize) -> Cell<'static> {
    let flow = &entry.flow;
    let bytes = flow.orig().bytes + flow.resp().bytes;
    let text = match column {
        Column::State => {
            return Cell::from(state(flow)).style(Style::new().fg(color(flow)));
        }
        Column::Source => shortened(&endpoint(flow.saddr(), flow.sport()), end_width),
        Column::Destination => shortened(&endpoint(flow.daddr(), flow.dport()), end_width),
        Column::Process => flow
            .process()
            .map_or("-".to_owned(), |(_, comm)| name(comm)),
        Column::Age => time(entry.age),
        Column::Handshake => flow.handshake_ns().map_or("-".to_owned(), time),
        Column::Packets => short(flow.packets() as f64),
        Column::Bytes => short(bytes as f64),
        Column::PacketRate => short(entry.packet_rate),
        Column::ByteRate => short(entry.byte_rate),
        Column::History => String::from_utf8_lossy(flow.history()).into_owned(),
    };
    aligned(column, text)
}

/// Numbers to the right.
fn aligned(column: Column, text: String) -> Cell<'static> {
    let line = Line::from(text);
    Cell::from(match column {
        Column::Age
        | Column::Handshake
        | Column::Packets
        | Column::Bytes
        | Column::PacketRate
        | Column::ByteRate => line.right_aligned(),
        _ => line,
    })
}

/// Where the flow is, or how it came to be over.
fn state(flow: &Flow) -> &'static str {
    if flow.is_live() {
        flow.state()
    } else {
        flow.end()
    }
}

/// A process's name, of which it may have made anything.
fn name(comm: &[u8]) -> String {
    let mut text = Vec::new();
    push_text(&mut text, comm);
    String::from_utf8_lossy(&text).into_owned()
}

/// Leaves out the middle of what is too long: the port is at the end.
fn shortened(text: &str, width: usize) -> String {
    if text.len() <= width || width < 3 {
        return text.to_owned();
    }
    let head = (width - 1) / 2;
    let tail = text.len() - (width - 1 - head);
    format!("{}…{}", &text[..head], &text[tail..])
}

fn compare(column: Column, a: &Entry, b: &Entry) -> Ordering {
    let bytes = |entry: &Entry| entry.flow.orig().bytes + entry.flow.resp().bytes;
    match column {
        Column::State => a.flow.state().cmp(b.flow.state()),
        Column::Source => (a.flow.saddr(), a.flow.sport()).cmp(&(b.flow.saddr(), b.flow.sport())),
        Column::Destination => {
            (a.flow.daddr(), a.flow.dport()).cmp(&(b.flow.daddr(), b.flow.dport()))
        }
        Column::Process => a
            .flow
            .process()
            .map(by_name)
            .cmp(&b.flow.process().map(by_name)),
        Column::Age => a.age.cmp(&b.age),
        Column::Handshake => a.flow.handshake_ns().cmp(&b.flow.handshake_ns()),
        Column::Packets => a.flow.packets().cmp(&b.flow.packets()),
        Column::Bytes => bytes(a).cmp(&bytes(b)),
        Column::PacketRate => a.packet_rate.total_cmp(&b.packet_rate),
        Column::ByteRate => a.byte_rate.total_cmp(&b.byte_rate),
        Column::History => a.flow.history().cmp(b.flow.history()),
    }
}

fn by_name((pid, comm): (u32, &[u8])) -> (&[u8], u32) {
    (comm, pid)
}

/// What a filter is looked for in.
fn text_of(flow: &Flow) -> String {
    let text = format!(
        "{} {} {} {} {}",
        endpoint(flow.saddr(), flow.sport()),
        endpoint(flow.daddr(), flow.dport()),
        flow.state(),
        flow.conn_state(),
        flow.process()
            .map(|(_, comm)| name(comm))
            .unwrap_or_default()
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
