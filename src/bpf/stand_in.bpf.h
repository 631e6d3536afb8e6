/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * A stand-in for a tracepoint program that the kernel skips.
 *
 * Since Linux 6.1 a tracepoint program is skipped while it is already running on the same CPU. If
 * it runs in a system call, and an interrupt brings packets, then what these packets cause at the
 * same tracepoint would be missed. So a second program, the stand-in, is attached to the tracepoint
 * right after the first. The first program notes each call. The stand-in, which is called next,
 * clears the note. If there is none, it does the work. Both do it by a tail call, so that the
 * verifier has to check it only once.
 *
 * Each CPU has one note for tasks, and one for softirqs, which can interrupt them. Tasks and
 * softirqs have different stacks, so the address of the program's context shows which of the two is
 * running.
 */
#ifndef TCPINSPECT_STAND_IN_BPF_H
#define TCPINSPECT_STAND_IN_BPF_H

#include "packet.h"
#include "task.bpf.h"

/* What the first program was called for: the address of a socket or packet, or 0. */
struct call_notes {
	__u64 in_task;
	__u64 in_softirq;
	__u8 pad[48]; /* no cache line is shared between CPUs */
};

_Static_assert(sizeof(struct call_notes) == 64, "one cache line");

/*
 * The size of a task's stack, except with KASAN or 64 KiB pages. There tasks and softirqs share a
 * note, and an event can be handled twice. The same holds for arm64 before Linux 6.1.
 */
#define THREAD_SIZE 16384

static __always_inline bool is_on_task_stack(void *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 address = (__u64)ctx;

	/* The verifier allows the difference of two pointers, and makes it a number. */
	asm volatile("%0 -= %1" : "+r"(address) : "r"(task));
	address += bpf_get_current_task();
	return address - (__u64)task->stack < THREAD_SIZE;
}

/* The notes of this CPU. */
static __always_inline struct call_notes *notes_here(struct call_notes *notes)
{
	return &notes[bpf_get_smp_processor_id() & (COUNTER_SLOTS - 1)];
}

/* Notes a call of the first program. */
static __always_inline void note_call(struct call_notes *notes, void *ctx, const void *what)
{
	/* Older kernels skip nothing. */
	if (!has_current_task_btf())
		return;
	notes = notes_here(notes);
	if (is_on_task_stack(ctx)) {
		/*
		 * No softirq is running. If the last one interrupted the stand-in, its note is
		 * still there, because the stand-in was skipped.
		 */
		notes->in_softirq = 0;
		barrier();
		notes->in_task = (__u64)what;
	} else {
		notes->in_softirq = (__u64)what;
	}
}

/* Clears the note. Returns whether there is none, because the first program was skipped. */
static __always_inline bool was_skipped(struct call_notes *notes, void *ctx, const void *what)
{
	__u64 *note;

	if (!has_current_task_btf())
		return false;
	notes = notes_here(notes);
	note = is_on_task_stack(ctx) ? &notes->in_task : &notes->in_softirq;
	if (*note != (__u64)what)
		return true;
	*note = 0;
	return false;
}

/* The program that does the work. User space puts it here. */
struct handler {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
};

const volatile bool never = false;

/*
 * Makes a tail-called program run on the kernel's stack. Since Linux 6.13 a tracing program has a
 * stack of its own on each CPU, because the kernel does not let it interrupt itself. But it does
 * not check this for tail calls. A program that contains a tail call gets no such stack.
 */
#define USE_KERNEL_STACK(ctx, handler)                                                             \
	do {                                                                                       \
		if (never)                                                                         \
			bpf_tail_call((ctx), &(handler), 0);                                       \
	} while (0)

#endif /* TCPINSPECT_STAND_IN_BPF_H */
