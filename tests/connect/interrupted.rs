//! Packets that interrupt the programs while they handle another connection.

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread;

use super::{Trace, backends};
use crate::common::{CLIENT4, Namespace, Pair, SERVER4, is_guest, need};

const PORT: u16 = 4711;

#[test]
fn attempts_are_whole_though_packets_interrupt_the_programs() {
    let pair = need!(Pair::new());
    need!(pair.spread());
    let connects = if is_guest() { 1_000 } else { 20_000 };
    let buffer = if is_guest() { "4194304" } else { "67108864" };
    for backend in backends!() {
        let port = PORT.to_string();
        let trace = Trace::everywhere(
            &pair.client,
            backend,
            &["--buffer-size", buffer, "-p", &port],
        );
        let refused = |from: &Namespace, to: IpAddr| {
            from.join();
            for _ in 0..connects {
                TcpStream::connect(SocketAddr::new(to, PORT)).expect_err("nobody listens");
            }
        };
        // Two threads at each end, so that each CPU is busy with attempts of its own.
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| refused(&pair.client, SERVER4.into()));
                scope.spawn(|| refused(&pair.server, CLIENT4.into()));
            }
        });
        let events = trace.stop();
        let attempts = events.named("attempt");
        assert_eq!(attempts.len(), 2 * connects, "{}", events.summary);
        for attempt in attempts {
            assert_eq!(attempt["daddr"], SERVER4.to_string(), "{attempt}");
            assert_eq!(attempt["pid"], std::process::id(), "{attempt}");
        }
        // Outside guests, the kernel may skip tracing programs while process 1 runs: then events are
        // missed.
        if is_guest() {
            assert_eq!(events.count("failed"), 2 * connects, "{}", events.summary);
            events.assert_whole();
        }
    }
}
