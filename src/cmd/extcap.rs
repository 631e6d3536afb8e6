//! Wireshark's extcap protocol (extcap(4)): Wireshark runs a program in its directory of extcaps to
//! learn of its interfaces and options, and then to capture into a FIFO. That is `port-monitor -w`.

use std::ffi::OsString;

use clap::Parser;

use crate::capture::write::MAX_SNAPLEN;
use crate::cli::usage;
use crate::failure::{Exit, Failure};
use crate::filter::expr::Expression;
use crate::host::interfaces::{self, ANY};
use crate::output::stdout::print;

/// The prefix of the names of interfaces, which distinguishes them from those of Wireshark itself.
const PREFIX: &str = "tcpinspect-";

/// Options of Wireshark's dialog, and their values. The numbers are those by which values refer to
/// options. MAX is the largest snaplen.
const OPTIONS: &str = "\
arg {number=0}{call=--direction}{display=Direction}{type=selector}{tooltip=Direction of the packets}
value {arg=0}{value=both}{display=both}{default=true}
value {arg=0}{value=ingress}{display=coming in}{default=false}
value {arg=0}{value=egress}{display=going out}{default=false}
arg {number=1}{call=--snaplen}{display=Bytes of each packet}{type=unsigned}{range=0,MAX}{default=MAX}{tooltip=How many bytes of each packet are captured}
arg {number=2}{call=--filter}{display=Filter}{type=string}{tooltip=A filter expression as in tcpdump, such as port 80; without one all TCP packets are captured}
";

/// Whether these arguments, without the program's name, are from Wireshark.
pub fn is_called_by_wireshark(args: &[OsString]) -> bool {
    let is_extcap = |arg: &OsString| arg.to_string_lossy().starts_with("--extcap-");
    args.first()
        .is_some_and(|first| first == "--capture" || is_extcap(first))
        && args.iter().any(is_extcap)
}

/// Does what Wireshark asks for.
///
/// # Errors
/// As `port-monitor`, or an argument is not one of the protocol.
pub fn run(args: &[OsString]) -> Result<Exit, Failure> {
    let mut extcap = ExtcapArgs::try_parse_from(args)
        .map_err(|error| Failure::usage(usage::what_is_wrong(&error.to_string())))?;
    if extcap.interfaces {
        return print(&list_interfaces()?);
    }
    let interface = extcap.interface.take().unwrap_or_default();
    let interface = interface.strip_prefix(PREFIX).ok_or_else(|| {
        Failure::usage(format!("no interface {interface:?}"))
            .hint("--extcap-interfaces lists the interfaces")
    })?;
    if extcap.dlts {
        return print("dlt {number=1}{name=EN10MB}{display=Ethernet}\n");
    }
    if extcap.config {
        return print(&OPTIONS.replace("MAX", &MAX_SNAPLEN.to_string()));
    }
    if extcap.capture {
        let args = extcap.port_monitor(interface)?;
        return match usage::parse(args) {
            Ok(command) => super::run(command),
            Err(result) => result,
        };
    }
    // Wireshark asks whether a filter is right, and shows what is printed if it is not.
    let filter = extcap.capture_filter.unwrap_or_default();
    match Expression::new(&filter) {
        Err(failure) if !filter.trim().is_empty() => print(&format!("{:#}\n", failure.error)),
        _ => Ok(Exit::Success),
    }
}

/// The interfaces that are up, and all of them together.
fn list_interfaces() -> Result<String, Failure> {
    let mut text = format!(
        "extcap {{version={}}}{{display=tcpinspect}}\n",
        env!("CARGO_PKG_VERSION")
    );
    let names = interfaces::up()?
        .into_iter()
        .map(|interface| interface.name);
    // In a name these would be read as the end of a value, or by a terminal.
    let is_plain = |c: char| c.is_ascii_graphic() && !matches!(c, '{' | '}' | '=');
    let names = names.filter(|name| name.chars().all(is_plain));
    for name in names.chain([ANY.to_owned()]) {
        text += &format!("interface {{value={PREFIX}{name}}}{{display=TCP of {name}}}\n");
    }
    Ok(text)
}

/// The arguments, which say what Wireshark wants.
#[derive(Parser)]
#[command(
    no_binary_name = true,
    disable_help_flag = true,
    args_override_self = true
)]
struct ExtcapArgs {
    #[arg(long = "extcap-interfaces")]
    interfaces: bool,
    #[arg(long = "extcap-dlts")]
    dlts: bool,
    #[arg(long = "extcap-config")]
    config: bool,
    #[arg(long)]
    capture: bool,
    #[arg(long = "extcap-interface", allow_hyphen_values = true)]
    interface: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    fifo: Option<OsString>,
    #[arg(long = "extcap-capture-filter", allow_hyphen_values = true)]
    capture_filter: Option<String>,
    #[arg(long)]
    direction: Option<String>,
    #[arg(long)]
    snaplen: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    filter: Option<String>,
    /// The version of Wireshark.
    #[arg(long = "extcap-version")]
    _version: Option<String>,
    /// The option whose values to reload: none has any.
    #[arg(long = "extcap-reload-option")]
    _reload: Option<String>,
}

impl ExtcapArgs {
    /// The command line of the capture.
    fn port_monitor(self, interface: &str) -> Result<Vec<OsString>, Failure> {
        let fifo = self
            .fifo
            .ok_or_else(|| Failure::usage("--capture needs --fifo"))?;
        // Wireshark treats output on stderr as an error.
        let mut args = ["tcpinspect", "port-monitor", "-q", "-i", interface, "-w"]
            .map(OsString::from)
            .to_vec();
        args.push(fifo);
        args.push("--direction".into());
        args.push(self.direction.unwrap_or_else(|| "both".to_owned()).into());
        if let Some(snaplen) = self.snaplen {
            args.extend(["--snaplen".into(), snaplen.into()]);
        }
        let filters: Vec<_> = [self.capture_filter, self.filter]
            .into_iter()
            .flatten()
            .filter(|filter| !filter.trim().is_empty())
            .map(|filter| format!("({filter})"))
            .collect();
        match filters.is_empty() {
            true => args.extend(["--flags".into(), "any".into()]),
            false => args.extend(["--filter".into(), filters.join(" and ").into()]),
        }
        Ok(args)
    }
}
