/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The connections that are followed, from attempt to end. */
#ifndef TCPINSPECT_CONNECT_TABLE_BPF_H
#define TCPINSPECT_CONNECT_TABLE_BPF_H

#include "connect_event.bpf.h"

enum phase {
	PHASE_PASSED_OVER, /* rejected by the filter, or reported as pending: no more events */
	PHASE_CALLING,	   /* inside the connect function: reported when it returns */
	PHASE_WAITING,	   /* the attempt has no fate yet */
	PHASE_OPEN,	   /* established, and not closed yet */
};

/* A connection that is followed. `event` is what is known of it so far. */
struct connection {
	struct connect_event event;
	__u64 started_ns;
	__be16 old_sport; /* inet_sport when the attempt began: left by an earlier one, or 0 */
	__u8 phase;
	__u8 function;	 /* 4 or 6: the outermost connect function of the call */
	__u8 sent;	 /* it has reached SYN_SENT, and not failed since */
	__u8 announced;	 /* the attempt has passed the filter, and was sent if wanted */
	__u8 soft_error; /* ICMP error that came while the connect function held the socket */
	__u8 old_errors; /* in the socket's queue when the attempt began: left by earlier ones */
};

/* Set by user space at the end of the run: new attempts are ignored. */
__u32 ending;

/*
 * Attempts are kept in a hash map, which is fast but can become full. If the kernel has socket
 * storage for tracing programs, attempts that find no room in the map are kept there, and so are
 * open connections, which stay for long: each socket has storage of its own. On other kernels the
 * hash map has all of them.
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
 * Connections that the filter has rejected, by socket, for kernels without socket storage. When
 * they end they must not be taken for connections older than the run: those have no known
 * direction, so the filter takes the local end for their source.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, __u64);
	__type(value, __u8);
} passed_over SEC(".maps");

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

/* Keeps a connection with its socket; false if that has no room for it. */
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
 * Keeps a connection until its fate or end; false if there is no room for it. Where
 * bpf_probe_read_kernel() is forbidden (lockdown), the hash map is not enough: the source port of
 * an attempt is read at the end of the run, and that needs the socket itself.
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
	__sync_fetch_and_add(&totals.unkept, 1);
	return false;
}

/* The socket begins a new attempt, so the end of the one before it was missed. */
static __always_inline void give_up(const struct connection *c)
{
	if (c->phase != PHASE_PASSED_OVER)
		count_lost();
}

/* Filters and sends the attempt, at the latest when its fate is known. False: it is rejected. */
static __always_inline bool announce(void *ctx, struct connection *c)
{
	__u64 now = c->event.ts_ns;
	bool failed;

	if (c->announced)
		return true;
	if (!source_matches(&c->event))
		return false;
	c->announced = true;
	c->event.ts_ns = c->started_ns;
	failed = emit(ctx, &c->event, CONNECT_ATTEMPT);
	c->event.ts_ns = now;
	return !failed;
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
