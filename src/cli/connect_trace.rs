//! Options of `connect-trace`.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::output::{BufferArgs, RunArgs};
use super::packets::{AddressArgs, NetnsArgs};
use super::processes::ProcessArgs;
use super::values;

/// How connect-trace attaches to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The first of the following that works
    #[default]
    Auto,
    /// fentry and fexit
    Fentry,
    /// kprobe and kretprobe
    Kprobe,
    /// The tracepoint for changes of a socket's state; sees the fewest details
    Tracepoint,
}

/// The times of connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConnectHistogram {
    /// From the attempt until it is established
    Connect,
}

impl ConnectHistogram {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
        }
    }
}

/// The keys of `connect-trace --histogram --by`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConnectBy {
    /// Process that connects
    #[value(alias = "comm")]
    Process,
    /// Destination address
    #[value(alias = "dst")]
    Daddr,
    /// Destination port
    #[value(alias = "port")]
    Dport,
}

/// Arguments of `connect-trace`.
#[derive(Clone, Debug, Args)]
pub struct ConnectTraceArgs {
    /// How to attach to the kernel
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendChoice,
    /// Print only failures
    #[arg(long)]
    pub failed: bool,
    /// Also print incoming connections
    #[arg(long)]
    pub accept: bool,
    /// Also print the end of each connection
    #[arg(long)]
    pub close: bool,
    /// Instead of a line for each attempt, print totals at the end, by process and destination
    #[arg(long, conflicts_with_all = ["failed", "accept", "close", "count", "max_rate"])]
    pub summary: bool,
    /// Instead of a line for each attempt, show how long it took until connections were established
    #[arg(long, value_enum, value_name = "TIMES", conflicts_with_all = ["failed", "accept", "close", "summary", "count", "max_rate"])]
    pub histogram: Option<ConnectHistogram>,
    /// One histogram for each process, destination address or port
    #[arg(long, value_enum, value_name = "KEY", requires = "histogram")]
    pub by: Option<ConnectBy>,
    /// Time between two reports with --histogram [default: one report, at the end]
    #[arg(short = 'I', long, value_name = "TIME", value_parser = values::time, requires = "histogram")]
    pub interval: Option<Duration>,
    /// Print at most this many lines a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Processes and users.
    #[command(flatten)]
    pub processes: ProcessArgs,
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// The namespace of the connections.
    #[command(flatten)]
    pub netns: NetnsArgs,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Output, when to stop, and the sandbox.
    #[command(flatten)]
    pub run: RunArgs,
}
