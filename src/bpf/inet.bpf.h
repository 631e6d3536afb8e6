/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses as 16 bytes, IPv4 as v4-mapped, and the order of the two ends of a connection. */
#ifndef TCPINSPECT_INET_BPF_H
#define TCPINSPECT_INET_BPF_H

#define AF_INET	      2
#define AF_INET6      10
#define IPPROTO_TCP   6
#define IPPROTO_MPTCP 262

static __always_inline bool is_mapped(const __be32 *addr)
{
	return !addr[0] && !addr[1] && addr[2] == bpf_htonl(0xffff);
}

static __always_inline bool same_address(const __be32 *a, const __be32 *b)
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}

static __always_inline void set_mapped(__be32 *to, __be32 addr)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = addr;
}

/* Sets an address from a packet, where IPv4 is in the first word. */
static __always_inline void map_address(__be32 *to, const __be32 *addr, __u8 ip_version)
{
	if (ip_version == 4)
		set_mapped(to, addr[0]);
	else
		__builtin_memcpy(to, addr, 16);
}

/* The IPv4 address of a v4-mapped one. */
static __always_inline __be32 unmapped_ipv4(const __be32 *addr)
{
	return addr[3];
}

/* The address as it is in a packet. Of an IPv4 address only the first word may be read. */
static __always_inline const __be32 *unmapped(const __be32 *addr, __u8 ip_version)
{
	return ip_version == 4 ? addr + 3 : addr;
}

/* An address as two words, in network order. */
struct address_words {
	__u64 first;
	__u64 last;
};

static __always_inline __u64 join(__be32 first, __be32 last)
{
	union {
		__be32 halves[2];
		__u64 whole;
	} word = { { first, last } };

	return word.whole;
}

static __always_inline struct address_words words_of(const __be32 *addr)
{
	return (struct address_words){ join(addr[0], addr[1]), join(addr[2], addr[3]) };
}

static __always_inline struct address_words mapped_words(__be32 addr)
{
	return (struct address_words){ 0, join(bpf_htonl(0xffff), addr) };
}

/* Any order of the two ends will do, as long as both directions and all programs use the same. */
static __always_inline bool is_lower(struct address_words a, __u16 aport, struct address_words b,
				     __u16 bport)
{
	if (a.first != b.first)
		return a.first < b.first;
	if (a.last != b.last)
		return a.last < b.last;
	return aport <= bport;
}

#endif /* TCPINSPECT_INET_BPF_H */
