/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads segments of connection attempts at interfaces. */
#ifndef TCPINSPECT_ATTEMPT_BPF_H
#define TCPINSPECT_ATTEMPT_BPF_H

#include "packet_filter.bpf.h"
#include "segment.bpf.h"
#include "attempt.h"

static __always_inline void set_key(struct attempt_key *key, const __be32 *addr, __u16 port,
				    __u32 isn)
{
	__builtin_memcpy(key->addr, addr, sizeof(key->addr));
	key->isn = isn;
	key->port = port;
	key->destination = 0;
}

/* Reads a segment. False: it can't be read, or the filter rejects its attempt. */
static __always_inline bool read_frame(struct frame *f, struct packet *p, bool is_answer,
				       struct segment *s)
{
	struct tcp_header scratch, *tcp;
	struct addresses a;

	s->flags = p->flags;
	if (filter.parts && !version_matches(p->ip_version))
		return false;
	forget_packet(p);
	tcp = tcp_at(f, p, &scratch);
	if (!tcp)
		return false;
	s->sport = bpf_ntohs(tcp->sport);
	s->dport = bpf_ntohs(tcp->dport);
	s->seq = bpf_ntohl(tcp->seq);
	s->ack = bpf_ntohl(tcp->ack);
	s->ip_version = p->ip_version;
	if (!read_addresses(f, p, &a))
		return false;
	map_address(s->saddr, a.saddr, p->ip_version);
	map_address(s->daddr, a.daddr, p->ip_version);
	/* Answers need no filter: only attempts that have passed it are in the table. */
	if (!filter.parts || is_answer)
		return true;
	return ends_match(p->ip_version, &a, s->sport, s->dport);
}

#endif /* TCPINSPECT_ATTEMPT_BPF_H */
