//! Helpers that the tests share: the tool as a process, network namespaces, frames, and small BPF
//! programs in the role of other tools' programs.

// Each test executable uses a part of this.
#![allow(dead_code, unused_imports, unused_macros)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod bpf;
pub mod cgroup;
pub mod frames;
pub mod net;
pub mod raw;
pub mod terminal;
pub mod tool;

use std::fmt::Display;
use std::fs;
use std::io::Write;
use std::num::NonZero;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub use net::{CLIENT4, CLIENT6, Namespace, Pair, SERVER4, SERVER6};
pub use tool::{Output, Tool, command};

/// Longer than anything that works takes, even on an emulated machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Unwraps something that a test needs. If this machine lacks it, the test prints SKIP with the
/// reason and returns. Not for closures: it would return from the closure only.
macro_rules! need {
    ($has:expr) => {
        match $has {
            Ok(it) => it,
            Err(why) => {
                fn here() {}
                $crate::common::skip(std::any::type_name_of_val(&here), &why.to_string());
                return;
            }
        }
    };
}
pub(crate) use need;

/// Says in one line that a test can't run here. `place` is the path of an item in the test function.
pub fn skip(place: &str, why: &str) {
    say(&format!(
        "SKIP {}: {}",
        test_at(place),
        why.replace('\n', "; ")
    ));
}

/// The name of the test function that has an item of this path.
pub fn test_at(place: &str) -> &str {
    let test = place.trim_end_matches("::here");
    test.split_once("::").map_or(test, |(_, name)| name)
}

/// Prints a line to stderr itself, because the test harness captures what the print macros write;
/// and in one write, so that no other output splits the line.
pub fn say(line: &str) {
    let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
}

/// Waits until `condition` gives a value.
///
/// # Panics
/// After [`PATIENCE`].
pub fn wait_for<T>(what: &str, condition: impl FnMut() -> Option<T>) -> T {
    // Emulated processors are slow, and guests share the real ones.
    let times = if is_guest() { 3 } else { 1 };
    wait_within(what, PATIENCE * times, condition)
}

/// Whether this is a guest, an emulated machine in which a run of the tool takes a second. There
/// only the kernel is tested; everything else was tested outside.
pub fn is_guest() -> bool {
    std::env::var_os("TCPINSPECT_GUEST_MODE").is_some()
}

/// A time limit. On a machine whose load is higher than its number of processors, it is longer in
/// proportion.
pub fn quick(limit: Duration) -> Duration {
    let load = fs::read_to_string("/proc/loadavg").unwrap();
    let load: f64 = load.split(' ').next().unwrap().parse().unwrap();
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    limit.mul_f64((load / processors as f64).max(1.0))
}

/// Waits until `condition` gives a value, and at most `limit`.
pub fn wait_within<T>(what: &str, limit: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(started.elapsed() < limit, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Runs a command, words separated by spaces, which must succeed; returns its stdout.
pub fn run(words: &str) -> String {
    try_run(words).unwrap_or_else(|why| panic!("{why}"))
}

/// Runs a command, words separated by spaces; returns its stdout, or what it complained about. A
/// `~` stands for a space within a word.
pub fn try_run(words: &str) -> Result<String, String> {
    let mut split = words.split_whitespace().map(|word| word.replace('~', " "));
    let output = Command::new(split.next().unwrap())
        .args(split)
        .output()
        .map_err(|error| format!("{words}: {error}"))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{words}: {}", stderr.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A process that is killed and reaped when the test is done with it.
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that alone holds a socket, and does nothing with it.
pub fn holder(socket: OwnedFd) -> Reaped {
    let mut sleep = Command::new("sleep");
    sleep.arg("600").stdin(Stdio::from(socket));
    Reaped(sleep.spawn().unwrap())
}

/// A size in KiB from /proc/PID/status, such as `VmRSS`; `None` if the process has ended.
pub fn status_kib(pid: impl Display, name: &str) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line?.trim().strip_suffix(" kB")?.parse().ok()
}

/// Whether the kernel has at least this version.
///
/// # Errors
/// It is older; `what` says what is so before that version.
pub fn since((major, minor): (u32, u32), what: &str) -> Result<(), String> {
    if release() < (major, minor) {
        return Err(format!("before Linux {major}.{minor} {what}"));
    }
    Ok(())
}

/// Whether the kernel has an enumerator of this name, by its type information. Some kernels have reasons
/// of drops that their version does not promise.
pub fn has_enumerator(name: &str) -> bool {
    let types = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    String::from_utf8_lossy(&types).contains(&format!("\0{name}\0"))
}

/// Whether the kernel can give this reason for a drop, by its name in the output.
pub fn has_drop_reason(name: &str) -> bool {
    has_enumerator(&format!("SKB_DROP_REASON_{}", name.to_uppercase()))
}

/// The version of the kernel.
pub fn release() -> (u32, u32) {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_str().unwrap().to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse().unwrap();
    (number(), number())
}
