/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The interpreter of filter expressions. The expression is constant data that the verifier knows.
 * So the verifier walks through the nodes as packets will, and removes the code for kinds of nodes
 * that do not occur. The loop ends because each node leads only to later ones.
 */
#ifndef TCPINSPECT_EXPR_BPF_H
#define TCPINSPECT_EXPR_BPF_H

#include "run.bpf.h"
#include "expr.h"

const volatile struct expression expression = {};

/* BTF has the types only if something refers to them. */
const enum expr_word *unused_expr_word __attribute__((unused));
const enum expr_wants *unused_expr_wants __attribute__((unused));
const enum expr_kind *unused_expr_kind __attribute__((unused));
const enum expr_base *unused_expr_base __attribute__((unused));
const enum expr_operation *unused_expr_operation __attribute__((unused));
const enum expr_vlan *unused_expr_vlan __attribute__((unused));
const enum expr_result *unused_expr_result __attribute__((unused));

/* Sets of ports, one bit each. */
__u64 expr_port_sets[EXPR_PORT_SETS][1024] SEC(".bss.expr");

/*
 * Sets of IPv4 addresses: hash tables without collisions. Multiply an address by the multiplier of
 * the set: the highest bits are the number of the only slot that may have it.
 */
__u32 expr_address_sets[EXPR_ADDRESS_SETS][1 << EXPR_SLOT_BITS] SEC(".bss.expr");

/*
 * The words of a packet, in a map because the stack is too small. It also means that the verifier
 * knows nothing of their values, and so walks each node once, however it is reached.
 */
struct expr_words {
	__u64 word[EXPR_WORDS];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct expr_words);
} expr_words SEC(".maps");

/* The packet that an expression is run on. */
struct expr_input {
	struct frame frame; /* the whole frame, with any padding after the IP packet */
	__u64 l3;
	__u64 l4;
	__u64 ip_version;
	bool swap;     /* exchange source and destination */
	__u64 scratch; /* key of its words in their map */
};

static __always_inline __u64 frame_len(const struct frame *f)
{
	const struct __sk_buff *skb = f->ctx;

	if (replay)
		return replay_wire_len;
	if (f->hook == HOOK_XDP)
		return f->data_end - f->data;
	if (f->hook == HOOK_XDP_FRAGS)
		return bpf_xdp_get_buff_len(f->ctx);
	return skb->len + (f->headless ? ETH_HEADER_LEN : 0) +
	       (skb->vlan_present ? sizeof(struct vlan_tag) : 0);
}

static __always_inline __u64 vlan_word(__u16 tci)
{
	return EXPR_VLAN_PRESENT | (tci & VLAN_ID_MASK);
}

static __always_inline bool read_tags(struct expr_input *in, __u64 *words)
{
	struct frame *f = &in->frame;
	__u64 at = f->headless ? 0 : ETH_HEADER_LEN;
	struct vlan_tag scratch, *tag;

	words[EXPR_VLAN_OUTER] = 0;
	words[EXPR_VLAN_INNER] = 0;
	if (link_is_raw_ip)
		return true;
	if (at < in->l3) {
		tag = header_at(f, at, sizeof(*tag), &scratch);
		if (!tag)
			return false;
		words[EXPR_VLAN_OUTER] = vlan_word(bpf_ntohs(tag->tci));
		at += sizeof(*tag);
	}
	if (at < in->l3) {
		tag = header_at(f, at, sizeof(*tag), &scratch);
		if (!tag)
			return false;
		words[EXPR_VLAN_INNER] = vlan_word(bpf_ntohs(tag->tci));
	}
	if (tags_outside(f)) {
		const struct __sk_buff *skb = f->ctx;

		words[EXPR_VLAN_INNER] = words[EXPR_VLAN_OUTER];
		words[EXPR_VLAN_OUTER] = vlan_word(skb->vlan_tci);
	}
	return true;
}

static __always_inline bool read_ports(struct expr_input *in, __u64 *words)
{
	struct tcp_header scratch, *tcp;

	tcp = header_at(&in->frame, in->l4, sizeof(*tcp), &scratch);
	if (!tcp)
		return false;
	words[in->swap ? EXPR_DPORT : EXPR_SPORT] = bpf_ntohs(tcp->sport);
	words[in->swap ? EXPR_SPORT : EXPR_DPORT] = bpf_ntohs(tcp->dport);
	return true;
}

static __always_inline __u64 two_words(const __be32 *from)
{
	return (__u64)bpf_ntohl(from[0]) << 32 | bpf_ntohl(from[1]);
}

static __always_inline bool read_address_words(struct expr_input *in, __u64 *words)
{
	__u64 shigh = 0, slow, dhigh = 0, dlow;

	if (in->ip_version == 4) {
		struct ipv4_header scratch, *ip;

		ip = header_at(&in->frame, in->l3, sizeof(*ip), &scratch);
		if (!ip)
			return false;
		slow = bpf_ntohl(ip->saddr);
		dlow = bpf_ntohl(ip->daddr);
	} else {
		struct ipv6_header scratch, *ip;

		ip = header_at(&in->frame, in->l3, sizeof(*ip), &scratch);
		if (!ip)
			return false;
		shigh = two_words(ip->saddr);
		slow = two_words(ip->saddr + 2);
		dhigh = two_words(ip->daddr);
		dlow = two_words(ip->daddr + 2);
	}
	words[EXPR_SADDR_HIGH] = in->swap ? dhigh : shigh;
	words[EXPR_SADDR_LOW] = in->swap ? dlow : slow;
	words[EXPR_DADDR_HIGH] = in->swap ? shigh : dhigh;
	words[EXPR_DADDR_LOW] = in->swap ? slow : dlow;
	return true;
}

/* The bytes of a load, by size. */
union expr_bytes {
	__u8 one;
	__be16 two;
	__be32 four;
};

/* Loads bytes of the packet in host order. False: the packet is too short. */
static __always_inline bool load_bytes(const struct expr_input *in,
				       const volatile struct expr_node *n, __u32 added, __u64 *to)
{
	const struct frame *f = &in->frame;
	__u8 base = n->how, size = n->size;
	union expr_bytes scratch = {}, *bytes = NULL;
	__u32 from = n->operand;
	__u64 at;

	/*
	 * As in libpcap, a negative offset wraps around in 32 bits and so points back: from the TCP
	 * header into the IP header, and, if it is constant, from the IP header to what is before
	 * it.
	 */
	if (base == EXPR_FROM_TCP) {
		from += in->l4 - in->l3 + added;
		at = in->l3 + from;
	} else {
		if (base == EXPR_FROM_IP)
			from += in->l3;
		else if (link_is_raw_ip)
			return false;
		at = (__u64)from + added;
	}
	if (base == EXPR_FROM_FRAME && f->headless) {
		if (at < ETH_HEADER_LEN) {
			/* The Ethernet header is not in the frame, but right in front of it. */
			if (f->hook != HOOK_TC ||
			    bpf_skb_load_bytes_relative(f->ctx, at, &scratch, size,
							BPF_HDR_START_MAC))
				return false;
			bytes = &scratch;
		}
		at -= ETH_HEADER_LEN;
	}
	if (!bytes) {
		barrier_var(at);
		if (at < 0xffff - sizeof(scratch))
			bytes = header_at(f, at, size, &scratch);
		else if (at + size <= f->end && !copy_out(f, at, &scratch, size))
			bytes = &scratch;
	}
	if (!bytes)
		return false;
	if (size == 1)
		*to = bytes->one;
	else if (size == 2)
		*to = bpf_ntohs(bytes->two);
	else
		*to = bpf_ntohl(bytes->four);
	return true;
}

/* 32-bit arithmetic as in libpcap. False: division by zero. */
static __always_inline bool compute(__u8 operation, __u32 x, __u32 y, __u64 *to)
{
	__u32 result;

	if (operation == EXPR_ADD)
		result = x + y;
	else if (operation == EXPR_SUBTRACT)
		result = x - y;
	else if (operation == EXPR_MULTIPLY)
		result = x * y;
	else if (operation == EXPR_AND)
		result = x & y;
	else if (operation == EXPR_OR)
		result = x | y;
	else if (operation == EXPR_XOR)
		result = x ^ y;
	else if (operation == EXPR_SHIFT_LEFT)
		result = y < 32 ? x << (y & 31) : 0;
	else if (operation == EXPR_SHIFT_RIGHT)
		result = y < 32 ? x >> (y & 31) : 0;
	else if (operation == EXPR_IS_GREATER)
		result = x > y;
	else if (operation == EXPR_IS_EQUAL)
		result = x == y;
	else if (!y)
		return false;
	else if (operation == EXPR_DIVIDE)
		result = x / y;
	else
		result = x % y;
	*to = result;
	return true;
}

static __always_inline bool passes(const volatile struct expr_node *n, __u64 value)
{
	return (value & n->mask) - n->first <= n->more;
}

/* Whether the packet matches the expression. */
static __always_inline bool run_expression(struct expr_input *in)
{
	struct expr_words *found;
	__u32 key = in->scratch;
	__u64 *words, at;

	found = bpf_map_lookup_elem(&expr_words, &key);
	if (!found)
		return false;
	words = found->word;
	if ((expression.wants & EXPR_WANTS_PORTS) && !read_ports(in, words))
		return false;
	if ((expression.wants & EXPR_WANTS_ADDRESSES) && !read_address_words(in, words))
		return false;
	if ((expression.wants & EXPR_WANTS_VLAN) && !read_tags(in, words))
		return false;
	if (expression.wants & EXPR_WANTS_LEN)
		words[EXPR_LEN] = frame_len(&in->frame);
	words[EXPR_OUTBOUND] = !in->frame.ingress;

	at = in->ip_version == 4 ? expression.start_v4 : expression.start_v6;
	while (at < sizeof(expression.nodes)) {
		const volatile struct expr_node *n;
		__u64 x;
		__u8 kind;

		n = (const volatile void *)expression.nodes + at;
		kind = n->kind;
		if (kind == EXPR_EITHER) {
			x = words[n->b];
			if (passes(n, x)) {
				at = n->passes;
				continue;
			}
			x = words[n->a];
		} else if (kind == EXPR_FIELD) {
			x = words[n->a];
		} else if (kind == EXPR_PORT_SET) {
			__u64 port = words[n->a] & 0xffff;

			x = expr_port_sets[n->b][port >> 6] >> (port & 63);
		} else if (kind == EXPR_ADDRESS_SET) {
			__u32 address = words[n->a];
			__u32 slot = address * n->operand >> (32 - EXPR_SLOT_BITS);

			x = expr_address_sets[n->b][slot] == address;
		} else {
			__u32 y = n->operand;

			if (n->b != EXPR_NONE)
				y = words[n->b];
			if (kind == EXPR_LOAD) {
				if (!load_bytes(in, n, n->b == EXPR_NONE ? 0 : y, &x))
					return false;
			} else if (!compute(n->how, words[n->a], y, &x)) {
				return false;
			}
			words[n->to] = x;
		}
		at = passes(n, x) ? n->passes : n->fails;
	}
	return at == EXPR_ACCEPT;
}

static __always_inline int run_at_xdp(struct xdp_md *ctx, enum hook hook, __u64 l3, __u64 l4,
				      __u64 ip_version, __u32 scratch)
{
	struct expr_input in = {
		.frame = xdp_frame(ctx, hook, false),
		.l3 = l3,
		.l4 = l4,
		.ip_version = ip_version,
		.scratch = scratch,
	};

	in.frame.ingress = true;
	return run_expression(&in);
}

/* One subprogram per hook, because hooks differ in their helpers. */
static __noinline int expression_xdp(struct xdp_md *ctx, __u64 l3, __u64 l4, __u64 ip_version,
				     __u32 scratch)
{
	return run_at_xdp(ctx, HOOK_XDP, l3, l4, ip_version, scratch);
}

static __noinline int expression_xdp_frags(struct xdp_md *ctx, __u64 l3, __u64 l4, __u64 ip_version,
					   __u32 scratch)
{
	return run_at_xdp(ctx, HOOK_XDP_FRAGS, l3, l4, ip_version, scratch);
}

#define EXPR_INGRESS  1
#define EXPR_HEADLESS 2
#define EXPR_SWAP     4
/* The bits above these are the key of the words in their map. */
#define EXPR_SCRATCH_SHIFT 3

static __noinline int expression_tc(struct __sk_buff *skb, __u64 l3, __u64 l4, __u64 ip_version,
				    __u32 how)
{
	struct expr_input in = {
		.frame = tc_frame(skb, how & EXPR_INGRESS, false),
		.l3 = l3,
		.l4 = l4,
		.ip_version = ip_version,
		.swap = how & EXPR_SWAP,
		.scratch = how >> EXPR_SCRATCH_SHIFT,
	};

	in.frame.headless = how & EXPR_HEADLESS;
	return run_expression(&in);
}

/* Whether a packet matches: its verdict is VERDICT_TCP, and forget_packet() was called on it. */
static __always_inline bool expression_matches(const struct frame *f, const struct packet *p,
					       bool swap)
{
	__u32 scratch = scratch_key(f->slot);
	__u32 how = (f->ingress ? EXPR_INGRESS : 0) | (f->headless ? EXPR_HEADLESS : 0) |
		    (swap ? EXPR_SWAP : 0) | scratch << EXPR_SCRATCH_SHIFT;

	if (f->hook == HOOK_TC)
		return expression_tc(f->ctx, p->l3, p->l4, p->ip_version, how);
	if (f->hook == HOOK_XDP_FRAGS)
		return expression_xdp_frags(f->ctx, p->l3, p->l4, p->ip_version, scratch);
	return expression_xdp(f->ctx, p->l3, p->l4, p->ip_version, scratch);
}

#endif /* TCPINSPECT_EXPR_BPF_H */
