//! The filter that the user types above the table of flows: either an expression as in tcpdump about
//! addresses and ports, or words that a flow must contain. Comparisons such as `dport=443` or
//! `retrans>0` can be added to both.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::IpNet;

use crate::filter::expr::{End, Expression};

/// A typed filter.
#[derive(Clone, Debug, Default)]
pub struct TypedFilter {
    terms: Vec<Term>,
    expression: Option<Expression>,
    /// The first part that is not complete, perhaps because it is still being typed.
    pub unfinished: Option<String>,
}

#[derive(Clone, Debug)]
struct Term {
    is_negated: bool,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    /// Text that some part of the row must contain, in lower case.
    Text(String),
    /// Text that one field must contain.
    Word(Word, String),
    Address(FilteredEnd, IpNet),
    Number(Number, Compare, Option<f64>),
}

/// A text field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    Comm,
    State,
    Conn,
    Name,
}

/// Which end of a flow must have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilteredEnd {
    Source,
    Destination,
    Either,
}

/// A numeric field. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    Sport,
    Dport,
    Port,
    Pid,
    Uid,
    Packets,
    Bytes,
    PacketRate,
    ByteRate,
    Retransmits,
    RoundTrip,
    Handshake,
    Age,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compare {
    Equal,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

/// A row that can be filtered.
pub trait Fields {
    /// All text of the row, in lower case.
    fn text(&self) -> String;
    /// A text field.
    fn word(&self, word: Word) -> String;
    /// Address and port of the initiator and of the responder.
    fn ends(&self) -> [End; 2];
    /// The values of a numeric field: none if unknown, two for the ports of both ends.
    fn numbers(&self, number: Number) -> [Option<f64>; 2];
}

/// The names of the fields, as they are typed.
const WORDS: [(&str, Word); 4] = [
    ("comm", Word::Comm),
    ("state", Word::State),
    ("conn", Word::Conn),
    ("name", Word::Name),
];

const ENDS: [(&str, FilteredEnd); 3] = [
    ("src", FilteredEnd::Source),
    ("dst", FilteredEnd::Destination),
    ("host", FilteredEnd::Either),
];

const NUMBERS: [(&str, Number); 13] = [
    ("sport", Number::Sport),
    ("dport", Number::Dport),
    ("port", Number::Port),
    ("pid", Number::Pid),
    ("uid", Number::Uid),
    ("packets", Number::Packets),
    ("bytes", Number::Bytes),
    ("pps", Number::PacketRate),
    ("bps", Number::ByteRate),
    ("retrans", Number::Retransmits),
    ("rtt", Number::RoundTrip),
    ("handshake", Number::Handshake),
    ("age", Number::Age),
];

/// The names of all fields, for the help.
pub fn field_names() -> String {
    let names = ENDS.iter().map(|(name, _)| *name);
    let names = names.chain(NUMBERS.iter().map(|(name, _)| *name));
    let names = names.chain(WORDS.iter().map(|(name, _)| *name));
    names.collect::<Vec<_>>().join(" ")
}

impl TypedFilter {
    /// Parses what was typed. An incomplete part is left out, and does not hide any row.
    pub fn parse(typed: &str) -> Self {
        let mut filter = Self::default();
        let typed = match is_expression(typed) {
            true => filter.take_expression(typed),
            false => typed.to_owned(),
        };
        for word in typed.split_whitespace() {
            let (is_negated, positive) = match word.strip_prefix('!') {
                Some(rest) => (true, rest),
                None => (false, word),
            };
            match parse_test(positive) {
                Ok(Some((flip, test))) => filter.terms.push(Term {
                    is_negated: is_negated != flip,
                    test,
                }),
                Ok(None) => {}
                Err(()) => {
                    filter.unfinished.get_or_insert_with(|| word.to_owned());
                }
            }
        }
        filter
    }

    /// Parses the expression without the comparisons among its words, which it returns. They may have
    /// `and` before them.
    fn take_expression(&mut self, typed: &str) -> String {
        let mut expression = Vec::new();
        let mut comparisons = Vec::new();
        for word in typed.split_whitespace() {
            if !is_comparison(word) {
                expression.push(word);
                continue;
            }
            comparisons.push(word);
            if matches!(expression.last(), Some(&("and" | "&&"))) {
                expression.pop();
            }
        }
        let expression = expression.join(" ");
        // Only an expression about nothing but addresses and ports can be judged. A trial with any
        // pair of ends shows whether this one can.
        let ends = [(Ipv4Addr::UNSPECIFIED.into(), 0); 2];
        match Expression::new(&expression) {
            Ok(read) if read.judge(ends).is_some() => self.expression = Some(read),
            _ => self.unfinished = Some(expression),
        }
        comparisons.join(" ")
    }

    /// Whether a row matches.
    pub fn passes(&self, fields: &impl Fields) -> bool {
        let expression = self.expression.as_ref();
        expression.is_none_or(|it| it.judge(fields.ends()).unwrap_or(true))
            && self
                .terms
                .iter()
                .all(|term| term.test.passes(fields) != term.is_negated)
    }
}

fn is_comparison(word: &str) -> bool {
    let test = parse_test(word.trim_start_matches('!'));
    matches!(test, Ok(Some((_, test))) if !matches!(test, Test::Text(_)))
}

/// Whether the first word that is not a comparison begins an expression as in tcpdump.
fn is_expression(typed: &str) -> bool {
    const BEGINNINGS: [&str; 10] = [
        "host",
        "net",
        "port",
        "portrange",
        "src",
        "dst",
        "ip",
        "ip6",
        "tcp",
        "not",
    ];
    let mut words = typed.split_whitespace();
    let first = words.find(|word| !is_comparison(word)).unwrap_or_default();
    let name = first.trim_start_matches('(').split('[').next();
    name.is_some_and(|name| BEGINNINGS.contains(&name))
}

fn find<T: Copy>(table: &[(&str, T)], name: &str) -> Option<T> {
    let found = table.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| *value)
}

/// Parses a test; the flag is set if it has to be negated, as for `!=`. `None` for an empty word.
fn parse_test(word: &str) -> Result<Option<(bool, Test)>, ()> {
    let word = word.to_lowercase();
    let text = |word: String| Ok((!word.is_empty()).then_some((false, Test::Text(word))));
    let Some(at) = word.find(['=', '<', '>', '!']) else {
        return text(word);
    };
    let name = &word[..at];
    let (flip, compare, value) = match &word[at..] {
        rest if rest.starts_with(">=") => (false, Compare::MoreOrEqual, &rest[2..]),
        rest if rest.starts_with("<=") => (false, Compare::LessOrEqual, &rest[2..]),
        rest if rest.starts_with("!=") => (true, Compare::Equal, &rest[2..]),
        rest if rest.starts_with('>') => (false, Compare::More, &rest[1..]),
        rest if rest.starts_with('<') => (false, Compare::Less, &rest[1..]),
        rest if rest.starts_with('=') => (false, Compare::Equal, &rest[1..]),
        _ => return text(word),
    };
    let test = if let Some(number) = find(&NUMBERS, name) {
        let value = match value {
            "-" => None,
            value => Some(parse_number(value).ok_or(())?),
        };
        Test::Number(number, compare, value)
    } else if let Some(side) = find(&ENDS, name) {
        let net = value.parse::<IpNet>();
        let net = net.or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
        Test::Address(side, net.map_err(|_| ())?)
    } else if let Some(field) = find(&WORDS, name) {
        Test::Word(field, value.to_owned())
    } else {
        return text(word);
    };
    let has_order = matches!(test, Test::Number(..));
    if compare != Compare::Equal && !has_order {
        return Err(());
    }
    Ok(Some((flip, test)))
}

/// Parses a number such as `10k`, or a time with its unit, which becomes nanoseconds.
fn parse_number(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 8] = [
        ("us", 1e3),
        ("ms", 1e6),
        ("s", 1e9),
        ("min", 6e10),
        ("h", 3.6e12),
        ("k", 1e3),
        ("m", 1e6),
        ("g", 1e9),
    ];
    let unit = text.find(|letter: char| letter.is_ascii_alphabetic());
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let factor = match unit {
        "" => 1.0,
        unit => find(&UNITS, unit)?,
    };
    let number = number.parse::<f64>().ok()?;
    Some(number * factor)
}

impl Test {
    fn passes(&self, fields: &impl Fields) -> bool {
        match self {
            Self::Text(text) => fields.text().contains(text),
            Self::Word(word, text) => fields.word(*word).to_lowercase().contains(text),
            Self::Address(side, net) => {
                let [source, destination] = fields.ends().map(|(addr, _)| net.contains(&addr));
                match side {
                    FilteredEnd::Source => source,
                    FilteredEnd::Destination => destination,
                    FilteredEnd::Either => source || destination,
                }
            }
            Self::Number(number, _, None) => fields.numbers(*number) == [None; 2],
            Self::Number(number, compare, Some(value)) => {
                let found = fields.numbers(*number);
                found.into_iter().flatten().any(|it| match compare {
                    Compare::Equal => it == *value,
                    Compare::Less => it < *value,
                    Compare::LessOrEqual => it <= *value,
                    Compare::More => it > *value,
                    Compare::MoreOrEqual => it >= *value,
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Row;

    impl Fields for Row {
        fn text(&self) -> String {
            "10.0.0.1:5000 10.0.0.2:443 established s1 nginx".to_owned()
        }

        fn word(&self, word: Word) -> String {
            match word {
                Word::Comm => "nginx",
                Word::State => "ESTABLISHED",
                Word::Conn => "S1",
                Word::Name => "",
            }
            .to_owned()
        }

        fn ends(&self) -> [End; 2] {
            [([10, 0, 0, 1].into(), 5000), ([10, 0, 0, 2].into(), 443)]
        }

        fn numbers(&self, number: Number) -> [Option<f64>; 2] {
            match number {
                Number::Sport => [Some(5000.0), None],
                Number::Dport => [Some(443.0), None],
                Number::Port => [Some(5000.0), Some(443.0)],
                Number::RoundTrip => [Some(2_500_000.0), None],
                Number::Bytes => [Some(1_500_000.0), None],
                _ => [None, None],
            }
        }
    }

    #[test]
    fn words_and_comparisons_must_all_hold() {
        for (typed, passes) in [
            ("", true),
            ("nginx", true),
            ("NGINX 443", true),
            ("nginx 80", false),
            ("!nginx", false),
            ("!apache", true),
            ("dport=443", true),
            ("dport!=443", false),
            ("port=443 port=5000", true),
            ("port=80", false),
            ("rtt>2ms", true),
            ("rtt>=2500us rtt<=2500us", true),
            ("rtt<2ms", false),
            ("bytes>1M", true),
            ("bytes>2m", false),
            ("pid=-", true),
            ("dport=-", false),
            ("pid>1", false),
            ("src=10.0.0.0/8 dst=10.0.0.2", true),
            ("dst=10.0.0.1", false),
            ("host=10.0.0.1", true),
            ("host=::1", false),
            ("state=estab comm=ngi conn=s1", true),
            ("name=a", false),
            ("state!=closed", true),
            ("port 443", true),
            ("(src net 10.0.0.0/8 and dst port 443)", true),
            ("not port 443", false),
            ("host 10.0.0.1 and not port 80", true),
            ("dst host 10.0.0.1", false),
            ("port 443 rtt>2ms", true),
            ("port 443 and rtt>2ms", true),
            ("port 443 and rtt<2ms", false),
            ("rtt>2ms port 443", true),
            // Not a field: text, as it is.
            ("x=y", false),
            ("[2001:db8::1]:443", false),
        ] {
            let filter = TypedFilter::parse(typed);
            assert_eq!(filter.unfinished, None, "{typed}");
            assert_eq!(filter.passes(&Row), passes, "{typed}");
        }
    }

    #[test]
    fn an_incomplete_filter_hides_nothing() {
        for typed in [
            "rtt>",
            "nginx dport=",
            "dst=10.",
            "bytes>1x",
            "comm>a",
            "!",
            "port",
            "host 10.0.",
            "port 443 and",
            // A flow has no such field.
            "tcp[13] & 2 != 0",
        ] {
            let filter = TypedFilter::parse(typed);
            assert!(filter.passes(&Row), "{typed}");
        }
        let unfinished = TypedFilter::parse("nginx rtt>").unfinished;
        assert_eq!(unfinished.as_deref(), Some("rtt>"));
    }
}
