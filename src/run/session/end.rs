//! The end of a run: its summary, its errors and its exit status.

use anyhow::{Result, anyhow};

use super::Session;
use crate::capture::recorder::Recorder;
use crate::cli::OutputFormat;
use crate::failure::{Exit, Failure};
use crate::output::summary::Summary;
use crate::stop::ExitReason;

impl Session {
    /// Why the run ended.
    pub fn exit_reason(&self) -> ExitReason {
        match self.output_ended() {
            // The last packets or lines may have been refused after the run had ended.
            Some(ExitReason::Error) => ExitReason::Error,
            _ => self.ended.unwrap_or(ExitReason::EndOfFile),
        }
    }

    /// Writes the summary, and returns the exit status.
    ///
    /// # Errors
    /// The run was ended by an error.
    pub fn finish(&mut self, summary: &Summary) -> Result<Exit, Failure> {
        let error = self.recorder.as_mut().and_then(Recorder::take_error);
        let Self {
            stop, sink, clock, ..
        } = self;
        match self.format {
            OutputFormat::Json => {
                let now = clock.now();
                let written = sink.extra(stop, |out| summary.json(out, clock, now));
                if !written && sink.ended() != Some(ExitReason::ClosedPipe) {
                    self.notices.status(&summary.text());
                    self.notices.result(&summary.report_text());
                }
            }
            OutputFormat::Text => {
                self.notices.status(&summary.text());
                self.notices.result(&summary.report_text());
            }
        }
        if let Some(error) = error.or_else(|| sink.take_error()) {
            return Err(error.into());
        }
        if self.ended == Some(ExitReason::InterfaceGone) {
            return Err(anyhow!("the interface went away").into());
        }
        if let Some(hook) = self.detached.take() {
            return Err(Failure::from(anyhow!(
                "{hook} was detached: another process has removed or replaced the program"
            ))
            .hint("traffic since then is not in the counts; start again"));
        }
        let missed = summary.lost.saturating_sub(self.unread());
        if missed > 0 {
            let hint = "a larger --buffer-size, a narrower filter or a faster reader loses less";
            self.notices
                .warning(&format!("{missed} events were lost; {hint}"));
        }
        if summary.lost > 0 && self.strict {
            return Ok(Exit::Lost);
        }
        Ok(Exit::Success)
    }

    /// Events that could not be written because the reader of the output has gone. They are lost, but
    /// need no warning: Wireshark closes the pipe at the end of each capture.
    fn unread(&self) -> u64 {
        if self.output_ended() != Some(ExitReason::ClosedPipe) {
            return 0;
        }
        let (_, stranded) = self.written_and_stranded();
        stranded + self.late
    }

    fn written_and_stranded(&self) -> (u64, u64) {
        match &self.recorder {
            Some(recorder) => (recorder.written(), recorder.stranded()),
            None => (self.sink.written(), self.sink.stranded()),
        }
    }

    /// The summary of a run, from the counters of the BPF programs and of this process.
    pub fn summary(
        &self,
        command: &'static str,
        matched: u64,
        mut lost: u64,
        mut suppressed: u64,
    ) -> Summary {
        let (written, stranded) = self.written_and_stranded();
        lost += self.broken + stranded;
        // Records after the last line of `--count`, or the last file of -W, are suppressed, not lost.
        if matches!(
            self.output_ended(),
            Some(ExitReason::Count | ExitReason::Done)
        ) {
            suppressed += self.late;
        } else {
            lost += self.late;
        }
        Summary {
            command,
            duration_s: self
                .lasted
                .unwrap_or_else(|| self.stop.elapsed())
                .as_secs_f64(),
            matched,
            emitted: written,
            lost,
            suppressed,
            exit_reason: self.exit_reason(),
            packets: None,
            syn_total: None,
            untracked: None,
            pending: None,
            flows: None,
            attempts: None,
            report: None,
            no_events: None,
        }
    }
}
