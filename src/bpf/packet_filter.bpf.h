/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Applies all parts of the filter to a parsed packet. */
#ifndef TCPINSPECT_PACKET_FILTER_BPF_H
#define TCPINSPECT_PACKET_FILTER_BPF_H

#include "packet.bpf.h"
#include "filter.bpf.h"
#include "expr.bpf.h"

/* The verifier accepts no packet pointer with a larger variable offset. */
#define MAX_PACKET_OFFSET 0xffff

static __always_inline bool payload_matches(const struct frame *f, __u64 payload)
{
	for (__u32 i = 0; i < PAYLOAD_PATTERN_MAX; i++) {
		__u64 at = payload + filter.payload_offset + i;
		__u8 scratch = 0;
		__u8 *byte = &scratch;

		if (i >= filter.payload_len)
			break;
		barrier_var(at);
		if (at < MAX_PACKET_OFFSET)
			byte = header_at(f, at, 1, &scratch);
		else if (at >= f->end || copy_out(f, at, &scratch, 1))
			return false;
		if (!byte || *byte != filter.payload_bytes[i])
			return false;
	}
	return true;
}

/* Whether the filter accepts these addresses and ports. Ports are in host order. */
static __always_inline bool ends_match(__u8 ip_version, const struct addresses *a, __u16 sport,
				       __u16 dport)
{
	return ports_match(sport, dport) && addresses_match(ip_version, a->saddr, a->daddr);
}

/* Whether the filter accepts the flags and the IP version of a packet with VERDICT_TCP. */
static __always_inline bool kind_matches(const struct packet *p)
{
	if ((filter.parts & FILTER_FLAGS) && (p->flags & filter.flags_mask) != filter.flags_value)
		return false;
	return version_matches(p->ip_version);
}

/* Whether the packet passes all parts of the filter, the cheapest first. Calls forget_packet(). */
static __always_inline bool packet_matches(struct frame *f, struct packet *p)
{
	struct tcp_header scratch, *tcp;
	struct addresses a = {};

	if (filter.parts && !kind_matches(p))
		return false;
	forget_packet(p);
	if (!(filter.parts & ~(FILTER_FLAGS | FILTER_FAMILY)))
		return true;
	if ((filter.parts & FILTER_EXPRESSION) && !expression_matches(f, p, false))
		return false;
	if (!(filter.parts & ~(FILTER_FLAGS | FILTER_FAMILY | FILTER_EXPRESSION)))
		return true;
	tcp = tcp_at(f, p, &scratch);
	if (!tcp || (filter_wants_addresses() && !read_addresses(f, p, &a)) ||
	    !ends_match(p->ip_version, &a, bpf_ntohs(tcp->sport), bpf_ntohs(tcp->dport)))
		return false;
	return !(filter.parts & FILTER_PAYLOAD) || payload_matches(f, payload_at(p, tcp));
}

/*
 * Parses a frame, counts what it is, and calls count() for a TCP segment. The slot for the counters
 * is taken after the parser, which has no register to spare.
 */
static __always_inline void count_frame(struct frame *f,
					void (*count)(struct frame *f, struct packet *p))
{
	struct packet p;
	enum verdict v;

	if (stopped)
		return;
	v = parse_packet(f, &p);
	f->slot = begin_run();
	if (!has_slot(f->slot)) {
		count_overrun();
		return;
	}
	counters_of(f->slot)->verdicts[v]++;
	if (v == VERDICT_TCP)
		count(f, &p);
	end_run(f->slot);
}

#endif /* TCPINSPECT_PACKET_FILTER_BPF_H */
