/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A libiscsi of the test's own, in place of the real one: it keeps the commands in sent[] and
 * answers when and what the test says; and clients that send requests to a device above it.
 * Included once, by the test itself.
 */
#ifndef BM_TESTS_DEV_ISCSI_RIG_H
#define BM_TESTS_DEV_ISCSI_RIG_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/iscsi.h"

enum { SENT = 600, CLIENTS = 600, BLOCK = 512, MIB = 1 << 20 };

struct iscsi_context {
	int fd, poke; /* the two ends of a pipe; fd is readable after a write to poke */
	int queued;   /* PDUs that wait for the socket */
	bool destroyed;
};

static struct command {
	struct scsi_task task; /* first: it is what libiscsi hands out */
	struct iscsi_context *context;
	enum scsi_opcode opcode;
	uint64_t lba;
	uint32_t blocks;
	bool fua, unmap, freed, answered;
	void *memory;
	iscsi_command_cb cb;
	void *user;
} sent[SENT];

static struct iscsi_context contexts[4];
static unsigned count, serviced;
static struct command *times_out; /* at the next service */

static struct scsi_task *keep(struct command c)
{
	assert_true(count < SENT);
	assert_false(c.context->destroyed);
	sent[count] = c;
	return &sent[count++].task;
}

int iscsi_service(struct iscsi_context *c, int revents)
{
	struct command *late = times_out;
	char poked;

	(void)revents;
	assert_false(c->destroyed);
	serviced++;
	if (read(c->fd, &poked, 1) < 0)
		assert_int_equal(errno, EAGAIN);
	times_out = NULL;
	if (late) { /* a DATA-OUT PDU first, then the command itself */
		late->answered = true;
		late->cb(c, (int)SCSI_STATUS_TIMEOUT, &late->task, late->user);
		late->cb(c, (int)SCSI_STATUS_TIMEOUT, &late->task, late->user);
	}
	return 0;
}

int iscsi_which_events(struct iscsi_context *c)
{
	return c->queued ? POLLIN | POLLOUT : POLLIN;
}

int iscsi_get_fd(struct iscsi_context *c)
{
	return c->fd;
}

int iscsi_out_queue_length(struct iscsi_context *c)
{
	assert_false(c->destroyed);
	return c->queued;
}

int iscsi_destroy_context(struct iscsi_context *c)
{
	assert_false(c->destroyed);
	for (unsigned i = 0; i < count; i++)
		if (sent[i].context == c && !sent[i].answered) {
			sent[i].answered = true;
			sent[i].cb(c, SCSI_STATUS_CANCELLED, &sent[i].task, sent[i].user);
		}
	c->destroyed = true;
	return 0;
}

const char *iscsi_get_error(struct iscsi_context *c)
{
	(void)c;
	return "as the test wants it";
}

int iscsi_is_logged_in(struct iscsi_context *c)
{
	return !c->destroyed;
}

int iscsi_logout_async(struct iscsi_context *c, iscsi_command_cb cb, void *user)
{
	(void)c, (void)cb, (void)user;
	return 0;
}

void scsi_free_scsi_task(struct scsi_task *task)
{
	struct command *c = (struct command *)task;

	assert_false(c->freed);
	/* Neither the task nor the data may go as long as libiscsi can send from them. */
	if (c->opcode != SCSI_OPCODE_READ16 && task->status != SCSI_STATUS_GOOD)
		assert_true(c->context->destroyed || !c->context->queued);
	c->freed = true;
}

struct scsi_task *iscsi_read16_iov_task(struct iscsi_context *c, int lun, uint64_t lba,
					uint32_t length, int block, int protect, int dpo, int fua,
					int fua_nv, int group, iscsi_command_cb cb, void *user,
					struct scsi_iovec *iov, int n)
{
	(void)lun, (void)protect, (void)dpo, (void)fua, (void)fua_nv, (void)group;
	assert_int_equal(n, 1);
	assert_int_equal(iov->iov_len, length);
	return keep((struct command){.context = c,
				     .opcode = SCSI_OPCODE_READ16,
				     .lba = lba,
				     .blocks = length / (unsigned)block,
				     .memory = iov->iov_base,
				     .cb = cb,
				     .user = user});
}

struct scsi_task *iscsi_write16_iov_task(struct iscsi_context *c, int lun, uint64_t lba,
					 unsigned char *data, uint32_t length, int block,
					 int protect, int dpo, int fua, int fua_nv, int group,
					 iscsi_command_cb cb, void *user, struct scsi_iovec *iov,
					 int n)
{
	(void)lun, (void)data, (void)protect, (void)dpo, (void)fua_nv, (void)group;
	assert_int_equal(n, 1);
	assert_int_equal(iov->iov_len, length);
	return keep((struct command){.context = c,
				     .opcode = SCSI_OPCODE_WRITE16,
				     .lba = lba,
				     .blocks = length / (unsigned)block,
				     .memory = iov->iov_base,
				     .fua = fua,
				     .cb = cb,
				     .user = user});
}

struct scsi_task *iscsi_writesame16_iov_task(struct iscsi_context *c, int lun, uint64_t lba,
					     unsigned char *data, uint32_t length, uint32_t blocks,
					     int anchor, int unmap, int protect, int group,
					     iscsi_command_cb cb, void *user,
					     struct scsi_iovec *iov, int n)
{
	(void)lun, (void)anchor, (void)protect, (void)group;
	assert_int_equal(n, 1);
	assert_int_equal(length, BLOCK);
	assert_ptr_equal(data, iov->iov_base); /* else libiscsi announces no data */
	assert_true(bm_is_zero(data, length));
	return keep((struct command){.context = c,
				     .opcode = SCSI_OPCODE_WRITE_SAME16,
				     .lba = lba,
				     .blocks = blocks,
				     .unmap = unmap,
				     .cb = cb,
				     .user = user});
}

struct scsi_task *iscsi_unmap_task(struct iscsi_context *c, int lun, int anchor, int group,
				   struct unmap_list *list, int n, iscsi_command_cb cb, void *user)
{
	(void)lun, (void)anchor, (void)group;
	assert_int_equal(n, 1);
	return keep((struct command){.context = c,
				     .opcode = SCSI_OPCODE_UNMAP,
				     .lba = list->lba,
				     .blocks = list->num,
				     .cb = cb,
				     .user = user});
}

struct scsi_task *iscsi_synchronizecache16_task(struct iscsi_context *c, int lun, uint64_t lba,
						uint32_t blocks, int syncnv, int immed,
						iscsi_command_cb cb, void *user)
{
	(void)lun, (void)syncnv;
	assert_int_equal(immed, 0);
	return keep((struct command){.context = c,
				     .opcode = SCSI_OPCODE_SYNCHRONIZECACHE16,
				     .lba = lba,
				     .blocks = blocks,
				     .cb = cb,
				     .user = user});
}

struct scsi_task *iscsi_get_lba_status_task(struct iscsi_context *c, int lun, uint64_t lba,
					    uint32_t length, iscsi_command_cb cb, void *user)
{
	(void)lun;
	return keep((struct command){.context = c,
				     .opcode = SCSI_OPCODE_SERVICE_ACTION_IN,
				     .lba = lba,
				     .blocks = length,
				     .cb = cb,
				     .user = user});
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
static struct iscsi *d;
static uint8_t memory[4 * MIB];

static void turn(void)
{
	while (bm_loop_turn(loop, 0) > 0)
		;
}

static void done(struct bm_request *rq, int error)
{
	struct client *c = bm_container(rq, struct client, rq);

	c->answers++;
	c->error = error;
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
	bm_submit(&d->dev, &c->rq);
	assert_int_equal(c->answers, 0);
	turn();
	return c;
}

static void ended(const struct client *c, int error)
{
	assert_int_equal(c->answers, 1);
	assert_int_equal(c->error, error);
}

/* The target says something, which is nothing in the end: libiscsi is called. */
static void poke(struct iscsi_context *c)
{
	unsigned before = serviced;

	assert_int_equal(write(c->poke, "x", 1), 1);
	while (serviced == before)
		bm_loop_turn(loop, UINT64_MAX);
	turn();
}

/* The i-th command of all was op on [start, end) bytes. */
static void was(unsigned i, enum scsi_opcode opcode, uint64_t start, uint64_t end)
{
	assert_true(i < count);
	assert_int_equal(sent[i].opcode, opcode);
	assert_int_equal(sent[i].lba * BLOCK, start);
	assert_int_equal(sent[i].blocks * (uint64_t)BLOCK, end - start);
}

static void answer(unsigned i, int status)
{
	struct command *c = &sent[i];

	assert_true(i < count && !c->answered);
	c->answered = true;
	c->task.status = status;
	c->cb(c->context, status, &c->task, c->user);
	turn();
}

static void complain(unsigned i, enum scsi_sense_key key, int ascq)
{
	sent[i].task.sense.key = key;
	sent[i].task.sense.ascq = ascq;
	answer(i, SCSI_STATUS_CHECK_CONDITION);
}

static int begin(void **state)
{
	(void)state;
	loop = bm_loop_new();
	d = bm_iscsi_new();
	memset(contexts, 0, sizeof(contexts));
	count = used = serviced = 0;
	times_out = NULL;
	d->sessions = 3;
	for (unsigned i = 0; i < d->sessions; i++) {
		int ends[2];

		assert_int_equal(pipe2(ends, O_NONBLOCK), 0);
		contexts[i].fd = ends[0];
		contexts[i].poke = ends[1];
		d->session[i].context = &contexts[i];
	}
	d->dev.geometry =
		(struct bm_geometry){.size = 256 * MIB,
				     .block = BLOCK,
				     .max_transfer = MIB,
				     .max_zero = BM_MAX_ZERO,
				     .flags = BM_DEV_FAST_ZERO | BM_DEV_TRIM | BM_DEV_EXTENTS};
	d->can_fua = d->can_same = d->can_same_unmap = d->can_extents = d->hole_is_zero = true;
	d->max_same = BM_MAX_ZERO;
	d->max_unmap = BM_MAX_ZERO;
	bm_dev_start(&d->dev, loop);
	return 0;
}

static int over(void **state)
{
	(void)state;
	bm_dev_cancel(&d->dev);
	turn();
	for (unsigned i = 0; i < used; i++)
		assert_int_equal(clients[i].answers, 1);
	for (unsigned i = 0; i < count; i++)
		assert_true(sent[i].freed);
	bm_dev_close(&d->dev);
	bm_loop_free(loop);
	for (unsigned i = 0; i < 3; i++)
		close(contexts[i].fd), close(contexts[i].poke);
	return 0;
}

#endif
