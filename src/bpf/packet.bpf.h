/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The only packet parser: finds verdict and header offsets of a frame at XDP, TC or in a replay. */
#ifndef TCPINSPECT_PACKET_BPF_H
#define TCPINSPECT_PACKET_BPF_H

#include "packet.h"
#include "inet.bpf.h"

#define ETH_HEADER_LEN	   14
#define ETHERTYPE_IPV4	   0x0800
#define ETHERTYPE_IPV6	   0x86dd
#define ETHERTYPE_VLAN	   0x8100 /* 802.1Q */
#define ETHERTYPE_QINQ	   0x88a8 /* 802.1ad */
#define ETHERTYPE_QINQ_OLD 0x9100 /* QinQ before 802.1ad */
#define VLAN_ID_MASK	   0x0fff
#define MAX_VLAN_TAGS	   2
#define MAX_EXT_HEADERS	   8
#define COMMON_EXT_HEADERS 3 /* skipped by the fast path */

#define IPPROTO_HOPOPTS	 0
#define IPPROTO_ROUTING	 43
#define IPPROTO_FRAGMENT 44
#define IPPROTO_AH	 51
#define IPPROTO_DSTOPTS	 60

/* The offset of a fragment, among flags, in IPv4 and in a fragment header of IPv6. */
#define IP_OFFSET  0x1fff
#define IP6_OFFSET 0xfff8

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* A SYN that begins a handshake, not the SYN-ACK that answers it. 64 bits: see struct packet. */
static __always_inline bool is_first_syn(__u64 flags)
{
	return (flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Wire headers, in network order. Natural alignment lets clang use wide loads. */
struct eth_header {
	__u8 dst[6];
	__u8 src[6];
	__be16 ethertype;
};

struct vlan_tag {
	__be16 tci;
	__be16 ethertype;
};

struct ipv4_header {
	__u8 version_ihl;
	__u8 tos;
	__be16 total_len;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__sum16 checksum;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6_header {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 next_header;
	__u8 hop_limit;
	__be32 saddr[4];
	__be32 daddr[4];
};

/* The first 8 bytes of any extension header that is walked. */
struct ext_header {
	__u8 next_header;
	__u8 len;	 /* reserved in a fragment header */
	__be16 fragment; /* in a fragment header: offset and flags */
	__be32 rest;
};

struct tcp_header {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 data_offset; /* upper four bits, in 32-bit words */
	__u8 flags;
	__be16 window;
	__sum16 checksum;
	__be16 urgent;
};

enum hook {
	HOOK_XDP,	/* the whole frame is linear */
	HOOK_XDP_FRAGS, /* the rest of it may be in fragments */
	HOOK_TC,	/* any part of it may be outside the linear area */
};

/* The bytes of a frame. Offsets count from its start. */
struct frame {
	void *ctx;
	void *data; /* the linear part */
	void *data_end;
	__u64 end; /* where the packet ends; bytes after it are padding */
	enum hook hook;
	bool ingress;  /* at TC: an incoming frame */
	bool headless; /* it starts after its Ethernet header: see lacks_ethernet() */
	bool is_plain; /* link_is_raw_ip and replay are ignored */
	/*
	 * Of this run of the program: see run.bpf.h. It has 64 bits so that the members before it
	 * are not copied together with it: such a copy would hide their values from the verifier.
	 */
	__u64 slot;
};

/*
 * The result of the parser. tcp_at() and read_addresses() give more, which most packets don't need.
 * All members have 64 bits: the verifier treats a partly written stack slot as used forever, and
 * would walk separately through paths that differ only there.
 */
struct packet {
	__u64 l3; /* offset of the IP header */
	__u64 l4; /* offset of the TCP header */
	__u64 ip_version;
	__u64 flags; /* the TCP flags byte */
};

/* Addresses in network order. IPv4 is in the first word, and the others are 0. */
struct addresses {
	__be32 saddr[4];
	__be32 daddr[4];
};

/* The interface has no Ethernet header: its frames start with the IP header. */
const volatile bool link_is_raw_ip = false;

/* Frames come from a file by BPF_PROG_TEST_RUN. */
const volatile bool replay = false;

/*
 * A test run takes many frames. All their bytes are in replay_bytes, and the packet that the kernel
 * passes to the program is ignored. If this is not set, a test run takes one frame.
 */
const volatile bool replay_batch = false;

struct packet_counters counters[COUNTER_SLOTS] SEC(".bss.counters") __attribute__((aligned(128)));

/*
 * The frames of a test run, and then what next_frame() has taken from there: where the current
 * frame is in replay_bytes, its time, and its length, captured and on the wire. The map exists in
 * live runs too, because the compiler loads its address before it checks `replay`.
 */
struct replay_frame replay_frames[REPLAY_FRAMES] SEC(".bss.replay");
__u32 replay_next SEC(".bss.replay");
__u32 replay_at SEC(".bss.replay");
__u64 replay_ts_ns SEC(".bss.replay");
__u32 replay_len SEC(".bss.replay");
__u32 replay_wire_len SEC(".bss.replay");
__u8 replay_bytes[REPLAY_BYTES + REPLAY_SLACK] SEC(".bss.replay");

/* In a replay: goes on to the next frame. False if there is none, which can't happen. */
static __always_inline bool next_frame(void)
{
	const struct replay_frame *frame;
	__u32 number;

	if (!replay)
		return true;
	number = replay_next;
	if (number >= REPLAY_FRAMES)
		return false;
	frame = &replay_frames[number];
	replay_next = number + 1;
	replay_at = frame->at;
	replay_ts_ns = frame->ts_ns;
	replay_len = frame->len;
	replay_wire_len = frame->wire_len;
	return true;
}

static __always_inline bool is_raw_ip(const struct frame *f)
{
	return !f->is_plain && link_is_raw_ip;
}

static __always_inline bool is_replayed(const struct frame *f)
{
	return !f->is_plain && replay;
}

static __always_inline bool is_batch(const struct frame *f)
{
	return !f->is_plain && replay_batch;
}

/* Loads the pointers to the linear part. Loading them again saves registers, which are few. */
static __always_inline void fetch_pointers(struct frame *f)
{
	if (f->hook == HOOK_TC) {
		struct __sk_buff *skb = f->ctx;

		f->data = (void *)(long)skb->data;
		f->data_end = (void *)(long)skb->data_end;
	} else {
		struct xdp_md *xdp = f->ctx;

		f->data = (void *)(long)xdp->data;
		f->data_end = (void *)(long)xdp->data_end;
	}
}

/* A frame at XDP. `end` needs no length, because each load checks the end of the packet. */
static __always_inline struct frame xdp_frame(struct xdp_md *ctx, enum hook hook, bool is_plain)
{
	struct frame f = {
		.ctx = ctx,
		.end = ~0U,
		.hook = hook,
		.is_plain = is_plain,
	};

	fetch_pointers(&f);
	if (is_replayed(&f)) {
		/* Keeps this a branch instead of a select, so that the verifier can remove it. */
		asm volatile("");
		f.end = replay_len;
	}
	return f;
}

static __always_inline struct frame tc_frame(struct __sk_buff *skb, bool ingress, bool is_plain)
{
	struct frame f = {
		.ctx = skb,
		.end = skb->len,
		.hook = HOOK_TC,
		.ingress = ingress,
		.is_plain = is_plain,
	};

	fetch_pointers(&f);
	if (is_replayed(&f)) {
		asm volatile("");
		f.end = replay_len;
	}
	return f;
}

/*
 * The part of copy_out() that only a replay needs: a subprogram, so that a program has it only
 * once.
 */
static __noinline int copy_replayed(__u64 off, __u8 *to, __u32 len)
{
	off += replay_at;
	for (__u32 i = 0; i < len; i++) {
		__u64 at = off + i;

		/* Keeps the sum whole: the verifier knows the bound only of what was compared. */
		barrier_var(at);
		if (at >= REPLAY_BYTES)
			return -1;
		to[i] = replay_bytes[at];
	}
	return 0;
}

/* Copies bytes from any part of the frame, which is slow. The packet is not changed. */
static __always_inline long copy_out(const struct frame *f, __u64 off, void *to, __u32 len)
{
	if (!replay_batch) {
		if (f->hook == HOOK_TC && !bpf_skb_load_bytes(f->ctx, off, to, len))
			return 0;
		if (f->hook == HOOK_XDP_FRAGS && !bpf_xdp_load_bytes(f->ctx, off, to, len))
			return 0;
	}
	return replay ? copy_replayed(off, to, len) : -1;
}

/*
 * The header of `len` bytes at `off`: a pointer into the packet where it is linear, else a copy
 * in `scratch`, else NULL because the packet ends before the header does.
 */
static __always_inline void *header_at(const struct frame *f, __u64 off, __u32 len, void *scratch)
{
	void *at;

	if (is_batch(f)) {
		__u64 in_bytes = replay_at + off;

		if (off + len > f->end || len > REPLAY_SLACK || in_bytes >= REPLAY_BYTES)
			return NULL;
		/* The compiler may add before it compares. The mask bounds the very value that is
		 * added. */
		barrier_var(in_bytes);
		return replay_bytes + (in_bytes & (REPLAY_BYTES - 1));
	}
	at = f->data + off;
	/* The verifier accepts only the pointer that was compared, not a second sum. */
	asm volatile("" : "+r"(at));
	if (off + len > f->end)
		return NULL;
	if (at + len <= f->data_end)
		return at;
	return copy_out(f, off, scratch, len) ? NULL : scratch;
}

/* Copies at most `max` bytes that lie between `from` and `until`; returns how many. */
static __always_inline __u32 copy_bytes(const struct frame *f, __u64 from, __u64 until, void *to,
					__u32 max)
{
	__u64 len;

	if (from >= until)
		return 0;
	len = until - from;
	if (len > max)
		len = max;
	/*
	 * The compiler may derive the bounds from the subtraction, or merge both checks into one of
	 * `len - 1`. The verifier understands neither, and before 6.8 learns nothing from `!len`.
	 */
	barrier_var(len);
	if (len > max)
		return 0;
	barrier_var(len);
	if ((__s64)len < 1)
		return 0;
	return copy_out(f, from, to, len) ? 0 : len;
}

/*
 * Set by user space before it reads the counters. From then on nothing is counted or sent, even if
 * another process holds our link and so keeps the program attached.
 */
__u32 stopped SEC(".bss.counters");

/*
 * Always 0, but the verifier does not know that. Adding it to an offset makes the verifier forget
 * the exact value, so that different paths through the headers end in the same state. Without this,
 * loading takes half a second because of chains of headers that hardly occur.
 */
__u64 opaque_zero SEC(".bss.counters");

/* No header starts beyond 14 + 2 * 4 + 40 + 8 * 2,048 bytes, so the mask changes nothing. */
static __always_inline __u64 forget_range(__u64 offset)
{
	return (offset + opaque_zero) & 0x7fff;
}

/*
 * The same for a bool, so that the verifier does not check the rest of the program for each path
 * that leads to its value.
 */
static __always_inline bool forget_why(bool answer)
{
	return (answer + opaque_zero) & 1;
}

/* The same for the end of a frame, so that it is as unknown as the length of the packet. */
static __always_inline __u64 forget_end(__u64 end)
{
	return end + opaque_zero;
}

static __always_inline bool is_vlan(__u16 ethertype)
{
	return ethertype == ETHERTYPE_VLAN || ethertype == ETHERTYPE_QINQ ||
	       ethertype == ETHERTYPE_QINQ_OLD;
}

/* Number of tags outside of the frame: at TC the kernel may have moved the outermost to the skb. */
static __always_inline __u32 tags_outside(const struct frame *f)
{
	const struct __sk_buff *skb = f->ctx;

	return f->hook == HOOK_TC && skb->vlan_present;
}

/* Parses the Ethernet header and VLAN tags: sets l3 and ip_version. VERDICT_TCP means "go on". */
static __always_inline enum verdict parse_ethernet(struct frame *f, struct packet *p)
{
	union {
		struct eth_header eth;
		struct vlan_tag tag;
	} scratch;
	__u32 tags = tags_outside(f);
	__u16 ethertype;

	if (f->headless) {
		struct __sk_buff *skb = f->ctx;

		ethertype = bpf_ntohs(skb->protocol);
		p->l3 = 0;
	} else {
		struct eth_header *eth = header_at(f, 0, sizeof(*eth), &scratch);

		if (!eth)
			return VERDICT_TRUNCATED;
		ethertype = bpf_ntohs(eth->ethertype);
		p->l3 = ETH_HEADER_LEN;
	}
	p->l3 = forget_range(p->l3);

	/* One more iteration than allowed tags: the last one only finds that there are too many. */
#pragma unroll
	for (int i = 0; i <= MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag;

		if (!is_vlan(ethertype))
			break;
		tag = header_at(f, p->l3, sizeof(*tag), &scratch);
		if (!tag)
			return VERDICT_TRUNCATED;
		if (tags++ >= MAX_VLAN_TAGS)
			return VERDICT_TOO_DEEP;
		p->l3 = forget_range(p->l3 + sizeof(*tag));
		ethertype = bpf_ntohs(tag->ethertype);
	}
	if (ethertype == ETHERTYPE_IPV4)
		p->ip_version = 4;
	else if (ethertype == ETHERTYPE_IPV6)
		p->ip_version = 6;
	else
		return VERDICT_NOT_IP;
	return VERDICT_TCP;
}

/*
 * Length of what TC ingress put back in front of a packet that came in without an Ethernet header.
 * It is 0, except on tunnels, where it can be the tunnel headers: before Linux 5.14 on most kinds,
 * later on GRE tunnels without a fixed remote end (__ipgre_rcv()).
 */
static __always_inline __u64 tunnel_headers(const struct __sk_buff *skb)
{
	return skb->len > skb->wire_len ? skb->len - skb->wire_len : 0;
}

/* Parses a frame that starts with the IP header. Its version field tells IPv4 from IPv6. */
static __always_inline enum verdict parse_raw_ip(struct frame *f, struct packet *p)
{
	__u8 scratch, *first;

	if (f->hook == HOOK_TC && f->ingress)
		p->l3 = forget_range(tunnel_headers(f->ctx));
	first = header_at(f, p->l3, sizeof(*first), &scratch);

	if (!first)
		return VERDICT_TRUNCATED;
	p->ip_version = *first >> 4;
	return p->ip_version == 4 || p->ip_version == 6 ? VERDICT_TCP : VERDICT_NOT_IP;
}

static __always_inline enum verdict parse_ipv4(struct frame *f, struct packet *p)
{
	struct ipv4_header scratch;
	struct ipv4_header *ip = header_at(f, p->l3, sizeof(*ip), &scratch);
	__u32 header_len, total_len;

	if (!ip)
		return VERDICT_TRUNCATED;
	header_len = (ip->version_ihl & 0x0f) * 4;
	total_len = bpf_ntohs(ip->total_len);
	if (ip->version_ihl >> 4 != 4 || header_len < sizeof(*ip) ||
	    (total_len && total_len < header_len))
		return VERDICT_MALFORMED;
	if (ip->protocol != IPPROTO_TCP)
		return VERDICT_NOT_TCP;
	if (ip->fragment & bpf_htons(IP_OFFSET))
		return VERDICT_FRAGMENT;
	if (total_len && p->l3 + total_len < f->end)
		f->end = forget_end(p->l3 + total_len);
	p->l4 = p->l3 + header_len;
	return VERDICT_TCP;
}

/*
 * Whether a next header is an extension header that the parser skips. It is a bit set, because
 * after comparisons the verifier would know the value, and check the rest for each value
 * separately.
 */
static __always_inline bool is_ext_header(__u8 next)
{
	const __u64 walked = 1ULL << IPPROTO_HOPOPTS | 1ULL << IPPROTO_ROUTING |
			     1ULL << IPPROTO_FRAGMENT | 1ULL << IPPROTO_AH |
			     1ULL << IPPROTO_DSTOPTS;

	return next < 64 && (walked >> next & 1);
}

static __always_inline __u32 is_fragment(__u8 next)
{
	return 1ULL << IPPROTO_FRAGMENT >> next & 1;
}

/* The length without a branch, so that the verifier has one path to follow. */
static __always_inline __u32 ext_header_len(__u8 next, const struct ext_header *ext)
{
	__u32 is_ah = 1ULL << IPPROTO_AH >> next & 1;
	/* A fragment header has no length. */
	__u32 len = ext->len & (is_fragment(next) - 1);

	/* RFC 8200: units of 8 bytes, minus 1; RFC 4302: units of 4 bytes, minus 2. */
	return (len + 1 + is_ah) << (3 - is_ah);
}

/*
 * The walk over extension headers is unrolled. The compiler may lay out a loop so that its end
 * falls through to its beginning, which the verifier rejects as a back-edge before Linux 6.8.
 */
static __always_inline enum verdict parse_ipv6(struct frame *f, struct packet *p)
{
	union {
		struct ipv6_header ip;
		struct ext_header ext;
	} scratch;
	struct ipv6_header *ip = header_at(f, p->l3, sizeof(*ip), &scratch);
	__u16 payload_len;
	__u8 next;

	if (!ip)
		return VERDICT_TRUNCATED;
	if ((ip->version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
		return VERDICT_MALFORMED;
	next = ip->next_header;
	payload_len = bpf_ntohs(ip->payload_len);
	p->l4 = p->l3 + sizeof(*ip);
	if (payload_len && p->l4 + payload_len < f->end)
		f->end = forget_end(p->l4 + payload_len);

#pragma unroll
	for (int i = 0; i <= MAX_EXT_HEADERS; i++) {
		struct ext_header *ext;

		if (!is_ext_header(next))
			break;
		ext = header_at(f, p->l4, sizeof(*ext), &scratch);
		if (!ext)
			return VERDICT_TRUNCATED;
		if (i == MAX_EXT_HEADERS)
			return VERDICT_TOO_DEEP;
		if (ext->fragment & bpf_htons(IP6_OFFSET) & -is_fragment(next))
			return ext->next_header == IPPROTO_TCP ? VERDICT_FRAGMENT : VERDICT_NOT_TCP;
		p->l4 = forget_range(p->l4 + ext_header_len(next, ext));
		next = ext->next_header;
	}
	return next == IPPROTO_TCP ? VERDICT_TCP : VERDICT_NOT_TCP;
}

static __always_inline enum verdict parse_tcp(struct frame *f, struct packet *p)
{
	struct tcp_header scratch;
	struct tcp_header *tcp = header_at(f, p->l4, sizeof(*tcp), &scratch);

	if (!tcp)
		return VERDICT_TRUNCATED;
	if (tcp->data_offset >> 4 < sizeof(*tcp) / 4)
		return VERDICT_MALFORMED;
	p->flags = tcp->flags;
	return VERDICT_TCP;
}

/* Parses a frame header by header, the outermost first. The first rule that applies decides. */
static __always_inline enum verdict parse_headers(struct frame *f, struct packet *p)
{
	enum verdict v;

	p->l3 = 0;
	v = link_is_raw_ip ? parse_raw_ip(f, p) : parse_ethernet(f, p);
	if (v != VERDICT_TCP)
		return v;
	v = p->ip_version == 4 ? parse_ipv4(f, p) : parse_ipv6(f, p);
	if (v != VERDICT_TCP)
		return v;
	return parse_tcp(f, p);
}

/* Whether TC ingress put nothing back in front of an incoming packet: its length is unchanged. */
static __always_inline bool nothing_pushed(const struct __sk_buff *skb)
{
	return skb->len == skb->wire_len;
}

/*
 * Whether the frame starts after its Ethernet header. If generic XDP also runs, with a program that
 * accepts frames in fragments as ours does, Linux 6.9 and later copy packets (skb_pp_cow_data())
 * and lose mac_len, which TC ingress needs to put the Ethernet header back in front. Then nothing
 * is put back: the length is unchanged, and the frame does not start with the Ethernet header.
 */
static __always_inline bool lacks_ethernet(struct __sk_buff *skb)
{
	__u32 macs[3], first[3];

	if (!nothing_pushed(skb) ||
	    bpf_skb_load_bytes_relative(skb, 0, macs, sizeof(macs), BPF_HDR_START_MAC) ||
	    bpf_skb_load_bytes(skb, 0, first, sizeof(first)))
		return false;
	return macs[0] != first[0] || macs[1] != first[1] || macs[2] != first[2];
}

/*
 * parse_headers() as subprograms, so that rare frames do not slow down the others; one per hook,
 * because hooks differ in their helpers. The packet pointers are loaded again: what the verifier
 * knows of the old ones differs between the paths that lead here, and it would check each path
 * separately.
 */
static __noinline int parse_headers_xdp(struct frame *f, struct packet *p)
{
	struct frame frame = xdp_frame(f->ctx, HOOK_XDP, false);
	enum verdict v = parse_headers(&frame, p);

	f->end = frame.end;
	f->headless = frame.headless;
	return v;
}

static __noinline int parse_headers_xdp_frags(struct frame *f, struct packet *p)
{
	struct frame frame = xdp_frame(f->ctx, HOOK_XDP_FRAGS, false);
	enum verdict v = parse_headers(&frame, p);

	f->end = frame.end;
	f->headless = frame.headless;
	return v;
}

static __noinline int parse_headers_tc(struct frame *f, struct packet *p)
{
	struct frame frame = tc_frame(f->ctx, f->ingress, false);
	enum verdict v;

	if (!link_is_raw_ip && !replay && f->ingress)
		/* Unknown to the verifier, which would otherwise check the rest twice. */
		frame.headless = forget_range(lacks_ethernet(f->ctx)) & 1;
	v = parse_headers(&frame, p);
	f->end = frame.end;
	f->headless = frame.headless;
	return v;
}

/*
 * Skips one or two VLAN tags like parse_ethernet(). (port-monitor's fill_ethernet() walks over them
 * too.) False: leave the frame to parse_headers().
 */
static __always_inline bool skip_tags(const struct frame *f, struct packet *p, __be16 *ethertype)
{
	__u32 tags = tags_outside(f);

#pragma unroll
	for (int i = 0; i < MAX_VLAN_TAGS; i++) {
		struct vlan_tag *tag = f->data + p->l3;

		if (i && !is_vlan(bpf_ntohs(*ethertype)))
			break;
		if ((void *)(tag + 1) > f->data_end || tags++ >= MAX_VLAN_TAGS)
			return false;
		p->l3 += sizeof(*tag);
		*ethertype = tag->ethertype;
	}
	/* Always less than 32. The verifier need not check the rest for each number of tags. */
	p->l3 = (p->l3 + opaque_zero) & 31;
	return !is_vlan(bpf_ntohs(*ethertype));
}

/*
 * Skips the first few extension headers like parse_ipv6(). False: leave the frame to
 * parse_headers().
 */
static __always_inline bool skip_ext_headers(const struct frame *f, struct packet *p, __u8 *next)
{
#pragma unroll
	for (int i = 0; i < COMMON_EXT_HEADERS; i++) {
		struct ext_header *ext = f->data + p->l4;

		if (i && !is_ext_header(*next))
			break;
		if ((void *)(ext + 1) > f->data_end || *next == IPPROTO_FRAGMENT)
			return false;
		p->l4 = (p->l4 + ext_header_len(*next, ext) + opaque_zero) & 0x1fff;
		*next = ext->next_header;
	}
	return *next == IPPROTO_TCP;
}

/*
 * The fast path for nearly all traffic: linear frames without fragments or many extension headers,
 * with or without tags. It has the same result as parse_headers(), or none in case of doubt. It
 * uses no call and no loop, so that no register is spilled.
 */
static __always_inline bool parse_common(struct frame *f, struct packet *p, enum verdict *v)
{
	struct eth_header *eth = f->data;
	struct tcp_header *tcp;
	__be16 ethertype;
	__u32 len;

	if (is_raw_ip(f) || (void *)(eth + 1) > f->data_end)
		return false;
	/* The bytes of a frame in a batch are not those of the packet. */
	if (is_batch(f))
		return false;
	/* User space has padded a short frame for the test run: the padding is not part of it. */
	if (is_replayed(f) && f->data + replay_len < f->data_end)
		return false;
	if (f->hook == HOOK_TC && f->ingress && nothing_pushed(f->ctx))
		return false;
	p->l3 = sizeof(*eth);
	ethertype = eth->ethertype;
	if (is_vlan(bpf_ntohs(ethertype)) && !skip_tags(f, p, &ethertype))
		return false;
	if (ethertype == bpf_htons(ETHERTYPE_IPV4)) {
		struct ipv4_header *ip = f->data + p->l3;

		if ((void *)(ip + 1) > f->data_end)
			return false;
		p->l4 = p->l3 + sizeof(*ip);
		if (ip->version_ihl != 0x45) {
			/* With options, or malformed. */
			if (ip->version_ihl < 0x45 || ip->version_ihl > 0x4f)
				return false;
			p->l4 = p->l3 + (ip->version_ihl & 0x0f) * 4;
		}
		len = bpf_ntohs(ip->total_len);
		if (p->l3 + len < p->l4)
			return false;
		if (ip->protocol != IPPROTO_TCP) {
			*v = VERDICT_NOT_TCP;
			return true;
		}
		if (ip->fragment & bpf_htons(IP_OFFSET))
			return false;
		p->ip_version = 4;
	} else if (ethertype == bpf_htons(ETHERTYPE_IPV6)) {
		struct ipv6_header *ip = f->data + p->l3;
		__u8 next;

		if ((void *)(ip + 1) > f->data_end ||
		    (ip->version_class_flow & bpf_htonl(0xf0000000)) != bpf_htonl(0x60000000))
			return false;
		p->l4 = p->l3 + sizeof(*ip);
		len = bpf_ntohs(ip->payload_len) + sizeof(*ip);
		next = ip->next_header;
		if (is_ext_header(next)) {
			if (!skip_ext_headers(f, p, &next))
				return false;
		} else if (next != IPPROTO_TCP) {
			*v = VERDICT_NOT_TCP;
			return true;
		}
		p->ip_version = 6;
	} else {
		*v = VERDICT_NOT_IP;
		return true;
	}
	tcp = f->data + p->l4;
	if (p->l4 + sizeof(*tcp) > p->l3 + len)
		return false;
	if ((void *)(tcp + 1) > f->data_end || tcp->data_offset >> 4 < sizeof(*tcp) / 4)
		return false;
	p->flags = tcp->flags;
	if (p->l3 + len < f->end)
		f->end = p->l3 + len;
	*v = VERDICT_TCP;
	return true;
}

/* Parses a frame and returns its verdict. */
static __always_inline enum verdict parse_packet(struct frame *f, struct packet *p)
{
	struct packet found;
	struct frame whole;
	enum verdict v;

	/* Otherwise the compiler may load undefined members early, which the verifier tracks. */
	*p = (struct packet){};
	if (parse_common(f, p, &v))
		return v;
	found = (struct packet){};
	whole.ctx = f->ctx;
	whole.ingress = f->ingress;
	if (f->hook == HOOK_TC)
		v = parse_headers_tc(&whole, &found);
	else if (f->hook == HOOK_XDP_FRAGS)
		v = parse_headers_xdp_frags(&whole, &found);
	else
		v = parse_headers_xdp(&whole, &found);
	f->end = whole.end;
	f->headless = whole.headless;
	*p = found;
	/* Before Linux 5.12 the verifier knows no bounds for the result of a subprogram. */
	return v < VERDICT_COUNT ? v : VERDICT_MALFORMED;
}

/*
 * Makes the verifier forget what it knows of a packet with VERDICT_TCP, so that it walks through
 * the following code once, and not once for each path through the headers.
 */
static __always_inline void forget_packet(struct packet *p)
{
	p->l3 = forget_range(p->l3);
	p->l4 = forget_range(p->l4);
	p->ip_version = (p->ip_version + opaque_zero) & 7;
}

/*
 * The TCP header of a packet after forget_packet(). It can't really be NULL, because the parser has
 * read the header.
 */
static __always_inline struct tcp_header *tcp_at(struct frame *f, const struct packet *p,
						 struct tcp_header *scratch)
{
	fetch_pointers(f);
	return header_at(f, p->l4, sizeof(*scratch), scratch);
}

/* The offset of the TCP payload. */
static __always_inline __u64 payload_at(const struct packet *p, const struct tcp_header *tcp)
{
	return p->l4 + (tcp->data_offset >> 4) * 4;
}

/* Reads the addresses of a packet after forget_packet(). It can't really fail either. */
static __always_inline bool read_addresses(struct frame *f, const struct packet *p,
					   struct addresses *a)
{
	fetch_pointers(f);
	if (p->ip_version == 4) {
		struct ipv4_header scratch, *ip = header_at(f, p->l3, sizeof(*ip), &scratch);

		if (!ip)
			return false;
		__builtin_memset(a, 0, sizeof(*a));
		a->saddr[0] = ip->saddr;
		a->daddr[0] = ip->daddr;
	} else {
		struct ipv6_header scratch, *ip = header_at(f, p->l3, sizeof(*ip), &scratch);

		if (!ip)
			return false;
		__builtin_memcpy(a->saddr, ip->saddr, sizeof(a->saddr));
		__builtin_memcpy(a->daddr, ip->daddr, sizeof(a->daddr));
	}
	return true;
}

#endif /* TCPINSPECT_PACKET_BPF_H */
