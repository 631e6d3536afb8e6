//! Facts about this host: interfaces and changes to them, sockets, routes, kernel types and
//! symbols, and the privileges of this process.
//!
//! Facts about the network namespace come from netlink and `/proc`: inside `ip netns exec`,
//! `/sys` may show another namespace.

pub(crate) mod containers;
pub mod features;
pub mod interfaces;
pub(crate) mod kernel;
pub(crate) mod kernel_symbols;
pub(crate) mod kernel_types;
pub mod link_watch;
pub(crate) mod lookup;
pub(crate) mod netlink;
pub(crate) mod netns;
pub mod privileges;
pub(crate) mod routes;
pub mod sandbox;
pub(crate) mod sock_diag;
pub(crate) mod socket_counts;
pub mod time_zone;
