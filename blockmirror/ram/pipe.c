// SPDX-License-Identifier: BSD-3-Clause
/* A pipe over one connection, nothing coded. */
#include "blockmirror/ram/pipe.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/list.h"

enum { HEAD = 16, PAGES_ROOM = 1 << 20, PAGE_KIND = 255, READ = 256 << 10 };

struct head {
	uint8_t kind, zero;
	uint16_t region;
	uint32_t length;
	uint64_t index;
};

struct buffer {
	uint8_t *data;
	size_t used, room, done;
};

struct bm_pipe {
	struct bm_loop *loop;
	struct bm_watch watch;
	struct bm_task later; /* what is told outside of calls */
	const struct bm_pipe_ops *ops;
	void *arg;
	int fd;
	bool hungry, dead, told;
	struct bm_error error;
	struct buffer out, in;
	uint64_t wire;
};

static int make_room(struct buffer *b, size_t more)
{
	size_t room = b->room ? b->room : READ;
	uint8_t *data;

	memmove(b->data ? b->data : (uint8_t *)b, b->data ? b->data + b->done : (uint8_t *)b,
		b->data ? b->used - b->done : 0);
	b->used -= b->done;
	b->done = 0;
	while (room < b->used + more)
		room *= 2;
	if (room == b->room)
		return 0;
	data = realloc(b->data, room);
	if (!data)
		return -ENOMEM;
	b->data = data;
	b->room = room;
	return 0;
}

static void fail(struct bm_pipe *p, const struct bm_error *error)
{
	if (p->dead)
		return;
	p->dead = true;
	p->error = *error;
	bm_watch_set(p->loop, &p->watch, p->fd, 0);
	bm_loop_soon(p->loop, &p->later);
}

static void tell(struct bm_task *task)
{
	struct bm_pipe *p = bm_container(task, struct bm_pipe, later);

	if (p->dead && !p->told) {
		p->told = true;
		p->ops->failed(p->arg, &p->error);
	} else if (!p->dead && p->hungry && p->out.used - p->out.done < PAGES_ROOM / 2) {
		p->hungry = false;
		p->ops->ready(p->arg);
	}
}

static void flush(struct bm_pipe *p)
{
	struct buffer *b = &p->out;

	while (!p->dead && b->used > b->done) {
		ssize_t n = send(p->fd, b->data + b->done, b->used - b->done, MSG_NOSIGNAL);
		struct bm_error error;

		if (n < 0 && errno == EAGAIN)
			break;
		if (n < 0 && errno != EINTR) {
			bm_fail_errno(&error, errno, "the connection that carries RAM");
			fail(p, &error);
			return;
		}
		b->done += n > 0 ? (size_t)n : 0;
		p->wire += n > 0 ? (size_t)n : 0;
	}
	if (p->dead)
		return;
	bm_watch_set(p->loop, &p->watch, p->fd,
		     EPOLLIN | (b->used > b->done ? (unsigned)EPOLLOUT : 0u));
	if (p->hungry && b->used - b->done < PAGES_ROOM / 2)
		bm_loop_soon(p->loop, &p->later);
}

static int hand_out(struct bm_pipe *p, const struct head *h, const uint8_t *data,
		    struct bm_error *error)
{
	if (h->kind == PAGE_KIND && (!p->ops->page || h->length != BM_RAM_PAGE))
		return bm_fail(error, BM_E_UNREACHABLE, "the other host sends a page of %u bytes",
			       h->length);
	return h->kind == PAGE_KIND ? p->ops->page(p->arg, h->region, h->index, data, error)
				    : p->ops->message(p->arg, h->kind, data, h->length, error);
}

static int take_frames(struct bm_pipe *p, struct bm_error *error)
{
	struct buffer *b = &p->in;
	int r = 0;

	while (!r && b->used - b->done >= HEAD) {
		struct head h;

		memcpy(&h, b->data + b->done, sizeof(h));
		if (h.length > BM_PIPE_MESSAGE)
			return bm_fail(error, BM_E_UNREACHABLE,
				       "the other host does not speak our protocol");
		if (b->used - b->done - HEAD < h.length)
			return make_room(b, HEAD + h.length);
		b->done += HEAD + h.length;
		r = hand_out(p, &h, b->data + b->done - h.length, error);
	}
	return r;
}

static void receive(struct bm_pipe *p)
{
	struct buffer *b = &p->in;
	struct bm_error error = {BM_E_INTERNAL, "out of memory"};
	ssize_t n;
	int r = make_room(b, READ / 2);

	n = r ? r : recv(p->fd, b->data + b->used, b->room - b->used, 0);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0) {
		b->used += (size_t)n;
		r = take_frames(p, &error);
	} else if (!r) {
		r = bm_fail(&error, BM_E_UNREACHABLE, "the connection that carries RAM has ended");
	}
	if (r < 0)
		fail(p, &error);
}

static void on_ready(struct bm_watch *watch, uint32_t events)
{
	struct bm_pipe *p = bm_container(watch, struct bm_pipe, watch);

	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		receive(p);
	if (events & EPOLLOUT)
		flush(p);
}

bool bm_pipe_page(struct bm_pipe *p, unsigned region, uint64_t index, const uint8_t *data)
{
	struct head h = {PAGE_KIND, 0, (uint16_t)region, BM_RAM_PAGE, index};
	struct buffer *b = &p->out;

	if (p->dead || b->used - b->done >= PAGES_ROOM || make_room(b, HEAD + BM_RAM_PAGE)) {
		p->hungry = true;
		flush(p);
		return false;
	}
	memcpy(b->data + b->used, &h, HEAD);
	memcpy(b->data + b->used + HEAD, data, BM_RAM_PAGE);
	b->used += HEAD + BM_RAM_PAGE;
	if (b->used - b->done >= PAGES_ROOM / 4)
		flush(p);
	return true;
}

int bm_pipe_message(struct bm_pipe *p, uint8_t kind, const void *data, size_t length)
{
	struct head h = {kind, 0, 0, (uint32_t)length, 0};
	struct buffer *b = &p->out;

	if (make_room(b, HEAD + length))
		return -ENOMEM;
	memcpy(b->data + b->used, &h, HEAD);
	memcpy(b->data + b->used + HEAD, data, length);
	b->used += HEAD + length;
	return 0;
}

void bm_pipe_push(struct bm_pipe *p)
{
	flush(p);
}

uint64_t bm_pipe_wire(const struct bm_pipe *p)
{
	return p->wire;
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

int bm_pipe_open(struct bm_loop *loop, const char *path, unsigned connections, const char *move,
		 bool source, const struct bm_pipe_ops *ops, void *arg, struct bm_pipe **out,
		 struct bm_error *error)
{
	struct bm_pipe *p = calloc(1, sizeof(*p));
	int r;

	(void)connections, (void)move, (void)source;
	if (!p)
		return bm_fail_errno(error, ENOMEM, "RAM");
	p->loop = loop;
	p->ops = ops;
	p->arg = arg;
	p->later.run = tell;
	p->watch.run = on_ready;
	p->fd = connect_to(path, error);
	r = p->fd < 0 ? p->fd : bm_watch_set(loop, &p->watch, p->fd, EPOLLIN);
	if (r < 0) {
		bm_pipe_close(p);
		return r;
	}
	*out = p;
	return 0;
}

void bm_pipe_close(struct bm_pipe *p)
{
	if (!p)
		return;
	bm_task_cancel(&p->later);
	if (p->fd >= 0) {
		bm_watch_set(p->loop, &p->watch, p->fd, 0);
		close(p->fd);
	}
	free(p->in.data);
	free(p->out.data);
	free(p);
}
