//! The commands, one file each, of the same stem as their program in `src/bpf`.

pub mod check;
pub mod connect_trace;
pub mod flow_owner;
pub mod flows;
pub mod generate;
pub mod port_monitor;
pub mod replay;
pub mod syn_count;
