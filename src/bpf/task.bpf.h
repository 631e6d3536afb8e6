/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The current task. */
#ifndef TCPINSPECT_TASK_BPF_H
#define TCPINSPECT_TASK_BPF_H

/* Since Linux 5.11. */
static __always_inline bool has_current_task_btf(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf);
}

/* Copies the name of a task, through a BTF pointer to it: each byte is a load of its own. */
#define READ_COMM(to, task)                                                                        \
	do {                                                                                       \
		for (int i = 0; i < COMM_LEN; i++)                                                 \
			(to)[i] = (task)->comm[i];                                                 \
	} while (0)

#endif /* TCPINSPECT_TASK_BPF_H */
