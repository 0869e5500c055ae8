/* SPDX-License-Identifier: BSD-3-Clause */
/* Signals as events of a loop. */
#include "blockmirror/base/signals.h"

#include <errno.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "blockmirror/base/list.h"

static void ready(struct bm_watch *watch, uint32_t events)
{
	struct bm_signals *s = bm_container(watch, struct bm_signals, watch);
	struct signalfd_siginfo info;

	(void)events;
	if (read(watch->fd, &info, sizeof(info)) == sizeof(info))
		s->run(s, (int)info.ssi_signo);
}

int bm_signals_watch(struct bm_signals *s, struct bm_loop *loop, bool hangup)
{
	sigset_t set;
	int fd, r;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	if (hangup)
		sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	s->watch.run = ready;
	r = bm_watch_set(loop, &s->watch, fd, EPOLLIN);
	if (r < 0)
		close(fd);
	return r;
}

void bm_signals_close(struct bm_signals *s, struct bm_loop *loop)
{
	if (!s->watch.events)
		return;
	bm_watch_set(loop, &s->watch, s->watch.fd, 0);
	close(s->watch.fd);
}
