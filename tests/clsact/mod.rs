//! Attaching with clsact in network namespaces, beside other filters, qdiscs
//! and instances.

mod bpf;
mod coexistence;
mod instance;
mod lifetime;
mod net;
mod order;

use crate::common::need;

/// The name of the test below, which is also what an instance runs.
const INSTANCE: &str = "clsact::an_instance_attaches_and_leaves_when_its_input_ends";

#[test]
fn an_instance_attaches_and_leaves_when_its_input_ends() {
    if let Some(directions) = instance::asked() {
        return instance::main(&directions);
    }
    need!(net::in_namespace(|| {
        let instance = instance::Instance::start("egress");
        assert_eq!(instance.notes, "");
        assert_eq!(net::our_filters(net::V0).len(), 1);
        instance.leave();
        assert!(net::our_filters(net::V0).is_empty());
    }));
}
