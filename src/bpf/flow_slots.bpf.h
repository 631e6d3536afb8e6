/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Finds the slot of a packet's flow: takes, reuses and gives back slots of the table. */
#ifndef TCPINSPECT_FLOW_SLOTS_BPF_H
#define TCPINSPECT_FLOW_SLOTS_BPF_H

#include "flow_names.bpf.h"
#include "flow_state.bpf.h"
#include "flow_table.bpf.h"
#include "replay.bpf.h"

/* How often adding a packet to its flow is tried before it counts as untracked. */
#define TRIES 4

/* A power of two: see struct recent_flow. */
#define RECENT_FLOWS 1024

/*
 * An entry of the cache of slots in which flows were found recently. There is a cache for each slot
 * of packet programs (run.bpf.h), which mostly means for each CPU. With it, most packets need no
 * lookup in flow_slots: the flow's slot itself shows whether it still has the flow.
 */
struct recent_flow {
	__u32 hash;
	__u32 number;
};

/* The packet that is being added to the table. */
struct tracked {
	struct flow_key key;
	struct flow_segment segment;
	__u32 number;	/* of its flow's slot */
	bool has_flow;	/* its flow is in the table */
	bool is_wanted; /* it may begin a flow */
	bool is_stale;	/* look again where its flow is */
	bool is_full;	/* there is no room for a new record of its ends */
	__u32 seen_new; /* the number, plus 1, of a slot that was in SLOT_NEW at an earlier try */
	__u8 options_len;
	__u8 options[72];
	struct name_place name;
	__u64 hash;	 /* of the key */
	__u64 jiffies;	 /* when the clock was read last */
	__u64 clock_ns;	 /* the time that was read */
	bool is_ongoing; /* see is_ongoing() */
	struct recent_flow recent[RECENT_FLOWS];
	struct flow_record record; /* while it moves from one slot to another */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tracked);
} tracked SEC(".maps");

static __always_inline struct tracked *tracked_by(__u32 run)
{
	__u32 key = scratch_key(run);

	return bpf_map_lookup_elem(&tracked, &key);
}

/* The result of track() for a packet. */
enum track_result {
	TRACK_DONE,
	TRACK_AGAIN,   /* another CPU has changed the table, or there is a new record now */
	TRACK_NOTHING, /* the filter rejects it */
	TRACK_NO_ROOM,
};

/* Its upper bits are the index into the recent flows. */
static __always_inline __u64 hash_of(const struct flow_key *key)
{
	const __u64 *x = (const __u64 *)key;
	__u64 hash;

	/* Odd constants without a pattern. */
	hash = (x[0] ^ x[5]) * 0x9e3779b97f4a7c15 + x[1] * 0xbf58476d1ce4e5b9 +
	       x[2] * 0x94d049bb133111eb + x[3] * 0xd6e8feb86659fd93 + x[4] * 0xa0761d6478bd642f;
	return (hash ^ hash >> 32) * 0xe7037ed1a0b428db;
}

static __always_inline struct recent_flow *recent_place(struct tracked *t)
{
	return &t->recent[t->hash >> 54];
}

_Static_assert(RECENT_FLOWS == 1 << (64 - 54), "recent_place() takes as many bits as an index has");

/*
 * Whether the packet is one of many in the middle of a connection. The record is read without the
 * lock, because this only decides how exact the packet's time is.
 */
static __always_inline bool is_ongoing(const struct flow_record *r, const struct flow_segment *s)
{
	return !(s->flags & (TCP_SYN | TCP_FIN | TCP_RST)) &&
	       (r->known & (FLOW_ACK | FLOW_PARTIAL)) && !(r->known & FLOW_FINISHED) &&
	       !((r->ends[0].known | r->ends[1].known) & END_FIN);
}

/*
 * The time of the packet. Reading the clock takes longer than most other things here, so in the
 * middle of a connection it is read only once per jiffy.
 */
static __always_inline __u64 segment_time(struct tracked *t)
{
	__u64 jiffies;

	if (replay)
		return packet_time();
	jiffies = bpf_jiffies64();
	if (!t->is_ongoing || t->jiffies != jiffies) {
		t->jiffies = jiffies;
		t->clock_ns = packet_time();
	}
	return t->clock_ns;
}

/* Finds the slot of the flow in `tracked`. */
static __always_inline void find_flow(struct tracked *t)
{
	const struct recent_flow *recent;
	const struct flow_slot *slot;
	__u32 *number;

	t->hash = hash_of(&t->key);
	t->has_flow = true;
	t->is_ongoing = false;
	recent = recent_place(t);
	if (recent->hash == (__u32)t->hash) {
		t->number = recent->number;
		slot = bpf_map_lookup_elem(&slots, &t->number);
		/* A slot in SLOT_NEW may never get into flow_slots. */
		if (slot && slot->state == SLOT_LIVE && same_key(&slot->record.key, &t->key)) {
			t->is_ongoing = is_ongoing(&slot->record, &t->segment);
			return;
		}
	}
	number = bpf_map_lookup_elem(&flow_slots, &t->key);
	t->has_flow = number;
	if (number)
		t->number = *number;
}

/*
 * The ends of a flow have begun a new connection: moves the flow's record to another slot, and
 * begins a new record in the old slot. Returns true if there is no room. Like track(), it is a
 * global function so that the verifier checks it once, and not for each path that leads to it.
 */
__attribute__((noinline)) int replace_flow(__u32 run)
{
	struct tracked *t = tracked_by(run);
	struct flow_slot *slot, *other;
	bool done = false;
	struct flow_segment *s;
	__u32 number;

	if (!t)
		return true;
	s = &t->segment;
	if (!take_slot(&number))
		return true;
	slot = bpf_map_lookup_elem(&slots, &t->number);
	other = bpf_map_lookup_elem(&slots, &number);
	/* Can't happen: both numbers are below max_flows. */
	if (!slot || !other)
		return true;
	bpf_spin_lock(&slot->lock);
	if (holds_flow(slot, &t->key) && forget_why(is_new_connection(&slot->record, s))) {
		t->record = slot->record;
		__builtin_memset(&slot->record, 0, sizeof(slot->record));
		slot->record.key = t->key;
		slot->record.last_ns = s->now;
		if (answers_other_syn(&t->record, s))
			begin_by_other_syn(&slot->record, &t->record);
		done = true;
	}
	bpf_spin_unlock(&slot->lock);
	if (!done) {
		/* Another CPU was first. */
		give_back(other, number);
		return false;
	}
	if (t->record.known & FLOW_FINISHED)
		t->record.reason = FLOW_CLOSED;
	else
		t->record.reason = is_due(&t->record, s->now) ? FLOW_IDLE : FLOW_REPLACED;
	bpf_spin_lock(&other->lock);
	other->record = t->record;
	other->state = SLOT_OVER;
	bpf_spin_unlock(&other->lock);
	counters_of(run)->matched++;
	return false;
}

/* The fast path of track(), for nearly all packets. False: leave the packet to track(). */
static __always_inline bool track_usual(struct tracked *t)
{
	const struct flow_segment *s = &t->segment;
	struct flow_slot *slot;
	bool is_counted = false;

	slot = bpf_map_lookup_elem(&slots, &t->number);
	if (!slot)
		return false;
	bpf_spin_lock(&slot->lock);
	if (slot->state == SLOT_LIVE && same_key(&slot->record.key, &t->key)) {
		struct flow_record *r = &slot->record;
		__u64 from = s->from & 1;
		struct flow_end *e, *peer;

		barrier_var(from);
		e = &r->ends[from];
		peer = &r->ends[from ^ 1];
		is_counted = forget_why(is_usual(r, e, peer, s));
		if (is_counted) {
			count_usual(r, e, peer, s);
			if (reads_names)
				place_name(&t->name, r, s);
		}
	}
	bpf_spin_unlock(&slot->lock);
	return is_counted;
}

/* Adds the packet in `tracked` to its flow, which it may begin. Returns enum track_result. */
__attribute__((noinline)) int track(__u32 run)
{
	struct tracked *t = tracked_by(run);
	struct recent_flow *recent;
	struct flow_slot *slot;
	struct flow_segment *s;
	bool is_answer;
	__u32 number;

	if (!t)
		return TRACK_NO_ROOM;
	s = &t->segment;
	if (t->is_stale) {
		__u32 *found = bpf_map_lookup_elem(&flow_slots, &t->key);

		t->has_flow = found;
		if (found)
			t->number = *found;
		else if (!t->is_wanted)
			return TRACK_NOTHING;
	}
	t->is_stale = true;
	if (!t->has_flow) {
		if (!take_slot(&number))
			return TRACK_NO_ROOM;
		t->number = number;
	}
	slot = bpf_map_lookup_elem(&slots, &t->number);
	if (!slot)
		return TRACK_NO_ROOM;
	number = t->number;

	bpf_spin_lock(&slot->lock);
	if (!t->has_flow) {
		/* Under the lock, because a CPU with an old number may be reading the key. */
		__builtin_memset(&slot->record, 0, sizeof(slot->record));
		slot->record.key = t->key;
		slot->state = SLOT_NEW;
	} else if (!holds_flow(slot, &t->key) ||
		   (slot->state == SLOT_NEW && t->seen_new != number + 1)) {
		/* A new slot may yet be given back, unless flow_slots has it at the next try. */
		if (slot->state == SLOT_NEW)
			t->seen_new = number + 1;
		bpf_spin_unlock(&slot->lock);
		return TRACK_AGAIN;
	} else if (!t->is_full && forget_why(is_new_connection(&slot->record, s))) {
		is_answer = answers_other_syn(&slot->record, s);
		bpf_spin_unlock(&slot->lock);
		/* An answer to other_syn belongs to the connection that this SYN began. */
		if (!t->is_wanted && !is_answer)
			return TRACK_NOTHING;
		/* If there is no room for a new record, the packet counts into the old one. */
		t->is_full = replace_flow(run);
		return TRACK_AGAIN;
	}
	count_segment(&slot->record, s);
	if (reads_names)
		place_name(&t->name, &slot->record, s);
	bpf_spin_unlock(&slot->lock);

	if (!t->has_flow) {
		if (bpf_map_update_elem(&flow_slots, &t->key, &number, BPF_NOEXIST)) {
			/* Another CPU was first. */
			give_back(slot, number);
			return TRACK_AGAIN;
		}
		slot->state = SLOT_LIVE;
		counters_of(run)->matched++;
	}
	recent = recent_place(t);
	recent->hash = t->hash;
	recent->number = number;
	return TRACK_DONE;
}

#endif /* TCPINSPECT_FLOW_SLOTS_BPF_H */
