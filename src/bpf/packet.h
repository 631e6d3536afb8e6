/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that the packet programs share with user space: verdicts, counters, filter settings. */
#ifndef TCPINSPECT_PACKET_H
#define TCPINSPECT_PACKET_H

/* The most bytes of TCP options: the data offset has four bits, in 32-bit words. */
#define TCP_OPTIONS_MAX 40

/* The verdict of the parser. Each frame gets exactly one. */
enum verdict {
	VERDICT_TCP,
	VERDICT_NOT_IP,
	VERDICT_NOT_TCP,
	VERDICT_FRAGMENT,
	VERDICT_TRUNCATED,
	VERDICT_MALFORMED,
	VERDICT_TOO_DEEP,
	VERDICT_COUNT,
};

/*
 * Each run of a packet program has a slot to itself (run.bpf.h), so a plain add is exact. It is on
 * cache lines of its own: two CPUs that count never touch the same line.
 */
struct packet_counters {
	__u64 verdicts[VERDICT_COUNT]; /* frames, by verdict */
	__u64 matched;		       /* frames that passed the filter */
	__u64 lost;		       /* matched, but the event buffer had no room */
	__u64 suppressed;	       /* matched, but held back by --max-rate */
	__u64 untracked;	       /* matched, but found no room in a table of keys or flows */
	__u64 segments;		       /* packets of flows; each segment of a GSO packet counts */
	__u64 reserved[4];	       /* up to two cache lines */
};

/*
 * The most slots. Each CPU has one, or several where it can be preempted (run.bpf.h); user space
 * refuses to run on a host with more CPUs.
 */
#define COUNTER_SLOTS 1024

/*
 * Bytes of replayed frames that the program can reach in one test run: enough for the longest
 * header chain (two tags, IPv6, eight extension headers of 2,048 bytes, TCP) and a payload pattern
 * 65,535 bytes after it.
 */
#define REPLAY_BYTES (128 * 1024)

/* Room after these bytes, so that a header that begins within them can be read without a check. */
#define REPLAY_SLACK 64

/* Frames in one test run. */
#define REPLAY_FRAMES 1024

/* A frame of a capture file. */
struct replay_frame {
	__u64 ts_ns;
	__u32 at; /* where it begins in the bytes of the test run */
	__u32 len;
	__u32 wire_len; /* its length where it was captured */
	__u32 reserved;
};

#define PAYLOAD_PATTERN_MAX 16

/* Which parts of the filter are used. */
enum filter_part {
	FILTER_FAMILY = 1 << 0,
	FILTER_SRC_ONLY = 1 << 1,
	FILTER_SRC_NOT = 1 << 2,
	FILTER_DST_ONLY = 1 << 3,
	FILTER_DST_NOT = 1 << 4,
	FILTER_SPORT = 1 << 5,
	FILTER_DPORT = 1 << 6,
	FILTER_FLAGS = 1 << 7,
	FILTER_PAYLOAD = 1 << 8,
	FILTER_HOST_ONLY = 1 << 9,
	FILTER_HOST_NOT = 1 << 10,
	FILTER_ANY_PORT_ONLY = 1 << 11,
	FILTER_ANY_PORT_NOT = 1 << 12,
	FILTER_EXPRESSION = 1 << 13,
};

/* Set before load and then frozen, so that the verifier removes the parts that are not used. */
struct filter_config {
	enum filter_part parts; /* any of them, or-ed */
	__u8 ip_version;	/* 4 or 6 */
	__u8 flags_mask;	/* TCP flags byte: the bits that matter */
	__u8 flags_value;	/* and what they must be */
	__u8 payload_len;	/* bytes of payload_bytes in use */
	__u32 payload_offset;	/* bytes from the start of the TCP payload */
	__u8 payload_bytes[PAYLOAD_PATTERN_MAX];
};

/* A prefix in an LPM trie. The family comes first, so that ::/0 doesn't match IPv4. */
struct prefix_key {
	__u32 bits;    /* 8 for the family, plus the prefix length */
	__u8 family;   /* 4 or 6 */
	__u8 addr[16]; /* network order; IPv4 in the first four bytes */
	__u8 pad[3];
};

#endif /* TCPINSPECT_PACKET_H */
