/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * NBD: the requests of a connected device.
 *
 * libnbd's callbacks run with the handle's lock held, inside a call of ours: they only note what
 * happened and move the request to `ended`; deliver() does the rest, later, from the loop.
 *
 * A connection that dies takes the device with it. What was in flight on the others may or may
 * not be carried out, and a new connection could not tell: the mirror above starts over, with
 * what was in flight as dirty. nbd_close() calls no completion, so the list of what is in flight
 * is ours, and once all handles are closed nobody touches a buffer any more, but for a thread that
 * compresses it, and gives it back soon.
 */
#include "blockmirror/dev/nbd.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/dev/extents.h"
#include "blockmirror/dev/open.h"

enum { SMALL = 64 << 10 };

/* The end of the device */

static void end(struct nbd_io *io, int result)
{
	struct nbd *n = io->nbd;

	io->result = result;
	io->conn->load -= io->weight;
	bm_list_remove(&io->link);
	bm_list_append(&n->ended, &io->link);
	bm_loop_soon(n->dev.loop, &n->deliver);
}

static void close_conns(struct nbd *n)
{
	for (unsigned i = 0; i < n->conns; i++) {
		struct nbd_conn *c = &n->conn[i];

		if (!c->handle)
			continue;
		if (n->dev.loop)
			bm_watch_set(n->dev.loop, &c->watch, c->watch.fd, 0);
		nbd_close(c->handle);
		c->handle = NULL;
	}
}

/* All that is in flight ends with error, once; so does all that comes later. */
static void lose(struct nbd *n, int error)
{
	struct bm_list *node;

	if (n->dead)
		return;
	n->dead = error;
	close_conns(n);
	bm_nbd_compressor_stop(n->compressor);
	/* What libnbd failed because of this death shall say so, whatever errno it chose. */
	bm_list_each(at, &n->ended) {
		struct nbd_io *io = bm_container(at, struct nbd_io, link);

		if (io->result)
			io->result = error;
	}
	while (!bm_list_empty(&n->flight))
		end(bm_container(n->flight.next, struct nbd_io, link), error);
	while ((node = bm_list_take(&n->waiting)))
		bm_later_done(&n->later, bm_container(node, struct bm_request, link), error);
}

/* Callbacks of libnbd: no nbd_ call in here */

static int on_done(void *user, int *error)
{
	struct nbd_io *io = user;

	/* To our callers ESHUTDOWN means that they cancelled. */
	if (*error == ESHUTDOWN)
		io->conn->shut = true;
	end(io, *error == ESHUTDOWN ? -ENOTCONN : -*error);
	/*
	 * 1 has libnbd forget the command. Not while it is being submitted, which happens when the
	 * connection dies right then: libnbd 1.14 reads the cookie it returns from the command that
	 * it has freed. Then nbd_close() does it.
	 */
	return !io->conn->sending;
}

static int on_extents(void *user, const char *context, uint64_t offset, uint32_t *entries,
		      size_t count, int *error)
{
	const struct nbd_io *io = user;
	struct bm_request *rq = io->rq;
	struct bm_extents *x = rq->extents;
	uint64_t left = rq->length;

	(void)offset, (void)error;
	if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) || x->count)
		return 0;
	/* The last extent may go past the end, the whole answer may be short (proto.md). */
	for (size_t i = 0; i + 1 < count && left; i += 2) {
		uint64_t length = entries[i] < left ? entries[i] : left;

		if (length % io->nbd->dev.geometry.block) /* which is the server's own */
			break;
		if (!bm_extents_add(x, length, entries[i + 1] & (BM_EXTENT_HOLE | BM_EXTENT_ZERO)))
			break;
		left -= length;
	}
	return 0;
}

/* Connections */

/* After every submission and every event: what to wait for may have changed. */
static void rearm(struct nbd_conn *c)
{
	unsigned direction;
	uint32_t events = 0;
	int fd, r;

	if (c->shut || nbd_aio_is_dead(c->handle) || nbd_aio_is_closed(c->handle)) {
		const char *why = c->shut ? "the server shuts down" : nbd_get_error();

		bm_log(BM_LOG_NOTICE, "%s: the connection is lost: %s", c->nbd->name,
		       why ? why : "no reason given");
		lose(c->nbd, -ENOTCONN);
		return;
	}
	direction = nbd_aio_get_direction(c->handle);
	fd = nbd_aio_get_fd(c->handle);
	if (direction & LIBNBD_AIO_DIRECTION_READ)
		events |= EPOLLIN;
	if (direction & LIBNBD_AIO_DIRECTION_WRITE)
		events |= EPOLLOUT;
	/* The descriptor cannot change its identity any more: libnbd never reconnects. */
	if (c->watch.fd == fd && c->watch.events == events)
		return;
	r = bm_watch_set(c->nbd->dev.loop, &c->watch, fd, events);
	if (r < 0)
		lose(c->nbd, -ENOTCONN);
}

static void on_ready(struct bm_watch *watch, uint32_t events)
{
	struct nbd_conn *c = bm_container(watch, struct nbd_conn, watch);
	unsigned direction = nbd_aio_get_direction(c->handle);

	/* One notify per event: after it the direction may be another one. */
	if (direction & LIBNBD_AIO_DIRECTION_READ && events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		nbd_aio_notify_read(c->handle);
	else if (direction & LIBNBD_AIO_DIRECTION_WRITE &&
		 events & (EPOLLOUT | EPOLLHUP | EPOLLERR))
		nbd_aio_notify_write(c->handle);
	rearm(c);
}

/*
 * The first connection is for what is small, so that a guest's 4 KiB write does not stand behind
 * the megabytes of a copy; the others share the bulk.
 */
static struct nbd_conn *choose(struct nbd *n, uint64_t weight)
{
	struct nbd_conn *best = &n->conn[n->conns > 1];

	if (weight < SMALL)
		return &n->conn[0];
	for (unsigned i = 2; i < n->conns; i++)
		if (n->conn[i].load < best->load)
			best = &n->conn[i];
	return best;
}

/* Requests */

static uint64_t weigh(const struct nbd_io *io)
{
	size_t compressed;

	if (io->flushing || io->rq->op == BM_FLUSH)
		return 0;
	/* It is a copy's, however small it has become. */
	if (bm_nbd_compressed(io, &compressed))
		return compressed < SMALL ? SMALL : compressed;
	/* Nobody waits for an extent, and finding it can take the server long. */
	return io->rq->op == BM_EXTENTS ? SMALL : io->rq->length;
}

static int64_t send_write(struct nbd_io *io, nbd_completion_callback done, uint32_t flags)
{
	const struct bm_request *rq = io->rq;
	size_t length;
	const uint8_t *data = bm_nbd_compressed(io, &length);

	if (data)
		return nbd_aio_pwrite(io->conn->handle, data, length, rq->offset, done,
				      flags | NBD_FLAG_COMPRESSED);
	return nbd_aio_pwrite(io->conn->handle, rq->data, rq->length, rq->offset, done, flags);
}

static int64_t send_command(struct nbd_io *io)
{
	const struct nbd *n = io->nbd;
	struct nbd_handle *h = io->conn->handle;
	const struct bm_request *rq = io->rq;
	nbd_completion_callback done = {.callback = on_done, .user_data = io};
	nbd_extent_callback extents = {.callback = on_extents, .user_data = io};
	uint32_t flags = rq->flags & BM_FUA && n->can_fua ? LIBNBD_CMD_FLAG_FUA : 0;

	if (io->flushing)
		return nbd_aio_flush(h, done, 0);
	switch (rq->op) {
	case BM_READ:
		return nbd_aio_pread(h, rq->data, rq->length, rq->offset, done, 0);
	case BM_WRITE:
		return send_write(io, done, flags);
	case BM_ZERO:
		/* max_zero is then that of a write. */
		if (!n->can_zero)
			return nbd_aio_pwrite(h, bm_zeros(), rq->length, rq->offset, done, flags);
		flags |= rq->flags & BM_NO_HOLE ? LIBNBD_CMD_FLAG_NO_HOLE : 0;
		flags |= rq->flags & BM_FAST ? LIBNBD_CMD_FLAG_FAST_ZERO : 0;
		return nbd_aio_zero(h, rq->length, rq->offset, done, flags);
	case BM_TRIM:
		return nbd_aio_trim(h, rq->length, rq->offset, done, flags);
	case BM_EXTENTS:
		rq->extents->count = 0;
		return nbd_aio_block_status(h, rq->length < BM_MAX_ZERO ? rq->length : BM_MAX_ZERO,
					    rq->offset, extents, done, 0);
	default:
		/* With several connections the server promised that one flush covers them all. */
		return nbd_aio_flush(h, done, 0);
	}
}

static void issue(struct nbd_io *io)
{
	struct nbd *n = io->nbd;
	struct nbd_conn *c;
	int64_t cookie;

	io->weight = weigh(io);
	io->conn = c = choose(n, io->weight);
	c->load += io->weight;
	bm_list_append(&n->flight, &io->link);
	c->sending = true;
	cookie = send_command(io);
	c->sending = false;
	if (cookie < 0) /* libnbd did not take it and will not call back */
		end(io, nbd_get_errno() ? -nbd_get_errno() : -EIO);
	rearm(c);
}

static void begin(struct nbd *n, struct bm_request *rq)
{
	struct nbd_io *io = bm_container(bm_list_take(&n->free), struct nbd_io, link);

	io->rq = rq;
	io->flushing = false;
	if (!bm_nbd_compress(io))
		issue(io);
}

void bm_nbd_go_on(struct nbd_io *io)
{
	struct nbd *n = io->nbd;

	if (!n->dead) {
		issue(io);
		return;
	}
	io->result = n->dead;
	bm_list_append(&n->ended, &io->link);
	bm_loop_soon(n->dev.loop, &n->deliver);
}

/* Whether rq's answer is known without asking the server. */
static bool known_at_once(const struct nbd *n, const struct bm_request *rq, int *result)
{
	bool writes = rq->op == BM_WRITE || rq->op == BM_ZERO || rq->op == BM_TRIM;

	*result = 0;
	if (n->dead)
		*result = n->dead;
	else if (writes && n->dev.geometry.flags & BM_DEV_READ_ONLY)
		*result = -EPERM;
	else if (rq->op == BM_ZERO && rq->flags & BM_FAST && !n->can_fast_zero)
		*result = -ENOTSUP;
	else if (rq->op == BM_EXTENTS && !n->can_extents) {
		rq->extents->count = 0;
		bm_extents_add(rq->extents, rq->length, 0);
	} else
		return (rq->op == BM_TRIM && !n->can_trim) || (rq->op == BM_FLUSH && !n->can_flush);
	return true;
}

static void nbd_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct nbd *n = bm_container(dev, struct nbd, dev);
	int result;

	if (known_at_once(n, rq, &result))
		bm_later_done(&n->later, rq, result);
	else if (bm_list_empty(&n->free))
		bm_list_append(&n->waiting, &rq->link);
	else
		begin(n, rq);
}

/* Whether io's request needs one more command. */
static bool goes_on(struct nbd_io *io)
{
	const struct nbd *n = io->nbd;

	if (io->result || io->flushing || !(io->rq->flags & BM_FUA) || n->can_fua || !n->can_flush)
		return false;
	io->flushing = true;
	return true;
}

static void finish(struct nbd_io *io)
{
	struct nbd *n = io->nbd;
	struct bm_request *rq = io->rq;
	int result = io->result;
	struct bm_list *node;

	if (rq->op == BM_EXTENTS && !n->dead && (result || !rq->extents->count)) {
		rq->extents->count = 0;
		bm_extents_add(rq->extents, rq->length, 0);
		result = 0;
	}
	bm_nbd_compress_end(io);
	bm_list_push(&n->free, &io->link);
	node = bm_list_take(&n->waiting);
	if (node)
		begin(n, bm_container(node, struct bm_request, link));
	rq->done(rq, result);
}

static void deliver(struct bm_task *task)
{
	struct nbd *n = bm_container(task, struct nbd, deliver);
	struct bm_list batch, *node;

	/* The last one's done() may close the device. */
	bm_list_init(&batch);
	bm_list_move_all(&batch, &n->ended);
	while ((node = bm_list_take(&batch))) {
		struct nbd_io *io = bm_container(node, struct nbd_io, link);

		if (!goes_on(io)) {
			finish(io);
		} else if (n->dead) {
			io->result = n->dead;
			finish(io);
		} else {
			issue(io);
		}
	}
}

/* The device */

static void nbd_start(struct bm_dev *dev)
{
	struct nbd *n = bm_container(dev, struct nbd, dev);

	bm_later_init(&n->later, dev->loop);
	n->deliver.run = deliver;
	for (unsigned i = 0; i < n->conns && !n->dead; i++) {
		n->conn[i].watch.run = on_ready;
		rearm(&n->conn[i]);
	}
}

static void nbd_cancel(struct bm_dev *dev)
{
	struct nbd *n = bm_container(dev, struct nbd, dev);

	lose(n, -ECANCELED);
	n->dead = -ESHUTDOWN;
}

void bm_nbd_free(struct nbd *n)
{
	/* nbd_close() alone would not say goodbye. */
	for (unsigned i = 0; i < n->conns; i++)
		if (n->conn[i].handle && nbd_aio_is_ready(n->conn[i].handle)) {
			bm_abort_on_close(nbd_aio_get_fd(n->conn[i].handle), false);
			nbd_aio_disconnect(n->conn[i].handle, 0);
		}
	close_conns(n);
	bm_nbd_compressor_free(n->compressor);
	free(n->name);
	free(n);
}

static void nbd_dev_close(struct bm_dev *dev)
{
	struct nbd *n = bm_container(dev, struct nbd, dev);

	if (dev->loop) {
		assert(bm_list_empty(&n->flight) && bm_list_empty(&n->ended));
		assert(bm_nbd_compressor_is_idle(n->compressor));
		bm_task_cancel(&n->deliver);
		bm_later_fini(&n->later);
	}
	bm_nbd_free(n);
}

const struct bm_dev_ops bm_nbd_ops = {
	.name = "nbd",
	.start = nbd_start,
	.submit = nbd_submit,
	.cancel = nbd_cancel,
	.close = nbd_dev_close,
};
