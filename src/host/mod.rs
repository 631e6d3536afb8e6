//! Facts about this host: interfaces and changes to them, sockets, routes, kernel types and
//! symbols, and the privileges of this process.
//!
//! Facts about the network namespace come from netlink and `/proc`: inside `ip netns exec`,
//! `/sys` may show another namespace.

pub mod containers;
pub mod features;
pub mod interfaces;
pub mod kernel;
pub mod kernel_symbols;
pub mod kernel_types;
pub mod link_watch;
pub mod lookup;
pub(crate) mod netlink;
pub mod netns;
pub mod privileges;
pub mod routes;
pub mod sandbox;
pub mod sock_diag;
pub mod socket_counts;
pub mod time_zone;
