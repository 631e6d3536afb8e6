// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * connect-trace: the life of connections, from attempt to end.
 *
 * The state tracepoint carries all backends: it sees SYN_SENT and what comes of it. fentry/fexit
 * or kprobe/kretprobe on the connect functions add what it can't see: the return value, failures
 * that come before SYN_SENT, and the source port at the attempt.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_tracing.h>
#include "filter.bpf.h"
#include "events.bpf.h"
#include "connect_trace.h"

#define AF_INET	      2
#define AF_INET6      10
#define IPPROTO_TCP   6
#define EPIPE	      32
#define EADDRNOTAVAIL 99
#define ECONNABORTED  103
#define ECONNRESET    104
#define SHUTDOWN_MASK 3

enum tcp_state {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
};

const volatile __u32 wanted_kinds = 0;		       /* bits by enum connect_kind */
const volatile enum process_filter process_filter = 0; /* any of them, or-ed */

/* accept is seen by a hook of its own; if not, at establishment and without a process. */
const volatile bool accept_is_hooked = false;

/* The connect functions of the address families that are hooked. */
const volatile bool ipv4_is_hooked = false;
const volatile bool ipv6_is_hooked = false;

/* The kernel forbids bpf_probe_read_kernel under lockdown=confidentiality. */
const volatile bool may_probe_read = true;

struct connect_counters totals = {};

enum phase {
	PHASE_CALLING, /* inside the connect function, to be announced when it returns */
	PHASE_WAITING, /* for its fate */
	PHASE_OPEN,    /* for its end */
};

/* A connection on its way, by socket. `event` is what is known of it so far. */
struct connection {
	struct connect_event event;
	__u64 started_ns;
	__be16 old_sport; /* what inet_sport was when the attempt began: of an earlier one, if any
			   */
	__u8 phase;
	__u8 function;	/* 4 or 6: the connect function that returns last */
	__u8 sent;	/* it got as far as SYN_SENT, and has not failed since */
	__u8 announced; /* the attempt was judged by the filter, and emitted if wanted */
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, struct connection);
} connections SEC(".maps");

/*
 * A kretprobe doesn't have the arguments: the socket a thread is connecting, by pid_tgid. LRU
 * because a return that the kernel misses leaves an entry, and its thread may not come back.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u64);
} calls SEC(".maps");

/*
 * Connections that the filter has passed over, by socket: when they end they must not be taken
 * for older ones, whose direction is unknown and which are judged by another measure.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, __u64);
	__type(value, __u8);
} passed_over SEC(".maps");

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

/* BTF has the types only if something refers to them. */
const struct connect_event *unused_connect_event __attribute__((unused));
const struct comm_key *unused_comm_key __attribute__((unused));

static __always_inline bool wanted(enum connect_kind kind)
{
	return wanted_kinds & (1 << kind);
}

static __always_inline void count_lost(void)
{
	__sync_fetch_and_add(&totals.matched, 1);
	__sync_fetch_and_add(&totals.lost, 1);
}

/* Programs here can interrupt each other on a CPU: counters are atomic, events on the stack. */
static __noinline int emit(void *ctx, struct connect_event *e, enum connect_kind kind)
{
	if (!e || !wanted(kind))
		return 0;
	e->kind = kind;
	__sync_fetch_and_add(&totals.matched, 1);
	if (send_event(ctx, e, sizeof(*e)))
		__sync_fetch_and_add(&totals.lost, 1);
	return 0;
}

static __always_inline bool is_mapped(const __be32 *addr)
{
	return !addr[0] && !addr[1] && addr[2] == bpf_htonl(0xffff);
}

static __always_inline void set_mapped(__be32 *to, __be32 addr)
{
	to[0] = 0;
	to[1] = 0;
	to[2] = bpf_htonl(0xffff);
	to[3] = addr;
}

static __always_inline bool is_unset(const __u8 *addr)
{
	const __be32 *word = (const __be32 *)addr;

	return !word[0] && !word[1] && !word[2] && !word[3];
}

/* The two ends of a connection as a socket has them. */
struct ends {
	__be32 local[4]; /* IPv4 as v4-mapped */
	__be32 remote[4];
	__u16 local_port;
	__u16 remote_port;
	__u8 ip_version;
};

/* The members are read through the BTF pointer itself, which works under any lockdown. Always from
 * the sock itself: for each type that members are named of, libbpf searches all of the kernel's. */
static __always_inline void read_ends(struct ends *ends, const struct sock *sk)
{
	ends->local_port = sk->__sk_common.skc_num;
	ends->remote_port = bpf_ntohs(sk->__sk_common.skc_dport);
	ends->ip_version = 4;
	if (sk->__sk_common.skc_family == AF_INET6 &&
	    bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		ends->local[0] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[0];
		ends->local[1] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[1];
		ends->local[2] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[2];
		ends->local[3] = sk->__sk_common.skc_v6_rcv_saddr.in6_u.u6_addr32[3];
		ends->remote[0] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[0];
		ends->remote[1] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[1];
		ends->remote[2] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[2];
		ends->remote[3] = sk->__sk_common.skc_v6_daddr.in6_u.u6_addr32[3];
		if (!is_mapped(ends->remote))
			ends->ip_version = 6;
	} else {
		set_mapped(ends->local, sk->__sk_common.skc_rcv_saddr);
		set_mapped(ends->remote, sk->__sk_common.skc_daddr);
	}
}

/* The local port; unlike skc_num it is still there when the socket is closed. */
static __always_inline __be16 read_inet_sport(const struct tcp_sock *tp)
{
	return tp->inet_conn.icsk_inet.inet_sport;
}

static __always_inline __u32 read_netns(const struct sock *sk)
{
	if (!bpf_core_field_exists(sk->__sk_common.skc_net.net))
		return 0;
	if (may_probe_read)
		return BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	return sk->__sk_common.skc_net.net->ns.inum;
}

/* Source and destination from here and there: the source is the initiator. */
static __always_inline void set_ends(struct connect_event *e, const struct ends *ends)
{
	bool in = e->direction == DIRECTION_IN;

	e->ip_version = ends->ip_version;
	e->sport = in ? ends->remote_port : ends->local_port;
	e->dport = in ? ends->local_port : ends->remote_port;
	if (in) {
		__builtin_memcpy(e->saddr, ends->remote, sizeof(e->saddr));
		__builtin_memcpy(e->daddr, ends->local, sizeof(e->daddr));
	} else {
		__builtin_memcpy(e->saddr, ends->local, sizeof(e->saddr));
		__builtin_memcpy(e->daddr, ends->remote, sizeof(e->daddr));
	}
}

static __always_inline void set_process(struct connect_event *e)
{
	__u64 id = bpf_get_current_pid_tgid();

	e->pid = id >> 32;
	e->tid = id;
	e->uid = bpf_get_current_uid_gid();
	e->cgroup_id = bpf_get_current_cgroup_id();
	bpf_get_current_comm(e->comm, sizeof(e->comm));
	e->known |= KNOWN_PROCESS;
}

static __always_inline bool process_matches(const struct connect_event *e)
{
	if (!process_filter)
		return true;
	if (!(e->known & KNOWN_PROCESS))
		return false;
	if ((process_filter & FILTER_PID) && !bpf_map_lookup_elem(&pids, &e->pid))
		return false;
	if ((process_filter & FILTER_UID) && !bpf_map_lookup_elem(&uids, &e->uid))
		return false;
	if (process_filter & FILTER_COMM) {
		struct comm_key key = {};
		bool ended = false;

		/* What follows the NUL is the process's leftovers. */
		for (int i = 0; i < COMM_LEN; i++) {
			ended |= !e->comm[i];
			key.comm[i] = ended ? 0 : e->comm[i];
		}
		if (!bpf_map_lookup_elem(&comms, &key))
			return false;
	}
	return true;
}

/* What an LPM key wants: IPv4 in the first word. */
static __always_inline void filter_address(__be32 *to, const struct connect_event *e,
					   const __u8 *addr)
{
	__builtin_memcpy(to, addr, 16);
	if (e->ip_version == 4) {
		to[0] = to[3];
		to[1] = to[2] = to[3] = 0;
	}
}

static __always_inline bool destination_matches(const struct connect_event *e)
{
	__be32 daddr[4];

	if (!version_matches(e->ip_version))
		return false;
	if ((filter.parts & FILTER_DPORT) && !has_port(dport_bits, e->dport))
		return false;
	if (!(filter.parts & (FILTER_DST_ONLY | FILTER_DST_NOT)))
		return true;
	filter_address(daddr, e, e->daddr);
	return daddr_matches(e->ip_version, daddr);
}

static __always_inline bool source_matches(const struct connect_event *e)
{
	__be32 saddr[4];

	if ((filter.parts & FILTER_SPORT) && !has_port(sport_bits, e->sport))
		return false;
	if (!(filter.parts & (FILTER_SRC_ONLY | FILTER_SRC_NOT)))
		return true;
	filter_address(saddr, e, e->saddr);
	return saddr_matches(e->ip_version, saddr);
}

static __always_inline bool matches(const struct connect_event *e)
{
	return process_matches(e) && destination_matches(e) && source_matches(e);
}

/* An attempt is no longer one whose call has yet to return. */
static __always_inline void end_call(const struct connection *c)
{
	if (c->phase == PHASE_CALLING)
		__sync_fetch_and_add(&totals.calling, -1);
}

/* A socket begins anew, so what was kept of it before has ended unseen. */
static __always_inline void give_up(const struct connection *c)
{
	end_call(c);
	count_lost();
}

/* Keeps a connection until its fate or end. Without room for it nothing more can be said of it. */
static __always_inline bool keep(__u64 key, const struct connection *c)
{
	if (bpf_map_update_elem(&connections, &key, c, BPF_ANY)) {
		count_lost();
		return false;
	}
	if (c->phase == PHASE_CALLING)
		__sync_fetch_and_add(&totals.calling, 1);
	return true;
}

/* Judges and emits the attempt, at the latest when its fate is known. False: not asked for. */
static __always_inline bool announce(void *ctx, struct connection *c)
{
	if (c->announced)
		return true;
	if (!source_matches(&c->event))
		return false;
	c->announced = true;
	c->event.ts_ns = c->started_ns;
	return !emit(ctx, &c->event, CONNECT_ATTEMPT);
}

static __always_inline void set_elapsed(struct connection *c)
{
	c->event.ts_ns = bpf_ktime_get_ns();
	c->event.elapsed_ns = c->event.ts_ns - c->started_ns;
	c->event.known |= KNOWN_START;
}

static __always_inline void start_connection(struct connection *c)
{
	c->started_ns = bpf_ktime_get_ns();
	c->event.ts_ns = c->started_ns;
	c->event.direction = DIRECTION_OUT;
	set_process(&c->event);
}

/* ---- the connect functions ---- */

/* The destination, from the kernel's copy of what the caller of connect() passed. */
static __always_inline void read_destination(struct connect_event *e, const struct sockaddr *to,
					     __u8 function)
{
	struct {
		__u16 family;
		__be16 port;
		__be32 ipv4_or_flow;
		__be32 ipv6[4];
	} copy = {};
	__be32 addr[4];

	if (may_probe_read) {
		/* An IPv4 address has 16 bytes, an IPv6 one 28; more may not be there to read. */
		bpf_probe_read_kernel(&copy, function == 4 ? 8 : 24, to);
	} else {
		/* As far as struct sockaddr reaches: for IPv6 see on_return. */
		copy.port = *(__be16 *)&to->sa_data[0];
		copy.ipv4_or_flow = *(__be32 *)&to->sa_data[2];
	}
	e->dport = bpf_ntohs(copy.port);
	if (function == 4) {
		set_mapped(addr, copy.ipv4_or_flow);
		e->ip_version = 4;
	} else {
		__builtin_memcpy(addr, copy.ipv6, sizeof(addr));
		e->ip_version = is_mapped(addr) ? 4 : 6;
	}
	__builtin_memcpy(e->daddr, addr, sizeof(addr));
}

/* True if the connection is to be followed. */
static __always_inline bool on_call(const struct sock *sk, const struct sockaddr *to, __u8 function,
				    __u32 netns, __u16 bound_port)
{
	struct connection c = { .phase = PHASE_CALLING, .function = function };
	__u64 key = (__u64)sk;
	struct connection *outer = bpf_map_lookup_elem(&connections, &key);

	/* tcp_v6_connect hands a v4-mapped destination on to tcp_v4_connect: still one attempt. */
	if (function == 4 && outer && outer->phase == PHASE_CALLING && outer->function == 6 &&
	    outer->event.tid == (__u32)bpf_get_current_pid_tgid())
		return false;
	if (outer) {
		give_up(outer);
		bpf_map_delete_elem(&connections, &key);
	}
	start_connection(&c);
	c.event.netns = netns;
	c.event.sport = bound_port;
	read_destination(&c.event, to, function);
	if (!process_matches(&c.event) || !version_matches(c.event.ip_version))
		return false;
	/* Where the address can't be read here, the filter waits until it can. */
	if ((may_probe_read || function == 4) && !destination_matches(&c.event))
		return false;
	return keep(key, &c);
}

static __always_inline void on_return(void *ctx, __u64 key, int ret, __u8 function, __u16 port,
				      const __be32 *v6_daddr)
{
	struct connection *kept = bpf_map_lookup_elem(&connections, &key);
	struct connection c;

	if (!kept || kept->phase != PHASE_CALLING || kept->function != function)
		return;
	c = *kept;
	end_call(&c);
	c.event.ret = ret;
	c.event.known |= KNOWN_RET;
	if (port)
		c.event.sport = port;
	if (v6_daddr && function == 6 && ret < 0 && is_unset(c.event.daddr)) {
		__builtin_memcpy(c.event.daddr, v6_daddr, sizeof(c.event.daddr));
		c.event.ip_version = is_mapped(v6_daddr) ? 4 : 6;
	}
	if (!destination_matches(&c.event) || !announce(ctx, &c)) {
		bpf_map_delete_elem(&connections, &key);
		return;
	}
	if (ret < 0) {
		bpf_map_delete_elem(&connections, &key);
		set_elapsed(&c);
		c.event.error = -ret;
		c.event.known |= KNOWN_ERROR;
		emit(ctx, &c.event, CONNECT_FAILED);
		return;
	}
	c.phase = PHASE_WAITING;
	bpf_map_update_elem(&connections, &key, &c, BPF_EXIST);
}

SEC("fentry/tcp_v4_connect")
int BPF_PROG(enter_tcp_v4_connect, struct sock *sk, struct sockaddr *uaddr)
{
	on_call(sk, uaddr, 4, read_netns(sk), sk->__sk_common.skc_num);
	return 0;
}

SEC("fentry/tcp_v6_connect")
int BPF_PROG(enter_tcp_v6_connect, struct sock *sk, struct sockaddr *uaddr)
{
	on_call(sk, uaddr, 6, read_netns(sk), sk->__sk_common.skc_num);
	return 0;
}

SEC("fexit/tcp_v4_connect")
int BPF_PROG(exit_tcp_v4_connect, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	on_return(ctx, (__u64)sk, ret, 4, sk->__sk_common.skc_num, NULL);
	return 0;
}

SEC("fexit/tcp_v6_connect")
int BPF_PROG(exit_tcp_v6_connect, struct sock *sk, struct sockaddr *uaddr, int addr_len, int ret)
{
	struct ends ends;

	/* Unlike its IPv4 sibling it leaves the destination in the socket when it fails. */
	read_ends(&ends, sk);
	on_return(ctx, (__u64)sk, ret, 6, ends.local_port, ends.remote);
	return 0;
}

static __always_inline bool is_inner_call(__u64 key)
{
	const struct connection *c = bpf_map_lookup_elem(&connections, &key);

	return c && c->phase == PHASE_CALLING && c->function == 6;
}

/* The kernel missed the return of a call, or the thread would not be in another one. */
static __always_inline void on_missed_return(__u64 key)
{
	struct connection *c = bpf_map_lookup_elem(&connections, &key);

	if (!c || c->phase != PHASE_CALLING || c->event.tid != (__u32)bpf_get_current_pid_tgid())
		return;
	if (c->sent) {
		/* Its fate will be seen, and announces it first. */
		end_call(c);
		c->phase = PHASE_WAITING;
		return;
	}
	give_up(c);
	bpf_map_delete_elem(&connections, &key);
}

static __always_inline int on_kprobe(struct pt_regs *ctx, __u8 function)
{
	const struct sock *sk = (const struct sock *)PT_REGS_PARM1(ctx);
	__u64 id = bpf_get_current_pid_tgid(), key = (__u64)sk, *call;
	__u32 netns = 0;

	call = bpf_map_lookup_elem(&calls, &id);
	if (call) {
		__u64 other = *call;

		if (function == 4 && other == key && is_inner_call(key))
			return 0;
		bpf_map_delete_elem(&calls, &id);
		on_missed_return(other);
	}
	if (bpf_core_field_exists(sk->__sk_common.skc_net.net))
		netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	if (on_call(sk, (const struct sockaddr *)PT_REGS_PARM2(ctx), function, netns,
		    BPF_CORE_READ(sk, __sk_common.skc_num)))
		bpf_map_update_elem(&calls, &id, &key, BPF_ANY);
	return 0;
}

static __always_inline int on_kretprobe(struct pt_regs *ctx, __u8 function)
{
	__u64 id = bpf_get_current_pid_tgid();
	__u64 *call = bpf_map_lookup_elem(&calls, &id);
	__u64 key;

	if (!call)
		return 0;
	key = *call;
	/* The return of tcp_v4_connect inside tcp_v6_connect is not the end of the call. */
	if (function == 4 && is_inner_call(key))
		return 0;
	bpf_map_delete_elem(&calls, &id);
	on_return(ctx, key, PT_REGS_RC(ctx), function,
		  BPF_CORE_READ((const struct sock *)key, __sk_common.skc_num), NULL);
	return 0;
}

SEC("kprobe/tcp_v4_connect")
int kprobe_tcp_v4_connect(struct pt_regs *ctx)
{
	return on_kprobe(ctx, 4);
}

SEC("kprobe/tcp_v6_connect")
int kprobe_tcp_v6_connect(struct pt_regs *ctx)
{
	return on_kprobe(ctx, 6);
}

SEC("kretprobe/tcp_v4_connect")
int kretprobe_tcp_v4_connect(struct pt_regs *ctx)
{
	return on_kretprobe(ctx, 4);
}

SEC("kretprobe/tcp_v6_connect")
int kretprobe_tcp_v6_connect(struct pt_regs *ctx)
{
	return on_kretprobe(ctx, 6);
}

/* ---- accept ---- */

static __always_inline void copy_process(struct connect_event *to, const struct connect_event *from)
{
	to->pid = from->pid;
	to->tid = from->tid;
	to->uid = from->uid;
	to->cgroup_id = from->cgroup_id;
	__builtin_memcpy(to->comm, from->comm, sizeof(to->comm));
	to->known |= KNOWN_PROCESS;
}

static __always_inline void on_accept(void *ctx, const struct sock *sk, const struct ends *ends,
				      __u32 netns, int state)
{
	__u64 key = (__u64)sk;
	struct connection *kept = bpf_map_lookup_elem(&connections, &key);
	struct connection c = { .phase = PHASE_OPEN };

	c.started_ns = bpf_ktime_get_ns();
	c.event.direction = DIRECTION_IN;
	c.event.ts_ns = c.started_ns;
	c.event.netns = netns;
	set_process(&c.event);
	set_ends(&c.event, ends);
	if (!matches(&c.event)) {
		/* Its end was to be told for want of a process that could be judged. */
		if (kept && process_filter)
			bpf_map_delete_elem(&connections, &key);
		return;
	}
	/* Its end will be told with the process that accepted it. */
	if (kept)
		copy_process(&kept->event, &c.event);
	/* TCP Fast Open: a connection can be accepted before it is established. */
	else if (wanted(CONNECT_CLOSED) && state == TCP_SYN_RECV)
		keep(key, &c);
	emit(ctx, &c.event, CONNECT_ACCEPTED);
}

static __always_inline int on_accept_directly(void *ctx, const struct sock *sk)
{
	const struct tcp_sock *tp;
	struct ends ends;

	if (!sk || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	if (!tp)
		return 0;
	read_ends(&ends, sk);
	/* It may have been reset before it was accepted. */
	ends.local_port = bpf_ntohs(read_inet_sport(tp));
	on_accept(ctx, sk, &ends, read_netns(sk), sk->__sk_common.skc_state);
	return 0;
}

/* Before Linux 6.10: (sk, flags, err, kern). */
SEC("fexit/inet_csk_accept")
int BPF_PROG(exit_accept_4, struct sock *listener, int flags, int *err, bool kern, struct sock *sk)
{
	return on_accept_directly(ctx, sk);
}

/* Since: (sk, arg). */
SEC("fexit/inet_csk_accept")
int BPF_PROG(exit_accept_2, struct sock *listener, void *arg, struct sock *sk)
{
	return on_accept_directly(ctx, sk);
}

SEC("kretprobe/inet_csk_accept")
int kretprobe_accept(struct pt_regs *ctx)
{
	const struct sock *sk = (const struct sock *)PT_REGS_RC(ctx);
	struct ends ends = { .ip_version = 4 };
	__u32 netns = 0;

	if (!sk || BPF_CORE_READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (bpf_core_field_exists(sk->__sk_common.skc_net.net))
		netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	ends.local_port = bpf_ntohs(
		BPF_CORE_READ((const struct tcp_sock *)sk, inet_conn.icsk_inet.inet_sport));
	ends.remote_port = bpf_ntohs(BPF_CORE_READ(sk, __sk_common.skc_dport));
	if (BPF_CORE_READ(sk, __sk_common.skc_family) == AF_INET6 &&
	    bpf_core_field_exists(sk->__sk_common.skc_v6_daddr)) {
		BPF_CORE_READ_INTO(&ends.local, sk, __sk_common.skc_v6_rcv_saddr);
		BPF_CORE_READ_INTO(&ends.remote, sk, __sk_common.skc_v6_daddr);
		if (!is_mapped(ends.remote))
			ends.ip_version = 6;
	} else {
		set_mapped(ends.local, BPF_CORE_READ(sk, __sk_common.skc_rcv_saddr));
		set_mapped(ends.remote, BPF_CORE_READ(sk, __sk_common.skc_daddr));
	}
	on_accept(ctx, sk, &ends, netns, BPF_CORE_READ(sk, __sk_common.skc_state));
	return 0;
}

/* ---- the state tracepoint ---- */

/*
 * What is found behind pointers of a socket. It is read in one place, and by a helper if that is
 * allowed: for each place that loads a pointer the verifier searches all of the kernel's types,
 * some milliseconds long.
 */
struct behind {
	__u32 netns;
	bool in_connect; /* the connect function closes the socket when it fails */
};

static __always_inline bool is_unconnected(const struct sock *sk)
{
	const struct socket *socket;

	if (may_probe_read) {
		socket = BPF_CORE_READ(sk, sk_socket);
		return socket && BPF_CORE_READ(socket, state) == SS_UNCONNECTED;
	}
	socket = sk->sk_socket;
	return socket && socket->state == SS_UNCONNECTED;
}

static __always_inline struct behind look_behind(const struct sock *sk,
						 const struct connection *kept, int new_state)
{
	struct behind behind = {};

	/* Where it is not known from before. */
	if (!kept || kept->phase == PHASE_OPEN || new_state == TCP_SYN_SENT)
		behind.netns = read_netns(sk);
	if (kept && new_state == TCP_CLOSE && is_unconnected(sk))
		behind.in_connect = !sk->sk_err && sk->sk_shutdown != SHUTDOWN_MASK;
	return behind;
}

/* Whether the connect function is hooked, and the caller in it. */
static __always_inline bool is_in_call(const struct connection *kept)
{
	return kept && kept->phase == PHASE_CALLING &&
	       kept->event.tid == (__u32)bpf_get_current_pid_tgid();
}

/* The call will return to a hook that knows more. */
static __always_inline void on_syn_sent_in_call(const struct sock *sk, const struct tcp_sock *tp,
						struct connection *kept)
{
	struct ends ends;

	read_ends(&ends, sk);
	set_ends(&kept->event, &ends);
	kept->old_sport = read_inet_sport(tp);
	kept->sent = true;
}

static __always_inline void on_syn_sent(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
					const struct behind *behind, __u64 key,
					struct connection *kept)
{
	struct connection c = {
		.phase = PHASE_WAITING,
		.sent = true,
		.event.direction = DIRECTION_OUT,
	};
	struct ends ends;

	if (kept) {
		give_up(kept);
		bpf_map_delete_elem(&connections, &key);
	}
	read_ends(&ends, sk);
	set_ends(&c.event, &ends);
	/* First, for it takes least. */
	if (!destination_matches(&c.event))
		return;
	start_connection(&c);
	c.event.netns = behind->netns;
	c.old_sport = read_inet_sport(tp);
	if (!process_matches(&c.event))
		return;
	if (sk->__sk_common.skc_family == AF_INET6 ? ipv6_is_hooked : ipv4_is_hooked)
		__sync_fetch_and_add(&totals.unhooked, 1);
	/* The source port is chosen after this; a filter on it has to wait for the fate. */
	c.announced = !(filter.parts & FILTER_SPORT) || c.event.sport;
	if (c.announced && !source_matches(&c.event))
		return;
	if (keep(key, &c) && c.announced)
		emit(ctx, &c.event, CONNECT_ATTEMPT);
}

static __always_inline bool remembers_passed_over(void)
{
	return wanted(CONNECT_CLOSED) && filter.parts;
}

static __always_inline void pass_over(__u64 key)
{
	__u8 yes = 1;

	if (remembers_passed_over())
		bpf_map_update_elem(&passed_over, &key, &yes, BPF_ANY);
}

/* Follows a connection to its end; `c` is what is known of it by now. */
static __always_inline void keep_open(__u64 key, struct connection *c)
{
	c->phase = PHASE_OPEN;
	c->started_ns = bpf_ktime_get_ns();
	keep(key, c);
}

static __always_inline void on_established(void *ctx, const struct sock *sk,
					   const struct behind *behind, __u64 key,
					   struct connection *kept, int old_state)
{
	struct connection c = {};
	struct ends ends;

	read_ends(&ends, sk);
	if (kept && kept->phase != PHASE_OPEN) {
		c = *kept;
		end_call(&c);
		set_ends(&c.event, &ends);
		if (!announce(ctx, &c)) {
			bpf_map_delete_elem(&connections, &key);
			pass_over(key);
			return;
		}
		set_elapsed(&c);
		emit(ctx, &c.event, CONNECT_ESTABLISHED);
		if (wanted(CONNECT_CLOSED))
			keep_open(key, &c);
		else
			bpf_map_delete_elem(&connections, &key);
		return;
	}
	/* SYN_SENT without an entry was filtered out, or is older than the tool. */
	if (old_state != TCP_SYN_RECV) {
		pass_over(key);
		return;
	}
	if (kept && kept->event.direction == DIRECTION_IN)
		return; /* accepted already */
	c.event.direction = DIRECTION_IN;
	c.event.ts_ns = bpf_ktime_get_ns();
	c.event.netns = behind->netns;
	set_ends(&c.event, &ends);
	if (!destination_matches(&c.event) || !source_matches(&c.event)) {
		pass_over(key);
		return;
	}
	if (!accept_is_hooked && process_matches(&c.event))
		emit(ctx, &c.event, CONNECT_ACCEPTED);
	if (wanted(CONNECT_CLOSED))
		keep_open(key, &c);
}

/*
 * Why a connection left SYN_SENT for CLOSE. The kernel sets sk_err for what the network said;
 * without it, the end came from this side.
 */
static __always_inline void set_error(struct connection *c, const struct sock *sk,
				      const struct behind *behind, __be16 sport)
{
	int error = sk->sk_err;

	/* What the network said while a call held the socket, as tcp_write_err() takes it. */
	if (!error && !behind->in_connect)
		error = sk->sk_err_soft;
	if (!error) {
		if (behind->in_connect) {
			/* Its return value is not seen here, but this is how it runs out of ports.
			 */
			if (c->event.sport || sport != c->old_sport)
				return;
			error = EADDRNOTAVAIL;
		} else if (sk->sk_shutdown == SHUTDOWN_MASK || sk->sk_lock.owned) {
			/* close(), shutdown(), connect() to AF_UNSPEC, or the process was killed */
			error = ECONNABORTED;
		} else {
			return; /* the process was quick to fetch it with SO_ERROR */
		}
	}
	c->event.error = error;
	c->event.known |= KNOWN_ERROR;
}

static __always_inline bool has_sent_fin(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
	       state == TCP_LAST_ACK;
}

static __always_inline enum connect_closed_by closed_by(const struct sock *sk, int old_state)
{
	int error = sk->sk_err;

	if (error == ECONNRESET || error == EPIPE || error == ECONNABORTED)
		return CLOSED_BY_RESET;
	if (old_state == TCP_LAST_ACK)
		return CLOSED_BY_REMOTE;
	if (has_sent_fin(old_state))
		return CLOSED_BY_LOCAL;
	/* Aborted: unread data, SO_LINGER 0. Any other error is a timeout or a lost route. */
	return error ? CLOSED_BY_UNKNOWN : CLOSED_BY_RESET;
}

/*
 * The payload each way. The kernel's counters are of sequence numbers: FIN is one in each
 * direction, and the SYN of who initiated it is one, while the SYN of who accepted it is not.
 */
static __always_inline void set_bytes(struct connect_event *e, const struct sock *sk,
				      const struct tcp_sock *tp, int old_state)
{
	__u32 una = tp->snd_una, nxt = tp->snd_nxt, end = tp->write_seq;
	bool fin = has_sent_fin(old_state), syn = e->direction == DIRECTION_OUT;
	__u64 tx = tp->bytes_acked, rx = tp->bytes_received;

	if (e->direction == DIRECTION_UNKNOWN) {
		/* The first sequence number of the payload, told by what was sent of it. */
		__u32 first = nxt - (fin && nxt == end) - (tp->bytes_sent - tp->bytes_retrans);

		syn = una - (__u32)tx + 1 == first;
	}
	if (syn && tx)
		tx--;
	if (fin && una == end && tx)
		tx--;
	if ((sk->__sk_common.skc_flags & (1UL << SOCK_DONE)) && rx)
		rx--;
	e->tx_bytes = tx;
	e->rx_bytes = rx;
}

static __always_inline void on_end(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
				   struct connection *c, int old_state)
{
	set_bytes(&c->event, sk, tp, old_state);
	c->event.closed_by = closed_by(sk, old_state);
	emit(ctx, &c->event, CONNECT_CLOSED);
}

static __always_inline bool is_handshake(int state)
{
	return state == TCP_SYN_SENT || state == TCP_SYN_RECV;
}

static __always_inline void on_close(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
				     const struct behind *behind, __u64 key,
				     struct connection *kept, int old_state)
{
	__be16 sport = read_inet_sport(tp);
	struct connection c = {};
	struct ends ends;

	if (!kept) {
		if (remembers_passed_over() && !bpf_map_delete_elem(&passed_over, &key))
			return;
		/* Older than the tool: its end is all there is to tell. */
		read_ends(&ends, sk);
		ends.local_port = bpf_ntohs(sport);
		set_ends(&c.event, &ends);
		c.event.ts_ns = bpf_ktime_get_ns();
		c.event.netns = behind->netns;
		if (matches(&c.event))
			on_end(ctx, sk, tp, &c, old_state);
		return;
	}
	/* The connect function failed on its own, and is about to return to its hook. */
	if (behind->in_connect && is_in_call(kept)) {
		kept->sent = false;
		return;
	}
	c = *kept;
	end_call(&c);
	bpf_map_delete_elem(&connections, &key);
	set_elapsed(&c);
	if (c.phase == PHASE_OPEN) {
		if (process_matches(&c.event))
			on_end(ctx, sk, tp, &c, old_state);
		return;
	}
	if (!behind->in_connect || sport != c.old_sport)
		c.event.sport = bpf_ntohs(sport);
	if (!announce(ctx, &c))
		return;
	set_elapsed(&c);
	set_error(&c, sk, behind, sport);
	emit(ctx, &c.event, CONNECT_FAILED);
}

/* Whether a change is of interest though nothing is kept of its connection. */
static __always_inline bool is_news(int old_state, int new_state)
{
	switch (new_state) {
	case TCP_SYN_SENT:
		return true;
	case TCP_ESTABLISHED:
		return old_state == TCP_SYN_RECV
			       ? wanted(CONNECT_ACCEPTED) || wanted(CONNECT_CLOSED)
			       : remembers_passed_over();
	case TCP_CLOSE:
		return wanted(CONNECT_CLOSED) && !process_filter && !is_handshake(old_state) &&
		       old_state != TCP_LISTEN && old_state != TCP_CLOSE;
	}
	return false;
}

static __always_inline bool is_followed(int new_state)
{
	return new_state == TCP_SYN_SENT || new_state == TCP_ESTABLISHED || new_state == TCP_CLOSE;
}

/*
 * What is kept of a connection; the answer is whether the change is of interest at all. This comes
 * first, for most changes are of connections that nobody asked for.
 */
static __always_inline bool find_connection(const struct sock *sk, int old_state, int new_state,
					    struct connection **kept)
{
	__u64 key = (__u64)sk;

	if (!is_followed(new_state))
		return false;
	*kept = bpf_map_lookup_elem(&connections, &key);
	return *kept || is_news(old_state, new_state);
}

static __noinline int on_state(void *ctx, const struct sock *sk, const struct tcp_sock *tp,
			       struct connection *kept, int states)
{
	int old_state = states >> 8, new_state = states & 0xff;
	struct behind behind;
	__u64 key = (__u64)sk;

	if (new_state == TCP_SYN_SENT && is_in_call(kept)) {
		on_syn_sent_in_call(sk, tp, kept);
		return 0;
	}
	behind = look_behind(sk, kept, new_state);
	if (new_state == TCP_SYN_SENT)
		on_syn_sent(ctx, sk, tp, &behind, key, kept);
	else if (new_state == TCP_ESTABLISHED)
		on_established(ctx, sk, &behind, key, kept, old_state);
	else
		on_close(ctx, sk, tp, &behind, key, kept, old_state);
	return 0;
}

static __always_inline int on_tracepoint(void *ctx, const struct sock *sk, int old_state,
					 int new_state)
{
	const struct tcp_sock *tp;
	struct connection *kept;

	if (!find_connection(sk, old_state, new_state, &kept))
		return 0;
	tp = bpf_skc_to_tcp_sock((void *)sk);
	return tp ? on_state(ctx, sk, tp, kept, old_state << 8 | new_state) : 0;
}

/*
 * Since Linux 6.2 a program at a tracepoint is skipped while it runs on the same CPU already: a
 * system call that is interrupted in here by incoming packets would hide what they change. So
 * there are two programs, of which one does the work where the other was skipped.
 *
 * Where there is nothing better the second one finds out that the first is running, and was never
 * seen to interrupt itself.
 */
struct running {
	__u8 first;
	__u8 pad[63]; /* no cache line is shared between CPUs */
};
struct running running[COUNTER_SLOTS] SEC(".bss.running") __attribute__((aligned(64)));
bool can_interrupt_itself SEC(".bss.running");

static __always_inline struct running *my_running(void)
{
	return &running[bpf_get_smp_processor_id() & (COUNTER_SLOTS - 1)];
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_state_change, const struct sock *sk, int old_state, int new_state)
{
	struct running *mine;
	bool interrupts;

	if (!is_followed(new_state) || sk->sk_protocol != IPPROTO_TCP)
		return 0;
	mine = my_running();
	interrupts = mine->first;
	if (interrupts)
		can_interrupt_itself = true;
	mine->first = true;
	barrier();
	/* In one place, for the verifier follows it anew from each. */
	on_tracepoint(ctx, sk, old_state, new_state);
	barrier();
	mine->first = interrupts;
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_nested_state_change, const struct sock *sk, int old_state, int new_state)
{
	if (!my_running()->first || can_interrupt_itself)
		return 0;
	__sync_fetch_and_add(&totals.nested, 1);
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	return on_tracepoint(ctx, sk, old_state, new_state);
}

/*
 * Better is a program of the tracepoint's perf event. Since Linux 7.0 a task can be preempted in a
 * program of the tracepoint itself, which is skipped on that CPU for all others until the task runs
 * again; at a perf event preemption is off. Where a program is skipped there, the kernel's own flag
 * says so, and the other program does the work. Only where a task is preempted between the two,
 * and another one in a system call on a BPF map, can they find the flag different.
 */
extern const int bpf_prog_active __ksym __weak;
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __ksym __weak;

SEC("tracepoint/sock/inet_sock_set_state")
int on_state_event(struct trace_event_raw_inet_sock_set_state *e)
{
	const struct tcp_sock *tp;
	struct connection *kept;
	const struct sock *sk;

	if (e->protocol == IPPROTO_TCP &&
	    find_connection(e->skaddr, e->oldstate, e->newstate, &kept)) {
		sk = bpf_rdonly_cast(e->skaddr, bpf_core_type_id_kernel(struct sock));
		tp = bpf_rdonly_cast(e->skaddr, bpf_core_type_id_kernel(struct tcp_sock));
		on_state(e, sk, tp, kept, e->oldstate << 8 | e->newstate);
	}
	/* With 0 the perf events of others would not be told. */
	return 1;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(on_skipped_state_event, const struct sock *sk, int old_state, int new_state)
{
	const int *active = bpf_this_cpu_ptr(&bpf_prog_active);

	if (!*active)
		return 0;
	__sync_fetch_and_add(&totals.nested, 1);
	if (sk->sk_protocol != IPPROTO_TCP)
		return 0;
	return on_tracepoint(ctx, sk, old_state, new_state);
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
