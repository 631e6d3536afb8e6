//! The command line: commands, and their options and values.

pub mod manual;
pub mod usage;
pub mod values;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, ArgGroup, Args, CommandFactory, Parser, Subcommand, ValueEnum, ValueHint};

use self::manual::Page;
use crate::capture::rotation::Limits;
use crate::capture::write::MAX_SNAPLEN;
use crate::failure::Failure;
use crate::filter::expr::Expression;
use crate::filter::{AddressRule, Filter, FlagsRule, PayloadRule, PortRule};

/// Shows incoming TCP from inside the kernel.
///
/// It only observes: it never drops, delays or changes a packet, and when it ends it leaves nothing
/// behind.
#[derive(Debug, Parser)]
#[command(
    name = "tcpinspect",
    version,
    max_term_width = 100,
    propagate_version = true
)]
pub struct Cli {
    /// The subcommand.
    #[command(subcommand)]
    pub command: Command,
}

/// The definition of the command line, with examples and explanations in its help.
pub fn command() -> clap::Command {
    let mut command = Cli::command();
    let names: Vec<_> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(name, with_page);
    }
    with_page(command)
}

fn with_page(command: clap::Command) -> clap::Command {
    match Page::of(command.get_name()) {
        Some(page) => command
            .after_help(page.examples())
            .after_long_help(page.help()),
        None => command,
    }
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Count incoming SYNs per interval, in total and by source, destination or port
    SynCount(SynCountArgs),
    /// Print a line for each matching packet, by default for each connection attempt (SYN)
    PortMonitor(PortMonitorArgs),
    /// Print outgoing connection attempts: process, outcome, error and latency
    ConnectTrace(ConnectTraceArgs),
    /// Print incoming connection attempts: who accepts each of them, or why it fails
    AcceptTrace(AcceptTraceArgs),
    /// Show what this kernel and your privileges allow, and what each command would use
    Check(CheckArgs),
    /// Show TCP connections: a live table on a terminal, else a line for each
    Flows(FlowsArgs),
    /// Print each TCP segment that is dropped or sent again, and each reset, with the reason
    LossTrace(LossTraceArgs),
    /// Show listening sockets: process, accept queue, half-open connections and drops
    Listeners(ListenersArgs),
    /// Serve counts and histograms to Prometheus (OpenMetrics over HTTP)
    Exporter(ExporterArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print a manual page, in roff
    Man {
        /// The command that the page is about; without it, the program as a whole
        command: Option<String>,
        /// Write all pages into this directory instead
        #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "command")]
        dir: Option<PathBuf>,
    },
}

impl Command {
    /// Refuses options that contradict each other.
    fn check(&mut self) -> Result<(), Failure> {
        match self {
            Self::SynCount(args) => args.output.check().and_then(|()| args.packets.check()),
            Self::PortMonitor(args) => {
                args.output.check()?;
                args.recording
                    .check(&args.output, args.packets.read.is_some())?;
                args.packets.check()
            }
            Self::Flows(args) => args.output.check().and_then(|()| args.packets.check()),
            Self::ConnectTrace(args) => {
                args.output.check()?;
                args.addresses.filter().check_families()
            }
            Self::LossTrace(args) => {
                args.output.check()?;
                args.check_recording()?;
                args.addresses.filter().check_families()
            }
            Self::AcceptTrace(args) => {
                args.output.check()?;
                args.check()
            }
            Self::Check(args) => args.output.check(),
            Self::Listeners(args) => args.output.check(),
            Self::Exporter(_) | Self::Completions { .. } | Self::Man { .. } => Ok(()),
        }
    }
}

/// How data is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Columns for people, grep and awk
    #[default]
    Text,
    /// JSON Lines: one object per line
    Json,
}

/// How times are shown in the TIME column.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TimeStyle {
    /// Local time of day, with the date if it is not the day of the start
    #[default]
    Local,
    /// Local date and time with UTC offset, such as 2026-01-31T12:00:00.000000+01:00
    Iso,
    /// Seconds since 1970-01-01 UTC
    Unix,
    /// Seconds since the previous line
    Delta,
}

/// Output, and how much is printed to stderr.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    /// Format of the data on stdout [default: text]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<OutputFormat>,
    /// Short for --output json
    #[arg(long)]
    json: bool,
    /// How times are shown in the TIME column of text; the time zone is that of TZ
    #[arg(long, value_enum, default_value_t, value_name = "STYLE")]
    pub time: TimeStyle,
    /// Columns of text, in this order, by their names in the header: time,saddr,dport
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub columns: Vec<String>,
    /// No `attached:` line, summary or notices on stderr; -qq: errors only
    #[arg(short, long, action = ArgAction::Count)]
    pub quiet: u8,
    /// More notices on stderr; -vv: also the logs of libbpf and of the verifier
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet")]
    pub verbose: u8,
    /// Does nothing: names are never looked up (for those used to tcpdump -n)
    #[arg(short = 'n', action = ArgAction::Count)]
    _numeric: u8,
}

impl OutputArgs {
    /// The format asked for, by whichever option.
    pub fn format(&self) -> OutputFormat {
        if self.json {
            OutputFormat::Json
        } else {
            self.output.unwrap_or_default()
        }
    }

    /// Text, with this much on stderr.
    fn of_verbosity(quiet: u8, verbose: u8) -> Self {
        Self {
            quiet,
            verbose,
            ..Self::default()
        }
    }

    fn check(&self) -> Result<(), Failure> {
        if self.json && self.output == Some(OutputFormat::Text) {
            return Err(
                Failure::usage("--json and --output text contradict each other")
                    .hint("leave one of them out"),
            );
        }
        if self.format() == OutputFormat::Json && !self.columns.is_empty() {
            return Err(
                Failure::usage("--columns is for text, and the output is JSON")
                    .hint("choose keys with jq: tcpinspect ... --json | jq '{ts, saddr}'"),
            );
        }
        Ok(())
    }
}

/// When to stop.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Output")]
pub struct StopArgs {
    /// Stop after this time: 90 (seconds), 500ms, 10m, 2h
    #[arg(short, long, value_name = "TIME", value_parser = values::time)]
    pub duration: Option<Duration>,
    /// Stop after this many lines of data
    #[arg(short, long, value_name = "N", value_parser = values::count)]
    pub count: Option<u64>,
    /// Exit with status 3 if events were lost
    #[arg(long)]
    pub strict: bool,
}

/// The sandbox after attaching.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct SandboxArgs {
    /// Set no seccomp filter after attaching; capabilities are dropped all the same
    #[arg(long, help_heading = "Sandbox")]
    pub no_sandbox: bool,
}

/// Filters on addresses and ports.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Filters (in the kernel)")]
pub struct AddressArgs {
    /// Source addresses or prefixes, separated by commas; !CIDR excludes
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub src: Vec<AddressRule>,
    /// Destination addresses or prefixes
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub dst: Vec<AddressRule>,
    /// Addresses or prefixes, source or destination
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub host: Vec<AddressRule>,
    /// Source ports, written as for -p
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub sport: Vec<PortRule>,
    /// Destination ports: numbers, ranges, names of /etc/services, !PORT to exclude one, separated
    /// by commas: 80,8000-8100,https,!8022
    #[arg(short, long, value_name = "PORTS", value_delimiter = ',')]
    pub port: Vec<PortRule>,
    /// Ports, source or destination, written as for -p
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    pub any_port: Vec<PortRule>,
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
            destination_ports: self.port.clone(),
            any_ports: self.any_port.clone(),
            hosts: self.host.clone(),
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
    /// TCP flags that must be set or, with !, must not be set: syn,!ack; `any` for all packets
    #[arg(long, value_name = "SPEC")]
    pub flags: Option<FlagsRule>,
    /// Bytes that must be at an offset from the start of the TCP payload, 16 at most
    #[arg(long, value_name = "OFFSET:HEX|OFFSET:\"text\"")]
    pub payload: Option<PayloadRule>,
    /// Filter expression as in tcpdump: 'port 80 and not host 192.0.2.1'. After -i or -r it may also
    /// be given as arguments without -f. Unless --flags is given, it applies to all TCP packets
    #[arg(short = 'f', long = "filter", value_name = "EXPR")]
    expression: Option<String>,
    /// Read packets from a pcap or pcapng file instead of an interface; - is stdin
    #[arg(
        short,
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        help_heading = "Source",
        conflicts_with = "interface"
    )]
    pub read: Option<PathBuf>,
    /// An interface to watch, as IFACE; may be repeated
    #[arg(
        short,
        long,
        value_name = "IFACE",
        value_delimiter = ',',
        help_heading = "Source"
    )]
    interface: Vec<String>,
    /// Interfaces to watch; `any` for all that are up [default: that of the default route, else `any`]
    ///
    /// After -i or -r, these arguments are a filter expression instead.
    #[arg(value_name = "IFACE", help_heading = "Source")]
    words: Vec<String>,
    /// The expression, once it is read.
    #[arg(skip)]
    compiled: Option<Expression>,
}

impl PacketArgs {
    /// The names of the interfaces that are asked for.
    pub fn interfaces(&self) -> &[String] {
        if self.words_are_expression() {
            &self.interface
        } else {
            &self.words
        }
    }

    /// Whether the arguments without an option are an expression, and not interfaces.
    fn words_are_expression(&self) -> bool {
        !self.interface.is_empty() || self.read.is_some()
    }

    fn check(&mut self) -> Result<(), Failure> {
        let words = self.words_are_expression().then_some(&*self.words);
        self.compiled = expression(self.expression.as_deref(), words, &self.interface)?;
        let needs_direction = self.compiled.as_ref().map(Expression::needs_direction);
        if needs_direction == Some(true) && self.read.is_some() {
            return Err(Failure::usage(
                "the filter is about the direction of packets, and a file does not say which it is",
            )
            .hint("leave out inbound and outbound"));
        }
        self.addresses.filter().check_families()
    }

    /// The text of the expression.
    pub fn expression(&self) -> Option<String> {
        self.compiled.as_ref()?;
        let text = self.expression.clone();
        text.or_else(|| Some(self.words.join(" ")))
    }

    /// The filter that these options ask for; `flags` is the command's default.
    pub fn filter(&self, flags: FlagsRule) -> Filter {
        let flags = match self.compiled {
            Some(_) => FlagsRule::default(),
            None => flags,
        };
        Filter {
            flags: self.flags.unwrap_or(flags),
            payload: self.payload.clone(),
            expression: self.compiled.clone(),
            ..self.addresses.filter()
        }
    }
}

/// The filter expression that is given by an option, or by arguments if they are one.
fn expression(
    option: Option<&str>,
    words: Option<&[String]>,
    interfaces: &[String],
) -> Result<Option<Expression>, Failure> {
    let words = words.unwrap_or_default();
    let joined = words.join(" ");
    let text = match option {
        Some(_) if !joined.is_empty() => {
            return Err(Failure::usage(
                "the filter is given twice: by --filter and by other arguments",
            )
            .hint("join the two by 'and', each in parentheses"));
        }
        Some(text) => text,
        None => &joined,
    };
    // Nothing is asked for by an expression that is empty.
    if text.trim().is_empty() {
        return Ok(None);
    }
    let expression =
        Expression::new(text).map_err(|failure| match usage::words_hint(interfaces, words) {
            Some(hint) => failure.hint(hint),
            None => failure,
        })?;
    Ok(Some(expression))
}

/// The event buffer.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Event buffer")]
pub struct BufferArgs {
    /// Size of the event buffer in bytes: a power of two
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20, value_parser = values::buffer_size)]
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
    #[value(alias = "src")]
    Saddr,
    /// Destination address
    #[value(alias = "dst")]
    Daddr,
    /// Destination port
    #[value(alias = "port")]
    Dport,
}

impl CountBy {
    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saddr => "saddr",
            Self::Daddr => "daddr",
            Self::Dport => "dport",
        }
    }
}

/// What the traffic of flows is counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FlowBy {
    /// Address of the initiator
    #[value(alias = "src")]
    Saddr,
    /// Address of the responder
    #[value(alias = "dst")]
    Daddr,
    /// Port of the responder
    #[value(alias = "port")]
    Dport,
    /// Process on this machine
    #[value(alias = "comm", alias = "pid")]
    Process,
    /// User whose socket it is
    Uid,
    /// Container of the process
    Container,
    /// Network of the initiator: see --prefix
    Net,
}

impl FlowBy {
    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Saddr => "saddr",
            Self::Daddr => "daddr",
            Self::Dport => "dport",
            Self::Process => "process",
            Self::Uid => "uid",
            Self::Container => "container",
            Self::Net => "net",
        }
    }

    /// Whether it is about the process of a flow.
    pub fn needs_process(self) -> bool {
        matches!(self, Self::Process | Self::Uid | Self::Container)
    }
}

/// Where syn-count attaches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum CountMode {
    /// The same as generic
    #[default]
    Auto,
    /// XDP in the driver: cheapest, but may reset the link or turn offloads off
    Native,
    /// XDP in the stack: any interface, no effect on the driver
    Generic,
    /// TC ingress: works beside another XDP program
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
    /// How many of them to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by", value_parser = values::top)]
    pub top: usize,
    /// Report when all SYNs, or those of one source (or other --by), exceed this many a second
    /// (5000, 5k, 1M), and when they fall back
    #[arg(long, value_name = "RATE", value_parser = values::rate)]
    pub alert: Option<f64>,
    /// Where to attach
    #[arg(long, value_enum, default_value_t, value_name = "MODE")]
    pub mode: CountMode,
    /// Which packets, and from where.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
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

/// Writing packets to a capture file.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "Capture file")]
pub struct RecordingArgs {
    /// Write the packets to a pcapng file instead of lines; - is stdout. With .pcap in its name it
    /// becomes a pcap file
    #[arg(
        short,
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        conflicts_with = "columns"
    )]
    pub write: Option<PathBuf>,
    /// How many bytes of each packet to write; 0 is the default [default: 262144]
    #[arg(
        short,
        long,
        value_name = "N",
        requires = "write",
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_SNAPLEN))
    )]
    snaplen: Option<u32>,
    /// Begin a new file when this one has more than SIZE million bytes, or KiB, MiB, GiB with k, m,
    /// g. The names of the others end in 1, 2, and so on
    #[arg(short = 'C', value_name = "SIZE", requires = "write", value_parser = values::file_size)]
    file_size: Option<u64>,
    /// Begin a new file every so many seconds. Its name may have a time as in strftime(3), such as
    /// %Y%m%d-%H%M%S; without one the file is overwritten
    #[arg(
        short = 'G',
        value_name = "SECONDS",
        requires = "write",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    period: Option<u32>,
    /// With -C, use N files in turn; with -G, stop after N files
    #[arg(
        short = 'W',
        value_name = "N",
        requires = "write",
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    files: Option<u32>,
}

impl RecordingArgs {
    /// Bytes to write of each packet.
    pub fn snaplen(&self) -> u32 {
        match self.snaplen {
            None | Some(0) => MAX_SNAPLEN,
            Some(len) => len,
        }
    }

    /// When a new file begins.
    pub fn limits(&self) -> Limits {
        Limits {
            bytes: self.file_size,
            period: self
                .period
                .map(|seconds| Duration::from_secs(seconds.into())),
            files: self.files,
        }
    }

    fn check(&self, output: &OutputArgs, is_replay: bool) -> Result<(), Failure> {
        if self.files.is_some() && !self.limits().rotates() {
            return Err(Failure::usage(
                "-W says how many files -C or -G make, and neither is given",
            ));
        }
        if self.period.is_some() && is_replay {
            return Err(Failure::usage(
                "-G is about the time that passes, and a file is read at once",
            )
            .hint("editcap -i SECONDS splits a file by time"));
        }
        let is_stdout = |path: &PathBuf| path.as_os_str() == "-";
        if self.write.as_ref().is_some_and(is_stdout) && output.format() == OutputFormat::Json {
            return Err(Failure::usage("-w - and JSON both want stdout").hint("give -w a file"));
        }
        Ok(())
    }
}

/// Arguments of `port-monitor`.
#[derive(Clone, Debug, Args)]
pub struct PortMonitorArgs {
    /// Which way the packets go
    #[arg(long, value_enum, default_value_t, value_name = "WAY")]
    pub direction: DirectionChoice,
    /// Print at most this many events a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Add the first 16 bytes of the payload in hex, or as many as --payload-bytes says
    #[arg(short = 'x', conflicts_with = "write")]
    pub hex: bool,
    /// How many bytes of the payload to add, 256 at most
    #[arg(
        long,
        value_name = "N",
        value_parser = clap::value_parser!(u32).range(0..=256),
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
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// How connect-trace attaches to the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// The first of the following that works
    #[default]
    Auto,
    /// fentry and fexit
    Fentry,
    /// kprobe and kretprobe
    Kprobe,
    /// The tracepoint for changes of a socket's state; sees the fewest details
    Tracepoint,
}

/// Arguments of `connect-trace`.
#[derive(Clone, Debug, Args)]
pub struct ConnectTraceArgs {
    /// For exporter: count events in the kernel and send none.
    #[arg(skip)]
    pub exporting: bool,
    /// How to attach to the kernel
    #[arg(long, value_enum, default_value_t, value_name = "BACKEND")]
    pub backend: BackendChoice,
    /// Print only failures
    #[arg(long)]
    pub failed: bool,
    /// Also print incoming connections
    #[arg(long)]
    pub accept: bool,
    /// Also print the end of each connection
    #[arg(long)]
    pub close: bool,
    /// Instead of a line for each attempt, print totals at the end, by process and destination
    #[arg(long, conflicts_with_all = ["failed", "accept", "close", "count", "max_rate"])]
    pub summary: bool,
    /// Print at most this many lines a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Process ids
    #[arg(
        long,
        value_name = "PIDS",
        value_delimiter = ',',
        value_parser = values::pid,
        help_heading = "Filters (in the kernel)"
    )]
    pub pid: Vec<u32>,
    /// Users: ids, or names of /etc/passwd
    #[arg(
        long,
        value_name = "USERS",
        value_hint = ValueHint::Username,
        value_delimiter = ',',
        value_parser = values::uid,
        help_heading = "Filters (in the kernel)"
    )]
    pub uid: Vec<u32>,
    /// Names of processes or threads as in /proc/PID/comm (15 bytes at most), or as the COMM column
    /// shows them: a\x20name
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = values::comm, help_heading = "Filters (in the kernel)")]
    pub comm: Vec<Vec<u8>>,
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// What accept-trace counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcceptBy {
    /// Why attempts fail
    Reason,
    /// Address of the client
    Saddr,
    /// Destination port
    Dport,
    /// Process that accepts, or that listens
    Comm,
}

impl AcceptBy {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reason => "reason",
            Self::Saddr => "saddr",
            Self::Dport => "dport",
            Self::Comm => "comm",
        }
    }
}

/// The times of accepted attempts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AcceptHistogram {
    /// From the SYN to the final ACK
    Handshake,
    /// From the final ACK to accept(2)
    AcceptWait,
}

impl AcceptHistogram {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::AcceptWait => "accept-wait",
        }
    }
}

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

/// Arguments of `accept-trace`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("counted").multiple(true))]
pub struct AcceptTraceArgs {
    /// For exporter: count events in the kernel and send none.
    #[arg(skip)]
    pub exporting: bool,
    /// Print only attempts that were not accepted
    #[arg(long)]
    pub failed: bool,
    /// Also print a line when an attempt arrives
    #[arg(long)]
    pub attempts: bool,
    /// Instead of single attempts, count in the kernel how many have which fate
    #[arg(long, value_enum, value_name = "KEY", group = "counted", conflicts_with_all = ["attempts", "max_rate"])]
    pub by: Option<AcceptBy>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by")]
    pub top: usize,
    /// Instead of single attempts, show how these times are distributed; by port or process with
    /// --by dport or --by comm
    #[arg(long, value_enum, value_name = "TIMES", group = "counted", conflicts_with_all = ["attempts", "max_rate", "failed", "reason"])]
    pub histogram: Option<AcceptHistogram>,
    /// Time between two reports with --by [default: 1s], or with --histogram [default: one report,
    /// at the end]
    #[arg(short = 'I', long, value_name = "TIME", value_parser = values::time, requires = "counted")]
    pub interval: Option<Duration>,
    /// Print at most this many lines a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// A SYN that is dropped without a trace has failed after this time, though a repeated one may
    /// still get through
    #[arg(long, value_name = "TIME", default_value = "3.5s", value_parser = values::time)]
    pub attempt_timeout: Duration,
    /// Print only failures for these reasons, as they are shown: accept_queue_full,netfilter_drop
    #[arg(long, value_name = "REASONS", value_delimiter = ',')]
    pub reason: Vec<String>,
    /// Ids of processes that accept; leaves out attempts that nobody accepts
    #[arg(
        long,
        value_name = "PIDS",
        value_delimiter = ',',
        value_parser = values::pid,
        help_heading = "Filters (in the kernel)"
    )]
    pub pid: Vec<u32>,
    /// Users that accept, or else own the listening socket: ids, or names of /etc/passwd
    #[arg(
        long,
        value_name = "USERS",
        value_delimiter = ',',
        value_hint = ValueHint::Username,
        value_parser = values::uid,
        help_heading = "Filters (in the kernel)"
    )]
    pub uid: Vec<u32>,
    /// Names of processes that accept, as in /proc/PID/comm or as the COMM column shows them;
    /// leaves out attempts that nobody accepts
    #[arg(long, value_name = "NAMES", value_delimiter = ',', value_parser = values::comm, help_heading = "Filters (in the kernel)")]
    pub comm: Vec<Vec<u8>>,
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// Filter expression as in tcpdump, for the SYN: 'port 80 and not host 192.0.2.1'. After -i it may
    /// also be given as arguments without -f
    #[arg(
        short = 'f',
        long = "filter",
        value_name = "EXPR",
        help_heading = "Filters (in the kernel)"
    )]
    expression: Option<String>,
    /// The expression, once it is read.
    #[arg(skip)]
    compiled: Option<Expression>,
    /// Network namespace: a name that `ip netns` knows, a path, or a process id
    #[arg(long, value_name = "NAME|PATH|PID", help_heading = "Source")]
    pub netns: Option<String>,
    /// An interface to watch, as IFACE; may be repeated
    #[arg(
        short,
        long,
        value_name = "IFACE",
        value_delimiter = ',',
        help_heading = "Source"
    )]
    interface: Vec<String>,
    /// Interfaces to watch; `any` for all that are up [default: that of the default route, else `any`]
    ///
    /// After -i, these arguments are a filter expression instead.
    #[arg(value_name = "IFACE", help_heading = "Source")]
    words: Vec<String>,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

impl AcceptTraceArgs {
    fn check(&mut self) -> Result<(), Failure> {
        let words = (!self.interface.is_empty()).then_some(&*self.words);
        self.compiled = expression(self.expression.as_deref(), words, &self.interface)?;
        self.filter().check_families()?;
        let by = self.by.filter(|_| self.histogram.is_some());
        match by {
            Some(AcceptBy::Reason | AcceptBy::Saddr) => Err(Failure::usage(
                "--histogram can't be shown by reason or source address",
            )
            .hint("use --by dport or --by comm")),
            _ => Ok(()),
        }
    }

    /// The filter that these options ask for.
    pub fn filter(&self) -> Filter {
        Filter {
            expression: self.compiled.clone(),
            ..self.addresses.filter()
        }
    }

    /// The names of the interfaces that are asked for.
    pub fn interfaces(&self) -> &[String] {
        if self.interface.is_empty() {
            &self.words
        } else {
            &self.interface
        }
    }
}

/// `--only`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossKindChoice {
    /// Segments that the kernel dropped
    Drop,
    /// Segments that were sent again
    Retransmit,
    /// Resets, sent and received
    Reset,
}

/// What loss-trace counts by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossByChoice {
    /// Reason
    Reason,
    /// Kernel function that dropped the segment
    Place,
    /// Source address
    #[value(alias = "src")]
    Saddr,
    /// Destination port
    #[value(alias = "port")]
    Dport,
    /// Process that has the socket open
    Comm,
}

impl LossByChoice {
    /// Its name on the command line and in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Reason => "reason",
            Self::Place => "place",
            Self::Saddr => "saddr",
            Self::Dport => "dport",
            Self::Comm => "comm",
        }
    }
}

/// Arguments of `loss-trace`.
#[derive(Clone, Debug, Args)]
pub struct LossTraceArgs {
    /// For exporter: count events in the kernel and send none.
    #[arg(skip)]
    pub exporting: bool,
    /// Print only these events
    #[arg(long, value_enum, value_name = "KINDS", value_delimiter = ',')]
    pub only: Vec<LossKindChoice>,
    /// Instead of a line for each event, count them in the kernel
    #[arg(long, value_enum, value_name = "KEY", conflicts_with_all = ["max_rate", "write"])]
    pub by: Option<LossByChoice>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by")]
    pub top: usize,
    /// Time between two reports of --by
    #[arg(short = 'I', long, value_name = "TIME", default_value = "2s", value_parser = values::time, requires = "by")]
    pub interval: Duration,
    /// Print at most this many lines a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Print only events with these reasons, as they are shown: no_socket,netfilter_drop
    #[arg(long, value_name = "REASONS", value_delimiter = ',')]
    pub reason: Vec<String>,
    /// Also print drops that lose nothing: queues of closed sockets, copies for packet sockets
    #[arg(long)]
    pub all: bool,
    /// A capture file of dropped segments in place of lines.
    #[command(flatten)]
    pub recording: RecordingArgs,
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// Network namespace: a name that `ip netns` knows, a path, or a process id [default: all]
    #[arg(long, value_name = "NAME|PATH|PID", help_heading = "Source")]
    pub netns: Option<String>,
    /// An interface to watch, as IFACE; may be repeated
    #[arg(
        short,
        long,
        value_name = "IFACE",
        value_delimiter = ',',
        help_heading = "Source",
        conflicts_with = "words"
    )]
    interface: Vec<String>,
    /// Interfaces of this network namespace to watch [default: all, of all namespaces]
    #[arg(value_name = "IFACE", help_heading = "Source")]
    words: Vec<String>,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

impl LossTraceArgs {
    fn check_recording(&self) -> Result<(), Failure> {
        self.recording.check(&self.output, false)?;
        let is_only_drops = self.only.iter().all(|kind| *kind == LossKindChoice::Drop);
        if self.recording.write.is_some() && !is_only_drops {
            return Err(Failure::usage(
                "-w writes dropped segments, and --only asks for other events",
            )
            .hint("use --only drop, or leave it out"));
        }
        Ok(())
    }

    /// The names of the interfaces that are asked for.
    pub fn interfaces(&self) -> &[String] {
        if self.interface.is_empty() {
            &self.words
        } else {
            &self.interface
        }
    }
}

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Check nothing, but show how a filter expression is understood
    #[arg(short, long, value_name = "EXPR")]
    pub filter: Option<String>,
    /// How data is printed.
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
    /// Time between two refreshes of the table, or between two reports with --by
    #[arg(short = 'I', long, value_name = "TIME", default_value = "1s", value_parser = values::time)]
    pub interval: Duration,
    /// Instead of single flows, show the traffic by address, port, process and so on in each interval
    #[arg(long, value_enum, value_name = "KEY")]
    pub by: Option<FlowBy>,
    /// How many of them to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by", value_parser = values::top)]
    pub top: usize,
    /// Print at most this many lines a second; the rest is counted as suppressed
    #[arg(long, value_name = "N", conflicts_with = "by", value_parser = values::max_rate)]
    pub max_rate: Option<u64>,
    /// Length of the prefixes of --by net [default: 24 for IPv4, 64 for IPv6]
    #[arg(long, value_name = "BITS", requires = "by", value_parser = clap::value_parser!(u8).range(0..=128))]
    pub prefix: Option<u8>,
    /// Ids of processes on this machine; leaves out connections without one
    #[arg(
        long,
        value_name = "PIDS",
        value_delimiter = ',',
        value_parser = values::pid,
        help_heading = "Filters (in the kernel)",
        conflicts_with = "read"
    )]
    pub pid: Vec<u32>,
    /// Users whose sockets they are: ids, or names of /etc/passwd
    #[arg(
        long,
        value_name = "USERS",
        value_delimiter = ',',
        value_hint = ValueHint::Username,
        value_parser = values::uid,
        help_heading = "Filters (in the kernel)",
        conflicts_with = "read"
    )]
    pub uid: Vec<u32>,
    /// Names of processes, as in /proc/PID/comm or as the COMM column shows them
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        value_parser = values::comm,
        help_heading = "Filters (in the kernel)",
        conflicts_with = "read"
    )]
    pub comm: Vec<Vec<u8>>,
    /// Containers by id (12 digits are enough) or name of the machine, and pods by name or uid
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        help_heading = "Filters (after the kernel)",
        conflicts_with = "read"
    )]
    pub container: Vec<String>,
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
    /// Print lines on a terminal too, not a live table
    #[arg(long)]
    pub no_tui: bool,
    /// Which packets, and from where.
    #[command(flatten)]
    pub packets: PacketArgs,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// Arguments of `listeners`.
#[derive(Clone, Debug, Args)]
pub struct ListenersArgs {
    /// Time between two reports
    #[arg(short = 'I', long, value_name = "TIME", default_value = "1s", value_parser = values::time)]
    pub interval: Duration,
    /// Print one report and exit
    #[arg(short = '1', long, conflicts_with_all = ["duration", "alert"])]
    pub once: bool,
    /// Print lines on a terminal too, not a live table
    #[arg(long)]
    pub no_tui: bool,
    /// Report when an accept queue is this full or attempts are dropped, and when that ends
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
    /// Network namespace: a name that `ip netns` knows, a path, or a process id
    #[arg(long, value_name = "NAME|PATH|PID", help_heading = "Source")]
    pub netns: Option<String>,
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
    /// When to stop.
    #[command(flatten)]
    pub stop: StopArgs,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

/// What exporter collects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CollectorChoice {
    /// Incoming SYNs, by interface
    Syn,
    /// Accept queues and drops, by listening address and port
    Listeners,
    /// Incoming connection attempts, by fate and reason; times of handshakes and of accepts
    Accept,
    /// Dropped and retransmitted segments, and resets
    Loss,
    /// Outgoing connection attempts, by error; the time they take
    Connect,
    /// Connections: opened, closed, open now; bytes, durations and round-trip times
    Flows,
}

impl CollectorChoice {
    /// Its name on the command line and in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Listeners => "listeners",
            Self::Accept => "accept",
            Self::Loss => "loss",
            Self::Connect => "connect",
            Self::Flows => "flows",
        }
    }
}

/// Arguments of `exporter`.
#[derive(Clone, Debug, Args)]
pub struct ExporterArgs {
    /// Address and port to serve on
    #[arg(
        long,
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:9817",
        value_parser = values::listen,
        help_heading = "Server"
    )]
    pub listen: SocketAddr,
    /// How many listening addresses and ports get metrics of their own; the rest is one
    #[arg(
        long,
        value_name = "N",
        default_value_t = 200,
        value_parser = clap::value_parser!(u32).range(..=10_000),
        help_heading = "Server"
    )]
    pub max_listeners: u32,
    /// What to collect [default: all that this kernel allows]
    #[arg(
        long,
        value_enum,
        value_name = "COLLECTORS",
        value_delimiter = ',',
        help_heading = "Source"
    )]
    pub collect: Vec<CollectorChoice>,
    /// Network namespace to watch: a name that `ip netns` knows, a path, or a process id. The server
    /// stays in the namespace in which it is started
    #[arg(long, value_name = "NAME|PATH|PID", help_heading = "Source")]
    pub netns: Option<String>,
    /// An interface to watch, as IFACE; may be repeated
    #[arg(
        short,
        long,
        value_name = "IFACE",
        value_delimiter = ',',
        help_heading = "Source",
        conflicts_with = "words"
    )]
    interface: Vec<String>,
    /// Interfaces to watch; `any` for all that are up [default: that of the default route, else `any`]
    #[arg(value_name = "IFACE", help_heading = "Source")]
    words: Vec<String>,
    /// Stop after this time: 90 (seconds), 500ms, 10m, 2h
    #[arg(short, long, value_name = "TIME", value_parser = values::time, help_heading = "Output")]
    duration: Option<Duration>,
    /// No `attached:` line, summary or notices on stderr; -qq: errors only
    #[arg(short, long, action = ArgAction::Count, help_heading = "Output")]
    quiet: u8,
    /// More notices on stderr; -vv: also the logs of libbpf and of the verifier
    #[arg(short, long, action = ArgAction::Count, conflicts_with = "quiet", help_heading = "Output")]
    verbose: u8,
    /// Does nothing: names are never looked up (for those used to tcpdump -n)
    #[arg(short = 'n', action = ArgAction::Count, help_heading = "Output")]
    _numeric: u8,
    /// Whether to set a seccomp filter.
    #[command(flatten)]
    pub sandbox: SandboxArgs,
}

impl ExporterArgs {
    /// The names of the interfaces that are asked for.
    pub fn interfaces(&self) -> &[String] {
        if self.interface.is_empty() {
            &self.words
        } else {
            &self.interface
        }
    }

    /// What is printed to stderr: to stdout nothing is.
    pub fn output(&self) -> OutputArgs {
        OutputArgs::of_verbosity(self.quiet, self.verbose)
    }

    /// When to stop.
    pub fn stop(&self) -> StopArgs {
        StopArgs {
            duration: self.duration,
            ..StopArgs::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        command().debug_assert();
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
        assert_eq!(args.packets.interfaces(), ["eth0"]);
    }
}
