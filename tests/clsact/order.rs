//! Our filter comes first and passes every packet on.

use tcpinspect::domain::Direction;

use super::bpf::{Counter, OK, SHOT, UNSPEC};
use super::net::{Receiver, V0, V1, all_there, in_namespace, index, send, state};
use crate::common::{need, run, try_run};

#[test]
fn packets_go_on_to_the_filters_after_it_and_to_the_host() {
    need!(in_namespace(|| {
        run(&format!("tc qdisc add dev {V0} clsact"));
        let (next, last) = (Counter::new(UNSPEC), Counter::new(OK));
        next.attach_foreign(index(V0), Direction::Ingress, 300, 1);
        last.attach_foreign(index(V0), Direction::Ingress, 400, 1);
        let ours = Counter::new(UNSPEC);
        let receiver = Receiver::new();
        let clsact = ours.attach(V0, Direction::Ingress);
        send(20);
        for counter in [&ours, &next, &last] {
            counter.expect(20);
        }
        assert_eq!(receiver.count(), 20);
        clsact.detach().unwrap();
        send(5);
        next.expect(25);
        ours.expect(20);
        assert_eq!(receiver.count(), 5);
    }));
}

/// Our filter must see the packets that a filter at this priority drops, in both directions.
fn sees_what_is_dropped(priority: u32) {
    for (interface, direction) in [(V0, Direction::Ingress), (V1, Direction::Egress)] {
        run(&format!("tc qdisc add dev {interface} clsact"));
        let drops = Counter::new(SHOT);
        drops.attach_foreign(index(interface), direction, priority, 1);
        let ours = Counter::new(UNSPEC);
        let clsact = ours.attach(interface, direction);
        assert_eq!(clsact.notes(), [""; 0], "priority {priority}");
        send(10);
        ours.expect(10);
        drops.expect(10);
        clsact.detach().unwrap();
        run(&format!("tc qdisc del dev {interface} clsact"));
    }
}

#[test]
fn our_filter_sees_what_others_drop_whatever_their_priority() {
    need!(in_namespace(|| {
        for priority in [1, 2, 36, 37, 38, 100, 0x7fff, 0x8000, 49_152, 65_535, 0] {
            sees_what_is_dropped(priority);
        }
    }));
}

#[test]
fn the_priority_that_the_kernel_chooses_would_not_come_first() {
    need!(in_namespace(|| {
        run(&format!("tc qdisc add dev {V0} clsact"));
        let (first, automatic) = (Counter::new(SHOT), Counter::new(UNSPEC));
        first.attach_foreign(index(V0), Direction::Ingress, 10, 1);
        automatic.attach_foreign(index(V0), Direction::Ingress, 0, 1);
        send(4);
        first.expect(4);
        automatic.expect(0);
        assert!(state(V0).contains("pref 49152 bpf"));
    }));
}

#[test]
fn a_filter_that_shares_priority_1_stays_when_the_other_one_is_replaced() {
    need!(in_namespace(|| {
        run(&format!("tc qdisc add dev {V0} clsact"));
        let drops = Counter::new(SHOT);
        drops.attach_foreign(index(V0), Direction::Ingress, 1, 1);
        let before = state(V0);
        let ours = Counter::new(UNSPEC);
        let clsact = ours.attach(V0, Direction::Ingress);
        // Another program replaces its filter, as a daemon does when it is restarted.
        run(&format!(
            "tc filter replace dev {V0} ingress pref 1 handle 1 bpf bytecode \
                 1,6~0~0~0"
        ));
        send(6);
        ours.expect(6);
        drops.expect(0);
        clsact.detach().unwrap();
        assert_eq!(state(V0).matches("pref 1 ").count(), 2, "{}", state(V0));
        assert!(before.contains("pref 1 "));
    }));
}

#[test]
fn a_notice_says_when_another_filter_comes_first() {
    let lacking = need!(in_namespace(|| {
        let mut lacking = Vec::new();
        run(&format!("tc qdisc add dev {V0} clsact"));
        for first in [
            "protocol ip pref 1 bpf bytecode 1,6~0~0~0",
            "pref 1 u32 match u32 0 0 flowid 1:1",
            "pref 1 matchall action continue",
        ] {
            if let Err(why) = try_run(&format!("tc filter add dev {V0} ingress {first}")) {
                lacking.push(why);
                continue;
            }
            let before = state(V0);
            let ours = Counter::new(UNSPEC);
            let clsact = ours.attach(V0, Direction::Ingress);
            let notes = clsact.notes().join("; ");
            assert!(
                notes.contains("ingress filter") && notes.contains("first"),
                "{notes}"
            );
            clsact.detach().unwrap();
            assert_eq!(state(V0), before);
            run(&format!("tc filter del dev {V0} ingress"));
        }
        lacking
    }));
    need!(all_there(&lacking));
}

#[test]
fn filters_without_a_priority_that_are_added_later_come_after_it() {
    need!(in_namespace(|| {
        let ours = Counter::new(UNSPEC);
        let _clsact = ours.attach(V0, Direction::Ingress);
        let drops = Counter::new(SHOT);
        drops.attach_foreign(index(V0), Direction::Ingress, 0, 0);
        send(8);
        ours.expect(8);
        drops.expect(8);
    }));
}

#[test]
fn a_later_filter_with_a_handle_of_its_own_does_not_replace_ours() {
    need!(in_namespace(|| {
        let ours = Counter::new(UNSPEC);
        let clsact = ours.attach(V0, Direction::Ingress);
        run(&format!(
            "tc filter replace dev {V0} ingress pref 37 handle 1 bpf bytecode 1,6~0~0~0"
        ));
        assert!(clsact.state().unwrap().is_attached());
        clsact.detach().unwrap();
        assert!(state(V0).contains("pref 37 bpf chain 0 handle 0x1 "));
    }));
}
