//! Shows from inside the kernel who connects, what becomes of each TCP connection, and which process
//! it belongs to.
//!
//! The binary is the product. The library exists so that tests can reach its parts.

pub mod attach;
pub mod capture;
pub mod cli;
mod cmd;
pub mod domain;
pub mod failure;
pub mod filter;
pub mod host;
mod notice;
pub mod output;
mod run;
pub mod skel;
pub mod stop;
mod sys;
mod view;

use std::ffi::OsString;

use failure::{Exit, Failure};

/// Runs the command line and returns the exit status. Errors are printed here, and only here.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Exit {
    sys::share_arena();
    let args: Vec<_> = args.into_iter().collect();
    if let Some(rest) = args
        .get(1..)
        .filter(|rest| cmd::extcap::is_called_by_wireshark(rest))
    {
        return exit(cmd::extcap::run(rest));
    }
    let command = match cli::usage::parse(args) {
        Ok(command) => command,
        Err(result) => return exit(result),
    };
    exit(cmd::run(command))
}

fn exit(result: Result<Exit, Failure>) -> Exit {
    result.unwrap_or_else(|failure| {
        print_failure(&failure);
        failure.exit
    })
}

fn print_failure(failure: &Failure) {
    notice::say(&format!("tcpinspect: {:#}", failure.error));
    for line in &failure.excerpt {
        notice::say(line);
    }
    if let Some(hint) = &failure.hint {
        notice::say(&format!("hint: {hint}"));
    }
}
