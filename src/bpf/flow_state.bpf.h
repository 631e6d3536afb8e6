/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How a packet changes the record of its flow: counters, TCP states, history. All of this runs
 * under the slot's spin lock, so no BPF helper is called here. */
#ifndef TCPINSPECT_FLOW_STATE_BPF_H
#define TCPINSPECT_FLOW_STATE_BPF_H

#include "packet.bpf.h"
#include "flows.h"

/* A flow without a packet for this time is over, in ns. */
const volatile __u64 idle_ns = 0;

/* The same for one without an answer to its SYN, and one where both ends have sent a FIN. */
const volatile __u64 half_open_ns = 0;

/* A SYN without an answer for this time is reported while its flow goes on; 0: it is not. */
const volatile __u64 attempt_ns = 0;

/* How long a finished flow stays in the table for late packets, in ns. */
const volatile __u64 linger_ns = 0;

/* The fields of a packet that its flow needs. It may be several segments (GSO, GRO). */
struct flow_segment {
	__u64 now;
	__u32 seq;
	__u32 ack;
	__u32 len;     /* payload bytes */
	__u32 packets; /* segments on the wire */
	__u32 size;    /* payload bytes of each of them but the last */
	__u16 window;  /* unscaled */
	__u8 flags;
	__u8 from; /* which end has sent it: 0 or 1 */
	__u8 wscale;
	bool has_wscale;
	/* The sender looks like the responder: it answers a SYN, or it has a well-known port. */
	bool from_responder;
};

/* Whether sequence number a comes after b (RFC 9293, 3.4). */
static __always_inline bool seq_after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline bool is_syn(const struct flow_segment *s)
{
	return (s->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == TCP_SYN;
}

static __always_inline bool is_syn_ack(const struct flow_segment *s)
{
	return (s->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) == (TCP_SYN | TCP_ACK);
}

/* The sequence number after the segment. The payload of a RST does not count. */
static __always_inline __u32 seq_end(const struct flow_segment *s)
{
	__u32 is_rst = s->flags >> 2 & 1, is_syn = s->flags >> 1 & 1, is_fin = s->flags & 1;

	return s->seq + (s->len & (is_rst - 1)) + is_syn + is_fin;
}

/* Whether a SYN has had no answer for attempt_ns, and that was not reported yet. */
static __always_inline bool is_unanswered(const struct flow_record *r, __u64 now)
{
	if (r->known & (FLOW_FINISHED | FLOW_REPORTED))
		return false;
	if (r->ends[0].state != END_SYN_SENT && r->ends[1].state != END_SYN_SENT)
		return false;
	return (__s64)(now - r->start_ns) > (__s64)attempt_ns;
}

/* Whether the flow is over: finished for linger_ns, or without a packet for too long. */
static __always_inline bool is_due(const struct flow_record *r, __u64 now)
{
	__u8 a = r->ends[0].state, b = r->ends[1].state;
	__u64 limit = idle_ns;

	/*
	 * Signed, because the clocks of two CPUs differ, and times in a capture file can go back.
	 */
	if (r->known & FLOW_FINISHED)
		return (__s64)(now - r->finished_ns) > (__s64)linger_ns;
	if (a == END_SYN_SENT || b == END_SYN_SENT || (a == END_CLOSED && b == END_CLOSED))
		limit = half_open_ns;
	return (r->known & FLOW_STARTED) && (__s64)(now - r->last_ns) > (__s64)limit;
}

/* Whether the flow waits for the answer to a SYN, or one end alone has sent anything. */
static __always_inline bool is_half_open(const struct flow_record *r)
{
	if (r->known & FLOW_PARTIAL)
		return !(r->ends[0].known & r->ends[1].known & END_SEEN);
	return !(r->known & FLOW_ACK);
}

/* Whether the packet answers other_syn: then that SYN has begun a new connection. */
static __always_inline bool answers_other_syn(const struct flow_record *r,
					      const struct flow_segment *s)
{
	const struct other_syn *syn = &r->other_syn;
	__u8 answer = s->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK);

	return syn->packets && syn->from != s->from && s->ack == syn->seq + 1 &&
	       (answer == (TCP_SYN | TCP_ACK) || answer == (TCP_RST | TCP_ACK));
}

/* Whether the packet begins a new connection between the ends of a flow that is known. */
static __always_inline bool is_new_connection(const struct flow_record *r,
					      const struct flow_segment *s)
{
	const struct flow_end *e = &r->ends[s->from & 1];
	const struct flow_end *peer = &r->ends[(s->from & 1) ^ 1];
	bool other_isn = !(e->known & END_SYN) || s->seq != e->first_seq;

	if (!(r->known & FLOW_STARTED))
		return false;
	if (is_due(r, s->now) || answers_other_syn(r, s))
		return true;
	if (is_syn_ack(s))
		return (r->known & FLOW_FINISHED) && other_isn;
	if (!is_syn(s))
		return false;
	if (r->known & FLOW_FINISHED)
		return true;
	/*
	 * A SYN with the same number is a retransmission. Before any answer, one with another
	 * number is a new attempt. After an answer, what the peer answers to it decides: see
	 * other_syn.
	 */
	return other_isn && peer->state == END_INACTIVE;
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

/*
 * Zeek notes frequent events the 1st, 10th, 100th … time: whether the count has reached one of
 * these numbers.
 */
static __always_inline bool is_noteworthy(__u32 before, __u32 now)
{
	return (before < 1 && now >= 1) || (before < 10 && now >= 10) ||
	       (before < 100 && now >= 100) || (before < 1000 && now >= 1000) ||
	       (before < 10000 && now >= 10000) || (before < 100000 && now >= 100000);
}

/* Zeek's history letters for TCP flags, in the order and under the conditions of its manual. */
static __always_inline void note_flags(struct flow_record *r, struct flow_end *e, bool is_orig,
				       const struct flow_segment *s)
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

/* The largest window (RFC 7323, 2.3), for ends whose window is not known. */
#define WINDOW_MAX (1U << 30)

/* The largest window that the end has offered, or WINDOW_MAX if that is not known. */
static __always_inline __u32 window_of(const struct flow_end *e)
{
	return e->known & END_EDGE ? e->max_window : WINDOW_MAX;
}

/* Whether the SYN can't be the one that began this connection. */
static __always_inline bool contradicts_syn(const struct flow_end *e, const struct flow_end *peer,
					    const struct flow_segment *s)
{
	if (e->known & END_SYN)
		return s->seq != e->first_seq;
	/* Packets can be reordered, but the first data has the number after the SYN's. */
	if (e->known & END_SEEN)
		return seq_end(s) != e->first_seq;
	return (peer->known & END_ACKED) && s->seq + 1 != peer->acked;
}

/*
 * Whether the peer would ignore the RST. It accepts only RCV.NXT (RFC 5961, 3.2), which is between
 * what it has acknowledged and what the end has sent.
 */
static __always_inline bool contradicts_rst(const struct flow_end *e, const struct flow_end *peer,
					    const struct flow_segment *s)
{
	__u32 limit;

	if (peer->state == END_SYN_SENT)
		/* Only the acknowledgement shows that it is an answer (RFC 9293, 3.10.7.3). */
		return !(s->flags & TCP_ACK) || !seq_after(s->ack, peer->first_seq) ||
		       seq_after(s->ack, peer->next_seq);
	if (!(peer->known & END_ACKED))
		return (e->known & END_SEEN) &&
		       (seq_after(e->first_seq, s->seq) || seq_after(s->seq, e->next_seq));
	limit = e->known & END_SEEN ? e->next_seq : peer->acked + WINDOW_MAX;
	/* After a FIN some stacks send a RST with the number of the FIN itself. */
	return seq_after(peer->acked, s->seq + (e->known & END_FIN ? 1 : 0)) ||
	       seq_after(s->seq, limit);
}

/* Whether data or a FIN is outside of the window. */
static __always_inline bool contradicts_window(const struct flow_end *e,
					       const struct flow_end *peer,
					       const struct flow_segment *s)
{
	__u32 end = seq_end(s);

	/* A retransmission is at most one window old. */
	if ((e->known & END_SEEN) && seq_after(e->next_seq - window_of(peer) - 1, end))
		return true;
	/*
	 * It is not from before the SYN either, as long as sequence numbers can't have wrapped
	 * around.
	 */
	if ((e->known & END_SYN) && e->bytes < WINDOW_MAX && seq_after(e->first_seq, s->seq))
		return true;
	/* One byte beyond it can be a zero-window probe. */
	if (peer->known & END_EDGE) {
		if (seq_after(end, peer->edge + 1))
			return true;
	} else if ((peer->known & END_ACKED) && seq_after(end, peer->acked + WINDOW_MAX)) {
		return true;
	}
	if ((e->known & END_FIN) && seq_after(end, e->fin_end))
		return true;
	/* A FIN is after all data. */
	return (s->flags & TCP_FIN) && (e->known & END_SEEN) && seq_after(e->next_seq, end);
}

/* Whether the ACK is for data that was never sent, or is too old (RFC 5961, 5.2). */
static __always_inline bool contradicts_ack(const struct flow_end *e, const struct flow_end *peer,
					    const struct flow_segment *s)
{
	if (!(s->flags & TCP_ACK))
		return false;
	/* Without the peer's SYN, the end's first ACK may be for data that was not captured. */
	if ((peer->known & END_SEEN) && seq_after(s->ack, peer->next_seq))
		return (peer->known & END_SYN) || (e->known & END_ACKED);
	if (peer->state == END_SYN_SENT && (s->flags & TCP_SYN))
		return !seq_after(s->ack, peer->first_seq);
	return (e->known & END_ACKED) && seq_after(e->acked - window_of(e), s->ack);
}

/*
 * Whether a TCP in the recorded state would neither send nor accept the packet: it is outside of
 * the window, after the FIN, another SYN, or an ACK for data that was never sent. Such a packet is
 * counted, and changes nothing else.
 */
static __always_inline bool contradicts(const struct flow_end *e, const struct flow_end *peer,
					const struct flow_segment *s)
{
	if (s->flags & TCP_RST)
		return contradicts_rst(e, peer, s);
	if (s->flags & TCP_SYN ? contradicts_syn(e, peer, s) : contradicts_window(e, peer, s))
		return true;
	return contradicts_ack(e, peer, s);
}

/* Whether no TCP would send these flags. */
static __always_inline bool has_odd_flags(const struct flow_segment *s)
{
	__u8 control = s->flags & (TCP_SYN | TCP_FIN | TCP_RST);

	return (control & (control - 1)) || !(s->flags & (TCP_SYN | TCP_RST | TCP_ACK));
}

static __always_inline void take_sequence(struct flow_end *e, const struct flow_segment *s)
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
				     const struct flow_segment *s)
{
	__u32 edge = s->window;

	if ((s->flags & (TCP_ACK | TCP_RST)) != TCP_ACK)
		return;
	if ((peer->known & END_FIN) && !seq_after(peer->fin_end, s->ack))
		peer->known |= END_FIN_ACKED;
	if ((peer->known & END_SEEN) && seq_after(s->ack, peer->next_seq))
		peer->next_seq = s->ack;
	if (!(e->known & END_ACKED) || seq_after(s->ack, e->acked))
		e->acked = s->ack;
	e->known |= END_ACKED;
	/* The window scale is known only if both SYNs were seen (RFC 7323, 2.2). */
	if (!(e->known & peer->known & END_SYN))
		return;
	if (!(s->flags & TCP_SYN) && (e->known & peer->known & END_WSCALE))
		edge <<= e->wscale & 15;
	if (edge > e->max_window)
		e->max_window = edge;
	edge += s->ack;
	if (!(e->known & END_EDGE) || seq_after(edge, e->edge))
		e->edge = edge;
	e->known |= END_EDGE;
}

/* Zeek's endpoint states, as in its TCPSessionAdapter::UpdateStateMachine(). */
static __always_inline void take_state(struct flow_end *e, struct flow_end *peer, bool is_orig,
				       const struct flow_segment *s)
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
			/* The peer is established: only this end's SYN was missed. */
			state = END_ESTABLISHED;
		} else if (is_orig || s->len || peer->state != END_SYN_SENT) {
			/*
			 * A bare ACK in answer to a SYN is a challenge ACK (RFC 5961), and does not
			 * change the state.
			 */
			state = END_PARTIAL;
		}
	}
	state = (state + opaque_zero) & 7;
	if (s->flags & TCP_RST) {
		/* After both FINs a RST changes nothing. */
		if (state != END_CLOSED || peer->state != END_CLOSED)
			state = END_RESET;
	} else if (s->flags & TCP_FIN) {
		state = END_CLOSED;
		/* If the peer has sent a FIN before its RST, this was a normal close. */
		if (peer->state == END_RESET && (peer->known & END_FIN))
			peer->state = END_CLOSED;
	}
	e->state = state;
}

static __always_inline void take_handshake(struct flow_record *r, struct flow_end *e,
					   const struct flow_end *peer, bool is_orig,
					   const struct flow_segment *s)
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

static __always_inline void start_flow(struct flow_record *r, const struct flow_segment *s)
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

/* How many segments of the packet are retransmissions, whole or in part. */
static __always_inline __u32 sent_again(const struct flow_end *e, const struct flow_segment *s)
{
	__u32 again = e->next_seq - s->seq;

	if (!s->len || !(e->known & END_SEEN) || (s->flags & (TCP_SYN | TCP_RST)) ||
	    !seq_after(e->next_seq, s->seq))
		return 0;
	if (again >= s->len || !s->size)
		return s->packets;
	return (again + s->size - 1) / s->size;
}

/* Notes the letters of the packet, and counts zero windows and retransmissions. */
static __always_inline void take_letters(struct flow_record *r, struct flow_end *e,
					 const struct flow_end *peer, bool is_orig,
					 const struct flow_segment *s)
{
	/* Adding opaque_zero hides the value from the verifier, as in forget_why(). */
	__u32 again = sent_again(e, s) + opaque_zero;

	note_flags(r, e, is_orig, s);
	if (!s->window && !(s->flags & TCP_RST) && peer->state != END_CLOSED &&
	    e->state != END_RESET) {
		e->zero_windows++;
		if (is_noteworthy(e->zero_windows - 1, e->zero_windows))
			note(r, is_orig, 'W');
	}
	if (again && e->state != END_RESET) {
		e->retransmits += again;
		if (is_noteworthy(e->retransmits - again, e->retransmits))
			note(r, is_orig, 'T');
	}
}

/* Keeps a SYN that does not fit this connection until it is answered. */
static __always_inline void keep_other_syn(struct flow_record *r, const struct flow_segment *s)
{
	struct other_syn *syn = &r->other_syn;

	if (!syn->packets || syn->from != s->from || syn->seq != s->seq) {
		syn->first_ns = s->now;
		syn->seq = s->seq;
		syn->bytes = 0;
		syn->packets = 0;
		syn->from = s->from & 1;
		syn->has_wscale = s->has_wscale;
		syn->wscale = s->wscale;
	}
	syn->bytes += s->len;
	syn->packets++;
}

/* Begins the record of the connection of other_syn, and moves its counts there from the old one. */
static __always_inline void begin_by_other_syn(struct flow_record *r, struct flow_record *old)
{
	const struct other_syn *syn = &old->other_syn;
	struct flow_end *from = &old->ends[syn->from & 1];
	struct flow_end *e = &r->ends[syn->from & 1];

	r->start_ns = syn->first_ns;
	r->known = FLOW_STARTED;
	r->initiator = syn->from & 1;
	r->syn_retransmits = syn->packets - 1;
	note(r, true, 'S');
	e->state = END_SYN_SENT;
	e->known = END_SEEN | END_SYN | (syn->has_wscale ? END_WSCALE : 0);
	e->wscale = syn->wscale;
	e->flags = TCP_SYN;
	e->first_seq = syn->seq;
	e->next_seq = syn->seq + 1 + (syn->packets ? syn->bytes / syn->packets : 0);
	e->packets = syn->packets;
	e->bytes = syn->bytes;
	from->packets -= syn->packets;
	from->bytes -= syn->bytes;
	old->unexpected -= syn->packets;
}

/*
 * A capture file may lack packets. If one end acknowledges data that the other has sent beyond the
 * window, the packets between are missing in the file. The flow is then followed from there.
 */
static __always_inline void follow_gap(struct flow_record *r, struct flow_end *e,
				       struct flow_end *peer, const struct flow_segment *s)
{
	__u8 peer_from = (s->from & 1) ^ 1;
	__u32 end = seq_end(s);

	if (!replay || (s->flags & (TCP_SYN | TCP_RST)) || !(s->flags & TCP_ACK))
		return;
	if (r->gap_from == peer_from + 1 && seq_after(s->ack, r->gap_first) &&
	    !seq_after(s->ack, r->gap_end)) {
		peer->first_seq = r->gap_first;
		peer->next_seq = r->gap_end;
		peer->known &= ~(END_ACKED | END_EDGE | END_FIN);
		e->first_seq = s->seq;
		e->next_seq = end;
		e->known &= ~(END_ACKED | END_EDGE | END_FIN);
		r->gap_from = 0;
		return;
	}
	if (!s->len && !(s->flags & TCP_FIN))
		return;
	if (r->gap_from != s->from + 1 || seq_after(r->gap_first, s->seq) ||
	    seq_after(s->seq, r->gap_end)) {
		r->gap_first = s->seq;
		r->gap_end = end;
		r->gap_from = s->from + 1;
	} else if (seq_after(end, r->gap_end)) {
		r->gap_end = end;
	}
}

/* Adds a packet to the record of its flow. */
static __always_inline void count_segment(struct flow_record *r, const struct flow_segment *s)
{
	__u64 from = s->from & 1;
	struct flow_end *e, *peer;
	bool is_orig;

	barrier_var(from);
	e = &r->ends[from];
	peer = &r->ends[from ^ 1];
	if (!(r->known & FLOW_STARTED))
		start_flow(r, s);
	/*
	 * The barriers make the compiler read everything again after each step. Otherwise the
	 * verifier would follow each combination of flags and states through all later steps.
	 */
	barrier();
	is_orig = forget_why(r->initiator == s->from);
	e->packets += s->packets;
	e->bytes += s->len;

	if (forget_why(contradicts(e, peer, s))) {
		r->unexpected++;
		if (is_syn(s))
			keep_other_syn(r, s);
		follow_gap(r, e, peer, s);
		return;
	}
	if ((__s64)(s->now - r->last_ns) > 0)
		r->last_ns = s->now;
	barrier();
	take_letters(r, e, peer, is_orig, s);
	barrier();
	if (has_odd_flags(s) || (s->len && e->state == END_SYN_SENT))
		r->unexpected++;
	take_handshake(r, e, peer, is_orig, s);
	barrier();
	take_sequence(e, s);
	barrier();
	take_ack(e, peer, s);
	barrier();
	take_state(e, peer, is_orig, s);
	barrier();
	e->flags |= s->flags;
	if (!(r->known & FLOW_FINISHED) &&
	    (e->state == END_RESET || (e->known & peer->known & END_FIN_ACKED))) {
		r->finished_ns = s->now;
		r->known |= FLOW_FINISHED;
	}
}

/*
 * Whether the packet, in the middle of a connection, only advances counters and sequence numbers:
 * then count_usual() has the same effect as count_segment(). Most packets are like this.
 */
static __always_inline bool is_usual(const struct flow_record *r, const struct flow_end *e,
				     const struct flow_end *peer, const struct flow_segment *s)
{
	if ((s->flags & (TCP_SYN | TCP_FIN | TCP_RST | TCP_ACK)) != TCP_ACK || !s->window)
		return false;
	if ((r->known & (FLOW_STARTED | FLOW_FINISHED)) != FLOW_STARTED ||
	    (r->known & (FLOW_SYN_ACK | FLOW_ACK)) == FLOW_SYN_ACK)
		return false;
	if ((e->state != END_ESTABLISHED && e->state != END_PARTIAL) || peer->state == END_SYN_SENT)
		return false;
	if (!(e->known & END_SEEN) || ((e->known | peer->known) & END_FIN))
		return false;
	if (!(e->history & (s->len ? HISTORY_DATA : HISTORY_ACK)))
		return false;
	if (s->len && seq_after(e->next_seq, s->seq))
		return false;
	if ((__s64)(s->now - r->last_ns) > (__s64)idle_ns)
		return false;
	return !contradicts_window(e, peer, s) && !contradicts_ack(e, peer, s);
}

static __always_inline void count_usual(struct flow_record *r, struct flow_end *e,
					struct flow_end *peer, const struct flow_segment *s)
{
	e->packets += s->packets;
	e->bytes += s->len;
	e->flags |= s->flags;
	if ((__s64)(s->now - r->last_ns) > 0)
		r->last_ns = s->now;
	if (seq_after(s->seq + s->len, e->next_seq))
		e->next_seq = s->seq + s->len;
	take_ack(e, peer, s);
}

#endif /* TCPINSPECT_FLOW_STATE_BPF_H */
