/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Attempts as seen at interfaces: SYNs that come in, and the answers that go out. */
#ifndef TCPINSPECT_ACCEPT_PACKET_BPF_H
#define TCPINSPECT_ACCEPT_PACKET_BPF_H

#include "skb.bpf.h"
#include "accept_table.bpf.h"
#include "accept_listener.bpf.h"

/*
 * A packet that is seen again so soon was not retransmitted. It has passed through a second
 * interface, such as a bridge after one of its ports. A SYN or SYN-ACK is retransmitted after about
 * a second (RFC 6298).
 */
#define SAME_PACKET_NS (20 * 1000 * 1000ULL)

/* False: the SYN is an old duplicate of the SYN of an open connection. */
static __always_inline bool set_listener(struct __sk_buff *skb, const struct segment *s,
					 struct attempt *a)
{
	bool is_old;

	a->listener = listener_of(skb, s, &this_cpu()->found, &is_old);
	if (a->listener)
		read_listener((const struct sock *)a->listener, a);
	return !is_old;
}

/*
 * Starts to follow an attempt at its SYN. Returns 0, the error of begin_attempt(), or -EALREADY: an
 * old duplicate of the SYN of an open connection begins no attempt.
 */
static __noinline int begin(struct __sk_buff *skb, const struct attempt_key *key,
			    const struct segment *s, __u64 now)
{
	struct attempt a = {};

	if (!skb || !key || !s)
		return -EINVAL;
	a.syn_ns = now;
	a.last_syn_ns = now;
	a.ifindex = skb->ifindex;
	a.phase = ATTEMPT_NEW;
	a.ip_version = s->ip_version;
	a.dport = s->dport;
	__builtin_memcpy(a.daddr, s->daddr, sizeof(a.daddr));
	return set_listener(skb, s, &a) ? begin_attempt(key, &a) : -EALREADY;
}

/*
 * Follows an attempt again after `earlier` was reported as its fate, at a SYN-ACK or a repeated
 * SYN. False: the table is full.
 */
static __noinline int begin_again(const struct attempt_key *key, const struct segment *s,
				  __u32 ifindex, __u32 earlier)
{
	struct attempt a = {};

	if (!key || !s)
		return 0;
	a.last_syn_ns = bpf_ktime_get_ns();
	a.ifindex = ifindex;
	a.phase = ATTEMPT_NEW;
	a.ip_version = s->ip_version;
	a.flags = ATTEMPT_CONTINUED;
	a.syn_retransmits = 1;
	if (s->flags & TCP_ACK) {
		a.dport = s->sport;
		__builtin_memcpy(a.daddr, s->saddr, sizeof(a.daddr));
	} else {
		a.dport = s->dport;
		__builtin_memcpy(a.daddr, s->daddr, sizeof(a.daddr));
	}
	if (begin_attempt(key, &a))
		return 0;
	uncount_fate(earlier);
	return 1;
}

static __always_inline bool has_destination(const struct attempt *a, const struct segment *s)
{
	return a->dport == s->dport && same_address((const __be32 *)a->daddr, s->daddr);
}

/* A SYN of an attempt that is in the table. */
static __always_inline void on_repeated_syn(struct __sk_buff *skb, const struct segment *s,
					    struct attempt *known, __u64 now)
{
	if (now - known->last_syn_ns < SAME_PACKET_NS)
		return;
	known->last_syn_ns = now;
	if (known->syn_retransmits < 255)
		known->syn_retransmits++;
	if (known->phase == ATTEMPT_NEW)
		set_listener(skb, s, known);
}

static __always_inline void on_syn(struct __sk_buff *skb, const struct segment *s)
{
	__u64 now = bpf_ktime_get_ns();
	struct accept_cpu *cpu = this_cpu();
	enum accept_fate earlier;
	struct attempt_key key;
	struct attempt *known;
	bool may_retry = false;
	__u16 destination;
	int error;

	cpu->sent.valid = false;
	note_syn(cpu, now);
	find_key(&key, s->saddr, s->sport, s->seq, s->daddr, s->dport);
	cpu->last_syn = key;
	earlier = reported_fate(&key, s->daddr, s->dport);
	/* A SYN nearly always begins a new attempt, so the table is not searched first. */
	error = earlier ? -EEXIST : begin(skb, &key, s, now);
	if (error == -EEXIST || error == -EALREADY) {
		known = bpf_map_lookup_elem(&attempts, &key);
		if (known && (key.destination || has_destination(known, s))) {
			on_repeated_syn(skb, s, known, now);
			return;
		}
		if (!known || earlier || error == -EALREADY)
			return;
		set_destination(&key, s->daddr, s->dport);
		this_cpu()->last_syn = key;
		may_retry = true;
	} else if (error) {
		/*
		 * The BPF stack has no room for a second key, so `key` holds the key of the evicted
		 * attempt meanwhile.
		 */
		destination = key.destination;
		known = choose_evicted(&key) ? bpf_map_lookup_elem(&attempts, &key) : NULL;
		may_retry = known;
		if (known)
			report(skb, &key, known, has_left(known) ? FATE_FORWARDED : FATE_PENDING);
		set_key(&key, s->saddr, s->sport, s->seq);
		key.destination = destination;
	}
	may_retry = forget_why(may_retry);
	if (error && (!may_retry || begin(skb, &key, s, now))) {
		__sync_fetch_and_add(&accept_counts()->untracked, 1);
		return;
	}
	if (!(wanted_fates & (1 << FATE_NONE)))
		return;
	known = bpf_map_lookup_elem(&attempts, &key);
	if (known)
		report(skb, &key, known, FATE_NONE);
}

/*
 * A SYN that goes out again through another interface. It may be a copy, or come back through an
 * ifb device, while this host goes on to handle the attempt. So it is forwarded only if its answer
 * goes out too, or if nothing more is seen of it: user space finds that out.
 */
static __always_inline void on_forwarded_syn(const struct segment *s)
{
	struct attempt_key key;
	struct attempt *known;

	find_key(&key, s->saddr, s->sport, s->seq, s->daddr, s->dport);
	known = bpf_map_lookup_elem(&attempts, &key);
	if (!known) {
		/* Its source may have been translated since it came in, in this softirq. */
		key = this_cpu()->last_syn;
		known = key.isn == s->seq ? bpf_map_lookup_elem(&attempts, &key) : NULL;
	}
	if (known && known->phase == ATTEMPT_NEW)
		known->flags |= ATTEMPT_LEFT;
}

/*
 * Whether the SYN-ACK comes from a socket of another network namespace, for example that of a
 * container behind a macvlan interface. A SYN-ACK with a SYN cookie has no socket: then the device
 * of its route shows which namespace it is from (since Linux 6.2).
 */
static __always_inline bool is_from_other_netns(struct __sk_buff *skb)
{
	struct bpf_sock *skc = skb->sk;
	const struct net_device *dev;
	const struct sock *sk;
	const struct net *net;

	if (skc) {
		sk = skc->state == TCP_NEW_SYN_RECV ? (void *)bpf_skc_to_tcp_request_sock(skc)
						    : (void *)bpf_skc_to_tcp_sock(skc);
		if (!sk)
			return false;
		net = READ_MEMBER(sk, __sk_common.skc_net.net);
	} else {
		dev = bpf_rdonly_cast ? route_device(AS_BTF_POINTER((struct sk_buff *)skb)) : NULL;
		if (!dev)
			return false;
		net = READ_MEMBER(dev, nd_net.net);
	}
	return READ_MEMBER(net, ns.inum) != own_netns;
}

static __always_inline void on_syn_ack(struct __sk_buff *skb, const struct segment *s)
{
	__u64 now = bpf_ktime_get_ns();
	struct attempt_key key;
	struct attempt *known;
	enum accept_fate earlier;
	bool forwarded = skb->ingress_ifindex;
	__u32 isn;

	find_key(&key, s->daddr, s->dport, answered_isn(skb, s->ack), s->saddr, s->sport);
	known = bpf_map_lookup_elem(&attempts, &key);
	isn = known ? 0 : answered_again_isn(skb, s->ack);
	if (isn) {
		find_key(&key, s->daddr, s->dport, isn, s->saddr, s->sport);
		known = bpf_map_lookup_elem(&attempts, &key);
	}
	if (known && known->phase != ATTEMPT_NEW) {
		if (forwarded)
			return;
	} else if (forwarded || is_from_other_netns(skb)) {
		if (known)
			report(skb, &key, known, FATE_FORWARDED);
		return;
	}
	if (!known) {
		earlier = may_report_again() ? reported_fate(&key, s->saddr, s->sport) : FATE_NONE;
		if (!earlier || !begin_again(&key, s, skb->ifindex, earlier))
			return;
		known = bpf_map_lookup_elem(&attempts, &key);
		if (!known)
			return;
	}
	/* A new SYN cookie has a new sequence number. */
	known->expected_ack = s->seq + 1;
	if (known->phase == ATTEMPT_NEW) {
		known->phase = ATTEMPT_ANSWERED;
		known->flags &= ~ATTEMPT_LEFT;
		known->syn_ack_ns = now;
		known->last_syn_ack_ns = now;
		look_at_request(skb, known);
	} else if (now - known->last_syn_ack_ns >= SAME_PACKET_NS) {
		known->last_syn_ack_ns = now;
		if (known->syn_ack_retransmits < 255)
			known->syn_ack_retransmits++;
	}
}

static __always_inline void on_rst_sent(struct __sk_buff *skb, const struct segment *s)
{
	struct attempt_key key;
	struct attempt *known;
	struct sent_rst *sent;

	if (skb->ingress_ifindex) {
		/* It answers a SYN that was forwarded through an interface that is not watched. */
		find_key(&key, s->daddr, s->dport, s->ack - 1, s->saddr, s->sport);
		known = bpf_map_lookup_elem(&attempts, &key);
		if (known && known->phase == ATTEMPT_NEW)
			report(skb, &key, known, FATE_FORWARDED);
		return;
	}
	if (rst_was_delayed) {
		/* A RST that had to wait for the link-layer address of the next hop. */
		find_key(&key, s->daddr, s->dport, s->ack - 1, s->saddr, s->sport);
		known = bpf_map_lookup_elem(&attempts, &key);
		if (known && known->phase == ATTEMPT_NEW && known->reason == REASON_NO_LISTENER) {
			report(skb, &key, known, FATE_REFUSED);
			return;
		}
	}
	sent = last_sent_rst();
	__builtin_memcpy(sent->addr, s->daddr, sizeof(sent->addr));
	sent->port = s->dport;
	sent->valid = true;
}

/* Whether a SYN matches the filter expression. */
static __always_inline bool syn_matches(struct frame *f, struct packet *p)
{
	bool matches;

	if (!(filter.parts & FILTER_EXPRESSION))
		return true;
	f->slot = begin_run();
	if (!has_slot(f->slot)) {
		__sync_fetch_and_add(&accept_counts()->untracked, 1);
		return false;
	}
	forget_packet(p);
	matches = expression_matches(f, p, false);
	end_run(f->slot);
	return matches;
}

static __always_inline int on_packet(struct __sk_buff *skb, bool egress)
{
	struct frame f = tc_frame(skb, !egress, false);
	struct packet p;
	struct segment s;
	enum verdict v = parse_packet(&f, &p);
	bool is_syn;

	if (v != VERDICT_TCP || !(p.flags & (TCP_SYN | TCP_RST)))
		return TCX_NEXT;
	f.end = forget_end(f.end);
	is_syn = is_first_syn(p.flags);
	if (!egress) {
		if (is_syn && syn_matches(&f, &p) && read_frame(&f, &p, false, &s))
			on_syn(skb, &s);
		return TCX_NEXT;
	}
	/* A SYN that this host itself sends belongs to an outgoing connection. */
	if (is_syn && !skb->ingress_ifindex)
		return TCX_NEXT;
	if (!read_frame(&f, &p, true, &s))
		return TCX_NEXT;
	if (is_syn)
		on_forwarded_syn(&s);
	else if (s.flags & TCP_SYN)
		on_syn_ack(skb, &s);
	else
		on_rst_sent(skb, &s);
	return TCX_NEXT;
}

#endif /* TCPINSPECT_ACCEPT_PACKET_BPF_H */
