/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Data buffers: aligned for O_DIRECT, counted references, recycled. A mirrored write is sent to
 * both copies from one buffer, and a leg that is given up while the library still reads from it
 * keeps its own reference. Loop thread only (a worker may touch the bytes of a request that is
 * in flight, never the count).
 */
#ifndef BLOCKMIRROR_BUF_H
#define BLOCKMIRROR_BUF_H

#include "blockmirror/loop.h"

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

enum { BM_BUF_ALIGN = 4096, BM_BUF_MAX = 1 << 20 };

struct bm_pool;

struct bm_buf {
	uint8_t *data;
	size_t size; /* a power of two, 4 KiB … 1 MiB */
	unsigned refs;
	struct bm_list link;
	struct bm_pool *pool;
};

/* Somebody who waits for memory; called once, in the order of asking, when some came back. */
struct bm_buf_waiter {
	struct bm_list link;
	void (*run)(struct bm_buf_waiter *waiter);
};

/* A pool that never holds more than limit bytes. NULL when memory is out. */
struct bm_pool *bm_pool_new(struct bm_loop *loop, size_t limit);

/* Buffers still referenced live on and are freed with their last reference. NULL is allowed. */
void bm_pool_free(struct bm_pool *pool);

/* Gives back the memory that nobody holds. */
void bm_pool_trim(struct bm_pool *pool);

/* A buffer of at least size bytes (at most BM_BUF_MAX), or NULL when the pool is used up. */
struct bm_buf *bm_buf_get(struct bm_pool *pool, size_t size);

/* Waits for memory to come back, then calls waiter->run() from the loop. */
void bm_buf_wait(struct bm_pool *pool, struct bm_buf_waiter *waiter);

/* Stops waiting; harmless when waiter does not wait. */
void bm_buf_wait_cancel(struct bm_buf_waiter *waiter);

static inline struct bm_buf *bm_buf_ref(struct bm_buf *buf)
{
	buf->refs++;
	return buf;
}

/* NULL is allowed. */
void bm_buf_unref(struct bm_buf *buf);

/* Bytes of memory that the pool holds, in use or not. */
size_t bm_pool_bytes(const struct bm_pool *pool);

/* 1 MiB of zeros that nobody writes to. */
const uint8_t *bm_zeros(void);

/* Whether all of data is zero. */
bool bm_is_zero(const uint8_t *data, size_t length);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
