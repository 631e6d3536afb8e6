/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The table of flows. The packet programs of flows and the programs of flow_sockets share it. */
#ifndef TCPINSPECT_FLOW_TABLE_BPF_H
#define TCPINSPECT_FLOW_TABLE_BPF_H

#include "flows.h"

enum slot_state {
	SLOT_FREE,
	SLOT_OVER, /* removed from flow_slots, and not reported yet: only the sweep reads it */
	SLOT_NEW,  /* being added to flow_slots: packets are counted, and nothing else uses it */
	SLOT_LIVE, /* flow_slots has its number */
};

struct flow_slot {
	struct bpf_spin_lock lock;
	__u32 state;
	struct flow_record record;
};

/* User space sets the sizes of both maps. */
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

/* Number of slots in the table. */
const volatile __u32 max_flows = 0;

/* Numbers of slots that were used before and are free again. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 65536);
	__type(value, __u32);
} free_slots SEC(".maps");

/* Slots from `first` on were never used. */
struct unused_slots {
	struct bpf_spin_lock lock;
	__u32 first;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct unused_slots);
} unused_slots SEC(".maps");

static __always_inline bool same_key(const struct flow_key *a, const struct flow_key *b)
{
	const __u64 *x = (const __u64 *)a, *y = (const __u64 *)b;

	return x[0] == y[0] && x[1] == y[1] && x[2] == y[2] && x[3] == y[3] && x[4] == y[4] &&
	       x[5] == y[5];
}

/* Whether the slot has the record of the flow. To rely on it, hold the slot's lock. */
static __always_inline bool holds_flow(const struct flow_slot *slot, const struct flow_key *key)
{
	return slot->state >= SLOT_NEW && same_key(&slot->record.key, key);
}

/* Takes a free slot, and sets its number. False: there is none. */
static __always_inline bool take_slot(__u32 *number)
{
	__u32 zero = 0;

	if (bpf_map_pop_elem(&free_slots, number)) {
		struct unused_slots *unused = bpf_map_lookup_elem(&unused_slots, &zero);
		__u32 first;

		/* Read without the lock at first, because a full table stays full. */
		if (!unused || unused->first >= max_flows)
			return false;
		bpf_spin_lock(&unused->lock);
		first = unused->first;
		if (first < max_flows)
			unused->first = first + 1;
		bpf_spin_unlock(&unused->lock);
		if (first >= max_flows)
			return false;
		*number = first;
	}
	return true;
}

static __always_inline void give_back(struct flow_slot *slot, __u32 number)
{
	bpf_spin_lock(&slot->lock);
	slot->state = SLOT_FREE;
	bpf_spin_unlock(&slot->lock);
	bpf_map_push_elem(&free_slots, &number, BPF_ANY);
}

#endif /* TCPINSPECT_FLOW_TABLE_BPF_H */
