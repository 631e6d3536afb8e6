/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The memory that a run of a packet program has to itself: counters and scratch space. */
#ifndef TCPINSPECT_RUN_BPF_H
#define TCPINSPECT_RUN_BPF_H

#include "packet.bpf.h"

/*
 * Packet programs run with bottom halves off, and so a CPU runs one of them at a time. But with
 * PREEMPT_RT since Linux 6.18 a task that has them off can be preempted by another one on the same
 * CPU. There, each run takes an idle slot from the map; elsewhere it uses the slot of its CPU. User
 * space sets this and the size of the map, and puts all slots but 0 into the map.
 */
const volatile bool preemptible = false;

struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 1);
	__type(value, __u32);
} idle_slots SEC(".maps");

/* The slot of this run of a program. */
static __always_inline __u32 begin_run(void)
{
	__u32 slot = 0;

	if (!preemptible)
		return bpf_get_smp_processor_id();
	bpf_map_pop_elem(&idle_slots, &slot);
	return slot;
}

/* Whether this run has a slot: there is none if all are taken. */
static __always_inline bool has_slot(__u32 slot)
{
	if (!preemptible)
		return true;
	/* Keeps this a branch, so that the verifier can remove it. */
	asm volatile("");
	return slot;
}

static __always_inline void end_run(__u32 slot)
{
	if (preemptible)
		bpf_map_push_elem(&idle_slots, &slot, BPF_ANY);
}

/* The key of a run's scratch space. If runs take slots, it is in arrays with an entry for each
 * slot; otherwise it is in per-CPU arrays with one entry. */
static __always_inline __u32 scratch_key(__u32 slot)
{
	return preemptible ? slot : 0;
}

static __always_inline struct packet_counters *counters_of(__u32 slot)
{
	return &counters[slot & (COUNTER_SLOTS - 1)];
}

/* Counts a frame that could not be looked at for lack of a slot: it may have matched. */
static __always_inline void count_overrun(void)
{
	__sync_fetch_and_add(&counters[0].matched, 1);
	__sync_fetch_and_add(&counters[0].lost, 1);
}

#endif /* TCPINSPECT_RUN_BPF_H */
