/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The clock of packet programs: the kernel's, or that of the capture file in a replay. */
#ifndef TCPINSPECT_REPLAY_BPF_H
#define TCPINSPECT_REPLAY_BPF_H

#include "packet.bpf.h"

static __always_inline __u64 packet_time(void)
{
	return replay ? replay_ts_ns : bpf_ktime_get_ns();
}

#endif /* TCPINSPECT_REPLAY_BPF_H */
