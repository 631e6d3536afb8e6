/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What a change of a socket's TCP state means for its connection. */
#ifndef TCPINSPECT_CONNECT_STATE_BPF_H
#define TCPINSPECT_CONNECT_STATE_BPF_H

#include "connect_open.bpf.h"

#define SHUTDOWN_MASK 3

/*
 * Whether inet_csk_accept() is hooked. Otherwise a connection counts as accepted when it is
 * established, and no process is reported.
 */
const volatile bool accept_is_hooked = false;

/* Whether tcp_v4_connect() and tcp_v6_connect() are hooked. */
const volatile bool ipv4_is_hooked = false;
const volatile bool ipv6_is_hooked = false;

/*
 * Values that are read through pointers in a socket. They are read in one place, and with
 * bpf_probe_read_kernel() if that is allowed: at each place that loads a pointer, the verifier
 * searches all of the kernel's types, which takes some milliseconds.
 */
struct indirect {
	__u32 netns;
	bool in_connect; /* it changes to CLOSE because its connect function fails */
};

static __always_inline bool is_unconnected(const struct sock *sk)
{
	const struct socket *socket;

	if (may_probe_read) {
		socket = BPF_CORE_READ(sk, sk_socket);
		return socket && BPF_CORE_READ(socket, state) == SS_UNCONNECTED;
	}
	socket = sk->sk_socket;
	return socket && socket->state == SS_UNCONNECTED;
}

static __always_inline struct indirect read_indirect(const struct sock *sk,
						     const struct connection *kept, int new_state)
{
	struct indirect indirect = {};

	/* All other changes take the namespace from the kept connection. */
	if (!kept || kept->phase == PHASE_OPEN || new_state == TCP_SYN_SENT)
		indirect.netns = read_netns(sk);
	if (new_state == TCP_CLOSE && is_unconnected(sk))
		indirect.in_connect = !sk->sk_err && sk->sk_shutdown != SHUTDOWN_MASK;
	return indirect;
}

/* Whether the current thread is in the hooked connect function of this socket. */
static __always_inline bool is_in_call(const struct connection *kept)
{
	return kept && kept->phase == PHASE_CALLING &&
	       kept->event.tid == (__u32)bpf_get_current_pid_tgid();
}

/*
 * The ends are needed only here. In a scope of their own, the compiler can reuse their place on the
 * small BPF stack.
 */
static __always_inline void set_ends_of(struct connect_event *e, const struct sock *sk)
{
	struct ends ends;

	read_ends(&ends, sk);
	set_ends(e, &ends);
}

/*
 * The hook on the return of the connect function reports this attempt, because it also knows the
 * return value.
 */
static __always_inline void on_syn_sent_in_call(const struct sock *sk, const struct tcp_sock *tp,
						struct connection *kept)
{
	set_ends_of(&kept->event, sk);
	kept->old_sport = read_inet_sport(tp);
	kept->old_errors = sk->sk_error_queue.qlen;
	kept->sent = true;
}

/*
 * Reports an attempt for which the tables have no room: the event of its fate will have no process.
 */
static __always_inline void report_untracked(void *ctx, struct connection *c)
{
	__sync_fetch_and_add(&totals.untracked_pending, 1);
	if (c->announced)
		emit(ctx, &c->event, CONNECT_ATTEMPT);
	else
		count_lost(); /* whether it matches is not known yet */
}

static __always_inline void on_syn_sent(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
					const struct indirect *indirect, struct connection *kept,
					struct connection *c)
{
	c->phase = PHASE_WAITING;
	c->sent = true;
	c->event.direction = DIRECTION_OUT;
	if (kept) {
		count_missed(kept);
		forget(sk);
	}
	if (ending)
		return;
	set_ends_of(&c->event, sk);
	c->event.netns = indirect->netns;
	/* First, because it is the cheapest check. */
	if (!destination_matches(&c->event))
		return;
	start_connection(c);
	c->old_sport = read_inet_sport(tp);
	c->old_errors = sk->sk_error_queue.qlen;
	if (!process_matches(&c->event))
		return;
	if (sk->__sk_common.skc_family == AF_INET6 ? ipv6_is_hooked : ipv4_is_hooked)
		__sync_fetch_and_add(&totals.unhooked, 1);
	/*
	 * The source port is chosen after this, so a filter on it is applied when the fate is
	 * known.
	 */
	c->announced = c->event.sport || !needs_source_port(&c->event);
	if (c->announced && !source_matches(&c->event))
		return;
	if (!keep(sk, c))
		report_untracked(ctx, c);
	else if (c->announced)
		emit(ctx, &c->event, CONNECT_ATTEMPT);
}

/*
 * Whether the attempt of a socket that leaves SYN_SENT may be one that was reported without an
 * entry in the tables.
 */
static __always_inline bool may_be_untracked(int old_state)
{
	return old_state == TCP_SYN_SENT && !process_filter && (__s64)totals.untracked_pending > 0;
}

/*
 * Reports the fate of an attempt that has no entry in the tables. `c` is filled from the socket
 * alone. False: the filter rejects it.
 */
static __always_inline bool report_untracked_fate(void *ctx, struct connection *c,
						  enum connect_kind kind)
{
	if (!destination_matches(&c->event) || !source_matches(&c->event))
		return false;
	__sync_fetch_and_add(&totals.untracked_pending, -1);
	emit(ctx, &c->event, kind);
	return true;
}

static __always_inline void on_established(void *ctx, const struct sock *sk,
					   const struct indirect *indirect, struct connection *kept,
					   struct connection *c, int old_state)
{
	if (kept && kept->phase != PHASE_OPEN) {
		*c = *kept;
		set_ends_of(&c->event, sk);
		if (!announce(ctx, c)) {
			forget(sk);
			remember_rejected(sk);
			return;
		}
		set_elapsed(c);
		emit(ctx, &c->event, CONNECT_ESTABLISHED);
		if (wanted(CONNECT_CLOSED))
			keep_open(sk, c);
		else
			forget(sk);
		return;
	}
	/*
	 * The filter has rejected an outgoing connection without an entry, or the tables had no
	 * room.
	 */
	if (old_state != TCP_SYN_RECV) {
		c->event.direction = DIRECTION_OUT;
		c->event.ts_ns = bpf_ktime_get_ns();
		c->event.netns = indirect->netns;
		set_ends_of(&c->event, sk);
		if (!may_be_untracked(old_state) ||
		    !report_untracked_fate(ctx, c, CONNECT_ESTABLISHED))
			remember_rejected(sk);
		return;
	}
	if (kept && kept->event.direction == DIRECTION_IN)
		return; /* accepted already */
	c->event.direction = DIRECTION_IN;
	c->event.ts_ns = bpf_ktime_get_ns();
	c->event.netns = indirect->netns;
	set_ends_of(&c->event, sk);
	if (!destination_matches(&c->event) || !source_matches(&c->event)) {
		remember_rejected(sk);
		return;
	}
	if (!accept_is_hooked && process_matches(&c->event))
		emit(ctx, &c->event, CONNECT_ACCEPTED);
	if (wanted(CONNECT_CLOSED))
		keep_open(sk, c);
}

/*
 * The errno of the last ICMP error of this attempt, if the kernel has queued it: over IPv4 it does
 * so for each socket in SYN_SENT, over IPv6 for those that asked for it. SO_ERROR leaves it there.
 */
static __always_inline int queued_error(const struct sock *sk, const struct connection *c)
{
	__u32 at = bpf_core_field_offset(struct sock_exterr_skb, ee);
	struct sock_extended_err ee = {};
	const struct sk_buff *last;

	if (!sk->sk_error_queue.qlen || (__u8)sk->sk_error_queue.qlen == c->old_errors)
		return 0;
	/* Keeps the offset out of a load instruction. There, libbpf would also set the size of the
	 * load to that of the member, which is larger than a load can be. */
	barrier_var(at);
	if (may_probe_read) {
		last = BPF_CORE_READ(sk, sk_error_queue.prev);
		bpf_core_read(&ee, sizeof(ee), &last->cb[at]);
	} else {
		/* Byte by byte: in the kernel's types the control block is an array of bytes. */
		last = sk->sk_error_queue.prev;
		ee.ee_errno = (__u8)last->cb[at];
		ee.ee_origin = last->cb[at + 4];
	}
	if (ee.ee_origin != SO_EE_ORIGIN_ICMP && ee.ee_origin != SO_EE_ORIGIN_ICMP6)
		return 0;
	return ee.ee_errno;
}

/*
 * Sets why a connection went from SYN_SENT to CLOSE. sk_err has the error that the network
 * reported. If it is 0, this host ended the attempt. An ICMP error that came while a system call
 * had locked the socket is in sk_err_soft, until SO_ERROR or tcp_write_err() takes it from there.
 */
static __always_inline void set_error(struct connection *c, const struct sock *sk,
				      const struct indirect *indirect, __be16 sport)
{
	int error = sk->sk_err;

	if (!error && !indirect->in_connect)
		error = sk->sk_err_soft ? sk->sk_err_soft : c->soft_error;
	if (!error && !indirect->in_connect)
		error = queued_error(sk, c);
	if (!error) {
		if (indirect->in_connect) {
			/* If no source port was set, the kernel ran out of ports. */
			if (c->event.sport || sport != c->old_sport)
				return;
			error = EADDRNOTAVAIL;
		} else if (sk->sk_shutdown == SHUTDOWN_MASK || sk->sk_lock.owned) {
			/* close(), shutdown(), connect() to AF_UNSPEC, or the process was killed */
			c->event.known |= KNOWN_GIVEN_UP;
			return;
		} else {
			return; /* the process has already fetched it with SO_ERROR */
		}
	}
	c->event.error = error;
	c->event.known |= KNOWN_ERROR;
}

static __always_inline enum connect_closed_by closed_by(const struct sock *sk, int old_state)
{
	int error = sk->sk_err;

	if (error == ECONNRESET || error == EPIPE || error == ECONNABORTED)
		return CLOSED_BY_RESET;
	if (old_state == TCP_LAST_ACK)
		return CLOSED_BY_REMOTE;
	if (has_sent_fin(old_state))
		return CLOSED_BY_LOCAL;
	/*
	 * Without an error, this host aborted it (unread data, SO_LINGER 0). Other errors are a
	 * timeout or no route.
	 */
	return error ? CLOSED_BY_UNKNOWN : CLOSED_BY_RESET;
}

/*
 * Sets the payload bytes of each direction. The kernel counts sequence numbers: a FIN counts as one
 * in each direction. A SYN counts as one only in the bytes_acked of the side that initiated.
 */
static __always_inline void set_bytes(struct connect_event *e, const struct sock *sk,
				      const struct tcp_sock *tp, int old_state)
{
	__u32 una = tp->snd_una, nxt = tp->snd_nxt, end = tp->write_seq;
	bool fin = has_sent_fin(old_state), syn = e->direction == DIRECTION_OUT;
	__u64 tx = tp->bytes_acked, rx = tp->bytes_received;

	if (e->direction == DIRECTION_UNKNOWN) {
		/* The first sequence number of the payload, from how much of it was sent. */
		__u32 first = nxt - (fin && nxt == end) - (tp->bytes_sent - tp->bytes_retrans);

		syn = una - (__u32)tx + 1 == first;
	}
	if (syn && tx)
		tx--;
	if (fin && una == end && tx)
		tx--;
	if (has_received_fin(sk) && rx)
		rx--;
	e->tx_bytes = tx;
	e->rx_bytes = rx;
}

static __always_inline void on_end(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
				   struct connection *c, int old_state)
{
	set_bytes(&c->event, sk, tp, old_state);
	c->event.closed_by = closed_by(sk, old_state);
	c->event.srtt_us = read_srtt_us(tp);
	c->event.min_rtt_us = read_min_rtt_us(tp);
	c->event.retransmits = tp->total_retrans;
	if (exporting)
		export_time(EXPORT_RTT, c->event.srtt_us * 1000ULL);
	emit(ctx, &c->event, CONNECT_CLOSED);
}

static __always_inline bool is_handshake(int state)
{
	return state == TCP_SYN_SENT || state == TCP_SYN_RECV;
}

static __always_inline void on_close(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
				     const struct indirect *indirect, struct connection *kept,
				     struct connection *c, int old_state)
{
	__be16 sport = read_inet_sport(tp);

	if (!kept) {
		if (old_state != TCP_SYN_SENT && was_rejected(sk))
			return;
		set_ends_of(&c->event, sk);
		c->event.sport = bpf_ntohs(sport);
		c->event.ts_ns = bpf_ktime_get_ns();
		c->event.netns = indirect->netns;
		if (old_state == TCP_SYN_SENT) {
			c->event.direction = DIRECTION_OUT;
			set_error(c, sk, indirect, sport);
			report_untracked_fate(ctx, c, CONNECT_FAILED);
			return;
		}
		/* It is older than the run: only its end can be reported. */
		if (matches(&c->event))
			on_end(ctx, sk, tp, c, old_state);
		return;
	}
	/* The connect function fails: the hook on its return reports that. */
	if (indirect->in_connect && is_in_call(kept)) {
		kept->sent = false;
		return;
	}
	*c = *kept;
	forget(sk);
	set_elapsed(c);
	if (c->phase == PHASE_OPEN) {
		if (process_matches(&c->event))
			on_end(ctx, sk, tp, c, old_state);
		return;
	}
	if (!indirect->in_connect || sport != c->old_sport)
		c->event.sport = bpf_ntohs(sport);
	if (!announce(ctx, c))
		return;
	set_error(c, sk, indirect, sport);
	emit(ctx, &c->event, CONNECT_FAILED);
}

/* Whether a state change is of interest if its connection has no entry in the tables. */
static __always_inline bool matters_untracked(int old_state, int new_state)
{
	switch (new_state) {
	case TCP_SYN_SENT:
		return true;
	case TCP_ESTABLISHED:
		if (old_state == TCP_SYN_RECV)
			return wanted(CONNECT_ACCEPTED) || wanted(CONNECT_CLOSED);
		return remembers_rejected() || may_be_untracked(old_state);
	case TCP_CLOSE:
		if (is_handshake(old_state))
			return may_be_untracked(old_state);
		return wanted(CONNECT_CLOSED) && !process_filter && old_state != TCP_LISTEN &&
		       old_state != TCP_CLOSE;
	}
	return false;
}

/*
 * Whether a state change may be of interest. The end of an established connection is only of
 * interest if ends are reported.
 */
static __always_inline bool is_followed(int old_state, int new_state)
{
	if (new_state == TCP_CLOSE)
		return is_handshake(old_state) || wanted(CONNECT_CLOSED);
	return new_state == TCP_SYN_SENT || new_state == TCP_ESTABLISHED;
}

/*
 * Looks up a connection in the tables. False: the state change is of no interest. This is done
 * first, because most changes are of connections that are not followed.
 */
static __always_inline bool find_connection(const struct sock *sk, int old_state, int new_state,
					    struct connection **kept)
{
	if (!is_followed(old_state, new_state))
		return false;
	*kept = find(sk);
	if (*kept && (*kept)->phase == PHASE_IGNORED) {
		if (new_state == TCP_ESTABLISHED)
			return false;
		forget(sk);
		*kept = NULL;
		if (new_state == TCP_CLOSE)
			return false;
	}
	return *kept || matters_untracked(old_state, new_state);
}

static __noinline int on_state(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
			       struct connection *kept, int states)
{
	int old_state = states >> 8, new_state = states & 0xff;
	/* One for all cases, because the stack is small. */
	struct connection c = {};
	struct indirect indirect;

	if (new_state == TCP_SYN_SENT && is_in_call(kept)) {
		on_syn_sent_in_call(sk, tp, kept);
		return 0;
	}
	indirect = read_indirect(sk, kept, new_state);
	if (new_state == TCP_SYN_SENT)
		on_syn_sent(ctx, sk, tp, &indirect, kept, &c);
	else if (new_state == TCP_ESTABLISHED)
		on_established(ctx, sk, &indirect, kept, &c, old_state);
	else
		on_close(ctx, sk, tp, &indirect, kept, &c, old_state);
	return 0;
}

#endif /* TCPINSPECT_CONNECT_STATE_BPF_H */
