//! The full-screen tables of `flows` and `listeners`. A table uses no clock, kernel or terminal: data
//! and keys go in, a frame comes out.

mod chart;
mod controls;
mod cursor;
pub mod flows;
pub mod keys;
pub mod listeners;
mod popup;
mod sorting;
pub mod terminal;
mod text;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};

use self::keys::Key;

/// The content of a [`terminal::Screen`].
pub trait Picture {
    /// Draws everything, into a frame of any size.
    fn draw(&mut self, frame: &mut Frame<'_>);

    /// Reacts to a key.
    fn key(&mut self, key: Key) -> Reaction;
}

/// The action that a key calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// Draw what has changed.
    Draw,
    /// Draw all, even what should be on the screen already.
    Redraw,
    /// Stop the process until it is continued.
    Suspend,
    /// End the run.
    Quit,
}

impl Reaction {
    /// The reaction to keys that mean the same in every state of a table.
    fn always(key: Key) -> Option<Self> {
        match key {
            Key::Ctrl('c') => Some(Self::Quit),
            Key::Ctrl('l') => Some(Self::Redraw),
            Key::Ctrl('z') => Some(Self::Suspend),
            _ => None,
        }
    }
}

/// The parts of a screen: two lines at the top, the table, and a line at the bottom.
fn parts(screen: Rect) -> [Rect; 3] {
    Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(screen)
}
