//! Real packets between network namespaces.

#![allow(clippy::unwrap_used, clippy::panic)]

mod common;

use common::{Pair, SERVER4, Tool, need};

#[test]
fn a_thousand_syns_are_a_thousand_in_every_mode_and_seen_live_in_a_pipe() {
    let pair = need!(Pair::new());
    for mode in ["native", "generic", "tc"] {
        let args = ["syn-count", "vs", "--json", "-i", "0.1", "--mode", mode];
        let tool = Tool::start_in(&pair.server, &args);
        pair.refused_connects((SERVER4, 80).into(), 1000);
        tool.syn_total(1000);
        let output = tool.stop();
        assert_eq!(output.code(), 0, "{output:#?}");
        let summary = output.summary();
        assert_eq!(summary["syn_total"], 1000, "{mode}: {summary}");
        assert_eq!(summary["matched"], 1000, "{mode}: {summary}");
    }
}
