/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The table of counts by key, which programs share with user space. */
#ifndef TCPINSPECT_COUNT_TABLE_H
#define TCPINSPECT_COUNT_TABLE_H

/* Set in `family` if all of `addr` is in use, and not only its first word. */
#define COUNT_WIDE 2

/*
 * An address or a port. In loss-trace, `addr` may have other data, and the upper bits of `family`
 * have the kind of event.
 */
struct count_key {
	__u8 family; /* 4 or 6; 0 for a port */
	__u8 pad;
	__u16 port;	/* host order; 0 for an address */
	__be32 addr[4]; /* network order; IPv4 in the first word */
};

/* Keys in one set of the table. */
#define COUNT_WAYS 8

/* A set of keys. The members of a key have the same index in each array; rank 0: no key there. */
struct count_set {
	__u32 tags[COUNT_WAYS];	     /* part of the hash, to find a key without comparing all */
	__u64 ranks[COUNT_WAYS];     /* how often the key was counted, plus `inherited` */
	__u64 inherited[COUNT_WAYS]; /* rank of the key that it replaced */
	struct count_key keys[COUNT_WAYS];
};

#endif /* TCPINSPECT_COUNT_TABLE_H */
