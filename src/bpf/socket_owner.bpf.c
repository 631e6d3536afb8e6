// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * Finds the processes that have TCP sockets open.
 *
 * Socket diagnostics list the sockets of a network namespace, but not their processes. So this
 * iterator runs over the open files of all processes. User space finds a socket by its inode.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include "inet.bpf.h"
#include "socket_owner.h"

#define SOCKFS_MAGIC 0x534f434b
#define TCP_LISTEN   10

/* Report sockets in all states, not only listeners. */
const volatile bool all_states = false;

/* The current result: only one thread reads the iterator. */
struct socket_holder holder;

static __always_inline int report(struct bpf_iter__task_file *ctx, struct task_struct *task,
				  __u64 inode)
{
	holder.inode = inode;
	holder.cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	holder.pid = task->tgid;
	for (int i = 0; i < SOCKET_COMM_LEN; i++)
		holder.comm[i] = task->comm[i];
	/* If there is no room, the kernel calls the program again with an empty buffer. */
	bpf_seq_write(ctx->meta->seq, &holder, sizeof(holder));
	return 0;
}

SEC("iter/task_file")
int socket_owner(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || sk->sk_protocol != IPPROTO_TCP ||
	    (!all_states && sk->__sk_common.skc_state != TCP_LISTEN))
		return 0;
	return report(ctx, task, file->f_inode->i_ino);
}

/* The same for Linux before 5.11, which has no bpf_sock_from_file(). */
SEC("iter/task_file")
int socket_owner_old(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file || file->f_inode->i_sb->s_magic != SOCKFS_MAGIC)
		return 0;
	socket = file->private_data;
	sk = BPF_CORE_READ(socket, sk);
	if (BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (!all_states && BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return 0;
	return report(ctx, task, file->f_inode->i_ino);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
