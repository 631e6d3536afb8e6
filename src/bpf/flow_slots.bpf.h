/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* How packets get their slot in the table: taking, reusing and giving back slots. */
#ifndef TCPINSPECT_FLOW_SLOTS_BPF_H
#define TCPINSPECT_FLOW_SLOTS_BPF_H

#include "flow_names.bpf.h"
#include "flow_state.bpf.h"
#include "flow_table.bpf.h"

/* How often the slot of a packet's flow is looked up before the packet counts as untracked. */
#define TRIES 4

/* The packet that is being added to the table. */
struct tracked {
	struct flow_key key;
	struct segment segment;
	__u32 number;	/* of its flow's slot */
	bool has_flow;	/* its flow was in the table at the first lookup */
	bool is_wanted; /* it may begin a flow */
	__u8 options_len;
	__u8 options[72];
	struct name_place name;
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

/* Adds an empty record to the table. False: there is no room. Else the flow is in the table, where
 * another CPU may have added it first. */
static __always_inline bool add_flow(const struct flow_key *key, __u64 now,
				     struct packet_counters *c)
{
	struct flow_slot *slot;
	__u32 number;

	slot = take_slot(&number);
	if (!slot)
		return false;
	/* Under the lock, because a CPU with an old number may be reading the key. */
	bpf_spin_lock(&slot->lock);
	__builtin_memset(&slot->record, 0, sizeof(slot->record));
	slot->record.key = *key;
	slot->record.last_ns = now;
	slot->state = SLOT_LIVE;
	bpf_spin_unlock(&slot->lock);
	if (bpf_map_update_elem(&flow_slots, key, &number, BPF_NOEXIST)) {
		give_back(slot, number);
		return bpf_map_lookup_elem(&flow_slots, key);
	}
	c->matched++;
	return true;
}

/* Begins a new record in the slot of a flow whose ends have a new connection, after moving the old
 * record to another slot. False: there is no room. */
static __always_inline bool replace_flow(struct flow_slot *slot, const struct flow_key *key,
					 const struct segment *s, struct packet_counters *c,
					 struct tracked *tmp)
{
	struct flow_slot *other;
	bool done = false;
	__u32 number;

	other = take_slot(&number);
	if (!other)
		return false;
	bpf_spin_lock(&slot->lock);
	if (slot->state == SLOT_LIVE && same_key(&slot->record.key, key) &&
	    forget_why(is_new_connection(&slot->record, s))) {
		tmp->record = slot->record;
		__builtin_memset(&slot->record, 0, sizeof(slot->record));
		slot->record.key = *key;
		slot->record.last_ns = s->now;
		if (answers_other_syn(&tmp->record, s))
			begin_by_other_syn(&slot->record, &tmp->record);
		done = true;
	}
	bpf_spin_unlock(&slot->lock);
	if (!done) {
		/* Another CPU was first. */
		give_back(other, number);
		return true;
	}
	if (tmp->record.known & FLOW_FINISHED)
		tmp->record.reason = FLOW_CLOSED;
	else
		tmp->record.reason = is_due(&tmp->record, s->now) ? FLOW_IDLE : FLOW_REPLACED;
	bpf_spin_lock(&other->lock);
	other->record = tmp->record;
	other->state = SLOT_OVER;
	bpf_spin_unlock(&other->lock);
	c->matched++;
	return true;
}

/*
 * Adds the packet in `tracked` to its flow, and returns 0. This is a global function so that the
 * verifier checks it once, and not for each path through the headers.
 */
__attribute__((noinline)) int track(__u32 run)
{
	struct packet_counters *c = counters_of(run);
	struct flow_slot *slot = NULL;
	bool full = false, locked = false, is_answer;
	struct segment *s;
	struct tracked *t;

	t = tracked_by(run);
	if (!t)
		return 0;
	s = &t->segment;
	for (int i = 0; i < TRIES; i++) {
		__u32 *number = &t->number;

		if (i || !t->has_flow)
			number = bpf_map_lookup_elem(&flow_slots, &t->key);
		if (!number) {
			if (!t->is_wanted)
				return 0;
			if (!add_flow(&t->key, s->now, c))
				break;
			continue;
		}
		slot = bpf_map_lookup_elem(&slots, number);
		if (!slot)
			break;
		bpf_spin_lock(&slot->lock);
		if (slot->state != SLOT_LIVE || !same_key(&slot->record.key, &t->key)) {
			bpf_spin_unlock(&slot->lock);
			continue;
		}
		/* If there is no room for a new record, the packet counts into the old one. */
		if (full || !forget_why(is_new_connection(&slot->record, s))) {
			locked = true;
			break;
		}
		is_answer = answers_other_syn(&slot->record, s);
		bpf_spin_unlock(&slot->lock);
		/* An answer to other_syn belongs to the connection that this SYN began. */
		if (!t->is_wanted && !is_answer)
			return 0;
		full = !replace_flow(slot, &t->key, s, c, t);
	}
	if (locked) {
		count_segment(&slot->record, s);
		if (names)
			place_name(&t->name, &slot->record, s);
		bpf_spin_unlock(&slot->lock);
	} else {
		c->untracked += s->packets;
	}
	c->segments += s->packets;
	return 0;
}

#endif /* TCPINSPECT_FLOW_SLOTS_BPF_H */
