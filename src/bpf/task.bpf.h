/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The current task. */
#ifndef TCPINSPECT_TASK_BPF_H
#define TCPINSPECT_TASK_BPF_H

/* Linux has it since 5.11. */
static __always_inline bool has_current_task_btf(void)
{
	return bpf_core_enum_value_exists(enum bpf_func_id, BPF_FUNC_get_current_task_btf);
}

#endif /* TCPINSPECT_TASK_BPF_H */
