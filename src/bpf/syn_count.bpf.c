// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* syn-count: counts incoming SYNs per CPU, at XDP or at TC ingress, and lets every packet pass. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "packet_filter.bpf.h"
#include "syn_count.h"

const volatile enum count_by count_by = COUNT_BY_NOTHING;

/* SYNs per key. Not an LRU map: a count that vanished would be a lie, a full table is not. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct count_key);
	__type(value, __u64);
} counts SEC(".maps");

/* BTF has the type only if something refers to it. */
const struct count_key *unused_count_key __attribute__((unused));

static __always_inline void count_key(struct packet_counters *c, const struct packet *p)
{
	struct count_key key = {};
	__u64 *count, one = 1;

	if (count_by == COUNT_BY_DPORT) {
		key.port = p->dport;
	} else {
		key.family = p->ip_version;
		__builtin_memcpy(key.addr, count_by == COUNT_BY_SADDR ? p->saddr : p->daddr,
				 sizeof(key.addr));
	}
	count = bpf_map_lookup_elem(&counts, &key);
	if (!count) {
		if (!bpf_map_update_elem(&counts, &key, &one, BPF_NOEXIST))
			return;
		/* Full, or another CPU was first: only the second look can tell. */
		count = bpf_map_lookup_elem(&counts, &key);
	}
	if (count)
		__sync_fetch_and_add(count, 1);
	else
		c->untracked++;
}

static __always_inline void count_frame(struct frame *f, struct packet *p)
{
	bool by_address = count_by == COUNT_BY_SADDR || count_by == COUNT_BY_DADDR;
	enum verdict v = parse_packet(f, p, by_address || filter_wants_addresses());
	struct packet_counters *c = my_counters();

	c->verdicts[v]++;
	if (v != VERDICT_TCP || (p->flags & (TCP_SYN | TCP_ACK)) != TCP_SYN ||
	    !packet_matches(f, p))
		return;
	c->matched++;
	if (count_by != COUNT_BY_NOTHING)
		count_key(c, p);
}

SEC("xdp.frags")
int syn_count_xdp_frags(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP_FRAGS);
	struct packet p;

	count_frame(&f, &p);
	return XDP_PASS;
}

/* For kernels that don't know multi-buffer XDP (before 5.18). */
SEC("xdp")
int syn_count_xdp(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP);
	struct packet p;

	count_frame(&f, &p);
	return XDP_PASS;
}

SEC("tc")
int syn_count_tc(struct __sk_buff *skb)
{
	struct frame f = tc_frame(skb, true);
	struct packet p;

	count_frame(&f, &p);
	return TCX_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
