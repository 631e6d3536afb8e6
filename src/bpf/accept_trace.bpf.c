// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * accept-trace: what becomes of incoming connection attempts.
 *
 * TC programs see the SYN come in and the answer go out. Tracepoints show when the kernel drops a
 * packet of an attempt, and when its socket is established or closed. If a queue of the listener is
 * full, the kernel may discard a SYN without reporting a drop: user space finds such an attempt in
 * the table after a timeout.
 */
#include <asm-generic/errno.h>
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "accept_drop.bpf.h"
#include "accept_socket.bpf.h"
#include "stand_in.bpf.h"

SEC("tc")
int accept_ingress(struct __sk_buff *skb)
{
	return stopped ? TCX_NEXT : on_packet(skb, false);
}

SEC("tc")
int accept_egress(struct __sk_buff *skb)
{
	return stopped ? TCX_NEXT : on_packet(skb, true);
}

struct handler drop_handler SEC(".maps"), state_handler SEC(".maps");
struct call_notes frees[COUNTER_SLOTS] SEC(".bss.calls") __attribute__((aligned(64)));
struct call_notes state_changes[COUNTER_SLOTS] SEC(".bss.calls") __attribute__((aligned(64)));

SEC("tp_btf/kfree_skb")
int BPF_PROG(accept_free, const struct sk_buff *skb)
{
	if (stopped)
		return 0;
	note_call(frees, ctx, skb);
	bpf_tail_call(ctx, &drop_handler, 0);
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(accept_skipped_free, const struct sk_buff *skb)
{
	if (stopped || !was_skipped(frees, ctx, skb))
		return 0;
	bpf_tail_call(ctx, &drop_handler, 0);
	return 0;
}

/* The tracepoint has a reason since Linux 5.17, and in older kernels with a backport. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(accept_drop_reason, const struct sk_buff *skb, void *place, __u32 reason)
{
	USE_KERNEL_STACK(ctx, drop_handler);
	return on_drop(ctx, skb, (__u64)place, reason, NULL);
}

/* Since Linux 6.11 it also has the socket that was to receive the packet, or NULL. */
SEC("tp_btf/kfree_skb")
int BPF_PROG(accept_drop_socket, const struct sk_buff *skb, void *place, __u32 reason,
	     const struct sock *receiver)
{
	USE_KERNEL_STACK(ctx, drop_handler);
	return on_drop(ctx, skb, (__u64)place, reason, receiver);
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(accept_drop, const struct sk_buff *skb, void *place)
{
	USE_KERNEL_STACK(ctx, drop_handler);
	return on_drop(ctx, skb, (__u64)place, 0, NULL);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(accept_change, const struct sock *sk, int old_state, int new_state)
{
	if (stopped)
		return 0;
	note_call(state_changes, ctx, sk);
	if (is_followed(old_state, new_state))
		bpf_tail_call(ctx, &state_handler, 0);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(accept_skipped_change, const struct sock *sk, int old_state, int new_state)
{
	if (stopped || !was_skipped(state_changes, ctx, sk))
		return 0;
	if (is_followed(old_state, new_state))
		bpf_tail_call(ctx, &state_handler, 0);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(accept_state, const struct sock *sk, int old_state, int new_state)
{
	USE_KERNEL_STACK(ctx, state_handler);
	return on_state(ctx, sk, old_state, new_state);
}

/* Before Linux 6.10: (sk, flags, err, kern). */
SEC("fexit/inet_csk_accept")
int BPF_PROG(accept_exit_4, struct sock *listener, int flags, int *err, bool kern, struct sock *sk)
{
	return stopped ? 0 : on_accept_return(ctx, sk);
}

/* From Linux 6.10 on: (sk, arg). */
SEC("fexit/inet_csk_accept")
int BPF_PROG(accept_exit_2, struct sock *listener, void *arg, struct sock *sk)
{
	return stopped ? 0 : on_accept_return(ctx, sk);
}

/* For kernels without fexit. It runs at each system call, so it checks the number first. */
SEC("tp_btf/sys_exit")
int BPF_PROG(accept_call, struct pt_regs *regs, long ret)
{
	long number = SYS_NUMBER(regs);

	if ((number != SYS_accept && number != SYS_accept4) || ret < 0 || stopped)
		return 0;
	return on_accept_call(ctx, ret);
}

/* Adds the attempt in accept_seed to the table, if the filter accepts it. */
static __always_inline void add_seed(struct __sk_buff *skb, struct attempt_key *key)
{
	const struct attempt *known;

	/* Without a packet, an expression can't be applied. */
	if (filter.parts & FILTER_EXPRESSION)
		return;
	if (!mapped_ends_match(accept_seed.ip_version, (const __be32 *)key->addr, key->port,
			       (const __be32 *)accept_seed.daddr, accept_seed.dport))
		return;
	set_destination(key, accept_seed.daddr, accept_seed.dport);
	if (begin_attempt(key, &accept_seed)) {
		__sync_fetch_and_add(&accept_counts()->untracked, 1);
		return;
	}
	if (!(wanted_fates & (1 << FATE_NONE)))
		return;
	known = bpf_map_lookup_elem(&attempts, key);
	if (known)
		report(skb, key, known, FATE_NONE);
}

/*
 * User space runs this (BPF_PROG_TEST_RUN) to report a fate: found_fate has the fate, and the
 * key of the attempt. If the fate is FATE_NONE, it adds the attempt in accept_seed to the table
 * instead.
 */
SEC("tc")
int accept_close(struct __sk_buff *skb)
{
	struct attempt_key key = found_fate.key;
	enum accept_fate fate = found_fate.fate;
	struct attempt *known;

	if (fate == FATE_NONE) {
		add_seed(skb, &key);
		return TCX_NEXT;
	}
	known = bpf_map_lookup_elem(&attempts, &key);
	if (!known || known->phase != found_fate.phase ||
	    known->last_syn_ns != found_fate.last_syn_ns ||
	    known->last_syn_ack_ns != found_fate.last_syn_ack_ns)
		return TCX_NEXT;
	if (found_fate.reason)
		set_reason(known, found_fate.reason, false);
	if (fate == FATE_UNANSWERED && known->listener && !has_listener(known)) {
		set_reason(known, REASON_LISTENER_CLOSED, false);
		fate = FATE_ABORTED;
	}
	report(skb, &key, known, fate);
	return TCX_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
