/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Messages with descriptors (SCM_RIGHTS), over unix sockets that keep messages apart: datagrams and
 * SOCK_SEQPACKET. Any thread; how long they wait is the socket's and the flags' affair.
 */
#ifndef BM_BASE_PASS_H
#define BM_BASE_PASS_H

#include <sys/socket.h>
#include <sys/un.h>

enum { BM_PASS_FDS = 8 };

struct bm_pass {
	int fds[BM_PASS_FDS]; /* received ones are close-on-exec, and the receiver's */
	unsigned n_fds;
	struct ucred sender; /* where the socket has SO_PASSCRED; else uid -1 */
};

/* to: NULL when the socket is connected. flags: of sendmsg(2). 0 or -errno. */
int bm_pass_send(int fd, const struct sockaddr_un *to, const void *data, size_t length,
		 const struct bm_pass *pass, int flags);

/*
 * One message: its bytes, 0 when the other end is closed, -errno; -EMSGSIZE when it has more bytes
 * or descriptors than there is room for: then none is left open.
 */
ssize_t bm_pass_receive(int fd, void *data, size_t room, struct bm_pass *pass, int flags);

/* Closes what was received and is still there. */
void bm_pass_close(struct bm_pass *pass);

/* Takes the which-th descriptor out; -1 when there is none. */
int bm_pass_take(struct bm_pass *pass, unsigned which);

#endif
