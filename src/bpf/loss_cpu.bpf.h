/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The state that loss-trace's programs keep for each CPU. */
#ifndef TCPINSPECT_LOSS_CPU_BPF_H
#define TCPINSPECT_LOSS_CPU_BPF_H

#include "accept_listener.bpf.h"

/*
 * A SYN that came in on a CPU and that TCP has not handled yet. TCP handles it in the same softirq,
 * but with GRO only after a batch of packets has passed the TC hook (gro_normal_batch, 8).
 */
struct waiting_syn {
	struct attempt_key key;
	__u64 listener; /* 0: no SYN waits here */
	__u64 drops;	/* those of the listener when the SYN came in */
};

/* A power of two: ports of one address that differ only in their low byte do not collide. */
#define WAITING_SYNS 256

/* The most return addresses that are read from a stack, innermost first. */
#define STACK_MAX 16

struct loss_cpu {
	struct waiting_syn syns[WAITING_SYNS];
	__u64 waiting; /* how many of them wait */
	struct found_listener found;
	struct attempt attempt; /* scratch space for the state of a listener */
	/* The drops of the listener of the SYN that TCP handled last on this CPU. */
	__u64 last_listener;
	__u64 last_drops;
	/* The last reset that a tracepoint has reported. */
	__u64 reset_ns;
	__u8 reset_addr[16];
	__u64 reset_port;
	/* The stack that was read last, when, and how many were read in that jiffy. */
	__u64 callers[STACK_MAX];
	__u64 stack_jiffy;
	__u64 stack_count;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct loss_cpu);
} loss_cpus SEC(".maps");

static __always_inline struct loss_cpu *this_cpu(void)
{
	__u32 at = 0;

	return bpf_map_lookup_elem(&loss_cpus, &at);
}

#endif /* TCPINSPECT_LOSS_CPU_BPF_H */
