/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Attempts without a fate: those that exist when the run starts, which are found among all open
 * files, and those that are left when it ends.
 */
#ifndef TCPINSPECT_CONNECT_PENDING_BPF_H
#define TCPINSPECT_CONNECT_PENDING_BPF_H

#include "connect_table.bpf.h"

#define S_IFMT	      0xf000
#define S_IFSOCK      0xc000
#define NSEC_PER_MSEC 1000000ULL

/*
 * The longest wait that can be right, because the kernel gives up after minutes. If it seems to be
 * longer, the start counts as unknown.
 */
#define WAIT_MAX_MSEC (60 * 60 * 1000)

/* Fields of a socket in SYN_SENT. */
struct waiting {
	struct ends ends;
	__u32 netns;
	__u32 uid;
	__u32 since_msec; /* when the first SYN was sent, by the monotonic clock */
};

static __always_inline bool is_waiting(const struct sock *sk)
{
	return sk->sk_protocol == IPPROTO_TCP && sk->__sk_common.skc_state == TCP_SYN_SENT &&
	       (sk->__sk_common.skc_family == AF_INET || sk->__sk_common.skc_family == AF_INET6);
}

static __always_inline const struct sock *read_waiting(struct waiting *w, struct file *file)
{
	struct socket *socket = bpf_sock_from_file(file);
	const struct tcp_sock *tp;
	const struct sock *sk;

	if (!socket)
		return NULL;
	sk = socket->sk;
	if (!sk || !is_waiting(sk))
		return NULL;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp)
		return NULL;
	read_ends(&w->ends, sk);
	w->netns = read_netns(sk);
	w->uid = sk->sk_uid.val;
	w->since_msec = tp->retrans_stamp;
	return sk;
}

static __always_inline bool probe_is_tcp(const struct sock *sk)
{
	__u16 family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return (family == AF_INET || family == AF_INET6) &&
	       BPF_CORE_READ(sk, sk_protocol) == IPPROTO_TCP;
}

static __always_inline bool probe_is_waiting(const struct sock *sk)
{
	return probe_is_tcp(sk) && BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_SYN_SENT;
}

/* Whether the socket is connecting. In a simultaneous open (RFC 9293) it is in SYN_RECV. */
static __always_inline bool probe_attempts(const struct sock *sk)
{
	__u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

	return (state == TCP_SYN_SENT || state == TCP_SYN_RECV) && probe_is_tcp(sk);
}

/* Linux 5.10 has no helper that finds the socket of a file. */
static __always_inline const struct sock *probe_waiting(struct waiting *w, struct file *file)
{
	const struct socket *socket;
	const struct sock *sk;

	if ((BPF_CORE_READ(file, f_inode, i_mode) & S_IFMT) != S_IFSOCK)
		return NULL;
	socket = BPF_CORE_READ(file, private_data);
	if (!socket || BPF_CORE_READ(socket, file) != file)
		return NULL;
	sk = BPF_CORE_READ(socket, sk);
	if (!sk || !probe_is_waiting(sk))
		return NULL;
	probe_ends(&w->ends, sk);
	w->netns = read_netns(sk);
	w->uid = BPF_CORE_READ(sk, sk_uid.val);
	w->since_msec = BPF_CORE_READ((const struct tcp_sock *)sk, retrans_stamp);
	return sk;
}

static __always_inline bool has_sock_from_file(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_sock_from_file);
}

static __always_inline void set_holder(struct connect_event *e, const struct task_struct *task,
				       __u32 uid)
{
	e->pid = task->tgid;
	e->uid = uid;
	if (may_probe_read)
		e->cgroup_id = BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
	else
		e->cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	READ_COMM(e->process, task->group_leader);
	__builtin_memcpy(e->comm, e->process, sizeof(e->comm));
	e->known |= KNOWN_PROCESS;
}

/*
 * Finds sockets in SYN_SENT. The process is the one that has the socket open: which thread called
 * connect() is no longer known. The other programs are attached before this one runs, and see all
 * later attempts.
 */
SEC("iter/task_file")
int find_pending(struct bpf_iter__task_file *ctx)
{
	struct connection c = { .phase = PHASE_WAITING, .sent = true, .announced = true };
	const struct task_struct *task = ctx->task;
	struct waiting w = {};
	struct file *file = ctx->file;
	const struct sock *sk = NULL;
	__u64 now = bpf_ktime_get_ns();
	__u32 waited_msec;
	__u8 one = 1;
	bool is_over;

	if (!task || !file)
		return 0;
	if (has_sock_from_file())
		sk = read_waiting(&w, file);
	else if (may_probe_read)
		sk = probe_waiting(&w, file);
	/* A socket may be open in several processes, or several times in one. */
	if (!sk || find(sk))
		return 0;
	c.event.direction = DIRECTION_OUT;
	c.event.netns = w.netns;
	set_ends(&c.event, &w.ends);
	set_holder(&c.event, task, w.uid);
	waited_msec = (__u32)(now / NSEC_PER_MSEC) - w.since_msec;
	if (waited_msec < WAIT_MAX_MSEC)
		c.started_ns = now - waited_msec * NSEC_PER_MSEC;
	c.event.ts_ns = c.started_ns ? c.started_ns : now;
	if (!matches(&c.event))
		return 0;
	if (keep(sk, &c)) {
		/* It may have left SYN_SENT before it was kept. */
		is_over = has_sock_from_file() ? !is_waiting(sk) : !probe_is_waiting(sk);
		if (is_over) {
			forget(sk);
			return 0;
		}
	} else {
		__sync_fetch_and_add(&totals.untracked_pending, 1);
	}
	emit(ctx, &c.event, CONNECT_ATTEMPT);
	/* Output makes the read(2) return, so that user space can empty the event buffer. */
	bpf_seq_write(ctx->meta->seq, &one, sizeof(one));
	return 0;
}

/*
 * Writes events to the output of the iterator; user space counts them. If an event does not fit,
 * the kernel runs the program again.
 *
 * The programs that report fates are still attached, so that no fate is missed. PHASE_IGNORED keeps
 * them from reporting this attempt again.
 */
static __always_inline void report_pending(struct seq_file *seq, struct connection *kept,
					   __u16 sport)
{
	struct connection c = *kept;

	if (c.phase != PHASE_CALLING && c.phase != PHASE_WAITING)
		return;
	/* The kernel chooses the source port only after the change to SYN_SENT. */
	if (sport)
		c.event.sport = sport;
	if (!c.announced) {
		if (!destination_matches(&c.event) || !source_matches(&c.event))
			return;
		if (wanted(CONNECT_ATTEMPT)) {
			c.event.ts_ns = c.started_ns;
			c.event.kind = CONNECT_ATTEMPT;
			bpf_seq_write(seq, &c.event, sizeof(c.event));
		}
	}
	set_elapsed(&c);
	c.event.kind = CONNECT_PENDING;
	if (!bpf_seq_write(seq, &c.event, sizeof(c.event)))
		kept->phase = PHASE_IGNORED;
}

SEC("iter/bpf_map_elem")
int report_pending_in_table(struct bpf_iter__bpf_map_elem *ctx)
{
	struct connection *kept = ctx->value;
	const __u64 *key = ctx->key;
	const struct sock *sk;
	__u16 sport = 0;

	if (!kept || !key)
		return 0;
	sk = (const struct sock *)*key;
	if (may_probe_read && probe_attempts(sk))
		sport = BPF_CORE_READ(sk, __sk_common.skc_num);
	else if (may_probe_read && kept->phase == PHASE_WAITING)
		return 0; /* its fate was reported, or missed and counted as lost */
	report_pending(ctx->meta->seq, kept, sport);
	return 0;
}

SEC("iter/bpf_sk_storage_map")
int report_pending_in_storage(struct bpf_iter__bpf_sk_storage_map *ctx)
{
	struct connection *kept = ctx->value;
	const struct sock *sk = ctx->sk;

	if (kept && sk)
		report_pending(ctx->meta->seq, kept, sk->__sk_common.skc_num);
	return 0;
}

#endif /* TCPINSPECT_CONNECT_PENDING_BPF_H */
