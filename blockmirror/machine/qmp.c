/* SPDX-License-Identifier: BSD-3-Clause */
/* A client of QEMU's QMP socket. */
#include "blockmirror/machine/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

enum {
	LARGEST_LINE = 16 << 20,
	FIRST_ROOM = 4096,
	STEP_MS = 100, /* the longest without a look at the guard */
	GREETING_MS = 2000,
	ANSWER_MS = 120000, /* draining may wait for slow storage */
};

struct bm_qmp {
	char *path;
	int fd, version;
	unsigned next_id;
	bool ended;
	char *data; /* what was read and not yet used */
	size_t used, room;
	void (*guard)(void *arg);
	void *arg;
	void (*event)(void *arg, const char *name, const json_t *data, uint64_t at);
	void *event_arg;
};

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static int make_room(struct bm_qmp *q)
{
	size_t room = q->room ? q->room * 2 : FIRST_ROOM;
	char *data;

	if (q->used < q->room)
		return 0;
	data = room <= LARGEST_LINE ? realloc(q->data, room) : NULL;
	if (!data)
		return -ENOMEM;
	q->data = data;
	q->room = room;
	return 0;
}

/* What has come, without waiting. 0, -EAGAIN, or -ECONNRESET. */
static int read_some(struct bm_qmp *q)
{
	ssize_t n;

	if (make_room(q) < 0)
		return -ENOMEM;
	n = recv(q->fd, q->data + q->used, q->room - q->used, MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return -EAGAIN;
	if (n <= 0) {
		q->ended = true;
		return -ECONNRESET;
	}
	q->used += (size_t)n;
	return 0;
}

/* The next line as JSON, NULL when it is none. 0, -ETIMEDOUT, -ECONNRESET. */
static int read_line(struct bm_qmp *q, uint64_t until, json_t **line)
{
	struct pollfd p = {.fd = q->fd, .events = POLLIN};
	char *newline;
	size_t length;
	int r;

	while (!q->used || !(newline = memchr(q->data, '\n', q->used))) {
		uint64_t now = now_ms(), left = now < until ? until - now : 0;

		if (!left)
			return -ETIMEDOUT;
		if (!poll(&p, 1, left < STEP_MS ? (int)left : STEP_MS) && q->guard)
			q->guard(q->arg);
		r = read_some(q);
		if (r < 0 && r != -EAGAIN)
			return r;
	}
	length = (size_t)(newline - q->data);
	*line = json_loadb(q->data, length, 0, NULL);
	q->used -= length + 1;
	memmove(q->data, newline + 1, q->used);
	return 0;
}

static int send_line(struct bm_qmp *q, json_t *object)
{
	bm_free char *text = object ? json_dumps(object, JSON_COMPACT) : NULL, *line = NULL;
	size_t left, at = 0;

	if (!text || asprintf(&line, "%s\n", text) < 0)
		return -ENOMEM;
	for (left = strlen(line); left;) {
		ssize_t n = send(q->fd, line + at, left, MSG_NOSIGNAL);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		at += (size_t)n;
		left -= (size_t)n;
	}
	return 0;
}

static int no_answer(const struct bm_qmp *q, int r, const char *command, struct bm_error *error)
{
	if (r == -ENOMEM)
		return bm_fail_errno(error, r, "%s", q->path);
	bm_fail(error, BM_E_UNREACHABLE,
		r == -ETIMEDOUT ? "QEMU at %s does not answer (%s)"
				: "QEMU at %s has ended, or closed the connection (%s)",
		q->path, command);
	return r;
}

static bool tell_event(struct bm_qmp *q, const json_t *line)
{
	const char *name = json_string_value(json_object_get(line, "event"));
	json_int_t seconds = 0, us = 0;

	if (!name)
		return false;
	json_unpack((json_t *)line, "{s:{s:I s:I}}", "timestamp", "seconds", &seconds,
		    "microseconds", &us);
	if (q->event)
		q->event(q->event_arg, name, json_object_get(line, "data"),
			 (uint64_t)seconds * 1000000000u + (uint64_t)us * 1000);
	return true;
}

void bm_qmp_set_events(struct bm_qmp *q,
		       void (*event)(void *arg, const char *name, const json_t *data, uint64_t at),
		       void *arg)
{
	q->event = event;
	q->event_arg = arg;
}

int bm_qmp_listen(struct bm_qmp *q, int ms, struct bm_error *error)
{
	json_t *line = NULL;
	int r = read_line(q, now_ms() + (uint64_t)ms, &line);

	if (!r)
		tell_event(q, line);
	json_decref(line);
	return r && r != -ETIMEDOUT ? no_answer(q, r, "events", error) : 0;
}

/* It takes nothing any more, and may have said why. */
static void hear_last(struct bm_qmp *q)
{
	json_t *line = NULL;

	while (!read_line(q, now_ms() + STEP_MS, &line)) {
		tell_event(q, line);
		json_decref(line);
	}
}

int bm_qmp_call(struct bm_qmp *q, const char *command, json_t *arguments, json_t **result,
		struct bm_error *error)
{
	json_int_t id = ++q->next_id;
	json_t *call =
		json_pack("{s:s s:o* s:I}", "execute", command, "arguments", arguments, "id", id);
	uint64_t until = now_ms() + ANSWER_MS;
	int r = send_line(q, call);

	json_decref(call);
	if (r < 0)
		hear_last(q);
	while (!r) {
		json_t *line = NULL, *failure;
		const char *text = "no reason given";

		r = read_line(q, until, &line);
		/* Events, and the answer to a command that we did not wait for. */
		if (!r && tell_event(q, line)) {
			json_decref(line);
			continue;
		}
		if (r || json_integer_value(json_object_get(line, "id")) != id) {
			json_decref(line);
			continue;
		}
		failure = json_object_get(line, "error");
		if (failure) {
			json_unpack(failure, "{s?s}", "desc", &text);
			r = bm_fail(error, BM_E_QMP, "QEMU refuses %s: %s", command, text);
		} else if (result) {
			*result = json_incref(json_object_get(line, "return"));
		}
		json_decref(line);
		return r;
	}
	return no_answer(q, r, command, error);
}

/* Who is taken says nothing; who is no QEMU says something else, or goes. */
static int greet(struct bm_qmp *q, struct bm_error *error)
{
	json_t *greeting = NULL;
	int major = 0, minor = 0;
	int r = read_line(q, now_ms() + GREETING_MS, &greeting);

	if (r == -ETIMEDOUT && !q->used)
		return bm_fail(error, BM_E_QMP_BUSY,
			       "%s: another client has this QMP socket (libvirt, a shell?). It "
			       "takes one: have that one leave, or start QEMU with one more, -qmp "
			       "unix:PATH,server=on,wait=off",
			       q->path);
	if (r == -ENOMEM)
		return bm_fail_errno(error, r, "%s", q->path);
	if (r || json_unpack(greeting, "{s:{s:{s:{s:i s:i}}}}", "QMP", "version", "qemu", "major",
			     &major, "minor", &minor))
		r = bm_fail(error, BM_E_QMP, "%s: who answers there is not QEMU", q->path);
	json_decref(greeting);
	q->version = major * 100 + minor;
	return r;
}

static int open_socket(const char *path, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, r;

	if (strlen(path) >= sizeof(address.sun_path))
		return bm_fail(error, BM_E_USAGE, "%s: longer than a socket's path may be", path);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot make a socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0) {
		r = errno;
		close(fd);
		/* Its queue is full: nobody takes from it. */
		if (r == EAGAIN)
			return bm_fail(error, BM_E_QMP_BUSY,
				       "%s: others wait for this QMP socket already", path);
		return bm_fail_errno(error, r, "cannot connect to %s", path);
	}
	fcntl(fd, F_SETFL, 0);
	return fd;
}

int bm_qmp_connect(const char *path, struct bm_qmp **qmp, struct bm_error *error)
{
	struct bm_qmp *q = calloc(1, sizeof(*q));
	int r;

	if (!q || !(q->path = strdup(path))) {
		free(q);
		return bm_fail_errno(error, ENOMEM, "%s", path);
	}
	r = q->fd = open_socket(path, error);
	if (r >= 0)
		r = greet(q, error);
	if (!r)
		r = bm_qmp_call(q, "qmp_capabilities", NULL, NULL, error);
	if (r < 0) {
		bm_qmp_close(q);
		return r;
	}
	*qmp = q;
	return 0;
}

void bm_qmp_close(struct bm_qmp *q)
{
	if (!q)
		return;
	if (q->fd >= 0)
		close(q->fd);
	free(q->data);
	free(q->path);
	free(q);
}

int bm_qmp_version(const struct bm_qmp *q)
{
	return q->version;
}

/* The socket tells who began to listen: since then it may have become somebody else (-runas). */
static void look_again(struct ucred *peer)
{
	char path[64], line[256];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)peer->pid);
	f = peer->pid > 0 ? fopen(path, "re") : NULL;
	while (f && fgets(line, sizeof(line), f)) {
		char *at = strchr(line, '\t');

		/* Real, effective … */
		at = at ? strchr(at + 1, '\t') : NULL;
		if (at && !strncmp(line, "Uid:", 4))
			peer->uid = (uid_t)strtoul(at, NULL, 10);
		else if (at && !strncmp(line, "Gid:", 4))
			peer->gid = (gid_t)strtoul(at, NULL, 10);
	}
	if (f)
		fclose(f);
}

struct ucred bm_qmp_peer(const struct bm_qmp *q)
{
	struct ucred peer = {0};
	socklen_t length = sizeof(peer);

	if (getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
		peer = (struct ucred){.uid = (uid_t)-1, .gid = (gid_t)-1};
	look_again(&peer);
	return peer;
}

void bm_qmp_set_guard(struct bm_qmp *q, void (*guard)(void *arg), void *arg)
{
	q->guard = guard;
	q->arg = arg;
}

bool bm_qmp_ended(struct bm_qmp *q)
{
	/* Events that nobody waits for would fill the line's room. */
	while (!q->ended && !read_some(q)) {
		char *last = memrchr(q->data, '\n', q->used);
		size_t done = last ? (size_t)(last + 1 - q->data) : 0;

		q->used -= done;
		memmove(q->data, q->data + done, q->used);
	}
	return q->ended;
}
