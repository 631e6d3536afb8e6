//! Options of `port-monitor`.

use clap::Args;

use super::output::{BufferArgs, RunArgs};
use super::packets::{DirectionChoice, PacketArgs, RecordingArgs};
use super::values;
use crate::skel::PAYLOAD_CAPTURE_MAX;

/// Arguments of `port-monitor`.
#[derive(Clone, Debug, Args)]
pub struct PortMonitorArgs {
    /// Direction of the packets
    #[arg(long, value_enum, default_value_t, value_name = "DIRECTION")]
    pub direction: DirectionChoice,
    /// Print at most this many events a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Add the first 16 bytes of the payload in hex, or as many as --payload-bytes says
    #[arg(short = 'x', conflicts_with = "write")]
    pub hex: bool,
    /// How many bytes of the payload to add
    #[arg(
        long,
        help = format!("How many bytes of the payload to add, {PAYLOAD_CAPTURE_MAX} at most"),
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(0..=i64::from(PAYLOAD_CAPTURE_MAX)),
        conflicts_with = "write"
    )]
    pub payload_bytes: Option<u32>,
    /// A capture file in place of lines.
    #[command(flatten)]
    pub recording: RecordingArgs,
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
