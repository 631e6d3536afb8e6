//! A network namespace with a pair of interfaces, `v0` and `v1`, and packets from
//! `v1` to `v0`.

use std::fs;
use std::net::UdpSocket;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};

use crate::common::{Namespace, run, try_run};

pub const V0: &str = "v0";
pub const V1: &str = "v1";

const PORT: u16 = 9999;

/// Runs a test in a namespace of its own, which vanishes with everything in it.
///
/// # Errors
/// No namespace can be made, or the kernel has no clsact.
pub fn in_namespace<T: Send>(body: impl FnOnce() -> T + Send) -> Result<T, String> {
    let namespace = Namespace::new()?;
    namespace.enter(prepare)?;
    Ok(namespace.enter(body))
}

fn prepare() -> Result<(), String> {
    // The kernel's own IPv6 packets would be counted too.
    let _ = fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    try_run(&format!("ip link add {V0} type veth peer name {V1}"))?;
    for (name, address) in [(V0, "10.8.0.1/24"), (V1, "10.9.0.1/24")] {
        try_run(&format!("ip address add {address} dev {name}"))?;
        try_run(&format!("ip link set {name} up"))?;
        // v0 is to accept packets that come from an address of this host.
        for (setting, value) in [("accept_local", "1"), ("rp_filter", "0")] {
            let path = format!("/proc/sys/net/ipv4/conf/{name}/{setting}");
            fs::write(path, value).map_err(|error| error.to_string())?;
        }
    }
    let _ = fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "0");
    // Nothing here works without it.
    try_run(&format!("tc qdisc add dev {V0} clsact"))?;
    try_run(&format!(
        "tc filter add dev {V0} ingress pref 9 bpf bytecode 1,6~0~0~0"
    ))?;
    try_run(&format!("tc qdisc del dev {V0} clsact"))?;
    Ok(())
}

/// Whether a test could try everything; `lacking` says why not.
///
/// # Errors
/// It could not.
pub fn all_there(lacking: &[String]) -> Result<(), String> {
    match lacking {
        [] => Ok(()),
        lacking => Err(lacking.join("; ")),
    }
}

pub fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// All qdiscs, filters and chains of an interface, as tc shows them.
pub fn state(name: &str) -> String {
    let mut state = run(&format!("tc -d qdisc show dev {name}"));
    for direction in ["ingress", "egress"] {
        for what in ["filter", "chain"] {
            // Without a qdisc there are none, which old versions call an error.
            let shown = try_run(&format!("tc -d {what} show dev {name} {direction}"));
            state.push_str(&format!(
                "{direction} {what}:\n{}",
                shown.unwrap_or_default()
            ));
        }
    }
    state
}

/// The same without the lines of our filters. Alone at its priority a filter has
/// two lines, the head of the priority and its own.
pub fn state_of_others(name: &str, own_priority: Option<u16>) -> String {
    let head = own_priority.map(|priority| format!("pref {priority} bpf"));
    state(name)
        .lines()
        .filter(|line| !line.contains(" tcpinspect/"))
        .filter(|line| !head.as_ref().is_some_and(|head| line.contains(head)))
        .map(|line| format!("{line}\n"))
        .collect()
}

pub fn our_filters(name: &str) -> Vec<String> {
    let state = state(name);
    let ours = state.lines().filter(|line| line.contains(" tcpinspect/"));
    ours.map(str::to_owned).collect()
}

/// Sends packets from `v1` to `v0`.
pub fn send(count: u64) {
    let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    setsockopt(&socket, BindToDevice, &V1.into()).unwrap();
    for _ in 0..count {
        socket
            .send_to(b"packet", ("255.255.255.255", PORT))
            .unwrap();
    }
}

/// A socket that receives these packets on `v0`.
pub struct Receiver(UdpSocket);

impl Receiver {
    pub fn new() -> Self {
        let socket = UdpSocket::bind(("0.0.0.0", PORT)).unwrap();
        setsockopt(&socket, BindToDevice, &V0.into()).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        Self(socket)
    }

    /// How many have arrived, until none arrives for a while.
    pub fn count(&self) -> u64 {
        let mut buffer = [0; 64];
        let mut count = 0;
        while self.0.recv(&mut buffer).is_ok() {
            count += 1;
        }
        count
    }
}
