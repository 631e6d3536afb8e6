/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections that are followed to their end, and those that the filter has rejected. */
#ifndef TCPINSPECT_CONNECT_OPEN_BPF_H
#define TCPINSPECT_CONNECT_OPEN_BPF_H

#include "connect_table.bpf.h"

static __always_inline bool remembers_passed_over(void)
{
	return wanted(CONNECT_CLOSED) && filter.parts;
}

static __always_inline void pass_over(const struct sock *sk)
{
	struct connection *kept;
	__u64 key = (__u64)sk;
	__u8 yes = 1;

	if (!remembers_passed_over())
		return;
	if (use_storage) {
		kept = bpf_sk_storage_get(&stored, (void *)sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (kept)
			kept->phase = PHASE_PASSED_OVER;
		else
			__sync_fetch_and_add(&totals.unkept, 1);
	} else if (bpf_map_update_elem(&passed_over, &key, &yes, BPF_ANY)) {
		__sync_fetch_and_add(&totals.unkept, 1);
	}
}

/*
 * Whether a connection that is in no table was rejected by the filter; also removes it from
 * `passed_over`. If some connections found no room in the tables, this one may be one of them, or
 * be older than the run: its end is then counted as lost. With socket storage only a connection
 * whose own socket has no memory left can be one of them.
 */
static __always_inline bool was_passed_over(const struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (!remembers_passed_over())
		return false;
	if (!use_storage && !bpf_map_delete_elem(&passed_over, &key))
		return true;
	if (!totals.unkept)
		return false;
	if (use_storage &&
	    bpf_sk_storage_get(&stored, (void *)sk, NULL, BPF_SK_STORAGE_GET_F_CREATE)) {
		forget(sk);
		return false;
	}
	count_lost();
	return true;
}

/* Follows a connection to its end; `c` is what is known of it so far. */
static __always_inline void keep_open(const struct sock *sk, struct connection *c)
{
	c->phase = PHASE_OPEN;
	c->started_ns = bpf_ktime_get_ns();
	if (keep(sk, c))
		return;
	/* Without a process filter, its end is still reported, but without a process. */
	forget(sk);
	if (process_filter)
		count_lost();
}

#endif /* TCPINSPECT_CONNECT_OPEN_BPF_H */
