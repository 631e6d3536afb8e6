/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* In the kernel, counts fates by key, or adds the times of accepted attempts to histograms. */
#ifndef TCPINSPECT_ACCEPT_COUNT_BPF_H
#define TCPINSPECT_ACCEPT_COUNT_BPF_H

#include "skb.bpf.h"
#include "histogram.bpf.h"
#include "accept_trace.h"

const volatile enum accept_output accept_output = 0;
const volatile enum accept_by accept_by = 0;

/*
 * Whether the reason is part of the key: because it is shown, or because user space filters by it.
 */
const volatile bool count_reasons = false;

/*
 * Which of the two tables counts the fates of this interval: 0 even, 1 odd. User space empties the
 * other.
 */
__u32 open_counts SEC(".bss.open");

struct count_map {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct accept_count_key);
	__type(value, __u64);
};
struct count_map even_counts SEC(".maps");
struct count_map odd_counts SEC(".maps");

/* Fates whose key found no room in the table of the interval. */
__u64 counts_untracked SEC(".bss.open");

/* BTF has the type only if something refers to it. */
const struct accept_count_key *unused_accept_count_key __attribute__((unused));

/* The key of an attempt with this fate. `comm` is the name of the process that accepts. */
static __always_inline void set_count_key(struct accept_count_key *to,
					  const struct attempt_key *key, const struct attempt *a,
					  enum accept_fate fate, const __u8 *comm)
{
	to->fate = fate;
	if (count_reasons && fate != FATE_ACCEPTED) {
		to->reason = a->reason;
		if (!is_specific(a->reason))
			to->place = a->place;
	}
	switch (accept_by) {
	case ACCEPT_BY_SADDR:
		__builtin_memcpy(to->bytes, key->addr, sizeof(to->bytes));
		to->kind = a->ip_version;
		break;
	case ACCEPT_BY_DPORT:
		to->port = a->dport;
		break;
	case ACCEPT_BY_COMM:
		if (comm) {
			__builtin_memcpy(to->bytes, comm, sizeof(to->bytes));
			break;
		}
		/* User space finds the process of the listener. */
		if (!(a->flags & ATTEMPT_HAS_LISTENER))
			break;
		__builtin_memcpy(to->bytes, a->lport ? a->laddr : a->daddr, sizeof(to->bytes));
		to->port = a->lport ?: a->dport;
		to->kind = a->ip_version;
		break;
	default:
		break;
	}
}

static __always_inline void count_one(void *map, const struct accept_count_key *key)
{
	__u64 *count = bpf_map_lookup_elem(map, key), zero = 0;

	if (!count) {
		/* This fails if another CPU has just added the key, which is fine. */
		bpf_map_update_elem(map, key, &zero, BPF_NOEXIST);
		count = bpf_map_lookup_elem(map, key);
	}
	__sync_fetch_and_add(count ?: &counts_untracked, 1);
}

static __always_inline void count_fate(const struct accept_count_key *key)
{
	if (open_counts & 1)
		count_one(&odd_counts, key);
	else
		count_one(&even_counts, key);
}

/* Adds the time of an accepted attempt to the histogram of its key. */
static __always_inline void count_time(const struct accept_count_key *count, __u64 from, __u64 to)
{
	struct histogram_key key = {};

	if (accept_by == ACCEPT_BY_DPORT)
		__builtin_memcpy(key.bytes, &count->port, sizeof(count->port));
	else
		__builtin_memcpy(key.bytes, count->bytes, sizeof(key.bytes));
	histogram_add(&key, to > from ? (to - from) / 1000 : 0);
}

#endif /* TCPINSPECT_ACCEPT_COUNT_BPF_H */
