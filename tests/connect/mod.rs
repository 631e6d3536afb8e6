//! connect-trace on every backend that the kernel has.

mod accounting;
mod attempts;
mod ends;
mod errors;
mod filters;
mod histogram;
mod interrupted;
mod peers;
mod pending;
mod privileges;
mod process;
pub(crate) mod sockets;
pub mod uring;

use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::common::bpf::has_fentry;
use crate::common::{Namespace, Output, Tool, command, is_guest, say, test_at};

/// All backends, the most informative first.
const BACKENDS: [&str; 3] = ["fentry", "kprobe", "tracepoint"];

/// The backends to test. A line is printed for each. In guests, which run Debian's kernels, all
/// must work, except fentry on some processors: a broken backend must not be taken for a missing
/// one.
fn usable_backends(place: &str) -> &'static [&'static str] {
    static USABLE: OnceLock<Vec<&str>> = OnceLock::new();
    let usable = USABLE.get_or_init(|| {
        let works = |backend: &&str| {
            if is_guest() {
                return *backend != "fentry" || has_fentry().is_ok();
            }
            command(["connect-trace", "--backend", backend, "-d", "0.01"])
                .output()
                .unwrap()
                .status
                .success()
        };
        BACKENDS.into_iter().filter(works).collect()
    });
    assert!(
        usable.contains(&"tracepoint"),
        "the tracepoint backend does not work here"
    );
    for backend in usable {
        say_backend(backend, place);
    }
    usable
}

/// Reports that a test used a backend.
fn say_backend(backend: &str, place: &str) {
    say(&format!("BACKEND {backend} {}", test_at(place)));
}

/// The backends to test in this function; see [`usable_backends`].
macro_rules! backends {
    () => {{
        fn here() {}
        $crate::connect::usable_backends(std::any::type_name_of_val(&here))
    }};
}
pub(crate) use backends;

/// A running connect-trace, and the namespace whose events are checked.
struct Trace {
    tool: Tool,
    backend: &'static str,
    netns: u64,
}

impl Trace {
    /// Starts it for this namespace alone, so that connects of other tests take no room in its
    /// buffer.
    fn start(namespace: &Namespace, backend: &'static str, options: &[&str]) -> Self {
        let path = namespace.path();
        Self::everywhere(namespace, backend, &[&["--netns", &path], options].concat())
    }

    /// Starts it for all namespaces; only the events of this one are checked.
    fn everywhere(namespace: &Namespace, backend: &'static str, options: &[&str]) -> Self {
        let mut args = vec!["connect-trace", "--json", "--backend", backend];
        args.extend(options);
        Self {
            tool: Tool::start(&args),
            backend,
            netns: namespace.inode(),
        }
    }

    /// Whether the backend sees what happens inside the connect functions.
    fn sees_calls(&self) -> bool {
        self.backend != "tracepoint"
    }

    /// Waits for an event of the namespace.
    fn wait(&self, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let netns = self.netns;
        self.tool
            .json(what, |event| event["netns"] == netns && wanted(event))
    }

    /// Waits for the event of this name at this port of the destination.
    fn wait_for(&self, name: &str, port: u16) -> Value {
        self.wait(&format!("{name} at {port}"), |event| {
            event["event"] == name && event["dport"] == port
        })
    }

    /// Ends it, checks the figures of the summary, and returns the events of the namespace.
    fn stop(self) -> Events {
        let netns = self.netns;
        let output = self.tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        Events::of(&output, netns)
    }
}

/// The events of one namespace.
#[derive(Debug)]
struct Events {
    all: Vec<Value>,
    summary: Value,
}

impl Events {
    fn of(output: &Output, netns: u64) -> Self {
        let summary = output.summary();
        let mut all = output.json();
        all.retain(|event| event["netns"] == netns);
        Self { all, summary }
    }

    /// The events at this port of the destination, in order.
    fn at(&self, port: u16) -> Vec<&Value> {
        self.all
            .iter()
            .filter(|event| event["dport"] == port)
            .collect()
    }

    /// The names of the events at this port of the destination.
    fn names_at(&self, port: u16) -> Vec<&str> {
        let events = self.at(port);
        events
            .iter()
            .map(|event| event["event"].as_str().unwrap())
            .collect()
    }

    fn count(&self, name: &str) -> usize {
        self.named(name).len()
    }

    fn named(&self, name: &str) -> Vec<&Value> {
        self.all
            .iter()
            .filter(|event| event["event"] == name)
            .collect()
    }

    /// The attempt and its outcome at this port, which must be all that happened there.
    fn pair_at(&self, port: u16, fate: &str) -> (&Value, &Value) {
        assert_eq!(
            self.names_at(port),
            ["attempt", fate],
            "{:#?}",
            self.at(port)
        );
        let events = self.at(port);
        (events[0], events[1])
    }

    /// Checks that no event was lost.
    fn assert_whole(&self) {
        assert_eq!(self.summary["lost"], 0, "{}", self.summary);
    }
}

/// Checks that both events of an attempt agree on its process and ends.
fn assert_one_process(attempt: &Value, fate: &Value) {
    for key in [
        "pid",
        "tid",
        "uid",
        "comm",
        "ip_version",
        "saddr",
        "daddr",
        "dport",
        "netns",
        "cgroup_id",
        "backend",
        "direction",
    ] {
        assert_eq!(attempt[key], fate[key], "{key}: {attempt} {fate}");
    }
    assert_eq!(attempt["pid"], std::process::id(), "{attempt}");
    assert!(attempt["latency_us"].is_null(), "{attempt}");
    assert!(fate["latency_us"].is_u64(), "{fate}");
    assert_eq!(attempt["direction"], "out", "{attempt}");
}

/// Enough time for a tool that is not stuck.
const SOON: Duration = Duration::from_millis(200);
