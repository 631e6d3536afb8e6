/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads fields of sockets, for the tracing programs. */
#ifndef TCPINSPECT_SOCKET_BPF_H
#define TCPINSPECT_SOCKET_BPF_H

#include "inet.bpf.h"

/* False under lockdown=confidentiality, where the kernel forbids bpf_probe_read_kernel(). */
const volatile bool may_probe_read = true;

extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

/*
 * Turns any address into a BTF pointer, so that members can be loaded through it; since Linux 6.2.
 * If a program loads a pointer through an argument of a tracepoint, the verifier searches all of
 * BTF by name to decide whether that pointer is trusted, which takes a millisecond. If the pointer
 * is loaded through this one, it does not.
 */
#define AS_BTF_POINTER(pointer)                                                                    \
	((typeof(pointer))bpf_rdonly_cast(pointer, bpf_core_type_id_kernel(typeof(*(pointer)))))

/* The same for an argument of a tracepoint; before Linux 6.2 the argument itself. */
#define UNTRUSTED(pointer) (bpf_rdonly_cast ? AS_BTF_POINTER(pointer) : (pointer))

/* Reads a member of a kernel object: by a load if possible, else by a call. */
#define READ_MEMBER(object, member)                                                                \
	(bpf_rdonly_cast ? AS_BTF_POINTER(object)->member : BPF_CORE_READ(object, member))

static __always_inline bool is_unset(const __u8 *addr)
{
	const __be32 *word = (const __be32 *)addr;

	return !word[0] && !word[1] && !word[2] && !word[3];
}

/* The local and the remote end of a socket. */
struct ends {
	__be32 local[4]; /* IPv4 as v4-mapped */
	__be32 remote[4];
	__u16 local_port;
	__u16 remote_port;
	__u8 ip_version;
};

/*
 * The members are read through the BTF pointer, which works under any lockdown. They are named by
 * struct sock alone: for each further type libbpf would search all of the kernel's BTF.
 */
static __always_inline void read_ends(struct ends *ends, const struct sock *sk)
{
	ends->local_port = sk->__sk_common.skc_num;
	ends->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	ends->ip_version = 4;
	if (sk->__sk_common.skc_family == AF_INET6 &&
	    bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		ends->local[0] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		ends->local[1] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		ends->local[2] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		ends->local[3] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3];
		ends->remote[0] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0];
		ends->remote[1] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1];
		ends->remote[2] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2];
		ends->remote[3] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
		/* An IPv6 socket can have an IPv4 connection. */
		if (!is_mapped(ends->remote))
			ends->ip_version = 6;
	} else {
		set_mapped(ends->local, sk->__sk_common.skc_rcv_saddr);
		set_mapped(ends->remote, sk->__sk_common.skc_daddr);
	}
}

/* The same for an address that is not a BTF pointer, by probe reads. */
static __always_inline void probe_ends(struct ends *ends, const struct sock *sk)
{
	ends->local_port = BPF_CORE_READ(sk, __sk_common.skc_num);
	ends->remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	ends->ip_version = 4;
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6 &&
	    bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		BPF_CORE_READ_INTO(&ends->local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&ends->remote, sk, __sk_common.skc_v6_daddr);
		if (!is_mapped(ends->remote))
			ends->ip_version = 6;
	} else {
		set_mapped(ends->local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		set_mapped(ends->remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	}
}

/* The local port. Unlike skc_num it is still set when the socket is closed. */
static __always_inline __be16 read_inet_sport(const struct tcp_sock *tp)
{
	return tp->inet_conn.icsk_inet.inet_sport;
}

/* Whether the socket has sent a FIN, if it is in this state. */
static __always_inline bool has_sent_fin(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
	       state == TCP_LAST_ACK;
}

/* Whether a FIN has arrived. It counts as one in sequence numbers. */
static __always_inline bool has_received_fin(const struct sock *sk)
{
	return sk->__sk_common.skc_flags & (1UL << SOCK_DONE);
}

/* The smoothed round-trip time. The kernel keeps eight times that. */
static __always_inline __u32 read_srtt_us(const struct tcp_sock *tp)
{
	return tp->srtt_us >> 3;
}

/* The lowest round-trip time; ~0: none was measured. */
static __always_inline __u32 read_min_rtt_us(const struct tcp_sock *tp)
{
	return tp->rtt_min.s[0].v;
}

static __always_inline __u32 read_netns(const struct sock *sk)
{
	if (!bpf_core_field_exists(sk->__sk_common.skc_net.net))
		return 0;
	if (may_probe_read)
		return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	return sk->__sk_common.skc_net.net->ns.inum;
}

#endif /* TCPINSPECT_SOCKET_BPF_H */
