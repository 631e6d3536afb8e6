//! Why segments are dropped, attempts fail and connections are reset: the kernel's reasons, our own,
//! and those that follow from the kernel function that drops a segment.

use crate::skel::AcceptReason;

/// Names of the reasons that are not the kernel's, from [`AcceptReason::REASON_OURS`] on.
const OURS: [&str; 10] = [
    "no_listener",
    "accept_queue_full",
    "syn_queue_full",
    "no_route_back",
    "no_final_ack",
    "peer_reset",
    "listener_closed",
    "table_full",
    "time_wait",
    "not_unicast",
];
const _: () =
    assert!(OURS.len() as u32 == AcceptReason::REASON_END.0 - AcceptReason::REASON_OURS.0);

/// The name of a reason that is not the kernel's.
pub const fn name_of_ours(reason: AcceptReason) -> &'static str {
    OURS[(reason.0 - AcceptReason::REASON_OURS.0) as usize]
}

/// Why a kernel function drops segments. It is inferred from the function where the kernel gives no
/// reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// A rule of netfilter.
    NetfilterDrop,
    /// An XDP program.
    Xdp,
    /// A queueing discipline.
    QdiscDrop,
    /// A TC filter at ingress.
    TcIngress,
    /// A malformed IP header.
    IpHeader,
    /// A source address that can't be on the other side of the interface.
    MartianSource,
    /// The next hop did not answer ARP or neighbour discovery.
    NeighFailed,
}

impl DropReason {
    /// The name in JSON, which is the kernel's where it has the reason.
    pub fn name(self) -> &'static str {
        match self {
            Self::NetfilterDrop => "netfilter_drop",
            Self::Xdp => "xdp",
            Self::QdiscDrop => "qdisc_drop",
            Self::TcIngress => "tc_ingress",
            Self::IpHeader => "ip_inhdr",
            Self::MartianSource => "martian_source",
            Self::NeighFailed => "neigh_failed",
        }
    }
}

/// A hook of netfilter; nft(8) describes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetfilterHook {
    Ingress,
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Egress,
}

impl NetfilterHook {
    /// The name in JSON, as in nft(8).
    pub fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Prerouting => "prerouting",
            Self::Input => "input",
            Self::Forward => "forward",
            Self::Output => "output",
            Self::Postrouting => "postrouting",
            Self::Egress => "egress",
        }
    }
}

/// Kernel functions, and the reason why they drop segments, for drops without a kernel reason.
const PLACES: [(&str, DropReason); 14] = [
    ("nf_hook_slow", DropReason::NetfilterDrop),
    ("nf_hook_slow_list", DropReason::NetfilterDrop),
    ("nft_do_chain", DropReason::NetfilterDrop),
    ("ipt_do_table", DropReason::NetfilterDrop),
    ("ip6t_do_table", DropReason::NetfilterDrop),
    ("do_xdp_generic", DropReason::Xdp),
    ("veth_xdp_rcv_skb", DropReason::Xdp),
    ("netem_enqueue", DropReason::QdiscDrop),
    ("__dev_queue_xmit", DropReason::QdiscDrop),
    ("sch_handle_ingress", DropReason::TcIngress),
    ("__netif_receive_skb_core", DropReason::TcIngress),
    ("ip_rcv_core", DropReason::IpHeader),
    ("ip_handle_martian_source", DropReason::MartianSource),
    ("neigh_invalidate", DropReason::NeighFailed),
];

/// Kernel functions that call netfilter, and the hook that they call it at.
const HOOKS: [(&str, NetfilterHook); 23] = [
    ("__netif_receive_skb_core", NetfilterHook::Ingress),
    ("ip_rcv", NetfilterHook::Prerouting),
    ("ip_sublist_rcv", NetfilterHook::Prerouting),
    ("ipv6_rcv", NetfilterHook::Prerouting),
    ("ip6_sublist_rcv", NetfilterHook::Prerouting),
    ("br_handle_frame", NetfilterHook::Prerouting),
    ("ip_local_deliver", NetfilterHook::Input),
    ("ip6_input", NetfilterHook::Input),
    ("br_pass_frame_up", NetfilterHook::Input),
    ("ip_forward", NetfilterHook::Forward),
    ("ip6_forward", NetfilterHook::Forward),
    ("__br_forward", NetfilterHook::Forward),
    ("__ip_local_out", NetfilterHook::Output),
    ("__ip6_local_out", NetfilterHook::Output),
    ("ip6_xmit", NetfilterHook::Output),
    ("ip_output", NetfilterHook::Postrouting),
    ("ip_mc_output", NetfilterHook::Postrouting),
    ("ip6_output", NetfilterHook::Postrouting),
    ("br_forward_finish", NetfilterHook::Postrouting),
    ("__dev_queue_xmit", NetfilterHook::Egress),
    ("ip_list_rcv", NetfilterHook::Prerouting),
    ("ipv6_list_rcv", NetfilterHook::Prerouting),
    ("__netif_receive_skb_list_core", NetfilterHook::Ingress),
];

fn find<T: Copy>(functions: &[(&str, T)], function: &str) -> Option<T> {
    // A variant that the compiler has made has a suffix, such as `.constprop.0`.
    let function = function.split('.').next()?;
    let found = functions.iter().find(|(known, _)| *known == function);
    found.map(|(_, value)| *value)
}

/// The reason why a function drops segments.
pub fn reason_of_place(place: &str) -> Option<DropReason> {
    find(&PLACES, place)
}

/// The hook of netfilter that a function calls.
pub fn hook_of_caller(caller: &str) -> Option<NetfilterHook> {
    find(&HOOKS, caller)
}

/// The names of a kernel enum of reasons, and of ours.
#[derive(Debug, Default)]
pub struct Reasons {
    /// By number, in lower case.
    kernel: Vec<Option<String>>,
    /// The number of `SKB_CONSUMED`, which is not a reason for a drop and has no prefix; 0: there is none.
    pub consumed: u32,
}

impl Reasons {
    /// Takes the names and values of an enum, whose reasons begin with this prefix.
    pub fn new(enumerators: &[(String, u32)], prefix: &str) -> Self {
        let (mut kernel, mut consumed) = (Vec::new(), 0);
        for (name, value) in enumerators {
            if name == "SKB_CONSUMED" {
                consumed = *value;
            }
            let (Some(name), Ok(at)) = (name.strip_prefix(prefix), usize::try_from(*value)) else {
                continue;
            };
            // Its last values are limits and masks, not reasons.
            if *value >= AcceptReason::REASON_OURS.0 || name == "MAX" {
                continue;
            }
            if kernel.len() <= at {
                kernel.resize(at + 1, None);
            }
            kernel[at] = Some(name.to_ascii_lowercase());
        }
        Self { kernel, consumed }
    }

    /// Whether the kernel has the enum, and so gives reasons.
    pub fn are_known(&self) -> bool {
        !self.kernel.is_empty()
    }

    /// The number of the kernel reason of this name.
    pub fn number(&self, name: &str) -> Option<u32> {
        let mut names = self.kernel.iter();
        let at = names.position(|known| known.as_deref() == Some(name))?;
        u32::try_from(at).ok()
    }

    /// The name of a reason; `None` if it is unknown or "not specified".
    pub fn name(&self, number: u32) -> Option<&str> {
        if let Some(at) = number.checked_sub(AcceptReason::REASON_OURS.0) {
            return OURS.get(at as usize).copied();
        }
        let name = self.kernel.get(number as usize)?.as_deref()?;
        (name != "not_specified").then_some(name)
    }

    /// Why something happened, and how that is known: by the number of a reason, else by the kernel
    /// function that dropped the segment.
    pub fn explain(&self, number: u32, place: Option<&str>) -> (Option<&str>, ReasonFrom) {
        match (self.name(number), place.and_then(reason_of_place)) {
            (Some(ours), _) if Self::is_ours(number) => (Some(ours), ReasonFrom::Inferred),
            (Some(given), _) => (Some(given), ReasonFrom::Kernel),
            (None, Some(inferred)) => (Some(inferred.name()), ReasonFrom::Inferred),
            (None, None) => (None, ReasonFrom::Unknown),
        }
    }

    /// The reason of this name among ours.
    pub fn ours(name: &str) -> Option<AcceptReason> {
        let at = OURS.iter().position(|known| *known == name)?;
        let number = AcceptReason::REASON_OURS.0 + u32::try_from(at).ok()?;
        Some(AcceptReason(number))
    }

    fn is_ours(number: u32) -> bool {
        number >= AcceptReason::REASON_OURS.0
    }

    /// All names that `--reason` accepts.
    pub fn names(&self) -> impl Iterator<Item = &str> + Clone {
        let kernel = self.kernel.iter().filter_map(Option::as_deref);
        kernel
            .chain(OURS)
            .chain(PLACES.map(|(_, reason)| reason.name()))
    }
}

/// Where the reason of a failure comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasonFrom {
    /// The kernel gave the reason.
    Kernel,
    /// The reason is inferred from what was seen.
    Inferred,
    /// No reason is known.
    Unknown,
}

impl ReasonFrom {
    /// The name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Inferred => "inferred",
            Self::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_have_the_names_of_the_running_kernel_in_lower_case() {
        let kernel = [
            ("SKB_NOT_DROPPED_YET", 0),
            ("SKB_CONSUMED", 1),
            ("SKB_DROP_REASON_NOT_SPECIFIED", 2),
            ("SKB_DROP_REASON_NO_SOCKET", 3),
            ("SKB_DROP_REASON_MAX", 90),
            ("SKB_DROP_REASON_SUBSYS_MASK", 0xffff_0000),
        ];
        let kernel = kernel.map(|(name, value)| (name.to_owned(), value));
        let names = Reasons::new(&kernel, "SKB_DROP_REASON_");
        let found = [0, 1, 2, 3, 90, 256, u32::MAX].map(|number| names.name(number));
        let no_socket = Some("no_socket");
        let ours = Some("no_listener");
        assert_eq!(found, [None, None, None, no_socket, None, ours, None]);
        let numbers = ["no_socket", "not_specified", "other", "max"].map(|name| names.number(name));
        assert_eq!(numbers, [Some(3), Some(2), None, None]);
        assert_eq!(names.consumed, 1);
        assert_eq!(Reasons::default().consumed, 0);
    }

    #[test]
    fn a_place_implies_the_reason_whatever_suffix_the_compiler_gave_it() {
        let reasons = ["nf_hook_slow", "nf_hook_slow.cold", "nf_hook", "tcp_v4_rcv"];
        let reasons = reasons.map(reason_of_place);
        let netfilter = Some(DropReason::NetfilterDrop);
        assert_eq!(reasons, [netfilter, netfilter, None, None]);
    }

    #[test]
    fn the_caller_of_netfilter_shows_the_hook() {
        let callers = ["nf_hook_slow", "ip_local_deliver", "ip_rcv.isra.0"];
        let hooks = callers.map(hook_of_caller);
        let (input, prerouting) = (NetfilterHook::Input, NetfilterHook::Prerouting);
        assert_eq!(hooks, [None, Some(input), Some(prerouting)]);
    }
}
