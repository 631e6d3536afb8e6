//! Decodes arbitrary bytes as an event of each kind and writes it as text and
//! as JSON: it must not crash, and each must be one line, without a character
//! that would do something to a terminal. The line of JSON must be an object.

#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value};
use tcpinspect::output::clock::Clock;
use tcpinspect::output::connect::ConnectWriter;
use tcpinspect::output::packet::{PacketWriter, Place};
use tcpinspect::record::{Connection, Packet};

/// Reading the time zone takes longer than everything else here.
fn with_clock(work: impl FnOnce(&mut Clock)) {
    thread_local! {
        static CLOCK: RefCell<Clock> = RefCell::new(Clock::new().expect("a clock"));
    }
    CLOCK.with_borrow_mut(work);
}

fn check_line(line: &[u8]) {
    let line = std::str::from_utf8(line).expect("a line is UTF-8");
    let line = line.strip_suffix('\n').expect("a line ends");
    assert!(!line.contains(char::is_control), "{line:?}");
}

fn check_json(line: &[u8]) -> Map<String, Value> {
    check_line(line);
    serde_json::from_slice(line).expect("a line is an object")
}

fn check_packet(packet: &Packet<'_>, clock: &mut Clock) {
    let at = packet.raw.ts_ns.cast_signed();
    for is_ethernet in [false, true] {
        let writer = PacketWriter {
            iface_width: 5,
            with_payload: is_ethernet,
        };
        let place = Place {
            iface: is_ethernet.then_some("eth0"),
            has_macs: is_ethernet,
            has_ethertype: is_ethernet,
            offset_shift: if is_ethernet { 0 } else { -14 },
        };
        let mut line = Vec::new();
        writer.text(&mut line, clock, at, place, packet);
        check_line(&line);
        line.clear();
        writer.json(&mut line, clock, at, place, packet);
        let json = check_json(&line);
        assert_eq!(json["sport"], packet.raw.sport);
        assert_eq!(json["ip_version"], packet.raw.ip_version);
        assert_eq!(json["payload"].is_null(), !writer.with_payload);
    }
}

fn check_connection(connection: &Connection, clock: &mut Clock) {
    let at = connection.raw.ts_ns.cast_signed();
    for with_close in [false, true] {
        let writer = ConnectWriter {
            backend: "fentry",
            with_close,
        };
        let mut line = Vec::new();
        writer.text(&mut line, clock, at, connection);
        check_line(&line);
        line.clear();
        let container = with_close.then_some("a\n\"b\"");
        writer.json(&mut line, clock, at, connection, container);
        let json = check_json(&line);
        assert_eq!(json["event"], connection.name());
        assert_eq!(json["comm"].is_null(), !connection.has_process());
    }
}

fuzz_target!(|data: &[u8]| {
    with_clock(|clock| {
        if let Some(packet) = Packet::decode(data) {
            check_packet(&packet, clock);
        }
        if let Some(connection) = Connection::decode(data) {
            check_connection(&connection, clock);
        }
    });
});
