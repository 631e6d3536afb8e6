//! Options of `loss-trace`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::output::{BufferArgs, RunArgs};
use super::packets::{AddressArgs, NamedArgs, NetnsArgs, RecordingArgs};
use super::values;
use crate::failure::Failure;

/// `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossKindChoice {
    /// Segments that the kernel dropped
    Drop,
    /// Segments that this machine retransmitted
    Retransmit,
    /// Resets, sent and received
    Reset,
}

/// The keys of `loss-trace --by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossByChoice {
    /// Reason of the drop, retransmission or reset
    Reason,
    /// Kernel function that dropped the segment
    Place,
    /// Source address
    #[value(alias = "src")]
    Saddr,
    /// Destination port
    #[value(alias = "port")]
    Dport,
    /// Process that has the socket open
    Comm,
}

impl LossByChoice {
    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reason => "reason",
            Self::Place => "place",
            Self::Saddr => "saddr",
            Self::Dport => "dport",
            Self::Comm => "comm",
        }
    }
}

/// Arguments of `loss-trace`.
#[derive(Clone, Debug, Args)]
pub struct LossTraceArgs {
    /// Print only these events
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    pub only: Vec<LossKindChoice>,
    /// Instead of a line for each event, count them in the kernel
    #[arg(long, value_enum, value_name = "KEY", conflicts_with_all = ["max_rate", "write"])]
    pub by: Option<LossByChoice>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by", value_parser = values::top)]
    pub top: usize,
    /// Time between two reports of --by
    #[arg(short = 'I', long, value_name = "TIME", default_value = "2s", value_parser = values::time, requires = "by")]
    pub interval: Duration,
    /// Print at most this many lines a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Print only events with these reasons, as they are shown: no_socket,netfilter_drop
    #[arg(long, value_name = "REASONS", value_delimiter = ',', value_parser = values::reason)]
    pub reason: Vec<String>,
    /// Also print drops that lose nothing: queues of closed sockets, copies for packet sockets
    #[arg(long)]
    pub all: bool,
    /// A capture file of dropped segments in place of lines.
    #[command(flatten)]
    pub recording: RecordingArgs,
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// The network namespace to watch.
    #[command(flatten)]
    pub netns: NetnsArgs,
    /// Interfaces, as an option.
    #[command(flatten)]
    named: NamedArgs,
    /// Interfaces of this network namespace to watch [default: all, of all namespaces; silent drops of
    /// listeners, such as accept_queue_full, are found only in this one]
    #[arg(
        value_name = "IFACE",
        help_heading = "Source",
        conflicts_with = "interface"
    )]
    words: Vec<String>,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Output, when to stop, and the sandbox.
    #[command(flatten)]
    pub run: RunArgs,
}

impl LossTraceArgs {
    pub(super) fn check_recording(&self) -> Result<(), Failure> {
        self.recording.check(&self.run.output, false)?;
        let is_only_drops = self.only.iter().all(|kind| *kind == LossKindChoice::Drop);
        if self.recording.write.is_some() && !is_only_drops {
            return Err(Failure::usage(
                "-w writes dropped segments, and --only asks for other events",
            )
            .hint("use --only drop, or leave it out"));
        }
        Ok(())
    }

    /// The names of the interfaces that are asked for.
    pub fn interfaces(&self) -> &[String] {
        self.named.or(&self.words)
    }
}
