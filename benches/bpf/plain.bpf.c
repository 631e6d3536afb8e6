// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs that the shipped ones are compared with: programs that do nothing, and the simplest
 * ones that do the job for untagged IPv4 (one shared atomic counter; one perf event per SYN or
 * change of state). And the sender of floods.
 */
typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef unsigned long long __u64;

#define SEC(name)	  __attribute__((section(name), used))
#define __uint(name, val) int(*name)[val]

struct xdp_md {
	__u32 data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex;
};

/* struct __sk_buff up to its packet pointers. */
struct __sk_buff {
	__u32 fields[19];
	__u32 data, data_end;
};

struct frame {
	__u8 macs[12];
	__u16 ethertype;
	__u8 version_ihl, tos;
	__u16 total_len, id, fragment;
	__u8 ttl, protocol;
	__u16 checksum;
	__u32 saddr, daddr;
	__u16 sport, dport;
	__u32 seq, ack;
	__u8 data_offset, flags;
} __attribute__((packed));

static long (*bpf_map_update_elem)(void *, const void *, const void *, __u64) = (void *)2;
static long (*bpf_map_delete_elem)(void *, const void *) = (void *)3;
static long (*bpf_redirect)(__u32, __u64) = (void *)23;
static long (*bpf_perf_event_output)(void *, void *, __u64, void *, __u64) = (void *)25;

__u64 syns;

struct {
	__uint(type, 4);
	__uint(key_size, 4);
	__uint(value_size, 4);
} events SEC(".maps");

static inline int is_syn(void *data, void *data_end)
{
	struct frame *f = data;

	return (void *)(f + 1) <= data_end && f->ethertype == 8 && f->protocol == 6 &&
	       (f->flags & 0x12) == 2;
}

SEC("xdp")
int empty_xdp(struct xdp_md *ctx)
{
	return 2;
}

SEC("xdp")
int plain_xdp(struct xdp_md *ctx)
{
	if (is_syn((void *)(long)ctx->data, (void *)(long)ctx->data_end))
		__sync_fetch_and_add(&syns, 1);
	return 2;
}

/* Sends the frame to the device whose index is at the end of the frame: a flood. */
SEC("xdp")
int send_xdp(struct xdp_md *ctx)
{
	__u32 *ifindex = (void *)(long)ctx->data + 56;

	if ((void *)(ifindex + 1) > (void *)(long)ctx->data_end)
		return 1;
	return bpf_redirect(*ifindex, 0);
}

__u32 number;

/* The same, with another sequence number in each frame; the checksum stays right. */
SEC("xdp")
int number_xdp(struct xdp_md *ctx)
{
	struct frame *f = (void *)(long)ctx->data;
	__u32 *ifindex = (void *)f + 56;

	if ((void *)(ifindex + 1) > (void *)(long)ctx->data_end)
		return 1;
	f->seq = number++;
	f->ack = ~f->seq;
	return bpf_redirect(*ifindex, 0);
}

SEC("tc")
int empty_tc(struct __sk_buff *skb)
{
	return -1;
}

/* The tracepoints of accept-trace and loss-trace. */
SEC("tp_btf/kfree_skb")
int empty_kfree_skb(void *ctx)
{
	return 0;
}

SEC("tp_btf/consume_skb")
int empty_consume_skb(void *ctx)
{
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int empty_set_state(void *ctx)
{
	return 0;
}

/* An event as large as those of connect-trace for each attempt to connect, and for its fate. */
SEC("tp_btf/inet_sock_set_state")
int plain_set_state(__u64 *ctx)
{
	const int syn_sent = 2;
	__u64 event[21] = {};

	if ((int)ctx[1] == syn_sent || (int)ctx[2] == syn_sent)
		bpf_perf_event_output(ctx, &events, 0xffffffffULL, event, sizeof(event));
	return 0;
}

SEC("tp_btf/sys_exit")
int empty_sys_exit(void *ctx)
{
	return 0;
}

/* As large as those of accept-trace. */
struct attempt_key {
	__u32 addr[4], isn;
	__u16 port, pad;
};

struct {
	__uint(type, 1);
	__uint(max_entries, 65536);
	__uint(key_size, sizeof(struct attempt_key));
	__uint(value_size, 128);
} attempts SEC(".maps");

/* The least work for a table of attempts: each is added at its SYN, and removed at the RST. */
SEC("tc")
int add_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	struct attempt_key key = {};
	__u64 attempt[16] = {};
	struct frame *f = data;

	if (is_syn(data, (void *)(long)skb->data_end)) {
		key.addr[3] = f->saddr;
		key.port = f->sport;
		key.isn = __builtin_bswap32(f->seq);
		bpf_map_update_elem(&attempts, &key, attempt, 1);
	}
	return -1;
}

SEC("tc")
int remove_tc(struct __sk_buff *skb)
{
	struct frame *f = (void *)(long)skb->data;
	struct attempt_key key = {};

	if ((void *)(f + 1) <= (void *)(long)skb->data_end && f->ethertype == 8 &&
	    f->protocol == 6 && (f->flags & 4)) {
		key.addr[3] = f->daddr;
		key.port = f->dport;
		key.isn = __builtin_bswap32(f->ack) - 1;
		bpf_map_delete_elem(&attempts, &key);
	}
	return -1;
}

SEC("tc")
int plain_tc(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data;
	struct frame *f = data;
	__u32 event[4];

	if (is_syn(data, (void *)(long)skb->data_end)) {
		event[0] = f->saddr;
		event[1] = f->daddr;
		event[2] = f->sport;
		event[3] = f->dport;
		bpf_perf_event_output(skb, &events, 0xffffffffULL, event, sizeof(event));
	}
	return -1;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
