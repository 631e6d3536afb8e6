//! What check finds out.

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// A capability of this process.
    Privilege,
    /// A system setting that prevents something.
    Limit,
    /// A feature of the kernel, or of an interface's driver.
    Feature,
    /// A command of this tool.
    Command,
    /// A compiled filter expression.
    Filter,
}

impl CheckKind {
    /// The name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Privilege => "privilege",
            Self::Limit => "limit",
            Self::Feature => "feature",
            Self::Command => "command",
            Self::Filter => "filter",
        }
    }
}

/// One finding.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// Its kind.
    pub kind: CheckKind,
    /// The name of the privilege, setting, feature or command.
    pub name: &'static str,
    /// Whether it is available; `None` if that could not be tried.
    pub ok: Option<bool>,
    /// The hooks and buffer that a command would use.
    pub uses: Option<String>,
    /// The reason, or how it was found out.
    pub detail: Option<String>,
}
