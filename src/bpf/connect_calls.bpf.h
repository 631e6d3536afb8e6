/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Hooks on tcp_v4_connect() and tcp_v6_connect(): fentry and fexit, or kprobe and kretprobe. */
#ifndef TCPINSPECT_CONNECT_CALLS_BPF_H
#define TCPINSPECT_CONNECT_CALLS_BPF_H

#include "connect_table.bpf.h"

/*
 * The call of a connect function that began last on a CPU, and has not returned there: a kretprobe
 * doesn't have the arguments. Another thread's call on that CPU moves it to the map `calls`.
 */
struct call {
	__u64 thread; /* pid_tgid; 0: there is none */
	__u64 sk;
	__u8 function;
	__u8 is_followed;
	__u8 pad[46]; /* no cache line is shared between CPUs */
};

_Static_assert(sizeof(struct call) == 64, "one cache line");

struct call last_calls[COUNTER_SLOTS] SEC(".bss.calls") __attribute__((aligned(64)));

/* How many CPUs there may be. */
const volatile __u32 cpus = COUNTER_SLOTS;

/*
 * The sockets that other threads are connecting, by pid_tgid. The map is LRU because the kernel can
 * miss a return: then an entry stays, and the thread may never replace it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} calls SEC(".maps");

/* How often an entry was added to `calls`, less how often one was taken out. */
__s32 moved_calls;

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

/* The connection that the current thread is connecting by this function; NULL: none is followed. */
static __always_inline struct connection *find_call(const struct sock *sk, __u8 function)
{
	struct connection *kept = find(sk);

	return kept && kept->phase == PHASE_CALLING && kept->function == function ? kept : NULL;
}

static __always_inline void on_return(void *ctx, const struct sock *sk, struct connection *kept,
				      int ret, const struct returned *now)
{
	const __be32 *v6_daddr = now->v6_daddr;

	kept->event.ret = ret;
	kept->event.known |= KNOWN_RET;
	if (now->port)
		kept->event.sport = now->port;
	if (v6_daddr && kept->function == 6 && ret < 0 && is_unset(kept->event.daddr)) {
		__builtin_memcpy(kept->event.daddr, v6_daddr, sizeof(kept->event.daddr));
		kept->event.ip_version = is_mapped(v6_daddr) ? 4 : 6;
	}
	if (!destination_matches(&kept->event) || !announce(ctx, kept)) {
		forget(sk);
		return;
	}
	if (ret < 0) {
		set_elapsed(kept);
		kept->event.error = -ret;
		kept->event.known |= KNOWN_ERROR;
		emit(ctx, &kept->event, CONNECT_FAILED);
		forget(sk);
		return;
	}
	/* Saved, because the process can fetch and thereby clear it with SO_ERROR. */
	kept->soft_error = now->soft_error;
	kept->phase = PHASE_WAITING;
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
	struct connection *kept = find_call(sk, 4);
	struct returned now = {
		.port = sk->__sk_common.skc_num,
		.soft_error = sk->sk_err_soft,
	};

	if (kept)
		on_return(ctx, sk, kept, ret, &now);
	return 0;
}

SEC("fexit/tcp_v6_connect")
int BPF_PROG(exit_tcp_v6_connect, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	struct connection *kept = find_call(sk, 6);
	struct returned now = { .soft_error = sk->sk_err_soft };
	struct ends ends;

	if (!kept)
		return 0;
	/* Unlike tcp_v4_connect() it leaves the destination in the socket when it fails. */
	read_ends(&ends, sk);
	now.port = ends.local_port;
	now.v6_daddr = ends.remote;
	on_return(ctx, sk, kept, ret, &now);
	return 0;
}

static __always_inline struct call *last_call(void)
{
	return &last_calls[bpf_get_smp_processor_id() & (COUNTER_SLOTS - 1)];
}

/*
 * The call of a thread that has come from another CPU since it began; NULL: none is known. It is
 * not removed from there, because that CPU may be replacing it.
 */
static __always_inline const struct call *find_call_elsewhere(__u64 thread)
{
	for (__u32 cpu = 0; cpu < COUNTER_SLOTS; cpu++) {
		if (cpu >= cpus)
			break;
		if (last_calls[cpu].thread == thread)
			return &last_calls[cpu];
	}
	return NULL;
}

/* Moves the call of another thread, which is still in it, out of the way. */
static __always_inline void move_call(const struct call *call)
{
	__u64 thread = call->thread, sk = call->sk;

	if (!bpf_map_update_elem(&calls, &thread, &sk, BPF_ANY))
		__sync_fetch_and_add(&moved_calls, 1);
}

/* The socket of a call that was moved; NULL: there is none. */
static __always_inline const struct sock *find_moved_call(__u64 thread)
{
	__u64 *moved = moved_calls ? bpf_map_lookup_elem(&calls, &thread) : NULL;

	return moved ? (const struct sock *)*moved : NULL;
}

static __always_inline void forget_moved_call(__u64 thread)
{
	if (!bpf_map_delete_elem(&calls, &thread))
		__sync_fetch_and_add(&moved_calls, -1);
}

/*
 * The connection of `sk` if the current thread is in this connect function with it. It may not be,
 * if a return was missed, or seen on another CPU.
 */
static __always_inline struct connection *find_own_call(const struct sock *sk, __u8 function)
{
	struct connection *kept = sk ? find_call(sk, function) : NULL;

	return kept && kept->event.tid == (__u32)bpf_get_current_pid_tgid() ? kept : NULL;
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
	const struct sock *sk = (const struct sock *)PT_REGS_PARM1(ctx), *moved;
	__u64 thread = bpf_get_current_pid_tgid();
	struct call *last = last_call();

	/* tcp_v6_connect() hands a v4-mapped destination on to tcp_v4_connect(). */
	if (last->thread == thread) {
		if (function == 4 && last->function == 6 && last->sk == (__u64)sk)
			return 0;
		if (last->is_followed)
			on_missed_return((const struct sock *)last->sk);
	} else {
		moved = find_moved_call(thread);
		if (moved && function == 4 && moved == sk && find_own_call(sk, 6))
			return 0;
		if (moved) {
			forget_moved_call(thread);
			on_missed_return(moved);
		}
		if (last->thread && last->is_followed)
			move_call(last);
	}
	last->is_followed = false;
	last->sk = (__u64)sk;
	last->function = function;
	last->thread = thread;
	last->is_followed = on_call(sk, (const struct sockaddr *)PT_REGS_PARM2(ctx), function,
				    read_netns(sk), BPF_CORE_READ(sk, __sk_common.skc_num));
	return 0;
}

static __always_inline int on_kretprobe(struct pt_regs *ctx, __u8 function)
{
	__u64 thread = bpf_get_current_pid_tgid();
	struct call *last = last_call();
	struct connection *kept = NULL;
	struct returned now = {};
	const struct sock *sk;

	if (last->thread == thread) {
		/* The return of tcp_v4_connect() in tcp_v6_connect() is not the end of the call. */
		if (last->function != function)
			return 0;
		last->thread = 0;
		if (!last->is_followed)
			return 0;
		sk = (const struct sock *)last->sk;
		kept = find_own_call(sk, function);
	}
	if (!kept) {
		const struct call *call = find_call_elsewhere(thread);

		if (call && !call->is_followed)
			return 0;
		sk = call ? (const struct sock *)call->sk : NULL;
		kept = find_own_call(sk, function);
	}
	/* Last, because a call is added here before it is overwritten there. */
	if (!kept) {
		sk = find_moved_call(thread);
		kept = find_own_call(sk, function);
		if (!kept)
			return 0;
		forget_moved_call(thread);
	}
	now.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	now.soft_error = BPF_CORE_READ(sk, sk_err_soft);
	on_return(ctx, sk, kept, PT_REGS_RC(ctx), &now);
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
