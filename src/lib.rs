//! Shows incoming TCP from inside the kernel.
//!
//! The binary is the product; this library is there so that its tests reach the parts.

pub mod attach;
pub mod capture;
pub mod cli;
pub mod cmd;
pub mod events;
pub mod failure;
pub mod filter;
pub mod host;
pub mod load;
pub mod notice;
pub mod output;
pub mod record;
pub mod session;
pub mod skel;
pub mod stop;
pub mod tally;
pub mod view;

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

use cli::{Cli, Command};
use failure::{Exit, Failure};

/// Runs the command line and returns the exit status. Errors are printed here, and only here.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        Err(error) => return explain_usage(&error),
    };
    let result = match cli.command {
        Command::SynCount(args) => cmd::syn_count::run(&args),
        Command::PortMonitor(args) => cmd::port_monitor::run(&args),
        Command::ConnectTrace(args) => cmd::connect_trace::run(&args),
        Command::Check(args) => cmd::check::run(&args),
        Command::Flows(args) => cmd::flows::run(&args),
        Command::Completions { shell } => cmd::generate::completions(shell),
        Command::Man => cmd::generate::man(),
    };
    exit(result)
}

fn exit(result: Result<Exit, Failure>) -> Exit {
    result.unwrap_or_else(|failure| {
        print_failure(&failure);
        failure.exit
    })
}

fn print_failure(failure: &Failure) {
    notice::say(&format!("tcpinspect: {:#}", failure.error));
    if let Some(hint) = &failure.hint {
        notice::say(&format!("hint: {hint}"));
    }
}

/// Help goes to stdout and is no error; a wrong command line is told in two lines.
fn explain_usage(error: &clap::Error) -> Exit {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return exit(cmd::generate::printed(error.print()));
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return Exit::Usage;
        }
        _ => {}
    }
    let text = error.to_string();
    // clap writes "error: what", perhaps lines that belong to it, then "tip:" and "Usage:".
    let what = text
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ");
    let tip = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("tip: "));
    let hint = match tip {
        Some(tip) => tip.to_owned(),
        None => "--help shows the options and what they take".to_owned(),
    };
    print_failure(&Failure::usage(what).hint(hint));
    Exit::Usage
}
