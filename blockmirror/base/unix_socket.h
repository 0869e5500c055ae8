/* SPDX-License-Identifier: BSD-3-Clause */
/* Listening on unix sockets. Any thread. */
#ifndef BM_BASE_UNIX_SOCKET_H
#define BM_BASE_UNIX_SOCKET_H

#include <sys/types.h>

#include "blockmirror/error.h"

struct bm_unix_listener {
	int fd;     /* stream, listening, non-blocking, close-on-exec */
	char *path; /* NULL: it was not made by bm_unix_listen() */
	dev_t dev;
	ino_t ino;
};

/*
 * Listens on path, mode 0660. A socket that a dead server left there is replaced; one that
 * somebody listens on is BM_E_BUSY, what is no socket is BM_E_EXISTS.
 */
int bm_unix_listen(struct bm_unix_listener *listener, const char *path, struct bm_error *error);

/* Closes fd, and removes the path, if there is one, unless another socket has taken its place. */
void bm_unix_close(struct bm_unix_listener *listener);

/* Another process removes the path from now on. */
void bm_unix_leave(struct bm_unix_listener *listener);

/* A socket that listens on path, made by another process, whose path is ours from now on. */
int bm_unix_take(struct bm_unix_listener *listener, const char *path, int fd);

#endif
