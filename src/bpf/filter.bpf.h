/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The filters of all commands. The verifier removes the code of parts that are not used. */
#ifndef TCPINSPECT_FILTER_BPF_H
#define TCPINSPECT_FILTER_BPF_H

#include "packet.h"
#include "inet.bpf.h"

const volatile struct filter_config filter = {};

/* One bit per port. Constants would add 32 KiB of zeros to the binary for each command. */
__u64 sport_bits[1024] SEC(".bss.ports");
__u64 dport_bits[1024] SEC(".bss.ports");
__u64 any_port_bits[1024] SEC(".bss.ports");
__u64 any_port_not_bits[1024] SEC(".bss.ports");

struct prefixes {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, struct prefix_key);
	__type(value, __u8);
};

/* User space sets the sizes, and creates only the maps that are used. */
struct prefixes src_only SEC(".maps");
struct prefixes src_not SEC(".maps");
struct prefixes dst_only SEC(".maps");
struct prefixes dst_not SEC(".maps");
struct prefixes host_only SEC(".maps");
struct prefixes host_not SEC(".maps");

#define FILTER_HOST	(FILTER_HOST_ONLY | FILTER_HOST_NOT)
#define FILTER_ANY_PORT (FILTER_ANY_PORT_ONLY | FILTER_ANY_PORT_NOT)

static __always_inline bool has_port(const volatile __u64 *bits, __u16 port)
{
	return bits[port >> 6] & (1ULL << (port & 63));
}

/* Whether either port is a wanted one, and neither is an excluded one. */
static __always_inline bool any_port_matches(__u16 sport, __u16 dport)
{
	if ((filter.parts & FILTER_ANY_PORT_ONLY) && !has_port(any_port_bits, sport) &&
	    !has_port(any_port_bits, dport))
		return false;
	return !(filter.parts & FILTER_ANY_PORT_NOT) ||
	       !(has_port(any_port_not_bits, sport) || has_port(any_port_not_bits, dport));
}

static __always_inline bool ports_match(__u16 sport, __u16 dport)
{
	if ((filter.parts & FILTER_SPORT) && !has_port(sport_bits, sport))
		return false;
	if ((filter.parts & FILTER_DPORT) && !has_port(dport_bits, dport))
		return false;
	return any_port_matches(sport, dport);
}

static __always_inline struct prefix_key host_key(__u8 version, const __be32 *addr)
{
	struct prefix_key key = { .bits = 8 + (version == 4 ? 32 : 128), .family = version };

	if (version == 4)
		__builtin_memcpy(key.addr, addr, sizeof(*addr));
	else
		__builtin_memcpy(key.addr, addr, sizeof(key.addr));
	return key;
}

/* Whether the filter looks at addresses at all. */
static __always_inline bool filter_wants_addresses(void)
{
	return filter.parts &
	       (FILTER_SRC_ONLY | FILTER_SRC_NOT | FILTER_DST_ONLY | FILTER_DST_NOT | FILTER_HOST);
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

/* Whether either address is a wanted one, and neither is an excluded one. */
static __always_inline bool host_matches(__u8 version, const __be32 *saddr, const __be32 *daddr)
{
	if (filter.parts & FILTER_HOST) {
		struct prefix_key source = host_key(version, saddr);
		struct prefix_key destination = host_key(version, daddr);

		if ((filter.parts & FILTER_HOST_ONLY) &&
		    !bpf_map_lookup_elem(&host_only, &source) &&
		    !bpf_map_lookup_elem(&host_only, &destination))
			return false;
		if ((filter.parts & FILTER_HOST_NOT) &&
		    (bpf_map_lookup_elem(&host_not, &source) ||
		     bpf_map_lookup_elem(&host_not, &destination)))
			return false;
	}
	return true;
}

static __always_inline bool version_matches(__u8 version)
{
	return !(filter.parts & FILTER_FAMILY) || version == filter.ip_version;
}

/* Addresses as in a packet: an IPv4 address is in the first word. */
static __always_inline bool addresses_match(__u8 version, const __be32 *saddr, const __be32 *daddr)
{
	return saddr_matches(version, saddr) && daddr_matches(version, daddr) &&
	       host_matches(version, saddr, daddr);
}

/* Whether the filter accepts the two ends of a connection; IPv4 addresses are v4-mapped. */
static __always_inline bool mapped_ends_match(__u8 version, const __be32 *saddr, __u16 sport,
					      const __be32 *daddr, __u16 dport)
{
	if (!version_matches(version) || !ports_match(sport, dport))
		return false;
	if (!filter_wants_addresses())
		return true;
	return addresses_match(version, unmapped(saddr, version), unmapped(daddr, version));
}

#endif /* TCPINSPECT_FILTER_BPF_H */
