/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Filters shared by all commands. A part that was not asked for is removed by the verifier. */
#ifndef TCPINSPECT_FILTER_BPF_H
#define TCPINSPECT_FILTER_BPF_H

#include "packet.h"

const volatile struct filter_config filter = {};

/* One bit a port. As constants they would be in the binary: 16 KiB of zeros for each command. */
__u64 sport_bits[1024] SEC(".bss.ports");
__u64 dport_bits[1024] SEC(".bss.ports");

struct prefixes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct prefix_key);
	__type(value, __u8);
};

/* Sized by user space; those that are not asked for are not created. */
struct prefixes src_only SEC(".maps");
struct prefixes src_not SEC(".maps");
struct prefixes dst_only SEC(".maps");
struct prefixes dst_not SEC(".maps");

static __always_inline bool has_port(const volatile __u64 *bits, __u16 port)
{
	return bits[port >> 6] & (1ULL << (port & 63));
}

static __always_inline bool ports_match(__u16 sport, __u16 dport)
{
	if ((filter.parts & FILTER_SPORT) && !has_port(sport_bits, sport))
		return false;
	if ((filter.parts & FILTER_DPORT) && !has_port(dport_bits, dport))
		return false;
	return true;
}

static __always_inline struct prefix_key host_key(__u8 version, const __be32 *addr)
{
	struct prefix_key key = { .bits = 8 + (version == 4 ? 32 : 128), .family = version };

	__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return key;
}

/* Whether the filter looks at addresses at all. */
static __always_inline bool filter_wants_addresses(void)
{
	return filter.parts & (FILTER_SRC_ONLY | FILTER_SRC_NOT | FILTER_DST_ONLY | FILTER_DST_NOT);
}

static __always_inline bool saddr_matches(__u8 version, const __be32 *saddr)
{
	if (filter.parts & (FILTER_SRC_ONLY | FILTER_SRC_NOT)) {
		struct prefix_key key = host_key(version, saddr);

		if ((filter.parts & FILTER_SRC_ONLY) && !bpf_map_lookup_elem(&src_only, &key))
			return false;
		if ((filter.parts & FILTER_SRC_NOT) && bpf_map_lookup_elem(&src_not, &key))
			return false;
	}
	return true;
}

static __always_inline bool daddr_matches(__u8 version, const __be32 *daddr)
{
	if (filter.parts & (FILTER_DST_ONLY | FILTER_DST_NOT)) {
		struct prefix_key key = host_key(version, daddr);

		if ((filter.parts & FILTER_DST_ONLY) && !bpf_map_lookup_elem(&dst_only, &key))
			return false;
		if ((filter.parts & FILTER_DST_NOT) && bpf_map_lookup_elem(&dst_not, &key))
			return false;
	}
	return true;
}

static __always_inline bool version_matches(__u8 version)
{
	return !(filter.parts & FILTER_FAMILY) || version == filter.ip_version;
}

#endif /* TCPINSPECT_FILTER_BPF_H */
