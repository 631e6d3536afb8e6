/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Incoming connection attempts, of accept-trace and loss-trace: types shared with user space. */
#ifndef TCPINSPECT_ATTEMPT_H
#define TCPINSPECT_ATTEMPT_H

/* How far an attempt has come. */
enum accept_phase {
	ATTEMPT_NEW,	     /* a SYN has arrived */
	ATTEMPT_ANSWERED,    /* a SYN-ACK was sent */
	ATTEMPT_ESTABLISHED, /* the SYN-ACK was acknowledged: it waits to be accepted */
};

/*
 * Why an attempt failed. Below REASON_OURS it is a value of the running kernel's enum
 * skb_drop_reason; 0: unknown.
 */
enum accept_reason {
	REASON_OURS = 256,
	REASON_NO_LISTENER = REASON_OURS,
	REASON_ACCEPT_QUEUE_FULL,
	REASON_SYN_QUEUE_FULL,
	REASON_NO_ROUTE_BACK,
	REASON_NO_FINAL_ACK,
	REASON_PEER_RESET,
	REASON_LISTENER_CLOSED,
	REASON_TABLE_FULL,
	REASON_TIME_WAIT,
	REASON_NOT_UNICAST,
	REASON_END,
};

enum accept_flag {
	ATTEMPT_COOKIE = 1 << 0,
	ATTEMPT_FAST_OPEN = 1 << 1,
	ATTEMPT_MPTCP = 1 << 2,
	ATTEMPT_HAS_LISTENER = 1 << 3,	     /* lengths of its queues and uid are known */
	ATTEMPT_ACCEPT_QUEUE_FULL = 1 << 4,  /* it was full when the last SYN came */
	ATTEMPT_SYN_QUEUE_FULL = 1 << 5,     /* it was full when the last SYN came */
	ATTEMPT_ACK_DROPPED = 1 << 6,	     /* the final ACK found the accept queue full */
	ATTEMPT_HAS_PROCESS = 1 << 7,	     /* pid, tid, uid, comm and cgroup_id are known */
	ATTEMPT_REASON_FROM_KERNEL = 1 << 8, /* the kernel gave the reason; else it is inferred */
	ATTEMPT_CONTINUED = 1 << 9,	     /* it continued after a fate was reported */
	ATTEMPT_RST_DROPPED = 1 << 10,	     /* the RST that should refuse it was dropped here */
	ATTEMPT_SEEDED = 1 << 11,	     /* it had arrived before the run */
	ATTEMPT_LEFT = 1 << 12,		     /* its SYN, or a copy, went out of an interface */
};

/*
 * Identifies an attempt: the initiator's address, port and initial sequence number (ISN). These
 * stay the same when the SYN is retransmitted, and when the destination address is translated.
 *
 * A scanner may use the same three for many destinations. Then only the first of these attempts in
 * the table has the key without a destination. The others have a hash of their destination in the
 * key. Attempts that arrived before the run always have that hash. Their ISN is not known: it is 0
 * in the key.
 */
struct attempt_key {
	__u8 addr[16]; /* network order, IPv4 as v4-mapped */
	__u32 isn;
	__u16 port;
	__u16 destination; /* its hash, or 0 */
};

_Static_assert(sizeof(struct attempt_key) == 24, "no hidden padding");

/* The state of an attempt. Times are CLOCK_MONOTONIC; 0: not yet. Ports in host order. */
struct attempt {
	__u64 syn_ns;
	__u64 last_syn_ns;
	__u64 syn_ack_ns;
	__u64 last_syn_ack_ns;
	__u64 established_ns;
	__u64 place;	/* address in the kernel's code where its packet was dropped */
	__u64 listener; /* address of its struct sock; the socket may be gone: probe reads only */
	__u8 daddr[16]; /* destination of the SYN */
	__u8 laddr[16]; /* local address of the socket, after address translation */
	__u32 ifindex;
	__u32 queue_len; /* of the accept queue, when the SYN came */
	__u32 queue_max;
	__u32 syn_queue_len;
	__u32 uid; /* of the listener */
	__u32 reason;
	__u16 dport;
	__u16 lport; /* local port of the socket; 0: no socket is known */
	__u16 flags; /* enum accept_flag, or-ed */
	__u8 phase;
	__u8 ip_version; /* 4 or 6 */
	__u8 syn_retransmits;
	__u8 syn_ack_retransmits;
	__u16 expected_ack;  /* low bits of the number that acknowledges its SYN-ACK; 0: any */
	__u32 bound_ifindex; /* the interface that the socket is bound to; 0: none, or not known */
};

_Static_assert(sizeof(struct attempt) == 128, "no hidden padding");

#endif /* TCPINSPECT_ATTEMPT_H */
