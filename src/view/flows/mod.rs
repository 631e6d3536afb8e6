//! The full-screen table of flows: its state, and the keys that change it.

mod columns;
mod detail;
mod draw;
mod entry;
mod filter;
mod groups;

use std::collections::VecDeque;

use ratatui::Frame;

use self::columns::{COLUMNS, FlowViewColumn, sort_key};
use self::detail::Detail;
use self::entry::{FlowEntry, FlowKey, endpoint, server};
use self::filter::TypedFilter;
use self::groups::{Group, GroupBy};
use super::chart::push_newest;
use super::controls::{Asked, Controls, Step};
use super::cursor::Cursor;
use super::keys::Key;
use super::sorting::directed;
use super::{Picture, Reaction};
use crate::domain::names::NamedFlow;
use crate::domain::traffic::Traffic;

/// How many intervals the chart in the head remembers.
const LOADS_LEN: usize = 240;

/// The state of the view.
pub struct FlowsView {
    ifaces: Vec<String>,
    entries: Vec<FlowEntry>,
    /// Positions in `entries` of those that pass the filter, sorted.
    shown: Vec<usize>,
    grouped: Option<GroupBy>,
    /// With `grouped`: the flows that pass the filter, summed up and sorted.
    groups: Vec<Group>,
    has_names: bool,
    sort: usize,
    controls: Controls,
    /// A comparison in the filter that is not complete yet.
    unfinished: Option<String>,
    /// The box with the details of a flow.
    detail: Option<Detail>,
    cursor: Cursor,
    /// The length of the longest address and port.
    longest: usize,
    /// Bytes a second, newest last.
    loads: VecDeque<u64>,
    live: usize,
    /// How many flows have ended since the start.
    ended: u64,
    /// How many flows ended in the last interval and are not among `entries`.
    left_out: u64,
    packet_rate: f64,
    untracked: u64,
}

/// The interval of an update.
#[derive(Clone, Copy, Debug, Default)]
pub struct Interval {
    /// When it ended, by the clock of the flows' times.
    pub now_ns: u64,
    /// Its length.
    pub seconds: f64,
    /// Packets since the start whose flow did not fit the kernel's table.
    pub untracked: u64,
    /// Flows that ended in it and are not among those of the update.
    pub left_out: Traffic,
}

impl FlowsView {
    /// A view without flows, for interfaces of these names.
    pub fn new(ifaces: Vec<String>) -> Self {
        Self {
            ifaces,
            entries: Vec::new(),
            shown: Vec::new(),
            grouped: None,
            groups: Vec::new(),
            has_names: false,
            sort: COLUMNS
                .iter()
                .position(|spec| spec.column == FlowViewColumn::ByteRate)
                .unwrap_or(0),
            controls: Controls::new(),
            unfinished: None,
            detail: None,
            cursor: Cursor::default(),
            longest: 0,
            loads: VecDeque::new(),
            live: 0,
            ended: 0,
            left_out: 0,
            packet_rate: 0.0,
            untracked: 0,
        }
    }

    /// Replaces the flows: takes those that are live, and those that ended in the interval.
    pub fn update(&mut self, flows: impl IntoIterator<Item = NamedFlow>, interval: &Interval) {
        let seconds = interval.seconds.max(1e-3);
        let (mut packets, mut bytes) = (interval.left_out.packets, interval.left_out.bytes);
        let selected = self.selected().map(FlowEntry::key);
        let group = self.selected_group().map(|group| group.filter.clone());
        if !self.controls.paused {
            // Keeps the memory for the next flows, which is large if they are many.
            self.entries.clear();
        }
        self.live = 0;
        for NamedFlow { flow, name } in flows {
            let since = flow.since_report();
            packets += since.0;
            bytes += since.1;
            let is_live = flow.is_live();
            self.live += usize::from(is_live);
            self.ended += u64::from(!is_live);
            if self.controls.paused {
                continue;
            }
            self.entries.push(FlowEntry {
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
        push_newest(&mut self.loads, (bytes as f64 / seconds) as u64, LOADS_LEN);
        self.untracked = interval.untracked;
        if !self.controls.paused {
            self.has_names |= self.entries.iter().any(|entry| server(entry).is_some());
            self.arrange();
            self.follow(selected, group);
            if let Some(detail) = &mut self.detail {
                detail.update(&self.entries);
            }
        }
    }

    fn selected(&self) -> Option<&FlowEntry> {
        match self.grouped {
            None => self.entries.get(*self.shown.get(self.cursor.selected)?),
            Some(_) => None,
        }
    }

    fn selected_group(&self) -> Option<&Group> {
        self.grouped
            .and_then(|_| self.groups.get(self.cursor.selected))
    }

    /// The number of lines of the table, on the screen or not.
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
        // If the first line is selected, it stays selected: the user watches the top of the table.
        if let Some(found) = found
            && self.cursor.selected > 0
        {
            self.cursor.selected = found;
        }
        self.clamp_cursor();
    }

    fn open_detail(&mut self) {
        self.detail = self.selected().cloned().map(Detail::new);
    }

    /// Filters, groups and sorts the flows.
    fn arrange(&mut self) {
        let filter = TypedFilter::parse(&self.controls.filter);
        let shown = (0..self.entries.len())
            .filter(|at| filter.passes(&self.entries[*at]))
            .collect::<Vec<_>>();
        self.unfinished = filter.unfinished;
        let (column, descending) = (COLUMNS[self.sort].column, self.controls.descending);
        if let Some(by) = self.grouped {
            let entries = shown.iter().map(|at| &self.entries[*at]);
            self.groups = groups::groups(by, entries);
            self.groups.sort_by(|a, b| {
                let order = groups::compare(column, a, b);
                directed(order, descending).then_with(|| a.key.cmp(&b.key))
            });
            self.shown = shown;
            self.clamp_cursor();
            return;
        }
        // Collect the keys first: flows are large, and sorting would read them again and again.
        let keyed = shown.iter().map(|at| {
            let entry = &self.entries[*at];
            (sort_key(column, entry), entry.flow.raw.start_ns, *at)
        });
        let mut keyed = keyed.collect::<Vec<_>>();
        keyed.sort_unstable_by(|a, b| {
            let order = directed(a.0.cmp(&b.0), descending);
            order.then_with(|| (a.1, a.2).cmp(&(b.1, b.2)))
        });
        let shown = keyed.into_iter().map(|(.., at)| at).collect::<Vec<_>>();
        // Of all lines, not only those on the screen, so that columns do not move while the user
        // scrolls; but the first thousand are enough.
        let longest = shown.iter().take(1000).map(|at| {
            let flow = &self.entries[*at].flow;
            let source = endpoint(flow.saddr(), flow.sport());
            let destination = endpoint(flow.daddr(), flow.dport());
            source.len().max(destination.len())
        });
        self.longest = longest.max().unwrap_or(0);
        self.shown = shown;
        self.clamp_cursor();
    }

    /// Keeps the selected line within the table.
    fn clamp_cursor(&mut self) {
        self.cursor.select(self.cursor.selected, self.lines());
    }

    /// Sorts by the column that is `step` further to the right, and skips those that are not shown.
    fn sort_by(&mut self, step: usize) {
        for _ in 0..COLUMNS.len() {
            self.sort = (self.sort + step) % COLUMNS.len();
            if self.has_column(COLUMNS[self.sort].column) {
                break;
            }
        }
        self.arrange();
    }

    fn has_column(&self, column: FlowViewColumn) -> bool {
        match self.grouped {
            Some(_) => groups::SUMMED.contains(&column),
            None => column != FlowViewColumn::Name || self.has_names,
        }
    }

    fn group_by(&mut self, by: Option<GroupBy>) {
        self.grouped = by;
        self.detail = None;
        self.cursor.selected = 0;
        if !self.has_column(COLUMNS[self.sort].column) {
            self.sort_by(1);
        }
        self.arrange();
    }
}

impl Picture for FlowsView {
    fn draw(&mut self, frame: &mut Frame<'_>) {
        self.draw_all(frame);
    }

    fn key(&mut self, key: Key) -> Reaction {
        if let Some(reaction) = Reaction::always(key) {
            return reaction;
        }
        match self.controls.key(key, self.detail.is_some()) {
            Asked::Draw => {}
            Asked::Quit => return Reaction::Quit,
            Asked::Arrange => self.arrange(),
            Asked::SortBy(Step::Left) => self.sort_by(COLUMNS.len() - 1),
            Asked::SortBy(Step::Right) => self.sort_by(1),
            Asked::CloseDetail => self.detail = None,
            Asked::Own(Key::Char('g')) => self.group_by(GroupBy::after(self.grouped)),
            Asked::Own(Key::Enter) => match self.selected_group() {
                Some(group) => {
                    // What is typed after it is another word.
                    self.controls.filter = format!("{} ", group.filter);
                    self.group_by(None);
                }
                None => self.open_detail(),
            },
            Asked::Own(key) => {
                if self.cursor.key(key, self.lines()) && self.detail.is_some() {
                    self.open_detail();
                }
            }
        }
        Reaction::Draw
    }
}

#[cfg(test)]
mod tests;
