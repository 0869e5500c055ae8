/* SPDX-License-Identifier: BSD-3-Clause */
/* The NBD server with one client, and the devices that it serves. */
#include "tests/fuzz/host.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "blockmirror/base/list.h"
#include "blockmirror/base/log.h"
#include "blockmirror/dev/extents.h"
#include "blockmirror/dev/open.h"

enum {
	SLICE = 7,
	SLICED = 1 << 10, /* the first bytes that are; the rest goes at once */
	IDLE = 8,         /* turns without anything: nothing will ever come */
	TURNS = 1 << 20,
};

static uint8_t output[HOST_OUTPUT];

/* The shaky device */

static unsigned chance(struct shaky *s, unsigned of)
{
	s->random = s->random * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(s->random >> 33) % of;
}

static int any_error(struct shaky *s, const struct bm_request *rq)
{
	static const int errors[] = {EIO, ENOSPC, EPERM, EINVAL, ESHUTDOWN, EOVERFLOW, ENOMEM, 0};

	if (rq->op == BM_ZERO && rq->flags & BM_FAST && chance(s, 2))
		return -ENOTSUP;
	return s->fails && !chance(s, 4) ? -errors[chance(s, 8)] : 0;
}

static void any_extents(struct shaky *s, struct bm_request *rq)
{
	struct bm_extents *x = rq->extents;
	uint64_t left = rq->length, block = s->dev.geometry.block;
	unsigned count = 1 + chance(s, chance(s, 2) ? 4 : 5000);

	x->count = 0;
	while (left && count--) {
		uint64_t length = (1 + chance(s, 4096)) * block;

		length = length < left ? length : left;
		if (!bm_extents_add(x, length, chance(s, 4)))
			break;
		left -= length;
	}
}

/* As the map has it, merged, and maybe not all of it. */
static void map_extents(struct shaky *s, struct bm_request *rq)
{
	uint64_t at = rq->offset, end = at + rq->length;
	unsigned left = 1 + chance(s, 64);

	rq->extents->count = 0;
	for (unsigned i = 0; at < end && left; i++) {
		bool last = i + 1 == s->map->count;
		uint64_t next = last || s->map->part[i].end > end ? end : s->map->part[i].end;

		if (next <= at)
			continue;
		if (!bm_extents_add(rq->extents, next - at, s->map->part[i].flags))
			break;
		at = next;
		left--;
	}
}

static void answer(struct shaky *s)
{
	struct bm_list *node = chance(s, 2) ? s->held.next : s->held.prev;
	struct bm_request *rq = bm_container(node, struct bm_request, link);
	int error = any_error(s, rq);

	bm_list_remove(node);
	if (!error && rq->op == BM_READ)
		rq->data[0] = rq->data[rq->length - 1] = 0x5a;
	else if (!error && rq->op == BM_EXTENTS && s->map)
		map_extents(s, rq);
	else if (!error && rq->op == BM_EXTENTS)
		any_extents(s, rq);
	rq->done(rq, error);
}

static void shaky_run(struct bm_task *task)
{
	struct shaky *s = bm_container(task, struct shaky, task);

	while (!bm_list_empty(&s->held) && chance(s, 4))
		answer(s);
	if (!bm_list_empty(&s->held))
		bm_loop_soon(s->dev.loop, &s->task);
}

static void shaky_submit(struct bm_dev *dev, struct bm_request *rq)
{
	struct shaky *s = bm_container(dev, struct shaky, dev);
	const struct bm_geometry *g = &dev->geometry;

	/* What the contract of blockdev.h promises to a device. */
	demand(rq->offset <= g->size && rq->length <= g->size - rq->offset);
	demand(rq->offset % g->block == 0 && rq->length % g->block == 0);
	demand(rq->length || rq->op > BM_WRITE);
	if (rq->op <= BM_WRITE)
		demand(rq->length <= g->max_transfer && (uintptr_t)rq->data % g->block == 0);
	if (rq->op == BM_WRITE)
		demand(rq->data >= rq->buf->data &&
		       rq->data + rq->length <= rq->buf->data + rq->buf->size);
	bm_list_append(&s->held, &rq->link);
	bm_loop_soon(dev->loop, &s->task);
}

static void shaky_nothing(struct bm_dev *dev)
{
	(void)dev;
}

static void shaky_open(struct shaky *s, struct bm_loop *loop, uint32_t block, uint64_t seed)
{
	static const struct bm_dev_ops ops = {.name = "shaky",
					      .start = shaky_nothing,
					      .submit = shaky_submit,
					      .cancel = shaky_nothing,
					      .close = shaky_nothing};

	s->dev.ops = &ops;
	s->dev.geometry = (struct bm_geometry){.size = HOST_LARGE,
					       .block = block,
					       .max_transfer = BM_BUF_MAX,
					       .max_zero = block > 1 ? BM_MAX_ZERO : UINT64_MAX};
	s->task.run = shaky_run;
	s->random = seed;
	s->fails = seed & 1;
	bm_list_init(&s->held);
	bm_dev_start(&s->dev, loop);
}

/* The host */

static void open_device(struct host *h, uint8_t seed)
{
	static const struct bm_open_options as_it_is;
	char uri[32];

	if (h->options & HOST_SHAKY)
		shaky_open(&h->shaky, h->loop, h->options & HOST_BLOCKS ? 512 : 1, seed);
	h->dev = &h->shaky.dev;
	if (h->options & HOST_SHAKY && !(h->options & HOST_BLOCKS))
		return;
	if (!(h->options & HOST_SHAKY)) {
		snprintf(uri, sizeof(uri), "mem:%d", HOST_SMALL);
		demand(!bm_dev_open(uri, &as_it_is, &h->lower, NULL));
		bm_dev_start(h->lower, h->loop);
		h->dev = h->lower;
	}
	demand(!bm_order_new(h->dev, BM_ORDER_ALIGN, NULL, &h->order));
	bm_dev_start(h->order, h->loop);
	h->dev = h->order;
}

void host_export(struct host *h, const char *name, const char *description)
{
	const struct nbd_export export = {.name = name,
					  .description = description,
					  .dev = h->dev,
					  .read_only = h->options & HOST_READ_ONLY};

	demand(!nbd_server_add_export(h->server, &export, NULL));
}

/* Its seed is even where nothing shall fail. */
static void open_contexts(struct host *h, uint8_t seed)
{
	shaky_open(&h->marks, h->loop, 1, h->options & HOST_SHAKY ? seed ^ 0x100u : 0);
	demand(!nbd_server_add_context(h->server, "", HOST_DIRTY, &h->marks.dev, NULL));
	demand(!nbd_server_add_context(h->server, "", HOST_OTHER, &h->marks.dev, NULL));
}

void host_open(struct host *h, unsigned options, uint8_t seed)
{
	static struct bm_loop *loop;
	int fds[2];

	if (!loop) {
		bm_log_setup("fuzz", BM_LOG_ERROR);
		loop = bm_loop_new();
		demand(loop);
	}
	*h = (struct host){.loop = loop, .options = options, .output = output};
	open_device(h, seed);
	h->server = nbd_server_new(loop, NULL);
	demand(h->server);
	host_export(h, "", "the default one");
	open_contexts(h, seed);
	demand(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
	demand(!nbd_server_accept_fd(h->server, fds[0], fds[0]));
	h->fd = fds[1];
}

/* The client reads what there is. Returns whether there was anything. */
static bool receive(struct host *h)
{
	ssize_t n = recv(h->fd, h->output + h->got, HOST_OUTPUT - h->got, MSG_DONTWAIT);

	if (n > 0)
		h->got += (size_t)n;
	else if (n == 0 || errno == ECONNRESET)
		h->over = true;
	else
		demand(errno == EAGAIN);
	/* The targets do not ask for so much. */
	demand(h->got < HOST_OUTPUT);
	return n > 0;
}

/* Returns whether anything happened. The lazy client reads when the server has nothing else to do.
 */
static bool turn(struct host *h)
{
	int r = bm_loop_turn(h->loop, 0);

	demand(r >= 0);
	return (r && h->options & HOST_LAZY) || receive(h) || r;
}

bool host_send(struct host *h, const void *bytes, size_t length)
{
	int idle = 0;

	for (size_t done = 0; done < length && !h->over;) {
		bool sliced = h->options & HOST_SLICES && h->sent < SLICED;
		size_t part = length - done;
		ssize_t n =
			send(h->fd, (const uint8_t *)bytes + done,
			     sliced && part > SLICE ? SLICE : part, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno != EAGAIN)
			return false;
		done += n > 0 ? (size_t)n : 0;
		h->sent += n > 0 ? (size_t)n : 0;
		if (n < 0 || sliced)
			idle = turn(h) || n > 0 ? 0 : idle + 1;
		demand(idle < IDLE);
	}
	return !h->over;
}

void host_rest(struct host *h)
{
	int turns = 0;

	for (int idle = 0; !h->over && idle < IDLE; turns++)
		idle = turn(h) ? 0 : idle + 1;
	demand(turns < TURNS);
}

void host_finish(struct host *h)
{
	shutdown(h->fd, SHUT_WR);
	host_rest(h);
	demand(h->over);
}

void host_leave(struct host *h)
{
	close(h->fd);
	h->fd = -1;
	h->over = true;
}

static void stopped(void *arg)
{
	((struct host *)arg)->stopped = true;
}

void host_stop(struct host *h)
{
	if (!h->stopping)
		nbd_server_stop(h->server, stopped, h);
	h->stopping = true;
}

void host_close(struct host *h)
{
	if (h->fd >= 0)
		host_leave(h);
	host_stop(h);
	for (int turns = 0; !h->stopped; turns++) {
		demand(bm_loop_turn(h->loop, 0) >= 0);
		demand(turns < TURNS);
	}
	nbd_server_free(h->server);
	bm_dev_close(h->order);
	bm_dev_close(h->lower);
}
