//! Interfaces, their changes and their features, seen in network namespaces.

use std::fs;
use std::io::Write;
use std::os::fd::AsFd;
use std::sync::mpsc;
use std::thread;

use crate::common::bpf::{Foreign, Hook, XDP_PASS};
use crate::common::raw::Tun;
use crate::common::tool::ENOUGH;
use crate::common::{Namespace, PATIENCE, need, run, wait_for};
use caps::Capability;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tcpinspect::host::features::Snapshot;
use tcpinspect::host::interfaces::{Interface, LinkLayer, ResolveError, resolve};
use tcpinspect::host::link_watch::{LinkChange, LinkEvent, LinkWatch};
use tcpinspect::host::privileges;
use tempfile::NamedTempFile;

fn resolve_names(names: &[&str]) -> Vec<String> {
    let names: Vec<_> = names.iter().map(|&name| name.to_owned()).collect();
    let found = resolve(&names).unwrap();
    found.into_iter().map(|interface| interface.name).collect()
}

fn interface(name: &str) -> Interface {
    resolve(&[name.to_owned()]).unwrap().remove(0)
}

fn watch(name: &str) -> LinkWatch {
    let mut watch = LinkWatch::new().unwrap();
    watch.follow(&[interface(name)]);
    watch
}

/// Waits for the next events.
fn next(watch: &mut LinkWatch) -> Vec<(String, LinkChange)> {
    loop {
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        let patience = PollTimeout::try_from(PATIENCE).unwrap();
        assert_eq!(poll(&mut fds, patience), Ok(1), "no event");
        let events = watch.events().unwrap();
        if !events.is_empty() {
            let pair = |event: LinkEvent| (event.name, event.change);
            return events.into_iter().map(pair).collect();
        }
    }
}

#[test]
fn without_a_default_route_or_with_any_all_interfaces_that_are_up_are_watched() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        assert_eq!(resolve_names(&[]), ["lo"]);
        run("ip link add va type veth peer name vb");
        run("ip link add vc type veth peer name vd");
        run("ip link set va up");
        run("ip link set vb up");
        let mut up = resolve_names(&[]);
        up.sort_unstable();
        assert_eq!(up, ["lo", "va", "vb"]);
        run("ip route add default dev va");
        assert_eq!(resolve_names(&[]), ["va"]);
        let mut any = resolve_names(&["vc", "any", "va"]);
        assert_eq!(any.remove(0), "vc", "by name it may be down");
        any.sort_unstable();
        assert_eq!(any, ["lo", "va", "vb"]);
        run("ip link set vc name any");
        assert_eq!(resolve_names(&["any"]), ["any"], "a name comes first");
        assert_eq!(interface("lo").link_layer, LinkLayer::Ethernet);
    });
}

#[test]
fn the_default_route_with_the_lowest_metric_wins_and_ipv4_before_ipv6() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        run("ip link add va type veth peer name vb");
        run("ip link set va up");
        run("ip link set vb up");
        run("ip -6 route add default dev vb metric 1");
        assert_eq!(resolve_names(&[]), ["vb"]);
        run("ip route add default dev va table 100");
        assert_eq!(resolve_names(&[]), ["vb"], "another table does not count");
        run("ip route add default dev vb metric 900");
        run("ip route add default dev va metric 100");
        assert_eq!(resolve_names(&[]), ["va"]);
        run("ip route del default dev va");
        run("ip route add unreachable default metric 5");
        assert_eq!(resolve_names(&[]), ["vb"]);
    });
}

#[test]
fn names_are_resolved_once_each_and_by_alternative_names() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        run("ip link add va type veth peer name vb");
        run("ip link property add dev va altname a-rather-long-alternative-name");
        let long = "a-rather-long-alternative-name";
        assert_eq!(resolve_names(&["vb", "va", "vb", long]), ["vb", "va"]);
        assert_eq!(interface(long).name, "va");
    });
}

#[test]
fn an_unknown_name_is_a_usage_error_that_lists_what_there_is() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        // Some kernels put the fallback devices of tunnels into each namespace.
        let there = nix::net::if_::if_nameindex().unwrap();
        let mut there = there
            .iter()
            .map(|interface| interface.name().to_str().unwrap().to_owned())
            .collect::<Vec<_>>();
        there.sort_unstable();
        for (name, expected) in [("eth7", "no interface"), ("sixteen-bytes-xx", "15 bytes")] {
            match resolve(&["lo".to_owned(), name.to_owned()]) {
                Err(ResolveError::Usage { message, hint }) => {
                    assert!(message.contains(expected), "{message}");
                    assert!(message.contains(name), "{message}");
                    let hint = hint.unwrap();
                    let listed = hint
                        .strip_prefix("the interfaces are ")
                        .unwrap()
                        .split(", ");
                    let mut listed = listed.map(str::to_owned).collect::<Vec<_>>();
                    listed.sort_unstable();
                    assert_eq!(listed, there);
                }
                other => panic!("{name}: {other:?}"),
            }
        }
    });
}

#[test]
fn a_tun_device_has_no_ethernet_header() {
    let namespace = need!(Namespace::new());
    let _tun = need!(namespace.enter(|| Tun::new("t")));
    let layer = namespace.enter(|| interface("t").link_layer);
    assert_eq!(layer, LinkLayer::None);
}

#[test]
fn up_down_rename_and_deletion_are_reported_in_order() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        run("ip link add va type veth peer name vb");
        let mut watch = watch("va");
        assert!(watch.events().unwrap().is_empty());
        run("ip link set va up");
        assert_eq!(next(&mut watch), [("va".to_owned(), LinkChange::Up)]);
        run("ip link set va down");
        assert_eq!(next(&mut watch), [("va".to_owned(), LinkChange::Down)]);
        run("ip link set va name vc");
        let to = "vc".to_owned();
        let renamed = LinkChange::Renamed { to };
        assert_eq!(next(&mut watch), [("va".to_owned(), renamed)]);
        run("ip link add other type veth peer name other2");
        run("ip link set vc mtu 1400");
        run("ip link del vb");
        assert_eq!(next(&mut watch), [("vc".to_owned(), LinkChange::Gone)]);
        assert!(watch.events().unwrap().is_empty());
    });
}

#[test]
fn a_move_to_another_namespace_is_distinguished_from_a_deletion() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        let elsewhere = Namespace::new().unwrap();
        run("ip link add va type veth peer name vb");
        let mut watch = watch("va");
        run(&format!("ip link set va netns {}", elsewhere.path()));
        assert_eq!(next(&mut watch), [("va".to_owned(), LinkChange::MovedAway)]);
    });
}

#[test]
fn an_overrun_of_the_socket_loses_no_final_state() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        run("ip link add va type veth peer name vb");
        run("ip link add vc type veth peer name vd");
        let mut watch = LinkWatch::new().unwrap();
        watch.follow(&[interface("va"), interface("vc")]);
        // About 1 KiB an announcement, against 208 KiB of socket buffer. Those that still fit show an
        // earlier state, which must not be taken for the final one.
        let flood = (0..600).map(|n| format!("link set vc mtu {}\n", 1300 + n % 2));
        // These changes are seen only if nothing is dropped.
        let fleeting = ["link set vc up\n", "link set vc down\n"];
        let last = ["link del va\n", "link set vc name ve\n"];
        let commands: String = flood
            .chain(fleeting.into_iter().chain(last).map(str::to_owned))
            .collect();
        let mut batch = NamedTempFile::new().unwrap();
        batch.write_all(commands.as_bytes()).unwrap();
        run(&format!("ip -batch {}", batch.path().display()));
        let to = "ve".to_owned();
        assert_eq!(
            next(&mut watch),
            [
                ("va".to_owned(), LinkChange::Gone),
                ("vc".to_owned(), LinkChange::Renamed { to })
            ]
        );
    });
}

#[test]
fn the_watch_over_interfaces_works_without_any_capability() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        run("ip link add va type veth peer name vb");
        let mut watch = watch("va");
        // This thread is made now, while it still gets the privilege to delete the interface.
        let (go, wait) = mpsc::channel::<()>();
        let deleter = thread::spawn(move || {
            wait.recv().unwrap();
            run("ip link del va");
        });
        // This thread drops all capabilities; the error is about the other threads of the test.
        let error = privileges::drop_all().unwrap_err();
        assert!(error.to_string().contains("thread"), "{error:#}");
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(
                status.contains(&format!("{set}:\t0000000000000000")),
                "{set}"
            );
        }
        assert!(status.contains("NoNewPrivs:\t1"));
        assert_eq!(privileges::missing(), ENOUGH);
        let explained = privileges::explain_eperm(privileges::RefusedCall::Bpf);
        assert!(explained.reason.starts_with("missing CAP_BPF"));
        assert_eq!(resolve_names(&["vb"]), ["vb"]);
        assert!(Snapshot::take(&interface("vb")).is_ok());
        go.send(()).unwrap();
        assert_eq!(next(&mut watch), [("va".to_owned(), LinkChange::Gone)]);
        deleter.join().unwrap();
    });
}

#[test]
fn a_capability_that_is_still_needed_can_be_kept() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        run("ip link add va type veth peer name vb");
        let _ = privileges::drop_all_but(&[Capability::CAP_NET_ADMIN]);
        assert_eq!(
            privileges::missing(),
            [Capability::CAP_BPF, Capability::CAP_PERFMON]
        );
        run("ip link del va");
    });
}

#[test]
fn capabilities_are_back_after_something_was_tried_without_them() {
    need!(match privileges::missing().as_slice() {
        [] => Ok(()),
        missing => Err(format!("missing {missing:?}")),
    });
    let missing = privileges::without_capabilities(privileges::missing).unwrap();
    assert_eq!(missing, ENOUGH);
    assert!(privileges::missing().is_empty());
}

#[test]
fn a_native_xdp_program_changes_the_veth_peer_and_its_end_changes_it_back() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        run("ip link add va type veth peer name vb");
        let interface = interface("va");
        let before = Snapshot::take(&interface).unwrap();
        assert!(!before.has_unseen_peer());
        let program = Foreign::attach(Hook::XdpNative, "va", XDP_PASS).unwrap();
        let during = Snapshot::take(&interface).unwrap();
        let changes = during.changes_since(&before);
        let peer = changes
            .iter()
            .find(|line| line.starts_with("vb: "))
            .unwrap();
        assert!(peer.contains("tx-tcp-segmentation on → off"), "{peer}");
        assert!(peer.contains("maximum MTU 65535 → 3"), "{peer}");
        drop(program);
        // A process that another test starts holds a copy of the link until it runs its program.
        wait_for("all is as it was", || {
            let left = Snapshot::take(&interface).unwrap().changes_since(&before);
            left.is_empty().then_some(())
        });
    });
}

#[test]
fn a_veth_peer_in_another_namespace_is_noticed_though_it_cannot_be_seen() {
    let namespace = need!(Namespace::new());
    namespace.enter(|| {
        let elsewhere = Namespace::new().unwrap();
        run("ip link add va type veth peer name vb");
        run(&format!("ip link set vb netns {}", elsewhere.path()));
        let snapshot = Snapshot::take(&interface("va")).unwrap();
        assert!(snapshot.has_unseen_peer());
        assert!(!Snapshot::take(&interface("lo")).unwrap().has_unseen_peer());
    });
}
