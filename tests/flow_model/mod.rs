//! The flows that a capture must have: a plain, slow model of connections, written from Zeek's
//! manual and the rules in docs, that shares no code with the product. It keeps all packets of a
//! connection and works out everything from that list at the end.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::oracle::{Link, Tcp, capture, judge};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

const SECOND: i64 = 1_000_000_000;
const IDLE: i64 = 300 * SECOND;
const HALF_OPEN: i64 = 60 * SECOND;
const LINGER: i64 = SECOND;

/// A packet of a connection.
#[derive(Clone, Debug)]
struct Packet {
    at: i64,
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    flags: u8,
    seq: u32,
    ack: u32,
    window: u16,
    wscale: Option<u8>,
    len: u32,
}

/// The expected record of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub orig: (IpAddr, u16),
    pub resp: (IpAddr, u16),
    pub start: i64,
    pub last: i64,
    pub conn_state: &'static str,
    pub history: String,
    pub orig_pkts: u64,
    pub orig_bytes: u64,
    pub resp_pkts: u64,
    pub resp_bytes: u64,
    pub syn_retransmits: u64,
    pub partial: bool,
}

/// Zeek's states of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Inactive,
    SynSent,
    Partial,
    Established,
    Closed,
    Reset,
}

/// The state of an endpoint after some packets of a connection.
#[derive(Clone, Debug)]
struct End {
    state: State,
    isn: Option<u32>,
    wscale: Option<u8>,
    /// Sequence number of the first packet that was seen.
    first: Option<u32>,
    next: Option<u32>,
    fin: Option<u32>,
    fin_acked: bool,
    /// The highest sequence number that it has acknowledged.
    acked: Option<u32>,
    /// The right edge of the window that it offers, and the widest window that it has offered.
    edge: Option<u32>,
    widest: u32,
    bytes: u64,
    last_rst: Option<u32>,
    seen: String,
    zero_windows: u32,
    retransmits: u32,
}

impl End {
    fn new() -> Self {
        Self {
            state: State::Inactive,
            isn: None,
            wscale: None,
            first: None,
            next: None,
            fin: None,
            fin_acked: false,
            acked: None,
            edge: None,
            widest: 0,
            bytes: 0,
            last_rst: None,
            seen: String::new(),
            zero_windows: 0,
            retransmits: 0,
        }
    }

    /// The widest window that it can have offered.
    fn widest(&self) -> u32 {
        self.edge.map_or(WIDEST, |_| self.widest)
    }
}

/// Everything that follows from a connection's packets.
#[derive(Clone, Debug)]
struct Story {
    orig: (IpAddr, u16),
    last: i64,
    /// The last SYN that can't belong to this connection: its sender, its sequence number, and the
    /// indices of the packets that have it or its retransmissions.
    other_syn: Option<(usize, u32, Vec<usize>)>,
    /// Segments outside of the window, perhaps after a gap in the file: their sender, their first
    /// sequence number, and the one after them.
    stray: Option<(usize, u32, u32)>,
    ends: [End; 2],
    history: String,
    finished: Option<i64>,
    syn_retransmits: u64,
}

impl Packet {
    fn end_seq(&self) -> u32 {
        let payload = if self.flags & RST == 0 { self.len } else { 0 };
        self.seq
            .wrapping_add(payload)
            .wrapping_add(u32::from(self.flags & SYN != 0))
            .wrapping_add(u32::from(self.flags & FIN != 0))
    }

    fn is(&self, flags: u8) -> bool {
        self.flags & (SYN | FIN | RST | ACK) == flags
    }

    fn seems_from_responder(&self) -> bool {
        if self.flags & SYN != 0 {
            self.flags & ACK != 0
        } else {
            is_better_known(self.from.1, self.to.1)
        }
    }
}

/// Whether a port is more likely to be a service's than the other one. Ports below 1024 are the most
/// likely, the ephemeral ports of Linux the least.
fn is_better_known(port: u16, other: u16) -> bool {
    let class = |port| match port {
        0..1024 => 0,
        32768..61000 => 2,
        _ => 1,
    };
    class(port) < class(other)
}

fn after(a: u32, b: u32) -> bool {
    a.wrapping_sub(b).cast_signed() > 0
}

/// Zeek's logarithmic letters: the first, tenth, hundredth time.
fn is_power_of_ten(n: u32) -> bool {
    n.to_string().trim_end_matches('0') == "1"
}

fn story_of(packets: &[Packet]) -> Story {
    let first = &packets[0];
    let flipped = first.seems_from_responder();
    let mut story = Story {
        orig: if flipped { first.to } else { first.from },
        last: first.at,
        other_syn: None,
        stray: None,
        ends: [End::new(), End::new()],
        history: if flipped { "^".into() } else { String::new() },
        finished: None,
        syn_retransmits: 0,
    };
    for (at, packet) in packets.iter().enumerate() {
        // Both ends may be the same (a socket connected to itself).
        let me = usize::from(packet.from != story.orig);
        story.ends[me].bytes += u64::from(packet.len);
        if !fits(&story.ends[me], &story.ends[1 - me], packet) {
            if packet.is(SYN) {
                match &mut story.other_syn {
                    Some((from, seq, which)) if (*from, *seq) == (me, packet.seq) => which.push(at),
                    other => *other = Some((me, packet.seq, vec![at])),
                }
            }
            follow_gap(&mut story, me, packet);
            continue;
        }
        story.last = story.last.max(packet.at);
        letters(&mut story, me, packet);
        numbers(&mut story, me, packet);
        states(&mut story, me, packet);
        let done = story.ends.iter().any(|end| end.state == State::Reset)
            || story.ends.iter().all(|end| end.fin_acked);
        if done && story.finished.is_none() {
            story.finished = Some(packet.at);
        }
    }
    story
}

/// If an end acknowledges data that the other has sent beyond the window, the file lacks the packets between.
fn follow_gap(story: &mut Story, me: usize, packet: &Packet) {
    if packet.flags & (SYN | RST | ACK) != ACK {
        return;
    }
    let last = packet.end_seq();
    match story.stray {
        Some((from, first, until))
            if from != me && after(packet.ack, first) && !after(packet.ack, until) =>
        {
            for (which, first, next) in [(from, first, until), (me, packet.seq, last)] {
                let end = &mut story.ends[which];
                end.isn = end.isn.map(|_| first);
                end.first = Some(first);
                end.next = Some(next);
                (end.acked, end.edge, end.fin) = (None, None, None);
            }
            story.stray = None;
        }
        Some((from, first, until))
            if from == me && !after(first, packet.seq) && !after(packet.seq, until) =>
        {
            let until = if after(last, until) { last } else { until };
            story.stray = Some((from, first, until));
        }
        _ if packet.len > 0 || packet.flags & FIN != 0 => {
            story.stray = Some((me, packet.seq, last));
        }
        _ => {}
    }
}

/// The widest window that TCP allows (RFC 7323).
const WIDEST: u32 = 1 << 30;

/// Whether the connection can have sent this packet, and its receiver would accept it (RFC 9293,
/// 3.10.7, and RFC 5961).
fn fits(end: &End, peer: &End, packet: &Packet) -> bool {
    let last = packet.end_seq();
    let (is_syn, is_ack) = (packet.flags & SYN != 0, packet.flags & ACK != 0);
    let answers_syn = |isn: Option<u32>| {
        is_ack && isn.is_some_and(|isn| after(packet.ack, isn)) && !acks_too_much(peer, packet)
    };
    if packet.flags & RST != 0 {
        if peer.state == State::SynSent {
            return answers_syn(peer.isn);
        }
        let fin = u32::from(end.fin.is_some());
        return match (peer.acked, end.first, end.next) {
            (Some(from), _, next) => {
                let until = next.unwrap_or(from.wrapping_add(WIDEST));
                !after(from, packet.seq.wrapping_add(fin)) && !after(packet.seq, until)
            }
            (None, Some(first), Some(next)) => {
                !after(first, packet.seq) && !after(packet.seq, next)
            }
            _ => true,
        };
    }
    let in_place = if is_syn {
        match (end.isn, end.first) {
            (Some(isn), _) => packet.seq == isn,
            (None, Some(first)) => last == first,
            (None, None) => peer
                .acked
                .is_none_or(|acked| acked == packet.seq.wrapping_add(1)),
        }
    } else {
        fits_window(end, peer, packet)
    };
    if !in_place || !is_ack {
        return in_place;
    }
    if acks_too_much(peer, packet) {
        // Sent before the first packet that was seen.
        return peer.isn.is_none() && end.acked.is_none();
    }
    if peer.state == State::SynSent && is_syn {
        return answers_syn(peer.isn);
    }
    end.acked
        .is_none_or(|acked| !after(acked.wrapping_sub(end.widest()), packet.ack))
}

fn acks_too_much(peer: &End, packet: &Packet) -> bool {
    peer.next.is_some_and(|next| after(packet.ack, next))
}

fn fits_window(end: &End, peer: &End, packet: &Packet) -> bool {
    let last = packet.end_seq();
    let is_too_old = end.next.is_some_and(|next| {
        let oldest = next.wrapping_sub(peer.widest()).wrapping_sub(1);
        after(oldest, last)
    });
    let is_before_syn = end.isn.is_some_and(|isn| after(isn, packet.seq))
        && end.bytes - u64::from(packet.len) < u64::from(WIDEST);
    let limit = match (peer.edge, peer.acked) {
        (Some(edge), _) => Some(edge.wrapping_add(1)),
        (None, acked) => acked.map(|acked| acked.wrapping_add(WIDEST)),
    };
    let is_beyond = limit.is_some_and(|limit| after(last, limit))
        || end.fin.is_some_and(|fin| after(last, fin));
    let is_early_fin = packet.flags & FIN != 0 && end.next.is_some_and(|next| after(next, last));
    !(is_too_old || is_before_syn || is_beyond || is_early_fin)
}

fn letters(story: &mut Story, me: usize, packet: &Packet) {
    let peer_closed = story.ends[1 - me].state == State::Closed;
    let end = &mut story.ends[me];
    let mut new = String::new();
    let once = |letter: char, seen: &mut String, new: &mut String| {
        if !seen.contains(letter) {
            seen.push(letter);
            new.push(letter);
        }
    };
    match (
        packet.flags & SYN != 0,
        packet.flags & FIN != 0,
        packet.flags & RST != 0,
    ) {
        (true, false, false) if end.isn != Some(packet.seq) => {
            new.push(if packet.flags & ACK != 0 { 'H' } else { 'S' });
        }
        (false, true, false) if end.fin != Some(packet.end_seq()) => new.push('F'),
        (false, false, true) if end.last_rst != Some(packet.seq) => new.push('R'),
        (false, false, false) if packet.len > 0 => once('D', &mut end.seen, &mut new),
        (false, false, false) if packet.flags & ACK != 0 => once('A', &mut end.seen, &mut new),
        (_, true, true) => once('I', &mut end.seen, &mut new),
        (true, true, false) | (true, false, true) => once('Q', &mut end.seen, &mut new),
        _ => {}
    }
    let reset = end.state == State::Reset;
    if packet.window == 0 && packet.flags & RST == 0 && !peer_closed && !reset {
        end.zero_windows += 1;
        if is_power_of_ten(end.zero_windows) {
            new.push('W');
        }
    }
    if let Some(next) = end.next
        && packet.len > 0
        && packet.flags & (RST | SYN) == 0
        && !reset
        && after(next, packet.seq)
    {
        end.retransmits += 1;
        if is_power_of_ten(end.retransmits) {
            new.push('T');
        }
    }
    story.history += &if me == 0 { new } else { new.to_lowercase() };
}

fn numbers(story: &mut Story, me: usize, packet: &Packet) {
    let end = &mut story.ends[me];
    if packet.flags & RST != 0 {
        end.last_rst = Some(packet.seq);
        return;
    }
    if me == 0 && packet.is(SYN) && end.isn == Some(packet.seq) {
        story.syn_retransmits += 1;
    }
    let anew = packet.flags & SYN != 0 && end.isn.is_none();
    match end.next {
        Some(next) if !anew => {
            if after(packet.end_seq(), next) {
                end.next = Some(packet.end_seq());
            }
        }
        _ => {
            end.first = Some(packet.seq);
            end.next = Some(packet.end_seq());
        }
    }
    if packet.flags & SYN != 0 {
        end.isn = Some(packet.seq);
        end.wscale = end.wscale.or(packet.wscale);
    }
    if packet.flags & FIN != 0 {
        end.fin = Some(packet.end_seq());
    }
    if packet.flags & ACK != 0 {
        acknowledge(story, me, packet);
    }
}

fn acknowledge(story: &mut Story, me: usize, packet: &Packet) {
    let peer = &mut story.ends[1 - me];
    if peer.fin.is_some_and(|fin| !after(fin, packet.ack)) {
        peer.fin_acked = true;
    }
    if acks_too_much(peer, packet) {
        peer.next = Some(packet.ack);
    }
    let (has_syn, scale) = (peer.isn.is_some(), peer.wscale);
    let end = &mut story.ends[me];
    end.acked = Some(match end.acked {
        Some(acked) if !after(packet.ack, acked) => acked,
        _ => packet.ack,
    });
    if !has_syn || end.isn.is_none() {
        return;
    }
    let shift = match (packet.flags & SYN, end.wscale, scale) {
        (0, Some(shift), Some(_)) => shift.min(14),
        _ => 0,
    };
    let window = u32::from(packet.window) << shift;
    let edge = packet.ack.wrapping_add(window);
    end.widest = end.widest.max(window);
    end.edge = Some(match end.edge {
        Some(before) if !after(edge, before) => before,
        _ => edge,
    });
}

fn states(story: &mut Story, me: usize, packet: &Packet) {
    let flags = packet.flags;
    let peer = story.ends[1 - me].state;
    let state = &mut story.ends[me].state;
    let mut peer_becomes = peer;
    match *state {
        State::Reset => return,
        State::Inactive if flags & SYN != 0 && me == 0 => *state = State::SynSent,
        State::Inactive if flags & SYN != 0 => {
            *state = State::Established;
            if peer == State::SynSent {
                peer_becomes = State::Established;
            }
        }
        State::Inactive if flags & ACK != 0 && peer == State::Established => {
            *state = State::Established;
        }
        State::Inactive if me == 1 && packet.len == 0 && peer == State::SynSent => {}
        State::Inactive => *state = State::Partial,
        _ => {}
    }
    if flags & RST != 0 {
        if !(*state == State::Closed && peer_becomes == State::Closed) {
            *state = State::Reset;
        }
    } else if flags & FIN != 0 {
        *state = State::Closed;
        if peer_becomes == State::Reset && story.ends[1 - me].fin.is_some() {
            peer_becomes = State::Closed;
        }
    }
    story.ends[1 - me].state = peer_becomes;
}

/// Whether a connection with these packets is over at this time, if nothing more comes.
fn is_over(story: &Story, now: i64) -> bool {
    let states = story.ends.each_ref().map(|end| end.state);
    let half_open = states.contains(&State::SynSent) || states == [State::Closed; 2];
    match story.finished {
        Some(at) => now - at > LINGER,
        None => now - story.last > if half_open { HALF_OPEN } else { IDLE },
    }
}

/// Whether this packet begins another connection than the one of `packets`. If so, returns the indices of
/// those packets that belong to the new connection too.
fn begins_anew(packets: &[Packet], packet: &Packet) -> Option<Vec<usize>> {
    let story = story_of(packets);
    if is_over(&story, packet.at) {
        return Some(Vec::new());
    }
    let me = usize::from(packet.from != story.orig);
    if let Some((from, seq, which)) = story.other_syn
        && from != me
        && packet.ack == seq.wrapping_add(1)
        && (packet.is(SYN | ACK) || packet.is(RST | ACK))
    {
        return Some(which);
    }
    let other_isn = story.ends[me].isn != Some(packet.seq);
    let is_new = if packet.is(SYN | ACK) {
        story.finished.is_some() && other_isn
    } else if packet.is(SYN) {
        let is_unanswered = story.ends[1 - me].state == State::Inactive;
        story.finished.is_some() || (is_unanswered && other_isn)
    } else {
        false
    };
    is_new.then(Vec::new)
}

/// Zeek's `conn_state`.
fn conn_state(story: &Story, bytes: u64) -> &'static str {
    use State::*;
    let [orig, resp] = story.ends.each_ref().map(|end| end.state);
    let idle = |state| matches!(state, Inactive | Partial);
    match (orig, resp) {
        (SynSent, Reset) => "REJ",
        (Reset, Reset) if bytes == 0 => "REJ",
        (_, Reset) if idle(orig) => "RSTRH",
        (_, Reset) => "RSTR",
        (Reset, _) if !idle(resp) => "RSTO",
        (Reset, _) => {
            // /\^?S[^HAFGIQ]*R.*/
            let history = story.history.trim_start_matches('^');
            let until = history.find('R').unwrap_or(0);
            let clean = !history[..until].contains(|letter| "HAFGIQ".contains(letter));
            if history.starts_with('S') && until > 0 && clean {
                "RSTOS0"
            } else {
                "OTH"
            }
        }
        (Closed, Closed) => "SF",
        (Closed, _) if idle(resp) => "SH",
        (Closed, _) => "S2",
        (_, Closed) if idle(orig) => "SHR",
        (_, Closed) => "S3",
        (SynSent, Inactive) => "S0",
        (Established, Established) => "S1",
        _ => "OTH",
    }
}

fn record(packets: &[Packet]) -> Record {
    let story = story_of(packets);
    let sum = |mine: bool| {
        let sent = packets
            .iter()
            .filter(|packet| (packet.from == story.orig) == mine);
        let bytes = sent.clone().map(|packet| u64::from(packet.len)).sum();
        (sent.count() as u64, bytes)
    };
    let (orig_pkts, orig_bytes): (u64, u64) = sum(true);
    let (resp_pkts, resp_bytes): (u64, u64) = sum(false);
    let first = &packets[0];
    let orig = story.orig;
    Record {
        orig,
        resp: if first.from == orig {
            first.to
        } else {
            first.from
        },
        start: first.at,
        last: story.last,
        conn_state: conn_state(&story, orig_bytes + resp_bytes),
        history: story.history.chars().take(32).collect(),
        orig_pkts,
        orig_bytes,
        resp_pkts,
        resp_bytes,
        syn_retransmits: story.syn_retransmits,
        partial: !(first.flags & SYN != 0 && first.flags & ACK == 0),
    }
}

fn packet(at: i64, tcp: &Tcp) -> Packet {
    // What the IP header says the packet had, even if the file has less.
    let headers = tcp.ip_header_len + usize::from(tcp.data_offset) * 4;
    let len = match tcp.ip_len {
        Some(len) => (len as usize).saturating_sub(headers),
        None => tcp.payload_len,
    };
    Packet {
        at,
        from: (tcp.saddr, tcp.sport),
        to: (tcp.daddr, tcp.dport),
        flags: tcp.flags,
        seq: tcp.seq,
        ack: tcp.ack,
        window: tcp.window,
        wscale: tcp.options.wscale,
        len: len.try_into().unwrap(),
    }
}

/// All connections of a capture file, in order of their ends, then of their starts. `None` if it can't be
/// read, or has frames of an unsupported link type.
pub fn records(file: &[u8]) -> Option<Vec<Record>> {
    let capture = capture::read(file);
    capture.end.as_ref().ok()?;
    // By IP version, VLANs, and both ends in order. The version is needed, because a v4-mapped IPv6 address
    // is not the IPv4 address.
    let mut open: BTreeMap<_, Vec<Packet>> = BTreeMap::new();
    let mut records = Vec::new();
    let mut looked: Option<i64> = None;
    for frame in &capture.records {
        // The times of some files jump. Each tenth of a second all connections are checked for their end.
        let at: i64 = frame.ts_ns.try_into().ok()?;
        if (at - *looked.get_or_insert(at)).abs() >= SECOND / 10 {
            looked = Some(at);
            open.retain(|_, packets| {
                let over = !packets.is_empty() && is_over(&story_of(packets), at);
                if over {
                    records.push(record(packets));
                }
                !over
            });
        }
        let link = Link::from_type(frame.link_type)?;
        let judgement = judge(frame.bytes, link);
        let Some(tcp) = judgement.packet else {
            continue;
        };
        let packet = packet(at, &tcp);
        let mut ends = [packet.from, packet.to];
        ends.sort_unstable();
        // The same addresses in two VLANs are not the same hosts.
        let mut vlans = tcp.vlan.clone();
        while vlans.last() == Some(&0) {
            vlans.pop();
        }
        let packets = open.entry((tcp.ip_version, vlans, ends)).or_default();
        if !packets.is_empty()
            && let Some(which) = begins_anew(packets, &packet)
        {
            let all = std::mem::take(packets).into_iter().enumerate();
            let (new, old): (Vec<_>, Vec<_>) = all.partition(|(at, _)| which.contains(at));
            let of =
                |packets: Vec<(usize, Packet)>| packets.into_iter().map(|(_, it)| it).collect();
            *packets = of(new);
            let old: Vec<Packet> = of(old);
            records.push(record(&old));
        }
        packets.push(packet);
    }
    let open = open.values().filter(|packets| !packets.is_empty());
    records.extend(open.map(|packets| record(packets)));
    sort(&mut records);
    Some(records)
}

/// The order in which records are compared.
pub fn sort(records: &mut [Record]) {
    records.sort_by_key(|it| (it.start, it.orig, it.resp, it.last, it.orig_pkts));
}
