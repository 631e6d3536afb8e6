/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that syn-count's programs share with user space. */
#ifndef TCPINSPECT_SYN_COUNT_H
#define TCPINSPECT_SYN_COUNT_H

#include "packet.h"

/* The key that SYNs are counted by, besides the total. */
enum count_by {
	COUNT_BY_NOTHING,
	COUNT_BY_SADDR,
	COUNT_BY_DADDR,
	COUNT_BY_DPORT,
};

#define SKETCH_BITS	 12
#define SKETCH_REGISTERS (1 << SKETCH_BITS)

/*
 * HyperLogLog. The lowest SKETCH_BITS bits of a hash are the index of its register. The register
 * holds the largest number of trailing zero bits seen in the rest of the hash, plus 1.
 */
struct source_sketch {
	__u8 registers[SKETCH_REGISTERS];
};

#endif /* TCPINSPECT_SYN_COUNT_H */
