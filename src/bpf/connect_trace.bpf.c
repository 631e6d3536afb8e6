// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * connect-trace: connections from attempt to end.
 *
 * The tracepoint inet_sock_set_state is always used: it sees SYN_SENT and what follows. fentry and
 * fexit, or kprobes and kretprobes, on the connect functions add what it can't see: the return
 * value, failures before SYN_SENT, and the source port at the time of the attempt.
 */
#include <asm-generic/errno.h>
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "connect_calls.bpf.h"
#include "connect_accept.bpf.h"
#include "connect_state.bpf.h"
#include "connect_pending.bpf.h"
#include "stand_in.bpf.h"

static __always_inline int on_tracepoint(void *ctx, const struct sock *sk, int old_state,
					 int new_state)
{
	const struct tcp_sock *tp;
	struct connection *kept;

	if (!find_connection(sk, old_state, new_state, &kept))
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	return tp ? on_state(ctx, sk, tp, kept, old_state << 8 | new_state) : 0;
}

struct call_notes state_changes[COUNTER_SLOTS] SEC(".bss.calls") __attribute__((aligned(64)));
struct handler handler SEC(".maps");

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(handle_state_change, const struct sock *sk, int old_state, int new_state)
{
	USE_KERNEL_STACK(ctx, handler);
	return on_tracepoint(ctx, sk, old_state, new_state);
}

static __always_inline int hand_over(void *ctx, const struct sock *sk, int old_state, int new_state)
{
	if (!is_followed(old_state, new_state) || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	bpf_tail_call(ctx, &handler, 0);
	/* The tail call has failed. This can't happen while user space holds the map. */
	count_lost();
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state_change, const struct sock *sk, int old_state, int new_state)
{
	note_call(state_changes, ctx, sk);
	return hand_over(ctx, sk, old_state, new_state);
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_skipped_state_change, const struct sock *sk, int old_state, int new_state)
{
	if (!was_skipped(state_changes, ctx, sk))
		return 0;
	__sync_fetch_and_add(&totals.nested, 1);
	return hand_over(ctx, sk, old_state, new_state);
}

/*
 * A program on the tracepoint's perf event is better. Since Linux 7.0 a task can be preempted
 * inside a tracepoint program, which is then skipped for all other tasks on that CPU until the task
 * runs again. Perf event programs run with preemption off. When one of those is skipped,
 * bpf_prog_active is set, and the second program sees that and does the work. The two can see
 * different values only if a task is preempted between them, and another one is inside a system
 * call on a BPF map.
 */
extern const int bpf_prog_active __ksym __weak;

SEC("tracepoint/sock/inet_sock_set_state")
int on_state_event(struct trace_event_raw_inet_sock_set_state *e)
{
	const struct tcp_sock *tp;
	struct connection *kept;
	const struct sock *sk;

	if (e->protocol == IPPROTO_TCP &&
	    find_connection(e->skaddr, e->oldstate, e->newstate, &kept)) {
		sk = bpf_rdonly_cast(e->skaddr, bpf_core_type_id_kernel(struct sock));
		tp = bpf_rdonly_cast(e->skaddr, bpf_core_type_id_kernel(struct tcp_sock));
		on_state(e, sk, tp, kept, e->oldstate << 8 | e->newstate);
	}
	/* 0 would suppress the event for all other users of this tracepoint's perf events. */
	return 1;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_skipped_state_event, const struct sock *sk, int old_state, int new_state)
{
	const int *active = bpf_this_cpu_ptr(&bpf_prog_active);

	if (!*active)
		return 0;
	__sync_fetch_and_add(&totals.nested, 1);
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	return on_tracepoint(ctx, sk, old_state, new_state);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
