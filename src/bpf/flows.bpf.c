// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * flows: a table of TCP connections, kept at TC ingress and egress.
 *
 * Records are in an array of slots, which are reused but never freed. A hash map has the number of
 * the slot for each key. A CPU that has looked up a number just before the slot was reused notices
 * that by the key in the slot, under the slot's lock, and looks it up again. So no packet is ever
 * counted into a record that user space has already read. Neither an LRU map nor deletion from a
 * hash map by user space could guarantee that.
 *
 * The table evicts nothing by itself. When it is nearly full, user space evicts flows, and gets the
 * record of each. Packets of flows that find no room are counted as untracked.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "packet_filter.bpf.h"
#include "flow_segment.bpf.h"
#include "flow_sweep.bpf.h"

/*
 * Connections that the filter has rejected, so that none of their later packets is taken for the
 * first one of a connection. Used only with a filter. The last decision about a key counts.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, __u8);
} rejected SEC(".maps");

/* BTF has the types only if something refers to them. */
const struct name_chunk *unused_name_chunk __attribute__((unused));
const struct flow_record *unused_flow_record __attribute__((unused));
const enum sweep_mode *unused_sweep_mode __attribute__((unused));
const enum sweep_limit *unused_sweep_limit __attribute__((unused));
const enum flow_end_reason *unused_flow_end_reason __attribute__((unused));
const enum flow_known *unused_flow_known __attribute__((unused));
const enum end_state *unused_end_state __attribute__((unused));
const enum end_known *unused_end_known __attribute__((unused));

static __always_inline bool is_listening(struct __sk_buff *skb, const struct flow_key *key,
					 __u32 end)
{
	struct bpf_sock_tuple tuple = {};
	const __be32 *addr = (const __be32 *)key->addr[end & 1];
	__be16 port = bpf_htons(key->port[end & 1]);
	struct bpf_sock *sk;
	bool listens;

	/* The source is all zeros, so that only a listener is found, and no connection. */
	if (key->ip_version == 4) {
		tuple.ipv4.daddr = unmapped_ipv4(addr);
		tuple.ipv4.dport = port;
		sk = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		__builtin_memcpy(tuple.ipv6.daddr, addr, sizeof(tuple.ipv6.daddr));
		tuple.ipv6.dport = port;
		sk = bpf_sk_lookup_tcp(skb, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return false;
	listens = sk->state == TCP_LISTEN;
	bpf_sk_release(sk);
	return listens;
}

/*
 * Finds the responder of a connection whose SYN was not seen, for the packet in `tracked`: the end
 * that has a listener on this host. If both or neither have, the guess by port numbers stays.
 */
__attribute__((noinline)) int find_responder(struct __sk_buff *skb, __u32 run)
{
	struct tracked *t = tracked_by(run);
	bool first, second;

	if (!t)
		return 0;
	first = is_listening(skb, &t->key, 0);
	second = is_listening(skb, &t->key, 1);
	if (first != second)
		t->segment.from_responder = t->segment.from ? second : first;
	return 0;
}

/* Whether a flow that begins with this packet matches: the filter's source is the initiator. */
static __always_inline bool is_wanted(struct frame *f, const struct packet *p,
				      const struct tracked *t)
{
	const struct flow_segment *s = &t->segment;
	__u32 initiator = (s->from ^ s->from_responder) & 1;
	struct tcp_header scratch, *tcp;

	if (!filter.parts)
		return true;
	if (!kind_matches(p))
		return false;
	if (!mapped_ends_match(p->ip_version, (const __be32 *)t->key.addr[initiator],
			       t->key.port[initiator], (const __be32 *)t->key.addr[initiator ^ 1],
			       t->key.port[initiator ^ 1]))
		return false;
	if ((filter.parts & FILTER_EXPRESSION) && !expression_matches(f, p, s->from_responder))
		return false;
	if (!(filter.parts & FILTER_PAYLOAD))
		return true;
	tcp = tcp_at(f, p, &scratch);
	return tcp && payload_matches(f, payload_at(p, tcp));
}

/* Copies the bytes that track() has chosen. A global function: the verifier checks it once. */
__attribute__((noinline)) int copy_names(struct __sk_buff *skb, __u32 run)
{
	struct tracked *t = tracked_by(run);

	if (reads_names && t)
		send_name(skb, &t->key, &t->name, run);
	return 0;
}

/* Adds the packet in `tracked` to its flow, or counts that there was no room. */
static __always_inline void count_packet(struct tracked *t, struct packet_counters *c, __u32 run)
{
	int result = TRACK_AGAIN;

	t->is_stale = false;
	t->is_full = false;
	t->seen_new = 0;
	for (int i = 0; i < TRIES && result == TRACK_AGAIN; i++)
		result = track(run);
	if (result == TRACK_NOTHING)
		return;
	if (result != TRACK_DONE)
		c->untracked += t->segment.packets;
	c->segments += t->segment.packets;
}

static __always_inline void on_packet(struct __sk_buff *skb, __u32 run)
{
	struct packet_counters *c = counters_of(run);
	struct tcp_header scratch, *tcp;
	__u16 sport, dport;
	struct tracked *t;
	struct packet p;
	struct frame f;
	enum verdict v;

	if (stopped || !next_frame())
		return;
	/* Parsed as an incoming packet, which checks more, and is right for outgoing ones too. */
	f = tc_frame(skb, true, false);
	f.slot = run;
	v = parse_packet(&f, &p);
	c->verdicts[v]++;
	if (v != VERDICT_TCP)
		return;
	forget_packet(&p);
	t = tracked_by(run);
	tcp = tcp_at(&f, &p, &scratch);
	if (!t || !tcp)
		goto unread;
	sport = bpf_ntohs(tcp->sport);
	dport = bpf_ntohs(tcp->dport);
	read_segment(&t->segment, skb, &f, &p, tcp, t);
	if (!read_key(t, skb, &f, &p, sport, dport))
		goto unread;
	find_flow(t);
	t->segment.now = segment_time(t);
	if (t->is_ongoing && track_usual(t)) {
		c->segments += t->segment.packets;
		goto counted;
	}
	if (!t->has_flow && !(t->segment.flags & TCP_SYN)) {
		if (filter.parts && bpf_map_lookup_elem(&rejected, &t->key))
			return;
		if (!replay)
			find_responder(skb, run);
	}
	/* A flow in the table is followed without the filter. A SYN may begin a new one. */
	t->is_wanted = t->has_flow && !(t->segment.flags & TCP_SYN);
	if (!t->is_wanted)
		t->is_wanted = is_wanted(&f, &p, t);
	if (filter.parts && !t->has_flow && !t->is_wanted) {
		__u8 seen = 1;

		bpf_map_update_elem(&rejected, &t->key, &seen, BPF_ANY);
	}
	if (!t->has_flow && !t->is_wanted)
		return;
	count_packet(t, c, run);
counted:
	if (reads_names && t->name.is_wanted)
		copy_names(skb, run);
	return;

unread:
	/* Can't happen: the parser has read the headers. */
	c->untracked++;
	c->segments++;
}

/* Attached at ingress and at egress: a flow has the same key in both directions. */
SEC("tc")
int flows_packet(struct __sk_buff *skb)
{
	__u32 run = begin_run();

	if (has_slot(run)) {
		on_packet(skb, run);
		end_run(run);
	} else {
		__sync_fetch_and_add(&counters[0].untracked, 1);
		__sync_fetch_and_add(&counters[0].segments, 1);
	}
	return TCX_NEXT;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
