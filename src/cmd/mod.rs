//! The commands: a file or a directory for each, named like its program in `src/bpf` if it has one.

pub mod accept_trace;
pub mod check;
pub mod connect_trace;
pub mod exporter;
pub mod extcap;
pub mod flows;
pub mod generate;
pub mod listeners;
pub mod loss_trace;
pub mod port_monitor;
pub mod syn_count;

use self::port_monitor::PortMonitor;
use self::syn_count::SynCount;
use crate::cli::Command;
use crate::failure::{Exit, Failure};
use crate::run::packet;

/// Runs a command.
///
/// # Errors
/// The command fails.
pub fn run(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::SynCount(args) => packet::run(&SynCount::new(&args)?),
        Command::PortMonitor(args) => packet::run(&PortMonitor::new(&args)?),
        Command::ConnectTrace(args) => connect_trace::run(&args),
        Command::AcceptTrace(args) => accept_trace::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Flows(args) => flows::run(&args),
        Command::LossTrace(args) => loss_trace::run(&args),
        Command::Listeners(args) => listeners::run(&args),
        Command::Exporter(args) => exporter::run(&args),
        Command::Completions { shell } => generate::completions(shell),
        Command::Man { command, dir } => match dir {
            Some(dir) => generate::write_man_pages(&dir),
            None => generate::man(command.as_deref()),
        },
    }
}
