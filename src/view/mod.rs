//! The table of flows on a terminal. It knows no clock, no map and no terminal: flows and keys go
//! in, a frame comes out.

mod filter;
mod groups;
pub mod keys;
pub mod listeners;
pub mod terminal;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::rc::Rc;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Sparkline, Table};

use crate::cli::manual::Page;
use crate::domain::flow::{Flow, MeasuredBy, TcpState};
use crate::domain::names::{Name, NamedFlow};
use crate::domain::traffic::Traffic;
use crate::filter::expr::End;
use crate::output::columns::Tone;
use crate::output::escape::push_text;
use crate::output::flows::state_tone;
use filter::{Fields, Filter, Number, Word};
use groups::{Group, GroupBy};
use keys::Key;

/// Intervals that the sparkline remembers.
const LOADS_KEPT: usize = 240;

/// What the table can be sorted by, in the order of its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
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

/// Each with its width, and its place among those that are shown where there is room, the last ones
/// first; the ends of a flow share what the others leave, and like its state and rate they always
/// stay.
const COLUMNS: [(Column, &str, u16, u8); 15] = [
    (Column::State, "STATE", 12, STAYS),
    (Column::Source, "SOURCE", 0, STAYS),
    (Column::Destination, "DESTINATION", 0, STAYS),
    (Column::Name, "NAME", 24, 8),
    (Column::Process, "PROCESS", 15, 7),
    (Column::Pid, "PID", 7, 1),
    (Column::Age, "AGE", 7, 4),
    (Column::Handshake, "HANDSHK", 7, 3),
    (Column::Packets, "PACKETS", 7, 5),
    (Column::Bytes, "BYTES", 6, 6),
    (Column::PacketRate, "PKT/s", 6, 2),
    (Column::ByteRate, "BYTE/s", 6, STAYS),
    (Column::Retransmits, "RETRANS", 7, 10),
    (Column::RoundTrip, "RTT", 7, 9),
    (Column::History, "HISTORY", 10, 0),
];
const STAYS: u8 = 11;

/// Letters of an address and port that tell it from others, all those of IPv4: for more no other
/// column goes. With these, retransmits and round trips have room on 80 columns.
const ENOUGH_OF_AN_END: usize = 21;

/// Letters of a process's name, where there is no room for all.
const SHORT_PROCESS: u16 = 8;

/// Columns of the box with a flow's details, unless they need more or there is less.
const DETAIL_WIDTH: u16 = 76;

const KEYS: &str =
    " q quit  / filter  g group  ←→ sort  r reverse  ↑↓ select  Enter detail  ? help";

/// All keys, for the help.
const HELP: [(&str, &str); 10] = [
    ("q, Ctrl-C", "quit"),
    ("↑ ↓ PgUp PgDn", "select a flow; Home and End too"),
    ("Enter", "its details; of a group, its flows"),
    ("← →, r", "sort by another column; reverse the order"),
    ("g", "group by process, source, destination or port"),
    ("Space, p", "pause"),
    ("/", "filter, which Enter keeps and Esc clears: words,"),
    ("", "expressions such as: port 443 and not host 192.0.2.1"),
    ("", "comparisons such as: dport=443 retrans>0 rtt>10ms !ssh"),
    ("Ctrl-L, Ctrl-Z", "draw again; suspend"),
];

/// Intervals that the details of a flow remember.
const TRAIL_KEPT: usize = 240;

/// A flow, and what it has carried in the last interval.
#[derive(Clone)]
struct Entry {
    flow: Flow,
    name: Option<Rc<Name>>,
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

    fn round_trip_ns(&self) -> Option<u64> {
        Some(self.flow.round_trip()?.us * 1000)
    }
}

impl Fields for Entry {
    fn text(&self) -> String {
        text_of(self)
    }

    fn word(&self, word: Word) -> String {
        match word {
            Word::Comm => process(&self.flow).unwrap_or_default(),
            Word::State => state(&self.flow).to_owned(),
            Word::Conn => self.flow.conn_state().name().to_owned(),
            Word::Name => server(self).unwrap_or_default(),
        }
    }

    fn ends(&self) -> [End; 2] {
        let flow = &self.flow;
        [(flow.saddr(), flow.sport()), (flow.daddr(), flow.dport())]
    }

    fn numbers(&self, number: Number) -> [Option<f64>; 2] {
        let flow = &self.flow;
        let ports = [flow.sport(), flow.dport()].map(|port| Some(f64::from(port)));
        let number = match number {
            Number::Port => return ports,
            Number::Sport => ports[0],
            Number::Dport => ports[1],
            Number::Pid => flow.process().map(|(pid, _)| f64::from(pid)),
            Number::Uid => flow.uid().map(f64::from),
            Number::Packets => Some(flow.packets() as f64),
            Number::Bytes => Some(bytes(flow) as f64),
            Number::PacketRate => Some(self.packet_rate),
            Number::ByteRate => Some(self.byte_rate),
            Number::Retransmits => Some(flow.retransmits() as f64),
            Number::RoundTrip => self.round_trip_ns().map(|ns| ns as f64),
            Number::Handshake => flow.handshake_ns().map(|ns| ns as f64),
            Number::Age => Some(self.age as f64),
        };
        [number, None]
    }
}

/// What the user sees.
pub struct View {
    ifaces: Vec<String>,
    entries: Vec<Entry>,
    /// Positions in `entries` of those that pass the filter, sorted.
    shown: Vec<usize>,
    grouped: Option<GroupBy>,
    /// With `grouped`: the flows that pass the filter, summed up and sorted.
    groups: Vec<Group>,
    has_names: bool,
    has_help: bool,
    sort: usize,
    descending: bool,
    filter: String,
    /// A comparison in the filter that says nothing yet.
    unfinished: Option<String>,
    typing: bool,
    paused: bool,
    /// The flow that is shown in detail, as it was last seen: it may be over.
    detail: Option<Entry>,
    /// Its bytes a second and round trips in microseconds since it is shown, newest last.
    trail: VecDeque<[u64; 2]>,
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
    /// Since the start.
    ended: u64,
    /// Of these, those of the last interval that are not among `entries`.
    left_out: u64,
    packet_rate: f64,
    untracked: u64,
}

/// An interval that has passed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interval {
    /// Its end, by the clock of the flows' times.
    pub now_ns: u64,
    /// Its length.
    pub seconds: f64,
    /// Packets since the start whose flow found no room in the table.
    pub untracked: u64,
    /// Flows that have ended in it and are not among those that the view is given.
    pub left_out: Traffic,
}

/// What a [`terminal::Screen`] shows.
pub trait Picture {
    /// Draws everything, into a frame of any size.
    fn draw(&mut self, frame: &mut Frame<'_>);

    /// Reacts to a key.
    fn key(&mut self, key: Key) -> Reaction;
}

impl Picture for View {
    fn draw(&mut self, frame: &mut Frame<'_>) {
        Self::draw(self, frame);
    }

    fn key(&mut self, key: Key) -> Reaction {
        Self::key(self, key)
    }
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
            grouped: None,
            groups: Vec::new(),
            has_names: false,
            has_help: false,
            sort: COLUMNS
                .iter()
                .position(|(column, ..)| *column == Column::ByteRate)
                .unwrap_or(0),
            descending: true,
            filter: String::new(),
            unfinished: None,
            typing: false,
            paused: false,
            detail: None,
            trail: VecDeque::new(),
            selected: 0,
            height: 1,
            longest: 0,
            offset: 0,
            loads: VecDeque::new(),
            live: 0,
            ended: 0,
            left_out: 0,
            packet_rate: 0.0,
            untracked: 0,
        }
    }

    /// Takes the flows of an interval: those that are live, and those that have ended in it.
    pub fn update(&mut self, flows: impl IntoIterator<Item = NamedFlow>, interval: &Interval) {
        let seconds = interval.seconds.max(1e-3);
        let (mut packets, mut bytes) = (interval.left_out.packets, interval.left_out.bytes);
        let selected = self.selected().map(Entry::key);
        let group = self.selected_group().map(|group| group.filter.clone());
        if !self.paused {
            // Its memory is used again: with very many flows it is large.
            self.entries.clear();
        }
        self.live = 0;
        for NamedFlow { flow, name } in flows {
            let since = flow.since_told();
            packets += since.0;
            bytes += since.1;
            let is_live = flow.is_live();
            self.live += usize::from(is_live);
            self.ended += u64::from(!is_live);
            if self.paused {
                continue;
            }
            self.entries.push(Entry {
                packet_rate: since.0 as f64 / seconds,
                byte_rate: since.1 as f64 / seconds,
                age: match is_live {
                    true => interval.now_ns.saturating_sub(flow.raw.start_ns),
                    false => flow.duration_ns(),
                },
                iface: flow.raw.key.interface.into(),
                flow,
                name,
            });
        }
        self.ended += interval.left_out.flows;
        self.left_out = interval.left_out.flows;
        self.packet_rate = packets as f64 / seconds;
        self.loads.push_back((bytes as f64 / seconds) as u64);
        if self.loads.len() > LOADS_KEPT {
            self.loads.pop_front();
        }
        self.untracked = interval.untracked;
        if !self.paused {
            self.has_names |= self.entries.iter().any(|entry| server(entry).is_some());
            self.arrange();
            self.follow(selected, group);
            self.update_detail();
        }
    }

    fn selected(&self) -> Option<&Entry> {
        match self.grouped {
            None => self.entries.get(*self.shown.get(self.selected)?),
            Some(_) => None,
        }
    }

    fn selected_group(&self) -> Option<&Group> {
        self.grouped.and_then(|_| self.groups.get(self.selected))
    }

    /// Lines of the table, on the screen or not.
    fn lines(&self) -> usize {
        match self.grouped {
            None => self.shown.len(),
            Some(_) => self.groups.len(),
        }
    }

    /// Keeps the same flow or group selected, wherever it is now.
    fn follow(&mut self, key: Option<FlowKey>, group: Option<String>) {
        let found = match self.grouped {
            None => self
                .shown
                .iter()
                .position(|at| key == Some(self.entries[*at].key())),
            Some(_) => self
                .groups
                .iter()
                .position(|it| group.as_ref() == Some(&it.filter)),
        };
        // The top stays the top: there is what the table is sorted for.
        if let Some(found) = found
            && self.selected > 0
        {
            self.selected = found;
        }
        self.selected = self.selected.min(self.lines().saturating_sub(1));
    }

    fn update_detail(&mut self) {
        if let Some(detail) = &mut self.detail {
            match self.entries.iter().find(|it| it.key() == detail.key()) {
                Some(now) => *detail = now.clone(),
                None => detail.byte_rate = 0.0,
            }
            self.note_trail();
        }
    }

    fn note_trail(&mut self) {
        if let Some(detail) = &self.detail {
            let round_trip = detail.flow.round_trip().map_or(0, |trip| trip.us);
            self.trail.push_back([detail.byte_rate as u64, round_trip]);
            if self.trail.len() > TRAIL_KEPT {
                self.trail.pop_front();
            }
        }
    }

    fn open_detail(&mut self) {
        self.detail = self.selected().cloned();
        self.trail.clear();
        self.note_trail();
    }

    /// Chooses and sorts what is shown.
    fn arrange(&mut self) {
        let filter = Filter::parse(&self.filter);
        let shown = (0..self.entries.len())
            .filter(|at| filter.passes(&self.entries[*at]))
            .collect::<Vec<_>>();
        self.unfinished = filter.unfinished;
        let column = COLUMNS[self.sort].0;
        if let Some(by) = self.grouped {
            let entries = shown.iter().map(|at| &self.entries[*at]);
            self.groups = groups::groups(by, entries);
            self.groups.sort_by(|a, b| {
                let order = groups::compare(column, a, b);
                let order = if self.descending {
                    order.reverse()
                } else {
                    order
                };
                order.then_with(|| a.key.cmp(&b.key))
            });
            self.shown = shown;
            self.selected = self.selected.min(self.lines().saturating_sub(1));
            return;
        }
        // The keys are taken out first: flows are large, and far apart in memory.
        let keyed = shown.iter().map(|at| {
            let entry = &self.entries[*at];
            (sort_key(column, entry), entry.flow.raw.start_ns, *at)
        });
        let mut keyed = keyed.collect::<Vec<_>>();
        keyed.sort_unstable_by(|a, b| {
            let order = a.0.cmp(&b.0);
            let order = if self.descending {
                order.reverse()
            } else {
                order
            };
            order.then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
        });
        let shown = keyed.into_iter().map(|(.., at)| at).collect::<Vec<_>>();
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
        self.selected = self.selected.min(self.lines().saturating_sub(1));
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
            Key::Char('?') => self.has_help = !self.has_help,
            Key::Esc | Key::Enter if self.has_help => self.has_help = false,
            Key::Char('g') => self.group_by(GroupBy::after(self.grouped)),
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
            Key::Left | Key::Char('<') => self.sort_by(COLUMNS.len() - 1),
            Key::Right | Key::Char('>') => self.sort_by(1),
            Key::Up | Key::Char('k') => self.select(self.selected.saturating_sub(1)),
            Key::Down | Key::Char('j') => self.select(self.selected + 1),
            Key::PageUp => self.select(self.selected.saturating_sub(self.height)),
            Key::PageDown => self.select(self.selected + self.height),
            Key::Home => self.select(0),
            Key::End => self.select(usize::MAX),
            Key::Enter if self.detail.is_some() => self.detail = None,
            Key::Enter => match self.selected_group() {
                Some(group) => {
                    self.filter = group.filter.clone();
                    self.group_by(None);
                }
                None => self.open_detail(),
            },
            _ => {}
        }
        Reaction::Draw
    }

    fn select(&mut self, line: usize) {
        self.selected = line.min(self.lines().saturating_sub(1));
        if self.detail.is_some() {
            self.open_detail();
        }
    }

    /// Sorts by the next column that there is, so many columns further on.
    fn sort_by(&mut self, step: usize) {
        for _ in 0..COLUMNS.len() {
            self.sort = (self.sort + step) % COLUMNS.len();
            if self.has_column(COLUMNS[self.sort].0) {
                break;
            }
        }
        self.arrange();
    }

    fn has_column(&self, column: Column) -> bool {
        match self.grouped {
            Some(_) => groups::SUMMED.contains(&column),
            None => column != Column::Name || self.has_names,
        }
    }

    fn group_by(&mut self, by: Option<GroupBy>) {
        self.grouped = by;
        self.detail = None;
        self.selected = 0;
        if !self.has_column(COLUMNS[self.sort].0) {
            self.sort_by(1);
        }
        self.arrange();
    }

    fn type_filter(&mut self, key: Key) {
        self.typing = type_filter(&mut self.filter, key);
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
        if self.has_help {
            draw_help(frame, table, help());
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
        if self.grouped.is_some() {
            second += &match self.groups.len() {
                1 => ", 1 group".to_owned(),
                count => format!(", {count} groups"),
            };
        }
        if self.left_out > 0 {
            second += &format!(", {} ended left out", self.left_out);
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
        // The selected line is always on the screen, and no line of it is empty while there are
        // flows above.
        let last = self.lines().saturating_sub(self.height);
        self.offset = self.offset.min(last).clamp(
            (self.selected + 1).saturating_sub(self.height),
            self.selected,
        );
        if let Some(by) = self.grouped {
            return self.draw_groups(frame, area, by);
        }
        let columns = self.columns(area.width);
        let lines = self.shown.iter().skip(self.offset).take(self.height);
        let rows = (self.offset..).zip(lines).map(|(at, entry)| {
            let entry = &self.entries[*entry];
            let cells = columns
                .iter()
                .map(|(at, width)| cell(COLUMNS[*at].0, entry, usize::from(*width)));
            let row = Row::new(cells);
            if at == self.selected {
                row.style(Style::new().add_modifier(Modifier::REVERSED))
            } else {
                row
            }
        });
        let header = columns.iter().map(|(at, _)| {
            let (column, name, ..) = COLUMNS[*at];
            let arrow = self.arrow(*at == self.sort);
            aligned(column, format!("{name}{arrow}"))
        });
        let widths = columns.iter().map(|(_, width)| *width);
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    fn draw_groups(&self, frame: &mut Frame<'_>, area: Rect, by: GroupBy) {
        let sorted = COLUMNS[self.sort].0;
        let columns = COLUMNS
            .iter()
            .filter(|(column, ..)| groups::SUMMED.contains(column));
        let columns = columns
            .map(|(column, name, width, _)| (*column, *name, (*width).max(name.len() as u16 + 1)));
        let groups = self.groups.iter().skip(self.offset).take(self.height);
        let rows = (self.offset..).zip(groups).map(|(at, group)| {
            let summed = columns.clone().map(|(column, ..)| {
                aligned(
                    column,
                    match column {
                        Column::Packets => short(group.packets as f64),
                        Column::Bytes => short(group.bytes as f64),
                        Column::PacketRate => short(group.packet_rate),
                        Column::ByteRate => short(group.byte_rate),
                        Column::Retransmits => short(group.retransmits as f64),
                        _ => group.round_trip.map_or("-".to_owned(), time),
                    },
                )
            });
            let flows = Line::from(group.flows.to_string()).right_aligned();
            let own = [Cell::from(group.key.clone()), Cell::from(flows)];
            let style = match at == self.selected {
                true => Style::new().add_modifier(Modifier::REVERSED),
                false => Style::new(),
            };
            Row::new(own.into_iter().chain(summed)).style(style)
        });
        let own = [
            Cell::from(by.title()),
            Cell::from(Line::from("FLOWS").right_aligned()),
        ];
        let header = columns.clone().map(|(column, name, _)| {
            aligned(column, format!("{name}{}", self.arrow(column == sorted)))
        });
        let widths = columns.clone().map(|(_, _, width)| width);
        let widths = [22, 7].into_iter().chain(widths).map(Constraint::Length);
        let header = Row::new(own.into_iter().chain(header));
        let table = Table::new(rows, widths)
            .header(header.style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    /// What marks the column that is sorted by.
    fn arrow(&self, is_sorted_by: bool) -> &'static str {
        match (is_sorted_by, self.descending) {
            (false, _) => "",
            (true, true) => "▼",
            (true, false) => "▲",
        }
    }

    /// The width of a column. The one that is sorted by has a mark in its header.
    fn width(&self, at: usize) -> u16 {
        let (_, name, width, _) = COLUMNS[at];
        match at == self.sort && width > 0 {
            true => width.max(name.len() as u16 + 1),
            false => width,
        }
    }

    /// The columns that there is room for, and their widths. The column that is sorted by is always
    /// there.
    fn columns(&self, width: u16) -> Vec<(usize, u16)> {
        let there = (0..COLUMNS.len()).filter(|at| self.has_column(COLUMNS[*at].0));
        let (first, mut others) =
            there.partition::<Vec<_>, _>(|at| COLUMNS[*at].3 == STAYS || *at == self.sort);
        let mut columns = first
            .iter()
            .map(|at| (*at, self.width(*at)))
            .collect::<Vec<_>>();
        // With the gaps.
        let mut used = columns
            .iter()
            .map(|(_, width)| usize::from(*width) + 1)
            .sum::<usize>()
            - 1;
        let room = |used: usize| usize::from(width).saturating_sub(used) / 2;
        let longest = self.longest.max("DESTINATION▼".chars().count());
        others.sort_by_key(|at| std::cmp::Reverse(COLUMNS[*at].3));
        for at in others {
            let width = self.width(at);
            let shortest = match COLUMNS[at].0 {
                Column::Process => SHORT_PROCESS,
                _ => width,
            };
            let enough = longest.min(ENOUGH_OF_AN_END);
            let mut widths = [width, shortest].into_iter();
            if let Some(width) = widths.find(|it| room(used + usize::from(*it) + 1) >= enough) {
                used += usize::from(width) + 1;
                columns.push((at, width));
            }
        }
        // As much as is needed, so that what belongs together is close together.
        let end = room(used).min(longest) as u16;
        for (at, width) in &mut columns {
            if COLUMNS[*at].2 == 0 {
                *width = end;
            }
        }
        columns.sort_unstable();
        columns
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let line = if self.typing {
            let unfinished = self.unfinished.as_ref();
            let hint = unfinished.map_or("Enter keeps it, Esc clears it".to_owned(), |term| {
                format!("not complete: {term}")
            });
            Line::raw(format!(" filter: {}_  ({hint})", self.filter))
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
        let meaning = |word| Page::of("flows").and_then(|page| page.meaning(word));
        let conn = flow.conn_state().name();
        lines.extend([
            Line::raw(format!(
                "{}, Zeek {conn}: {}{}",
                state(flow),
                meaning(conn).unwrap_or_default(),
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
        if let Some(trip) = flow.round_trip() {
            let us = |us: u64| time(us * 1000);
            let shortest = trip.min_us.map_or("-".to_owned(), us);
            lines.push(Line::raw(match trip.from {
                MeasuredBy::Kernel => {
                    format!("round trip {}, at least {shortest}", us(trip.us))
                }
                MeasuredBy::Packets => {
                    format!(
                        "round trip {}, by the packets of the handshake",
                        us(trip.us)
                    )
                }
            }));
        }
        lines.push(Line::raw(match (flow.process(), flow.uid()) {
            (Some((pid, comm)), Some(uid)) => format!("{}, process {pid}, user {uid}", name(comm)),
            (_, Some(uid)) => format!("several processes of user {uid}"),
            _ => "process unknown".to_owned(),
        }));
        if let Some(asked) = &entry.name {
            lines.extend(asked_for(asked));
        }
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
        let widest = lines.iter().map(Line::width).max().unwrap_or(0) as u16;
        let width = (widest + 2).max(DETAIL_WIDTH).min(area.width);
        let told = history_in_words(flow, meaning);
        lines.extend(wrapped(&told, usize::from(width.saturating_sub(2))));
        // Below the text, as far as there is room: the rate, and the round trip.
        let trails = [
            (0, "bytes/s", short(entry.byte_rate)),
            (
                1,
                "round trip",
                entry.round_trip_ns().map_or("-".to_owned(), time),
            ),
        ];
        let text_height = lines.len() as u16;
        let height = (text_height + 2 + trails.len() as u16).min(area.height);
        let place = centered(area, width, height);
        frame.render_widget(Clear, place);
        let block = Block::bordered().title(" flow, Esc closes ");
        let inner = block.inner(place);
        frame.render_widget(Paragraph::new(lines).block(block), place);
        for (row, (which, what, now)) in (0..).zip(trails) {
            let line = Rect {
                y: inner.y + text_height + row,
                height: 1,
                ..inner
            };
            if line.y >= inner.bottom() || line.width < 40 {
                break;
            }
            let [label, chart] =
                Layout::horizontal([Constraint::Length(22), Constraint::Fill(1)]).areas(line);
            frame.render_widget(Paragraph::new(format!("{what} {now}")), label);
            let skip = self.trail.len().saturating_sub(chart.width.into());
            let values = self.trail.iter().skip(skip).map(|values| values[which]);
            let chart_of = Sparkline::default()
                .data(values.collect::<Vec<_>>())
                .style(Style::new().fg(Color::Cyan));
            frame.render_widget(chart_of, chart);
        }
    }
}

fn centered(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    }
}

fn help() -> Vec<Line<'static>> {
    let mut lines = help_lines(&HELP).collect::<Vec<_>>();
    lines.extend(wrapped(
        &format!("fields: {}", filter::field_names()),
        usize::from(DETAIL_WIDTH - 2),
    ));
    lines.push(Line::raw(
        "RTT is what the kernel measured, or the time of the handshake.",
    ));
    lines.push(Line::raw(
        "RETRANS counts segments sent again, both ways, SYNs included.",
    ));
    let colors = [
        ("opening", Color::Yellow),
        ("established", Color::Green),
        ("closing", Color::Blue),
        ("reset", Color::Red),
        ("ended", Color::DarkGray),
    ];
    let colors = colors.map(|(name, color)| Span::styled(format!("{name} "), color));
    lines.push(Line::from_iter(
        [Span::raw("states: ")].into_iter().chain(colors),
    ));
    lines
}

/// Applies a key to a filter that is typed. Returns whether typing goes on.
fn type_filter(filter: &mut String, key: Key) -> bool {
    match key {
        Key::Enter => return false,
        Key::Esc => {
            filter.clear();
            return false;
        }
        Key::Backspace => {
            filter.pop();
        }
        Key::Char(letter) => filter.push(letter),
        _ => {}
    }
    true
}

/// A line for each key, with its meaning.
fn help_lines(keys: &[(&str, &str)]) -> impl Iterator<Item = Line<'static>> {
    let keys = keys.iter();
    keys.map(|(key, meaning)| Line::raw(format!("{key:<15}{meaning}")))
}

/// Draws the box with all keys.
fn draw_help(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>) {
    let place = centered(area, DETAIL_WIDTH, lines.len() as u16 + 2);
    frame.render_widget(Clear, place);
    let block = Block::bordered().title(" keys, ? closes ");
    frame.render_widget(Paragraph::new(lines).block(block), place);
}

/// What happened, in words: the arrow says who has sent it.
fn history_in_words(flow: &Flow, meaning: impl Fn(&'static str) -> Option<&'static str>) -> String {
    const LETTERS: &str = "SHADFRTWIQ^";
    let words = flow.history().iter().map(|letter| {
        let letter = char::from(*letter);
        let at = LETTERS.find(letter.to_ascii_uppercase());
        let word = at.and_then(|at| meaning(&LETTERS[at..=at]));
        match word.unwrap_or("?") {
            word if letter == '^' => word.to_owned(),
            word if letter.is_ascii_uppercase() => format!("→ {word}"),
            word => format!("← {word}"),
        }
    });
    words.collect::<Vec<_>>().join(", ")
}

/// Breaks a text between words.
fn wrapped(text: &str, width: usize) -> Vec<Line<'static>> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        if line.is_empty() {
            word.clone_into(line);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.into_iter().map(Line::raw).collect()
}

/// What the initiator has asked for, in words.
fn asked_for(asked: &Name) -> Option<Line<'static>> {
    let server = asked.server.as_ref().map(|server| name(server));
    let server = server.unwrap_or_else(|| "no server by name".to_owned());
    let offered = asked.alpn.iter().flatten().map(|one| name(one));
    let offered = offered.collect::<Vec<_>>().join(", ");
    match &asked.http_method {
        Some(method) => Some(format!("asks for {server} (HTTP {})", name(method))),
        None if !offered.is_empty() => Some(format!("asks for {server} (offers {offered})")),
        None => asked
            .server
            .is_some()
            .then(|| format!("asks for {server} (TLS)")),
    }
    .map(Line::raw)
}

/// The text of a flow in a column.
fn cell(column: Column, entry: &Entry, width: usize) -> Cell<'static> {
    let flow = &entry.flow;
    let text = match column {
        Column::State => {
            return Cell::from(state(flow)).style(Style::new().fg(color(flow)));
        }
        Column::Source => shortened(&endpoint(flow.saddr(), flow.sport()), width),
        Column::Destination => shortened(&endpoint(flow.daddr(), flow.dport()), width),
        Column::Name => shortened(&server(entry).unwrap_or_else(|| "-".to_owned()), width),
        Column::Process => shortened(&process(flow).unwrap_or_else(|| "-".to_owned()), width),
        Column::Pid => flow
            .process()
            .map_or("-".to_owned(), |(pid, _)| pid.to_string()),
        Column::Age => time(entry.age),
        Column::Handshake => flow.handshake_ns().map_or("-".to_owned(), time),
        Column::Packets => short(flow.packets() as f64),
        Column::Bytes => short(bytes(flow) as f64),
        Column::PacketRate => short(entry.packet_rate),
        Column::ByteRate => short(entry.byte_rate),
        Column::Retransmits => short(flow.retransmits() as f64),
        Column::RoundTrip => entry.round_trip_ns().map_or("-".to_owned(), time),
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
        | Column::ByteRate
        | Column::Retransmits
        | Column::RoundTrip
        | Column::Pid => line.right_aligned(),
        _ => line,
    })
}

/// Where the flow is, or how it came to be over.
fn state(flow: &Flow) -> &'static str {
    if flow.is_live() {
        flow.state().name()
    } else {
        flow.outcome().name()
    }
}

/// Payload bytes both ways.
fn bytes(flow: &Flow) -> u64 {
    flow.orig().bytes + flow.resp().bytes
}

/// The name of a flow's process.
fn process(flow: &Flow) -> Option<String> {
    flow.process().map(|(_, comm)| name(comm))
}

/// A process's name, of which it may have made anything.
fn name(comm: &[u8]) -> String {
    let mut text = Vec::new();
    push_text(&mut text, comm);
    String::from_utf8_lossy(&text).into_owned()
}

/// The server that the initiator has asked for.
fn server(entry: &Entry) -> Option<String> {
    let server = entry.name.as_ref()?.server.as_ref()?;
    Some(name(server))
}

/// Leaves out the middle of what is too long: the port is at the end.
fn shortened(text: &str, width: usize) -> String {
    if !text.is_ascii() || text.len() <= width || width < 3 {
        return text.to_owned();
    }
    let head = (width - 1) / 2;
    let tail = text.len() - (width - 1 - head);
    format!("{}…{}", &text[..head], &text[tail..])
}

/// What a flow is sorted by. The keys of a column are all of one kind.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum SortKey<'a> {
    State(TcpState),
    End(IpAddr, u16),
    Name(Option<String>),
    Process(Option<(&'a [u8], u32)>),
    Number(Option<u64>),
    Text(&'a [u8]),
}

fn sort_key(column: Column, entry: &Entry) -> SortKey<'_> {
    let flow = &entry.flow;
    SortKey::Number(match column {
        Column::State => return SortKey::State(flow.state()),
        Column::Source => return SortKey::End(flow.saddr(), flow.sport()),
        Column::Destination => return SortKey::End(flow.daddr(), flow.dport()),
        Column::Name => return SortKey::Name(server(entry)),
        Column::Process => {
            return SortKey::Process(flow.process().map(|(pid, comm)| (comm, pid)));
        }
        Column::History => return SortKey::Text(flow.history()),
        Column::Pid => flow.process().map(|(pid, _)| pid.into()),
        Column::Age => Some(entry.age),
        Column::Handshake => flow.handshake_ns(),
        Column::Packets => Some(flow.packets()),
        Column::Bytes => Some(bytes(flow)),
        // Rates are not negative: their bits are ordered as they are.
        Column::PacketRate => Some(entry.packet_rate.to_bits()),
        Column::ByteRate => Some(entry.byte_rate.to_bits()),
        Column::Retransmits => Some(flow.retransmits()),
        Column::RoundTrip => entry.round_trip_ns(),
    })
}

/// What a filter is looked for in.
fn text_of(entry: &Entry) -> String {
    let flow = &entry.flow;
    let text = format!(
        "{} {} {} {} {} {}",
        endpoint(flow.saddr(), flow.sport()),
        endpoint(flow.daddr(), flow.dport()),
        flow.state().name(),
        flow.conn_state().name(),
        process(flow).unwrap_or_default(),
        server(entry).unwrap_or_default()
    );
    text.to_lowercase()
}

fn endpoint(addr: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}

/// What is being set up is yellow, what is up green, what is ending blue, what went wrong red.
fn color(flow: &Flow) -> Color {
    if !flow.is_live() {
        return Color::DarkGray;
    }
    match state_tone(flow.state()) {
        Tone::Plain => Color::Reset,
        Tone::Good => Color::Green,
        Tone::Notable => Color::Yellow,
        Tone::Ending => Color::Blue,
        Tone::Bad => Color::Red,
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
