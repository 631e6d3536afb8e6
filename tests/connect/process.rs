//! Which process it was, and where: network namespace, cgroup, container.

use std::fs::File;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use nix::libc;
use nix::sys::socket::SockFlag;
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::sockets::{connect_to, tcp};
use super::{Trace, backends};
use crate::common::cgroup::Cgroup;
use crate::common::{Namespace, need};

/// Connects in a process that is in a cgroup, and returns its id.
fn connect_in(cgroup: &Cgroup, addr: SocketAddr) -> i32 {
    let members = File::options()
        .write(true)
        .open(cgroup.path().join("cgroup.procs"))
        .unwrap();
    let socket = tcp(addr, SockFlag::empty());
    // SAFETY: the child makes system calls and nothing else.
    match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let moved = (&members).write_all(b"0").is_ok();
            let _ = connect_to(&socket, addr);
            // SAFETY: ends the child without touching what it shares with its parent.
            unsafe { libc::_exit(i32::from(!moved)) }
        }
        ForkResult::Parent { child } => {
            let status = waitpid(child, None).unwrap();
            assert_eq!(
                status,
                nix::sys::wait::WaitStatus::Exited(child, 0),
                "{}",
                members.as_raw_fd()
            );
            child.as_raw()
        }
    }
}

#[test]
fn a_process_in_a_container_is_reported_with_its_namespace_cgroup_and_container() {
    let namespace = need!(Namespace::new());
    let id = "0123456789abcdef".repeat(4);
    let cgroup = need!(Cgroup::new(&format!("docker-{id}.scope")));
    for backend in backends!() {
        let trace = Trace::start(&namespace, backend, &[]);
        let addr = "127.0.0.1:4401".parse().unwrap();
        let pid = namespace.enter(|| connect_in(&cgroup, addr));
        namespace.enter(|| TcpStream::connect("127.0.0.1:4402").expect_err("nobody listens"));
        let events = trace.stop();
        let (attempt, failed) = events.pair_at(4401, "failed");
        for event in [attempt, failed] {
            assert_eq!(event["pid"], pid, "{event}");
            assert_eq!(event["cgroup_id"], cgroup.id(), "{event}");
            assert_eq!(event["container"], id.as_str(), "{event}");
            assert_eq!(event["netns"], namespace.inode(), "{event}");
        }
        // The test itself is somewhere else.
        let (attempt, _) = events.pair_at(4402, "failed");
        assert_ne!(attempt["cgroup_id"], cgroup.id(), "{attempt}");
        assert_ne!(attempt["container"], id.as_str(), "{attempt}");
    }
}

#[test]
fn each_namespace_is_identified_by_its_own_number() {
    let namespaces = [need!(Namespace::new()), need!(Namespace::new())];
    for backend in backends!() {
        let trace = Trace::everywhere(&namespaces[0], backend, &["-p", "4411"]);
        for namespace in &namespaces {
            namespace.enter(|| TcpStream::connect("127.0.0.1:4411").expect_err("nobody listens"));
        }
        trace.wait_for("failed", 4411);
        let output = trace.tool.stop();
        let mut seen: Vec<u64> = output
            .events("failed")
            .iter()
            .filter(|event| event["dport"] == 4411)
            .map(|event| event["netns"].as_u64().unwrap())
            .collect();
        seen.dedup();
        assert_eq!(seen, [namespaces[0].inode(), namespaces[1].inode()]);
    }
}
