//! Options of `flows`.

use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{ArgGroup, Args, ValueEnum};

use super::output::{BufferArgs, RunArgs};
use super::packets::PacketArgs;
use super::processes::ProcessArgs;
use super::values;
use crate::domain::traffic::{FlowBy, FlowSort};

/// The times of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowHistogram {
    /// Round trip, as the kernel measured it at the end, else the time of the handshake
    Rtt,
    /// From the first SYN to the ACK of its answer
    Handshake,
}

impl FlowHistogram {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rtt => "rtt",
            Self::Handshake => "handshake",
        }
    }
}

/// Arguments of `flows`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("live")
    .args(["pid", "uid", "comm", "container"])
    .multiple(true)
    .conflicts_with("read"))]
pub struct FlowsArgs {
    /// Time between two refreshes of the table, or between two reports with --by
    #[arg(short = 'I', long, value_name = "TIME", default_value = "1s", value_parser = values::time)]
    pub interval: Duration,
    /// Instead of single flows, show the traffic by address, port, process and so on in each interval
    #[arg(long, value_enum, value_name = "KEY")]
    pub by: Option<FlowBy>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by", value_parser = values::top)]
    pub top: usize,
    /// What makes a key busy; ports or peers puts scanners first
    #[arg(
        long,
        value_enum,
        value_name = "BY",
        default_value_t,
        hide_default_value = true,
        requires = "by",
        conflicts_with = "histogram"
    )]
    pub sort: FlowSort,
    /// Print at most this many lines a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", conflicts_with = "by", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Length of the prefixes of --by net [default: 24 for IPv4, 64 for IPv6]
    #[arg(long, value_name = "BITS", requires = "by", value_parser = clap::value_parser!(u8).range(0..=128))]
    pub prefix: Option<u8>,
    /// Show the server that each client asks for: TLS server name or HTTP host, and ALPN or method
    #[arg(long, conflicts_with = "by")]
    pub names: bool,
    /// Instead of flows, show at the end how these times are distributed, with --by for each key
    #[arg(long, value_enum, value_name = "OF")]
    pub histogram: Option<FlowHistogram>,
    /// At the end, sum up the run: failures by kind, retransmissions, top talkers, longest handshakes
    #[arg(long)]
    pub summary: bool,
    /// Size of the table of flows; each takes about 560 bytes of kernel memory, from the start
    #[arg(long, value_name = "N", default_value_t = 65536, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub max_flows: u32,
    /// A flow without packets for this long counts as ended
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = values::time)]
    pub idle_timeout: Duration,
    /// Print an attempt after this time without an answer, though it may still go on
    #[arg(long, value_name = "TIME", default_value = "3s", value_parser = values::time)]
    pub attempt_timeout: Duration,
    /// Print lines on a terminal too, instead of a live table
    #[arg(long)]
    pub no_tui: bool,
    /// Processes and users.
    #[command(flatten)]
    pub processes: ProcessArgs,
    /// Containers by id (12 digits are enough), systemd machines by name, and pods by name or uid
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        help_heading = "Filters (in user space)"
    )]
    pub container: Vec<String>,
    /// Which packets, and from where.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Output, when to stop, and the sandbox.
    #[command(flatten)]
    pub run: RunArgs,
}

impl ValueEnum for FlowBy {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Saddr,
            Self::Daddr,
            Self::Dport,
            Self::Process,
            Self::Uid,
            Self::Container,
            Self::Net,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let value = PossibleValue::new(self.name());
        Some(match self {
            Self::Saddr => value.help("Address of the initiator").alias("src"),
            Self::Daddr => value.help("Address of the responder").alias("dst"),
            Self::Dport => value.help("Port of the responder").alias("port"),
            Self::Process => value
                .help("Process on this machine")
                .aliases(["comm", "pid"]),
            Self::Uid => value.help("User whose socket it is"),
            Self::Container => value.help("Container of the process"),
            Self::Net => value.help("Network of the initiator: see --prefix"),
        })
    }
}

impl ValueEnum for FlowSort {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Bytes,
            Self::Packets,
            Self::Flows,
            Self::Peers,
            Self::Ports,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let (name, help) = match self {
            Self::Bytes => ("bytes", "Payload both ways"),
            Self::Packets => ("packets", "Packets both ways"),
            Self::Flows => ("flows", "Connections"),
            Self::Peers => ("peers", "Different addresses at the other end"),
            Self::Ports => ("ports", "Different ports of responders"),
        };
        Some(PossibleValue::new(name).help(help))
    }
}
