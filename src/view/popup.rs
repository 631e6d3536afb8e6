//! Boxes in front of a table.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::Line;
use ratatui::widgets::{Block, Clear, Paragraph};

/// The usual width of a box.
pub const WIDTH: u16 = 76;

/// A place for a box in the middle of an area.
pub fn centered(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    }
}

/// A line for each key, with its meaning.
pub fn help_lines(keys: &[(&str, &str)]) -> impl Iterator<Item = Line<'static>> {
    let keys = keys.iter();
    keys.map(|(key, meaning)| Line::raw(format!("{key:<15}{meaning}")))
}

/// Draws the box with the help.
pub fn draw_help(frame: &mut Frame<'_>, area: Rect, lines: Vec<Line<'_>>) {
    let place = centered(area, WIDTH, lines.len() as u16 + 2);
    draw_box(frame, place, " keys, ? closes ", lines);
}

/// Draws a box with text, and returns the place inside it.
pub fn draw_box(frame: &mut Frame<'_>, place: Rect, title: &str, lines: Vec<Line<'_>>) -> Rect {
    let block = Block::bordered().title(title);
    let inside = block.inner(place);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines).block(block), place);
    inside
}
