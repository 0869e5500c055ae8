/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How bytes get to a client and back: every byte of a connection goes through here. A socket, or a
 * pair of pipes. Nothing blocks.
 */
#ifndef NBD_SERVER_TRANSPORT_H
#define NBD_SERVER_TRANSPORT_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

struct nbd_transport {
	int in, out; /* the same number, when it is one socket; -1: closed */
	bool socket;
};

/* Prepares two descriptors; they are the transport's from here on when it returns 0. */
int nbd_transport_open(struct nbd_transport *t, int in, int out);

/* Bytes received; 0: the client sends no more; -EAGAIN: nothing now; -errno. */
ssize_t nbd_transport_recv(struct nbd_transport *t, struct iovec *v, int count);

/* Bytes sent, at least 1; -EAGAIN: the client does not take any now; -errno. */
ssize_t nbd_transport_send(struct nbd_transport *t, struct iovec *v, int count);

/* Twice is once. */
void nbd_transport_close(struct nbd_transport *t);

#endif
