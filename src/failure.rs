//! Exit statuses, and errors that say what to do.

use std::fmt;
use std::process::ExitCode;

/// Exit status, as documented in the README.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Stopped by a signal, `--duration`, `--count`, the end of a file or a closed pipe.
    Success,
    /// Could not attach, the interface went away, output could not be written.
    Failure,
    /// The command line is wrong.
    Usage,
    /// Ended well, but events were lost and `--strict` was given.
    Lost,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Success => 0,
            Exit::Failure => 1,
            Exit::Usage => 2,
            Exit::Lost => 3,
        })
    }
}

/// An error as it is shown to the user: `tcpinspect: what failed: why`, and perhaps a hint.
#[derive(Debug)]
pub struct Failure {
    /// The exit status of the process.
    pub exit: Exit,
    /// The error with its causes, as a chain of contexts.
    pub error: anyhow::Error,
    /// The text that is wrong, and a line below it that marks where.
    pub excerpt: Vec<String>,
    /// Advice on what the user can do.
    pub hint: Option<String>,
}

impl Failure {
    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            error: anyhow::Error::msg(message.into()),
            excerpt: Vec::new(),
            hint: None,
        }
    }

    /// Adds advice on what the user can do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            exit: Exit::Failure,
            error: error.into(),
            excerpt: Vec::new(),
            hint: None,
        }
    }
}

/// Why a value of the command line is refused, and what the user can do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    message: String,
    /// The second line of the error, if there is something to do.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal with a hint of its own.
    pub fn with_hint(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: Some(hint.into()),
        }
    }
}

impl From<String> for Refusal {
    fn from(message: String) -> Self {
        Self {
            message,
            hint: None,
        }
    }
}

impl From<&str> for Refusal {
    fn from(message: &str) -> Self {
        message.to_owned().into()
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
