/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Addresses of both families as 16 bytes, IPv4 as v4-mapped, and the order of a connection's ends.
 */
#ifndef TCPINSPECT_INET_BPF_H
#define TCPINSPECT_INET_BPF_H

#define AF_INET	    2
#define AF_INET6    10
#define IPPROTO_TCP 6

static __always_inline bool is_mapped(const __be32 *addr)
{
	return !addr[0] && !addr[1] && addr[2] == bpf_htonl(0xffff);
}

static __always_inline void set_mapped(__be32 *to, __be32 addr)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = addr;
}

/* Any order of the two ends will do, as long as both directions and all programs use the same. */
static __always_inline bool is_lower(const __be32 *a, __u16 aport, const __be32 *b, __u16 bport)
{
	for (int i = 0; i < 4; i++) {
		if (a[i] != b[i])
			return a[i] < b[i];
	}
	return aport <= bport;
}

#endif /* TCPINSPECT_INET_BPF_H */
