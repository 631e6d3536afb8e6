//! Reads frames of pcap and pcapng files, one at a time, as Ethernet frames. `write` and `recorder`
//! write such files.
//!
//! A file that is read may be hostile, broken, compressed with gzip, or a pipe that is
//! still being written: it is read once, front to back, in bounded memory, and
//! all frames before a broken place are returned before the error.
//!
//! The formats are those of draft-ietf-opsawg-pcap and
//! draft-ietf-opsawg-pcapng, the limits and the older variants those of
//! libpcap. The existing crates that parse these formats do not suffice
//! here: pcap-parser 0.17 drops the `io::Error`, fails on an
//! interrupted read and on a pipe that delivers the header in pieces, refuses
//! blocks that only need skipping, and misreads power-of-two timestamps and
//! big-endian time offsets.

mod error;
mod input;
mod link_type;
mod numbers;
mod pcap;
mod pcapng;
pub(crate) mod recorder;
pub(crate) mod rotation;
#[cfg(test)]
mod tests;
pub(crate) mod write;

use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

pub use error::CaptureError;
pub use link_type::LinkKind;
pub use numbers::{LINKTYPE_ETHERNET, LINKTYPE_RAW};

use error::{Fault, Position};
use input::Input;
use link_type::{ETHERNET_HEADER, Framing, LONGEST_HEADER};
use pcap::Pcap;
use pcapng::PcapNg;

/// The longest frame that is accepted, in bytes: libpcap's `MAXIMUM_SNAPLEN`,
/// which no capture of the supported link types exceeds.
pub const MAX_FRAME: u32 = 262_144;

/// A capture file that is being read.
pub struct Capture {
    name: String,
    input: Input,
    reader: Reader,
    file_len: Option<u64>,
    may_wait: bool,
    frames: u64,
    /// The header of the last frame's link layer, as it was in the file.
    link_header: [u8; LONGEST_HEADER],
    /// Set at the end of the file and after an error: no frame follows.
    done: bool,
}

/// Called before each piece of work, so that none can delay the end of a run. Given the descriptor
/// of a pipe or terminal, it waits until that can be read. If it fails, the read ends with its
/// error.
pub type Interrupt = Rc<dyn Fn(Option<BorrowedFd<'_>>) -> io::Result<()>>;

/// A capture file that is open. None of it has been read.
pub struct CaptureFile {
    name: PathBuf,
    file: File,
    /// Its length, if it is a regular file.
    len: Option<u64>,
}

/// The file that is read. [`Interrupt`] is called before each read.
struct Watched {
    file: File,
    /// It is a pipe or a terminal.
    may_wait: bool,
    interrupt: Interrupt,
}

impl Read for Watched {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (self.interrupt)(self.may_wait.then(|| self.file.as_fd()))?;
        self.file.read(buf)
    }
}

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Position in the file, counted from 1 as Wireshark and `tcpdump -#` do.
    pub number: u64,
    /// When it was captured, in nanoseconds of UNIX time, saturated if the time in
    /// the file does not fit; `None` if the file has no time for it (pcapng's
    /// Simple Packet Block).
    pub ts_ns: Option<i64>,
    /// The kind of link it was captured on, which decides which of its link-layer fields are real.
    pub link: LinkKind,
    /// The frame as an Ethernet frame, with a made-up header if `link` is not
    /// [`LinkKind::Ethernet`]; empty if the frame was cut within the header of
    /// its link layer. At most [`MAX_FRAME`] + 14 bytes. All that the file has
    /// of the frame is here, even what goes beyond the snapshot length that the
    /// file promises, where libpcap cuts and Wireshark does not.
    pub bytes: &'a [u8],
    /// How long the frame was where it was captured, with the header of its own link layer.
    pub wire_len: u32,
    /// The number of its link type.
    pub link_type: u16,
    /// The header of its link layer as it was captured. In `bytes`, an Ethernet header of 14 bytes
    /// stands in its place.
    link_header: &'a [u8],
    /// The number to add to an offset in `bytes`, at or after byte 14, to get the
    /// offset in the frame as it was captured.
    pub offset_shift: i32,
}

impl<'a> Frame<'a> {
    /// Its bytes as they were captured, in two pieces.
    pub fn captured(&self) -> [&'a [u8]; 2] {
        let rest = self.bytes.get(ETHERNET_HEADER..).unwrap_or_default();
        [self.link_header, rest]
    }
}

/// Where a reader found the next frame.
struct Record {
    /// The frame's place in the buffer of [`Input`].
    data: Range<usize>,
    ts_ns: Option<i64>,
    wire_len: u32,
    framing: Framing,
}

/// The result of one step through the file.
enum Step {
    Frame(Record),
    /// A block that is not a frame.
    Other,
    End,
}

/// Reads one of the two formats of capture files.
enum Reader {
    Pcap(Pcap),
    PcapNg(PcapNg),
}

impl CaptureFile {
    /// Opens a capture file; `-` is stdin. Opening a FIFO waits for its writer.
    ///
    /// # Errors
    /// If the file can't be opened; see [`CaptureError::is_usage`].
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
        Ok(Self {
            name: name.to_owned(),
            file,
            len: meta.is_file().then_some(meta.len()),
        })
    }

    /// Whether reading may have to wait for a writer.
    pub fn may_wait(&self) -> bool {
        self.len.is_none()
    }

    /// Whether this is the regular file with these metadata, under whatever name.
    pub fn is(&self, other: &Metadata) -> bool {
        let id = |found: &Metadata| (found.dev(), found.ino());
        self.len.is_some()
            && self
                .file
                .metadata()
                .is_ok_and(|this| id(&this) == id(other))
    }

    /// Begins to read, no further than the header of the file.
    ///
    /// # Errors
    /// If the header can't be read; see [`CaptureError::is_usage`].
    pub fn read(self, interrupt: Interrupt) -> Result<Capture, CaptureError> {
        let may_wait = self.may_wait();
        let file = Box::new(Watched {
            file: self.file,
            may_wait,
            interrupt: Rc::clone(&interrupt),
        });
        let mut capture = Capture::begin(&self.name, file, interrupt)?;
        capture.file_len = self.len;
        capture.may_wait = may_wait;
        Ok(capture)
    }
}

impl Capture {
    /// Whether reading may have to wait for a writer.
    pub fn may_wait(&self) -> bool {
        self.may_wait
    }

    /// Reads a capture from anything; `name` is what errors call it. A read
    /// that is interrupted is tried again, and 0 bytes are the end.
    ///
    /// # Errors
    /// As for [`CaptureFile::read`].
    pub fn from_reader(name: &Path, reader: Box<dyn Read>) -> Result<Self, CaptureError> {
        Self::begin(name, reader, Rc::new(|_| Ok(())))
    }

    fn begin(
        name: &Path,
        reader: Box<dyn Read>,
        interrupt: Interrupt,
    ) -> Result<Self, CaptureError> {
        let mut input = match Input::new(reader, interrupt) {
            Ok(input) => input,
            Err(err) => return Err(CaptureError::new(name, None, Fault::Io(err))),
        };
        match Reader::detect(&mut input) {
            Ok(reader) => Ok(Self {
                name: error::printable(name),
                input,
                reader,
                file_len: None,
                may_wait: false,
                frames: 0,
                link_header: [0; LONGEST_HEADER],
                done: false,
            }),
            Err(fault) => {
                let position = Position::new("header", 0, &input);
                Err(CaptureError::new(name, Some(position), fault))
            }
        }
    }

    /// The next frame, or `None` at the end of the file and after an error.
    ///
    /// # Errors
    /// If the file is broken, can't be read further, or has a frame of a link type
    /// that is not supported. All frames before that have been returned.
    pub fn next_frame(&mut self) -> Result<Option<Frame<'_>>, CaptureError> {
        while !self.done {
            let at = self.input.offset();
            let (what, step) = match &mut self.reader {
                Reader::Pcap(pcap) => ("record", pcap.step(&mut self.input)),
                Reader::PcapNg(pcapng) => ("block", pcapng.step(&mut self.input)),
            };
            match step {
                Ok(Step::Frame(record)) => return Ok(Some(self.frame(record))),
                Ok(Step::Other) => {}
                Ok(Step::End) => self.done = true,
                Err(fault) => {
                    self.done = true;
                    let position = Position::new(what, at, &self.input);
                    return Err(CaptureError::new(
                        Path::new(&self.name),
                        Some(position),
                        fault,
                    ));
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
        let captured = self.input.buffer().get(record.data.clone());
        let captured = captured.unwrap_or_default();
        let header_len = record.framing.header_len().min(captured.len());
        let link_header = &mut self.link_header[..header_len];
        link_header.copy_from_slice(&captured[..header_len]);
        Frame {
            number: self.frames,
            ts_ns: record.ts_ns,
            link: record.framing.kind(),
            link_type: record.framing.link_type(),
            link_header,
            bytes: record.framing.reframe(self.input.buffer(), record.data),
            wire_len: record.wire_len,
            offset_shift: record.framing.offset_shift(),
        }
    }
}

impl Reader {
    /// Reads the header of the file, pcap's or that of pcapng's first section.
    fn detect(input: &mut Input) -> Result<Self, Fault> {
        let head = input.fill(4)?;
        if head.is_empty() {
            return Err(Fault::Empty);
        }
        if head.starts_with(&numbers::SECTION.to_le_bytes()) {
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
    /// The first order in which `read` finds something.
    fn find<T>(read: impl Fn(Self) -> Option<T>) -> Option<T> {
        [Self::Little, Self::Big].into_iter().find_map(read)
    }

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
