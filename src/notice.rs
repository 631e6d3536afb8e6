//! What is said on stderr: whole lines, each in one write.

use std::io::Write;

use crate::cli::OutputArgs;
use crate::output::escape::push_line;

/// Says one line, whatever it holds.
pub fn say(line: &str) {
    let mut out = Vec::with_capacity(line.len() + 1);
    push_line(&mut out, line);
    // Nobody is left to tell that stderr is closed.
    let _ = std::io::stderr().write_all(&out);
}

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notices {
    /// From -1 (`-q`) to 2 (`-vv`).
    level: i8,
}

impl Notices {
    /// As the command line asks.
    pub fn new(args: &OutputArgs) -> Self {
        Self {
            level: if args.quiet {
                -1
            } else {
                i8::try_from(args.verbose).unwrap_or(i8::MAX)
            },
        }
    }

    /// A line that is always said: `attached:`, the summary, errors.
    pub fn say(self, line: &str) {
        say(line);
    }

    /// Something worth knowing, unless `-q`.
    pub fn notice(self, text: &str) {
        if self.level >= 0 {
            self.say(&format!("notice: {text}"));
        }
    }

    /// Something for the curious (`-v`).
    pub fn detail(self, text: &str) {
        if self.level >= 1 {
            self.say(&format!("notice: {text}"));
        }
    }

    /// Whether it is told how far a long run is, unless `-q`.
    pub fn wants_progress(self) -> bool {
        self.level >= 0
    }

    /// Whether the logs of libbpf and the verifier are wanted (`-vv`).
    pub fn wants_logs(self) -> bool {
        self.level >= 2
    }
}
