/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The interfaces that a tracing command watches, for programs that are not attached to them. */
#ifndef TCPINSPECT_INTERFACES_BPF_H
#define TCPINSPECT_INTERFACES_BPF_H

#define INTERFACES_MAX 64

/* How many there are, and the ifindexes of the first INTERFACES_MAX. */
const volatile __u32 interfaces = 0;
const volatile __u32 ifindexes[INTERFACES_MAX] = {};

#endif /* TCPINSPECT_INTERFACES_BPF_H */
