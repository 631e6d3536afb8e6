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
        self.ended.unwrap_or(ExitReason::EndOfFile)
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
        if summary.lost > 0 {
            let hint = "a larger --buffer-size, a narrower filter or a faster reader loses less";
            self.notices
                .warning(&format!("{} events were lost; {hint}", summary.lost));
            if self.strict {
                return Ok(Exit::Lost);
            }
        }
        Ok(Exit::Success)
    }

    /// The summary of a run, from the counters of the BPF programs and of this process.
    pub fn summary(
        &self,
        command: &'static str,
        matched: u64,
        mut lost: u64,
        mut suppressed: u64,
    ) -> Summary {
        let (written, stranded) = match &self.recorder {
            Some(recorder) => (recorder.written(), recorder.stranded()),
            None => (self.sink.written(), self.sink.stranded()),
        };
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
