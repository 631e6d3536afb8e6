// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * flows: adds data from the sockets of this host to the flows in the table.
 *
 * A packet program can't see the process of a connection or what the kernel has measured. So an
 * iterator over all TCP sockets adds the connections that are older than the run, and copies
 * round-trip times and other figures. A tracepoint copies these figures when a socket is closed,
 * and notes the process that connects or closes the socket. An iterator over all open files finds
 * the process of a flow if the tracepoint has not.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "flow_socket.bpf.h"
#include "interfaces.bpf.h"
#include "task.bpf.h"
#include "stand_in.bpf.h"

/* Set by user space while older connections are added; otherwise only figures are copied. */
__u32 seeding = 0;

/* Older connections: those that were added, those without room, and all that have a flow. */
__u64 seeded = 0;
__u64 left_out = 0;
__u64 older_found = 0;

/* Local ports of listening sockets, one bit each. The iterator comes to listeners first. */
__u64 listening[1024] SEC(".bss.listening");

/* The process that began an attempt, by socket, until it has a port and its flow is found. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct flow_owner);
} callers SEC(".maps");

/* Data from a socket for its flow. */
struct update {
	struct flow_key key;
	struct flow_owner owner;
	struct flow_numbers numbers;
};

/* The slot of the flow at this interface, NULL if it is not in the table. */
static __always_inline struct flow_slot *slot_at(struct flow_key *key, __u32 interface)
{
	__u32 *number;

	key->interface = interface;
	number = bpf_map_lookup_elem(&flow_slots, key);
	return number ? bpf_map_lookup_elem(&slots, number) : NULL;
}

/*
 * Sets the owner of a flow that was found by an open file. The first process that is found stays
 * the owner, even if others have inherited the socket: it is the one with the lowest id. If both
 * ends are sockets of this host, the owner is the process of the initiator.
 */
static __always_inline void set_owner_by_file(struct flow_record *r, const struct flow_owner *found)
{
	struct flow_owner *owner = &r->owner;

	if (owner->from && (owner->end == found->end || owner->end == r->initiator))
		return;
	*owner = *found;
}

/* Sets the owner of a flow to a process that has called connect(2), close(2) or shutdown(2). */
static __always_inline void set_owner_by_call(struct flow_record *r, const struct flow_owner *found)
{
	struct flow_owner *owner = &r->owner;

	if (owner->from && owner->end != found->end) {
		if (owner->end == r->initiator)
			return;
	} else if (owner->from >= found->from || (owner->from && found->from == OWNER_BY_CLOSE)) {
		return;
	}
	*owner = *found;
}

/* Sets the current process. False: it is a kernel thread, which works for an unknown process. */
static __always_inline bool set_caller(struct flow_owner *who, const struct sock *sk, __u8 from)
{
	struct task_struct *task = bpf_get_current_task_btf();
	struct task_struct *leader = task->group_leader;

	if (task->flags & PF_KTHREAD)
		return false;
	READ_COMM(who->comm, leader);
	who->from = from;
	who->pid = task->tgid;
	who->uid = sk->sk_uid.val;
	who->cgroup_id = bpf_get_current_cgroup_id();
	return true;
}

struct call_notes state_changes[COUNTER_SLOTS] SEC(".bss.calls") __attribute__((aligned(64)));
struct handler state_handler SEC(".maps");

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flow_change, const struct sock *sk)
{
	note_call(state_changes, ctx, sk);
	bpf_tail_call(ctx, &state_handler, 0);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flow_skipped_change, const struct sock *sk)
{
	if (was_skipped(state_changes, ctx, sk))
		bpf_tail_call(ctx, &state_handler, 0);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(flow_state, const struct sock *sk, int old_state, int new_state)
{
	__u64 address = (__u64)sk;
	struct ends ends;
	const struct tcp_sock *tp;
	const struct flow_owner *caller = NULL;
	struct update update = {};
	__u8 end;

	USE_KERNEL_STACK(ctx, state_handler);
	if (sk->sk_protocol != IPPROTO_TCP || sk->__sk_common.skc_net.net->ns.inum != own_netns)
		return 0;
	if (new_state == TCP_SYN_SENT) {
		/* Its port is not chosen yet. */
		if (set_caller(&update.owner, sk, OWNER_BY_CALL))
			bpf_map_update_elem(&callers, &address, &update.owner, BPF_ANY);
		return 0;
	}
	if (old_state == TCP_SYN_SENT) {
		caller = bpf_map_lookup_elem(&callers, &address);
		if (caller)
			update.owner = *caller;
		bpf_map_delete_elem(&callers, &address);
	} else if (new_state == TCP_FIN_WAIT1 || new_state == TCP_LAST_ACK) {
		/* Only a process can cause this, by close(2) or shutdown(2), and no packet. */
		set_caller(&update.owner, sk, OWNER_BY_CLOSE);
	}
	if (new_state == TCP_CLOSE ? old_state == TCP_LISTEN || old_state == TCP_CLOSE
				   : !update.owner.from)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp || !read_flow_ends(&ends, sk))
		return 0;
	ends.local_port = bpf_ntohs(read_inet_sport(tp));
	end = set_socket_key(&update.key, &ends);
	update.owner.end = end;
	if (new_state == TCP_CLOSE)
		read_numbers(&update.numbers, tp, end);
	for (__u32 i = 0; i < INTERFACES_MAX && i < interfaces; i++) {
		struct flow_slot *slot = slot_at(&update.key, i);

		if (!slot)
			continue;
		bpf_spin_lock(&slot->lock);
		if (holds_flow(slot, &update.key)) {
			if (update.owner.from)
				set_owner_by_call(&slot->record, &update.owner);
			if (update.numbers.is_known)
				take_numbers(&slot->record, &update.numbers);
		}
		bpf_spin_unlock(&slot->lock);
	}
	return 0;
}

/* Adds a flow for an older connection, unless its packets have just added one. */
static __always_inline void seed(const struct flow_key *key, const struct older *o)
{
	struct flow_slot *slot;
	__u32 number;

	if (bpf_map_lookup_elem(&flow_slots, key))
		return;
	if (!take_slot(&number)) {
		left_out++;
		return;
	}
	slot = bpf_map_lookup_elem(&slots, &number);
	if (!slot)
		return;
	bpf_spin_lock(&slot->lock);
	__builtin_memset(&slot->record, 0, sizeof(slot->record));
	slot->record.key = *key;
	begin_older(&slot->record, o);
	slot->state = SLOT_LIVE;
	bpf_spin_unlock(&slot->lock);
	if (bpf_map_update_elem(&flow_slots, key, &number, BPF_NOEXIST))
		give_back(slot, number);
	else
		seeded++;
}

/*
 * The number, in struct flow_key, of the interface through which the socket's packets go out, or
 * INTERFACES_MAX. Flows of interfaces from this number on get no data from sockets.
 */
static __always_inline __u32 interface_of(const struct sock *sk)
{
	const struct dst_entry *route = sk->sk_dst_cache;
	__u32 ifindex;

	if (!route)
		return INTERFACES_MAX;
	ifindex = route->dev->ifindex;
	for (__u32 i = 0; i < INTERFACES_MAX && i < interfaces; i++) {
		if (ifindexes[i] == ifindex)
			return i;
	}
	return INTERFACES_MAX;
}

/*
 * Whether the socket was accepted. An accepted socket inherits the backlog limit of its listener,
 * which is 0 in a socket that has called connect(2). A listener may have a limit of 0 too, but then
 * its port is in `listening`.
 */
static __always_inline bool is_accepted(const struct sock *sk, __u16 port)
{
	return sk->sk_max_ack_backlog || has_port(listening, port);
}

SEC("iter/tcp")
int flow_sockets(struct bpf_iter__tcp *ctx)
{
	/* All kinds of sockets begin with this part, and nothing beyond it is read here. */
	const struct sock *common = (const struct sock *)ctx->sk_common;
	const struct tcp_sock *tp;
	struct flow_numbers numbers = {};
	struct flow_key key = {};
	struct ends ends;
	struct older older = {};
	bool accepted;
	__u8 state;

	if (!common)
		return 0;
	state = common->__sk_common.skc_state;
	if (state == TCP_LISTEN) {
		__u16 port = common->__sk_common.skc_num;

		listening[port >> 6] |= 1ULL << (port & 63);
		return 0;
	}
	if (state == TCP_TIME_WAIT || state == TCP_CLOSE || !read_flow_ends(&ends, common))
		return 0;
	/* NULL for a half-open one. */
	tp = bpf_skc_to_tcp_sock(ctx->sk_common);
	if (!tp)
		return 0;
	older.end = set_socket_key(&key, &ends);
	read_numbers(&numbers, tp, older.end);
	if (seeding) {
		accepted = state != TCP_SYN_SENT &&
			   is_accepted((const struct sock *)tp, ends.local_port);
		older.initiator = accepted ? older.end ^ 1 : older.end;
		read_older(&older, tp, state);
		key.interface = interface_of((const struct sock *)tp);
		if (key.interface < INTERFACES_MAX && older_is_wanted(&ends, accepted))
			seed(&key, &older);
	}
	for (__u32 i = 0; i < INTERFACES_MAX && i < interfaces; i++) {
		struct flow_slot *slot = slot_at(&key, i);

		if (!slot)
			continue;
		bpf_spin_lock(&slot->lock);
		if (holds_flow(slot, &key)) {
			take_numbers(&slot->record, &numbers);
			if (seeding && is_older(&slot->record, &older)) {
				note_older(&slot->record, &older);
				older_found++;
			}
		}
		bpf_spin_unlock(&slot->lock);
	}
	return 0;
}

SEC("iter/task_file")
int flow_owner(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct flow_owner found = {};
	struct flow_key key = {};
	struct ends ends;
	struct socket *socket;
	struct sock *sk;

	if (!task || !file)
		return 0;
	socket = bpf_sock_from_file(file);
	if (!socket)
		return 0;
	sk = socket->sk;
	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	if (sk->__sk_common.skc_net.net->ns.inum != own_netns || !read_flow_ends(&ends, sk))
		return 0;
	found.end = set_socket_key(&key, &ends);
	found.from = OWNER_BY_FILE;
	found.pid = task->tgid;
	found.uid = sk->sk_uid.val;
	found.cgroup_id = task->cgroups->dfl_cgrp->kn->id;
	READ_COMM(found.comm, task);
	for (__u32 i = 0; i < INTERFACES_MAX && i < interfaces; i++) {
		struct flow_slot *slot = slot_at(&key, i);

		if (!slot)
			continue;
		bpf_spin_lock(&slot->lock);
		if (holds_flow(slot, &key))
			set_owner_by_file(&slot->record, &found);
		bpf_spin_unlock(&slot->lock);
	}
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
