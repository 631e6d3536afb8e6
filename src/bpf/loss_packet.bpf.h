/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What loss-trace watches at interfaces: SYNs, because a listener may drop them silently; their
 * answers; and the resets that no tracepoint reports before Linux 6.10.
 */
#ifndef TCPINSPECT_LOSS_PACKET_BPF_H
#define TCPINSPECT_LOSS_PACKET_BPF_H

#include "attempt.bpf.h"
#include "loss_event.bpf.h"

#define SOCK_RAW 3

/* The kernel calls the tracepoint right before it sends the reset, on the same CPU. */
#define REPORTED_RESET_NS (10 * 1000 * 1000ULL)

/* The network namespace of the interfaces, by inode number; 0: none are watched. */
const volatile __u32 own_netns = 0;
/* Look for SYNs that a listener drops silently: the kernel does not report them as drops. */
const volatile bool watch_syns = false;
/* Report resets that are sent without a socket. */
const volatile bool watch_resets = false;

/* The entry for a SYN from this address and port. */
static __always_inline struct waiting_syn *syn_from(struct loss_cpu *cpu, const __u8 *addr,
						    __u16 port)
{
	/* With the factor, addresses and ports that count up together have different entries. */
	__u32 host = ((const __be32 *)addr)[3] * 0x9e3779b1;
	__u32 at = port ^ port >> 8 ^ host >> 24;

	barrier_var(at);
	return &cpu->syns[at & (WAITING_SYNS - 1)];
}

static __always_inline bool waits(const struct waiting_syn *syn, const __u8 *addr, __u16 port)
{
	return syn->listener && syn->key.port == port &&
	       same_address((const __be32 *)syn->key.addr, (const __be32 *)addr);
}

static __always_inline void end_wait(struct loss_cpu *cpu, struct waiting_syn *syn)
{
	syn->listener = 0;
	if (cpu->waiting)
		cpu->waiting--;
}

/* Removes a SYN if the kernel reports that it or its answer was dropped: the drop is not silent. */
static __always_inline void forget_syn(struct loss_cpu *cpu, const struct loss_event *e)
{
	bool is_answer = e->tcp_flags & TCP_ACK;
	struct waiting_syn *syn;

	if (!watch_syns || !(e->tcp_flags & TCP_SYN) || !cpu->waiting)
		return;
	syn = is_answer ? syn_from(cpu, e->daddr, e->dport) : syn_from(cpu, e->saddr, e->sport);
	if (is_answer ? waits(syn, e->daddr, e->dport)
		      : waits(syn, e->saddr, e->sport) && syn->key.isn == e->seq)
		end_wait(cpu, syn);
}

static __always_inline void note_reported_reset(const struct loss_event *e)
{
	struct loss_cpu *cpu;

	if (!watch_resets)
		return;
	cpu = this_cpu();
	if (!cpu)
		return;
	cpu->reset_ns = bpf_ktime_get_ns();
	cpu->reset_port = e->dport;
	__builtin_memcpy(cpu->reset_addr, e->daddr, sizeof(cpu->reset_addr));
}

/* How many packets a listener has dropped; nearly all of them are attempts. */
static __always_inline __u64 drops_of(__u64 listener)
{
	const struct sock *sk = (const struct sock *)listener;

	return (__u32)READ_MEMBER(sk, sk_drops.counter);
}

/*
 * Whether the listener of a SYN that TCP has just handled has dropped an attempt meanwhile. TCP
 * handles the SYNs of a batch after all have come in, so the drops of those before do not count.
 * Those that other CPUs cause at the same time do. If a program chooses among the sockets of a
 * group (SO_REUSEPORT), the one that got the SYN is not known: then the answer is true.
 */
static __always_inline bool has_dropped(struct loss_cpu *cpu, const struct waiting_syn *syn)
{
	const struct sock *sk = (const struct sock *)syn->listener;
	__u32 before = syn->drops, now = drops_of(syn->listener), last = cpu->last_drops;

	/* The memory of a listener that was closed may belong to a new one, with fewer drops. */
	if (cpu->last_listener == syn->listener && (__s32)(last - before) > 0 &&
	    (__s32)(now - last) >= 0)
		before = last;
	cpu->last_listener = syn->listener;
	cpu->last_drops = now;
	return (__s32)(now - before) > 0 || BPF_CORE_READ(sk, sk_reuseport_cb, prog);
}

static __always_inline void on_syn(struct __sk_buff *skb, const struct segment *s)
{
	struct loss_cpu *cpu = this_cpu();
	struct waiting_syn *syn;
	__u64 listener;
	bool is_old;

	if (!cpu)
		return;
	listener = listener_of(skb, s, &cpu->found, &is_old);
	if (!listener)
		return;
	syn = syn_from(cpu, (const __u8 *)s->saddr, s->sport);
	if (syn->listener)
		end_wait(cpu, syn);
	syn->listener = listener;
	syn->drops = drops_of(listener);
	set_key(&syn->key, s->saddr, s->sport, s->seq);
	cpu->waiting++;
}

/*
 * Reads the state of the listener's queues right after it has dropped a SYN. False: it was closed
 * meanwhile, and its memory may belong to another socket.
 */
static __always_inline bool look_at_queues(struct attempt *a)
{
	const struct sock *sk = (const struct sock *)a->listener;

	if (BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return false;
	read_listener(sk, a);
	return true;
}

/* Removes a SYN that was answered with a SYN-ACK, or that is forwarded to another machine. */
static __always_inline void on_answer(struct __sk_buff *skb, const struct segment *s)
{
	bool is_answer = s->flags & TCP_ACK;
	const __be32 *addr = is_answer ? s->daddr : s->saddr;
	__u16 port = is_answer ? s->dport : s->sport;
	struct loss_cpu *cpu = this_cpu();
	struct waiting_syn *syn;

	if (!cpu || !cpu->waiting)
		return;
	syn = syn_from(cpu, (const __u8 *)addr, port);
	if (waits(syn, (const __u8 *)addr, port) &&
	    syn->key.isn == (is_answer ? answered_isn(skb, s->ack) : s->seq))
		end_wait(cpu, syn);
}

static __always_inline bool was_reset_reported(const struct segment *s)
{
	struct loss_cpu *cpu = this_cpu();

	if (!cpu || bpf_ktime_get_ns() - cpu->reset_ns > REPORTED_RESET_NS)
		return false;
	if (cpu->reset_port != s->dport || !same_address((const __be32 *)cpu->reset_addr, s->daddr))
		return false;
	cpu->reset_ns = 0;
	return true;
}

/*
 * Reports a reset that TCP sends without a full socket: before Linux 6.10, the tracepoint
 * tcp_send_reset does not. TCP sends such a reset through a raw socket of its own. Resets from
 * netfilter, and those that are forwarded, do not come from that socket.
 */
static __always_inline int on_reset(struct __sk_buff *skb, const struct segment *s)
{
	struct bpf_sock *sk = skb->sk;
	struct loss_event e = {};

	if (!sk)
		return TCX_NEXT;
	sk = bpf_sk_fullsock(sk);
	if (!sk || sk->type != SOCK_RAW || was_reset_reported(s))
		return TCX_NEXT;
	e.kind = LOSS_RESET;
	e.detail = LOSS_SENT;
	e.known = LOSS_OUTGOING;
	e.netns = own_netns;
	e.ifindex = skb->ifindex;
	e.ip_version = s->ip_version;
	__builtin_memcpy(e.saddr, s->saddr, sizeof(e.saddr));
	__builtin_memcpy(e.daddr, s->daddr, sizeof(e.daddr));
	e.sport = s->sport;
	e.dport = s->dport;
	emit(skb, &e, 0);
	return TCX_NEXT;
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
	if ((p.flags & TCP_SYN) && !watch_syns)
		return TCX_NEXT;
	is_syn = is_first_syn(p.flags);
	if (!egress) {
		if (is_syn && read_frame(&f, &p, false, &s))
			on_syn(skb, &s);
		return TCX_NEXT;
	}
	/* Only incoming connections can be dropped by a listener: skip the SYNs of this host. */
	if (is_syn && !skb->ingress_ifindex)
		return TCX_NEXT;
	if (!(p.flags & TCP_SYN) && (!watch_resets || skb->ingress_ifindex))
		return TCX_NEXT;
	if (!read_frame(&f, &p, true, &s))
		return TCX_NEXT;
	if (s.flags & TCP_SYN)
		on_answer(skb, &s);
	else
		return on_reset(skb, &s);
	return TCX_NEXT;
}

#endif /* TCPINSPECT_LOSS_PACKET_BPF_H */
