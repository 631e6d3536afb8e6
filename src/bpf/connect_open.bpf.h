/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Connections that are followed to their end, and those that the filter has rejected. */
#ifndef TCPINSPECT_CONNECT_OPEN_BPF_H
#define TCPINSPECT_CONNECT_OPEN_BPF_H

#include "connect_table.bpf.h"

static __always_inline bool remembers_rejected(void)
{
	return wanted(CONNECT_CLOSED) && filter.parts;
}

/* Remembers that the filter has rejected a connection. */
static __always_inline void remember_rejected(const struct sock *sk)
{
	struct connection *kept;
	__u64 key = (__u64)sk;
	__u8 yes = 1;

	if (!remembers_rejected())
		return;
	if (use_storage) {
		kept = bpf_sk_storage_get(&stored, (void *)sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (kept)
			kept->phase = PHASE_IGNORED;
		else
			__sync_fetch_and_add(&totals.untracked, 1);
	} else if (bpf_map_update_elem(&rejected, &key, &yes, BPF_ANY)) {
		__sync_fetch_and_add(&totals.untracked, 1);
	}
}

/*
 * Whether the filter has rejected a connection that ends and is not in the tables. Also removes it
 * from `rejected`.
 *
 * If some connections found no room in the tables, this may be one of them, or it may be older than
 * the run: then its end is counted as lost. With socket storage, it can only be one of them if its
 * own socket has no memory left.
 */
static __always_inline bool was_rejected(const struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (!remembers_rejected())
		return false;
	if (!use_storage && !bpf_map_delete_elem(&rejected, &key))
		return true;
	if (!totals.untracked)
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
