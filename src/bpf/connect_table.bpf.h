/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The connections that are followed, from attempt to end. */
#ifndef TCPINSPECT_CONNECT_TABLE_BPF_H
#define TCPINSPECT_CONNECT_TABLE_BPF_H

#include "connect_event.bpf.h"

enum phase {
	PHASE_IGNORED, /* rejected by the filter, or reported as pending: no more events */
	PHASE_CALLING, /* in the kernel's connect function: reported when that returns */
	PHASE_WAITING, /* the attempt has no fate yet */
	PHASE_OPEN,    /* established, and not closed yet */
};

/* A connection that is followed. `event` is what is known of it so far. */
struct connection {
	struct connect_event event;
	__u64 started_ns;
	__be16 old_sport; /* inet_sport when the attempt began: 0, or left by an earlier attempt */
	__u8 phase;
	__u8 function;	 /* 4 or 6: the outermost connect function of the call */
	__u8 sent;	 /* its socket reached SYN_SENT, and has not failed since */
	__u8 announced;	 /* the filter accepted the attempt, and its event was sent if wanted */
	__u8 soft_error; /* ICMP error that came while the connect function had locked the socket */
	__u8 old_errors; /* length of the socket's error queue when the attempt began (low bits) */
};

/* Set by user space at the end of the run: new attempts are ignored. */
__u32 ending;

/*
 * Whether the kernel has socket storage (BPF_MAP_TYPE_SK_STORAGE) for tracing programs: each socket
 * has its own memory for it.
 *
 * Attempts are in a hash map, which is faster but can become full. Socket storage holds the
 * attempts that find no room there, and all open connections, because these can last long. On other
 * kernels the hash map holds everything.
 */
const volatile bool use_storage = false;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct connection);
} stored SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct connection);
} connections SEC(".maps");

/*
 * Connections that the filter has rejected, by the address of the socket, for kernels without
 * socket storage. Without this table, the end of such a connection would look like the end of a
 * connection that is older than the run. The direction of an older connection is unknown, so the
 * filter takes the local end for the source, and may accept it.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} rejected SEC(".maps");

static __always_inline struct connection *find(const struct sock *sk)
{
	__u64 key = (__u64)sk;
	struct connection *kept = bpf_map_lookup_elem(&connections, &key);

	if (kept || !use_storage)
		return kept;
	return bpf_sk_storage_get(&stored, (void *)sk, NULL, 0);
}

static __always_inline void forget(const struct sock *sk)
{
	__u64 key = (__u64)sk;

	if (bpf_map_delete_elem(&connections, &key) && use_storage)
		bpf_sk_storage_delete(&stored, (void *)sk);
}

/* Keeps a connection in the storage of its socket. False: the socket has no room for it. */
static __always_inline bool store(const struct sock *sk, struct connection *c)
{
	struct connection *kept =
		bpf_sk_storage_get(&stored, (void *)sk, c, BPF_SK_STORAGE_GET_F_CREATE);

	if (!kept)
		return false;
	/* The storage may have existed already, with an old value. */
	*kept = *c;
	return true;
}

/*
 * Keeps a connection until its fate or end is known. False: there is no room for it. Where
 * bpf_probe_read_kernel() is forbidden (lockdown), attempts are in socket storage too: at the end
 * of the run their source port is read from the socket, and only the iterator over socket storage
 * gives access to that.
 */
static __always_inline bool keep(const struct sock *sk, struct connection *c)
{
	__u64 key = (__u64)sk;

	if (use_storage && (c->phase == PHASE_OPEN || !may_probe_read))
		bpf_map_delete_elem(&connections, &key);
	else if (!bpf_map_update_elem(&connections, &key, c, BPF_ANY))
		return true;
	if (use_storage && store(sk, c))
		return true;
	__sync_fetch_and_add(&totals.untracked, 1);
	return false;
}

/* Counts a connection as lost: its socket begins a new attempt, so its fate or end was missed. */
static __always_inline void count_missed(const struct connection *c)
{
	if (c->phase != PHASE_IGNORED)
		count_lost();
}

/*
 * Applies the filter to an attempt and sends its event, unless this was done before. False: the
 * filter rejects it.
 */
static __always_inline bool announce(void *ctx, struct connection *c)
{
	__u64 now = c->event.ts_ns;

	if (c->announced)
		return true;
	if (!source_matches(&c->event))
		return false;
	c->announced = true;
	c->event.ts_ns = c->started_ns;
	emit(ctx, &c->event, CONNECT_ATTEMPT);
	c->event.ts_ns = now;
	return true;
}

static __always_inline void set_elapsed(struct connection *c)
{
	c->event.ts_ns = bpf_ktime_get_ns();
	if (!c->started_ns)
		return;
	c->event.elapsed_ns = c->event.ts_ns - c->started_ns;
	c->event.known |= KNOWN_START;
}

static __always_inline void start_connection(struct connection *c)
{
	c->started_ns = bpf_ktime_get_ns();
	c->event.ts_ns = c->started_ns;
	c->event.direction = DIRECTION_OUT;
	set_process(&c->event);
}

#endif /* TCPINSPECT_CONNECT_TABLE_BPF_H */
