/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads from a socket the key of its flow, the kernel's figures (tcp_info), and the state of the
 * connection. */
#ifndef TCPINSPECT_FLOW_SOCKET_BPF_H
#define TCPINSPECT_FLOW_SOCKET_BPF_H

#include "socket.bpf.h"
#include "filter.bpf.h"
#include "flow_table.bpf.h"

/* A SYN is retransmitted no sooner than this. The socket has the time of the first one in
 * milliseconds. */
#define SYN_AGAIN_NS 10000000

/* The network namespace of all interfaces, by inode number. */
const volatile __u32 own_netns = 0;

/* False: the socket has no remote end, or is not one of TCP: in other families, protocol 6 is
 * something else. */
static __always_inline bool read_flow_ends(struct ends *ends, const struct sock *sk)
{
	__u16 family = sk->__sk_common.skc_family;

	read_ends(ends, sk);
	return ends->remote_port && (family == AF_INET || family == AF_INET6);
}

/*
 * Sets the key of the socket's flow, and returns which end of the flow the socket is. Interface and
 * VLANs are left out: a socket has neither.
 */
static __always_inline __u8 set_socket_key(struct flow_key *key, const struct ends *e)
{
	bool lower =
		is_lower(words_of(e->local), e->local_port, words_of(e->remote), e->remote_port);

	__builtin_memcpy(key->addr[0], lower ? e->local : e->remote, 16);
	__builtin_memcpy(key->addr[1], lower ? e->remote : e->local, 16);
	key->port[0] = lower ? e->local_port : e->remote_port;
	key->port[1] = lower ? e->remote_port : e->local_port;
	key->ip_version = e->ip_version;
	return lower ? 0 : 1;
}

/* Reads the kernel's figures, most of them as tcp_get_info() does for ss(8). */
static __always_inline void read_numbers(struct flow_numbers *n, const struct tcp_sock *tp,
					 __u8 end)
{
	__s32 unsent = tp->write_seq - tp->snd_nxt, unread = tp->rcv_nxt - tp->copied_seq;
	const struct sock *sk = (const struct sock *)tp;

	/* A FIN that has arrived counts in rcv_nxt and in ss(8), but is not a byte to read. */
	if (has_received_fin(sk))
		unread--;
	n->end = end;
	n->is_known = 1;
	n->srtt_us = read_srtt_us(tp);
	n->rttvar_us = tp->mdev_us >> 2;
	n->min_rtt_us = read_min_rtt_us(tp);
	n->retransmits = tp->total_retrans;
	n->lost = tp->lost_out;
	n->lost_total = tp->lost;
	n->reordering = tp->reordering;
	n->cwnd = tp->snd_cwnd;
	n->mss = tp->mss_cache;
	n->pmtu = tp->inet_conn.icsk_pmtu_cookie;
	n->unread = unread > 0 ? unread : 0;
	n->unsent = unsent > 0 ? unsent : 0;
}

/* If both ends are sockets of this host, the figures of the initiator's socket are kept. */
static __always_inline void take_numbers(struct flow_record *r, const struct flow_numbers *found)
{
	if (r->numbers.is_known && r->numbers.end != found->end && found->end != r->initiator)
		return;
	r->numbers = *found;
}

/* The state of a connection older than the programs, read from its socket. */
struct older {
	__u64 now;
	__u64 start_ns; /* of an attempt; else when it was found */
	__u64 bytes_sent;
	__u64 bytes_received;
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u8 state; /* enum tcp_state */
	__u8 end;
	__u8 initiator;
	__u8 syn_retransmits;
};

static __always_inline void read_older(struct older *o, const struct tcp_sock *tp, __u8 state)
{
	o->now = bpf_ktime_get_ns();
	o->start_ns = o->now;
	o->bytes_sent = tp->bytes_sent;
	o->bytes_received = tp->bytes_received;
	o->snd_una = tp->snd_una;
	o->snd_nxt = tp->snd_nxt;
	o->write_seq = tp->write_seq;
	o->rcv_nxt = tp->rcv_nxt;
	o->state = state;
	if (state == TCP_SYN_SENT) {
		/* In milliseconds of the same clock; 0 if no SYN was sent yet. */
		__u32 stamp = tp->retrans_stamp, ms = o->now / 1000000;

		if (stamp && ms - stamp < 1U << 31)
			o->start_ns -= (__u64)(ms - stamp) * 1000000;
		o->syn_retransmits = tp->inet_conn.icsk_retransmits;
	}
}

static __always_inline void begin_end(struct flow_end *e, __u32 next_seq)
{
	e->state = END_ESTABLISHED;
	e->known = END_SEEN;
	/* The acknowledgement number is not set. Otherwise an ACK for a packet that waits at the
	 * socket would seem to be for data that was never sent. */
	e->first_seq = next_seq;
	e->next_seq = next_seq;
}

static __always_inline void close_end(struct flow_end *e, __u32 fin_end, bool is_acked)
{
	e->state = END_CLOSED;
	e->known |= END_FIN | (is_acked ? END_FIN_ACKED : 0);
	e->fin_end = fin_end;
	e->next_seq = fin_end;
}

/* Begins the record of an older connection as if its packets so far had been seen. */
static __always_inline void begin_older(struct flow_record *r, const struct older *o)
{
	struct flow_end *own = &r->ends[o->end & 1];
	struct flow_end *peer = &r->ends[(o->end & 1) ^ 1];
	__u8 state = o->state;

	r->start_ns = o->start_ns;
	r->last_ns = o->now;
	r->known = FLOW_STARTED | FLOW_SEEDED;
	r->initiator = o->initiator & 1;
	if (state == TCP_SYN_SENT) {
		own->state = END_SYN_SENT;
		own->known = END_SEEN | END_SYN;
		own->first_seq = o->snd_una;
		own->next_seq = o->snd_nxt;
		r->syn_retransmits = o->syn_retransmits;
		return;
	}
	r->known |= FLOW_PARTIAL;
	begin_end(own, o->snd_nxt);
	begin_end(peer, o->rcv_nxt);
	if (has_sent_fin(state))
		close_end(own, o->write_seq, state == TCP_FIN_WAIT2);
	if (state == TCP_CLOSE_WAIT || state == TCP_CLOSING || state == TCP_LAST_ACK)
		close_end(peer, o->rcv_nxt, true);
}

/*
 * Whether the answer to a SYN was missed, because it came while the programs were being attached
 * one after the other: the record still waits for it, but the socket has received it.
 */
static __always_inline bool missed_answer(const struct flow_record *r, const struct older *o)
{
	return o->state != TCP_SYN_SENT && r->ends[o->end & 1].state == END_SYN_SENT;
}

/* Whether a flow that is in the table is older than the programs. It is not if its first SYN was
 * seen; but the SYN that was seen may also be a retransmission. */
static __always_inline bool is_older(const struct flow_record *r, const struct older *o)
{
	if (o->state == TCP_SYN_SENT)
		return o->start_ns + SYN_AGAIN_NS < r->start_ns || (r->known & FLOW_SEEDED);
	return missed_answer(r, o) || (r->known & (FLOW_PARTIAL | FLOW_SEEDED));
}

/* Notes that a flow is older than the programs, and how many bytes each end had sent before. */
static __always_inline void note_older(struct flow_record *r, const struct older *o)
{
	struct flow_end *remote = &r->ends[(o->end & 1) ^ 1];
	__u64 own = r->ends[o->end & 1].bytes, peer = remote->bytes;

	if (missed_answer(r, o)) {
		r->ends[o->end & 1].state = END_ESTABLISHED;
		if (remote->state == END_INACTIVE || remote->state == END_PARTIAL)
			remote->state = END_ESTABLISHED;
		r->known |= FLOW_PARTIAL;
	}
	if (o->state == TCP_SYN_SENT && !(r->known & FLOW_SEEDED)) {
		r->start_ns = o->start_ns;
		r->syn_retransmits = o->syn_retransmits;
	}
	r->known |= FLOW_SEEDED;
	/* Without the bytes that the packet programs have counted since. */
	r->bytes_before[o->end & 1] = o->bytes_sent > own ? o->bytes_sent - own : 0;
	r->bytes_before[(o->end & 1) ^ 1] = o->bytes_received > peer ? o->bytes_received - peer : 0;
}

/* Whether the filter wants the connection: its source is the initiator. */
static __always_inline bool older_is_wanted(const struct ends *e, bool from_remote)
{
	return mapped_ends_match(e->ip_version, from_remote ? e->remote : e->local,
				 from_remote ? e->remote_port : e->local_port,
				 from_remote ? e->local : e->remote,
				 from_remote ? e->local_port : e->remote_port);
}

#endif /* TCPINSPECT_FLOW_SOCKET_BPF_H */
