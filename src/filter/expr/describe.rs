//! Describes a compiled expression in words.

use std::net::Ipv4Addr;

use super::program::{CompiledExpression, Node, Operand, Source, Target, Test};
use crate::skel::expr::{Arithmetic, ExprWord, LoadBase};

/// One line of a description: a label and its text.
pub type Described = (&'static str, String);

/// Describes which test is the first for packets of each IP version, and each test.
pub(super) fn describe(program: &CompiledExpression) -> Vec<Described> {
    let begin = |target| match target {
        Target::Accept => "every packet matches".to_owned(),
        Target::Reject => "no packet matches".to_owned(),
        Target::Node(number) => format!("begins with test {number}"),
    };
    let mut lines = vec![
        ("ipv4", begin(program.start_v4)),
        ("ipv6", begin(program.start_v6)),
    ];
    for (number, node) in program.nodes.iter().enumerate() {
        lines.push(("test", format!("{number}: {}", of_node(node, program))));
    }
    lines
}

fn of_node(node: &Node, program: &CompiledExpression) -> String {
    let (value, kept) = match node.source {
        Source::Field(word) => (name(word), None),
        Source::Either(one, other) => (format!("{} or {}", name(one), name(other)), None),
        Source::PortSet(word, set) => {
            let set = program.port_sets.get(usize::from(set));
            let ports = set.map_or(0, |set| set.iter().map(|bits| bits.count_ones()).sum());
            let target = leads(node);
            let what = if is_temporary(word) {
                "values"
            } else {
                "ports"
            };
            return format!("{} is one of {ports} {what}{target}", name(word));
        }
        Source::AddressSet { word, set, .. } => {
            let set = program.address_sets.get(usize::from(set));
            let addresses = set.map_or(0, |set| set.addresses.len());
            let target = leads(node);
            let what = match is_temporary(word) {
                true => "values",
                false => "addresses",
            };
            return format!("{} is one of {addresses} {what}{target}", name(word));
        }
        Source::Load {
            base,
            offset,
            index,
            size,
            to,
        } => {
            let base = match base {
                LoadBase::EXPR_FROM_IP => "ip",
                LoadBase::EXPR_FROM_TCP => "tcp",
                _ => "ether",
            };
            let offset = match index {
                Some(word) if offset == 0 => name(word),
                Some(word) => format!("{} + {offset}", name(word)),
                None => offset.to_string(),
            };
            (format!("{base}[{offset}:{size}]"), Some(to))
        }
        Source::Arithmetic {
            operation,
            left,
            right,
            to,
        } => {
            let right = match right {
                Operand::Word(word) => name(word),
                Operand::Number(number) => number.to_string(),
            };
            let value = format!("{} {} {right}", name(left), sign(operation));
            (value, Some(to))
        }
    };
    if node.passes == node.fails {
        let kept = kept.map_or_else(String::new, |word| format!("{} = ", name(word)));
        return format!("{kept}{value}{}", leads(node));
    }
    let is_address = matches!(
        node.source,
        Source::Field(ExprWord::EXPR_SADDR_LOW | ExprWord::EXPR_DADDR_LOW)
            | Source::Either(ExprWord::EXPR_SADDR_LOW, _)
    );
    format!("{value} {}{}", of_test(node.test, is_address), leads(node))
}

/// Describes what follows a node.
fn leads(node: &Node) -> String {
    let to = |target| match target {
        Target::Accept => "match".to_owned(),
        Target::Reject => "no match".to_owned(),
        Target::Node(number) => number.to_string(),
    };
    if node.passes == node.fails {
        return format!(", then {}", to(node.passes));
    }
    format!(": {}, else {}", to(node.passes), to(node.fails))
}

fn of_test(test: Test, is_address: bool) -> String {
    if let (true, Ok(mask), Ok(address)) = (
        is_address,
        u32::try_from(test.mask),
        u32::try_from(test.first),
    ) && mask.leading_ones() == mask.count_ones()
    {
        return format!("in {}/{}", Ipv4Addr::from(address), mask.leading_ones());
    }
    let is_whole = test.mask == u64::MAX || test.mask == u64::from(u32::MAX);
    let mask = if is_whole {
        String::new()
    } else {
        format!("& {:#x} ", test.mask)
    };
    let last = test.first + test.more;
    match test.more {
        0 if test.first > u64::from(u32::MAX) => format!("{mask}= {:#x}", test.first),
        0 => format!("{mask}= {}", test.first),
        _ if last == u64::from(u32::MAX) => format!("{mask}>= {}", test.first),
        _ => format!("{mask}in {}-{last}", test.first),
    }
}

fn is_temporary(word: ExprWord) -> bool {
    word.0 >= ExprWord::EXPR_TEMPORARY.0
}

fn name(word: ExprWord) -> String {
    let name = match word {
        ExprWord::EXPR_SPORT => "source port",
        ExprWord::EXPR_DPORT => "destination port",
        ExprWord::EXPR_SADDR_HIGH => "source (first half)",
        ExprWord::EXPR_SADDR_LOW => "source",
        ExprWord::EXPR_DADDR_HIGH => "destination (first half)",
        ExprWord::EXPR_DADDR_LOW => "destination",
        ExprWord::EXPR_LEN => "length",
        ExprWord::EXPR_VLAN_OUTER => "outer tag",
        ExprWord::EXPR_VLAN_INNER => "inner tag",
        ExprWord::EXPR_OUTBOUND => "outbound",
        ExprWord(other) => return format!("t{}", other - ExprWord::EXPR_TEMPORARY.0),
    };
    name.to_owned()
}

fn sign(operation: Arithmetic) -> &'static str {
    match operation {
        Arithmetic::EXPR_ADD => "+",
        Arithmetic::EXPR_SUBTRACT => "-",
        Arithmetic::EXPR_MULTIPLY => "*",
        Arithmetic::EXPR_DIVIDE => "/",
        Arithmetic::EXPR_MODULO => "%",
        Arithmetic::EXPR_AND => "&",
        Arithmetic::EXPR_OR => "|",
        Arithmetic::EXPR_XOR => "^",
        Arithmetic::EXPR_SHIFT_LEFT => "<<",
        Arithmetic::EXPR_SHIFT_RIGHT => ">>",
        Arithmetic::EXPR_IS_GREATER => ">",
        _ => "=",
    }
}
