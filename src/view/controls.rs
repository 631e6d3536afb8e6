//! What a user does to a table with keys, and how its head and its foot show that.

use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};

use super::keys::{self, Key};

/// The state that keys change in the same way in each table.
pub struct Controls {
    /// The text of the filter.
    pub filter: String,
    /// It is being typed.
    pub typing: bool,
    /// The table does not change.
    pub paused: bool,
    /// The order is reversed.
    pub descending: bool,
    /// The help is shown.
    pub has_help: bool,
}

/// What the table has to do for a key.
pub enum Asked {
    /// Nothing but draw.
    Draw,
    /// End the run.
    Quit,
    /// Filter and sort again.
    Arrange,
    /// Sort by the column to the left or to the right.
    SortBy(Step),
    /// Close the box with details.
    CloseDetail,
    /// The key has no common meaning.
    Own(Key),
}

/// Which of the next columns.
pub enum Step {
    /// To the left.
    Left,
    /// To the right.
    Right,
}

impl Controls {
    /// Those of a table that has just begun.
    pub fn new() -> Self {
        Self {
            filter: String::new(),
            typing: false,
            paused: false,
            descending: true,
            has_help: false,
        }
    }

    /// Applies a key, and returns what is left to do.
    pub fn key(&mut self, key: Key, has_detail: bool) -> Asked {
        if self.typing {
            self.typing = keys::edit(&mut self.filter, key);
            return Asked::Arrange;
        }
        match key {
            Key::Char('q') => return Asked::Quit,
            Key::Char('?') => self.has_help = !self.has_help,
            Key::Esc | Key::Enter if self.has_help => self.has_help = false,
            Key::Esc | Key::Enter if has_detail => return Asked::CloseDetail,
            Key::Esc => {
                self.filter.clear();
                return Asked::Arrange;
            }
            Key::Char('/') => self.typing = true,
            Key::Char(' ' | 'p') => self.paused = !self.paused,
            Key::Char('r') => {
                self.descending = !self.descending;
                return Asked::Arrange;
            }
            Key::Left | Key::Char('<') => return Asked::SortBy(Step::Left),
            Key::Right | Key::Char('>') => return Asked::SortBy(Step::Right),
            other => return Asked::Own(other),
        }
        Asked::Draw
    }

    /// The first line of the head: the title, and whether the table is paused.
    pub fn title(&self, title: &'static str, more: String) -> Line<'static> {
        let bold = Style::new().add_modifier(Modifier::BOLD);
        let mut line = Line::from_iter([Span::styled(title, bold), Span::raw(more)]);
        if self.paused {
            let paused = Span::styled("  PAUSED", Style::new().fg(Color::Yellow));
            line.push_span(paused);
        }
        line
    }

    /// The foot: the filter, and the keys. `hint` is about a filter that is being typed.
    pub fn foot(&self, keys: &'static str, hint: Option<String>) -> Line<'static> {
        let filter = &self.filter;
        if self.typing {
            let hint = hint.unwrap_or_else(|| "Enter keeps it, Esc clears it".to_owned());
            Line::raw(format!(" filter: {filter}_  ({hint})"))
        } else if filter.is_empty() {
            Line::raw(keys)
        } else {
            Line::raw(format!(" filter: {filter}  (Esc clears it) {keys}"))
        }
    }
}
