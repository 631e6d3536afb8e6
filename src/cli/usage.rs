//! Parses the command line, and explains what is wrong with it.

use std::error::Error;
use std::ffi::OsString;

use clap::FromArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use nix::net::if_::if_nametoindex;

use super::interface_hints::{plain_interface_hint, words_as_options};
use super::{Cli, Command};
use crate::failure::{Exit, Failure, Refusal};
use crate::host::interfaces::ANY;
use crate::output::stdout::printed;

/// Parses the command line.
///
/// # Errors
/// Nothing is to be run: help was printed, or the command line is wrong.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Result<Exit, Failure>> {
    let args: Vec<_> = args.into_iter().collect();
    let mut command = super::command()
        .try_get_matches_from(&args)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| explain(&error, &args))?
        .command;
    command.check().map_err(Err)?;
    Ok(command)
}

/// What is wrong, from the text of an error: clap writes "error: what", sometimes more lines about it,
/// then "tip:" and "Usage:".
pub fn what_is_wrong(text: &str) -> String {
    text.split("\n\n")
        .next()
        .unwrap_or_default()
        .trim_start_matches("error: ")
        .lines()
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Help goes to stdout and is not an error. A wrong command line is reported in two lines.
fn explain(error: &clap::Error, args: &[OsString]) -> Result<Exit, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => return printed(error.print()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return Ok(Exit::Usage);
        }
        _ => {}
    }
    let text = error.to_string();
    let what = what_is_wrong(&text);
    let words: Vec<_> = args
        .iter()
        .skip(1)
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let program = super::command();
    let given = Given {
        command: words.first().and_then(|name| program.find_subcommand(name)),
        words: &words,
    };
    let hint = own_hint(error)
        .or_else(|| match error.kind() {
            ErrorKind::UnknownArgument => given.unknown(&context(error, ContextKind::InvalidArg)?),
            // clap reports a missing value as InvalidValue.
            ErrorKind::ValueValidation => given.wrong_value(
                &context(error, ContextKind::InvalidArg)?,
                &context(error, ContextKind::InvalidValue)?,
            ),
            ErrorKind::InvalidSubcommand
                if is_interface(&context(error, ContextKind::InvalidSubcommand)?) =>
            {
                Some(given.command_first())
            }
            ErrorKind::ArgumentConflict => Some(
                given
                    .expression_hint(&context(error, ContextKind::InvalidArg)?)
                    .unwrap_or_else(|| "leave one of them out".to_owned()),
            ),
            _ => None,
        })
        .or_else(|| tip(&text))
        .unwrap_or_else(|| given.where_help_is());
    Err(Failure::usage(what).hint(hint))
}

fn is_interface(name: &str) -> bool {
    name == ANY || if_nametoindex(name).is_ok()
}

fn context(error: &clap::Error, kind: ContextKind) -> Option<String> {
    match error.get(kind)? {
        ContextValue::String(text) => Some(text.clone()),
        _ => None,
    }
}

/// The hint of a value that was refused.
fn own_hint(error: &clap::Error) -> Option<String> {
    error.source()?.downcast_ref::<Refusal>()?.hint.clone()
}

/// A wrong command line.
struct Given<'a> {
    /// The subcommand that it begins with, if any.
    command: Option<&'a clap::Command>,
    /// All arguments.
    words: &'a [String],
}

impl Given<'_> {
    fn takes(&self, option: &str) -> bool {
        self.command.is_some_and(|command| {
            command
                .get_arguments()
                .any(|argument| argument.get_long() == Some(option))
        })
    }

    fn command_first(&self) -> String {
        let words = self.words.join(" ");
        format!("a command comes first, for example: tcpinspect flows {words}")
    }

    /// An option or a word that the command does not take.
    fn unknown(&self, argument: &str) -> Option<String> {
        let Some(command) = self.command else {
            return Some(self.command_first());
        };
        let hint = match argument {
            "-A" | "-X" => {
                "port-monitor shows the payload with -x, and more of it with --payload-bytes N"
            }
            "-e" => "MAC addresses and VLAN tags are in --json",
            "-S" => "sequence numbers are always absolute",
            "-t" | "-n" | "-l" | "-a" if command.get_name() == "listeners" => {
                "listeners shows all TCP listeners, and no names of hosts; -1 shows them once"
            }
            "port" | "src" | "sport" if command.get_name() == "listeners" => {
                "-p PORT chooses listeners by port"
            }
            "-t" => "--time shows times as local, iso, unix or delta",
            "--drop" if self.takes("only") => "--only drop",
            "-Q" if self.takes("direction") => "--direction chooses ingress, egress or both",
            "--failed" => {
                "only connect-trace and accept-trace have it; flows shows failed connections in CONN"
            }
            "--pid" | "--uid" | "--comm" if self.takes("port") => {
                "a packet has no process yet when this command sees it; connect-trace shows processes"
            }
            "-i" | "--interface" if self.takes("port") => {
                return Some(takes_no_interface(command));
            }
            word if !word.starts_with('-') && self.takes("port") => {
                let at = self.words.iter().position(|it| it == word)?;
                // Values of options are not part of it.
                let words = self.words[at..].iter();
                let words: Vec<_> = words
                    .take_while(|it| !it.starts_with('-'))
                    .cloned()
                    .collect();
                return plain_interface_hint(&words)
                    .or_else(|| {
                        // The kernel cuts the name of a process to 15 bytes.
                        let may_be_process =
                            self.takes("comm") && word.len() < 16 && if_nametoindex(word).is_err();
                        let name = command.get_name();
                        may_be_process
                            .then(|| format!("for a process: tcpinspect {name} --comm {word}"))
                    })
                    .or_else(|| Some(takes_no_interface(command)));
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }

    /// For interfaces that were given both as `-i` and as words: the words may be a filter expression.
    fn expression_hint(&self, argument: &str) -> Option<String> {
        if !argument.starts_with("--interface") && !argument.starts_with("[IFACE]") {
            return None;
        }
        words_as_options(self.words)
    }

    /// A value that an option does not take.
    fn wrong_value(&self, option: &str, value: &str) -> Option<String> {
        if value.is_empty() {
            return Some(
                "an item of the list is empty; a list with spaces after its commas needs quotes: \
                 '80, 443'"
                    .to_owned(),
            );
        }
        let is_name = value.starts_with(|c: char| c.is_ascii_alphabetic());
        (option.contains("port") && is_name && self.takes("comm")).then(|| {
            format!("this option is about ports; to choose a process by its name: --comm {value}")
        })
    }

    fn where_help_is(&self) -> String {
        match self.command {
            Some(command) => format!("see tcpinspect {} --help", command.get_name()),
            None => {
                let program = super::command();
                let names: Vec<_> = program
                    .get_subcommands()
                    .map(clap::Command::get_name)
                    .collect();
                format!("the commands are {}", names.join(", "))
            }
        }
    }
}

fn takes_no_interface(command: &clap::Command) -> String {
    let sockets = match command.get_name() {
        "listeners" => "the sockets of its network namespace, or of --netns",
        _ => "the sockets of the whole machine",
    };
    format!(
        "{} takes no interface: it sees {sockets}",
        command.get_name()
    )
}

/// clap's tip, unless it is to pass an unknown option as a value, which is never right here.
fn tip(text: &str) -> Option<String> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("tip: "))
        .find(|tip| !tip.contains(" as a value"))
        .map(str::to_owned)
}
