/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A device whose requests end when the test says so, an order device on top, and clients of that.
 * Included once, by the test itself.
 */
#ifndef BM_TESTS_DEV_ORDER_RIG_H
#define BM_TESTS_DEV_ORDER_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "blockmirror/base/hist.h"
#include "blockmirror/base/list.h"
#include "blockmirror/blockdev.h"

enum { SIZE = 64 << 20, HELD = 1024, CLIENTS = 1024, KIB = 1024, MIB = 1 << 20 };

/* The device below: holds what it gets, and carries it out when it is let go. */
static struct lower {
	struct bm_dev dev;
	struct bm_request *held[HELD];
	unsigned count, most;
	bool cancelled;
} lower;

struct client {
	struct bm_request rq;
	unsigned answers;
	int error;
	struct bm_extents extents;
	struct bm_extent extent[8];
};

static uint8_t disk[SIZE] __attribute__((aligned(BM_BUF_ALIGN)));
static uint8_t memory[32 * MIB] __attribute__((aligned(BM_BUF_ALIGN)));
static struct client clients[CLIENTS];
static unsigned used;
static struct bm_loop *loop;
static struct bm_dev *order;
static struct bm_meter meter;

static void hold(struct bm_dev *dev, struct bm_request *rq)
{
	(void)dev;
	assert_true(lower.count < HELD);
	assert_int_equal(rq->offset % lower.dev.geometry.block, 0);
	assert_int_equal(rq->length % lower.dev.geometry.block, 0);
	assert_true(rq->offset + rq->length <= SIZE);
	if (rq->op == BM_READ || rq->op == BM_WRITE)
		assert_true(rq->length <= lower.dev.geometry.max_transfer);
	else
		assert_true(rq->length <= lower.dev.geometry.max_zero);
	lower.held[lower.count++] = rq;
	if (lower.count > lower.most)
		lower.most = lower.count;
}

static void nothing(struct bm_dev *dev)
{
	(void)dev;
}

static void cancel(struct bm_dev *dev)
{
	(void)dev;
	lower.cancelled = true;
}

static const struct bm_dev_ops lower_ops = {
	.name = "held", .start = nothing, .submit = hold, .cancel = cancel, .close = nothing};

/* Ends the i-th of what is held. */
static void let_go(unsigned i, int error)
{
	struct bm_request *rq = lower.held[i];

	assert_true(i < lower.count);
	memmove(&lower.held[i], &lower.held[i + 1], (--lower.count - i) * sizeof(lower.held[0]));
	if (!error && rq->op == BM_READ)
		memcpy(rq->data, disk + rq->offset, rq->length);
	else if (!error && rq->op == BM_WRITE)
		memcpy(disk + rq->offset, rq->data, rq->length);
	else if (!error && rq->op == BM_ZERO)
		memset(disk + rq->offset, 0, rq->length);
	rq->done(rq, error);
	while (bm_loop_turn(loop, 0) > 0)
		;
}

static void let_all_go(void)
{
	while (lower.count)
		let_go(0, 0);
}

/* Whether the i-th of what is held is op on [start, end). */
static void held_is(unsigned i, enum bm_op op, uint64_t start, uint64_t end)
{
	assert_true(i < lower.count);
	assert_int_equal(lower.held[i]->op, op);
	assert_int_equal(lower.held[i]->offset, start);
	assert_int_equal(lower.held[i]->length, end - start);
}

static void done(struct bm_request *rq, int error)
{
	struct client *c = bm_container(rq, struct client, rq);

	c->answers++;
	c->error = error;
}

static struct client *submit(enum bm_op op, uint64_t offset, uint64_t length, void *data,
			     uint32_t flags)
{
	struct client *c = &clients[used++];

	assert_true(used <= CLIENTS);
	memset(c, 0, sizeof(*c));
	c->extents = (struct bm_extents){.v = c->extent, .room = 8};
	c->rq = (struct bm_request){.op = op,
				    .flags = flags,
				    .offset = offset,
				    .length = length,
				    .data = data,
				    .extents = &c->extents,
				    .done = done};
	bm_submit(order, &c->rq);
	assert_int_equal(c->answers, 0); /* never inside */
	while (bm_loop_turn(loop, 0) > 0)
		;
	return c;
}

static struct client *write_at(uint64_t offset, uint64_t length, uint8_t fill, void *data)
{
	memset(data, fill, length);
	return submit(BM_WRITE, offset, length, data, 0);
}

static void succeeded(const struct client *c)
{
	assert_int_equal(c->answers, 1);
	assert_int_equal(c->error, 0);
}

static void is_filled(uint64_t start, uint64_t end, uint8_t fill)
{
	for (uint64_t i = start; i < end; i++)
		if (disk[i] != fill)
			fail_msg("byte %lu is %02x", (unsigned long)i, disk[i]);
}

static void begin_with(uint32_t block, uint32_t align)
{
	loop = bm_loop_new_simulated();
	memset(&lower, 0, sizeof(lower));
	memset(&meter, 0, sizeof(meter));
	memset(disk, 0xee, sizeof(disk));
	used = 0;
	lower.dev.ops = &lower_ops;
	lower.dev.geometry =
		(struct bm_geometry){.size = SIZE,
				     .block = block,
				     .max_transfer = MIB,
				     .max_zero = 4 * MIB,
				     .flags = BM_DEV_FAST_ZERO | BM_DEV_TRIM | BM_DEV_EXTENTS};
	bm_dev_start(&lower.dev, loop);
	assert_int_equal(bm_order_new(&lower.dev, align, &meter, &order), 0);
	bm_dev_start(order, loop);
}

/* All that was submitted is answered once. */
static void over(void)
{
	let_all_go();
	for (unsigned i = 0; i < used; i++)
		assert_int_equal(clients[i].answers, 1);
	bm_dev_close(order);
	bm_loop_free(loop);
}

#endif
