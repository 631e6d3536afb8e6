/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The listening socket that an attempt is for, and the state of its queues. */
#ifndef TCPINSPECT_ACCEPT_LISTENER_BPF_H
#define TCPINSPECT_ACCEPT_LISTENER_BPF_H

#include "segment.bpf.h"
#include "socket.bpf.h"
#include "accept_trace.h"

#define SYNCOOKIES_OFF 0

/*
 * Which queues are so full that tcp_conn_request() silently drops a SYN. The result is used only
 * for a SYN that was dropped.
 */
static __always_inline __u16 full_queues(const struct sock *sk, const struct attempt *a)
{
	__u16 flags = a->queue_len > a->queue_max ? ATTEMPT_ACCEPT_QUEUE_FULL : 0;
	struct net *net;
	__u32 most;

	/* In nearly all cases the settings need not be read. */
	if (!a->syn_queue_len && a->queue_max)
		return flags;
	net = READ_MEMBER(sk, __sk_common.skc_net.net);
	most = READ_MEMBER(net, ipv4.sysctl_max_syn_backlog);
	/* Without SYN cookies the last quarter is for peers with an entry in the metrics cache. */
	if (READ_MEMBER(net, ipv4.sysctl_tcp_syncookies) == SYNCOOKIES_OFF &&
	    (a->syn_queue_len >= a->queue_max || most - a->syn_queue_len < most >> 2))
		flags |= ATTEMPT_SYN_QUEUE_FULL;
	return flags;
}

/*
 * Reads the state of a listener and its queues, by reads that may fault: the socket may have been
 * freed.
 */
static __always_inline void read_listener(const struct sock *sk, struct attempt *a)
{
	const struct inet_connection_sock *icsk = (const void *)sk;

	a->listener = (__u64)sk;
	a->queue_len = READ_MEMBER(sk, sk_ack_backlog);
	a->queue_max = READ_MEMBER(sk, sk_max_ack_backlog);
	a->syn_queue_len = READ_MEMBER(icsk, icsk_accept_queue.qlen.counter);
	a->uid = READ_MEMBER(sk, sk_uid.val);
	a->flags &= ~(ATTEMPT_ACCEPT_QUEUE_FULL | ATTEMPT_SYN_QUEUE_FULL);
	a->flags |= ATTEMPT_HAS_LISTENER | full_queues(sk, a);
}

/* Whether the listener of an attempt is known, and still listens. */
static __always_inline bool has_listener(const struct attempt *a)
{
	const struct sock *sk = (const struct sock *)a->listener;

	return sk && READ_MEMBER(sk, __sk_common.skc_state) == TCP_LISTEN;
}

/* Whether the peer of this connection began it with this sequence number (IRS in RFC 9293). */
static __always_inline bool began_with(struct bpf_sock *skc, __u32 isn)
{
	struct tcp_sock *tp;

	if (skc->state == TCP_SYN_SENT)
		return false;
	tp = bpf_skc_to_tcp_sock(skc);
	if (!tp)
		return false;
	/* A FIN adds 1 to both numbers. */
	return READ_MEMBER(tp, rcv_nxt) - (__u32)READ_MEMBER(tp, bytes_received) - 1 == isn;
}

/* The result of the lookup for the last SYN on a CPU. */
struct found_listener {
	__be32 daddr[4];
	__u64 listener;
	__u64 at; /* in jiffies; 0: the result holds for no other SYN */
	__u32 ifindex;
	__u16 dport;
	__u16 pad;
};

/*
 * Looks up the socket that a SYN will reach. Sets `listener` to its address if it listens, and
 * `is_old` if the SYN is an old duplicate (RFC 9293) of the SYN of an open connection. False: there
 * is no socket. Address translation or another BPF program can still send the SYN elsewhere;
 * look_at_request() then corrects it when the SYN-ACK is sent.
 */
static __always_inline bool find_listener(struct __sk_buff *skb, const struct segment *s,
					  __u64 *listener, bool *is_old)
{
	struct bpf_sock_tuple ends = {};
	struct bpf_sock *skc;

	if (s->ip_version == 4) {
		ends.ipv4.saddr = unmapped_ipv4(s->saddr);
		ends.ipv4.daddr = unmapped_ipv4(s->daddr);
		ends.ipv4.sport = bpf_htons(s->sport);
		ends.ipv4.dport = bpf_htons(s->dport);
		skc = bpf_skc_lookup_tcp(skb, &ends, sizeof(ends.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(ends.ipv6.saddr, s->saddr, 16);
		__builtin_memcpy(ends.ipv6.daddr, s->daddr, 16);
		ends.ipv6.sport = bpf_htons(s->sport);
		ends.ipv6.dport = bpf_htons(s->dport);
		skc = bpf_skc_lookup_tcp(skb, &ends, sizeof(ends.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!skc)
		return false;
	if (skc->state == TCP_LISTEN)
		*listener = (__u64)bpf_skc_to_tcp_sock(skc);
	else
		*is_old = began_with(skc, s->seq);
	bpf_sk_release(skc);
	return true;
}

/*
 * The address of the listener that a SYN will reach; 0: none. A lookup takes hundreds of
 * nanoseconds, so for the rest of a jiffy its result is used for all SYNs to the same destination.
 * There are three exceptions: the listener has SO_REUSEPORT, the lookup found a connection with the
 * SYN's addresses, or the listener has been closed since. `is_old` is as in find_listener(), and
 * false without a lookup.
 */
static __always_inline __u64 listener_of(struct __sk_buff *skb, const struct segment *s,
					 struct found_listener *last, bool *is_old)
{
	__u64 now = bpf_jiffies64();
	const struct sock *sk = (const struct sock *)last->listener;
	bool found;

	*is_old = false;
	if (last->at == now && last->ifindex == skb->ifindex && last->dport == s->dport &&
	    same_address(last->daddr, s->daddr) &&
	    (!sk || READ_MEMBER(sk, __sk_common.skc_state) == TCP_LISTEN))
		return last->listener;
	last->ifindex = skb->ifindex;
	last->dport = s->dport;
	__builtin_memcpy(last->daddr, s->daddr, sizeof(last->daddr));
	last->listener = 0;
	found = find_listener(skb, s, &last->listener, is_old);
	sk = (const struct sock *)last->listener;
	last->at = now;
	if (found && (!sk || BPF_CORE_READ_BITFIELD_PROBED(sk, __sk_common.skc_reuseport)))
		last->at = 0;
	return last->listener;
}

/* Sets the local end of an attempt from its request socket, which begins like a struct sock. */
static __always_inline void set_local(struct attempt *a, const struct sock *request)
{
	struct ends ends;

	read_ends(&ends, request);
	__builtin_memcpy(a->laddr, ends.local, sizeof(a->laddr));
	a->lport = ends.local_port;
	a->bound_ifindex = request->__sk_common.skc_bound_dev_if;
}

/*
 * The initial sequence number that a SYN-ACK answers. With Fast Open the SYN-ACK is sent by a full
 * socket, before the final ACK, and acknowledges the data of the SYN, too.
 */
static __always_inline __u32 answered_isn(struct __sk_buff *skb, __u32 ack)
{
	struct bpf_sock *skc = skb->sk;
	struct tcp_sock *tp;

	if (!skc || skc->state != TCP_SYN_RECV)
		return ack - 1;
	tp = bpf_skc_to_tcp_sock(skc);
	return tp ? BPF_CORE_READ(tp, copied_seq) - 1 : ack - 1;
}

/*
 * The same for a SYN-ACK that acknowledges more than the SYN and is sent for a half-open
 * connection: with Fast Open, that is a retransmitted SYN-ACK. 0: it is none.
 */
static __always_inline __u32 answered_again_isn(struct __sk_buff *skb, __u32 ack)
{
	struct bpf_sock *skc = skb->sk;
	struct tcp_request_sock *request;

	if (!skc || skc->state != TCP_NEW_SYN_RECV)
		return 0;
	request = bpf_skc_to_tcp_request_sock(skc);
	return request && request->rcv_isn != ack - 1 ? request->rcv_isn : 0;
}

/* Reads the kind of an attempt, and its listener, from the socket that sends the SYN-ACK. */
static __always_inline void look_at_request(struct __sk_buff *skb, struct attempt *a)
{
	struct bpf_sock *skc = skb->sk;
	struct tcp_request_sock *request;
	const struct sock *listener;
	struct tcp_sock *tp;

	if (!skc) {
		/* A SYN-ACK with a SYN cookie has no socket: the kernel keeps no state for it. */
		a->flags |= ATTEMPT_COOKIE;
		return;
	}
	if (skc->state == TCP_SYN_RECV) {
		/*
		 * Without fastopen_rsk, it is a simultaneous open (RFC 9293), or a socket connects
		 * to itself.
		 */
		tp = bpf_skc_to_tcp_sock(skc);
		if (tp && BPF_CORE_READ(tp, fastopen_rsk))
			a->flags |= ATTEMPT_FAST_OPEN;
		return;
	}
	request = bpf_skc_to_tcp_request_sock(skc);
	if (!request)
		return;
	set_local(a, (const struct sock *)request);
	listener = request->req.req.__req_common.skc_listener;
	if (!listener || (__u64)listener == a->listener)
		return;
	read_listener(listener, a);
	/* The length already includes this attempt. */
	if (a->syn_queue_len)
		a->syn_queue_len--;
}

#endif /* TCPINSPECT_ACCEPT_LISTENER_BPF_H */
