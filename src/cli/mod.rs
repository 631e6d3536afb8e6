//! The command line: commands, and their options and values.

mod accept_trace;
mod check;
mod connect_trace;
mod exporter;
mod flows;
pub(crate) mod interface_hints;
mod listeners;
mod loss_trace;
pub(crate) mod manual;
mod output;
mod packets;
mod port_monitor;
mod processes;
mod syn_count;
pub(crate) mod usage;
pub(crate) mod values;

use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand, ValueHint};

pub use self::accept_trace::{AcceptBy, AcceptHistogram, AcceptTraceArgs};
pub use self::check::CheckArgs;
pub use self::connect_trace::{BackendChoice, ConnectBy, ConnectTraceArgs};
pub use self::exporter::{CollectorChoice, ExporterArgs};
pub use self::flows::{FlowHistogram, FlowsArgs};
pub use self::listeners::ListenersArgs;
pub use self::loss_trace::{LossByChoice, LossKindChoice, LossTraceArgs};
use self::manual::Page;
pub use self::output::{BufferArgs, BufferChoice, OutputFormat, RunArgs};
pub use self::packets::{DirectionChoice, PacketArgs, RecordingArgs};
pub use self::port_monitor::PortMonitorArgs;
pub use self::syn_count::{CountMode, SynCountArgs};
use crate::failure::Failure;

/// Shows TCP connections from inside the kernel, and why they fail.
///
/// It only observes: it never drops or changes a packet, and when it ends it leaves nothing behind
/// (before Linux 6.6, a killed run leaves a TC filter, which the next run removes).
#[derive(Debug, Parser)]
#[command(
    name = "tcpinspect",
    version,
    max_term_width = 100,
    propagate_version = true
)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The definition of the command line, with examples and explanations in its help.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    let names: Vec<_> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, with_page);
    }
    with_page(command)
}

fn with_page(command: clap::Command) -> clap::Command {
    match Page::of(command.get_name()) {
        Some(page) => command
            .after_help(page.examples())
            .after_long_help(page.help()),
        None => command,
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count incoming SYNs per interval, in total and by source, destination or port
    SynCount(SynCountArgs),
    /// Print a line for each matching packet, by default for each connection attempt (SYN)
    PortMonitor(PortMonitorArgs),
    /// Print outgoing connection attempts: process, outcome, error and latency
    ConnectTrace(ConnectTraceArgs),
    /// Print incoming connection attempts: who accepts each of them, or why it fails
    AcceptTrace(AcceptTraceArgs),
    /// Show what this kernel and your privileges allow, and what each command would use
    Check(CheckArgs),
    /// Show TCP connections: a live table on a terminal, else a line for each
    Flows(FlowsArgs),
    /// Print each TCP segment that is dropped or retransmitted, and each reset, with the reason
    LossTrace(LossTraceArgs),
    /// Show listening sockets: process, accept queue, half-open connections and drops
    Listeners(ListenersArgs),
    /// Serve counts and histograms to Prometheus (OpenMetrics over HTTP)
    Exporter(ExporterArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page, in roff
    Man {
        /// The command that the page is about; without it, the program as a whole
        command: Option<String>,
        /// Write all pages into this directory instead
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "command")]
        dir: Option<PathBuf>,
    },
}

impl Command {
    /// Refuses options that contradict each other.
    fn check(&mut self) -> Result<(), Failure> {
        match self {
            Self::SynCount(args) => args.run.output.check().and_then(|()| args.packets.check()),
            Self::PortMonitor(args) => {
                args.run.output.check()?;
                args.recording
                    .check(&args.run.output, args.packets.read.is_some())?;
                args.packets.check()
            }
            Self::Flows(args) => args.run.output.check().and_then(|()| args.packets.check()),
            Self::ConnectTrace(args) => {
                args.run.output.check()?;
                args.addresses.filter().check_families()
            }
            Self::LossTrace(args) => {
                args.run.output.check()?;
                args.check_recording()?;
                args.addresses.filter().check_families()
            }
            Self::AcceptTrace(args) => {
                args.run.output.check()?;
                args.check()
            }
            Self::Check(args) => args.output.check(),
            Self::Listeners(args) => args.run.output.check(),
            Self::Exporter(_) | Self::Completions { .. } | Self::Man { .. } => Ok(()),
        }
    }
}

/// The arguments of a command as if no option had been given.
///
/// # Errors
/// There is an option that has to be given.
pub fn defaults<T: Args>() -> anyhow::Result<T> {
    let command = T::augment_args(clap::Command::new("tcpinspect"));
    Ok(T::from_arg_matches(
        &command.try_get_matches_from(["tcpinspect"])?,
    )?)
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::connect_trace::ConnectHistogram;
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn names_in_the_output_are_those_of_the_command_line() {
        fn check<T: ValueEnum>(name: impl Fn(T) -> &'static str) {
            for value in T::value_variants() {
                let on_command_line = value.to_possible_value().unwrap();
                assert_eq!(name(value.clone()), on_command_line.get_name());
            }
        }
        check(AcceptBy::name);
        check(AcceptHistogram::name);
        check(CollectorChoice::name);
        check(ConnectHistogram::name);
        check(FlowHistogram::name);
        check(LossByChoice::name);
    }

    #[test]
    fn lists_may_be_repeated_and_joined() {
        let cli = Cli::try_parse_from([
            "tcpinspect",
            "port-monitor",
            "-p",
            "80,8000-8010",
            "-p",
            "443",
            "eth0",
        ])
        .unwrap();
        let Command::PortMonitor(args) = cli.command else {
            panic!("not port-monitor")
        };
        assert_eq!(args.packets.addresses.port.len(), 3);
        assert_eq!(args.packets.interfaces(), ["eth0"]);
    }
}
