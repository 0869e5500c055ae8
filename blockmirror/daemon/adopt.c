/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Processes that run already: of a daemon that is gone, or of a time without one. Each that answers
 * at its control socket is asked to hand its descriptors over, and does so with a datagram
 * (blockmirror/base/adopt.h), whose sender the kernel names. While a process is being asked none is
 * started; that it ends shows in the connection.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "blockmirror/base/adopt.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/log.h"
#include "blockmirror/daemon/daemon.h"

enum { LARGEST_HELLO = 2 * 4096, MOST_FDS = 8 };

struct hello {
	char text[LARGEST_HELLO];
	size_t length;
	struct ucred sender;
	int fds[MOST_FDS];
	unsigned n_fds;
};

static void close_all(struct hello *h)
{
	for (unsigned i = 0; i < h->n_fds; i++)
		close(h->fds[i]);
	h->n_fds = 0;
}

static void take_control(struct hello *h, struct msghdr *message)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(message); c; c = CMSG_NXTHDR(message, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS)
			memcpy(&h->sender, CMSG_DATA(c), sizeof(h->sender));
		if (c->cmsg_type != SCM_RIGHTS)
			continue;
		h->n_fds = (unsigned)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		if (h->n_fds > MOST_FDS)
			h->n_fds = MOST_FDS;
		memcpy(h->fds, CMSG_DATA(c), h->n_fds * sizeof(int));
	}
}

static bool receive(int fd, struct hello *h)
{
	union {
		char data[CMSG_SPACE(MOST_FDS * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct iovec data = {h->text, sizeof(h->text)};
	struct msghdr message = {.msg_iov = &data,
				 .msg_iovlen = 1,
				 .msg_control = control.data,
				 .msg_controllen = sizeof(control.data)};
	ssize_t n = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);

	if (n < 0)
		return false;
	h->length = (size_t)n;
	h->n_fds = 0;
	h->sender = (struct ucred){.uid = (uid_t)-1};
	take_control(h, &message);
	return true;
}

/* The disk that is meant, or NULL: of another one's, or not asked for. */
static struct served *find_served(struct daemon *d, const struct hello *h)
{
	json_t *hello = json_loadb(h->text, h->length, 0, NULL);
	const char *name = "", *folder = "";
	bm_free char *own = NULL, *real = NULL;
	struct served *s = NULL;

	json_unpack(hello, "{s?s s?s}", "name", &name, "folder", &folder);
	if (!bm_disk_name_check(name, NULL) && asprintf(&own, "%s/disks/%s", d->state, name) >= 0)
		real = realpath(own, NULL);
	if (h->n_fds == BM_ADOPT_FDS && (h->sender.uid == geteuid() || !h->sender.uid) && real &&
	    !strcmp(real, folder))
		s = served_find(d, name);
	else
		bm_log(BM_LOG_WARN, "process %d is not adopted: disk \"%s\" of %s is not ours",
		       (int)h->sender.pid, name, folder);
	json_decref(hello);
	return s && s->state == SERVED_ADOPTING ? s : NULL;
}

static void receive_all(struct daemon *d)
{
	struct hello h;

	while (d->adopt.fd >= 0 && receive(d->adopt.fd, &h)) {
		struct served *s = find_served(d, &h);

		if (s)
			served_adopted(s, h.sender.pid, h.fds[BM_ADOPT_PROCESS],
				       h.fds[BM_ADOPT_NBD], h.fds[BM_ADOPT_CONTROL]);
		else
			close_all(&h);
	}
}

static void hello_waits(struct bm_watch *watch, uint32_t events)
{
	(void)events;
	receive_all(bm_container(watch, struct daemon, adopt));
}

/* What was handed over was sent before the answer. */
static void answered(struct ask *ask, const struct bm_error *error)
{
	struct served *s = bm_container(ask, struct served, ask);

	receive_all(s->daemon);
	if (s->state != SERVED_ADOPTING)
		return;
	if (error)
		s->error = *error;
	else
		bm_fail(&s->error, BM_E_OWNED,
			"a process with records elsewhere than in %s serves a disk of that name",
			s->daemon->state);
	bm_log(BM_LOG_WARN, "%s: its process is not adopted: %s", s->name, s->error.text);
	/* What is none of ours, or knows nothing of daemons, is left alone, unless it is in our
	 * way. */
	if (!s->wanted && !s->serve_call && (!error || error->code == BM_E_USAGE))
		served_stopped(s);
	else
		served_later(s);
}

bool adopt_ask(struct served *s)
{
	bm_free char *path = NULL;

	if (asprintf(&path, "%s/%s.sock", s->daemon->sockets, s->name) < 0)
		return false;
	return !ask_begin(&s->ask, path, "adopt", answered);
}

void adopt_strangers(struct daemon *d)
{
	struct dirent **entries = NULL;
	int n = scandir(d->sockets, &entries, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		char *name = entries[i]->d_name, *dot = strrchr(name, '.');
		struct served *s = NULL;

		if (dot && !strcmp(dot, ".sock")) {
			*dot = '\0';
			if (!bm_disk_name_check(name, NULL) && !served_find(d, name))
				s = served_new(d, name);
		}
		if (s)
			served_begin(s);
		free(entries[i]);
	}
	free(entries);
}

int adopt_listen(struct daemon *d, struct bm_error *error)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	bm_close int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	const int on = 1;
	int r;

	r = snprintf(address.sun_path, sizeof(address.sun_path), "%s/" BM_ADOPT_SOCKET, d->sockets);
	if (r >= (int)sizeof(address.sun_path))
		return bm_fail_errno(error, ENAMETOOLONG, "%s", d->sockets);
	/* Another daemon's it cannot be: we have the control socket. */
	unlink(address.sun_path);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0 ||
	    bind(fd, (const struct sockaddr *)&address, sizeof(address)) < 0 ||
	    chmod(address.sun_path, 0600) < 0)
		return bm_fail_errno(error, errno, "cannot listen on %s", address.sun_path);
	d->adopt.run = hello_waits;
	r = bm_watch_set(d->loop, &d->adopt, fd, EPOLLIN);
	if (r < 0) {
		d->adopt.fd = -1;
		return bm_fail_errno(error, r, "cannot watch %s", address.sun_path);
	}
	bm_steal_fd(fd);
	return 0;
}

void adopt_close(struct daemon *d)
{
	int fd = d->adopt.fd;

	if (fd < 0)
		return;
	bm_watch_set(d->loop, &d->adopt, fd, 0);
	close(fd);
	d->adopt.fd = -1;
}
