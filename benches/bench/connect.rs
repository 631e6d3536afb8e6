//! The CPU time of a connect and its close, with connect-trace and its peers attached.
//!
//! Some kernels have no kprobes or no fentry: `cargo xtask kernels --bench connect` runs
//! this part in guests. An emulated CPU gives ratios only.

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::Effort;
use crate::common::is_guest;
use crate::plain;
use crate::report::{bars, bound, table, target};
use crate::stat::Stat;
use crate::world::{Contender, Ready, Tool};

/// The simplest program that sends as many events through a perf buffer, and wakes its reader as
/// often.
const PLAIN: &str = "plain program, perf buffer";

const CONTENDERS: [Contender; 10] = [
    Contender::ours(
        "connect-trace, tracepoint",
        "tcpinspect connect-trace --backend tracepoint",
    ),
    Contender::ours(
        "connect-trace, tracepoint, perf buffer",
        "tcpinspect connect-trace --backend tracepoint --buffer perf",
    ),
    Contender::ours(
        "connect-trace, tracepoint, no match",
        "tcpinspect connect-trace --backend tracepoint -p 1",
    ),
    Contender::ours(
        "connect-trace, fentry",
        "tcpinspect connect-trace --backend fentry",
    ),
    Contender::ours(
        "connect-trace, fentry, perf buffer",
        "tcpinspect connect-trace --backend fentry --buffer perf",
    ),
    Contender::ours(
        "connect-trace, kprobe",
        "tcpinspect connect-trace --backend kprobe",
    ),
    Contender::peer(PLAIN, "attach states", Ready::Stderr("attached:")),
    Contender::peer("tcpconnect of libbpf-tools", "tcpconnect", Ready::Waiting),
    Contender::peer("tcpstates of libbpf-tools", "tcpstates", Ready::Waiting),
    Contender::peer("bpftrace, tracepoint", "bpftrace", Ready::Stdout("ready")),
];

/// Prints the same as our tracepoint backend for a connect.
const SCRIPT: &str = "BEGIN { printf(\"ready\\n\"); } \
    tracepoint:sock:inet_sock_set_state /args->newstate == 2 || args->oldstate == 2/ \
    { printf(\"%d %s %d %d\\n\", pid, comm, args->dport, args->newstate); }";

/// Connects in a measurement: fewer in a guest, which takes a millisecond for each.
fn pairs(effort: Effort) -> u32 {
    if is_guest() {
        500
    } else if effort.short {
        2_000
    } else {
        10_000
    }
}

/// A contender, and what its rounds have shown.
struct Measured {
    contender: &'static Contender,
    /// The CPU time of a connect, divided by that without the tool.
    over: Vec<f64>,
    with: Vec<Times>,
}

impl Measured {
    fn over(&self) -> Stat {
        Stat::of(self.over.clone())
    }

    /// The CPU time that the tool adds to a connect, µs.
    fn difference(&self) -> Stat {
        Stat::of(self.with.iter().map(|times| times.caller).collect())
    }
}

/// CPU times of one measurement, per connect.
#[derive(Clone, Copy)]
struct Times {
    /// Of the process that connects, µs.
    caller: f64,
    /// Of the tool, µs.
    tool: f64,
}

pub fn run(effort: Effort) -> Result<bool> {
    if !is_guest() {
        plain::load()?;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let open = listener.local_addr()?;
    // A port that was free a moment ago refuses.
    let refused = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let mut within = true;
    for (what, addr, listener, file) in [
        (
            "connect, accept and close",
            open,
            Some(&listener),
            "connect",
        ),
        ("refused connect", refused, None, "connect-refused"),
    ] {
        let (none, results) = measure(effort, addr, listener)?;
        show(what, file, none, &results);
        within &= judge_each(what, &results);
        within &= judge_backends(what, &results);
    }
    Ok(within)
}

/// Measures connects without and with each contender in turn. The first result is the CPU time of a connect
/// without any of them, in µs.
fn measure(
    effort: Effort,
    addr: SocketAddr,
    listener: Option<&TcpListener>,
) -> Result<(Stat, Vec<Measured>)> {
    let mut none = Vec::new();
    let mut results: Vec<_> = CONTENDERS
        .iter()
        .filter(|contender| contender.absent().is_none())
        .filter(|contender| match contender.name {
            // A guest has no compiler.
            PLAIN => !is_guest(),
            _ => contender.is_ours() || !effort.short,
        })
        .map(|contender| Measured {
            contender,
            over: Vec::new(),
            with: Vec::new(),
        })
        .collect();
    connect(effort, addr, listener)?;
    for round in 0..effort.rounds {
        let mut missing = Vec::new();
        for Measured {
            contender,
            over,
            with,
        } in &mut results
        {
            let mut command = contender.command()?;
            if contender.line == "bpftrace" {
                command.args(["-e", SCRIPT]);
            }
            let before = connect(effort, addr, listener)?;
            // This kernel may lack what a backend or another tool needs.
            let tool = match Tool::start(command, Stdio::null(), contender.ready) {
                Ok(tool) => tool,
                Err(error) if round == 0 => {
                    println!("\n{}: {error:#}", contender.name);
                    missing.push(contender.name);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let used = tool.cpu()?;
            let caller = connect(effort, addr, listener)?;
            std::thread::sleep(Duration::from_millis(20));
            tool.settle()?;
            let tool_us = (tool.cpu()? - used) * 1e6 / f64::from(pairs(effort));
            tool.stop()?;
            // Once more without the tool: the mean of before and after evens out a machine whose speed
            // drifts.
            let after = connect(effort, addr, listener)?;
            let base = before.midpoint(after);
            none.push(base);
            over.push(caller / base);
            with.push(Times {
                caller: caller - base,
                tool: tool_us,
            });
        }
        results.retain(|it| !missing.contains(&it.contender.name));
    }
    // The tracepoint backend runs on every kernel.
    ensure!(
        results
            .iter()
            .any(|it| it.contender.name == CONTENDERS[0].name),
        "{} could not be measured",
        CONTENDERS[0].name
    );
    Ok((Stat::of(none), results))
}

/// Shows the results as a table and as a chart.
fn show(what: &str, file: &str, none: Stat, results: &[Measured]) {
    let mut rows = vec![vec![
        "none".to_owned(),
        format!("{none} in all"),
        "1".to_owned(),
        "-".to_owned(),
    ]];
    rows.extend(results.iter().map(|it| {
        let tool = Stat::of(it.with.iter().map(|times| times.tool).collect());
        vec![
            it.contender.name.to_owned(),
            it.difference().to_string(),
            it.over().to_string(),
            format!("{:.2}", tool.median),
        ]
    }));
    table(
        &format!("CPU time of a {what} on loopback, µs"),
        &[
            "attached",
            "CPU time added",
            "ratio to nothing attached",
            "CPU time of the tool",
        ],
        &rows,
    );
    let chart = results.iter().map(|it| it.contender.bar(it.difference()));
    bars(
        file,
        &format!("CPU time added to a {what}, µs"),
        &chart.collect::<Vec<_>>(),
    );
}

/// Compares a connect with each of ours attached to one with nothing attached.
fn judge_each(what: &str, results: &[Measured]) -> bool {
    let mut within = true;
    for it in results.iter().filter(|it| it.contender.is_ours()) {
        let name = it.contender.name;
        // Each event wakes the reader of a perf buffer, which takes ten times longer on some machines
        // than on others. So it is compared only with a program that uses one too.
        if name.contains("perf") {
            continue;
        }
        let over = it.over().median;
        within &= bound(&format!("{name}, {what}, over none"), over, 1.8, true);
        if !name.contains("no match") {
            target(&format!("{name}, {what}, over none"), over, 1.08, true);
        }
    }
    within
}

/// Compares what each backend adds with what others add.
fn judge_backends(what: &str, results: &[Measured]) -> bool {
    let of = |name: &str| {
        let found = results.iter().find(|it| it.contender.name == name);
        found.map(|it| it.difference().median)
    };
    let mut within = true;
    for backend in ["tracepoint", "fentry", "kprobe"] {
        let Some(ours) = of(&format!("connect-trace, {backend}")) else {
            continue;
        };
        let with_perf = format!("connect-trace, {backend}, perf buffer");
        let perf = of(&with_perf);
        if let (Some(perf), Some(plain)) = (perf, of(PLAIN)) {
            within &= bound(
                &format!("{with_perf}, {what}, difference over that of a plain program"),
                perf / plain,
                2.5,
                true,
            );
        }
        if let Some(perf) = perf {
            target(
                &format!("{backend}: ring's difference over that of the perf buffer"),
                ours / perf,
                0.3,
                true,
            );
        }
        if let Some(bcc) = of("tcpconnect of libbpf-tools") {
            target(
                &format!("{backend}: difference over that of tcpconnect"),
                ours / bcc,
                1.0,
                true,
            );
        }
    }
    within
}

/// Connects and closes, and returns the CPU time of each in µs. On loopback the handshake is
/// handled by the caller as well.
pub fn connect(effort: Effort, addr: SocketAddr, listener: Option<&TcpListener>) -> Result<f64> {
    let count = pairs(effort);
    let before = own_cpu()?;
    for _ in 0..count {
        let client = TcpStream::connect(addr);
        if let Some(listener) = listener {
            let client = client.context("failed to connect")?;
            let (server, _) = listener.accept()?;
            // Otherwise the side that closes first would keep its port in TIME_WAIT for a minute.
            set_reset_on_close(&client)?;
            drop(client);
            drop(server);
        }
    }
    Ok((own_cpu()? - before).as_secs_f64() * 1e6 / f64::from(count))
}

fn set_reset_on_close(stream: &TcpStream) -> Result<()> {
    let linger = nix::libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(nix::sys::socket::setsockopt(
        stream,
        nix::sys::socket::sockopt::Linger,
        &linger,
    )?)
}

fn own_cpu() -> Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)?;
    Ok(Duration::from(time))
}
