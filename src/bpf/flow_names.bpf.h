/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* With --names: copies the first bytes from the initiator of a flow, which name the server. */
#ifndef TCPINSPECT_FLOW_NAMES_BPF_H
#define TCPINSPECT_FLOW_NAMES_BPF_H

#include "run.bpf.h"
#include "events.bpf.h"
#include "flow_state.bpf.h"

/* Whether to copy them. */
const volatile bool reads_names = false;

/*
 * The chunks have a buffer of their own: the one for records must always have room for what a sweep
 * reports. User space sets the size, and creates only the map that is used.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} name_ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} name_perf SEC(".maps");

/* The chunk that is being sent. */
struct name_event {
	struct name_chunk chunk;
	__u8 bytes[NAME_BYTES]; /* only those in use are sent */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct name_event);
} name_events SEC(".maps");

/* Chunks for which the buffer had no room. */
__u64 names_lost SEC(".bss.names");

/* Which bytes of a packet to copy. */
struct name_place {
	__u64 start_ns; /* of the flow */
	__u64 payload;	/* where the payload begins in the frame */
	__u64 end;	/* where the frame ends */
	__u32 at;	/* offset of the payload in what the initiator has sent */
	__u32 is_wanted;
};

/*
 * Decides, under the slot's lock, whether the packet that was just counted has some of the first
 * bytes of its initiator. If the SYN was not seen, these are the first bytes that were seen.
 */
static __always_inline void place_name(struct name_place *name, struct flow_record *r,
				       const struct flow_segment *s)
{
	const struct flow_end *e = &r->ends[s->from & 1];
	__u32 first = e->first_seq, seq = s->seq;

	if (!s->len || (s->flags & TCP_RST) || r->initiator != s->from)
		return;
	/* A packet that contradicts the flow has not moved next_seq. */
	if (!(e->known & END_SEEN) || seq_after(seq_end(s), e->next_seq))
		return;
	if (e->known & END_SYN)
		first++;
	if (s->flags & TCP_SYN)
		seq++;
	if (seq - first >= NAME_BYTES || r->name_chunks >= NAME_CHUNKS)
		return;
	r->name_chunks++;
	name->start_ns = r->start_ns;
	name->at = seq - first;
	name->is_wanted = true;
}

/* Copies bytes of the frame into a chunk. False: they are not there. */
static __always_inline bool copy_name(struct name_event *event, struct __sk_buff *skb, __u64 from,
				      __u32 len)
{
	if (!replay)
		return !bpf_skb_load_bytes(skb, from, event->bytes, len);
	from += replay_at;
	if (from + len > REPLAY_BYTES)
		return false;
	barrier_var(from);
	return !bpf_probe_read_kernel(event->bytes, len,
				      replay_bytes + (from & (REPLAY_BYTES - 1)));
}

/* Sends the bytes that place_name() has chosen. */
static __always_inline void send_name(struct __sk_buff *skb, const struct flow_key *key,
				      const struct name_place *name, __u32 slot)
{
	__u32 scratch = scratch_key(slot), at = name->at;
	struct name_event *event;
	__u64 len, size;
	long failed;

	event = bpf_map_lookup_elem(&name_events, &scratch);
	if (!event || name->end <= name->payload || at >= NAME_BYTES)
		return;
	len = name->end - name->payload;
	if (len > NAME_BYTES - at)
		len = NAME_BYTES - at;
	/* As in copy_bytes(): the verifier has to see the bounds. */
	barrier_var(len);
	if (len > NAME_BYTES)
		return;
	barrier_var(len);
	if ((__s64)len < 1 || !copy_name(event, skb, name->payload, len))
		return;
	event->chunk.key = *key;
	event->chunk.start_ns = name->start_ns;
	event->chunk.at = at;
	event->chunk.len = len;
	event->chunk.pad = 0;
	size = sizeof(event->chunk) + len;
	failed = use_perf_buffer
			 ? bpf_perf_event_output(skb, &name_perf, BPF_F_CURRENT_CPU, event, size)
			 : bpf_ringbuf_output(&name_ring, event, size, BPF_RB_NO_WAKEUP);
	if (failed)
		__sync_fetch_and_add(&names_lost, 1);
}

#endif /* TCPINSPECT_FLOW_NAMES_BPF_H */
