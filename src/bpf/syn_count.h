/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What syn-count's programs and user space both know. */
#ifndef TCPINSPECT_SYN_COUNT_H
#define TCPINSPECT_SYN_COUNT_H

#include "packet.h"

/* What SYNs are counted by, beside the total. */
enum count_by {
	COUNT_BY_NOTHING,
	COUNT_BY_SADDR,
	COUNT_BY_DADDR,
	COUNT_BY_DPORT,
};

struct count_key {
	__u8 family; /* 4 or 6; 0 for a port */
	__u8 pad;
	__u16 port;    /* host order; 0 for an address */
	__u8 addr[16]; /* network order; IPv4 in the first four bytes */
};

#endif /* TCPINSPECT_SYN_COUNT_H */
