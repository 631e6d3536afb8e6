/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Reads an sk_buff in tracing programs, and tells whether one that is freed was dropped. */
#ifndef TCPINSPECT_SKB_BPF_H
#define TCPINSPECT_SKB_BPF_H

#include "packet.bpf.h"
#include "segment.bpf.h"
#include "socket.bpf.h"

/* Numbers of enum skb_drop_reason in the running kernel; 0: it has no such reason. */
const volatile __u32 reason_consumed = 0;
const volatile __u32 reason_not_specified = 0;
const volatile __u32 reason_queue_purge = 0;
const volatile __u32 reason_packet_sock_error = 0;
const volatile __u32 reason_no_socket = 0;
const volatile __u32 reason_listen_overflow = 0;
const volatile __u32 reason_old_sequence = 0;

/*
 * The code of the function that frees the copies for packet sockets; for kernels without reasons.
 */
const volatile __u64 packet_rcv_start = 0;
const volatile __u64 packet_rcv_end = 0;

static __always_inline bool is_specific(__u32 reason)
{
	return reason && reason != reason_not_specified;
}

/* Whether a packet is the input of BPF_PROG_TEST_RUN: its socket has neither a type nor a file. */
static __always_inline bool is_test_run(const struct sk_buff *skb)
{
	const struct sock *sk = skb->sk;

	return sk && sk->__sk_common.skc_state == TCP_CLOSE && !sk->sk_type && !sk->sk_socket;
}

/*
 * Whether nothing is lost when this packet is freed: it was in the queue of a closed socket, is a
 * copy for a packet socket, or the input of a test run.
 */
static __always_inline bool is_harmless_free(const struct sk_buff *skb, __u32 reason, __u64 place)
{
	if (is_test_run(skb))
		return true;
	if (reason)
		return reason == reason_consumed || reason == reason_queue_purge ||
		       reason == reason_packet_sock_error;
	return place >= packet_rcv_start && place < packet_rcv_end;
}

/* Finds the TCP header after the extension headers of IPv6. NULL: there is none. */
static __noinline void *tcp_after(__u64 network, __u8 next)
{
	__u64 at = network + sizeof(struct ipv6_header);

#pragma unroll
	for (int i = 0; i < MAX_EXT_HEADERS; i++) {
		struct ext_header ext;

		if (!is_ext_header(next))
			break;
		if (bpf_probe_read_kernel(&ext, sizeof(ext), (const void *)at))
			return NULL;
		if (next == IPPROTO_FRAGMENT) {
			if (ext.fragment & bpf_htons(IP6_OFFSET))
				return NULL;
			at += sizeof(ext);
		} else if (next == IPPROTO_AH) {
			at += (ext.len + 2) * 4;
		} else {
			at += (ext.len + 1) * 8;
		}
		next = ext.next_header;
	}
	return next == IPPROTO_TCP ? (void *)at : NULL;
}

/* The IP and TCP headers as most packets have them: without IP options or extension headers. */
union usual_headers {
	struct {
		struct ipv4_header ip;
		struct tcp_header tcp;
	} v4;
	struct {
		struct ipv6_header ip;
		struct tcp_header tcp;
	} v6;
	__u64 words[8];
};

/* How many words both headers take with IPv4, and how many words fit into a control block. */
#define WORDS_OF_IPV4  5
#define WORDS_OF_BLOCK 6

/*
 * Copies the headers from an address in kernel memory. Loads are used where possible, because a
 * helper call takes longer than all of them. The verifier allows loads of any size only within an
 * array of bytes. So the headers are read as if they were the control block (cb) of an sk_buff.
 */
static __always_inline bool copy_headers(union usual_headers *to, const unsigned char *from,
					 bool is_ipv4)
{
	const struct sk_buff *around;
	const __u64 *words;

	if (!bpf_rdonly_cast)
		return !bpf_probe_read_kernel(to, sizeof(*to), from);
	around = (const void *)(from - bpf_core_field_offset(struct sk_buff, cb));
	words = (const void *)AS_BTF_POINTER(around)->cb;
	/*
	 * Otherwise libbpf (CO-RE) would treat each of these loads as a load of the whole member,
	 * and change its size to that of the member.
	 */
	barrier_var(words);
#pragma unroll
	for (int i = 0; i < WORDS_OF_IPV4; i++)
		to->words[i] = words[i];
	if (is_ipv4)
		return true;
	to->words[WORDS_OF_IPV4] = words[WORDS_OF_IPV4];
	around = (const void *)((const unsigned char *)around + sizeof(around->cb));
	words = (const void *)AS_BTF_POINTER(around)->cb;
	barrier_var(words);
	to->words[WORDS_OF_BLOCK] = words[0];
	to->words[WORDS_OF_BLOCK + 1] = words[1];
	return true;
}

/*
 * Reads the headers of a packet; `skb` must be a BTF pointer. False: it is not a TCP segment. Both
 * headers are read at once, even if the packet is shorter: after the data of an sk_buff comes its
 * skb_shared_info, which is larger than both.
 */
static __always_inline bool read_segment(const struct sk_buff *skb, struct segment *s)
{
	const unsigned char *head = skb->head, *network, *transport;
	__u16 protocol = skb->protocol;
	union usual_headers usual = {};
	struct tcp_header *tcp;
	bool is_usual = true;
	__u32 len, headers;

	network = head + skb->network_header;
	if (!copy_headers(&usual, network, protocol == bpf_htons(ETHERTYPE_IPV4)))
		return false;
	if (protocol == bpf_htons(ETHERTYPE_IPV4)) {
		const struct ipv4_header *ip4 = &usual.v4.ip;

		if (ip4->version_ihl >> 4 != 4 || ip4->protocol != IPPROTO_TCP ||
		    (ip4->fragment & bpf_htons(IP_OFFSET)))
			return false;
		transport = network + (ip4->version_ihl & 0x0f) * 4;
		is_usual = transport == network + sizeof(*ip4);
		tcp = &usual.v4.tcp;
		set_mapped(s->saddr, ip4->saddr);
		set_mapped(s->daddr, ip4->daddr);
		s->ip_version = 4;
		len = bpf_ntohs(ip4->total_len);
	} else if (protocol == bpf_htons(ETHERTYPE_IPV6)) {
		const struct ipv6_header *ip6 = &usual.v6.ip;

		is_usual = ip6->next_header == IPPROTO_TCP;
		if (is_usual)
			transport = network + sizeof(*ip6);
		else if (is_ext_header(ip6->next_header))
			transport = tcp_after((__u64)network, ip6->next_header);
		else
			return false;
		if (!transport)
			return false;
		tcp = &usual.v6.tcp;
		__builtin_memcpy(s->saddr, ip6->saddr, sizeof(s->saddr));
		__builtin_memcpy(s->daddr, ip6->daddr, sizeof(s->daddr));
		s->ip_version = 6;
		len = bpf_ntohs(ip6->payload_len);
		if (len)
			len += sizeof(*ip6);
	} else {
		return false;
	}
	/* The header may be in a page of its own. */
	if (skb->data_len && transport + sizeof(*tcp) > head + skb->tail)
		return false;
	if (!is_usual && bpf_probe_read_kernel(tcp, sizeof(*tcp), transport))
		return false;
	s->sport = bpf_ntohs(tcp->sport);
	s->dport = bpf_ntohs(tcp->dport);
	s->seq = bpf_ntohl(tcp->seq);
	s->ack = bpf_ntohl(tcp->ack);
	s->flags = tcp->flags;
	headers = transport - network + (tcp->data_offset >> 4) * 4;
	s->payload_len = len > headers ? len - headers : 0;
	return true;
}

/* The device of a packet's route: while TCP handles a packet, in or out, skb->dev is NULL. */
static __always_inline const struct net_device *route_device(const struct sk_buff *skb)
{
	const struct dst_entry *dst = (const void *)(skb->_skb_refdst & ~1UL);

	return dst ? READ_MEMBER(dst, dev) : NULL;
}

#define DEVICE_LISTS	 256
#define DEVICES_PER_LIST 16

/* Finds the device with this index in a namespace. */
static __noinline void *find_device(__u64 net_address, int ifindex)
{
	const struct net *net = (const void *)net_address;
	const struct hlist_head *lists = BPF_CORE_READ(net, dev_index_head);
	const struct hlist_node *node;

	node = BPF_CORE_READ(&lists[ifindex & (DEVICE_LISTS - 1)], first);
	for (int i = 0; i < DEVICES_PER_LIST; i++) {
		const struct net_device *dev;

		if (!node)
			break;
		dev = (const void *)node - bpf_core_field_offset(struct net_device, index_hlist);
		if (BPF_CORE_READ(dev, ifindex) == ifindex)
			return (void *)dev;
		node = BPF_CORE_READ(node, next);
	}
	return NULL;
}

/*
 * The device of a packet: the one that received it, or that will send it. The route of a packet to
 * this host leads to lo, so the device that received it is looked up.
 */
static __always_inline const struct net_device *device_of(const struct sk_buff *skb)
{
	const struct net_device *dev = skb->dev, *input;

	if (dev)
		return dev;
	dev = route_device(skb);
	if (!dev || !skb->skb_iif || BPF_CORE_READ(dev, ifindex) == skb->skb_iif)
		return dev;
	input = find_device((__u64)BPF_CORE_READ(dev, nd_net.net), skb->skb_iif);
	return input ?: dev;
}

/*
 * The device through which a packet came in that a socket has in one of its queues, or that TCP
 * handles for it. In a queue that is a tree, the memory of skb->dev has a pointer of that tree.
 */
static __always_inline const struct net_device *input_device(const struct sock *sk, int ifindex)
{
	return find_device((__u64)BPF_CORE_READ(sk, __sk_common.skc_net.net), ifindex);
}

#endif /* TCPINSPECT_SKB_BPF_H */
