/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Processes that run already: of a daemon that is gone, or of a time without one. Each that answers
 * at its control socket is asked to hand its descriptors over, and does so with a datagram
 * (blockmirror/base/adopt.h), whose sender the kernel names. While a process is being asked none is
 * started; that it ends shows in the connection. A process that is to take the place of another one
 * ("upgrade") says so in the same way, unasked.
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
#include <sys/wait.h>
#include <unistd.h>

#include "blockmirror/base/adopt.h"
#include "blockmirror/base/cleanup.h"
#include "blockmirror/base/disk_name.h"
#include "blockmirror/base/log.h"
#include "blockmirror/base/pass.h"
#include "blockmirror/daemon/daemon.h"

enum { LARGEST_HELLO = 2 * 4096 };

/* The disk that is meant, or NULL: of another one's. */
static struct served *find_served(struct daemon *d, const struct bm_pass *pass, const json_t *hello)
{
	const char *name = "", *folder = "";
	bm_free char *own = NULL, *real = NULL;

	json_unpack((json_t *)hello, "{s?s s?s}", "name", &name, "folder", &folder);
	if (!bm_disk_name_check(name, NULL) && asprintf(&own, "%s/disks/%s", d->state, name) >= 0)
		real = realpath(own, NULL);
	if ((pass->sender.uid == geteuid() || !pass->sender.uid) && real && !strcmp(real, folder))
		return served_find(d, name);
	bm_log(BM_LOG_WARN, "process %d is not adopted: disk \"%s\" of %s is not ours",
	       (int)pass->sender.pid, name, folder);
	return NULL;
}

/*
 * Upgrades. The new process has told us of itself before the old one let go of anything. We need
 * not know how far they are: the disk is served as long as one of them is there.
 *
 *	The old one ends, handed over or killed: the new one is the disk's process. If it had not
 *got what it needs it ends, too, and another one follows as after any end. The new one ends first:
 *it is forgotten; the old one goes on.
 */
static void successor_ended(struct bm_watch *watch, uint32_t events)
{
	struct served *s = bm_container(watch, struct served, successor);

	(void)events;
	served_close_watch(s, &s->successor);
}

static void take_successor(struct served *s, pid_t pid, int process)
{
	served_close_watch(s, &s->successor);
	s->successor.run = successor_ended;
	s->successor_pid = pid;
	if (bm_watch_set(s->daemon->loop, &s->successor, process, EPOLLIN) < 0) {
		s->successor.fd = -1;
		close(process);
	}
}

/* What was not asked for, or lacks descriptors, is let go. */
static void understand(struct daemon *d, struct bm_pass *pass, const json_t *hello)
{
	struct served *s = find_served(d, pass, hello);
	bool successor = json_is_true(json_object_get(hello, "successor"));

	if (s && successor && pass->n_fds == 1)
		take_successor(s, pass->sender.pid, bm_pass_take(pass, BM_ADOPT_PROCESS));
	else if (s && !successor && pass->n_fds == BM_ADOPT_FDS && s->state == SERVED_ADOPTING)
		served_adopted(s, pass->sender.pid, bm_pass_take(pass, BM_ADOPT_PROCESS),
			       bm_pass_take(pass, BM_ADOPT_NBD),
			       bm_pass_take(pass, BM_ADOPT_CONTROL));
}

static void receive_all(struct daemon *d)
{
	char text[LARGEST_HELLO];
	struct bm_pass pass;
	ssize_t n;

	while (d->adopt.fd >= 0 && (n = bm_pass_receive(d->adopt.fd, text, sizeof(text), &pass,
							MSG_DONTWAIT)) != -EAGAIN) {
		json_t *hello = n > 0 ? json_loadb(text, (size_t)n, 0, NULL) : NULL;

		if (hello)
			understand(d, &pass, hello);
		json_decref(hello);
		if (n >= 0)
			bm_pass_close(&pass);
		else if (n != -EMSGSIZE)
			break;
	}
}

bool adopt_succeed(struct served *s)
{
	bm_close int fd = -1;
	siginfo_t info;

	receive_all(s->daemon); /* it was sent before this end, and may have been read after it */
	if (s->successor.fd < 0)
		return false;
	fd = s->successor.fd;
	bm_watch_set(s->daemon->loop, &s->successor, fd, 0);
	s->successor.fd = -1;
	waitid(P_PIDFD, (id_t)s->process.fd, &info, WEXITED | WNOHANG); /* if it is ours */
	served_close_watch(s, &s->process);
	if (served_watch_process(s, fd) < 0) {
		s->process.fd = -1;
		return false;
	}
	bm_steal_fd(fd);
	bm_log(BM_LOG_NOTICE, "%s: process %d takes the place of process %d", s->name,
	       (int)s->successor_pid, (int)s->pid);
	s->pid = s->successor_pid;
	s->since = bm_loop_now(s->daemon->loop);
	control_tell(s);
	return true;
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
