/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The events of connect-trace: their process, the filter on them, and how they are sent. */
#ifndef TCPINSPECT_CONNECT_EVENT_BPF_H
#define TCPINSPECT_CONNECT_EVENT_BPF_H

#include "filter.bpf.h"
#include "process_filter.bpf.h"
#include "events.bpf.h"
#include "rate.bpf.h"
#include "export.bpf.h"
#include "histogram.bpf.h"
#include "socket.bpf.h"
#include "task.bpf.h"
#include "connect_trace.h"

const volatile __u32 wanted_kinds = 0; /* bits by enum connect_kind */

/* The network namespace of the wanted connections, by inode number; 0: all. */
const volatile __u32 wanted_netns = 0;

const volatile enum connect_histogram histogram_by = CONNECT_NO_HISTOGRAM;

struct connect_counters totals = {};

/*
 * Set by user space before it reads the counters. From then on nothing is counted or sent, even if
 * another process holds our links and so keeps the programs attached.
 */
__u32 stopped;

/* BTF has the types only if something refers to them. */
const struct connect_event *unused_connect_event __attribute__((unused));
const enum connect_export *unused_connect_export __attribute__((unused));

static __always_inline bool wanted(enum connect_kind kind)
{
	return wanted_kinds & (1 << kind);
}

static __always_inline void count_lost(void)
{
	if (stopped)
		return;
	__sync_fetch_and_add(&totals.matched, 1);
	__sync_fetch_and_add(&totals.lost, 1);
}

static __always_inline void export_connection(const struct connect_event *e, enum connect_kind kind)
{
	struct export_key key = { .kind = kind, .reason = e->error };
	struct export_key bytes = {};
	bool has_start = e->known & KNOWN_START;

	key.detail = e->direction << EXPORT_DIRECTION_SHIFT | e->closed_by;
	if (e->known & KNOWN_GIVEN_UP)
		key.detail |= EXPORT_GIVEN_UP;
	export_count(&key, 1);
	if (kind == CONNECT_ESTABLISHED && has_start)
		export_time(EXPORT_CONNECT, e->elapsed_ns);
	if (kind != CONNECT_CLOSED)
		return;
	if (has_start)
		export_time(EXPORT_DURATION, e->elapsed_ns);
	bytes.kind = EXPORT_TX_BYTES;
	export_count(&bytes, e->tx_bytes);
	bytes.kind = EXPORT_RX_BYTES;
	export_count(&bytes, e->rx_bytes);
}

/* Adds the time to connect to the histogram of its key. */
static __always_inline void count_time(const struct connect_event *e)
{
	struct histogram_key key = {};

	/* For an attempt that is older than the run, the start may be unknown. */
	if (!(e->known & KNOWN_START))
		return;
	__sync_fetch_and_add(&totals.matched, 1);
	if (histogram_by == CONNECT_BY_PROCESS) {
		copy_comm(key.bytes, e->process);
	} else if (histogram_by == CONNECT_BY_DADDR) {
		__builtin_memcpy(key.bytes, e->daddr, sizeof(key.bytes));
	} else if (histogram_by == CONNECT_BY_DPORT) {
		__builtin_memcpy(key.bytes, &e->dport, sizeof(e->dport));
	}
	histogram_add(&key, e->elapsed_ns / 1000);
}

/*
 * Sends an event or counts it. Programs on a CPU can interrupt each other, so counters are atomic
 * and events are on the stack.
 */
static __noinline int emit(void *ctx, struct connect_event *e, enum connect_kind kind)
{
	if (!e || !wanted(kind) || stopped)
		return 0;
	if (exporting) {
		export_connection(e, kind);
		return 0;
	}
	if (histogram_by) {
		count_time(e);
		return 0;
	}
	e->kind = kind;
	__sync_fetch_and_add(&totals.matched, 1);
	if (max_rate && is_over_rate(bpf_ktime_get_ns()))
		__sync_fetch_and_add(&totals.suppressed, 1);
	else if (send_event(ctx, e, sizeof(*e)))
		__sync_fetch_and_add(&totals.lost, 1);
	return 0;
}

/* Sets source and destination from the two ends of a socket: the source is the initiator. */
static __always_inline void set_ends(struct connect_event *e, const struct ends *ends)
{
	e->ip_version = ends->ip_version;
	if (e->direction == DIRECTION_IN) {
		e->sport = ends->remote_port;
		e->dport = ends->local_port;
		__builtin_memcpy(e->saddr, ends->remote, sizeof(e->saddr));
		__builtin_memcpy(e->daddr, ends->local, sizeof(e->daddr));
		/* Otherwise the compiler would turn each assignment into a branch. */
		barrier();
	} else {
		e->sport = ends->local_port;
		e->dport = ends->remote_port;
		__builtin_memcpy(e->saddr, ends->local, sizeof(e->saddr));
		__builtin_memcpy(e->daddr, ends->remote, sizeof(e->daddr));
	}
}

static __always_inline bool is_kernel_thread(void)
{
	if (has_current_task_btf())
		return bpf_get_current_task_btf()->flags & PF_KTHREAD;
	if (!may_probe_read)
		return false;
	return BPF_CORE_READ((struct task_struct *)bpf_get_current_task(), flags) & PF_KTHREAD;
}

static __always_inline void set_process_name(struct connect_event *e)
{
	if (e->pid == e->tid) {
		__builtin_memcpy(e->process, e->comm, sizeof(e->process));
	} else if (may_probe_read) {
		struct task_struct *task = (struct task_struct *)bpf_get_current_task();

		BPF_CORE_READ_INTO(&e->process, task, group_leader, comm);
	} else if (has_current_task_btf()) {
		struct task_struct *leader = bpf_get_current_task_btf()->group_leader;

		READ_COMM(e->process, leader);
	}
}

/*
 * Sets the current process. A kernel thread is not reported as a process: it may work for one, but
 * which one is unknown.
 */
static __always_inline void set_process(struct connect_event *e)
{
	__u64 id = bpf_get_current_pid_tgid();

	/* Set for kernel threads too: the hooks match calls and returns by it. */
	e->tid = id;
	if (is_kernel_thread())
		return;
	e->pid = id >> 32;
	e->uid = bpf_get_current_uid_gid();
	e->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	set_process_name(e);
	e->known |= KNOWN_PROCESS;
}

static __always_inline bool process_matches(const struct connect_event *e)
{
	if (!process_filter)
		return true;
	if (!(e->known & KNOWN_PROCESS))
		return false;
	return is_wanted_id(e->pid, e->uid) &&
	       (is_wanted_comm(e->comm) || is_wanted_comm(e->process));
}

/* Sets an address as the filter wants it: an IPv4 address in the first word. */
static __always_inline void set_unmapped(__be32 *to, const struct connect_event *e,
					 const __u8 *addr)
{
	__builtin_memcpy(to, addr, 16);
	if (e->ip_version == 4) {
		to[0] = to[3];
		to[1] = to[2] = to[3] = 0;
	}
}

/*
 * Whether the network namespace, IP version and destination match: they are known when an attempt
 * begins.
 */
static __always_inline bool destination_matches(const struct connect_event *e)
{
	__be32 daddr[4];

	if (wanted_netns && e->netns && e->netns != wanted_netns)
		return false;
	if (!version_matches(e->ip_version))
		return false;
	if ((filter.parts & FILTER_DPORT) && !has_port(dport_bits, e->dport))
		return false;
	if (!(filter.parts & (FILTER_DST_ONLY | FILTER_DST_NOT)))
		return true;
	set_unmapped(daddr, e, e->daddr);
	return daddr_matches(e->ip_version, daddr);
}

/* Whether the filter accepts the source, and both ends by its rules for either end. */
static __always_inline bool source_matches(const struct connect_event *e)
{
	__be32 saddr[4], daddr[4];

	if ((filter.parts & FILTER_SPORT) && !has_port(sport_bits, e->sport))
		return false;
	if (!any_port_matches(e->sport, e->dport))
		return false;
	if (!(filter.parts & (FILTER_SRC_ONLY | FILTER_SRC_NOT | FILTER_HOST)))
		return true;
	set_unmapped(saddr, e, e->saddr);
	if (!saddr_matches(e->ip_version, saddr))
		return false;
	if (!(filter.parts & FILTER_HOST))
		return true;
	set_unmapped(daddr, e, e->daddr);
	return host_matches(e->ip_version, saddr, daddr);
}

/* Whether the filter can decide only when the source port is known. */
static __always_inline bool needs_source_port(const struct connect_event *e)
{
	if (filter.parts & (FILTER_SPORT | FILTER_ANY_PORT_NOT))
		return true;
	return (filter.parts & FILTER_ANY_PORT_ONLY) && !has_port(any_port_bits, e->dport);
}

static __always_inline bool matches(const struct connect_event *e)
{
	return process_matches(e) && destination_matches(e) && source_matches(e);
}

#endif /* TCPINSPECT_CONNECT_EVENT_BPF_H */
