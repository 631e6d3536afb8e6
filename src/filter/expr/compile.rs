//! Compiles a condition to the nodes that the programs run: a decision graph of tests, with one
//! entry for IPv4 and one for IPv6.

use std::collections::HashMap;
use std::ops::RangeInclusive;

use super::program::{
    AddressSet, CompiledExpression, Node, Operand, PortSet, Source, Target, Test,
};
use super::syntax::{Base, Comparison, Condition, Operation, Prefix, Relation, Side, Value};
use crate::skel::expr::{
    Arithmetic, EXPR_ADDRESS_SETS, EXPR_NODES, EXPR_PORT_SETS, EXPR_PORT_WORDS, ExprVlan, ExprWord,
    LoadBase,
};

/// From this many ports on, one set of ports is faster than a test for each.
const SET_FROM: usize = 3;

/// From this many addresses on, one set of addresses is faster than a test for each.
const ADDRESS_SET_FROM: usize = 3;

/// Compiles a condition. The error says which limit it exceeds.
pub(super) fn compile(condition: &Condition) -> Result<CompiledExpression, String> {
    let mut compiler = Compiler::default();
    // Nodes are created from the last to the first: `finish` reverses the order.
    let start_v6 = compiler.condition(condition, 6, Target::Accept, Target::Reject)?;
    let start_v4 = compiler.condition(condition, 4, Target::Accept, Target::Reject)?;
    compiler.finish(start_v4, start_v6)
}

#[derive(Default)]
struct Compiler {
    /// The nodes so far; each leads only to earlier ones.
    nodes: Vec<Node>,
    port_sets: Vec<PortSet>,
    address_sets: Vec<AddressSet>,
}

/// The loads and operations that compute a value. Each stores its result in a word.
type Steps = Vec<Source>;

impl Compiler {
    fn node(&mut self, source: Source, test: Test, passes: Target, fails: Target) -> Target {
        let is_pure = !matches!(source, Source::Load { .. } | Source::Arithmetic { .. });
        if passes == fails && is_pure {
            return passes;
        }
        let node = Node {
            source,
            test,
            passes,
            fails,
        };
        // Use an equal node again.
        let known = self.nodes.iter().position(|known| *known == node);
        Target::Node(known.unwrap_or_else(|| {
            self.nodes.push(node);
            self.nodes.len() - 1
        }))
    }

    /// The first node of a condition that leads to `passes` or `fails`.
    fn condition(
        &mut self,
        condition: &Condition,
        version: u8,
        passes: Target,
        fails: Target,
    ) -> Result<Target, String> {
        // A generous limit: `finish` drops unused nodes before it checks the real one.
        if self.nodes.len() > 16 * EXPR_NODES {
            return Err(too_long(self.nodes.len()));
        }
        Ok(match condition {
            Condition::Always(true) => passes,
            Condition::Always(false) => fails,
            Condition::Not(inner) => self.condition(inner, version, fails, passes)?,
            Condition::All(parts) => self.parts(parts, true, version, passes, fails)?,
            Condition::Any(parts) => self.parts(parts, false, version, passes, fails)?,
            Condition::IpVersion(wanted) if *wanted == version => passes,
            Condition::IpVersion(_) => fails,
            Condition::Address(side, prefix) => {
                self.address(*side, *prefix, version, passes, fails)
            }
            Condition::Ports { side, first, last } => {
                let test = Test::range((*first).into(), (*last).into());
                self.sides(
                    *side,
                    [ExprWord::EXPR_SPORT, ExprWord::EXPR_DPORT],
                    test,
                    passes,
                    fails,
                )
            }
            Condition::Mac(side, mac) => self.mac(*side, *mac, passes, fails),
            Condition::Vlan { depth, id } => {
                let word = match depth {
                    0 => ExprWord::EXPR_VLAN_OUTER,
                    _ => ExprWord::EXPR_VLAN_INNER,
                };
                let test = match id {
                    None => Test::masked(VLAN_PRESENT, VLAN_PRESENT),
                    Some(id) => Test::equals(VLAN_PRESENT | u64::from(*id)),
                };
                self.node(Source::Field(word), test, passes, fails)
            }
            Condition::Outbound => {
                let source = Source::Field(ExprWord::EXPR_OUTBOUND);
                self.node(source, Test::equals(1), passes, fails)
            }
            Condition::Relation(relation) => self.relation(relation, version, passes, fails)?,
        })
    }

    /// Compiles `and` (`all`) or `or`, beginning with the last condition, because each one leads to
    /// the one after it.
    fn parts(
        &mut self,
        parts: &[Condition],
        all: bool,
        version: u8,
        passes: Target,
        fails: Target,
    ) -> Result<Target, String> {
        let mut next = if all { passes } else { fails };
        let mut rest = parts;
        while let Some((last, before)) = rest.split_last() {
            // `or` of ports passes in the set; `and` of negated ports fails there.
            let (in_set, not_in_set) = if all { (fails, next) } else { (passes, next) };
            if let Some((side, ports)) = run_of(rest, all, as_ports)
                && ports.len() >= SET_FROM
                && let Some(set) = self.port_set(&ports)
            {
                rest = &rest[..rest.len() - ports.len()];
                let words = [ExprWord::EXPR_SPORT, ExprWord::EXPR_DPORT];
                let sources = words.map(|word| Source::PortSet(word, set));
                next = self.in_set(side, sources, Test::masked(1, 1), in_set, not_in_set);
                continue;
            }
            if version == 4
                && let Some((side, hosts)) = run_of(rest, all, as_host)
                && hosts.len() >= ADDRESS_SET_FROM
                && let len = hosts.len()
                && let Some((set, multiplier)) = self.address_set(hosts)
            {
                rest = &rest[..rest.len() - len];
                let words = [ExprWord::EXPR_SADDR_LOW, ExprWord::EXPR_DADDR_LOW];
                let sources = words.map(|word| Source::AddressSet {
                    word,
                    set,
                    multiplier,
                });
                next = self.in_set(side, sources, Test::equals(1), in_set, not_in_set);
                continue;
            }
            if let Some((value, tests)) = run_of_tests(rest, version) {
                rest = &rest[..rest.len() - tests.len()];
                next = self.tests(value, &tests, all, passes, fails, next)?;
                continue;
            }
            rest = before;
            next = if all {
                self.condition(last, version, next, fails)?
            } else {
                self.condition(last, version, passes, next)?
            };
        }
        Ok(next)
    }

    /// The number of the set with all these ports; `None` if there are too many sets.
    fn port_set(&mut self, ports: &[RangeInclusive<u16>]) -> Option<u8> {
        let mut set: PortSet = Box::new([0; EXPR_PORT_WORDS]);
        for port in ports.iter().cloned().flatten() {
            set[usize::from(port >> 6)] |= 1 << (port & 63);
        }
        keep(&mut self.port_sets, set, EXPR_PORT_SETS)
    }

    /// The number and the multiplier of the set of these addresses; `None` if there are too many
    /// sets or addresses.
    fn address_set(&mut self, addresses: Vec<u32>) -> Option<(u8, u32)> {
        let set = AddressSet::new(addresses)?;
        let multiplier = set.multiplier;
        let number = keep(&mut self.address_sets, set, EXPR_ADDRESS_SETS)?;
        Some((number, multiplier))
    }

    /// Tests whether the word of one side is in a set, or that of either.
    fn in_set(
        &mut self,
        side: Side,
        [source, destination]: [Source; 2],
        test: Test,
        passes: Target,
        fails: Target,
    ) -> Target {
        match side {
            Side::Source => self.node(source, test, passes, fails),
            Side::Destination => self.node(destination, test, passes, fails),
            Side::Either | Side::Both => {
                let second = self.node(source, test, passes, fails);
                self.node(destination, test, passes, second)
            }
        }
    }

    /// Tests one word of the source, of the destination, of either or of both.
    fn sides(
        &mut self,
        side: Side,
        [source, destination]: [ExprWord; 2],
        test: Test,
        passes: Target,
        fails: Target,
    ) -> Target {
        match side {
            Side::Source => self.node(Source::Field(source), test, passes, fails),
            Side::Destination => self.node(Source::Field(destination), test, passes, fails),
            Side::Either => self.node(Source::Either(source, destination), test, passes, fails),
            Side::Both => {
                let second = self.node(Source::Field(destination), test, passes, fails);
                self.node(Source::Field(source), test, second, fails)
            }
        }
    }

    fn address(
        &mut self,
        side: Side,
        prefix: Prefix,
        version: u8,
        passes: Target,
        fails: Target,
    ) -> Target {
        const LOW: [ExprWord; 2] = [ExprWord::EXPR_SADDR_LOW, ExprWord::EXPR_DADDR_LOW];
        const HIGH: [ExprWord; 2] = [ExprWord::EXPR_SADDR_HIGH, ExprWord::EXPR_DADDR_HIGH];
        match prefix {
            Prefix::V4 { address, mask } if version == 4 => {
                if mask == 0 {
                    return passes;
                }
                let test = Test::masked(mask.into(), (address & mask).into());
                self.sides(side, LOW, test, passes, fails)
            }
            Prefix::V6 { address, mask } if version == 6 => {
                let [high, low] = [64, 0]
                    .map(|shift| Test::masked((mask >> shift) as u64, (address >> shift) as u64));
                if high.mask == 0 {
                    return passes;
                }
                if low.mask == 0 {
                    return self.sides(side, HIGH, high, passes, fails);
                }
                let mut one = |side, passes, fails| {
                    let second = self.sides(side, HIGH, high, passes, fails);
                    self.sides(side, LOW, low, second, fails)
                };
                match side {
                    Side::Source | Side::Destination => one(side, passes, fails),
                    Side::Both => {
                        let second = one(Side::Destination, passes, fails);
                        one(Side::Source, second, fails)
                    }
                    Side::Either => {
                        let second = one(Side::Destination, passes, fails);
                        one(Side::Source, passes, second)
                    }
                }
            }
            _ => fails,
        }
    }

    fn mac(&mut self, side: Side, mac: [u8; 6], passes: Target, fails: Target) -> Target {
        let [a, b, c, d, e, f] = mac;
        let first = Test::equals(u32::from_be_bytes([a, b, c, d]).into());
        let last = Test::equals(u16::from_be_bytes([e, f]).into());
        let mut one = |offset, passes, fails| {
            let load = |offset, size| Source::Load {
                base: LoadBase::EXPR_FROM_FRAME,
                offset,
                index: None,
                size,
                to: ExprWord::EXPR_TEMPORARY,
            };
            let second = self.node(load(offset + 4, 2), last, passes, fails);
            self.node(load(offset, 4), first, second, fails)
        };
        match side {
            Side::Destination => one(0, passes, fails),
            Side::Source => one(6, passes, fails),
            Side::Either => {
                let second = one(0, passes, fails);
                one(6, passes, second)
            }
            Side::Both => {
                let second = one(0, passes, fails);
                one(6, second, fails)
            }
        }
    }

    /// Compiles tests of one value, which is computed only once. With `all`, a packet goes on to
    /// `next` if all tests hold; without it, if none holds.
    fn tests(
        &mut self,
        value: &Value,
        tests: &[Holds],
        all: bool,
        passes: Target,
        fails: Target,
        mut next: Target,
    ) -> Result<Target, String> {
        let mut steps = Steps::new();
        let word = self.value(value, ExprWord::EXPR_TEMPORARY.0, &mut steps)?;
        if tests.len() >= SET_FROM
            && let Some((source, test)) = self.set_of(value, word, tests, all)
        {
            let (passes, fails) = if all { (next, fails) } else { (passes, next) };
            next = self.node(source, test, passes, fails);
        } else {
            for (at, one) in tests.iter().enumerate().rev() {
                let (holds, does_not) = if all { (next, fails) } else { (passes, next) };
                let (passes, fails) = match one.when_passed {
                    true => (holds, does_not),
                    false => (does_not, holds),
                };
                let last_step = if at == 0 { steps.pop() } else { None };
                let source = last_step.unwrap_or(Source::Field(word));
                next = self.node(source, one.test, passes, fails);
            }
        }
        for step in steps.into_iter().rev() {
            next = self.node(step, Test::equals(0), next, next);
        }
        Ok(next)
    }

    /// A set that replaces the tests, and the test of membership; `None` if no set can. For values of
    /// four bytes with `all`, the set has the values that fail a test, otherwise those that pass.
    fn set_of(
        &mut self,
        value: &Value,
        word: ExprWord,
        tests: &[Holds],
        all: bool,
    ) -> Option<(Source, Test)> {
        let Value::Bytes { size, .. } = value else {
            return None;
        };
        if *size <= 2 {
            let mut set: PortSet = Box::new([0; EXPR_PORT_WORDS]);
            for value in 0..1 << (8 * size) {
                let holds = |one: &Holds| one.test.passes(value) == one.when_passed;
                let is_in = match all {
                    true => tests.iter().all(holds),
                    false => tests.iter().any(holds),
                };
                set[(value >> 6) as usize] |= u64::from(is_in) << (value & 63);
            }
            let set = keep(&mut self.port_sets, set, EXPR_PORT_SETS)?;
            return Some((Source::PortSet(word, set), Test::masked(1, 1)));
        }
        let equals = |one: &Holds| {
            let Test { mask, first, more } = one.test;
            let is_one = mask == u64::from(u32::MAX) && more == 0 && one.when_passed != all;
            u32::try_from(first).ok().filter(|_| is_one)
        };
        let values = tests.iter().map(equals).collect::<Option<Vec<_>>>()?;
        let (set, multiplier) = self.address_set(values)?;
        let source = Source::AddressSet {
            word,
            set,
            multiplier,
        };
        Some((source, Test::equals(u64::from(!all))))
    }

    fn relation(
        &mut self,
        relation: &Relation,
        version: u8,
        passes: Target,
        fails: Target,
    ) -> Result<Target, String> {
        if !is_of(&relation.left, version) || !is_of(&relation.right, version) {
            return Ok(fails);
        }
        if let Some((value, one)) = as_test(relation) {
            return self.tests(value, &[one], true, passes, fails, passes);
        }
        let (left, comparison, right, when_passed) = simplest(relation);
        let (passes, fails) = match when_passed {
            true => (passes, fails),
            false => (fails, passes),
        };
        if let (Value::Number(left), Value::Number(right)) = (left, right) {
            let holds = match comparison {
                Comparison::Equal => left == right,
                Comparison::Greater => left > right,
                _ => left >= right,
            };
            return Ok(if holds { passes } else { fails });
        }
        let first = ExprWord::EXPR_TEMPORARY.0;
        let mut steps = Steps::new();
        let a = self.value(left, first, &mut steps)?;
        let b = self.value(right, first + 1, &mut steps)?;
        let (operation, left, right, expected) = match comparison {
            Comparison::Equal => (Arithmetic::EXPR_IS_EQUAL, a, b, 1),
            Comparison::Greater => (Arithmetic::EXPR_IS_GREATER, a, b, 1),
            _ => (Arithmetic::EXPR_IS_GREATER, b, a, 0),
        };
        let last = Source::Arithmetic {
            operation,
            left,
            right: Operand::Word(right),
            to: ExprWord(first),
        };
        let mut next = self.node(last, Test::equals(expected), passes, fails);
        for step in steps.into_iter().rev() {
            next = self.node(step, Test::equals(0), next, next);
        }
        Ok(next)
    }

    /// Appends the steps that compute a value, and returns the word that holds it then. The steps
    /// may overwrite the words from `free` on.
    fn value(&self, value: &Value, free: u32, steps: &mut Steps) -> Result<ExprWord, String> {
        if free >= ExprWord::EXPR_WORDS.0 {
            return Err("the arithmetic is nested too deeply".into());
        }
        let to = ExprWord(free);
        match value {
            Value::Length => return Ok(ExprWord::EXPR_LEN),
            Value::Number(number) => {
                // No operation just sets a word to a number: clear the word, then add the number.
                steps.push(Source::Arithmetic {
                    operation: Arithmetic::EXPR_AND,
                    left: ExprWord::EXPR_OUTBOUND,
                    right: Operand::Number(0),
                    to,
                });
                steps.push(Source::Arithmetic {
                    operation: Arithmetic::EXPR_ADD,
                    left: to,
                    right: Operand::Number(*number),
                    to,
                });
            }
            Value::Bytes { base, offset, size } => {
                let (offset, index) = match &**offset {
                    Value::Number(offset) => (*offset, None),
                    offset => (0, Some(self.value(offset, free, steps)?)),
                };
                steps.push(Source::Load {
                    base: match base {
                        Base::Link | Base::Absent => LoadBase::EXPR_FROM_FRAME,
                        Base::Ip | Base::Ip6 => LoadBase::EXPR_FROM_IP,
                        Base::Tcp => LoadBase::EXPR_FROM_TCP,
                    },
                    offset,
                    index,
                    size: *size,
                    to,
                });
            }
            Value::Computed(operation, left, right) => {
                let left = self.value(left, free, steps)?;
                let right = match &**right {
                    Value::Number(number) => Operand::Number(*number),
                    right => Operand::Word(self.value(right, free + 1, steps)?),
                };
                steps.push(Source::Arithmetic {
                    operation: arithmetic(*operation),
                    left,
                    right,
                    to,
                });
            }
        }
        Ok(to)
    }

    /// Drops unreachable nodes and reverses the order, so that each node leads only to later ones.
    fn finish(self, start_v4: Target, start_v6: Target) -> Result<CompiledExpression, String> {
        let mut is_used = vec![false; self.nodes.len()];
        let mark = |target, is_used: &mut Vec<bool>| {
            if let Target::Node(number) = target {
                is_used[number] = true;
            }
        };
        mark(start_v4, &mut is_used);
        mark(start_v6, &mut is_used);
        for (number, node) in self.nodes.iter().enumerate().rev() {
            if is_used[number] {
                mark(node.passes, &mut is_used);
                mark(node.fails, &mut is_used);
            }
        }
        let used = (0..self.nodes.len()).rev().filter(|n| is_used[*n]);
        let places = used.clone().zip(0..).collect::<HashMap<_, _>>();
        if places.len() > EXPR_NODES {
            return Err(too_long(places.len()));
        }
        let moved = |target| match target {
            Target::Node(number) => Target::Node(places[&number]),
            end => end,
        };
        let nodes = used
            .map(|number| Node {
                passes: moved(self.nodes[number].passes),
                fails: moved(self.nodes[number].fails),
                ..self.nodes[number]
            })
            .collect();
        Ok(CompiledExpression {
            nodes,
            start_v4: moved(start_v4),
            start_v6: moved(start_v6),
            port_sets: self.port_sets,
            address_sets: self.address_sets,
        })
    }
}

/// This bit of the word of a VLAN tag is set if there is such a tag.
const VLAN_PRESENT: u64 = ExprVlan::EXPR_VLAN_PRESENT.0 as u64;

fn too_long(nodes: usize) -> String {
    format!("the filter needs {nodes} tests, but it may have {EXPR_NODES} at most")
}

/// The number of a set among those that are kept; `None` if there are too many.
fn keep<T: PartialEq>(kept: &mut Vec<T>, set: T, most: usize) -> Option<u8> {
    let number = match kept.iter().position(|known| *known == set) {
        Some(number) => number,
        None if kept.len() == most => return None,
        None => {
            kept.push(set);
            kept.len() - 1
        }
    };
    u8::try_from(number).ok()
}

/// The conditions at the end of a list, negated if `all`, from which `pick` takes a value of the same
/// side, last first.
fn run_of<T>(
    parts: &[Condition],
    all: bool,
    pick: impl Fn(&Condition) -> Option<(Side, T)>,
) -> Option<(Side, Vec<T>)> {
    let mut run: Option<(Side, Vec<T>)> = None;
    for part in parts.iter().rev() {
        let picked = match part {
            Condition::Not(inner) if all => pick(inner),
            other if !all => pick(other),
            _ => None,
        };
        let Some((side, value)) = picked.filter(|(side, _)| *side != Side::Both) else {
            break;
        };
        let (of_run, values) = run.get_or_insert((side, Vec::new()));
        if *of_run != side {
            break;
        }
        values.push(value);
    }
    run
}

/// The address of a condition on a single IPv4 address.
fn as_host(condition: &Condition) -> Option<(Side, u32)> {
    match condition {
        Condition::Address(
            side,
            Prefix::V4 {
                address,
                mask: u32::MAX,
            },
        ) => Some((*side, *address)),
        _ => None,
    }
}

fn as_ports(condition: &Condition) -> Option<(Side, RangeInclusive<u16>)> {
    match condition {
        Condition::Ports { side, first, last } => Some((*side, *first..=*last)),
        _ => None,
    }
}

/// A test, and whether a condition holds when a value passes or when it does not.
struct Holds {
    test: Test,
    when_passed: bool,
}

/// The conditions at the end of a list, at least two, that all compare the same value with numbers.
fn run_of_tests(parts: &[Condition], version: u8) -> Option<(&Value, Vec<Holds>)> {
    let mut tests = Vec::new();
    let mut of_run = None;
    for part in parts.iter().rev() {
        let (relation, negated) = match part {
            Condition::Relation(relation) => (relation, false),
            Condition::Not(inner) => match &**inner {
                Condition::Relation(relation) => (relation, true),
                _ => break,
            },
            _ => break,
        };
        let Some((value, mut one)) = as_test(relation) else {
            break;
        };
        if *of_run.get_or_insert(value) != value {
            break;
        }
        one.when_passed ^= negated;
        tests.push(one);
    }
    tests.reverse();
    let value = of_run.filter(|value| is_of(value, version))?;
    (tests.len() >= 2).then_some((value, tests))
}

/// A relation between a value and a number, as a test of the value.
fn as_test(relation: &Relation) -> Option<(&Value, Holds)> {
    let (left, comparison, right, when_passed) = simplest(relation);
    let (left, Value::Number(number)) = (left, right) else {
        return None;
    };
    // `& number` needs no operation: it becomes the mask of the test.
    let (value, mask) = match left {
        Value::Number(_) => return None,
        Value::Computed(Operation::And, value, mask) => match (&**value, &**mask) {
            (value, Value::Number(mask)) | (Value::Number(mask), value) => (value, *mask),
            _ => (left, u32::MAX),
        },
        _ => (left, u32::MAX),
    };
    let test = Test {
        mask: mask.into(),
        ..compared_with(comparison, *number)
    };
    Some((value, Holds { test, when_passed }))
}

/// The same relation with its number, if it has one, on the right, and with `=`, `>` or `>=`: the
/// other comparisons are negations of these. The last value is false for such a negation: then the
/// relation holds if the comparison does not.
fn simplest(relation: &Relation) -> (&Value, Comparison, &Value, bool) {
    let Relation {
        left,
        comparison,
        right,
    } = relation;
    let (left, comparison, right) = match (left, right) {
        (Value::Number(_), right) => (right, mirrored(*comparison), left),
        _ => (left, *comparison, right),
    };
    let (comparison, holds) = match comparison {
        Comparison::NotEqual => (Comparison::Equal, false),
        Comparison::Less => (Comparison::GreaterOrEqual, false),
        Comparison::LessOrEqual => (Comparison::Greater, false),
        other => (other, true),
    };
    (left, comparison, right, holds)
}

/// Whether a packet of this IP version has the headers whose bytes the value contains.
fn is_of(value: &Value, version: u8) -> bool {
    match value {
        Value::Number(_) | Value::Length => true,
        Value::Bytes { base, offset, .. } => {
            let is_there = match base {
                Base::Ip => version == 4,
                Base::Ip6 => version == 6,
                Base::Absent => false,
                Base::Link | Base::Tcp => true,
            };
            is_there && is_of(offset, version)
        }
        Value::Computed(_, left, right) => is_of(left, version) && is_of(right, version),
    }
}

fn mirrored(comparison: Comparison) -> Comparison {
    match comparison {
        Comparison::Greater => Comparison::Less,
        Comparison::GreaterOrEqual => Comparison::LessOrEqual,
        Comparison::Less => Comparison::Greater,
        Comparison::LessOrEqual => Comparison::GreaterOrEqual,
        same => same,
    }
}

/// The test of a 32-bit value against a number.
fn compared_with(comparison: Comparison, number: u32) -> Test {
    let number = u64::from(number);
    let greatest = u64::from(u32::MAX);
    match comparison {
        Comparison::Equal => Test::equals(number),
        // No value has more than 32 bits.
        Comparison::Greater if number == greatest => Test::equals(greatest + 1),
        Comparison::Greater => Test::range(number + 1, greatest),
        _ => Test::range(number, greatest),
    }
}

fn arithmetic(operation: Operation) -> Arithmetic {
    match operation {
        Operation::Add => Arithmetic::EXPR_ADD,
        Operation::Subtract => Arithmetic::EXPR_SUBTRACT,
        Operation::Multiply => Arithmetic::EXPR_MULTIPLY,
        Operation::Divide => Arithmetic::EXPR_DIVIDE,
        Operation::Modulo => Arithmetic::EXPR_MODULO,
        Operation::And => Arithmetic::EXPR_AND,
        Operation::Or => Arithmetic::EXPR_OR,
        Operation::Xor => Arithmetic::EXPR_XOR,
        Operation::ShiftLeft => Arithmetic::EXPR_SHIFT_LEFT,
        Operation::ShiftRight => Arithmetic::EXPR_SHIFT_RIGHT,
    }
}
