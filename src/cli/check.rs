//! Options of `check`.

use clap::Args;

use super::output::OutputArgs;

/// Arguments of `check`.
#[derive(Clone, Debug, Args)]
pub struct CheckArgs {
    /// Check nothing, but show how a filter expression is understood
    #[arg(short, long, value_name = "EXPR", allow_hyphen_values = true)]
    pub filter: Option<String>,
    /// How data is printed.
    #[command(flatten)]
    pub output: OutputArgs,
}
