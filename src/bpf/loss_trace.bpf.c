// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * loss-trace: TCP segments that were dropped or retransmitted, and connections that were reset.
 *
 * Nearly all events come from tracepoints. These mostly run in softirq, where the current process
 * has nothing to do with the segment. So an event has the inode of the socket's file, and user
 * space looks up which process has that file open. Programs at interfaces find what no tracepoint
 * reports.
 */
#include <asm-generic/errno.h>
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "loss_packet.bpf.h"

/*
 * Whether TCP has processed a segment that it frees as if it dropped it. It does so with the ACKs
 * that a socket gets after the FIN of its peer, and in TIME_WAIT also with the FIN. Nothing is lost
 * by that. A SYN or data that comes then is really lost, and answered with a reset.
 */
static __always_inline bool was_processed(const struct loss_event *e, __u32 reason,
					  const struct sock *receiver)
{
	const __u32 states =
		1 << TCP_TIME_WAIT | 1 << TCP_CLOSE_WAIT | 1 << TCP_CLOSING | 1 << TCP_LAST_ACK;

	return receiver && !is_specific(reason) && !e->len && !(e->tcp_flags & TCP_SYN) &&
	       (states & (1 << receiver->__sk_common.skc_state));
}

/*
 * Whether a segment is a keepalive probe: its sequence number is the one before the next that the
 * receiver expects. The receiver answers it, and frees it as if it dropped it.
 */
static __always_inline bool is_keepalive(const struct loss_event *e, __u32 reason,
					 const struct sock *receiver)
{
	const __u32 states = 1 << TCP_ESTABLISHED | 1 << TCP_FIN_WAIT1 | 1 << TCP_FIN_WAIT2 |
			     1 << TCP_CLOSE_WAIT;
	const struct tcp_sock *tp = (const void *)receiver;

	if (is_specific(reason) && reason != reason_old_sequence)
		return false;
	return receiver && e->len <= 1 && !(e->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST)) &&
	       (states & (1 << receiver->__sk_common.skc_state)) &&
	       READ_MEMBER(tp, rcv_nxt) == e->seq + 1;
}

/*
 * Whether a listener rightly ignores a segment, so that nothing is lost: a SYN that it has answered
 * already, or, with TCP_DEFER_ACCEPT, an ACK without data, because it waits for data. Kernels that
 * have a drop reason for a full queue (Linux 6.18) also give a reason for every real drop of a
 * half-open connection's segments.
 */
static __always_inline bool is_ignored_by_listener(const struct loss_event *e, __u32 reason,
						   const struct sock *receiver)
{
	return reason_listen_overflow && receiver && !is_specific(reason) && !e->len &&
	       !(e->tcp_flags & (TCP_RST | TCP_FIN)) &&
	       receiver->__sk_common.skc_state == TCP_LISTEN;
}

/*
 * Whether the accept queue was full. If a SYN cookie is valid, but the accept queue is full, the
 * kernel gives the reason NO_SOCKET.
 */
static __always_inline bool is_accept_queue_full(__u32 reason, const struct sock *receiver)
{
	return reason && reason == reason_no_socket && receiver &&
	       receiver->__sk_common.skc_state == TCP_LISTEN &&
	       receiver->sk_ack_backlog > receiver->sk_max_ack_backlog;
}

/*
 * Whether a segment is one that this connection gets. A segment that has crossed a pair of veth
 * devices may still have the socket that sent it.
 */
static __always_inline bool has_received(const struct sock *sk, const struct loss_event *e)
{
	const __u32 others = 1 << TCP_LISTEN | 1 << TCP_TIME_WAIT | 1 << TCP_NEW_SYN_RECV;
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return !(others & (1 << state)) && BPF_CORE_READ(sk, __sk_common.skc_num) == e->dport &&
	       bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport)) == e->sport;
}

static __always_inline int on_drop(void *ctx, const struct sk_buff *trusted, __u64 place,
				   __u32 reason, const struct sock *receiver)
{
	const struct sk_buff *skb = UNTRUSTED(trusted);
	struct loss_event e = {};
	struct loss_cpu *cpu;
	const struct sock *sk;
	__u16 protocol = skb->protocol;
	bool ends_half_open;

	if (protocol != bpf_htons(ETHERTYPE_IPV4) && protocol != bpf_htons(ETHERTYPE_IPV6))
		return 0;
	if (!with_noise && is_harmless_free(skb, reason, place))
		return 0;
	/* If SYNs are watched, forget_syn() needs all drops. */
	if (!watch_syns && !drop_reason_matches(reason, place))
		return 0;
	cpu = this_cpu();
	if (!cpu || !set_segment(&e, skb))
		return 0;
	forget_syn(cpu, &e);
	if (!with_noise &&
	    (was_processed(&e, reason, receiver) || is_keepalive(&e, reason, receiver) ||
	     is_ignored_by_listener(&e, reason, receiver)))
		return 0;
	/* The kernel frees a RST that ends a half-open connection as if it dropped it. */
	ends_half_open = (e.tcp_flags & TCP_RST) && receiver && !is_specific(reason) &&
			 receiver->__sk_common.skc_state == TCP_LISTEN;
	e.kind = ends_half_open ? LOSS_RESET : LOSS_DROP;
	if (!kind_wanted(&e) || !ends_wanted(&e))
		return 0;
	if (ends_half_open) {
		e.detail = LOSS_RECEIVED;
	} else {
		e.place = place;
		e.reason =
			is_accept_queue_full(reason, receiver) ? REASON_ACCEPT_QUEUE_FULL : reason;
	}
	/* A segment without an input interface was sent by this host. */
	if (!skb->skb_iif)
		e.known |= LOSS_OUTGOING;
	/*
	 * Makes ends_half_open, and members of `e` that depend on it or are constant, unknown to
	 * the verifier. Otherwise it would check the rest of the program for each of their values.
	 */
	ends_half_open = forget_why(ends_half_open);
	e.kind += opaque_zero;
	e.reason += opaque_zero;
	e.uid = opaque_zero;
	/* In an incoming segment, skb->sk is set only while it is queued on that socket. */
	sk = skb->sk ?: receiver;
	if (sk && (!count_by || count_by == LOSS_BY_COMM))
		set_socket(&e, sk);
	/* Counts do not show the device, so it is read only if it is filtered by. */
	if (!count_by || wanted_netns || interfaces) {
		const struct net_device *dev = skb->dev;

		if (sk && skb->skb_iif && has_received(sk, &e))
			set_device(&e, input_device(sk, skb->skb_iif));
		else if (dev)
			set_skb_device(&e, dev);
		else
			set_device(&e, device_of(skb));
	}
	if (!interface_matches(&e) || !reason_matches(&e))
		return 0;
	if (ends_half_open) {
		e.state = TCP_SYN_RECV;
		e.known |= LOSS_KNOWN_STATE;
	} else if (!count_by && !exporting) {
		set_callers(ctx, cpu, &e);
	}
	return emit_matching(ctx, &e, (__u64)skb);
}

SEC("tc")
int loss_ingress(struct __sk_buff *skb)
{
	return on_packet(skb, false);
}

SEC("tc")
int loss_egress(struct __sk_buff *skb)
{
	return on_packet(skb, true);
}

/* The tracepoint has a reason since Linux 5.17, and in older kernels with a backport. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(loss_drop_reason, const struct sk_buff *skb, void *place, __u32 reason)
{
	return on_drop(ctx, skb, (__u64)place, reason, NULL);
}

/* Since Linux 6.11 it also has the socket that was to receive the packet, or NULL. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(loss_drop_socket, const struct sk_buff *skb, void *place, __u32 reason,
	     const struct sock *receiver)
{
	return on_drop(ctx, skb, (__u64)place, reason, receiver);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(loss_drop, const struct sk_buff *skb, void *place)
{
	return on_drop(ctx, skb, (__u64)place, 0, NULL);
}

/* The sk_buff has no TCP header yet: flags and sequence numbers are in its control block. */
static __always_inline int on_retransmit(void *ctx, const struct sock *sk,
					 const struct sk_buff *skb)
{
	const struct tcp_skb_cb *cb = (const void *)skb->cb;
	struct loss_event e = {};
	__u32 end_seq;

	e.kind = LOSS_RETRANSMIT;
	set_ends(&e, sk, true);
	set_socket(&e, sk);
	e.seq = BPF_CORE_READ(cb, seq);
	end_seq = BPF_CORE_READ(cb, end_seq);
	/* The field has one byte before Linux 6.15, and two since. */
	e.tcp_flags = BPF_CORE_READ_BITFIELD_PROBED(cb, tcp_flags);
	e.len = end_seq - e.seq - !!(e.tcp_flags & TCP_SYN) - (e.tcp_flags & TCP_FIN);
	e.known |= LOSS_KNOWN_SEGMENT;
	e.segments = BPF_CORE_READ(cb, tcp_gso_segs);
	e.detail = LOSS_DATA;
	if (e.tcp_flags & TCP_SYN)
		e.detail = e.tcp_flags & TCP_ACK ? LOSS_SYN_ACK : LOSS_SYN;
	return emit(ctx, &e, 0);
}

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(loss_retransmit, const struct sock *sk, const struct sk_buff *skb)
{
	return on_retransmit(ctx, sk, skb);
}

/*
 * Since Linux 6.18 the tracepoint also reports segments that could not be retransmitted. With these
 * errors, the kernel does not count them as retransmissions.
 */
SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(loss_retransmit_tried, const struct sock *sk, const struct sk_buff *skb, int error)
{
	switch (error) {
	case -EAGAIN:
	case -EBUSY:
	case -EHOSTUNREACH:
	case -EINVAL:
	case -ENOMEM:
		return 0;
	}
	return on_retransmit(ctx, sk, skb);
}

/* A half-open connection is a request_sock, which is not a full socket. */
SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(loss_retransmit_synack, const struct sock *sk, const struct request_sock *req)
{
	const struct sock *half_open = (const struct sock *)req;
	struct loss_event e = {};

	e.kind = LOSS_RETRANSMIT;
	e.detail = LOSS_SYN_ACK;
	set_ends(&e, half_open, true);
	/* Process and user are those of the listener. */
	set_socket(&e, sk);
	e.state = TCP_SYN_RECV;
	e.tcp_flags = TCP_SYN | TCP_ACK;
	e.segments = 1;
	return emit(ctx, &e, 0);
}

/*
 * After a listener has handled a SYN, the kernel frees it as consumed, not as dropped, even if a
 * queue was full, or if there is no route for the answer.
 */
SEC("tp_btf/consume_skb")
int BPF_PROG(loss_consumed, const struct sk_buff *trusted)
{
	const struct sk_buff *skb = UNTRUSTED(trusted);
	struct waiting_syn *syn;
	struct loss_cpu *cpu;
	struct loss_event e = {};
	bool dropped;

	/* While TCP handles a segment, skb->dev is NULL. */
	if (skb->dev)
		return 0;
	cpu = this_cpu();
	if (!cpu || !cpu->waiting || !set_segment(&e, skb) || !is_first_syn(e.tcp_flags))
		return 0;
	syn = syn_from(cpu, e.saddr, e.sport);
	if (!waits(syn, e.saddr, e.sport) || syn->key.isn != e.seq)
		return 0;
	cpu->attempt.listener = syn->listener;
	dropped = has_dropped(cpu, syn);
	end_wait(cpu, syn);
	/* Else it was answered, but the answer did not pass the hook, or has not yet. */
	if (!dropped)
		return 0;
	set_device(&e, device_of(skb));
	if (e.netns != own_netns || !look_at_queues(&cpu->attempt))
		return 0;
	e.kind = LOSS_DROP;
	if (cpu->attempt.flags & ATTEMPT_ACCEPT_QUEUE_FULL) {
		e.reason = REASON_ACCEPT_QUEUE_FULL;
	} else if (cpu->attempt.flags & ATTEMPT_SYN_QUEUE_FULL) {
		e.reason = REASON_SYN_QUEUE_FULL;
	} else {
		/* Or the SYN-ACK waits for the link-layer address of the next hop: user space finds
		 * out. */
		if (count_by)
			return 0;
		e.reason = REASON_NO_ROUTE_BACK;
		e.known |= LOSS_UNSURE;
	}
	set_socket(&e, (const struct sock *)cpu->attempt.listener);
	return emit(ctx, &e, (__u64)skb);
}

static __always_inline int on_sent_reset(void *ctx, const struct sock *sk,
					 const struct sk_buff *trusted, __u32 reason)
{
	const struct sk_buff *skb = UNTRUSTED(trusted);
	struct loss_event e = {};
	struct segment s;

	e.kind = LOSS_RESET;
	e.detail = LOSS_SENT;
	e.reason = reason;
	if (skb && read_segment(skb, &s)) {
		/*
		 * `skb` is the segment that the reset answers: its source is the destination of the
		 * reset.
		 */
		e.ip_version = s.ip_version;
		__builtin_memcpy(e.saddr, s.daddr, sizeof(e.saddr));
		__builtin_memcpy(e.daddr, s.saddr, sizeof(e.daddr));
		e.sport = s.dport;
		e.dport = s.sport;
		e.known |= LOSS_OUTGOING;
		set_device(&e, device_of(skb));
		note_reported_reset(&e);
	} else if (sk) {
		set_ends(&e, sk, true);
		/* When a socket is closed with a reset, skc_num may have been cleared already. */
		if (!e.sport)
			e.sport = bpf_ntohs(BPF_CORE_READ((struct inet_sock *)sk, inet_sport));
	} else {
		return 0;
	}
	if (sk)
		set_socket(&e, sk);
	return emit(ctx, &e, 0);
}

/* The tracepoint has a reason since Linux 6.10. */
SEC("tp_btf/tcp_send_reset")
int BPF_PROG(loss_sent_reset_reason, const struct sock *sk, const struct sk_buff *skb, __u32 reason)
{
	return on_sent_reset(ctx, sk, skb, reason);
}

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(loss_sent_reset, const struct sock *sk, const struct sk_buff *skb)
{
	return on_sent_reset(ctx, sk, skb, 0);
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(loss_received_reset, const struct sock *sk)
{
	struct loss_event e = {};

	e.kind = LOSS_RESET;
	e.detail = LOSS_RECEIVED;
	set_ends(&e, sk, false);
	set_socket(&e, sk);
	return emit(ctx, &e, 0);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
