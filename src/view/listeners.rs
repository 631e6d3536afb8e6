//! The full-screen table of listeners.

use std::cmp::Ordering;

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Text};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::controls::{Asked, Controls, Step};
use super::cursor::Cursor;
use super::keys::Key;
use super::popup::{draw_box, draw_help, help_lines};
use super::sorting::{arrow, directed};
use super::text::{escaped, short};
use super::{Picture, Reaction, parts};
use crate::domain::listener::Listener;

/// The columns, in their order. The table can be sorted by each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListenerViewColumn {
    Addr,
    Port,
    Queue,
    Max,
    Fill,
    HalfOpen,
    Drops,
    DropRate,
    Sockets,
    Pid,
    Process,
}

/// Each column with its title and width; width 0 takes the rest of the line.
const COLUMNS: [(ListenerViewColumn, &str, u16); 11] = [
    (ListenerViewColumn::Addr, "ADDR", 16),
    (ListenerViewColumn::Port, "PORT", 5),
    (ListenerViewColumn::Queue, "QUEUE", 6),
    (ListenerViewColumn::Max, "MAX", 6),
    (ListenerViewColumn::Fill, "FULL", 5),
    (ListenerViewColumn::HalfOpen, "HALF", 6),
    (ListenerViewColumn::Drops, "DROPS", 7),
    (ListenerViewColumn::DropRate, "DROP/s", 7),
    (ListenerViewColumn::Sockets, "SOCKS", 6),
    (ListenerViewColumn::Pid, "PID", 7),
    (ListenerViewColumn::Process, "PROCESS", 0),
];

/// Columns that a narrow window leaves out, in this order: a number without its last digit would be
/// wrong.
const DISPENSABLE: [ListenerViewColumn; 6] = [
    ListenerViewColumn::Sockets,
    ListenerViewColumn::HalfOpen,
    ListenerViewColumn::DropRate,
    ListenerViewColumn::Pid,
    ListenerViewColumn::Fill,
    ListenerViewColumn::Max,
];

/// The smallest width of a process name.
const PROCESS_WIDTH: u16 = 8;

/// The indexes in [`COLUMNS`] of those that fit a window.
fn fitting(width: u16) -> Vec<usize> {
    let mut shown = (0..COLUMNS.len()).collect::<Vec<_>>();
    let space = |shown: &[usize]| -> u16 {
        let widths = shown.iter().map(|at| match COLUMNS[*at].2 {
            0 => PROCESS_WIDTH,
            width => width + 1,
        });
        widths.sum()
    };
    for column in DISPENSABLE {
        if space(&shown) <= width {
            break;
        }
        shown.retain(|at| COLUMNS[*at].0 != column);
    }
    shown
}

/// A queue that is at least this full, in percent, is shown as a warning.
const WARN: f64 = 50.0;

const KEYS: &str = " q quit  / filter  ←→ sort  r reverse  ↑↓ select  Enter detail  ? help";

/// All keys, for the help.
const HELP: [(&str, &str); 7] = [
    ("q, Ctrl-C", "quit"),
    ("↑ ↓ PgUp PgDn", "select a listener; Home and End too"),
    (
        "Enter",
        "show its sockets, and the processes that hold them",
    ),
    ("← →, r", "sort by another column; reverse the order"),
    ("Space, p", "pause"),
    ("/", "filter by words, which Enter keeps and Esc clears"),
    ("Ctrl-L, Ctrl-Z", "redraw; suspend"),
];

/// A listener with its interface and container.
#[derive(Clone, Debug)]
pub struct ListenerEntry {
    /// The listener.
    pub listener: Listener,
    /// The interface that it is bound to, if any.
    pub iface: Option<String>,
    /// The container that its process is in.
    pub container: Option<String>,
}

impl ListenerEntry {
    fn addr(&self) -> String {
        let mut addr = match self.listener.is_dual() {
            true => "*".to_owned(),
            false => self.listener.local.addr.to_string(),
        };
        if let Some(iface) = &self.iface {
            addr.push('%');
            addr.push_str(&escaped(iface.as_bytes()));
        }
        addr
    }

    fn process(&self) -> String {
        let holder = self.listener.holder();
        let mut process = holder.map_or("-".to_owned(), |holder| escaped(&holder.comm));
        let others = self.listener.processes().saturating_sub(1);
        if others > 0 {
            process += &format!(" +{others}");
        }
        process
    }

    /// The text that the filter searches.
    fn text(&self) -> String {
        let container = self.container.as_deref().unwrap_or_default();
        let (addr, port) = (self.addr(), self.listener.local.port);
        format!("{addr}:{port} {} {container}", self.process()).to_lowercase()
    }

    fn cell(&self, column: ListenerViewColumn) -> String {
        let listener = &self.listener;
        match column {
            ListenerViewColumn::Addr => self.addr(),
            ListenerViewColumn::Port => listener.local.port.to_string(),
            ListenerViewColumn::Queue => listener.queue_len().to_string(),
            ListenerViewColumn::Max => listener.queue_max().to_string(),
            ListenerViewColumn::Fill => format!("{:.0}%", listener.fill()),
            ListenerViewColumn::HalfOpen => listener.half_open.to_string(),
            ListenerViewColumn::Drops => listener.drops_total().to_string(),
            ListenerViewColumn::DropRate => listener.drop_rate().map_or("-".to_owned(), short),
            ListenerViewColumn::Sockets => listener.members.len().to_string(),
            ListenerViewColumn::Pid => listener
                .holder()
                .map_or("-".to_owned(), |holder| holder.pid.to_string()),
            ListenerViewColumn::Process => self.process(),
        }
    }

    fn style(&self) -> Style {
        if self.listener.drops_delta() > 0 || self.listener.fill() >= 100.0 {
            Style::new().fg(Color::Red)
        } else if self.listener.fill() >= WARN {
            Style::new().fg(Color::Yellow)
        } else {
            Style::new()
        }
    }

    fn compare(&self, other: &Self, column: ListenerViewColumn) -> Ordering {
        let (a, b) = (&self.listener, &other.listener);
        let pid = |listener: &Listener| listener.holder().map(|holder| holder.pid);
        match column {
            ListenerViewColumn::Addr => a.local.addr.cmp(&b.local.addr),
            ListenerViewColumn::Port => a.local.port.cmp(&b.local.port),
            ListenerViewColumn::Queue => a.queue_len().cmp(&b.queue_len()),
            ListenerViewColumn::Max => a.queue_max().cmp(&b.queue_max()),
            ListenerViewColumn::Fill => a.fill().total_cmp(&b.fill()),
            ListenerViewColumn::HalfOpen => a.half_open.cmp(&b.half_open),
            ListenerViewColumn::Drops => a.drops_total().cmp(&b.drops_total()),
            ListenerViewColumn::DropRate => a.drops_delta().cmp(&b.drops_delta()),
            ListenerViewColumn::Sockets => a.members.len().cmp(&b.members.len()),
            ListenerViewColumn::Pid => pid(a).cmp(&pid(b)),
            ListenerViewColumn::Process => self.process().cmp(&other.process()),
        }
    }
}

/// The state of the view.
pub struct ListenersView {
    /// All listeners, the worst first.
    entries: Vec<ListenerEntry>,
    /// Indexes in `entries` of those that match the filter, in display order.
    shown: Vec<usize>,
    /// Index in [`COLUMNS`]; `None`: the order of `entries`.
    sort: Option<usize>,
    controls: Controls,
    detail: bool,
    cursor: Cursor,
}

impl ListenersView {
    /// An empty view.
    pub fn new() -> Self {
        Self {
            entries: Vec::new(),
            shown: Vec::new(),
            sort: None,
            controls: Controls::new(),
            detail: false,
            cursor: Cursor::default(),
        }
    }

    /// Replaces the listeners.
    pub fn update(&mut self, entries: Vec<ListenerEntry>) {
        if self.controls.paused {
            return;
        }
        let selected = self.selected().map(|entry| entry.listener.key());
        self.entries = entries;
        self.arrange();
        let is_selected = |at: &usize| Some(self.entries[*at].listener.key()) == selected;
        // If the first row is selected, it stays selected: the user watches the top of the table.
        if self.cursor.selected > 0
            && let Some(found) = self.shown.iter().position(is_selected)
        {
            self.cursor.selected = found;
        }
    }

    fn selected(&self) -> Option<&ListenerEntry> {
        self.entries.get(*self.shown.get(self.cursor.selected)?)
    }

    fn arrange(&mut self) {
        let filter = self.controls.filter.to_lowercase();
        let passes = |at: &usize| filter.is_empty() || self.entries[*at].text().contains(&filter);
        let mut shown = (0..self.entries.len()).filter(passes).collect::<Vec<_>>();
        if let Some(sort) = self.sort {
            shown.sort_by(|a, b| {
                let order = self.entries[*a].compare(&self.entries[*b], COLUMNS[sort].0);
                directed(order, self.controls.descending)
            });
        }
        self.shown = shown;
        let lines = self.shown.len();
        self.cursor.select(self.cursor.selected, lines);
    }

    fn sort_by(&mut self, step: Step) {
        let last = COLUMNS.len() - 1;
        self.sort = Some(match (self.sort, step) {
            (Some(0) | None, Step::Left) => last,
            (Some(sort), Step::Left) => sort - 1,
            (Some(sort), Step::Right) if sort < last => sort + 1,
            (_, Step::Right) => 0,
        });
        self.arrange();
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let first = self.controls.title("tcpinspect listeners", String::new());
        let of = |value: fn(&Listener) -> f64| {
            let values = self.entries.iter().map(|entry| value(&entry.listener));
            // The sum of none is -0.
            values.fold(0.0, |sum, value| sum + value)
        };
        let mut second = format!(
            "{} listening, {} waiting for accept, {} half-open, {} drops/s",
            self.entries.len(),
            of(|listener| listener.queue_len() as f64),
            of(|listener| listener.half_open.into()),
            short(of(|listener| listener.drop_rate().unwrap_or(0.0))),
        );
        if !self.controls.filter.is_empty() {
            second += &format!(", {} shown", self.shown.len());
        }
        let head = Paragraph::new(vec![first, Line::raw(second)]);
        frame.render_widget(head, area);
    }

    fn draw_table(&mut self, frame: &mut Frame<'_>, area: Rect) {
        self.cursor.scroll(area.height, self.shown.len());
        let columns = fitting(area.width);
        let lines = self
            .shown
            .iter()
            .skip(self.cursor.offset)
            .take(self.cursor.height);
        let rows = (self.cursor.offset..).zip(lines).map(|(at, entry)| {
            let entry = &self.entries[*entry];
            let cells = columns.iter().map(|at| {
                let column = COLUMNS[*at].0;
                aligned(column, entry.cell(column))
            });
            let style = match at == self.cursor.selected {
                true => entry.style().add_modifier(Modifier::REVERSED),
                false => entry.style(),
            };
            Row::new(cells).style(style)
        });
        let header = columns.iter().map(|at| {
            let (column, name, _) = COLUMNS[*at];
            let arrow = arrow(self.sort == Some(*at), self.controls.descending);
            aligned(column, format!("{name}{arrow}"))
        });
        let widths = columns.iter().map(|at| match COLUMNS[*at].2 {
            0 => Constraint::Fill(1),
            width => Constraint::Length(width),
        });
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let foot = self.controls.foot(KEYS, None);
        frame.render_widget(
            Paragraph::new(foot).style(Style::new().add_modifier(Modifier::DIM)),
            area,
        );
    }
}

impl Default for ListenersView {
    fn default() -> Self {
        Self::new()
    }
}

/// Aligns text to the left and numbers to the right.
fn aligned(column: ListenerViewColumn, text: String) -> Cell<'static> {
    let alignment = match column {
        ListenerViewColumn::Addr | ListenerViewColumn::Process => Alignment::Left,
        _ => Alignment::Right,
    };
    Cell::from(Text::raw(text).alignment(alignment))
}

/// Draws the sockets of a listener with the processes that hold them.
fn draw_detail(frame: &mut Frame<'_>, area: Rect, entry: &ListenerEntry) {
    let listener = &entry.listener;
    let mut lines = vec![
        Line::raw(format!(
            "user {}, container {}",
            listener.uid().map_or("-".to_owned(), |uid| uid.to_string()),
            entry.container.as_deref().unwrap_or("-"),
        )),
        Line::raw(format!(
            "{:>10} {:>6} {:>6} {:>8}  HELD BY",
            "INODE", "QUEUE", "MAX", "DROPS"
        )),
    ];
    for member in &listener.members {
        let socket = &member.socket;
        let holders = member.holders.iter();
        let holders = holders.map(|holder| format!("{} {}", holder.pid, escaped(&holder.comm)));
        lines.push(Line::raw(format!(
            "{:>10} {:>6} {:>6} {:>8}  {}",
            socket.inode,
            socket.queue_len,
            socket.queue_max,
            socket.drops,
            holders.collect::<Vec<_>>().join(", "),
        )));
    }
    let height = u16::try_from(lines.len() + 2)
        .unwrap_or(u16::MAX)
        .min(area.height);
    let [_, place] =
        Layout::vertical([Constraint::Fill(1), Constraint::Length(height)]).areas(area);
    let title = format!(" {} port {} ", entry.addr(), listener.local.port);
    draw_box(frame, place, &title, lines);
}

impl Picture for ListenersView {
    fn key(&mut self, key: Key) -> Reaction {
        if let Some(reaction) = Reaction::always(key) {
            return reaction;
        }
        match self.controls.key(key, self.detail) {
            Asked::Draw => {}
            Asked::Quit => return Reaction::Quit,
            Asked::Arrange => self.arrange(),
            Asked::SortBy(step) => self.sort_by(step),
            Asked::CloseDetail => self.detail = false,
            Asked::Own(Key::Enter) => self.detail = true,
            Asked::Own(key) => {
                self.cursor.key(key, self.shown.len());
            }
        }
        Reaction::Draw
    }

    fn draw(&mut self, frame: &mut Frame<'_>) {
        let [head, table, foot] = parts(frame.area());
        self.draw_head(frame, head);
        self.draw_table(frame, table);
        self.draw_foot(frame, foot);
        if self.detail
            && let Some(entry) = self.selected()
        {
            draw_detail(frame, table, entry);
        }
        if self.controls.has_help {
            draw_help(frame, table, help_lines(&HELP).collect());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_narrow_window_leaves_columns_out_and_cuts_none() {
        assert_eq!(fitting(200).len(), COLUMNS.len());
        for width in 60..200 {
            let shown = fitting(width);
            let space: u16 = shown.iter().map(|at| COLUMNS[*at].2 + 1).sum();
            assert!(space <= width, "{width}: {shown:?}");
        }
        let names = |width| {
            let shown = fitting(width).into_iter();
            shown.map(|at| COLUMNS[at].1).collect::<Vec<_>>()
        };
        assert!(!names(80).contains(&"SOCKS"));
        assert_eq!(names(40), ["ADDR", "PORT", "QUEUE", "DROPS", "PROCESS"]);
    }

    /// The text on a screen of this height.
    fn screen(view: &mut ListenersView, height: u16) -> String {
        let backend = ratatui::backend::TestBackend::new(80, height);
        let mut terminal = ratatui::Terminal::new(backend).unwrap();
        terminal.draw(|frame| view.draw(frame)).unwrap();
        let cells = terminal.backend().buffer().content();
        cells.iter().map(|cell| cell.symbol()).collect()
    }

    #[test]
    fn the_footer_has_the_filter() {
        let mut view = ListenersView::new();
        for key in "/ab".chars().map(Key::Char).chain([Key::Enter]) {
            view.key(key);
        }
        let text = screen(&mut view, 5);
        assert!(text.contains("filter: ab"), "{text}");
        assert!(text.contains("0 listening, 0 waiting for accept, 0 half-open, 0 drops/s"));
    }

    #[test]
    fn a_question_mark_shows_all_keys_until_it_is_pressed_again() {
        let mut view = ListenersView::new();
        for (key, is_shown) in [
            (Key::Char('?'), true),
            (Key::Char('?'), false),
            (Key::Char('?'), true),
            (Key::Esc, false),
        ] {
            view.key(key);
            let text = screen(&mut view, 24);
            assert_eq!(text.contains("that hold them"), is_shown, "{text}");
        }
    }
}
