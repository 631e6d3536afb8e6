//! The terminal while the view has it: raw, on its other screen, and given back however we end.

use std::io::{IsTerminal, Stdout, stdin, stdout};
use std::sync::Once;
use std::time::Duration;

use anyhow::{Context, Result};
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event, KeyEvent, KeyEventKind};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    Clear, ClearType, EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::layout::{Position, Rect};

use super::View;

/// A terminal that shows a view. Dropping it gives the terminal back.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

/// What came from the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A key.
    Key(KeyEvent),
    /// It has another size, and all must be drawn.
    Resized,
}

/// Whether there is a terminal that shows what is written and sends keys.
pub fn is_there() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}

impl Screen {
    /// Takes the terminal.
    ///
    /// # Errors
    /// It can't be set up.
    pub fn open() -> Result<Self> {
        give_back_on_panic();
        enable_raw_mode().context("failed to set up the terminal")?;
        // From here on dropping it undoes all that was done, even halfway.
        let terminal = Terminal::new(CrosstermBackend::new(stdout()))
            .inspect_err(|_| give_back())
            .context("failed to set up the terminal")?;
        let mut screen = Self { terminal };
        let backend = screen.terminal.backend_mut();
        execute!(backend, EnterAlternateScreen, Clear(ClearType::All))
            .context("failed to set up the terminal")?;
        Ok(screen)
    }

    /// Draws the view, whatever the size of the terminal is now.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn draw(&mut self, view: &mut View) -> Result<()> {
        self.terminal
            .draw(|frame| view.draw(frame))
            .context("failed to draw")?;
        Ok(())
    }

    /// Forgets what is on the screen, so that all of it is drawn anew.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn clear(&mut self) -> Result<()> {
        // Not clear(), which asks the terminal where its cursor is, and waits for the answer.
        let size = self.terminal.size().context("failed to draw")?;
        let area = Rect::from((Position::ORIGIN, size));
        self.terminal.resize(area).context("failed to draw")
    }

    /// What has come since the last time, without waiting.
    ///
    /// # Errors
    /// The terminal is gone.
    pub fn input(&self) -> Result<Vec<Input>> {
        let mut all = Vec::new();
        while event::poll(Duration::ZERO).context("failed to read the terminal")? {
            match event::read().context("failed to read the terminal")? {
                Event::Key(key) if key.kind != KeyEventKind::Release => all.push(Input::Key(key)),
                Event::Resize(..) => all.push(Input::Resized),
                _ => {}
            }
        }
        Ok(all)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

fn give_back() {
    // A terminal that is gone needs nothing back.
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// What a panic says must be readable.
fn give_back_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            give_back();
            before(info);
        }));
    });
}
