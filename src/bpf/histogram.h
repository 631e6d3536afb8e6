/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Distributions of times by key: types shared with user space. */
#ifndef TCPINSPECT_HISTOGRAM_H
#define TCPINSPECT_HISTOGRAM_H

#define HISTOGRAM_BUCKETS 32

/*
 * A port in host order in the first two bytes; or an address, IPv4 as v4-mapped; or a process name,
 * ended by NUL; or nothing. The rest is zeros.
 */
struct histogram_key {
	__u8 bytes[16];
};

/*
 * Bucket 0 has values up to 1, bucket N those up to 2^N that are not in an earlier bucket. The last
 * one has all larger values, too.
 */
struct histogram {
	__u64 sum;
	__u64 buckets[HISTOGRAM_BUCKETS];
};

#endif /* TCPINSPECT_HISTOGRAM_H */
