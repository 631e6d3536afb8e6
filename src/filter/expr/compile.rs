//! Compiles a condition to the nodes that the programs run: a decision graph of tests, with one
//! entry for IPv4 and one for IPv6.

use std::collections::HashMap;

use super::syntax::{Base, Comparison, Condition, Operation, Prefix, Relation, Side, Value};
use crate::skel::expr::{
    Arithmetic, EXPR_ADDRESS_SETS, EXPR_NODES, EXPR_PORT_SETS, EXPR_SLOTS, ExprVlan, ExprWants,
    ExprWord, LoadBase,
};

/// From this many ports on, one set of ports is faster than a test for each.
const SET_FROM: usize = 3;

/// From this many addresses on, one set of addresses is faster than a test for each.
const ADDRESS_SET_FROM: usize = 3;

/// A set of IPv4 addresses: a hash table in which each has a slot of its own. The tables of phf_generator
/// need SipHash and a displacement for each look-up, in the programs too; here it is a multiplication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSet {
    /// Its addresses.
    pub addresses: Vec<u32>,
    /// An address times this has the number of its slot in the highest bits.
    pub multiplier: u32,
    /// The address in each slot. An unused slot holds the address of another slot, which differs
    /// from every address that hashes to this one.
    pub slots: Box<[u32; EXPR_SLOTS]>,
}

impl AddressSet {
    /// The slot of an address.
    fn slot(multiplier: u32, address: u32) -> usize {
        (address.wrapping_mul(multiplier) >> (32 - EXPR_SLOTS.ilog2())) as usize
    }

    /// A table without collisions; `None` if there are so many addresses that none is found.
    fn new(mut addresses: Vec<u32>) -> Option<Self> {
        const TRIES: u32 = 4096;
        addresses.sort_unstable();
        addresses.dedup();
        let first = *addresses.first()?;
        // Odd numbers far apart.
        let multipliers = (1..=TRIES).map(|n| n.wrapping_mul(0x9e37_79b9) | 1);
        for multiplier in multipliers {
            let mut slots: Box<[u32; EXPR_SLOTS]> = Box::new([first; EXPR_SLOTS]);
            let mut is_taken = vec![false; slots.len()];
            let is_perfect = addresses.iter().all(|address| {
                let slot = Self::slot(multiplier, *address);
                slots[slot] = *address;
                !std::mem::replace(&mut is_taken[slot], true)
            });
            if is_perfect {
                return Some(Self {
                    addresses,
                    multiplier,
                    slots,
                });
            }
        }
        None
    }
}

/// A set of ports, one bit each.
pub type PortSet = Box<[u64; 1024]>;

/// Where a test leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The packet matches.
    Accept,
    /// It does not.
    Reject,
    /// The node with this number.
    Node(usize),
}

/// Where the value that a node tests comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A word: a field of the packet, or an intermediate result.
    Field(ExprWord),
    /// Two words, of which at least one has to pass.
    Either(ExprWord, ExprWord),
    /// 1 if the port in a word is in the set with this number, else 0.
    PortSet(ExprWord, u8),
    /// 1 if the IPv4 address in a word is in a set, else 0.
    AddressSet {
        /// The word that has the address.
        word: ExprWord,
        /// The number of the set.
        set: u8,
        /// See [`AddressSet::multiplier`].
        multiplier: u32,
    },
    /// Bytes of the packet.
    Load {
        /// Where the offset starts.
        base: LoadBase,
        /// The constant part of the offset.
        offset: u32,
        /// A word to add to the offset.
        index: Option<ExprWord>,
        /// Number of bytes: 1, 2 or 4.
        size: u8,
        /// The word that stores the value.
        to: ExprWord,
    },
    /// The result of an operation on two words, or on a word and a number.
    Arithmetic {
        /// What is calculated.
        operation: Arithmetic,
        /// The left operand.
        left: ExprWord,
        /// The right operand.
        right: Operand,
        /// The word that stores the value.
        to: ExprWord,
    },
}

/// A right operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    /// The value of a word.
    Word(ExprWord),
    /// A constant.
    Number(u32),
}

/// A value passes if, and-ed with the mask, it is `first` or one of the `more` numbers after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// The bits that matter.
    pub mask: u64,
    /// The smallest number that passes.
    pub first: u64,
    /// How many more pass.
    pub more: u64,
}

impl Test {
    fn equals(value: u64) -> Self {
        Self::masked(u64::MAX, value)
    }

    fn masked(mask: u64, value: u64) -> Self {
        Self {
            mask,
            first: value,
            more: 0,
        }
    }

    /// Whether the value passes.
    fn passes(self, value: u64) -> bool {
        (value & self.mask).wrapping_sub(self.first) <= self.more
    }

    fn range(first: u64, last: u64) -> Self {
        Self {
            mask: u64::MAX,
            first,
            more: last - first,
        }
    }
}

/// A test of one value, and what follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// The value.
    pub source: Source,
    /// The test.
    pub test: Test,
    /// The next step if the value passes.
    pub passes: Target,
    /// The next step if it does not.
    pub fails: Target,
}

/// A compiled expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompiledExpression {
    /// The nodes; each leads only to later ones.
    pub nodes: Vec<Node>,
    /// The first step for IPv4 packets.
    pub start_v4: Target,
    /// The first step for IPv6 packets.
    pub start_v6: Target,
    /// The sets of ports that nodes refer to.
    pub port_sets: Vec<PortSet>,
    /// The sets of addresses that nodes refer to.
    pub address_sets: Vec<AddressSet>,
}

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
            let run = run_of_ports(rest, all);
            if let Some(side) = run.side
                && run.len >= SET_FROM
                && let Some(set) = self.port_set(&rest[rest.len() - run.len..])
            {
                rest = &rest[..rest.len() - run.len];
                // `or` of ports passes in the set; `and` of negated ports fails there.
                let (in_set, not_in_set) = if all { (fails, next) } else { (passes, next) };
                next = self.set(side, set, in_set, not_in_set);
                continue;
            }
            let hosts = run_of_hosts(rest, all, version);
            if let Some(side) = hosts.side
                && hosts.addresses.len() >= ADDRESS_SET_FROM
                && let Some((set, multiplier)) = self.address_set(hosts.addresses)
            {
                rest = &rest[..rest.len() - hosts.len];
                let (in_set, not_in_set) = if all { (fails, next) } else { (passes, next) };
                next = self.in_addresses(side, set, multiplier, in_set, not_in_set);
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
    fn port_set(&mut self, ports: &[Condition]) -> Option<u8> {
        let mut set = Box::new([0u64; 1024]);
        for condition in ports {
            let condition = match condition {
                Condition::Not(inner) => inner,
                other => other,
            };
            if let Some((_, first, last)) = as_ports(condition) {
                for port in first..=last {
                    set[usize::from(port >> 6)] |= 1 << (port & 63);
                }
            }
        }
        self.keep_port_set(set)
    }

    fn keep_port_set(&mut self, set: PortSet) -> Option<u8> {
        let number = match self.port_sets.iter().position(|known| *known == set) {
            Some(number) => number,
            None if self.port_sets.len() == EXPR_PORT_SETS => return None,
            None => {
                self.port_sets.push(set);
                self.port_sets.len() - 1
            }
        };
        u8::try_from(number).ok()
    }

    /// The number and the multiplier of the set of these addresses; `None` if there are too many
    /// sets or addresses.
    fn address_set(&mut self, addresses: Vec<u32>) -> Option<(u8, u32)> {
        let set = AddressSet::new(addresses)?;
        let multiplier = set.multiplier;
        let number = match self.address_sets.iter().position(|known| *known == set) {
            Some(number) => number,
            None if self.address_sets.len() == EXPR_ADDRESS_SETS => return None,
            None => {
                self.address_sets.push(set);
                self.address_sets.len() - 1
            }
        };
        Some((u8::try_from(number).ok()?, multiplier))
    }

    fn in_addresses(
        &mut self,
        side: Side,
        set: u8,
        multiplier: u32,
        passes: Target,
        fails: Target,
    ) -> Target {
        let test = Test::equals(1);
        let [source, destination] =
            [ExprWord::EXPR_SADDR_LOW, ExprWord::EXPR_DADDR_LOW].map(|word| Source::AddressSet {
                word,
                set,
                multiplier,
            });
        match side {
            Side::Source => self.node(source, test, passes, fails),
            Side::Destination => self.node(destination, test, passes, fails),
            Side::Either | Side::Both => {
                let second = self.node(source, test, passes, fails);
                self.node(destination, test, passes, second)
            }
        }
    }

    fn set(&mut self, side: Side, set: u8, passes: Target, fails: Target) -> Target {
        let test = Test::masked(1, 1);
        let [source, destination] =
            [ExprWord::EXPR_SPORT, ExprWord::EXPR_DPORT].map(|word| Source::PortSet(word, set));
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
    /// `next` if all of them hold, else if none of them does.
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

    /// A set of the values for which the tests hold, and the test of it, if there can be one.
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
            let mut set = Box::new([0u64; 1024]);
            for value in 0..1 << (8 * size) {
                let holds = |one: &Holds| one.test.passes(value) == one.when_passed;
                let is_in = match all {
                    true => tests.iter().all(holds),
                    false => tests.iter().any(holds),
                };
                set[(value >> 6) as usize] |= u64::from(is_in) << (value & 63);
            }
            let set = self.keep_port_set(set)?;
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

impl CompiledExpression {
    /// Which words of a packet are used (enum expr_wants, or-ed).
    pub fn wants(&self) -> u32 {
        let mut wants = 0;
        let mut note = |word: ExprWord| {
            wants |= match word {
                ExprWord::EXPR_SPORT | ExprWord::EXPR_DPORT => ExprWants::EXPR_WANTS_PORTS.0,
                ExprWord::EXPR_SADDR_HIGH
                | ExprWord::EXPR_SADDR_LOW
                | ExprWord::EXPR_DADDR_HIGH
                | ExprWord::EXPR_DADDR_LOW => ExprWants::EXPR_WANTS_ADDRESSES.0,
                ExprWord::EXPR_LEN => ExprWants::EXPR_WANTS_LEN.0,
                ExprWord::EXPR_VLAN_OUTER | ExprWord::EXPR_VLAN_INNER => {
                    ExprWants::EXPR_WANTS_VLAN.0
                }
                _ => 0,
            };
        };
        for node in &self.nodes {
            match node.source {
                Source::Field(word)
                | Source::PortSet(word, _)
                | Source::AddressSet { word, .. } => note(word),
                Source::Either(a, b) => {
                    note(a);
                    note(b);
                }
                Source::Load { index, .. } => {
                    if let Some(word) = index {
                        note(word);
                    }
                }
                Source::Arithmetic { left, right, .. } => {
                    note(left);
                    if let Operand::Word(word) = right {
                        note(word);
                    }
                }
            }
        }
        wants
    }
}

/// This bit of the word of a VLAN tag is set if there is such a tag.
const VLAN_PRESENT: u64 = ExprVlan::EXPR_VLAN_PRESENT.0 as u64;

fn too_long(nodes: usize) -> String {
    format!("the filter needs {nodes} tests, but it may have {EXPR_NODES} at most")
}

/// The conditions at the end of a list that all test ports of the same side.
struct Run {
    side: Option<Side>,
    len: usize,
}

fn run_of_ports(parts: &[Condition], all: bool) -> Run {
    let mut run = Run { side: None, len: 0 };
    for part in parts.iter().rev() {
        let ports = match part {
            Condition::Not(inner) if all => as_ports(inner),
            other if !all => as_ports(other),
            _ => None,
        };
        let Some((side, ..)) = ports.filter(|(side, ..)| *side != Side::Both) else {
            break;
        };
        if run.side.is_some_and(|of_run| of_run != side) {
            break;
        }
        run.side = Some(side);
        run.len += 1;
    }
    run
}

/// The conditions at the end of a list that are all about single IPv4 addresses of the same side, in
/// the part of a program for IPv4.
struct Hosts {
    side: Option<Side>,
    len: usize,
    addresses: Vec<u32>,
}

fn run_of_hosts(parts: &[Condition], all: bool, version: u8) -> Hosts {
    let mut run = Hosts {
        side: None,
        len: 0,
        addresses: Vec::new(),
    };
    if version != 4 {
        return run;
    }
    for part in parts.iter().rev() {
        let host = match part {
            Condition::Not(inner) if all => as_host(inner),
            other if !all => as_host(other),
            _ => None,
        };
        let Some((side, address)) = host.filter(|(side, _)| *side != Side::Both) else {
            break;
        };
        if run.side.is_some_and(|of_run| of_run != side) {
            break;
        }
        run.side = Some(side);
        run.len += 1;
        run.addresses.push(address);
    }
    run
}

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

fn as_ports(condition: &Condition) -> Option<(Side, u16, u16)> {
    match condition {
        Condition::Ports { side, first, last } => Some((*side, *first, *last)),
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

/// A relation with a number at the right, if it has one, and with one of three comparisons: the
/// others are their negations. The last is whether it holds when the comparison does.
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
