//! Why a capture could not be read, and where.

use std::fmt;
use std::io;
use std::path::Path;

use super::input::Input;
use super::link_type;

/// Why a capture could not be read, or not to its end: one line that names the
/// file and, where there is one, the place in it.
#[derive(Debug)]
pub struct CaptureError {
    name: String,
    position: Option<Position>,
    fault: Fault,
}

/// Where in the file the error is.
#[derive(Debug)]
pub(super) struct Position {
    /// What is there: a header, a record or a block.
    what: &'static str,
    /// Where it begins, in bytes from the start of the (decompressed) file.
    at: u64,
    gzip: bool,
}

/// The fault of a file.
#[derive(Debug)]
pub(super) enum Fault {
    /// The file could not be opened.
    Open(io::Error),
    /// The file could not be read.
    Io(io::Error),
    Directory,
    Empty,
    /// Neither pcap nor pcapng.
    NotACapture,
    /// The link type of the whole file, by number, is not supported.
    FileLinkType(u32),
    /// The link type of one frame, by number, is not supported.
    FrameLinkType(u32),
    /// The file ends inside the record or block.
    Cut {
        have: u64,
        need: u64,
    },
    /// A length that no valid file has; `what` names it.
    TooLong {
        what: &'static str,
        length: u64,
        limit: u64,
    },
    /// Something else that contradicts the format.
    Malformed(String),
}

impl CaptureError {
    pub(super) fn new(name: &Path, position: Option<Position>, fault: Fault) -> Self {
        Self {
            name: printable(name),
            position,
            fault,
        }
    }

    /// Whether it is a usage error: the file can't be opened, is a directory, is
    /// empty, is not a capture, or has a link type that is not supported.
    /// Otherwise it is a capture, but broken, or reading it failed.
    pub fn is_usage(&self) -> bool {
        match self.fault {
            Fault::Open(_)
            | Fault::Directory
            | Fault::Empty
            | Fault::NotACapture
            | Fault::FileLinkType(_) => true,
            Fault::Io(_)
            | Fault::FrameLinkType(_)
            | Fault::Cut { .. }
            | Fault::TooLong { .. }
            | Fault::Malformed(_) => false,
        }
    }
}

// The cause is part of the message, so that the message is whole wherever it is
// shown; `source` is empty, because a chain of errors would repeat it.
impl std::error::Error for CaptureError {}

impl fmt::Display for CaptureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failed to read {}: ", self.name)?;
        // An error of the file as a whole has no position.
        let position = self.position.as_ref().filter(|_| !self.is_usage());
        if let Some(position) = position {
            write!(f, "{} at byte {}", position.what, position.at)?;
            if position.gzip {
                f.write_str(" of the decompressed data")?;
            }
            f.write_str(": ")?;
        }
        match &self.fault {
            // An error that is not the system's own comes from the decoder.
            Fault::Io(err)
                if position.is_some_and(|position| position.gzip)
                    && err.raw_os_error().is_none() =>
            {
                match err.kind() {
                    io::ErrorKind::UnexpectedEof => f.write_str("the gzip data ends early"),
                    _ => write!(f, "the gzip data is broken: {err}"),
                }
            }
            Fault::Open(err) | Fault::Io(err) => write!(f, "{err}"),
            Fault::Directory => f.write_str("is a directory"),
            Fault::Empty => f.write_str("the file is empty"),
            Fault::NotACapture => f.write_str("not a pcap or pcapng file"),
            Fault::FileLinkType(number) | Fault::FrameLinkType(number) => {
                write!(f, "link type {number}")?;
                if let Some(name) = link_type::name(*number) {
                    write!(f, " ({name})")?;
                }
                f.write_str(" is not supported")
            }
            Fault::Cut { have, need } => {
                write!(f, "cut short: {have} of its {need} bytes are there")
            }
            Fault::TooLong {
                what,
                length,
                limit,
            } => write!(f, "{what} {length} is over the limit of {limit}"),
            Fault::Malformed(what) => f.write_str(what),
        }
    }
}

impl Position {
    pub(super) fn new(what: &'static str, at: u64, input: &Input) -> Self {
        Self {
            what,
            at,
            gzip: input.is_gzip(),
        }
    }
}

impl From<io::Error> for Fault {
    fn from(err: io::Error) -> Self {
        Self::Io(err)
    }
}

/// The file's name with its control characters escaped, so that it can't control
/// the terminal.
pub(super) fn printable(name: &Path) -> String {
    let name = name.to_string_lossy();
    let mut out = String::with_capacity(name.len());
    for c in name.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}
