//! A compiled expression: a decision graph of tests.

use crate::skel::expr::{Arithmetic, EXPR_PORT_WORDS, EXPR_SLOTS, ExprWants, ExprWord, LoadBase};

/// A set of IPv4 addresses: a hash table in which each has a slot of its own. The tables of phf_generator
/// need SipHash and a displacement for each lookup, in the programs too; here it is a multiplication.
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
    pub fn new(mut addresses: Vec<u32>) -> Option<Self> {
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
pub type PortSet = Box<[u64; EXPR_PORT_WORDS]>;

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
    /// Only this value passes.
    pub fn equals(value: u64) -> Self {
        Self::masked(u64::MAX, value)
    }

    /// What passes has this value in the bits of the mask.
    pub fn masked(mask: u64, value: u64) -> Self {
        Self {
            mask,
            first: value,
            more: 0,
        }
    }

    /// Whether the value passes.
    pub fn passes(self, value: u64) -> bool {
        (value & self.mask).wrapping_sub(self.first) <= self.more
    }

    /// The values from the first to the last pass.
    pub fn range(first: u64, last: u64) -> Self {
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
    /// Where the value that is tested comes from.
    pub source: Source,
    /// Which values pass.
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
