//! Privileges: the fewest that the tool works with, those that it drops, and its messages when some
//! are missing.

use std::ffi::{CStr, CString, OsStr};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use crate::common::bpf::has_tcx;
use crate::common::terminal::terminal;
use crate::common::tool::{COMMANDS, ENOUGH, PublicBinary, as_nobody, command_of};
use crate::common::{Namespace, Pair, SERVER4, Tool, command, need, release, say, since, wait_for};
use crate::oracle::pcap_write::{Order, Pcap, Unit};
use caps::Capability;
use nix::libc;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid};
use tcpinspect::host::sandbox::{self, Files, Recording};

/// The values of a line of each thread's status.
fn status(pid: Pid, name: &str) -> Vec<String> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let value = |path: &Path| {
        let status = fs::read_to_string(path.join("status")).unwrap();
        let mut lines = status.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = lines.find(|(key, _)| *key == name).unwrap();
        value.trim().to_owned()
    };
    threads
        .map(|thread| value(&thread.unwrap().path()))
        .collect()
}

/// The capabilities that the rest of a run needs on this kernel.
fn kept(tool: &Tool, line: &str) -> u64 {
    let mut kept = 0;
    // A clsact filter has to be removed at the end.
    if tool.attached_line().1.contains("clsact") {
        kept |= Capability::CAP_NET_ADMIN.bitmask();
    }
    // Programs are run, and processes are listed, by bpf(2), which before 5.19 asks for a capability.
    let uses_bpf = ["flows", "accept-trace", "loss-trace", "listeners"];
    let uses_bpf = uses_bpf.iter().any(|command| line.starts_with(command));
    let sysctl = fs::read_to_string("/proc/sys/kernel/unprivileged_bpf_disabled").unwrap();
    if uses_bpf && release() < (5, 19) && sysctl.trim() != "0" {
        kept |= Capability::CAP_BPF.bitmask();
    }
    kept
}

/// A seccomp filter limits its system calls (`Seccomp` in /proc/PID/status).
const FILTERED: &str = "2";
/// No seccomp filter limits them.
const UNFILTERED: &str = "0";

/// Waits until every thread of a tool has a seccomp filter.
fn wait_until_filtered(tool: &Tool, line: &str) {
    wait_for(line, || {
        let values = status(tool.pid(), "Seccomp");
        values.iter().all(|value| value == FILTERED).then_some(())
    });
}

/// Checks that a tool ends well and has shown three refused connects, or for listeners the process of a
/// listener.
fn works(pair: &Pair, command: &mut Command) {
    // Any port: a program that another test is starting may still have the last listener open.
    let listener = pair
        .server
        .enter(|| TcpListener::bind((SERVER4, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let tool = Tool::spawn_in(&pair.server, command.arg("--json")).attached();
    pair.refused_connects((SERVER4, 80).into(), 3);
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    let (summary, args) = (output.summary(), command.get_args());
    let name = args.into_iter().next().unwrap().to_str().unwrap();
    let is_shown = match name {
        // It traces other tests too.
        "connect-trace" => {
            let netns = pair.client.inode();
            let failed = output.events("failed").into_iter();
            failed.filter(|line| line["netns"] == netns).count() == 3
        }
        "listeners" => {
            let rows = output.events("listener");
            rows.iter()
                .any(|row| row["port"] == port && row["pid"].is_u64())
        }
        _ => summary["matched"] == 3,
    };
    assert!(is_shown, "{command:?}: {output:#?}");
}

#[test]
fn once_attached_no_thread_has_a_capability_or_a_way_to_one() {
    let pair = need!(Pair::new());
    for line in COMMANDS {
        let args: Vec<_> = line.split(' ').collect();
        let tool = Tool::start_in(&pair.server, &args);
        let kept = kept(&tool, line);
        for (name, expected) in [
            ("CapInh", 0),
            ("CapPrm", kept),
            ("CapEff", kept),
            ("CapAmb", 0),
        ] {
            let values = status(tool.pid(), name);
            let as_expected = |value: &String| u64::from_str_radix(value, 16) == Ok(expected);
            assert!(values.iter().all(as_expected), "{line}: {name} {values:?}");
        }
        for (name, expected) in [("NoNewPrivs", "1"), ("Seccomp", FILTERED)] {
            let values = status(tool.pid(), name);
            assert!(values.iter().all(|value| value == expected), "{line}");
        }
        assert_eq!(tool.stop().code(), 0, "{line}");
    }
    if has_tcx().is_ok() {
        let tool = Tool::start_in(&pair.server, &["port-monitor", "vs"]);
        assert!(tool.attached_line().1.contains("(tcx)"));
    }
}

#[test]
fn without_the_sandbox_capabilities_are_still_dropped() {
    let pair = need!(Pair::new());
    for line in COMMANDS {
        let mut args: Vec<_> = line.split(' ').collect();
        args.push("--no-sandbox");
        let tool = Tool::start_in(&pair.server, &args);
        for (name, expected) in [("NoNewPrivs", "1"), ("Seccomp", UNFILTERED)] {
            let values = status(tool.pid(), name);
            assert!(values.iter().all(|value| value == expected), "{line}");
        }
        let kept = format!("{:016x}", kept(&tool, line));
        let values = status(tool.pid(), "CapEff");
        assert!(values.iter().all(|value| *value == kept), "{values:?}");
        assert_eq!(tool.stop().code(), 0, "{line}");
    }
}

#[test]
fn everything_that_a_run_does_works_in_the_sandbox() {
    let pair = need!(Pair::new());
    for line in [
        "syn-count vs -I 0.05 --by saddr --alert 1 --mode generic",
        "port-monitor vs -x --max-rate 1000 --buffer perf --flags any",
        "flows vs -I 0.05 --by dport --buffer perf",
        "flows vs --idle-timeout 0.1 --max-flows 4",
        "connect-trace --accept --close --buffer perf",
        "accept-trace vs --buffer perf",
        "loss-trace vs --all --buffer perf",
        "loss-trace vs -I 0.05 --by reason",
        "listeners -I 0.05 --alert 50",
    ] {
        for format in ["text", "json"] {
            let mut args: Vec<_> = line.split(' ').collect();
            args.extend(["-o", format, "-vv"]);
            let tool = Tool::start_in(&pair.server, &args);
            wait_until_filtered(&tool, line);
            pair.refused_connects((SERVER4, 80).into(), 20);
            // Changes of an interface are read and reported.
            pair.server.run("ip link set vs down");
            pair.server.run("ip link set vs up");
            if line.contains(" vs ") {
                tool.error("about the interface", |line| line.ends_with("vs is up"));
            }
            let output = tool.stop();
            assert_eq!(output.code(), 0, "{line}: {output:#?}");
            // A refused call fails with ENOSYS.
            let mut lines = output.stderr.iter();
            let refused = lines.any(|line| line.contains("not implemented"));
            assert!(!refused, "{line}: {output:#?}");
            if format == "json" {
                output.summary();
            }
        }
    }
}

#[test]
fn a_replay_and_a_view_are_in_the_sandbox_too() {
    let namespace = need!(Namespace::new());
    let file = Pcap::new(Vec::new(), Order::Little, Unit::Microseconds, 1).unwrap();
    let header = file.finish();
    for line in ["syn-count", "port-monitor", "flows"] {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut command = command([line, "-r", "-", "--json"]);
        command.stdin(reader);
        let tool = Tool::spawn(&mut command);
        writer.write_all(&header).unwrap();
        wait_until_filtered(&tool, line);
        drop(writer);
        drop(command);
        let output = tool.finish();
        assert_eq!(output.code(), 0, "{line}: {output:#?}");
        assert_eq!(output.summary()["exit_reason"], "end_of_file");
    }

    let (mut user, program) = terminal(100, 20).unwrap();
    let mut command = command(["flows", "lo", "-I", "0.05"]);
    command.stdin(program.try_clone().unwrap()).stdout(program);
    let tool = Tool::spawn_in(&namespace, &mut command).attached();
    drop(command);
    let mut from_tool = user.try_clone().unwrap();
    let screen = thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(1..) = from_tool.read(&mut bytes) {}
    });
    wait_until_filtered(&tool, "view");
    tool.signal(Signal::SIGWINCH);
    user.write_all(b"/x\x1b[A\rq").unwrap();
    let output = tool.finish();
    assert_eq!(output.code(), 0, "{output:#?}");
    // Before Linux 5.11, a notice says that sockets can't be read.
    let expected = if release() < (5, 11) { 3 } else { 2 };
    assert_eq!(output.stderr.len(), expected, "{output:#?}");
    screen.join().unwrap();
}

/// Of fcntl(2) (asm-generic/fcntl.h).
const F_SETSIG: i32 = 10;
const F_SETOWN_EX: i32 = 15;

/// What is not as it must be in the sandbox.
#[derive(Default)]
struct Trial {
    wrong: Vec<&'static str>,
}

impl Trial {
    fn expect(&mut self, what: &'static str, holds: bool) {
        self.wrong.extend((!holds).then_some(what));
    }

    /// Expects that the filter refuses this system call.
    fn refuses(&mut self, what: &'static str, number: libc::c_long, arguments: [usize; 3]) {
        let [a, b, c] = arguments;
        // SAFETY: none of the calls does harm if it is not refused: its arguments are wrong, or what
        // it does ends with this process.
        let ret = unsafe { libc::syscall(number, a, b, c) };
        self.expect(what, ret < 0 && is_refused(io::Error::last_os_error()));
    }
}

/// Whether an error is that of the filter.
fn is_refused(error: io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSYS)
}

/// Enters the sandbox, and tries what must fail there and what must still work. Returns the names of those
/// that behaved otherwise.
fn try_confined(files: Files, recording: Recording<'_>) -> Vec<&'static str> {
    let mut open = File::open("/proc/self/status").unwrap();
    let mut own = tempfile::tempfile().unwrap();
    let (no_attributes, no_size, version) = (0_usize, 0_usize, 1_usize);
    let number = libc::SYS_landlock_create_ruleset;
    // SAFETY: it asks for the version, which takes no pointer.
    let abi = unsafe { libc::syscall(number, no_attributes, no_size, version) };
    let has_landlock = abi > 0;
    if !has_landlock {
        say("this kernel has no Landlock");
    }
    sandbox::confine(files, recording).unwrap();

    let mut trial = Trial::default();
    trial.expect("writes what is open", own.write_all(b"x").is_ok());
    trial.expect(
        "cuts only capture files",
        own.set_len(0).map_err(is_refused)
            == match recording {
                Recording::No => Err(true),
                Recording::Opened | Recording::Rotated(_) => Ok(()),
            },
    );
    trial.expect("reads what is open", open.read(&mut [0; 64]).is_ok());
    trial.expect(
        "has memory",
        vec![1_u8; 64 << 20].iter().all(|byte| *byte == 1),
    );
    thread::sleep(Duration::from_millis(1));
    try_reading(&mut trial, files, has_landlock);
    try_creating(&mut trial, recording, has_landlock);
    try_processes(&mut trial);
    try_bpf(&mut trial);
    try_memory_and_signals(&mut trial);
    trial.wrong
}

fn try_reading(trial: &mut Trial, files: Files, has_landlock: bool) {
    trial.expect(
        "opens files only where it must",
        match (files, File::open("/proc/self/status")) {
            (Files::Readable, reading) => reading.is_ok(),
            (_, Err(error)) => is_refused(error),
            (_, Ok(_)) => false,
        },
    );
    if files == Files::Readable && has_landlock {
        trial.expect("reads processes", fs::read_dir("/proc/1").is_ok());
        let elsewhere = [
            "/etc/passwd",
            "/proc/../etc/passwd",
            "/sys/kernel/notes",
            "/",
        ];
        let refused = elsewhere.map(|path| File::open(path).map(drop).map_err(|it| it.kind()));
        let all_refused = [Err(io::ErrorKind::PermissionDenied); 4];
        trial.expect("opens no other files", refused == all_refused);
    }
}

fn try_creating(trial: &mut Trial, recording: Recording<'_>, has_landlock: bool) {
    let path = std::env::temp_dir().join("must-not-be-made");
    for options in [
        File::options().write(true).create(true),
        File::options().append(true).create(true),
        File::options().read(true).write(true).create_new(true),
        File::options().write(true).truncate(true),
    ] {
        trial.expect(
            "opens no file for writing",
            options.open(&path).is_err_and(is_refused),
        );
    }
    let created = |path: &Path| {
        let mut options = File::options();
        options.write(true).create(true).truncate(true);
        options.open(path).map(drop).map_err(|error| error.kind())
    };
    if let Recording::Rotated(directory) = recording {
        let own = directory.join("tcpinspect-test-rotated");
        trial.expect("creates capture files", created(&own).is_ok());
        trial.expect("reads no file", File::open(&own).is_err_and(is_refused));
        let denied = Err(io::ErrorKind::PermissionDenied);
        trial.expect(
            "creates no file elsewhere",
            !has_landlock || created(&path) == denied,
        );
    } else {
        trial.expect("creates no file", created(&path).is_err());
    }
    trial.expect(
        "removes no file",
        fs::remove_file(&path).is_err_and(is_refused),
    );
}

fn try_processes(trial: &mut Trial) {
    let bind = TcpListener::bind("127.0.0.1:0");
    trial.expect("makes no socket", bind.is_err_and(is_refused));
    let connect = std::net::UdpSocket::bind("0.0.0.0:0");
    trial.expect("makes no socket", connect.is_err_and(is_refused));
    trial.expect(
        "starts no program",
        Command::new("/bin/true").spawn().is_err(),
    );
    trial.expect(
        "starts no thread",
        thread::Builder::new().spawn(|| ()).is_err(),
    );
    trial.refuses("executes nothing", libc::SYS_execve, [0, 0, 0]);
    // SAFETY: only numbers are passed.
    let fork = unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
    if fork == 0 {
        std::process::exit(0);
    }
    trial.expect("makes no process", fork < 0);
    trial.refuses("traces nobody", libc::SYS_ptrace, [16, 1, 0]);
    trial.refuses("kills nobody", libc::SYS_kill, [1, 0, 0]);
    trial.refuses("signals no other process", libc::SYS_tgkill, [1, 1, 0]);
    trial.refuses("enters no namespace", libc::SYS_setns, [0, 0, 0]);
    trial.refuses("makes no namespace", libc::SYS_unshare, [0, 0, 0]);
    trial.refuses("mounts nothing", libc::SYS_mount, [0, 0, 0]);
    trial.refuses("changes no user", libc::SYS_setuid, [0, 0, 0]);
    trial.refuses("has no io_uring", libc::SYS_io_uring_setup, [1, 0, 0]);
    trial.refuses("opens no perf event", libc::SYS_perf_event_open, [0, 0, 0]);
}

fn try_bpf(trial: &mut Trial) {
    for (what, command) in [
        ("makes no map", libbpf_sys::BPF_MAP_CREATE),
        ("changes no map", libbpf_sys::BPF_MAP_UPDATE_ELEM),
        ("loads no program", libbpf_sys::BPF_PROG_LOAD),
        ("attaches nothing", libbpf_sys::BPF_LINK_CREATE),
        ("attaches nothing", libbpf_sys::BPF_PROG_ATTACH),
        (
            "detaches no program of another process",
            libbpf_sys::BPF_PROG_DETACH,
        ),
        (
            "opens no BPF object by its id",
            libbpf_sys::BPF_PROG_GET_FD_BY_ID,
        ),
        ("pins nothing", libbpf_sys::BPF_OBJ_PIN),
    ] {
        trial.refuses(what, libc::SYS_bpf, [command as usize, 0, 0]);
    }
}

fn try_memory_and_signals(trial: &mut Trial) {
    let executable = (libc::PROT_READ | libc::PROT_EXEC) as usize;
    trial.refuses(
        "maps no executable memory",
        libc::SYS_mmap,
        [0, 4096, executable],
    );
    trial.refuses(
        "makes no memory executable",
        libc::SYS_mprotect,
        [0, 4096, executable],
    );
    for (what, command, argument) in [
        ("chooses no receiver of signals", libc::F_SETOWN, 1),
        ("chooses no receiver of signals", F_SETOWN_EX, 0),
        ("chooses no signal", F_SETSIG, 9),
        ("asks for no signals", libc::F_SETFL, libc::O_ASYNC as usize),
        ("asks for no signals", libc::F_SETLEASE, 0),
        ("asks for no signals", libc::F_NOTIFY, 0),
    ] {
        trial.refuses(what, libc::SYS_fcntl, [1, command as usize, argument]);
    }
    // TIOCSTI puts characters into the input of a terminal.
    trial.refuses("types nothing", libc::SYS_ioctl, [0, 0x5412, 0]);
}

/// The kinds of sandboxes.
const CONFINEMENTS: [&str; 4] = ["opened", "readable", "recorded", "rotated"];

fn confinement(name: &OsStr) -> (Files, Recording<'_>) {
    match name.to_str() {
        Some("readable") => (Files::Readable, Recording::No),
        Some("recorded") => (Files::Opened, Recording::Opened),
        Some("rotated") => {
            // A guest may have none.
            fs::create_dir_all("/dev/shm").unwrap();
            (Files::Opened, Recording::Rotated(Path::new("/dev/shm")))
        }
        _ => (Files::Opened, Recording::No),
    }
}

/// Runs `confined` in processes of their own, one for each of `ways`, because a filter is for all
/// threads of a process, and can't be removed. Each runs this test again, whose name is `test`.
/// `confined` returns whether all is right, and what it has found.
fn in_children(test: &str, ways: &[&str], confined: impl FnOnce(&OsStr) -> (bool, String)) {
    const CHILD: &str = "TCPINSPECT_TEST_CHILD";
    // Different from the exit status of a test harness that found no such test.
    const ALL_RIGHT: i32 = 42;
    if let Some(way) = std::env::var_os(CHILD) {
        let (is_right, found) = confined(&way);
        say(&found);
        std::process::exit(if is_right { ALL_RIGHT } else { 1 });
    }
    let name = format!("privileges::{test}");
    for way in ways {
        let output = Command::new(std::env::current_exe().unwrap())
            .args([&name, "--exact", "--test-threads=1"])
            .env(CHILD, way)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(ALL_RIGHT), "{way}: {output:?}");
    }
}

#[test]
fn the_sandbox_refuses_what_no_run_needs() {
    let test = "the_sandbox_refuses_what_no_run_needs";
    in_children(test, &CONFINEMENTS, |files| {
        let (files, recording) = confinement(files);
        let wrong = try_confined(files, recording);
        (wrong.is_empty(), format!("wrong: {wrong:?}"))
    });
}

/// The numbers of system calls, by name.
#[cfg(target_arch = "x86_64")]
macro_rules! calls {
    ($($call:ident)*) => {
        [$((stringify!($call), libc::$call)),*]
    };
}

/// The system calls that docs/trust.md may name.
#[cfg(target_arch = "x86_64")]
const CALLS: &[(&str, i64)] = &calls![
    SYS_read SYS_readv SYS_pread64 SYS_recvfrom SYS_recvmsg SYS_write SYS_writev SYS_lseek
    SYS_fstat SYS_flock SYS_close SYS_poll SYS_ppoll SYS_epoll_wait SYS_epoll_pwait SYS_brk SYS_munmap
    SYS_mremap SYS_madvise SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_gettimeofday
    SYS_nanosleep SYS_getrandom SYS_futex SYS_membarrier SYS_getpid SYS_getpgid SYS_getpgrp SYS_gettid
    SYS_restart_syscall SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack SYS_exit
    SYS_exit_group SYS_statx SYS_newfstatat SYS_getdents64 SYS_ftruncate
];

/// Those that can't be tried: they end a process or a thread, or fail with ENOSYS by themselves, as
/// futex does if its command is unknown.
#[cfg(target_arch = "x86_64")]
const NOT_TRIED: [i64; 4] = [
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_rt_sigreturn,
    libc::SYS_futex,
];

/// The system calls that the sandbox allows with any arguments, by the table in docs/trust.md.
#[cfg(target_arch = "x86_64")]
fn documented_calls(files: Files, recording: Recording<'_>) -> Vec<i64> {
    let docs = include_str!("../docs/trust.md");
    let (_, table) = docs.split_once("| for | calls |\n|---|---|\n").unwrap();
    let (table, _) = table.split_once("\n\n").unwrap();
    let rows = table.lines().map(|row| {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, purpose, calls, _] = cells[..] else {
            panic!("not a purpose and calls: {row}")
        };
        (purpose, calls)
    });
    let is_allowed = |purpose: &str| match purpose {
        "looking at files, where they can be opened" => files == Files::Readable,
        "cutting a capture file to its last whole packet, with `-w`" => recording != Recording::No,
        _ => true,
    };
    let names = rows
        .filter(|(purpose, _)| is_allowed(purpose))
        .flat_map(|(_, calls)| calls.split(' '));
    let number = |name: &str| {
        let name = format!("SYS_{}", name.trim_matches('`'));
        let found = CALLS.iter().find(|(known, _)| *known == name);
        found.unwrap_or_else(|| panic!("{name} has no number")).1
    };
    let mut calls: Vec<_> = names.map(number).collect();
    calls.sort_unstable();
    calls
}

/// The arguments of a system call that docs/trust.md lists after its name.
#[cfg(target_arch = "x86_64")]
fn documented_commands(call: &str) -> Vec<&'static str> {
    let docs = include_str!("../docs/trust.md");
    let (_, list) = docs
        .split_once("and these with some arguments only:")
        .unwrap();
    let (_, list) = list.split_once(&format!("`{call}(2)` ")).unwrap();
    let (list, _) = list.split_once(';').unwrap();
    let mut commands: Vec<_> = list.split(", ").collect();
    commands.sort_unstable();
    commands
}

/// Tries a system call. Returns whether the sandbox allows it.
#[cfg(target_arch = "x86_64")]
fn is_left(call: i64, [a, b]: [i64; 2]) -> bool {
    // SAFETY: no argument is a valid pointer, descriptor, process or size.
    let ret = unsafe { libc::syscall(call, a, b, -1_i64, -1_i64, -1_i64, -1_i64) };
    ret >= 0 || !is_refused(io::Error::last_os_error())
}

/// The system calls that the sandbox allows, of all but [`NOT_TRIED`].
#[cfg(target_arch = "x86_64")]
fn calls_that_are_left() -> Vec<i64> {
    // uretprobe and uprobe are only for the kernel's own trampolines: they pass every filter, and kill
    // any other caller.
    const PROBES: [i64; 2] = [335, 336];
    (0..1024)
        .filter(|number| !NOT_TRIED.contains(number) && !PROBES.contains(number))
        .filter(|number| is_left(*number, [-1; 2]))
        .collect()
}

/// The commands of a system call that the sandbox allows. The command is its argument `at`.
#[cfg(target_arch = "x86_64")]
fn commands_that_are_left(call: i64, at: usize) -> Vec<u32> {
    let is_allowed = |command: &u32| {
        let mut arguments = [-1; 2];
        arguments[at] = i64::from(*command);
        is_left(call, arguments)
    };
    (0..2048).filter(is_allowed).collect()
}

#[cfg(target_arch = "x86_64")]
#[test]
fn every_allowed_system_call_is_in_the_documentation() {
    // Looking up maps, running loaded programs, creating iterators, detaching and querying links.
    const BPF: [u32; 8] = [
        libbpf_sys::BPF_MAP_LOOKUP_ELEM,
        libbpf_sys::BPF_MAP_GET_NEXT_KEY,
        libbpf_sys::BPF_PROG_TEST_RUN,
        libbpf_sys::BPF_OBJ_GET_INFO_BY_FD,
        libbpf_sys::BPF_MAP_LOOKUP_BATCH,
        libbpf_sys::BPF_MAP_LOOKUP_AND_DELETE_BATCH,
        libbpf_sys::BPF_ITER_CREATE,
        libbpf_sys::BPF_LINK_DETACH,
    ];
    const FCNTL: [i32; 3] = [libc::F_GETFD, libc::F_GETFL, libc::F_DUPFD_CLOEXEC];
    let fcntl_names = ["F_DUPFD_CLOEXEC", "F_GETFD", "F_GETFL"];
    assert_eq!(documented_commands("fcntl"), fcntl_names);
    assert_eq!(documented_commands("prctl"), ["PR_SET_NAME"]);
    let test = "every_allowed_system_call_is_in_the_documentation";
    in_children(test, &CONFINEMENTS, |files| {
        let (files, recording) = confinement(files);
        let mut documented = documented_calls(files, recording);
        let ends = NOT_TRIED.iter().all(|call| documented.contains(call));
        documented.retain(|call| !NOT_TRIED.contains(call));
        sandbox::confine(files, recording).unwrap();
        let left = calls_that_are_left();
        let commands = commands_that_are_left(libc::SYS_bpf, 0);
        let right = [
            ends,
            left == documented,
            commands == BPF,
            commands_that_are_left(libc::SYS_fcntl, 1) == FCNTL.map(i32::cast_unsigned),
            commands_that_are_left(libc::SYS_prctl, 0) == [libc::PR_SET_NAME.cast_unsigned()],
        ];
        let found = format!("right: {right:?}, left: {left:?} {commands:?}");
        (right == [true; 5], found)
    });
}

#[test]
fn connections_can_be_accepted_from_the_named_socket_only() {
    use std::net::TcpStream;
    use std::os::fd::AsRawFd;
    let test = "connections_can_be_accepted_from_the_named_socket_only";
    in_children(test, &["accept"], |_| {
        let [named, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let mut clients = [&named, &other].map(|it| TcpStream::connect(it.local_addr().unwrap()));
        sandbox::confine(Files::Accepted(named.as_raw_fd()), Recording::No).unwrap();
        let (accepted, other) = (named.accept(), other.accept().map(drop));
        let mut accepted = accepted.unwrap().0;
        let right = [
            accepted.write_all(b"x").is_ok(),
            clients[0].as_mut().unwrap().read_exact(&mut [0]).is_ok(),
            other.is_err_and(is_refused),
            TcpListener::bind("127.0.0.1:0").is_err_and(is_refused),
            TcpStream::connect(named.local_addr().unwrap_or(([127, 0, 0, 1], 1).into()))
                .is_err_and(is_refused),
            File::open("/proc/self/status").is_err_and(is_refused),
        ];
        (right == [true; 6], format!("right: {right:?}"))
    });
}

#[test]
fn three_capabilities_are_enough_for_user_nobody() {
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    for line in COMMANDS {
        let mut command = command_of(&binary.path(), line.split(' '));
        as_nobody(&mut command, &ENOUGH);
        works(&pair, &mut command);
    }
}

#[test]
fn the_capabilities_of_the_hint_are_enough_on_the_file() {
    // struct vfs_cap_data (linux/capability.h), revision 2 with the effective bit.
    const REVISION: u32 = 0x0200_0001;
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    let set: u64 = ENOUGH.iter().map(|capability| capability.bitmask()).sum();
    let words = [REVISION, set as u32, 0, (set >> 32) as u32, 0];
    let data: Vec<u8> = words.into_iter().flat_map(u32::to_le_bytes).collect();
    need!(set_attribute(&binary.path(), c"security.capability", &data));
    for line in COMMANDS {
        let mut command = command_of(&binary.path(), line.split(' '));
        as_nobody(&mut command, &[]);
        works(&pair, &mut command);
    }
}

fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> Result<(), String> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings and the value are valid for the call.
    let ret = unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    };
    match ret {
        0 => Ok(()),
        _ => Err(format!(
            "can't give capabilities to a file: {}",
            std::io::Error::last_os_error()
        )),
    }
}

#[test]
fn a_capability_that_is_missing_is_named() {
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    for line in COMMANDS {
        for missing in ENOUGH {
            let mut command = command_of(&binary.path(), line.split(' '));
            let keep: Vec<_> = ENOUGH.into_iter().filter(|kept| *kept != missing).collect();
            as_nobody(&mut command, &keep);
            let tool = Tool::spawn_in(&pair.server, command.arg("-d0.05"));
            let mut output = tool.finish();
            let (name, _) = line.split_once(' ').unwrap();
            let is_network = missing == Capability::CAP_NET_ADMIN;
            let is_notice = |line: &String| line.starts_with("notice: ");
            // listeners shows no processes without the others.
            if name == "listeners" || (name == "connect-trace" && is_network) {
                assert_eq!(output.code(), 0, "{line} without {missing}: {output:#?}");
                let mut notices = output.stderr.iter().filter(|line| is_notice(line));
                let is_named = notices.any(|line| line.contains(&missing.to_string()));
                assert_eq!(
                    is_named, !is_network,
                    "{line} without {missing}: {output:#?}"
                );
                continue;
            }
            // loss-trace begins with a notice if it can't read names of kernel functions.
            output.stderr.retain(|line| !is_notice(line));
            assert_eq!(output.code(), 1, "{line} without {missing}: {output:#?}");
            let (error, hint) = output.complaint();
            assert!(error.contains(&missing.to_string()), "{line}: {error}");
            assert!(hint.is_some(), "{line} without {missing}");
        }
    }
}

#[test]
fn no_locked_memory_is_needed_since_linux_5_11() {
    need!(since((5, 11), "BPF is accounted to locked memory"));
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    for line in COMMANDS {
        let mut command = command_of(&binary.path(), line.split(' '));
        as_nobody(&mut command, &ENOUGH);
        // SAFETY: a system call and nothing else happens between fork and exec.
        unsafe {
            command.pre_exec(|| Ok(setrlimit(Resource::RLIMIT_MEMLOCK, 0, 0)?));
        }
        works(&pair, &mut command);
    }
}

#[test]
fn a_set_user_id_program_refuses_to_run() {
    let namespace = need!(Namespace::new());
    need!(if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err("only root can make a set-user-ID file of root")
    });
    let binary = PublicBinary::new();
    fs::set_permissions(binary.path(), fs::Permissions::from_mode(0o4755)).unwrap();
    for line in COMMANDS {
        let mut command = command_of(&binary.path(), line.split(' '));
        command.uid(Uid::from_raw(65534).as_raw());
        let output = Tool::spawn_in(&namespace, &mut command).finish();
        assert_eq!(output.code(), 1, "{line}: {output:#?}");
        let (error, _) = output.complaint();
        assert!(error.starts_with("refusing to run set-user-ID"), "{error}");
    }
}
