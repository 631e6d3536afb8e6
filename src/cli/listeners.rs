//! Options of `listeners`.

use std::time::Duration;

use clap::Args;

use super::output::RunArgs;
use super::packets::NetnsArgs;
use super::values;
use crate::filter::PortRule;

/// Arguments of `listeners`.
#[derive(Clone, Debug, Args)]
pub struct ListenersArgs {
    /// Time between two reports
    #[arg(short = 'I', long, value_name = "TIME", default_value = "1s", value_parser = values::time)]
    pub interval: Duration,
    /// Print one report and exit
    #[arg(short = '1', long, conflicts_with_all = ["duration", "alert"])]
    pub once: bool,
    /// Print lines on a terminal too, instead of a live table
    #[arg(long)]
    pub no_tui: bool,
    /// Report when an accept queue is at least this full, in percent, or attempts are dropped, and
    /// when neither is the case any more
    #[arg(long, value_name = "PERCENT", value_parser = values::percent)]
    pub alert: Option<f64>,
    /// Ports: numbers, ranges, names of /etc/services, !PORT to exclude one: 80,8000-8100,https,!8022
    #[arg(
        short,
        long,
        value_name = "PORTS",
        value_delimiter = ',',
        help_heading = "Filters"
    )]
    pub port: Vec<PortRule>,
    /// IPv4 only
    #[arg(short = '4', conflicts_with = "ipv6", help_heading = "Filters")]
    pub ipv4: bool,
    /// IPv6 only
    #[arg(short = '6', help_heading = "Filters")]
    pub ipv6: bool,
    /// The network namespace to watch.
    #[command(flatten)]
    pub netns: NetnsArgs,
    /// Output, when to stop, and the sandbox.
    #[command(flatten)]
    pub run: RunArgs,
}
