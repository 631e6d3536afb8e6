//! The output of port-monitor: columns of the text format and keys of JSON.

use super::Render;
use super::clock::{Clock, Precision, UnixNanos};
use super::columns::{Column, Layout, Row, Tone};
use super::escape::hex_digits;
use super::json::Object;
use super::line::Line;
use super::scalar::{push_addr, push_flag_letters, push_int, push_port};
use crate::domain::Direction;
use crate::domain::packet::{ACK, FIN, Packet, RST, SYN};
use crate::failure::Failure;
use crate::key;

/// Where a packet was seen, and what its link layer has.
#[derive(Clone, Copy, Debug)]
pub struct CapturePoint<'a> {
    /// The name of the interface; `None` in a replay.
    pub iface: Option<&'a str>,
    /// The frame has an Ethernet header, and so MAC addresses.
    pub has_macs: bool,
    /// The frame has an EtherType.
    pub has_ethertype: bool,
    /// Added to offsets, so that they count from the start of the captured frame.
    pub offset_shift: i32,
}

#[derive(Clone, Copy, PartialEq)]
pub(crate) enum PacketColumn {
    Time,
    Iface,
    Dir,
    Saddr,
    Sport,
    Daddr,
    Dport,
    Flags,
    /// Bytes of payload.
    Len,
    /// The window field of the header, not scaled.
    Win,
    Ttl,
    Vlan,
    Mss,
    Seq,
    Ack,
    Payload,
}

const COLUMNS: [Column<PacketColumn>; 16] = [
    Column::time(PacketColumn::Time, Precision::Micros),
    Column::left(PacketColumn::Iface, "IFACE", 5),
    Column::left(PacketColumn::Dir, "DIR", 7),
    Column::left(PacketColumn::Saddr, "SADDR", 15),
    Column::right(PacketColumn::Sport, "SPORT", 5),
    Column::left(PacketColumn::Daddr, "DADDR", 15),
    Column::right(PacketColumn::Dport, "DPORT", 5),
    Column::left(PacketColumn::Flags, "FLAGS", 5),
    Column::left(PacketColumn::Len, "LEN", 5),
    Column::left(PacketColumn::Win, "WIN", 5),
    Column::left(PacketColumn::Ttl, "TTL", 3),
    Column::left(PacketColumn::Vlan, "VLAN", 4),
    Column::left(PacketColumn::Mss, "MSS", 5),
    Column::left(PacketColumn::Seq, "SEQ", 10),
    Column::left(PacketColumn::Ack, "ACK", 10),
    Column::left(PacketColumn::Payload, "PAYLOAD", 32),
];

/// Writes packets as text or JSON.
#[derive(Clone)]
pub struct PacketWriter {
    /// The columns of the text format.
    pub(crate) layout: Layout<PacketColumn>,
    /// Whether to show the payload.
    pub with_payload: bool,
}

impl PacketWriter {
    /// Takes the columns of `--columns`, or the default ones if there are none.
    ///
    /// # Errors
    /// A column is unknown.
    pub fn new(columns: &[String], with_payload: bool) -> Result<Self, Failure> {
        let layout = Layout::new(&COLUMNS, columns, |column| match column {
            PacketColumn::Mss | PacketColumn::Seq | PacketColumn::Ack => false,
            PacketColumn::Payload => with_payload,
            _ => true,
        })?;
        Ok(Self {
            layout,
            with_payload,
        })
    }

    /// A packet to write.
    #[inline]
    pub fn shown<'a>(&'a self, point: CapturePoint<'a>, packet: &'a Packet<'a>) -> ShownPacket<'a> {
        ShownPacket {
            writer: self,
            point,
            packet,
        }
    }
}

/// A packet, and where it was seen.
pub struct ShownPacket<'a> {
    writer: &'a PacketWriter,
    point: CapturePoint<'a>,
    packet: &'a Packet<'a>,
}

impl Row for ShownPacket<'_> {
    type Column = PacketColumn;

    const FIRST: &'static [Column<PacketColumn>] = COLUMNS.split_at(12).0;

    #[inline(always)]
    fn cell(&self, column: PacketColumn, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let packet = self.packet;
        let raw = packet.raw;
        match column {
            PacketColumn::Time => clock.push_time(out, at, Precision::Micros),
            PacketColumn::Iface => out.push_text(self.point.iface.unwrap_or("-").as_bytes()),
            PacketColumn::Dir => {
                let (text, len) = match packet.direction() {
                    Direction::Ingress => (*b"ingress", 7),
                    Direction::Egress => (*b"egress ", 6),
                };
                out.put(text, len);
            }
            PacketColumn::Saddr => push_addr(out, packet.saddr()),
            PacketColumn::Sport => push_port(out, Some(raw.sport)),
            PacketColumn::Daddr => push_addr(out, packet.daddr()),
            PacketColumn::Dport => push_port(out, Some(raw.dport)),
            PacketColumn::Flags => push_flag_letters(out, raw.tcp_flags),
            PacketColumn::Len => push_int(out, raw.payload_len),
            PacketColumn::Win => push_int(out, raw.window),
            PacketColumn::Ttl => push_int(out, raw.ttl),
            PacketColumn::Vlan => match packet.vlans() {
                [] => out.push(b'-'),
                ids => push_vlans(out, ids),
            },
            PacketColumn::Mss => match packet.options.mss {
                Some(mss) => push_int(out, mss),
                None => out.push(b'-'),
            },
            PacketColumn::Seq => push_int(out, raw.seq),
            PacketColumn::Ack => push_int(out, raw.ack),
            PacketColumn::Payload => match packet.payload {
                [] => out.push(b'-'),
                bytes => out.push_hex(bytes),
            },
        }
    }

    fn tone(&self, column: PacketColumn) -> Tone {
        let has = |flags| self.packet.raw.tcp_flags & flags == flags;
        match column {
            PacketColumn::Flags if has(RST) => Tone::Bad,
            PacketColumn::Flags if has(FIN) => Tone::Ending,
            PacketColumn::Flags if has(SYN | ACK) => Tone::Good,
            PacketColumn::Flags if has(SYN) => Tone::Notable,
            _ => Tone::Plain,
        }
    }
}

impl Render for ShownPacket<'_> {
    #[inline(always)]
    fn text(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        self.writer.layout.row(self, out, clock, at);
    }

    #[inline(always)]
    fn json(&self, out: &mut Line<'_>, clock: &mut Clock, at: UnixNanos) {
        let Self {
            writer,
            point,
            packet,
        } = self;
        let raw = packet.raw;
        let options = &packet.options;
        let mut line = Object::new(out, |out| clock.push_rfc3339(out, at), "packet");
        line.opt_string(key!("iface"), point.iface);
        line.name(key!("direction"), packet.direction().name());
        if point.has_macs {
            line.with(key!("src_mac"), |out| push_mac(out, raw.src_mac));
            line.with(key!("dst_mac"), |out| push_mac(out, raw.dst_mac));
        } else {
            line.null(key!("src_mac")).null(key!("dst_mac"));
        }
        line.opt_int(
            key!("ethertype"),
            point.has_ethertype.then_some(raw.ethertype),
        );
        line.array(key!("vlan"), |ids| {
            packet.vlans().iter().for_each(|id| ids.int(*id));
        });
        line.int(key!("ip_version"), raw.ip_version);
        line.addr(key!("saddr"), packet.saddr());
        line.addr(key!("daddr"), packet.daddr());
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
        line.tcp_flags(key!("tcp_flags"), raw.tcp_flags);
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
            raw.payload_offset.saturating_add_signed(point.offset_shift),
        );
        line.int(key!("payload_len"), raw.payload_len);
        if writer.with_payload {
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
        // No colon after the last byte.
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
