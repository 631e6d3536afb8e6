//! Messages on stderr: whole lines, each in one write.

use std::io::Write;

use crate::output::escape::push_line;

/// Prints one line; control characters in it are escaped.
pub fn say(line: &str) {
    let mut out = Vec::with_capacity(line.len() + 1);
    push_line(&mut out, line);
    // If stderr is closed, there is nowhere to report it.
    let _ = std::io::stderr().write_all(&out);
}

/// A message for the user, returned by code that has no access to [`Notices`].
pub enum Note {
    /// A notice, unless `-q`.
    Notice(String),
    /// A detail, with `-v`.
    Detail(String),
}

/// Prints messages, as far as `-q` and `-v` allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notices {
    /// From -2 (`-qq`) to 2 (`-vv`).
    level: i8,
}

impl Notices {
    /// As much as this level allows.
    pub fn new(level: i8) -> Self {
        Self { level }
    }

    /// `attached:` or the summary, unless `-q`.
    pub fn status(self, line: &str) {
        if self.level >= 0 {
            say(line);
        }
    }

    /// A notice, unless `-q`.
    pub fn notice(self, text: &str) {
        self.status(&format!("notice: {text}"));
    }

    /// A warning that the result is incomplete, unless `-qq`.
    pub fn warning(self, text: &str) {
        if self.level >= -1 {
            say(&format!("warning: {text}"));
        }
    }

    /// Lines that were asked for, unless `-qq`.
    pub fn result(self, lines: &str) {
        if self.level >= -1 {
            lines.lines().for_each(say);
        }
    }

    /// A detail, with `-v`.
    pub fn detail(self, text: &str) {
        if self.level >= 1 {
            say(&format!("notice: {text}"));
        }
    }

    /// Prints a note.
    pub fn note(self, note: &Note) {
        match note {
            Note::Notice(text) => self.notice(text),
            Note::Detail(text) => self.detail(text),
        }
    }

    /// Whether to show the progress of a long run.
    pub fn wants_progress(self) -> bool {
        self.level >= 0
    }

    /// Whether the logs of libbpf and the verifier are wanted (`-vv`).
    pub fn wants_logs(self) -> bool {
        self.level >= 2
    }
}

/// Prints only the first of its notices: for failures that would repeat with every event.
pub struct FirstNotice {
    notices: Notices,
    is_printed: bool,
}

impl FirstNotice {
    /// None is printed yet.
    pub fn new(notices: Notices) -> Self {
        Self {
            notices,
            is_printed: false,
        }
    }

    /// Prints a notice if it is the first.
    pub fn notice(&mut self, text: &str) {
        if !self.is_printed {
            self.is_printed = true;
            self.notices.notice(text);
        }
    }
}
