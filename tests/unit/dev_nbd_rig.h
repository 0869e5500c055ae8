/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A libnbd of the test's own, in place of the real one: it keeps the commands in sent[] and answers
 * when and what the test says; and clients that send requests to a device above it. Included once,
 * by the test itself.
 */
#ifndef BM_TESTS_DEV_NBD_RIG_H
#define BM_TESTS_DEV_NBD_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/nbd.h"

enum { SENT = 600, CLIENTS = 600, MIB = 1 << 20 };
enum command_name { PREAD, PWRITE, ZERO, TRIM, FLUSH, STATUS };

struct nbd_handle {
	int fd, poke; /* the two ends of a pipe; fd is readable after a write to poke */
	unsigned direction;
	bool dead, closed;
	bool dies_in_submit, dies_in_notify, refuses;
	bool in_submit;
	bool answers; /* the next notification ends all its commands, with error */
	int error;
	unsigned reads, writes; /* notifications */
};

static struct command {
	enum command_name name;
	struct nbd_handle *handle;
	const void *memory;
	uint64_t offset, length;
	uint32_t flags;
	nbd_completion_callback done;
	nbd_extent_callback extents;
	bool answered;
} sent[SENT];

static struct nbd_handle handles[4];
static unsigned count;

/* Each command of h gets its callback. */
static void end_all_commands(struct nbd_handle *h, int error)
{
	for (unsigned i = 0; i < count; i++) {
		if (sent[i].handle != h || sent[i].answered)
			continue;
		sent[i].answered = true;
		/* 1 would free the command that is being submitted, and whose cookie comes next. */
		assert_int_equal(sent[i].done.callback(sent[i].done.user_data, &error),
				 !h->in_submit);
	}
}

static void die(struct nbd_handle *h)
{
	h->dead = true;
	end_all_commands(h, EPROTO);
}

static int64_t keep(struct command c)
{
	assert_true(count < SENT);
	assert_false(c.handle->closed);
	if (c.handle->refuses)
		return -1;
	sent[count++] = c;
	c.handle->in_submit = true;
	if (c.handle->dies_in_submit)
		die(c.handle);
	c.handle->in_submit = false;
	return count;
}

int64_t nbd_aio_pread(struct nbd_handle *h, void *data, size_t length, uint64_t offset,
		      nbd_completion_callback done, uint32_t flags)
{
	return keep((struct command){PREAD, h, data, offset, length, flags, .done = done});
}

int64_t nbd_aio_pwrite(struct nbd_handle *h, const void *data, size_t length, uint64_t offset,
		       nbd_completion_callback done, uint32_t flags)
{
	return keep((struct command){PWRITE, h, data, offset, length, flags, .done = done});
}

int64_t nbd_aio_zero(struct nbd_handle *h, uint64_t length, uint64_t offset,
		     nbd_completion_callback done, uint32_t flags)
{
	return keep((struct command){ZERO, h, NULL, offset, length, flags, .done = done});
}

int64_t nbd_aio_trim(struct nbd_handle *h, uint64_t length, uint64_t offset,
		     nbd_completion_callback done, uint32_t flags)
{
	return keep((struct command){TRIM, h, NULL, offset, length, flags, .done = done});
}

int64_t nbd_aio_flush(struct nbd_handle *h, nbd_completion_callback done, uint32_t flags)
{
	return keep((struct command){FLUSH, h, .flags = flags, .done = done});
}

int64_t nbd_aio_block_status(struct nbd_handle *h, uint64_t length, uint64_t offset,
			     nbd_extent_callback extents, nbd_completion_callback done,
			     uint32_t flags)
{
	return keep((struct command){STATUS, h, NULL, offset, length, flags, .done = done,
				     .extents = extents});
}

unsigned nbd_aio_get_direction(struct nbd_handle *h)
{
	assert_false(h->closed);
	return h->direction;
}

int nbd_aio_get_fd(struct nbd_handle *h)
{
	assert_false(h->closed);
	return h->fd;
}

static void notified(struct nbd_handle *h)
{
	char poked;

	assert_true(read(h->fd, &poked, 1) >= 0);
	if (h->answers)
		end_all_commands(h, h->error);
	if (h->dies_in_notify)
		die(h);
}

int nbd_aio_notify_read(struct nbd_handle *h)
{
	h->reads++;
	notified(h);
	return h->dead ? -1 : 0;
}

int nbd_aio_notify_write(struct nbd_handle *h)
{
	h->writes++;
	notified(h);
	return h->dead ? -1 : 0;
}

int nbd_aio_is_dead(struct nbd_handle *h)
{
	assert_false(h->closed);
	return h->dead;
}

int nbd_aio_is_closed(struct nbd_handle *h)
{
	(void)h;
	return 0;
}

int nbd_aio_is_ready(struct nbd_handle *h)
{
	return !h->dead;
}

int nbd_aio_disconnect(struct nbd_handle *h, uint32_t flags)
{
	(void)flags;
	assert_false(h->closed);
	return 0;
}

void nbd_close(struct nbd_handle *h)
{
	assert_false(h->closed);
	h->closed = true; /* and no callback */
}

int nbd_get_errno(void)
{
	return EINVAL;
}

const char *nbd_get_error(void)
{
	return "as the test wants it";
}

struct client {
	struct bm_request rq;
	unsigned answers;
	int error;
	struct bm_extents extents;
	struct bm_extent extent[8];
};

static struct client clients[CLIENTS];
static unsigned used;
static struct bm_loop *loop;
static struct nbd *n;
static uint8_t memory[MIB];
static bool cancel_in_done;

static void turn(void)
{
	while (bm_loop_turn(loop, 0) > 0)
		;
}

static void done(struct bm_request *rq, int error)
{
	struct client *c = bm_container(rq, struct client, rq);

	/* Whoever ends for the device's sake ends when nobody can touch its memory any more. */
	if (error == -ENOTCONN || error == -ECANCELED)
		for (unsigned i = 0; i < 3; i++)
			assert_true(handles[i].closed);
	c->answers++;
	c->error = error;
	if (cancel_in_done)
		bm_dev_cancel(&n->dev);
}

static struct client *submit(enum bm_op op, uint64_t offset, uint64_t length, uint32_t flags)
{
	struct client *c = &clients[used++];

	assert_true(used <= CLIENTS);
	memset(c, 0, sizeof(*c));
	c->extents = (struct bm_extents){.v = c->extent, .room = 8, .count = 5};
	c->rq = (struct bm_request){.op = op,
				    .flags = flags,
				    .offset = offset,
				    .length = length,
				    .data = memory,
				    .extents = &c->extents,
				    .done = done};
	bm_submit(&n->dev, &c->rq);
	assert_int_equal(c->answers, 0);
	turn();
	return c;
}

static void ended(const struct client *c, int error)
{
	assert_int_equal(c->answers, 1);
	assert_int_equal(c->error, error);
}

static void was(unsigned i, enum command_name name, uint64_t start, uint64_t end, uint32_t flags)
{
	assert_true(i < count);
	assert_int_equal(sent[i].name, name);
	assert_int_equal(sent[i].offset, start);
	assert_int_equal(sent[i].length, end - start);
	assert_int_equal(sent[i].flags, flags);
}

static void answer(unsigned i, int error)
{
	struct command *c = &sent[i];

	assert_true(i < count && !c->answered);
	c->answered = true;
	assert_int_equal(c->done.callback(c->done.user_data, &error), 1);
	turn();
}

static void poke(struct nbd_handle *h)
{
	assert_int_equal(write(h->poke, "x", 1), 1);
	turn();
}

static int begin(void **state)
{
	(void)state;
	loop = bm_loop_new();
	n = bm_nbd_new("nbd:test");
	memset(handles, 0, sizeof(handles));
	count = used = 0;
	cancel_in_done = false;
	n->conns = 3;
	for (unsigned i = 0; i < n->conns; i++) {
		int ends[2];

		assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
		handles[i].fd = ends[0];
		handles[i].poke = ends[1];
		handles[i].direction = LIBNBD_AIO_DIRECTION_READ;
		n->conn[i].handle = &handles[i];
	}
	n->dev.geometry = (struct bm_geometry){
		.size = 1 << 30, .block = 512, .max_transfer = MIB, .max_zero = BM_MAX_ZERO};
	n->can_flush = n->can_fua = n->can_zero = n->can_fast_zero = true;
	n->can_trim = n->can_extents = true;
	bm_dev_start(&n->dev, loop);
	return 0;
}

static int over(void **state)
{
	(void)state;
	bm_dev_cancel(&n->dev);
	turn();
	for (unsigned i = 0; i < used; i++)
		assert_int_equal(clients[i].answers, 1);
	bm_dev_close(&n->dev);
	bm_loop_free(loop);
	for (unsigned i = 0; i < 3; i++) {
		assert_true(handles[i].closed);
		close(handles[i].fd), close(handles[i].poke);
	}
	return 0;
}

#endif
