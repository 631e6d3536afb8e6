/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* A compiled filter expression, shared with user space: a decision graph whose nodes are tests. */
#ifndef TCPINSPECT_EXPR_H
#define TCPINSPECT_EXPR_H

/* The most nodes that an expression can have. */
#define EXPR_NODES 192

/* The most sets of ports that an expression can have. */
#define EXPR_PORT_SETS 2

/*
 * The most sets of IPv4 addresses that an expression can have. Each is a hash table with
 * 1 << EXPR_SLOT_BITS slots.
 */
#define EXPR_ADDRESS_SETS 2
#define EXPR_SLOT_BITS	  10

/* Words for intermediate results of arithmetic. */
#define EXPR_TEMPORARIES 16

/* The words that nodes read and write: fields of the packet and temporaries. In host order. */
enum expr_word {
	EXPR_SPORT,
	EXPR_DPORT,
	EXPR_SADDR_HIGH, /* upper 64 bits of an IPv6 address; IPv4: 0 */
	EXPR_SADDR_LOW,	 /* lower 64 bits of an IPv6 address; IPv4: the address */
	EXPR_DADDR_HIGH,
	EXPR_DADDR_LOW,
	EXPR_LEN,	 /* of the frame, bytes */
	EXPR_VLAN_OUTER, /* EXPR_VLAN_PRESENT and the VLAN id, or-ed; 0: no such tag */
	EXPR_VLAN_INNER,
	EXPR_OUTBOUND, /* 1 if the packet goes out */
	EXPR_TEMPORARY,
	EXPR_WORDS = EXPR_TEMPORARY + EXPR_TEMPORARIES,
	EXPR_NONE = 0xff, /* stands for no word */
};

/* Bits of the word of a VLAN tag. */
enum expr_vlan {
	EXPR_VLAN_PRESENT = 0x1000,
};

/* Which words an expression uses: the others are not filled. */
enum expr_wants {
	EXPR_WANTS_PORTS = 1 << 0,
	EXPR_WANTS_ADDRESSES = 1 << 1,
	EXPR_WANTS_LEN = 1 << 2,
	EXPR_WANTS_VLAN = 1 << 3,
};

/* Where the value that a node tests comes from. */
enum expr_kind {
	EXPR_FIELD,	  /* the word `a` */
	EXPR_EITHER,	  /* the words `a` and `b`: at least one has to pass */
	EXPR_PORT_SET,	  /* the word `a` is a port: 1 if it is in the set `b`, else 0 */
	EXPR_ADDRESS_SET, /* the word `a` is an IPv4 address: 1 if it is in the set `b`, else 0 */
	EXPR_LOAD,	  /* bytes of the packet, as in tcp[13] */
	EXPR_ARITHMETIC,  /* computed from the word `a`, and the word `b` or the operand */
};

/* Where the offset of a load starts. */
enum expr_base {
	EXPR_FROM_FRAME,
	EXPR_FROM_IP,
	EXPR_FROM_TCP,
};

enum expr_operation {
	EXPR_ADD,
	EXPR_SUBTRACT,
	EXPR_MULTIPLY,
	EXPR_DIVIDE,
	EXPR_MODULO,
	EXPR_AND,
	EXPR_OR,
	EXPR_XOR,
	EXPR_SHIFT_LEFT,
	EXPR_SHIFT_RIGHT,
	EXPR_IS_GREATER, /* 1 or 0 */
	EXPR_IS_EQUAL,
};

/* Numbers in place of the offset of a node: the expression ends with this result. */
enum expr_result {
	EXPR_REJECT = 0xfffe,
	EXPR_ACCEPT = 0xffff,
};

/*
 * A node computes a value. The value passes if, and-ed with the mask, it is `first` or one of the
 * `more` numbers after it. That decides which node is next.
 */
struct expr_node {
	__u64 mask;
	__u64 first;
	__u64 more;
	__u32 operand; /* of arithmetic; the offset of a load; the multiplier of a set of addresses
			*/
	__u16 passes;  /* offset in bytes of the next node if it passes: always a later one */
	__u16 fails;   /* the same if it does not pass */
	__u8 kind;     /* enum expr_kind */
	__u8 a;	       /* enum expr_word */
	__u8 b;	       /* the same; for a load, the word to add to the offset, or EXPR_NONE */
	__u8 to;       /* enum expr_word: stores the value of a load or of arithmetic */
	__u8 how;      /* enum expr_base or enum expr_operation */
	__u8 size;     /* of a load: 1, 2 or 4 bytes */
	__u8 pad[2];
};

/* Set before load and then frozen, so the verifier knows all nodes and walks each of them once. */
struct expression {
	__u32 wants;	/* enum expr_wants, or-ed */
	__u16 start_v4; /* offset of the first node for an IPv4 packet */
	__u16 start_v6; /* the same for an IPv6 packet */
	struct expr_node nodes[EXPR_NODES];
};

#endif /* TCPINSPECT_EXPR_H */
