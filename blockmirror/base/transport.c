/* SPDX-License-Identifier: BSD-3-Clause */
/* How bytes get to a client and back. */
#include "blockmirror/base/transport.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockmirror/base/tls.h"

static int is_socket(int fd)
{
	struct stat st;

	return fstat(fd, &st) < 0 ? -errno : S_ISSOCK(st.st_mode);
}

static int set_nonblocking(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

/* For TCP; a unix socket refuses it, and needs none of it. */
static void tune(int fd)
{
	/* A client whose host is gone is found out within two minutes. */
	const int on = 1, idle = 60, interval = 10, count = 6;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
}

int bm_transport_open(struct bm_transport *t, int in, int out)
{
	int in_socket = is_socket(in), out_socket = is_socket(out), r = 0;

	if (in_socket < 0 || out_socket < 0)
		return in_socket < 0 ? in_socket : out_socket;
	t->socket = in_socket && out_socket;
	if (t->socket) {
		tune(out);
	} else {
		/* A socket is asked not to block call by call: others may share it. */
		r = set_nonblocking(in);
		if (!r)
			r = set_nonblocking(out);
	}
	if (r < 0)
		return r;
	t->in = in;
	t->out = out;
	return 0;
}

static ssize_t result(ssize_t n)
{
	return n < 0 ? -errno : n;
}

ssize_t bm_raw_recv(struct bm_transport *t, struct iovec *v, int count)
{
	struct msghdr message = {.msg_iov = v, .msg_iovlen = (size_t)count};

	return result(t->socket ? recvmsg(t->in, &message, MSG_DONTWAIT) : readv(t->in, v, count));
}

ssize_t bm_raw_send(struct bm_transport *t, struct iovec *v, int count)
{
	struct msghdr message = {.msg_iov = v, .msg_iovlen = (size_t)count};

	return result(t->socket ? sendmsg(t->out, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
				: writev(t->out, v, count));
}

ssize_t bm_transport_recv(struct bm_transport *t, struct iovec *v, int count)
{
	return t->tls ? bm_tls_recv(t->tls, v, count) : bm_raw_recv(t, v, count);
}

ssize_t bm_transport_send(struct bm_transport *t, struct iovec *v, int count)
{
	return t->tls ? bm_tls_send(t->tls, v, count) : bm_raw_send(t, v, count);
}

int bm_transport_flush(struct bm_transport *t)
{
	return t->tls ? bm_tls_flush(t->tls) : 0;
}

bool bm_transport_pending(const struct bm_transport *t)
{
	return t->tls && bm_tls_pending(t->tls);
}

int bm_transport_start_tls(struct bm_transport *t, struct bm_credentials *credentials)
{
	t->tls = bm_tls_new(t, credentials);
	return t->tls ? 0 : -ENOMEM;
}

void bm_transport_close(struct bm_transport *t)
{
	bm_tls_free(t->tls);
	t->tls = NULL;
	if (t->in >= 0)
		close(t->in);
	if (t->out >= 0 && t->out != t->in)
		close(t->out);
	t->in = t->out = -1;
}
