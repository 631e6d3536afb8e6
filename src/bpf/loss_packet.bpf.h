/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What loss-trace sees at interfaces: SYNs, which a listener may drop without a trace; their
 * answers; and the resets that no tracepoint reports before Linux 6.10.
 */
#ifndef TCPINSPECT_LOSS_PACKET_BPF_H
#define TCPINSPECT_LOSS_PACKET_BPF_H

#include "attempt.bpf.h"
#include "loss_event.bpf.h"

#define SOCK_RAW 3

/* The tracepoint comes right before the reset is sent, on the same CPU. */
#define REPORTED_RESET_NS (10 * 1000 * 1000ULL)

/* The network namespace of the interfaces, by inode number; 0: none are watched. */
const volatile __u32 own_netns = 0;
/* Look for SYNs that are dropped without a trace. */
const volatile bool watch_syns = false;
/* Report resets that are sent without a socket. */
const volatile bool watch_resets = false;

/* Where a SYN from this port waits. */
static __always_inline struct waiting_syn *syn_from(struct cpu_state *cpu, __u16 port)
{
	__u32 at = port ^ port >> 8;

	barrier_var(at);
	return &cpu->syns[at & (WAITING_SYNS - 1)];
}

static __always_inline bool waits(const struct waiting_syn *syn, const __u8 *addr, __u16 port)
{
	const __be32 *a = (const __be32 *)syn->key.addr, *b = (const __be32 *)addr;

	return syn->listener && syn->key.port == port && a[0] == b[0] && a[1] == b[1] &&
	       a[2] == b[2] && a[3] == b[3];
}

static __always_inline void end_wait(struct cpu_state *cpu, struct waiting_syn *syn)
{
	syn->listener = 0;
	if (cpu->waiting)
		cpu->waiting--;
}

/* The kernel reports the drop of a SYN or of its answer: then it is not a silent one. */
static __always_inline void forget_syn(struct cpu_state *cpu, const struct loss_event *e)
{
	bool is_answer = e->tcp_flags & TCP_ACK;
	struct waiting_syn *syn;

	if (!watch_syns || !(e->tcp_flags & TCP_SYN) || !cpu->waiting)
		return;
	syn = syn_from(cpu, is_answer ? e->dport : e->sport);
	if (is_answer ? waits(syn, e->daddr, e->dport)
		      : waits(syn, e->saddr, e->sport) && syn->key.isn == e->seq)
		end_wait(cpu, syn);
}

static __always_inline void note_reported_reset(const struct loss_event *e)
{
	struct cpu_state *cpu;

	if (!watch_resets)
		return;
	cpu = this_cpu();
	if (!cpu)
		return;
	cpu->reset_ns = bpf_ktime_get_ns();
	cpu->reset_port = e->dport;
	__builtin_memcpy(cpu->reset_addr, e->daddr, sizeof(cpu->reset_addr));
}

static __always_inline void on_syn(struct __sk_buff *skb, const struct segment *s)
{
	struct cpu_state *cpu = this_cpu();
	struct waiting_syn *syn;
	__u64 listener;

	if (!cpu)
		return;
	listener = listener_of(skb, s, &cpu->found);
	if (!listener)
		return;
	syn = syn_from(cpu, s->sport);
	if (syn->listener)
		end_wait(cpu, syn);
	syn->listener = listener;
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

/* A SYN-ACK, or the same SYN on its way to another machine. */
static __always_inline void on_answer(struct __sk_buff *skb, const struct segment *s)
{
	bool is_answer = s->flags & TCP_ACK;
	const __be32 *addr = is_answer ? s->daddr : s->saddr;
	__u16 port = is_answer ? s->dport : s->sport;
	struct cpu_state *cpu = this_cpu();
	struct waiting_syn *syn;

	if (!cpu || !cpu->waiting)
		return;
	syn = syn_from(cpu, port);
	if (waits(syn, (const __u8 *)addr, port) &&
	    syn->key.isn == (is_answer ? answered_isn(skb, s->ack) : s->seq))
		end_wait(cpu, syn);
}

static __always_inline bool was_reset_reported(const struct segment *s)
{
	struct cpu_state *cpu = this_cpu();
	const __be32 *addr;

	if (!cpu || bpf_ktime_get_ns() - cpu->reset_ns > REPORTED_RESET_NS)
		return false;
	addr = (const __be32 *)cpu->reset_addr;
	if (cpu->reset_port != s->dport || addr[0] != s->daddr[0] || addr[1] != s->daddr[1] ||
	    addr[2] != s->daddr[2] || addr[3] != s->daddr[3])
		return false;
	cpu->reset_ns = 0;
	return true;
}

/*
 * Before Linux 6.10 tcp_send_reset comes only with a full socket. Without one, TCP sends the reset
 * through a raw socket of its own. What netfilter sends, and what is forwarded, is not TCP's.
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
	is_syn = (p.flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
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
