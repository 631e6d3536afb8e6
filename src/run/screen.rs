//! Handles the keys pressed in a full-screen view.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::session::{Session, Wake};
use crate::stop::ExitReason;
use crate::view::terminal::Screen;
use crate::view::{Picture, Reaction};

/// How often to check whether this process is in the foreground again.
const RESUME_EVERY: Duration = Duration::from_millis(100);

/// Handles the keys that were pressed. The run may be over afterwards.
///
/// # Errors
/// The terminal can't be read.
pub fn take_keys(
    session: &mut Session,
    screen: &mut Screen,
    picture: &mut impl Picture,
) -> Result<()> {
    let Some(keys) = screen.keys()? else {
        session.end(ExitReason::ClosedPipe);
        return Ok(());
    };
    for key in keys {
        match picture.key(key) {
            Reaction::Quit => {
                session.end(ExitReason::Quit);
                return Ok(());
            }
            Reaction::Redraw => screen.redraw(),
            Reaction::Suspend => suspend(session, screen)?,
            Reaction::Draw => screen.touch(),
        }
    }
    Ok(())
}

/// Stops the process (Ctrl-Z) until it is in the foreground again, or the run is over.
fn suspend(session: &mut Session, screen: &mut Screen) -> Result<()> {
    loop {
        screen.suspend()?;
        if screen.resume(&mut session.sink)? {
            return Ok(());
        }
        // It was continued in the background, perhaps to receive another signal.
        if session.wait(None, Some(Instant::now() + RESUME_EVERY))? == Wake::Stop {
            return Ok(());
        }
    }
}
