//! Instances that are killed, and instances at the same time.

use std::env;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::thread;

use tcpinspect::attach::clsact::remove_stale;
use tcpinspect::domain::Direction;

use super::bpf::{Counter, UNSPEC};
use super::instance::Instance;
use super::net::{V0, in_namespace, index, our_filters, send, state, state_of_others};
use crate::common::{need, run, try_run};

#[test]
fn the_next_start_removes_exactly_what_a_killed_instance_left() {
    need!(in_namespace(|| {
        run(&format!("tc qdisc add dev {V0} clsact"));
        let foreign = Counter::new(UNSPEC);
        foreign.attach_foreign(index(V0), Direction::Ingress, 1, 1);
        foreign.attach_foreign(index(V0), Direction::Egress, 0, 1);
        let before = state(V0);
        let killed = Instance::start("ingress,egress");
        let alive = Instance::start("ingress");
        assert_eq!(alive.notes, "");
        let pid = killed.pid();
        killed.kill();
        assert_eq!(our_filters(V0).len(), 3);

        let counter = Counter::new(UNSPEC);
        let clsact = counter.attach(V0, Direction::Ingress);
        assert_eq!(
            clsact.notes(),
            [
                format!(
                    "removed the ingress filter monitor that process {pid} had left when it \
                         was killed"
                ),
                format!(
                    "removed the egress filter monitor that process {pid} had left when it \
                         was killed"
                ),
            ]
        );
        let ours = our_filters(V0);
        assert_eq!(ours.len(), 2, "{ours:?}");
        assert!(ours.iter().all(|line| !line.contains("+qdisc")), "{ours:?}");
        assert_eq!(state_of_others(V0, Some(49_151)), before);
        clsact.detach().unwrap();
        alive.leave();
        assert_eq!(state(V0), before);
    }));
}

/// Filters with names in the format of version 0.1, and in a format that is not known yet.
#[test]
fn another_version_is_respected_while_it_runs_and_cleaned_up_after_its_end() {
    need!(in_namespace(|| {
        let before = state(V0);
        run(&format!("tc qdisc add dev {V0} clsact"));
        let mut process = Command::new("sleep").arg("600").spawn().unwrap();
        let pid = process.id();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let started = stat.rsplit(' ').nth(52 - 22).unwrap();
        let inode = |of: &str| fs::metadata(format!("/proc/self/ns/{of}")).map(|ns| ns.ino());
        let (pid_namespace, time_namespace) = (inode("pid").unwrap(), inode("time").unwrap());
        let name = format!(
            "tcpinspect/{pid}/{started}/{pid_namespace}-{time_namespace}+qdisc:old_program"
        );
        let (old, future) = (Counter::new(UNSPEC), Counter::new(UNSPEC));
        old.attach_named(index(V0), Direction::Ingress, &name);
        old.attach_named(index(V0), Direction::Egress, &name);
        // The format of this name is not known, so the filter counts as another program's.
        let unknown = format!("tcpinspect/2/{pid}/{started}/{pid_namespace}:new");
        future.attach_named(index(V0), Direction::Ingress, &unknown);
        let during = state(V0);

        let counter = Counter::new(UNSPEC);
        let clsact = counter.attach(V0, Direction::Ingress);
        assert_eq!(clsact.notes(), [""; 0]);
        assert!(remove_stale(index(V0)).unwrap().is_empty());
        send(5);
        for each in [&counter, &old, &future] {
            each.expect(5);
        }
        clsact.detach().unwrap();
        assert_eq!(state(V0), during, "it leaves what others have");

        process.kill().unwrap();
        process.wait().unwrap();
        let notes = remove_stale(index(V0)).unwrap();
        let removed = |direction| {
            format!(
                "removed the {direction} filter old_program that process {pid} had left when \
                     it was killed"
            )
        };
        assert_eq!(notes, [removed("ingress"), removed("egress")]);
        let left = our_filters(V0);
        assert!(left.len() == 1 && left[0].contains(&unknown), "{left:?}");
        run(&format!("tc qdisc del dev {V0} clsact"));
        assert_eq!(state(V0), before);
    }));
}

#[test]
fn the_qdisc_of_a_killed_instance_is_taken_over() {
    need!(in_namespace(|| {
        let before = state(V0);
        Instance::start("ingress,egress").kill();
        assert_ne!(state(V0), before);
        let counter = Counter::new(UNSPEC);
        let clsact = counter.attach(V0, Direction::Ingress);
        assert_eq!(clsact.notes().len(), 2);
        assert!(our_filters(V0)[0].contains("+qdisc:"));
        send(3);
        counter.expect(3);
        clsact.detach().unwrap();
        assert_eq!(state(V0), before);
    }));
}

#[test]
fn what_a_killed_instance_left_can_be_removed_without_attaching() {
    need!(in_namespace(|| {
        let before = state(V0);
        Instance::start("ingress,egress").kill();
        let notes = remove_stale(index(V0)).unwrap();
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert_eq!(state(V0), before);
        assert!(remove_stale(index(V0)).unwrap().is_empty());

        Instance::start("ingress").kill();
        let foreign = Counter::new(UNSPEC);
        foreign.attach_foreign(index(V0), Direction::Ingress, 3, 1);
        let during = state_of_others(V0, Some(37));
        assert_eq!(remove_stale(index(V0)).unwrap().len(), 1);
        assert_eq!(state(V0), during);
    }));
}

#[test]
fn the_last_instance_removes_the_qdisc_whoever_made_it() {
    need!(in_namespace(|| {
        let before = state(V0);
        for maker_leaves_first in [true, false] {
            let maker = Instance::start("ingress");
            let counter = Counter::new(UNSPEC);
            let other = counter.attach(V0, Direction::Ingress);
            assert_eq!(other.notes(), [""; 0]);
            if maker_leaves_first {
                maker.leave();
                assert_eq!(our_filters(V0).len(), 1);
                send(5);
                counter.expect(5);
                other.detach().unwrap();
            } else {
                other.detach().unwrap();
                assert_eq!(our_filters(V0).len(), 1);
                maker.leave();
            }
            assert_eq!(state(V0), before);
        }
    }));
}

#[test]
fn two_instances_both_see_every_packet() {
    need!(in_namespace(|| {
        let (first, second) = (Counter::new(UNSPEC), Counter::new(UNSPEC));
        let attached = [
            first.attach(V0, Direction::Ingress),
            second.attach(V0, Direction::Ingress),
        ];
        send(15);
        first.expect(15);
        second.expect(15);
        drop(attached);
    }));
}

#[test]
fn instances_that_come_and_go_at_once_leave_nothing() {
    need!(in_namespace(|| {
        let before = state(V0);
        let counter = Counter::new(UNSPEC);
        thread::scope(|scope| {
            for number in 0..4 {
                let counter = &counter;
                // A new thread is in the network namespace of the one that made it.
                scope.spawn(move || {
                    for _ in 0..10 {
                        let direction = if number % 2 == 0 {
                            Direction::Ingress
                        } else {
                            Direction::Egress
                        };
                        let clsact = counter.attach(V0, direction);
                        assert!(clsact.state().unwrap().is_attached());
                        assert_eq!(clsact.notes(), [""; 0]);
                        clsact.detach().unwrap();
                    }
                });
            }
        });
        assert_eq!(state(V0), before);
    }));
}

#[test]
fn instances_of_another_pid_namespace_are_left_alone() {
    let prefix = ["unshare", "--pid", "--fork", "--kill-child"];
    need!(try_run(&format!("{} true", prefix.join(" "))));
    need!(in_namespace(|| {
        let before = state(V0);
        // Its pid in that namespace is 1, and a process with this pid runs in ours too.
        Instance::start_by(&prefix, "ingress").kill();
        let counter = Counter::new(UNSPEC);
        let clsact = counter.attach(V0, Direction::Ingress);
        assert_eq!(
            clsact.notes(),
            [
                "kept the ingress filter monitor of process 1: can't find out whether that process still \
                 runs"
            ]
        );
        clsact.detach().unwrap();
        let left = our_filters(V0);
        assert_eq!(left.len(), 1, "{left:?}");
        run(&format!("tc qdisc del dev {V0} clsact"));
        assert_eq!(state(V0), before);
    }));
}

/// Words before a command line that run it as an ordinary user with the capabilities that are
/// needed, in a mount namespace of its own, after the command `first`.
///
/// # Errors
/// Such a user can't run this program.
fn ordinary_user(first: &str) -> Result<Vec<String>, String> {
    let capabilities = "-all,+net_admin,+bpf,+perfmon";
    let script = format!(
        "{first} && exec setpriv --reuid 65534 --regid 65534 --clear-groups --no-new-privs \
         --inh-caps {capabilities} --ambient-caps {capabilities} \"$@\""
    );
    let words = ["unshare", "--mount", "sh", "-c", &script, "sh"].map(str::to_owned);
    let tried = Command::new(&words[0])
        .args(&words[1..])
        .arg(env::current_exe().unwrap())
        .arg("--list")
        .output();
    match tried.is_ok_and(|output| output.status.success()) {
        true => Ok(words.to_vec()),
        false => Err("an ordinary user can't be had, or can't run this program".to_owned()),
    }
}

/// An instance of this user removes the filter of one that was killed. It keeps that of one that
/// runs, with a note if it can't find out whether that one runs.
fn removes_what_is_stale(user: &[String], sees_others: bool) {
    let before = state(V0);
    let alive = Instance::start("ingress");
    let killed = Instance::start("egress");
    let (alive_pid, killed_pid) = (alive.pid(), killed.pid());
    killed.kill();
    let prefix: Vec<_> = user.iter().map(String::as_str).collect();
    let ordinary = Instance::start_by(&prefix, "ingress");
    let notes: Vec<&str> = ordinary.notes.split("; ").collect();
    let removed = format!("removed the egress filter monitor that process {killed_pid}");
    assert!(notes[0].starts_with(&removed), "{notes:?}");
    match (&notes[1..], sees_others) {
        ([], true) => {}
        ([kept], false) => {
            let expected = format!("kept the ingress filter monitor of process {alive_pid}: ");
            assert!(kept.starts_with(&expected), "{notes:?}");
        }
        _ => panic!("{notes:?}"),
    }
    assert_eq!(our_filters(V0).len(), 2);
    alive.leave();
    ordinary.leave();
    assert_eq!(state(V0), before);
}

#[test]
fn ordinary_users_with_capabilities_find_the_stale_filters_that_root_finds() {
    let user = need!(ordinary_user("true"));
    need!(in_namespace(|| removes_what_is_stale(&user, true)));
}

#[test]
fn ordinary_users_who_see_no_processes_of_others_keep_the_filters_of_those_that_run() {
    let user = need!(ordinary_user("mount -t proc -o hidepid=2 proc /proc"));
    need!(in_namespace(|| removes_what_is_stale(&user, false)));
}
