//! Options of commands about packets: where from, filters, capture files.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use super::output::{OutputArgs, OutputFormat};
use super::{interface_hints, values};
use crate::capture::rotation::Limits;
use crate::capture::write::MAX_SNAPLEN;
use crate::failure::Failure;
use crate::filter::expr::Expression;
use crate::filter::{AddressRule, Filter, FlagsRule, PayloadRule, PortRule};
use crate::host::netns;

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

/// Interfaces, as an option.
#[derive(Clone, Debug, Default, Args)]
pub struct NamedArgs {
    /// An interface to watch, as IFACE; may be repeated
    #[arg(
        short,
        long,
        value_name = "IFACE",
        value_delimiter = ',',
        help_heading = "Source"
    )]
    pub(super) interface: Vec<String>,
}

impl NamedArgs {
    /// The names that are given by `-i`, else the arguments without an option.
    pub(super) fn or<'a>(&'a self, words: &'a [String]) -> &'a [String] {
        if self.interface.is_empty() {
            words
        } else {
            &self.interface
        }
    }
}

/// The network namespace to watch.
#[derive(Clone, Debug, Default, Args)]
pub struct NetnsArgs {
    /// Network namespace to watch: a name that `ip netns` knows, a path, or a process id
    #[arg(long, value_name = "NAME|PATH|PID", help_heading = "Source")]
    netns: Option<String>,
}

impl NetnsArgs {
    /// Whether a namespace is asked for.
    pub fn is_given(&self) -> bool {
        self.netns.is_some()
    }

    /// Moves this thread, and those that it starts later, into the namespace that is asked for.
    ///
    /// # Errors
    /// There is no such namespace, or this process may not enter it.
    pub fn enter(&self) -> Result<(), Failure> {
        match &self.netns {
            Some(namespace) => netns::enter(namespace),
            None => Ok(()),
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
    #[arg(
        short = 'f',
        long = "filter",
        value_name = "EXPR",
        allow_hyphen_values = true
    )]
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
    /// Interfaces, as an option.
    #[command(flatten)]
    named: NamedArgs,
    /// Interfaces to watch; `any` for all that are up [default: that of the default route, else `any`]
    ///
    /// After -i or -r, these arguments are a filter expression instead.
    #[arg(value_name = "IFACE", help_heading = "Source")]
    words: Vec<String>,
    /// The namespace of the interfaces.
    #[command(flatten)]
    pub netns: NetnsArgs,
    /// The expression, once it is compiled.
    #[arg(skip)]
    compiled: Option<Expression>,
}

impl PacketArgs {
    /// The names of the interfaces that are asked for.
    pub fn interfaces(&self) -> &[String] {
        if self.words_are_expression() {
            &self.named.interface
        } else {
            &self.words
        }
    }

    /// Whether the arguments without an option are an expression, and not interfaces.
    fn words_are_expression(&self) -> bool {
        !self.named.interface.is_empty() || self.read.is_some()
    }

    pub(super) fn check(&mut self) -> Result<(), Failure> {
        if self.netns.is_given() && self.read.is_some() {
            return Err(Failure::usage(
                "--netns can't be used with -r: a file has no network namespace",
            ));
        }
        let words = self.words_are_expression().then_some(&*self.words);
        self.compiled = expression(self.expression.as_deref(), words, &self.named.interface)?;
        let needs_direction = self.compiled.as_ref().map(Expression::needs_direction);
        if needs_direction == Some(true) && self.read.is_some() {
            return Err(Failure::usage(
                "'inbound' and 'outbound' can't be used with -r: the direction of packets is not read from files",
            )
            .hint("leave them out"));
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
pub(super) fn expression(
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
    // An empty expression is the same as none.
    if text.trim().is_empty() {
        return Ok(None);
    }
    let expression =
        Expression::new(text).map_err(|failure| {
            match interface_hints::words_hint(interfaces, words) {
                Some(hint) => failure.hint(hint),
                None => failure,
            }
        })?;
    Ok(Some(expression))
}

/// Direction of the packets.
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
    #[arg(
        short,
        long,
        help = format!(
            "How many bytes of each packet to write; 0 means the default [default: {MAX_SNAPLEN}]"
        ),
        value_name = "N",
        requires = "write",
        value_parser = clap::value_parser!(u32).range(0..=i64::from(MAX_SNAPLEN))
    )]
    snaplen: Option<u32>,
    /// Begin a new file when this one has more than SIZE million bytes, or KiB, MiB, GiB with k, m,
    /// g. The names of the others end in 1, 2, and so on
    #[arg(short = 'C', value_name = "SIZE", requires = "write", value_parser = values::file_size)]
    file_size: Option<u64>,
    /// Begin a new file every SECONDS seconds. Its name may have a time as in strftime(3), such as
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

    pub(super) fn check(&self, output: &OutputArgs, is_replay: bool) -> Result<(), Failure> {
        if self.files.is_some() && !self.limits().rotates() {
            return Err(Failure::usage(
                "-W limits how many files -C or -G make, and neither is given",
            ));
        }
        if self.period.is_some() && is_replay {
            return Err(
                Failure::usage("-G can't be used with -r: it counts real time")
                    .hint("editcap -i SECONDS splits a file by time"),
            );
        }
        let is_stdout = |path: &PathBuf| path.as_os_str() == "-";
        if self.write.as_ref().is_some_and(is_stdout) && output.format() == OutputFormat::Json {
            return Err(
                Failure::usage("-w - can't be used with JSON: both write to stdout")
                    .hint("give -w a file"),
            );
        }
        Ok(())
    }
}
