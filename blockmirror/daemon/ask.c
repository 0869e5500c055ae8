/* SPDX-License-Identifier: BSD-3-Clause */
/* One call to a disk's process, without waiting for it: it may be stopped, or dying. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"
#include "blockmirror/daemon/daemon.h"

void ask_init(struct ask *ask, struct bm_loop *loop)
{
	ask->loop = loop;
	ask->watch.fd = -1;
}

void ask_cancel(struct ask *ask)
{
	int fd = ask->watch.fd;

	if (fd < 0)
		return;
	bm_watch_set(ask->loop, &ask->watch, fd, 0);
	close(fd);
	ask->watch.fd = -1;
}

static void answer(struct ask *ask, const struct bm_error *error)
{
	ask_cancel(ask);
	ask->done(ask, error);
}

static void gone(struct ask *ask)
{
	struct bm_error error;

	bm_fail(&error, BM_E_UNREACHABLE, "its process ended");
	answer(ask, &error);
}

static void understand(struct ask *ask, size_t length)
{
	json_t *root = json_loadb(ask->line, length, 0, NULL);
	const char *code = "E_INTERNAL", *text = "an answer that is not understood";
	struct bm_error error;
	bool good = json_object_get(root, "result");

	json_unpack(root, "{s?{s?s s?{s?s}}}", "error", "message", &text, "data", "code", &code);
	bm_fail(&error, bm_code_by_name(code), "%s", text);
	json_decref(root);
	answer(ask, good ? NULL : &error);
}

/* Whether it is over. */
static bool receive(struct ask *ask)
{
	ssize_t n = recv(ask->watch.fd, ask->line + ask->used, sizeof(ask->line) - ask->used,
			 MSG_DONTWAIT);
	const char *newline;

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (n <= 0) {
		gone(ask);
		return true;
	}
	ask->used += (size_t)n;
	newline = memchr(ask->line, '\n', ask->used);
	if (!newline && ask->used < sizeof(ask->line))
		return false;
	understand(ask, newline ? (size_t)(newline - ask->line) : 0);
	return true;
}

static void ready(struct bm_watch *watch, uint32_t events)
{
	(void)events;
	receive(bm_container(watch, struct ask, watch));
}

void ask_finish(struct ask *ask)
{
	if (ask->watch.fd >= 0 && !receive(ask))
		gone(ask);
}

int ask_begin(struct ask *ask, const char *path, const char *method,
	      void (*done)(struct ask *ask, const struct bm_error *error))
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	char line[128];
	int length = snprintf(line, sizeof(line),
			      "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"%s\"}\n", method);
	int r;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path) + 1);
	if (fd < 0 || connect(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	if (send(fd, line, (size_t)length, MSG_NOSIGNAL) != length)
		return -EPIPE;
	ask->used = 0;
	ask->done = done;
	ask->watch.run = ready;
	r = bm_watch_set(ask->loop, &ask->watch, fd, EPOLLIN);
	if (r < 0) {
		ask->watch.fd = -1;
		return r;
	}
	bm_steal_fd(fd);
	return 0;
}
