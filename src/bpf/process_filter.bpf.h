/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Filters on processes. */
#ifndef TCPINSPECT_PROCESS_FILTER_BPF_H
#define TCPINSPECT_PROCESS_FILTER_BPF_H

#include "process_filter.h"

const volatile enum process_filter process_filter = 0; /* any of them, or-ed */

struct id_set {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u8);
};
struct id_set pids SEC(".maps");
struct id_set uids SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, struct comm_key);
	__type(value, __u8);
} comms SEC(".maps");

/* BTF has the type only if something refers to it. */
const struct comm_key *unused_comm_key __attribute__((unused));

static __always_inline bool is_wanted_id(__u32 pid, __u32 uid)
{
	if ((process_filter & FILTER_PID) && !bpf_map_lookup_elem(&pids, &pid))
		return false;
	return !(process_filter & FILTER_UID) || bpf_map_lookup_elem(&uids, &uid);
}

/* Copies a process name. The bytes after its NUL are undefined: in the copy they are zeros. */
static __always_inline void copy_comm(__u8 *to, const __u8 *comm)
{
	bool ended = false;

	for (int i = 0; i < COMM_LEN; i++) {
		ended |= !comm[i];
		to[i] = ended ? 0 : comm[i];
	}
}

static __always_inline bool is_wanted_comm(const __u8 *comm)
{
	struct comm_key key = {};

	if (!(process_filter & FILTER_COMM))
		return true;
	copy_comm(key.comm, comm);
	return bpf_map_lookup_elem(&comms, &key);
}

static __always_inline bool is_wanted_process(__u32 pid, __u32 uid, const __u8 *comm)
{
	return is_wanted_id(pid, uid) && is_wanted_comm(comm);
}

#endif /* TCPINSPECT_PROCESS_FILTER_BPF_H */
