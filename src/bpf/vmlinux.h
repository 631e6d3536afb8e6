/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The few kernel types and constants the programs use, in place of a generated vmlinux.h. */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef __u16 __sum16;
typedef _Bool bool;

#define true 1
#define false 0
#define NULL ((void *)0)

#define NSEC_PER_SEC 1000000000ULL

/* task_struct.flags: a kernel thread. */
#define PF_KTHREAD 0x00200000

enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PROG_ARRAY = 3,
	BPF_MAP_TYPE_PERF_EVENT_ARRAY = 4,
	BPF_MAP_TYPE_PERCPU_HASH = 5,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_STACK = 23,
	BPF_MAP_TYPE_SK_STORAGE = 24,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
	BPF_EXIST = 2,
	BPF_F_NO_PREALLOC = 1,
	BPF_F_MMAPABLE = 1024,
	BPF_F_CURRENT_NETNS = -1,
};

#define BPF_SK_STORAGE_GET_F_CREATE 1

#define BPF_F_CURRENT_CPU 0xffffffffULL
#define BPF_RB_NO_WAKEUP  1

enum bpf_hdr_start_off {
	BPF_HDR_START_MAC = 0,
	BPF_HDR_START_NET = 1,
};

enum xdp_action {
	XDP_PASS = 2,
};

struct bpf_spin_lock {
	__u32 val;
};

/* TCX_NEXT for a tcx link; the same number is TC_ACT_UNSPEC for a cls_bpf filter: both mean "go
 * on". */
enum tcx_action_base {
	TCX_NEXT = -1,
};

/* Contexts of programs. Their layout is part of the user ABI, so they are not relocated. */
struct xdp_md {
	__u32 data;
	__u32 data_end;
	__u32 data_meta;
	__u32 ingress_ifindex;
	__u32 rx_queue_index;
	__u32 egress_ifindex;
};

struct __sk_buff {
	__u32 len;
	__u32 pkt_type;
	__u32 mark;
	__u32 queue_mapping;
	__u32 protocol;
	__u32 vlan_present;
	__u32 vlan_tci;
	__u32 vlan_proto;
	__u32 priority;
	__u32 ingress_ifindex;
	__u32 ifindex;
	__u32 tc_index;
	__u32 cb[5];
	__u32 hash;
	__u32 tc_classid;
	__u32 data;
	__u32 data_end;
	__u32 napi_id;
	__u32 family;
	__u32 remote_ip4;
	__u32 local_ip4;
	__u32 remote_ip6[4];
	__u32 local_ip6[4];
	__u32 remote_port;
	__u32 local_port;
	__u32 data_meta;
	__u64 flow_keys;
	__u64 tstamp;
	__u32 wire_len;
	__u32 gso_segs;
	union {
		struct bpf_sock *sk;
		__u64 : 64;
	};
	__u32 gso_size;
};

/* The addresses and ports by which a socket is looked up, in network order. */
struct bpf_sock_tuple {
	union {
		struct {
			__be32 saddr;
			__be32 daddr;
			__be16 sport;
			__be16 dport;
		} ipv4;
		struct {
			__be32 saddr[4];
			__be32 daddr[4];
			__be16 sport;
			__be16 dport;
		} ipv6;
	};
};

/* A socket as packet programs see it. */
struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4;
	__u32 src_ip6[4];
	__u32 src_port; /* host order */
	__be16 dst_port;
	__u16 : 16;
	__u32 dst_ip4;
	__u32 dst_ip6[4];
	__u32 state;
	__s32 rx_queue_mapping;
};

/* In the kernel this enum has no name. */
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
	TCP_NEW_SYN_RECV = 12,
};

/* Registers at a kprobe; bpf_tracing.h names them by architecture. */
#if defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx;
	unsigned long r11, r10, r9, r8, ax, cx, dx, si, di;
	unsigned long orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__TARGET_ARCH_arm64)
struct user_pt_regs {
	__u64 regs[31];
	__u64 sp;
	__u64 pc;
	__u64 pstate;
};
struct pt_regs {
	struct user_pt_regs user_regs;
};
#else
#error "tcpinspect is written for x86_64 and aarch64: add the registers of this architecture here"
#endif

/* Kernel structures: only the members that are read; CO-RE finds their real offsets at load. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct in6_addr {
	union {
		__u8 u6_addr8[16];
		__be32 u6_addr32[4];
	} in6_u;
};

struct ns_common {
	unsigned int inum;
};

struct netns_ipv4 {
	__u8 sysctl_tcp_syncookies; /* an int before Linux 5.15, with values that fit in a byte */
	int sysctl_max_syn_backlog;
};

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct net {
	struct ns_common ns;
	struct hlist_head *dev_index_head; /* of 256 lists, by the lowest bits of the index */
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	unsigned char skc_reuseport : 1;
	int skc_bound_dev_if;
	unsigned long skc_flags; /* bits by enum sock_flags */
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	struct sock *skc_listener; /* of a half-open connection */
};

typedef enum {
	SS_FREE,
	SS_UNCONNECTED, /* also while the connect function runs for the first time */
	SS_CONNECTING,
	SS_CONNECTED,
	SS_DISCONNECTING,
} socket_state;

struct socket {
	socket_state state;
	struct file *file;
	struct sock *sk;
};

typedef struct {
	__u32 val;
} kuid_t;

typedef struct {
	int owned; /* by a system call, not by the softirq */
} socket_lock_t;

enum sock_flags {
	SOCK_DEAD = 0, /* no process has it any more */
	SOCK_DONE = 1, /* a FIN was received */
};

struct sk_buff_head {
	struct sk_buff *prev; /* the last one */
	__u32 qlen;
};

typedef struct {
	int counter;
} atomic_t;

struct sock_reuseport {
	struct bpf_prog *prog; /* chooses a socket of the group */
};

struct sock {
	struct sock_common __sk_common;
	socket_lock_t sk_lock;
	__u16 sk_type;
	__u16 sk_protocol;
	kuid_t sk_uid;
	int sk_err;
	int sk_err_soft;
	struct sk_buff_head sk_error_queue; /* for recvmsg(MSG_ERRQUEUE) */
	__u8 sk_shutdown;
	struct socket *sk_socket;
	struct dst_entry *sk_dst_cache;
	__u32 sk_ack_backlog;
	__u32 sk_max_ack_backlog;
	atomic_t sk_drops;
	struct sock_reuseport *sk_reuseport_cb;
};

struct sockaddr {
	__u16 sa_family;
	char sa_data[14];
};

struct inet_sock {
	__be16 inet_sport; /* stays when skc_num is cleared */
};

struct request_sock_queue {
	atomic_t qlen;
};

struct inet_connection_sock {
	struct inet_sock icsk_inet;
	struct request_sock_queue icsk_accept_queue;
	__u32 icsk_pmtu_cookie;
	__u8 icsk_retransmits;
};

struct minmax_sample {
	__u32 v;
};

struct minmax {
	struct minmax_sample s[3];
};

struct tcp_sock {
	struct inet_connection_sock inet_conn;
	__u64 bytes_received;
	__u64 bytes_acked;
	__u64 bytes_sent;
	__u64 bytes_retrans;
	__u32 copied_seq;
	__u32 retrans_stamp; /* in SYN_SENT: when the first SYN was sent, in milliseconds */
	__u32 snd_una;
	__u32 snd_nxt;
	__u32 write_seq;
	__u32 rcv_nxt;
	__u32 srtt_us;
	__u32 mdev_us;
	struct minmax rtt_min;
	bool is_mptcp;
	struct request_sock *fastopen_rsk; /* of Fast Open, until the final ACK */
	__u32 total_retrans;
	__u32 lost_out;
	__u32 lost;
	__u32 reordering;
	__u32 snd_cwnd;
	__u32 mss_cache;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup {
	struct kernfs_node *kn;
};

struct css_set {
	struct cgroup *dfl_cgrp; /* of the unified hierarchy */
};

struct file;

struct fdtable {
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

struct request_sock {
	struct sock_common __req_common;
};

struct inet_request_sock {
	struct request_sock req;
};

/* A half-open connection. */
struct tcp_request_sock {
	struct inet_request_sock req;
	__u32 rcv_isn; /* the initial sequence number of the peer */
};

struct mptcp_sock {
	struct sock *first; /* the connection that it began with */
};

struct task_struct {
	void *stack;
	unsigned int flags;
	int tgid; /* pid_t */
	struct task_struct *group_leader;
	struct css_set *cgroups;
	char comm[16];
	struct files_struct *files;
};

struct net_device {
	char name[16];
	int ifindex;
	possible_net_t nd_net;
	struct hlist_node index_hlist;
};

struct dst_entry {
	struct net_device *dev; /* of an incoming packet for this host: lo */
};

struct sk_buff {
	struct net_device *dev;
	struct sock *sk; /* of the sender */
	int skb_iif;	 /* where it came in; 0: this host sent it */
	char cb[48];
	__u32 data_len;		   /* bytes that are not in the memory from head on */
	unsigned long _skb_refdst; /* struct dst_entry *, with a flag in the lowest bit */
	__u8 pkt_type : 3;	   /* enum pkt_type */
	__be16 protocol;
	__u16 transport_header; /* from head */
	__u16 network_header;
	__u32 tail;
	unsigned char *head;
};

/* The control block of a segment in TCP's queues. */
struct tcp_skb_cb {
	__u32 seq;
	__u32 end_seq;
	__u16 tcp_gso_segs;
	__u8 tcp_flags;
};

#define SO_EE_ORIGIN_ICMP  2
#define SO_EE_ORIGIN_ICMP6 3

struct sock_extended_err {
	__u32 ee_errno;
	__u8 ee_origin;
};

/* The control block in a socket's queue of errors. */
struct sock_exterr_skb {
	struct sock_extended_err ee;
};

/* The context of a program on the perf event of this tracepoint. */
struct trace_event_raw_inet_sock_set_state {
	const void *skaddr;
	int oldstate;
	int newstate;
	__u16 protocol;
};

struct super_block {
	unsigned long s_magic;
};

struct inode {
	struct super_block *i_sb;
	unsigned long i_ino;
	unsigned short i_mode;
};

struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

struct file {
	struct inode *f_inode;
	void *private_data; /* of a socket: its struct socket */
};

/* Helpers that not every kernel has. Their numbers are relocated where the kernel has them. */
enum bpf_func_id {
	BPF_FUNC_get_current_task_btf = 158,
	BPF_FUNC_sock_from_file = 162,
};

#pragma clang attribute pop

/* The contexts of iterators. Their layout is part of the user ABI, too. */
struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
};

struct bpf_iter__task_file {
	union {
		struct bpf_iter_meta *meta;
	};
	union {
		struct task_struct *task;
	};
	__u32 fd;
	union {
		struct file *file;
	};
};

struct bpf_iter__tcp {
	union {
		struct bpf_iter_meta *meta;
	};
	union {
		struct sock_common *sk_common;
	};
	__u32 uid;
};

struct bpf_iter__bpf_map_elem {
	union {
		struct bpf_iter_meta *meta;
	};
	union {
		struct bpf_map *map;
	};
	union {
		void *key;
	};
	union {
		void *value;
	};
};

struct bpf_iter__bpf_sk_storage_map {
	union {
		struct bpf_iter_meta *meta;
	};
	union {
		struct bpf_map *map;
	};
	union {
		struct sock *sk;
	};
	union {
		void *value;
	};
};

#endif /* __VMLINUX_H__ */
