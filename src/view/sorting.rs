//! Sorting, as all tables do it.

use std::cmp::Ordering;

/// An order of ascending values, reversed if the table descends.
pub fn directed(order: Ordering, descending: bool) -> Ordering {
    match descending {
        true => order.reverse(),
        false => order,
    }
}

/// The mark in the header of a column, if the table is sorted by it.
pub fn arrow(is_sorted_by: bool, descending: bool) -> &'static str {
    match (is_sorted_by, descending) {
        (false, _) => "",
        (true, true) => "▼",
        (true, false) => "▲",
    }
}
