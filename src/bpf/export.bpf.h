/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts in place of events, for exporter. */
#ifndef TCPINSPECT_EXPORT_BPF_H
#define TCPINSPECT_EXPORT_BPF_H

#include "export.h"

/* Count, and send no event. */
const volatile bool exporting = false;

#define EXPORT_KEYS 4096

/* User space adds the key EXPORT_REST, so that there is always room for it. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, EXPORT_KEYS);
	__type(key, struct export_key);
	__type(value, __u64);
} export_counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, EXPORT_TIMES);
	__type(key, __u32);
	__type(value, struct export_histogram);
} export_times SEC(".maps");

/* BTF has the types only if something refers to them. */
const struct export_key *unused_export_key __attribute__((unused));
const struct export_histogram *unused_export_histogram __attribute__((unused));
const enum export_kind *unused_export_kind __attribute__((unused));
const enum export_time_of *unused_export_time_of __attribute__((unused));

static __always_inline void export_count(const struct export_key *key, __u64 number)
{
	struct export_key rest = { .kind = EXPORT_REST };
	__u64 none = 0, *count = bpf_map_lookup_elem(&export_counts, key);

	if (!count) {
		/* This fails if another CPU has just added the key, which is fine. */
		bpf_map_update_elem(&export_counts, key, &none, BPF_NOEXIST);
		count = bpf_map_lookup_elem(&export_counts, key);
	}
	if (!count)
		count = bpf_map_lookup_elem(&export_counts, &rest);
	if (count)
		__sync_fetch_and_add(count, number);
}

/* The exponent of the smallest power of two that is not below `value`. */
static __always_inline __u32 ceil_log2(__u32 value)
{
	__u32 rest = value - 1, log = 0;

	if (value <= 1)
		return 0;
	for (int shift = 16; shift; shift >>= 1) {
		if (rest >> shift) {
			rest >>= shift;
			log += shift;
		}
	}
	return log + 1;
}

static __always_inline void export_time(enum export_time_of of, __u64 ns)
{
	__u32 key = of, bucket = EXPORT_BUCKETS - 1;
	struct export_histogram *h = bpf_map_lookup_elem(&export_times, &key);
	__u64 us = (ns + 999) / 1000;

	if (!h)
		return;
	if (us <= 1ULL << (EXPORT_BUCKETS - 2))
		bucket = ceil_log2(us);
	barrier_var(bucket);
	if (bucket < EXPORT_BUCKETS)
		__sync_fetch_and_add(&h->buckets[bucket], 1);
	__sync_fetch_and_add(&h->sum_ns, ns);
}

#endif /* TCPINSPECT_EXPORT_BPF_H */
