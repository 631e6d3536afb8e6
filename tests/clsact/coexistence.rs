//! Qdiscs and filters of other programs stay as they are.

use tcpinspect::attach::clsact::{Clsact, remove_stale};
use tcpinspect::domain::Direction;

use super::bpf::{Counter, OK, UNSPEC};
use super::net::{V0, all_there, in_namespace, index, our_filters, state, state_of_others};
use crate::common::{need, run, try_run};

const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];

/// Adds filters of all kinds that the kernel has. Returns the errors of the others.
fn add_filters() -> Vec<String> {
    let mut lacking = Vec::new();
    let kinds = [
        "pref 20 bpf bytecode 1,6~0~0~0",
        "bpf bytecode 1,6~0~0~0 flowid 1:1",
        "protocol ip pref 21 u32 match ip dport 9 0xffff flowid 1:2",
        "chain 3 pref 4 u32 match u32 0 0 flowid 1:2",
        "pref 22 matchall action ok",
        "protocol ip pref 23 flower ip_proto tcp dst_port 80 action ok",
        "protocol ip flower ip_proto udp dst_port 80 action drop",
    ];
    for direction in ["ingress", "egress"] {
        for kind in kinds {
            let command = format!("tc filter add dev {V0} {direction} {kind}");
            if let Err(why) = try_run(&command) {
                let missing = ["not found", "Failed to load TC action", "No such file"];
                assert!(missing.iter().any(|text| why.contains(text)), "{why}");
                lacking.push(why);
            }
        }
    }
    lacking
}

#[test]
fn filters_and_qdiscs_of_others_are_the_same_before_during_and_after() {
    let lacking = need!(in_namespace(|| {
        run(&format!(
            "tc qdisc add dev {V0} root handle 5: pfifo limit 77"
        ));
        run(&format!("tc qdisc add dev {V0} clsact"));
        let lacking = add_filters();
        let foreign = Counter::new(UNSPEC);
        foreign.attach_foreign(index(V0), Direction::Ingress, 50, 1);
        foreign.attach_foreign(index(V0), Direction::Egress, 50, 1);
        let before = state(V0);

        let counter = Counter::new(UNSPEC);
        let attached = DIRECTIONS.map(|direction| counter.attach(V0, direction));
        assert_eq!(our_filters(V0).len(), 2, "{}", state(V0));
        assert!(our_filters(V0)[0].contains("direct-action"));
        assert_eq!(state_of_others(V0, Some(19)), before);
        assert!(remove_stale(index(V0)).unwrap().is_empty());
        for clsact in attached {
            assert_eq!(clsact.notes(), [""; 0]);
            clsact.detach().unwrap();
        }
        assert_eq!(state(V0), before);
        lacking
    }));
    need!(all_there(&lacking));
}

#[test]
fn an_empty_qdisc_of_another_program_stays() {
    need!(in_namespace(|| {
        run(&format!("tc qdisc add dev {V0} clsact"));
        let before = state(V0);
        drop(Counter::new(UNSPEC).attach(V0, Direction::Ingress));
        assert_eq!(state(V0), before);
        assert!(before.contains("clsact"));
    }));
}

#[test]
fn nothing_is_left_where_nothing_was() {
    need!(in_namespace(|| {
        let before = state(V0);
        let counter = Counter::new(UNSPEC);
        let [ingress, egress] = DIRECTIONS.map(|direction| counter.attach(V0, direction));
        assert!(our_filters(V0).iter().all(|line| line.contains("+qdisc:")));
        drop(ingress);
        assert_eq!(our_filters(V0).len(), 1);
        drop(egress);
        assert_eq!(state(V0), before);
        assert!(!before.contains("clsact"));
    }));
}

#[test]
fn our_qdisc_stays_while_others_use_it() {
    need!(in_namespace(|| {
        let counter = Counter::new(UNSPEC);
        let clsact = counter.attach(V0, Direction::Ingress);
        let foreign = Counter::new(OK);
        foreign.attach_foreign(index(V0), Direction::Egress, 7, 1);
        let show = format!("tc filter show dev {V0} egress");
        let during = run(&show);
        clsact.detach().unwrap();
        assert_eq!(run(&show), during);
        assert!(during.contains("pref 7 bpf"));
        assert!(our_filters(V0).is_empty());
    }));
}

#[test]
fn a_chain_of_another_program_counts_as_use() {
    need!(in_namespace(|| {
        let counter = Counter::new(UNSPEC);
        let clsact = counter.attach(V0, Direction::Ingress);
        run(&format!("tc chain add dev {V0} egress chain 6"));
        clsact.detach().unwrap();
        assert!(state(V0).contains("chain parent"), "{}", state(V0));
        run(&format!("tc chain del dev {V0} egress chain 6"));

        // Without a filter, nothing says who made the qdisc, so the next instance does not take it over.
        drop(counter.attach(V0, Direction::Egress));
        assert!(state(V0).contains("clsact"));
    }));
}

#[test]
fn an_ingress_qdisc_serves_ingress_only() {
    need!(in_namespace(|| {
        run(&format!("tc qdisc add dev {V0} ingress"));
        run(&format!(
            "tc filter add dev {V0} ingress pref 5 bpf bytecode 1,6~0~0~0"
        ));
        let before = state(V0);
        let counter = Counter::new(UNSPEC);
        let error = Clsact::attach(counter.fd(), "monitor", index(V0), Direction::Egress)
            .err()
            .unwrap();
        assert!(
            format!("{error:#}").contains("another program's ingress qdisc"),
            "{error:#}"
        );
        assert_eq!(state(V0), before);

        let clsact = counter.attach(V0, Direction::Ingress);
        super::net::send(3);
        counter.expect(3);
        clsact.detach().unwrap();
        assert_eq!(state(V0), before);
    }));
}

#[test]
fn a_shared_block_is_refused() {
    need!(in_namespace(|| {
        run(&format!(
            "tc qdisc add dev {V0} ingress_block 22 egress_block 23 clsact"
        ));
        let before = state(V0);
        for direction in DIRECTIONS {
            let counter = Counter::new(UNSPEC);
            let result = Clsact::attach(counter.fd(), "monitor", index(V0), direction);
            let error = format!("{:#}", result.err().unwrap());
            assert!(error.contains("in a shared block"), "{error}");
        }
        assert_eq!(state(V0), before);
    }));
}

#[test]
fn a_failure_leaves_nothing() {
    need!(in_namespace(|| {
        let before = state(V0);
        let xdp = Counter::xdp();
        let result = Clsact::attach(xdp.fd(), "monitor", index(V0), Direction::Ingress);
        let error = result.err().unwrap();
        assert_eq!(
            format!("{error:#}"),
            "failed to add a filter: EINVAL: Invalid argument"
        );
        assert_eq!(state(V0), before);

        let counter = Counter::new(UNSPEC);
        let result = Clsact::attach(counter.fd(), "monitor", 999, Direction::Ingress);
        let error = result.err().unwrap();
        assert_eq!(
            error.downcast_ref(),
            Some(&nix::errno::Errno::ENODEV),
            "{error:#}"
        );
        assert!(remove_stale(999).unwrap().is_empty());
    }));
}

#[test]
fn a_filter_that_another_program_removed_is_noticed_and_not_an_error() {
    need!(in_namespace(|| {
        let counter = Counter::new(UNSPEC);
        let clsact = counter.attach(V0, Direction::Ingress);
        assert!(clsact.state().unwrap().is_attached());
        run(&format!("tc qdisc del dev {V0} clsact"));
        assert!(!clsact.state().unwrap().is_attached());
        run(&format!("tc qdisc add dev {V0} clsact"));
        clsact.detach().unwrap();
        assert!(state(V0).contains("clsact"));

        let clsact = counter.attach(V0, Direction::Ingress);
        run(&format!("ip link del {V0}"));
        assert!(!clsact.state().unwrap().is_attached());
        clsact.detach().unwrap();
    }));
}
