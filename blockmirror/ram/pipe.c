// SPDX-License-Identifier: BSD-3-Clause
/*
 * A pipe as a whole: its connections, its messages, its end. Messages are a stream of their own,
 * kind, length and bytes: to the target among the records of batches, so that they keep their place
 * between pages; back in frames of their own.
 */
#include "blockmirror/ram/pipe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
#include <zstd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/ram/pipe_inside.h"

void bm_pipe_fail(struct bm_pipe *p, const struct bm_error *error)
{
	if (p->dead)
		return;
	p->dead = true;
	p->error = *error;
	bm_loop_soon(p->loop, &p->later);
}

void bm_pipe_refuse(struct bm_pipe *p, const struct bm_link *link, const char *why)
{
	struct bm_error error;

	bm_fail(&error, BM_E_UNREACHABLE, "connection %u that carries RAM: %s", link->number, why);
	bm_pipe_fail(p, &error);
}

static void tell(struct bm_task *task)
{
	struct bm_pipe *p = bm_container(task, struct bm_pipe, later);

	if (p->dead && !p->told) {
		const struct bm_error error = p->error; /* failed() may close the pipe */

		p->told = true;
		p->ops->failed(p->arg, &error);
	} else if (!p->dead && p->hungry) {
		p->hungry = false;
		p->ops->ready(p->arg);
	}
}

/* Messages */

int bm_queue_add(struct pipe_queue *q, const void *data, size_t length)
{
	size_t room = q->room ? q->room : 4096;
	uint8_t *bigger;

	if (q->at) {
		memmove(q->data, q->data + q->at, q->end - q->at);
		q->end -= q->at;
		q->at = 0;
	}
	while (room < q->end + length)
		room *= 2;
	if (room > q->room) {
		bigger = realloc(q->data, room);
		if (!bigger)
			return -ENOMEM;
		q->data = bigger;
		q->room = room;
	}
	if (length)
		memcpy(q->data + q->end, data, length);
	q->end += length;
	return 0;
}

void bm_queue_take(struct pipe_queue *q, size_t length)
{
	q->at += length;
	if (q->at == q->end)
		q->at = q->end = 0;
}

int bm_pipe_message(struct bm_pipe *p, uint8_t kind, const void *data, size_t length)
{
	uint8_t head[PIPE_HEAD] = {kind};
	int r;

	bm_put32(head + 1, (uint32_t)length);
	r = bm_queue_add(&p->out, head, sizeof(head));
	return r ? r : bm_queue_add(&p->out, data, length);
}

int bm_pipe_hear(struct bm_pipe *p, const uint8_t *data, size_t length, struct bm_error *error)
{
	struct pipe_queue *q = &p->in;
	int r = bm_queue_add(q, data, length);

	if (r < 0)
		return bm_fail_errno(error, r, "a message of the other host");
	while (q->end - q->at >= PIPE_HEAD) {
		const uint8_t *head = q->data + q->at;
		uint32_t bytes = bm_get32(head + 1);

		if (bytes > BM_PIPE_MESSAGE)
			return bm_fail(error, BM_E_UNREACHABLE,
				       "the other host sends a message of %u bytes", bytes);
		if (q->end - q->at - PIPE_HEAD < bytes)
			break;
		r = p->ops->message(p->arg, *head, head + PIPE_HEAD, bytes, error);
		if (r < 0)
			return r;
		bm_queue_take(q, PIPE_HEAD + bytes);
	}
	return 0;
}

void bm_pipe_push(struct bm_pipe *p)
{
	if (p->dead)
		return;
	p->pushed = true;
	if (p->source)
		bm_pipe_pump(p);
	else
		bm_pipe_answer(p);
}

uint64_t bm_pipe_wire(const struct bm_pipe *p)
{
	uint64_t bytes = 0;

	for (unsigned i = 0; i < p->count; i++)
		bytes += p->links[i].bytes_out;
	return bytes;
}

/* Connections */

static bool on_frame(struct bm_link *link)
{
	struct bm_pipe *p = link->arg;

	if (p->dead)
		return true;
	return p->source ? bm_pipe_source_frame(link) : bm_pipe_target_frame(link);
}

static void on_idle(struct bm_link *link)
{
	struct bm_pipe *p = link->arg;

	if (p->dead)
		return;
	if (p->source)
		bm_pipe_source_idle(link);
	else
		bm_pipe_target_idle(link);
}

static void on_failed(struct bm_link *link, const struct bm_error *error)
{
	bm_pipe_fail(link->arg, error);
}

static void on_tick(struct bm_timer *timer)
{
	struct bm_pipe *p = bm_container(timer, struct bm_pipe, tick);

	bm_timer_set(p->loop, timer, bm_loop_now(p->loop) + BM_LINK_TICK);
	bm_links_beat(p->links, p->count, BM_LINK_SILENCE, BM_LINK_HELLO);
}

static int connect_to(const char *path, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (strlen(path) >= sizeof(address.sun_path))
		return bm_fail(error, BM_E_USAGE, "%s: a socket's path is limited to %zu bytes",
			       path, sizeof(address.sun_path) - 1);
	memcpy(address.sun_path, path, strlen(path) + 1);
	if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return bm_fail_errno(error, errno, "cannot connect to %s", path);
	return bm_steal_fd(fd);
}

static int open_links(struct bm_pipe *p, const char *path, unsigned count, struct bm_error *error)
{
	static const struct bm_link_ops ops = {on_frame, on_idle, on_failed};

	for (p->count = 0; p->count < count; p->count++) {
		struct bm_link *link = &p->links[p->count];
		struct bm_transport transport = {0};
		bm_close int fd = connect_to(path, error);
		int r = fd < 0 ? fd : bm_transport_open(&transport, fd, fd);

		if (!r)
			r = bm_link_open(link, p->loop, &transport, &ops, p);
		if (r < 0)
			return fd < 0 ? r : bm_fail_errno(error, r, "connection to %s", path);
		bm_steal_fd(fd);
		link->number = p->count;
	}
	return 0;
}

int bm_pipe_open(struct bm_loop *loop, const char *path, unsigned connections, const char *move,
		 bool source, const struct bm_pipe_ops *ops, void *arg, struct bm_pipe **out,
		 struct bm_error *error)
{
	struct bm_pipe *p = calloc(1, sizeof(*p));
	XXH128_canonical_t id;
	int r;

	if (!p)
		return bm_fail_errno(error, ENOMEM, "the way of RAM");
	XXH128_canonicalFromHash(&id, XXH3_128bits(move, strlen(move)));
	memcpy(p->id, id.digest, BM_RAM_ID);
	p->loop = loop;
	p->ops = ops;
	p->arg = arg;
	p->source = source;
	p->later.run = tell;
	p->tick.run = on_tick;
	p->next.run = bm_pipe_next;
	p->capped.run = bm_pipe_capped;
	p->hash = XXH3_createState();
	r = p->hash ? 0 : -ENOMEM;
	if (!r)
		r = source ? bm_pipe_make_sender(p) : bm_pipe_make_receiver(p);
	if (!r)
		r = bm_timer_set(loop, &p->tick, bm_loop_now(loop) + BM_LINK_TICK);
	if (r < 0)
		bm_fail_errno(error, r, "the way of RAM");
	else
		r = open_links(p, path, connections, error);
	if (r < 0) {
		bm_pipe_close(p);
		return r;
	}
	if (source)
		bm_pipe_greet(p);
	*out = p;
	return 0;
}

void bm_pipe_free_all(struct bm_pipe *p)
{
	if (p->working)
		return;
	bm_workers_free(p->workers);
	for (unsigned i = 0; i < PIPE_BATCHES; i++) {
		free(p->batches[i].plain.data);
		free(p->batches[i].packed.data);
		ZSTD_freeCCtx(p->batches[i].zstd);
	}
	bm_encoder_free(p->encoder);
	bm_decoder_free(p->decoder);
	XXH3_freeState(p->hash);
	ZSTD_freeDCtx(p->unzstd);
	free(p->plain);
	free(p->out.data);
	free(p->in.data);
	free(p);
}

void bm_pipe_close(struct bm_pipe *p)
{
	if (!p)
		return;
	p->dead = p->freed = true;
	bm_task_cancel(&p->later);
	bm_task_cancel(&p->next);
	bm_timer_clear(p->loop, &p->tick);
	bm_timer_clear(p->loop, &p->capped);
	for (unsigned i = 0; i < p->count; i++)
		bm_link_close(&p->links[i]);
	bm_pipe_free_all(p);
}
