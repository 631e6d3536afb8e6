//! `completions` and `man`: made from the definition of the command line.

use std::io::Write;

use anyhow::Context;
use clap::CommandFactory;

use crate::cli::Cli;
use crate::failure::{Exit, Failure};

/// Prints a completion script.
///
/// # Errors
/// stdout can't be written.
pub fn completions(shell: clap_complete::Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "tcpinspect", &mut script);
    print(&script)
}

/// Prints the manual page: of the whole tool, then of each command.
///
/// # Errors
/// stdout can't be written.
pub fn man() -> Result<Exit, Failure> {
    let mut page = Vec::new();
    let mut command = Cli::command();
    command.build();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for sub in command
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
    {
        let man = clap_mangen::Man::new(sub.clone());
        writeln!(page, ".SH \"{}\"", sub.get_name().to_uppercase())?;
        man.render_description_section(&mut page)?;
        man.render_options_section(&mut page)?;
    }
    print(&page)
}

fn print(bytes: &[u8]) -> Result<Exit, Failure> {
    printed(std::io::stdout().write_all(bytes))
}

/// What became of printing to stdout. A reader that has gone has seen enough.
///
/// # Errors
/// stdout can't be written.
pub fn printed(outcome: std::io::Result<()>) -> Result<Exit, Failure> {
    // Rust keeps back what follows the last line break, and would be silent about its loss.
    match outcome.and_then(|()| std::io::stdout().flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::new(error))
                .context("failed to write to stdout")
                .map_err(Failure::from)
        }
        _ => Ok(Exit::Success),
    }
}
