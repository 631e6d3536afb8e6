/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Types that the program that finds the processes of sockets shares with user space. */
#ifndef TCPINSPECT_SOCKET_OWNER_H
#define TCPINSPECT_SOCKET_OWNER_H

#include "process_filter.h"

/* A process that has a socket open; one for each of its descriptors. */
struct socket_holder {
	__u64 inode;	/* of the socket's file */
	__u64 listener; /* address of its struct sock; 0: not asked for, or not known */
	__u64 cgroup_id;
	__u32 pid;
	__u32 pad;
	char comm[COMM_LEN];
};

_Static_assert(sizeof(struct socket_holder) == 48, "user space reads them one after another");

#endif /* TCPINSPECT_SOCKET_OWNER_H */
