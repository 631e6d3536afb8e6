/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts values in a histogram for each key. */
#ifndef TCPINSPECT_HISTOGRAM_BPF_H
#define TCPINSPECT_HISTOGRAM_BPF_H

#include "histogram.h"

/* User space makes it small if there is no --histogram. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct histogram_key);
	__type(value, struct histogram);
} histograms SEC(".maps");

/* Values whose key found no room in the map. */
__u64 histogram_untracked SEC(".bss.histogram");

/* A new key begins with this: it is too large for the stack. */
struct histogram empty_histogram SEC(".bss.histogram");

/* The number of the bucket for a value. */
static __always_inline __u32 histogram_bucket(__u64 value)
{
	__u64 rest = value ? value - 1 : 0;
	__u32 bucket = 0;

#pragma unroll
	for (__u32 half = 32; half; half /= 2) {
		if (rest >> half) {
			rest >>= half;
			bucket += half;
		}
	}
	bucket += rest;
	return bucket < HISTOGRAM_BUCKETS ? bucket : HISTOGRAM_BUCKETS - 1;
}

static __always_inline void histogram_add(const struct histogram_key *key, __u64 value)
{
	struct histogram *h = bpf_map_lookup_elem(&histograms, key);
	__u32 bucket = histogram_bucket(value);

	if (!h) {
		/* This fails if another CPU has just added the key, which is fine. */
		bpf_map_update_elem(&histograms, key, &empty_histogram, BPF_NOEXIST);
		h = bpf_map_lookup_elem(&histograms, key);
	}
	if (!h) {
		__sync_fetch_and_add(&histogram_untracked, 1);
		return;
	}
	/* Keeps the compiler from dropping the mask, which shows the verifier the bound. */
	barrier_var(bucket);
	bucket &= HISTOGRAM_BUCKETS - 1;
	__sync_fetch_and_add(&h->sum, value);
	__sync_fetch_and_add(&h->buckets[bucket], 1);
}

#endif /* TCPINSPECT_HISTOGRAM_BPF_H */
