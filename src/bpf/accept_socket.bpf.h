/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Attempts that have a socket: established, accepted, or closed before they are accepted. */
#ifndef TCPINSPECT_ACCEPT_SOCKET_BPF_H
#define TCPINSPECT_ACCEPT_SOCKET_BPF_H

#include "accept_packet.bpf.h"

#if defined(__TARGET_ARCH_x86)
#define SYS_accept	 43
#define SYS_accept4	 288
#define SYS_NUMBER(regs) ((regs)->orig_ax)
#else
#define SYS_accept	 202
#define SYS_accept4	 242
#define SYS_NUMBER(regs) ((regs)->user_regs.regs[8])
#endif

/*
 * Sets the key of the attempt that a connection began with. Before the connection is accepted, no
 * data is read from it, so copied_seq is still the ISN plus 1.
 */
static __always_inline void set_socket_key(struct attempt_key *key, const struct ends *ends,
					   const struct tcp_sock *tp)
{
	find_key(key, ends->remote, ends->remote_port, tp->copied_seq - 1, ends->local,
		 bpf_ntohs(read_inet_sport(tp)));
}

/*
 * Finds the attempt of a connection that waits to be accepted, or has just been accepted, and sets
 * its key. `copied` is copied_seq. When urgent data comes twice, TCP skips a byte of it there. Then
 * the ISN follows from `counted`: that is rcv_nxt, which counts from the ISN, less bytes_received,
 * which counts from the number after it. This is not tried first, because another CPU may be
 * changing these two.
 */
static __always_inline struct attempt *find_waiting(struct attempt_key *key,
						    const struct ends *ends, __u16 port,
						    __u32 copied, __u32 counted)
{
	struct attempt *known;

	find_key(key, ends->remote, ends->remote_port, copied - 1, ends->local, port);
	known = bpf_map_lookup_elem(&attempts, key);
	if (known || counted == copied)
		return known;
	find_key(key, ends->remote, ends->remote_port, counted - 1, ends->local, port);
	return bpf_map_lookup_elem(&attempts, key);
}

/* The number after the ISN of the peer. A FIN adds 1 to both members. */
static __always_inline __u32 counted_seq(const struct tcp_sock *tp)
{
	return tp->rcv_nxt - (__u32)tp->bytes_received;
}

/*
 * Follows an attempt again after its fate was reported, for example because it was evicted from the
 * table. NULL: its fate was not reported, or the table is full.
 */
static __always_inline struct attempt *resume(const struct attempt_key *key,
					      const struct ends *ends, const struct tcp_sock *tp)
{
	__u16 port = bpf_ntohs(read_inet_sport(tp));
	enum accept_fate earlier =
		may_report_again() ? reported_fate(key, ends->local, port) : FATE_NONE;
	struct attempt a = {};

	if (!earlier)
		return NULL;
	a.flags = ATTEMPT_CONTINUED;
	a.phase = ATTEMPT_ANSWERED;
	a.last_syn_ns = bpf_ktime_get_ns();
	a.ip_version = ends->ip_version;
	a.dport = port;
	__builtin_memcpy(a.daddr, ends->local, sizeof(a.daddr));
	if (begin_attempt(key, &a))
		return NULL;
	uncount_fate(earlier);
	return bpf_map_lookup_elem(&attempts, key);
}

static __always_inline void on_established(void *ctx, const struct sock *sk,
					   const struct tcp_sock *tp)
{
	struct attempt_key key;
	struct attempt *known;
	struct ends ends;

	read_ends(&ends, sk);
	set_socket_key(&key, &ends, tp);
	known = bpf_map_lookup_elem(&attempts, &key);
	if (!known)
		known = resume(&key, &ends, tp);
	if (!known)
		return;
	known->established_ns = bpf_ktime_get_ns();
	known->phase = ATTEMPT_ESTABLISHED;
	known->lport = bpf_ntohs(read_inet_sport(tp));
	known->bound_ifindex = sk->__sk_common.skc_bound_dev_if;
	__builtin_memcpy(known->laddr, ends.local, sizeof(known->laddr));
	/* Earlier drops did not stop it. */
	known->reason = 0;
	known->flags &= ~(ATTEMPT_ACK_DROPPED | ATTEMPT_REASON_FROM_KERNEL);
	if (bpf_core_field_exists(tp->is_mptcp) && tp->is_mptcp)
		known->flags |= ATTEMPT_MPTCP;
	known->place = 0;
	/*
	 * In a simultaneous open (RFC 9293), or if a socket connects to itself, a process has the
	 * socket already.
	 */
	if (sk->sk_socket)
		report(ctx, &key, known, FATE_ACCEPTED);
}

/*
 * A socket is closed before accept(2). If it was not established and does not use Fast Open, it may
 * be the second socket of an attempt: when two CPUs handle a final ACK and the packet after it at
 * the same time, each creates a socket, and one of them is closed. The attempt continues with the
 * other. If there was no other socket, the next sweep by user space finds that the attempt has
 * ended.
 *
 * When a listener is closed, the sockets in its queue have no error yet.
 */
static __always_inline void on_closed(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
				      int old_state)
{
	bool may_be_second = old_state == TCP_SYN_RECV && !tp->fastopen_rsk;
	enum accept_fate fate = FATE_ABORTED;
	int error = sk->sk_err;
	struct attempt_key key;
	struct attempt *known;
	struct ends ends;

	read_ends(&ends, sk);
	known = find_waiting(&key, &ends, bpf_ntohs(read_inet_sport(tp)), tp->copied_seq,
			     counted_seq(tp));
	if (!known || (may_be_second && known->phase == ATTEMPT_ESTABLISHED))
		return;
	if (error == ECONNRESET || error == EPIPE) {
		fate = FATE_RESET;
		known->reason = REASON_PEER_RESET;
	} else if (old_state == TCP_SYN_RECV && error && error != ECONNABORTED && !may_be_second) {
		/* Fast Open, and nobody acknowledged the SYN-ACK, or an ICMP error came. */
		fate = known->reason ? FATE_DROPPED : FATE_UNANSWERED;
		if (!known->reason)
			known->reason = REASON_NO_FINAL_ACK;
	} else {
		known->reason = error && !may_be_second ? 0 : REASON_LISTENER_CLOSED;
	}
	if (may_be_second)
		return;
	report(ctx, &key, known, fate);
}

/*
 * A socket that a process has or had is closed, so it was accepted. If its attempt is still in the
 * table, the kernel has skipped the program that sees accepts, as it does when a program would
 * interrupt itself on a CPU. Data may have been read, so the ISN follows from rcv_nxt and
 * bytes_received.
 *
 * Outgoing connections are not looked up, because each lookup would be a cache miss. Their backlog
 * limit is 0, while an accepted socket inherits that of its listener. If the listener has 0 too,
 * the next sweep by user space finds the connection.
 */
static __always_inline void on_owned_closed(void *ctx, const struct sock *sk,
					    const struct tcp_sock *tp)
{
	struct attempt_key key;
	struct attempt *known;
	struct ends ends;

	if (!sk->sk_max_ack_backlog)
		return;
	read_ends(&ends, sk);
	find_key(&key, ends.remote, ends.remote_port, counted_seq(tp) - 1, ends.local,
		 bpf_ntohs(read_inet_sport(tp)));
	known = bpf_map_lookup_elem(&attempts, &key);
	if (!known || known->phase != ATTEMPT_ESTABLISHED)
		return;
	known->reason = 0;
	report(ctx, &key, known, FATE_ACCEPTED);
}

static __always_inline bool is_established(int old_state, int new_state)
{
	return old_state == TCP_SYN_RECV && new_state == TCP_ESTABLISHED;
}

/* Whether a state change may be the beginning or the end of an incoming connection. */
static __always_inline bool is_followed(int old_state, int new_state)
{
	if (new_state != TCP_CLOSE)
		return is_established(old_state, new_state);
	return old_state != TCP_LISTEN && old_state != TCP_SYN_SENT && old_state != TCP_CLOSE;
}

static __always_inline int on_state(void *ctx, const struct sock *trusted, int old_state,
				    int new_state)
{
	const struct sock *sk = UNTRUSTED(trusted);
	const struct tcp_sock *tp;

	if (sk->sk_protocol != IPPROTO_TCP || read_netns(sk) != own_netns)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)trusted);
	if (!tp)
		return 0;
	if (is_established(old_state, new_state))
		on_established(ctx, sk, tp);
	else if (sk->sk_socket || (sk->__sk_common.skc_flags & (1UL << SOCK_DEAD)))
		on_owned_closed(ctx, sk, tp);
	else
		on_closed(ctx, sk, tp, old_state);
	return 0;
}

static __always_inline int on_accept_return(void *ctx, const struct sock *sk)
{
	const struct tcp_sock *tp;
	struct attempt_key key;
	struct attempt *known;
	struct ends ends;

	if (!sk || sk->sk_protocol != IPPROTO_TCP || read_netns(sk) != own_netns)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp)
		return 0;
	read_ends(&ends, sk);
	known = find_waiting(&key, &ends, bpf_ntohs(read_inet_sport(tp)), tp->copied_seq,
			     counted_seq(tp));
	if (known)
		report_accepted(ctx, &key, known);
	return 0;
}

/* Finds the accepted socket by the file descriptor that accept(2) returned. */
static __always_inline int on_accept_call(void *ctx, long fd)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	const struct tcp_sock *tp;
	const struct sock *sk;
	struct net *net;
	struct file **files, *file;
	struct files_struct *opened;
	struct fdtable *table;
	struct socket *socket;
	struct attempt_key key;
	struct attempt *known;
	struct ends ends;

	opened = READ_MEMBER(task, files);
	table = READ_MEMBER(opened, fdt);
	files = READ_MEMBER(table, fd);
	if (bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file)
		return 0;
	socket = READ_MEMBER(file, private_data);
	sk = READ_MEMBER(socket, sk);
	if (sk && READ_MEMBER(sk, sk_protocol) == IPPROTO_MPTCP) {
		const struct mptcp_sock *msk = (const void *)sk;

		sk = NULL;
		if (bpf_core_field_exists(msk->first))
			sk = BPF_CORE_READ(msk, first);
	}
	if (!sk || READ_MEMBER(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	net = READ_MEMBER(sk, __sk_common.skc_net.net);
	if (READ_MEMBER(net, ns.inum) != own_netns)
		return 0;
	tp = (const struct tcp_sock *)sk;
	probe_ends(&ends, sk);
	known = find_waiting(&key, &ends,
			     bpf_ntohs(READ_MEMBER(tp, inet_conn.icsk_inet.inet_sport)),
			     READ_MEMBER(tp, copied_seq),
			     READ_MEMBER(tp, rcv_nxt) - (__u32)READ_MEMBER(tp, bytes_received));
	if (known)
		report_accepted(ctx, &key, known);
	return 0;
}

#endif /* TCPINSPECT_ACCEPT_SOCKET_BPF_H */
