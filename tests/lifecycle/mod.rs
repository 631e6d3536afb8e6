//! The tool leaves nothing behind, works beside other programs, and survives changes of its
//! interfaces and of the machine.

mod coexistence;
mod detached;
mod ends;
mod interfaces;
mod machine;

use std::net::UdpSocket;
use std::time::Duration;

use crate::common::bpf::has_tcx;
use crate::common::{CLIENT4, Pair, SERVER4};

/// The ways to attach to an interface.
const WAYS: [&[&str]; 5] = [
    &["syn-count", "vs", "--mode", "native"],
    &["syn-count", "vs", "--mode", "generic"],
    &["syn-count", "vs", "--mode", "tc"],
    &["port-monitor", "vs", "--direction", "both"],
    &["flows", "vs"],
];

/// Those of them that use links on this kernel, which it removes when the process is gone.
fn linked() -> Vec<&'static [&'static str]> {
    let tcx = has_tcx().is_ok();
    let mut ways = WAYS.to_vec();
    ways.retain(|args| tcx || !is_tc(args));
    ways
}

fn is_tc(args: &[&str]) -> bool {
    let is_always = ["port-monitor", "flows", "accept-trace", "loss-trace"];
    is_always.contains(&args[0]) || args.contains(&"tc")
}

/// Sends a datagram through the pair. Returns whether it arrives.
fn datagram_passes(pair: &Pair) -> bool {
    let (to, from) = (
        pair.server.enter(|| UdpSocket::bind((SERVER4, 0)).unwrap()),
        pair.client.enter(|| UdpSocket::bind((CLIENT4, 0)).unwrap()),
    );
    from.send_to(b"hello", to.local_addr().unwrap()).unwrap();
    // A datagram that passes arrives at once: both ends are on this machine.
    to.set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    to.recv(&mut [0; 8]).is_ok()
}
