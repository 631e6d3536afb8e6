//! `-w`: writes frames to a file, a pipe or stdout, and counts them.
//!
//! However the run ends, the last packet of a file is complete. It can be cut only after SIGKILL, or
//! in a pipe that nobody reads at the end.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, IsTerminal, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc::PIPE_BUF;

use super::CaptureFile;
use super::numbers::LINKTYPE_ETHERNET;
use super::rotation::{Limits, Rotate, Rotation};
use super::write::{Encoder, FileFormat, FrameToWrite, InPlace, Statistics};
use crate::domain::UnixNanos;
use crate::failure::Failure;
use crate::output::clock::Clock;
use crate::output::stdout::{Patience, Stdout, has_room};
use crate::stop::{ExitReason, Stop};

/// How many bytes are buffered before they are written, if no flush comes earlier. Large frames also
/// wait for each other: one write of several costs less than a write of each.
const BUFFER: usize = 512 * 1024;

/// The most bytes of one write. For large writes the page cache takes large blocks of memory that
/// were never used before, and a virtual machine has to get these from its host: with writes of a
/// megabyte, a gigabyte can take two seconds instead of a third of a second.
const WRITE_MAX: usize = 256 * 1024;

/// Where frames are to be written.
pub struct Destination {
    path: PathBuf,
    /// For messages.
    name: String,
    /// Open already: stdout, or a FIFO.
    file: Option<File>,
    may_block: bool,
    is_stdout: bool,
}

impl Destination {
    /// Checks the argument of `-w`. A file is opened later, when everything is attached, so that an
    /// error before that overwrites nothing. A FIFO is opened now: that waits for its reader, and
    /// signals still end the process now.
    ///
    /// # Errors
    /// It is a terminal or a directory, or its directory does not exist.
    pub fn new(path: &Path) -> Result<Self, Failure> {
        let mut destination = Self {
            path: path.to_owned(),
            name: path.display().to_string(),
            file: None,
            may_block: false,
            is_stdout: path.as_os_str() == "-",
        };
        if destination.is_stdout {
            if std::io::stdout().is_terminal() {
                return Err(
                    Failure::usage("a capture file can't be written to a terminal")
                        .hint("give -w a file, or pipe stdout to a program: -w - | tshark -r -"),
                );
            }
            let stdout = Stdout::open()?;
            destination.name = "stdout".to_owned();
            destination.may_block = stdout.may_block;
            destination.file = Some(stdout.file);
            return Ok(destination);
        }
        let wrong =
            |why: &str| Failure::usage(format!("failed to write to {}: {why}", destination.name));
        match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(wrong("it is a directory")),
            Ok(found) if found.file_type().is_fifo() => {
                let file = OpenOptions::new().write(true).open(path);
                let file = file.with_context(|| destination.failed())?;
                fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))
                    .with_context(|| destination.failed())?;
                destination.file = Some(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parent = match path.parent() {
                    Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
                    Some(parent) => parent,
                    None => return Err(wrong("it is not a file name")),
                };
                if !parent.is_dir() {
                    return Err(wrong(&format!(
                        "there is no directory {}",
                        parent.display()
                    )));
                }
            }
            Err(error) => return Err(wrong(&error.to_string())),
        }
        Ok(destination)
    }

    /// The format that the name asks for: pcap if it has `.pcap`, but not as in `.pcapng`.
    pub fn format(&self) -> FileFormat {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let is_pcap = name
            .match_indices(".pcap")
            .any(|(at, found)| !name[at + found.len()..].starts_with("ng"));
        match is_pcap {
            true => FileFormat::Pcap,
            false => FileFormat::PcapNg,
        }
    }

    /// Refuses to write to the capture file that is read.
    fn check_input(&self, input: &CaptureFile) -> Result<(), Failure> {
        let found = match &self.file {
            Some(file) => file.metadata(),
            None => fs::metadata(&self.path),
        };
        match found.is_ok_and(|found| input.is(&found)) {
            true => Err(Failure::usage(format!(
                "{}: it is the file that -r reads",
                self.failed()
            ))),
            false => Ok(()),
        }
    }

    fn failed(&self) -> String {
        format!("failed to write to {}", self.name)
    }

    fn open(&mut self) -> Result<File> {
        match self.file.take() {
            Some(file) => Ok(file),
            None => OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                // If a later file of a rotation is a FIFO, opening it must not wait for a reader.
                .custom_flags(OFlag::O_NONBLOCK.bits())
                .open(&self.path)
                .with_context(|| self.failed()),
        }
    }

    fn rename(&mut self, path: PathBuf) {
        self.name = path.display().to_string();
        self.path = path;
    }
}

/// Writes frames.
pub struct Recorder {
    destination: Destination,
    rotation: Option<Rotation>,
    /// When the period of the file ends.
    due: Option<Instant>,
    /// Bytes in the file.
    len: u64,
    encoder: Encoder,
    file: Option<File>,
    /// It can be truncated. This is determined early, because the sandbox does not allow it later.
    is_regular: bool,
    started: UnixNanos,
    buffer: Vec<u8>,
    /// Where each packet ends, in bytes from the start of what the next flush writes.
    ends: Vec<usize>,
    written: u64,
    accepted: u64,
    limit: Option<u64>,
    ended: Option<ExitReason>,
    /// A packet was written only in part: nothing may follow it.
    is_cut: bool,
    error: Option<anyhow::Error>,
    patience: Patience,
}

impl Recorder {
    /// Writes to this destination at most `limit` frames. Nothing is opened yet.
    ///
    /// # Errors
    /// The interfaces have different link types, and the format allows only one; or the files of a
    /// rotation can't be named.
    pub fn new(
        mut destination: Destination,
        limits: Limits,
        clock: &Clock,
        encoder: Encoder,
        limit: Option<u64>,
    ) -> Result<Self, Failure> {
        if !encoder.fits() {
            return Err(several_link_types().into());
        }
        let rotation = if limits.rotates() {
            if destination.file.is_some() {
                return Err(Failure::usage(format!(
                    "-C and -G need a regular file, and {} is not one",
                    destination.name
                )));
            }
            let path = &destination.path;
            let rotation = Rotation::new(path, limits, clock.zone().clone(), clock.now())?;
            destination.rename(rotation.name()?);
            Some(rotation)
        } else {
            None
        };
        Ok(Self {
            destination,
            rotation,
            due: None,
            len: 0,
            encoder,
            file: None,
            is_regular: false,
            started: 0,
            buffer: Vec::with_capacity(2 * BUFFER),
            ends: Vec::new(),
            written: 0,
            accepted: 0,
            limit,
            ended: None,
            is_cut: false,
            error: None,
            patience: Patience::default(),
        })
    }

    /// Checks that the first file is another one than the capture file that is read.
    ///
    /// # Errors
    /// It is the same.
    pub fn check_input(&self, input: &CaptureFile) -> Result<(), Failure> {
        self.destination.check_input(input)
    }

    /// Opens the file, and writes what it begins with.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open(&mut self, stop: &Stop, now: UnixNanos) -> Result<()> {
        if let Some(rotation) = &mut self.rotation {
            rotation.begin(now);
            let path = rotation.name().map_err(|failure| failure.error)?;
            self.destination.rename(path);
        }
        let file = self.destination.open()?;
        let found = file.metadata();
        self.is_regular = found.is_ok_and(|found| found.is_file());
        self.started = now;
        self.begin(stop, file);
        Ok(())
    }

    fn begin(&mut self, stop: &Stop, file: File) {
        self.file = Some(file);
        self.len = 0;
        let period = self.rotation.as_ref().and_then(Rotation::period);
        self.due = period.map(|period| Instant::now() + period);
        self.encoder.header(&mut self.buffer);
        self.flush(stop);
    }

    /// Whether a packet with this time goes into a new file. Then [`Recorder::rotate`] has to come
    /// first.
    #[inline]
    pub fn must_rotate(&mut self, at: UnixNanos, in_place: &InPlace<'_>) -> bool {
        let len = self.len + (self.buffer.len() + in_place.len()) as u64;
        let Some(rotation) = &mut self.rotation else {
            return false;
        };
        if self.ended.is_some() {
            return false;
        }
        match rotation.decide(at, len) {
            Rotate::No => false,
            Rotate::Yes => true,
            Rotate::Stop => {
                self.ended = Some(ExitReason::Done);
                false
            }
        }
    }

    /// When the period of the file ends.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.ended.is_none())
    }

    /// Ends the period of the file. Returns whether another file follows, with
    /// [`Recorder::rotate`].
    pub fn end_period(&mut self, now: UnixNanos) -> bool {
        self.due = None;
        let rotate = self.rotation.as_mut().map(|it| it.end_period(now));
        if rotate == Some(Rotate::Stop) {
            self.ended.get_or_insert(ExitReason::Done);
        }
        rotate == Some(Rotate::Yes)
    }

    /// Ends the file, and begins the next one.
    pub fn rotate(&mut self, stop: &Stop, now: UnixNanos, statistics: &[Statistics]) {
        self.finish(stop, now, statistics);
        let Some(rotation) = &self.rotation else {
            return;
        };
        if !self.can_write() {
            return;
        }
        let opened = match rotation.name() {
            Ok(path) => {
                self.destination.rename(path);
                self.destination.open()
            }
            Err(failure) => Err(failure.error),
        };
        match opened {
            Ok(file) => self.begin(stop, file),
            Err(error) => self.fail(error),
        }
    }

    /// The directory in which files have to be created until the end.
    pub fn directory(&self) -> Option<&Path> {
        self.rotation.as_ref().map(Rotation::directory)
    }

    /// Writes a frame. Large parts of it may stay in place. False: it was not accepted, because the
    /// run has ended.
    #[inline]
    pub fn packet<'f>(
        &mut self,
        stop: &Stop,
        packet: &FrameToWrite<'f, '_>,
        in_place: &mut InPlace<'f>,
    ) -> bool {
        if self.ended.is_some() {
            return false;
        }
        self.encoder.packet(&mut self.buffer, packet, in_place);
        self.ends.push(self.buffer.len() + in_place.len());
        self.accepted += 1;
        if self.limit == Some(self.accepted) {
            self.flush_with(stop, in_place);
            self.ended.get_or_insert(ExitReason::Count);
        } else if self.buffer.len() >= BUFFER {
            self.flush_with(stop, in_place);
        }
        true
    }

    /// The number of the interface with this link type, which is described now if it was not before.
    /// `None` ends the run: the file has another link type, and its format allows only one.
    pub fn interface_of(&mut self, stop: &Stop, link_type: u16) -> Option<u32> {
        if let Some(known) = self.encoder.find(link_type) {
            return Some(known);
        }
        self.flush(stop);
        let number = self.encoder.add(link_type, &mut self.buffer);
        match number {
            Some(_) => self.flush(stop),
            None => self.fail(several_link_types()),
        }
        number
    }

    /// Writes what a file ends with.
    pub fn finish(&mut self, stop: &Stop, now: UnixNanos, statistics: &[Statistics]) {
        self.flush(stop);
        // A pcap file needs its header, which has the link type.
        if self.encoder.has_no_header() {
            self.encoder.add(LINKTYPE_ETHERNET, &mut self.buffer);
        }
        self.encoder
            .statistics(&mut self.buffer, self.started, now, statistics);
        self.flush(stop);
    }

    /// Whether the format of the file can hold the process of a packet.
    pub fn names_processes(&self) -> bool {
        self.encoder.names_processes()
    }

    /// Frames that are in the file.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Frames that were accepted, but could not be written any more.
    pub fn stranded(&self) -> u64 {
        self.accepted.saturating_sub(self.written)
    }

    /// How many frames may still come.
    pub fn remaining(&self) -> u64 {
        self.limit.map_or(u64::MAX, |limit| limit - self.accepted)
    }

    /// Why no more frames are accepted.
    pub fn ended(&self) -> Option<ExitReason> {
        self.ended
    }

    /// Notes that the reader has gone.
    pub fn close(&mut self) {
        self.ended.get_or_insert(ExitReason::ClosedPipe);
    }

    /// The error that ended the output.
    pub fn take_error(&mut self) -> Option<anyhow::Error> {
        self.error.take()
    }

    /// The open file, whose reader may close it.
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        self.file.as_ref().map(AsFd::as_fd)
    }

    /// Writes the buffered bytes. Gives up if the reader takes no more and the run has to stop.
    pub fn flush(&mut self, stop: &Stop) {
        self.flush_with(stop, &mut InPlace::default());
    }

    /// Writes the buffered bytes together with the parts of frames that have stayed in place.
    pub fn flush_with(&mut self, stop: &Stop, in_place: &mut InPlace<'_>) {
        let buffer = std::mem::take(&mut self.buffer);
        let all = buffer.len() + in_place.len();
        let mut pieces = in_place.between(&buffer);
        let mut rest = pieces.as_mut_slice();
        let mut done = 0;
        while done < all && self.can_write() {
            match self.write(rest) {
                Ok(0) => self.fail(anyhow!(
                    "failed to write to {}: it takes no more data",
                    self.destination.name
                )),
                Ok(len) => {
                    done += len;
                    IoSlice::advance_slices(&mut rest, len);
                    self.patience.renew();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    let file = self.file.as_ref();
                    if !file.is_some_and(|file| self.patience.wait(file.as_fd(), stop)) {
                        break;
                    }
                }
                Err(error) if error.kind() == ErrorKind::BrokenPipe => self.close(),
                Err(error) => {
                    let error = anyhow::Error::new(error).context(self.destination.failed());
                    self.fail(error);
                }
            }
        }
        if done < all {
            let whole = self.ends.partition_point(|end| *end <= done);
            self.written += whole as u64;
            let end = whole.checked_sub(1).and_then(|last| self.ends.get(last));
            self.remove_partial_packet(done - end.copied().unwrap_or(0));
        } else {
            self.written += self.ends.len() as u64;
        }
        self.len += done as u64;
        self.buffer = buffer;
        self.buffer.clear();
        in_place.clear();
        self.ends.clear();
    }

    /// Removes the last `len` bytes of the file, if it can be truncated: they are a part of a packet.
    /// Nothing is written to the file after that.
    fn remove_partial_packet(&mut self, len: usize) {
        if len == 0 {
            return;
        }
        self.is_cut = true;
        if self.is_regular
            && let Some(file) = &mut self.file
            && let Ok(position) = file.stream_position()
        {
            // If this fails, the part of the packet stays.
            let _ = file.set_len(position.saturating_sub(len as u64));
        }
    }

    fn can_write(&self) -> bool {
        let is_closed = matches!(self.ended, Some(ExitReason::ClosedPipe | ExitReason::Error));
        !is_closed && !self.is_cut
    }

    fn write(&mut self, pieces: &[IoSlice<'_>]) -> std::io::Result<usize> {
        let Some(file) = &mut self.file else {
            return Err(ErrorKind::NotConnected.into());
        };
        if self.destination.may_block {
            if !has_room(file.as_fd()) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let first = pieces.first().map_or(&[][..], |piece| piece);
            // A pipe that is writable takes this much without blocking.
            return file.write(&first[..first.len().min(PIPE_BUF)]);
        }
        match beginning(pieces) {
            [one] => file.write(&one[..one.len().min(WRITE_MAX)]),
            several => file.write_vectored(several),
        }
    }

    fn fail(&mut self, error: anyhow::Error) {
        self.ended = Some(ExitReason::Error);
        self.error.get_or_insert(error);
    }
}

/// The first pieces, up to the limit of one write. At least one, which can be longer.
fn beginning<'a, 'p>(pieces: &'a [IoSlice<'p>]) -> &'a [IoSlice<'p>] {
    let empty = pieces.iter().take_while(|piece| piece.is_empty()).count();
    let pieces = &pieces[empty..];
    let mut len = 0;
    let fitting = pieces.iter().take_while(|piece| {
        len += piece.len();
        len <= WRITE_MAX
    });
    let fitting = fitting.count().max(1);
    &pieces[..fitting.min(pieces.len())]
}

fn several_link_types() -> anyhow::Error {
    anyhow!(
        "failed to write a pcap file: it can have only one link type, and there are frames with and \
         without an Ethernet header; a name without .pcap makes it a pcapng file"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lengths of the pieces in the first write, of pieces with these lengths.
    fn first_write(lens: &[usize]) -> Vec<usize> {
        let bytes = vec![0; lens.iter().copied().max().unwrap_or(0)];
        let pieces: Vec<_> = lens
            .iter()
            .map(|len| IoSlice::new(&bytes[..*len]))
            .collect();
        beginning(&pieces).iter().map(|piece| piece.len()).collect()
    }

    #[test]
    fn a_write_takes_whole_pieces_up_to_its_limit_and_at_least_one() {
        assert_eq!(first_write(&[40, WRITE_MAX - 40, 1]), [40, WRITE_MAX - 40]);
        assert_eq!(first_write(&[40, WRITE_MAX - 39, 1]), [40]);
        assert_eq!(first_write(&[WRITE_MAX + 1, 40]), [WRITE_MAX + 1]);
        // A write of nothing would look like a file that takes no more.
        assert_eq!(first_write(&[0, 0, WRITE_MAX + 1]), [WRITE_MAX + 1]);
        assert_eq!(first_write(&[40, 0, 40]), [40, 0, 40]);
    }
}
