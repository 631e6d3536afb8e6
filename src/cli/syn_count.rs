//! Options of `syn-count`.

use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};

use super::output::RunArgs;
use super::packets::PacketArgs;
use super::values;
use crate::domain::tally::CountBy;

/// Where syn-count attaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CountMode {
    /// The same as generic
    #[default]
    Auto,
    /// XDP in the driver: cheapest, but may reset the link or turn offloads off
    Native,
    /// XDP in the stack: any interface; turns off LRO and hardware GRO where they are on
    Generic,
    /// TC ingress: works alongside another XDP program
    Tc,
}

/// Arguments of `syn-count`.
#[derive(Clone, Debug, Args)]
pub struct SynCountArgs {
    /// Time between two reports
    #[arg(short = 'I', long, value_name = "TIME", default_value = "2s", value_parser = values::time)]
    pub interval: Duration,
    /// Also count by source address, destination address or destination port
    #[arg(long, value_enum, value_name = "KEY")]
    pub by: Option<CountBy>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by", value_parser = values::top)]
    pub top: usize,
    /// Report when all SYNs, or those of one source (with --by: of one key), exceed this many a
    /// second (5000, 5k, 1M), and when they fall below 0.8 times that
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub alert: Option<f64>,
    /// Where to attach
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub mode: CountMode,
    /// Which packets, and from where.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// Output, when to stop, and the sandbox.
    #[command(flatten)]
    pub run: RunArgs,
}

impl ValueEnum for CountBy {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::Saddr, Self::Daddr, Self::Dport]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.name());
        Some(match self {
            Self::Saddr => value.help("Source address").alias("src"),
            Self::Daddr => value.help("Destination address").alias("dst"),
            Self::Dport => value.help("Destination port").alias("port"),
        })
    }
}
