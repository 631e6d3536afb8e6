//! Filter expressions in the language of tcpdump, pcap-filter(7).
//!
//! libpcap can't compile them for our programs: its code parses the headers by itself, and can't
//! use the offsets that our parser has found. It also looks up names over the network, and adds
//! 554 KB and a D-Bus library to a static binary. The one crate that compiles them, pktbaffle 0.2,
//! silently got 13 of 36 expressions wrong.

mod compile;
mod describe;
mod ends;
mod lex;
mod parse;
mod program;
mod simplify;
mod syntax;
#[cfg(test)]
mod tests;

use std::ops::Range;

use anyhow::{Context, Result};

use crate::failure::Failure;
use crate::skel::expr::{ExprKind, ExprNode, ExprResult, ExprSettings, ExprWord};
pub use describe::Described;
pub use ends::End;
use program::{CompiledExpression, Node, Operand, Source, Target};
use syntax::Condition;

/// A compiled expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression {
    program: CompiledExpression,
    needs_direction: bool,
    condition: Condition,
}

/// An error in an expression, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wrong {
    /// The bytes of the text that are wrong.
    at: Range<usize>,
    why: String,
    hint: Option<String>,
}

impl Wrong {
    fn new(at: Range<usize>, why: impl Into<String>) -> Self {
        Self {
            at,
            why: why.into(),
            hint: None,
        }
    }

    fn hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }
}

impl Expression {
    /// Parses and compiles an expression.
    ///
    /// # Errors
    /// The text is not a valid expression, is too long or not supported, or can't match any packet.
    pub fn new(text: &str) -> Result<Self, Failure> {
        Self::read(text).map_err(|wrong| {
            let mut failure = Failure::usage(format!("failed to read the filter: {}", wrong.why));
            failure.excerpt = excerpt(text, wrong.at);
            let language = "the language is that of tcpdump: man 7 pcap-filter";
            failure.hint = wrong.hint.or_else(|| Some(language.to_owned()));
            failure
        })
    }

    fn read(text: &str) -> Result<Self, Wrong> {
        let whole = || text.len() - text.trim_start().len()..text.trim_end().len();
        let (condition, never) = parse::parse(text)?;
        let program = compile::compile(&condition).map_err(|why| Wrong::new(whole(), why))?;
        if program.start_v4 == Target::Reject && program.start_v6 == Target::Reject {
            return Err(never.unwrap_or_else(|| Wrong::new(whole(), "no packet can match this")));
        }
        Ok(Self {
            program,
            needs_direction: condition.needs_direction(),
            condition,
        })
    }

    /// Describes the compiled expression, line by line.
    pub fn describe(&self) -> Vec<Described> {
        describe::describe(&self.program)
    }

    /// Whether it tests the direction of packets (`inbound`, `outbound`).
    pub fn needs_direction(&self) -> bool {
        self.needs_direction
    }

    /// Writes the expression into the settings of a program that is not loaded yet.
    ///
    /// # Errors
    /// A number does not fit the type that the programs use for it.
    pub fn configure(&self, settings: ExprSettings<'_>) -> Result<()> {
        let ExprSettings { expression, sets } = settings;
        expression.wants = self.program.wants();
        expression.start_v4 = offset(self.program.start_v4)?;
        expression.start_v6 = offset(self.program.start_v6)?;
        for (to, node) in expression.nodes.iter_mut().zip(&self.program.nodes) {
            *to = encode(node)?;
        }
        for (to, set) in sets.expr_port_sets.iter_mut().zip(&self.program.port_sets) {
            to.copy_from_slice(&set[..]);
        }
        let tables = sets.expr_address_sets.iter_mut();
        for (to, set) in tables.zip(&self.program.address_sets) {
            to.copy_from_slice(&set.slots[..]);
        }
        Ok(())
    }
}

/// Encodes a target as the programs expect it: the offset of a node, or a result.
fn offset(target: Target) -> Result<u16> {
    Ok(match target {
        Target::Accept => u16::try_from(ExprResult::EXPR_ACCEPT.0)?,
        Target::Reject => u16::try_from(ExprResult::EXPR_REJECT.0)?,
        Target::Node(number) => u16::try_from(number * size_of::<ExprNode>())?,
    })
}

fn encode(node: &Node) -> Result<ExprNode> {
    let word = |word: ExprWord| u8::try_from(word.0).context("no such word");
    let mut to = ExprNode {
        mask: node.test.mask,
        first: node.test.first,
        more: node.test.more,
        passes: offset(node.passes)?,
        fails: offset(node.fails)?,
        b: word(ExprWord::EXPR_NONE)?,
        ..ExprNode::default()
    };
    let kind = match node.source {
        Source::Field(a) => {
            to.a = word(a)?;
            ExprKind::EXPR_FIELD
        }
        Source::Either(a, b) => {
            to.a = word(a)?;
            to.b = word(b)?;
            ExprKind::EXPR_EITHER
        }
        Source::PortSet(a, set) => {
            to.a = word(a)?;
            to.b = set;
            ExprKind::EXPR_PORT_SET
        }
        Source::AddressSet {
            word: a,
            set,
            multiplier,
        } => {
            to.a = word(a)?;
            to.b = set;
            to.operand = multiplier;
            ExprKind::EXPR_ADDRESS_SET
        }
        Source::Load {
            base,
            offset,
            index,
            size,
            to: kept,
        } => {
            to.how = u8::try_from(base.0)?;
            to.operand = offset;
            to.b = word(index.unwrap_or(ExprWord::EXPR_NONE))?;
            to.size = size;
            to.to = word(kept)?;
            ExprKind::EXPR_LOAD
        }
        Source::Arithmetic {
            operation,
            left,
            right,
            to: kept,
        } => {
            to.how = u8::try_from(operation.0)?;
            to.a = word(left)?;
            match right {
                Operand::Word(right) => to.b = word(right)?,
                Operand::Number(number) => to.operand = number,
            }
            to.to = word(kept)?;
            ExprKind::EXPR_ARITHMETIC
        }
    };
    to.kind = u8::try_from(kind.0)?;
    Ok(to)
}

/// How many characters of an expression are shown before and after an error.
const SHOWN: usize = 60;

/// The expression, and a line below it that marks a place in it with `^`.
fn excerpt(text: &str, at: Range<usize>) -> Vec<String> {
    let before = text.get(..at.start).unwrap_or(text).chars().count();
    let meant = text.get(at).map_or(1, |meant| meant.chars().count().max(1));
    let skipped = before.saturating_sub(SHOWN);
    let shown = text
        .chars()
        .skip(skipped)
        .take(before - skipped + meant.min(SHOWN) + SHOWN)
        // One column for each character, so that the marks are below the right ones.
        .map(|c| {
            if c.is_ascii_graphic() {
                c
            } else if c.is_whitespace() || c.is_control() {
                ' '
            } else {
                '?'
            }
        })
        .collect::<String>();
    let pointer = format!(
        "{}{}",
        " ".repeat(before - skipped),
        "^".repeat(meant.min(SHOWN))
    );
    [shown, pointer]
        .map(|line| format!("  {}", line.trim_end()))
        .into()
}
