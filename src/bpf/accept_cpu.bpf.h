/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What accept-trace's programs keep for the CPU that they run on. */
#ifndef TCPINSPECT_ACCEPT_CPU_BPF_H
#define TCPINSPECT_ACCEPT_CPU_BPF_H

#include "accept_listener.bpf.h"

/*
 * The last RST that this CPU sent. The packet that it answers is freed right after, in the same
 * softirq. The sequence number of a RST does not always lead back to the attempt.
 */
struct sent_rst {
	__u8 addr[16];
	__u16 port;
	__u8 valid;
	__u8 pad[5];
};

/* The state of a CPU. No cache line is shared between CPUs. */
struct on_cpu {
	struct sent_rst sent;
	struct found_listener found;
	__u64 jiffy;	/* in which the last SYN came */
	__u64 jiffy_ns; /* when the first SYN of that jiffy came */
	__u8 pad[48];
};

_Static_assert(sizeof(struct on_cpu) == 128, "two cache lines");

struct on_cpu on_cpus[COUNTER_SLOTS] SEC(".bss.accept") __attribute__((aligned(128)));

static __always_inline struct on_cpu *my(void)
{
	return &on_cpus[bpf_get_smp_processor_id() & (COUNTER_SLOTS - 1)];
}

static __always_inline struct sent_rst *my_sent_rst(void)
{
	return &my()->sent;
}

/*
 * Notes when a SYN came. The time is written before its jiffy: a program that interrupts this must
 * not take the start of an earlier jiffy for that of this one.
 */
static __always_inline void note_syn(__u64 now)
{
	struct on_cpu *cpu = my();
	__u64 jiffy = bpf_jiffies64();

	if (cpu->jiffy == jiffy)
		return;
	cpu->jiffy_ns = now;
	barrier();
	cpu->jiffy = jiffy;
}

/* Whether a SYN came in the present jiffy. */
static __always_inline bool came_just_now(__u64 syn_ns)
{
	const struct on_cpu *cpu = my();

	return cpu->jiffy == bpf_jiffies64() && syn_ns >= cpu->jiffy_ns;
}

#endif /* TCPINSPECT_ACCEPT_CPU_BPF_H */
