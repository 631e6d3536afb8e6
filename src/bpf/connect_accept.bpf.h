/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Incoming connections at the moment when a process accepts them. */
#ifndef TCPINSPECT_CONNECT_ACCEPT_BPF_H
#define TCPINSPECT_CONNECT_ACCEPT_BPF_H

#include "connect_open.bpf.h"

static __always_inline void copy_process(struct connect_event *to, const struct connect_event *from)
{
	to->pid = from->pid;
	to->tid = from->tid;
	to->uid = from->uid;
	to->cgroup_id = from->cgroup_id;
	__builtin_memcpy(to->comm, from->comm, sizeof(to->comm));
	__builtin_memcpy(to->process, from->process, sizeof(to->process));
	to->known |= from->known & KNOWN_PROCESS;
}

static __always_inline void on_accept(void *ctx, const struct sock *sk, const struct ends *ends,
				      __u32 netns, int state)
{
	struct connection *kept = find(sk);
	struct connection c = { .phase = PHASE_OPEN };

	if (kept && kept->phase == PHASE_IGNORED)
		kept = NULL;

	c.started_ns = bpf_ktime_get_ns();
	c.event.direction = DIRECTION_IN;
	c.event.ts_ns = c.started_ns;
	c.event.netns = netns;
	set_process(&c.event);
	set_ends(&c.event, ends);
	if (!matches(&c.event)) {
		/* It was kept because its process was not known yet. Now the filter rejects it. */
		if (kept && process_filter)
			forget(sk);
		return;
	}
	/* The event of its end will name the process that accepted it. */
	if (kept)
		copy_process(&kept->event, &c.event);
	/* TCP Fast Open: a connection can be accepted before it is established. */
	else if (wanted(CONNECT_CLOSED) && state == TCP_SYN_RECV)
		keep_open(sk, &c);
	emit(ctx, &c.event, CONNECT_ACCEPTED);
}

static __always_inline int on_accept_directly(void *ctx, const struct sock *sk)
{
	const struct tcp_sock *tp;
	struct ends ends;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp)
		return 0;
	read_ends(&ends, sk);
	/* If it was reset before accept(2), only inet_sport still has the port. */
	ends.local_port = bpf_ntohs(read_inet_sport(tp));
	on_accept(ctx, sk, &ends, read_netns(sk), sk->__sk_common.skc_state);
	return 0;
}

/* Before Linux 6.10: (sk, flags, err, kern). */
SEC("fexit/inet_csk_accept")
int BPF_PROG(exit_accept_4, struct sock *listener, int flags, int *err, bool kern, struct sock *sk)
{
	return on_accept_directly(ctx, sk);
}

/* Since Linux 6.10: (sk, arg). */
SEC("fexit/inet_csk_accept")
int BPF_PROG(exit_accept_2, struct sock *listener, void *arg, struct sock *sk)
{
	return on_accept_directly(ctx, sk);
}

SEC("kretprobe/inet_csk_accept")
int kretprobe_accept(struct pt_regs *ctx)
{
	const struct sock *sk = (const struct sock *)PT_REGS_RC(ctx);
	struct ends ends;

	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	probe_ends(&ends, sk);
	ends.local_port = bpf_ntohs(
		BPF_CORE_READ((const struct tcp_sock *)sk, inet_conn.icsk_inet.inet_sport));
	on_accept(ctx, sk, &ends, read_netns(sk), BPF_CORE_READ(sk, __sk_common.skc_state));
	return 0;
}

#endif /* TCPINSPECT_CONNECT_ACCEPT_BPF_H */
