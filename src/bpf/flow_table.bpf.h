/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The table of flows, which the programs of flows and those that look for the owners share. */
#ifndef TCPINSPECT_FLOW_TABLE_BPF_H
#define TCPINSPECT_FLOW_TABLE_BPF_H

#include "flows.h"

enum slot_state {
	SLOT_FREE,
	SLOT_LIVE, /* the hash map leads here */
	SLOT_OVER, /* it does not any more: only the sweep looks at it */
};

struct flow_slot {
	struct bpf_spin_lock lock;
	__u32 state;
	struct flow_record record;
};

/* All sized by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, __u32);
} flow_slots SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, struct flow_slot);
} slots SEC(".maps");

static __always_inline bool same_key(const struct flow_key *a, const struct flow_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4];
}

#endif /* TCPINSPECT_FLOW_TABLE_BPF_H */
