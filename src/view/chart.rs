//! Charts of the last values, one character high.

use std::collections::VecDeque;

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::widgets::Sparkline;

/// Adds the newest value, and drops the oldest if there are more than `max`.
pub fn push_newest(values: &mut VecDeque<u64>, newest: u64, max: usize) {
    values.push_back(newest);
    if values.len() > max {
        values.pop_front();
    }
}

/// Draws as many of the newest values as there is room for.
pub fn draw_chart(frame: &mut Frame<'_>, area: Rect, values: &VecDeque<u64>) {
    let skip = values.len().saturating_sub(area.width.into());
    let newest = values.iter().skip(skip).copied().collect::<Vec<_>>();
    let chart = Sparkline::default()
        .data(newest)
        .style(Style::new().fg(Color::Cyan));
    frame.render_widget(chart, area);
}
