/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What connect-trace's programs and user space both know. */
#ifndef TCPINSPECT_CONNECT_TRACE_H
#define TCPINSPECT_CONNECT_TRACE_H

#include "packet.h"

#define COMM_LEN 16

/* What happened to a connection. */
enum connect_kind {
	CONNECT_ATTEMPT,
	CONNECT_ESTABLISHED,
	CONNECT_FAILED,
	CONNECT_ACCEPTED,
	CONNECT_CLOSED,
};

/* Which members of a connect_event are known. */
enum connect_known {
	KNOWN_PROCESS = 1 << 0, /* pid, tid, uid, comm, cgroup_id */
	KNOWN_RET = 1 << 1,
	KNOWN_ERROR = 1 << 2,
	KNOWN_START = 1 << 3, /* latency_ns or duration_ns */
};

enum connect_direction {
	DIRECTION_UNKNOWN, /* older than the tool */
	DIRECTION_OUT,
	DIRECTION_IN,
};

enum connect_closed_by {
	CLOSED_BY_UNKNOWN,
	CLOSED_BY_LOCAL,
	CLOSED_BY_REMOTE,
	CLOSED_BY_RESET,
};

/*
 * One step in a connection's life. Ports in host order, addresses on the wire's, IPv4 as
 * v4-mapped. The source is the initiator; where that is unknown, it is this machine.
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
	__u32 ip_version;    /* 4 or 6 */
	__u8 comm[COMM_LEN]; /* as the process set it: any bytes, ended by NUL */
};

_Static_assert(sizeof(struct connect_event) == 136, "no hidden padding");

struct connect_counters {
	__u64 matched;	/* events that were asked for */
	__u64 lost;	/* of these, those that found no room in the buffer or the table */
	__u64 calling;	/* attempts not yet announced, because their call has yet to return */
	__u64 nested;	/* state changes that one program was skipped for, and another handled */
	__u64 unhooked; /* attempts that the hook on the connect function was skipped for */
};

/* Which of the filters on the process were asked for. */
enum process_filter {
	FILTER_PID = 1 << 0,
	FILTER_UID = 1 << 1,
	FILTER_COMM = 1 << 2,
};

struct comm_key {
	__u8 comm[COMM_LEN]; /* zeros after the name */
};

#endif /* TCPINSPECT_CONNECT_TRACE_H */
