/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The libaio engine.
 *
 * io_submit() blocks for whatever the file system does before it starts the transfer: allocation
 * of a hole, a journal that is full, a lock held by fallocate (reference: 100 % of the time of an
 * extending write). So every read and write carries RWF_NOWAIT: what would block comes back as
 * -EAGAIN within two microseconds and is done by a worker instead.
 *
 * Completions are counted by an eventfd; edge-triggered, so that it need not be read. They lie in a
 * ring that the kernel maps into this process (fs/aio.c, struct aio_ring), and are taken from there
 * without a system call; a ring of a layout not known is left to io_getevents().
 */
#include <assert.h>
#include <errno.h>
#include <libaio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/dev/aio.h"

/* It learns from the system call what was read. */
#if __has_include(<valgrind/valgrind.h>)
#include <valgrind/valgrind.h>
#else
#define RUNNING_ON_VALGRIND 0
#endif

#ifndef RWF_DSYNC
#define RWF_DSYNC 0x00000002
#endif
#ifndef RWF_NOWAIT
#define RWF_NOWAIT 0x00000008
#endif

enum { BATCH = 64 };

/* The kernel's: it moves tail, whoever reaps moves head. */
struct ring {
	uint32_t id, nr;
	_Atomic uint32_t head, tail;
	uint32_t magic, compat_features, incompat_features, header_length;
	struct io_event events[];
};
#define RING_MAGIC 0xa10a10a1u

struct bm_aio {
	struct bm_loop *loop;
	int fd;
	io_context_t context;
	struct ring *ring; /* NULL: not to be used */
	struct bm_watch watch;
	struct bm_task kick;
	struct bm_list queue;
};

static struct iocb *iocb_of(struct bm_aio_rq *rq)
{
	static_assert(sizeof(struct iocb) <= sizeof(rq->engine), "an iocb fits the engine's part");
	return (struct iocb *)(void *)rq->engine;
}

static void prepare(struct bm_aio *aio, struct bm_aio_rq *rq)
{
	struct iocb *iocb = iocb_of(rq);

	switch (rq->op) {
	case BM_AIO_READ:
		io_prep_pread(iocb, aio->fd, rq->data, rq->length, (long long)rq->offset);
		iocb->aio_rw_flags = RWF_NOWAIT;
		break;
	case BM_AIO_WRITE:
		io_prep_pwrite(iocb, aio->fd, rq->data, rq->length, (long long)rq->offset);
		iocb->aio_rw_flags = rq->dsync ? RWF_NOWAIT | RWF_DSYNC : RWF_NOWAIT;
		break;
	case BM_AIO_SYNC:
		io_prep_fdsync(iocb, aio->fd);
		break;
	}
	io_set_eventfd(iocb, aio->watch.fd);
	iocb->data = rq;
}

/* The first of a batch was refused: it alone fails (-EAGAIN: a worker does it), the rest go on. */
static void refuse(struct bm_aio_rq *rq, int error)
{
	rq->done(rq, error == -EOPNOTSUPP ? -EAGAIN : error);
}

static void submit_batch(struct bm_aio *aio)
{
	struct iocb *batch[BATCH];
	int count = 0, sent;
	struct bm_list *node;

	while (count < BATCH && (node = bm_list_take(&aio->queue)))
		batch[count++] = iocb_of(bm_container(node, struct bm_aio_rq, link));
	for (int at = 0; at < count; at += sent) {
		sent = io_submit(aio->context, count - at, batch + at);
		if (sent <= 0) {
			refuse(batch[at]->data, sent ? sent : -EAGAIN);
			sent = 1;
		}
	}
}

static void kick(struct bm_task *task)
{
	struct bm_aio *aio = bm_container(task, struct bm_aio, kick);

	while (!bm_list_empty(&aio->queue))
		submit_batch(aio);
}

static struct ring *ring_of(io_context_t context)
{
	struct ring *ring = (struct ring *)(void *)context;

	return !RUNNING_ON_VALGRIND && ring->magic == RING_MAGIC && !ring->incompat_features &&
			       ring->header_length == sizeof(*ring)
		       ? ring
		       : NULL;
}

/* As io_getevents(), without waiting. */
static int take(struct bm_aio *aio, struct io_event *done, int most)
{
	struct ring *ring = aio->ring;
	uint32_t head, tail;
	int n = 0;

	if (!ring)
		return io_getevents(aio->context, 0, most, done, NULL);
	head = atomic_load_explicit(&ring->head, memory_order_relaxed);
	tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
	for (; head != tail && n < most; head = (head + 1) % ring->nr)
		done[n++] = ring->events[head];
	atomic_store_explicit(&ring->head, head, memory_order_release);
	return n;
}

static void reap(struct bm_watch *watch, uint32_t events)
{
	struct bm_aio *aio = bm_container(watch, struct bm_aio, watch);
	struct io_event done[BATCH];
	int n;

	(void)events;
	do {
		n = take(aio, done, BATCH);
		for (int i = 0; i < n; i++) {
			struct bm_aio_rq *rq = done[i].data;

			rq->done(rq, (int64_t)done[i].res);
		}
	} while (n == BATCH);
}

static void aio_submit(struct bm_aio *aio, struct bm_aio_rq *rq)
{
	prepare(aio, rq);
	bm_list_append(&aio->queue, &rq->link);
	bm_loop_before_wait(aio->loop, &aio->kick);
}

static void aio_close(struct bm_aio *aio)
{
	bm_task_cancel(&aio->kick);
	if (aio->context)
		io_destroy(aio->context);
	if (aio->watch.fd >= 0) {
		bm_watch_set(aio->loop, &aio->watch, aio->watch.fd, 0);
		close(aio->watch.fd);
	}
	free(aio);
}

static int aio_open(struct bm_loop *loop, int fd, unsigned depth, struct bm_aio **out)
{
	struct bm_aio *aio = calloc(1, sizeof(*aio));
	int r = -ENOMEM, event;

	if (!aio)
		return r;
	aio->loop = loop;
	aio->fd = fd;
	aio->watch.fd = -1;
	aio->watch.run = reap;
	aio->kick.run = kick;
	bm_list_init(&aio->queue);
	r = io_setup((int)depth, &aio->context); /* -EAGAIN: fs.aio-max-nr is used up */
	if (r < 0)
		goto fail;
	aio->ring = ring_of(aio->context);
	event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = event < 0 ? -errno : bm_watch_set(loop, &aio->watch, event, EPOLLIN | EPOLLET);
	if (r < 0)
		goto fail;
	*out = aio;
	return 0;
fail:
	aio_close(aio);
	return r;
}

const struct bm_aio_ops bm_aio_linux = {
	.name = "libaio",
	.open = aio_open,
	.submit = aio_submit,
	.close = aio_close,
};
