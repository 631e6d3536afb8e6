/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Hooks on tcp_v4_connect() and tcp_v6_connect(): fentry and fexit, or kprobe and kretprobe. */
#ifndef TCPINSPECT_CONNECT_CALLS_BPF_H
#define TCPINSPECT_CONNECT_CALLS_BPF_H

#include "connect_table.bpf.h"

/*
 * The socket that a thread is connecting, by pid_tgid, because a kretprobe doesn't have the
 * arguments. The map is LRU because the kernel can miss a return: then an entry stays, and the
 * thread may never replace it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} calls SEC(".maps");

/* The destination, from the kernel's copy of what the caller of connect() passed. */
static __always_inline void read_destination(struct connect_event *e, const struct sockaddr *to,
					     __u8 function)
{
	struct {
		__u16 family;
		__be16 port;
		__be32 ipv4_or_flow;
		__be32 ipv6[4];
	} copy = {};
	__be32 addr[4];

	if (may_probe_read) {
		/* The caller's struct may be no longer than a sockaddr_in, or a sockaddr_in6. */
		bpf_probe_read_kernel(&copy, function == 4 ? 8 : 24, to);
	} else {
		/* struct sockaddr is too short for an IPv6 address: see on_return() for that. */
		copy.port = *(__be16 *)&to->sa_data[0];
		copy.ipv4_or_flow = *(__be32 *)&to->sa_data[2];
	}
	e->dport = bpf_ntohs(copy.port);
	if (function == 4) {
		set_mapped(addr, copy.ipv4_or_flow);
		e->ip_version = 4;
	} else {
		__builtin_memcpy(addr, copy.ipv6, sizeof(addr));
		e->ip_version = is_mapped(addr) ? 4 : 6;
	}
	__builtin_memcpy(e->daddr, addr, sizeof(addr));
}

/* Handles a call of a connect function. True: the connection is followed. */
static __always_inline bool on_call(const struct sock *sk, const struct sockaddr *to, __u8 function,
				    __u32 netns, __u16 bound_port)
{
	struct connection c = { .phase = PHASE_CALLING, .function = function };
	struct connection *outer = find(sk);

	/* tcp_v6_connect hands a v4-mapped destination on to tcp_v4_connect: still one attempt. */
	if (function == 4 && outer && outer->phase == PHASE_CALLING && outer->function == 6 &&
	    outer->event.tid == (__u32)bpf_get_current_pid_tgid())
		return false;
	if (outer) {
		count_missed(outer);
		forget(sk);
	}
	if (ending)
		return false;
	start_connection(&c);
	c.event.netns = netns;
	c.event.sport = bound_port;
	read_destination(&c.event, to, function);
	if (!process_matches(&c.event) || !version_matches(c.event.ip_version))
		return false;
	/* If the address can't be read here, on_return() applies the filter. */
	if ((may_probe_read || function == 4) && !destination_matches(&c.event))
		return false;
	/*
	 * If there is no room for it, the attempt is reported when the socket changes to SYN_SENT.
	 */
	return keep(sk, &c);
}

/* Fields of a socket, read when its connect function returns. */
struct returned {
	__u16 port;
	int soft_error;
	const __be32 *v6_daddr; /* NULL if it is not known */
};

static __always_inline void on_return(void *ctx, const struct sock *sk, int ret, __u8 function,
				      const struct returned *now)
{
	const __be32 *v6_daddr = now->v6_daddr;
	struct connection *kept = find(sk);
	struct connection c;

	if (!kept || kept->phase != PHASE_CALLING || kept->function != function)
		return;
	c = *kept;
	c.event.ret = ret;
	c.event.known |= KNOWN_RET;
	if (now->port)
		c.event.sport = now->port;
	if (v6_daddr && function == 6 && ret < 0 && is_unset(c.event.daddr)) {
		__builtin_memcpy(c.event.daddr, v6_daddr, sizeof(c.event.daddr));
		c.event.ip_version = is_mapped(v6_daddr) ? 4 : 6;
	}
	if (!destination_matches(&c.event) || !announce(ctx, &c)) {
		forget(sk);
		return;
	}
	if (ret < 0) {
		forget(sk);
		set_elapsed(&c);
		c.event.error = -ret;
		c.event.known |= KNOWN_ERROR;
		emit(ctx, &c.event, CONNECT_FAILED);
		return;
	}
	c.phase = PHASE_WAITING;
	/* Saved, because the process can fetch and thereby clear it with SO_ERROR. */
	c.soft_error = now->soft_error;
	*kept = c;
}

SEC("fentry/tcp_v4_connect")
int BPF_PROG(enter_tcp_v4_connect, struct sock *sk, struct sockaddr *uaddr)
{
	on_call(sk, uaddr, 4, read_netns(sk), sk->__sk_common.skc_num);
	return 0;
}

SEC("fentry/tcp_v6_connect")
int BPF_PROG(enter_tcp_v6_connect, struct sock *sk, struct sockaddr *uaddr)
{
	on_call(sk, uaddr, 6, read_netns(sk), sk->__sk_common.skc_num);
	return 0;
}

SEC("fexit/tcp_v4_connect")
int BPF_PROG(exit_tcp_v4_connect, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	struct returned now = {
		.port = sk->__sk_common.skc_num,
		.soft_error = sk->sk_err_soft,
	};

	on_return(ctx, sk, ret, 4, &now);
	return 0;
}

SEC("fexit/tcp_v6_connect")
int BPF_PROG(exit_tcp_v6_connect, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	struct returned now = { .soft_error = sk->sk_err_soft };
	struct ends ends;

	/* Unlike tcp_v4_connect() it leaves the destination in the socket when it fails. */
	read_ends(&ends, sk);
	now.port = ends.local_port;
	now.v6_daddr = ends.remote;
	on_return(ctx, sk, ret, 6, &now);
	return 0;
}

static __always_inline bool is_inner_call(const struct sock *sk)
{
	const struct connection *c = find(sk);

	return c && c->phase == PHASE_CALLING && c->function == 6;
}

/* The thread is in a new call, so the kernel has missed the return of the previous one. */
static __always_inline void on_missed_return(const struct sock *sk)
{
	struct connection *c = find(sk);

	if (!c || c->phase != PHASE_CALLING || c->event.tid != (__u32)bpf_get_current_pid_tgid())
		return;
	if (c->sent) {
		/* Its attempt will be reported together with its fate. */
		c->phase = PHASE_WAITING;
		return;
	}
	count_missed(c);
	forget(sk);
}

static __always_inline int on_kprobe(struct pt_regs *ctx, __u8 function)
{
	const struct sock *sk = (const struct sock *)PT_REGS_PARM1(ctx);
	__u64 id = bpf_get_current_pid_tgid(), key = (__u64)sk, *call;

	call = bpf_map_lookup_elem(&calls, &id);
	if (call) {
		__u64 other = *call;

		if (function == 4 && other == key && is_inner_call(sk))
			return 0;
		bpf_map_delete_elem(&calls, &id);
		on_missed_return((const struct sock *)other);
	}
	if (on_call(sk, (const struct sockaddr *)PT_REGS_PARM2(ctx), function, read_netns(sk),
		    BPF_CORE_READ(sk, __sk_common.skc_num)))
		bpf_map_update_elem(&calls, &id, &key, BPF_ANY);
	return 0;
}

static __always_inline int on_kretprobe(struct pt_regs *ctx, __u8 function)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u64 *call = bpf_map_lookup_elem(&calls, &id);
	struct returned now = {};
	const struct sock *sk;

	if (!call)
		return 0;
	sk = (const struct sock *)*call;
	/* The return of tcp_v4_connect inside tcp_v6_connect is not the end of the call. */
	if (function == 4 && is_inner_call(sk))
		return 0;
	bpf_map_delete_elem(&calls, &id);
	now.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	now.soft_error = BPF_CORE_READ(sk, sk_err_soft);
	on_return(ctx, sk, PT_REGS_RC(ctx), function, &now);
	return 0;
}

SEC("kprobe/tcp_v4_connect")
int kprobe_tcp_v4_connect(struct pt_regs *ctx)
{
	return on_kprobe(ctx, 4);
}

SEC("kprobe/tcp_v6_connect")
int kprobe_tcp_v6_connect(struct pt_regs *ctx)
{
	return on_kprobe(ctx, 6);
}

SEC("kretprobe/tcp_v4_connect")
int kretprobe_tcp_v4_connect(struct pt_regs *ctx)
{
	return on_kretprobe(ctx, 4);
}

SEC("kretprobe/tcp_v6_connect")
int kretprobe_tcp_v6_connect(struct pt_regs *ctx)
{
	return on_kretprobe(ctx, 6);
}

#endif /* TCPINSPECT_CONNECT_CALLS_BPF_H */
