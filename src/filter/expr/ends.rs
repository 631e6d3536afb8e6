//! Evaluates expressions about addresses and ports in user space, for the ends of a connection.

use std::net::IpAddr;

use super::Expression;
use super::syntax::{Condition, Prefix, Side};

/// An address and a port.
pub type End = (IpAddr, u16);

impl Expression {
    /// Whether a connection from the first end to the second passes; `None` if the expression is
    /// about more than addresses and ports.
    pub fn judge(&self, ends: [End; 2]) -> Option<bool> {
        judge(&self.condition, ends)
    }
}

fn judge(condition: &Condition, ends: [End; 2]) -> Option<bool> {
    Some(match condition {
        Condition::Always(always) => *always,
        Condition::Not(inner) => !judge(inner, ends)?,
        // All of them are looked at, because each may be about more.
        Condition::All(parts) => parts.iter().try_fold(true, |all, part| {
            judge(part, ends).map(|passes| all & passes)
        })?,
        Condition::Any(parts) => parts.iter().try_fold(false, |any, part| {
            judge(part, ends).map(|passes| any | passes)
        })?,
        Condition::IpVersion(version) => ends[0].0.is_ipv4() == (*version == 4),
        Condition::Address(side, prefix) => {
            on_side(*side, ends.map(|(addr, _)| is_in(addr, *prefix)))
        }
        Condition::Ports { side, first, last } => on_side(
            *side,
            ends.map(|(_, port)| (*first..=*last).contains(&port)),
        ),
        Condition::Mac(..)
        | Condition::Vlan { .. }
        | Condition::Outbound
        | Condition::Relation(_) => return None,
    })
}

fn on_side(side: Side, [source, destination]: [bool; 2]) -> bool {
    match side {
        Side::Source => source,
        Side::Destination => destination,
        Side::Either => source || destination,
        Side::Both => source && destination,
    }
}

fn is_in(addr: IpAddr, prefix: Prefix) -> bool {
    match (addr, prefix) {
        (IpAddr::V4(addr), Prefix::V4 { address, mask }) => addr.to_bits() & mask == address & mask,
        (IpAddr::V6(addr), Prefix::V6 { address, mask }) => addr.to_bits() & mask == address & mask,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_judged_as_tcpdump_judges_a_packet_between_them() {
        let v4 = ["192.0.2.1", "198.51.100.7"].map(|addr| addr.parse().unwrap());
        let v6 = ["2001:db8::1", "2001:db8::2"].map(|addr| addr.parse().unwrap());
        let between = |[source, destination]: [IpAddr; 2]| [(source, 40_000), (destination, 443)];
        for (text, of_v4, of_v6) in [
            ("port 443", Some(true), Some(true)),
            ("src port 443", Some(false), Some(false)),
            ("dst portrange 400-500", Some(true), Some(true)),
            ("host 192.0.2.1", Some(true), Some(false)),
            ("dst host 192.0.2.1", Some(false), Some(false)),
            ("net 198.51.100.0/24 and port 443", Some(true), Some(false)),
            ("src net 2001:db8::/32", Some(false), Some(true)),
            ("src and dst net 192.0.2.0/24", Some(false), Some(false)),
            ("ip6 or src host 192.0.2.1", Some(true), Some(true)),
            ("not (port 22 or ip6)", Some(true), Some(false)),
            ("tcp", Some(true), Some(true)),
            ("port 443 and tcp[13] & 2 != 0", None, None),
            ("vlan 7", None, None),
        ] {
            let expression = Expression::new(text).unwrap();
            assert_eq!(expression.judge(between(v4)), of_v4, "{text}");
            assert_eq!(expression.judge(between(v6)), of_v6, "{text}");
        }
    }
}
