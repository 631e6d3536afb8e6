/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The events of loss-trace: which are wanted, what they contain, how they are sent or counted. */
#ifndef TCPINSPECT_LOSS_EVENT_BPF_H
#define TCPINSPECT_LOSS_EVENT_BPF_H

#include "filter.bpf.h"
#include "events.bpf.h"
#include "interfaces.bpf.h"
#include "export.bpf.h"
#include "rate.bpf.h"
#include "skb.bpf.h"
#include "count_table.bpf.h"
#include "loss_cpu.bpf.h"
#include "loss_trace.h"

/* Kinds of events to report: bits by enum loss_kind. */
const volatile __u32 wanted_kinds = 0;
/* Only this network namespace, by inode number; 0: all. */
const volatile __u32 wanted_netns = 0;
/* Also report packets that are freed without a loss, such as the copies for packet sockets. */
const volatile bool with_noise = false;

/* Report only these reasons: a bit for each number, of drops and of resets. */
const volatile bool filter_reasons = false;
const volatile __u64 drop_reasons[REASON_WORDS] = {};
const volatile __u64 reset_reasons[REASON_WORDS] = {};
/* A drop without a reason also matches, if it was in one of these functions. */
const volatile struct code_range drop_places[PLACES_MAX] = {};

/* The number of the reason NETFILTER_DROP in the running kernel; 0: it has no such reason. */
const volatile __u32 reason_netfilter_drop = 0;
/* The functions of netfilter that drop segments; for kernels that give no reasons. */
const volatile struct code_range netfilter_places[PLACES_MAX] = {};

/* Count events by this key, and send none. */
const volatile enum loss_by count_by = LOSS_BY_NOTHING;

/* The most bytes of a dropped packet to copy, for a capture file; 0: send only events. */
const volatile __u32 snaplen = 0;

/* Scratch space for an event and the bytes of its packet. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct loss_packet);
} packet_scratch SEC(".maps");

/* The most stacks that a CPU reads in a jiffy. Each takes about a microsecond. */
#define STACKS_PER_JIFFY 10

struct loss_counters loss_counters[COUNTER_SLOTS] SEC(".bss.loss") __attribute__((aligned(64)));

/* BTF has the types only if something refers to them. */
const struct loss_event *unused_loss_event __attribute__((unused));
const struct loss_packet *unused_loss_packet __attribute__((unused));
const enum loss_known *unused_loss_known __attribute__((unused));
const enum loss_key *unused_loss_key __attribute__((unused));
const enum loss_detail *unused_loss_detail __attribute__((unused));
const enum loss_kind *unused_loss_kind __attribute__((unused));
const struct count_key *unused_count_key __attribute__((unused));
const struct count_set *unused_count_set __attribute__((unused));

/* Whether the namespace and the interface are asked for. If no interface is named, all are. */
static __always_inline bool interface_matches(const struct loss_event *e)
{
	bool found = false;

	if (wanted_netns && e->netns != wanted_netns)
		return false;
	/*
	 * The interface of a half-open connection is not known: better to report it than to miss
	 * it.
	 */
	if (!interfaces || !e->ifindex)
		return true;
	for (int i = 0; i < INTERFACES_MAX; i++)
		found |= ifindexes[i] && ifindexes[i] == e->ifindex;
	return found;
}

static __always_inline bool ends_wanted(const struct loss_event *e)
{
	return mapped_ends_match(e->ip_version, (const __be32 *)e->saddr, e->sport,
				 (const __be32 *)e->daddr, e->dport);
}

static __always_inline bool has_reason(const volatile __u64 *reasons, __u32 reason)
{
	__u32 word = reason >> 6;

	return word < REASON_WORDS && (reasons[word] & (1ULL << (reason & 63)));
}

static __always_inline bool is_in(const volatile struct code_range *places, __u64 place)
{
	for (int i = 0; i < PLACES_MAX; i++) {
		if (place >= places[i].start && place < places[i].end)
			return true;
	}
	return false;
}

static __always_inline bool drop_reason_matches(__u32 reason, __u64 place)
{
	if (!filter_reasons)
		return true;
	if (is_specific(reason))
		return has_reason(drop_reasons, reason);
	return is_in(drop_places, place);
}

static __always_inline bool reason_matches(const struct loss_event *e)
{
	if (e->kind == LOSS_DROP)
		return drop_reason_matches(e->reason, e->place);
	return !filter_reasons || (e->kind == LOSS_RESET && has_reason(reset_reasons, e->reason));
}

static __always_inline void set_number(struct count_key *key, __u64 number)
{
	key->addr[1] = number;
	key->addr[2] = number >> 32;
}

static __always_inline void set_count_key(struct count_key *key, const struct loss_event *e)
{
	const __be32 *saddr = (const __be32 *)e->saddr;

	key->family = e->kind << LOSS_KIND_SHIFT;
	switch (count_by) {
	case LOSS_BY_SADDR:
		key->family |= e->ip_version;
		if (e->ip_version == 4)
			key->addr[0] = unmapped_ipv4(saddr);
		else
			__builtin_memcpy(key->addr, saddr, sizeof(key->addr));
		break;
	case LOSS_BY_DPORT:
		key->port = e->dport;
		break;
	case LOSS_BY_REASON:
		key->family |= COUNT_WIDE;
		key->port = e->detail;
		key->addr[0] = e->reason;
		if (!is_specific(e->reason))
			set_number(key, e->place);
		break;
	case LOSS_BY_PLACE:
		key->family |= COUNT_WIDE;
		set_number(key, e->place);
		break;
	default:
		key->family |= COUNT_WIDE;
		set_number(key, e->inode);
		break;
	}
}

/* Since Linux 6.11. */
extern void bpf_preempt_disable(void) __ksym __weak;
extern void bpf_preempt_enable(void) __ksym __weak;

static __always_inline void release(struct loss_counters *c)
{
	barrier();
	c->is_busy = false;
	if (bpf_ksym_exists(bpf_preempt_enable))
		bpf_preempt_enable();
}

/*
 * Claims the memory that only one program on a CPU may use at a time: the table of counts and the
 * scratch space. False: this program runs in a softirq, and has interrupted one that uses it.
 *
 * Since Linux 7.0 a task can be preempted inside a tracepoint program, and with PREEMPT_RT since
 * 6.18 inside a packet program too. So preemption is disabled until release().
 */
static __always_inline bool claim(struct loss_counters *c)
{
	if (bpf_ksym_exists(bpf_preempt_disable))
		bpf_preempt_disable();
	if (c->is_busy) {
		if (bpf_ksym_exists(bpf_preempt_enable))
			bpf_preempt_enable();
		return false;
	}
	c->is_busy = true;
	barrier();
	return true;
}

static __always_inline void count_event(struct loss_counters *c, const struct loss_event *e)
{
	struct count_key key = {};

	if (!claim(c)) {
		__sync_fetch_and_add(&c->in_use, 1);
		return;
	}
	set_count_key(&key, e);
	count_key(&c->untracked, bpf_get_smp_processor_id(), &key, hash_key(&key));
	release(c);
}

static __always_inline void export_loss(const struct loss_event *e)
{
	struct export_key key = { .kind = e->kind, .detail = e->detail, .reason = e->reason };

	if (!is_specific(key.reason))
		key.place = e->place;
	export_count(&key, e->segments ? e->segments : 1);
}

/* Sends an event together with the bytes of its packet. Nonzero: it is lost. */
static __always_inline long send_packet(void *ctx, struct loss_counters *c,
					const struct loss_event *e, __u64 skb_address)
{
	const struct sk_buff *skb = (const void *)skb_address;
	const unsigned char *head;
	struct loss_packet *p;
	__u32 at = 0, start, end, len;
	long failed;

	p = bpf_map_lookup_elem(&packet_scratch, &at);
	if (!p || !claim(c))
		return -1;
	p->event = *e;
	head = BPF_CORE_READ(skb, head);
	start = BPF_CORE_READ(skb, network_header);
	end = BPF_CORE_READ(skb, tail);
	len = end > start ? end - start : 0;
	if (len > snaplen)
		len = snaplen;
	if (len > LOSS_BYTES)
		len = LOSS_BYTES;
	p->len = len;
	if (bpf_probe_read_kernel(p->bytes, len, head + start))
		p->len = 0;
	len = p->len;
	/* On Linux before 5.12, the verifier does not track the bound of a value on the stack. */
	barrier_var(len);
	if (len > LOSS_BYTES)
		len = LOSS_BYTES;
	failed = send_event(ctx, p, sizeof(*p) - LOSS_BYTES + len);
	release(c);
	return failed;
}

/* Sends an event. Nonzero: it is lost. */
static __always_inline long send_loss(void *ctx, struct loss_event *e)
{
	if (e->callers[0])
		return send_event(ctx, e, sizeof(*e));
	return send_event(ctx, e, __builtin_offsetof(struct loss_event, callers));
}

static __always_inline bool kind_wanted(const struct loss_event *e)
{
	return e->kind < LOSS_KINDS && (wanted_kinds & (1 << e->kind));
}

/* Counts or sends an event. `skb` is the address of the packet that was dropped, or 0. */
static __always_inline int emit_matching(void *ctx, struct loss_event *e, __u64 skb)
{
	struct loss_counters *c = &loss_counters[bpf_get_smp_processor_id() & (COUNTER_SLOTS - 1)];
	__u32 kind = e->kind;

	if (kind >= LOSS_KINDS || stopped)
		return 0;
	__sync_fetch_and_add(&c->kinds[kind], 1);
	if (exporting) {
		export_loss(e);
		return 0;
	}
	if (count_by) {
		count_event(c, e);
		return 0;
	}
	e->ts_ns = bpf_ktime_get_ns();
	if (is_over_rate(e->ts_ns)) {
		__sync_fetch_and_add(&c->suppressed, 1);
		return 0;
	}
	if (snaplen ? send_packet(ctx, c, e, skb) : send_loss(ctx, e))
		__sync_fetch_and_add(&c->lost, 1);
	return 0;
}

/*
 * Counts or sends an event if it matches. Drops, of which there can be a flood, do without this
 * call: on_drop() has done the same checks.
 */
static __noinline int emit(void *ctx, struct loss_event *e, __u64 skb)
{
	if (!e || !kind_wanted(e) || !interface_matches(e) || !ends_wanted(e) || !reason_matches(e))
		return 0;
	return emit_matching(ctx, e, skb);
}

/*
 * Reads the callers of netfilter's function that dropped a packet: only they show at which of its
 * hooks that was. In a flood, the stack is not read for every event.
 */
static __always_inline void set_callers(void *ctx, struct loss_cpu *cpu, struct loss_event *e)
{
	__u64 now = bpf_jiffies64();

	if (is_specific(e->reason)) {
		if (e->reason != reason_netfilter_drop)
			return;
	} else if (!netfilter_places[0].end || !is_in(netfilter_places, e->place)) {
		return;
	}
	if (cpu->stack_jiffy != now) {
		cpu->stack_jiffy = now;
		cpu->stack_count = 0;
	}
	if (cpu->stack_count++ >= STACKS_PER_JIFFY ||
	    bpf_get_stack(ctx, cpu->callers, sizeof(cpu->callers), 0) <
		    (long)sizeof(cpu->callers[0]))
		return;
	for (int i = 0; i < STACK_MAX - LOSS_CALLERS; i++) {
		if (cpu->callers[i] != e->place)
			continue;
		bpf_probe_read_kernel(e->callers, sizeof(e->callers), &cpu->callers[i + 1]);
		return;
	}
}

/* Sets the device from skb->dev, which can be read through its BTF pointer. */
static __always_inline void set_skb_device(struct loss_event *e, const struct net_device *dev)
{
	const __u64 *name = (const void *)dev->name;

	/*
	 * Otherwise libbpf (CO-RE) would treat each of these loads as a load of the whole member,
	 * and change its size to that of the member.
	 */
	barrier_var(name);
	e->ifindex = dev->ifindex;
	e->netns = dev->nd_net.net->ns.inum;
	__builtin_memcpy(e->iface, name, sizeof(e->iface));
}

static __always_inline void set_device(struct loss_event *e, const struct net_device *dev)
{
	if (!dev)
		return;
	e->ifindex = BPF_CORE_READ(dev, ifindex);
	e->netns = BPF_CORE_READ(dev, nd_net.net, ns.inum);
	bpf_core_read(e->iface, sizeof(e->iface), &dev->name);
}

/*
 * Sets the state, namespace, user and inode of a socket, and the interface of its route. Sockets in
 * TIME_WAIT and NEW_SYN_RECV are not full sockets, and have only a state and a namespace.
 */
static __always_inline void set_socket(struct loss_event *e, const struct sock *sk)
{
	const struct net *net = BPF_CORE_READ(sk, __sk_common.skc_net.net);
	struct socket *socket;

	e->state = BPF_CORE_READ(sk, __sk_common.skc_state);
	e->known |= LOSS_KNOWN_STATE;
	e->netns = BPF_CORE_READ(net, ns.inum);
	if (e->state == TCP_TIME_WAIT || e->state == TCP_NEW_SYN_RECV)
		return;
	e->uid = BPF_CORE_READ(sk, sk_uid.val);
	if (!e->ifindex) {
		const struct net_device *dev = BPF_CORE_READ(sk, sk_dst_cache, dev);

		/*
		 * A route whose device was deleted gets blackhole_dev, which has no index and is
		 * in the initial namespace.
		 */
		if (dev && BPF_CORE_READ(dev, ifindex) && BPF_CORE_READ(dev, nd_net.net) == net)
			set_device(e, dev);
	}
	socket = BPF_CORE_READ(sk, sk_socket);
	if (socket)
		e->inode = BPF_CORE_READ((struct socket_alloc *)socket, vfs_inode.i_ino);
}

/* Sets the addresses and ports of a segment that a socket sends or receives. */
static __always_inline void set_ends(struct loss_event *e, const struct sock *sk, bool outgoing)
{
	struct ends ends = {};

	probe_ends(&ends, sk);
	e->ip_version = ends.ip_version;
	__builtin_memcpy(e->saddr, outgoing ? ends.local : ends.remote, sizeof(e->saddr));
	__builtin_memcpy(e->daddr, outgoing ? ends.remote : ends.local, sizeof(e->daddr));
	e->sport = outgoing ? ends.local_port : ends.remote_port;
	e->dport = outgoing ? ends.remote_port : ends.local_port;
	if (outgoing)
		e->known |= LOSS_OUTGOING;
}

static __always_inline bool set_segment(struct loss_event *e, const struct sk_buff *skb)
{
	struct segment s;

	if (!read_segment(skb, &s))
		return false;
	__builtin_memcpy(e->saddr, s.saddr, sizeof(e->saddr));
	__builtin_memcpy(e->daddr, s.daddr, sizeof(e->daddr));
	e->sport = s.sport;
	e->dport = s.dport;
	e->ip_version = s.ip_version;
	e->tcp_flags = s.flags;
	e->seq = s.seq;
	e->len = s.payload_len;
	e->known |= LOSS_KNOWN_SEGMENT;
	return true;
}

#endif /* TCPINSPECT_LOSS_EVENT_BPF_H */
