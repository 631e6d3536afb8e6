//! Draws the table: its head, its rows, and the line of keys below it.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Cell, Paragraph, Row, Table};

use super::columns::{COLUMNS, ENDED, FlowViewColumn, aligned, cell, fitting, tone_color, width};
use super::groups::GroupBy;
use super::{FlowsView, filter, groups};
use crate::output::columns::Tone;
use crate::view::chart::draw_chart;
use crate::view::parts;
use crate::view::popup::{self, draw_help, help_lines};
use crate::view::sorting::arrow;
use crate::view::text::{short, time_or_none, wrapped};

const KEYS: &str =
    " q quit  / filter  g group  ←→ sort  r reverse  ↑↓ select  Enter detail  ? help";

/// All keys, for the help.
const HELP: [(&str, &str); 10] = [
    ("q, Ctrl-C", "quit"),
    ("↑ ↓ PgUp PgDn", "select a flow; Home and End too"),
    ("Enter", "show its details, or the flows of a group"),
    ("← →, r", "sort by another column; reverse the order"),
    ("g", "group by process, source, destination or port"),
    ("Space, p", "pause"),
    ("/", "filter, which Enter keeps and Esc clears: words,"),
    ("", "expressions such as: port 443 and not host 192.0.2.1"),
    ("", "comparisons such as: dport=443 retrans>0 rtt>10ms !ssh"),
    ("Ctrl-L, Ctrl-Z", "redraw; suspend"),
];

impl FlowsView {
    /// Draws everything, into a frame of any size.
    pub(super) fn draw_all(&mut self, frame: &mut Frame<'_>) {
        let [head, table, foot] = parts(frame.area());
        self.draw_head(frame, head);
        self.draw_table(frame, table);
        self.draw_foot(frame, foot);
        if let Some(detail) = &self.detail {
            detail.draw(frame, table, &self.ifaces);
        }
        if self.controls.has_help {
            draw_help(frame, table, help());
        }
    }

    fn draw_head(&self, frame: &mut Frame<'_>, area: Rect) {
        let load = self.loads.back().copied().unwrap_or(0);
        let ifaces = self.ifaces.join(", ");
        let first = self.controls.title("tcpinspect flows ", ifaces);
        let mut second = format!(
            "{} open, {} ended, {} packets/s, {} bytes/s",
            self.live,
            self.ended,
            short(self.packet_rate),
            short(load as f64),
        );
        if !self.controls.filter.is_empty() {
            second += &format!(", {} shown", self.shown.len());
        }
        if self.grouped.is_some() {
            second += &match self.groups.len() {
                1 => ", 1 group".to_owned(),
                count => format!(", {count} groups"),
            };
        }
        if self.left_out > 0 {
            second += &format!(", {} ended not shown", self.left_out);
        }
        if self.untracked > 0 {
            second += &format!(", {} packets untracked", self.untracked);
        }
        let lines = vec![first, Line::raw(second)];
        // A third of the width is for the chart, or less if the text needs more.
        let widest = lines.iter().map(Line::width).max().unwrap_or(0) as u16;
        let width = (widest + 2).max(area.width / 3 * 2);
        let [text, chart] =
            Layout::horizontal([Constraint::Length(width), Constraint::Fill(1)]).areas(area);
        frame.render_widget(Paragraph::new(lines), text);
        draw_chart(frame, chart, &self.loads);
    }

    fn draw_table(&mut self, frame: &mut Frame<'_>, area: Rect) {
        self.cursor.scroll(area.height, self.lines());
        if let Some(by) = self.grouped {
            return self.draw_groups(frame, area, by);
        }
        let available = (0..COLUMNS.len()).filter(|at| self.has_column(COLUMNS[*at].column));
        let columns = fitting(available, self.sort, self.longest, area.width);
        let lines = self
            .shown
            .iter()
            .skip(self.cursor.offset)
            .take(self.cursor.height);
        let rows = (self.cursor.offset..).zip(lines).map(|(at, entry)| {
            let entry = &self.entries[*entry];
            let cells = columns
                .iter()
                .map(|(at, width)| cell(COLUMNS[*at].column, entry, usize::from(*width)));
            let row = Row::new(cells);
            if at == self.cursor.selected {
                row.style(Style::new().add_modifier(Modifier::REVERSED))
            } else {
                row
            }
        });
        let header = columns.iter().map(|(at, _)| {
            let spec = &COLUMNS[*at];
            let arrow = arrow(*at == self.sort, self.controls.descending);
            aligned(spec.column, format!("{}{arrow}", spec.title))
        });
        let widths = columns.iter().map(|(_, width)| *width);
        let table = Table::new(rows, widths)
            .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    fn draw_groups(&self, frame: &mut Frame<'_>, area: Rect, by: GroupBy) {
        let sorted = COLUMNS[self.sort].column;
        let columns = COLUMNS
            .iter()
            .filter(|spec| groups::SUMMED.contains(&spec.column));
        let groups = self
            .groups
            .iter()
            .skip(self.cursor.offset)
            .take(self.cursor.height);
        let rows = (self.cursor.offset..).zip(groups).map(|(at, group)| {
            let summed = columns.clone().map(|spec| {
                aligned(
                    spec.column,
                    match spec.column {
                        FlowViewColumn::Packets => short(group.packets as f64),
                        FlowViewColumn::Bytes => short(group.bytes as f64),
                        FlowViewColumn::PacketRate => short(group.packet_rate),
                        FlowViewColumn::ByteRate => short(group.byte_rate),
                        FlowViewColumn::Retransmits => short(group.retransmits as f64),
                        _ => time_or_none(group.round_trip),
                    },
                )
            });
            let flows = Line::from(group.flows.to_string()).right_aligned();
            let own = [Cell::from(group.key.clone()), Cell::from(flows)];
            let style = match at == self.cursor.selected {
                true => Style::new().add_modifier(Modifier::REVERSED),
                false => Style::new(),
            };
            Row::new(own.into_iter().chain(summed)).style(style)
        });
        let own = [
            Cell::from(by.title()),
            Cell::from(Line::from("FLOWS").right_aligned()),
        ];
        let header = columns.clone().map(|spec| {
            let arrow = arrow(spec.column == sorted, self.controls.descending);
            aligned(spec.column, format!("{}{arrow}", spec.title))
        });
        let widths = columns.clone().map(|spec| width(spec, true));
        let widths = [22, 7].into_iter().chain(widths).map(Constraint::Length);
        let header = Row::new(own.into_iter().chain(header));
        let table = Table::new(rows, widths)
            .header(header.style(Style::new().add_modifier(Modifier::BOLD)));
        frame.render_widget(table, area);
    }

    fn draw_foot(&self, frame: &mut Frame<'_>, area: Rect) {
        let unfinished = self.unfinished.as_ref();
        let hint = unfinished.map(|term| format!("not complete: {term}"));
        let line = self.controls.foot(KEYS, hint);
        let style = Style::new().add_modifier(Modifier::REVERSED);
        frame.render_widget(Paragraph::new(line).style(style), area);
    }
}

fn help() -> Vec<Line<'static>> {
    let mut lines = help_lines(&HELP).collect::<Vec<_>>();
    lines.extend(wrapped(
        &format!("fields: {}", filter::field_names()),
        usize::from(popup::WIDTH - 2),
    ));
    lines.push(Line::raw(
        "RTT is what the kernel measured, or the time of the handshake.",
    ));
    lines.push(Line::raw(
        "RETRANS counts retransmitted segments, both ways, SYNs included.",
    ));
    let colors = [
        ("opening", tone_color(Tone::Notable)),
        ("established", tone_color(Tone::Good)),
        ("closing", tone_color(Tone::Ending)),
        ("reset", tone_color(Tone::Bad)),
        ("ended", ENDED),
    ];
    let colors = colors.map(|(name, color)| Span::styled(format!("{name} "), color));
    lines.push(Line::from_iter(
        [Span::raw("states: ")].into_iter().chain(colors),
    ));
    lines
}
