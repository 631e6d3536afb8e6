//! Decodes arbitrary bytes as an event of each kind and writes it as text and as JSON. It must not
//! crash, each must be one line without a character that controls a terminal, and the
//! line of JSON must be an object.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use tcpinspect::domain::{connection::Connection, flow::Flow, packet::Packet};
use tcpinspect::failure::Failure;
use tcpinspect::host::time_zone;
use tcpinspect::output::Render;
use tcpinspect::output::clock::{Clock, TimeStyle};
use tcpinspect::output::connect_trace::ConnectWriter;
use tcpinspect::output::flows::{FlowWriter, ShownFlow};
use tcpinspect::output::line::{Line, Room};
use tcpinspect::output::port_monitor::{CapturePoint, PacketWriter};

/// Made once, because this takes longer than everything else here: the clock reads the time zone.
struct Writers {
    clock: Clock,
    packets: [PacketWriter; 2],
    connections: ConnectWriter,
    flows: FlowWriter,
}

impl Writers {
    fn new() -> Result<Self, Failure> {
        let zone = time_zone::system().expect("a time zone");
        // What the kernel has written as text, and what only these columns show.
        let flows = "iface,state,history,handshake_ms,rtx,unexp,end,partial,pid,comm";
        let flows: Vec<String> = flows.split(',').map(str::to_owned).collect();
        Ok(Self {
            clock: Clock::new(zone, TimeStyle::Local)?,
            packets: [
                PacketWriter::new(&[], false)?,
                PacketWriter::new(&[], true)?,
            ],
            connections: ConnectWriter::new(&[], true)?,
            flows: FlowWriter::new(&flows, false, false)?,
        })
    }
}

thread_local! {
    static WRITERS: RefCell<Writers> = RefCell::new(Writers::new().expect("writers"));
}

/// Writes a record, which must be exactly one line.
fn written(write: impl FnOnce(&mut Line<'_>)) -> String {
    let mut out = Vec::new();
    Line::render(&mut Room::new(false), &mut out, write);
    let line = String::from_utf8(out).expect("a line is UTF-8");
    let line = line.strip_suffix('\n').expect("a line ends");
    assert!(!line.contains(char::is_control), "{line:?}");
    line.to_owned()
}

/// Writes a record in both formats, and returns what the JSON says.
fn json(record: &impl Render, at: u64, clock: &mut Clock) -> Map<String, Value> {
    let at = at.cast_signed();
    written(|line| record.text(line, clock, at));
    let line = written(|line| record.json(line, clock, at));
    serde_json::from_str(&line).expect("a line is an object")
}

fn check_packet(packet: &Packet<'_>, writer: &PacketWriter, clock: &mut Clock) {
    for is_ethernet in [false, true] {
        let point = CapturePoint {
            iface: is_ethernet.then_some("eth0"),
            has_macs: is_ethernet,
            has_ethertype: is_ethernet,
            offset_shift: if is_ethernet { 0 } else { -14 },
        };
        let json = json(&writer.shown(point, packet), packet.raw.ts_ns, clock);
        assert_eq!(json["sport"], packet.raw.sport);
        assert_eq!(json["ip_version"], packet.raw.ip_version);
        assert_eq!(json["payload"].is_null(), !writer.with_payload);
    }
}

fn check_connection(connection: &Connection, writer: &ConnectWriter, clock: &mut Clock) {
    let shown = writer.shown(connection, Some("a\n\"b\""));
    let json = json(&shown, connection.raw.ts_ns, clock);
    assert_eq!(json["event"], connection.name());
    assert_eq!(json["comm"].is_null(), !connection.has_process());
}

fn check_flow(flow: &Flow, writer: &FlowWriter, clock: &mut Clock) {
    let shown = ShownFlow {
        writer,
        iface: Some("eth0"),
        start: flow.raw.start_ns.cast_signed(),
        container: Some("a\n\"b\""),
        pod: None,
        flow,
        name: None,
    };
    let json = json(&shown, flow.raw.last_ns, clock);
    assert_eq!(json["sport"], flow.sport());
}

fuzz_target!(|data: &[u8]| {
    WRITERS.with_borrow_mut(|writers| {
        let clock = &mut writers.clock;
        if let Some(packet) = Packet::decode(data) {
            for writer in &writers.packets {
                check_packet(&packet, writer, clock);
            }
        }
        if let Some(connection) = Connection::decode(data) {
            check_connection(&connection, &writers.connections, clock);
        }
        if let Some(flow) = Flow::decode(data) {
            check_flow(&flow, &writers.flows, clock);
        }
    });
});
