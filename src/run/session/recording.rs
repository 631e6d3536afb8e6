//! Writes frames to a capture file, in place of lines to stdout.

use anyhow::Result;
use caps::Capability;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use super::{Session, Wake};
use crate::capture::recorder::Recorder;
use crate::capture::write::{FrameToWrite, InPlace, Statistics};
use crate::host::privileges;
use crate::host::sandbox::Recording;
use crate::run::events::EventSource;
use crate::sys::ring::Wakeup;

/// Bytes of a batch of frames. Large writes cost a file system less, for the same bytes.
const FRAMES: usize = 1024 * 1024;

impl Session {
    /// From now on frames are written to this file instead of lines to stdout.
    pub fn record_to(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// Whether frames are written to a file that has a place for their processes.
    pub fn names_processes(&self) -> bool {
        let recorder = self.recorder.as_ref();
        recorder.is_some_and(Recorder::names_processes)
    }

    /// Opens the file that frames are written to, if there is one.
    ///
    /// # Errors
    /// It can't be opened.
    pub fn open_recording(&mut self) -> Result<()> {
        match &mut self.recorder {
            Some(recorder) => recorder.open(&self.stop, self.clock.now()),
            None => Ok(()),
        }
    }

    /// Writes a frame that the BPF program has counted as matched. If the run has ended, it is
    /// counted as late, so that the summary adds up. `statistics` are written if its file ends here.
    #[inline]
    pub fn write_frame(
        &mut self,
        frame: &FrameToWrite<'_, '_>,
        statistics: impl FnOnce() -> Vec<Statistics>,
    ) {
        let mut in_place = InPlace::default();
        self.write_frame_in_place(frame, &mut in_place, statistics);
        self.write_out(&mut in_place);
    }

    /// Writes a frame as [`Session::write_frame`] does, but a large one may stay where it is until
    /// [`Session::write_out`].
    #[inline]
    pub fn write_frame_in_place<'f>(
        &mut self,
        frame: &FrameToWrite<'f, '_>,
        in_place: &mut InPlace<'f>,
        statistics: impl FnOnce() -> Vec<Statistics>,
    ) {
        let taken = self.recorder.as_mut().is_some_and(|recorder| {
            if recorder.must_rotate(frame.at, in_place) {
                recorder.flush_with(&self.stop, in_place);
                recorder.rotate(&self.stop, frame.at, &statistics());
            }
            recorder.packet(&self.stop, frame, in_place)
        });
        if !taken {
            self.late += 1;
        }
    }

    /// Writes the frames that have stayed where they are.
    #[inline]
    pub fn write_out(&mut self, in_place: &mut InPlace<'_>) {
        if let Some(recorder) = &mut self.recorder
            && !in_place.is_empty()
        {
            recorder.flush_with(&self.stop, in_place);
        }
    }

    /// Handles events as [`Session::record_events`] does, but in batches.
    ///
    /// # Errors
    /// As [`Session::run_events`].
    pub fn record_batches(
        &mut self,
        source: &mut EventSource,
        statistics: impl Fn() -> Vec<Statistics>,
        mut on_batch: impl FnMut(&mut Self, &[&[u8]]),
    ) -> Result<()> {
        self.record(source, statistics, |session, source, wakeup| {
            source.drain_batches(FRAMES, wakeup, |records| on_batch(session, records))
        })
    }

    /// Handles events as [`Session::run_events`] does, and begins a new file at the end of each period
    /// of `-G`.
    ///
    /// # Errors
    /// As [`Session::run_events`].
    pub fn record_events(
        &mut self,
        source: &mut EventSource,
        statistics: impl Fn() -> Vec<Statistics>,
        mut on_event: impl FnMut(&mut Self, &[u8]),
    ) -> Result<()> {
        self.record(source, statistics, |session, source, wakeup| {
            source.drain(wakeup, |bytes| on_event(session, bytes))
        })
    }

    fn record(
        &mut self,
        source: &mut EventSource,
        statistics: impl Fn() -> Vec<Statistics>,
        mut some: impl FnMut(&mut Self, &mut EventSource, Wakeup) -> usize,
    ) -> Result<()> {
        loop {
            let due = self.recorder.as_ref().and_then(Recorder::due);
            if self.take(source, due, &mut some)? != Wake::Timer {
                return Ok(());
            }
            if self.recorder.as_ref().and_then(Recorder::due) != due {
                // A packet has ended the period already.
                continue;
            }
            let now = self.clock.now();
            if let Some(recorder) = &mut self.recorder
                && recorder.end_period(now)
            {
                recorder.rotate(&self.stop, now, &statistics());
            }
        }
    }

    /// The capability that the recording needs until its end, if any.
    ///
    /// # Errors
    /// Capabilities can't be set.
    pub fn recording_needs(&self) -> Result<Option<Capability>> {
        let directory = self.recorder.as_ref().and_then(Recorder::directory);
        let Some(directory) = directory else {
            return Ok(None);
        };
        let may = AccessFlags::W_OK | AccessFlags::X_OK;
        let can_create = || faccessat(AT_FDCWD, directory, may, AtFlags::AT_EACCESS).is_ok();
        privileges::needed_for(Capability::CAP_DAC_OVERRIDE, can_create)
    }

    /// The number of the interface in the capture file that has this link type; `None` if there can
    /// be none, which ends the run with an error.
    pub fn recorded_interface(&mut self, link_type: u16) -> Option<u32> {
        let recorder = self.recorder.as_mut()?;
        recorder.interface_of(&self.stop, link_type)
    }

    /// Writes the end of the capture file.
    pub fn end_recording(&mut self, statistics: &[Statistics]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.finish(&self.stop, self.clock.now(), statistics);
        }
    }

    pub(super) fn recording(&self) -> Recording<'_> {
        match &self.recorder {
            Some(recorder) => match recorder.directory() {
                Some(directory) => Recording::Rotated(directory),
                None => Recording::Opened,
            },
            None => Recording::No,
        }
    }
}
