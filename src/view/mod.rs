//! The full-screen tables of `flows` and `listeners`. A table uses no clock, kernel or terminal: data
//! and keys go in, a frame comes out.

mod chart;
pub mod flows;
pub mod keys;
pub mod listeners;
mod popup;
mod sorting;
pub mod terminal;
mod text;

use ratatui::Frame;

use self::keys::Key;

/// What a [`terminal::Screen`] shows.
pub trait Picture {
    /// Draws everything, into a frame of any size.
    fn draw(&mut self, frame: &mut Frame<'_>);

    /// Reacts to a key.
    fn key(&mut self, key: Key) -> Reaction;
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
