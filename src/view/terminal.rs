//! The terminal that shows a view: in raw mode, on its alternate screen, and restored however the
//! run ends.
//!
//! Nothing here blocks on the terminal: it may have hung up or may not be read, and signals must
//! still be handled.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, IsTerminal, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::{Mutex, Once};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, raise};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, read, tcgetpgrp};
use ratatui::Terminal;
use ratatui::backend::TermionBackend;
use ratatui::layout::{Position, Rect, Size};
use ratatui::style::Color;
use ratatui::termion::terminal_size;

use super::Picture;
use super::keys::{Key, Keys};
use crate::output::sink::Sink;

/// Enters the alternate screen, clears it and hides the cursor; [`LEAVE`] undoes this.
const ENTER: &[u8] = b"\x1b[?1049h\x1b[2J\x1b[?25l";
const LEAVE: &[u8] = b"\x1b[0m\x1b[?25h\x1b[?1049l";

/// How long the end of a run waits for a terminal that is not read, in ms.
const GRACE: u8 = 200;

const SET_UP: &str = "failed to set up the terminal";

/// The state of the terminal to restore. It is global so that a panic handler can restore it.
static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);

struct Taken {
    modes: Termios,
    out: File,
}

/// A terminal that shows a view. Dropping it restores the terminal.
pub struct Screen {
    terminal: Terminal<TermionBackend<Frames>>,
    frames: Frames,
    /// The view has changed since it was drawn.
    is_stale: bool,
    has_colors: bool,
    keys: Keys,
}

/// Memory that frames are drawn into. It is shared, because ratatui's backend owns its writer and gives
/// access to it only as an unstable feature.
#[derive(Clone, Default)]
struct Frames(Rc<RefCell<Vec<u8>>>);

impl Write for Frames {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether there is a terminal that can show the view and sends keys. Without TERM, or with
/// TERM=dumb, it can't be assumed to move a cursor.
pub fn is_there() -> bool {
    let can_draw = std::env::var_os("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    can_draw && stdin().is_terminal() && stdout().is_terminal()
}

impl Screen {
    /// Takes over the terminal that `sink` writes to; `None` if it is gone.
    ///
    /// # Errors
    /// It can't be set up.
    pub fn open(sink: &Sink) -> Result<Option<Self>> {
        give_back_on_panic();
        match Self::try_open(sink) {
            Ok(screen) => Ok(Some(screen)),
            Err(error) if is_hung_up(&error) => Ok(None),
            Err(error) => Err(error).context(SET_UP),
        }
    }

    fn try_open(sink: &Sink) -> io::Result<Self> {
        let frames = Frames::default();
        let mut screen = Self {
            terminal: Terminal::new(TermionBackend::new(frames.clone()))?,
            frames,
            is_stale: true,
            has_colors: sink.has_colors(),
            keys: Keys::default(),
        };
        screen.take(sink)?;
        Ok(screen)
    }

    fn take(&mut self, sink: &Sink) -> io::Result<()> {
        let out = sink.try_clone()?;
        let modes = tcgetattr(stdin())?;
        let mut raw = modes.clone();
        cfmakeraw(&mut raw);
        if let Ok(mut taken) = TAKEN.lock() {
            *taken = Some(Taken { modes, out });
        }
        tcsetattr(stdin(), SetArg::TCSANOW, &raw)?;
        self.frames.0.borrow_mut().extend_from_slice(ENTER);
        self.redraw();
        Ok(())
    }

    /// Marks the view as changed: the next [`Screen::show`] draws it.
    pub fn touch(&mut self) {
        self.is_stale = true;
    }

    /// Forgets what is on the screen, so that all of it is drawn again.
    pub fn redraw(&mut self) {
        self.is_stale = true;
        // Not clear(), which asks the terminal for the cursor's position and waits for the answer.
        let area = Rect::from((Position::ORIGIN, self.drawn_size()));
        // It writes to memory only, which does not fail.
        let _ = self.terminal.resize(area);
    }

    fn drawn_size(&mut self) -> Size {
        self.terminal.get_frame().area().as_size()
    }

    /// Draws the view if it or the size of the terminal has changed, and writes as much as the
    /// terminal accepts without blocking. The next call writes the rest, and draws nothing before.
    pub fn show(&mut self, view: &mut impl Picture, sink: &mut Sink) {
        self.send(sink);
        if !self.frames.0.borrow().is_empty() {
            return;
        }
        // A terminal whose size can't be read is gone, or about to go.
        let Ok((width, height)) = terminal_size() else {
            return sink.close();
        };
        if !self.is_stale && self.drawn_size() == Size::new(width, height) {
            return;
        }
        let has_colors = self.has_colors;
        let drawn = self.terminal.draw(|frame| {
            view.draw(frame);
            if !has_colors {
                for cell in &mut frame.buffer_mut().content {
                    cell.set_fg(Color::Reset).set_bg(Color::Reset);
                }
            }
        });
        if drawn.is_err() {
            return sink.close();
        }
        self.is_stale = false;
        self.send(sink);
    }

    fn send(&mut self, sink: &mut Sink) {
        let mut frames = self.frames.0.borrow_mut();
        let done = sink.write_now(&frames);
        frames.drain(..done);
    }

    /// The keys that were pressed; `None` if the terminal is gone. To be called when the terminal
    /// is readable.
    ///
    /// # Errors
    /// The terminal can't be read.
    pub fn keys(&mut self) -> Result<Option<Vec<Key>>> {
        let mut bytes = [0; 1024];
        match read(stdin(), &mut bytes) {
            Ok(0) | Err(Errno::EIO) => Ok(None),
            Ok(len) => Ok(Some(self.keys.take(&bytes[..len]))),
            Err(Errno::EINTR | Errno::EAGAIN) => Ok(Some(Vec::new())),
            Err(error) => Err(error).context("failed to read the terminal"),
        }
    }

    /// Stops the process, as Ctrl-Z does elsewhere, until it is continued.
    ///
    /// # Errors
    /// The process can't be stopped.
    pub fn suspend(&mut self) -> Result<()> {
        give_back();
        self.frames.0.borrow_mut().clear();
        raise(Signal::SIGTSTP).context("failed to suspend")
    }

    /// Takes over the terminal again after [`Screen::suspend`]. False if the process is in the
    /// background, where it may not use it.
    ///
    /// # Errors
    /// It can't be set up.
    pub fn resume(&mut self, sink: &mut Sink) -> Result<bool> {
        if !is_in_foreground() {
            return Ok(false);
        }
        match self.take(sink) {
            Err(error) if is_hung_up(&error) => sink.close(),
            done => done.context(SET_UP)?,
        }
        Ok(true)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Whether this process may use the terminal. Without job control it always may.
fn is_in_foreground() -> bool {
    tcgetpgrp(stdin()).map_or(true, |group| group == getpgrp())
}

fn is_hung_up(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::EIO as i32)
}

/// Restores the terminal. Errors are ignored: a terminal that is gone needs no restoring.
fn give_back() {
    let taken = TAKEN.try_lock().ok().and_then(|mut taken| taken.take());
    let Some(Taken { modes, mut out }) = taken else {
        return;
    };
    if is_in_foreground() {
        // TCSANOW does not wait until the output is read, which may never happen.
        let _ = tcsetattr(stdin(), SetArg::TCSANOW, &modes);
    }
    let mut fds = [PollFd::new(out.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::from(GRACE)).is_ok_and(|ready| ready > 0) {
        let _ = out.write(LEAVE);
    }
}

/// Restores the terminal before the message of a panic is printed, so that it can be read.
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
