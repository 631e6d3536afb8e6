/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Estimates the number of different sources, with a HyperLogLog sketch for each table of counts. */
#ifndef TCPINSPECT_SOURCE_SKETCH_BPF_H
#define TCPINSPECT_SOURCE_SKETCH_BPF_H

#include "syn_count.h"
#include "count_table.bpf.h"

/* User space maps it, and sets its size to two per slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct source_sketch);
} source_sketches SEC(".maps");

/* For numbers other than 0. (LLVM 14 can't compile __builtin_ctzll() for BPF.) */
static __always_inline __u8 trailing_zeros(__u64 bits)
{
	__u8 zeros = 0;

#pragma unroll
	for (__u32 half = 32; half; half /= 2) {
		if (!(bits & ((1ULL << half) - 1))) {
			zeros += half;
			bits >>= half;
		}
	}
	return zeros;
}

/* Notes a source. A register keeps the most trailing zero bits of all hashes that belong to it. */
static __always_inline void note_source(__u32 slot, __u64 hash)
{
	__u32 at = table_of(slot);
	struct source_sketch *sketch = bpf_map_lookup_elem(&source_sketches, &at);
	__u64 zeros = hash >> SKETCH_BITS;
	__u8 *longest;

	if (!sketch)
		return;
	longest = &sketch->registers[hash & (SKETCH_REGISTERS - 1)];
	/* Nearly always the register already has as many. */
	if (zeros & ((1ULL << (*longest & 63)) - 1))
		return;
	*longest = trailing_zeros(zeros | 1ULL << (64 - SKETCH_BITS)) + 1;
}

#endif /* TCPINSPECT_SOURCE_SKETCH_BPF_H */
