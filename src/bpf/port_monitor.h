/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What port-monitor's programs and user space both know. */
#ifndef TCPINSPECT_PORT_MONITOR_H
#define TCPINSPECT_PORT_MONITOR_H

#include "packet.h"

#define PAYLOAD_CAPTURE_MAX 256
#define TCP_OPTIONS_MAX	    40

/* One packet that matched. Numbers in host order; addresses, MACs and options as on the wire. */
struct packet_event {
	__u64 ts_ns;	 /* CLOCK_MONOTONIC; in a replay the time from the file */
	__u32 interface; /* position among the interfaces that are watched */
	__u32 seq;
	__u32 ack;
	__u32 payload_offset; /* bytes from the start of the frame */
	__u32 payload_len;    /* bytes the packet carries */
	__u32 ip_header_len;  /* bytes from the IP header to the TCP header */
	__u32 ip_len;	 /* bytes of the IP packet by its own length field; 0: it doesn't say */
	__u16 ip_id;	 /* IPv4 only */
	__u16 ethertype; /* innermost */
	__u16 vlan[2];	 /* ids, outermost first */
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
	__u8 options_len; /* bytes in options: those that are in the frame */
	__u8 options[TCP_OPTIONS_MAX];
	__u8 pad[4];
	__u8 payload[]; /* as much of it as was asked for, PAYLOAD_CAPTURE_MAX at most */
};

_Static_assert(__builtin_offsetof(struct packet_event, payload) == 152, "no hidden padding");
_Static_assert(sizeof(struct packet_event) == 152, "no hidden padding");

#endif /* TCPINSPECT_PORT_MONITOR_H */
