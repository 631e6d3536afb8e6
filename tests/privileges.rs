//! With how little the tool works, what it gives up, and what it says when something is missing.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use std::ffi::{CStr, CString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use caps::Capability;
use common::bpf::has_tcx;
use common::tool::{ENOUGH, PublicBinary, as_nobody, command_of};
use common::{Namespace, Pair, SERVER4, Tool, need};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Pid, Uid};

/// Every way to attach that is there on a veth device.
const WAYS: [&str; 6] = [
    "syn-count vs -i 0.05 --mode native",
    "syn-count vs -i 0.05 --mode generic",
    "syn-count vs -i 0.05 --mode tc --by saddr",
    "port-monitor vs",
    "flows vs",
    "connect-trace --dst 10.77.0.0/16",
];

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

/// Counts three SYNs with a tool that sees `vs`, or three connects, and wants it to end well.
fn works(pair: &Pair, command: &mut Command) {
    let tool = Tool::spawn_in(&pair.server, command.arg("--json")).attached();
    let is_trace = command.get_args().any(|arg| arg == "connect-trace");
    if !is_trace {
        pair.refused_connects((SERVER4, 80).into(), 3);
    }
    let output = tool.stop();
    assert_eq!(output.code(), 0, "{output:#?}");
    let matched = output.summary()["matched"].as_u64().unwrap();
    assert!(matched == 3 || is_trace, "{command:?}: {output:#?}");
}

#[test]
fn once_attached_no_thread_has_a_capability_or_a_way_to_one() {
    let pair = need!(Pair::new());
    for line in WAYS {
        let args: Vec<_> = line.split(' ').collect();
        let tool = Tool::start_in(&pair.server, &args);
        // A filter that is no link has to be removed, which takes CAP_NET_ADMIN.
        let filter = tool.attached_line().1.contains("clsact");
        let kept = if filter { 1_u64 << 12 } else { 0 };
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
        let values = status(tool.pid(), "NoNewPrivs");
        assert!(values.iter().all(|value| value == "1"), "{line}");
        assert!(values.len() > 1, "signals have a thread: {values:?}");
        assert_eq!(tool.stop().code(), 0, "{line}");
    }
    if has_tcx().is_ok() {
        let tool = Tool::start_in(&pair.server, &["port-monitor", "vs"]);
        assert!(tool.attached_line().1.contains("(tcx)"));
    }
}

#[test]
fn three_capabilities_are_enough_for_nobody() {
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    for line in WAYS {
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
    for line in WAYS {
        let mut command = command_of(&binary.path(), line.split(' '));
        as_nobody(&mut command, &[]);
        works(&pair, &mut command);
    }
}

fn set_attribute(path: &Path, name: &CStr, value: &[u8]) -> Result<(), String> {
    let path = CString::new(path.as_os_str().as_bytes()).unwrap();
    // SAFETY: both strings and the value are valid for the call.
    let ret = unsafe {
        nix::libc::setxattr(
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
    for line in WAYS {
        for missing in ENOUGH {
            let mut command = command_of(&binary.path(), line.split(' '));
            let keep: Vec<_> = ENOUGH.into_iter().filter(|kept| *kept != missing).collect();
            as_nobody(&mut command, &keep);
            let tool = Tool::spawn_in(&pair.server, command.arg("-d0.05"));
            let output = tool.finish();
            // connect-trace has no business with the network's administration.
            if line.starts_with("connect") && missing == Capability::CAP_NET_ADMIN {
                assert_eq!(output.code(), 0, "{line} without {missing}: {output:#?}");
                continue;
            }
            assert_eq!(output.code(), 1, "{line} without {missing}: {output:#?}");
            let (error, hint) = output.complaint();
            assert!(error.contains(&missing.to_string()), "{line}: {error}");
            assert!(hint.is_some(), "{line} without {missing}");
        }
    }
}

#[test]
fn no_locked_memory_is_needed_since_linux_5_11() {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_str().unwrap().to_owned();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse::<u32>().unwrap();
    need!(if (number(), number()) >= (5, 11) {
        Ok(())
    } else {
        Err(format!("Linux {release} accounts BPF to locked memory"))
    });
    let pair = need!(Pair::new());
    let binary = PublicBinary::new();
    for line in WAYS {
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
fn it_refuses_to_run_set_user_id() {
    let namespace = need!(Namespace::new());
    need!(if nix::unistd::geteuid().is_root() {
        Ok(())
    } else {
        Err("only root can make a set-user-ID file of root")
    });
    let binary = PublicBinary::new();
    fs::set_permissions(binary.path(), fs::Permissions::from_mode(0o4755)).unwrap();
    for line in [
        "syn-count lo",
        "port-monitor lo",
        "flows lo",
        "connect-trace",
    ] {
        let mut command = command_of(&binary.path(), line.split(' '));
        command.uid(Uid::from_raw(65534).as_raw());
        let output = Tool::spawn_in(&namespace, &mut command).finish();
        assert_eq!(output.code(), 1, "{line}: {output:#?}");
        let (error, _) = output.complaint();
        assert!(error.starts_with("refusing to run set-user-ID"), "{error}");
    }
}
