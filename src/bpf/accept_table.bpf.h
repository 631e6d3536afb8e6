/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The table of attempts that have no fate yet. The program that removes one reports its fate. */
#ifndef TCPINSPECT_ACCEPT_TABLE_BPF_H
#define TCPINSPECT_ACCEPT_TABLE_BPF_H

#include "events.bpf.h"
#include "export.bpf.h"
#include "rate.bpf.h"
#include "process_filter.bpf.h"
#include "accept_count.bpf.h"
#include "accept_cpu.bpf.h"
#include "attempt.bpf.h"

/* The network namespace of the interfaces, by inode number. */
const volatile __u32 own_netns = 0;

/* Bits by enum accept_fate. */
const volatile __u32 wanted_fates = 0;

/* A random seed per run, so that no peer can choose attempts that share a set of `reported`. */
const volatile __u64 reported_seed = 0;

#define ATTEMPTS_MAX  65536 /* a power of two */
#define REPORTED_SETS 65536
#define REPORTED_WAYS 4

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, ATTEMPTS_MAX);
	__type(key, struct attempt_key);
	__type(value, struct attempt);
} attempts SEC(".maps");

/*
 * Attempts whose fate was reported. A part of the attempt's hash chooses a set. Each word of the
 * set is one attempt: the time of the report, more bits of the hash, and in the lowest bits the
 * fate. 0: the word is free. A retransmitted SYN of an attempt that is found here does not begin a
 * new attempt.
 */
struct reported_set {
	__u64 words[REPORTED_WAYS];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, REPORTED_SETS);
	__type(key, __u32);
	__type(value, struct reported_set);
} reported SEC(".maps");

#define REPORTED_FATE 0xfULL
#define REPORTED_HASH 0x0000fffffffffff0ULL
#define REPORTED_TIME 48 /* the lowest bit of the time, in units of 2^30 ns */

/*
 * How long a report counts, in these units. By default a Linux client gives up earlier than that.
 */
#define REPORTED_FOR 128

_Static_assert(FATE_COUNT <= REPORTED_FATE, "a fate fits");

/*
 * The attempts that were added last. When the table is full, the oldest of them that is not
 * established is evicted. Two CPUs may write the same entry: the attempt that is overwritten then
 * can't be evicted.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, ATTEMPTS_MAX);
	__type(key, __u32);
	__type(value, struct attempt_key);
} recent SEC(".maps");

/*
 * Indexes into `recent`: where the next attempt is added, and the oldest that may be evicted. Both
 * only grow; they are used modulo its size.
 */
struct {
	__u32 added;
	__u32 oldest;
} recent_at SEC(".bss.recent");

struct accept_counters accept_counters[COUNTER_SLOTS] SEC(".bss.accept")
	__attribute__((aligned(128)));

/* Set when `reported` gets its first entry: until then, nothing is looked up in it. */
bool any_reported SEC(".bss.recent");

/*
 * How many keys in the table have a destination, and how many of these have no ISN, because the
 * attempt arrived before the run. While there are none, one lookup finds the attempt of a segment.
 */
__u32 keys_with_destination SEC(".bss.recent");
__u32 keys_without_isn SEC(".bss.recent");

/*
 * Set when the RST that refuses a SYN is not sent at once. From then on, RSTs that are sent are
 * compared with such attempts.
 */
bool rst_was_delayed SEC(".bss.recent");

struct found_fate found_fate SEC(".bss.close");

/* An attempt that arrived before the run, for accept_close() to add to the table. */
struct attempt accept_seed SEC(".bss.close");

/* BTF has the type only if something refers to it. */
const struct accept_event *unused_accept_event __attribute__((unused));
const enum accept_reason *unused_accept_reason __attribute__((unused));
const enum accept_flag *unused_accept_flag __attribute__((unused));
const enum accept_phase *unused_accept_phase __attribute__((unused));

static __always_inline struct accept_counters *accept_counts(void)
{
	return &accept_counters[bpf_get_smp_processor_id() & (COUNTER_SLOTS - 1)];
}

static __always_inline __u64 mix_word(__u64 hash, __u64 word)
{
	hash = (hash ^ word) * 0x9e3779b97f4a7c15ULL;
	return hash ^ hash >> 32;
}

static __always_inline __u64 hash_words(__u64 hash, const void *addr, __u64 last)
{
	const __u32 *words = addr;

	hash = mix_word(hash, (__u64)words[0] << 32 | words[1]);
	hash = mix_word(hash, (__u64)words[2] << 32 | words[3]);
	return mix_word(hash, last);
}

static __always_inline __u64 destination_hash(const void *addr, __u16 port)
{
	return hash_words(reported_seed, addr, port);
}

/* The hash of an attempt to this destination. */
static __always_inline __u64 attempt_hash(const struct attempt_key *key, const void *addr,
					  __u16 port)
{
	return hash_words(destination_hash(addr, port), key->addr,
			  (__u64)key->isn << 32 | key->port);
}

static __always_inline void set_destination(struct attempt_key *key, const void *addr, __u16 port)
{
	key->destination = (__u16)destination_hash(addr, port) ?: 1;
}

/*
 * Tries the keys with a destination, and sets the one that is in the table. If none is, the key
 * gets no destination.
 */
static __noinline int find_destination(struct attempt_key *key, const __be32 *addr, __u16 port)
{
	const struct attempt *known;
	__u32 isn;

	if (!key || !addr)
		return 0;
	set_destination(key, addr, port);
	if (bpf_map_lookup_elem(&attempts, key))
		return 0;
	if (keys_without_isn) {
		isn = key->isn;
		key->isn = 0;
		known = bpf_map_lookup_elem(&attempts, key);
		if (known && (known->flags & ATTEMPT_SEEDED))
			return 0;
		key->isn = isn;
	}
	/*
	 * A 0 that the verifier does not know: otherwise it would check the rest of the program
	 * with each kind of key.
	 */
	key->destination = opaque_zero;
	return 0;
}

/*
 * Sets the key under which the table has the attempt to this destination, if it has it. If the
 * destination was translated on the way, this is the key of the first attempt with the same
 * initiator and ISN.
 */
static __always_inline void find_key(struct attempt_key *key, const __be32 *addr, __u16 port,
				     __u32 isn, const __be32 *to, __u16 to_port)
{
	set_key(key, addr, port, isn);
	if (keys_with_destination)
		find_destination(key, to, to_port);
}

static __always_inline struct reported_set *reported_set(__u64 hash)
{
	__u32 at = hash >> REPORTED_TIME;

	return bpf_map_lookup_elem(&reported, &at);
}

static __always_inline __u16 reported_age(__u64 word, __u64 ns)
{
	return (__u16)(ns >> 30) - (__u16)(word >> REPORTED_TIME);
}

/*
 * The fate that was reported for an attempt to this destination. FATE_NONE: none, or too long ago.
 */
static __noinline enum accept_fate reported_fate(const struct attempt_key *key, const __be32 *addr,
						 __u16 port)
{
	struct reported_set *set;
	__u64 hash, word;

	if (!key || !addr || !any_reported)
		return FATE_NONE;
	hash = attempt_hash(key, addr, port);
	set = reported_set(hash);
	if (!set)
		return FATE_NONE;
#pragma unroll
	for (int i = 0; i < REPORTED_WAYS; i++) {
		word = set->words[i];
		if (word && !((word ^ hash) & REPORTED_HASH))
			return reported_age(word, bpf_ktime_get_ns()) < REPORTED_FOR
				       ? word & REPORTED_FATE
				       : FATE_NONE;
	}
	return FATE_NONE;
}

/*
 * Stores the fate in the word of the same attempt, else in a free one, else in the oldest. Words
 * are filled from the last to the first, so the word of the same attempt comes after all free ones.
 * Two CPUs may choose the same word.
 *
 * Adding opaque_zero makes the ages unknown to the verifier, which would otherwise check each order
 * of them.
 */
static __always_inline void remember_report(const struct attempt_key *key, const struct attempt *a,
					    enum accept_fate fate, __u64 ns)
{
	__u16 age, oldest = 0;
	struct reported_set *set;
	__u32 way = opaque_zero;
	__u64 hash;

	if (!any_reported)
		any_reported = true;
	hash = attempt_hash(key, a->daddr, a->dport);
	set = reported_set(hash);
	if (!set)
		return;
#pragma unroll
	for (int i = 0; i < REPORTED_WAYS; i++) {
		age = reported_age(set->words[i], ns);
		if (!set->words[i] || !((set->words[i] ^ hash) & REPORTED_HASH))
			age = 0xffff;
		age += opaque_zero;
		if (age >= oldest) {
			oldest = age;
			way = i + opaque_zero;
		}
	}
	if (oldest < REPORTED_FOR)
		__sync_fetch_and_add(&accept_counts()->forgotten, 1);
	/* Keeps the compiler from dropping the mask, which shows the verifier the bound. */
	barrier_var(way);
	way &= REPORTED_WAYS - 1;
	set->words[way] = ns >> 30 << REPORTED_TIME | (hash & REPORTED_HASH) | fate;
}

static __always_inline void count_lost(void)
{
	__sync_fetch_and_add(&accept_counts()->matched, 1);
	__sync_fetch_and_add(&accept_counts()->lost, 1);
}

static __always_inline void count_suppressed(void)
{
	__sync_fetch_and_add(&accept_counts()->matched, 1);
	__sync_fetch_and_add(&accept_counts()->suppressed, 1);
}

/* Fills in an event, except for the process. */
static __always_inline void fill_event(struct accept_event *e, const struct attempt_key *key,
				       const struct attempt *a, enum accept_fate fate, __u64 now)
{
	e->key = *key;
	e->attempt = *a;
	e->ts_ns = now;
	e->cgroup_id = 0;
	e->pid = 0;
	e->tid = 0;
	e->uid = 0;
	e->fate = fate;
	__builtin_memset(e->comm, 0, sizeof(e->comm));
}

/* Fills in the current process, which is the one that accepts. */
static __always_inline void fill_process(struct accept_event *e)
{
	__u64 id = bpf_get_current_pid_tgid();

	e->pid = id >> 32;
	e->tid = id;
	e->uid = bpf_get_current_uid_gid();
	e->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	e->attempt.flags |= ATTEMPT_HAS_PROCESS;
	e->attempt.reason = 0;
	e->attempt.place = 0;
}

/* Counts a key with a destination. `change` is 1 when it is added to the table, -1 when removed. */
static __always_inline void count_destination(const struct attempt_key *key, __u32 change)
{
	if (!key->destination)
		return;
	__sync_fetch_and_add(&keys_with_destination, change);
	if (!key->isn)
		__sync_fetch_and_add(&keys_without_isn, change);
}

/*
 * Adds an attempt to the table. Returns 0; -EEXIST: it is there already; another error: the table
 * is full.
 */
static __always_inline long begin_attempt(const struct attempt_key *key, const struct attempt *a)
{
	__u32 at = recent_at.added & (ATTEMPTS_MAX - 1);
	struct attempt_key *place;
	long error;

	/*
	 * Counted first: while the count is 0, other programs don't look up keys with a
	 * destination.
	 */
	count_destination(key, 1);
	error = bpf_map_update_elem(&attempts, key, a, BPF_NOEXIST);
	if (error) {
		count_destination(key, -1);
		return error;
	}
	place = bpf_map_lookup_elem(&recent, &at);
	if (place)
		*place = *key;
	__sync_fetch_and_add(&recent_at.added, 1);
	return 0;
}

/*
 * Whether an attempt that continues after its fate was reported may get another fate. Counts by key
 * and the exporter's counts can't be corrected, so there the first fate stands.
 */
static __always_inline bool may_report_again(void)
{
	return !exporting && accept_output != OUTPUT_COUNTS;
}

/* Subtracts a reported fate from its counter, because the attempt continues. */
static __always_inline void uncount_fate(enum accept_fate fate)
{
	__u32 at = fate;

	barrier_var(at);
	if (at < FATE_COUNT)
		__sync_fetch_and_add(&accept_counts()->fates[at], -1);
}

/* Removes an attempt from the table. False: another program did so first, and reports its fate. */
static __always_inline bool remove_attempt(const struct attempt_key *key, enum accept_fate fate)
{
	__u32 at = fate;

	/* Keeps the compiler from dropping the bounds check, which the verifier needs. */
	barrier_var(at);
	if (at >= FATE_COUNT || bpf_map_delete_elem(&attempts, key))
		return false;
	count_destination(key, -1);
	__sync_fetch_and_add(&accept_counts()->fates[at], 1);
	return true;
}

/*
 * Whether the process filter matches. For a failed attempt only the user of the listener is known,
 * and `comm` is NULL.
 */
static __always_inline bool process_matches(__u16 flags, __u32 listener_uid, __u32 pid, __u32 uid,
					    const __u8 *comm)
{
	if (!process_filter)
		return true;
	if (comm)
		return is_wanted_process(pid, uid, comm);
	if (process_filter != FILTER_UID || !(flags & ATTEMPT_HAS_LISTENER))
		return false;
	return is_wanted_id(0, listener_uid);
}

static __always_inline bool event_matches(const struct accept_event *e, bool by_current)
{
	return process_matches(e->attempt.flags, e->attempt.uid, e->pid, e->uid,
			       by_current ? e->comm : NULL);
}

/* Whether this fate is asked for. A fate that corrects an earlier one is always shown. */
static __always_inline bool is_wanted_fate(const struct attempt *a, enum accept_fate fate)
{
	return (wanted_fates & (1 << fate)) ||
	       (accept_output == OUTPUT_EVENTS && (a->flags & ATTEMPT_CONTINUED));
}

/* Counts a fate instead of sending an event. */
static __always_inline int report_by_count(const struct attempt_key *key, const struct attempt *a,
					   enum accept_fate fate, bool by_current, __u64 now)
{
	__u64 id, from, to;
	struct accept_count_key count = {};
	__u8 comm[COMM_LEN] = {};
	__u32 pid = 0, uid = 0;
	bool matches;

	if (fate == FATE_NONE)
		return 0;
	if (by_current) {
		id = bpf_get_current_pid_tgid();
		pid = id >> 32;
		uid = bpf_get_current_uid_gid();
		bpf_get_current_comm(comm, sizeof(comm));
	}
	/* Read it before it is deleted: after that its memory can be reused. */
	set_count_key(&count, key, a, fate, by_current ? comm : NULL);
	from = accept_output == OUTPUT_HANDSHAKE ? a->syn_ns : a->established_ns;
	to = accept_output == OUTPUT_HANDSHAKE ? a->established_ns : by_current ? now : 0;
	matches = is_wanted_fate(a, fate) && (accept_output == OUTPUT_COUNTS || (from && to)) &&
		  process_matches(a->flags, a->uid, pid, uid, by_current ? comm : NULL);
	if (!remove_attempt(key, fate) || !matches)
		return 0;
	__sync_fetch_and_add(&accept_counts()->matched, 1);
	if (accept_output == OUTPUT_COUNTS)
		count_fate(&count);
	else
		count_time(&count, from, to);
	return 0;
}

/*
 * Reports a fate through the perf event array. The event is on the stack, because programs can
 * interrupt each other.
 */
static __always_inline int report_by_perf(void *ctx, const struct attempt_key *key,
					  const struct attempt *a, enum accept_fate fate,
					  bool by_current, __u64 now)
{
	struct accept_counters *c = accept_counts();
	struct accept_event e;

	fill_event(&e, key, a, fate, now);
	if (by_current)
		fill_process(&e);
	if (fate != FATE_NONE && !remove_attempt(key, fate))
		return 0;
	if (!is_wanted_fate(&e.attempt, fate) || !event_matches(&e, by_current))
		return 0;
	__sync_fetch_and_add(&c->matched, 1);
	if (is_over_rate(now))
		__sync_fetch_and_add(&c->suppressed, 1);
	else if (send_event(ctx, &e, sizeof(e)))
		__sync_fetch_and_add(&c->lost, 1);
	return 0;
}

/*
 * Reports a fate through the ring buffer, and builds the event there. Few values are live at a
 * time, so that the pointer to the reserved memory stays in a register: Linux before 5.12 does not
 * track such a pointer on the stack.
 */
static __always_inline int report_by_ring(const struct attempt_key *key, const struct attempt *a,
					  enum accept_fate fate, bool by_current, __u64 now)
{
	struct accept_event *e;

	if (!is_wanted_fate(a, fate)) {
		if (fate != FATE_NONE)
			remove_attempt(key, fate);
		return 0;
	}
	/* In a flood, suppressed events take no room in the buffer. */
	if (!process_filter && is_over_rate(now)) {
		if (fate == FATE_NONE || remove_attempt(key, fate))
			count_suppressed();
		return 0;
	}
	e = bpf_ringbuf_reserve(&ring, sizeof(*e), 0);
	if (!e) {
		if (fate == FATE_NONE || remove_attempt(key, fate))
			count_lost();
		return 0;
	}
	/* Read it before it is deleted: after that its memory can be reused. */
	fill_event(e, key, a, fate, now);
	if (fate != FATE_NONE && !remove_attempt(key, fate)) {
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		return 0;
	}
	if (by_current)
		fill_process(e);
	if (!event_matches(e, by_current)) {
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		return 0;
	}
	if (process_filter && is_over_rate(now)) {
		count_suppressed();
		bpf_ringbuf_discard(e, BPF_RB_NO_WAKEUP);
		return 0;
	}
	__sync_fetch_and_add(&accept_counts()->matched, 1);
	bpf_ringbuf_submit(e, 0);
	return 0;
}

/*
 * Counts a fate for the exporter. The attempt is read before it is deleted: after that its memory
 * can be reused.
 */
static __always_inline int export_fate(const struct attempt_key *key, const struct attempt *a,
				       enum accept_fate fate, bool by_current, __u64 now)
{
	__u64 syn_ns = a->syn_ns, established_ns = a->established_ns;
	struct export_key counted = { .kind = fate };

	if (fate != FATE_ACCEPTED) {
		counted.reason = a->reason;
		if (!is_specific(a->reason))
			counted.place = a->place;
	}
	if (fate == FATE_NONE || !remove_attempt(key, fate))
		return 0;
	export_count(&counted, 1);
	if (syn_ns && established_ns)
		export_time(EXPORT_HANDSHAKE, established_ns - syn_ns);
	if (by_current && established_ns)
		export_time(EXPORT_ACCEPT_WAIT, now - established_ns);
	return 0;
}

/*
 * The time of a fate. If the kernel refuses or drops a SYN at once, this is the time of the SYN: in
 * a flood, the clock is then read only once for each SYN.
 */
static __always_inline __u64 fate_time(const struct attempt *a, enum accept_fate fate)
{
	/*
	 * Tested as bits, so that the verifier does not check the rest of the program for each
	 * fate.
	 */
	const __u32 at_once = 1 << FATE_REFUSED | 1 << FATE_DROPPED;

	if ((1 << fate & at_once) && a->phase == ATTEMPT_NEW && came_just_now(a->last_syn_ns))
		return a->last_syn_ns;
	return bpf_ktime_get_ns();
}

/* Reports that an attempt in the table has arrived, or what became of it. */
static __always_inline int report_fate(void *ctx, const struct attempt_key *key,
				       const struct attempt *a, enum accept_fate fate,
				       bool by_current)
{
	__u64 now = fate_time(a, fate);

	if (fate != FATE_NONE && fate != FATE_ACCEPTED)
		remember_report(key, a, fate, now);
	if (exporting)
		return export_fate(key, a, fate, by_current, now);
	if (accept_output != OUTPUT_EVENTS)
		return report_by_count(key, a, fate, by_current, now);
	if (use_perf_buffer)
		return report_by_perf(ctx, key, a, fate, by_current, now);
	return report_by_ring(key, a, fate, by_current, now);
}

static __noinline int report(void *ctx, const struct attempt_key *key, const struct attempt *a,
			     enum accept_fate fate)
{
	if (!key || !a)
		return 0;
	/*
	 * Makes the fate unknown to the verifier, which would otherwise check the rest of the
	 * program for each fate.
	 */
	return report_fate(ctx, key, a, (fate + opaque_zero) & REPORTED_FATE, false);
}

/* A function of its own, because not every kernel lets a program at an interface ask for the
 * current process. */
static __noinline int report_accepted(void *ctx, const struct attempt_key *key,
				      const struct attempt *a)
{
	if (!key || !a)
		return 0;
	return report_fate(ctx, key, a, FATE_ACCEPTED, true);
}

/* Whether the SYN has left, and the queues of a listener do not explain why it was not answered. */
static __always_inline bool has_left(const struct attempt *a)
{
	const __u16 full = ATTEMPT_ACCEPT_QUEUE_FULL | ATTEMPT_SYN_QUEUE_FULL;

	return (a->flags & (ATTEMPT_LEFT | full)) == ATTEMPT_LEFT;
}

/* How many entries of `recent` are tried to find an attempt to evict. */
#define EVICT_TRIES 8

/*
 * Chooses the attempt to evict when the table is full: the oldest that is not established. The
 * caller reports it as pending. In a flood of SYNs with forged sources, no attempt is established.
 */
static __noinline int choose_evicted(struct attempt_key *key)
{
	struct attempt *known;
	struct attempt_key *place;

	if (!key)
		return 0;
	for (int i = 0; i < EVICT_TRIES; i++) {
		__u32 oldest = recent_at.oldest, added = recent_at.added;
		__u32 at;

		if (added - oldest > ATTEMPTS_MAX)
			oldest = added - ATTEMPTS_MAX;
		if (oldest == added)
			return 0;
		recent_at.oldest = oldest + 1;
		at = oldest & (ATTEMPTS_MAX - 1);
		place = bpf_map_lookup_elem(&recent, &at);
		if (!place)
			return 0;
		*key = *place;
		known = bpf_map_lookup_elem(&attempts, key);
		if (!known || known->phase == ATTEMPT_ESTABLISHED)
			continue;
		if (has_left(known))
			return 1;
		known->reason = REASON_TABLE_FULL;
		known->flags &= ~ATTEMPT_REASON_FROM_KERNEL;
		return 1;
	}
	return 0;
}

#endif /* TCPINSPECT_ACCEPT_TABLE_BPF_H */
