/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that accept-trace's programs share with user space. */
#ifndef TCPINSPECT_ACCEPT_TRACE_H
#define TCPINSPECT_ACCEPT_TRACE_H

#include "packet.h"
#include "process_filter.h"
#include "attempt.h"

/* What became of an attempt. */
enum accept_fate {
	FATE_NONE, /* none yet: the event reports that the attempt has arrived */
	FATE_ACCEPTED,
	FATE_REFUSED,
	FATE_DROPPED,
	FATE_UNANSWERED,
	FATE_RESET,
	FATE_ABORTED,
	FATE_FORWARDED,
	FATE_PENDING,
	FATE_COUNT,
};

/* An attempt that has arrived, or what became of it. */
struct accept_event {
	struct attempt_key key;
	struct attempt attempt;
	__u64 ts_ns;
	__u64 cgroup_id;
	__u32 pid; /* of the process that accepted it (thread group) */
	__u32 tid;
	__u32 uid;
	enum accept_fate fate;
	__u8 comm[COMM_LEN]; /* as the process set it: any bytes, ended by NUL */
};

_Static_assert(sizeof(struct accept_event) == 200, "no hidden padding");

/* The fate that user space has found for an attempt in the table. */
struct found_fate {
	struct attempt_key key;
	__u64 last_syn_ns; /* as user space read it: if it has changed, the attempt stays */
	__u64 last_syn_ack_ns;
	enum accept_fate fate;
	__u32 reason; /* 0: keep the reason in the table */
	__u32 phase;
	__u32 pad;
};

/* How fates are reported. */
enum accept_output {
	OUTPUT_EVENTS,	  /* an event for each */
	OUTPUT_COUNTS,	  /* --by: their number by key */
	OUTPUT_HANDSHAKE, /* --histogram: the times of those that are accepted */
	OUTPUT_ACCEPT_WAIT,
};

/* The key that fates are counted by. */
enum accept_by {
	ACCEPT_BY_NOTHING,
	ACCEPT_BY_REASON,
	ACCEPT_BY_SADDR,
	ACCEPT_BY_DPORT,
	ACCEPT_BY_COMM,
};

/* Fields that --by does not choose are zero. */
struct accept_count_key {
	__u64 place;	/* where in the kernel's code a packet was dropped, if there is no reason */
	__u8 bytes[16]; /* source address; or process name; or address of the listener */
	__u32 reason;
	__u16 port; /* of the destination, or of the listener; host order */
	__u8 fate;
	__u8 kind; /* 4 or 6: the IP version of the address in `bytes`; 0: it is a name */
};

_Static_assert(sizeof(struct accept_count_key) == 32, "no hidden padding");

/* One per CPU. Programs on a CPU can interrupt each other, so they add atomically. */
struct accept_counters {
	__u64 untracked;	 /* attempts that found no room in the table: no fate is reported */
	__u64 fates[FATE_COUNT]; /* by enum accept_fate, even if not asked for */
	__u64 matched;		 /* events that were asked for */
	__u64 lost;		 /* of these, those that found no room in the buffer */
	__u64 suppressed;	 /* of these, those that --max-rate held back */
	__u64 forgotten;	 /* reports overwritten early: a repeated SYN counts as new */
	__u64 reserved[2];	 /* up to two cache lines */
};

_Static_assert(sizeof(struct accept_counters) == 128, "two cache lines");

#endif /* TCPINSPECT_ACCEPT_TRACE_H */
