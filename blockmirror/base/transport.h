/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * How bytes get to a client and back: every byte of a connection goes through here. A socket, or a
 * pair of pipes, plain or under TLS. Nothing blocks. A copy may take its
 * place.
 */
#ifndef BM_BASE_TRANSPORT_H
#define BM_BASE_TRANSPORT_H

#include <stdbool.h>
#include <sys/types.h>
#include <sys/uio.h>

struct bm_credentials;
struct bm_tls;

struct bm_transport {
	int in, out; /* the same number, when it is one socket; -1: closed */
	bool socket;
	struct bm_tls *tls; /* NULL: plain */
};

/* Prepares two descriptors; they are the transport's from here on when it returns 0. */
int bm_transport_open(struct bm_transport *t, int in, int out);

/* Bytes received; 0: the client sends no more; -EAGAIN: nothing now; -errno. */
ssize_t bm_transport_recv(struct bm_transport *t, struct iovec *v, int count);

/* Bytes taken over, at least 1; -EAGAIN: the client does not take any now; -errno. */
ssize_t bm_transport_send(struct bm_transport *t, struct iovec *v, int count);

/* Sends what was taken over. 0: all of it is gone; -EAGAIN: the client does not take it; -errno. */
int bm_transport_flush(struct bm_transport *t);

/* Whether something was received and is not handed out yet: no event will tell of it. */
bool bm_transport_pending(const struct bm_transport *t);

/*
 * TLS from the next byte on, both ways; nothing may be in the buffers of either side. Then
 * bm_tls_handshake(t->tls). Returns 0 or -ENOMEM.
 */
int bm_transport_start_tls(struct bm_transport *t, struct bm_credentials *credentials);

/* The descriptors' own: recv and send, as above, below TLS. */
ssize_t bm_raw_recv(struct bm_transport *t, struct iovec *v, int count);
ssize_t bm_raw_send(struct bm_transport *t, struct iovec *v, int count);

/* Twice is once. */
void bm_transport_close(struct bm_transport *t);

#endif
