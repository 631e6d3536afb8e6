// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * flows: which process holds the socket of a flow.
 *
 * A packet does not know its process, so all open files are looked at from time to time: the file
 * of a socket leads to its addresses, and these to the flow. A socket that is closed before anybody
 * looks is nobody's.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "flow_table.bpf.h"

#define AF_INET	    2
#define AF_INET6    10
#define IPPROTO_TCP 6

/* Interfaces more than these have no owners. */
#define INTERFACES_MAX 64

/* Interfaces that are watched, all of this network namespace. */
const volatile __u32 interfaces = 1;
const volatile __u32 netns = 0;

/* Counts looks at all processes; user space does so. */
__u32 pass = 0;

static __always_inline void put_address4(__be32 *to, __be32 addr)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = addr;
}

static __always_inline bool is_lower(const __be32 *a, __u16 aport, const __be32 *b, __u16 bport)
{
	for (int i = 0; i < 4; i++) {
		if (a[i] != b[i])
			return a[i] < b[i];
	}
	return aport <= bport;
}

/* The key of the socket's flow, without the interface, and which end the socket is. False if it has
 * none. */
static __always_inline bool socket_key(struct flow_key *key, __u8 *end, struct sock *sk)
{
	/* From the sock itself: libbpf searches the kernel for each type that is named. */
	__u16 family = sk->__sk_common.skc_family, lport = sk->__sk_common.skc_num,
	      rport = bpf_ntohs(sk->__sk_common.skc_dport);
	__be32 local[4], remote[4];
	bool lower;

	if (!rport)
		return false;
	if (family == AF_INET) {
		put_address4(local, sk->__sk_common.skc_rcv_saddr);
		put_address4(remote, sk->__sk_common.skc_daddr);
	} else if (family == AF_INET6) {
		for (int i = 0; i < 4; i++) {
			local[i] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[i];
			remote[i] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[i];
		}
	} else {
		return false;
	}
	lower = is_lower(local, lport, remote, rport);
	__builtin_memcpy(key->addr[0], lower ? local : remote, 16);
	__builtin_memcpy(key->addr[1], lower ? remote : local, 16);
	key->port[0] = lower ? lport : rport;
	key->port[1] = lower ? rport : lport;
	/* An IPv6 socket may be for IPv4 packets. */
	key->ip_version = !local[0] && !local[1] && local[2] == bpf_htonl(0xffff) ? 4 : 6;
	key->pad = 0;
	*end = lower ? 0 : 1;
	return true;
}

/*
 * The first process that was found to hold the socket alone is its owner, whoever inherits it
 * later. Both ends may be here, and then it is the initiator's that counts.
 */
static __always_inline void own(struct flow_record *r, const struct flow_owner *found)
{
	struct flow_owner *owner = &r->owner;

	if (owner->pass && owner->end != found->end) {
		if (owner->end == r->initiator)
			return;
	} else if (owner->pass == found->pass) {
		/* Nobody can tell which of them the connection is for. */
		if (owner->pid != found->pid)
			owner->pid = 0;
		return;
	} else if (owner->pid) {
		return;
	}
	*owner = *found;
}

SEC("iter/task_file")
int flow_owner(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct flow_owner found = {};
	struct flow_key key = {};
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (sk->__sk_common.skc_net.net->ns.inum != netns || !socket_key(&key, &found.end, sk))
		return 0;
	found.pass = pass;
	found.pid = task->tgid;
	found.uid = sk->sk_uid.val;
	for (int i = 0; i < FLOW_COMM_LEN; i++)
		found.comm[i] = task->comm[i];
	for (__u32 i = 0; i < INTERFACES_MAX && i < interfaces; i++) {
		struct flow_slot *slot;
		__u32 *number;

		key.interface = i;
		number = bpf_map_lookup_elem(&flow_slots, &key);
		slot = number ? bpf_map_lookup_elem(&slots, number) : NULL;
		if (!slot)
			continue;
		bpf_spin_lock(&slot->lock);
		if (slot->state == SLOT_LIVE && same_key(&slot->record.key, &key))
			own(&slot->record, &found);
		bpf_spin_unlock(&slot->lock);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
