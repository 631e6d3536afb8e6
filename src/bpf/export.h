/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Counts of tracing programs for exporter, which needs no events. */
#ifndef TCPINSPECT_EXPORT_H
#define TCPINSPECT_EXPORT_H

/* Events that are counted together. */
struct export_key {
	__u64 place;  /* where in the kernel's code a segment was dropped, if the reason is unknown;
		       * else 0
		       */
	__u32 reason; /* or an errno; 0: none */
	__u8 kind;    /* of the program's events, or enum export_kind */
	__u8 detail;
	__u16 pad;
};

_Static_assert(sizeof(struct export_key) == 16, "no hidden padding");

/* Counts of things other than events. */
enum export_kind {
	EXPORT_TX_BYTES = 0xf0, /* of closed connections */
	EXPORT_RX_BYTES,
	EXPORT_REST = 0xff, /* events whose key found no room in the table */
};

enum export_time_of {
	EXPORT_HANDSHAKE,   /* from the SYN to the final ACK */
	EXPORT_ACCEPT_WAIT, /* from the final ACK to accept(2) */
	EXPORT_CONNECT,	    /* from connect(2) to establishment */
	EXPORT_DURATION,    /* from establishment to the end */
	EXPORT_RTT,	    /* smoothed round-trip time at the end of a connection */
	EXPORT_TIMES,
};

/*
 * Bucket i has the times up to 2^i microseconds that are not in an earlier bucket. The last one has
 * all longer times, too.
 */
#define EXPORT_BUCKETS 28

struct export_histogram {
	__u64 sum_ns;
	__u64 buckets[EXPORT_BUCKETS];
};

#endif /* TCPINSPECT_EXPORT_H */
