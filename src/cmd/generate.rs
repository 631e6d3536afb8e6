//! `completions` and `man`: made from the definition of the command line.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use clap_complete::Shell;
use clap_mangen::Man;
use roff::{Roff, bold, italic, roman};

use crate::cli;
use crate::cli::manual::{EXIT_STATUS, Page};
use crate::failure::{Exit, Failure};
use crate::output::stdout::print;

const PROGRAM: &str = "tcpinspect";

/// Prints a completion script.
///
/// # Errors
/// stdout can't be written.
pub fn completions(shell: Shell) -> Result<Exit, Failure> {
    print(&completion_script(shell))
}

/// The script for a shell, which also completes the names of interfaces. clap_complete can do that
/// only with its feature `unstable-dynamic`, which runs this program each time Tab is pressed.
fn completion_script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut cli::command(), PROGRAM, &mut script);
    let script = String::from_utf8_lossy(&script);
    match shell {
        Shell::Bash => bash_script(&script),
        Shell::Zsh => zsh_script(&script),
        Shell::Fish => fish_script(&script),
        _ => script.into_owned(),
    }
}

/// In bash the words after an option are completed in the arm of a `case`, and all others from
/// `opts`.
fn bash_script(script: &str) -> String {
    let mut all = "_tcpinspect_interfaces() {
    echo any
    command ls /sys/class/net 2>/dev/null
}

"
    .to_owned();
    let mut arm = "";
    for line in script.lines() {
        let word = line.trim();
        if let Some(option) = word.strip_suffix(')')
            && option.starts_with('-')
        {
            arm = option;
        }
        let values = match arm {
            "-i" | "--interface" => r#"compgen -W "$(_tcpinspect_interfaces)" -- "${cur}""#,
            "-p" | "--port" | "--sport" | "--any-port" => r#"compgen -A service -- "${cur}""#,
            "--uid" => r#"compgen -u -- "${cur}""#,
            _ => r#"compgen -f "${cur}""#,
        };
        let line = line.replace(r#"compgen -f "${cur}""#, values);
        let takes_interfaces = word.starts_with("opts=") && word.contains(" --interface ");
        match line.strip_suffix('"') {
            Some(options) if takes_interfaces => {
                let _ = writeln!(all, "{options} $(_tcpinspect_interfaces)\"");
            }
            _ => {
                let _ = writeln!(all, "{line}");
            }
        }
    }
    all
}

/// In zsh each option names the function that completes its values.
fn zsh_script(script: &str) -> String {
    let (first, rest) = script.split_once('\n').unwrap_or((script, ""));
    let mut all = format!(
        "{first}

_tcpinspect_interfaces() {{
    local -a names
    names=(any ${{(f)\"$(command ls /sys/class/net 2>/dev/null)\"}})
    compadd -a names
}}
"
    );
    for line in rest.lines() {
        let mut line = line
            .replace(":IFACE:_default", ":IFACE:_tcpinspect_interfaces")
            .replace(":PORTS:_default", ":PORTS:_ports")
            .replace(":PIDS:_default", ":PIDS:_pids");
        // Arguments that are not options: there may be several, also between options.
        if let Some(words) = line.strip_prefix("'*::words -- ") {
            line = format!(
                "'*:interface -- {}",
                words.replace(":_default'", ":_tcpinspect_interfaces'")
            );
        }
        let _ = writeln!(all, "{line}");
    }
    all
}

/// In fish each line is about one option; arguments that are not options have no line.
fn fish_script(script: &str) -> String {
    const INTERFACES: &str = r#"-f -a "any (__fish_print_interfaces)""#;
    let mut all = String::new();
    for line in script.lines() {
        if line.contains(" -l interface ") {
            let _ = writeln!(all, "{line} {INTERFACES}");
            let (start, _) = line.split_once(" -s ").unwrap_or((line, ""));
            let _ = writeln!(all, "{start} {INTERFACES}");
        } else {
            let _ = writeln!(all, "{line}");
        }
    }
    all
}

/// Prints the manual page of a command, or of the program.
///
/// # Errors
/// There is no such command, or stdout can't be written.
pub fn man(name: Option<&str>) -> Result<Exit, Failure> {
    let program = built();
    let Some(name) = name else {
        return print(&man_page(&program, &program)?);
    };
    let mut named = subcommands(&program).filter(|sub| sub.get_name() == name);
    match named.next() {
        Some(command) => print(&man_page(&program, command)?),
        None => {
            let names: Vec<_> = subcommands(&program).map(clap::Command::get_name).collect();
            Err(Failure::usage(format!("no command '{name}'"))
                .hint(format!("the commands are {}", names.join(", "))))
        }
    }
}

/// Writes all manual pages into a directory.
///
/// # Errors
/// A page can't be written.
pub fn write_man_pages(dir: &Path) -> Result<Exit, Failure> {
    let program = built();
    for command in std::iter::once(&program).chain(subcommands(&program)) {
        let path = dir.join(format!("{}.1", page_name(command)));
        fs::write(&path, man_page(&program, command)?)
            .with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(Exit::Success)
}

fn built() -> clap::Command {
    let mut program = cli::command();
    program.build();
    program
}

/// The subcommands that have a manual page.
fn subcommands(program: &clap::Command) -> impl Iterator<Item = &clap::Command> {
    program
        .get_subcommands()
        .filter(|sub| sub.get_name() != "help")
}

fn page_name(command: &clap::Command) -> &str {
    command
        .get_display_name()
        .unwrap_or_else(|| command.get_name())
}

/// The manual page of the program, or of one of its commands.
fn man_page(program: &clap::Command, command: &clap::Command) -> Result<String> {
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage: ").to_owned();
    let version = program.get_version().unwrap_or_default();
    let man = Man::new(command.clone().override_usage(usage))
        .title(page_name(command).to_uppercase())
        // The same input must give the same page, on whichever day.
        .date(" ")
        .source(format!("{PROGRAM} {version}"))
        .manual(format!("{PROGRAM} manual"));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    let is_program = command.has_subcommands();
    if is_program {
        commands_section(program).to_writer(&mut page)?;
    }
    man.render_options_section(&mut page)?;
    explanations(command).to_writer(&mut page)?;
    see_also(program, command).to_writer(&mut page)?;
    String::from_utf8(page).context("a manual page is not UTF-8")
}

fn commands_section(program: &clap::Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["COMMANDS"]);
    for command in subcommands(program) {
        let about = command.get_about().map(ToString::to_string);
        term(&mut roff, command.get_name(), &about.unwrap_or_default());
    }
    roff
}

/// The text below the options in the help, and the exit statuses.
fn explanations(command: &clap::Command) -> Roff {
    let mut roff = Roff::new();
    let page = Page::of(command.get_name());
    let sections = page.map_or(&[][..], |page| page.sections);
    let own = sections.iter().filter(|(_, terms)| *terms != EXIT_STATUS);
    for (title, terms) in own {
        roff.control("SH", [title.to_uppercase().as_str()]);
        for (word, meaning) in *terms {
            term(&mut roff, word, meaning);
        }
    }
    roff.control("SH", ["EXIT STATUS"]);
    for (status, meaning) in EXIT_STATUS {
        term(&mut roff, status, meaning);
    }
    roff.control("SH", ["EXAMPLES"]);
    for (at, (line, purpose)) in page.into_iter().flat_map(|page| page.examples).enumerate() {
        if at > 0 {
            roff.control("PP", []);
        }
        roff.text([roman(format!("{purpose}:"))]);
        roff.control("PP", []);
        roff.control("RS", ["4"]);
        // Without this, roff would fill the lines.
        roff.control("EX", []);
        roff.text([roman(*line)]);
        roff.control("EE", []);
        roff.control("RE", []);
    }
    roff
}

fn term(roff: &mut Roff, word: &str, meaning: &str) {
    roff.control("TP", []);
    roff.text([bold(word)]);
    roff.text([roman(meaning)]);
}

fn see_also(program: &clap::Command, command: &clap::Command) -> Roff {
    let mut roff = Roff::new();
    roff.control("SH", ["SEE ALSO"]);
    let pages = std::iter::once(program).chain(subcommands(program));
    let names: Vec<_> = pages
        .map(page_name)
        .filter(|name| *name != page_name(command))
        .collect();
    for (at, name) in names.iter().enumerate() {
        let end = if at + 1 == names.len() { "(1)" } else { "(1)," };
        roff.text([italic(*name), roman(end)]);
    }
    roff
}
