/* SPDX-License-Identifier: BSD-3-Clause */
/* Listening on unix sockets. */
#include "blockmirror/base/unix_socket.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/cleanup.h"

enum { BACKLOG = 128 };

/* Takes away a socket that nobody listens on. What is no socket is not ours to remove. */
static int remove_stale(const struct sockaddr_un *address, struct bm_error *error)
{
	const char *path = address->sun_path;
	bm_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct stat st;

	if (lstat(path, &st) < 0)
		return errno == ENOENT ? 0 : bm_fail_errno(error, errno, "%s", path);
	if (!S_ISSOCK(st.st_mode))
		return bm_fail(error, BM_E_EXISTS, "%s exists and is not a socket", path);
	/* EAGAIN: its backlog is full, so somebody is there. */
	if (fd >= 0 && connect(fd, (const struct sockaddr *)address, sizeof(*address)) < 0 &&
	    errno == ECONNREFUSED)
		return unlink(path) < 0 ? bm_fail_errno(error, errno, "cannot remove %s", path) : 0;
	return bm_fail(error, BM_E_BUSY, "%s: another process listens there", path);
}

int bm_unix_listen(struct bm_unix_listener *listener, const char *path, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	bm_free char *copy = strdup(path);
	struct stat st;
	int r;

	if (strlen(path) >= sizeof(address.sun_path))
		return bm_fail(error, BM_E_USAGE, "%s: a socket's path is limited to %zu bytes",
			       path, sizeof(address.sun_path) - 1);
	if (fd < 0 || !copy)
		return bm_fail_errno(error, fd < 0 ? errno : ENOMEM, "cannot listen on %s", path);
	memcpy(address.sun_path, path, strlen(path) + 1);
	r = remove_stale(&address, error);
	if (r < 0)
		return r;
	/* Nobody can connect before listen(): the mode is right from the first client on. */
	if (bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0)
		return bm_fail_errno(error, errno, "cannot listen on %s", path);
	if (chmod(path, 0660) < 0 || listen(fd, BACKLOG) < 0 || lstat(path, &st) < 0) {
		r = bm_fail_errno(error, errno, "cannot listen on %s", path);
		unlink(path);
		return r;
	}
	listener->fd = bm_steal_fd(fd);
	listener->path = bm_steal(copy);
	listener->dev = st.st_dev;
	listener->ino = st.st_ino;
	return 0;
}

void bm_unix_close(struct bm_unix_listener *listener)
{
	struct stat st;

	if (listener->path && !lstat(listener->path, &st) && st.st_dev == listener->dev &&
	    st.st_ino == listener->ino)
		unlink(listener->path);
	close(listener->fd);
	free(listener->path);
	listener->path = NULL;
}

void bm_unix_leave(struct bm_unix_listener *listener)
{
	free(listener->path);
	listener->path = NULL;
}

int bm_unix_take(struct bm_unix_listener *listener, const char *path, int fd)
{
	bm_free char *copy = strdup(path);
	struct stat st;

	if (!copy)
		return -ENOMEM;
	if (lstat(path, &st) < 0)
		return -errno;
	*listener = (struct bm_unix_listener){fd, bm_steal(copy), st.st_dev, st.st_ino};
	return 0;
}
