// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* port-monitor: one event for each packet that matches, at TC ingress and egress. */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include "packet_filter.bpf.h"
#include "events.bpf.h"
#include "replay.bpf.h"
#include "port_monitor.h"

/* The most bytes of a frame: tcpdump's maximum, and room for the headers of a tunnel before it. */
#define FRAME_MAX (256 * 1024 + 128)

/* The size of a perf sample is a field of 16 bits, and includes its header. */
#define PERF_FRAME_MAX (63 * 1024)

/* Payload bytes to copy into each event, 0 to PAYLOAD_CAPTURE_MAX. */
const volatile __u32 payload_capture = 0;

/*
 * Bytes to send of each frame, for a capture file; 0: send events with the fields of the headers.
 */
const volatile __u32 snaplen = 0;

/* Position of this interface among those that are watched: they share one buffer. */
const volatile __u32 interface = 0;

/* Events per second that may be sent; 0: no limit. */
const volatile __u64 max_rate = 0;

/* An event too large for the stack, on its way to the perf buffer. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct packet_event) + PAYLOAD_CAPTURE_MAX);
} scratch SEC(".maps");

/* How much of --max-rate is used in the current second. */
struct rate_window {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u64 started_ns;
	__u64 used;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct rate_window);
} rate SEC(".maps");

/* BTF has the type only if something refers to it. */
const struct packet_event *unused_packet_event __attribute__((unused));
const struct frame_event *unused_frame_event __attribute__((unused));
const enum packet_limit *unused_packet_limit __attribute__((unused));

static __always_inline bool over_rate(__u64 now)
{
	__u32 zero = 0;
	struct rate_window *w = bpf_map_lookup_elem(&rate, &zero);
	bool over;

	if (!w)
		return false;
	bpf_spin_lock(&w->lock);
	/*
	 * A time more than a second before the start of the window also begins a new window. A
	 * time a little before it does not: the clock of another CPU may be ahead of this one's.
	 * Times in a file can go back by any amount.
	 */
	if (now - w->started_ns + NSEC_PER_SEC >= 2 * NSEC_PER_SEC) {
		w->started_ns = now;
		w->used = 0;
	}
	over = w->used >= max_rate;
	if (!over)
		w->used++;
	bpf_spin_unlock(&w->lock);
	return over;
}

static __always_inline void push_vlan(struct packet_event *e, __u16 tci)
{
	e->vlan[e->vlan_count & 1] = tci & VLAN_ID_MASK;
	e->vlan_count++;
}

/*
 * Fills in the fields of the Ethernet header, and of the VLAN tags between it and the IP header.
 *
 * Here and in the next two functions, a header that is not in the linear part of the sk_buff is
 * copied to e->options, which gets its own bytes last. With a copy on the stack, the verifier would
 * have to distinguish more paths.
 */
static __always_inline bool fill_ethernet(struct packet_event *e, struct frame *f,
					  const struct packet *p)
{
	__u64 at = f->headless ? 0 : ETH_HEADER_LEN;
	struct __sk_buff *skb = f->ctx;
	struct eth_header *eth = (void *)e->options;

	fetch_pointers(f);
	if (!f->headless)
		eth = header_at(f, 0, sizeof(*eth), e->options);
	else if (bpf_skb_load_bytes_relative(skb, 0, eth, sizeof(*eth), BPF_HDR_START_MAC))
		return false;
	if (!eth)
		return false;
	__builtin_memcpy(e->dst_mac, eth->dst, sizeof(e->dst_mac));
	__builtin_memcpy(e->src_mac, eth->src, sizeof(e->src_mac));
	e->ethertype = bpf_ntohs(f->headless ? skb->protocol : eth->ethertype);
	if (skb->vlan_present)
		push_vlan(e, skb->vlan_tci);
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag tag;

		if (at >= p->l3)
			break;
		if (copy_out(f, at, &tag, sizeof(tag)))
			return false;
		push_vlan(e, bpf_ntohs(tag.tci));
		e->ethertype = bpf_ntohs(tag.ethertype);
		at += sizeof(tag);
	}
	return true;
}

/* Fills in the fields of the IP header. */
static __always_inline bool fill_ip(struct packet_event *e, struct frame *f, const struct packet *p)
{
	fetch_pointers(f);
	if (p->ip_version == 4) {
		struct ipv4_header *ip = header_at(f, p->l3, sizeof(*ip), e->options);

		if (!ip)
			return false;
		e->ip_len = bpf_ntohs(ip->total_len);
		e->ip_id = bpf_ntohs(ip->id);
		e->ttl = ip->ttl;
		e->tos = ip->tos;
		set_mapped((__be32 *)e->saddr, ip->saddr);
		set_mapped((__be32 *)e->daddr, ip->daddr);
	} else {
		struct ipv6_header *ip = header_at(f, p->l3, sizeof(*ip), e->options);

		if (!ip)
			return false;
		e->ip_len = bpf_ntohs(ip->payload_len);
		if (e->ip_len)
			e->ip_len += sizeof(*ip);
		e->ttl = ip->hop_limit;
		e->tos = bpf_ntohl(ip->version_class_flow) >> 20;
		__builtin_memcpy(e->saddr, ip->saddr, sizeof(e->saddr));
		__builtin_memcpy(e->daddr, ip->daddr, sizeof(e->daddr));
	}
	e->ip_version = p->ip_version;
	e->ip_header_len = p->l4 - p->l3;
	return true;
}

/* Fills in the fields of the TCP header, its options, and the payload after it. */
static __always_inline bool fill_tcp(struct packet_event *e, struct frame *f,
				     const struct packet *p)
{
	struct tcp_header *tcp = tcp_at(f, p, (void *)e->options);
	__u64 payload;

	if (!tcp)
		return false;
	e->sport = bpf_ntohs(tcp->sport);
	e->dport = bpf_ntohs(tcp->dport);
	e->seq = bpf_ntohl(tcp->seq);
	e->ack = bpf_ntohl(tcp->ack);
	e->data_offset = tcp->data_offset >> 4;
	e->tcp_flags = tcp->flags;
	e->window = bpf_ntohs(tcp->window);
	e->checksum = bpf_ntohs(tcp->checksum);
	e->urgent = bpf_ntohs(tcp->urgent);
	payload = payload_at(p, tcp);
	__builtin_memset(e->options, 0, sizeof(e->options));
	e->payload_offset = payload + (f->headless ? ETH_HEADER_LEN : 0);
	e->payload_len = f->end > payload ? f->end - payload : 0;
	e->options_len = copy_bytes(f, p->l4 + sizeof(*tcp), f->end < payload ? f->end : payload,
				    e->options, TCP_OPTIONS_MAX);
	if (payload_capture)
		e->payload_captured = copy_bytes(f, payload, f->end, e->payload, payload_capture);
	return true;
}

static __always_inline bool fill_event(struct packet_event *e, struct frame *f,
				       const struct packet *p, __u64 now, bool egress)
{
	__builtin_memset(e, 0, sizeof(*e));
	e->ts_ns = now;
	e->interface = replay ? replay_next - 1 : interface;
	e->egress = egress;
	if (!link_is_raw_ip && !fill_ethernet(e, f, p))
		return false;
	return fill_ip(e, f, p) && fill_tcp(e, f, p);
}

/* Fills in all but the bytes of the frame. False: the Ethernet header can't be read. */
static __always_inline bool fill_frame(struct frame_event *e, const struct frame *f,
				       const struct packet *p, __u64 skip, __u64 now, bool egress)
{
	struct __sk_buff *skb = f->ctx;

	__builtin_memset(e, 0, sizeof(*e));
	e->ts_ns = now;
	e->interface = replay ? replay_next - 1 : interface;
	e->egress = egress;
	if (replay)
		return true;
	e->len = skb->len;
	e->skip = skip;
	e->ip_version = p->ip_version;
	e->l3 = p->l3;
	e->l4 = p->l4;
	if (skb->vlan_present) {
		__be16 tag[] = { skb->vlan_proto, bpf_htons(skb->vlan_tci) };

		__builtin_memcpy(e->vlan_tag, tag, sizeof(e->vlan_tag));
	}
	e->headless = f->headless;
	return !f->headless ||
	       !bpf_skb_load_bytes_relative(skb, 0, e->ethernet, ETH_HEADER_LEN, BPF_HDR_START_MAC);
}

/* Sends at most `room` bytes of a frame. The verifier needs `room` to be a constant. */
static __always_inline bool send_frame(struct frame *f, const struct packet *p, __u64 captured,
				       const __u32 room, __u64 skip, __u64 now, bool egress)
{
	__u64 wake_up = replay ? BPF_RB_NO_WAKEUP : 0;
	struct frame_event *e;

	e = bpf_ringbuf_reserve(&ring, sizeof(*e) + room, 0);
	if (!e)
		return false;
	if (!fill_frame(e, f, p, skip, now, egress)) {
		bpf_ringbuf_discard(e, wake_up);
		return false;
	}
	if (!replay)
		e->captured = copy_bytes(f, 0, captured, e->bytes, room);
	bpf_ringbuf_submit(e, wake_up);
	return true;
}

/* Sends a frame through the perf buffer. The kernel itself appends the bytes of the packet. */
static __always_inline bool send_frame_to_perf(struct frame *f, const struct packet *p,
					       __u64 captured, __u64 skip, __u64 now, bool egress)
{
	struct frame_event e;

	if (!fill_frame(&e, f, p, skip, now, egress))
		return false;
	if (captured > PERF_FRAME_MAX)
		captured = PERF_FRAME_MAX;
	if (replay)
		captured = 0;
	e.captured = captured;
	return !bpf_perf_event_output(f->ctx, &perf, BPF_F_CURRENT_CPU | captured << 32, &e,
				      sizeof(e));
}

/*
 * Sends the bytes of a frame. False: there was no room. The size of a record in the ring buffer has
 * to be a constant, so there are several sizes.
 */
static __always_inline bool emit_frame(struct frame *f, const struct packet *p, __u64 now,
				       bool egress)
{
	/*
	 * On interfaces without Ethernet headers, those of a tunnel may come first: see
	 * parse_raw_ip().
	 */
	__u64 skip = link_is_raw_ip ? p->l3 : 0;
	__u64 captured = ((struct __sk_buff *)f->ctx)->len;

	if (captured > snaplen + skip)
		captured = snaplen + skip;
	if (use_perf_buffer)
		return send_frame_to_perf(f, p, captured, skip, now, egress);
	if (replay)
		return send_frame(f, p, 0, 8, skip, now, egress);
#define SEND_IF_UP_TO(room)                                                                        \
	if (captured <= (room))                                                                    \
	return send_frame(f, p, captured, room, skip, now, egress)

	SEND_IF_UP_TO(80);
	SEND_IF_UP_TO(208);
	SEND_IF_UP_TO(592);
	SEND_IF_UP_TO(1536);
	SEND_IF_UP_TO(3072);
	SEND_IF_UP_TO(9216);
	SEND_IF_UP_TO(18 * 1024);
	SEND_IF_UP_TO(33 * 1024);
	SEND_IF_UP_TO(49 * 1024);
	SEND_IF_UP_TO(65 * 1024);
	SEND_IF_UP_TO(129 * 1024);
	return send_frame(f, p, captured, FRAME_MAX, skip, now, egress);
#undef SEND_IF_UP_TO
}

/* Sends the event of a packet. False: it is lost, because there was no room. */
static __always_inline bool emit(struct frame *f, const struct packet *p, __u64 now, bool egress)
{
	__u64 size = sizeof(struct packet_event) + payload_capture;
	/* In a replay the reader reads after each frame, and needs no wakeup. */
	__u64 wake_up = replay ? BPF_RB_NO_WAKEUP : 0;
	struct packet_event *e;

	if (snaplen)
		return emit_frame(f, p, now, egress);
	if (use_perf_buffer) {
		__u32 key = scratch_key(f->slot);

		e = bpf_map_lookup_elem(&scratch, &key);
		return e && fill_event(e, f, p, now, egress) && !send_event(f->ctx, e, size);
	}
	/* The size is a constant to the verifier: payload_capture is frozen before load. */
	e = bpf_ringbuf_reserve(&ring, size, 0);
	if (!e)
		return false;
	if (!fill_event(e, f, p, now, egress)) {
		bpf_ringbuf_discard(e, wake_up);
		return false;
	}
	bpf_ringbuf_submit(e, wake_up);
	return true;
}

static __always_inline void on_frame(struct frame *f, struct packet *p, enum verdict v, bool egress)
{
	struct packet_counters *c = counters_of(f->slot);
	__u64 now;

	c->verdicts[v]++;
	if (v != VERDICT_TCP || !packet_matches(f, p))
		return;
	c->matched++;
	now = packet_time();
	if (max_rate && over_rate(now))
		c->suppressed++;
	else if (!emit(f, p, now, egress))
		c->lost++;
}

static __always_inline int monitor(struct __sk_buff *skb, bool egress)
{
	struct packet p;
	struct frame f;
	enum verdict v;

	if (stopped || !next_frame())
		return TCX_NEXT;
	f = tc_frame(skb, !egress, false);
	v = parse_packet(&f, &p);
	f.slot = begin_run();
	if (has_slot(f.slot)) {
		on_frame(&f, &p, v, egress);
		end_run(f.slot);
	} else {
		count_overrun();
	}
	return TCX_NEXT;
}

SEC("tc")
int port_monitor_ingress(struct __sk_buff *skb)
{
	return monitor(skb, false);
}

SEC("tc")
int port_monitor_egress(struct __sk_buff *skb)
{
	return monitor(skb, true);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
