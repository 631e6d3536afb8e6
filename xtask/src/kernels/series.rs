//! The kernel series that guests can run.

/// A kernel series.
pub struct Series {
    pub name: &'static str,
    /// The prefix of its versions.
    pub version: &'static str,
    /// The builds that may be used, the preferred one first.
    pub flavours: &'static [Flavour],
    /// The suites that carry it, the preferred one first.
    pub suites: &'static [&'static str],
}

impl Series {
    /// Whether it is a kernel with PREEMPT_RT.
    pub fn is_real_time(&self) -> bool {
        self.flavours.contains(&Flavour::Rt)
    }
}

/// The builds of each kernel: small for virtual machines, complete, or real-time (PREEMPT_RT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    Cloud,
    Generic,
    Rt,
}

impl Flavour {
    /// The name of its directory.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
            Self::Rt => "rt",
        }
    }
}
