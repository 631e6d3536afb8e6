//! Options of `accept-trace`.

use std::time::Duration;

use clap::{ArgGroup, Args, ValueEnum};

use super::output::{BufferArgs, RunArgs};
use super::packets::{AddressArgs, NamedArgs, NetnsArgs, expression};
use super::processes::ProcessArgs;
use super::values;
use crate::domain::reasons::name_of_ours;
use crate::failure::Failure;
use crate::filter::Filter;
use crate::filter::expr::Expression;
use crate::skel::AcceptReason;

/// The keys of `accept-trace --by`.
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

/// Arguments of `accept-trace`.
#[derive(Clone, Debug, Args)]
#[command(group = ArgGroup::new("counted").multiple(true))]
pub struct AcceptTraceArgs {
    /// Print only attempts that were not accepted
    #[arg(long)]
    pub failed: bool,
    /// Also print a line when an attempt arrives
    #[arg(long)]
    pub attempts: bool,
    /// Instead of a line for each attempt, count attempts by fate in the kernel, by this key
    #[arg(long, value_enum, value_name = "KEY", group = "counted", conflicts_with_all = ["attempts", "max_rate"])]
    pub by: Option<AcceptBy>,
    /// How many keys to show, busiest first
    #[arg(long, value_name = "N", default_value_t = 10, requires = "by", value_parser = values::top)]
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
    /// A SYN that is silently dropped has failed after this time, though a retransmitted one may
    /// still get through
    #[arg(long, value_name = "TIME", default_value = "3.5s", value_parser = values::time)]
    pub attempt_timeout: Duration,
    /// Print only failures for these reasons, as they are shown: accept_queue_full,netfilter_drop
    #[arg(long, value_name = "REASONS", value_delimiter = ',', value_parser = values::reason)]
    pub reason: Vec<String>,
    /// Processes and users.
    #[command(flatten)]
    pub processes: ProcessArgs,
    /// Addresses and ports.
    #[command(flatten)]
    pub addresses: AddressArgs,
    /// Filter expression as in tcpdump, for the SYN: 'port 80 and not host 192.0.2.1'. After -i it may
    /// also be given as arguments without -f
    #[arg(
        short = 'f',
        long = "filter",
        value_name = "EXPR",
        allow_hyphen_values = true,
        help_heading = "Filters (in the kernel)"
    )]
    expression: Option<String>,
    /// The expression, once it is compiled.
    #[arg(skip)]
    compiled: Option<Expression>,
    /// The network namespace to watch.
    #[command(flatten)]
    pub netns: NetnsArgs,
    /// Interfaces, as an option.
    #[command(flatten)]
    named: NamedArgs,
    /// Interfaces to watch; `any` for all that are up [default: that of the default route, else `any`]
    ///
    /// After -i, these arguments are a filter expression instead.
    #[arg(value_name = "IFACE", help_heading = "Source")]
    words: Vec<String>,
    /// The event buffer.
    #[command(flatten)]
    pub buffer: BufferArgs,
    /// Output, when to stop, and the sandbox.
    #[command(flatten)]
    pub run: RunArgs,
}

impl AcceptTraceArgs {
    pub(super) fn check(&mut self) -> Result<(), Failure> {
        let words = (!self.named.interface.is_empty()).then_some(&*self.words);
        self.compiled = expression(self.expression.as_deref(), words, &self.named.interface)?;
        self.filter().check_families()?;
        // The kernel's name, which other commands show.
        for reason in &mut self.reason {
            if reason == "no_socket" {
                *reason = name_of_ours(AcceptReason::REASON_NO_LISTENER).to_owned();
            }
        }
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
        self.named.or(&self.words)
    }
}
