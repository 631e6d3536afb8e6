//! Network namespaces and the devices in them.

use std::fs::{self, File};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use super::{run, try_run};

/// The client's IPv4 address in a [`Pair`].
pub const CLIENT4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// The server's IPv4 address in a [`Pair`].
pub const SERVER4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The client's IPv6 address in a [`Pair`].
pub const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The server's IPv6 address in a [`Pair`].
pub const SERVER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);

/// A socket of the calling thread's namespace that listens with this backlog, which can't be chosen
/// with the standard library.
pub fn listener(addr: SocketAddr, backlog: i32) -> OwnedFd {
    listening(addr, backlog, false)
}

/// The same, where several sockets can listen on one address (SO_REUSEPORT).
pub fn shared_listener(addr: SocketAddr, backlog: i32) -> OwnedFd {
    listening(addr, backlog, true)
}

fn listening(addr: SocketAddr, backlog: i32, is_shared: bool) -> OwnedFd {
    let family = match addr {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&socket, sockopt::ReusePort, &is_shared).unwrap();
    bind(socket.as_raw_fd(), &SockaddrStorage::from(addr)).unwrap();
    listen(&socket, Backlog::new(backlog).unwrap()).unwrap();
    socket
}

/// A network namespace without a name: when the last descriptor and process that refers to it is
/// gone, the kernel removes it with all that it contains, however the test ends.
#[derive(Clone)]
pub struct Namespace {
    file: Arc<File>,
}

impl Namespace {
    /// A new namespace. Its only interface is `lo`, which is up.
    ///
    /// # Errors
    /// This process may not make one.
    pub fn new() -> Result<Self, String> {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(current())
        });
        let file = made
            .join()
            .unwrap()
            .map_err(|errno: nix::Error| format!("can't make a network namespace: {errno}"))?;
        let namespace = Self {
            file: Arc::new(file),
        };
        namespace.run("ip link set lo up");
        Ok(namespace)
    }

    /// Runs `work` on a thread that is in this namespace. Sockets that it makes and processes
    /// that it starts stay there.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let joined = thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.join();
                    work()
                })
                .join()
        });
        match joined {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    /// Moves the calling thread to this namespace for good.
    pub fn join(&self) {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Runs a command in this namespace, words separated by spaces, which must succeed; returns
    /// its stdout.
    pub fn run(&self, words: &str) -> String {
        self.enter(|| run(words))
    }

    /// The same, if it may fail.
    pub fn try_run(&self, words: &str) -> Result<String, String> {
        self.enter(|| try_run(words))
    }

    /// Sets a variable below /proc/sys/net, such as `ipv4/tcp_syn_retries`.
    pub fn sysctl(&self, name: &str, value: &str) {
        let path = format!("/proc/sys/net/{name}");
        self.enter(|| fs::write(&path, value))
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// A path that `ip link set … netns PATH` takes.
    pub fn path(&self) -> String {
        let fd = self.file.as_raw_fd();
        format!("/proc/{}/fd/{fd}", std::process::id())
    }

    /// The inode, as the `netns` key of connect-trace has it.
    pub fn inode(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.file.metadata().unwrap().ino()
    }
}

fn current() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

/// Two namespaces with a veth pair between them: `vc` at the client, `vs` at the server.
pub struct Pair {
    /// Has [`CLIENT4`] and [`CLIENT6`].
    pub client: Namespace,
    /// Has [`SERVER4`] and [`SERVER6`].
    pub server: Namespace,
}

impl Pair {
    /// A new pair with an MTU of 1500 bytes.
    ///
    /// # Errors
    /// This process may not make namespaces, or the kernel has no veth.
    pub fn new() -> Result<Self, String> {
        Self::with_mtu(1500)
    }

    /// A new pair with another MTU.
    ///
    /// # Errors
    /// As [`Pair::new`].
    pub fn with_mtu(mtu: u32) -> Result<Self, String> {
        let (client, server) = (Namespace::new()?, Namespace::new()?);
        client.try_run(&format!(
            "ip link add vc mtu {mtu} type veth peer name vs mtu {mtu} netns {}",
            server.path()
        ))?;
        for (namespace, name, v4, v6) in [
            (&client, "vc", CLIENT4, CLIENT6),
            (&server, "vs", SERVER4, SERVER6),
        ] {
            namespace.run(&format!("ip addr add {v4}/24 dev {name}"));
            namespace.run(&format!("ip addr add {v6}/64 dev {name} nodad"));
            namespace.run(&format!("ip link set {name} up"));
        }
        let pair = Self { client, server };
        for (namespace, name) in [(&pair.client, "vc"), (&pair.server, "vs")] {
            // The kernel reports the state of a link a moment after it has changed.
            super::wait_for("the veth pair is up", || {
                namespace
                    .run(&format!("ip link show {name}"))
                    .contains(" state UP ")
                    .then_some(())
            });
        }
        pair.settle();
        Ok(pair)
    }

    /// Waits until packets of both families pass, so that no first packet waits for the carrier, or
    /// for neighbour resolution for longer than a retransmission takes.
    fn settle(&self) {
        for addr in [
            SocketAddr::from((SERVER4, 9)),
            SocketAddr::from((SERVER6, 9)),
        ] {
            super::wait_for("the veth pair passes packets", || {
                let result = self.client.enter(|| {
                    std::net::TcpStream::connect_timeout(
                        &addr,
                        std::time::Duration::from_millis(500),
                    )
                });
                let error = result.expect_err("nobody listens there");
                (error.kind() == std::io::ErrorKind::ConnectionRefused).then_some(())
            });
        }
    }

    /// Has packets handled on all CPUs in turn, in interrupts from each other (RPS).
    ///
    /// # Errors
    /// The kernel has no RPS, or this process may not mount sysfs.
    pub fn spread(&self) -> Result<(), String> {
        let cpus = nix::unistd::sysconf(nix::unistd::SysconfVar::_NPROCESSORS_ONLN);
        let cpus = cpus.ok().flatten().unwrap_or(1).min(32);
        let mask = format!("{:x}", (1_u64 << cpus) - 1);
        for (namespace, device) in [(&self.client, "vc"), (&self.server, "vs")] {
            let path = format!("/sys/class/net/{device}/queues/rx-0/rps_cpus");
            // A mount of sysfs shows the namespace in which it was made.
            let written = namespace.enter(|| {
                let none = None::<&str>;
                unshare(CloneFlags::CLONE_NEWNS)?;
                mount(none, "/", none, MsFlags::MS_SLAVE | MsFlags::MS_REC, none)?;
                mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), none)?;
                fs::write(&path, &mask)
            });
            written.map_err(|error| format!("no RPS: {path}: {error}"))?;
        }
        Ok(())
    }

    /// Everything about both ends that attaching could change.
    pub fn state(&self) -> String {
        let mut state = String::new();
        for (namespace, device) in [(&self.client, "vc"), (&self.server, "vs")] {
            for command in [
                "ip -d link show dev",
                "tc qdisc show dev",
                "tc filter show ingress dev",
                "tc filter show egress dev",
                "ethtool -k",
            ] {
                state += &namespace.run(&format!("{command} {device}"));
            }
            let tcx = namespace.enter(|| super::bpf::tcx_programs(device));
            state += &format!("tcx {tcx:?}\n");
        }
        state
    }

    /// Connects to a port of the server where nobody listens, `count` times: each SYN is answered by a RST.
    pub fn refused_connects(&self, addr: SocketAddr, count: usize) {
        self.client.enter(|| {
            for _ in 0..count {
                let error = std::net::TcpStream::connect(addr).expect_err("nobody listens there");
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
            }
        });
    }
}

/// A counter of the namespace, as nstat names it.
pub fn counter(namespace: &Namespace, name: &str) -> u64 {
    namespace.enter(|| {
        let (group, name) = match name.split_at_checked(6) {
            Some(("TcpExt", rest)) => ("TcpExt:", rest),
            _ => ("Tcp:", name.strip_prefix("Tcp").unwrap_or(name)),
        };
        let text = ["netstat", "snmp"]
            .map(|file| fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap())
            .concat();
        let mut lines = text.lines().filter(|line| line.starts_with(group));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let at = names.split(' ').position(|it| it == name);
        let at = at.unwrap_or_else(|| panic!("no {name}: {names}"));
        values.split(' ').nth(at).unwrap().parse().unwrap()
    })
}

/// How much a counter has grown.
pub struct Growth<'a> {
    namespace: &'a Namespace,
    name: &'a str,
    before: u64,
}

impl<'a> Growth<'a> {
    /// Begins to watch it, with the name that nstat has.
    pub fn of(namespace: &'a Namespace, name: &'a str) -> Self {
        let before = counter(namespace, name);
        Self {
            namespace,
            name,
            before,
        }
    }

    /// The growth so far.
    pub fn now(&self) -> u64 {
        counter(self.namespace, self.name) - self.before
    }

    /// Waits until it has grown by this much.
    pub fn reaches(&self, least: u64) {
        super::wait_for(self.name, || (self.now() >= least).then_some(()));
    }
}

/// Adds a rule of nftables to a new chain at a hook, such as `type filter hook input priority 0`.
///
/// # Errors
/// There is no nft, or the kernel lacks something.
pub fn nft(namespace: &Namespace, hook: &str, rule: &str) -> Result<(), String> {
    namespace.try_run("nft add table inet t")?;
    namespace.enter(|| {
        let chain = format!("add chain inet t c {{ {hook} ; }}");
        for command in [chain, format!("add rule inet t c {rule}")] {
            let status = Command::new("nft").arg(&command).status();
            let status = status.map_err(|error| error.to_string())?;
            if !status.success() {
                return Err(format!("nft {command}: {status}"));
            }
        }
        Ok(())
    })
}
