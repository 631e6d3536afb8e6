//! The command line, and nothing else.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::filter::{AddressRule, Filter, FlagsRule, PayloadRule, PortRange};

const EXAMPLES: &str = "\
Examples:
  tcpinspect check                            what can run here
  tcpinspect syn-count --by saddr eth0        who sends SYNs, every 2 seconds
  tcpinspect port-monitor -p 22,8000-8100     who tries these ports
  tcpinspect connect-trace --failed --json    outgoing connections that fail";

/// Shows incoming TCP from inside the kernel.
///
/// It observes: it never drops, delays or changes a packet, and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(
    name = "tcpinspect",
    version,
    max_term_width = 100,
    propagate_version = true,
    after_help = EXAMPLES
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count incoming SYNs per interval, in total, and by source, destination or port
    SynCount(SynCountArgs),
    /// Print one line per packet that matches; by default one per connection attempt
    PortMonitor(PortMonitorArgs),
    /// Print outgoing connection attempts and their fate, with process, error and latency
    ConnectTrace(ConnectTraceArgs),
    /// Tell what this kernel and these privileges allow, and what each command would use
    Check(CheckArgs),
    /// Show who talks to whom: one line per finished connection, or a live table on a terminal
    Flows(FlowsArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, in roff
    Man,
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns for people, grep and awk
    #[default]
    Text,
    /// JSON Lines: one flat object a line
    Json,
}

/// Output and how much is said.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Format of the data on stdout
    #[arg(short, long, value_enum, default_value_t, value_name = "FORMAT")]
    pub output: OutputFormat,
    /// Short for --output json
    #[arg(long, overrides_with = "output")]
    pub json: bool,
    /// Fewer notices on stderr
    #[arg(short, long)]
    pub quiet: bool,
    /// More notices on stderr; -vv shows the logs of libbpf and the verifier
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
}

impl OutputArgs {
    /// The format asked for, by whichever option.
    pub fn format(&self) -> OutputFormat {
        if self.json {
            OutputFormat::Json
        } else {
            self.output
        }
    }
}

/// When to stop.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct StopArgs {
    /// Stop after this many seconds
    #[arg(short, long, value_name = "SECS", value_parser = seconds)]
    pub duration: Option<Duration>,
    /// Stop after this many data lines
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Exit with status 3 if events were lost
    #[arg(long)]
    pub strict: bool,
}

/// What the process keeps of its rights once it is attached.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct SandboxArgs {
    /// Set no seccomp filter once attached; capabilities are given up all the same
    #[arg(long, help_heading = "Sandbox")]
    pub no_sandbox: bool,
}

/// Filters on addresses and ports.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters (in the kernel)")]
pub struct AddressArgs {
    /// Source addresses or prefixes; !CIDR excludes
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub src: Vec<AddressRule>,
    /// Destination addresses or prefixes; !CIDR excludes
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub dst: Vec<AddressRule>,
    /// Source ports and ranges: 1024,6000-6063
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub sport: Vec<PortRange>,
    /// Destination ports and ranges: 80,443,8000-8100
    #[arg(short, long, value_name = "LIST", value_delimiter = ',')]
    pub port: Vec<PortRange>,
    /// IPv4 only
    #[arg(short = '4', conflicts_with = "ipv6")]
    pub ipv4: bool,
    /// IPv6 only
    #[arg(short = '6')]
    pub ipv6: bool,
}

impl AddressArgs {
    /// The filter that these options ask for.
    pub fn filter(&self) -> Filter {
        Filter {
            sources: self.src.clone(),
            destinations: self.dst.clone(),
            source_ports: self.sport.clone(),
            ports: self.port.clone(),
            ip_version: match (self.ipv4, self.ipv6) {
                (true, _) => Some(4),
                (_, true) => Some(6),
                _ => None,
            },
            ..Filter::default()
        }
    }
}

/// Filters on packets, and where the packets come from.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters (in the kernel)")]
pub struct PacketArgs {
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// TCP flags that must be set, or with ! clear: syn,!ack; 'any' for all
    #[arg(long, value_name = "SPEC")]
    pub flags: Option<FlagsRule>,
    /// Bytes at an offset from the start of the TCP payload, 16 at most
    #[arg(long, value_name = "OFFSET:HEX|OFFSET:\"text\"")]
    pub payload: Option<PayloadRule>,
    /// Read a pcap or pcapng file instead of an interface; - is stdin
    #[arg(
        short,
        long,
        value_name = "FILE",
        help_heading = "Source",
        conflicts_with = "interfaces"
    )]
    pub read: Option<PathBuf>,
    /// Interfaces; without any, that of the default route, else lo
    #[arg(value_name = "IFACE", help_heading = "Source")]
    pub interfaces: Vec<String>,
}

impl PacketArgs {
    /// The filter that these options ask for; `flags` is the command's default.
    pub fn filter(&self, flags: FlagsRule) -> Filter {
        Filter {
            flags: self.flags.unwrap_or(flags),
            payload: self.payload.clone(),
            ..self.addresses.filter()
        }
    }
}

/// The event buffer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Event buffer")]
pub struct BufferArgs {
    /// Size of the event buffer in bytes: a power of two
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = buffer_size)]
    pub buffer_size: u32,
    /// Ring buffer where the kernel has it, else a perf event array
    #[arg(long, value_enum, default_value_t, value_name = "KIND")]
    pub buffer: BufferChoice,
}

/// `--buffer`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BufferChoice {
    /// Ring buffer where the kernel has it
    #[default]
    Auto,
    /// Ring buffer (Linux 5.8)
    Ring,
    /// Perf event array
    Perf,
}

/// What SYNs are counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CountBy {
    /// Source address
    Saddr,
    /// Destination address
    Daddr,
    /// Destination port
    Dport,
}

impl CountBy {
    /// As it is spelled on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saddr => "saddr",
            Self::Daddr => "daddr",
            Self::Dport => "dport",
        }
    }
}

/// Where syn-count attaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CountMode {
    /// Native XDP, else generic XDP
    #[default]
    Auto,
    /// XDP in the driver
    Native,
    /// XDP in the stack: any interface, no effect on the driver
    Generic,
    /// TC ingress: beside a foreign XDP program
    Tc,
}

/// Arguments of `syn-count`.
#[derive(Clone, Debug, Args)]
pub struct SynCountArgs {
    /// Seconds between two lines
    #[arg(short, long, value_name = "SECS", default_value = "2", value_parser = seconds)]
    pub interval: Duration,
    /// Also count by this key
    #[arg(long, value_enum, value_name = "KEY")]
    pub by: Option<CountBy>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by")]
    pub top: usize,
    /// Tell when a source sends more than this many SYNs a second, and when it falls back
    #[arg(long, value_name = "RATE", value_parser = rate)]
    pub alert: Option<f64>,
    /// Where to attach
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub mode: CountMode,
    /// What is looked at.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
    /// End.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// Which way packets go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DirectionChoice {
    /// Coming in
    #[default]
    Ingress,
    /// Going out
    Egress,
    /// Both
    Both,
}

/// Arguments of `port-monitor`.
#[derive(Clone, Debug, Args)]
pub struct PortMonitorArgs {
    /// Which way the packets go
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    pub direction: DirectionChoice,
    /// Pass at most this many events a second, and count the rest as suppressed
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_rate: Option<u64>,
    /// Add the first bytes of the payload in hex (16 of them unless --payload-bytes says more)
    #[arg(short = 'x')]
    pub hex: bool,
    /// How many bytes of the payload, 256 at most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=256))]
    pub payload_bytes: Option<u32>,
    /// What is looked at.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// Event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
    /// End.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// How connect-trace looks at the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The first of the others that works
    #[default]
    Auto,
    /// fentry and fexit
    Fentry,
    /// kprobe and kretprobe
    Kprobe,
    /// The state tracepoint alone
    Tracepoint,
}

/// Arguments of `connect-trace`.
#[derive(Clone, Debug, Args)]
pub struct ConnectTraceArgs {
    /// How to look at the kernel
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendChoice,
    /// Only failures
    #[arg(long)]
    pub failed: bool,
    /// Also incoming connections, as they are accepted
    #[arg(long)]
    pub accept: bool,
    /// Also the end of each connection
    #[arg(long)]
    pub close: bool,
    /// Process ids
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "Filters (in the kernel)"
    )]
    pub pid: Vec<u32>,
    /// User ids
    #[arg(
        long,
        value_name = "LIST",
        value_delimiter = ',',
        help_heading = "Filters (in the kernel)"
    )]
    pub uid: Vec<u32>,
    /// Process names, as in /proc/PID/comm (15 bytes at most)
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = comm, help_heading = "Filters (in the kernel)")]
    pub comm: Vec<String>,
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// Event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
    /// End.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// The arguments of a command as if only these options had been given.
///
/// # Errors
/// The options are wrong.
pub fn arguments<T: Args>(options: &[&str]) -> anyhow::Result<T> {
    let command = T::augment_args(clap::Command::new("tcpinspect").no_binary_name(true));
    Ok(T::from_arg_matches(
        &command.try_get_matches_from(options)?,
    )?)
}

/// Arguments of `flows`.
#[derive(Clone, Debug, Args)]
pub struct FlowsArgs {
    /// Seconds between two refreshes of the table on a terminal, or two lines with --by
    #[arg(short, long, value_name = "SECS", default_value = "1", value_parser = seconds)]
    pub interval: Duration,
    /// Show no flows, but how much they carry by this key, in each interval
    #[arg(long, value_enum, value_name = "KEY")]
    pub by: Option<CountBy>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by")]
    pub top: usize,
    /// Flows in the table at once; each takes about 430 bytes of kernel memory,
    /// from the start on
    #[arg(long, value_name = "N", default_value_t = 65536, value_parser = clap::value_parser!(u32).range(1..=16_777_216))]
    pub max_flows: u32,
    /// A flow without a packet for so long is over
    #[arg(long, value_name = "SECS", default_value = "300", value_parser = seconds)]
    pub idle_timeout: Duration,
    /// On a terminal too, print one line per finished flow
    #[arg(long)]
    pub no_tui: bool,
    /// What is looked at.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// Event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Output.
    #[command(flatten)]
    pub output: OutputArgs,
    /// End.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Sandbox.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// The longest time that can be asked for: a century, so that no clock overflows.
const MAX_SECONDS: f64 = 100.0 * 366.0 * 86_400.0;

fn seconds(text: &str) -> Result<Duration, String> {
    let value = text
        .parse::<f64>()
        .map_err(|_| format!("'{text}' is not a number of seconds"))?;
    // Shorter than a millisecond is no interval for a person, and busy work for the machine.
    if !(0.001..=MAX_SECONDS).contains(&value) {
        return Err("it must be at least 0.001 seconds, and at most a century".into());
    }
    Ok(Duration::from_secs_f64(value))
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && value > 0.0 => Ok(value),
        _ => Err(format!("'{text}' is not a number of SYNs a second above 0")),
    }
}

fn buffer_size(text: &str) -> Result<u32, String> {
    // Both kinds of buffer are made of whole pages; 1 GiB is more than any reader catches up on.
    const ALLOWED: std::ops::RangeInclusive<u32> = 4096..=1 << 30;
    match text.parse::<u32>() {
        Ok(size) if size.is_power_of_two() && ALLOWED.contains(&size) => Ok(size),
        _ => Err(format!(
            "'{text}' is not a power of two from 4096 to 1073741824"
        )),
    }
}

fn comm(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 15 {
        return Err("the kernel keeps process names of 1 to 15 bytes".into());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_may_be_repeated_and_joined() {
        let cli = Cli::try_parse_from([
            "tcpinspect",
            "port-monitor",
            "-p",
            "80,8000-8010",
            "-p",
            "443",
            "eth0",
        ])
        .unwrap();
        let Command::PortMonitor(args) = cli.command else {
            panic!("not port-monitor")
        };
        assert_eq!(args.packets.addresses.port.len(), 3);
        assert_eq!(args.packets.interfaces, ["eth0"]);
    }

    #[test]
    fn fractions_of_seconds_are_durations() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["0", "-1", "nan", "inf", "1e300", "", "2s"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }
}
