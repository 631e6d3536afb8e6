/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* --max-rate for tracing programs, which can't use BPF spin locks. */
#ifndef TCPINSPECT_RATE_BPF_H
#define TCPINSPECT_RATE_BPF_H

/* Events per second that may be sent; 0: no limit. */
const volatile __u64 max_rate = 0;

/*
 * How much of max_rate is used in the current second. When several CPUs start a second at the same
 * time, a few more events may pass. The counters stay exact.
 */
struct {
	__u64 started_ns;
	__u64 used;
} event_rate SEC(".bss.rate");

/* Whether an event at this time is over the limit; it is to be counted as suppressed. */
static __always_inline bool is_over_rate(__u64 now)
{
	if (!max_rate)
		return false;
	if (now - event_rate.started_ns >= NSEC_PER_SEC) {
		event_rate.started_ns = now;
		event_rate.used = 0;
	}
	if (event_rate.used >= max_rate)
		return true;
	__sync_fetch_and_add(&event_rate.used, 1);
	return false;
}

#endif /* TCPINSPECT_RATE_BPF_H */
