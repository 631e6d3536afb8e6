/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that the programs of flows share with user space. */
#ifndef TCPINSPECT_FLOWS_H
#define TCPINSPECT_FLOWS_H

#include "packet.h"
#include "process_filter.h"

#define FLOW_HISTORY_MAX 32

/* With --names: how many of the first bytes that an initiator sends are copied, and how often. */
#define NAME_BYTES  4096
#define NAME_CHUNKS 32

/* A flow's key. The lower end (is_lower()) comes first, so both directions have the same key. */
struct flow_key {
	__u8 addr[2][16]; /* network order; IPv4 as v4-mapped */
	__u16 port[2];	  /* host order */
	__u16 interface;  /* index among the watched interfaces */
	__u16 vlan[2];	  /* VLAN ids, outermost first; 0: no tag, or a priority tag */
	__u8 ip_version;  /* 4 or 6 */
	__u8 pad[5];
};

/* State of one end: Zeek's endpoint states, from which its conn_state is derived. */
enum end_state {
	END_INACTIVE,	 /* has sent nothing, or nothing that counts */
	END_SYN_SENT,	 /* initiator: its SYN has no answer yet */
	END_PARTIAL,	 /* has sent packets, but its SYN was not seen */
	END_ESTABLISHED, /* both SYNs were seen, or the peer's SYN and this end's ACK */
	END_CLOSED,	 /* has sent a FIN */
	END_RESET,	 /* has sent a RST */
};

/* Flags of an end. */
enum end_known {
	END_SEEN = 1 << 0,	/* first_seq and next_seq are set */
	END_SYN = 1 << 1,	/* its SYN was seen: first_seq is that of the SYN */
	END_FIN = 1 << 2,	/* it has sent a FIN: fin_end is set */
	END_FIN_ACKED = 1 << 3, /* its peer has acknowledged the FIN */
	END_EDGE = 1 << 4,	/* edge and max_window are set: both SYNs were seen */
	END_WSCALE = 1 << 5,	/* its SYN had the window scale option: wscale is set */
	END_RST = 1 << 6,	/* last_rst is set */
	END_ACKED = 1 << 7,	/* it has sent an ACK: acked is set */
};

/* Which of the letters that an end gets only once are in the history. */
enum end_history {
	HISTORY_ACK = 1 << 0,
	HISTORY_DATA = 1 << 1,
	HISTORY_INCONSISTENT = 1 << 2,
	HISTORY_MULTI_FLAG = 1 << 3,
};

/* Counts and state of what one end has sent. */
struct flow_end {
	__u64 packets;		/* as on the wire: each segment of a GSO or GRO packet counts */
	__u64 bytes;		/* TCP payload, retransmissions included */
	__u64 packets_reported; /* packets at the last report to user space */
	__u64 bytes_reported;
	__u32 first_seq;   /* sequence number of its SYN, or of its first packet */
	__u32 next_seq;	   /* the highest sequence number that it has sent, plus 1 */
	__u32 fin_end;	   /* the sequence number after its FIN */
	__u32 edge;	   /* the right edge of its window: the end of what its peer may send */
	__u32 last_rst;	   /* sequence number of its last RST */
	__u32 acked;	   /* the highest acknowledgement number that it has sent */
	__u32 max_window;  /* the largest window that it has offered */
	__u32 retransmits; /* segments */
	__u32 zero_windows;
	__u8 state;   /* enum end_state */
	__u8 flags;   /* TCP flags bytes of all its packets, or-ed */
	__u8 known;   /* enum end_known, or-ed */
	__u8 history; /* enum end_history, or-ed */
	__u8 wscale;  /* shift count, at most 14 */
	__u8 pad[7];
};

/*
 * A SYN that does not fit the connection: its host may have restarted, or it may be forged. The
 * peer's answer shows which (RFC 9293, 3.10.7.4).
 */
struct other_syn {
	__u64 first_ns;
	__u32 seq;
	__u32 bytes;
	__u32 packets; /* 0: there is none */
	__u8 from;     /* 0 or 1 */
	__u8 has_wscale;
	__u8 wscale;
	__u8 pad;
};

/* Flags of a flow. */
enum flow_known {
	FLOW_STARTED = 1 << 0,	/* the first packet was counted */
	FLOW_PARTIAL = 1 << 1,	/* the first packet was not the SYN of its initiator */
	FLOW_SYN_ACK = 1 << 2,	/* syn_ack_ns is set */
	FLOW_ACK = 1 << 3,	/* ack_ns is set */
	FLOW_FINISHED = 1 << 4, /* finished_ns is set: both FINs were acknowledged, or a RST */
	FLOW_REPORTED = 1 << 5, /* reported as unanswered; the counts were reset then */
	FLOW_SEEDED = 1 << 6,	/* its socket existed before the programs were attached */
};

/* Why user space gets a record. */
enum flow_end_reason {
	FLOW_IS_LIVE,	 /* it goes on: an interim report */
	FLOW_CLOSED,	 /* by FINs or a RST */
	FLOW_IDLE,	 /* no packet for too long */
	FLOW_REPLACED,	 /* by a new connection of the same ends */
	FLOW_EVICTED,	 /* to make room in the table */
	FLOW_OPEN,	 /* the run has ended */
	FLOW_UNANSWERED, /* it goes on: its SYN has no answer yet; the counts are reset */
};

/*
 * How the process of a flow was found. The one that has connected the socket replaces the others.
 * Of those, the one that was found first stays.
 */
enum owner_from {
	OWNER_UNKNOWN,
	OWNER_BY_FILE,	/* it has the socket open */
	OWNER_BY_CLOSE, /* it has closed the socket; others may have had it open too */
	OWNER_BY_CALL,	/* it has connected the socket */
};

/* The process that has a flow's socket. */
struct flow_owner {
	__u64 cgroup_id;
	__u32 pid;
	__u32 uid; /* of the socket */
	__u8 comm[COMM_LEN];
	__u8 end;  /* whose socket it is: 0 or 1 */
	__u8 from; /* enum owner_from */
	__u8 pad[6];
};

/*
 * The kernel's figures for a connection, from its socket. Most members are as in struct tcp_info,
 * which ss(8) shows.
 */
struct flow_numbers {
	__u8 end;      /* whose socket it is: 0 or 1 */
	__u8 is_known; /* the rest is set */
	__u8 pad[2];
	__u32 srtt_us; /* smoothed round-trip time */
	__u32 rttvar_us;
	__u32 min_rtt_us; /* ~0 if none was measured */
	__u32 retransmits;
	__u32 lost;	  /* segments that are thought to be lost at the moment */
	__u32 lost_total; /* segments that were ever thought to be lost */
	__u32 reordering;
	__u32 cwnd; /* in segments */
	__u32 mss;
	__u32 pmtu;
	__u32 unread; /* bytes that the process has not read yet */
	__u32 unsent; /* bytes that were not sent yet */
	__u32 pad_end;
};

struct flow_record {
	/* Read for each packet: with lock and state of the slot, four cache lines. */
	struct flow_key key;
	__u8 initiator; /* which end: 0 or 1 */
	__u8 known;	/* enum flow_known, or-ed */
	__u8 reason;	/* enum flow_end_reason */
	__u8 history_len;
	__u32 unexpected; /* packets outside of the window or otherwise impossible */
	__u64 last_ns;	  /* all times are CLOCK_MONOTONIC, or those of the file in a replay */
	struct flow_end ends[2];
	struct other_syn other_syn;

	__u64 start_ns;
	__u64 syn_ack_ns;		/* when the SYN-ACK came */
	__u64 ack_ns;			/* when the initiator's ACK of the SYN-ACK came */
	__u64 finished_ns;		/* when it was finished; late packets may still come */
	__u8 history[FLOW_HISTORY_MAX]; /* Zeek's letters, no NUL at the end */
	__u32 syn_retransmits;		/* of the initiator */
	/* Replay only: data that an end has sent beyond the window, perhaps after a gap. */
	__u32 gap_first;
	__u32 gap_end;
	__u8 gap_from;	  /* the end that has sent it, plus 1; 0: there is none */
	__u8 name_chunks; /* sent, of at most NAME_CHUNKS */
	__u8 pad[2];
	struct flow_owner owner;
	struct flow_numbers numbers;
	__u64 bytes_before[2]; /* FLOW_SEEDED: payload that each end has sent before */
};

/* Some of the first bytes that the initiator of a flow has sent. They follow this struct. */
struct name_chunk {
	struct flow_key key;
	__u64 start_ns; /* of the flow's record */
	__u16 at;	/* offset of the bytes in what the initiator has sent */
	__u16 len;
	__u32 pad;
};

/* Which flows a sweep reports. */
enum sweep_mode {
	SWEEP_ENDED, /* flows that are over */
	SWEEP_LIVE,  /* these, and interim reports of all others */
	SWEEP_EVICT, /* these, and the least valuable others, to make room */
	SWEEP_ALL,   /* all flows: the run has ended */
};

/* How valuable a flow is when the table is nearly full: the first kind is evicted last. */
enum flow_worth {
	WORTH_ESTABLISHED, /* both ends have sent packets */
	WORTH_HALF_OPEN,   /* no handshake, or only one end was seen: it may be forged */
	WORTH_FINISHED,	   /* only late packets can follow */
	WORTH_KINDS,
};

/* Ages in milliseconds are sorted into four classes per power of two: see age_class(). */
#define AGE_CLASSES 128

/* Flows are ranked by worth, then by age: those with the highest rank are evicted first. */
#define FLOW_RANKS (3 * AGE_CLASSES)

/* Limits of the sweep. */
enum sweep_limit {
	SWEEP_STEP = 8, /* the most slots that one run checks to find one to report */
	/* The first rank that is evicted: established flows that have had no packet for a minute.
	 * It is the age class that begins at 4 << 14 ms. */
	FLOW_RANK_OLD = 4 + 4 * 14,
};

/* The parameters and results of the sweep, shared with user space. */
struct sweep {
	__u64 now_ns;	  /* the current time */
	__u32 cursor;	  /* the next slot to look at; user space sets it to 0 */
	__u32 end;	  /* slots that were ever used; set by the sweep */
	__u32 mode;	  /* enum sweep_mode */
	__u32 evict_rank; /* SWEEP_EVICT: evict flows from this rank on */
	__u32 budget;	  /* SWEEP_EVICT: how many more flows to evict at most */
	__u32 pad;
	__u64 lost; /* records for which the event buffer had no room */
	__u64 lost_packets;
	__u64 unanswered; /* records of flows that go on, each of which counts as one more flow */
	__u64 unwanted;	  /* flows that the filter on processes has rejected */
	__u64 unwanted_packets;
	__u32 ranks[FLOW_RANKS]; /* flows in the table by rank, as this sweep has found them */
};

_Static_assert(FLOW_RANKS == WORTH_KINDS * AGE_CLASSES, "each kind has all ages");
_Static_assert(sizeof(struct flow_key) == 48, "no hidden padding");
_Static_assert(sizeof(struct flow_end) == 80, "no hidden padding");
_Static_assert(sizeof(struct flow_owner) == 40, "no hidden padding");
_Static_assert(sizeof(struct flow_numbers) == 56, "no hidden padding");
_Static_assert(sizeof(struct flow_record) ==
		       48 + 5 * 8 + 2 * 80 + 8 + 4 + 32 + 40 + 56 + 16 + 24 + 12,
	       "no padding");
_Static_assert(sizeof(struct name_chunk) == 48 + 8 + 8, "no hidden padding");
_Static_assert(sizeof(struct sweep) == 72 + 4 * FLOW_RANKS, "no hidden padding");

#endif /* TCPINSPECT_FLOWS_H */
