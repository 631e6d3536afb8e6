// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Finds the processes that have TCP sockets open. An MPTCP socket counts as one: the TCP sockets of
 * its subflows have the same inode.
 *
 * Socket diagnostics list the sockets of a network namespace, but not their processes. So this
 * iterator runs over the open files of all processes. User space finds a socket by its inode.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include "inet.bpf.h"
#include "task.bpf.h"
#include "socket_owner.h"

#define SOCKFS_MAGIC 0x534f434b

/* Report sockets in all states, not only listeners. */
const volatile bool all_states = false;

/* The current result: only one thread reads the iterator. */
struct socket_holder holder;

static __always_inline bool is_asked_for(__u16 protocol, __u8 state)
{
	return (protocol == IPPROTO_TCP || protocol == IPPROTO_MPTCP) &&
	       (all_states || state == TCP_LISTEN);
}

/*
 * The address of the struct sock of a listener: with MPTCP, that of its first subflow, which takes
 * the SYNs. 0: it is not known.
 */
static __always_inline __u64 listener_address(const struct sock *sk, __u16 protocol)
{
	const struct mptcp_sock *msk = (const void *)sk;

	if (all_states)
		return 0;
	if (protocol == IPPROTO_TCP)
		return (__u64)sk;
	return bpf_core_field_exists(msk->first) ? (__u64)BPF_CORE_READ(msk, first) : 0;
}

/*
 * Whether the file is a socket to report; its address is then in `holder`. Linux before 5.11 has no
 * bpf_sock_from_file().
 */
static __always_inline bool is_wanted(struct file *file)
{
	struct socket *socket;
	struct sock *sk;
	__u16 protocol;

	if (bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_sock_from_file)) {
		socket = bpf_sock_from_file(file);
		sk = socket ? socket->sk : NULL;
		if (!sk || !is_asked_for(sk->sk_protocol, sk->__sk_common.skc_state))
			return false;
		holder.listener = listener_address(sk, sk->sk_protocol);
		return true;
	}
	if (file->f_inode->i_sb->s_magic != SOCKFS_MAGIC)
		return false;
	socket = file->private_data;
	sk = BPF_CORE_READ(socket, sk);
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (!is_asked_for(protocol, BPF_CORE_READ(sk, __sk_common.skc_state)))
		return false;
	holder.listener = listener_address(sk, protocol);
	return true;
}

SEC("iter/task_file")
int socket_owner(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;

	if (!task || !file || !is_wanted(file))
		return 0;
	holder.inode = file->f_inode->i_ino;
	holder.cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	holder.pid = task->tgid;
	READ_COMM(holder.comm, task);
	/* If there is no room, the kernel calls the program again with an empty buffer. */
	bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
