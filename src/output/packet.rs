//! port-monitor's lines.

use std::net::IpAddr;

use super::clock::{Clock, UnixNanos};
use super::escape::{hex_digits, push_hex, push_text};
use super::json::{Object, push_addr, push_int, push_start};
use super::{pad_left, pad_right};
use crate::filter::FLAG_NAMES;
use crate::key;
use crate::record::Packet;

/// Where a packet was seen, and what its link layer can tell.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of the interface; `None` in a replay.
    pub iface: Option<&'a str>,
    /// The frame has an Ethernet header, and with it MAC addresses.
    pub has_macs: bool,
    /// The frame has an EtherType.
    pub has_ethertype: bool,
    /// What must be added to offsets to count from the start of the captured frame.
    pub offset_shift: i32,
}

/// Bits of the flags byte and the letters of tcpdump, in its order: `[S.]`, `[P.]`, `[SEW]`.
const FLAG_LETTERS: [(u8, u8); 8] = [
    (0x01, b'F'),
    (0x02, b'S'),
    (0x04, b'R'),
    (0x08, b'P'),
    (0x10, b'.'),
    (0x20, b'U'),
    (0x40, b'E'),
    (0x80, b'W'),
];

/// Writes packets as text or JSON.
pub struct PacketWriter {
    /// Width of the IFACE column.
    pub iface_width: usize,
    /// The payload is shown.
    pub with_payload: bool,
}

impl PacketWriter {
    /// The header line of the text format.
    pub fn text_header(&self, out: &mut Vec<u8>) {
        pad_right(out, 16, |out| out.extend_from_slice(b"TIME"));
        pad_right(out, self.iface_width + 1, |out| {
            out.extend_from_slice(b"IFACE")
        });
        out.extend_from_slice(
            b"DIR     SADDR                                   SPORT DADDR                                   DPORT FLAGS    LEN    WIN   TTL VLAN      MSS   SEQ        ACK",
        );
        if self.with_payload {
            out.extend_from_slice(b"        PAYLOAD");
        }
        out.push(b'\n');
    }

    /// One line of text.
    pub fn text(
        &self,
        out: &mut Vec<u8>,
        clock: &mut Clock,
        at: UnixNanos,
        place: Place<'_>,
        packet: &Packet<'_>,
    ) {
        let raw = &packet.raw;
        clock.push_local_micros(out, at);
        out.push(b' ');
        pad_right(out, self.iface_width + 1, |out| {
            push_text(out, place.iface.unwrap_or("-").as_bytes());
        });
        out.extend_from_slice(if raw.egress == 0 {
            b"ingress "
        } else {
            b"egress  "
        });
        pad_right(out, 40, |out| push_addr(out, packet.saddr()));
        pad_left(out, 5, |out| push_int(out, raw.sport));
        out.push(b' ');
        pad_right(out, 40, |out| push_addr(out, packet.daddr()));
        pad_left(out, 5, |out| push_int(out, raw.dport));
        out.push(b' ');
        pad_right(out, 9, |out| push_flag_letters(out, raw.tcp_flags));
        pad_right(out, 7, |out| push_int(out, raw.payload_len));
        pad_right(out, 6, |out| push_int(out, raw.window));
        pad_right(out, 4, |out| push_int(out, raw.ttl));
        pad_right(out, 10, |out| push_vlans(out, packet.vlans()));
        pad_right(out, 6, |out| match packet.options.mss {
            Some(mss) => push_int(out, mss),
            None => out.push(b'-'),
        });
        pad_right(out, 11, |out| push_int(out, raw.seq));
        if self.with_payload {
            pad_right(out, 11, |out| push_int(out, raw.ack));
            match packet.payload {
                [] => out.push(b'-'),
                bytes => push_hex(out, bytes),
            }
        } else {
            push_int(out, raw.ack);
        }
        out.push(b'\n');
    }

    /// One line of JSON.
    pub fn json(
        &self,
        out: &mut Vec<u8>,
        clock: &mut Clock,
        at: UnixNanos,
        place: Place<'_>,
        packet: &Packet<'_>,
    ) {
        let raw = &packet.raw;
        let options = &packet.options;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "packet");
        match place.iface {
            Some(name) => line.string(key!("iface"), name.as_bytes()),
            None => line.null(key!("iface")),
        };
        line.name(
            key!("direction"),
            if raw.egress == 0 { "ingress" } else { "egress" },
        );
        if place.has_macs {
            line.with(key!("src_mac"), |out| push_mac(out, raw.src_mac));
            line.with(key!("dst_mac"), |out| push_mac(out, raw.dst_mac));
        } else {
            line.null(key!("src_mac")).null(key!("dst_mac"));
        }
        line.opt_int(
            key!("ethertype"),
            place.has_ethertype.then_some(raw.ethertype),
        );
        line.raw(key!("vlan"), |out| {
            out.push(b'[');
            for (i, id) in packet.vlans().iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                push_int(out, *id);
            }
            out.push(b']');
        });
        line.int(key!("ip_version"), raw.ip_version);
        line.with(key!("saddr"), |out| push_addr(out, packet.saddr()));
        line.with(key!("daddr"), |out| push_addr(out, packet.daddr()));
        line.int(key!("ttl"), raw.ttl);
        line.int(key!("tos"), raw.tos);
        line.opt_int(key!("ip_id"), (raw.ip_version == 4).then_some(raw.ip_id));
        line.opt_int(key!("ip_len"), Some(raw.ip_len).filter(|len| *len != 0));
        line.int(key!("ip_header_len"), raw.ip_header_len);
        line.int(key!("sport"), raw.sport);
        line.int(key!("dport"), raw.dport);
        line.int(key!("seq"), raw.seq);
        line.int(key!("ack"), raw.ack);
        line.int(key!("data_offset"), raw.data_offset);
        line.raw(key!("tcp_flags"), |out| push_flag_names(out, raw.tcp_flags));
        line.int(key!("tcp_flags_raw"), raw.tcp_flags);
        line.int(key!("window"), raw.window);
        line.int(key!("checksum"), raw.checksum);
        line.int(key!("urgent"), raw.urgent);
        line.opt_int(key!("mss"), options.mss);
        line.opt_int(key!("wscale"), options.wscale);
        line.bool(key!("sack_permitted"), options.sack_permitted);
        line.opt_int(key!("ts_val"), options.timestamps.map(|(value, _)| value));
        line.opt_int(key!("ts_ecr"), options.timestamps.map(|(_, echo)| echo));
        line.int(
            key!("payload_offset"),
            i64::from(raw.payload_offset) + i64::from(place.offset_shift),
        );
        line.int(key!("payload_len"), raw.payload_len);
        if self.with_payload {
            line.with(key!("payload"), |out| push_hex(out, packet.payload));
        } else {
            line.null(key!("payload"));
        }
        line.end();
    }
}

fn push_mac(out: &mut Vec<u8>, mac: [u8; 6]) {
    let mut text = [b':'; 18];
    for (pair, byte) in text.chunks_exact_mut(3).zip(mac) {
        pair[..2].copy_from_slice(&hex_digits(byte));
    }
    push_start(out, text, 17);
}

fn push_vlans(out: &mut Vec<u8>, ids: &[u16]) {
    if ids.is_empty() {
        out.push(b'-');
    }
    for (i, id) in ids.iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        push_int(out, *id);
    }
}

fn push_flag_letters(out: &mut Vec<u8>, flags: u8) {
    out.push(b'[');
    if flags == 0 {
        out.extend_from_slice(b"none");
    }
    for (bit, letter) in FLAG_LETTERS {
        if flags & bit != 0 {
            out.push(letter);
        }
    }
    out.push(b']');
}

/// Appends a JSON array of the names of TCP flags.
pub(crate) fn push_flag_names(out: &mut Vec<u8>, flags: u8) {
    out.push(b'[');
    let mut first = true;
    for (bit, name) in FLAG_NAMES.iter().enumerate() {
        if flags & (1 << bit) != 0 {
            if !first {
                out.push(b',');
            }
            first = false;
            out.push(b'"');
            out.extend_from_slice(name.as_bytes());
            out.push(b'"');
        }
    }
    out.push(b']');
}

/// The widest of some interface names, for a column.
pub fn iface_width<'a>(names: impl IntoIterator<Item = &'a str>) -> usize {
    names
        .into_iter()
        .map(str::len)
        .fold("IFACE".len(), usize::max)
}

/// Appends an address, or `-` where it is unknown.
pub fn push_opt_addr(out: &mut Vec<u8>, addr: Option<IpAddr>) {
    match addr {
        Some(addr) => push_addr(out, addr),
        None => out.push(b'-'),
    }
}
