//! Which priority our filter gets.
//!
//! Filters of lower priority numbers come first. All filters of one priority are
//! of one kind and one protocol, and within kind `bpf` the newest comes first
//! (`cls_bpf_change()` adds to the head of the list). Priority 0, which lets the
//! kernel choose, is of no use: that only goes before the filters from 0x8000 on
//! (`tc_new_tfilter()`, `tcf_auto_prio()`), not before those whose priority
//! somebody chose.

use std::collections::BTreeMap;

use super::owner::FilterName;
use super::rtnl::{ALL_PROTOCOLS, TcFilter};

/// The priority of our filter, unless other filters would come first.
///
/// It is low, so that filters that others add later come after ours, especially
/// those for which the kernel chooses the priority: 49152 and less. It is not 1
/// or a round number, because another program may ask for such a priority, and
/// would fail if its filter is of another kind.
const PREFERRED: u16 = 37;

/// A priority at which there is a filter of somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) priority: u16,
    /// Whether its filters are of kind `bpf` and for all protocols, as ours is.
    pub(super) shareable: bool,
}

/// Reads the name of a filter, or returns `None` if it is not one of ours.
pub(super) fn our_name(filter: &TcFilter) -> Option<FilterName> {
    let ours = filter.chain == 0 && filter.handle != 0 && filter.kind == "bpf";
    FilterName::parse(filter.name.as_deref().filter(|_| ours)?)
}

/// The priorities at which there are filters of somebody else, ascending. Packets
/// pass other chains than 0 only if a filter of chain 0 sends them there.
pub(super) fn taken(filters: &[TcFilter]) -> Vec<Taken> {
    #[derive(Default)]
    struct Count {
        ours: usize,
        foreign: usize,
        shareable: bool,
    }
    let mut counts: BTreeMap<u16, Count> = BTreeMap::new();
    for filter in filters.iter().filter(|filter| filter.chain == 0) {
        let count = counts.entry(filter.priority).or_default();
        count.shareable = filter.kind == "bpf" && filter.protocol == ALL_PROTOCOLS;
        if our_name(filter).is_some() {
            count.ours += 1;
        } else if filter.handle != 0 {
            count.foreign += 1;
        }
    }
    counts
        .into_iter()
        // A priority without any filter, only its head, is not ours: the last of
        // our filters takes the head with it.
        .filter(|(_, count)| count.foreign > 0 || count.ours == 0)
        .map(|(priority, count)| Taken {
            priority,
            shareable: count.shareable,
        })
        .collect()
}

/// How many filters of others come before ours, which has this priority and
/// handle, in the order of `filters`.
pub(super) fn foreign_before(filters: &[TcFilter], priority: u16, handle: u32) -> usize {
    filters
        .iter()
        .filter(|filter| filter.chain == 0 && filter.handle != 0)
        .take_while(|filter| (filter.priority, filter.handle) != (priority, handle))
        .filter(|filter| our_name(filter).is_none())
        .count()
}

/// Chooses the priority that puts our filter before as many of the `taken` ones
/// as possible, which are in ascending order: before all of them, unless the
/// first has priority 1 and can't be shared. `None` if all are in use.
pub(super) fn choose(taken: &[Taken]) -> Option<u16> {
    let mut before = 0;
    for next in taken {
        if next.priority > before + 1 {
            // There is room between the two.
            return Some(PREFERRED.clamp(before + 1, next.priority - 1));
        }
        if next.priority > before && next.shareable {
            return Some(next.priority);
        }
        before = next.priority;
    }
    before.checked_add(1).map(|free| free.max(PREFERRED))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::clsact::Direction;

    const OURS: &str = "tcpinspect/1/2/3-4:program";

    fn filter(priority: u16, handle: u32, name: Option<&str>) -> TcFilter {
        TcFilter {
            direction: Direction::Ingress,
            priority,
            protocol: ALL_PROTOCOLS,
            kind: "bpf".to_owned(),
            chain: 0,
            handle,
            name: name.map(str::to_owned),
        }
    }

    #[test]
    fn our_own_filters_do_not_count_as_taken() {
        let filters = [
            filter(1, 0, None),
            filter(1, 1, Some("theirs")),
            filter(1, 9, Some(OURS)),
            filter(37, 0, None),
            filter(37, 9, Some(OURS)),
            filter(40, 0, None),
            TcFilter {
                protocol: 8,
                ..filter(50, 1, None)
            },
            TcFilter {
                chain: 1,
                ..filter(60, 1, None)
            },
            TcFilter {
                kind: "u32".to_owned(),
                ..filter(70, 1, Some(OURS))
            },
        ];
        assert_eq!(taken(&filters), [bpf(1), bpf(40), other(50), other(70)]);
        assert_eq!(foreign_before(&filters, 1, 9), 1);
        assert_eq!(foreign_before(&filters, 37, 9), 1);
        assert_eq!(foreign_before(&filters, 50, 1), 1);
        assert_eq!(foreign_before(&filters, 70, 1), 2);
    }

    fn bpf(priority: u16) -> Taken {
        Taken {
            priority,
            shareable: true,
        }
    }

    fn other(priority: u16) -> Taken {
        Taken {
            priority,
            shareable: false,
        }
    }

    #[test]
    fn the_preferred_priority_is_chosen_where_it_comes_first() {
        for taken in [&[][..], &[other(38)], &[other(49_152)], &[bpf(100)]] {
            assert_eq!(choose(taken), Some(PREFERRED), "{taken:?}");
        }
    }

    #[test]
    fn a_lower_number_is_chosen_if_a_filter_has_37_or_less() {
        assert_eq!(choose(&[other(37)]), Some(36));
        assert_eq!(choose(&[bpf(2), other(3)]), Some(1));
        assert_eq!(choose(&[other(10), other(20)]), Some(9));
    }

    #[test]
    fn priority_1_is_shared_if_it_can_be() {
        assert_eq!(choose(&[bpf(1)]), Some(1));
        assert_eq!(choose(&[bpf(1), other(2)]), Some(1));
    }

    #[test]
    fn if_priority_1_is_taken_ours_is_as_early_as_possible() {
        assert_eq!(choose(&[other(1)]), Some(37));
        assert_eq!(choose(&[other(1), other(5)]), Some(4));
        assert_eq!(choose(&[other(1), bpf(2)]), Some(2));
        assert_eq!(choose(&[other(1), other(2), other(3)]), Some(37));
        let many: Vec<Taken> = (1..=40).map(other).collect();
        assert_eq!(choose(&many), Some(41));
    }

    #[test]
    fn there_may_be_no_priority_left() {
        let all: Vec<Taken> = (1..=u16::MAX).map(other).collect();
        assert_eq!(choose(&all), None);
        assert_eq!(choose(&all[..all.len() - 1]), Some(u16::MAX));
    }
}
