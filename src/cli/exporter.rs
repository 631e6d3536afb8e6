//! Options of `exporter`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::output::{OutputArgs, RunArgs, SandboxArgs, StopArgs, VerbosityArgs};
use super::packets::{NamedArgs, NetnsArgs};
use super::values;

/// The collectors of exporter, each of which uses the programs of another command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CollectorChoice {
    /// Incoming SYNs, by interface
    Syn,
    /// Accept queues and drops, by listening address and port
    Listeners,
    /// Incoming connection attempts, by fate and reason; times of handshakes and of accepts
    Accept,
    /// Dropped and retransmitted segments, and resets
    Loss,
    /// Outgoing connection attempts, by error; the time they take
    Connect,
    /// Connections: opened, closed, open now; bytes, durations and round-trip times
    Flows,
}

impl CollectorChoice {
    /// Its name on the command line and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Listeners => "listeners",
            Self::Accept => "accept",
            Self::Loss => "loss",
            Self::Connect => "connect",
            Self::Flows => "flows",
        }
    }
}

/// Arguments of `exporter`.
#[derive(Clone, Debug, Args)]
pub struct ExporterArgs {
    /// Address and port to serve on
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:9817",
        value_parser = values::listen,
        help_heading = "Server"
    )]
    pub listen: SocketAddr,
    /// How many listening addresses and ports get metrics of their own; the others share one set
    #[arg(
        long,
        value_name = "N",
        default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(..=10_000),
        help_heading = "Server"
    )]
    pub max_listeners: u32,
    /// What to collect [default: all that this kernel allows]
    #[arg(
        long,
        value_enum,
        value_name = "COLLECTORS",
        value_delimiter = ',',
        help_heading = "Source"
    )]
    pub collect: Vec<CollectorChoice>,
    /// The network namespace to watch.
    #[command(flatten)]
    pub netns: NetnsArgs,
    /// Interfaces, as an option.
    #[command(flatten)]
    named: NamedArgs,
    /// Interfaces to watch; `any` for all that are up [default: that of the default route, else `any`]
    #[arg(
        value_name = "IFACE",
        help_heading = "Source",
        conflicts_with = "interface"
    )]
    words: Vec<String>,
    /// Stop after this time: 90 (seconds), 500ms, 10m, 2h
    #[arg(short, long, value_name = "TIME", value_parser = values::time, help_heading = "Output")]
    duration: Option<Duration>,
    /// How much is printed to stderr.
    #[command(flatten)]
    verbosity: VerbosityArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    sandbox: SandboxArgs,
}

impl ExporterArgs {
    /// The names of the interfaces that are asked for.
    pub fn interfaces(&self) -> &[String] {
        self.named.or(&self.words)
    }

    /// The options that all commands have. Nothing is printed to stdout.
    pub fn run(&self) -> RunArgs {
        RunArgs {
            output: OutputArgs::text(self.verbosity),
            stop: StopArgs {
                duration: self.duration,
                ..StopArgs::default()
            },
            sandbox: self.sandbox,
        }
    }
}
