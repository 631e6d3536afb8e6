//! The processors that guests can have, and what differs between them.

use std::path::Path;

/// A processor, by Debian's name for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Arch {
    /// The architecture of this machine.
    Amd64,
    /// Built by Debian's cross compiler, against Debian's libraries.
    Arm64,
}

impl Arch {
    /// Debian's name.
    pub fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The target of programs for guests.
    pub fn target(self) -> &'static str {
        match self {
            Self::Amd64 => "x86_64-unknown-linux-gnu",
            Self::Arm64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// The emulator, and its options for the processor.
    pub fn emulator(self) -> (&'static str, &'static [&'static str]) {
        match self {
            // All features that QEMU can emulate, except fast string instructions: kernels would
            // copy with them, and QEMU emulates them byte by byte, which takes a third of all time.
            Self::Amd64 => ("qemu-system-x86_64", &["-cpu", "max,-erms,-fsrm"]),
            // Pointers are signed by a quick algorithm of QEMU's own.
            Self::Arm64 => (
                "qemu-system-aarch64",
                &["-M", "virt", "-cpu", "max,pauth-impdef=on"],
            ),
        }
    }

    /// Kernel parameters: the console, and on x86 the processor's clock, because the chipset's is
    /// slow to emulate.
    pub fn boot_arguments(self) -> &'static str {
        match self {
            Self::Amd64 => "console=ttyS0 tsc=reliable clocksource=tsc",
            Self::Arm64 => "console=ttyAMA0",
        }
    }

    /// The serial ports for the kernel's messages and for results, as the guest names them.
    pub fn ports(self) -> (&'static str, &'static str) {
        match self {
            Self::Amd64 => ("/dev/ttyS0", "/dev/ttyS1"),
            Self::Arm64 => ("/dev/ttyAMA0", "/dev/ttyS0"),
        }
    }

    /// The options that add the port for results, which goes to a file.
    pub fn second_port(self, results: &Path) -> Vec<String> {
        let file = results.display();
        match self {
            Self::Amd64 => vec!["-serial".to_owned(), format!("file:{file}")],
            Self::Arm64 => ["-chardev", &format!("file,id=results,path={file}")]
                .into_iter()
                .chain(["-device", "pci-serial,chardev=results"])
                .map(str::to_owned)
                .collect(),
        }
    }

    /// The kernels that are used by default.
    pub fn default_kernels(self) -> &'static str {
        match self {
            Self::Amd64 => "5.10,6.1,6.12,6.12-rt",
            // 5.10 works too, though without fentry. It is left out because an emulated machine is slow.
            Self::Arm64 => "6.12",
        }
    }

    /// Words in the names of the tests that run by default; without words all run. Tests that do
    /// not depend on the processor run on the machine itself.
    pub fn default_tests(self) -> &'static [&'static str] {
        match self {
            Self::Amd64 => &[],
            Self::Arm64 => &[
                "accept::accepted::the_process_that_accepts",
                "accept::failures::a_port_without_a_listener",
                "accept::queues::a_full_accept_queue_is_named",
                "check::what_check_says",
                "connect::attempts::a_refused_connect",
                "connect::attempts::an_established_connection",
                "connect::ends::an_accepted_connection",
                "connect::errors::an_icmp_error",
                "connect::errors::failures_before_a_packet",
                "connect::privileges::a_backend_that_the_kernel_lacks",
                "loss::a_syn_to_a_closed_port",
                "network::a_thousand_syns",
                "privileges::once_attached",
                "programs::expressions::the_longest",
                "programs::frames::every_crafted_frame",
            ],
        }
    }
}
