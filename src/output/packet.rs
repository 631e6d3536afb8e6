//! port-monitor's lines.

use std::net::IpAddr;

use super::clock::{Clock, UnixNanos};
use super::escape::hex_digits;
use super::json::{Object, push_addr, push_int, push_port};
use super::line::Line;
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

/// The letters of tcpdump for the bits of the flags byte, in its order: `[S.]`, `[P.]`, `[SEW]`.
const FLAG_LETTERS: &[u8; 8] = b"FSRP.UEW";

/// Writes packets as text or JSON.
pub struct PacketWriter {
    /// Width of the IFACE column.
    pub iface_width: usize,
    /// The payload is shown.
    pub with_payload: bool,
}

impl PacketWriter {
    /// The header line of the text format.
    pub fn text_header(&self, out: &mut Line<'_>) {
        out.pad_right(16, |out| out.extend_from_slice(b"TIME"));
        out.pad_right(self.iface_width + 1, |out| out.extend_from_slice(b"IFACE"));
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
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        place: Place<'_>,
        packet: &Packet<'_>,
    ) {
        let raw = packet.raw;
        clock.push_local_micros(out, at);
        out.push(b' ');
        out.pad_right(self.iface_width + 1, |out| {
            out.push_text(place.iface.unwrap_or("-").as_bytes());
        });
        out.extend_from_slice(if raw.egress == 0 {
            b"ingress "
        } else {
            b"egress  "
        });
        out.pad_right(40, |out| push_addr(out, packet.saddr()));
        push_port(out, Some(raw.sport));
        out.push(b' ');
        out.pad_right(40, |out| push_addr(out, packet.daddr()));
        push_port(out, Some(raw.dport));
        out.push(b' ');
        out.pad_right(9, |out| push_flag_letters(out, raw.tcp_flags));
        out.column(7, raw.payload_len);
        out.column(6, raw.window.into());
        out.column(4, raw.ttl.into());
        match packet.vlans() {
            [] => out.extend_from_slice(b"-         "),
            ids => out.pad_right(10, |out| push_vlans(out, ids)),
        }
        match packet.options.mss {
            Some(mss) => out.column(6, mss.into()),
            None => out.extend_from_slice(b"-     "),
        }
        out.column(11, raw.seq);
        if self.with_payload {
            out.column(11, raw.ack);
            match packet.payload {
                [] => out.push(b'-'),
                bytes => out.push_hex(bytes),
            }
        } else {
            push_int(out, raw.ack);
        }
        out.push(b'\n');
    }

    /// One line of JSON.
    pub fn json(
        &self,
        out: &mut Line<'_>,
        clock: &mut Clock,
        at: UnixNanos,
        place: Place<'_>,
        packet: &Packet<'_>,
    ) {
        let raw = packet.raw;
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
            raw.payload_offset.saturating_add_signed(place.offset_shift),
        );
        line.int(key!("payload_len"), raw.payload_len);
        if self.with_payload {
            line.with(key!("payload"), |out| out.push_hex(packet.payload));
        } else {
            line.null(key!("payload"));
        }
        line.end();
    }
}

#[inline(always)]
fn push_mac(out: &mut Line<'_>, mac: [u8; 6]) {
    for (i, byte) in mac.into_iter().enumerate() {
        let [high, low] = hex_digits(byte);
        // The last one goes without its colon.
        out.put([high, low, b':'], if i == 5 { 2 } else { 3 });
    }
}

#[inline(always)]
fn push_vlans(out: &mut Line<'_>, ids: &[u16]) {
    for (i, id) in ids.iter().enumerate() {
        if i > 0 {
            out.push(b'.');
        }
        push_int(out, *id);
    }
}

/// The bits that are set, by their numbers.
fn bits(flags: u8) -> impl Iterator<Item = usize> {
    let lowest = |flags: u8| (flags != 0).then_some(flags);
    std::iter::successors(lowest(flags), move |flags| lowest(flags & (flags - 1)))
        .map(|flags| flags.trailing_zeros() as usize)
}

#[inline(always)]
fn push_flag_letters(out: &mut Line<'_>, flags: u8) {
    out.push(b'[');
    if flags == 0 {
        out.extend_from_slice(b"none");
    }
    for bit in bits(flags) {
        out.push(FLAG_LETTERS[bit]);
    }
    out.push(b']');
}

/// Appends a JSON array of the names of TCP flags.
#[inline(always)]
pub(crate) fn push_flag_names(out: &mut Line<'_>, flags: u8) {
    out.push(b'[');
    for (i, bit) in bits(flags).enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.push(b'"');
        // For three letters a call to copy is more.
        FLAG_NAMES[bit].bytes().for_each(|byte| out.push(byte));
        out.push(b'"');
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
pub fn push_opt_addr(out: &mut Line<'_>, addr: Option<IpAddr>) {
    match addr {
        Some(addr) => push_addr(out, addr),
        None => out.push(b'-'),
    }
}
