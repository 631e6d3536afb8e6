// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* syn-count: counts incoming SYNs, at XDP or at TC ingress, and lets every packet pass. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "packet_filter.bpf.h"
#include "source_sketch.bpf.h"

const volatile enum count_by count_by = COUNT_BY_NOTHING;

/* BTF has the types only if something refers to them. */
const struct count_key *unused_count_key __attribute__((unused));
const struct count_set *unused_count_set __attribute__((unused));

static __always_inline struct count_key address_key(const struct packet *p, const __be32 *addr)
{
	struct count_key key = { .family = p->ip_version };

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return key;
}

/* Counts a SYN by its key, and notes its source. */
static __always_inline void count_by_key(struct packet_counters *c, struct frame *f,
					 const struct packet *p)
{
	struct tcp_header scratch, *tcp = tcp_at(f, p, &scratch);
	struct count_key source, key = {};
	__u64 source_hash;
	struct addresses a;
	__u16 dport;

	if (!tcp) {
		c->untracked++;
		return;
	}
	dport = bpf_ntohs(tcp->dport);
	if (!read_addresses(f, p, &a)) {
		c->untracked++;
		return;
	}
	source = address_key(p, a.saddr);
	source_hash = hash_key(&source);
	note_source(f->slot, source_hash);
	if (count_by == COUNT_BY_SADDR) {
		count_key(&c->untracked, f->slot, &source, source_hash);
		return;
	}
	if (count_by == COUNT_BY_DPORT)
		key.port = dport;
	else
		key = address_key(p, a.daddr);
	count_key(&c->untracked, f->slot, &key, hash_key(&key));
}

static __always_inline void count_syn(struct frame *f, struct packet *p)
{
	struct packet_counters *c = counters_of(f->slot);

	if (!is_first_syn(p->flags))
		return;
	if (f->is_plain) {
		c->matched++;
		return;
	}
	if (!packet_matches(f, p))
		return;
	c->matched++;
	if (count_by != COUNT_BY_NOTHING)
		count_by_key(c, f, p);
}

/*
 * There are two programs for each hook. One counts all SYNs of an Ethernet interface, and has no
 * instructions for filters or keys.
 */
SEC("xdp.frags")
int syn_count_all_xdp_frags(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP_FRAGS, true);

	count_frame(&f, count_syn);
	return XDP_PASS;
}

SEC("xdp.frags")
int syn_count_xdp_frags(struct xdp_md *ctx)
{
	struct frame f;

	if (!next_frame())
		return XDP_PASS;
	f = xdp_frame(ctx, HOOK_XDP_FRAGS, false);
	count_frame(&f, count_syn);
	return XDP_PASS;
}

/* For kernels without multi-buffer XDP (before 5.18). */
SEC("xdp")
int syn_count_all_xdp(struct xdp_md *ctx)
{
	struct frame f = xdp_frame(ctx, HOOK_XDP, true);

	count_frame(&f, count_syn);
	return XDP_PASS;
}

SEC("xdp")
int syn_count_xdp(struct xdp_md *ctx)
{
	struct frame f;

	if (!next_frame())
		return XDP_PASS;
	f = xdp_frame(ctx, HOOK_XDP, false);
	count_frame(&f, count_syn);
	return XDP_PASS;
}

SEC("tc")
int syn_count_all_tc(struct __sk_buff *skb)
{
	struct frame f = tc_frame(skb, true, true);

	count_frame(&f, count_syn);
	return TCX_NEXT;
}

SEC("tc")
int syn_count_tc(struct __sk_buff *skb)
{
	struct frame f;

	if (!next_frame())
		return TCX_NEXT;
	f = tc_frame(skb, true, false);
	count_frame(&f, count_syn);
	return TCX_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
