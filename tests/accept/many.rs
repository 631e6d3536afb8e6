//! Very many attempts at once.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::{Fates, NOBODY, listener, segment, send, with_neighbour};
use crate::common::raw::RawSocket;
use crate::common::{Namespace, Pair, SERVER4, Tool, is_guest, need, quick};

/// The number of connects. Every third is refused.
const CONNECTS: u64 = 6000;
const THREADS: u64 = 40;

#[test]
fn each_of_six_thousand_concurrent_connects_has_the_fate_that_its_client_saw() {
    let namespace = need!(Namespace::new());
    let open = SocketAddr::from((Ipv4Addr::LOCALHOST, 8201));
    let closed = SocketAddr::from((Ipv4Addr::LOCALHOST, 8202));
    let tool = Tool::start_in(&namespace, &["accept-trace", "--json", "--attempts", "lo"]);
    let (accepted, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let done = AtomicBool::new(false);
    let taken = namespace.enter(|| {
        let listener = TcpListener::bind(open).unwrap();
        listener.set_nonblocking(true).unwrap();
        thread::scope(|scope| {
            let server = scope.spawn(|| {
                let mut taken = 0;
                loop {
                    match listener.accept() {
                        Ok(_) => taken += 1,
                        // The final ACK of a client may come after its connect has returned.
                        Err(_) if done.load(Ordering::Relaxed) && taken == count(&accepted) => {
                            return taken;
                        }
                        Err(_) => thread::sleep(Duration::from_micros(100)),
                    }
                }
            });
            let clients = (0..THREADS).map(|thread| {
                let (accepted, refused) = (&accepted, &refused);
                let client = move || {
                    for turn in 0..CONNECTS / THREADS {
                        let is_open = (thread + turn) % 3 != 0;
                        let result = TcpStream::connect(if is_open { open } else { closed });
                        let counter = match (&result, is_open) {
                            (Ok(_), true) => accepted,
                            (Err(error), false) if error.kind() == ErrorKind::ConnectionRefused => {
                                refused
                            }
                            _ => panic!("{result:?}"),
                        };
                        counter.fetch_add(1, Ordering::Relaxed);
                    }
                };
                // A thread begins in the namespace of the thread that starts it.
                thread::Builder::new()
                    .stack_size(256 * 1024)
                    .spawn_scoped(scope, client)
            });
            let clients = clients.collect::<Vec<_>>();
            for client in clients {
                client.unwrap().join().unwrap();
            }
            done.store(true, Ordering::Relaxed);
            server.join().unwrap()
        })
    });
    // The last ones are taken from the buffer at the end.
    thread::sleep(Duration::from_millis(if is_guest() { 2000 } else { 300 }));
    let fates = Fates::of(&tool.stop());
    assert_eq!(count(&accepted) + count(&refused), CONNECTS);
    assert_eq!(fates.summary["attempts"], CONNECTS, "{}", fates.summary);
    assert_eq!(fates.count("refused"), count(&refused), "{}", fates.summary);
    // The kernel may skip the program that sees an accept: then the end of the connection shows it.
    assert_eq!(fates.count("accepted"), taken, "{}", fates.summary);
}

#[test]
fn a_packet_that_interrupts_a_drop_has_its_fate() {
    let pair = need!(Pair::new());
    need!(pair.spread());
    let args = ["accept-trace", "--json", "--attempts", "-i", "vs"];
    let tool = Tool::start_in(&pair.server, &args);
    let connects = if is_guest() { 500 } else { 5_000 };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        // The kernel drops what is left in a socket that is closed.
        let drops = (0..2).map(|_| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let (sender, _receiver) = UnixDatagram::pair().unwrap();
                    for _ in 0..10 {
                        sender.send(b"dropped").unwrap();
                    }
                }
            })
        });
        let drops = drops.collect::<Vec<_>>();
        let client = || pair.refused_connects((SERVER4, 8205).into(), connects);
        let clients = [scope.spawn(client), scope.spawn(client)];
        for client in clients {
            client.join().unwrap();
        }
        done.store(true, Ordering::Relaxed);
        for thread in drops {
            thread.join().unwrap();
        }
    });
    thread::sleep(Duration::from_millis(if is_guest() { 2000 } else { 300 }));
    let fates = Fates::of(&tool.stop());
    assert_eq!(fates.summary["attempts"], 2 * connects, "{}", fates.summary);
    // Outside guests, the kernel may skip tracing programs while process 1 runs: then fates are missed.
    if is_guest() {
        assert_eq!(
            fates.count("refused"),
            2 * connects as u64,
            "{}",
            fates.summary
        );
    }
}

#[test]
fn a_flood_does_not_keep_an_unanswered_attempt_from_its_fate() {
    let pair = need!(Pair::new());
    with_neighbour(&pair);
    pair.server.sysctl("ipv4/tcp_synack_retries", "1");
    let _listener = pair.server.enter(|| listener((SERVER4, 8203).into(), 16));
    let args = ["accept-trace", "--json", "-i", "vs"];
    let tool = Tool::start_in(&pair.server, &args);
    send(&pair, &segment(&pair, NOBODY, 2, (4000, 8203), 77, 0));
    // The sum of sequence and acknowledgement number stays the same, so that the checksum stays right.
    let mut refused = segment(&pair, NOBODY, 2, (4001, 8204), 0, u32::MAX);
    let flooding = AtomicBool::new(true);
    thread::scope(|scope| {
        let socket = pair.client.enter(|| RawSocket::open("vc"));
        let until = Instant::now() + quick(Duration::from_secs(20));
        let flooding = &flooding;
        scope.spawn(move || {
            let mut seq = 0_u32;
            while flooding.load(Ordering::Relaxed) && Instant::now() < until {
                seq += 1;
                refused[38..42].copy_from_slice(&seq.to_be_bytes());
                refused[42..46].copy_from_slice(&(!seq).to_be_bytes());
                socket.send(&refused);
                // 20,000 a second, without a pause in which the buffer is empty.
                let next = Instant::now() + Duration::from_micros(50);
                while Instant::now() < next {
                    std::hint::spin_loop();
                }
            }
            flooding.store(false, Ordering::Relaxed);
        });
        let (_, line) = tool.line("of the attempt that nobody acknowledges", |line| {
            line.contains("\"dport\":8203")
        });
        assert!(line.contains("\"fate\":\"unanswered\""), "{line}");
        let was_flooding = flooding.swap(false, Ordering::Relaxed);
        assert!(was_flooding, "{line}");
    });
    assert_eq!(tool.stop().code(), 0);
}
