/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that port-monitor's programs share with user space. */
#ifndef TCPINSPECT_PORT_MONITOR_H
#define TCPINSPECT_PORT_MONITOR_H

#include "packet.h"

/* Limits of what an event has of its packet. */
enum packet_limit {
	PAYLOAD_CAPTURE_MAX = 256, /* bytes of the payload */
};

/* One packet that matched. Numbers in host order; addresses, MACs and options as on the wire. */
struct packet_event {
	__u64 ts_ns;	 /* CLOCK_MONOTONIC; in a replay the time from the file */
	__u32 interface; /* index among the watched interfaces; in a replay, of the frame in its
			    test run */
	__u32 seq;
	__u32 ack;
	__u32 payload_offset; /* bytes from the start of the frame */
	__u32 payload_len;    /* bytes that the packet carries */
	__u32 ip_header_len;  /* bytes from the IP header to the TCP header */
	__u32 ip_len;	      /* bytes of the IP packet by its length field, which may be 0 */
	__u16 ip_id;	      /* IPv4 only */
	__u16 ethertype;      /* innermost */
	__u16 vlan[2];	      /* ids, outermost first */
	__u16 sport;
	__u16 dport;
	__u16 window;
	__u16 checksum;
	__u16 urgent;
	__u16 payload_captured; /* bytes in payload */
	__u8 saddr[16];		/* IPv4 as v4-mapped */
	__u8 daddr[16];
	__u8 src_mac[6];
	__u8 dst_mac[6];
	__u8 vlan_count;
	__u8 ip_version;  /* 4 or 6 */
	__u8 ttl;	  /* or hop limit */
	__u8 tos;	  /* or traffic class */
	__u8 data_offset; /* 32-bit words */
	__u8 tcp_flags;
	__u8 egress;	  /* 1: the packet was leaving */
	__u8 options_len; /* bytes in options that the frame has */
	__u8 options[TCP_OPTIONS_MAX];
	__u8 pad[4];
	__u8 payload[]; /* its first bytes, as many as asked for; at most PAYLOAD_CAPTURE_MAX */
};

_Static_assert(__builtin_offsetof(struct packet_event, payload) == 152, "no hidden padding");
_Static_assert(sizeof(struct packet_event) == 152, "no hidden padding");

/*
 * One packet that matched, for a capture file: the bytes of its frame instead of the fields of its
 * headers. The kernel may hold parts of a frame outside of these bytes, such as a VLAN tag: user
 * space puts them together again.
 */
struct frame_event {
	__u64 ts_ns;	  /* as in struct packet_event */
	__u32 interface;  /* as in struct packet_event */
	__u32 len;	  /* bytes of the packet as the kernel holds it */
	__u32 captured;	  /* bytes of it in `bytes`; 0 in a replay, where user space has them */
	__u16 skip;	  /* bytes at the start that are headers of a tunnel, not of the frame */
	__u8 egress;	  /* 1: the packet was leaving */
	__u8 headless;	  /* 1: the Ethernet header is missing from the packet, and is here */
	__u8 vlan_tag[4]; /* the outermost tag if the packet is without it, else 0; as on the wire
			   */
	__u8 ethernet[14];
	__u8 ip_version; /* 4 or 6 */
	__u8 pad;
	__u16 l3; /* offset of the IP header in the packet */
	__u16 l4; /* offset of the TCP header */
	__u8 bytes[];
};

_Static_assert(__builtin_offsetof(struct frame_event, bytes) == 48, "no hidden padding");
_Static_assert(sizeof(struct frame_event) == 48, "no hidden padding");

#endif /* TCPINSPECT_PORT_MONITOR_H */
