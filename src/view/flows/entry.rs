//! A flow as the table shows it, sorts it and filters it.

use std::net::IpAddr;
use std::rc::Rc;

use super::filter::{Fields, Number, Word};
use crate::domain::flow::Flow;
use crate::domain::names::Name;
use crate::filter::expr::End;
use crate::view::text::escaped;

/// A flow, and its traffic in the last interval.
#[derive(Clone)]
pub struct FlowEntry {
    pub flow: Flow,
    pub name: Option<Rc<Name>>,
    pub packet_rate: f64,
    pub byte_rate: f64,
    /// Nanoseconds since its first packet; if it has ended, until its last.
    pub age: u64,
    pub iface: usize,
}

/// Ends, ports and interface.
pub type FlowKey = ([[u8; 16]; 2], [u16; 2], u16);

impl FlowEntry {
    pub fn key(&self) -> FlowKey {
        let key = &self.flow.raw.key;
        (key.addr, key.port, key.interface)
    }

    pub fn round_trip_ns(&self) -> Option<u64> {
        Some(self.flow.round_trip()?.us * 1000)
    }
}

impl Fields for FlowEntry {
    fn text(&self) -> String {
        text_of(self)
    }

    fn word(&self, word: Word) -> String {
        match word {
            Word::Comm => process(&self.flow).unwrap_or_default(),
            Word::State => state(&self.flow).to_owned(),
            Word::Conn => self.flow.conn_state().name().to_owned(),
            Word::Name => server(self).unwrap_or_default(),
        }
    }

    fn ends(&self) -> [End; 2] {
        let flow = &self.flow;
        [(flow.saddr(), flow.sport()), (flow.daddr(), flow.dport())]
    }

    fn numbers(&self, number: Number) -> [Option<f64>; 2] {
        let flow = &self.flow;
        let ports = [flow.sport(), flow.dport()].map(|port| Some(f64::from(port)));
        let number = match number {
            Number::Port => return ports,
            Number::Sport => ports[0],
            Number::Dport => ports[1],
            Number::Pid => flow.process().map(|(pid, _)| f64::from(pid)),
            Number::Uid => flow.uid().map(f64::from),
            Number::Packets => Some(flow.packets() as f64),
            Number::Bytes => Some(bytes(flow) as f64),
            Number::PacketRate => Some(self.packet_rate),
            Number::ByteRate => Some(self.byte_rate),
            Number::Retransmits => Some(flow.retransmits() as f64),
            Number::RoundTrip => self.round_trip_ns().map(|ns| ns as f64),
            Number::Handshake => flow.handshake_ns().map(|ns| ns as f64),
            Number::Age => Some(self.age as f64),
        };
        [number, None]
    }
}

/// The state of a live flow, or how an ended one ended.
pub fn state(flow: &Flow) -> &'static str {
    if flow.is_live() {
        flow.state().name()
    } else {
        flow.outcome().name()
    }
}

/// Payload bytes both ways.
pub fn bytes(flow: &Flow) -> u64 {
    flow.orig().bytes + flow.resp().bytes
}

/// The name of a flow's process.
pub fn process(flow: &Flow) -> Option<String> {
    flow.process().map(|(_, comm)| escaped(comm))
}

/// The server that the initiator has asked for.
pub fn server(entry: &FlowEntry) -> Option<String> {
    let server = entry.name.as_ref()?.server.as_ref()?;
    Some(escaped(server))
}

/// The text that words of a filter are searched in.
fn text_of(entry: &FlowEntry) -> String {
    let flow = &entry.flow;
    let text = format!(
        "{} {} {} {} {} {}",
        endpoint(flow.saddr(), flow.sport()),
        endpoint(flow.daddr(), flow.dport()),
        flow.state().name(),
        flow.conn_state().name(),
        process(flow).unwrap_or_default(),
        server(entry).unwrap_or_default()
    );
    text.to_lowercase()
}

/// Address and port.
pub fn endpoint(addr: IpAddr, port: u16) -> String {
    std::net::SocketAddr::new(addr, port).to_string()
}
