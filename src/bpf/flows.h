/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What the programs of flows and user space both know. */
#ifndef TCPINSPECT_FLOWS_H
#define TCPINSPECT_FLOWS_H

#include "packet.h"

#define FLOW_HISTORY_MAX 32

/* The two ends of a flow, the lower one first, so that both directions have the same key. */
struct flow_key {
	__u8 addr[2][16]; /* network order; IPv4 as v4-mapped */
	__u16 port[2];	  /* host order */
	__u16 interface;  /* position among the interfaces that are watched */
	__u8 ip_version;  /* 4 or 6 */
	__u8 pad;
};

/* What one end was last seen to be: Zeek's endpoint states, from which its conn_state follows. */
enum end_state {
	END_INACTIVE,	 /* has sent nothing, or nothing that counts */
	END_SYN_SENT,	 /* the initiator's SYN, without an answer */
	END_PARTIAL,	 /* has sent packets, and its SYN was not seen */
	END_ESTABLISHED, /* the SYNs of both ends were seen, or its peer's and its ACK */
	END_CLOSED,	 /* has sent a FIN */
	END_RESET,	 /* has sent a RST */
};

/* What is known of an end beside its state. */
enum end_known {
	END_SEEN = 1 << 0,	/* first_seq and next_seq */
	END_SYN = 1 << 1,	/* its SYN was seen: first_seq is that of the SYN */
	END_FIN = 1 << 2,	/* fin_end: it has sent a FIN */
	END_FIN_ACKED = 1 << 3, /* and its peer has acknowledged that */
	END_EDGE = 1 << 4,	/* edge: it has acknowledged something */
	END_WSCALE = 1 << 5,	/* wscale: its SYN had the option */
	END_RST = 1 << 6,	/* last_rst */
};

/* Letters of the history that an end gets only once. */
enum end_history {
	HISTORY_ACK = 1 << 0,
	HISTORY_DATA = 1 << 1,
	HISTORY_INCONSISTENT = 1 << 2,
	HISTORY_MULTI_FLAG = 1 << 3,
};

/* What one end has sent. */
struct flow_end {
	__u64 packets;	    /* as on the wire: the segments of GSO and GRO packets */
	__u64 bytes;	    /* TCP payload, retransmissions included */
	__u64 packets_told; /* those above, as of the last time that user space was told */
	__u64 bytes_told;
	__u32 first_seq; /* sequence number of its SYN, or of its first packet */
	__u32 next_seq;	 /* the highest that it has sent, plus 1 */
	__u32 fin_end;	 /* the one after its FIN */
	__u32 edge;	 /* the highest that it lets its peer send, plus 1 */
	__u32 last_rst;	 /* sequence number of its last RST */
	__u32 retransmits;
	__u32 zero_windows;
	__u8 state;   /* enum end_state */
	__u8 flags;   /* TCP flags bytes of all its packets, or-ed */
	__u8 known;   /* enum end_known, or-ed */
	__u8 history; /* enum end_history, or-ed */
	__u8 wscale;  /* shift count, at most 14 */
	__u8 pad[7];
};

/* What is known of a flow beside its ends. */
enum flow_known {
	FLOW_STARTED = 1 << 0,	/* a packet was counted: all that the first one tells is set */
	FLOW_PARTIAL = 1 << 1,	/* the first packet was not the SYN of its initiator */
	FLOW_SYN_ACK = 1 << 2,	/* syn_ack_ns */
	FLOW_ACK = 1 << 3,	/* ack_ns */
	FLOW_FINISHED = 1 << 4, /* finished_ns: both FINs are acknowledged, or it was reset */
};

/* Why user space gets a record. */
enum flow_end_reason {
	FLOW_IS_LIVE,  /* it goes on: only its numbers are told */
	FLOW_CLOSED,   /* by FINs or a RST */
	FLOW_IDLE,     /* no packet for too long */
	FLOW_REPLACED, /* by a new connection of the same ends */
	FLOW_EVICTED,  /* to make room in the table */
	FLOW_OPEN,     /* the run has ended */
};

#define FLOW_COMM_LEN 16

/* A process that holds a flow's socket. */
struct flow_owner {
	__u32 pass; /* which look at all processes has found it; 0: none has */
	__u32 pid;  /* 0 if several processes hold the socket */
	__u32 uid;  /* of the socket */
	__u8 comm[FLOW_COMM_LEN];
	__u8 end; /* whose socket it is: 0 or 1 */
	__u8 pad[3];
};

struct flow_record {
	struct flow_key key;
	__u64 start_ns; /* times are CLOCK_MONOTONIC, in a replay those of the file */
	__u64 last_ns;
	__u64 syn_ack_ns;  /* the answer to the SYN */
	__u64 ack_ns;	   /* the initiator's ACK of that */
	__u64 finished_ns; /* what comes after it are stragglers */
	struct flow_end ends[2];
	__u32 syn_retransmits; /* of the initiator */
	__u32 unexpected;      /* packets that are out of window or contradict what was seen */
	__u8 initiator;	       /* which of the ends: 0 or 1 */
	__u8 known;	       /* enum flow_known, or-ed */
	__u8 reason;	       /* enum flow_end_reason */
	__u8 history_len;
	__u8 history[FLOW_HISTORY_MAX]; /* Zeek's letters; not ended by NUL */
	struct flow_owner owner;
	__u8 pad[4];
};

/* What the sweep is to report. */
enum sweep_mode {
	SWEEP_ENDED,  /* flows that are over */
	SWEEP_LIVE,   /* these, and the numbers of all others */
	SWEEP_OLDEST, /* these, and those whose last packet is too old, to make room */
	SWEEP_ALL,    /* everything: the run has ended */
};

/* How far a run of the sweep goes. */
enum sweep_limit {
	SWEEP_STEP = 8, /* slots that it looks at before it gives up finding one to report */
};

/* Ages are sorted into four classes an octave of milliseconds: see age_class(). */
#define AGE_CLASSES 128

/* What user space and the sweep tell each other, between and during runs. */
struct sweep {
	__u64 now_ns;	 /* time of a replay */
	__u32 cursor;	 /* the next slot to look at; user space sets it to 0 */
	__u32 end;	 /* slots that were ever used; set by the sweep */
	__u32 mode;	 /* enum sweep_mode */
	__u32 evict_age; /* SWEEP_OLDEST: from this age class on */
	__u32 budget;	 /* SWEEP_OLDEST: as many at most */
	__u32 pad;
	__u64 lost; /* records for which the event buffer had no room */
	__u64 lost_packets;
	__u32 ages[AGE_CLASSES]; /* flows in the table by age, as this sweep has found them */
};

_Static_assert(sizeof(struct flow_key) == 40, "no hidden padding");
_Static_assert(sizeof(struct flow_end) == 72, "no hidden padding");
_Static_assert(sizeof(struct flow_owner) == 32, "no hidden padding");
_Static_assert(sizeof(struct flow_record) == 40 + 5 * 8 + 2 * 72 + 8 + 4 + 32 + 32 + 4,
	       "no padding");
_Static_assert(sizeof(struct sweep) == 48 + 4 * AGE_CLASSES, "no hidden padding");

#endif /* TCPINSPECT_FLOWS_H */
