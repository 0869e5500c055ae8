/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * What the tests of the NBD server share: a server in this process, and a device that answers when
 * it is told to.
 */
#ifndef TESTS_UNIT_NBD_RIG_H
#define TESTS_UNIT_NBD_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/open.h"
#include "nbd-server/server.h"

enum { MIB = 1 << 20, DISK = 80 * MIB, SMALL = MIB + 512 };

/* A device that keeps requests until they are let go. READ gives, WRITE expects pattern(). */
struct slow {
	struct bm_dev dev;
	struct bm_list held;
	unsigned count;      /* in held */
	bool at_once;        /* answers in the next turn instead */
	uint64_t random;     /* and in any order, later or sooner; not 0 */
	struct bm_task task; /* for at_once */
	int error;           /* of what comes to fail_at */
	uint64_t fail_at;
	uint64_t bytes, most; /* of data written or read; held at one time */
	unsigned ragged;      /* requests that begin in the middle of a MiB */
	uint32_t flags;       /* of the last request */
	uint64_t now;         /* bytes held */
};

struct rig {
	struct bm_loop *loop;
	struct bm_dev *mem, *small, *order, *small_order;
	struct slow slow;
	struct nbd_server *server;
	bool stopping, stopped;
};

static inline uint8_t pattern(uint64_t offset)
{
	return (uint8_t)((offset * 2654435761u) >> 24 ^ offset >> 12);
}

static inline void slow_touch(struct slow *s, struct bm_request *rq)
{
	bool same = true;

	if (rq->op == BM_READ)
		for (uint64_t i = 0; i < rq->length; i++)
			rq->data[i] = pattern(rq->offset + i);
	else if (rq->op == BM_WRITE)
		for (uint64_t i = 0; i < rq->length; i++)
			same &= rq->data[i] == pattern(rq->offset + i);
	assert_true(same);
	s->bytes += rq->length;
}

/* Lets the oldest (or the newest) request go. */
static inline void slow_release(struct slow *s, bool newest)
{
	struct bm_list *node = newest ? s->held.prev : s->held.next;
	struct bm_request *rq = bm_container(node, struct bm_request, link);
	bool fails = s->error && s->fail_at >= rq->offset && s->fail_at < rq->offset + rq->length;

	assert_true(s->count > 0);
	bm_list_remove(node);
	s->count--;
	s->now -= rq->length;
	if (!fails && (rq->op == BM_READ || rq->op == BM_WRITE))
		slow_touch(s, rq);
	rq->done(rq, fails ? s->error : 0);
}

static inline uint32_t chance(uint64_t *random)
{
	*random = *random * 6364136223846793005u + 1442695040888963407u;
	return (uint32_t)(*random >> 33);
}

static inline void slow_run(struct bm_task *task)
{
	struct slow *s = bm_container(task, struct slow, task);

	while (s->count && (!s->random || chance(&s->random) % 4))
		slow_release(s, s->random && chance(&s->random) % 2);
	if (s->count)
		bm_loop_soon(s->dev.loop, &s->task);
}

static inline void slow_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct slow *s = bm_container(dev, struct slow, dev);

	assert_int_equal(rq->data ? (uintptr_t)rq->data % BM_BUF_ALIGN : 0, 0);
	bm_list_each(node, &s->held) {
		struct bm_request *other = bm_container(node, struct bm_request, link);

		assert_true(!rq->data || rq->data != other->data); /* its own until done() */
	}
	s->flags = rq->flags;
	s->ragged += rq->offset % MIB != 0;
	s->count++;
	s->now += rq->length;
	s->most = s->now > s->most ? s->now : s->most;
	bm_list_append(&s->held, &rq->link);
	if (s->at_once)
		bm_loop_soon(dev->loop, &s->task);
}

static inline void slow_start(struct bm_dev *dev)
{
	(void)dev;
}

static const struct bm_dev_ops slow_ops = {
	.name = "slow", .start = slow_start, .submit = slow_submit};

static inline void open_mem(struct rig *rig, const char *text, struct bm_dev **mem,
			    struct bm_dev **order)
{
	static const struct bm_open_options options;
	struct bm_uri *uri;

	assert_int_equal(bm_uri_parse(text, &uri, NULL), 0);
	assert_int_equal(bm_mem_open(uri, &options, mem, NULL), 0);
	free(uri);
	bm_dev_start(*mem, rig->loop);
	assert_int_equal(bm_order_new(*mem, 4096, NULL, order), 0);
	bm_dev_start(*order, rig->loop);
}

/* Exports: "" 80 MiB, "small" 1 MiB and 512 bytes and read-only, "slow" 80 MiB. */
static inline void rig_open(struct rig *rig, const struct nbd_server_options *options)
{
	struct nbd_export export = {.name = "", .description = "the default one"};

	memset(rig, 0, sizeof(*rig));
	rig->loop = bm_loop_new();
	open_mem(rig, "mem:80M", &rig->mem, &rig->order);
	open_mem(rig, "mem:1049088", &rig->small, &rig->small_order);
	rig->slow.dev.ops = &slow_ops;
	rig->slow.dev.geometry = (struct bm_geometry){
		.size = DISK, .block = 1, .max_transfer = MIB, .max_zero = UINT64_MAX};
	rig->slow.task.run = slow_run;
	bm_list_init(&rig->slow.held);
	bm_dev_start(&rig->slow.dev, rig->loop);
	rig->server = nbd_server_new(rig->loop, options);
	export.dev = rig->order;
	assert_int_equal(nbd_server_add_export(rig->server, &export, NULL), 0);
	export = (struct nbd_export){.name = "small", .dev = rig->small_order, .read_only = true};
	assert_int_equal(nbd_server_add_export(rig->server, &export, NULL), 0);
	export = (struct nbd_export){.name = "slow", .dev = &rig->slow.dev};
	assert_int_equal(nbd_server_add_export(rig->server, &export, NULL), 0);
}

static inline void turn(struct rig *rig)
{
	assert_true(bm_loop_turn(rig->loop, 1000000) >= 0);
}

static inline void turns(struct rig *rig, int count)
{
	while (count--)
		assert_true(bm_loop_turn(rig->loop, 0) >= 0);
}

static inline void rig_stopped(void *arg)
{
	((struct rig *)arg)->stopped = true;
}

static inline void rig_stop(struct rig *rig)
{
	if (!rig->stopping)
		nbd_server_stop(rig->server, rig_stopped, rig);
	rig->stopping = true;
}

/* All clients have to be gone, or going. */
static inline void rig_close(struct rig *rig)
{
	rig_stop(rig);
	for (int i = 0; i < 5000 && !rig->stopped; i++)
		turn(rig);
	assert_true(rig->stopped);
	nbd_server_free(rig->server);
	assert_int_equal(rig->slow.count, 0);
	bm_dev_close(rig->order);
	bm_dev_close(rig->small_order);
	bm_dev_close(rig->mem);
	bm_dev_close(rig->small);
	bm_loop_free(rig->loop);
}

#endif
