/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads from a packet the key of its flow, and the fields that change the flow's record. */
#ifndef TCPINSPECT_FLOW_SEGMENT_BPF_H
#define TCPINSPECT_FLOW_SEGMENT_BPF_H

#include "packet_filter.bpf.h"
#include "flow_slots.bpf.h"

#define WELL_KNOWN_PORTS 1024
#define TCP_OPT_END	 0
#define TCP_OPT_NOP	 1
#define TCP_OPT_WSCALE	 3
#define TCP_WSCALE_MAX	 14 /* RFC 7323, 2.3 */

/* Index of this interface among the watched ones, which share the table. */
const volatile __u32 interface = 0;

/* The ephemeral ports of this host (net.ipv4.ip_local_port_range). */
const volatile __u16 ephemeral_first = 32768;
const volatile __u16 ephemeral_last = 60999;

static __always_inline __u16 vlan_at(const struct frame *f, const struct packet *p, __u64 at)
{
	struct vlan_tag tag;

	if (at >= p->l3 || copy_out(f, at, &tag, sizeof(tag)))
		return 0;
	return bpf_ntohs(tag.tci) & VLAN_ID_MASK;
}

/* Reads the VLANs of a packet: the same address in two VLANs is not the same host. */
static __always_inline void read_vlans(__u16 *vlan, const struct __sk_buff *skb,
				       const struct frame *f, const struct packet *p)
{
	__u64 at = f->headless ? 0 : ETH_HEADER_LEN;

	if (link_is_raw_ip)
		return;
	if (skb->vlan_present) {
		vlan[0] = skb->vlan_tci & VLAN_ID_MASK;
		if (p->l3 > at)
			vlan[1] = vlan_at(f, p, at);
	} else if (p->l3 > at) {
		vlan[0] = vlan_at(f, p, at);
		vlan[1] = vlan_at(f, p, at + sizeof(struct vlan_tag));
	}
}

/* Reads the addresses of a packet after forget_packet(). It can't really fail. */
static __always_inline bool read_words(struct frame *f, const struct packet *p,
				       struct address_words *s, struct address_words *d)
{
	fetch_pointers(f);
	if (p->ip_version == 4) {
		struct ipv4_header scratch, *ip = header_at(f, p->l3, sizeof(*ip), &scratch);

		if (!ip)
			return false;
		*s = mapped_words(ip->saddr);
		*d = mapped_words(ip->daddr);
	} else {
		struct ipv6_header scratch __attribute__((aligned(8))), *ip;
		const __u64 *words;

		ip = header_at(f, p->l3, sizeof(*ip), &scratch);
		if (!ip)
			return false;
		/* The verifier allows this wherever the CPU can read unaligned words. */
		words = (const __u64 *)ip->saddr;
		*s = (struct address_words){ words[0], words[1] };
		*d = (struct address_words){ words[2], words[3] };
	}
	return true;
}

/* Joins four numbers into one word, in their order in memory. */
static __always_inline __u64 join_four(__u16 a, __u16 b, __u16 c, __u16 d)
{
	union {
		__u16 quarters[4];
		__u64 whole;
	} word = { { a, b, c, d } };

	/* Otherwise the compiler would write it in parts. */
	barrier_var(word.whole);
	return word.whole;
}

/*
 * Sets the key of a packet's flow, and which end has sent the packet. The key is written in words:
 * a CPU waits when it reads a word that was just written in parts.
 */
static __always_inline bool read_key(struct tracked *t, const struct __sk_buff *skb,
				     struct frame *f, const struct packet *p, __u16 sport,
				     __u16 dport)
{
	__u64 *words = (__u64 *)&t->key;
	struct address_words s, d;
	__u16 vlan[2] = {};
	bool lower;

	if (!read_words(f, p, &s, &d))
		return false;
	read_vlans(vlan, skb, f, p);
	lower = is_lower(s, sport, d, dport);
	words[0] = lower ? s.first : d.first;
	words[1] = lower ? s.last : d.last;
	words[2] = lower ? d.first : s.first;
	words[3] = lower ? d.last : s.last;
	words[4] = join_four(lower ? sport : dport, lower ? dport : sport, interface, vlan[0]);
	/* ip_version is a byte, and the bytes after it are zeros. */
	words[5] = join_four(vlan[1], bpf_htons(p->ip_version << 8), 0, 0);
	t->segment.from = lower ? 0 : 1;
	return true;
}

/* Returns an offset into the options unchanged, but the verifier forgets its range: see
 * opaque_zero. */
static __always_inline __u32 forget_option(__u32 offset)
{
	return (offset + (__u32)opaque_zero) & 63;
}

/*
 * Finds the window scale option of the SYN in `tracked`. This is a global function so that the
 * verifier checks it once, and not for each path through the headers.
 */
__attribute__((noinline)) int find_wscale(__u32 run)
{
	struct tracked *t = tracked_by(run);
	struct flow_segment *s;
	__u32 at = 0;

	if (!t)
		return 0;
	s = &t->segment;
	/* One iteration more than there can be options: the last one finds the end. */
	for (int i = 0; i <= TCP_OPTIONS_MAX; i++) {
		/* Read again each time, so that the verifier learns nothing of it on one path. */
		__u8 len = *(volatile __u8 *)&t->options_len, kind = t->options[at];
		/* 0 for NOP, which has no length, else 1; without a branch, for the same reason. */
		__u32 has_len = ((kind ^ TCP_OPT_NOP) + 255) >> 8;
		__u32 option_len = 1 + has_len * (t->options[at + 1] - 1);

		if (kind == TCP_OPT_END || option_len < 1 + has_len || at + option_len > len)
			return 0;
		if ((option_len << 8 | kind) == (3 << 8 | TCP_OPT_WSCALE))
			break;
		at = forget_option(at + option_len);
	}
	s->has_wscale = true;
	s->wscale = t->options[at + 2];
	if (s->wscale > TCP_WSCALE_MAX)
		s->wscale = TCP_WSCALE_MAX;
	return 0;
}

static __always_inline void read_wscale(const struct frame *f, const struct packet *p,
					__u64 payload, struct tracked *tmp)
{
	__u64 end = f->end < payload ? f->end : payload;

	tmp->options_len = copy_bytes(f, p->l4 + sizeof(struct tcp_header), end, tmp->options,
				      TCP_OPTIONS_MAX);
	find_wscale(f->slot);
}

/* Where the packet ends. A capture file may have cut it, so a replay goes by its IP header. */
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

/* How likely it is that this is a server's port; without a branch, for the verifier. */
static __always_inline __u32 service_rank(__u32 port)
{
	__u32 is_low = (port - WELL_KNOWN_PORTS) >> 31;
	__u32 is_not_ephemeral = (port - ephemeral_first | ephemeral_last - port) >> 31;

	return is_low << 1 | (is_not_ephemeral & (is_low ^ 1));
}

static __always_inline void read_segment(struct flow_segment *s, struct __sk_buff *skb,
					 const struct frame *f, const struct packet *p,
					 const struct tcp_header *tcp, struct tracked *tmp)
{
	__u16 sport = bpf_ntohs(tcp->sport), dport = bpf_ntohs(tcp->dport);
	__u64 payload = payload_at(p, tcp), end;

	s->seq = bpf_ntohl(tcp->seq);
	s->ack = bpf_ntohl(tcp->ack);
	s->window = bpf_ntohs(tcp->window);
	s->flags = p->flags;
	/* From here on it does not matter to the verifier where the header is. */
	barrier();
	end = packet_end(f, p);
	if (reads_names) {
		tmp->name.payload = payload;
		tmp->name.end = f->end;
		tmp->name.is_wanted = false;
	}
	s->len = end > payload ? end - payload : 0;
	s->size = skb->gso_size;
	s->packets = skb->gso_segs;
	if (!s->packets)
		/* gso_segs is 0 for a GSO packet from a guest, whose count is not trusted. */
		s->packets = s->size && s->len > s->size ? (s->len + s->size - 1) / s->size : 1;
	if (s->flags & TCP_SYN)
		s->from_responder = s->flags & TCP_ACK;
	else
		s->from_responder = service_rank(sport) > service_rank(dport);
	s->has_wscale = false;
	s->wscale = 0;
	barrier();
	if (s->flags & TCP_SYN)
		read_wscale(f, p, payload, tmp);
}

#endif /* TCPINSPECT_FLOW_SEGMENT_BPF_H */
