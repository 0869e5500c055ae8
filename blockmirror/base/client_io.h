/* SPDX-License-Identifier: BSD-3-Clause */
/* A control client over something else than a plain socket. */
#ifndef BM_BASE_CLIENT_IO_H
#define BM_BASE_CLIENT_IO_H

#include <sys/types.h>

#include "blockmirror/client.h"

/* All block, as long as the descriptor's own time-outs allow. */
struct bm_client_io {
	ssize_t (*send)(void *arg, const void *data, size_t length); /* bytes, at least 1; -errno */
	ssize_t (*recv)(void *arg, void *data, size_t length);       /* 0: the end; -errno */
	void (*close)(void *arg);                                    /* what arg is; fd is left */
	/* Why it has ended, if that was told; false: it was not. NULL: nothing ever is. */
	bool (*why)(void *arg, struct bm_error *error);
};

/* fd is the client's on success, and so is arg; io must live for ever. */
int bm_client_from_io(const struct bm_client_io *io, void *arg, int fd, struct bm_client **client,
		      struct bm_error *error);

/* The arg of a client that is over that io; NULL: it is over something else. */
void *bm_client_io_arg(const struct bm_client *client, const struct bm_client_io *io);

/*
 * What follows the last answer is none: the descriptor is the caller's from here on, io's arg, too,
 * and the client is gone. -EPROTO: something came already.
 */
int bm_client_take_apart(struct bm_client *client, int *fd);

/* Sends bytes that are no call (bm_rpc_swallow()). */
int bm_client_send_raw(struct bm_client *client, const void *data, size_t length,
		       struct bm_error *error);

#endif
