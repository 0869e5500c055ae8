/* SPDX-License-Identifier: BSD-3-Clause */
/* A blocking client of the control sockets. */
#include "blockmirror/base/client_io.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

enum { LARGEST_LINE = 16 << 20 };

struct bm_client {
	const struct bm_client_io *io;
	void *arg; /* io's */
	int fd, next_id;
	char *data; /* what was read and not yet used */
	size_t used, room;
	json_t *events; /* notifications that came while an answer was waited for */
};

/* A plain socket: arg is its client. */

static ssize_t fd_send(void *arg, const void *data, size_t length)
{
	const struct bm_client *client = arg;
	ssize_t n = send(client->fd, data, length, MSG_NOSIGNAL);

	return n < 0 ? -errno : n;
}

static ssize_t fd_recv(void *arg, void *data, size_t length)
{
	const struct bm_client *client = arg;
	ssize_t n = recv(client->fd, data, length, 0);

	return n < 0 ? -errno : n;
}

static void fd_close(void *arg)
{
	(void)arg;
}

int bm_client_from_io(const struct bm_client_io *io, void *arg, int fd, struct bm_client **out,
		      struct bm_error *error)
{
	struct bm_client *client = calloc(1, sizeof(*client));

	if (client)
		client->events = json_array();
	if (!client || !client->events) {
		free(client);
		return bm_fail_errno(error, ENOMEM, "control client");
	}
	client->io = io;
	client->arg = arg ? arg : client;
	client->fd = fd;
	*out = client;
	return 0;
}

void *bm_client_io_arg(const struct bm_client *client, const struct bm_client_io *io)
{
	return client->io == io ? client->arg : NULL;
}

int bm_client_from_fd(int fd, struct bm_client **client, struct bm_error *error)
{
	static const struct bm_client_io plain = {fd_send, fd_recv, fd_close, NULL};

	return bm_client_from_io(&plain, NULL, fd, client, error);
}

int bm_client_connect(const char *path, struct bm_client **client, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = -1;
	int r;

	if (strlen(path) >= sizeof(address.sun_path))
		return bm_fail(error, BM_E_USAGE,
			       "%s: longer than a socket's path may be (%zu bytes)", path,
			       sizeof(address.sun_path) - 1);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return bm_fail_errno(error, errno, "cannot make a socket");
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return bm_fail_errno(error, errno, "cannot connect to %s", path);
	r = bm_client_from_fd(fd, client, error);
	if (!r)
		fd = -1;
	return r;
}

void bm_client_close(struct bm_client *client)
{
	if (!client)
		return;
	client->io->close(client->arg);
	close(client->fd);
	json_decref(client->events);
	free(client->data);
	free(client);
}

void bm_client_set_timeout(struct bm_client *client, uint64_t ns)
{
	const struct timeval t = {.tv_sec = (time_t)(ns / 1000000000u),
				  .tv_usec = (suseconds_t)(ns % 1000000000u / 1000)};

	setsockopt(client->fd, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof(t));
	setsockopt(client->fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof(t));
}

int bm_client_fd(const struct bm_client *client)
{
	return client->fd;
}

bool bm_client_pending(const struct bm_client *client)
{
	return json_array_size(client->events) ||
	       (client->used && memchr(client->data, '\n', client->used));
}

static int gone(struct bm_client *client, struct bm_error *error)
{
	if (!client->io->why || !client->io->why(client->arg, error))
		bm_fail(error, BM_E_UNREACHABLE, "the other side has ended the connection");
	return -ECONNRESET;
}

static int send_all(struct bm_client *client, const char *data, size_t length)
{
	while (length) {
		ssize_t n = client->io->send(client->arg, data, length);

		if (n == -EINTR)
			continue;
		if (n < 0)
			return (int)n;
		data += n;
		length -= (size_t)n;
	}
	return 0;
}

int bm_client_send(struct bm_client *client, const char *method, json_t *params, int *id,
		   struct bm_error *error)
{
	json_t *call = json_pack("{s:s s:i s:s s:o*}", "jsonrpc", "2.0", "id", ++client->next_id,
				 "method", method, "params", params);
	bm_free char *text = call ? json_dumps(call, JSON_COMPACT) : NULL, *line = NULL;

	json_decref(call);
	if (!text || asprintf(&line, "%s\n", text) < 0)
		return bm_fail_errno(error, ENOMEM, "%s", method);
	*id = client->next_id;
	return send_all(client, line, strlen(line)) ? gone(client, error) : 0;
}

int bm_client_send_raw(struct bm_client *client, const void *data, size_t length,
		       struct bm_error *error)
{
	return send_all(client, data, length) ? gone(client, error) : 0;
}

int bm_client_take_apart(struct bm_client *client, int *fd)
{
	if (client->used || json_array_size(client->events))
		return -EPROTO;
	*fd = client->fd;
	json_decref(client->events);
	free(client->data);
	free(client);
	return 0;
}

static int read_more(struct bm_client *client)
{
	ssize_t n;

	if (client->used == client->room) {
		size_t room = client->room ? client->room * 2 : 4096;
		char *data = room <= LARGEST_LINE ? realloc(client->data, room) : NULL;

		if (!data)
			return -ENOMEM;
		client->data = data;
		client->room = room;
	}
	n = client->io->recv(client->arg, client->data + client->used, client->room - client->used);
	if (n <= 0)
		return n ? (int)n : -ECONNRESET;
	client->used += (size_t)n;
	return 0;
}

static int read_object(struct bm_client *client, json_t **object, struct bm_error *error)
{
	char *newline;
	size_t length;
	int r;

	while (!client->used || !(newline = memchr(client->data, '\n', client->used))) {
		r = read_more(client);
		if (r == -EINTR)
			return bm_fail_errno(error, r, "interrupted");
		if (r == -EAGAIN) {
			bm_fail(error, BM_E_UNREACHABLE, "the other side does not answer");
			return -ETIMEDOUT;
		}
		if (r < 0)
			return gone(client, error);
	}
	length = (size_t)(newline - client->data);
	*object = json_loadb(client->data, length, 0, NULL);
	client->used -= length + 1;
	memmove(client->data, newline + 1, client->used);
	return json_is_object(*object) ? 0 : bm_fail(error, BM_E_IO, "an answer that is not JSON");
}

static int pass_on(json_t *answer, json_t **result, struct bm_error *error)
{
	const char *text = "unknown error", *code = "E_INTERNAL";
	json_t *failure = json_object_get(answer, "error");

	if (!failure) {
		if (result)
			*result = json_incref(json_object_get(answer, "result"));
		return 1;
	}
	json_unpack(failure, "{s?s s?{s?s}}", "message", &text, "data", "code", &code);
	return bm_fail(error, bm_code_by_name(code), "%s", text);
}

int bm_client_wait(struct bm_client *client, int id, json_t **result, json_t **event,
		   struct bm_error *error)
{
	json_t *object = NULL;
	int r;

	if (event && json_array_size(client->events)) {
		*event = json_incref(json_array_get(client->events, 0));
		json_array_remove(client->events, 0);
		return 0;
	}
	for (;;) {
		r = read_object(client, &object, error);
		if (r < 0)
			return r;
		if (json_integer_value(json_object_get(object, "id")) == id) {
			r = pass_on(object, result, error);
			json_decref(object);
			return r;
		}
		if (event && json_object_get(object, "method")) {
			*event = object;
			return 0;
		}
		json_array_append_new(client->events, object);
	}
}

int bm_client_call(struct bm_client *client, const char *method, json_t *params, json_t **result,
		   struct bm_error *error)
{
	int id, r = bm_client_send(client, method, params, &id, error);

	if (!r)
		r = bm_client_wait(client, id, result, NULL, error);
	return r < 0 ? r : 0;
}
