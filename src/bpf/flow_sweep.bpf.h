/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The sweep, which reports and removes flows. User space runs it. */
#ifndef TCPINSPECT_FLOW_SWEEP_BPF_H
#define TCPINSPECT_FLOW_SWEEP_BPF_H

#include "events.bpf.h"
#include "process_filter.bpf.h"
#include "flow_slots.bpf.h"

struct sweep sweep SEC(".bss.sweep");

/* The record that the sweep reports. Packets can interrupt a sweep, but no other sweep can. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_record);
} swept SEC(".maps");

/*
 * Returns a number below a power of two unchanged, but the verifier forgets its value: otherwise it
 * would check the rest of the program for each value. The mask comes last, so that old verifiers
 * see the bound.
 */
static __always_inline __u32 forget_number(__u32 number, __u32 limit)
{
	return (number + (__u32)opaque_zero) & (limit - 1);
}

/* The age class of a flow: four per power of two of milliseconds. A higher class is older. */
static __always_inline __u32 age_class(__u64 now, __u64 last)
{
	__u64 ms = (__s64)(now - last) > 0 ? (now - last) / 1000000 : 0;
	__u32 octave = 0;

	if (ms < 4)
		return ms;
	/* Without a branch, so that the verifier has one path to follow. */
	for (__u32 shift = 16; shift; shift >>= 1) {
		__u64 above = ms >> (octave + shift + 2), negative = -above;

		barrier_var(negative);
		octave += shift * ((above | negative) >> 63);
	}
	return forget_number(4 + 4 * octave + ((ms >> octave) & 3), AGE_CLASSES);
}

static __always_inline __u32 rank_of(const struct flow_record *r, __u64 now)
{
	__u32 worth = WORTH_ESTABLISHED;

	if (r->known & FLOW_FINISHED)
		worth = WORTH_FINISHED;
	else if (forget_why(is_half_open(r)))
		worth = WORTH_HALF_OPEN;
	return forget_number(worth, 4) * AGE_CLASSES + age_class(now, r->last_ns);
}

/* Whether the filter on processes wants the flow. One whose process is unknown is not wanted. */
static __always_inline bool owner_is_wanted(const struct flow_record *r)
{
	const struct flow_owner *owner = &r->owner;

	if (!process_filter)
		return true;
	if (!owner->from)
		return false;
	if ((process_filter & (FILTER_PID | FILTER_COMM)) && !owner->pid)
		return false;
	return is_wanted_process(owner->pid, owner->uid, owner->comm);
}

/* Why to report this slot, or -1. It reads without the lock: report() checks again under it. */
static __always_inline int why_report(const struct flow_slot *slot, __u64 now)
{
	const struct flow_record *r = &slot->record;
	__u32 rank;

	if (slot->state == SLOT_FREE)
		return -1;
	if (slot->state == SLOT_OVER)
		return r->reason;
	if (forget_why(is_due(r, now)))
		return r->known & FLOW_FINISHED ? FLOW_CLOSED : FLOW_IDLE;
	/* As in count_segment(). */
	barrier();
	if (sweep.mode == SWEEP_ALL)
		return r->known & FLOW_FINISHED ? FLOW_CLOSED : FLOW_OPEN;
	if (!(r->known & FLOW_STARTED))
		return -1;
	/* Its process may become known later. */
	if (attempt_ns && forget_why(is_unanswered(r, now)) && forget_why(owner_is_wanted(r)))
		return FLOW_UNANSWERED;
	if (sweep.mode == SWEEP_LIVE)
		return forget_why(owner_is_wanted(r)) ? FLOW_IS_LIVE : -1;
	barrier();
	rank = rank_of(r, now);
	if (sweep.mode == SWEEP_EVICT && sweep.budget && rank >= sweep.evict_rank) {
		sweep.budget--;
		return r->known & FLOW_FINISHED ? FLOW_CLOSED : FLOW_EVICTED;
	}
	if (rank < FLOW_RANKS)
		sweep.ranks[rank]++;
	return -1;
}

/* Whether the reason still holds, under the lock: a packet may have come meanwhile. */
static __always_inline bool is_still_over(const struct flow_slot *slot, __u64 now, int reason)
{
	const struct flow_record *r = &slot->record;

	if (slot->state != SLOT_LIVE)
		return slot->state == SLOT_OVER && reason == r->reason;
	if (reason == FLOW_UNANSWERED)
		return is_unanswered(r, now);
	if (sweep.mode == SWEEP_ALL || reason == FLOW_IS_LIVE)
		return true;
	if (reason == FLOW_EVICTED)
		return rank_of(r, now) >= sweep.evict_rank;
	return (r->known & FLOW_FINISHED) || forget_why(is_due(r, now));
}

/* Notes which counts of a flow that goes on were reported. */
static __always_inline void note_reported(struct flow_record *r, int reason)
{
	for (int i = 0; i < 2; i++) {
		struct flow_end *e = &r->ends[i];

		if (reason == FLOW_UNANSWERED) {
			e->packets = 0;
			e->bytes = 0;
		}
		e->packets_reported = e->packets;
		e->bytes_reported = e->bytes;
	}
	if (reason == FLOW_UNANSWERED) {
		r->unexpected = 0;
		r->other_syn.packets = 0;
		r->known |= FLOW_REPORTED;
	}
}

/* Sends a record to user space. Unless the flow goes on, its slot becomes free. */
static __always_inline void report(struct __sk_buff *skb, struct flow_slot *slot, __u32 number,
				   __u64 now, int reason)
{
	bool live, over, goes_on = reason == FLOW_IS_LIVE || reason == FLOW_UNANSWERED;
	struct flow_record *r;
	__u32 zero = 0;

	r = bpf_map_lookup_elem(&swept, &zero);
	if (!r)
		return;
	bpf_spin_lock(&slot->lock);
	r->key = slot->record.key;
	live = slot->state == SLOT_LIVE;
	over = is_still_over(slot, now, reason);
	if (over && goes_on) {
		*r = slot->record;
		note_reported(&slot->record, reason);
	}
	bpf_spin_unlock(&slot->lock);
	if (!over)
		return;
	if (!goes_on) {
		/* Only the sweep removes flows, so the slot can't get another key meanwhile. */
		if (live)
			bpf_map_delete_elem(&flow_slots, &r->key);
		bpf_spin_lock(&slot->lock);
		over = is_still_over(slot, now, reason);
		bpf_spin_unlock(&slot->lock);
		/* A packet came just before the flow left the map: the flow stays, unless its ends
		 * already have a new one. */
		if (!over && !bpf_map_update_elem(&flow_slots, &r->key, &number, BPF_NOEXIST))
			return;
		bpf_spin_lock(&slot->lock);
		*r = slot->record;
		/* From now on a CPU with the old number looks it up again. */
		slot->state = SLOT_OVER;
		bpf_spin_unlock(&slot->lock);
	}
	if (live)
		r->reason = reason;
	if (!goes_on && !owner_is_wanted(r)) {
		sweep.unwanted++;
		sweep.unwanted_packets += r->ends[0].packets + r->ends[1].packets;
		give_back(slot, number);
		return;
	}
	if (reason == FLOW_UNANSWERED)
		/* The rest of this flow will be reported in another record. */
		sweep.unanswered++;
	if (send_event(skb, r, sizeof(*r)) && reason != FLOW_IS_LIVE) {
		/*
		 * User space never runs the sweep for more records than fit. But a CPU that came
		 * online after the perf buffer was opened has no buffer.
		 */
		sweep.lost++;
		sweep.lost_packets += r->ends[0].packets + r->ends[1].packets;
	}
	if (!goes_on)
		give_back(slot, number);
}

/* User space runs this (BPF_PROG_TEST_RUN with repeat) until the cursor is at the end. Each run
 * reports at most one flow. */
SEC("tc")
int flows_sweep(struct __sk_buff *skb)
{
	__u64 now = sweep.now_ns;
	struct unused_slots *unused;
	struct flow_slot *slot = NULL;
	__u32 zero = 0, number = sweep.cursor;
	int reason = -1;

	unused = bpf_map_lookup_elem(&unused_slots, &zero);
	if (!unused)
		return TCX_NEXT;
	sweep.end = unused->first;
	for (int i = 0; i < SWEEP_STEP; i++) {
		if (number >= sweep.end)
			break;
		slot = bpf_map_lookup_elem(&slots, &number);
		if (!slot)
			break;
		reason = why_report(slot, now);
		number++;
		if (reason >= 0)
			break;
	}
	sweep.cursor = number;
	if (slot && reason >= 0)
		report(skb, slot, number - 1, now, reason);
	return TCX_NEXT;
}

#endif /* TCPINSPECT_FLOW_SWEEP_BPF_H */
