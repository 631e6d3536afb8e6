/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The whole filter, for a parsed packet. */
#ifndef TCPINSPECT_PACKET_FILTER_BPF_H
#define TCPINSPECT_PACKET_FILTER_BPF_H

#include "packet.bpf.h"
#include "filter.bpf.h"

/* The verifier takes no pointer into the packet that may be further from its start. */
#define MAX_PACKET_OFFSET 0xffff

static __always_inline bool payload_matches(const struct frame *f, const struct packet *p)
{
	for (__u32 i = 0; i < PAYLOAD_PATTERN_MAX; i++) {
		__u64 at = p->payload + filter.payload_offset + i;
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

/* Whether a packet whose verdict is tcp passes everything that was asked for. Cheapest first. */
static __always_inline bool packet_matches(const struct frame *f, const struct packet *p)
{
	if (!filter.parts)
		return true;
	if ((filter.parts & FILTER_FLAGS) && (p->flags & filter.flags_mask) != filter.flags_value)
		return false;
	if (!version_matches(p->ip_version) || !ports_match(p->sport, p->dport))
		return false;
	if (!saddr_matches(p->ip_version, p->saddr) || !daddr_matches(p->ip_version, p->daddr))
		return false;
	return !(filter.parts & FILTER_PAYLOAD) || payload_matches(f, p);
}

#endif /* TCPINSPECT_PACKET_FILTER_BPF_H */
