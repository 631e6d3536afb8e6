//! Valid and invalid expressions, and the nodes that valid ones are compiled to.

use super::*;

fn program(text: &str) -> CompiledExpression {
    match Expression::read(text) {
        Ok(expression) => expression.program,
        Err(wrong) => panic!("{text}: {wrong:?}"),
    }
}

/// Asserts that two expressions are compiled to the same program.
fn same(one: &str, other: &str) {
    assert_eq!(program(one), program(other), "'{one}' and '{other}'");
}

/// The part of the text that the error marks, and the message.
fn wrong(text: &str) -> (String, String) {
    let wrong = Expression::read(text).expect_err(text);
    let at = text.get(wrong.at).unwrap_or_default();
    (at.to_owned(), wrong.why)
}

#[test]
fn and_and_or_have_equal_precedence_and_not_has_a_higher_one() {
    same(
        "port 1 or port 2 and port 3",
        "(port 1 or port 2) and port 3",
    );
    same("not port 1 and port 2", "(not port 1) and port 2");
    same(
        "!port 1 && port 2 || port 3",
        "((not port 1) and port 2) or port 3",
    );
    same("not not port 1", "port 1");
    same("not (port 1 or port 2)", "not port 1 and not port 2");
}

#[test]
fn an_id_takes_the_qualifiers_before_it() {
    same("port 80 or 443", "port 80 or port 443");
    same(
        "src host 10.0.0.1 or 10.0.0.2",
        "src host 10.0.0.1 or src host 10.0.0.2",
    );
    same(
        "tcp dst port 80 and not 443",
        "dst port 80 and not dst port 443",
    );
    same(
        "host 10.0.0.1 and (port 80 or 81) or 10.0.0.2",
        "host 10.0.0.1 and (port 80 or port 81) or host 10.0.0.2",
    );
    same(
        "port (80 or not (81 and 82))",
        "port 80 or not (port 81 and port 82)",
    );
    same("src 10.0.0.1", "src host 10.0.0.1");
    for text in ["tcp and 80", "vlan 5 and 6", "less 80 or 90"] {
        let (at, why) = wrong(text);
        assert!(at.ends_with('0') || at == "6", "{at}");
        assert!(why.contains("none to repeat"), "{text}: {why}");
    }
}

#[test]
fn addresses_and_ports_are_those_of_tcpdump() {
    same("net 10", "net 10.0.0.0/8");
    same("net 10.1", "net 10.1.0.0 mask 255.255.0.0");
    same("host 10", "host 0.0.0.10");
    same("net 2001:db8::/128", "host 2001:db8::");
    same("portrange 90-80", "portrange 80-90");
    same("portrange 80", "port 80");
    same("port 010", "port 8");
    same("src or dst port 80", "port 80");
    same(
        "ether host 2:0:0:0:0:1",
        "ether src 02:00:00:00:00:01 or ether dst 0200.0000.0001",
    );
    same("broadcast", "ether dst ff:ff:ff:ff:ff:ff");
    same("ip and host 10.0.0.1", "ip host 10.0.0.1");
    same("ip6 proto \\ipv6-frag", "ip6[6] = 44");
    same("proto \\ah", "ip6 proto 51");
    same("ah or port 80", "ip6[6] = 51 or port 80");
}

#[test]
fn arithmetic_binds_as_in_libpcap() {
    same("tcp[0] + tcp[1] * 2 = 3", "tcp[0] + (tcp[1] * 2) = 3");
    same("tcp[0] & 3 | 4 = 5", "(tcp[0] & 3) | 4 = 5");
    same("tcp[0] << 1 + 1 = 5", "tcp[0] << 2 = 5");
    same("tcp[0] - 1 - 1 = 5", "(tcp[0] - 1) - 1 = 5");
    // `%` and `^` have no precedence there: they take all that is to their right.
    same("tcp[0] % 3 ^ 1 = 2", "tcp[0] % (3 ^ 1) = 2");
    same("tcp[0] * 2 ^ 1 = 2", "tcp[0] * (2 ^ 1) = 2");
    same("tcp[13] = -1", "tcp[13] = 0xffffffff");
    same("5 < tcp[0]", "tcp[0] > 5");
    same(
        "tcp[tcpflags] & (tcp-syn|tcp-ack) != 0",
        "tcp[13] & 0x12 != 0",
    );
}

#[test]
fn a_condition_that_is_always_true_needs_no_test() {
    for text in [
        "tcp",
        "",
        "  ",
        "ip or ip6",
        "not udp",
        "not (arp or icmp)",
        "proto 6",
        "net 0.0.0.0/0 or ip6",
        "1 = 1",
        "port 80 or tcp",
    ] {
        let program = program(text);
        assert_eq!(program.nodes, [], "{text}");
        assert_eq!(
            (program.start_v4, program.start_v6),
            (Target::Accept, Target::Accept),
            "{text}"
        );
    }
    let ip = program("ip");
    assert_eq!((ip.start_v4, ip.start_v6), (Target::Accept, Target::Reject));
}

#[test]
fn a_condition_that_never_matches_is_an_error_only_if_nothing_else_can_match() {
    same("icmp or port 80", "port 80");
    same("port 80 or (udp and port 53)", "port 80");
    same("not udp and port 80", "port 80");
    for text in [
        "udp",
        "port 80 and udp",
        "udp or icmp",
        "(udp or tcp) and udp",
    ] {
        let (at, why) = wrong(text);
        assert_eq!(at, "udp", "{text}");
        assert!(why.contains("never matches"), "{text}: {why}");
    }
}

#[test]
fn nodes_lead_only_to_later_ones_and_are_shared() {
    let text = "(port 80 or host 10.0.0.1) and tcp[13] & 2 != 0 or net 2001:db8::/32";
    let program = program(text);
    for (number, node) in program.nodes.iter().enumerate() {
        for target in [node.passes, node.fails] {
            if let Target::Node(next) = target {
                assert!(next > number && next < program.nodes.len());
            }
        }
    }
    // Both families test the ports, and then continue with different nodes.
    assert_eq!(program.nodes.len(), 6, "{:?}", program.nodes);
}

#[test]
fn many_ports_become_a_set() {
    let many = (1..1000).map(|port| port.to_string()).collect::<Vec<_>>();
    let program = program(&format!("port {}", many.join(" or ")));
    assert_eq!((program.nodes.len(), program.port_sets.len()), (2, 1));
    let bits = program.port_sets[0].iter().map(|word| word.count_ones());
    assert_eq!(bits.sum::<u32>(), 999);
    same(
        "not port 1 and not port 2 and not port 3 and not port 4",
        "not (port 1 or 2 or 3 or 4)",
    );
}

#[test]
fn a_value_that_is_compared_often_is_loaded_once() {
    let list = |count: u32, one: &str, joint: &str| {
        let all = (0..count).map(|n| one.replace('#', &n.to_string()));
        all.collect::<Vec<_>>().join(joint)
    };
    for (text, nodes, port_sets, address_sets) in [
        (list(20, "tcp[2:2] = #", " or "), 2, 1, 0),
        (list(20, "tcp[2:2] & 0xff > #", " and "), 2, 1, 0),
        (list(20, "tcp[4:4] = #", " or "), 2, 0, 1),
        (list(20, "not tcp[4:4] = #", " and "), 2, 0, 1),
        (list(20, "tcp[4:4] > #", " or "), 20, 0, 0),
        (list(20, "len = #", " or "), 20, 0, 0),
        (list(20, "tcp[#] = 0", " or "), 20, 0, 0),
    ] {
        let program = program(&text);
        let sets = (program.port_sets.len(), program.address_sets.len());
        assert_eq!(program.nodes.len(), nodes, "{text}");
        assert_eq!(sets, (port_sets, address_sets), "{text}");
        let is_load = |node: &&Node| matches!(node.source, Source::Load { .. });
        let loads = program.nodes.iter().filter(is_load).count();
        assert!(loads < 2 || text.starts_with("tcp[0]"), "{text}");
    }
}

#[test]
fn an_error_says_which_part_of_the_text_is_wrong() {
    for (text, place, reason) in [
        ("port 80 and udp", "udp", "only TCP"),
        ("udp port 53", "udp port 53", "only TCP"),
        ("arp", "arp", "only TCP"),
        ("udp[8] = 1", "udp[8] = 1", "only TCP"),
        ("ip proto 17", "17", "only TCP"),
        ("tcp or proto nonsense", "nonsense", "/etc/protocols"),
        ("tcp or ether proto nonsense", "nonsense", "EtherType"),
        ("ip[0] = ip6[0]", "ip[0] = ip6[0]", "both IPv4 and IPv6"),
        ("ip and ip6", "ip and ip6", "no packet can match"),
        ("host example.org", "example.org", "not looked up"),
        ("port nonsense", "nonsense", "no TCP service"),
        ("port 70000", "70000", "65535"),
        ("host 10.0.0.0/8", "10.0.0.0/8", "'net'"),
        ("net 10.0.0.1/8", "10.0.0.1/8", "bits set"),
        ("net 10.0.0.0/33", "10.0.0.0/33", "32 bits"),
        ("net 2001:db8::/129", "2001:db8::/129", "128 bits"),
        ("tcp host 10.0.0.1", "10.0.0.1", "'tcp' can't"),
        ("ip6 host 10.0.0.1", "10.0.0.1", "'ip6' can't"),
        ("ip port 80", "80", "'ip' can't"),
        ("10.0.0.1", "10.0.0.1", "qualifier"),
        ("port 80 443", "443", "'and' or 'or'"),
        ("nonsense", "nonsense", "not a word"),
        ("port 80 and (port 443", "", "')' is missing"),
        ("port 80 and", "", "condition is missing"),
        ("and port 80", "and", "missing before"),
        ("port 80)", ")", "no '('"),
        ("port 80,443", ",", "80 or 443"),
        ("tcp[13", "", "']' is missing"),
        ("tcp[13:3] = 1", "3", "1, 2 or 4"),
        ("tcp[13] = 1 / 0", "1 / 0", "zero"),
        ("tcp[13] << 32 = 1", "tcp[13] << 32", "31 bits"),
        ("tcp[13]", "", "comparison"),
        ("vlan 5000", "vlan 5000", "4095"),
        ("vlan and vlan and vlan", "vlan", "third"),
        ("mpls 5", "mpls", "not supported"),
        ("ip6 protochain 51", "51", "TCP only"),
        ("protochain \\ipv6-frag", "\\ipv6-frag", "TCP only"),
        ("ip proto \\ah", "\\ah", "only TCP"),
        ("icmp[icmptype] = 8", "icmptype", "not supported"),
        ("gateway router", "gateway", "not supported"),
        ("ip broadcast", "ip broadcast", "mask"),
        ("ip proto tcp", "tcp", "keyword"),
        ("port 80 # comment", "#", "no meaning"),
        ("src src host 10.0.0.1", "src", "missing"),
    ] {
        let (at, why) = wrong(text);
        assert_eq!(at, place, "{text}: {why}");
        assert!(why.contains(reason), "{text}: {why}");
    }
}

#[test]
fn no_text_makes_the_parser_panic_or_overflow_the_stack() {
    let deep =
        |open: &str, close: &str| format!("{}port 80{}", open.repeat(5000), close.repeat(5000));
    for text in [
        deep("(", ")"),
        deep("not ", ""),
        format!("tcp[{}0{}] = 1", "tcp[".repeat(5000), "]".repeat(5000)),
        format!("1{} = 1", " + 1".repeat(5000)),
        format!("{}1 = 1", "-".repeat(5000)),
        format!("port 1{}", " or 2".repeat(5000)),
        format!("host 10.0.0.1{}", " or src host 10.0.0.1".repeat(5000)),
        format!("port {}", "(".repeat(5000)),
        "ü".to_owned(),
        "port 80 and ü".to_owned(),
        "host \u{202e}x".to_owned(),
        "\\".to_owned(),
    ] {
        if let Err(failure) = Expression::new(&text) {
            assert_eq!(failure.excerpt.len(), 2);
            assert!(failure.excerpt.iter().all(|line| line.len() < 300));
        }
    }
}

#[test]
fn the_marker_is_below_the_wrong_part() {
    let excerpt_of = |text: &str| Expression::new(text).unwrap_err().excerpt;
    assert_eq!(
        excerpt_of("port 80 and udp"),
        ["  port 80 and udp", "              ^^^"]
    );
    assert_eq!(
        excerpt_of("port 80 and"),
        ["  port 80 and", "             ^"]
    );
    let range = Expression::new("port 80-90").unwrap_err();
    assert_eq!(range.hint.unwrap(), "for a range: portrange 80-90");
    let short = Expression::new("src net 10/8").unwrap_err();
    assert_eq!(short.hint.unwrap(), "write 10.0.0.0/ for 10/");
    let long = format!("port 80{} and udp", " and host 10.0.0.1".repeat(100));
    let [text, pointer] = excerpt_of(&long).try_into().unwrap();
    assert_eq!(&text[pointer.find('^').unwrap()..], "udp");
    assert!(text.len() < 150);
}

#[test]
fn it_is_known_whether_an_expression_needs_the_direction() {
    for (text, needs) in [
        ("inbound", true),
        ("port 80 and not outbound", true),
        ("port 80", false),
    ] {
        assert_eq!(
            Expression::read(text).unwrap().needs_direction,
            needs,
            "{text}"
        );
    }
}

#[test]
fn a_compiled_expression_is_described_in_words() {
    let described = |text: &str| {
        let lines = Expression::read(text).unwrap().describe();
        lines.into_iter().map(|(_, line)| line).collect::<Vec<_>>()
    };
    assert_eq!(
        described("port 80 and not net 192.0.2.0/24"),
        [
            "begins with test 0",
            "begins with test 2",
            "0: source port or destination port = 80: 1, else no match",
            "1: source or destination in 192.0.2.0/24: no match, else match",
            "2: source port or destination port = 80: match, else no match",
        ]
    );
    assert_eq!(
        described("net 0.0.0.1 mask 0.0.0.255"),
        [
            "begins with test 0",
            "no packet matches",
            "0: source or destination & 0xff = 1: match, else no match",
        ]
    );
    assert_eq!(
        described("ip and tcp[tcp[12] >> 2:2] & 0xff00 != 0 and len > 100"),
        [
            "begins with test 0",
            "no packet matches",
            "0: t0 = tcp[12:1], then 1",
            "1: t0 = t0 >> 2, then 2",
            "2: tcp[t0:2] & 0xff00 = 0: no match, else 3",
            "3: length >= 101: match, else no match",
        ]
    );
}
