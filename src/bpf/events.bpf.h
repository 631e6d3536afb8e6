/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Sends events to user space: by a ring buffer, or a perf event array where that is asked for. */
#ifndef TCPINSPECT_EVENTS_BPF_H
#define TCPINSPECT_EVENTS_BPF_H

const volatile bool use_perf_buffer = false;

/* User space sets the size, and creates only the map that is used. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4 * 1024 * 1024);
} ring SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} perf SEC(".maps");

/*
 * Copies a finished event out; nonzero if there was no room, which the caller counts as lost. If
 * the compiler knows the size, it copies by words, which is faster than the kernel's copy of bytes.
 */
static __always_inline long send_event(void *ctx, void *event, __u64 size)
{
	void *to;

	if (use_perf_buffer)
		return bpf_perf_event_output(ctx, &perf, BPF_F_CURRENT_CPU, event, size);
	if (!__builtin_constant_p(size))
		return bpf_ringbuf_output(&ring, event, size, 0);
	to = bpf_ringbuf_reserve(&ring, size, 0);
	if (!to)
		return -1;
	__builtin_memcpy(__builtin_assume_aligned(to, 8), __builtin_assume_aligned(event, 8), size);
	bpf_ringbuf_submit(to, 0);
	return 0;
}

#endif /* TCPINSPECT_EVENTS_BPF_H */
