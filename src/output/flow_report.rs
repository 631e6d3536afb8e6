//! The report of `flows --summary` at the end of a run: members of the summary in JSON, and lines
//! of text.

use std::fmt::Write;
use std::net::SocketAddr;

use super::json::Object;
use crate::domain::flow::in_short;
use crate::domain::flow_report::{FlowReport, Talk, Talker};
use crate::key;

/// Writes the members of the summary.
pub fn push_members(line: &mut Object<'_, '_>, report: &FlowReport) {
    line.int(key!("connections"), report.connections());
    line.int(key!("failed"), report.failed());
    line.int(key!("reset"), report.reset());
    line.object(key!("conn_states"), |states| {
        for (state, count) in report.states() {
            states.int_of(state.name(), count);
        }
    });
    let [orig_bytes, resp_bytes] = report.bytes;
    line.int(key!("orig_bytes"), orig_bytes);
    line.int(key!("resp_bytes"), resp_bytes);
    line.int(key!("syn_retransmits"), report.syn_retransmits);
    let [orig_retransmits, resp_retransmits] = report.retransmits;
    line.int(key!("orig_retransmits"), orig_retransmits);
    line.int(key!("resp_retransmits"), resp_retransmits);
    for (key, talkers) in [
        (key!("talkers"), report.talkers()),
        (key!("most_failures"), report.failing()),
        (key!("most_retransmits"), report.resending()),
    ] {
        line.array(key, |list| {
            for (talker, talk) in talkers {
                list.object(|object| {
                    push_talker(object, talker);
                    object.int(key!("connections"), talk.flows);
                    object.int(key!("failed"), talk.failed);
                    object.int(key!("retransmits"), talk.retransmits);
                    object.int(key!("bytes"), talk.bytes);
                });
            }
        });
    }
    line.int(key!("talkers_forgotten"), report.forgotten);
    line.array(key!("longest_handshakes"), |handshakes| {
        for handshake in report.longest() {
            handshakes.object(|object| {
                push_talker(object, handshake.talker);
                object.int(key!("sport"), handshake.sport);
                object.int(key!("handshake_us"), handshake.ns / 1000);
            });
        }
    });
}

fn push_talker(object: &mut Object<'_, '_>, talker: Talker) {
    object.addr(key!("saddr"), talker.saddr);
    object.addr(key!("daddr"), talker.daddr);
    object.int(key!("dport"), talker.dport);
}

/// The report as text: lines that follow the summary.
pub fn text(report: &FlowReport) -> String {
    let mut text = String::new();
    let _ = write!(
        text,
        "connections: {} ({} failed, {} reset)",
        report.connections(),
        report.failed(),
        report.reset()
    );
    for (state, count) in report.states().filter(|(_, count)| *count > 0) {
        let (name, meaning) = (state.name(), in_short(state.meaning()));
        let _ = write!(text, "\n  {count:>9}  {name:<6} {meaning}");
    }
    let [orig, resp] = report.bytes;
    let [orig_again, resp_again] = report.retransmits;
    let _ = write!(
        text,
        "\nbytes: {orig} by initiators, {resp} by responders\nretransmitted: {} SYNs, {orig_again} segments by initiators, {resp_again} by responders",
        report.syn_retransmits
    );
    let mut list = |title: &str, talkers: Vec<(Talker, Talk)>, of: fn(&Talk) -> u64| {
        if !talkers.is_empty() {
            let _ = write!(text, "\n{title}:");
        }
        for (talker, talk) in talkers {
            let to = SocketAddr::new(talker.daddr, talker.dport);
            let plural = if talk.flows == 1 { "" } else { "s" };
            let _ = write!(
                text,
                "\n  {:>15}  {} > {to} ({} connection{plural})",
                of(&talk),
                talker.saddr,
                talk.flows
            );
        }
    };
    list("top talkers, by bytes", report.talkers(), |talk| talk.bytes);
    list("most failures", report.failing(), |talk| talk.failed);
    list("most retransmitted segments", report.resending(), |talk| {
        talk.retransmits
    });
    if report.forgotten > 0 {
        let _ = write!(
            text,
            "\n  {} talkers with few bytes were not kept",
            report.forgotten
        );
    }
    if !report.longest().is_empty() {
        text += "\nlongest handshakes:";
    }
    for handshake in report.longest() {
        let talker = handshake.talker;
        let (from, to) = (
            SocketAddr::new(talker.saddr, handshake.sport),
            SocketAddr::new(talker.daddr, talker.dport),
        );
        let ms = handshake.ns as f64 / 1e6;
        let _ = write!(text, "\n  {ms:>12.3} ms  {from} > {to}");
    }
    text
}
