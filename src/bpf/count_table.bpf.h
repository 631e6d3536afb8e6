/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Counts by key in bounded memory. Each slot has a table of the busiest keys, by the Space-Saving
 * algorithm (Metwally et al., 2005) within sets of COUNT_WAYS keys.
 */
#ifndef TCPINSPECT_COUNT_TABLE_BPF_H
#define TCPINSPECT_COUNT_TABLE_BPF_H

#include "count_table.h"
#include "inet.bpf.h"

/* A random seed per run, so that no sender can choose addresses that collide in one set. */
const volatile __u64 hash_seed = 0;

/* Number of sets in a table: a power of two. */
const volatile __u32 sets_per_table = 1;

/* Number of slots: one for each CPU, or for each concurrent run of a program (run.bpf.h). */
const volatile __u32 count_slots = 1;

/*
 * Which of the two tables of each slot is written to. It has the counts of the current interval;
 * user space reads and empties the other one.
 */
__u32 open_table SEC(".bss.counters");

/* User space maps the array, and sets its size to two tables per slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct count_set);
} count_sets SEC(".maps");

static __always_inline __u64 mix(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 30;
}

/* Mixes all bits well, even for consecutive addresses: the last step is that of SplitMix64. */
static __always_inline __u64 hash_key(const struct count_key *key)
{
	__u64 hash = mix(hash_seed, (__u64)key->addr[0] << 32 | key->family << 16 | key->port);

	if (key->family & COUNT_WIDE) {
		hash = mix(hash, (__u64)key->addr[1] << 32 | key->addr[2]);
		hash = mix(hash, key->addr[3]);
	}
	hash *= 0xbf58476d1ce4e5b9ULL;
	hash = (hash ^ hash >> 27) * 0x94d049bb133111ebULL;
	return hash ^ hash >> 31;
}

static __always_inline bool same_key(const struct count_key *a, const struct count_key *b)
{
	return a->family == b->family && a->port == b->port && same_address(a->addr, b->addr);
}

/* The index of the table of a slot that is written to. */
static __always_inline __u32 table_of(__u32 slot)
{
	return (open_table & 1) * count_slots + slot;
}

/*
 * Counts a key once. If all ways of its set are taken, it replaces the key with the smallest rank,
 * and inherits this rank; the counts of the replaced key are added to `untracked`. A key that gets
 * more than 1/COUNT_WAYS of the counts of its set is sure to be in the table at the end of the
 * interval.
 */
static __always_inline void count_key(__u64 *untracked, __u32 slot, const struct count_key *key,
				      __u64 hash)
{
	__u32 at = table_of(slot) * sets_per_table + (hash & (sets_per_table - 1));
	struct count_set *set = bpf_map_lookup_elem(&count_sets, &at);
	__u32 tag = hash >> 32 | 1;
	__u64 least, way = 0;

	if (!set) {
		++*untracked;
		return;
	}
#pragma unroll
	for (int i = 0; i < COUNT_WAYS; i++) {
		if (set->tags[i] == tag && same_key(&set->keys[i], key)) {
			set->ranks[i]++;
			return;
		}
	}
	least = set->ranks[0];
#pragma unroll
	for (int i = 1; i < COUNT_WAYS; i++) {
		if (set->ranks[i] < least) {
			least = set->ranks[i];
			way = i;
		}
	}
	/* Otherwise the compiler would drop the mask, which shows the verifier the bound. */
	barrier_var(way);
	way &= COUNT_WAYS - 1;
	*untracked += least - set->inherited[way];
	set->tags[way] = tag;
	set->keys[way] = *key;
	set->inherited[way] = least;
	set->ranks[way] = least + 1;
}

#endif /* TCPINSPECT_COUNT_TABLE_BPF_H */
