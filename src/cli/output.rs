//! Options that all commands have: output, when to stop, the sandbox, the event buffer.

use std::time::Duration;

use clap::{ArgAction, Args, ValueEnum};

use super::values;
use crate::failure::Failure;
use crate::output::clock::TimeStyle;

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns for people, grep and awk
    #[default]
    Text,
    /// JSON Lines: one object per line
    Json,
}

/// Output, and how much is printed to stderr.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Format of the data on stdout [default: text]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<OutputFormat>,
    /// Short for --output json
    #[arg(long)]
    json: bool,
    /// How times are shown in the TIME column of text; the time zone is that of TZ
    #[arg(long, value_enum, default_value_t, value_name = "STYLE")]
    pub time: TimeStyle,
    /// Columns of text, in this order, by their names in the header: time,saddr,dport
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// How much is printed to stderr.
    #[command(flatten)]
    pub verbosity: VerbosityArgs,
}

impl OutputArgs {
    /// The format asked for, by whichever option.
    pub fn format(&self) -> OutputFormat {
        if self.json {
            OutputFormat::Json
        } else {
            self.output.unwrap_or_default()
        }
    }

    /// Text, with this much on stderr.
    pub(super) fn text(verbosity: VerbosityArgs) -> Self {
        Self {
            verbosity,
            ..Self::default()
        }
    }

    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.json && self.output == Some(OutputFormat::Text) {
            return Err(
                Failure::usage("--json and --output text contradict each other")
                    .hint("leave one of them out"),
            );
        }
        if self.format() == OutputFormat::Json && !self.columns.is_empty() {
            return Err(
                Failure::usage("--columns is for text, and the output is JSON")
                    .hint("choose keys with jq: tcpinspect ... --json | jq '{ts, saddr}'"),
            );
        }
        Ok(())
    }
}

/// How much is printed to stderr.
#[derive(Clone, Copy, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct VerbosityArgs {
    /// No `attached:` line, summary or notices on stderr; -qq: errors only
    #[arg(short, long, action = ArgAction::Count)]
    quiet: u8,
    /// More notices on stderr; -vv: also the logs of libbpf and of the verifier
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    verbose: u8,
    /// Does nothing: names are never looked up (for those used to tcpdump -n)
    #[arg(short = 'n', action = ArgAction::Count)]
    _numeric: u8,
}

impl VerbosityArgs {
    /// From -2 (`-qq`) to 2 (`-vv`), or beyond.
    pub fn level(self) -> i8 {
        let level = |count| i8::try_from(count).unwrap_or(i8::MAX);
        level(self.verbose).saturating_sub(level(self.quiet))
    }
}

/// When to stop.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct StopArgs {
    /// Stop after this time: 90 (seconds), 500ms, 10m, 2h
    #[arg(short, long, value_name = "TIME", value_parser = values::time)]
    pub duration: Option<Duration>,
    /// Stop after this many lines of data
    #[arg(short, long, value_name = "N", value_parser = values::count)]
    pub count: Option<u64>,
    /// Exit with status 3 if events were lost
    #[arg(long)]
    pub strict: bool,
}

/// Options of a run, which all commands have.
#[derive(Clone, Debug, Default, Args)]
pub struct RunArgs {
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// The sandbox after attaching.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct SandboxArgs {
    /// Set no seccomp filter after attaching; capabilities are still dropped
    #[arg(long, help_heading = "Sandbox")]
    pub no_sandbox: bool,
}

/// The event buffer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Event buffer")]
pub struct BufferArgs {
    /// Size of the event buffer: a power of two, in bytes, or with k, m or g [default: 4m;
    /// port-monitor -w: 32m]
    #[arg(long, value_name = "BYTES", value_parser = values::buffer_size)]
    buffer_size: Option<u32>,
    /// Ring buffer where the kernel has it, else a perf event array
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub buffer: BufferChoice,
}

impl BufferArgs {
    /// The size in bytes.
    pub fn size(&self) -> u32 {
        self.buffer_size.unwrap_or(4 << 20)
    }

    /// These options for a run that copies whole frames: its default buffer has room for those that come
    /// while the file system is busy.
    #[must_use]
    pub fn for_frames(&self) -> Self {
        Self {
            buffer_size: self.buffer_size.or(Some(32 << 20)),
            ..self.clone()
        }
    }
}

/// `--buffer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BufferChoice {
    /// Ring buffer where the kernel has it
    #[default]
    Auto,
    /// Ring buffer (Linux 5.8)
    Ring,
    /// Perf event array
    Perf,
}
