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

static __always_inline void count_key(struct packet_counters *c, struct frame *f,
				      const struct packet *p)
{
	struct tcp_header scratch, *tcp = tcp_at(f, p, &scratch);
	struct count_key key = {};
	__u64 *count, one = 1;
	struct addresses a;

	if (!tcp || (count_by != COUNT_BY_DPORT && !read_addresses(f, p, &a))) {
		c->untracked++;
		return;
	}
	if (count_by == COUNT_BY_DPORT) {
		key.port = bpf_ntohs(tcp->dport);
	} else {
		key.family = p->ip_version;
		__builtin_memcpy(key.addr, count_by == COUNT_BY_SADDR ? a.saddr : a.daddr,
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

static __always_inline void count_frame(struct frame *f)
{
	struct packet p;
	enum verdict v = parse_packet(f, &p);
	struct packet_counters *c = my_counters();

	c->verdicts[v]++;
	if (v != VERDICT_TCP || (p.flags & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return;
	if (f->is_plain) {
		c->matched++;
		return;
	}
	if (!packet_matches(f, &p))
		return;
	c->matched++;
	if (count_by != COUNT_BY_NOTHING)
		count_key(c, f, &p);
}

/*
 * Each program is there twice. One counts all SYNs of an Ethernet interface, and has no instruction
 * for anything that can be asked for beyond that.
 */
SEC("xdp.frags")
int syn_count_all_xdp_frags(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP_FRAGS, true);

	count_frame(&f);
	return XDP_PASS;
}

SEC("xdp.frags")
int syn_count_xdp_frags(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP_FRAGS, false);

	count_frame(&f);
	return XDP_PASS;
}

/* For kernels that don't know multi-buffer XDP (before 5.18). */
SEC("xdp")
int syn_count_all_xdp(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP, true);

	count_frame(&f);
	return XDP_PASS;
}

SEC("xdp")
int syn_count_xdp(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP, false);

	count_frame(&f);
	return XDP_PASS;
}

SEC("tc")
int syn_count_all_tc(struct __sk_buff *skb)
{
	struct frame f = tc_frame(skb, true, true);

	count_frame(&f);
	return TCX_NEXT;
}

SEC("tc")
int syn_count_tc(struct __sk_buff *skb)
{
	struct frame f = tc_frame(skb, true, false);

	count_frame(&f);
	return TCX_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
