//! accept-trace: the fates of incoming connection attempts.

mod accepted;
mod counts;
mod failures;
mod filters;
mod firewall;
mod forwarding;
mod many;
mod queues;
mod repeated;
mod servers;
mod traffic;

use std::collections::BTreeMap;

use serde_json::Value;

pub use traffic::{
    NOBODY, acknowledge, begin, frame, half_open, late_ack, local, segment, send, server,
    with_neighbour,
};

use crate::common::net::listener;
use crate::common::{Namespace, Output, Tool};

/// A running accept-trace.
struct Trace {
    tool: Tool,
}

impl Trace {
    /// Starts it with `--attempts` in a namespace.
    fn start(namespace: &Namespace, args: &[&str]) -> Self {
        let mut all = vec!["accept-trace", "--json", "--attempts"];
        all.extend(args);
        Self {
            tool: Tool::start_in(namespace, &all),
        }
    }

    /// Waits for the next fate at a port of the destination.
    fn fate(&self, port: u16) -> Value {
        self.tool.json(&format!("with a fate at {port}"), |line| {
            line["event"] == "fate" && line["dport"] == port
        })
    }

    /// Waits until this many attempts have arrived at a port.
    fn arrived(&self, port: u16, count: usize) {
        let mut seen = 0;
        self.tool.json("of an attempt", |line| {
            seen += usize::from(line["event"] == "attempt" && line["dport"] == port);
            seen == count
        });
    }

    /// Waits until this many fates are printed.
    fn wait_for_fates(&self, count: usize) {
        let mut seen = 0;
        self.tool.json("of a fate", |line| {
            seen += usize::from(line["event"] == "fate");
            seen == count
        });
    }

    /// Ends it, and checks that each attempt has one fate.
    fn stop(self) -> Fates {
        Fates::of(&self.tool.stop())
    }
}

/// The output of a run.
struct Fates {
    all: Vec<Value>,
    summary: Value,
}

impl Fates {
    fn of(output: &Output) -> Self {
        assert_eq!(output.code(), 0, "{output:#?}");
        let summary = output.summary();
        let attempts = output.events("attempt");
        let all = output.events("fate");
        let fates = summary["fates"].as_object().unwrap();
        let sum: u64 = fates.values().map(|count| count.as_u64().unwrap()).sum();
        assert_eq!(summary["attempts"], sum, "{summary}");
        assert_eq!(summary["untracked"], 0, "{summary}");
        assert_eq!(summary["lost"], 0, "{summary}");
        let identities = |lines: &[Value]| {
            let mut counts = BTreeMap::<String, u32>::new();
            for line in lines {
                let ends = ["saddr", "sport", "daddr", "dport"].map(|key| line[key].to_string());
                *counts.entry(ends.join(" ")).or_default() += 1;
            }
            counts
        };
        // An attempt that went on after its fate was printed has another line.
        let first = all.iter().filter(|line| line["continued"] == false);
        let first = first.cloned().collect::<Vec<_>>();
        assert_eq!(identities(&attempts), identities(&first), "{output:#?}");
        Self { all, summary }
    }

    fn at(&self, port: u16) -> Vec<&Value> {
        let all = self.all.iter();
        all.filter(|line| line["dport"] == port).collect()
    }

    /// The one fate at this port.
    fn only(&self, port: u16) -> &Value {
        let at = self.at(port);
        assert_eq!(at.len(), 1, "{at:#?}");
        at[0]
    }

    /// How many attempts had this fate, as the summary says.
    fn count(&self, fate: &str) -> u64 {
        self.summary["fates"][fate].as_u64().unwrap()
    }
}

/// Asserts on fate, reason and where the reason is from.
fn assert_fate(line: &Value, fate: &str, reason: Option<&str>, from: Option<&str>) {
    assert_eq!(line["fate"], fate, "{line}");
    assert_eq!(line["reason"], serde_json::json!(reason), "{line}");
    if let Some(from) = from {
        assert_eq!(line["reason_from"], from, "{line}");
    }
}
