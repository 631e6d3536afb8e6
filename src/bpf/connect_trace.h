/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that connect-trace's programs share with user space. */
#ifndef TCPINSPECT_CONNECT_TRACE_H
#define TCPINSPECT_CONNECT_TRACE_H

#include "packet.h"
#include "process_filter.h"

/* Kinds of events of a connection. */
enum connect_kind {
	CONNECT_ATTEMPT,
	CONNECT_ESTABLISHED,
	CONNECT_FAILED,
	CONNECT_ACCEPTED,
	CONNECT_CLOSED,
	CONNECT_PENDING, /* the attempt has no fate when the run ends */
};

/* Which members of a connect_event are known. */
enum connect_known {
	KNOWN_PROCESS = 1 << 0, /* pid, uid, comm, cgroup_id, and tid unless it is 0 */
	KNOWN_RET = 1 << 1,
	KNOWN_ERROR = 1 << 2,
	KNOWN_START = 1 << 3,	 /* elapsed_ns */
	KNOWN_GIVEN_UP = 1 << 4, /* failed without an error, because the process gave up */
};

enum connect_direction {
	DIRECTION_UNKNOWN, /* established before the run */
	DIRECTION_OUT,
	DIRECTION_IN,
};

enum connect_closed_by {
	CLOSED_BY_UNKNOWN,
	CLOSED_BY_LOCAL,
	CLOSED_BY_REMOTE,
	CLOSED_BY_RESET,
};

/* In the detail of an export_key: connect_closed_by in the lowest bits, then connect_direction. */
enum connect_export {
	EXPORT_DIRECTION_SHIFT = 4,
	EXPORT_GIVEN_UP = 1 << 7, /* KNOWN_GIVEN_UP */
};

/* --histogram: what the times to connect are counted by. */
enum connect_histogram {
	CONNECT_NO_HISTOGRAM, /* events are sent instead */
	CONNECT_BY_NOTHING,
	CONNECT_BY_PROCESS,
	CONNECT_BY_DADDR,
	CONNECT_BY_DPORT,
};

/*
 * One event of a connection. Ports are in host order, addresses in network order, IPv4 as
 * v4-mapped. The source is the initiator; if that is unknown, it is this host.
 */
struct connect_event {
	__u64 ts_ns; /* CLOCK_MONOTONIC */
	__u64 cgroup_id;
	__u64 elapsed_ns; /* from attempt to fate, or from establishment to end */
	__u64 tx_bytes;	  /* payload that the peer acknowledged; closed only */
	__u64 rx_bytes;	  /* payload; closed only */
	__u32 pid;	  /* thread group */
	__u32 tid;
	__u32 uid;
	__u32 netns; /* inode number; 0: unknown */
	__s32 ret;   /* what the kernel's connect function returned */
	__s32 error; /* positive errno */
	__u8 saddr[16];
	__u8 daddr[16];
	__u16 sport; /* 0: unknown */
	__u16 dport;
	enum connect_kind kind;
	enum connect_known known; /* any of them, or-ed */
	enum connect_direction direction;
	enum connect_closed_by closed_by;
	__u32 ip_version;	/* 4 or 6 */
	__u8 comm[COMM_LEN];	/* of the thread, any bytes, ended by NUL */
	__u8 process[COMM_LEN]; /* comm of the process's first thread */
	/* Closed only, as in struct tcp_info. */
	__u32 srtt_us;	  /* smoothed round-trip time; 0: none was measured */
	__u32 min_rtt_us; /* ~0: none was measured */
	__u32 retransmits;
	__u32 pad;
};

_Static_assert(sizeof(struct connect_event) == 168, "no hidden padding");

struct connect_counters {
	__u64 matched;		 /* events that were asked for */
	__u64 lost;		 /* of these, those that found no room in the buffer or a table */
	__u64 suppressed;	 /* of these, those that --max-rate held back */
	__u64 untracked_pending; /* of `untracked`, reported attempts without a fate yet */
	__u64 untracked; /* attempts, calls and connections that found no room in the tables */
	__u64 nested;	 /* state changes that a second program handled, as the first was skipped */
	__u64 unhooked;	 /* attempts that the hook on the connect function has missed */
};

#endif /* TCPINSPECT_CONNECT_TRACE_H */
