//! Segments, sockets and firewall rules that the tests of accept-trace make.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use nix::sys::socket::SockFlag;

use crate::common::frames::{Segment, ethernet_ip, tcp_between};
use crate::common::net::Growth;
use crate::common::raw::RawSocket;
use crate::common::{Namespace, Pair, SERVER4};
use crate::connect::sockets::{connect_to, tcp};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub fn local(port: u16) -> SocketAddr {
    (LOOPBACK, port).into()
}

pub fn server(port: u16) -> SocketAddr {
    (SERVER4, port).into()
}

/// A socket that begins to connect.
pub fn begin(addr: SocketAddr) -> OwnedFd {
    let socket = tcp(addr, SockFlag::SOCK_NONBLOCK);
    let _ = connect_to(&socket, addr);
    socket
}

/// A frame with a segment, from the client's MAC address to the server's.
pub fn segment(
    pair: &Pair,
    from: Ipv4Addr,
    flags: u8,
    ports: (u16, u16),
    seq: u32,
    ack: u32,
) -> Vec<u8> {
    let segment = Segment {
        seq,
        ack,
        ..Segment::new(ports.0, ports.1, flags, &[])
    };
    frame(pair, from, &segment)
}

/// The frame of a segment from this address to the server.
pub fn frame(pair: &Pair, from: Ipv4Addr, segment: &Segment) -> Vec<u8> {
    let mut frame = ethernet_ip(&tcp_between(from.into(), SERVER4.into(), segment));
    frame[..6].copy_from_slice(&mac(&pair.server, "vs"));
    frame[6..12].copy_from_slice(&mac(&pair.client, "vc"));
    frame
}

fn mac(namespace: &Namespace, interface: &str) -> Vec<u8> {
    let text = namespace.run(&format!("ip -o link show {interface}"));
    let mut words = text.split_whitespace();
    words.find(|word| *word == "link/ether").unwrap();
    let octets = words.next().unwrap().split(':');
    octets
        .map(|octet| u8::from_str_radix(octet, 16).unwrap())
        .collect()
}

pub fn send(pair: &Pair, frame: &[u8]) {
    pair.client.enter(|| RawSocket::open("vc").send(frame));
}

/// An address of the client's network that nobody answers for.
pub const NOBODY: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);

/// Lets packets to [`NOBODY`] leave.
pub fn with_neighbour(pair: &Pair) {
    pair.server.run(&format!(
        "ip neigh add {NOBODY} lladdr 02:00:00:00:00:99 dev vs"
    ));
}

/// Sends a SYN from [`NOBODY`], and returns the sequence number of the SYN-ACK.
pub fn half_open(pair: &Pair, port: u16) -> u32 {
    let seen = pair.client.enter(|| RawSocket::open_to_receive("vc"));
    send(pair, &segment(pair, NOBODY, 2, (4000, port), 77, 0));
    loop {
        let frame = seen.receive();
        let from_port = |frame: &[u8]| frame.len() >= 54 && frame[34..36] == port.to_be_bytes();
        if from_port(&frame) && frame[47] == 0x12 {
            break u32::from_be_bytes(frame[38..42].try_into().unwrap());
        }
    }
}

/// Sends an ACK from [`NOBODY`] after [`half_open`].
pub fn acknowledge(pair: &Pair, port: u16, number: u32) {
    send(pair, &segment(pair, NOBODY, 0x10, (4000, port), 78, number));
}

/// Sends a SYN from [`NOBODY`], and the final ACK of its handshake only when another connection has
/// taken the last place in the accept queue.
pub fn late_ack(pair: &Pair, port: u16) {
    let seq = half_open(pair, port);
    let established = Growth::of(&pair.server, "TcpPassiveOpens");
    pair.client
        .enter(|| TcpStream::connect(server(port)).unwrap());
    established.reaches(1);
    acknowledge(pair, port, seq.wrapping_add(1));
}
