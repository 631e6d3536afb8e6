//! Options of commands that filter by process.

use clap::{Args, ValueHint};

use super::values;
use crate::filter::process::ProcessRules;

/// Filters on processes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters (in the kernel)")]
pub struct ProcessArgs {
    /// Ids of processes that connect or accept; like --comm, it leaves out connections without a
    /// process
    #[arg(long, value_name = "PIDS", value_delimiter = ',', value_parser = values::pid)]
    pid: Vec<u32>,
    /// Users that connect, accept or listen: ids, or names of /etc/passwd
    #[arg(
        long,
        value_name = "USERS",
        value_delimiter = ',',
        value_hint = ValueHint::Username,
        value_parser = values::uid
    )]
    uid: Vec<u32>,
    /// Names of processes that connect or accept, as in /proc/PID/comm (15 bytes at most) or as the
    /// COMM column shows them: a\x20name
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = values::comm)]
    comm: Vec<Vec<u8>>,
}

impl ProcessArgs {
    /// The filter that these options ask for.
    pub fn rules(&self) -> ProcessRules<'_> {
        ProcessRules {
            pids: &self.pid,
            uids: &self.uid,
            comms: &self.comm,
        }
    }
}
