//! The syntax tree of an expression.

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// True or false for all packets.
    Always(bool),
    Not(Box<Condition>),
    /// `and`: all of them.
    All(Vec<Condition>),
    /// `or`: at least one of them.
    Any(Vec<Condition>),
    /// 4 or 6.
    IpVersion(u8),
    Address(Side, Prefix),
    Ports {
        side: Side,
        first: u16,
        last: u16,
    },
    Mac(Side, [u8; 6]),
    /// There is a VLAN tag at this depth (0 is the outermost), and it has this id if one is given.
    Vlan {
        depth: u8,
        id: Option<u16>,
    },
    Outbound,
    Relation(Relation),
}

/// Which end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Side {
    Source,
    Destination,
    Either,
    Both,
}

/// The addresses that are equal to `address` after the mask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prefix {
    V4 { address: u32, mask: u32 },
    V6 { address: u128, mask: u128 },
}

/// A comparison of two values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Relation {
    pub(super) left: Value,
    pub(super) comparison: Comparison,
    pub(super) right: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
}

/// A 32-bit number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Number(u32),
    /// The length of the frame.
    Length,
    /// Bytes of the packet.
    Bytes {
        base: Base,
        offset: Box<Value>,
        size: u8,
    },
    Computed(Operation, Box<Value>, Box<Value>),
}

/// The header where the offset of bytes starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Base {
    Link,
    Ip,
    Ip6,
    Tcp,
    /// A header that no TCP packet has here.
    Absent,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    Add,
    Subtract,
    Multiply,
    Divide,
    Modulo,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
}

impl Operation {
    /// The result for two numbers, or why there is none.
    pub(super) fn apply(self, x: u32, y: u32) -> Result<u32, &'static str> {
        self.check(y)?;
        Ok(match self {
            Self::Add => x.wrapping_add(y),
            Self::Subtract => x.wrapping_sub(y),
            Self::Multiply => x.wrapping_mul(y),
            Self::Divide => x / y,
            Self::Modulo => x % y,
            Self::And => x & y,
            Self::Or => x | y,
            Self::Xor => x ^ y,
            Self::ShiftLeft => x << y,
            Self::ShiftRight => x >> y,
        })
    }

    /// Refuses a right operand for which there is no result.
    pub(super) fn check(self, y: u32) -> Result<(), &'static str> {
        match self {
            Self::Divide | Self::Modulo if y == 0 => Err("this divides by zero"),
            Self::ShiftLeft | Self::ShiftRight if y > 31 => Err("this shifts by more than 31 bits"),
            _ => Ok(()),
        }
    }
}

impl Condition {
    pub(super) fn negated(self) -> Self {
        match self {
            Self::Always(always) => Self::Always(!always),
            Self::Not(inner) => *inner,
            other => Self::Not(Box::new(other)),
        }
    }

    /// Whether it tests the direction of a packet.
    pub(super) fn needs_direction(&self) -> bool {
        match self {
            Self::Outbound => true,
            Self::Not(inner) => inner.needs_direction(),
            Self::All(parts) | Self::Any(parts) => parts.iter().any(Self::needs_direction),
            _ => false,
        }
    }
}
