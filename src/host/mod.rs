//! What this host has and allows: interfaces, their fate while a program is
//! attached, their offload features, and the privileges of this process.
//!
//! Everything is asked of the kernel by netlink, capget and `/proc`, so that it
//! also works inside `ip netns exec`, where `/sys` may show another namespace.

pub mod containers;
pub mod features;
pub mod interfaces;
pub mod kernel_types;
pub mod link_watch;
pub(crate) mod netlink;
pub mod privileges;
pub mod sandbox;
