/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What flows reads from a packet: the key of its flow, and what changes the flow's record. */
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

/* Addresses and ports of a packet; ports in host order. */
struct packet_ends {
	struct addresses addresses;
	__u16 sport;
	__u16 dport;
};

static __always_inline void put_address(__u8 *to, __u8 ip_version, const __be32 *addr)
{
	if (ip_version == 4)
		set_mapped((__be32 *)to, addr[0]);
	else
		__builtin_memcpy(to, addr, 16);
}

static __always_inline __u16 vlan_at(const struct frame *f, const struct packet *p, __u64 at)
{
	struct vlan_tag tag;

	if (at >= p->l3 || copy_out(f, at, &tag, sizeof(tag)))
		return 0;
	return bpf_ntohs(tag.tci) & VLAN_ID_MASK;
}

/* Reads the VLANs of a packet: the same address in two VLANs is not the same host. */
static __always_inline void read_vlans(struct flow_key *key, const struct __sk_buff *skb,
				       const struct frame *f, const struct packet *p)
{
	__u64 at = f->headless ? 0 : ETH_HEADER_LEN;

	key->vlan[0] = 0;
	key->vlan[1] = 0;
	if (link_is_raw_ip)
		return;
	if (skb->vlan_present) {
		key->vlan[0] = skb->vlan_tci & VLAN_ID_MASK;
		if (p->l3 > at)
			key->vlan[1] = vlan_at(f, p, at);
	} else if (p->l3 > at) {
		key->vlan[0] = vlan_at(f, p, at);
		key->vlan[1] = vlan_at(f, p, at + sizeof(struct vlan_tag));
	}
}

/* Sets the key of a packet's flow, except its VLANs. Returns which end has sent the packet. */
static __always_inline __u8 make_key(struct flow_key *key, __u8 ip_version,
				     const struct packet_ends *e)
{
	const struct addresses *a = &e->addresses;
	bool lower = is_lower(a->saddr, e->sport, a->daddr, e->dport);

	put_address(key->addr[0], ip_version, lower ? a->saddr : a->daddr);
	put_address(key->addr[1], ip_version, lower ? a->daddr : a->saddr);
	key->port[0] = lower ? e->sport : e->dport;
	key->port[1] = lower ? e->dport : e->sport;
	key->interface = interface;
	key->ip_version = ip_version;
	__builtin_memset(key->pad, 0, sizeof(key->pad));
	return lower ? 0 : 1;
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
	struct segment *s;
	__u32 at = 0;

	if (!t)
		return 0;
	s = &t->segment;
	/* Once more than there can be options: the last time there is none left. */
	for (int i = 0; i <= TCP_OPTIONS_MAX; i++) {
		/* Read again each time, so that the verifier learns nothing of it on one path. */
		__u8 len = *(volatile __u8 *)&t->options_len, kind = t->options[at];
		/* 0 for the option of one byte, else 1; without a branch, for the same reason. */
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
	__u32 is_lasting = (port - ephemeral_first | ephemeral_last - port) >> 31;

	return is_low << 1 | (is_lasting & (is_low ^ 1));
}

static __always_inline void read_segment(struct segment *s, struct __sk_buff *skb,
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
	if (names) {
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
