//! Sockets with options and states that the standard library does not offer.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6,
    accept4, bind, connect, listen as listen_on, sendto, socket,
};

use crate::common::Namespace;

/// A TCP socket of the family of `addr`, which the tool does not inherit.
pub fn tcp(addr: SocketAddr, flags: SockFlag) -> OwnedFd {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let flags = flags | SockFlag::SOCK_CLOEXEC;
    socket(family, SockType::Stream, flags, SockProtocol::Tcp).unwrap()
}

/// A multipath TCP socket.
pub fn multipath() -> Result<OwnedFd, Errno> {
    // Programs that other tests start must not inherit it.
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: socket takes three integers and makes a descriptor or fails.
    let fd = unsafe { libc::socket(libc::AF_INET, kind, libc::IPPROTO_MPTCP) };
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    Errno::result(fd).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A multipath TCP socket that listens at a port of the IPv4 loopback address.
pub fn multipath_listener(port: u16) -> OwnedFd {
    let listener = multipath().unwrap();
    bind(listener.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, port)).unwrap();
    listen_on(&listener, Backlog::new(8).unwrap()).unwrap();
    listener
}

/// A multipath connection to a port of the IPv4 loopback address: the listener, the client and the
/// server. Both ends have received data; only then are further subflows added.
pub fn multipath_connected(port: u16) -> [OwnedFd; 3] {
    let listener = multipath_listener(port);
    let client = multipath().unwrap();
    connect_to(&client, (Ipv4Addr::LOCALHOST, port).into()).unwrap();
    let server = accept(&listener).unwrap();
    for (from, to) in [(&client, &server), (&server, &client)] {
        nix::unistd::write(from, b"x").unwrap();
        nix::unistd::read(to, &mut [0]).unwrap();
    }
    [listener, client, server]
}

/// Takes a connection out of a listener's queue. Programs that other tests start do not inherit it.
pub fn accept(listener: &impl AsRawFd) -> Result<OwnedFd, Errno> {
    accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC).map(owned)
}

/// Owns what accept(2) has returned.
pub fn owned(fd: i32) -> OwnedFd {
    assert!(fd >= 0, "{fd}");
    // SAFETY: the kernel has just made this descriptor, and nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// How many files this process can open, after it has raised its limit as far as it may.
pub fn most_files() -> usize {
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit).unwrap();
    usize::try_from(limit).unwrap()
}

/// connect(2).
pub fn connect_to(socket: &OwnedFd, addr: SocketAddr) -> Result<(), Errno> {
    match addr {
        SocketAddr::V4(addr) => connect(socket.as_raw_fd(), &SockaddrIn::from(addr)),
        SocketAddr::V6(addr) => connect(socket.as_raw_fd(), &SockaddrIn6::from(addr)),
    }
}

/// A socket that is connecting to an address where nobody answers.
pub fn connecting(addr: SocketAddr) -> OwnedFd {
    let socket = tcp(addr, SockFlag::SOCK_NONBLOCK);
    assert_eq!(connect_to(&socket, addr), Err(Errno::EINPROGRESS));
    socket
}

/// connect(2) to AF_UNSPEC, which ends an association.
pub fn disconnect(socket: &OwnedFd) {
    let addr = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    // SAFETY: the address is valid for its length, and the descriptor is open.
    let ret = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            &raw const addr,
            size_of_val(&addr) as u32,
        )
    };
    assert_eq!(ret, 0, "{}", Errno::last());
}

/// Sets an option of a socket that is an int.
pub fn set_int(socket: &impl AsRawFd, level: i32, name: i32, value: i32) -> Result<(), Errno> {
    // SAFETY: the value is valid for its length, and the descriptor is open.
    let ret = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    Errno::result(ret).map(drop)
}

/// sendto(2) with MSG_FASTOPEN: connects and sends in one call.
pub fn fast_open(socket: &OwnedFd, addr: SocketAddrV4, data: &[u8]) -> Result<usize, Errno> {
    let flags = MsgFlags::from_bits_retain(libc::MSG_FASTOPEN);
    sendto(socket.as_raw_fd(), data, &SockaddrIn::from(addr), flags)
}

/// Makes close() send a reset.
pub fn reset_on_close(stream: &impl AsRawFd) {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    // SAFETY: the value is valid for its length, and the descriptor is open.
    let ret = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as u32,
        )
    };
    assert_eq!(ret, 0, "{}", Errno::last());
}

/// A namespace with an interface behind which nobody answers.
pub struct Blackhole {
    pub namespace: Namespace,
}

impl Blackhole {
    /// Nobody receives what is sent there: the frames go to a MAC address that is not on the link.
    pub const ADDR: SocketAddr = SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 2), 0));

    pub fn new() -> Result<Self, String> {
        let namespace = Namespace::new()?;
        namespace.try_run("ip link add va type veth peer name vb")?;
        for words in [
            "ip addr add 10.99.0.1/24 dev va",
            "ip link set va up",
            "ip link set vb up",
            "ip neigh add 10.99.0.2 lladdr 02:00:00:00:00:99 dev va",
        ] {
            namespace.run(words);
        }
        Ok(Self { namespace })
    }

    pub fn at(port: u16) -> SocketAddr {
        SocketAddr::new(Self::ADDR.ip(), port)
    }
}

/// A pair of connected streams, the client's first.
pub fn connected(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let addr = listener.local_addr().unwrap();
    let client = TcpStream::connect(addr).unwrap();
    let (server, peer) = listener.accept().unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    (client, server)
}

/// A listener at a port of the loopback address of this family.
pub fn listen(ip: &str, port: u16) -> TcpListener {
    let ip: IpAddr = ip.parse().unwrap();
    TcpListener::bind((ip, port)).unwrap()
}

/// The v4-mapped IPv6 form of an address.
pub fn mapped(addr: SocketAddrV4) -> SocketAddr {
    SocketAddr::V6(SocketAddrV6::new(
        addr.ip().to_ipv6_mapped(),
        addr.port(),
        0,
        0,
    ))
}

/// The states of the TCP sockets of this thread's namespace with this remote port (/proc/net/tcp).
pub fn states(remote_port: u16) -> Vec<String> {
    let text = fs::read_to_string("/proc/thread-self/net/tcp").unwrap();
    let suffix = format!(":{remote_port:04X}");
    let lines = text.lines().skip(1);
    lines
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[2].ends_with(&suffix).then(|| fields[3].to_owned())
        })
        .collect()
}
