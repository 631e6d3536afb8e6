/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Filters on processes: types shared with user space. */
#ifndef TCPINSPECT_PROCESS_FILTER_H
#define TCPINSPECT_PROCESS_FILTER_H

#define COMM_LEN 16

/* Which filters on processes are used. */
enum process_filter {
	FILTER_PID = 1 << 0,
	FILTER_UID = 1 << 1,
	FILTER_COMM = 1 << 2,
};

struct comm_key {
	__u8 comm[COMM_LEN]; /* zeros after the name */
};

#endif /* TCPINSPECT_PROCESS_FILTER_H */
