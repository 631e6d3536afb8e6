// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * flows: a table of TCP connections, kept at TC ingress and egress.
 *
 * Records live in an array of slots that are never freed, only used again, and a hash map finds
 * the slot of a pair of ends. So a CPU that comes late, with the number of a slot that was taken
 * away meanwhile, finds out by the slot's own key under the slot's lock, and looks again: no packet
 * is ever counted into a record that user space has already read. Neither an LRU map nor deletion
 * from a hash map by user space could promise that. The table evicts nothing by itself: user space
 * does so when it fills, and gets the record of each flow that it evicts. What finds no room is
 * counted as untracked.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "packet_filter.bpf.h"
#include "events.bpf.h"
#include "flow_state.bpf.h"
#include "flow_table.bpf.h"

#define WELL_KNOWN_PORTS 1024
#define TCP_OPTIONS_MAX	 40
#define TCP_OPT_END	 0
#define TCP_OPT_NOP	 1
#define TCP_OPT_WSCALE	 3
#define TCP_WSCALE_MAX	 14 /* RFC 7323, 2.3 */

/* How often a packet looks for its flow before it is counted as untracked. */
#define TRIES 4

/* Position of this interface among those that are watched: they share the table. */
const volatile __u32 interface = 0;

/* Slots of the table. */
const volatile __u32 max_flows = 0;

/* The time of the frame being replayed, in ns. */
__u64 replay_ts_ns SEC(".bss.replay");

struct sweep sweep SEC(".bss.sweep");

/* Slots that were used before and are free again. */
struct {
	__uint(type, BPF_MAP_TYPE_STACK);
	__uint(max_entries, 65536);
	__type(value, __u32);
} free_slots SEC(".maps");

/* Slots from here on were never used. */
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

/* A packet on its way into the table. */
struct tracked {
	struct flow_key key;
	struct segment segment;
	__u32 number;	/* of its flow's slot */
	bool has_flow;	/* it had one when it was looked for */
	bool is_wanted; /* it may begin one */
	__u8 options_len;
	__u8 options[72];
	struct flow_record record; /* on its way from one slot to another */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct tracked);
} tracked SEC(".maps");

/* The sweep has its own: a packet may interrupt it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct flow_record);
} reported SEC(".maps");

/* BTF has the types only if something refers to them. */
const struct flow_record *unused_flow_record __attribute__((unused));
const enum sweep_mode *unused_sweep_mode __attribute__((unused));
const enum sweep_limit *unused_sweep_limit __attribute__((unused));
const enum flow_end_reason *unused_flow_end_reason __attribute__((unused));
const enum flow_known *unused_flow_known __attribute__((unused));
const enum end_state *unused_end_state __attribute__((unused));
const enum end_known *unused_end_known __attribute__((unused));

/* The two ends of a packet; ports in host order. */
struct packet_ends {
	struct addresses addresses;
	__u16 sport;
	__u16 dport;
};

static __always_inline void put_address(__u8 *to, __u8 ip_version, const __be32 *addr)
{
	__be32 *words = (__be32 *)to;

	if (ip_version == 4) {
		words[0] = 0;
		words[1] = 0;
		words[2] = bpf_htonl(0xffff);
		words[3] = addr[0];
	} else {
		__builtin_memcpy(words, addr, 16);
	}
}

/* Any order of ends will do, as long as it is the same both ways. */
static __always_inline bool is_lower(const struct packet_ends *e)
{
	const struct addresses *a = &e->addresses;

	for (int i = 0; i < 4; i++) {
		if (a->saddr[i] != a->daddr[i])
			return a->saddr[i] < a->daddr[i];
	}
	return e->sport <= e->dport;
}

/* The key of a packet's flow; returns which of its ends has sent it. */
static __always_inline __u8 make_key(struct flow_key *key, __u8 ip_version,
				     const struct packet_ends *e)
{
	const struct addresses *a = &e->addresses;
	bool lower = is_lower(e);

	put_address(key->addr[0], ip_version, lower ? a->saddr : a->daddr);
	put_address(key->addr[1], ip_version, lower ? a->daddr : a->saddr);
	key->port[0] = lower ? e->sport : e->dport;
	key->port[1] = lower ? e->dport : e->sport;
	key->interface = interface;
	key->ip_version = ip_version;
	key->pad = 0;
	return lower ? 0 : 1;
}

/* Keeps an offset into the options, but makes the verifier forget its exact range: see
 * opaque_zero. */
static __always_inline __u32 forget_option(__u32 offset)
{
	return (offset + (__u32)opaque_zero) & 63;
}

/*
 * Finds the window scale among the options of the SYN that is on its way. A function of its own to
 * the verifier too, which would else walk along the options anew for each way through the headers:
 * hence no argument.
 */
__attribute__((noinline)) int find_wscale(void)
{
	struct segment *s;
	struct tracked *t;
	__u32 zero = 0, at = 0;

	t = bpf_map_lookup_elem(&tracked, &zero);
	if (!t)
		return 0;
	s = &t->segment;
	for (int i = 0; i < TCP_OPTIONS_MAX; i++) {
		/* Fetched anew, or what one way tells of it would keep the ways apart. */
		__u8 kind, option_len = 1, len = *(volatile __u8 *)&t->options_len;

		if (at >= len)
			break;
		kind = t->options[at];
		if (kind == TCP_OPT_END)
			break;
		if (kind != TCP_OPT_NOP) {
			option_len = t->options[at + 1];
			if (option_len < 2 || at + option_len > len)
				break;
			if (kind == TCP_OPT_WSCALE && option_len == 3) {
				__u8 shift = t->options[at + 2];

				s->has_wscale = true;
				s->wscale = shift < TCP_WSCALE_MAX ? shift : TCP_WSCALE_MAX;
				break;
			}
		}
		at = forget_option(at + option_len);
	}
	return 0;
}

static __always_inline void read_wscale(const struct frame *f, const struct packet *p,
					__u64 payload, struct tracked *tmp)
{
	__u64 end = f->end < payload ? f->end : payload;

	tmp->options_len = copy_bytes(f, p->l4 + sizeof(struct tcp_header), end, tmp->options,
				      TCP_OPTIONS_MAX);
	find_wscale();
}

/* Where the packet ends. In a file that was cut by its snapshot length, its IP header knows. */
static __always_inline __u64 packet_end(const struct frame *f, const struct packet *p)
{
	struct ipv4_header v4;
	struct ipv6_header v6;

	if (!replay)
		return f->end;
	if (p->ip_version == 4)
		return !copy_out(f, p->l3, &v4, sizeof(v4)) && v4.total_len
			       ? p->l3 + bpf_ntohs(v4.total_len)
			       : f->end;
	return !copy_out(f, p->l3, &v6, sizeof(v6)) && v6.payload_len
		       ? p->l3 + sizeof(v6) + bpf_ntohs(v6.payload_len)
		       : f->end;
}

static __always_inline void read_segment(struct segment *s, struct __sk_buff *skb,
					 const struct frame *f, const struct packet *p,
					 const struct tcp_header *tcp, struct tracked *tmp)
{
	__u16 sport = bpf_ntohs(tcp->sport), dport = bpf_ntohs(tcp->dport);
	__u64 payload = payload_at(p, tcp), end = packet_end(f, p);

	s->seq = bpf_ntohl(tcp->seq);
	s->ack = bpf_ntohl(tcp->ack);
	s->window = bpf_ntohs(tcp->window);
	s->flags = p->flags;
	s->now = replay ? replay_ts_ns : bpf_ktime_get_ns();
	s->len = end > payload ? end - payload : 0;
	s->packets = skb->gso_segs;
	if (!s->packets) {
		/* A GSO packet from a guest: its number of segments is not to be trusted. */
		__u32 size = skb->gso_size;

		s->packets = size && s->len > size ? (s->len + size - 1) / size : 1;
	}
	if (s->flags & TCP_SYN)
		s->from_responder = s->flags & TCP_ACK;
	else
		s->from_responder = sport < WELL_KNOWN_PORTS && dport >= WELL_KNOWN_PORTS;
	s->has_wscale = false;
	s->wscale = 0;
	if (s->flags & TCP_SYN)
		read_wscale(f, p, payload, tmp);
}

static __always_inline void swap_ends(struct packet_ends *e)
{
	struct addresses *a = &e->addresses;
	__u16 port = e->sport;

	e->sport = e->dport;
	e->dport = port;
	for (int i = 0; i < 4; i++) {
		__be32 addr = a->saddr[i];

		a->saddr[i] = a->daddr[i];
		a->daddr[i] = addr;
	}
}

/* Whether a flow that begins with this packet is asked for. The filter is about its initiator. */
static __always_inline bool is_wanted(struct frame *f, const struct packet *p,
				      struct packet_ends *e, const struct segment *s)
{
	struct tcp_header scratch, *tcp;

	if (!filter.parts)
		return true;
	if (!kind_matches(p))
		return false;
	if (s->from_responder)
		swap_ends(e);
	if (!ends_match(p->ip_version, &e->addresses, e->sport, e->dport))
		return false;
	if (!(filter.parts & FILTER_PAYLOAD))
		return true;
	tcp = tcp_at(f, p, &scratch);
	return tcp && payload_matches(f, payload_at(p, tcp));
}

/* A slot that is nobody's, and its number; NULL if there is none. */
static __always_inline struct flow_slot *take_slot(__u32 *number)
{
	__u32 zero = 0;

	if (bpf_map_pop_elem(&free_slots, number)) {
		struct unused_slots *unused = bpf_map_lookup_elem(&unused_slots, &zero);
		__u32 first;

		if (!unused)
			return NULL;
		bpf_spin_lock(&unused->lock);
		first = unused->first;
		if (first < max_flows)
			unused->first = first + 1;
		bpf_spin_unlock(&unused->lock);
		if (first >= max_flows)
			return NULL;
		*number = first;
	}
	return bpf_map_lookup_elem(&slots, number);
}

static __always_inline void give_back(struct flow_slot *slot, __u32 number)
{
	bpf_spin_lock(&slot->lock);
	slot->state = SLOT_FREE;
	bpf_spin_unlock(&slot->lock);
	bpf_map_push_elem(&free_slots, &number, BPF_ANY);
}

/* Enters an empty record into the table. False if there is no room; else the flow is in the table,
 * maybe by another CPU's doing. */
static __always_inline bool add_flow(const struct flow_key *key, __u64 now,
				     struct packet_counters *c)
{
	struct flow_slot *slot;
	__u32 number;

	slot = take_slot(&number);
	if (!slot)
		return false;
	/* Under the lock, for a CPU that comes late may be looking at its key. */
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

/* Puts the record of a flow whose ends have a new connection into a slot of its own, and begins an
 * empty one in its place. False if there is no room. */
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
 * Counts the packet that is on its way into its flow, and returns 0. A function of its own to the
 * verifier too, which has forgotten all about headers here: hence no argument.
 */
__attribute__((noinline)) int track(void)
{
	struct packet_counters *c = my_counters();
	struct flow_slot *slot = NULL;
	bool full = false, locked = false;
	struct segment *s;
	struct tracked *t;
	__u32 zero = 0;

	t = bpf_map_lookup_elem(&tracked, &zero);
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
		/* Where there is no room for a new record, the old one goes on. */
		if (full || !forget_why(is_new_connection(&slot->record, s))) {
			locked = true;
			break;
		}
		bpf_spin_unlock(&slot->lock);
		if (!t->is_wanted)
			return 0;
		full = !replace_flow(slot, &t->key, s, c, t);
	}
	if (locked) {
		count_segment(&slot->record, s);
		bpf_spin_unlock(&slot->lock);
	} else {
		c->untracked += s->packets;
	}
	c->segments += s->packets;
	return 0;
}

/* Both ways: a flow has the same key from either end. */
SEC("tc")
int flows_packet(struct __sk_buff *skb)
{
	/* Taken for one that comes in, for which more is looked at; it holds for both ways. */
	struct frame f = tc_frame(skb, true, false);
	struct packet_counters *c = my_counters();
	struct tcp_header scratch, *tcp;
	struct packet_ends ends;
	struct tracked *t;
	struct packet p;
	enum verdict v = parse_packet(&f, &p);
	__u32 zero = 0, *number;

	c->verdicts[v]++;
	if (v != VERDICT_TCP)
		return TCX_NEXT;
	forget_packet(&p);
	t = bpf_map_lookup_elem(&tracked, &zero);
	tcp = tcp_at(&f, &p, &scratch);
	if (!t || !tcp || !read_addresses(&f, &p, &ends.addresses)) {
		/* Can't be: the parser has seen the headers. */
		c->untracked++;
		c->segments++;
		return TCX_NEXT;
	}
	ends.sport = bpf_ntohs(tcp->sport);
	ends.dport = bpf_ntohs(tcp->dport);
	read_segment(&t->segment, skb, &f, &p, tcp, t);
	t->segment.from = make_key(&t->key, p.ip_version, &ends);
	number = bpf_map_lookup_elem(&flow_slots, &t->key);
	t->has_flow = number;
	t->number = number ? *number : 0;
	/* What was asked for once is followed, whatever comes; but for a SYN, which begins anew. */
	t->is_wanted = number && !(t->segment.flags & TCP_SYN);
	if (!t->is_wanted)
		t->is_wanted = is_wanted(&f, &p, &ends, &t->segment);
	if (t->has_flow || t->is_wanted)
		track();
	return TCX_NEXT;
}

/*
 * Keeps a number below a power of two, but makes the verifier forget which, as above: else it
 * follows all of them. The mask is what is done last, so that old verifiers see the bound.
 */
static __always_inline __u32 forget_number(__u32 number, __u32 limit)
{
	return (number + (__u32)opaque_zero) & (limit - 1);
}

/* Four classes an octave of milliseconds: what is in one is younger than in the next. */
static __always_inline __u32 age_class(__u64 now, __u64 last)
{
	__u64 ms = (__s64)(now - last) > 0 ? (now - last) / 1000000 : 0;
	__u32 octave = 0;

	if (ms < 4)
		return ms;
	for (__u32 shift = 16; shift; shift >>= 1) {
		if (ms >> (octave + shift + 2))
			octave += shift;
		octave = forget_number(octave, 32);
	}
	return forget_number(4 + 4 * octave + ((ms >> octave) & 3), AGE_CLASSES);
}

/* Why this slot is to be reported, or -1. Without the lock: what it says is looked at again. */
static __always_inline int why_report(const struct flow_slot *slot, __u64 now)
{
	const struct flow_record *r = &slot->record;
	__u32 age;

	if (slot->state == SLOT_FREE)
		return -1;
	if (slot->state == SLOT_OVER)
		return r->reason;
	if (forget_why(is_due(r, now)))
		return r->known & FLOW_FINISHED ? FLOW_CLOSED : FLOW_IDLE;
	if (sweep.mode == SWEEP_ALL)
		return r->known & FLOW_FINISHED ? FLOW_CLOSED : FLOW_OPEN;
	if (!(r->known & FLOW_STARTED))
		return -1;
	if (sweep.mode == SWEEP_LIVE)
		return FLOW_IS_LIVE;
	age = age_class(now, r->last_ns);
	if (sweep.mode == SWEEP_OLDEST && sweep.budget && age >= sweep.evict_age) {
		sweep.budget--;
		return FLOW_EVICTED;
	}
	sweep.ages[age]++;
	return -1;
}

/* Hands a record to user space, and with it, unless it is live, what it has counted. */
static __always_inline void report(struct __sk_buff *skb, struct flow_slot *slot, __u32 number,
				   int reason)
{
	__u32 zero = 0;
	struct flow_record *r = bpf_map_lookup_elem(&reported, &zero);
	bool live;

	if (!r)
		return;
	bpf_spin_lock(&slot->lock);
	r->key = slot->record.key;
	live = slot->state == SLOT_LIVE;
	bpf_spin_unlock(&slot->lock);
	/* Only the sweep removes flows, so nobody gives the slot to another key meanwhile. */
	if (live && reason != FLOW_IS_LIVE)
		bpf_map_delete_elem(&flow_slots, &r->key);
	bpf_spin_lock(&slot->lock);
	*r = slot->record;
	if (reason == FLOW_IS_LIVE) {
		slot->record.ends[0].packets_told = slot->record.ends[0].packets;
		slot->record.ends[0].bytes_told = slot->record.ends[0].bytes;
		slot->record.ends[1].packets_told = slot->record.ends[1].packets;
		slot->record.ends[1].bytes_told = slot->record.ends[1].bytes;
	} else {
		/* From now on a CPU that comes late looks again, and finds another slot. */
		slot->state = SLOT_OVER;
	}
	bpf_spin_unlock(&slot->lock);
	if (live)
		r->reason = reason;
	if (send_event(skb, r, sizeof(*r)) && reason != FLOW_IS_LIVE) {
		/* User space runs the sweep for no more than fits. But a CPU that came online
		 * later than the perf buffer has none. */
		sweep.lost++;
		sweep.lost_packets += r->ends[0].packets + r->ends[1].packets;
	}
	if (reason != FLOW_IS_LIVE)
		give_back(slot, number);
}

/* User space runs this (BPF_PROG_TEST_RUN, repeated) until the cursor is at the end. Each run
 * reports one flow at most. */
SEC("tc")
int flows_sweep(struct __sk_buff *skb)
{
	__u64 now = replay ? sweep.now_ns : bpf_ktime_get_ns();
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
		report(skb, slot, number - 1, reason);
	return TCX_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
