/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A TCP segment as its headers describe it. */
#ifndef TCPINSPECT_SEGMENT_BPF_H
#define TCPINSPECT_SEGMENT_BPF_H

#include "inet.bpf.h"

/* Ports, seq and ack are in host order. */
struct segment {
	__be32 saddr[4]; /* IPv4 as v4-mapped */
	__be32 daddr[4];
	__u32 seq;
	__u32 ack;
	__u32 payload_len; /* tracing programs only */
	__u16 sport;
	__u16 dport;
	__u8 flags;
	__u8 ip_version;
};

#endif /* TCPINSPECT_SEGMENT_BPF_H */
