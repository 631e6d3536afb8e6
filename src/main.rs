//! The `tcpinspect` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    tcpinspect::run(std::env::args_os()).into()
}
