/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What becomes of an attempt when the kernel drops one of its packets. */
#ifndef TCPINSPECT_ACCEPT_DROP_BPF_H
#define TCPINSPECT_ACCEPT_DROP_BPF_H

#include "skb.bpf.h"
#include "accept_packet.bpf.h"

/* The number of the reason TCP_RESET in the running kernel; 0: it has no such reason. */
const volatile __u32 reason_tcp_reset = 0;

/* Whether the last RST that this CPU sent answers this segment. */
static __always_inline bool last_rst_answers(const struct segment *s)
{
	const struct sent_rst *sent = last_sent_rst();

	return sent->valid && sent->port == s->sport &&
	       same_address((const __be32 *)sent->addr, s->saddr);
}

/*
 * Follows an attempt again if it was reported as dropped or forwarded, and now a SYN of it is
 * refused. False: this is not the case, or the table is full.
 */
static __always_inline bool resume_refused(const struct sk_buff *skb, const struct attempt_key *key,
					   const struct segment *s)
{
	enum accept_fate earlier;

	if (!last_rst_answers(s) || !may_report_again())
		return false;
	earlier = reported_fate(key, s->daddr, s->dport);
	return (earlier == FATE_DROPPED || earlier == FATE_FORWARDED) &&
	       begin_again(key, s, skb->skb_iif, earlier);
}

/*
 * Whether a SYN does not belong to the attempt that was found in the table, but to one whose fate
 * was reported. Both have the same initiator and ISN. A different destination alone does not prove
 * it: the address may have been translated.
 */
static __always_inline bool is_of_reported_attempt(const struct attempt *found,
						   const struct attempt_key *key,
						   const struct segment *s)
{
	return !has_destination(found, s) && reported_fate(key, s->daddr, s->dport);
}

/* linux/if_packet.h: to whom the frame was sent. */
#define PACKET_BROADCAST 1
#define PACKET_MULTICAST 2
#define PACKET_OTHERHOST 3

/*
 * Why TCP dropped a SYN, if the kernel gives only the reason NOT_SPECIFIED; 0: unknown. `receiver`
 * is the socket that was to receive it, or NULL.
 */
static __always_inline __u32 unspecified_reason(const struct sk_buff *skb,
						const struct sock *receiver)
{
	__u8 sent_to;

	if (receiver && receiver->__sk_common.skc_state == TCP_TIME_WAIT)
		return REASON_TIME_WAIT;
	sent_to = BPF_CORE_READ_BITFIELD_PROBED(skb, pkt_type);
	if (sent_to == PACKET_BROADCAST || sent_to == PACKET_MULTICAST)
		return REASON_NOT_UNICAST;
	return 0;
}

/*
 * Whether a SYN is a copy of one that a bridge forwards. A promiscuous bridge hands a copy to this
 * host, which drops it. If the bridge floods the SYN, a port may drop its copy.
 */
static __always_inline bool is_bridged_copy(const struct sk_buff *skb, const struct attempt *a)
{
	return (a->flags & ATTEMPT_LEFT) &&
	       BPF_CORE_READ_BITFIELD_PROBED(skb, pkt_type) == PACKET_OTHERHOST;
}

static __always_inline void set_reason(struct attempt *a, __u32 reason, bool from_kernel)
{
	a->reason = reason;
	if (from_kernel)
		a->flags |= ATTEMPT_REASON_FROM_KERNEL;
	else
		a->flags &= ~ATTEMPT_REASON_FROM_KERNEL;
}

static __always_inline void on_syn_dropped(void *ctx, const struct segment *s,
					   const struct attempt_key *key, struct attempt *a,
					   __u32 reason, __u32 inferred, __u64 place)
{
	bool refused = last_rst_answers(s);

	/*
	 * Once a SYN-ACK was sent, the drop of another SYN does not end the attempt, but a RST
	 * does.
	 */
	if (a->phase == ATTEMPT_ESTABLISHED || (a->phase == ATTEMPT_ANSWERED && !refused))
		return;
	if (reason && reason == reason_no_socket && !refused) {
		/*
		 * If the RST was not dropped, it waits for the link-layer address of the next hop.
		 */
		if (a->flags & ATTEMPT_RST_DROPPED) {
			report(ctx, key, a, FATE_DROPPED);
			return;
		}
		set_reason(a, REASON_NO_LISTENER, true);
		a->place = place;
		rst_was_delayed = true;
		return;
	}
	a->place = place;
	if (reason && reason == reason_no_socket)
		set_reason(a, REASON_NO_LISTENER, true);
	else if (is_specific(reason))
		set_reason(a, reason, true);
	else if (refused && !has_listener(a)) /* there may have been one at an earlier SYN */
		set_reason(a, REASON_NO_LISTENER, false);
	else
		set_reason(a, inferred, false);
	report(ctx, key, a, refused ? FATE_REFUSED : FATE_DROPPED);
}

static __always_inline bool accept_queue_is_full(const struct attempt *a)
{
	const struct sock *sk = (const struct sock *)a->listener;

	return sk && BPF_CORE_READ(sk, sk_ack_backlog) > BPF_CORE_READ(sk, sk_max_ack_backlog);
}

/*
 * Whether a segment acknowledges the SYN-ACK. TCP answers another number with a RST and keeps the
 * half-open connection (RFC 9293, 3.10.7.4). With Fast Open, the segment may acknowledge data too.
 */
static __always_inline bool acknowledges(const struct segment *s, const struct attempt *a)
{
	return !a->expected_ack || (a->flags & ATTEMPT_FAST_OPEN) ||
	       (__u16)s->ack == a->expected_ack;
}

/* The half-open connection stays, unless the kernel answers with a RST (tcp_abort_on_overflow). */
static __always_inline void on_ack_dropped(void *ctx, const struct segment *s,
					   const struct attempt_key *key, struct attempt *a,
					   __u32 reason, __u64 place)
{
	bool overflow = reason && reason == reason_listen_overflow;
	bool refused = last_rst_answers(s);
	bool no_socket = reason && reason == reason_no_socket;
	/*
	 * The kernel also gives this reason if a SYN cookie is valid, but the accept queue is full.
	 */
	bool no_room = no_socket && !refused && (a->flags & ATTEMPT_COOKIE);

	if (!acknowledges(s, a))
		return;
	if (overflow || no_room || accept_queue_is_full(a)) {
		a->flags |= ATTEMPT_ACK_DROPPED;
		set_reason(a, REASON_ACCEPT_QUEUE_FULL, overflow);
		a->place = place;
	} else if (no_socket) {
		set_reason(a, REASON_NO_LISTENER, true);
		a->place = place;
	} else if (is_specific(reason)) {
		set_reason(a, reason, true);
		a->place = place;
	}
	if (refused)
		report(ctx, key, a, FATE_REFUSED);
}

/* The answer to a SYN was dropped on this host: the SYN-ACK, or the RST that refuses it. */
static __always_inline void on_answer_dropped(void *ctx, const struct attempt_key *key,
					      struct attempt *a, bool is_rst, __u32 reason,
					      __u64 place)
{
	bool waited = a->reason == REASON_NO_LISTENER;

	if (a->phase == ATTEMPT_ESTABLISHED || (is_rst && a->phase != ATTEMPT_NEW))
		return;
	/* Before Linux 5.17 the kernel gives only the place. */
	a->place = place;
	if (is_specific(reason))
		set_reason(a, reason, true);
	if (!is_rst)
		return;
	a->flags |= ATTEMPT_RST_DROPPED;
	if (waited)
		report(ctx, key, a, FATE_DROPPED);
}

static __always_inline void on_rst_dropped(void *ctx, const struct attempt_key *key,
					   struct attempt *a, __u32 reason)
{
	/* With any other reason, the RST never reached the half-open connection. */
	if (is_specific(reason) && reason != reason_tcp_reset)
		return;
	set_reason(a, REASON_PEER_RESET, false);
	report(ctx, key, a, FATE_RESET);
}

/*
 * Whether the packet is in another network namespace: the same packet may pass through several.
 * While TCP handles the packet, skb->dev is NULL, and the device of the route is used.
 */
static __always_inline bool is_in_other_netns(const struct sk_buff *skb)
{
	const struct net_device *dev = skb->dev;
	const struct net *net;

	if (!dev)
		dev = route_device(skb);
	if (!dev)
		return false;
	net = READ_MEMBER(dev, nd_net.net);
	return READ_MEMBER(net, ns.inum) != own_netns;
}

/*
 * A SYN that another network namespace refuses, for example that of a container behind a macvlan
 * interface: the RST leaves through an interface that is watched. For this namespace the SYN was
 * forwarded.
 */
static __always_inline void on_drop_in_other_netns(void *ctx, const struct segment *s)
{
	struct attempt_key key;
	struct attempt *known;

	if (!is_first_syn(s->flags) || !last_rst_answers(s))
		return;
	last_sent_rst()->valid = false;
	find_key(&key, s->saddr, s->sport, s->seq, s->daddr, s->dport);
	known = bpf_map_lookup_elem(&attempts, &key);
	if (known && known->phase == ATTEMPT_NEW)
		report(ctx, &key, known, FATE_FORWARDED);
}

static __always_inline int on_drop(void *ctx, const struct sk_buff *trusted, __u64 place,
				   __u32 reason, const struct sock *receiver)
{
	const struct sk_buff *skb = UNTRUSTED(trusted);
	struct attempt_key key;
	struct attempt *known;
	__u32 inferred;
	struct segment s;
	__u16 protocol = skb->protocol;
	bool outgoing, is_rst, is_syn, is_elsewhere;

	if ((protocol != bpf_htons(ETHERTYPE_IPV4) && protocol != bpf_htons(ETHERTYPE_IPV6)) ||
	    is_harmless_free(skb, reason, place))
		return 0;
	is_elsewhere = is_in_other_netns(skb);
	if ((is_elsewhere && !last_sent_rst()->valid) || !read_segment(skb, &s))
		return 0;
	if (is_elsewhere) {
		on_drop_in_other_netns(ctx, &s);
		return 0;
	}
	/*
	 * Data of established connections has later sequence numbers, so its key matches no
	 * attempt.
	 */
	is_rst = s.flags & TCP_RST;
	is_syn = is_first_syn(s.flags);
	outgoing =
		(s.flags & (TCP_SYN | TCP_ACK)) == (TCP_SYN | TCP_ACK) || (is_rst && !skb->skb_iif);
	if (outgoing)
		find_key(&key, s.daddr, s.dport, s.ack - 1, s.saddr, s.sport);
	else if (s.flags & TCP_SYN)
		find_key(&key, s.saddr, s.sport, s.seq, s.daddr, s.dport);
	else
		find_key(&key, s.saddr, s.sport, s.seq - 1, s.daddr, s.dport);
	known = bpf_map_lookup_elem(&attempts, &key);
	if (outgoing) {
		if (known)
			on_answer_dropped(ctx, &key, known, is_rst, reason, place);
		return 0;
	}
	if (!known && is_syn && resume_refused(skb, &key, &s))
		known = bpf_map_lookup_elem(&attempts, &key);
	if (known && is_syn && !is_of_reported_attempt(known, &key, &s) &&
	    !is_bridged_copy(skb, known)) {
		inferred = reason && !is_specific(reason) ? unspecified_reason(skb, receiver) : 0;
		on_syn_dropped(ctx, &s, &key, known, reason, inferred, place);
	} else if (known && !is_syn && known->phase == ATTEMPT_ANSWERED) {
		if (is_rst)
			on_rst_dropped(ctx, &key, known, reason);
		else
			on_ack_dropped(ctx, &s, &key, known, reason, place);
	}
	/* A RST answers only the segment that is freed right after it was sent. */
	last_sent_rst()->valid = false;
	return 0;
}

#endif /* TCPINSPECT_ACCEPT_DROP_BPF_H */
