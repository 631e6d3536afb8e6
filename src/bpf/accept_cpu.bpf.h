/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The state that accept-trace's programs keep for each CPU. */
#ifndef TCPINSPECT_ACCEPT_CPU_BPF_H
#define TCPINSPECT_ACCEPT_CPU_BPF_H

#include "accept_listener.bpf.h"

/*
 * The destination of the last RST that this CPU sent. Right after that, in the same softirq, the
 * kernel frees the segment that the RST answers. So if that segment's source is this destination,
 * the RST answers it. The sequence numbers of a RST do not always identify the attempt.
 */
struct sent_rst {
	__u8 addr[16];
	__u16 port;
	__u8 valid;
	__u8 pad[5];
};

/* The state of a CPU. No cache line is shared between CPUs. */
struct accept_cpu {
	struct sent_rst sent;
	struct found_listener found;
	__u64 jiffy;	/* in which the last SYN came */
	__u64 jiffy_ns; /* when the first SYN of that jiffy came */
	struct attempt_key last_syn;
	__u8 pad[24];
};

_Static_assert(sizeof(struct accept_cpu) == 128, "two cache lines");

struct accept_cpu accept_cpus[COUNTER_SLOTS] SEC(".bss.cpus") __attribute__((aligned(128)));

static __always_inline struct accept_cpu *this_cpu(void)
{
	return &accept_cpus[bpf_get_smp_processor_id() & (COUNTER_SLOTS - 1)];
}

static __always_inline struct sent_rst *last_sent_rst(void)
{
	return &this_cpu()->sent;
}

/*
 * Records when a SYN came. The time is written before the jiffy: a program that interrupts this one
 * must not mistake the time of an earlier jiffy for that of the current one.
 */
static __always_inline void note_syn(struct accept_cpu *cpu, __u64 now)
{
	__u64 jiffy = bpf_jiffies64();

	if (cpu->jiffy == jiffy)
		return;
	cpu->jiffy_ns = now;
	barrier();
	cpu->jiffy = jiffy;
}

/*
 * Whether a SYN that came at this time came in the current jiffy. False if this CPU has seen no SYN
 * in this jiffy.
 */
static __always_inline bool came_just_now(__u64 syn_ns)
{
	const struct accept_cpu *cpu = this_cpu();

	return cpu->jiffy == bpf_jiffies64() && syn_ns >= cpu->jiffy_ns;
}

#endif /* TCPINSPECT_ACCEPT_CPU_BPF_H */
