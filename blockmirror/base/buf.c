/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Data buffers in power-of-two classes. Once a pool has seen its peak load it allocates no more:
 * buffers go round between their free lists and the requests.
 */
#include "blockmirror/buf.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "blockmirror/base/list.h"

enum { SMALLEST_SHIFT = 12, LARGEST_SHIFT = 20, CLASSES = LARGEST_SHIFT - SMALLEST_SHIFT + 1 };

struct bm_pool {
	struct bm_loop *loop;
	size_t limit, bytes;
	unsigned out; /* buffers that somebody holds */
	bool closed;
	struct bm_list free[CLASSES];
	struct bm_list waiters;
	struct bm_task wake;
};

static void wake_waiters(struct bm_task *task)
{
	struct bm_pool *pool = bm_container(task, struct bm_pool, wake);
	struct bm_list batch, *node;

	bm_list_init(&batch);
	bm_list_move_all(&batch, &pool->waiters);
	while ((node = bm_list_take(&batch))) {
		struct bm_buf_waiter *waiter = bm_container(node, struct bm_buf_waiter, link);

		waiter->run(waiter);
	}
}

struct bm_pool *bm_pool_new(struct bm_loop *loop, size_t limit)
{
	struct bm_pool *pool = calloc(1, sizeof(*pool));

	if (!pool)
		return NULL;
	pool->loop = loop;
	pool->limit = limit;
	for (int i = 0; i < CLASSES; i++)
		bm_list_init(&pool->free[i]);
	bm_list_init(&pool->waiters);
	pool->wake.run = wake_waiters;
	return pool;
}

static void destroy(struct bm_pool *pool, struct bm_buf *buf)
{
	pool->bytes -= buf->size;
	free(buf->data);
	free(buf);
}

void bm_pool_trim(struct bm_pool *pool)
{
	struct bm_list *node;

	for (int i = 0; i < CLASSES; i++)
		while ((node = bm_list_take(&pool->free[i])))
			destroy(pool, bm_container(node, struct bm_buf, link));
}

void bm_pool_free(struct bm_pool *pool)
{
	if (!pool)
		return;
	bm_task_cancel(&pool->wake);
	bm_pool_trim(pool);
	pool->closed = true;
	if (!pool->out)
		free(pool);
}

static int class_of(size_t size)
{
	int class = 0;

	assert(size <= BM_BUF_MAX);
	while (((size_t)1 << (class + SMALLEST_SHIFT)) < size)
		class ++;
	return class;
}

static struct bm_buf *create(struct bm_pool *pool, size_t size)
{
	struct bm_buf *buf;

	if (pool->bytes + size > pool->limit)
		bm_pool_trim(pool);
	if (pool->bytes + size > pool->limit)
		return NULL;
	buf = calloc(1, sizeof(*buf));
	if (!buf)
		return NULL;
	buf->data = aligned_alloc(BM_BUF_ALIGN, size);
	if (!buf->data) {
		free(buf);
		return NULL;
	}
	buf->size = size;
	buf->pool = pool;
	pool->bytes += size;
	return buf;
}

struct bm_buf *bm_buf_get(struct bm_pool *pool, size_t size)
{
	int class = class_of(size);
	struct bm_list *node = bm_list_take(&pool->free[class]);
	struct bm_buf *buf;

	if (node)
		buf = bm_container(node, struct bm_buf, link);
	else
		buf = create(pool, (size_t)1 << (class + SMALLEST_SHIFT));
	if (!buf)
		return NULL;
	buf->refs = 1;
	pool->out++;
	return buf;
}

void bm_buf_wait(struct bm_pool *pool, struct bm_buf_waiter *waiter)
{
	if (!bm_list_linked(&waiter->link))
		bm_list_append(&pool->waiters, &waiter->link);
}

void bm_buf_wait_cancel(struct bm_buf_waiter *waiter)
{
	if (bm_list_linked(&waiter->link))
		bm_list_remove(&waiter->link);
}

void bm_buf_unref(struct bm_buf *buf)
{
	struct bm_pool *pool;

	if (!buf || --buf->refs)
		return;
	pool = buf->pool;
	pool->out--;
	if (pool->closed) {
		destroy(pool, buf);
		if (!pool->out)
			free(pool);
		return;
	}
	bm_list_push(&pool->free[class_of(buf->size)], &buf->link);
	if (!bm_list_empty(&pool->waiters))
		bm_loop_soon(pool->loop, &pool->wake);
}

size_t bm_pool_bytes(const struct bm_pool *pool)
{
	return pool->bytes;
}

/* Not const: that would put a megabyte of zeros into the file. */
static uint8_t zeros[BM_BUF_MAX] __attribute__((aligned(BM_BUF_ALIGN)));

const uint8_t *bm_zeros(void)
{
	return zeros;
}

bool bm_is_zero(const uint8_t *data, size_t length)
{
	size_t head = length < 16 ? length : 16;

	/* Compared with itself, shifted by 16 bytes: memcmp is the fastest zero scan there is. */
	for (size_t i = 0; i < head; i++)
		if (data[i])
			return false;
	return length <= 16 || !memcmp(data, data + 16, length - 16);
}
