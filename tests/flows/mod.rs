//! flows: on captures and on real connections. There is a file for each subject; what they share is here.

mod captures;
mod counts;
mod filters;
mod life;
mod names;
mod report;
mod sequences;
mod sockets;
mod table;
mod view;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::common::frames::{ACK, FIN, PSH, RST, SYN, syn_frame};
use crate::common::raw::RawSocket;
use crate::common::tool::{ENOUGH, PublicBinary, as_nobody, check_account, command_of, parse};
use crate::common::{
    CLIENT4, Namespace, Pair, Reaped, SERVER4, SERVER6, Tool, command, is_guest, need, quick, since,
};
use crate::flow_model::Record;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket};
use nix::sys::termios::{LocalFlags, tcgetattr};
use serde_json::{Value, json};

/// Runs a file through flows; `None` if the tool says that it can't read all of it.
fn replay(path: &Path, args: &[&str]) -> Option<crate::common::Output> {
    let file = path.to_str().unwrap();
    let mut words = vec!["flows", "--json", "-r", file];
    words.extend(args);
    let output = Tool::spawn(&mut command(words)).finish();
    (output.code() == 0).then_some(output)
}

/// Checks the sums that flows promises: no packet is counted twice or forgotten. Returns the
/// summary. Lines are looked at one by one: there may be very many.
fn check_packets(output: &crate::common::Output) -> Value {
    let mut in_lines = 0;
    let mut summary = Value::Null;
    for line in output.stdout.iter().map(|line| parse(line)) {
        if line["event"] == "summary" {
            summary = line;
        } else {
            in_lines += line["orig_pkts"].as_u64().unwrap() + line["resp_pkts"].as_u64().unwrap();
        }
    }
    check_account(&summary);
    let number = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!(
        number("segments"),
        in_lines + number("untracked") + number("unreported"),
        "{summary}"
    );
    assert_eq!(number("lost"), 0, "{summary}");
    summary
}

/// A packet of a connection that a test makes up.
struct Said {
    /// Microseconds since the previous packet.
    wait: u64,
    from_client: bool,
    flags: u8,
    seq: u32,
    ack: u32,
    len: usize,
}

/// The frame of a packet, from a client with this port or to it.
fn frame_of(port: u16, said: &Said) -> Vec<u8> {
    use crate::oracle::frames::{Ipv4, Segment, ethernet_ip};
    let (client, server) = ([10, 0, 0, 1], [10, 0, 0, 2]);
    let (source, destination) = if said.from_client {
        (client, server)
    } else {
        (server, client)
    };
    let segment = Segment {
        sport: if said.from_client { port } else { 80 },
        dport: if said.from_client { 80 } else { port },
        seq: said.seq,
        ack: said.ack,
        flags: said.flags,
        payload: vec![b'x'; said.len],
        ..Segment::default()
    };
    let packet = Ipv4 {
        source,
        destination,
        ..Ipv4::default()
    };
    ethernet_ip(&packet.tcp(&segment))
}

/// Writes frames, each with the microseconds since the previous one.
fn write_frames(frames: impl IntoIterator<Item = (u64, Vec<u8>)>) -> Vec<u8> {
    let mut at = 1_700_000_000_000_000_000;
    let timed = frames.into_iter().map(|(wait, frame)| {
        at += wait * 1000;
        (at, frame)
    });
    crate::oracle::pcap_write::timed(1, timed)
}

/// Writes conversations, each with a client port, one after another.
fn write_capture(conversations: &[(u16, Vec<Said>)]) -> Vec<u8> {
    write_frames(conversations.iter().flat_map(|(port, packets)| {
        packets
            .iter()
            .map(|said| (said.wait, frame_of(*port, said)))
    }))
}

/// Replays a made-up file.
fn replay_bytes(bytes: &[u8], args: &[&str]) -> crate::common::Output {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    replay(file.path(), args).unwrap()
}

/// Checks some fields of a line.
fn assert_fields(line: &Value, expected: &[(&str, Value)]) {
    for (key, value) in expected {
        assert_eq!(&line[*key], value, "{key} of {line}");
    }
}

/// Sends the first number of bytes to a server, which sends the second number back, and closes;
/// returns the client's port.
fn transfer(client: &Namespace, server: &Namespace, addr: SocketAddr, sizes: [usize; 2]) -> u16 {
    let [stream, _] = transferred(client, server, addr, sizes);
    stream.local_addr().unwrap().port()
}

/// The same; returns the client's and the server's end, closed both ways.
fn transferred(
    client: &Namespace,
    server: &Namespace,
    addr: SocketAddr,
    sizes: [usize; 2],
) -> [TcpStream; 2] {
    let listener = server.enter(|| TcpListener::bind(addr).unwrap());
    let addr = listener.local_addr().unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut got = vec![0; sizes[0]];
        stream.read_exact(&mut got).unwrap();
        stream.write_all(&vec![b'r'; sizes[1]]).unwrap();
        // The client closes first.
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        stream.shutdown(Shutdown::Write).unwrap();
        stream
    });
    let mut stream = client.enter(|| TcpStream::connect(addr).unwrap());
    stream.write_all(&vec![b'o'; sizes[0]]).unwrap();
    let mut got = vec![0; sizes[1]];
    stream.read_exact(&mut got).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    [stream, serving.join().unwrap()]
}

/// The kernel's counters of a socket, as `ss -ti` shows them: segments out and in, payload
/// bytes sent, retransmissions included, and received.
fn socket_counts(stream: &TcpStream) -> [u64; 4] {
    let info = tcp_info(stream);
    let eight = |at: usize| u64::from_ne_bytes(info[at..at + 8].try_into().unwrap());
    [four(&info, 136), four(&info, 140), eight(200), eight(128)]
}

/// A member of struct tcp_info (linux/tcp.h) with four bytes.
fn four(info: &[u8], at: usize) -> u64 {
    u32::from_ne_bytes(info[at..at + 4].try_into().unwrap()).into()
}

/// The `TCP_INFO` of a connection.
pub fn tcp_info(stream: &TcpStream) -> [u8; 256] {
    let mut info = [0u8; 256];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the buffer and its length are valid for the call.
    let ret = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    assert!(ret == 0 && len >= 208, "TCP_INFO: {ret}, {len} bytes");
    info
}

/// The flow of a client's port, once it has ended.
fn flow_of(tool: &Tool, port: u16) -> Value {
    tool.json(&format!("of port {port}"), |line| line["sport"] == port)
}

/// Whether programs that read sockets may lock flows, which Linux 5.10 does not allow.
fn has_socket_programs() -> Result<(), String> {
    since((5, 11), "programs that read sockets can't take locks")
}

/// A packet that is sent a millisecond after the previous one.
fn say(from_client: bool, flags: u8, seq: u32, ack: u32, len: usize) -> Said {
    Said {
        wait: 1000,
        from_client,
        flags,
        seq,
        ack,
        len,
    }
}

/// A handshake with the initial sequence numbers 100 and 500.
fn handshake() -> Vec<Said> {
    vec![
        say(true, SYN, 100, 0, 0),
        say(false, SYN | ACK, 500, 101, 0),
        say(true, ACK, 101, 501, 0),
    ]
}

/// The only flow of these packets.
fn flow_of_packets(said: Vec<Said>) -> Value {
    let output = replay_bytes(&write_capture(&[(4000, said)]), &[]);
    check_packets(&output);
    let mut flows = output.events("flow");
    assert_eq!(flows.len(), 1, "{flows:#?}");
    flows.remove(0)
}

/// The name of this process, as the kernel has it.
fn own_name() -> String {
    let name = fs::read_to_string("/proc/self/comm").unwrap();
    name.trim_end().to_owned()
}
