//! Takes out of an expression what other parts of a filter do faster: conditions on ports, TCP flags
//! and the IP version that every packet has to meet.

use super::syntax::{Base, Comparison, Condition, Operation, Relation, Side, Value};
use super::{Expression, compile};
use crate::filter::{Filter, FlagsRule, PortRule};

/// The offset of the flags in a TCP header.
const FLAGS_AT: u32 = 13;

impl Filter {
    /// The same filter with as little as possible left to its expression.
    #[must_use]
    pub fn simplified(&self) -> Self {
        let Some(expression) = &self.expression else {
            return self.clone();
        };
        let mut simpler = self.clone();
        let mut parts = Vec::new();
        split(&expression.condition, false, &mut parts);
        parts.retain(|part| !simpler.take(part));
        if parts.is_empty() {
            simpler.expression = None;
            return simpler;
        }
        let rest = Condition::All(parts);
        match compile::compile(&rest) {
            Ok(program) => {
                simpler.expression = Some(Expression {
                    program,
                    needs_direction: expression.needs_direction,
                    condition: rest,
                });
                simpler
            }
            // A part never needs more than the whole, so this does not happen.
            Err(_) => self.clone(),
        }
    }

    /// Takes over a condition, if there is a place for it.
    fn take(&mut self, condition: &Condition) -> bool {
        match condition {
            Condition::Always(true) => true,
            Condition::IpVersion(version) if self.ip_version.is_none() => {
                self.ip_version = Some(*version);
                true
            }
            Condition::Ports { .. } => self.take_wanted(std::slice::from_ref(condition)),
            Condition::Any(parts) => self.take_wanted(parts),
            Condition::Not(inner) => match &**inner {
                Condition::Ports { side, first, last } => match self.ports_of(*side) {
                    Some(rules) => {
                        rules.push(PortRule {
                            first: *first,
                            last: *last,
                            exclude: true,
                        });
                        true
                    }
                    None => false,
                },
                _ => false,
            },
            Condition::Relation(relation) => flags(relation).is_some_and(|wanted| {
                let common = self.flags.mask & wanted.mask;
                let agrees = self.flags.value & common == wanted.value & common;
                if agrees {
                    self.flags.mask |= wanted.mask;
                    self.flags.value |= wanted.value;
                }
                agrees
            }),
            _ => false,
        }
    }

    /// Takes over a condition that a packet has one of several ports on one side.
    fn take_wanted(&mut self, parts: &[Condition]) -> bool {
        let mut wanted = Vec::new();
        let mut of_all = None;
        for part in parts {
            let Condition::Ports { side, first, last } = part else {
                return false;
            };
            if of_all.is_some_and(|of_all| of_all != *side) {
                return false;
            }
            of_all = Some(*side);
            wanted.push(PortRule {
                first: *first,
                last: *last,
                exclude: false,
            });
        }
        let Some(rules) = of_all.and_then(|side| self.ports_of(side)) else {
            return false;
        };
        // There is one set of wanted ports for each side. If it has ports already, a packet would
        // have to match both lists.
        if rules.iter().any(|rule| !rule.exclude) {
            return false;
        }
        rules.extend(wanted);
        true
    }

    fn ports_of(&mut self, side: Side) -> Option<&mut Vec<PortRule>> {
        match side {
            Side::Source => Some(&mut self.source_ports),
            Side::Destination => Some(&mut self.destination_ports),
            Side::Either => Some(&mut self.any_ports),
            Side::Both => None,
        }
    }
}

/// Splits a condition, negated or not, into parts that all have to hold.
fn split(condition: &Condition, negated: bool, parts: &mut Vec<Condition>) {
    match (condition, negated) {
        (Condition::All(inner), false) | (Condition::Any(inner), true) => {
            for part in inner {
                split(part, negated, parts);
            }
        }
        (Condition::Not(inner), _) => split(inner, !negated, parts),
        (Condition::IpVersion(version), true) => {
            parts.push(Condition::IpVersion(if *version == 4 { 6 } else { 4 }));
        }
        (other, true) => parts.push(other.clone().negated()),
        (other, false) => parts.push(other.clone()),
    }
}

/// The flags that a comparison of the TCP flags byte asks for.
fn flags(relation: &Relation) -> Option<FlagsRule> {
    let Value::Number(number) = relation.right else {
        return None;
    };
    let (byte, mask) = match &relation.left {
        Value::Computed(Operation::And, left, right) => match (&**left, &**right) {
            (byte, Value::Number(mask)) | (Value::Number(mask), byte) => (byte, *mask),
            _ => return None,
        },
        byte => (byte, 0xff),
    };
    let Value::Bytes {
        base: Base::Tcp,
        offset,
        size: 1,
    } = byte
    else {
        return None;
    };
    if **offset != Value::Number(FLAGS_AT) {
        return None;
    }
    let mask = u8::try_from(mask).ok()?;
    let value = match relation.comparison {
        Comparison::Equal => u8::try_from(number).ok()?,
        Comparison::NotEqual if number == 0 && mask.is_power_of_two() => mask,
        _ => return None,
    };
    // If a bit must be set that the mask leaves out, no packet matches.
    (value & !mask == 0).then_some(FlagsRule { mask, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn simplified(text: &str) -> Filter {
        let expression = Some(Expression::new(text).unwrap());
        Filter {
            expression,
            ..Filter::default()
        }
        .simplified()
    }

    fn is_left(text: &str) -> bool {
        simplified(text).expression.is_some()
    }

    #[test]
    fn required_ports_flags_and_versions_become_filter_options() {
        for text in [
            "port 80",
            "tcp port 80 or 443 or portrange 8000-8100",
            "ip and src port 80 and dst port 1024 and not port 22",
            "not (port 22 or port 23) and ip6",
            "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn",
            "tcp[13] = 2 and port 80",
            "tcp[13] & tcp-push != 0 and tcp[13] & tcp-syn = 0",
        ] {
            assert!(!is_left(text), "{text}");
        }
        let simpler = simplified("ip6 and dst port 80 and not src port 22 and tcp[13] & 2 != 0");
        assert_eq!(simpler.ip_version, Some(6));
        assert_eq!(simpler.flags, FlagsRule { mask: 2, value: 2 });
        assert_eq!(simpler.destination_ports, ["80".parse().unwrap()]);
        assert_eq!(simpler.source_ports, ["!22".parse().unwrap()]);
    }

    #[test]
    fn optional_conditions_and_those_without_a_filter_option_stay_in_the_expression() {
        for text in [
            "port 80 or host 10.0.0.1",
            "port 80 and port 443",
            "src port 80 or dst port 443",
            "src and dst port 80",
            "not (src and dst port 80)",
            "tcp[13] & 3 != 0",
            "tcp[13] & 2 = 2 and tcp[13] & 2 = 0",
            "tcp[13] > 2",
            "ip[13] = 2",
            "tcp[13:2] = 2",
            "not (port 80 and host 10.0.0.1)",
        ] {
            assert!(is_left(text), "{text}");
        }
        let simpler = simplified("port 80 and host 10.0.0.1");
        assert_eq!(simpler.any_ports, ["80".parse().unwrap()]);
        let rest = Expression::new("host 10.0.0.1").unwrap();
        assert_eq!(simpler.expression.unwrap().program, rest.program);
    }

    #[test]
    fn options_keep_their_meaning_beside_an_expression() {
        let filter = Filter {
            destination_ports: vec!["443".parse().unwrap()],
            source_ports: vec!["!22".parse().unwrap()],
            expression: Some(Expression::new("dst port 80 and src port 1024").unwrap()),
            ..Filter::default()
        };
        let simpler = filter.simplified();
        assert_eq!(simpler.destination_ports, filter.destination_ports);
        assert_eq!(simpler.source_ports.len(), 2);
        assert!(simpler.expression.is_some());
    }
}
