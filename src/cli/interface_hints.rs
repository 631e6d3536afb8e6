//! Guesses what an argument that is not an interface was meant to be: a filter, an address, an
//! interval, a port.

use super::values;
use crate::filter::AddressRule;

/// Words that begin a filter expression of tcpdump, and hardly ever name an interface.
const FILTER_WORDS: [&str; 16] = [
    "port",
    "portrange",
    "host",
    "net",
    "src",
    "dst",
    "tcp",
    "ip",
    "ip6",
    "ether",
    "vlan",
    "less",
    "not",
    "and",
    "or",
    "(",
];

/// The beginning of hints for commands that filter by options only.
const NO_EXPRESSION: &str = "this command takes no filter expression";

/// A hint for names that are not interfaces: what was probably meant.
pub fn interface_hint(names: &[String]) -> Option<String> {
    // A filter may be one word, in quotes.
    let names: Vec<_> = names
        .iter()
        .flat_map(|name| name.split_whitespace().map(str::to_owned))
        .collect();
    if let Some(at) = names
        .iter()
        .position(|name| FILTER_WORDS.contains(&name.as_str()))
    {
        let (interfaces, words) = names.split_at(at);
        return Some(filter_hint(interfaces, words));
    }
    names.iter().find_map(|name| {
        if name.parse::<u16>().is_ok() {
            Some(format!(
                "{name} is not the name of an interface; give an interval as -I {name}, a port as \
                 -p {name}"
            ))
        } else if values::time(name).is_ok() {
            Some(format!(
                "give the interval as -I {name}; -i takes the name of an interface"
            ))
        } else if name.parse::<AddressRule>().is_ok() {
            Some(format!("give the address as --host {name}"))
        } else {
            None
        }
    })
}

/// A hint for names that are not interfaces, of a command that takes no filter expression.
pub fn plain_interface_hint(names: &[String]) -> Option<String> {
    words_as_options(names).or_else(|| interface_hint(names))
}

/// A hint for a command that takes no filter expression, if these words contain one: the options
/// that do the same.
pub(super) fn words_as_options(words: &[String]) -> Option<String> {
    let is_filter = |word: &String| {
        let first = word.split_whitespace().next();
        first.is_some_and(|first| FILTER_WORDS.contains(&first))
    };
    let at = words.iter().position(is_filter)?;
    option_hint(&words[at..]).or_else(|| {
        let options = "--host ADDRESS, -p PORT, --any-port PORT";
        Some(format!("{NO_EXPRESSION}: use {options}"))
    })
}

/// A hint for arguments that were parsed as a filter but are none: what was probably meant.
pub fn words_hint(interfaces: &[String], words: &[String]) -> Option<String> {
    if let Some(hint) = interface_hint(interfaces) {
        return Some(hint);
    }
    let first = words.first().filter(|_| !interfaces.is_empty())?;
    let is_name = first.chars().all(|c| c.is_ascii_alphanumeric());
    if !is_name || FILTER_WORDS.contains(&first.as_str()) {
        return None;
    }
    let interfaces = [interfaces, words].concat().join(",");
    Some(format!(
        "after -i, other arguments are a filter expression; give several interfaces as -i \
         {interfaces}"
    ))
}

/// A hint for a command that takes filter expressions: where to put these words of one.
fn filter_hint(interfaces: &[String], words: &[String]) -> String {
    let words = words.join(" ");
    if interfaces.is_empty() {
        return format!("give the filter expression after -f: -f '{words}'");
    }
    let interfaces = interfaces.join(",");
    format!("give the filter expression after -i IFACE: -i {interfaces} '{words}'")
}

/// A hint for a command that takes no filter expression: the option that does the same as these words
/// of one.
fn option_hint(words: &[String]) -> Option<String> {
    let words: Vec<_> = words.iter().flat_map(|it| it.split_whitespace()).collect();
    let words = match &words[..] {
        ["tcp" | "ip" | "ip6", rest @ ..] => rest,
        all => all,
    };
    let (side, words) = match words {
        [side @ ("src" | "dst"), rest @ ..] => (*side, rest),
        all => ("", all),
    };
    let (kind, value) = match words {
        [kind, value, ..] => (*kind, *value),
        [value] if !side.is_empty() => ("host", *value),
        _ => return None,
    };
    let option = match (side, kind) {
        ("src", "port" | "portrange") => "--sport",
        ("dst", "port" | "portrange") => "-p",
        (_, "port" | "portrange") => "--any-port",
        ("src", "host" | "net") => "--src",
        ("dst", "host" | "net") => "--dst",
        (_, "host" | "net") => "--host",
        _ => return None,
    };
    if ["--src", "--dst", "--host"].contains(&option)
        && let Err(refusal) = value.parse::<AddressRule>()
        && let Some(hint) = refusal.hint
    {
        return Some(format!("{NO_EXPRESSION}: use {option} ADDRESS; {hint}"));
    }
    Some(format!("{NO_EXPRESSION}: use {option} {value}"))
}
