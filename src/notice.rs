//! What is said on stderr: whole lines, each in one write.

use std::io::Write;

use crate::cli::OutputArgs;

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
        let mut line = line.to_owned();
        line.push('\n');
        // Nobody is left to tell that stderr is closed.
        let _ = std::io::stderr().write_all(line.as_bytes());
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
