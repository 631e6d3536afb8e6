//! The bytes of a capture file, decompressed, through a sliding buffer.

use std::io::{self, Chain, Cursor, Read};

use flate2::read::MultiGzDecoder;

use super::Interrupt;
use super::link_type::ETHERNET_HEADER;

/// Bytes kept free in front of the data, so that an Ethernet header can be
/// written in front of a frame wherever it lies in the buffer.
const HEADROOM: usize = ETHERNET_HEADER;

/// The first size of the buffer. It grows with the longest record that is asked
/// for, which the readers limit.
const FIRST_CAPACITY: usize = 64 * 1024;

const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// A stream of bytes of which the next few can be looked at before they are
/// consumed.
pub(super) struct Input {
    source: Source,
    interrupt: Interrupt,
    buf: Vec<u8>,
    /// `buf[start..end]` has been read and not yet consumed.
    start: usize,
    end: usize,
    /// How many bytes have been consumed.
    offset: u64,
}

enum Source {
    Plain(Counted),
    Gzip(Box<MultiGzDecoder<Counted>>),
}

/// The file itself, with the count of bytes that were read from it.
struct Counted {
    reader: Chain<Cursor<Vec<u8>>, Box<dyn Read>>,
    count: u64,
}

impl Input {
    /// Begins to read, and finds out whether the data is compressed.
    pub(super) fn new(mut reader: Box<dyn Read>, interrupt: Interrupt) -> io::Result<Self> {
        let mut magic = Vec::new();
        reader
            .by_ref()
            .take(GZIP_MAGIC.len() as u64)
            .read_to_end(&mut magic)?;
        let gzip = magic == GZIP_MAGIC;
        let file = Counted {
            reader: Cursor::new(magic).chain(reader),
            count: 0,
        };
        Ok(Self {
            source: if gzip {
                Source::Gzip(Box::new(MultiGzDecoder::new(file)))
            } else {
                Source::Plain(file)
            },
            interrupt,
            buf: vec![0; HEADROOM + FIRST_CAPACITY],
            start: HEADROOM,
            end: HEADROOM,
            offset: 0,
        })
    }

    /// The bytes that come next: `want` of them or more, fewer only at the end
    /// of the data. What was read so far stays readable after an error.
    pub(super) fn fill(&mut self, want: usize) -> io::Result<&[u8]> {
        if self.end - self.start < want {
            self.read_until(want)?;
        }
        Ok(&self.buf[self.start..self.end])
    }

    fn read_until(&mut self, want: usize) -> io::Result<()> {
        self.buf.copy_within(self.start..self.end, HEADROOM);
        self.end -= self.start - HEADROOM;
        self.start = HEADROOM;
        if self.buf.len() < HEADROOM + want {
            self.buf.resize(HEADROOM + want, 0);
        }
        while self.end - self.start < want {
            // A few bytes of a file can be gigabytes when they are decompressed.
            (self.interrupt)(None)?;
            match self.source.read(&mut self.buf[self.end..]) {
                Ok(0) => break,
                Ok(n) => self.end += n,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                Err(err) => return Err(err),
            }
        }
        Ok(())
    }

    /// Consumes `count` bytes, which [`Input::fill`] has returned, and says
    /// where in [`Input::buffer`] they begin. They stay there until the next
    /// `fill` or `skip`.
    pub(super) fn consume(&mut self, count: usize) -> usize {
        let begin = self.start;
        let count = count.min(self.end - self.start);
        self.start += count;
        self.offset += count as u64;
        begin
    }

    /// Consumes `count` bytes without keeping them, and returns how many there
    /// were: fewer only at the end of the data.
    pub(super) fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut left = count;
        while left > 0 {
            let available = self.fill(1)?.len();
            if available == 0 {
                break;
            }
            let step = usize::try_from(left).map_or(available, |left| left.min(available));
            self.consume(step);
            left -= step as u64;
        }
        Ok(count - left)
    }

    /// The buffer, for use with what [`Input::consume`] returns.
    pub(super) fn buffer(&mut self) -> &mut [u8] {
        &mut self.buf
    }

    /// How many bytes of the decompressed data have been consumed.
    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes of the file itself have been read.
    pub(super) fn bytes_read(&self) -> u64 {
        match &self.source {
            Source::Plain(file) => file.count,
            Source::Gzip(decoder) => decoder.get_ref().count,
        }
    }

    pub(super) fn is_gzip(&self) -> bool {
        matches!(self.source, Source::Gzip(_))
    }
}

impl Read for Source {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(buf),
            Self::Gzip(decoder) => decoder.read(buf),
        }
    }
}

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        self.count += n as u64;
        Ok(n)
    }
}
