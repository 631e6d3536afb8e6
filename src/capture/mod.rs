//! Frames of pcap and pcapng files, one at a time, as Ethernet frames.
//!
//! The file may be hostile, broken, compressed with gzip, or a pipe that is
//! still being written: it is read once, front to back, in bounded memory, and
//! whatever stands before a broken place is handed out before the error.
//!
//! The formats are those of draft-ietf-opsawg-pcap and
//! draft-ietf-opsawg-pcapng, the limits and the older variants those of
//! libpcap. The crates that parse these formats were tried and found wanting
//! for this use: pcap-parser 0.17 drops the `io::Error`, fails on an
//! interrupted read and on a pipe that delivers the header in pieces, refuses
//! blocks that only need skipping, and misreads power-of-two timestamps and
//! big-endian time offsets.

mod error;
mod input;
mod link;
mod pcap;
mod pcapng;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::rc::Rc;

pub use error::CaptureError;
pub use link::LinkKind;

use error::{Fault, Place};
use input::Input;
use link::Framing;
use pcap::Pcap;
use pcapng::PcapNg;

/// The longest frame that is taken, in bytes: libpcap's `MAXIMUM_SNAPLEN`,
/// which no capture of the supported link types exceeds.
pub const MAX_FRAME: u32 = 262_144;

/// A capture file that is being read.
pub struct Capture {
    name: String,
    input: Input,
    format: Format,
    file_len: Option<u64>,
    before_read: Option<BeforeRead>,
    frames: u64,
    /// Set by the end of the file and by an error: nothing can follow either.
    done: bool,
}

/// What is done before each read of a file that is not a regular one; see
/// [`Capture::before_reading`].
type BeforeRead = Rc<RefCell<Option<Box<dyn FnMut(BorrowedFd<'_>) -> io::Result<()>>>>>;

/// A file whose reads may wait: a pipe, a terminal.
struct Waiting {
    file: File,
    before_read: BeforeRead,
}

impl Read for Waiting {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if let Some(before_read) = &mut *self.before_read.borrow_mut() {
            before_read(self.file.as_fd())?;
        }
        self.file.read(buf)
    }
}

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Position in the file, counted from 1 as Wireshark and `tcpdump -#` do.
    pub number: u64,
    /// When it was captured, in nanoseconds of UNIX time, saturated if the file
    /// says something absurd; `None` where the file does not say (pcapng's
    /// Simple Packet Block).
    pub ts_ns: Option<i64>,
    /// What it was captured on, and so which of its link-layer fields are real.
    pub link: LinkKind,
    /// The frame as an Ethernet frame, with a made-up header if `link` is not
    /// [`LinkKind::Ethernet`]; empty if the frame was cut within the header of
    /// its link layer. At most [`MAX_FRAME`] + 14 bytes. All that the file has
    /// of the frame is here, even what goes beyond the snapshot length that the
    /// file promises, where libpcap cuts and Wireshark does not.
    pub bytes: &'a [u8],
    /// What to add to an offset in `bytes`, at or behind byte 14, to get the
    /// offset in the frame as it was captured.
    pub offset_shift: i32,
}

/// Where a reader found the next frame.
struct Record {
    /// The frame's place in the buffer of [`Input`].
    data: Range<usize>,
    ts_ns: Option<i64>,
    framing: Framing,
}

/// What one step through the file came upon.
enum Step {
    Frame(Record),
    /// Something that is not a frame; go on.
    Other,
    End,
}

enum Format {
    Pcap(Pcap),
    PcapNg(PcapNg),
}

impl Capture {
    /// Opens a capture file; `-` is stdin. Reads no further than the header of
    /// the file. Opening a FIFO waits for its writer.
    ///
    /// # Errors
    /// If the file can't be opened or its header read; see
    /// [`CaptureError::is_usage`].
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        let stdin = path.as_os_str() == "-";
        let name = if stdin { Path::new("stdin") } else { path };
        let unopened = |fault| CaptureError::new(name, None, fault);

        let file = if stdin {
            // A descriptor of its own, so that the standard library's buffer
            // for stdin is not in the way.
            io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(path)
        };
        let file = file.map_err(|err| unopened(Fault::Open(err)))?;
        let meta = file.metadata().map_err(|err| unopened(Fault::Open(err)))?;
        if meta.is_dir() {
            return Err(unopened(Fault::Directory));
        }

        if meta.is_file() {
            let mut capture = Self::from_reader(name, Box::new(file))?;
            capture.file_len = Some(meta.len());
            return Ok(capture);
        }
        let before_read = BeforeRead::default();
        let waiting = Waiting {
            file,
            before_read: Rc::clone(&before_read),
        };
        let mut capture = Self::from_reader(name, Box::new(waiting))?;
        capture.before_read = Some(before_read);
        Ok(capture)
    }

    /// Whether reading may have to wait for a writer.
    pub fn may_wait(&self) -> bool {
        self.before_read.is_some()
    }

    /// Has this called before each further read that may wait, with what is read. Its error, if it
    /// has one, is what the read ends with.
    pub fn before_reading(&mut self, call: impl FnMut(BorrowedFd<'_>) -> io::Result<()> + 'static) {
        if let Some(before_read) = &self.before_read {
            before_read.replace(Some(Box::new(call)));
        }
    }

    /// Reads a capture from anything; `name` is what errors call it. A read
    /// that is interrupted is tried again, and 0 bytes are the end.
    ///
    /// # Errors
    /// As for [`Capture::open`].
    pub fn from_reader(name: &Path, reader: Box<dyn Read>) -> Result<Self, CaptureError> {
        let mut input = match Input::new(reader) {
            Ok(input) => input,
            Err(err) => return Err(CaptureError::new(name, None, Fault::Io(err))),
        };
        match Format::detect(&mut input) {
            Ok(format) => Ok(Self {
                name: error::printable(name),
                input,
                format,
                file_len: None,
                before_read: None,
                frames: 0,
                done: false,
            }),
            Err(fault) => {
                let place = Place::new("header", 0, &input);
                Err(CaptureError::new(name, Some(place), fault))
            }
        }
    }

    /// The next frame, or `None` at the end of the file. After an error, too,
    /// there is only the end.
    ///
    /// # Errors
    /// If the file is broken, can't be read on, or has a frame of a link type
    /// that is not supported. All frames before that have been returned.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        while !self.done {
            let at = self.input.offset();
            let (what, step) = match &mut self.format {
                Format::Pcap(pcap) => ("record", pcap.step(&mut self.input)),
                Format::PcapNg(pcapng) => ("block", pcapng.step(&mut self.input)),
            };
            match step {
                Ok(Step::Frame(record)) => return Ok(Some(self.frame(record))),
                Ok(Step::Other) => {}
                Ok(Step::End) => self.done = true,
                Err(fault) => {
                    self.done = true;
                    let place = Place::new(what, at, &self.input);
                    return Err(CaptureError::new(Path::new(&self.name), Some(place), fault));
                }
            }
        }
        Ok(None)
    }

    /// How many bytes of the file have been read so far, compressed ones if it
    /// is compressed. Some of them may still be waiting in the buffer.
    pub fn bytes_read(&self) -> u64 {
        self.input.bytes_read()
    }

    /// The length in bytes that the file had when it was opened, if it is a
    /// regular file. One that is still being written can become longer.
    pub fn file_len(&self) -> Option<u64> {
        self.file_len
    }

    fn frame(&mut self, record: Record) -> Frame<'_> {
        self.frames += 1;
        Frame {
            number: self.frames,
            ts_ns: record.ts_ns,
            link: record.framing.kind(),
            bytes: record.framing.reframe(self.input.buffer(), record.data),
            offset_shift: record.framing.offset_shift(),
        }
    }
}

impl Format {
    /// Reads the header of the file, pcap's or that of pcapng's first section.
    fn detect(input: &mut Input) -> Result<Self, Fault> {
        let head = input.fill(4)?;
        if head.is_empty() {
            return Err(Fault::Empty);
        }
        if head.starts_with(&pcapng::SECTION_MAGIC) {
            let mut pcapng = PcapNg::new();
            pcapng.step(input)?;
            return Ok(Self::PcapNg(pcapng));
        }
        Pcap::open(input).map(Self::Pcap)
    }
}

/// The byte order of a file or section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Little,
    Big,
}

impl Order {
    /// The 16-bit number at `at`, if `bytes` reaches that far.
    fn u16(self, bytes: &[u8], at: usize) -> Option<u16> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u16::from_le_bytes(field),
            Self::Big => u16::from_be_bytes(field),
        })
    }

    /// The 32-bit number at `at`, if `bytes` reaches that far.
    fn u32(self, bytes: &[u8], at: usize) -> Option<u32> {
        let field = *bytes.get(at..)?.first_chunk()?;
        Some(match self {
            Self::Little => u32::from_le_bytes(field),
            Self::Big => u32::from_be_bytes(field),
        })
    }
}
