/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a packet does to its flow's record: numbers, states, history. No helper is called here, for
 * it is done under the flow's lock. */
#ifndef TCPINSPECT_FLOW_STATE_BPF_H
#define TCPINSPECT_FLOW_STATE_BPF_H

#include "packet.bpf.h"
#include "flows.h"

/* No flow is idle for longer than this, in ns. */
const volatile __u64 idle_ns = 0;

/* Nor without an answer to its SYN, or to its FINs. */
const volatile __u64 half_open_ns = 0;

/* For how long after its end a flow waits for stragglers. */
const volatile __u64 linger_ns = 0;

/* A packet, or the segments of a GSO packet, as a flow sees it. */
struct segment {
	__u64 now;
	__u32 seq;
	__u32 ack;
	__u32 len;     /* payload bytes */
	__u32 packets; /* segments on the wire */
	__u16 window;  /* unscaled */
	__u8 flags;
	__u8 from; /* the end that sent it: 0 or 1 */
	__u8 wscale;
	bool has_wscale;
	/* The sender looks like the responder: it answers a SYN, or it has a well-known port. */
	bool from_responder;
};

/* Whether sequence number a is behind b (RFC 9293, 3.4). */
static __always_inline bool seq_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline bool is_syn(const struct segment *s)
{
	return (s->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == TCP_SYN;
}

static __always_inline bool is_syn_ack(const struct segment *s)
{
	return (s->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* The sequence number after the segment. A RST's payload is no part of the stream. */
static __always_inline __u32 seq_end(const struct segment *s)
{
	__u32 end = s->seq;

	if (!(s->flags & TCP_RST))
		end += s->len;
	if (s->flags & TCP_SYN)
		end++;
	if (s->flags & TCP_FIN)
		end++;
	return end;
}

/* Whether the flow is over at this time, with or without a packet of its own. */
static __always_inline bool is_due(const struct flow_record *r, __u64 now)
{
	__u8 a = r->ends[0].state, b = r->ends[1].state;
	__u64 limit = idle_ns;

	/* Clocks of two CPUs differ, and those of a capture file jump: hence signed. */
	if (r->known & FLOW_FINISHED)
		return (__s64)(now - r->finished_ns) > (__s64)linger_ns;
	if (a == END_SYN_SENT || b == END_SYN_SENT || (a == END_CLOSED && b == END_CLOSED))
		limit = half_open_ns;
	return (r->known & FLOW_STARTED) && (__s64)(now - r->last_ns) > (__s64)limit;
}

/* Whether the packet begins a new connection between the ends of a flow that is known. */
static __always_inline bool is_new_connection(const struct flow_record *r, const struct segment *s)
{
	const struct flow_end *e = &r->ends[s->from & 1];
	const struct flow_end *peer = &r->ends[(s->from & 1) ^ 1];
	bool other_isn = !(e->known & END_SYN) || s->seq != e->first_seq;

	if (!(r->known & FLOW_STARTED))
		return false;
	if (is_due(r, s->now))
		return true;
	if (is_syn_ack(s))
		return (r->known & FLOW_FINISHED) && other_isn;
	if (!is_syn(s))
		return false;
	/* Both ends may open at once, and a SYN may be repeated; all else is a new attempt. */
	if (r->known & FLOW_FINISHED)
		return true;
	if (e->state == END_INACTIVE && peer->state == END_SYN_SENT)
		return false;
	return other_isn;
}

static __always_inline void note(struct flow_record *r, bool is_orig, __u8 letter)
{
	__u8 at = r->history_len;

	if (at >= FLOW_HISTORY_MAX)
		return;
	r->history[at & (FLOW_HISTORY_MAX - 1)] = is_orig ? letter : letter | 0x20;
	r->history_len = at + 1;
}

static __always_inline void note_once(struct flow_record *r, struct flow_end *e, bool is_orig,
				      __u8 bit, __u8 letter)
{
	if (e->history & bit)
		return;
	e->history |= bit;
	note(r, is_orig, letter);
}

/* Zeek notes what may happen often the 1st, 10th, 100th … time. */
static __always_inline bool is_noteworthy(__u32 count)
{
	return count == 1 || count == 10 || count == 100 || count == 1000 || count == 10000 ||
	       count == 100000;
}

/* Zeek's letters for the flags, each in the order and under the conditions of its manual. */
static __always_inline void note_flags(struct flow_record *r, struct flow_end *e, bool is_orig,
				       const struct segment *s)
{
	switch (s->flags & (TCP_SYN | TCP_FIN | TCP_RST)) {
	case TCP_SYN:
		if (!(e->known & END_SYN) || e->first_seq != s->seq)
			note(r, is_orig, s->flags & TCP_ACK ? 'H' : 'S');
		break;
	case TCP_FIN:
		if (!(e->known & END_FIN) || e->fin_end != seq_end(s))
			note(r, is_orig, 'F');
		break;
	case TCP_RST:
		if (!(e->known & END_RST) || e->last_rst != s->seq)
			note(r, is_orig, 'R');
		break;
	case 0:
		if (s->len)
			note_once(r, e, is_orig, HISTORY_DATA, 'D');
		else if (s->flags & TCP_ACK)
			note_once(r, e, is_orig, HISTORY_ACK, 'A');
		break;
	case TCP_SYN | TCP_FIN:
	case TCP_SYN | TCP_RST:
		note_once(r, e, is_orig, HISTORY_MULTI_FLAG, 'Q');
		break;
	default:
		note_once(r, e, is_orig, HISTORY_INCONSISTENT, 'I');
	}
}

/*
 * Whether the packet can't be what a TCP that has seen what we have seen would send: out of the
 * window, or behind the FIN, or with another SYN, or acknowledging what was never sent. It is
 * counted, and changes nothing else.
 */
static __always_inline bool contradicts(const struct flow_end *e, const struct flow_end *peer,
					const struct segment *s)
{
	__u32 end = seq_end(s);

	if (s->flags & TCP_SYN) {
		if ((e->known & END_SYN) && s->seq != e->first_seq)
			return true;
	} else {
		/* Beyond 1 GiB the first number may lie ahead as well as behind. */
		if ((e->known & END_SYN) && e->bytes < 1 << 30 && seq_after(e->first_seq, s->seq))
			return true;
		/* One byte more is a probe of a window that is closed. */
		if ((peer->known & END_EDGE) && seq_after(end, peer->edge + 1))
			return true;
		if ((e->known & END_FIN) && seq_after(end, e->fin_end))
			return true;
	}
	if (!(s->flags & TCP_ACK) || !(peer->known & END_SEEN))
		return false;
	if (peer->state == END_SYN_SENT && (s->flags & (TCP_SYN | TCP_RST)))
		return !seq_after(s->ack, peer->first_seq) || seq_after(s->ack, peer->next_seq);
	return !(s->flags & TCP_RST) && seq_after(s->ack, peer->next_seq);
}

/* Whether the flags alone are nothing that a TCP would send. */
static __always_inline bool has_odd_flags(const struct segment *s)
{
	__u8 control = s->flags & (TCP_SYN | TCP_FIN | TCP_RST);

	return (control & (control - 1)) || !(s->flags & (TCP_SYN | TCP_RST | TCP_ACK));
}

static __always_inline void take_sequence(struct flow_end *e, const struct segment *s)
{
	__u32 end = seq_end(s);

	if (s->flags & TCP_RST) {
		e->last_rst = s->seq;
		e->known |= END_RST;
		return;
	}
	if (!(e->known & END_SEEN) || ((s->flags & TCP_SYN) && !(e->known & END_SYN))) {
		e->first_seq = s->seq;
		e->next_seq = end;
		e->known |= END_SEEN;
	} else if (seq_after(end, e->next_seq)) {
		e->next_seq = end;
	}
	if (s->flags & TCP_SYN) {
		e->known |= END_SYN;
		if (s->has_wscale) {
			e->known |= END_WSCALE;
			e->wscale = s->wscale;
		}
	}
	if (s->flags & TCP_FIN) {
		e->fin_end = end;
		e->known |= END_FIN;
	}
}

static __always_inline void take_ack(struct flow_end *e, struct flow_end *peer,
				     const struct segment *s)
{
	__u32 edge = s->window;

	if ((s->flags & (TCP_ACK | TCP_RST)) != TCP_ACK)
		return;
	if ((peer->known & END_FIN) && !seq_after(peer->fin_end, s->ack))
		peer->known |= END_FIN_ACKED;
	/* How windows are scaled is known only from both SYNs (RFC 7323, 2.2). */
	if (!(e->known & peer->known & END_SYN))
		return;
	if (!(s->flags & TCP_SYN) && (e->known & peer->known & END_WSCALE))
		edge <<= e->wscale & 15;
	edge += s->ack;
	if (!(e->known & END_EDGE) || seq_after(edge, e->edge))
		e->edge = edge;
	e->known |= END_EDGE;
}

/* Zeek's states of an end; see its TCPSessionAdapter::UpdateStateMachine(). */
static __always_inline void take_state(struct flow_end *e, struct flow_end *peer, bool is_orig,
				       const struct segment *s)
{
	__u8 state = e->state;

	if (state == END_RESET)
		return;
	if (state == END_INACTIVE) {
		if ((s->flags & TCP_SYN) && is_orig) {
			state = END_SYN_SENT;
		} else if (s->flags & TCP_SYN) {
			state = END_ESTABLISHED;
			if (peer->state == END_SYN_SENT)
				peer->state = END_ESTABLISHED;
		} else if ((s->flags & TCP_ACK) && peer->state == END_ESTABLISHED) {
			/* Only the SYN was missed. */
			state = END_ESTABLISHED;
		} else if (is_orig || s->len || peer->state != END_SYN_SENT) {
			/* Else it is a bare ACK in answer to a SYN: a challenge (RFC 5961). */
			state = END_PARTIAL;
		}
	}
	if (s->flags & TCP_RST) {
		/* After both FINs a RST ends nothing that has not ended. */
		if (state != END_CLOSED || peer->state != END_CLOSED)
			state = END_RESET;
	} else if (s->flags & TCP_FIN) {
		state = END_CLOSED;
		/* A FIN and then a RST from the peer was a normal end after all. */
		if (peer->state == END_RESET && (peer->known & END_FIN))
			peer->state = END_CLOSED;
	}
	e->state = state;
}

static __always_inline void take_handshake(struct flow_record *r, struct flow_end *e,
					   const struct flow_end *peer, bool is_orig,
					   const struct segment *s)
{
	if (is_orig && is_syn(s) && (e->known & END_SYN))
		r->syn_retransmits++;
	if (!is_orig && is_syn_ack(s) && !(r->known & FLOW_SYN_ACK)) {
		r->syn_ack_ns = s->now;
		r->known |= FLOW_SYN_ACK;
	}
	if (is_orig && (s->flags & (TCP_SYN | TCP_RST | TCP_ACK)) == TCP_ACK &&
	    (r->known & (FLOW_SYN_ACK | FLOW_ACK)) == FLOW_SYN_ACK &&
	    seq_after(s->ack, peer->first_seq)) {
		r->ack_ns = s->now;
		r->known |= FLOW_ACK;
	}
}

static __always_inline void start_flow(struct flow_record *r, const struct segment *s)
{
	r->start_ns = s->now;
	r->last_ns = s->now;
	r->known |= FLOW_STARTED;
	r->initiator = s->from_responder ? s->from ^ 1 : s->from;
	if (!(s->flags & TCP_SYN) || (s->flags & TCP_ACK))
		r->known |= FLOW_PARTIAL;
	if (s->from_responder)
		note(r, true, '^');
}

/* Counts a packet into its flow. */
static __always_inline void count_segment(struct flow_record *r, const struct segment *s)
{
	struct flow_end *e = &r->ends[s->from & 1];
	struct flow_end *peer = &r->ends[(s->from & 1) ^ 1];
	bool is_orig;

	if (!(r->known & FLOW_STARTED))
		start_flow(r, s);
	is_orig = forget_why(r->initiator == s->from);
	if ((__s64)(s->now - r->last_ns) > 0)
		r->last_ns = s->now;

	note_flags(r, e, is_orig, s);
	if (!s->window && !(s->flags & TCP_RST) && peer->state != END_CLOSED &&
	    e->state != END_RESET && is_noteworthy(++e->zero_windows))
		note(r, is_orig, 'W');
	if (s->len && (e->known & END_SEEN) && e->state != END_RESET && !(s->flags & TCP_RST) &&
	    !seq_after(seq_end(s), e->next_seq) && is_noteworthy(++e->retransmits))
		note(r, is_orig, 'T');

	if (forget_why(contradicts(e, peer, s))) {
		r->unexpected++;
	} else {
		if (has_odd_flags(s) || (s->len && e->state == END_SYN_SENT))
			r->unexpected++;
		take_handshake(r, e, peer, is_orig, s);
		take_sequence(e, s);
		take_ack(e, peer, s);
		take_state(e, peer, is_orig, s);
	}
	if (!(r->known & FLOW_FINISHED) &&
	    (e->state == END_RESET || (e->known & peer->known & END_FIN_ACKED))) {
		r->finished_ns = s->now;
		r->known |= FLOW_FINISHED;
	}
	e->flags |= s->flags;
	e->packets += s->packets;
	e->bytes += s->len;
}

#endif /* TCPINSPECT_FLOW_STATE_BPF_H */
