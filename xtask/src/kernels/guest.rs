//! Boots a kernel in QEMU with the test programs and collects what they write.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::arch::Arch;
use super::files::Files;
use super::image::Image;
use super::modules::Kernel;
use super::programs::Program;
use super::tools;

/// Modules that tests cannot do without: a kernel without one is not used.
pub const REQUIRED_MODULES: &[&str] = &["cls_bpf", "dummy", "sch_ingress", "tun", "veth", "vxlan"];

/// Modules that are loaded where the kernel has them.
pub const OPTIONAL_MODULES: &[&str] = &[
    // The checksum that nftables' modules look for as they are loaded.
    "crc32c_generic",
    "8021q",
    "act_gact",
    "act_mirred",
    "bridge",
    "cls_flower",
    "cls_matchall",
    "cls_u32",
    "inet_diag",
    "ip_gre",
    "ipip",
    "macvlan",
    "nft_reject_inet",
    "sch_fq",
    "sch_netem",
    "tcp_diag",
    "wireguard",
];

/// How long the tests may take on an emulated machine.
const PROGRAM_TIME: Duration = Duration::from_secs(25 * 60);

/// How long a guest may take to start and to stop.
const BOOT_TIME: Duration = Duration::from_secs(120);

/// Arguments that the test programs always get.
const COMMON_ARGUMENTS: &str = "--test-threads=1 --color=never --include-ignored";

/// How a guest is set up, apart from its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Default,
    LockdownIntegrity,
    LockdownConfidentiality,
    Paranoid,
}

impl Mode {
    /// The name that tests see in `TCPINSPECT_GUEST_MODE`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::LockdownIntegrity => "lockdown-integrity",
            Self::LockdownConfidentiality => "lockdown-confidentiality",
            Self::Paranoid => "paranoid3",
        }
    }

    /// The word that is in the names of the tests of this mode only.
    pub fn word(self) -> Option<&'static str> {
        match self {
            Self::Default => None,
            Self::LockdownIntegrity | Self::LockdownConfidentiality => Some("lockdown"),
            Self::Paranoid => Some("paranoid"),
        }
    }

    fn boot_argument(self) -> &'static str {
        match self {
            Self::Default | Self::Paranoid => "",
            Self::LockdownIntegrity => "lockdown=integrity",
            Self::LockdownConfidentiality => "lockdown=confidentiality",
        }
    }

    fn perf_event_paranoid(self) -> &'static str {
        if self == Self::Paranoid { "3" } else { "" }
    }

    /// The arguments of the test programs, which leave out the tests of other modes.
    pub fn test_arguments(self, filters: &[String]) -> String {
        let chosen = match self.word() {
            None => format!("{} --skip lockdown --skip paranoid", filters.join(" ")),
            Some(word) if filters.is_empty() => word.to_owned(),
            Some(word) => {
                let own = filters.iter().filter(|filter| filter.contains(word));
                own.cloned().collect::<Vec<_>>().join(" ")
            }
        };
        format!("{COMMON_ARGUMENTS} {chosen}")
    }
}

/// The arguments with which the test programs run these tests and no others.
pub fn named_tests(names: &[String]) -> String {
    format!("{COMMON_ARGUMENTS} --exact {}", names.join(" "))
}

/// Settings that all guests of a run share.
pub struct Machine {
    pub arch: Arch,
    pub files: Files,
}

/// The output of a guest that has ended.
pub struct Finished {
    /// Its output on the port for results.
    pub results: String,
    /// The file with the kernel's messages.
    pub console: PathBuf,
    pub took: Duration,
    pub timed_out: bool,
}

/// The work of a guest.
pub struct Job<'a> {
    /// The binary under test.
    pub binary: &'a Path,
    /// The tests, or the bench.
    pub program: &'a Program,
    /// Their arguments.
    pub arguments: String,
}

/// Runs programs in one guest.
///
/// # Errors
/// When the image cannot be made or QEMU cannot be started. A guest that fails
/// is no error: its results say so.
pub fn run(
    machine: &Machine,
    kernel: &Kernel,
    mode: Mode,
    job: &Job<'_>,
    directory: &Path,
) -> Result<Finished> {
    fs::create_dir_all(directory)?;
    let initramfs = directory.join("initramfs.cpio");
    let console = directory.join("console.log");
    let results = directory.join("results.log");
    let deadline = BOOT_TIME + PROGRAM_TIME;
    fs::write(&initramfs, image(machine, kernel, mode, job, deadline)?)?;
    // Empties them, because an old log must not be taken for this guest's.
    for log in [&console, &results] {
        fs::write(log, "")?;
    }

    let (emulator, processor) = machine.arch.emulator();
    let mut command = tools::command(emulator);
    command
        .args(processor)
        .args([
            "-nodefaults",
            "-no-user-config",
            "-no-reboot",
            "-display",
            "none",
            "-nic",
            "none",
        ])
        .args([
            "-m",
            "1G",
            "-smp",
            "2",
            "-accel",
            // Old kernels patch their code at each BPF_PROG_TEST_RUN. If each processor is emulated
            // by a thread of its own, they see the new code at different times.
            "tcg,thread=single",
        ])
        .arg("-kernel")
        .arg(&kernel.image)
        .arg("-initrd")
        .arg(&initramfs)
        .arg("-append")
        .arg(format!(
            "loglevel=5 oops=panic panic=-1 {} {}",
            machine.arch.boot_arguments(),
            mode.boot_argument()
        ))
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(machine.arch.second_port(&results))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(directory.join("qemu.log"))?);
    let started = Instant::now();
    let mut child = command.spawn().context("failed to start QEMU")?;
    let mut timed_out = false;
    while child.try_wait()?.is_none() {
        if started.elapsed() > deadline {
            timed_out = true;
            child.kill()?;
            child.wait()?;
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    let results = String::from_utf8_lossy(&fs::read(results)?).into_owned();
    Ok(Finished {
        results,
        console,
        took: started.elapsed(),
        timed_out,
    })
}

fn image(
    machine: &Machine,
    kernel: &Kernel,
    mode: Mode,
    job: &Job<'_>,
    deadline: Duration,
) -> Result<Vec<u8>> {
    let mut image = Image::new(&machine.files)?;
    image.file("init", 0o755, include_bytes!("init.sh"))?;
    let configuration = format!(
        "export TCPINSPECT_BIN=/usr/bin/tcpinspect\n\
         export TCPINSPECT_GUEST_MODE={}\n\
         CONSOLE={}\n\
         RESULTS={}\n\
         PERF_EVENT_PARANOID={}\n\
         GUEST_SECONDS={}\n\
         PROGRAM={}\n\
         PROGRAM_SECONDS={}\n\
         PACKAGE_DIRECTORY={}\n\
         ARGUMENTS={}\n",
        mode.name(),
        machine.arch.ports().0,
        machine.arch.ports().1,
        mode.perf_event_paranoid(),
        deadline.as_secs(),
        job.program.name,
        PROGRAM_TIME.as_secs(),
        quoted(&crate::root().display().to_string()),
        quoted(&job.arguments),
    );
    image.file("configuration", 0o644, configuration.as_bytes())?;

    image.copy("usr/bin/tcpinspect", job.binary)?;
    let Program { name, executable } = job.program;
    image.copy(&format!("programs/{name}"), executable)?;

    let wanted = [REQUIRED_MODULES, OPTIONAL_MODULES].concat();
    let mut order = String::new();
    for (name, content) in kernel.load_order(&wanted)? {
        image.file(&format!("modules/{name}.ko"), 0o644, &content)?;
        order.push_str(&format!("{name}\n"));
    }
    image.file("modules/order", 0o644, order.as_bytes())?;
    image.finish()
}

/// Quotes a word for the shell.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}
