/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that loss-trace's programs share with user space. */
#ifndef TCPINSPECT_LOSS_TRACE_H
#define TCPINSPECT_LOSS_TRACE_H

#include "packet.h"
#include "count_table.h"
#include "attempt.h"

#define LOSS_NAME_LEN 16

enum loss_kind {
	LOSS_DROP,	 /* the kernel freed a segment */
	LOSS_RETRANSMIT, /* a segment was retransmitted */
	LOSS_RESET,	 /* a connection was reset, or an attempt refused */
	LOSS_KINDS,
};

enum loss_detail {
	LOSS_NO_DETAIL,
	LOSS_SYN, /* of a retransmission: which kind of segment it was */
	LOSS_SYN_ACK,
	LOSS_DATA,
	LOSS_SENT, /* of a reset: whether this host sent or received it */
	LOSS_RECEIVED,
};

/* The key that events are counted by. */
enum loss_by {
	LOSS_BY_NOTHING,
	LOSS_BY_REASON,
	LOSS_BY_PLACE,
	LOSS_BY_SADDR,
	LOSS_BY_DPORT,
	LOSS_BY_COMM,
};

/*
 * In the `family` of a count_key, the bits from this one on are the kind of event. The lower bits
 * are the IP version of the address in `addr`; or 0 for a port; or COUNT_WIDE if the first word of
 * `addr` is a reason, and the next two are a place or an inode, lower half first. With a reason,
 * `port` has the detail.
 */
enum loss_key {
	LOSS_KIND_SHIFT = 4,
};

enum loss_known {
	LOSS_KNOWN_SEGMENT = 1 << 0, /* tcp_flags, seq and len are set */
	LOSS_KNOWN_STATE = 1 << 1,   /* state is set: there is a socket */
	LOSS_OUTGOING = 1 << 2,	     /* the segment was sent by this host */
	LOSS_UNSURE = 1 << 3,	     /* it was dropped only if no socket exists for it */
};

/* Words of a bit set of reasons. The last word has our own reasons. */
#define REASON_WORDS ((REASON_END + 63) / 64)

/*
 * The most functions that a filter on reasons stands for. A drop without a reason matches it if one
 * of them dropped the segment.
 */
#define PLACES_MAX 32

/* Where the code of a kernel function is. */
struct code_range {
	__u64 start;
	__u64 end;
};

/* How many return addresses an event has, first that of the function that dropped the segment. */
#define LOSS_CALLERS 6

struct loss_event {
	__u64 ts_ns;
	__u64 place;	/* where in the kernel's code the segment was dropped; 0: no drop */
	__u64 inode;	/* of the socket's file; 0: no file, or no socket is known */
	__u8 saddr[16]; /* of the segment, in network order, IPv4 as v4-mapped */
	__u8 daddr[16];
	__u32 seq;
	__u32 len; /* bytes of payload */
	__u32 ifindex;
	__u32 netns;
	__u32 reason;	/* enum skb_drop_reason or sk_rst_reason; 0: the kernel gave none */
	__u32 segments; /* of a retransmission: how many the packet holds (GSO) */
	__u32 uid;
	__u16 sport; /* host order */
	__u16 dport;
	__u8 kind;
	__u8 detail;
	__u8 known; /* enum loss_known, or-ed */
	__u8 tcp_flags;
	__u8 state;
	__u8 ip_version;
	__u8 iface[LOSS_NAME_LEN]; /* ended by NUL; empty: no interface */
	__u8 pad[10];
	/* Return addresses, innermost first. An event without any is sent without this array. */
	__u64 callers[LOSS_CALLERS];
};

_Static_assert(sizeof(struct loss_event) == 168, "no hidden padding");

/* The most bytes of a dropped packet that are copied, from its IP header on. */
#define LOSS_BYTES 1872

/* A dropped packet, for a capture file. */
struct loss_packet {
	struct loss_event event;
	__u32 len; /* of bytes */
	__u32 pad;
	__u8 bytes[LOSS_BYTES];
};

_Static_assert(sizeof(struct loss_packet) == 2048, "no hidden padding");

/* One per CPU. Programs on a CPU can interrupt each other, so they add atomically. */
struct loss_counters {
	__u64 kinds[LOSS_KINDS]; /* events that matched, by enum loss_kind */
	__u64 lost;		 /* of these, those that found no room in the buffer */
	__u64 suppressed;	 /* of these, those that --max-rate held back */
	/* With --by: events that are counted only in `kinds`, because their key was evicted from
	 * the table, or because the table was in use by the program that this one interrupted. */
	__u64 untracked;
	__u64 in_use;
	__u64 is_busy; /* a program on this CPU uses the table or the scratch space */
};

_Static_assert(sizeof(struct loss_counters) == 64, "a cache line");

#endif /* TCPINSPECT_LOSS_TRACE_H */
