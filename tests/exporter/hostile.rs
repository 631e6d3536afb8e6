//! Malicious clients. The exporter must answer a well-behaved one all the time.

use std::fs;
use std::path::Path;

use nix::libc;
use nix::unistd::Pid;

use super::*;
use crate::common::quick;

fn start(namespace: &Namespace) -> Exporter {
    Exporter::start(namespace, &["--collect", "listeners"])
}

/// Checks that the exporter answers, and does not use much memory.
fn check(exporter: &Exporter, limit: Duration) {
    let started = Instant::now();
    let text = exporter.text();
    let lasted = started.elapsed();
    assert!(lasted < quick(limit), "{lasted:?}");
    let memory = text
        .lines()
        .find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
    let memory = memory.unwrap().parse::<u64>().unwrap();
    assert!(memory < 30 << 20, "{memory}");
}

#[test]
fn clients_that_say_nothing_make_room_for_others() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    let mut silent = (0..200).map(|_| exporter.connect()).collect::<Vec<_>>();
    for (at, client) in silent.iter_mut().enumerate().filter(|(at, _)| at % 2 == 0) {
        let _ = client.write_all(&b"GET /metrics HTTP/1.1\r\nHost: "[..at.min(29)]);
    }
    // 200 clients wait before it; 64 are served at a time, for half a second each.
    check(&exporter, Duration::from_secs(10));
    // A request that is incomplete after five seconds is given up.
    let started = Instant::now();
    silent[199]
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let end = silent[199].read(&mut [0]);
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    assert!(started.elapsed() < Duration::from_secs(20));
}

#[test]
fn clients_that_do_not_read_their_answers_cost_little() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    let request = b"GET /metrics HTTP/1.1\r\n\r\n".repeat(200);
    let mut clients = Vec::new();
    for _ in 0..40 {
        let mut client = exporter.connect();
        client
            .set_write_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let _ = client.write_all(&request);
        clients.push(client);
    }
    check(&exporter, Duration::from_secs(5));
}

#[test]
fn clients_that_use_all_connections_keep_nobody_out() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    let deaf = (0..64).map(|_| {
        let mut client = exporter.connect();
        client.set_nonblocking(true).unwrap();
        // More answers than the buffers of both ends hold.
        let _ = client.write_all(&b"GET /metrics HTTP/1.1\r\n\r\n".repeat(8000));
        client
    });
    let deaf = deaf.collect::<Vec<_>>();
    thread::sleep(Duration::from_secs(1));
    check(&exporter, Duration::from_secs(4));
    drop(deaf);

    let until = Instant::now() + Duration::from_secs(8);
    thread::scope(|scope| {
        let ask_on_and_on = || {
            exporter.namespace.join();
            while Instant::now() < until {
                let mut client = exporter.connect();
                while client.write_all(b"GET / HTTP/1.1\r\n\r\n").is_ok()
                    && Instant::now() < until
                    && client.read(&mut [0; 4096]).is_ok_and(|len| len > 0)
                {}
            }
        };
        for _ in 0..70 {
            scope.spawn(ask_on_and_on);
        }
        thread::sleep(Duration::from_secs(1));
        check(&exporter, Duration::from_secs(6));
    });
}

#[test]
fn without_a_free_descriptor_it_waits_and_does_not_spin() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    let pid = exporter.tool.pid();
    let is_free = |fd: &u64| !Path::new(&format!("/proc/{pid}/fd/{fd}")).exists();
    let lowest = (0..).find(is_free).unwrap();
    let limit = |soft: u64| {
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: 4096,
        };
        // SAFETY: the new limit is a whole struct, and the old one is not asked for.
        let result = unsafe {
            libc::prlimit(
                pid.as_raw(),
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(result, 0);
    };
    limit(lowest);
    let client = exporter.connect();
    let before = cpu_time(pid);
    thread::sleep(Duration::from_secs(2));
    let used = cpu_time(pid) - before;
    assert!(used < Duration::from_millis(500), "{used:?}");
    limit(1024);
    drop(client);
    check(&exporter, Duration::from_secs(5));
}

/// The CPU time that a process has used.
fn cpu_time(pid: Pid) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ');
    let ticks = fields
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap());
    Duration::from_millis(ticks.sum::<u64>() * 10)
}

#[test]
fn a_thousand_clients_at_once_are_all_answered() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    let answered = thread::scope(|scope| {
        let ask = || {
            exporter.namespace.join();
            let mut right = 0;
            for _ in 0..20 {
                let mut clients = (0..5).map(|_| exporter.connect()).collect::<Vec<_>>();
                for client in &mut clients {
                    client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
                }
                for client in &mut clients {
                    let (head, body) = read_answer(client);
                    right += u32::from(head.starts_with("HTTP/1.1 200") && body.ends_with('\n'));
                }
            }
            right
        };
        let threads = (0..10).map(|_| scope.spawn(ask)).collect::<Vec<_>>();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum::<u32>()
    });
    assert_eq!(answered, 1000);
    check(&exporter, Duration::from_secs(2));
}

#[test]
fn several_requests_in_one_packet_are_answered_in_order() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    let mut client = exporter.connect();
    let some = b"GET / HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\n";
    client.write_all(&some.repeat(30)).unwrap();
    for _ in 0..30 {
        for expected in ["text/html", "text/plain; version", "404 Not Found"] {
            let (head, body) = read_answer(&mut client);
            assert!(
                head.contains(expected) || body.contains(expected),
                "{expected}: {head}"
            );
        }
    }
}

#[test]
fn an_invalid_request_is_refused_and_the_connection_closed() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    let long = format!("GET /metrics HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(9000));
    let longest = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100));
    for (request, status) in [
        (
            "POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "405",
        ),
        ("DELETE / HTTP/1.1\r\n\r\n", "405"),
        (
            "GET /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc",
            "400",
        ),
        (
            "GET /metrics HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        ("\0\0\0\0\r\n\r\n", "400"),
        ("hello\r\n\r\n", "400"),
        (&long, "431"),
        (&longest, "431"),
        (&many, "431"),
    ] {
        let mut client = exporter.connect();
        // It may be refused before all of it is sent.
        let _ = client.write_all(request.as_bytes());
        let (head, _) = read_answer(&mut client);
        assert!(
            head.starts_with(&format!("HTTP/1.1 {status} ")),
            "{status}: {head}"
        );
        assert!(head.contains("Connection: close\r\n"), "{head}");
        assert_eq!(head.contains("Allow: GET, HEAD"), status == "405");
    }
    check(&exporter, Duration::from_secs(2));
}

#[test]
fn a_client_that_reads_until_the_end_need_not_wait() {
    let namespace = need!(Namespace::new());
    let exporter = start(&namespace);
    for request in [
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "POST / HTTP/1.1\r\n\r\n",
    ] {
        let mut client = exporter.connect();
        client.write_all(request.as_bytes()).unwrap();
        let started = Instant::now();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let lasted = started.elapsed();
        assert!(lasted < quick(Duration::from_millis(500)), "{lasted:?}");
        assert!(answer.contains("Connection: close\r\n"), "{answer}");
    }
}
