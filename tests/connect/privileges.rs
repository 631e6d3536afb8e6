//! connect-trace with few privileges, and under the kernel's lockdown.

use std::fs;
use std::net::{SocketAddr, TcpStream};

use nix::sys::socket::SockFlag;
use serde_json::Value;

use super::sockets::{Blackhole, connect_to, connecting, listen, tcp};
use super::{Trace, backends, say_backend};
use crate::common::tool::{ENOUGH, PublicBinary, as_nobody, command_of, parse};
use crate::common::{Namespace, Tool, command, need, wait_for};

/// The mode of the kernel's lockdown, unless there is none.
fn lockdown() -> Result<String, String> {
    let text = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    let mode = text.split(['[', ']']).nth(1).unwrap_or("none");
    match mode {
        "none" => Err("the kernel is not locked down".to_owned()),
        mode => Ok(mode.to_owned()),
    }
}

/// The level of kernel.perf_event_paranoid, if it is above 2.
fn paranoid() -> Result<i32, String> {
    let text = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap_or_default();
    let level = text.trim().parse().unwrap_or(0);
    if level < 3 {
        return Err("kernel.perf_event_paranoid is below 3".to_owned());
    }
    Ok(level)
}

/// Makes connections of each outcome, and checks their events.
fn assert_traces(tool: Tool, namespace: &Namespace, has_calls: bool) {
    namespace.enter(|| {
        let listeners = [listen("127.0.0.1", 4601), listen("::1", 4601)];
        for listener in &listeners {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            drop(listener.accept().unwrap());
            drop(stream);
        }
        for addr in [
            "127.0.0.1:4602",
            "[::1]:4602",
            "192.0.2.1:4603",
            "[2001:db8::1]:4603",
        ] {
            let addr: SocketAddr = addr.parse().unwrap();
            let socket = tcp(addr, SockFlag::empty());
            connect_to(&socket, addr).expect_err("nobody listens");
        }
    });
    // A busy machine can take a while to handle the last segments.
    wait_for("the ends of all connections", || {
        let lines = tool.lines();
        let ends = lines.iter().map(|line| parse(line)).filter(|event| {
            event["event"] == "closed"
                && event["dport"] == 4601
                && event["netns"] == namespace.inode()
        });
        (ends.count() >= 4).then_some(())
    });
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    let mut events = output.json();
    events.retain(|event| event["netns"] == namespace.inode());
    let reported = |name: &str, port: u16| -> Vec<(&Value, &Value)> {
        events
            .iter()
            .filter(|event| event["event"] == name && event["dport"] == port)
            .map(|event| (&event["daddr"], &event["error"]))
            .collect()
    };
    let null = Value::Null;
    let (here4, here6) = ("127.0.0.1".into(), "::1".into());
    assert_eq!(
        reported("established", 4601),
        [(&here4, &null), (&here6, &null)]
    );
    let refused = "ECONNREFUSED".into();
    assert_eq!(
        reported("failed", 4602),
        [(&here4, &refused), (&here6, &refused)]
    );
    assert_eq!(reported("accepted", 4601).len(), 2, "{events:#?}");
    assert_eq!(reported("closed", 4601).len(), 4, "{events:#?}");
    if has_calls {
        let (far4, far6) = ("192.0.2.1".into(), "2001:db8::1".into());
        let unreachable = "ENETUNREACH".into();
        assert_eq!(
            reported("failed", 4603),
            [(&far4, &unreachable), (&far6, &unreachable)],
            "{events:#?}"
        );
    }
    assert_eq!(output.summary()["lost"], 0);
}

/// The backend that the `attached:` line names.
fn backend_of(tool: &Tool) -> &'static str {
    let (_, line) = tool.attached_line();
    let named = super::BACKENDS
        .into_iter()
        .find(|name| line.contains(&format!("backend {name}")));
    named.unwrap_or_else(|| panic!("no backend: {line}"))
}

const TRACE: [&str; 6] = [
    "connect-trace",
    "--json",
    "--accept",
    "--close",
    "-p",
    "4601-4603",
];

#[test]
fn under_lockdown_the_best_backend_still_sees_everything() {
    let mode = need!(lockdown());
    let namespace = need!(Namespace::new());
    let tool = Tool::start(&TRACE);
    let backend = backend_of(&tool);
    assert_eq!(backend, "fentry", "{mode}");
    fn here() {}
    say_backend(backend, std::any::type_name_of_val(&here));
    assert_traces(tool, &namespace, true);
}

#[test]
fn under_lockdown_each_backend_works_or_says_that_it_is_forbidden() {
    let mode = need!(lockdown());
    let namespace = need!(Namespace::new());
    for backend in super::BACKENDS {
        let mut args = TRACE.to_vec();
        args.extend(["--backend", backend]);
        if backend == "kprobe" && mode == "confidentiality" {
            let output = Tool::spawn(&mut command(args)).finish();
            assert_eq!(output.code(), 1, "{output:#?}");
            let (error, hint) = output.complaint();
            let said = format!("{error} {}", hint.unwrap_or_default());
            assert!(said.contains("lockdown"), "{said}");
        } else {
            let tool = Tool::start(&args);
            assert_traces(tool, &namespace, backend != "tracepoint");
        }
    }
}

#[test]
fn under_lockdown_an_attempt_that_is_pending_at_the_end_has_its_source_port() {
    need!(lockdown());
    let blackhole = need!(Blackhole::new());
    for backend in ["fentry", "tracepoint"] {
        let trace = Trace::start(&blackhole.namespace, backend, &["--sport", "1024-65535"]);
        let waiting = blackhole
            .namespace
            .enter(|| connecting(Blackhole::at(4604)));
        let waiting = TcpStream::from(waiting);
        let events = trace.stop();
        let (_, pending) = events.pair_at(4604, "pending");
        let port = waiting.local_addr().unwrap().port();
        assert_eq!(pending["sport"], port, "{pending}");
        events.assert_whole();
    }
}

#[test]
fn the_paranoid_level_leaves_nobody_with_the_minimum_of_capabilities_a_backend() {
    need!(paranoid());
    let namespace = need!(Namespace::new());
    let binary = PublicBinary::new();
    for (backend, best) in [
        ("auto", "fentry"),
        ("fentry", "fentry"),
        ("tracepoint", "tracepoint"),
    ] {
        let mut args = TRACE.to_vec();
        args.extend(["--backend", backend]);
        let mut command = command_of(&binary.path(), &args);
        as_nobody(&mut command, &ENOUGH);
        let tool = Tool::spawn(&mut command).attached();
        assert_eq!(backend_of(&tool), best);
        assert_traces(tool, &namespace, best != "tracepoint");
    }
}

#[test]
fn the_paranoid_level_is_named_where_it_forbids_the_kprobe_backend() {
    need!(paranoid());
    let binary = PublicBinary::new();
    let args = [
        "connect-trace",
        "--json",
        "--backend",
        "kprobe",
        "-d",
        "0.1",
    ];
    let mut command = command_of(&binary.path(), args);
    as_nobody(&mut command, &ENOUGH);
    let output = Tool::spawn(&mut command).finish();
    if output.code() == 1 {
        let (error, hint) = output.complaint();
        let said = format!("{error} {}", hint.unwrap_or_default());
        assert!(said.contains("perf_event_paranoid"), "{said}");
    } else {
        assert_eq!(output.code(), 0, "{output:#?}");
    }
}

#[test]
fn user_nobody_can_trace_connects_with_the_minimum_of_capabilities() {
    let namespace = need!(Namespace::new());
    let binary = PublicBinary::new();
    for backend in backends!() {
        if *backend == "kprobe" && paranoid().is_ok() {
            // Another test covers this.
            continue;
        }
        let mut args = TRACE.to_vec();
        args.extend(["--backend", backend]);
        let mut command = command_of(&binary.path(), &args);
        as_nobody(&mut command, &ENOUGH);
        let tool = Tool::spawn(&mut command).attached();
        assert_traces(tool, &namespace, *backend != "tracepoint");
    }
}

#[test]
fn an_error_names_the_capabilities_that_user_nobody_lacks() {
    let binary = PublicBinary::new();
    let mut command = command_of(&binary.path(), ["connect-trace"]);
    as_nobody(&mut command, &[]);
    let output = Tool::spawn(&mut command).finish();
    assert_eq!(output.code(), 1, "{output:#?}");
    let (error, hint) = output.complaint();
    let said = format!("{error} {}", hint.unwrap_or_default());
    for name in ["CAP_BPF", "CAP_PERFMON"] {
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn a_backend_that_the_kernel_lacks_is_an_error_but_auto_uses_another() {
    let namespace = need!(Namespace::new());
    let tool = Tool::start(&TRACE);
    let best = backend_of(&tool);
    assert_eq!(best, backends!()[0]);
    assert_traces(tool, &namespace, best != "tracepoint");
    for backend in super::BACKENDS {
        if backends!().contains(&backend) {
            continue;
        }
        let args = ["connect-trace", "--backend", backend, "-d", "0.1"];
        let output = Tool::spawn(&mut command(args)).finish();
        assert_eq!(output.code(), 1, "{output:#?}");
        let (error, hint) = output.complaint();
        assert!(error.contains(&format!("backend {backend}")), "{error}");
        assert!(hint.is_some(), "{error}");
    }
}
